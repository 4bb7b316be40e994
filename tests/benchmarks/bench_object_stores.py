"""How many requests and bytes a bucket is asked for: one neuron, 1,000 neighbours, everything.

    python tests/benchmarks/bench_object_stores.py --connections 10_000_000 --seconds 0.03

Sizes and positions of random partners, 3,200 a neuron, behind a server of S3 on this machine that
answers `seconds` late. Each row of chunks and shards is read as zarr does it and with `read_span`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from s3_server import Bucket

from microns_xr.store.format import compressor
from microns_xr.store.locate import locate, read_span

N_NEURONS, PARTNERS = 94_000, 3200
GRIDS = [(2**20, None), *((2**k, 2**22) for k in (14, 15, 16, 17)), (2**16, 2**24)]
WAYS = {"zarr": lambda array, start, stop: array[start:stop], "read_span": read_span}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=lambda s: int(s.replace("_", "")), default=10**7)
    parser.add_argument("--seconds", type=float, default=0.03)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.connections // PARTNERS, PARTNERS)
    values = {
        "data": (np.exp(rng.normal(7.5, 1, shape[0] * PARTNERS)).astype(np.int32) * 4),
        "indices": np.sort(rng.integers(0, N_NEURONS, shape, dtype=np.int32), axis=1).ravel(),
    }
    first = shape[0] // 3 * PARTNERS
    spans = {
        "1 neuron": (first, first + PARTNERS),
        "1,000 neurons": (first, min(first + 1000 * PARTNERS, values["data"].size)),
        "all": (0, values["data"].size),
    }
    print("| chunk | shard | read | way | requests | MB | s |\n|---|---|---|---|---|---|---|")
    with Bucket() as bucket:
        for chunk, shard in GRIDS:
            place = bucket.obstore(f"{chunk}-{shard}")
            write(place, values, chunk, shard)
            root = zarr.open_group(locate(place).store, mode="r")
            arrays = {name: root[name] for name in values}
            bucket.seconds_a_request = arguments.seconds
            for what, (start, stop) in spans.items():
                for way, read in WAYS.items():
                    with bucket.asked() as seen:
                        begin = time.perf_counter()
                        found = {name: read(array, start, stop) for name, array in arrays.items()}
                        seconds = time.perf_counter() - begin
                    for name in values:
                        np.testing.assert_array_equal(found[name], values[name][start:stop])
                    sent = sum(one.sent for one in seen) / 1e6
                    print(
                        f"| {chunk} | {shard} | {what} | {way} | {len(seen)} | {sent:.2f} | "
                        f"{seconds:.2f} |",
                        flush=True,
                    )
            bucket.seconds_a_request = 0.0


def write(place: zarr.abc.store.Store, values: dict, chunk: int, shard: int | None) -> None:
    root = zarr.open_group(locate(place, writing=True).store, mode="w-", zarr_format=3)
    step = shard or chunk
    for name, content in values.items():
        array = root.create_array(
            name,
            shape=content.shape,
            dtype=content.dtype,
            chunks=(chunk,),
            shards=None if shard is None else (shard,),
            filters=None,
            compressors=[compressor(content.itemsize)],
            config={"write_empty_chunks": True},
        )
        for start in range(0, content.size, step):
            array[start : start + step] = content[start : start + step]


if __name__ == "__main__":
    main()
