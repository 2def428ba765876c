"""How many rows a second the package gives, on this machine: prints JSON.

    rows_per_second.py [--store DIR --tap TAP] [--rows N] [--width D] [--workers 0,2]

Without a store it makes one of bf16 rows in a temporary folder. Everything is read from the page cache: a first pass warms it. Beside
each rate stands that of copying the same bytes in order (`copy`), which nothing that copies can pass.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader

import streamgauge

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from made import Made, make_store  # noqa: E402


def best(times, run):
    """Rows a second of the quickest of some runs; `run` answers how many rows it went through."""
    rates = []
    for _ in range(times):
        start = time.perf_counter()
        rows = run()
        rates.append(rows / (time.perf_counter() - start))
    return round(max(rates))


def measure(tap, batch, workers, times):
    n, random = len(tap), np.random.default_rng(0)
    order = random.permutation(n)

    def copy():
        return sum(len(shard.numpy().copy()) for shard in tap.shards)

    def mapped():
        # Every number is looked at, none is copied.
        return sum(len(shard.torch()) for shard in tap.shards if shard.torch().view(torch.int16).max() is not None)

    def gathered(rows, take):
        for begin in range(0, n, batch):
            take(rows[begin : begin + batch])
        return n

    def loaded(n_workers, **options):
        dataset = streamgauge.RowDataset(tap, batch_size=batch, **options)
        loader = DataLoader(dataset, batch_size=None, num_workers=n_workers)
        return sum(len(batch[tap.name]) for batch in loader)

    rates = {
        "copy": best(times, copy),
        "mapped_max": best(times, mapped),
        "torch_rows_in_order": best(times, lambda: gathered(np.arange(n), tap.torch)),
        "torch_rows_at_random": best(times, lambda: gathered(order, tap.torch)),
        "float32_rows_at_random": best(times, lambda: gathered(order, tap.float32)),
    }
    for w in workers:
        rates[f"row_dataset_{w}_workers"] = best(times, lambda: loaded(w))
        rates[f"row_dataset_{w}_workers_in_order"] = best(times, lambda: loaded(w, shuffle=False))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=pathlib.Path)
    parser.add_argument("--tap")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as scratch:
        store, tap = args.store, args.tap
        if store is None:
            store, tap = pathlib.Path(scratch) / "store", "a"
            lengths = [1000] * (args.rows // 4000)
            make_store(store, [Made("a", "bf16", width=args.width)], [lengths] * 4)
        opened = streamgauge.open(store)
        found = opened[tap] if tap else next(iter(opened.values()))
        for shard in found.shards:
            shard.numpy().max()
        workers = [int(w) for w in args.workers.split(",")]
        rates = measure(found, args.batch, workers, args.times)
        told = {"tap": found.name, "dtype": found.info.dtype, "rows": len(found), "row_bytes": found.info.row_bytes}
        print(json.dumps({**told, "batch": args.batch, "rows_per_s": rates}, indent=1))


if __name__ == "__main__":
    main()
