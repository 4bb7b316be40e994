"""Analysis of populations: probabilities, like-to-like, null models, comparison of releases."""

from microns_xr.analysis import null_models
from microns_xr.analysis.align import align_to_preferred
from microns_xr.analysis.populations import population_labels
from microns_xr.analysis.probability import connection_probability
from microns_xr.analysis.releases import compare_releases
from microns_xr.analysis.resample import Bootstrap, Wilson
from microns_xr.analysis.tuned import like_to_like, tuned_connections

__all__ = [
    "Bootstrap",
    "Wilson",
    "align_to_preferred",
    "compare_releases",
    "connection_probability",
    "like_to_like",
    "null_models",
    "population_labels",
    "tuned_connections",
]


def __dir__() -> list[str]:
    return __all__
