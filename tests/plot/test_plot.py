"""What is drawn is what was computed: values, units, directions; nothing is left behind."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import microns_xr as mx
from microns_xr import plot
from microns_xr.analysis import null_models
from microns_xr.plot.style import NO_VALUE, PALETTE, colours_of, cyclic_map, label_of, styles_of
from microns_xr.schema import AXES

DEGREES = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}


@pytest.fixture(autouse=True)
def defaults_stay():
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


@pytest.fixture
def units():
    """Four cells, one of them without an angle, one without a layer."""
    return xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", [1, 2, 3, 4]),
            "position": (
                ("nucleus_id", "axis"),
                [[0.0, 50.0, 7.0], [10.0, 60.0, 8.0], [20.0, 130.0, 9.0], [30.0, 300.0, 10.0]],
            ),
            "layer": ("nucleus_id", np.array(["L1", "L1", "L2/3", "unknown"], dtype=object)),
            "pref_ori": ("nucleus_id", [0.0, 45.0, 179.0, np.nan], DEGREES | {"long_name": "preferred"}),
            "gOSI": ("nucleus_id", [0.1, 0.5, np.nan, 0.3]),
        },
        coords={"nucleus_id": [11, 12, 13, 14], "axis": np.array(AXES, dtype=object)},
    )  # fmt: skip


@pytest.fixture
def layers():
    return xr.Dataset(
        {
            "layer_name": ("segment", np.array(["L1", "L2/3"], dtype=object)),
            "y_start": ("segment", [0.0, 100.0]),
            "y_end": ("segment", [100.0, 310.0]),
        }
    )


@pytest.fixture(scope="module")
def demo_network(demo_release):
    units = demo_release.units(functional="best_only")
    return units, demo_release.connectivity(units=units)


def rendered(ax):
    """Draw for real, in which warnings (glyphs, layout) would be raised; end the figure."""
    ax.figure.draw_without_rendering()
    plt.close(ax.figure)
    return ax


def test_depth_profile_stacks_the_cells_of_each_bin(units, layers):
    ax = rendered(plot.depth_profile(units, layers, by="layer", bin_um=100.0))
    bars = [(b.get_y(), b.get_x(), b.get_width()) for c in ax.containers for b in c]
    # bins from 50: two of L1, one of L2/3 (130), and one without a layer (300)
    assert bars == [
        (50, 0, 2), (150, 0, 0), (250, 0, 0),
        (50, 2, 1), (150, 0, 0), (250, 0, 0),
        (50, 3, 0), (150, 0, 0), (250, 0, 1),
    ]  # fmt: skip
    assert ax.yaxis_inverted()
    assert ax.get_ylabel() == "depth from the pia (µm)"
    assert [line.get_ydata()[0] for line in ax.lines] == [0, 100, 310]
    assert [t.get_text() for t in ax.texts] == ["L1", "L2/3"]


def test_more_groups_than_a_picture_can_show(demo_release):
    units = demo_release.units()
    with pytest.raises(mx.errors.SchemaError, match=r"pt_root_id makes \d+ groups, .* a coarser"):
        plot.depth_profile(units, by=units.pt_root_id)


def test_depth_counts_are_those_of_the_units(demo_release):
    units, layers = demo_release.units(), demo_release.layers()
    ax = rendered(plot.depth_profile(units, layers, by="cell_type"))
    drawn = {c.get_label(): sum(b.get_width() for b in c) for c in ax.containers}
    words, counts = np.unique(units.cell_type.values.astype(str), return_counts=True)
    assert drawn == dict(zip(words, counts, strict=True))
    looks = {(c[0].get_facecolor(), c[0].get_hatch()) for c in ax.containers}
    assert len(looks) == len(words)


@pytest.mark.parametrize(
    ("axes", "columns", "down"), [(("x", "y"), (0, 1), True), (("y", "z"), (1, 2), False)]
)
def test_cells_lie_where_they_are(units, layers, axes, columns, down):
    ax = rendered(plot.cells_in_space(units, "layer", axes=axes, layers=layers))
    offsets = {c.get_label(): c.get_offsets() for c in ax.collections}
    position = units.position.values[:, columns]
    np.testing.assert_array_equal(offsets["L1 (2)"], position[:2])
    np.testing.assert_array_equal(offsets["L2/3 (1)"], position[2:3])
    np.testing.assert_array_equal(offsets["unknown (1)"], position[3:])
    assert ax.yaxis_inverted() == down
    assert ax.get_aspect() == 1
    assert "µm" in ax.get_xlabel()
    assert "µm" in ax.get_ylabel()
    assert len(ax.lines) == (3 if down else 0)


def test_cells_by_number_and_by_angle(units):
    ax = rendered(plot.cells_in_space(units, "gOSI", axes=("x", "z")))
    empty, full = ax.collections[:2]
    np.testing.assert_array_equal(full.get_array(), [0.1, 0.5, 0.3])
    np.testing.assert_array_equal(empty.get_offsets(), units.position.values[2:3, [0, 2]])
    assert to_hex(empty.get_facecolor()[0]).upper() == NO_VALUE
    ax = rendered(plot.cells_in_space(units, "pref_ori"))
    full = ax.collections[1]
    assert (full.norm.vmin, full.norm.vmax, full.cmap.name) == (0, 180, "microns_xr_angles")
    bar = ax.child_axes[0]
    assert bar.get_ylabel() == "preferred (degree)\ngrey: no value (1)"


def test_pictures_ask_for_no_more_than_they_draw(units):
    bare = units[["position", "pref_ori"]].drop_vars("axis")
    bare["pref_ori"].attrs = {"units": "degree"}
    ax = rendered(plot.cells_in_space(bare))
    assert [(c.get_label(), len(c.get_offsets())) for c in ax.collections] == [("cells (4)", 4)]
    ax = rendered(plot.depth_profile(bare, bin_um=300.0))
    assert [b.get_width() for b in ax.containers[0]] == [4]
    assert ax.get_legend() is None
    full = rendered(plot.cells_in_space(bare, "pref_ori")).collections[1]
    assert (full.norm.vmax, full.cmap.name) == (180, "microns_xr_angles")
    typed = units.assign_coords(cell_type=("nucleus_id", np.array(["BC"] * 4, dtype=object)))
    assert plot.cells_in_space(typed).collections[0].get_label() == "BC (4)"
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.as_units"):
        plot.cells_in_space(bare.drop_vars("position"))


def test_cyclic_map_closes_and_is_seen_by_all():
    """Neighbours are equally near all the way around; opposite angles differ in L* or b*."""
    rgb = cyclic_map()(np.arange(256))[:, :3]
    assert rgb.min() > 0
    assert rgb.max() < 1  # nothing was clipped at the border of sRGB
    steps = np.linalg.norm(np.diff(rgb, axis=0, append=rgb[:1]), axis=1)
    assert steps[-1] < 1.5 * np.median(steps)
    assert steps.max() < 4 * np.median(steps)
    # Red-green colour blindness, in the simplest way: red and green are seen as their mean.
    seen = np.stack([rgb[:, :2].mean(axis=1), rgb[:, 2]], axis=1)
    apart = np.linalg.norm(seen - np.roll(seen, 128, axis=0), axis=1)
    assert apart.min() > 0.2


def test_words_keep_their_colours():
    few, many = styles_of(["5P-IT", "23P"]), styles_of(["BC", "5P-IT", "23P", "oligo", "unknown"])
    assert few["5P-IT"] == many["5P-IT"]
    assert list(many) == ["23P", "5P-IT", "BC", "oligo", "unknown"]
    assert many["unknown"].colour == NO_VALUE
    # Beside types of the package, own ones repeat no colour either.
    for known in (
        [],
        [
            "23P",
            "4P",
            "5P-IT",
            "5P-ET",
            "6P-CT",
            "BC",
            "MC",
            "BPC",
            "NGC",
            "oligo",
            "OPC",
            "pericyte",
        ],
    ):
        words = [*known, *(f"type {i:02d}" for i in range(len(PALETTE) - len(known)))]
        styles = styles_of(words[::-1])
        assert list(styles) == words
        assert len({style.colour for style in styles.values()}) == len(PALETTE) == 23
    many = styles_of([f"type {i:02d}" for i in range(40)])
    assert len({(s.colour, s.marker) for s in many.values()}) == 40
    assert NO_VALUE not in PALETTE


def test_colours_of_numbers():
    values = xr.DataArray([0.0, np.nan, 1.0, 0.5], dims="nucleus_id", name="gOSI")
    viridis = mpl.colormaps["viridis"]
    expected = [to_hex(viridis(0.0)), NO_VALUE, to_hex(viridis(1.0)), to_hex(viridis(0.5))]
    assert colours_of(values).tolist() == expected
    angles = xr.DataArray([0.0, 180.0, 360.0], dims="nucleus_id", attrs=DEGREES)
    assert len(set(colours_of(angles))) == 1
    assert colours_of(values[:0]).tolist() == []
    with pytest.raises(mx.errors.SchemaError, match="expected text, booleans or numbers"):
        colours_of(xr.DataArray(np.array(["2020"], dtype="M8[ns]")))


def grouped_table(values, name="n_connections", **attrs):
    words = np.array(["L4", "L5"], dtype=object)
    return xr.Dataset(
        {name: (("pre_layer", "post_layer"), values, attrs)},
        coords={"pre_layer": words, "post_layer": words},
    )


def test_matrix_is_the_table():
    table = grouped_table([[9, 3], [0, 5]], units="pairs")
    for turned in (table, table.transpose(), table.chunk()):
        ax = rendered(plot.connectivity_matrix(turned))
        drawn = ax.images[0].get_array()
        np.testing.assert_array_equal(drawn.filled(0), [[9, 3], [0, 5]])
        np.testing.assert_array_equal(drawn.mask, [[False, False], [True, False]])
        assert [t.get_text() for t in ax.texts] == ["9", "3", "0", "5"]
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("presynaptic layer", "postsynaptic layer")
        assert ax.child_axes[0].get_ylabel() == "number of connections (pairs)"
    p = rendered(plot.connectivity_matrix(grouped_table([[0.2, np.nan], [0.1, 0.05]], "probability"), "probability"))  # fmt: skip
    assert (p.images[0].norm.vmin, p.images[0].norm.vmax) == (0, 0.2)
    assert type(p.images[0].norm).__name__ == "Normalize"
    signed = rendered(plot.connectivity_matrix(grouped_table([[-4.0, 2.0], [0.0, -0.5]])))
    assert (signed.images[0].norm.vmin, signed.images[0].norm.vmax) == (-4, 4)
    assert signed.images[0].get_array().mask.tolist() == [[False, False], [True, False]]
    for values in ([[4, 4], [4, 4]], [[0, 0], [0, 0]]):
        rendered(plot.connectivity_matrix(grouped_table(values)))


def test_matrix_is_in_the_order_of_types_without_empty_rows():
    words = np.array(["5P-ET", "5P-IT", "BC", "oligo"], dtype=object)
    counts = [[1, 2, 0, 0], [3, 40, 5, 0], [6, 0, 7, 0], [0, 0, 0, 0]]
    table = xr.Dataset(
        {"n_connections": (("pre_cell_type", "post_cell_type"), counts)},
        coords={"pre_cell_type": words, "post_cell_type": words},
    )
    ax = rendered(plot.connectivity_matrix(table))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["5P-IT", "5P-ET", "BC"]
    assert ax.images[0].get_array().filled(0).tolist() == [[40, 3, 5], [2, 1, 0], [0, 6, 7]]
    assert type(ax.images[0].norm).__name__ == "LogNorm"
    # An order that was chosen stays, and so do small ranges on a linear scale.
    ax = rendered(plot.connectivity_matrix(table.isel(pre_cell_type=[2, 0]) + 20))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["BC", "5P-ET"]
    assert type(ax.images[0].norm).__name__ == "Normalize"


@pytest.fixture
def four_pairs():
    edges = {"pre": [13, 11, 12, 11], "post": [11, 12, 11, 13], "weight": [5.0, 2.0, 1.0, 70.0]}
    ids = [11, 12, 13, 14]
    return mx.as_connectivity(
        pd.DataFrame(edges), pre="pre", post="post", weight="weight", pre_ids=ids, post_ids=ids
    )


def test_neurons_of_a_matrix_are_sorted(units, four_pairs):
    # depths: 11 at 50, 12 at 10, 13 at 130; 14 has no connection
    units["position"][1, 1] = 10.0
    units["cell_type"] = ("nucleus_id", np.array(["BC", "5P-IT", "5P-ET", "BC"], dtype=object))
    for by, ids, labels in (
        (None, [12, 13, 11], ["5P-IT", "5P-ET", "BC"]),
        ("depth", [12, 11, 13], ["10", "50", "130"]),
        ("gOSI", [11, 12, 13], ["0.1", "0.5", "nan"]),
    ):
        for connectivity in (four_pairs, four_pairs.chunk(), four_pairs.transpose()):
            ax = rendered(plot.adjacency_matrix(connectivity, units, by))
        expected = four_pairs.weight.to_numpy()[np.ix_(np.array(ids) - 11, np.array(ids) - 11)]
        np.testing.assert_array_equal(ax.images[0].get_array().filled(0), expected)
        assert [t.get_text() for t in ax.get_yticklabels()][: len(labels)] == labels[
            : len(ax.get_yticks())
        ]
    assert ax.get_ylabel() == "presynaptic neurons (3) by gOSI"
    for wrong, match in (
        ({"by": "colour"}, "no \\['colour'\\]"),
        ({"by": "position"}, "one value"),
    ):
        with pytest.raises(mx.errors.SchemaError, match=match):
            plot.adjacency_matrix(four_pairs, units, **wrong)
    with pytest.raises(mx.errors.UnknownLabelError, match="no weight 'size'"):
        plot.adjacency_matrix(four_pairs, units, weight="size")


def test_cells_of_a_large_matrix_are_sums(demo_network):
    units, connectivity = demo_network
    ax = rendered(plot.adjacency_matrix(connectivity, units))
    cells = ax.images[0].get_array().filled(0)
    assert max(cells.shape) <= 200
    assert cells.sum() == connectivity.synapse_size.sum()
    assert "sum of 6 × 6 neurons" in ax.child_axes[0].get_ylabel()


def test_partners_are_where_they_are(units, four_pairs):
    ax = rendered(plot.partners_in_space(four_pairs, units, 11, axes=("z", "y")))
    drawn = {c.get_label(): c.get_offsets().tolist() for c in ax.collections[1:]}
    assert drawn == {"inputs and outputs (2)": [[8, 60], [9, 130]], "neuron 11": [[7, 50]]}
    assert ax.collections[0].get_offsets().tolist() == [[10, 300]]  # the cell that is no partner
    moved = units.assign(position=units.position.where(units.nucleus_id != 12))
    ax = rendered(plot.partners_in_space(four_pairs, moved, 11))
    assert "inputs and outputs (2, 1 without position)" in ax.get_legend_handles_labels()[1]
    ax = rendered(plot.partners_in_space(four_pairs.sel(pre_nucleus_id=[13]), units, 13))
    assert ax.get_legend_handles_labels()[1] == ["outputs (1)", "neuron 13"]
    with pytest.raises(mx.errors.UnknownLabelError, match="99"):
        plot.partners_in_space(four_pairs, units, 99)


def connectivity_of_weights(weights):
    edges = {"pre": range(len(weights)), "post": 100, "weight": weights}
    return mx.as_connectivity(pd.DataFrame(edges), pre="pre", post="post", weight="weight")


def test_weights_are_counted():
    ax = rendered(plot.weight_distribution(connectivity_of_weights([1, 2, 2, 4])))
    counts, edges, _ = ax.patches[0].get_data()
    assert (counts.tolist(), edges.tolist()) == ([1, 2, 0, 1], [0.5, 1.5, 2.5, 3.5, 4.5])
    assert ax.get_xscale() == ax.get_yscale() == "linear"
    assert ax.get_legend().get_texts()[0].get_text() == "median: 2\n(4 connections)"
    ax = rendered(plot.weight_distribution(connectivity_of_weights([0.0, 1.5, 20.0, 150.0])))
    counts, edges, _ = ax.patches[0].get_data()
    assert (counts.sum(), edges[0], edges[-1]) == (3, 1.5, pytest.approx(150))
    assert ax.get_xscale() == "log"
    assert "(4 connections, 1 of them 0)" in ax.get_legend().get_texts()[0].get_text()
    signed = rendered(plot.weight_distribution(connectivity_of_weights([-3.0, 40.0])))
    assert signed.get_xscale() == "linear"
    assert signed.patches[0].get_data().values.sum() == 2
    with pytest.raises(mx.errors.SchemaError, match="no connection has a weight"):
        plot.weight_distribution(connectivity_of_weights([1.0]).isel(pre_nucleus_id=[]))


def test_aligned_currents_are_closed():
    angles = ("orientation", [0.0, 45.0, 90.0, 135.0], DEGREES)
    currents = xr.DataArray(
        [[1.0, 2.0, 9.0, 2.0], [6.0, 5.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]],
        dims=("post_nucleus_id", "orientation"),
        coords={"post_nucleus_id": [11, 12, 13], "orientation": angles},
    )
    tuned = xr.Dataset(
        {"pref_ori": ("nucleus_id", [90.0, 0.0, np.nan], DEGREES)}, {"nucleus_id": [11, 12, 13]}
    )
    aligned = mx.analysis.align_to_preferred(currents, tuned, interval=mx.analysis.Bootstrap(20))
    ax = rendered(plot.aligned_currents(aligned))
    x, y = ax.lines[0].get_data()
    assert (x.tolist(), y.tolist()) == ([-90, -45, 0, 45, 90], [2, 3, 7.5, 3.5, 2])
    band = ax.collections[0].get_paths()[0].vertices
    assert {*aligned.mean_current_low.values, *aligned.mean_current_high.values} == {*band[:, 1]}
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["mean of 2 neurons", "95% interval", "own preferred angle"]
    bare = mx.analysis.align_to_preferred(currents, tuned, interval=None, normalise=True)
    ax = rendered(plot.aligned_currents(bare))
    assert ax.get_ylabel() == "input current / its mean"
    assert len(ax.collections) == 0
    with pytest.raises(mx.errors.SchemaError, match="mean_current is NaN"):
        plot.aligned_currents(aligned * np.nan)


def test_summary_has_the_panels_that_there_are(demo_fresh, units):
    parts = [demo_fresh[name] for name in ("units", "layers", "connectivity")]
    figure = plot.release_summary(*parts)
    figure.draw_without_rendering()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["cells by depth", "cells in space", "connections", "input currents"]
    n = mx.n_connections(parts[2])
    assert figure.get_suptitle() == (
        f"minnie65_demo v1718: {parts[0].sizes['nucleus_id']:,} cells, {n:,} connections"
    )
    assert plot.release_summary(units, figure=Figure()).get_suptitle() == "release: 4 cells"
    assert len(plt.get_fignums()) == 1
    # No current of which a tuning could be drawn, and no connection at all.
    silent = parts[0].assign(rate_ori=parts[0].rate_ori * 0)
    without = mx.select_connections(parts[2], pre=[], post=[])
    for data, pairs, more in ((silent, parts[2], ["connections"]), (parts[0], without, [])):
        figure = plot.release_summary(data, connectivity=pairs, figure=Figure())
        titles = [ax.get_title() for ax in figure.axes]
        assert [title for title in titles if title] == ["cells by depth", "cells in space", *more]


def test_summary_leaves_out_currents_of_few_neurons(demo_fresh):
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    currents = mx.input_currents(connectivity, units.rate_ori).sum("orientation")
    chosen = currents.post_nucleus_id[currents > 0].values
    for n, drawn in ((4, False), (5, True)):
        layer = units.layer.where(~units.nucleus_id.isin(chosen[:n]), "own")
        figure = plot.release_summary(
            units.assign_coords(layer=layer), None, connectivity, figure=Figure()
        )
        axes = next(ax for ax in figure.axes if ax.get_title() == "input currents")
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert ("own (5)" in labels) is drawn
        assert not any(label.startswith("own (4)") for label in labels)
        assert any(label.startswith("L4 (") for label in labels)


def test_a_single_neuron_is_drawn(units, rates, four_pairs):
    one, pair = (
        units.isel(nucleus_id=[1]),
        four_pairs.sel(pre_nucleus_id=[11], post_nucleus_id=[12]),
    )
    currents = mx.input_currents(pair, xr.DataArray([[1.0, 3.0]], dims=("nucleus_id", "orientation"), coords={"nucleus_id": [11], "orientation": ("orientation", [0.0, 90.0], DEGREES)}))  # fmt: skip
    assert rendered(plot.depth_profile(one)).containers[0][0].get_width() == 1
    for colour in ("layer", "gOSI", "pref_ori"):
        assert len(rendered(plot.cells_in_space(one, colour)).collections[0].get_offsets()) == 1
    rendered(plot.connectivity_matrix(mx.group_connectivity(pair, "layer", units=units)))
    assert rendered(plot.degree_distribution(mx.degrees(pair))).lines[0].get_marker() == "o"
    assert rendered(plot.adjacency_matrix(pair, units)).images[0].get_array().tolist() == [[2]]
    assert rendered(plot.weight_distribution(pair)).patches[0].get_data().values.sum() == 1
    rendered(plot.partners_in_space(pair, units, 12))
    assert rendered(plot.preferred_orientations(one)).patches
    drawn = rendered(plot.currents_by_angle(currents)).lines[0].get_data()
    assert [x.tolist() for x in drawn] == [[0, 90, 180], [0.5, 1.5, 0.5]]
    rendered(plot.tuning_curve(rates))
    rendered(plot.release_summary(one, None, pair).axes[0])


def test_degrees_are_shares_of_neurons():
    about = {"units": "neurons", "long_name": "partners"}
    degrees = xr.Dataset({"in_degree": ("post_nucleus_id", [0, 1, 1, 4], about)})
    for table in (degrees, degrees.chunk()):
        ax = rendered(plot.degree_distribution(table, ("in_degree",)))
        x, y = ax.lines[0].get_data()
        assert (list(x), list(y)) == ([1, 4], [0.75, 0.25])
        assert ax.get_xscale() == ax.get_yscale() == "linear"
        assert ax.get_xlabel() == "partners x (neurons)"
        assert "4 neurons, 1 of them 0" in ax.get_legend().get_texts()[0].get_text()
    wide = xr.Dataset({"in_degree": ("post_nucleus_id", np.arange(1, 21), about)})
    ax = rendered(plot.degree_distribution(wide, ("in_degree",)))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    unknown = degrees.where(degrees.in_degree != 4)  # a neuron without a value is not counted
    assert plot.degree_distribution(unknown, ("in_degree",)).lines[0].get_ydata() == [2 / 3]
    with pytest.raises(mx.errors.SchemaError, match="nothing to draw"):
        plot.degree_distribution(degrees * 0, ("in_degree",))
    two = degrees.assign(in_size=("post_nucleus_id", [1, 2, 3, 4], {"units": "voxels"}))
    with pytest.raises(mx.errors.SchemaError, match="of the same units"):
        plot.degree_distribution(two, ("in_degree", "in_size"))


def errors_of(container):
    """Ends of the whiskers of an errorbar container: (points, 2)."""
    return np.array([s[:, 1] for s in container.lines[2][0].get_segments()])


def test_probability_against_distance(demo_network):
    units, connectivity = demo_network
    found = mx.analysis.connection_probability(
        connectivity, units, "classification_system", [0, 100, 200, 300],
        presynaptic="all", interval=mx.analysis.Bootstrap(20),
    )  # fmt: skip
    ax = rendered(plot.connection_probability(found))
    assert ax.get_xlabel() == "lateral distance (µm)"
    assert ax.get_ylabel() == "connection probability (lower bound)"
    assert ax.get_ylim()[0] == 0
    tested = found.n_pairs.sum("lateral_distance").values > 0
    assert len(ax.containers) == tested.sum() > 3
    drawn = {c.get_label(): c for c in ax.containers}
    one = found.sel(
        pre_classification_system="excitatory_neuron",
        post_classification_system="inhibitory_neuron",
    )
    label = f"excitatory_neuron → inhibitory_neuron ({int(one.n_pairs.sum()):,} pairs)"
    np.testing.assert_array_equal(drawn[label].lines[0].get_ydata(), one.probability.values)
    np.testing.assert_array_equal(drawn[label].lines[0].get_xdata(), one.mean_lateral_distance)
    ends = np.stack([one.probability_low, one.probability_high], axis=1)
    np.testing.assert_allclose(errors_of(drawn[label]), ends)
    assert found.attrs["interval"] == "bootstrap interval of confidence 0.95"
    assert ax.get_legend().get_title().get_text() == "95% bootstrap interval"
    wide = mx.analysis.connection_probability(
        connectivity, units, "cell_type", [0, 100], presynaptic="all", interval=mx.analysis.Wilson()
    )
    with pytest.raises(mx.errors.SchemaError, match="expected at most 9"):
        plot.connection_probability(wide)
    with pytest.raises(mx.errors.SchemaError, match="expected one: use"):
        plot.connection_probability(found.isel(lateral_distance=0))
    with pytest.raises(mx.errors.SchemaError, match="n_pairs is 0"):
        plot.connection_probability(found.assign(n_pairs=found.n_pairs * 0))


def test_probability_without_an_interval_has_no_whisker():
    found = xr.Dataset(
        {
            "probability": ("lateral_distance", [0.5, 0.0]),
            "probability_low": ("lateral_distance", [0.4, np.nan]),
            "probability_high": ("lateral_distance", [0.45, np.nan]),  # below the estimate
            "n_pairs": ("lateral_distance", [8, 9]),
        },
        coords={"lateral_distance": ("lateral_distance", [5.0, 15.0], {"units": "µm"})},
    )
    bars = rendered(plot.connection_probability(found.chunk())).containers[0]
    whiskers = bars.lines[2][0].get_segments()
    np.testing.assert_allclose(whiskers[0][:, 1], [0.4, 0.5])
    assert all(np.isnan(w).any() or not len(w) for w in whiskers[1:])


def test_like_to_like_with_intervals_and_null(demo_network):
    units, connectivity = demo_network
    result = mx.analysis.like_to_like(
        connectivity, units, presynaptic="all", interval=mx.analysis.Bootstrap(50)
    )
    null = null_models.permute_angles(units, n=20)
    compared = null_models.compare(
        mx.analysis.like_to_like,
        connectivity,
        units,
        null,
        variable="probability",
        presynaptic="all",
    )
    ax = rendered(plot.like_to_like(result, compared))
    lines = {line.get_label().split(" (")[0]: line for line in ax.lines}
    np.testing.assert_array_equal(lines["observed"].get_ydata(), result.probability.values)
    np.testing.assert_array_equal(lines["null: permute angles"].get_ydata(), compared.null_mean)
    # points are where the pairs are, not at the centres of the bins
    assert (result.mean_difference[[0, -1]] != result.difference[[0, -1]]).all()
    for line in lines.values():
        np.testing.assert_array_equal(line.get_xdata(), result.mean_difference)
    ends = np.stack([result.probability_low, result.probability_high], axis=1)
    np.testing.assert_allclose(errors_of(ax.containers[0]), ends)
    assert [t.get_text() for t in ax.texts] == [f"{n:,}" for n in result.n_connected.values]
    assert "(degree)" in ax.get_xlabel()
    shaded = ax.collections[0].get_paths()[0].vertices
    assert {*np.asarray(compared.null_low), *np.asarray(compared.null_high)} <= {*shaded[:, 1]}
    replicates = result.probability.expand_dims(replicate=3)
    rendered(plot.like_to_like(result, replicates))
    with pytest.raises(mx.errors.SchemaError, match="expected the bins of the result"):
        plot.like_to_like(result, compared.isel(difference=slice(1, None)))


@pytest.fixture
def rates():
    angles = np.arange(0, 360, 22.5)
    tuned = 1 + 3 * np.exp(2 * (np.cos(np.deg2rad(angles - 100)) - 1))
    about = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}
    return xr.DataArray(
        tuned,
        dims="direction",
        coords={"direction": ("direction", angles, about)},
        attrs={"units": "spikes/s", "long_name": "rate"},
        name="rate",
    )


def test_tuning_curve_with_fit_and_errors(rates):
    fit = mx.tuning.fit(rates, dim="direction", model="single_von_mises")
    error = xr.full_like(rates, 0.25)
    for lazy in (False, True):
        given = [x.chunk() if lazy else x for x in (rates, fit, error)]
        ax = rendered(plot.tuning_curve(given[0], given[1], error=given[2]))
        points = ax.containers[0]
        np.testing.assert_array_equal(points.lines[0].get_ydata(), [*rates.values, rates[0]])
        np.testing.assert_array_equal(points.lines[0].get_xdata(), np.arange(0, 361, 22.5))
        np.testing.assert_allclose(np.ptp(errors_of(points), axis=1), 0.5)
        curve, best = (line for line in ax.lines if len(line.get_xdata()) in (181, 2))
        at = curve.get_xdata()
        np.testing.assert_allclose(
            curve.get_ydata(), 1 + 3 * np.exp(2 * (np.cos(np.deg2rad(at - 100)) - 1)), atol=1e-4
        )
        assert (at[0], at[-1]) == (0, 360)
        assert best.get_xdata()[0] == pytest.approx(100, abs=1e-3)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("direction (degree)", "rate (spikes/s)")
    with pytest.raises(mx.errors.SchemaError, match="NaN at every angle"):
        plot.tuning_curve(rates * np.nan)
    with pytest.raises(mx.errors.SchemaError, match="select one neuron first"):
        plot.tuning_curve(rates.expand_dims(nucleus_id=2))
    with pytest.raises(mx.errors.SchemaError, match="expected the fit of one neuron"):
        plot.tuning_curve(rates, fit.expand_dims(nucleus_id=2))
    with pytest.raises(mx.errors.SchemaError, match="the angles of the rates"):
        plot.tuning_curve(rates, error=error[:4])
    with pytest.raises(mx.errors.SchemaError, match="fit is over 'orientation'"):
        plot.tuning_curve(rates, fit.assign_attrs(tuning_dim="orientation"))


def test_preferred_orientations_go_around(units):
    # bins of 45: 179 is in the bin around 0
    ax = rendered(plot.preferred_orientations(units.chunk(), n_bins=4))
    heights = [b.get_height() for b in ax.patches]
    assert heights == [2, 1, 0, 0] * 2
    middles = np.rad2deg([b.get_x() + b.get_width() / 2 for b in ax.patches])
    np.testing.assert_allclose(middles, np.arange(8) * 45, atol=1e-9)
    # 0 is a bar that moves up, and angles grow clockwise
    assert ax.get_theta_offset() == pytest.approx(np.pi / 2)
    assert ax.get_theta_direction() == -1
    assert [t.get_text() for t in ax.get_xticklabels()][:5] == ["0°", "45°", "90°", "135°", "0°"]
    assert "preferred (degree)" in ax.get_xlabel()
    flat = Figure().subplots()
    assert rendered(plot.preferred_orientations(units, by="layer", n_bins=4, ax=flat)) is flat
    assert sum(b.get_height() for b in flat.patches) == 3
    right = units.pref_ori.attrs | {"angle_convention": "right_counterclockwise"}
    turned = plot.preferred_orientations(units.assign(pref_ori=units.pref_ori.assign_attrs(right)))
    assert (turned.get_theta_offset(), turned.get_theta_direction()) == (0, 1)


def test_preferred_directions_in_radians_have_a_whole_turn():
    about = {"units": "radian", "angle_convention": "up_clockwise"}
    rows = xr.Dataset({"pref_dir": ("nucleus_id", [0.0, np.pi, 6.28], about)})
    ax = rendered(plot.preferred_orientations(rows, "pref_dir", n_bins=4))
    assert [b.get_height() for b in ax.patches] == [2, 0, 1, 0]


def test_currents_are_means_over_neurons():
    currents = xr.DataArray(
        [[1.0, 3.0], [2.0, 2.0], [np.nan, 1.0], [5.0, 15.0]],
        dims=("post_nucleus_id", "orientation"),
        coords={
            "post_nucleus_id": [1, 2, 3, 4],
            "orientation": ("orientation", [0.0, 90.0], DEGREES),
        },
        attrs={"units": "voxels x rate"},
    )
    layer = xr.DataArray(
        np.array(["L5", "L4", "L4", "L4"], dtype=object), {"nucleus_id": [4, 3, 2, 1]}, ["nucleus_id"]
    )  # fmt: skip
    for given in (currents, currents.chunk(), currents.T):
        ax = rendered(plot.currents_by_angle(given, layer))
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        assert {k: v.tolist() for k, v in lines.items()} == {
            "L4 (2)": [0.75, 1.25, 0.75],
            "L5 (1)": [0.5, 1.5, 0.5],
        }
        assert ax.lines[0].get_xdata().tolist() == [0, 90, 180]
    for values, words in (
        ([2, 1, 1, 1], {"1 (2)", "2 (1)"}),
        ([True, False, False, False], {"False (2)", "True (1)"}),
        (pd.array(["b", None, None, None], dtype="string"), {"unknown (2)", "b (1)"}),
    ):
        groups = xr.Dataset({"group": ("nucleus_id", values)}, layer.coords).group
        plt.close("all")
        drawn = plot.currents_by_angle(currents, groups).lines
        means = {line.get_label(): line.get_ydata().tolist() for line in drawn}
        assert set(means) == words
        assert next(y for word, y in means.items() if "(2)" in word) == [0.75, 1.25, 0.75]
    with pytest.raises(mx.errors.SchemaError, match="bin numbers first"):
        plot.currents_by_angle(currents, layer.copy(data=[0.5, 1, 1, 1]))
    plt.close("all")
    raw = plot.currents_by_angle(currents, normalise=False)
    assert raw.get_ylabel() == "input current (voxels x rate)"
    np.testing.assert_allclose(raw.lines[0].get_ydata(), [8 / 3, 20 / 3, 8 / 3])
    for wrong, groups, match in (
        (currents * 0, None, "nothing to draw"),
        (currents.to_dataset(name="a"), None, "expected a DataArray"),
        (currents.expand_dims("a"), None, r"expected \(post_nucleus_id, angle\)"),
        (currents, layer.values, "by is an array without ids"),
        (currents, layer.expand_dims("a"), "expected one label per neuron"),
    ):
        with pytest.raises(mx.errors.SchemaError, match=match):
            plot.currents_by_angle(wrong, groups)
    others = layer.assign_coords(nucleus_id=layer.nucleus_id + 1000)
    with pytest.raises(mx.errors.UnknownLabelError, match="none of the 4 neurons"):
        plot.currents_by_angle(currents, others)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (lambda u: plot.depth_profile(u, by="colour"), r"no \['colour'\]"),
        (lambda u: plot.depth_profile(u.drop_vars("position")), r"no \['position'\]"),
        (lambda u: plot.depth_profile(u, by="gOSI"), "bin numbers first"),
        (lambda u: plot.depth_profile(u, bin_um=0), "above 0"),
        (lambda u: plot.depth_profile(u, u), "layer_name"),
        (lambda u: plot.depth_profile(u.layer), "expected a Dataset"),
        (lambda u: plot.cells_in_space(u, "colour"), r"no \['colour'\]"),
        (lambda u: plot.cells_in_space(u, "position"), "expected one value per cell"),
        (lambda u: plot.cells_in_space(u, "layer", axes=("x", "x")), "expected two of"),
        (lambda u: plot.cells_in_space(u.isel(nucleus_id=[]), "layer"), "nothing to draw"),
        (lambda u: plot.cells_in_space(u, "layer", ax=3), "expected matplotlib axes"),
        (lambda u: plot.connectivity_matrix(u), r"no \['n_connections'\]"),
        (lambda u: plot.connectivity_matrix(u, "gOSI"), "expected"),
        (lambda u: plot.degree_distribution(u), "out_degree"),
        (lambda u: plot.degree_distribution(u, ("position",)), "one number per neuron"),
        (lambda u: plot.degree_distribution(-u[["gOSI"]], ("gOSI",)), "has the minimum"),
        (lambda u: plot.like_to_like(u.expand_dims(difference=[0.0]), variable="gOSI"), "has dims"),
        (lambda u: plot.connection_probability(u), "probability_low"),
        (lambda u: plot.like_to_like(u), "difference"),
        (lambda u: plot.tuning_curve(u), "expected a DataArray"),
        (lambda u: plot.tuning_curve(u.gOSI), "expected one of direction, orientation"),
        (lambda u: plot.preferred_orientations(u, "pref_dir"), r"no \['pref_dir'\]"),
        (lambda u: plot.preferred_orientations(u, "gOSI"), "units"),
        (lambda u: plot.preferred_orientations(u, by="gOSI"), "bin numbers first"),
        (lambda u: plot.preferred_orientations(u, n_bins=1), "at least 2"),
        (lambda u: plot.preferred_orientations(u.isel(nucleus_id=[3])), "nothing to draw"),
    ],
)
def test_bad_input_names_what_is_missing(units, call, missing):
    with pytest.raises(mx.errors.SchemaError, match=missing):
        call(units)
    assert plt.get_fignums() == []  # nothing was begun


def test_axes_are_those_given(units):
    ax = Figure().subplots()
    assert plot.depth_profile(units, ax=ax) is ax
    assert plot.cells_in_space(units, "layer", ax=ax) is ax


def test_pictures_are_in_the_current_axes(units, tmp_path):
    figure, (left, right) = plt.subplots(1, 2)
    assert plot.depth_profile(units) is right
    plt.sca(left)
    assert plot.cells_in_space(units, "gOSI") is left
    polar = plot.preferred_orientations(units)  # not in axes of another kind
    assert (polar.name, polar.figure is figure, plt.gca() is polar) == ("polar", False, True)
    assert plot.preferred_orientations(units, by="layer") is polar
    other = plot.depth_profile(units)
    assert other.figure not in (figure, polar.figure)
    plt.savefig(tmp_path / "a.png")
    assert plt.imread(tmp_path / "a.png").std() > 0.05
    figure = plt.figure(layout="tight")
    assert plot.depth_profile(units).figure is figure
    assert type(figure.get_layout_engine()).__name__ == "TightLayoutEngine"
    assert len(plt.get_fignums()) == 4


def test_labels_have_units_and_fit():
    long = xr.DataArray(0, name="a_b", attrs={"units": "voxels of 4x4x40 nm", "long_name": "mean size of a connected pair"})  # fmt: skip
    assert label_of(long) == "mean size of a connected pair\n(voxels of 4x4x40 nm)"
    assert label_of(xr.DataArray(0, name="a_b", attrs={"units": "1"})) == "a b"
