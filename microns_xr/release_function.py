"""Tuning curves of a release: found in a table, drawn from fits, or computed from recordings."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import AngleConvention
from microns_xr.columns import require_columns
from microns_xr.errors import SchemaError, SourceError
from microns_xr.functional.angle_axis import require_likely_units
from microns_xr.functional.coregistration import stated_spec
from microns_xr.functional.fits import evaluate_tuning
from microns_xr.functional.tuning import build_tuning_curves
from microns_xr.provenance import add_history
from microns_xr.recordings.open import open_recordings
from microns_xr.recordings.tuning import tuning_from_trials
from microns_xr.release_tables import ReleaseTables
from microns_xr.releases import TableSpec
from microns_xr.source.files import file_sha256, read_table_file
from microns_xr.source.recordings import RECORDING_SUFFIXES
from microns_xr.tables import SCAN_KEYS

__all__ = ["rates_of_fits", "recording_files", "tuning_curves_of"]

logger = logging.getLogger(__name__)

_N_DIRECTIONS = 16
# Columns of a table of fits: our name, and that of the fits published with con-con-models.
_FIT_COLUMNS = {
    "unit_id": "cell_id",
    "model": "tuning_type",
    "amplitude": "A",
    "kappa": "k",
    "r2": "mean_r_sqrd",
}
# Their words to our models; theirs are functions of radians, in a column phi.
_MODELS = {"single": "single_von_mises", "double": "von_mises"}
_PREFERRED = {
    "von_mises": "pref_ori",
    "single_von_mises": "pref_dir",
    "double_von_mises": "pref_dir",
}


def tuning_curves_of(
    release: ReleaseTables,
    coregistration: Callable[[], xr.Dataset],
    path: str | Path | None = None,
    angle_convention: AngleConvention | None = None,
) -> xr.Dataset:
    """Find the tuning curves of a release, draw them from fits, or compute them, in this order.

    Parameters
    ----------
    release : ReleaseTables
        The release.
    coregistration : callable
        Returns which unit is which neuron.
    path : str or Path, optional
        A file of rates, of fits, or of recordings, instead of looking for one.
    angle_convention : str, optional
        What 0 degrees means, where neither the registry nor the file says it.

    Returns
    -------
    xarray.Dataset
        Dim ``scan_unit``; ``attrs["tuning_from"]`` is ``"table"``, ``"fits"`` or ``"trials"``.

    Raises
    ------
    SourceError
        If there is nothing to take them from, or several files of one kind.
    SchemaError
        If a file holds no tuning curves, or what its angles mean is not stated.
    """
    if path is not None:
        if Path(path).suffix in RECORDING_SUFFIXES or Path(path).is_dir():
            return _computed(path, coregistration(), angle_convention)
        table, spec = read_table_file(path), release._file_spec(path)
        sha256 = file_sha256(Path(path))
        release._note(spec.name, {"name": spec.name, "rows": len(table), "sha256": sha256})
        return _from_table(table, spec, coregistration(), angle_convention)
    available = set(release.source.available_tables())
    fits = sorted(n for n in available if re.search(r"(^|_)fits(_|$)", n))
    files = recording_files(release)
    name = release.spec.tables.get("tuning_curves")
    if name in available:
        try:
            table, spec = release.table(name), release.spec.table_of("tuning_curves")
            return _from_table(table, spec, coregistration(), angle_convention)
        except SourceError as error:
            # An archive that cannot be listed names tables that it may not have.
            if not fits and not files:
                raise
            logger.warning("%s cannot be read: %s", name, error)
    if fits:
        found = _only(fits, "tables of fits")
        table, spec = release.table(found), release._file_spec(found)
        return _from_table(table, spec, coregistration(), angle_convention)
    if files:
        file = _only(files, "files of recordings")
        return _computed(file, coregistration(), angle_convention)
    raise SourceError(
        f"{release!r} has no tuning curves: no table {name or 'in the role tuning_curves'}, no "
        "table of fits, and no recordings to compute them from; put a table into its folder "
        "functional, give path=, or fetch the recordings with download_recordings()"
    )


def recording_files(release: ReleaseTables) -> list[Path]:
    """Return the files of recordings of a release.

    Recordings are the same in every release, so they lie in ``recordings/`` of the folder of all
    downloads; one in ``functional/`` of the release is found as well.

    Parameters
    ----------
    release : ReleaseTables
        The release.

    Returns
    -------
    list of pathlib.Path
        Sorted.
    """
    folders = [release.datadir / "recordings"]
    own = getattr(release.source, "folder", None) or getattr(release.source, "path", None)
    if own is not None:
        folders += [Path(own) / "functional", Path(own) / "recordings"]
    found = [f for folder in folders if folder.is_dir() for f in folder.iterdir()]
    return sorted({f.resolve() for f in found if f.suffix in RECORDING_SUFFIXES})


def _only(found: list[Any], what: str) -> Any:
    if len(found) > 1:
        raise SourceError(
            f"there are several {what} ({', '.join(str(f) for f in found)}): name one with path="
        )
    return found[0]


def _from_table(
    table: pd.DataFrame,
    spec: TableSpec,
    coregistration: xr.Dataset,
    angle_convention: AngleConvention | None,
) -> xr.Dataset:
    how = "table"
    if not {"rate_dir", "rate_ori"} & set(table.columns) and "kappa" in _renamed(table).columns:
        table, how = rates_of_fits(table, spec.name), "fits"
        spec = replace(spec, angle_units="degree")
    if angle_convention is not None:
        spec = stated_spec(spec, angle_convention=angle_convention)
    curves = build_tuning_curves(table, spec, coregistration)
    return _said(curves, how, spec.name)


def _computed(
    file: str | Path, coregistration: xr.Dataset, angle_convention: AngleConvention | None
) -> xr.Dataset:
    curves = tuning_from_trials(
        open_recordings(file), coregistration=coregistration, angle_convention=angle_convention
    )
    return _said(curves, "trials", Path(file).name)


def _said(curves: xr.Dataset, how: str, name: str) -> xr.Dataset:
    words = {
        "table": f"found in the table {name}",
        "fits": f"drawn from the fits {name}",
        "trials": f"computed from the trials of {name}",
    }
    logger.info("tuning curves were %s", words[how])
    return add_history(curves.assign_attrs(tuning_from=how), f"tuning curves {words[how]}")


def _renamed(table: pd.DataFrame) -> pd.DataFrame:
    theirs = {
        their: our
        for our, their in _FIT_COLUMNS.items()
        if their in table.columns and our not in table.columns
    }
    return table.rename(columns=theirs)


def rates_of_fits(table: pd.DataFrame, name: str = "fits") -> pd.DataFrame:
    """Draw tuning curves from a table of fits.

    Parameters
    ----------
    table : pandas.DataFrame
        A row a fit: session, scan_idx, unit_id, model, amplitude, kappa, ``pref_ori`` or
        ``pref_dir`` in degrees, r2; where the model has them, ``amplitude_opposite`` and
        ``baseline``. The columns of the fits published with con-con-models are known as well:
        cell_id, tuning_type (``double`` is our von_mises, ``single`` our single_von_mises), A, k,
        ``phi`` in radians, mean_r_sqrd. Of several fits of a unit the one with the highest r2
        counts.
    name : str, optional
        How messages call it.

    Returns
    -------
    pandas.DataFrame
        session, scan_idx, unit_id, ``rate_dir`` (16 directions from 0 degrees up) and ``rate_ori``.

    Raises
    ------
    SchemaError
        If columns are absent, a model is unknown, or angles cannot be in these units.

    Examples
    --------
    >>> fits = pd.DataFrame({"session": [4], "scan_idx": [7], "cell_id": [1],
    ...     "tuning_type": ["double"], "A": [2.0], "k": [1.0], "phi": [0.0], "mean_r_sqrd": [0.5]})
    >>> rates_of_fits(fits).rate_dir[0][[0, 4, 8]].round(3)
    array([2.   , 0.271, 2.   ])
    """
    table = _renamed(table)
    require_columns(table, name, [*SCAN_KEYS, "model", "amplitude", "kappa", "r2"])
    if not len(table):
        raise SchemaError(f"{name} has no rows: fetch the table again, or give another with path=")
    table = table.sort_values("r2", ascending=False, kind="stable", na_position="last")
    table = table.drop_duplicates(list(SCAN_KEYS))
    model = table["model"].map(lambda word: _MODELS.get(word, word))
    unknown = sorted(set(model) - set(_PREFERRED), key=str)
    if unknown:
        raise SchemaError(f"{name} has the models {unknown}, expected some of {[*_PREFERRED]}")
    directions = np.arange(_N_DIRECTIONS) * 360.0 / _N_DIRECTIONS
    parts = [_drawn(table[model == word], word, directions, name) for word in sorted(set(model))]
    rates = pd.concat(parts).sort_index()
    half = _N_DIRECTIONS // 2
    rates["rate_ori"] = [(r[:half] + r[half:]) / 2 for r in rates["rate_dir"]]
    return rates.reset_index(drop=True)


def _require_units(fits: pd.DataFrame, column: str, units: str, name: str) -> None:
    values = fits[column].to_numpy(dtype=np.float64, na_value=np.nan)
    require_likely_units(values[np.isfinite(values)], units, f"{name}.{column}")


def _drawn(fits: pd.DataFrame, model: str, directions: np.ndarray, name: str) -> pd.DataFrame:
    preferred = _PREFERRED[model]
    if preferred not in fits.columns and "phi" in fits.columns:
        _require_units(fits, "phi", "radian", name)
        fits = fits.assign(**{preferred: np.rad2deg(fits["phi"])})
    further = ["amplitude_opposite"] if model == "double_von_mises" else []
    require_columns(fits, name, [preferred, *further])
    _require_units(fits, preferred, "degree", name)
    fits = fits if "baseline" in fits.columns else fits.assign(baseline=0.0)
    columns = ["amplitude", "kappa", "baseline", preferred, *further]
    values = {
        c: ("scan_unit", fits[c].to_numpy(dtype=np.float64, na_value=np.nan)) for c in columns
    }
    fitted = xr.Dataset(values, attrs={"model": model, "tuning_dim": "direction"})
    # The same convention on both sides: the table's own, which is stated later.
    fitted[preferred].attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    rates = evaluate_tuning(fitted, directions).transpose("scan_unit", "direction").values
    return fits[list(SCAN_KEYS)].assign(rate_dir=list(rates))
