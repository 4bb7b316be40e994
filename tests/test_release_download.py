"""A release from the loopback service and from archived files, as a user downloads it."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cave_server import CaveServer
from command import run
from read_only import read_only

import microns_xr as mx
from microns_xr.files import locked
from microns_xr.sources.cache import CachedSource


@pytest.fixture(scope="module")
def demo_source():
    return mx.sources.DemoSource(1718, n_nuclei=600, seed=2)


@pytest.fixture(scope="module")
def tables(demo_source):
    names = [n for n in demo_source.available_tables() if n != "tuning_curves_fitted_v1"]
    return {name: demo_source.read(name) for name in names}


@pytest.fixture
def cave(tables):
    with CaveServer(
        tables, version=1718, row_limit=3000, token="secret0token", float_type="Float64"
    ) as server:
        yield server


def release_of(server, datadir, token="secret0token"):
    source = mx.sources.CaveSource(
        1718,
        server_address=server.url,
        auth_token=token,
        retry=mx.sources.Retry(sleep=lambda _: None),
    )
    return mx.Release(1718, datadir=datadir, source=source)


def direct(demo_source):
    """The same tables read straight from the synthetic release, under the real datastack."""
    return mx.Release(1718, source=demo_source)


def same(a, b):
    drop = ["datastack"]
    return a.drop_vars(drop).drop_attrs().equals(b.drop_vars(drop).drop_attrs())


def test_download_then_units_and_connectivity(cave, tmp_path, demo_source):
    release = release_of(cave, tmp_path)
    records = release.download()
    assert set(records) == {release.spec.tables[r] for r in (
        "nucleus", "celltype", "celltype_corrections", "brain_area", "proofreading", "coregistration",
        "functional_properties")}  # fmt: skip
    # A notebook shows it in short, and the release without asking the service.
    n_rows = sum(record["rows"] for record in records.values())
    assert repr(records).startswith(f"<7 tables with {n_rows:,} rows: ")
    assert "nucleus_detection_v0" in records._repr_html_()
    assert "sha256" not in records._repr_html_()
    asked = len(cave.requests)
    assert "<td>not read yet</td><td>one row per nucleus" in release._repr_html_()
    assert "rows" not in repr(release)
    assert len(cave.requests) == asked
    expected = direct(demo_source)
    units = release.units(functional="best_only")
    assert same(units, expected.units(functional="best_only"))
    n_nuclei = records["nucleus_detection_v0"]["rows"]
    read = f"<td>nucleus_detection_v0</td><td>{n_nuclei:,} rows</td><td>one row per nucleus"
    assert read in release._repr_html_()
    line = next(line for line in repr(release).splitlines() if "nucleus_detection_v0" in line)
    assert line.split()[1:5] == [f"{n_nuclei:,}", "rows", "one", "row"]
    assert units.attrs["timestamp"] == records["nucleus_detection_v0"]["timestamp"]
    # synapses onto a hundred units, the request a selection
    some = units.isel(nucleus_id=slice(0, 300, 3))
    synapses = release.download_synapses(post=some, positions=True, progress=False)
    assert synapses.is_complete
    connectivity = release.connectivity(synapses.key)
    assert connectivity.scope.item() == "requested"
    np.testing.assert_array_equal(connectivity.post_nucleus_id, some.nucleus_id)
    np.testing.assert_array_equal(connectivity.pre_nucleus_id, units.nucleus_id)
    whole = expected.connectivity()
    part = mx.select_connections(whole, post=some.nucleus_id.values)
    assert mx.to_table(connectivity).equals(mx.to_table(part))
    single = release.synapses()
    assert int(single["size"].sum()) == int(mx.to_table(part)["size"].sum())
    mine = mx.build_synapses(expected.table("synapses"), part)
    for name in mine.variables:
        if name not in ("datastack", "scope"):
            np.testing.assert_array_equal(single[name], mine[name], err_msg=name)
    # a second release reads what is there, without a question
    asked = len(cave.requests)
    again = release_of(cave, tmp_path)
    again.download()
    assert same(again.units(functional="best_only"), units)
    assert mx.to_table(again.connectivity()).equals(mx.to_table(part))
    assert len(cave.requests) == asked


def test_several_requests_must_be_named(cave, tmp_path):
    release = release_of(cave, tmp_path)
    ids = release.units().nucleus_id.values
    one = release.download_synapses(post=ids[:20], progress=False)
    two = release.download_synapses(pre=ids[:20], post=ids, progress=False)
    assert one.key != two.key
    with pytest.raises(mx.errors.SourceError, match="holds 2 sets of synapses"):
        release.connectivity()
    assert release.connectivity(one.key).sizes["post_nucleus_id"] == 20
    assert release.connectivity(two.key).sizes["pre_nucleus_id"] == 20
    with pytest.raises(mx.errors.SchemaError, match="ctr_pt_position"):
        release.synapses(one.key)


def test_the_folder_of_a_download_is_read_without_the_service(cave, tmp_path):
    release = release_of(cave, tmp_path)
    units = release.units()
    key = release.download_synapses(post=units.nucleus_id.values[:50], progress=False).key
    connectivity = release.connectivity()
    offline = mx.Release(1718, source=tmp_path / "minnie65_public" / "v1718")
    assert isinstance(offline.source, CachedSource)
    assert offline.units().equals(units)
    assert mx.to_table(offline.connectivity(key)).equals(mx.to_table(connectivity))
    assert offline.connectivity().scope.item() == "requested"
    some = connectivity.post_nucleus_id.values[:3]
    chosen = offline.connectivity(post=some)
    assert (chosen.scope.item(), chosen.sizes["post_nucleus_id"]) == ("requested", 3)
    # Of neurons that were not part of the request nothing is known.
    others = np.setdiff1d(offline.units().nucleus_id, connectivity.post_nucleus_id)
    with pytest.raises(mx.errors.UnknownLabelError, match=r"1 of 4 .*ids of post .*of the request"):
        offline.connectivity(post=[*some, others[0]])
    with pytest.raises(mx.errors.SourceError, match="without a service"):
        offline.download(refresh=True)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="v1718"):
        mx.Release(1300, source=tmp_path / "minnie65_public" / "v1718")


def test_ids_of_another_release_are_refused(cave, tmp_path):
    release = release_of(cave, tmp_path)
    old = mx.Release(1507, source=mx.sources.DemoSource(1507, n_nuclei=600, seed=2)).units()
    changed = old.pt_root_id.values[~np.isin(old.pt_root_id, release.units().pt_root_id)]
    assert len(changed) > 0
    with pytest.raises(mx.errors.ReleaseMismatchError, match="allow_unknown"):
        release.download_synapses(post=changed, progress=False)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        release.download_synapses(post=old, progress=False)
    found = release.download_synapses(post=changed, allow_unknown=True, progress=False)
    assert found.is_complete


def test_lasting_errors_say_what_to_do(cave, tmp_path, tables):
    with pytest.raises(mx.errors.SourceError, match="token") as error:
        release_of(cave, tmp_path, token="wrong").download()
    assert "wrong" not in str(error.value)
    with (
        CaveServer(tables, version=1718, expired=(1718,)) as server,
        pytest.raises(mx.errors.SourceError, match=r"source=.archive."),
    ):
        release_of(server, tmp_path / "b", token=None).download()
    assert not list((tmp_path / "b").rglob("*.parquet"))


def test_an_archived_release(tables, tmp_path, demo_source):
    with CaveServer(tables, version=1718, archived={1718: tables}) as server:
        source = mx.sources.ArchiveSource(
            1718, url=server.archive_url, folder=tmp_path / "files", progress=False
        )
        release = mx.Release(1718, datadir=tmp_path, source=source)
        release.download()
        expected = direct(demo_source)
        units = release.units(functional="best_only")
        assert same(units, expected.units(functional="best_only"))
        some = units.nucleus_id.values[:40]
        release.download_synapses(post=some, progress=False)
        part = mx.select_connections(expected.connectivity(), post=some)
        assert mx.to_table(release.connectivity()).equals(mx.to_table(part))


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Make a server the service and the archive of minnie65_public, without naming it."""
    import json

    def point(url, archive=None):
        secrets = tmp_path / "home" / ".cloudvolume" / "secrets"
        secrets.mkdir(parents=True, exist_ok=True)
        (secrets / "cave-secret.json").write_text(json.dumps({"token": "secret0token"}))
        (secrets / "cave_datastack_to_server_map.json").write_text(
            json.dumps({"minnie65_public": url})
        )
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        known = {"archive": archive or f"{url}/nothing", "server": None}
        for module in ("cache", "archive", "cave"):
            monkeypatch.setattr(
                f"microns_xr.sources.{module}.datastack_entry", lambda name, key: known[key]
            )

    return point


