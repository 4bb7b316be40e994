"""A synthetic release: the tables of minnie65 with invented cells, and every trouble of real ones.

What is real in it: table and column names, the numbers of cells of each type, their depths and
nucleus sizes, the shares of matched, rated and proofread neurons, the conventions of angles. What
is invented: everything else, above all the connections. Nothing about the brain can be learnt here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from microns_xr.errors import SchemaError, SourceError, UnknownLabelError, nearest_words
from microns_xr.releases import release_spec
from microns_xr.source import demo_celltypes, demo_functional_tables, demo_tables
from microns_xr.source.demo_cells import LAYER_BORDERS, Cells, child_rng, make_cells
from microns_xr.source.demo_function import Units, make_units
from microns_xr.source.demo_functional_tables import planted_units
from microns_xr.source.demo_planted import Planted, planted_of
from microns_xr.source.demo_synapses import make_synapses, planted_synapses, synapse_table
from microns_xr.source.files import frame_sha256, write_table_file
from microns_xr.source.identity import write_identity

__all__ = ["DEMO_VERSIONS", "DemoSource"]

DEMO_VERSIONS = (661, 1507, 1718)

_MIN_NUCLEI, _MIN_SYNAPSES = 500, 1000
_SYNAPSES_A_NUCLEUS = 20
_COMBO_TABLE = "cell_type_multifeature_combo"


class DemoSource:
    """A synthetic release of any size, drawn from a seed.

    Tables are made when they are read and kept; each comes from a generator of its own, so that
    the order of reading does not matter. Cells, units and synapses are the same in the three
    versions of a seed and size: nucleus ids stay, root ids change in a part of the cells, and the
    tables are those of the version.

    Parameters
    ----------
    version : {661, 1507, 1718}
        Materialization version it imitates.
    n_nuclei : int, optional
        Rows of the nucleus table, at least 500. The planted layer borders come out within 10 µm
        from 4,000 up.
    seed : int, optional
        Seed, not negative.
    n_synapses : int, optional
        Rows of the synapse table, at least 1,000; 20 a nucleus by default.
    like_to_like : float, optional
        Between excitatory neurons, how often the more similarly oriented one of two candidates
        is taken as partner, from 0 to 1.
    datastack : str, optional
        Name it goes by; not that of the real data, so that the two are never mixed.

    Attributes
    ----------
    scope : str
        ``"complete"``: all synapses of all nuclei are in the table.
    layer_borders : dict of str to tuple of float
        Planted borders of the layers in µm, from the pia down.

    Raises
    ------
    UnknownLabelError
        If the version is another one.
    SchemaError
        If a size or the seed is out of range.

    Examples
    --------
    >>> demo = DemoSource(1718, n_nuclei=1000, seed=1)
    >>> nuclei = demo.read("nucleus_detection_v0")
    >>> len(nuclei), int((nuclei.pt_root_id == 0).sum()), demo.planted.counts()["root_zero"]
    (1000, 20, 20)
    """

    scope = "complete"

    def __init__(
        self,
        version: int,
        *,
        n_nuclei: int = 4000,
        seed: int = 0,
        n_synapses: int | None = None,
        like_to_like: float = 0.3,
        datastack: str = "minnie65_demo",
    ) -> None:
        if version not in DEMO_VERSIONS or isinstance(version, bool):
            raise UnknownLabelError(
                f"there is no demo of release {version!r}, expected one of "
                f"{', '.join(map(str, DEMO_VERSIONS))}"
            )
        n_synapses = _SYNAPSES_A_NUCLEUS * n_nuclei if n_synapses is None else n_synapses
        for name, value, least in (
            ("n_nuclei", n_nuclei, _MIN_NUCLEI),
            ("n_synapses", n_synapses, _MIN_SYNAPSES),
            ("seed", seed, 0),
        ):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < least:
                raise SchemaError(f"{name} is {value!r}, expected a whole number from {least} up")
        if not 0 <= like_to_like <= 1:
            raise SchemaError(f"like_to_like is {like_to_like!r}, expected a number from 0 to 1")
        self.version: int = int(version)
        self._version = int(version)
        self.n_nuclei = int(n_nuclei)
        self.seed = int(seed)
        self.n_synapses = int(n_synapses)
        self.like_to_like = float(like_to_like)
        self.datastack = datastack
        self._roles = dict(release_spec(self._version).tables)
        self._tables: dict[str, pd.DataFrame] = {}
        self._planted: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"DemoSource({self._version}, n_nuclei={self.n_nuclei}, seed={self.seed})"

    @property
    def layer_borders(self) -> dict[str, tuple[float, float]]:
        """Planted borders in µm; 661 has no types of white matter, so L6 is its last layer."""
        return {k: v for k, v in LAYER_BORDERS.items() if self._version != 661 or k != "WM"}

    def _rng(self, name: str) -> np.random.Generator:
        return child_rng(self.seed, self.n_nuclei, name)

    @cached_property
    def _cells(self) -> Cells:
        return make_cells(self.n_nuclei, self._rng("cells"))

    @cached_property
    def _units(self) -> Units:
        return make_units(self._cells, self._rng("units"))

    @property
    def recorded_units(self) -> Units:
        """The recorded units of all scans with their tuning curves, as they were drawn."""
        return self._units

    @cached_property
    def _synapses(self) -> dict[str, np.ndarray]:
        return make_synapses(self._cells, self.n_synapses, self.like_to_like, self._rng("synapses"))

    @cached_property
    def _wrong(self) -> np.ndarray:
        return demo_celltypes.wrong_types(self._cells, self._rng("wrong types"))

    @cached_property
    def _makers(self) -> dict[str, Callable[[np.random.Generator], Any]]:
        """Table name to the function that makes it, and perhaps what is planted in it."""
        types, tables, functional = demo_celltypes, demo_tables, demo_functional_tables
        v = self._version
        by_name: dict[str, Callable[[np.random.Generator], Any]] = {
            "nucleus_detection_v0": lambda r: tables.nucleus_table(self._cells, v, r),
            "baylor_log_reg_cell_type_coarse_v1": lambda r: types.coarse_table(self._cells, v, r),
            "baylor_gnn_cell_type_fine_model_v2": lambda r: types.fine_table(self._cells, v, r),
            "aibs_metamodel_celltypes_v661": lambda r: types.metamodel_table(
                self._cells, v, self._wrong, r
            ),
            "aibs_metamodel_celltypes_v661_corrections": lambda r: types.corrections_table(
                self._cells, v, self._wrong, r
            ),
            _COMBO_TABLE: lambda r: types.combo_table(self._cells, v, r),
        }
        by_role: dict[str, Callable[[np.random.Generator], Any]] = {
            "brain_area": lambda r: tables.area_table(self._cells, v, r),
            "proofreading": lambda r: tables.proofreading_table(self._cells, v, r),
            "coregistration": lambda r: functional.manual_table(self._cells, self._units, v, r),
            "coregistration_auto": lambda r: functional.auto_table(self._cells, self._units, v, r),
            "functional_properties": lambda r: functional.properties_table(
                self._cells, self._units, v, r
            ),
            "tuning_curves": lambda r: functional.tuning_table(self._units, r),
            "synapses": lambda r: synapse_table(self._cells, self._synapses, v),
        }
        makers = {name: by_name.get(name) or by_role[role] for role, name in self._roles.items()}
        if "celltype_corrections" in self._roles:
            makers[_COMBO_TABLE] = by_name[_COMBO_TABLE]
        return makers

    def available_tables(self) -> list[str]:
        """Names of the tables of the version, sorted.

        Returns
        -------
        list of str
            Those of `microns_xr.releases.release_spec`, in 1718 also
            ``cell_type_multifeature_combo``.
        """
        return sorted(self._makers)

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self._makers:
            near = nearest_words(name, self._makers)
            raise SourceError(
                f"the demo of release {self._version} has no table {name!r}, it has "
                f"{', '.join(self.available_tables())}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        if name not in self._tables:
            made = self._makers[name](self._rng(name))
            table, planted = made if isinstance(made, tuple) else (made, {})
            self._tables[name] = table
            self._planted.update(planted)
        return self._tables[name]

    def read(self, name: str) -> pd.DataFrame:
        """Return one table; the caller may change it.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            A copy: ids int64 (Int64 where a row has none), text object, times datetime64[us, UTC].

        Raises
        ------
        SourceError
            If the version has no such table.
        """
        return self._table(name).copy()

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what a table is.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``rows`` and ``sha256`` of its names, dtypes and values.

        Raises
        ------
        SourceError
            If the version has no such table.
        """
        table = self._table(name)
        return {"name": name, "rows": len(table), "sha256": frame_sha256(table)}

    @cached_property
    def planted(self) -> Planted:
        """What the tables hold on purpose; makes all of them, the synapses too."""
        for name in self.available_tables():
            self._table(name)
        drawn = {
            **self._planted,
            **planted_units(
                self._cells, self._units, self._version, "functional_properties" in self._roles
            ),
            **planted_synapses(self._cells, self._synapses, self._version),
        }
        return planted_of(self._cells, self._version, "brain_area" in self._roles, drawn)

    def write(self, path: str | Path, format: Literal["csv", "parquet"] = "csv") -> Path:
        """Write all tables as a release folder: ``raw/``, ``raw/synapses/``, ``functional/``.

        Parameters
        ----------
        path : str or pathlib.Path
            The folder; made if it is not there. Files of the same names are replaced, each whole
            or not at all.
        format : {"csv", "parquet"}, optional
            Format of the files.

        Returns
        -------
        pathlib.Path
            The folder, which `DirectorySource` reads.

        Raises
        ------
        SchemaError
            If the format is another.
        SourceError
            If a file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> folder = DemoSource(661, n_nuclei=1000).write(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.glob("*/synapses/*"))
        ['synapses_pni_2.csv']
        """
        if format not in ("csv", "parquet"):
            raise SchemaError(f"format is {format!r}, expected 'csv' or 'parquet'")
        folders = {
            self._roles["synapses"]: "raw/synapses",
            self._roles["tuning_curves"]: "functional",
        }
        path = Path(path)
        write_identity(path, self.datastack, self.version)
        for name in self.available_tables():
            file = path / folders.get(name, "raw") / f"{name}.{format}"
            write_table_file(self._table(name), file)
        return path
