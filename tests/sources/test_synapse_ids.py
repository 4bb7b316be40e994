"""Units, nucleus ids or root ids to root ids; ids of other releases are refused."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.sources.synapses import resolve_ids

ROOT = 864_691_135_000_000_001  # float64 holds only every 128th id of this size
NUCLEI = pd.DataFrame({
    "id": [5, 3, 9, 7, 11, 0],
    # 7 has no segment, 9 and 11 share one
    "pt_root_id": pd.array([ROOT, ROOT + 1, ROOT + 2, 0, ROOT + 2, None], dtype="Int64"),
})  # fmt: skip


@pytest.mark.parametrize(("ids", "counts"), [
    ([9, 5, 7, 11, 5, 9], "2 roots of 6 ids, 2 of them repeated, 0 not in the nucleus table, "
     "1 with root 0, 1 with the root of another id"),
    (np.array([ROOT + 2, 0, ROOT, ROOT, 0]), "2 roots of 5 ids, 2 of them repeated, "
     "0 not in the nucleus table, 1 with root 0, 0 with the root of another id"),
])  # fmt: skip
def test_by_hand(caplog, ids, counts):
    caplog.set_level("INFO")
    found = resolve_ids(ids, NUCLEI, name="pre")
    assert found.tolist() == [ROOT, ROOT + 2]
    assert found.dtype == np.int64
    assert f"pre: {counts}" in caplog.text


def units(roots, version=1718):
    data = xr.Dataset(
        {"pt_root_id": ("nucleus_id", np.array(roots))},
        coords={"nucleus_id": np.arange(len(roots)) + 1},
    )
    return mx.releases.stamp_release(data, "minnie65_public", version)


def test_units():
    some = units([ROOT, ROOT + 1])
    found = resolve_ids(some, NUCLEI, version=1718, datastack="minnie65_public")
    assert found.tolist() == [ROOT, ROOT + 1]
    assert resolve_ids(some["pt_root_id"], NUCLEI, version=1718).tolist() == [ROOT, ROOT + 1]


def test_units_without_root_ids_are_refused():
    with pytest.raises(mx.errors.SchemaError, match="pre is a Dataset without pt_root_id"):
        resolve_ids(units([ROOT]).drop_vars("pt_root_id"), NUCLEI, name="pre")


@pytest.mark.parametrize(
    "release", [{"version": 1822}, {"version": 1718, "datastack": "minnie65_demo"}]
)
def test_units_of_another_release_are_refused(release):
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match=r"post is of minnie65_public v1718.*nucleus ids"
    ):
        resolve_ids(units([ROOT]), NUCLEI, name="post", **release)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="post is of"):
        resolve_ids(units([ROOT])["pt_root_id"], NUCLEI, name="post", **release)


def test_root_ids_of_another_release_are_refused(caplog):
    caplog.set_level("INFO")
    given = [ROOT, *range(ROOT + 50, ROOT + 53)]
    with pytest.raises(mx.errors.ReleaseMismatchError) as caught:
        resolve_ids(given, NUCLEI, name="pre", datastack="minnie65_public", version=1718)
    said = str(caught.value)
    assert said.startswith(
        "pre: 3 of 4 root ids (75 %) are not in the nucleus table of minnie65_public v1718"
    )
    assert str(ROOT + 50) in said
    assert "root ids change between releases" in said
    assert "allow_unknown=True" in said
    assert resolve_ids(given, NUCLEI, allow_unknown=True).tolist() == given
    assert "4 roots of 4 ids, 0 of them repeated, 3 not in the nucleus table" in caplog.text


def test_nucleus_ids_that_do_not_exist_are_refused_or_left_out():
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match=r"1 of 2 nucleus ids \(50 %\).*such as 400"
    ):
        resolve_ids([5, 400], NUCLEI)
    assert resolve_ids([5, 400], NUCLEI, allow_unknown=True).tolist() == [ROOT]


def test_unknown_ids_are_told_apart_by_their_size():
    with pytest.raises(mx.errors.ReleaseMismatchError, match="1 of 1 root ids"):
        resolve_ids([ROOT + 99], NUCLEI)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="1 of 1 nucleus ids"):
        resolve_ids([99], NUCLEI)


def test_a_mixture_is_refused():
    with pytest.raises(
        mx.errors.SchemaError, match=r"1 nucleus ids and 2 root ids.*expected one kind"
    ):
        resolve_ids([5, ROOT, ROOT + 1], NUCLEI, name="pre")


@pytest.mark.parametrize("ids", [[], [0], [7], [0, 0]])
def test_nothing_left_is_refused(ids):
    with pytest.raises(mx.errors.SchemaError, match="no root id to request"):
        resolve_ids(ids, NUCLEI)


@pytest.mark.parametrize("ids", [
    [1.0], np.array([float(ROOT)]), pd.Series([ROOT, None]), pd.Series([ROOT, None], dtype="Int64"),
    [True], [[5]], [2**63], np.array([2**63], dtype=np.uint64), [-5], "5", xr.Dataset(), [None],
])  # fmt: skip
def test_values_that_are_not_ids_are_refused(ids):
    with pytest.raises((mx.errors.SchemaError, mx.errors.ReleaseMismatchError), match="pre"):
        resolve_ids(ids, NUCLEI, name="pre")


@pytest.mark.parametrize("ids", [
    ROOT, np.int64(ROOT), [ROOT], (ROOT,), {ROOT}, pd.Index([ROOT]), pd.Series([ROOT], dtype="Int64"),
    pd.Series([ROOT], dtype=object), np.array([ROOT], dtype=np.uint64), xr.DataArray([ROOT]),
    pd.DataFrame({"r": [ROOT]})["r"], np.array([ROOT], dtype=object), [str(ROOT)],
])  # fmt: skip
def test_any_collection_of_integers_is_taken(ids):
    assert resolve_ids(ids, NUCLEI).tolist() == [ROOT]


@given(st.lists(st.sampled_from([0, 3, 5, 9, 7, 11]), min_size=1))
def test_nucleus_ids_give_what_a_dict_gives(ids):
    table = dict(zip(NUCLEI["id"], NUCLEI["pt_root_id"].fillna(0), strict=True))
    roots = sorted({int(table[i]) for i in ids} - {0})
    if roots:
        assert resolve_ids(ids, NUCLEI).tolist() == roots
    else:
        with pytest.raises(mx.errors.SchemaError, match="no root id to request"):
            resolve_ids(ids, NUCLEI)


def test_the_demo_release():
    demo = mx.sources.DemoSource(1718, n_nuclei=600)
    nuclei = demo.read("nucleus_detection_v0")
    found = resolve_ids(nuclei["id"], nuclei, version=1718)
    assert found.tolist() == sorted(set(nuclei["pt_root_id"]) - {0})
    old = mx.sources.DemoSource(661, n_nuclei=600).read("nucleus_detection_v0")["pt_root_id"]
    with pytest.raises(mx.errors.ReleaseMismatchError, match="probably from another one"):
        resolve_ids(old[old > 0], nuclei, version=1718)
    ours = mx.Release(1718, source=demo).units()
    there = resolve_ids(ours, nuclei, version=1718)
    assert there.tolist() == sorted(ours["pt_root_id"].values.tolist())
    assert resolve_ids(ours["nucleus_id"].values, nuclei).tolist() == there.tolist()
