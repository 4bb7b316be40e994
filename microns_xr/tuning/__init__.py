"""Visual tuning: rates by direction and orientation, fits, selectivity, statistics over trials."""

from microns_xr.tuning.fits import evaluate, fit
from microns_xr.tuning.functional import collapse_scans
from microns_xr.tuning.indices import orientation_from_direction, selectivity
from microns_xr.tuning.trials import cross_validate, test, trial_statistics

__all__ = [
    "collapse_scans",
    "cross_validate",
    "evaluate",
    "fit",
    "orientation_from_direction",
    "selectivity",
    "test",
    "trial_statistics",
]


def __dir__() -> list[str]:
    return __all__
