"""Two releases side by side: units and connections that came, went and changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import dataset, ids, random_tables, stored_pairs, units_of

import microns_xr as mx

VERSIONS = (661, 1507, 1718)


def make_units(version, nucleus_id, root, cell_type="23P"):
    return units_of(
        nucleus_id,
        version,
        pt_root_id=root,
        position=np.zeros((len(nucleus_id), 3)),
        axon_proofread=False,
        classification_system="excitatory_neuron",
        cell_type=cell_type,
        brain_area="V1",
        strategy_axon="none",
        strategy_dendrite="none",
        axon_completeness="none",
        layer="L4",
        tuning_type="unknown",
    )


ID = ids(4)


@pytest.fixture
def old():
    """Neurons 0, 1, 2: 0 to 1 with 7, 1 to 2 with 5, 2 to 0 with 3, 2 to itself with 1."""
    size = np.array([[0, 7, 0], [0, 0, 5], [3, 0, 1]])
    return {
        "units": make_units(1507, ID[:3], ID[:3], cell_type=["23P", "BC", "MC"]),
        "connectivity": dataset(
            size > 0, size, 1 * (size > 0), pre_ids=ID[:3], post_ids=ID[:3], version=1507
        ),
    }


@pytest.fixture
def new():
    """Neurons 1, 2, 3, one with another root and type: 1 to 2 with 9, 2 to 1 with 4, 3 to 1."""
    size = np.array([[0, 9, 0], [4, 1, 0], [6, 0, 0]])
    return {
        "units": make_units(1718, ID[1:], [ID[1], 77, ID[3]], cell_type=["23P", "MC", "BC"]),
        "connectivity": dataset(
            size > 0, size, 1 * (size > 0), "pre", ID[1:], ID[1:], version=1718
        ),
    }


def test_units_by_hand(old, new):
    changes = mx.analysis.compare_releases(old, new)
    assert changes["summary"].n_units.to_series().to_dict() == {
        "kept": 2,
        "gained": 1,
        "lost": 1,
        "pt_root_id_changed": 1,
        "cell_type_changed": 1,
        "classification_system_changed": 0,
        "axon_completeness_changed": 0,
    }
    units = changes["units"].to_dataset()
    assert units.change.values.tolist() == ["lost", "kept", "kept", "gained"]
    assert units.pt_root_id.values.tolist() == [[*ID[:3], 0], [0, ID[1], 77, ID[3]]]
    assert units.pt_root_id.dtype == np.int64
    assert units.pt_root_id_changed.values.tolist() == [False, False, True, False]
    assert units.cell_type.sel(release="a").values.tolist() == ["23P", "BC", "MC", "absent"]
    assert units.cell_type.sel(release="b").values.tolist() == ["absent", "23P", "MC", "BC"]
    assert units.cell_type_changed.values.tolist() == [False, True, False, False]


def test_missing_words_do_not_change(old, new):
    for tree, words in ((old, [np.nan, np.nan, "a"]), (new, [np.nan, np.nan, None])):
        tree["units"]["note"] = ("nucleus_id", np.array(words, dtype=object))
    units = mx.analysis.compare_releases(old, new, variables="note")["units"].to_dataset()
    assert units.note_changed.values.tolist() == [False, False, True, False]
    assert units.note.sel(release="a").values.tolist() == ["unknown", "unknown", "a", "absent"]


def test_connections_by_hand(old, new):
    changes = mx.analysis.compare_releases(old, new)
    # Only neurons 1 and 2 are on the axes of both, so that four pairs are comparable.
    assert changes["summary"].n_connections.to_series().to_dict() == {
        "unchanged": 1,
        "gained": 1,
        "lost": 0,
        "resized": 1,
        "not_comparable_a": 2,
        "not_comparable_b": 1,
    }
    assert changes["summary"].n_comparable_pairs == 4
    table = changes["connections"].to_dataset()
    rows = zip(table.pre_nucleus_id.values, table.post_nucleus_id.values, table.change.values, table.synapse_size.values.T.tolist(), strict=True)  # fmt: skip
    assert list(rows) == [(ID[2], ID[1], "gained", [0, 4]), (ID[1], ID[2], "resized", [5, 9])]
    assert table.synapse_count.values.tolist() == [[0, 1], [1, 1]]


def test_another_number_of_synapses_is_resized(old):
    other = {**old, "connectivity": old["connectivity"].copy()}
    counted = old["connectivity"].synapse_count
    other["connectivity"]["synapse_count"] = counted.copy(data=counted.data * 2)
    changes = mx.analysis.compare_releases(old, other)
    assert changes["summary"].n_connections.sel(connection_change="resized") == 4
    assert changes["connections"].synapse_count.values.tolist() == [[1] * 4, [2] * 4]


def test_a_weight_that_is_nan_in_both_is_unchanged(old):
    size = old["connectivity"].synapse_size
    strength = size.copy(data=size.data.astype(float))
    strength.data.data[0] = np.nan
    both = {**old, "connectivity": old["connectivity"].assign(strength=strength)}
    changes = mx.analysis.compare_releases(both, both)
    assert changes["summary"].n_connections.sel(connection_change="unchanged") == 4
    assert changes["connections"].sizes["connection"] == 0


def test_only_weights_of_both_are_compared(old):
    """A table with one row per pair counts no synapses, so that none was added or lost."""
    pairs = {**old, "connectivity": old["connectivity"].drop_vars("synapse_count")}
    changes = mx.analysis.compare_releases(old, pairs)
    n = changes["summary"].n_connections.to_series().to_dict()
    assert (n["unchanged"], n["resized"]) == (4, 0)
    assert "synapse_count" not in changes["connections"]
    weights = {**old, "connectivity": pairs["connectivity"].rename(synapse_size="strength")}
    with pytest.raises(mx.errors.SchemaError, match=r"'synapse_size'.*'strength'.*same name"):
        mx.analysis.compare_releases(pairs, weights)


def test_every_node_carries_both_releases(old, new):
    changes = mx.analysis.compare_releases(old, new)
    assert set(changes.children) == {"summary", "units", "connections"}
    for node in changes.subtree:
        assert node.materialization_version.values.tolist() == [1507, 1718]
        assert node.datastack.values.tolist() == ["minnie65_public"] * 2
        assert node.release.values.tolist() == ["a", "b"]
        assert "a=minnie65_public v1507, b=minnie65_public v1718" in "\n".join(
            node.attrs["history"]
        )
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match="objects of several releases were joined"
    ):
        mx.annotate(new["connectivity"], changes["units"].to_dataset(), "change")


def test_units_alone(old, new):
    only = {"units": new["units"]}
    changes = mx.analysis.compare_releases(old, only, connections=False, variables="layer")
    assert set(changes.children) == {"summary", "units"}
    assert "layer_changed" in changes["summary"].unit_change


def test_what_is_refused(old, new):
    schema, mismatch = mx.errors.SchemaError, mx.errors.ReleaseMismatchError
    other = {k: mx.releases.stamp_release(v, "minnie35", 1718) for k, v in new.items()}
    mixed = {**new, "connectivity": old["connectivity"]}
    new_ids = mx.select_connections(new["connectivity"], pre=ID[3:], post=ID[3:])
    apart = {**new, "connectivity": new_ids}
    for error, match, b, arguments in (
        (mx.errors.UnknownLabelError, "a.units has no variable 'cell_typ'.*nearest: cell_type", new, {"variables": "cell_typ"}),
        (schema, "position has dims", new, {"variables": "position"}),
        (mismatch, "a is of minnie65_public and b of minnie35", other, {}),
        (mismatch, "units of b is of .* connectivity of b", mixed, {}),
        (schema, "no neuron of pre_nucleus_id is in both releases", apart, {}),
        (schema, r"b is a dict without connectivity.*connections=False", {"units": new["units"]}, {}),
        (schema, "b is a int without units", 3, {}),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            mx.analysis.compare_releases(old, b, **arguments)


def test_an_unknown_scope_needs_pre_and_post(old, new):
    vague = {**new, "connectivity": new["connectivity"].assign_coords(scope="unknown")}
    with pytest.raises(mx.errors.SchemaError, match="connectivity of b is 'unknown'"):
        mx.analysis.compare_releases(old, vague, pre=ID[1:3])
    changes = mx.analysis.compare_releases(old, vague, pre=ID[1:2], post=ID[1:3])
    assert changes["summary"].n_comparable_pairs == 2
    counts = changes["summary"].n_connections.to_series()
    assert counts.to_dict() == {"unchanged": 0, "gained": 0, "lost": 0, "resized": 1, "not_comparable_a": 3, "not_comparable_b": 3}  # fmt: skip
    with pytest.raises(mx.errors.UnknownLabelError, match="post_ids"):
        mx.analysis.compare_releases(old, vague, pre=ID[1:2], post=ID)


def pairs_of(connectivity):
    """{(pre, post): (size, count)} in plain loops."""
    stored = stored_pairs(connectivity)
    size, count = (connectivity[n].data.todense() for n in ("synapse_size", "synapse_count"))
    pre, post = connectivity.pre_nucleus_id.values, connectivity.post_nucleus_id.values
    return {(pre[i], post[j]): (size[i, j], count[i, j]) for i, j in np.argwhere(stored)}


def expected_changes(a, b):
    mine, other = pairs_of(a), pairs_of(b)
    both = [set(x[d].values) & set(y[d].values) for d in ("pre_nucleus_id", "post_nucleus_id") for x, y in [(a, b)]]  # fmt: skip
    changes, counts = {}, dict.fromkeys(["unchanged", "gained", "lost", "resized"], 0)
    for pair in mine.keys() | other.keys():
        if pair[0] not in both[0] or pair[1] not in both[1]:
            continue
        old, new = mine.get(pair), other.get(pair)
        word = "gained" if old is None else "lost" if new is None else "resized"
        word = "unchanged" if old == new else word
        counts[word] += 1
        if word != "unchanged":
            changes[pair] = (word, old or (0, 0), new or (0, 0))
    inside = [sum(p[0] in both[0] and p[1] in both[1] for p in t) for t in (mine, other)]
    counts["not_comparable_a"] = len(mine) - inside[0]
    counts["not_comparable_b"] = len(other) - inside[1]
    return changes, counts


def assert_changes(changes, expected):
    table = changes["connections"].to_dataset()
    found = {
        (i, j): (word, tuple(s[:, 0]), tuple(s[:, 1]))
        for i, j, word, s in zip(
            table.pre_nucleus_id.values,
            table.post_nucleus_id.values,
            table.change.values,
            np.stack([table.synapse_size, table.synapse_count]).transpose(2, 0, 1),
            strict=True,
        )
    }
    assert len(found) == table.sizes["connection"]
    assert found == expected[0]
    assert changes["summary"].n_connections.to_series().to_dict() == expected[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_like_plain_sets(seed):
    rng = np.random.default_rng(seed)
    sides = []
    for version in VERSIONS[1:]:
        axes = [np.sort(rng.choice(ids(8), rng.integers(4, 8), replace=False)) for _ in range(2)]
        stored, size, count = random_tables(rng, *map(len, axes), 0.5)
        size, count = size // 30_000 * stored, np.minimum(count, 1) * stored  # often the same
        made = dataset(stored, size, count, str(rng.choice(["pre", "post"])), *axes, version)
        sides.append({"units": make_units(version, ids(8), ids(8)), "connectivity": made})
    expected = expected_changes(*(side["connectivity"] for side in sides))
    try:
        changes = mx.analysis.compare_releases(*sides)
    except mx.errors.SchemaError:  # no neuron in common
        assert not expected[0]
        return
    assert_changes(changes, expected)


@pytest.fixture(scope="module")
def releases():
    return {
        v: mx.Release(v, source=mx.sources.DemoSource(v, n_nuclei=600, seed=2)) for v in VERSIONS
    }


@pytest.mark.parametrize("versions", [(661, 1507), (1507, 1718), (661, 1718), (1718, 661)])
def test_synthetic_releases(releases, versions):
    sides = [releases[v] for v in versions]
    changes = mx.analysis.compare_releases(*sides)
    a, b = (side.units().to_dataframe().reset_index().drop_duplicates("nucleus_id").set_index("nucleus_id") for side in sides)  # fmt: skip
    merged = a.merge(b, "outer", left_index=True, right_index=True, suffixes=("_a", "_b"))
    kept = merged[merged.cell_type_a.notna() & merged.cell_type_b.notna()]
    units = changes["units"].to_dataset()
    assert units.nucleus_id.values.tolist() == merged.index.tolist()
    counts = changes["summary"].n_units.to_series()
    assert counts["kept"] == len(kept)
    assert counts["gained"] == len(b) - len(kept)
    assert counts["lost"] == len(a) - len(kept)
    # Roots are joined as floats where a neuron is absent, so they are compared one by one.
    roots = sum(int(a.pt_root_id[i]) != int(b.pt_root_id[i]) for i in kept.index)
    assert counts["pt_root_id_changed"] == roots > 0
    types = kept.index[(kept.cell_type_a != kept.cell_type_b).to_numpy()]
    assert units.nucleus_id[units.cell_type_changed].values.tolist() == types.tolist()
    assert_changes(changes, expected_changes(*(side.connectivity() for side in sides)))


def test_a_connection_taken_out_is_lost(releases):
    old, new = releases[1507], releases[1718]
    connectivity = new.connectivity()
    without = {"units": new.units(), "connectivity": mx.drop_autapses(connectivity)}
    changes = mx.analysis.compare_releases(old, without)
    table = changes["connections"].to_dataset().to_dataframe()
    lost = table[table.change == "lost"]
    assert (lost.pre_nucleus_id == lost.post_nucleus_id).all()
    assert len(lost.drop_duplicates(["pre_nucleus_id", "post_nucleus_id"])) == (
        mx.n_connections(connectivity) - mx.n_connections(without["connectivity"])
    )
    assert len(lost)
    assert pd.api.types.is_integer_dtype(table.pre_nucleus_id)


def test_stores_and_trees(releases, tmp_path):
    expected = mx.analysis.compare_releases(releases[661], releases[1718])
    paths = [tmp_path / f"v{v}.zarr" for v in (661, 1718)]
    for path, version in zip(paths, (661, 1718), strict=True):
        releases[version].write(path)
    trees = [mx.open_store(path) for path in paths]
    for sides in (paths, trees, [releases[661], str(paths[1])]):
        found = mx.analysis.compare_releases(*sides)
        for node in expected.subtree:
            xr.testing.assert_equal(found[node.path].to_dataset(), node.to_dataset())
