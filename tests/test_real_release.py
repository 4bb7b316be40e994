"""A whole small release of real tables, against plain pandas and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import microns_xr as mx
from microns_xr.tuning.functional import build_tuning_curves


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data / "minnie65_v661"


@pytest.fixture(scope="module")
def plain(folder):
    """Units, connectivity matrix (pre, post) and rates by direction, without any of our code."""
    raw = folder / "raw"
    nuclei = pd.read_csv(raw / "nucleus_detection_v0.csv")
    types = pd.read_csv(raw / "baylor_log_reg_cell_type_coarse_v1.csv")
    nuclei = nuclei[(nuclei.pt_root_id > 0) & ~nuclei.pt_root_id.duplicated(keep=False)]
    nuclei = nuclei[nuclei.id.isin(types.target_id)].sort_values("id")
    position = {root: i for i, root in enumerate(nuclei.pt_root_id.tolist())}
    rows = pd.read_csv(raw / "synapses" / "connections.csv")
    pre, post = rows.pre_pt_root_id.map(position), rows.post_pt_root_id.map(position)
    known = pre.notna() & post.notna()
    matrix = sp.csr_matrix(
        (rows["size"][known].astype(float), (pre[known].astype(int), post[known].astype(int))),
        shape=(len(nuclei), len(nuclei)),
    )
    fits = pd.read_csv(folder / "functional" / "tuning_curves_fitted_v1.csv")
    matches = pd.read_csv(raw / "coregistration_manual_v3.csv")
    joined = fits.merge(matches, on=["session", "scan_idx", "unit_id"])
    curves = np.stack([np.array(text.strip("[]").split(), float) for text in joined.rate_dir])
    rates = pd.DataFrame(curves, index=joined.target_id).groupby(level=0).mean().reindex(nuclei.id)
    return nuclei, matrix, rates.to_numpy(), len(rows), int(known.sum())


@pytest.fixture(scope="module", params=["fresh", "reopened"])
def release(request, folder, tmp_path_factory):
    release = mx.Release(661, source=folder)
    if request.param == "fresh":
        units = release.units(functional="match", rates=True)
        connectivity = release.connectivity(units=units)
        return {"units": units, "connectivity": connectivity}
    store = tmp_path_factory.mktemp("v661") / "v661.zarr"
    release.write(store)
    tree = mx.open_store(store)
    return {name: tree[name].to_dataset() for name in ("units", "connectivity")}


def test_units_and_connections(release, plain):
    nuclei, matrix, rates, _, n_known = plain
    units, connectivity = release["units"], release["connectivity"]
    np.testing.assert_array_equal(units.nucleus_id, nuclei.id)
    np.testing.assert_array_equal(units.pt_root_id, nuclei.pt_root_id)
    assert units.sizes["nucleus_id"] == 54_869
    assert int((units.n_rated > 0).sum()) == np.isfinite(rates[:, 0]).sum() == 5336
    assert mx.n_connections(connectivity) == matrix.nnz == n_known == 37_405
    assert connectivity.scope.item() == "unknown"
    # The axes are the neurons that the file names, and no other unit.
    stored = matrix.tocoo()
    for side, at in (("pre", stored.row), ("post", stored.col)):
        axis = connectivity[f"{side}_nucleus_id"]
        np.testing.assert_array_equal(axis, nuclei.id.to_numpy()[np.unique(at)])
    assert connectivity.sizes == {"pre_nucleus_id": 8501, "post_nucleus_id": 911}
    assert mx.releases.read_counts(connectivity, "dropped_synapses")["any_reason"] == 4719


def test_input_currents_of_16_directions(release, plain):
    _, matrix, rates, *_ = plain
    currents = mx.input_currents(release["connectivity"], release["units"].rate_dir)
    expected = matrix.T @ np.nan_to_num(rates)
    sums = currents.sum("post_nucleus_id").values
    np.testing.assert_allclose(sums, expected.sum(axis=0), rtol=1e-12)
    nuclei = plain[0]
    at = np.flatnonzero(nuclei.id.isin(currents.post_nucleus_id.values))
    np.testing.assert_allclose(currents.values, expected[at], rtol=1e-12)
    rated = np.isfinite(rates[:, 0]).astype(float)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    share = (matrix.T @ rated)[at] / total[at]
    np.testing.assert_allclose(currents.rated_fraction, share, rtol=1e-12)


def test_only_neurons_of_the_file_have_a_current(release):
    units = release["units"]
    chosen = mx.select_units(units, layer="L2/3", cell_type="23P").nucleus_id
    assert chosen.size == 16_136
    currents = mx.input_currents(release["connectivity"], units.rate_ori).isel(orientation=0)
    of_chosen = currents.reindex(post_nucleus_id=chosen.values)
    assert int(of_chosen.notnull().sum()) == 95
    assert round(of_chosen.mean().item()) == 206_735


def test_the_other_contraction_is_another_number(release, plain):
    _, matrix, rates, *_ = plain
    other = mx.contract(
        release["connectivity"], release["units"].rate_dir, over="post_nucleus_id", missing="skip"
    )
    expected = matrix @ np.nan_to_num(rates)
    at = np.flatnonzero(plain[0].id.isin(other.pre_nucleus_id.values))
    np.testing.assert_allclose(other.fillna(0).values, expected[at], rtol=1e-12)
    currents = mx.input_currents(release["connectivity"], release["units"].rate_dir)
    assert not np.allclose(other.sum("pre_nucleus_id"), currents.sum("post_nucleus_id"), rtol=0.1)


def test_a_neuron_of_four_scans_contributes_once(release, folder):
    matches = pd.read_csv(folder / "raw" / "coregistration_manual_v3.csv")
    units, connectivity = release["units"], release["connectivity"]
    of_file = matches.target_id[matches.target_id.isin(connectivity.pre_nucleus_id.values)]
    neuron = of_file.value_counts().idxmax()
    assert units.n_scan_units.sel(nucleus_id=neuron).item() == 4
    # give every one of its four units the same curve: the neuron's rate is that curve, not four
    rows = matches[matches.target_id == neuron]
    curve = "[" + " ".join(["2."] * 16) + "]"
    fits = rows[["session", "scan_idx", "unit_id"]].assign(rate_dir=curve)
    functional = mx.Release(661, source=folder).functional()
    spec = mx.releases.release_spec(661).table_of("tuning_curves")
    rates = mx.tuning.collapse_scans(build_tuning_curves(fits, spec, functional))
    assert rates.n_rated.values.tolist() == [4]
    size = float(mx.outputs_from(connectivity, int(neuron)).synapse_size.sum())
    assert size > 0
    currents = mx.input_currents(connectivity, rates.rate_dir)
    np.testing.assert_allclose(currents.sum("post_nucleus_id").values, 2 * size)


def test_only_neurons_of_the_file_are_counted(release):
    units, connectivity = release["units"], release["connectivity"]
    curves = mx.tuning.selectivity(units.rate_ori.dropna("nucleus_id"), dim="orientation")
    units = units.assign(pref_ori=curves.pref_ori.reindex(nucleus_id=units.nucleus_id))
    assert int(units.pref_ori.notnull().sum()) == 5336
    currents = mx.input_currents(connectivity, units.rate_ori)
    aligned = mx.analysis.align_to_preferred(currents, units, interval=None)
    assert aligned.n_neurons.item() == 911
    # Of four of them the only rated partner is themselves, among 7 to 21 others without rates.
    without = mx.input_currents(mx.drop_autapses(connectivity), units.rate_ori)
    aligned = mx.analysis.align_to_preferred(without, units, interval=None)
    assert aligned.n_neurons.item() == 907
    groups = mx.group_connectivity(connectivity, "classification_system", units=units)
    assert groups.n_post.to_series().to_dict() == {"excitatory_neuron": 910, "inhibitory_neuron": 1}
    graph = mx.to_networkx(connectivity)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (8502, 37_405)
    # Neurons of a class that are not on the axes are no neurons without a synapse.
    of_layer = mx.select_units(units, layer="L4", classification_system="inhibitory_neuron")
    assert of_layer.sizes["nucleus_id"] == 670
    onto = mx.select_connections(connectivity, post=of_layer)
    excitatory = {"classification_system": "excitatory_neuron"}
    onto = mx.select_connections(onto, units, pre=excitatory)
    assert mx.to_networkx(onto).number_of_nodes() == 247 + 1
    assert mx.group_connectivity(onto, units.layer).n_post.values.tolist() == [1]


def test_probability_counts_neurons_of_the_file(folder, release):
    units, of_23p = release["units"], {"cell_type": "23P"}
    estimate = {"by": None, "distance": [50, 100], "post": of_23p}
    with pytest.warns(UserWarning, match=r"20 of 33 neurons of pre \(60.6%\) are left out"):
        found = mx.analysis.connection_probability(
            release["connectivity"], units, pre=of_23p, **estimate
        )
    assert (found.n_connected.item(), found.n_pairs.item()) == (3, 148)
    # All 33 axons were looked for, say.
    axons = mx.select_units(units, axon="extended", **of_23p)
    asked = mx.Release(661, source=folder).connectivity(pre=axons)
    assert asked.sizes == {"pre_nucleus_id": 33, "post_nucleus_id": 911}
    with pytest.warns(UserWarning, match=r"20 of 33 neurons of pre \(60.6%\) count as unconn"):
        found = mx.analysis.connection_probability(asked, units, pre=axons, **estimate)
    assert (found.n_connected.item(), found.n_pairs.item()) == (3, 214)
    assert round(found.probability.item(), 3) == 0.014