@pytest.mark.parametrize(("version", "expired", "archived", "remote"), [
    (1507, (661,), {}, mx.sources.CaveSource),  # once written down as archived
    (1718, (661,), {}, mx.sources.CaveSource),
    (1412, (1412,), {1412}, mx.sources.ArchiveSource),
    (1718, (1718,), {1718}, mx.sources.ArchiveSource),
    (943, (), {943}, mx.sources.ArchiveSource),  # of which the service knows nothing
])  # fmt: skip
def test_the_service_says_which_versions_it_has(
    tmp_path, tables, at, caplog, version, expired, archived, remote
):
    caplog.set_level("INFO", logger="microns_xr.sources.cache")
    served = 1822 if remote is mx.sources.ArchiveSource else version
    old = {v: tables if v in archived else {} for v in {*expired, *archived}}
    with CaveServer(
        tables, version=served, expired=expired, archived=old, token="secret0token"
    ) as server:
        at(server.url, server.archive_url)
        release = mx.Release(version, datadir=tmp_path / "data")
        assert not server.requests  # nothing is asked before a table is needed
        assert "auto" in repr(release.source)
        assert len(release.table("nucleus")) == 600
        assert isinstance(release.source.remote, remote)
        # The choice is made once, and not at all for what is here.
        asked = [r.path for r in server.requests if r.path.endswith("/versions")]
        assert len(asked) == 1
        again = mx.Release(version, datadir=tmp_path / "data")
        n = len(server.requests)
        assert len(again.table("nucleus")) == 600
        assert len(server.requests) == n
    words = "is served" if remote is mx.sources.CaveSource else "is not served"
    assert f"v{version} {words}: tables come from" in caplog.text


