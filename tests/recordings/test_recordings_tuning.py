"""Tuning from trials: cut by time, averaged over frames, then over trials; planted tuning is found."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.recordings.demo import demo_curves
from microns_xr.recordings.files import TrialArray, encode_hash
from microns_xr.recordings.trials import segment_of_frames, segment_responses


@pytest.fixture(scope="module")
def source():
    return mx.sources.DemoSource(1718, n_nuclei=2000, seed=5)


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rec")
    return mx.recordings.write_demo(folder / "demo.h5", source, n_monet=8, noise=0.2, seed=2)


@pytest.fixture(scope="module")
def recordings(path):
    return mx.recordings.open(path)


@pytest.fixture(scope="module")
def curves(recordings):
    return mx.recordings.tuning(recordings)


def make_file(path, trials, videos=None):
    """Write scan 4_7 by hand: trials are (hash, responses, times); videos are hash: datasets."""
    with h5py.File(path, "w") as h5:
        for condition_hash, content in (videos or VIDEOS).items():
            group = h5.create_group(f"videos/{encode_hash(condition_hash)}")
            group.attrs["type"] = content.get("type", "Monet2")
            group.attrs.update({k: v for k, v in content.items() if k == "duration"})
            for name in ("directions", "onsets"):
                group[name] = content[name]
        group = h5.create_group("sessions/4_7")
        group["meta/condition_hashes"] = np.array([t[0].encode() for t in trials])
        n_units = len(trials[0][1])
        group["meta/area_indices/V1"] = np.arange(n_units)
        for i, (_, responses, times) in enumerate(trials):
            trial = group.create_group(f"trials/{i}")
            trial["responses"] = np.asarray(responses, dtype=np.float32)
            trial["stim_times"] = np.asarray(times, dtype=np.float64)
            trial["treadmill"] = np.zeros(len(times))
            trial["pupil"] = np.zeros((4, len(times)))
    return path


# Two directions a video, each for 1 s; frames 0.4 s apart, so that they have 3 and 2 frames.
VIDEOS = {
    "a/b": {"directions": [90.0, 270.0], "onsets": [0.0, 1.0], "duration": 2.0},
    "c": {"directions": [270.0, 90.0], "onsets": [0.0, 1.0], "duration": 2.0},
}
TIMES = 100.0 + 0.4 * np.arange(6)  # 0, .4, .8 | 1.2, 1.6 | 2.0, which is after the end
BY_HAND = [
    ("a/b", [[1, 2, 3, 10, 20, 99], [0, 0, 0, 1, 1, 99], [5, 5, 5, 5, 5, 99]], TIMES),
    ("c", [[30, 30, 30, 4, 6, 99], [3, 3, 3, 0, 0, 99], [5, 5, 5, 5, 5, 99]], TIMES + 50),
]


@pytest.fixture
def by_hand(tmp_path):
    return make_file(tmp_path / "three.h5", BY_HAND)


def test_three_neurons_by_hand(by_hand):
    curves = mx.recordings.tuning(mx.recordings.open(by_hand))
    assert curves.direction.values.tolist() == [90.0, 270.0]
    # Neuron 1: 90 is mean(1, 2, 3) = 2 and mean(4, 6) = 5; 270 is mean(10, 20) = 15 and 30.
    np.testing.assert_allclose(curves.rate_dir, [[3.5, 22.5], [0.0, 2.0], [5.0, 5.0]])
    np.testing.assert_allclose(curves.rate_error, [[1.5, 7.5], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(curves.rate_ori, [[13.0], [1.0], [5.0]])
    # of the means of both directions in each trial, (2 + 15) / 2 and (5 + 30) / 2
    np.testing.assert_allclose(curves.rate_ori_error, [[4.5], [0.5], [0.0]])
    assert curves.orientation.values.tolist() == [90.0]
    assert (curves.n_trials.values == 2).all()
    assert curves.unit_id.values.tolist() == [1, 2, 3]
    trials = mx.recordings.trial_responses(mx.recordings.open(by_hand))
    np.testing.assert_allclose(trials[0], [[2.0, 15.0], [5.0, 30.0]])
    assert trials.condition_hash.values.tolist() == ["a/b", "c"]


def test_frames_are_cut_by_time_not_by_count(tmp_path):
    # A trial that lost frames, and one whose frames come at other times.
    lost = [100.0, 100.8, 101.2, 101.6]
    late = np.array([100.0, 100.99, 101.0, 101.9])
    trials = [
        ("a/b", [[1, 3, 10, 20]], lost),
        ("a/b", [[1, 3, 10, 20]], late),
    ]
    path = make_file(tmp_path / "a.h5", trials)
    result = mx.recordings.trial_responses(mx.recordings.open(path))
    np.testing.assert_allclose(result[0], [[2.0, 15.0], [2.0, 15.0]])
    # A frame at an onset is of the segment that begins, though 0.3 has no exact float.
    times = 1e6 + 0.1 * np.arange(10)
    onsets = np.array([0.0, 0.3, 0.7])
    segment = segment_of_frames(times - times[0], onsets, np.array([0.3, 0.7, np.nan]))
    assert segment.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_latency_is_added_only_when_asked_for(by_hand):
    recordings = mx.recordings.open(by_hand)
    # With 0.4 s the segments begin at 0.4 and 1.4 and end at 2.4 s.
    result = mx.recordings.trial_responses(recordings, latency=0.4)[0, 0]
    np.testing.assert_allclose(result, [np.mean([2, 3, 10]), np.mean([20, 99])])
    assert result.attrs["latency_s"] == 0.4
    for wrong in (-0.1, 10, np.nan, "66 ms"):
        with pytest.raises(mx.errors.SchemaError, match="latency is"):
            mx.recordings.tuning(recordings, latency=wrong)


def test_a_direction_twice_in_a_trial_and_missing_frames(tmp_path):
    videos = {"a": {"directions": [0.0, 90.0, 360.0], "onsets": [0.0, 1.0, 2.0]}}
    times = np.arange(6) * 0.5
    trials = [
        ("a", [[1, np.nan, 5, 5, 2, 4], [np.nan] * 6], times),
        ("a", [[1, 1, np.nan, np.nan, 3, 3], [1, 1, 1, 1, 1, 1]], times),
    ]
    recordings = mx.recordings.open(make_file(tmp_path / "a.h5", trials, videos=videos))
    result = mx.recordings.trial_responses(recordings)
    assert result.direction.values.tolist() == [0.0, 90.0]
    np.testing.assert_allclose(
        result[0], [[2.0, 5.0], [2.0, np.nan]]
    )  # (1 + 3) / 2, not mean(1,2,4)
    np.testing.assert_allclose(result[1, 0], [np.nan, np.nan])
    curves = mx.recordings.tuning(recordings)
    assert curves.n_trials.values.tolist() == [[2, 1], [1, 1]]
    np.testing.assert_allclose(curves.rate_error, [[0.0, np.nan], [np.nan, np.nan]])
    assert "rate_ori" not in curves  # 0 and 90 are no opposite directions
    assert "rate_ori_error" not in curves


def test_error_of_an_orientation_whose_directions_are_in_other_trials(tmp_path):
    videos = {
        word: {"directions": [angle], "onsets": [0.0], "duration": 1.0}
        for word, angle in (("a", 0.0), ("b", 180.0))
    } | {"c": {"directions": [0.0, 180.0], "onsets": [0.0, 1.0], "duration": 2.0}}
    # 0 in trials of 1, 3 and 8, 180 in trials of 2, 6 and 4; one trial shows both
    shown = [("a", [1.0]), ("a", [3.0]), ("b", [2.0]), ("b", [6.0]), ("c", [8.0, 4.0])]
    trials = [
        (word, [values], 10.0 * i + np.arange(len(values)))
        for i, (word, values) in enumerate(shown)
    ]
    curves = mx.recordings.tuning(
        mx.recordings.open(make_file(tmp_path / "a.h5", trials, videos=videos))
    )
    assert curves.n_trials.values.tolist() == [[3, 3]]
    of_one, of_other = (np.std(v, ddof=1) / np.sqrt(3) for v in ([1, 3, 8], [2, 6, 4]))
    np.testing.assert_allclose(curves.rate_ori_error, [[np.hypot(of_one, of_other) / 2]])


def test_a_unit_is_rated_whole_or_not_at_all(tmp_path):
    trials = [("a/b", [[1, 2, 3, *[np.nan] * 3], [1, 1, 1, 2, 2, 2]], TIMES)]
    curves = mx.recordings.tuning(mx.recordings.open(make_file(tmp_path / "a.h5", trials)))
    assert np.isnan(curves.rate_dir[0]).all()
    assert np.isnan(curves.rate_ori[0]).all()
    assert curves.attrs["n_incomplete"] == 1
    assert curves.n_trials[0].values.tolist() == [1, 0]
    np.testing.assert_allclose(curves.rate_dir[1], [1.0, 2.0])
    # Nor has it the rate of an orientation of which both directions were measured.
    videos = {"a": {"directions": [0.0, 90.0, 180.0, 270.0], "onsets": [0.0, 1.0, 2.0, 3.0]}}
    trials = [("a", [[1, 2, 3, np.nan], [1, 2, 3, 4]], np.arange(4.0))]
    path = make_file(tmp_path / "b.h5", trials, videos=videos)
    curves = mx.recordings.tuning(mx.recordings.open(path))
    np.testing.assert_array_equal(curves.rate_ori, [[np.nan, np.nan], [2.0, 3.0]])


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True),
    bounds=st.lists(st.integers(0, 400), min_size=2, max_size=6, unique=True),
    seed=st.integers(0, 100),
)
def test_cutting_and_averaging_against_loops(times, bounds, seed):
    rng = np.random.default_rng(seed)
    times, bounds = np.sort(times) / 100, np.sort(bounds) / 100
    onsets, offsets = bounds[:-1], bounds[1:]
    responses = rng.normal(size=(3, len(times)))
    responses[rng.random(responses.shape) < 0.1] = np.nan
    group = rng.integers(0, 3, len(onsets))
    expected = np.full((3, 3), np.nan)
    for unit in range(3):
        for g in range(3):
            means = []
            for onset, offset, of in zip(onsets, offsets, group, strict=True):
                inside = [
                    r
                    for t, r in zip(times, responses[unit], strict=True)
                    if onset - 1e-9 <= t < offset - 1e-9 and of == g and np.isfinite(r)
                ]
                if inside:
                    means.append(np.mean(inside))
            if means:
                expected[unit, g] = np.mean(means)
    segment = segment_of_frames(times, onsets, offsets)
    result = segment_responses(responses, segment, group, 3)
    np.testing.assert_allclose(result, expected, atol=1e-12)


# --------------------------------------------------------------------------------- planted


def plain_tuning(path, scan):
    """Mean and standard error over trials without the package."""
    samples = {}
    with h5py.File(path) as h5:
        for trial in h5[f"sessions/{scan}/trials"].values():
            video = h5[f"videos/{encode_hash(trial.attrs['condition_hash'])}"]
            if video.attrs["type"] != "Monet2":
                continue
            times = trial["stim_times"][()] - trial["stim_times"][0]
            for onset, direction in zip(video["onsets"][()], video["directions"][()], strict=True):
                inside = (times > onset - 1e-6) & (times < onset + 0.9375 - 1e-6)
                values = trial["responses"][()][:, inside].astype(np.float64)
                samples.setdefault(direction, []).append(values.mean(axis=1))
    stacked = np.array([samples[d] for d in sorted(samples)])  # direction, trial, unit
    n = stacked.shape[1]
    folded = stacked.reshape(2, -1, *stacked.shape[1:]).mean(axis=0)
    error, of_ori = (v.std(axis=1, ddof=1).T / np.sqrt(n) for v in (stacked, folded))
    return stacked.mean(axis=1).T, error, of_ori, n


@pytest.mark.parametrize("scan", [(4, 7), (8, 5), (9, 3)])
def test_planted_directions_are_recovered(source, path, curves, scan):
    rows = (curves.session.values == scan[0]) & (curves.scan_idx.values == scan[1])
    result = curves.isel(scan_unit=rows)
    rate, error, of_ori, n = plain_tuning(path, f"{scan[0]}_{scan[1]}")
    np.testing.assert_allclose(result.rate_dir, rate, atol=1e-6)
    np.testing.assert_allclose(result.rate_error, error, atol=1e-6)
    np.testing.assert_allclose(result.rate_ori_error, of_ori, atol=1e-6)
    assert (result.n_trials.values == n).all()

    planted = demo_curves(source, *scan)
    # 8 trials of 7 frames with a noise of 0.2 leave 0.027, which scatters as a normal does.
    z = (result.rate_dir.values - planted) / 0.0267
    assert abs(z.std() - 1) < 0.06
    theta = np.deg2rad(result.direction.values)
    for harmonic, turn in ((1, 360.0), (2, 180.0)):
        resultant = planted @ np.exp(1j * harmonic * theta)
        clear = np.abs(resultant) > 2
        angle = np.rad2deg(np.angle(result.rate_dir.values @ np.exp(1j * harmonic * theta)))
        expected = np.rad2deg(np.angle(resultant))
        off = np.abs(mx.angles.difference(angle / harmonic, expected / harmonic, period=turn))
        assert clear.sum() > 40
        assert off[clear].max() < 7
        assert np.median(off[clear]) < 1


def test_angles_say_where_their_convention_comes_from(recordings, curves):
    attrs = curves.direction.attrs
    assert (attrs["units"], attrs["period"]) == ("degree", 360.0)
    assert attrs["angle_convention"] == "up_clockwise"
    assert "does not state it" in attrs["angle_convention_from"]
    assert curves.orientation.attrs["period"] == 180.0
    other = mx.recordings.tuning(
        recordings, scans=["9_3"], angle_convention="right_counterclockwise"
    )
    assert other.direction.attrs["angle_convention_from"] == "stated by the caller"
    with pytest.raises(mx.errors.SchemaError, match="angle_convention is 'north'"):
        mx.recordings.tuning(recordings, angle_convention="north")


def test_another_stimulus_must_state_its_convention(tmp_path):
    videos = {k: {**v, "type": "Gratings"} for k, v in VIDEOS.items()}
    recordings = mx.recordings.open(make_file(tmp_path / "a.h5", BY_HAND, videos=videos))
    with pytest.raises(mx.errors.SchemaError, match="does not state the convention of 'Gratings'"):
        mx.recordings.tuning(recordings, "Gratings")
    result = mx.recordings.tuning(recordings, "Gratings", angle_convention="up_clockwise")
    np.testing.assert_allclose(result.rate_dir[0], [3.5, 22.5])


def test_one_trial_is_in_memory_at_a_time(recordings, monkeypatch):
    read = []
    original = TrialArray._read

    def counted(self, key):
        result = original(self, key)
        read.append((self.stream, result.size))
        return result

    monkeypatch.setattr(TrialArray, "_read", counted)
    v1 = mx.recordings.select(recordings, scans=["9_3"], brain_area="V1")
    mx.recordings.tuning(v1)
    n_units = v1["scan_9_3"].sizes["unit"]
    sizes = [size for stream, size in read if stream == "responses"]
    assert sizes == [n_units * 113] * 8
    assert {stream for stream, _ in read} == {"responses", "stim_times"}


# ------------------------------------------------------------------------------------ joins


def test_curves_join_functional_rows_by_their_keys(source, curves):
    functional = mx.Release(1718, source=source).functional()
    merged = mx.merge_table(functional, curves, ["rate_dir", "rate_error"], on="functional")
    rated = np.isfinite(merged.rate_dir.values).all(axis=1)
    recorded = [(4, 7), (8, 5), (9, 3)]
    pairs = list(zip(merged.session.values.tolist(), merged.scan_idx.values.tolist(), strict=True))
    assert rated.tolist() == [pair in recorded for pair in pairs]
    units = source.recorded_units
    keys = zip(units.session, units.scan_idx, units.unit_id, strict=True)
    planted = dict(zip(keys, units.curves, strict=True))
    for row in np.flatnonzero(rated):
        key = tuple(int(merged[k].values[row]) for k in ("session", "scan_idx", "unit_id"))
        np.testing.assert_allclose(merged.rate_dir.values[row], planted[key], atol=0.2)


def test_with_a_coregistration_the_curves_are_those_of_a_release(source, recordings):
    release = mx.Release(1718, source=source)
    functional = release.functional()
    curves = mx.recordings.tuning(recordings, coregistration=functional)
    key = {
        (s, i, u): n
        for s, i, u, n in zip(
            *(functional[k].values for k in ("session", "scan_idx", "unit_id", "nucleus_id")),
            strict=True,
        )
    }
    for k, n in zip(
        zip(*(curves[k].values for k in ("session", "scan_idx", "unit_id")), strict=True),
        curves.nucleus_id.values,
        strict=True,
    ):
        assert key.get(k, -1) == n
    assert curves.nucleus_id.dtype == np.int64
    assert curves.attrs["n_unmatched"] == (curves.nucleus_id.values < 0).sum() > 0
    units = release.units(rates=curves)
    assert (units.n_rated.values > 0).sum() == len(np.unique(curves.nucleus_id)) - 1 - len(
        set(curves.nucleus_id.values[curves.nucleus_id.values >= 0]) - set(units.nucleus_id.values)
    )
    collapsed = mx.tuning.collapse_scans(curves[["rate_dir"]], "mean")
    assert collapsed.rate_dir.dims == ("nucleus_id", "direction")
    with pytest.raises(
        mx.errors.SchemaError, match="not a functional Dataset: nucleus_id is absent"
    ):
        mx.recordings.tuning(recordings, coregistration=functional.drop_vars("nucleus_id"))


def test_responses_of_trials_go_into_their_statistics(recordings, curves):
    responses = mx.recordings.trial_responses(recordings, "9_3")
    assert responses.shape == (recordings["scan_9_3"].sizes["unit"], 8, 16)
    result = mx.tuning.trial_statistics(responses)
    rows = (curves.session.values == 9) & (curves.scan_idx.values == 3)
    for theirs, ours in (("rate", "rate_dir"), ("rate_error", "rate_error")):
        np.testing.assert_allclose(result[theirs], curves[ours].values[rows], atol=1e-12)


# ----------------------------------------------------------------------------------- errors


def test_stimuli_without_directions_and_scans_that_are_not_there(recordings):
    with pytest.raises(
        mx.errors.SchemaError, match=r"scan_4_7: trials of 'Trippy' have no directions"
    ):
        mx.recordings.tuning(recordings, "Trippy")
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"none of .* shows 'Monet', expected one of Clip, Monet2"
    ):
        mx.recordings.tuning(recordings, "Monet")
    with pytest.raises(mx.errors.UnknownLabelError, match="scan_9_9"):
        mx.recordings.tuning(recordings, scans=[(9, 9)])
    with pytest.raises(mx.errors.UnknownLabelError, match="expected one: pass scan="):
        mx.recordings.trial_responses(recordings)
    with pytest.raises(mx.errors.UnknownLabelError, match="no scan 'scan_9_9'"):
        mx.recordings.trial_responses(recordings, "9_9")
    with pytest.raises(mx.errors.SchemaError, match=r"expected what mx\.recordings\.open returns"):
        mx.recordings.tuning(xr.Dataset())
    with pytest.raises(mx.errors.SchemaError, match="no scan with responses"):
        mx.recordings.tuning(xr.DataTree())


def test_scans_of_other_directions_are_not_mixed(recordings):
    node = recordings["scan_9_3"].to_dataset()
    shifted = node.assign_coords(direction=node.direction + 5)
    tree = xr.DataTree.from_dict(
        {"/scan_8_5": recordings["scan_8_5"].to_dataset(), "/scan_9_3": shifted}
    )
    with pytest.raises(mx.errors.SchemaError, match=r"scan_8_5 shows the directions .* scan_9_3"):
        mx.recordings.tuning(tree)
    assert mx.recordings.tuning(tree, scans=["9_3"]).direction.values[0] == 5.0


@pytest.mark.parametrize(
    ("onsets", "times", "message"),
    [
        ([0.0, 9.0], TIMES, r"scan_4_7, trial 0: onsets go from 0 to 9 s, .* 0 to 2 s"),
        ([-1.0, 1.0], TIMES, r"trial 0: onsets go from -1"),
        ([0.0, 1.0], TIMES[::-1], r"trial 0: stim_times is .* expected ascending times"),
        ([0.0, 1.0], [*TIMES[:5], np.nan], r"trial 0: stim_times is .* expected ascending times"),
    ],
)
def test_times_that_do_not_fit_are_named(tmp_path, onsets, times, message):
    videos = {"a/b": {"directions": [90.0, 270.0], "onsets": onsets}}
    path = make_file(tmp_path / "a.h5", [("a/b", np.ones((2, 6)), times)], videos=videos)
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.recordings.tuning(mx.recordings.open(path))


def test_an_onset_within_a_frame_of_the_last_one_fits(tmp_path):
    videos = {"a/b": {"directions": [90.0, 270.0], "onsets": [0.0, 2.2]}}
    path = make_file(tmp_path / "a.h5", [("a/b", np.ones((2, 6)), TIMES)], videos=videos)
    responses = mx.recordings.trial_responses(mx.recordings.open(path))
    np.testing.assert_array_equal(responses, [[[1.0, np.nan]]] * 2)


def test_a_trial_without_frames_does_not_count(tmp_path):
    empty = ("c", np.zeros((3, 0)), [])
    trials = [BY_HAND[0], empty, BY_HAND[1], empty]
    recordings = mx.recordings.open(make_file(tmp_path / "a.h5", trials))
    node = recordings["scan_4_7"]
    np.testing.assert_array_equal(node.start_time, [100.0, np.nan, 150.0, np.nan])
    np.testing.assert_array_equal(node.start_time[2:], [150.0, np.nan])
    assert np.isnan(node.start_time[1].item())
    assert node.n_frames.values.tolist() == [6, 0, 6, 0]
    curves = mx.recordings.tuning(recordings)
    np.testing.assert_allclose(curves.rate_dir, [[3.5, 22.5], [0.0, 2.0], [5.0, 5.0]])
    assert (curves.n_trials == 2).all()
    assert mx.recordings.trial_responses(recordings)[:, [1, 3]].isnull().all()
    reopened = mx.recordings.open(mx.recordings.to_zarr(recordings, tmp_path / "a.zarr"))
    np.testing.assert_array_equal(reopened["scan_4_7"].start_time, node.start_time)
    xr.testing.assert_equal(mx.recordings.tuning(reopened), curves)


def test_a_duration_before_the_last_onset_is_named(tmp_path):
    videos = {**VIDEOS, "c": {**VIDEOS["c"], "duration": 0.5}}  # minutes, perhaps
    path = make_file(tmp_path / "a.h5", BY_HAND, videos=videos)
    with pytest.raises(mx.errors.SchemaError, match=r"'c' .*trial 1\) has a duration of 0\.5 s"):
        mx.recordings.open(path)


def test_recordings_of_another_datastack_are_not_matched(source, path):
    release = mx.Release(1718, source=source)
    coregistration = release.functional("manual")
    datastack = str(coregistration.datastack.item())
    with pytest.raises(
        mx.errors.ReleaseMismatchError,
        match=f"coregistration is of {datastack} v1718 but scan_9_3 is of another",
    ):
        mx.recordings.tuning(
            mx.recordings.open(path, ["9_3"], datastack="another"), coregistration=coregistration
        )
    curves = mx.recordings.tuning(
        mx.recordings.open(path, ["9_3"], datastack=datastack), coregistration=coregistration
    )
    # what happened to both is told
    lines = curves.attrs["history"]
    assert lines[0] == "recordings of 1 scans"
    assert set(coregistration.attrs["history"]) <= set(lines)
    assert lines[-1].startswith("recordings.tuning(")
