"""Spans of arrays on disk: of any codec, from any position, into any dtype, and damaged."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec

import microns_xr as mx
from microns_xr.store.format import compressors
from microns_xr.store.locate import read_span, readable

N, CHUNK = 1000, 64
NUMBERS = np.random.default_rng(3).integers(-(2**31), 2**31, N)
INT32 = {"dtype": np.int32, "chunks": (CHUNK,)}
WAYS: dict[str, dict[str, Any]] = {
    "format 1": INT32 | {"compressors": compressors(4)},
    "early": INT32 | {"compressors": compressors(4)[:1]},
    "float64": {"dtype": np.float64, "chunks": (CHUNK,), "compressors": compressors(8)},
    "one chunk": {"dtype": np.int32, "chunks": (2**11,), "compressors": compressors(4)},
    "shards": INT32 | {"compressors": compressors(4), "shards": (4 * CHUNK,)},
    "big-endian": INT32 | {"compressors": compressors(4), "serializer": BytesCodec(endian="big")},
    "plain": INT32 | {"compressors": None},
    "gzip": INT32 | {"compressors": (GzipCodec(), Crc32cCodec())},
    "blosc twice": INT32 | {"compressors": (BloscCodec(typesize=4), BloscCodec(typesize=1))},
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    for name, options in WAYS.items():
        array = root.create_array(name, shape=N, filters=None, **options)
        array[:] = NUMBERS.astype(array.dtype)
    table = root.create_array("table", shape=(N, 3), dtype=np.int32, chunks=(CHUNK, 3))
    table[:] = NUMBERS[:, None].astype(np.int32) + np.arange(3, dtype=np.int32)
    return zarr.open_group(readable(folder), mode="r")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(WAYS)),
    st.tuples(st.integers(0, N), st.integers(0, N)).map(sorted),
    st.sampled_from([None, np.int64, np.float64]),
    st.sampled_from([None, 1]),
)
def test_any_span(arrays, name, span, dtype, threads):
    start, stop = span
    expected = NUMBERS.astype(arrays[name].dtype)[start:stop]
    if dtype is None:
        found = read_span(arrays[name], start, stop, threads=threads)
        assert found.dtype == expected.dtype
    else:
        around = np.full(stop - start + 2, 7, dtype)
        out = around[1:-1]
        found = read_span(arrays[name], start, stop, out, threads)
        assert found is out
        assert around[0] == around[-1] == 7
    np.testing.assert_array_equal(found, expected)


def test_spans_of_several_threads(arrays, monkeypatch):
    monkeypatch.setattr("microns_xr.threads._WORTH_A_THREAD", 10)
    for name in WAYS:
        np.testing.assert_array_equal(
            read_span(arrays[name], 30, 990), NUMBERS.astype(arrays[name].dtype)[30:990]
        )


def test_a_span_of_a_table(arrays):
    expected = NUMBERS[60:200, None].astype(np.int32) + np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(read_span(arrays["table"], 60, 200), expected)


def _shorter(content: bytes) -> bytes:
    """A valid chunk of half as many numbers."""
    values = np.arange(CHUNK // 2, dtype=np.int32)
    store = zarr.storage.MemoryStore()
    zarr.create_array(
        store, data=values, chunks=values.shape, filters=None, compressors=compressors(4)[:1]
    )
    return store._store_dict["c/0"].to_bytes()


def _flipped(content: bytes) -> bytes:
    return content[:40] + bytes([content[40] ^ 16]) + content[41:]


def _with_checksum(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("format 1", _flipped, "checksum"),
        ("format 1", lambda c: c[:-4] + bytes(4), "checksum"),
        ("format 1", lambda c: _with_checksum(_shorter(c)), "128 bytes of numbers, expected 256"),
        ("early", _shorter, "128 bytes of numbers, expected 256"),
        ("early", lambda c: c[:-1], "bytes, expected"),
        ("early", lambda c: c[:2] + bytes([c[2] & ~2]) + c[3:], "decompression"),
        ("early", lambda c: b"", "0 bytes, expected"),
        ("early", lambda c: b"\x00" * 5, "of 5 bytes states 0"),
        ("early", lambda c: b"\x01" + c[1:-1], "states 272"),
    ],
)
def test_a_damaged_chunk_is_refused(tmp_path, name, damage, message):
    root = zarr.open_group(tmp_path, mode="w", zarr_format=3)
    root.create_array("a", shape=N, filters=None, **WAYS[name])[:] = NUMBERS.astype(np.int32)
    chunk = tmp_path / "a" / "c" / "1"
    content = chunk.read_bytes()
    array = zarr.open_group(readable(tmp_path), mode="r")["a"]
    chunk.write_bytes(damage(content))
    np.testing.assert_array_equal(read_span(array, 2 * CHUNK, N), NUMBERS[2 * CHUNK :])
    with pytest.raises(mx.errors.StoreFormatError, match=rf"a cannot be decoded .*{message}"):
        read_span(array, CHUNK + 3, 3 * CHUNK)
    chunk.unlink()
    with pytest.raises(mx.errors.StoreFormatError, match="no chunk"):
        read_span(array, 0, N)