def test_a_version_that_is_nowhere_any_more_says_so(tmp_path, tables, at):
    with CaveServer(
        tables, version=1822, expired=(1718,), archived={1718: {}}, token="secret0token"
    ) as server:
        at(server.url, server.archive_url)
        release = mx.Release(1718, datadir=tmp_path / "data")
        for ask in (release.units, release.download, release.available_tables):
            with pytest.raises(
                mx.errors.SourceError,
                match=r"v1718 is not served \(any more\), and no tables of it are archived: .* 1822",
            ):
                ask()
    assert not (tmp_path / "data").exists()


def test_without_a_token_the_archive_is_looked_at(tmp_path, tables, at, caplog):
    with CaveServer(
        tables, version=1822, expired=(661, 1718), archived={661: tables, 1718: {}}, token="another"
    ) as server:
        at(server.url, server.archive_url)
        assert len(mx.Release(661, datadir=tmp_path / "data").table("nucleus")) == 600
        assert "v661 is not served, as far as is known" in caplog.text
        with pytest.raises(mx.errors.SourceError, match="HTTP 401"):
            mx.Release(1718, datadir=tmp_path / "data").table("nucleus")


def test_without_a_network_it_says_so_at_once(tmp_path, tables, at, caplog):
    import time

    with CaveServer(tables, version=1718, token="secret0token") as server:
        at(server.url)
        mx.Release(1718, datadir=tmp_path / "data").download(progress=False)
        url = server.url
    at(url)  # where nothing listens any more
    start = time.perf_counter()
    with pytest.raises(
        mx.errors.SourceError,
        match=r"cannot be asked whether it has minnie65_public v1507 .*refused\W+check the connection",
    ):
        mx.Release(1507, datadir=tmp_path / "data").units()
    # What is here is read all the same.
    assert mx.Release(1718, datadir=tmp_path / "data").units().sizes["nucleus_id"] > 500
    assert time.perf_counter() - start < 10


def test_a_release_that_chooses_its_source_can_be_pickled(tmp_path):
    import pickle

    release = pickle.loads(pickle.dumps(mx.Release(1718, datadir=tmp_path)))
    assert (
        repr(release.source)
        == f"CachedSource(auto, {str(tmp_path / 'minnie65_public' / 'v1718')!r})"
    )


def test_local_sources_do_not_download(demo_source):
    with pytest.raises(mx.errors.SourceError, match="source='cave'"):
        direct(demo_source).download()
    with pytest.raises(mx.errors.SourceError, match="source='cave'"):
        direct(demo_source).download_synapses(pre=[1])


