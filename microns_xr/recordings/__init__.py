"""Recordings: responses, behaviour and stimuli of all scans, read lazily from an HDF5 file."""

from microns_xr.recordings.demo import write_demo
from microns_xr.recordings.files import open, open_video, select, to_zarr
from microns_xr.recordings.trials import trial_responses, tuning
from microns_xr.sources.fetch import download

__all__ = [
    "download",
    "open",
    "open_video",
    "select",
    "to_zarr",
    "trial_responses",
    "tuning",
    "write_demo",
]


def __dir__() -> list[str]:
    return __all__
