"""Recordings and fits of a release: downloaded, and tuning curves found, drawn or computed."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from file_server import FileServer

import microns_xr as mx
from microns_xr.recordings.files import recording_files
from microns_xr.sources.fetch import file_name
from microns_xr.sources.tables import write_table_file
from microns_xr.tuning.fits import rates_of_fits

TABLE = "tuning_curves_fitted_v1"
DIRECTIONS = np.arange(16) * 22.5


@pytest.fixture(scope="module")
def source():
    return mx.sources.DemoSource(1718, n_nuclei=1500, seed=5)


@pytest.fixture(scope="module")
def recorded(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rec")
    return mx.recordings.write_demo(folder / "demo.h5", source, scans=["9_3", "4_7"], n_clip=1)


@pytest.fixture
def folder(source, tmp_path):
    """A release folder without tuning curves."""
    path = source.write(tmp_path / "release", format="parquet")
    (path / "functional" / f"{TABLE}.parquet").unlink()
    return path


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


def patient():
    return mx.sources.Retry(attempts=6, sleep=lambda _: None)


def fits_of(source, names=None):
    """Noiseless fits of the units of a scan, with parameters that are known."""
    units = source.recorded_units
    rows = np.flatnonzero((units.session == 9) & (units.scan_idx == 3))
    rng = np.random.default_rng(0)
    n = len(rows)
    table = pd.DataFrame(
        {
            "session": units.session[rows],
            "scan_idx": units.scan_idx[rows],
            "unit_id": units.unit_id[rows],
            "model": np.where(np.arange(n) % 2, "von_mises", "single_von_mises"),
            "amplitude": rng.uniform(1, 2, n),
            "kappa": rng.uniform(0.5, 3, n),
            "baseline": rng.uniform(0, 1, n),
            "pref_ori": np.where(np.arange(n) % 2, rng.uniform(0, 180, n), np.nan),
            "pref_dir": np.where(np.arange(n) % 2, np.nan, rng.uniform(0, 360, n)),
            "r2": 0.9,
        }
    )
    return table.rename(columns=names or {})


def curve(row):
    """The formula of a fit, written out."""
    x = np.deg2rad(DIRECTIONS)
    if row["model"] == "von_mises":
        height = np.cos(2 * (x - np.deg2rad(row["pref_ori"])))
    else:
        height = np.cos(x - np.deg2rad(row["pref_dir"]))
    return row["amplitude"] * np.exp(row["kappa"] * (height - 1)) + row["baseline"]


# ------------------------------------------------------------------ found, drawn or computed


def test_curves_are_read_then_drawn_then_computed(source, folder, recorded, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="microns_xr")
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    with pytest.raises(
        mx.errors.SourceError, match=rf"expected a table {TABLE}, a table of fits, or recordings"
    ):
        release.tuning_curves()

    (tmp_path / "data" / "recordings").mkdir(parents=True)
    target = tmp_path / "data" / "recordings" / "microns.h5"
    target.write_bytes(recorded.read_bytes())
    computed = release.tuning_curves()
    assert computed.attrs["tuning_from"] == "trials"
    assert "computed from the trials of microns.h5" in "\n".join(computed.attrs["history"])
    assert "computed from the trials of microns.h5" in caplog.text
    direct = mx.recordings.tuning(mx.recordings.open(recorded), coregistration=release.functional())
    np.testing.assert_array_equal(computed.rate_dir, direct.rate_dir)
    assert set(zip(computed.session.values, computed.scan_idx.values, strict=True)) == {
        (4, 7),
        (9, 3),
    }
    assert int(computed.materialization_version) == 1718
    # For units it is converted, not taken for the convention of the recordings.
    assert computed.direction.attrs["angle_convention"] == "up_clockwise"
    converted = mx.angles.convert(computed, "right_counterclockwise", "degree")
    expected = release.units(rates=converted).rate_dir
    for rates in (True, recorded):
        found = release.units(rates=rates, angle_convention="right_counterclockwise")
        xr.testing.assert_equal(found.rate_dir, expected)

    fits = fits_of(source)
    write_table_file(fits, folder / "functional" / "orientation_fits_v1.parquet")
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    with pytest.raises(mx.errors.SchemaError, match="call states the convention"):
        release.tuning_curves()
    drawn = release.tuning_curves(angle_convention="up_clockwise")
    assert drawn.attrs["tuning_from"] == "fits"
    assert "drawn from the fits orientation_fits_v1" in caplog.text
    rated = release.units(rates=True, angle_convention="up_clockwise")
    xr.testing.assert_equal(rated.rate_dir, release.units(rates=drawn).rate_dir)
    by_unit = {row["unit_id"]: row for row in fits.to_dict("records")}
    for unit, rates in zip(drawn.unit_id.values, drawn.rate_dir.values, strict=True):
        np.testing.assert_allclose(rates, curve(by_unit[unit]), rtol=1e-12)

    write_table_file(source.read(TABLE), folder / "functional" / f"{TABLE}.parquet")
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    result = release.tuning_curves()
    assert result.attrs["tuning_from"] == "table"
    assert f"found in the table {TABLE}" in caplog.text
    assert "tuning_from" in mx.Release(1718, source=source).tuning_curves().attrs


def test_computed_curves_agree_with_the_table(source, recorded):
    release = mx.Release(1718, source=source)
    table, computed = release.tuning_curves(), release.tuning_curves(recorded)
    both = table[["rate_dir"]].rename(rate_dir="of_table")
    joined = mx.merge_table(both, _one_row_a_unit(computed), ["rate_dir"], on="functional")
    rated = np.isfinite(joined.rate_dir.values).all(axis=1)
    assert rated.sum() > 15
    off = joined.rate_dir.values[rated] - joined.of_table.values[rated]
    assert np.abs(off).max() < 0.25  # 6 trials of 7 frames with a noise of 0.3
    assert abs(off.std() - 0.3 / np.sqrt(42)) < 0.004
    units = release.units(rates=recorded)
    assert units.attrs["tuning_table"].startswith("trials of Monet2")
    assert (units.n_rated.values > 0).any()


def _one_row_a_unit(curves):
    keys = pd.DataFrame({k: curves[k].values for k in ("session", "scan_idx", "unit_id")})
    return curves.isel(scan_unit=np.flatnonzero(~keys.duplicated().to_numpy()))


def test_several_files_are_named(folder, recorded, tmp_path):
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    for name in ("a.h5", "b.hdf5"):
        (folder / "functional" / name).write_bytes(recorded.read_bytes())
    with pytest.raises(
        mx.errors.SourceError, match=r"several files of recordings .*a\.h5.*b\.hdf5.*path="
    ):
        release.tuning_curves()
    assert release.tuning_curves(folder / "functional" / "a.h5").attrs["tuning_from"] == "trials"


def test_fits_of_con_con_models(source):
    ours = fits_of(source)
    theirs = pd.DataFrame(
        {
            "session": ours["session"],
            "scan_idx": ours["scan_idx"],
            "cell_id": ours["unit_id"],
            "tuning_type": np.where(ours["model"] == "von_mises", "double", "single"),
            "A": ours["amplitude"],
            "k": ours["kappa"],
            "phi": np.deg2rad(ours["pref_ori"].fillna(ours["pref_dir"])),
            "mean_r_sqrd": 0.5,
        }
    )
    worse = theirs.assign(A=100.0, mean_r_sqrd=0.1)
    not_rated = theirs.assign(A=1000.0, mean_r_sqrd=np.nan)
    result = rates_of_fits(pd.concat([worse, not_rated, theirs], ignore_index=True))
    assert len(result) == len(ours)
    rates = dict(zip(result["unit_id"], result["rate_dir"], strict=True))
    folded = dict(zip(result["unit_id"], result["rate_ori"], strict=True))
    for row in ours.assign(baseline=0.0).to_dict("records"):
        expected = curve(row)
        np.testing.assert_allclose(rates[row["unit_id"]], expected, rtol=1e-9)
        np.testing.assert_allclose(folded[row["unit_id"]], (expected[:8] + expected[8:]) / 2)
    with pytest.raises(mx.errors.SchemaError, match=r"models \['triple'\]"):
        rates_of_fits(theirs.assign(tuning_type="triple"))
    with pytest.raises(mx.errors.SchemaError, match="kappa"):
        rates_of_fits(theirs.drop(columns="k"))
    with pytest.raises(mx.errors.SchemaError, match="fits has no rows"):
        rates_of_fits(theirs[:0])


def test_real_fits_are_curves_of_the_real_units(real_data):
    fits = pd.read_parquet(real_data / "minnie65_real" / "orientation_fits_v661.parquet")
    result = rates_of_fits(fits)
    assert len(result) == 6034
    release = mx.Release(661, source=real_data / "minnie65_v661")
    found_curves = release.tuning_curves()
    drawn = release.tuning_curves(
        real_data / "minnie65_real" / "orientation_fits_v661.parquet",
        angle_convention="up_clockwise",
    )
    assert drawn.attrs["tuning_from"] == "fits"
    np.testing.assert_array_equal(drawn.unit_id.values, found_curves.unit_id.values)
    a, b = drawn.rate_dir.values, found_curves.rate_dir.values
    assert np.isfinite(a).all()
    # Fits without a baseline: the curves go along with the rates, on the whole.
    assert np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]) > 0.4
    # the other columns of the best fit of each unit come along
    best = fits.sort_values("mean_r_sqrd").groupby(["session", "scan_idx", "cell_id"]).last()
    keys = zip(drawn.session.values, drawn.scan_idx.values, drawn.unit_id.values, strict=True)
    np.testing.assert_array_equal(drawn.pvalue, best.loc[list(keys), "pvalue"])
    assert {"amplitude", "kappa", "r2", "r_squared_diff", "model"} <= set(drawn.variables)
    assert "root_id" not in drawn.variables


def test_further_columns_of_fits_and_of_rates_survive(source, folder, tmp_path):
    fits = fits_of(source)
    rng = np.random.default_rng(1)
    n = len(fits)
    errors, folded, pair = (list(rng.random((n, k))) for k in (16, 8, 2))
    fits["rate_error"], fits["rate_ori_error"], fits["interval"] = errors, folded, pair
    fits["note"], fits["ragged"] = "a", [np.zeros(1 + i % 2) for i in range(n)]
    fits["text_error"] = [str(e).replace("\n", "") for e in errors]
    path = tmp_path / "orientation_fits_v1.parquet"
    fits.to_parquet(path)
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    curves = release.tuning_curves(path, angle_convention="up_clockwise")
    rows = pd.Index(fits["unit_id"]).get_indexer(curves.unit_id.values)
    assert curves.rate_error.dims == ("scan_unit", "direction")
    assert curves.rate_ori_error.dims == ("scan_unit", "orientation")
    assert curves.interval.dims == ("scan_unit", "interval_number")
    for name, values in (("rate_error", errors), ("rate_ori_error", folded), ("interval", pair)):
        np.testing.assert_array_equal(curves[name], np.stack(values)[rows])
    np.testing.assert_allclose(curves.text_error, curves.rate_error, atol=1e-7)
    np.testing.assert_array_equal(curves.r2, fits["r2"].to_numpy()[rows])
    assert curves.pref_dir.attrs["angle_convention"] == "up_clockwise"
    np.testing.assert_array_equal(curves.pref_dir, fits["pref_dir"].to_numpy()[rows])
    assert curves.note.values.tolist() == ["a"] * curves.sizes["scan_unit"]
    assert curves.attrs["columns_left_out"] == ["ragged"]
    # means over scans are of the rates alone
    mean = mx.tuning.collapse_scans(curves)
    assert set(mean.data_vars) >= {"rate_dir", "rate_ori", "n_rated"}
    assert {"pref_dir", "rate_error", "r2"} <= set(mean.attrs["left_out"])
    rated = release.units(rates=path, angle_convention="right_counterclockwise")
    assert rated.rate_dir.notnull().any()

    table = source.read(TABLE)
    table["rate_error"] = table["rate_dir"]
    table["pref_ori"], table["number"] = 0.5, np.arange(len(table))
    table.to_parquet(tmp_path / f"{TABLE}.parquet")
    curves = release.tuning_curves(tmp_path / f"{TABLE}.parquet")
    np.testing.assert_array_equal(curves.rate_error, curves.rate_dir)
    assert curves.number.dtype == np.int64
    assert curves.pref_ori.attrs["units"] == "degree"  # of the registry
    table.to_parquet(tmp_path / "mine.parquet")
    curves = release.tuning_curves(tmp_path / "mine.parquet", angle_convention="up_clockwise")
    assert curves.attrs["columns_left_out"] == ["pref_ori"]  # in units that nobody states


# ---------------------------------------------------------------------------------- download


def test_recordings_are_downloaded_in_pieces_and_checked(server, recorded, tmp_path):
    body = recorded.read_bytes()
    sha256 = hashlib.sha256(body).hexdigest()
    url = server.put("/main/microns.h5", body, cuts=[len(body) // 3, len(body) // 3, None])
    release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=600), datadir=tmp_path)
    path = release.download_recordings(
        f"{url}?download=true", sha256=sha256, retry=patient(), progress=False
    )
    assert path == tmp_path / "recordings" / "microns.h5"
    assert path.read_bytes() == body
    assert [seen.range is not None for seen in server.gets] == [False, True, True]
    assert sum(seen.sent for seen in server.gets) < 1.5 * len(body)  # the client reads ahead
    assert list(mx.recordings.open(path)) == ["scan_4_7", "scan_9_3"]
    assert recording_files(tmp_path, release.datastack) == [path]
    n = len(server.log)
    repeated = release.download_recordings(f"{url}?download=true", sha256=sha256, progress=False)
    assert repeated == path
    assert len(server.log) == n  # nothing is asked for


def test_a_download_that_ends_is_continued_by_the_next(server, recorded, tmp_path):
    body = recorded.read_bytes()
    url = server.put("/microns.h5", body, cuts=[len(body) // 2, 0, 0, 0])
    once = mx.sources.Retry(attempts=2, sleep=lambda _: None)
    with pytest.raises(mx.errors.IncompleteDownloadError):
        mx.recordings.download(tmp_path, url, retry=once, progress=False)
    assert not (tmp_path / "microns.h5").exists()
    part_size = (tmp_path / "microns.h5.part").stat().st_size
    assert part_size > len(body) // 8
    server.files["/microns.h5"].cuts.clear()
    path = mx.recordings.download(tmp_path, url, retry=patient(), progress=False)
    assert path.read_bytes() == body
    ranges = [seen.range for seen in server.gets if seen.path == "/microns.h5"]
    assert ranges[-1] == f"bytes={part_size}-"


def test_wrong_checksums_and_other_files_are_refused(server, recorded, tmp_path):
    url = server.put("/microns.h5", recorded.read_bytes())
    with pytest.raises(mx.errors.SourceError, match="sha256"):
        mx.recordings.download(tmp_path, url, sha256="0" * 64, retry=patient(), progress=False)
    assert not (tmp_path / "microns.h5").exists()
    pointer = server.put("/pointer.h5", b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(mx.errors.SourceError, match="is not an HDF5 file"):
        mx.recordings.download(tmp_path, pointer, retry=patient(), progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(mx.errors.SourceError, match="no such file"):
        mx.recordings.download(tmp_path, f"{server.url}/gone.h5", retry=patient(), progress=False)


def test_fits_are_downloaded_into_the_release(server, source, folder, tmp_path):
    write_table_file(source.read(TABLE), tmp_path / f"{TABLE}.csv")
    body = (tmp_path / f"{TABLE}.csv").read_bytes()
    url = server.put(f"/fits/{TABLE}.csv", body)
    release = mx.Release(1718, source=folder, datadir=tmp_path / "data")
    path = release.download_fits(url, sha256=hashlib.sha256(body).hexdigest(), progress=False)
    assert path == folder / "functional" / f"{TABLE}.csv"
    result = mx.Release(1718, source=folder).tuning_curves()
    assert result.attrs["tuning_from"] == "table"
    with pytest.raises(mx.errors.SourceError, match=r"no folder .* tuning_curves\(path\)"):
        mx.Release(1718, source=source).download_fits(url)
    server.put(f"/fits/{TABLE}.csv", b"id\n")
    repeated = mx.Release(1718, source=folder).download_fits(url, progress=False, refresh=True)
    assert repeated.read_bytes() == b"id\n"


@pytest.mark.parametrize("url", ["https://host/", "https://host/a/", "", "."])
def test_an_address_without_a_name(url):
    with pytest.raises(mx.errors.SourceError, match="does not end with a file name"):
        file_name(url)


def test_angles_of_fits_in_other_units_are_refused(source):
    ours = fits_of(source)
    doubles = ours[ours["model"] == "von_mises"]
    assert len(rates_of_fits(doubles)) == len(doubles)
    with pytest.raises(
        mx.errors.SchemaError, match=r"fits\.pref_ori has units 'degree' .* look like radians"
    ):
        rates_of_fits(doubles.assign(pref_ori=np.deg2rad(doubles["pref_ori"])))
    phi = doubles.drop(columns="pref_ori").assign(phi=doubles["pref_ori"])
    with pytest.raises(
        mx.errors.SchemaError, match=r"fits\.phi has units 'radian' .* look like degrees"
    ):
        rates_of_fits(phi)