def test_through_cave_and_through_a_folder_are_identical(cave, tmp_path, demo_source):
    folder = demo_source.write(tmp_path / "folder", format="csv")
    by_folder = mx.Release(1718, source=mx.sources.DirectorySource(folder))
    by_cave = release_of(cave, tmp_path)
    for mode in ("none", "match", "best_only"):
        assert same(by_cave.units(functional=mode), by_folder.units(functional=mode))
    units = by_cave.units()
    by_cave.download_synapses(pre=units, post=units, progress=False)
    mine, theirs = by_cave.connectivity(), by_folder.connectivity()
    assert (mine.scope.item(), theirs.scope.item()) == ("requested", "unknown")
    assert mx.to_table(mine).equals(mx.to_table(theirs))
    # A download knows which neurons were asked for, a folder only those that its table names.
    table = mx.to_table(mine)
    for side in ("pre", "post"):
        np.testing.assert_array_equal(mine[f"{side}_nucleus_id"], units.nucleus_id)
        named = np.unique(table[f"{side}_nucleus_id"])
        np.testing.assert_array_equal(theirs[f"{side}_nucleus_id"], named)
    # and the downloaded files themselves, as nothing but files
    plain = mx.Release(
        1718, source=mx.sources.DirectorySource(tmp_path / "minnie65_public" / "v1718")
    )
    assert same(plain.units(), units)
    assert mx.to_table(plain.connectivity()).equals(mx.to_table(theirs))


def test_units_or_synapses_of_another_release_are_refused(cave, tmp_path, demo_source):
    release = release_of(cave, tmp_path)
    found = release.download_synapses(post=release.units().nucleus_id.values[:50], progress=False)
    old = mx.Release(1507, source=mx.sources.DemoSource(1507, n_nuclei=600, seed=2)).units()
    for units in (old, mx.select_units(old, layer="L4")):
        with pytest.raises(mx.errors.ReleaseMismatchError, match="v1507, expected"):
            release.connectivity(found, units=units)
        with pytest.raises(mx.errors.ReleaseMismatchError, match="v1507, expected"):
            direct(demo_source).connectivity(units=units)
    other = tmp_path / "minnie65_public" / "v1507"
    shutil.copytree(
        tmp_path / "minnie65_public" / "v1718" / "raw" / "synapses", other / "raw" / "synapses"
    )
    source = CachedSource(None, other, "minnie65_public", 1507)
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match="holds synapses of minnie65_public v1718"
    ):
        source.synapse_set()


def test_after_a_download_the_service_is_not_needed(cave, tmp_path, caplog):
    release_of(cave, tmp_path).download()
    cave.faults.add("status", match=r".", times=10_000, status=503)
    again = release_of(cave, tmp_path)
    again.download()
    assert again.units(functional="best_only").sizes["nucleus_id"] > 0
    again.write(tmp_path / "v.zarr")  # no synapses here, so none in the store
    assert "connectivity" not in mx.open_store(tmp_path / "v.zarr").children
    with pytest.raises(mx.errors.SourceError, match="download_synapses"):
        again.table("synapses")


def test_all_leaves_the_synapses_out_and_says_so(cave, tmp_path, caplog):
    release = release_of(cave, tmp_path)
    records = release.download("all", progress=False)
    assert "synapses_pni_2" not in records
    assert any(
        "synapses_pni_2 is left out" in r.getMessage()
        for r in caplog.records
        if r.levelname == "WARNING"
    )
    assert set(records) == set(release.available_tables()) - {"synapses_pni_2"}


def test_listings_of_two_sources_do_not_mix(cave, tables, tmp_path):
    with CaveServer(tables, version=1718, archived={1718: tables}) as server:
        source = mx.sources.ArchiveSource(
            1718, url=server.archive_url, folder=tmp_path / "files", progress=False
        )
        mx.Release(1718, datadir=tmp_path, source=source).download()
    records = release_of(cave, tmp_path).download("all", progress=False)
    assert "cell_type_multifeature_combo" in records


def test_one_download_at_a_time(cave, tmp_path):
    release = release_of(cave, tmp_path)
    with (
        locked(release.source.table_folder, "tables"),
        pytest.raises(mx.errors.SourceError, match="another download of tables"),
    ):
        release.download()
    assert set(release.download(progress=False))
    (tmp_path / "file").write_text("")
    with pytest.raises(mx.errors.SourceError, match=r"cannot be written .*check the folder"):
        release_of(cave, tmp_path / "file").download()


