"""Connection probability: which pairs are tested, how they are binned, how certain the ratio is."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import connectivity_of_pairs, dataset, ids, random_tables, stored_pairs, units_of

import microns_xr as mx
from microns_xr.analysis import Bootstrap, Wilson
from microns_xr.analysis.probability import count_pairs, in_slabs, read_edges
from microns_xr.analysis.resample import bootstrap_ratio, neuron_weights, percentile_interval
from microns_xr.analysis.resample import wilson_interval as wilson


def make_units(position, completeness="full", cell_type="a") -> xr.Dataset:
    strategy = np.char.add("axon_", np.asarray(completeness))
    return units_of(
        ids(len(position)),
        position=np.asarray(position, dtype=float),
        cell_type=cell_type,
        axon_completeness=completeness,
        strategy_axon=np.where(strategy == "axon_none", "none", strategy),
    )


def by_pairs(connectivity, units, edges, presynaptic):
    """Tested and connected pairs in plain loops: {(pre type, post type, bins): [n, connected]}."""
    connected = stored_pairs(connectivity)
    of = units.to_dataframe().reset_index()
    place = dict(zip(units.nucleus_id.values, units.position.values, strict=True))
    kind = dict(zip(of.nucleus_id, of.cell_type, strict=False))
    axon = dict(zip(of.nucleus_id, of.axon_completeness, strict=False))
    table: dict[tuple, list[int]] = {}
    for i, pre in enumerate(connectivity.pre_nucleus_id.values):
        for j, post in enumerate(connectivity.post_nucleus_id.values):
            if pre == post or pre not in place or post not in place or axon[pre] not in presynaptic:
                continue
            dx, dy, dz = place[post] - place[pre]
            distances = {
                "lateral": np.sqrt(dx**2 + dz**2),
                "depth": abs(dy),
                "depth_change": dy,
                "euclidean": np.sqrt(dx**2 + dy**2 + dz**2),
            }
            bins = []
            for name, e in edges.items():
                inside = [k for k in range(len(e) - 1) if e[k] <= distances[name] < e[k + 1]]
                bins.extend(inside or [None])
            if None in bins:
                continue
            cell = table.setdefault((kind[pre], kind[post], *bins), [0, 0])
            cell[0] += 1
            cell[1] += bool(connected[i, j])
    return table


def assert_like_pairs(found, expected):
    total = [0, 0]
    dims = found.n_pairs.dims
    for index in np.ndindex(*found.n_pairs.shape):
        types = [found[d].values[k] for d, k in zip(dims[:2], index, strict=False)]
        n = [int(found[name].values[index]) for name in ("n_pairs", "n_connected")]
        assert n == expected.get((*types, *index[2:]), [0, 0])
        p = float(found.probability.values[index])
        assert p == n[1] / n[0] if n[0] else np.isnan(p)
        total = [total[0] + n[0], total[1] + n[1]]
    assert total == [sum(v[k] for v in expected.values()) for k in (0, 1)]


@pytest.fixture
def three():
    """On a line 30 µm apart: 0 to 1, 0 to itself, 2 to 1."""
    stored = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)
    return dataset(stored, stored * 1000, stored * 1)


LINE = [[0, 100, 0], [30, 200, 0], [60, 400, 0]]


def test_by_hand(three):
    found = mx.analysis.connection_probability(three, make_units(LINE), distance=[0, 30, 60, 90])
    pair = found.sel(pre_cell_type="a", post_cell_type="a")
    # 30 µm apart: 0-1, 1-0, 1-2, 2-1; 60 µm apart: 0-2, 2-0. Left-closed, so 30 is not in [0, 30).
    assert pair.n_pairs.values.tolist() == [0, 4, 2]
    assert pair.n_connected.values.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(pair.probability, [np.nan, 0.5, 0.0])
    assert pair.n_pre_tested.values.tolist() == [0, 3, 2]
    assert found.lateral_distance.values.tolist() == [15, 45, 75]
    np.testing.assert_array_equal(pair.mean_lateral_distance, [np.nan, 30, 60])
    assert found.mean_lateral_distance.attrs["units"] == "µm"
    assert found.lateral_distance_start.values.tolist() == [0, 30, 60]
    assert found.lateral_distance_end.values.tolist() == [30, 60, 90]
    # a plain Dataset, which becomes a table of one row per bin
    assert pair.n_pairs.to_dataframe().lateral_distance_start.tolist() == [0, 30, 60]
    assert found.attrs["pairs_outside_bins"] == 0
    assert found.attrs["autapses_left_out"] == 3
    # 0 and 2 have ratios 1, 1 of one pair each, 1 has 0 of 2; all three have 0 in the last bin.
    assert 0 <= pair.probability_low[1] < 0.5 < pair.probability_high[1] <= 1
    assert np.isnan(pair.probability_low[[0, 2]]).all()
    assert found.materialization_version == 1718
    assert "seed=0" in "\n".join(found.attrs["history"])


def test_the_last_edge_is_outside(three):
    found = mx.analysis.connection_probability(three, make_units(LINE), None, distance=[30, 60])
    assert found.n_pairs.values.tolist() == [4]
    assert found.attrs["pairs_outside_bins"] == 2
    assert found.probability.dims == ("lateral_distance",)


@pytest.mark.parametrize(
    ("direction", "edges", "n"),
    [
        ("depth", [0, 150, 250, 350], [2, 2, 2]),
        ("depth_change", [-350, -150, 0, 150, 350], [2, 1, 1, 2]),
        ("euclidean", [0, np.hypot(30, 100), 500], [0, 6]),
    ],
)
def test_directions(three, direction, edges, n):
    found = mx.analysis.connection_probability(three, make_units(LINE), None, {direction: edges})
    assert found[f"{direction}_distance"].size == len(n)
    assert found.n_pairs.values.tolist() == n


def test_two_directions_at_once(three):
    edges = {"lateral": [0, 40, 80], "depth": [0, 150, 500]}
    found = mx.analysis.connection_probability(three, make_units(LINE), None, edges)
    assert found.n_pairs.dims == ("lateral_distance", "depth_distance")
    assert found.n_pairs.values.tolist() == [[2, 2], [0, 2]]
    assert found.n_connected.values.tolist() == [[1, 1], [0, 0]]
    # 0 and 1, 1 and 2, 0 and 2
    np.testing.assert_array_equal(found.mean_lateral_distance, [[30, 30], [np.nan, 60]])
    np.testing.assert_array_equal(found.mean_depth_distance, [[100, 200], [np.nan, 300]])


def test_without_distance_no_position_is_needed(three):
    units = make_units(LINE).drop_vars("position")
    found = mx.analysis.connection_probability(three, units)
    assert found.n_pairs.item() == 6
    assert found.n_connected.item() == 2
    with pytest.raises(mx.errors.SchemaError, match=r"units has no position\(nucleus_id, axis\)"):
        mx.analysis.connection_probability(three, units, distance=[0, 100])


def test_neurons_without_position_are_counted_out(three):
    units = make_units([LINE[0], [30, np.nan, 0], LINE[2]])
    lateral = mx.analysis.connection_probability(three, units, None, [0, 100])
    assert lateral.n_pairs.item() == 6
    depth = mx.analysis.connection_probability(three, units, None, {"depth": [0, 500]})
    assert depth.n_pairs.item() == 2
    assert depth.n_connected.item() == 0
    assert mx.releases.read_counts(depth, "left_out")["pre_without_position"] == 1
    assert mx.releases.read_counts(depth, "left_out")["post_without_position"] == 1
    assert depth.attrs["autapses_left_out"] == 2


def test_neurons_without_unit_are_counted_out(three):
    units = make_units(LINE).isel(nucleus_id=[0, 1])
    found = mx.analysis.connection_probability(three, units, None)
    assert found.n_pairs.item() == 2
    assert mx.releases.read_counts(found, "left_out")["post_not_among_units"] == 1


CLASSES = ["none", "clean", "truncated", "interareal", "unknown", "partial", "full"]


@pytest.mark.parametrize(
    ("presynaptic", "used"),
    [
        ("extended", ["partial", "full"]),
        ("full", ["full"]),
        ("proofread", CLASSES[1:]),
        ("all", CLASSES),
        (["truncated", "interareal"], ["truncated", "interareal"]),
    ],
)
def test_which_axons_count(presynaptic, used):
    n = len(CLASSES)
    stored = np.ones((n, n), dtype=bool)
    units = make_units(np.zeros((n, 3)), CLASSES, cell_type=list("aaabbbc"))
    found = mx.analysis.connection_probability(
        dataset(stored, stored * 9, stored * 1), units, presynaptic=presynaptic
    )
    assert found.axon_completeness.values.tolist() == used
    assert found.n_pre.sum("pre_cell_type").values.tolist() == [1] * len(used)
    assert int(found.n_pairs.sum()) == len(used) * (n - 1)
    assert found.n_post.to_series().to_dict() == {"a": 3, "b": 3, "c": 1}
    assert mx.releases.read_counts(found, "axons_on_axis") == dict.fromkeys(CLASSES, 1)
    assert mx.releases.read_counts(found, "axons_used") == dict.fromkeys(used, 1)
    bound = {k: k != "c" for k in found.pre_cell_type.values}
    assert found.lower_bound.to_series().to_dict() == bound
    assert found.attrs["completeness"].startswith("lower bound") is (used != ["full"])


def test_no_axon_is_complete_enough(three):
    units = make_units(LINE, ["none"] * 3)
    with pytest.raises(mx.errors.SchemaError, match=r"axon_not_complete_enough': 3.*'none': 3"):
        mx.analysis.connection_probability(three, units)
    with pytest.raises(mx.errors.SchemaError, match=r"axon_not_complete_enough': 3"):
        mx.analysis.connection_probability(three, units, presynaptic="full")


def test_an_unknown_scope_needs_pre_and_post(three):
    unknown = three.assign_coords(scope="unknown")
    units = make_units(LINE)
    for given_ in ({}, {"pre": ids(3)}, {"post": ids(3)}):
        with pytest.raises(mx.errors.SchemaError, match="scope of the connectivity is 'unknown'"):
            mx.analysis.connection_probability(unknown, units, **given_)
    found = mx.analysis.connection_probability(unknown, units, pre=ids(3)[:1], post=ids(3))
    assert found.n_pairs.item() == 2
    assert found.n_connected.item() == 1
    assert mx.releases.read_counts(found, "left_out")["pre_not_chosen"] == 2


def test_neurons_without_a_connection_of_an_unknown_scope_are_told():
    size = np.zeros((5, 5), dtype=np.int64)
    size[0, 1], size[1, 0], size[1, 2] = 4, 5, 6
    complete = dataset(size > 0, size, size)
    unknown = complete.assign_coords(scope="unknown")
    units = make_units([[0.0, 0, 0]] * 5)
    chosen = {"cell_type": "a"}
    # The axes of a built table hold the neurons that it names: (0, 1) and (0, 1, 2).
    named = mx.select_connections(unknown, pre=ids(5)[:2], post=ids(5)[:3])
    message = (
        r"3 of 5 neurons of pre \(60.0%\) are left out, .*pre_nucleus_id; 2 of 5 neurons of post"
    )
    with pytest.warns(UserWarning, match=message):
        found = mx.analysis.connection_probability(named, units, pre=chosen, post=chosen)
    assert (found.n_pairs.item(), found.n_connected.item()) == (4, 3)
    assert mx.releases.read_counts(found, "left_out")["pre_not_on_axis"] == 3
    # Those of a store of an early version hold all units, as if synapses of all were looked for.
    with pytest.warns(UserWarning, match=r"3 of 5 neurons of pre \(60.0%\) count as unconnected"):
        found = mx.analysis.connection_probability(unknown, units, pre=chosen, post=ids(5))
    assert found.n_pairs.item() == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.analysis.connection_probability(complete, units, pre=chosen, post=chosen)


def test_pre_and_post_by_condition_or_id(three):
    units = make_units(LINE, cell_type=["a", "b", "a"])
    found = mx.analysis.connection_probability(
        three, units, pre={"cell_type": "a"}, post={"cell_type": "b"}
    )
    assert found.n_pairs.values.tolist() == [[2]]
    assert found.probability.item() == 1
    same = mx.analysis.connection_probability(
        three, units, pre=units.isel(nucleus_id=[0, 2]), post=[ids(3)[1]]
    )
    xr.testing.assert_equal(found, same)
    assert "pre={'cell_type': 'a'}, post={'cell_type': 'b'}" in "\n".join(found.attrs["history"])
    assert "pre=2 ids, post=1 ids" in "\n".join(same.attrs["history"])
    with pytest.raises(mx.errors.UnknownLabelError, match="pre_ids"):
        mx.analysis.connection_probability(three, units, pre=[5])
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"'cell_typ', expected.*nearest: cell_type"
    ):
        mx.analysis.connection_probability(three, units, post={"cell_typ": "a"})


def test_populations_of_either_side(three):
    units = make_units(LINE, ["full", "partial", "full"], ["a", "b", "a"])
    found = mx.analysis.connection_probability(
        three, units, {"pre": ["cell_type", "axon_completeness"], "post": "cell_type"}
    )
    assert found.probability.dims == ("pre_cell_type_axon_completeness", "post_cell_type")
    assert found.pre_cell_type_axon_completeness.values.tolist() == ["a, full", "b, partial"]
    assert found.pre_axon_completeness.values.tolist() == ["full", "partial"]
    assert found.n_pairs.values.tolist() == [[2, 2], [2, 0]]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"distance": [1]}, "at least two"),
        ({"distance": [0, 0]}, "ascending"),
        ({"distance": [0, np.inf]}, "finite"),
        ({"distance": [[0, 1]]}, "at least two"),
        ({"distance": ["a", "b"]}, "not numbers"),
        ({"distance": {name: [0, 1] for name in ("depth", "lateral", "euclidean")}}, "one or two"),
        ({"distance": {"laterl": [0, 1]}}, "'laterl'.*nearest: lateral"),
        ({"interval": "wilson"}, r"interval is 'wilson', expected .*Bootstrap\(\) or .*Wilson\(\)"),
        ({"interval": Bootstrap(both_sides=True)}, "has both_sides=True"),
        ({"by": {"pre": "cell_type"}}, "expected 'pre' and 'post'"),
    ],
)
def test_what_is_refused(three, arguments, match):
    error = mx.errors.UnknownLabelError if "laterl" in match else mx.errors.SchemaError
    with pytest.raises(error, match=match):
        mx.analysis.connection_probability(three, make_units(LINE), **arguments)


def test_units_that_do_not_fit(three):
    units = make_units(LINE)
    other = mx.releases.stamp_release(units, "minnie65_public", 661)
    for wrong, error, match in (
        (other, mx.errors.ReleaseMismatchError, "661"),
        (units.drop_vars("axon_completeness"), mx.errors.SchemaError, "no axon_completeness"),
        (units.isel(nucleus_id=[]), mx.errors.SchemaError, "units has no neuron"),
    ):
        with pytest.raises(error, match=match):
            mx.analysis.connection_probability(three, wrong)


def test_axes_of_positions_in_another_order(three):
    units, edges = make_units(LINE), {"lateral": [0, 50, 500], "depth": [0, 50, 500]}
    found, expected = (
        mx.analysis.connection_probability(three, u, distance=edges)
        for u in (units.isel(axis=[2, 0, 1]), units)
    )
    assert found.n_pairs.sum() > 0
    np.testing.assert_array_equal(found.n_pairs, expected.n_pairs)


def test_too_many_counts(three, monkeypatch):
    monkeypatch.setattr("microns_xr.analysis.probability._MAX_COUNTS", 3 * 4)
    mx.analysis.connection_probability(three, make_units(LINE), distance=np.arange(5))
    with pytest.raises(mx.errors.SchemaError, match="3 presynaptic neurons x 1 populations x 5"):
        mx.analysis.connection_probability(three, make_units(LINE), distance=np.arange(6))


@pytest.mark.parametrize("interval", [Bootstrap, Wilson])
def test_intervals_are_checked(interval):
    with pytest.raises(mx.errors.SchemaError, match="confidence is 95"):
        interval(confidence=95)
    with pytest.raises(mx.errors.SchemaError, match="n is 0, expected at least 1 draw"):
        Bootstrap(0)


edge_lists = st.lists(st.integers(0, 12), min_size=2, max_size=6, unique=True).map(sorted)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["lateral", "depth", "depth_change", "euclidean"]),
    edge_lists,
    st.one_of(st.none(), edge_lists),
    st.sampled_from(["pre", "post"]),
)
def test_like_plain_loops(seed, direction, edges, second, compressed):
    """Integer positions, so that distances fall on edges; axes that overlap in part."""
    rng = np.random.default_rng(seed)
    n_pre, n_post = rng.integers(1, 9, 2)
    axis = [np.sort(rng.choice(ids(10), n, replace=False)) for n in (n_pre, n_post)]
    connectivity = dataset(*random_tables(rng, n_pre, n_post, 0.5), compressed, *axis)
    position = rng.integers(0, 6, (10, 3)).astype(float)
    units = make_units(
        position,
        rng.choice(["full", "partial", "none"], 10).tolist(),
        rng.choice(["a", "b"], 10).tolist(),
    )
    units = units.isel(nucleus_id=rng.permutation(10)[:8])  # neither sorted nor all
    asked = {direction: np.array(edges) - (6 if direction == "depth_change" else 0)}
    if second is not None:
        asked["lateral" if direction == "depth" else "depth"] = second
    expected = by_pairs(connectivity, units, asked, {"full", "partial"})
    axon = units.axon_completeness.to_series()
    pre = axon.reindex(connectivity.pre_nucleus_id).isin(["full", "partial"])
    if not pre.any() or not np.isin(connectivity.post_nucleus_id, units.nucleus_id).any():
        with pytest.raises(
            (mx.errors.SchemaError, mx.errors.UnknownLabelError), match=r"remains|nowhere"
        ):
            mx.analysis.connection_probability(connectivity, units, distance=asked)
        return
    found = mx.analysis.connection_probability(
        connectivity, units, distance=asked, interval=Bootstrap(3)
    )
    assert_like_pairs(found, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30, unique=True).map(sorted),
    st.lists(st.floats(-1e4, 1e4), max_size=20),
)
def test_bins_of_any_width(edges, values):
    """Neighbours of every edge land where a search among the edges puts them."""
    edges = np.array(edges)
    at = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), values])
    at = np.sort(np.where(at == 0, 0.0, at))
    posts = np.zeros((3, at.size))
    posts[1] = at
    asked = read_edges({"depth_change": edges})
    tested, _, summed = count_pairs(
        np.zeros((3, 1)), posts, np.array([-1]), np.arange(at.size), in_slabs(posts, asked)[1],
        np.empty(0, np.int32), np.zeros((1, 2), np.int32), asked, 1,
    )  # fmt: skip
    place = np.searchsorted(edges, at, side="right") - 1
    inside = (at >= edges[0]) & (at < edges[-1])
    assert tested[0].sum(axis=1).tolist() == inside.astype(int).tolist()
    assert np.argmax(tested[0], axis=1)[inside].tolist() == place[inside].tolist()
    np.testing.assert_allclose(summed[0].sum(axis=1)[inside], at[inside], atol=1e-3)


def test_pairs_are_not_in_the_middle_of_their_bin():
    """Of neurons in a plane more are near the outer edge, also for both threads."""
    rng = np.random.default_rng(0)
    at = rng.uniform(0, 300, (900, 3))
    stored = rng.random((900, 900)) < 0.01
    found = mx.analysis.connection_probability(
        dataset(stored, stored * 1000, stored * 1), make_units(at), None, [0, 25, 50]
    )
    away = np.hypot(*(at[:, None, [0, 2]] - at[:, [0, 2]]).transpose(2, 0, 1))
    np.fill_diagonal(away, np.nan)
    for k, (low, high) in enumerate(((0, 25), (25, 50))):
        inside = away[(away >= low) & (away < high)]
        assert found.n_pairs.values[k] == inside.size
        np.testing.assert_allclose(found.mean_lateral_distance[k], inside.mean(), atol=1e-3)
    np.testing.assert_allclose(found.mean_lateral_distance, [25 * 2 / 3, 38.9], atol=0.3)
    mean = found.mean_lateral_distance.values
    (container,) = mx.plot.connection_probability(found).containers
    np.testing.assert_array_equal(container.lines[0].get_xdata(), mean)


def test_like_plain_loops_on_the_synthetic_release(demo):
    connectivity = mx.select_connections(
        demo["connectivity"], pre=demo["units"].nucleus_id[::3], post=demo["units"].nucleus_id[::7]
    )
    edges = {"lateral": [0, 50, 100, 300], "depth": [0, 100, 400]}
    found = mx.analysis.connection_probability(
        connectivity, demo["units"], distance=edges, interval=Bootstrap(20)
    )
    is_neuron = demo["units"].classification_system != "nonneuron"
    neurons = demo["units"].isel(nucleus_id=is_neuron.values)
    expected = by_pairs(connectivity, neurons, edges, {"full", "partial"})
    assert sum(v[1] for v in expected.values()) > 20
    assert_like_pairs(found, expected)


def test_a_store_and_lazy(demo_store, demo_fresh):
    units = demo_fresh["units"]
    expected = mx.analysis.connection_probability(
        demo_fresh["connectivity"], units, "layer", [0, 100, 200]
    )
    lazy = mx.open_store(demo_store, lazy=True)["connectivity"].to_dataset()
    for connectivity in (demo_store, lazy):
        found = mx.analysis.connection_probability(connectivity, units, "layer", [0, 100, 200])
        xr.testing.assert_equal(found, expected)


def test_threads_and_seeds(demo_fresh, monkeypatch):
    args = (demo_fresh["connectivity"], demo_fresh["units"], "layer", np.arange(0, 800, 50))

    def estimate(seed):
        interval = Bootstrap(50, seed=seed)
        return mx.analysis.connection_probability(*args, presynaptic="all", interval=interval)

    first = estimate(4)
    monkeypatch.setattr("microns_xr.analysis.probability.usable_threads", lambda *_: 1)
    xr.testing.assert_identical(first, estimate(4))
    other = estimate(5)
    assert other.probability.equals(first.probability)
    assert not other.probability_low.equals(first.probability_low)


def test_intervals_are_of_neurons(demo_fresh):
    """The same interval as drawing presynaptic neurons one by one, and Wilson's as scipy's."""
    units = mx.select_units(
        demo_fresh["units"], classification_system=["excitatory_neuron", "inhibitory_neuron"]
    )
    connectivity = mx.select_connections(
        demo_fresh["connectivity"], pre=units.nucleus_id, post=units.nucleus_id
    )
    of_neurons, of_pairs = (
        mx.analysis.connection_probability(connectivity, units, None, interval=interval)
        for interval in (Bootstrap(200, seed=7), Wilson(0.9))
    )
    chosen = mx.select_units(units, axon="extended").nucleus_id.values
    stored = stored_pairs(connectivity)
    stored &= connectivity.pre_nucleus_id.values[:, None] != connectivity.post_nucleus_id.values
    connected = stored[np.isin(connectivity.pre_nucleus_id.values, chosen)].sum(axis=1)
    weights = neuron_weights(chosen.size, 200, 7)
    ratios = [(w * connected).sum() / (chosen.size * (stored.shape[1] - 1)) for w in weights]
    ends = [of_neurons.probability_low, of_neurons.probability_high]
    np.testing.assert_allclose(ends, np.quantile(ratios, [0.025, 0.975]), rtol=1e-12)
    expected = scipy.stats.binomtest(int(of_pairs.n_connected), int(of_pairs.n_pairs))
    expected = expected.proportion_ci(0.9, method="wilson")
    ends = [of_pairs.probability_low, of_pairs.probability_high]
    np.testing.assert_allclose(ends, [expected.low, expected.high], rtol=1e-9)
    assert of_pairs.probability_low.attrs["long_name"].endswith("wilson interval of confidence 0.9")
    # neurons differ here, which pairs alone do not show
    width = of_neurons.probability_high - of_neurons.probability_low
    assert width > 2 * (of_pairs.probability_high - of_pairs.probability_low)


def test_wilson_like_scipy():
    n = np.array([1, 3, 10, 1000])
    for k in (np.zeros(4, int), n // 2, n):
        low, high = wilson(k, n, 0.9)
        for i in range(4):
            ends = scipy.stats.binomtest(k[i], n[i]).proportion_ci(0.9, "wilson")
            np.testing.assert_allclose([low[i], high[i]], [ends.low, ends.high], atol=1e-12)
    assert np.isnan(wilson(np.array([0]), np.array([0]), 0.95)).all()


def test_bootstrap_by_hand():
    top, bottom = np.array([[1, 0], [2, 3]]), np.array([[4, 0], [5, 6]])
    weights = neuron_weights(2, 50, 1)
    assert set(map(tuple, weights.astype(int).tolist())) == {(0, 2), (1, 1), (2, 0)}
    ratio = {(2, 0): 1 / 4, (1, 1): 3 / 9, (0, 2): 2 / 5}
    expected = np.quantile([ratio[tuple(w)] for w in weights.astype(int).tolist()], [0.25, 0.75])
    ends = bootstrap_ratio(top, bottom, Bootstrap(50, 0.5, seed=1))
    np.testing.assert_allclose([end[0] for end in ends], expected)
    assert np.isnan([end[1] for end in ends]).all()  # only one neuron has pairs
    # draws without a pair are left out
    low, _ = percentile_interval(np.array([[np.nan], [0.5], [0.5]]), 0.5)
    assert low.item() == 0.5


def test_no_spread_is_no_certainty():
    ends = bootstrap_ratio(np.array([[0, 3]] * 5), np.full((5, 2), 10), Bootstrap())
    assert np.isnan(ends).all()
    assert np.isnan(percentile_interval(np.full((4, 2), np.nan), 0.95)).all()
    assert bootstrap_ratio(np.zeros((0, 3)), np.zeros((0, 3)), Bootstrap())[0].shape == (3,)


def test_coverage_where_neurons_differ():
    """40 neurons of 100 pairs, each with its own probability (beta, mean 0.1): seed stated."""
    rng = np.random.default_rng(20)
    hits = {"bootstrap": 0, "wilson": 0}
    n_trials = 200
    for trial in range(n_trials):
        own = rng.beta(2, 18, 40)
        connected = rng.binomial(100, own)
        tested = np.full(40, 100)
        for name, (low, high) in (
            ("bootstrap", bootstrap_ratio(connected, tested, Bootstrap(400, seed=trial))),
            ("wilson", wilson(connected.sum(), tested.sum(), 0.95)),
        ):
            hits[name] += bool(low <= 0.1 <= high)
    assert 0.91 <= hits["bootstrap"] / n_trials <= 0.98
    assert hits["wilson"] / n_trials < 0.75  # why it is not the default


def test_real_release(real_data):
    """Axons with the status extended of v661 to all its postsynaptic cells, in dense matrices."""
    folder = real_data / "minnie65_v661"
    release = mx.Release(661, source=folder)
    units = release.units()
    rows = pd.read_csv(folder / "raw" / "synapses" / "connections.csv")
    rows = rows[rows.pre_pt_root_id.isin(units.pt_root_id.values)]
    rows = rows[rows.post_pt_root_id.isin(units.pt_root_id.values)]
    post = units.isel(nucleus_id=np.isin(units.pt_root_id, rows.post_pt_root_id))
    connectivity = release.connectivity(units=units, pre=units, post=post)
    assert connectivity.scope.item() == "requested"
    edges = {"lateral": np.arange(0, 501, 25.0), "depth": [0, 100, 300]}
    found = mx.analysis.connection_probability(
        connectivity, units, None, edges, pre={"axon": "unknown"}, post=post
    )
    pre = units.isel(nucleus_id=np.flatnonzero(units.axon_completeness == "unknown"))
    assert (
        mx.releases.read_counts(found, "axons_used")
        == {"unknown": pre.sizes["nucleus_id"]}
        == {"unknown": 263}
    )
    delta = post.position.values[None] - pre.position.values[:, None]
    sample = [np.hypot(delta[..., 0], delta[..., 2]).ravel(), np.abs(delta[..., 1]).ravel()]
    roots = pre.pt_root_id.values[:, None], post.pt_root_id.values[None]
    linked = pd.MultiIndex.from_frame(rows[["pre_pt_root_id", "post_pt_root_id"]])
    pairs = pd.MultiIndex.from_arrays([a.ravel() for a in np.broadcast_arrays(*roots)])
    other = (roots[0] != roots[1]).ravel()
    for name, keep in (("n_pairs", other), ("n_connected", other & pairs.isin(linked))):
        table, *_ = np.histogram2d(*(s[keep] for s in sample), bins=list(edges.values()))
        np.testing.assert_array_equal(found[name], table)
    assert int(found.n_connected.sum()) == 890
    assert found.attrs["completeness"].startswith("lower bound: of 263 axons 263")


def test_glia_count_only_where_they_are_chosen():
    units = make_units(np.zeros((4, 3))).assign_coords(
        classification_system=("nucleus_id", ["excitatory_neuron"] * 3 + ["nonneuron"])
    )
    connectivity = connectivity_of_pairs(np.eye(4, k=1, dtype=bool))
    found = mx.analysis.connection_probability(connectivity, units, None)
    assert int(found.n_pairs) == 3 * 2
    assert mx.releases.read_counts(found, "left_out")["post_not_a_neuron"] == 1
    assert mx.releases.read_counts(found, "axons_on_axis")["full"] == 3
    onto_all = mx.analysis.connection_probability(connectivity, units, None, post=units)
    assert int(onto_all.n_pairs) == 3 * 3
    onto_glia = {"classification_system": "nonneuron"}
    found = mx.analysis.connection_probability(connectivity, units, None, post=onto_glia)
    assert (int(found.n_pairs), int(found.n_connected)) == (3, 1)
    unlabelled = units.drop_vars("classification_system")
    assert int(mx.analysis.connection_probability(connectivity, unlabelled, None).n_pairs) == 4 * 3
