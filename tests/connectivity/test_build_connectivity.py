"""From tables of synapses or of pairs to connectivity."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import dense, stored_pairs

import microns_xr as mx
from microns_xr.schema import validate

# Neighbours of 8.6e17 are 128 apart as float64.
ROOT = {n: 864691135639235580 + n for n in (11, 12, 13)}
SHARED = 864691135000000001
STRANGER = 864691139999999999


def make_units(version=1718, order=(11, 12, 13), **attrs):
    units = xr.Dataset(
        {"pt_root_id": ("nucleus_id", np.array([ROOT[n] for n in order]))},
        coords={"nucleus_id": np.array(order)},
        attrs=attrs,
    )
    return mx.releases.stamp_release(units, "minnie65_public", version)


def table(rows, columns=("pre_pt_root_id", "post_pt_root_id", "size"), **more):
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.assign(**more)


def by_root(*rows):
    return [(ROOT.get(a, a), ROOT.get(b, b), *rest) for a, b, *rest in rows]


# 11 -> 12 twice, 12 -> 13 of size 0, 13 -> 13 an autapse
THREE = by_root((11, 12, 400), (13, 13, 9), (11, 12, 300), (12, 13, 0))
SIZE = [[0, 700, 0], [0, 0, 0], [0, 0, 9]]
COUNT = [[0, 2, 0], [0, 0, 1], [0, 0, 1]]
# Of an unknown scope the axes are the neurons that the table names: nothing enters 11.
SIZE_OF_NAMED = [[700, 0], [0, 0], [0, 9]]


def test_three_neurons_by_hand():
    synapses = table(THREE, id=[1, 2, 3, 4])
    before = synapses.copy()
    found = mx.build_connectivity(synapses, make_units(), scope="requested")
    validate(found, "connectivity")
    assert found.pre_nucleus_id.values.tolist() == [11, 12, 13]
    assert dense(found).tolist() == SIZE
    assert dense(found, "synapse_count").tolist() == COUNT
    assert stored_pairs(found).tolist() == (np.array(COUNT) > 0).tolist()  # size 0 is a synapse
    assert found.synapse_size.dtype == found.synapse_count.dtype == np.int64
    assert found.synapse_size.data.indices.dtype == np.int32
    assert tuple(found.synapse_size.data.compressed_axes) == (1,)
    assert found.synapse_size.data.indices is found.synapse_count.data.indices
    assert found.scope.item() == "requested"
    assert (found.datastack.item(), found.materialization_version.item()) == (
        "minnie65_public",
        1718,
    )
    assert found.attrs["n_synapse_rows"] == 4
    assert set(mx.releases.read_counts(found, "dropped_synapses").values()) == {0}
    assert "build_connectivity" in "\n".join(found.attrs["history"])
    pd.testing.assert_frame_equal(synapses, before)


def test_units_in_any_order():
    found = mx.build_connectivity(table(THREE, id=range(4)), make_units(order=(13, 11, 12)))
    assert found.pre_nucleus_id.values.tolist() == [11, 12, 13]
    assert found.post_nucleus_id.values.tolist() == [12, 13]
    assert dense(found).tolist() == SIZE_OF_NAMED


def test_axes_of_an_unknown_scope_are_the_neurons_that_the_table_names():
    units = make_units(order=(13, 12, 11))
    rows = [*THREE, (STRANGER, ROOT[11], 5), (ROOT[12], 0, 5)]
    found = mx.build_connectivity(table(rows, id=range(6)), units)
    validate(found, "connectivity")
    assert found.scope.item() == "unknown"
    # 11 receives from no unit: what it receives from units is not known
    assert found.post_nucleus_id.values.tolist() == [12, 13]
    assert found.post_pt_root_id.values.tolist() == [ROOT[12], ROOT[13]]
    assert dense(found).tolist() == SIZE_OF_NAMED
    one = mx.build_connectivity(table(THREE[:1]), units)
    assert (one.pre_nucleus_id.values.tolist(), one.post_nucleus_id.values.tolist()) == ([11], [12])
    nothing = mx.build_connectivity(table([]), units)
    assert nothing.synapse_size.shape == (0, 0)
    for scope in ("complete", "requested"):
        whole = mx.build_connectivity(table(THREE, id=range(4)), units, scope=scope)
        assert whole.scope.item() == scope
        assert dense(whole).tolist() == SIZE


@pytest.mark.parametrize(
    ("chosen", "scope", "axes", "found_scope"),
    [
        (dict(pre=[11, 12], post=[11, 13]), None, ([11, 12], [11, 13]), "requested"),
        (dict(pre=[11, 12], post=[11, 13]), "unknown", ([11, 12], [11, 13]), "unknown"),
        (dict(pre=[11, 12], post=[11, 13]), "complete", ([11, 12], [11, 13]), "complete"),
        (dict(pre=[11, 12]), None, ([11, 12], [12, 13]), "unknown"),
        (dict(post=[11, 13]), None, ([11, 12, 13], [11, 13]), "unknown"),
        (dict(pre=[11, 12]), "requested", ([11, 12], [11, 12, 13]), "requested"),
    ],
)
def test_pre_and_post_say_what_was_asked_for(chosen, scope, axes, found_scope):
    found = mx.build_connectivity(table(THREE, id=range(4)), make_units(), **chosen, scope=scope)
    assert found.pre_nucleus_id.values.tolist() == axes[0]
    assert found.post_nucleus_id.values.tolist() == axes[1]
    assert found.scope.item() == found_scope
    at = [np.array(ids) - 11 for ids in axes]
    assert dense(found).tolist() == np.array(SIZE)[np.ix_(*at)].tolist()


@pytest.mark.parametrize("size", ["size", "sum_size", "synapse_size"])
@pytest.mark.parametrize("count", ["n_syn", "synapse_count"])
def test_a_table_of_pairs(size, count):
    rows = by_root((11, 12, 700, 2), (12, 13, 0, 1), (13, 13, 9, 7))
    synapses = table(rows, ("pre_pt_root_id", "post_pt_root_id", size, count))
    found = mx.build_connectivity(synapses, make_units())
    assert dense(found).tolist() == SIZE_OF_NAMED
    assert dense(found, "synapse_count").tolist() == [[2, 0], [0, 1], [0, 7]]


def test_nucleus_ids_instead_of_roots():
    synapses = table(
        [(11, 12, 700, 2, 5, 5), (12, 13, 0, 1, 5, 5)],
        ("pre_nucleus_id", "post_nucleus_id", "size", "n_syn", "pre_pt_root_id", "post_pt_root_id"),
    )
    found = mx.build_connectivity(synapses, make_units())
    assert dense(found).tolist() == [[700, 0], [0, 0]]
    assert dense(found, "synapse_count").sum() == 3


@pytest.mark.parametrize(
    ("rows", "asked", "counted"),
    [
        (THREE, "auto", True),  # a pair is repeated
        (THREE[1:], "auto", False),
        (THREE[1:], "synapse", True),
        (THREE[1:], "pair", False),
    ],
)
def test_what_a_row_is(rows, asked, counted):
    found = mx.build_connectivity(table(rows), make_units(), rows=asked)
    assert ("synapse_count" in found) == counted
    if counted:
        assert dense(found, "synapse_count").sum() == len(rows)


@pytest.mark.parametrize("columns", [("ctr_pt_position",), ("ctr_pt_position_x",)])
def test_rows_with_a_position_are_synapses(columns):
    """The package microns-datacleaner writes single synapses without an id."""
    synapses = table(THREE[1:]).assign(**dict.fromkeys(columns, 1))
    found = mx.build_connectivity(synapses, make_units())
    assert dense(found, "synapse_count").sum() == len(THREE) - 1


def test_results_of_pairs_without_a_count_hold_no_number_of_synapses():
    units = make_units()
    pairs = mx.build_connectivity(table(THREE[1:]), units)
    assert list(pairs.data_vars) == ["synapse_size"]
    degrees = mx.degrees(pairs)
    assert set(degrees.data_vars) == {"in_degree", "in_size", "out_degree", "out_size"}
    label = xr.DataArray(["a"] * 3, {"nucleus_id": units.nucleus_id.values}, name="label")
    groups = mx.group_connectivity(pairs, label)
    assert set(groups.data_vars) == {
        "synapse_size", "n_connections", "mean_size", "n_pre", "n_post"
    }  # fmt: skip
    assert groups.synapse_size.item() == sum(row[2] for row in THREE[1:])
    assert "n_syn" not in mx.to_table(pairs)
    assert list(mx.inputs_to(pairs, 12).data_vars) == ["synapse_size"]
    graph = mx.to_networkx(pairs)
    assert all(set(edge) == {"synapse_size"} for *_, edge in graph.edges(data=True))
    rates = xr.DataArray([1.0, 2.0, 3.0], {"nucleus_id": units.nucleus_id.values})
    for ask in (
        lambda: mx.input_currents(pairs, rates, weight="synapse_count"),
        lambda: mx.to_scipy(pairs, "synapse_count"),
    ):
        with pytest.raises(
            mx.errors.UnknownLabelError, match=r"not counted; build.*rows='synapse'.*n_syn"
        ):
            ask()


def test_a_pair_repeated_among_rows_left_out_tells_that_rows_are_synapses():
    found = mx.build_connectivity(table(THREE), make_units(), post=[13])
    assert "synapse_count" in found
    assert mx.releases.read_counts(found, "dropped_synapses")["not_asked_for"] == 2


@pytest.mark.parametrize("more", [{"n_syn": 1}, {"sum_size": 5}, {}])
def test_overlapping_tables_of_pairs_are_not_added_up(more, caplog):
    pairs = table(THREE[1:]).assign(**more)
    if "sum_size" in more:
        pairs = pairs.drop(columns="size")
    overlapping = pd.concat([pairs, pairs.iloc[:2]])
    match = "expected each pair once: if files overlap" if more else "2 of 5 rows .* the same size"
    with pytest.raises(mx.errors.SchemaError, match=match):
        mx.build_connectivity(overlapping, make_units())
    counted = mx.build_connectivity(overlapping.drop_duplicates(), make_units())
    assert ("synapse_count" in counted) == ("n_syn" in more)
    assert not caplog.records
    mx.build_connectivity(table(THREE), make_units())
    assert "1 of 4 repeat a pair of neurons: each row is read as a synapse" in caplog.text


def test_rows_that_contradict_the_table():
    with pytest.raises(mx.errors.SchemaError, match="rows is 'pair' but 4 rows hold 3 pairs"):
        mx.build_connectivity(table(THREE), make_units(), rows="pair")
    with pytest.raises(
        mx.errors.SchemaError, match="rows is 'synapse' but synapses has the column n_syn"
    ):
        mx.build_connectivity(table(THREE, n_syn=1), make_units(), rows="synapse")
    with pytest.raises(mx.errors.SchemaError, match="rows is 'both'"):
        mx.build_connectivity(table(THREE), make_units(), rows="both")


def test_dropped_rows_are_counted_by_reason(caplog):
    rows = by_root(
        (11, 12, 1), (0, 12, 2), (SHARED, 0, 3), (STRANGER, 13, 4), (11, None, 5), (11, SHARED, 6)
    )
    post = pd.array([b for _, b, _ in rows], dtype="Int64")  # a list with None would become float
    synapses = table(rows, id=range(6)).assign(post_pt_root_id=post)
    units = make_units(shared_roots=[SHARED])
    with caplog.at_level(logging.INFO, logger="microns_xr.connectivity.build"):
        found = mx.build_connectivity(synapses, units)
    assert len(caplog.records) == 1
    assert "1 pairs of 6 rows; 5 rows dropped (1 pre zero, 1 pre shared, 1 pre unkn" in caplog.text
    dropped = mx.releases.read_counts(found, "dropped_synapses")
    assert dropped == {
        "pre_null": 0, "pre_zero": 1, "pre_shared": 1, "pre_unknown": 1,
        "post_null": 1, "post_zero": 1, "post_shared": 1, "post_unknown": 0,
        "any_reason": 5, "not_asked_for": 0,
    }  # fmt: skip
    assert dense(found).sum() == 1
    without = mx.build_connectivity(synapses, make_units())
    # Which roots are shared is not known: no number, rather than 0.
    assert mx.releases.read_counts(without, "dropped_synapses")["post_unknown"] == 1
    assert "post_shared" not in mx.releases.read_counts(without, "dropped_synapses")
    given_ = mx.build_connectivity(synapses, make_units(), shared_roots=np.array([SHARED]))
    assert mx.releases.read_counts(given_, "dropped_synapses") == dropped


def test_axes_are_the_neurons_asked_for():
    units = make_units()
    found = mx.build_connectivity(
        table(THREE, id=range(4)), units, pre={13, 11}, post=np.array([13, 12, 12])
    )
    assert found.pre_nucleus_id.values.tolist() == [11, 13]
    assert found.post_nucleus_id.values.tolist() == [12, 13]
    assert dense(found).tolist() == [[700, 0], [0, 9]]
    assert found.post_pt_root_id.values.tolist() == [ROOT[12], ROOT[13]]
    assert mx.releases.read_counts(found, "dropped_synapses")["not_asked_for"] == 1
    some = units.isel(nucleus_id=[2, 0])
    same = mx.build_connectivity(table(THREE, id=range(4)), units, pre=some, post=some.nucleus_id)
    assert same.pre_nucleus_id.values.tolist() == same.post_nucleus_id.values.tolist() == [11, 13]
    nobody = mx.build_connectivity(table(THREE, id=range(4)), units, pre=[])
    assert nobody.synapse_size.shape == (0, 2)


def test_axes_of_strangers_or_of_another_release():
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"1 of 3 \(33.3%\) ids of post .* such as 99"
    ):
        mx.build_connectivity(table(THREE), make_units(), post=[11, 99, 12])
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.build_connectivity(table(THREE), make_units(), pre=make_units(version=661))
    found = mx.build_connectivity(
        table(THREE),
        make_units(),
        pre=make_units(661).drop_vars(["datastack", "materialization_version"]),
    )
    assert found.materialization_version.item() == 1718
    with pytest.raises(mx.errors.ReleaseMismatchError, match="units has no coordinate"):
        mx.build_connectivity(table(THREE), make_units().drop_vars("datastack"))


def test_a_table_without_a_row_connects_nobody():
    empty = table(THREE, id=range(4)).iloc[:0]
    found = mx.build_connectivity(empty, make_units())
    validate(found, "connectivity")
    assert found.synapse_size.data.nnz == 0
    header = pd.DataFrame(columns=["pre_pt_root_id", "post_pt_root_id", "size"])  # of no dtypes
    assert mx.build_connectivity(header, make_units()).synapse_size.data.nnz == 0


@pytest.mark.parametrize(
    "dtype", ["int32", "uint64", "Int64", "float32", "float64", "Float32", "int64[pyarrow]"]
)
def test_sizes_of_any_dtype_are_exact(dtype):
    synapses = table(THREE, id=range(4)).astype({"size": dtype})
    assert dense(mx.build_connectivity(synapses, make_units())).tolist() == SIZE_OF_NAMED


@pytest.mark.parametrize("dtype", ["uint64", "Int64", "object", "int64[pyarrow]"])
def test_ids_of_any_integer_dtype_are_exact(dtype):
    ids = {"pre_pt_root_id": dtype, "post_pt_root_id": dtype}
    synapses = table(THREE, id=range(4)).astype(ids)
    assert dense(mx.build_connectivity(synapses, make_units())).tolist() == SIZE_OF_NAMED


BAD = {
    "float ids": (table(THREE).astype({"pre_pt_root_id": float}), "synapses.pre_pt_root_id has dtype float64"),
    "no size": (table(THREE).drop(columns="size"), r"one of \('size'"),
    "no partner": (table(THREE).drop(columns="post_pt_root_id"), "expected pre_pt_root_id and post_pt_root_id"),
    "mixed partners": (table(THREE).rename(columns={"pre_pt_root_id": "pre_nucleus_id"}), "expected pre_pt_root_id"),
    "two sizes": (table(THREE, sum_size=1), r"synonymous columns \['size', 'sum_size'\]"),
    "one size twice": (pd.concat([table(THREE), table(THREE)["size"]], axis=1), r"several columns \['size'\]"),
    "negative": (table([*THREE, (ROOT[11], ROOT[12], -7)]), "size holds -7 .1 such rows., expected 0 or more"),
    "fraction": (table([*THREE, (ROOT[11], ROOT[12], 1.5)]), "size holds 1.5 .1 such rows., expected whole numbers"),
    "infinite": (table([*THREE, (ROOT[11], ROOT[12], np.inf)]), "size holds inf"),
    "empty size": (table([*THREE, (ROOT[11], ROOT[12], None)]), "size is null in 1 of 5 rows"),
    "text size": (table(THREE).astype({"size": str}), "size has dtype"),
    "overflow": (table([(ROOT[11], ROOT[12], 2**62)] * 2), "sums to 9.22e.18"),
    "unsigned overflow": (table(THREE).assign(size=np.array([2**63] * 4, np.uint64)), "expected whole numbers below"),
    "no synapses in a pair": (table(THREE, n_syn=[1, 1, 0, 1]), "n_syn holds 0 .1 such rows., expected 1 or more"),
    "repeated id": (table(THREE, id=[5, 6, 6, 7]), "synapses.id repeats 1 ids, such as 6"),
    "float synapse id": (table(THREE, id=[1.0, 2.0, 3.0, 4.5]), "synapses.id has dtype float64"),
    "no table": (THREE, "synapses is a list"),
}  # fmt: skip


@pytest.mark.parametrize(("synapses", "message"), BAD.values(), ids=BAD)
def test_bad_tables(synapses, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.build_connectivity(synapses, make_units())


def test_bad_units_and_scope():
    with pytest.raises(mx.errors.SchemaError, match="scope is 'all'"):
        mx.build_connectivity(table(THREE), make_units(), scope="all")
    with pytest.raises(mx.errors.SchemaError, match="pt_root_id of the units repeats 1 labels"):
        mx.build_connectivity(
            table(THREE), make_units(order=(11, 12, 11)).assign_coords(nucleus_id=[1, 2, 3])
        )
    with pytest.raises(mx.errors.SchemaError, match="units lacks pt_root_id"):
        mx.build_connectivity(table(THREE), make_units().drop_vars("pt_root_id"))
    as_float = make_units().assign(pt_root_id=make_units().pt_root_id.astype(float))
    with pytest.raises(mx.errors.SchemaError, match="dtype float64"):
        mx.build_connectivity(table(THREE), as_float)


NODES = st.one_of(st.sampled_from(sorted(ROOT)), st.sampled_from([0, SHARED, STRANGER]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NODES, NODES, st.integers(0, 10**9)), max_size=40),
    st.sets(st.sampled_from(sorted(ROOT))),
)
def test_against_a_plain_loop(rows, post):
    synapses = table(by_root(*rows), id=range(len(rows))).astype("int64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mx.errors.DroppedRowsWarning)  # of all rows
        found = mx.build_connectivity(synapses, make_units(shared_roots=[SHARED]), post=post)
    sizes: dict[tuple[int, int], int] = {}
    counts: dict[tuple[int, int], int] = {}
    n_dropped = n_other = 0
    for a, b, size in rows:
        if a not in ROOT or b not in ROOT:
            n_dropped += 1
        elif b not in post:
            n_other += 1
        else:
            sizes[a, b] = sizes.get((a, b), 0) + size
            counts[a, b] = counts.get((a, b), 0) + 1
    pre_ids, post_ids = found.pre_nucleus_id.values.tolist(), found.post_nucleus_id.values.tolist()
    named = {a for a, b, _ in rows if a in ROOT and b in ROOT}
    assert (pre_ids, post_ids) == (sorted(named), sorted(post))
    assert dense(found).tolist() == [[sizes.get((a, b), 0) for b in post_ids] for a in pre_ids]
    assert dense(found, "synapse_count").tolist() == [
        [counts.get((a, b), 0) for b in post_ids] for a in pre_ids
    ]
    dropped = mx.releases.read_counts(found, "dropped_synapses")
    assert (dropped["any_reason"], dropped["not_asked_for"]) == (n_dropped, n_other)
    for side, i in (("pre", 0), ("post", 1)):
        assert dropped[f"{side}_zero"] == sum(row[i] == 0 for row in rows)
        assert dropped[f"{side}_shared"] == sum(row[i] == SHARED for row in rows)
        assert dropped[f"{side}_unknown"] == sum(row[i] == STRANGER for row in rows)


def test_real_pairs_of_v661(real_data):
    folder = real_data / "minnie65_v661" / "raw"
    nuclei = pd.read_csv(folder / "nucleus_detection_v0.csv", usecols=["id", "pt_root_id"])
    shared = nuclei.pt_root_id.duplicated(keep=False)
    units = mx.releases.stamp_release(
        xr.Dataset(
            {"pt_root_id": ("nucleus_id", nuclei.pt_root_id[~shared].to_numpy())},
            coords={"nucleus_id": nuclei.id[~shared].to_numpy()},
        ),
        "minnie65_public",
        661,
    )
    pairs = pd.read_csv(folder / "synapses" / "connections.csv")
    found = mx.build_connectivity(
        pairs, units, shared_roots=nuclei.pt_root_id[shared], scope="unknown"
    )
    single = nuclei[~shared].set_index("pt_root_id").id
    kept = pairs[pairs.pre_pt_root_id.isin(single.index) & pairs.post_pt_root_id.isin(single.index)]
    assert mx.releases.read_counts(found, "dropped_synapses")["any_reason"] == len(pairs) - len(
        kept
    )
    assert found.synapse_size.data.nnz == len(kept)
    assert int(found.synapse_size.data.data.sum()) == int(kept["size"].sum())
    assert list(found.data_vars) == ["synapse_size"]
    by_post = (
        kept.assign(post=single[kept.post_pt_root_id].to_numpy()).groupby("post")["size"].sum()
    )
    array = found.synapse_size.data
    sums = np.add.reduceat(np.append(array.data, 0), array.indptr[:-1]) * (
        np.diff(array.indptr) > 0
    )
    expected = by_post.reindex(found.post_nucleus_id.values, fill_value=0)
    np.testing.assert_array_equal(sums, expected.to_numpy())