def test_threads_share_a_cold_release(cave, tmp_path):
    release = release_of(cave, tmp_path)
    with ThreadPoolExecutor(6) as pool:
        units = list(pool.map(lambda _: release.units(), range(6)))
    assert all(one.identical(units[0]) for one in units)
    fetched = Counter(request.path for request in cave.queries)
    assert set(fetched.values()) == {1}
    other = [release_of(cave, tmp_path / "other") for _ in range(4)]  # nor need they share it
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda one: one.download(progress=False), other))
    assert all(one.keys() == records[0].keys() for one in records)
    assert set(Counter(request.path for request in cave.queries).values()) == {1, 2}


def test_a_complete_folder_may_be_read_only(cave, tmp_path):
    release = release_of(cave, tmp_path)
    records, units = release.download("all", progress=False), release.units()
    asked = {"post": units.nucleus_id[:5], "progress": False}
    synapses = release.download_synapses(**asked)
    n_requests = len(cave.requests)
    again = release_of(cave, tmp_path)
    with read_only(tmp_path):
        assert again.download(progress=False).items() <= json.loads(json.dumps(records)).items()
        assert again.units().identical(units)
        assert again.download_synapses(**asked).key == synapses.key
        assert again.connectivity(units=units).sizes["post_nucleus_id"] == 5
        assert len(cave.requests) == n_requests
        with pytest.raises(mx.errors.SourceError, match=r"cannot be written .*choose a"):
            again.download_synapses(post=units.nucleus_id[:6], progress=False)
        with pytest.raises(mx.errors.SourceError, match=r"cannot be written .*choose a"):
            again.download(refresh=True, progress=False)


def test_neurons_asked_for_that_are_no_units_are_counted(cave, tmp_path):
    release = release_of(cave, tmp_path)
    units, nuclei = release.units(), release.table("nucleus")
    untyped = nuclei[(nuclei.pt_root_id > 0) & ~nuclei.id.isin(units.nucleus_id.values)].id.values[
        :20
    ]
    asked = np.concatenate([untyped, units.nucleus_id.values[:5]])
    found = release.download_synapses(post=asked, progress=False)
    connectivity = release.connectivity(found)
    assert connectivity.sizes["post_nucleus_id"] == 5
    assert mx.releases.read_counts(connectivity, "asked_for_but_no_unit")["post"] > 0


def test_command_download_then_build(cave, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret0token\n")

    download = ["download", "--version", 1718, "--server", cave.url, "--token-file", token]
    first = run(*download, "--post", "layer=L4", "--pre", "all", "--positions", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "nucleus_detection_v0: 600 rows" in first.stdout
    assert "in request" in first.stdout
    asked = len(cave.requests)
    second = run(*download, "--post", "layer=L4", "--pre", "all", "--positions", cwd=tmp_path)
    assert second.stdout == first.stdout
    assert len(cave.requests) == asked
    folder = tmp_path / "data" / "minnie65_public" / "v1718"
    built = run("build", folder, "--version", 1718, "--out", "s.zarr", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    tree = mx.open_store(tmp_path / "s.zarr")
    assert tree["connectivity"].to_dataset().scope.item() == "requested"
    assert "secret0token" not in first.stdout + first.stderr + built.stdout
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert b"secret0token" not in path.read_bytes()
    bad = run(*download, "--post", "layers=L4", cwd=tmp_path)
    assert bad.returncode == 1
    assert "--post has the condition 'layers'" in bad.stderr


def test_command_contradictory_options_are_refused_before_anything_is_fetched(cave, tmp_path):
    for options, message in (
        (["--server", cave.url, "--source", "archive"], "give those of one source"),
        (["--server", cave.url, "--post", "typo.txt"], "expected a file of ids"),
        (["--token-file", "nowhere"], "there is no file nowhere"),
    ):
        result = run("download", "--version", 1718, *options, cwd=tmp_path)
        assert result.returncode == 1
        assert message in result.stderr
    assert run("download", "--version", 1718, "--source", "elsewhere", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []
    assert not cave.requests


def test_bars_are_shown_on_a_terminal_and_not_in_a_log(cave, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, screen in (("log", io.StringIO()), ("terminal", Terminal())):
        monkeypatch.setattr("sys.stderr", screen)
        release_of(cave, tmp_path / name).table("nucleus")  # fetched at its first use
        assert ("1/1" in screen.getvalue()) == (name == "terminal")
