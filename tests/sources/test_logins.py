"""A login in storage_options goes to the host of the address, and no redirect takes it further."""

from __future__ import annotations

import pickle

import pandas as pd
import pytest
from file_server import FileServer

import microns_xr as mx

SECRET = "s3cr3t"


def moved(folder, here, there):
    """Serve all files of a folder from another host than the one of their addresses."""
    for file in folder.rglob("*"):
        if file.is_file():
            name = f"/{file.relative_to(folder)}"
            here.put(name, b"", moved_to=there.put(name, file.read_bytes()))


def read_recordings(folder, url, login):
    opened = pickle.loads(pickle.dumps(mx.recordings.open(url + "/demo.h5", storage_options=login)))
    assert opened["scan_9_3"].treadmill.values.size


def read_store(folder, url, login):
    tree = mx.open_store(f"{url}/demo.zarr", storage_options=login)
    assert tree["units"].sizes["nucleus_id"] > 0


def read_synapses(folder, url, login):
    table = pd.DataFrame({"nucleus_id": [1, 2], "pt_root_id": [11, 12]})
    units = mx.as_units(table, datastack="minnie65_public", version=1718)
    out = folder / "out.zarr"
    files = url + "/synapses.csv"
    mx.ingest_synapses(files, units, out, storage_options=login, progress=False)
    assert mx.n_connections(mx.open_store(out)["connectivity"].to_dataset()) == 1


@pytest.mark.parametrize("read", [read_recordings, read_store, read_synapses])
@pytest.mark.parametrize("of_client", [False, True])
def test_a_login_stays_with_its_host(tmp_path, demo_release, read, of_client):
    folder = tmp_path / "served"
    if read is read_recordings:
        mx.recordings.write_demo(folder / "demo.h5", scans=["9_3"], n_monet=1, n_trippy=1, n_clip=1)
    elif read is read_store:
        units = demo_release.units()[["pt_root_id", "cell_type"]]
        mx.write_store(folder / "demo.zarr", units=units, consolidated=True)
    else:
        folder.mkdir()
        text = "id,pre_pt_root_id,post_pt_root_id,size\n1,11,12,5\n"
        (folder / "synapses.csv").write_text(text)
    headers = {"X-Api-Key": SECRET, "Authorization": f"Bearer {SECRET}"}
    login = {"headers": headers, "cookies": {"session": SECRET}}
    with FileServer() as here, FileServer() as there:
        moved(folder, here, there)
        read(tmp_path, here.url, {"client_kwargs": login} if of_client else login)
        assert all(SECRET in str(seen.headers) for seen in here.log)
        assert there.log
        assert not any(SECRET in str(seen.headers) for seen in there.log)
