"""Reads stores without any code of ours, and compares them with what their manifest and their dataset say.

    check_stores.py FACTS.CSV QUICKSTART_STORE STORE...

First the Python in README.md and docs/ that stands under `<!-- test: NAME -->` runs as it is, from the repository's
root, with the quickstart's store as argument; a block of that kind has at most six lines.
"""

import csv
import json
import pathlib
import re
import subprocess
import sys

import pandas
import torch
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Pages whose Python must be there, so that a changed marker is not a test that passes.
DOCUMENTED = ["README.md", "docs/store-format.md"]
BLOCK = re.compile(r"<!-- test: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def run_documented(store):
    for page in DOCUMENTED:
        blocks = BLOCK.findall((ROOT / page).read_text())
        assert blocks, f"{page} has no Python under <!-- test: NAME -->"
        for name, code in blocks:
            assert len(code.splitlines()) <= 6, f"{page}, {name}: more than six lines"
            done = subprocess.run(
                [sys.executable, "-c", code, str(store)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            assert done.stdout.strip() and "nan" not in done.stdout, f"{page}, {name} printed {done.stdout!r}"
            print(f"{page}, {name}: {done.stdout.splitlines()[-1][:160]}")


def check(store, facts):
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["format_version"] == 1
    samples = pandas.read_parquet(store / "samples")
    assert list(samples["sample"]) == list(range(manifest["samples"]))
    for row in samples.itertuples():
        fact = facts[row.sample]
        # Line 1 of the CSV is its header.
        assert (row.id, row.label, row.line) == (fact["id"], int(fact["label"]), row.sample + 2), row
    taps = {tap["folder"]: tap for tap in manifest["taps"]}
    for shard in manifest["shards"]:
        for entry in shard["taps"]:
            check_file(store / entry["file"], taps[entry["tap"]], entry["rows"], samples)
    shards = len(manifest["shards"])
    print(f"{store.name}: {len(samples)} samples, {len(taps)} taps, {shards} shards are as their manifest says")


def check_file(path, tap, rows, samples):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        assert file.metadata()["hook"] == tap["hook"]
    sample, position, token = (tensors.pop(name) for name in ("sample", "position", "token"))
    assert (sample.dtype, position.dtype, token.dtype) == (torch.int64, torch.int32, torch.int32)
    assert sample.shape == position.shape == token.shape == (rows,)
    for s, p, t in zip(sample.tolist(), position.tolist(), token.tolist()):
        assert (p, t) == (-1, -1) if tap["reduction"] == "mean" else samples["tokens"][s][p] == t, (path, s, p)
    if tap.get("order_seed") is not None:
        assert sorted(tensors.pop("order").tolist()) == list(range(rows)), path
    if tap["top_k"]:
        index = tensors.pop("index")
        assert index.dtype == torch.int32 and index.shape == (rows, tap["top_k"])
    if tap["ragged"]:
        heads = tap["row_shape"][0]
        for s in sample.unique().tolist():
            value = tensors.pop(str(s))
            assert value.shape == (heads, int((sample == s).sum()), len(samples["tokens"][s]))
            assert value.dtype == DTYPES[tap["dtype"]]
            if tap["hook"].endswith("hook_pattern"):
                assert torch.allclose(value.float().sum(-1), torch.tensor(1.0), atol=0.02), (path, s)
    else:
        value = tensors.pop("activations")
        assert value.dtype == DTYPES[tap["dtype"]] and value.shape == (rows, *tap["row_shape"])
        assert value.isfinite().all(), path
    assert not tensors, f"{path} holds {sorted(tensors)} besides"


def main():
    facts, quickstart, *others = map(pathlib.Path, sys.argv[1:])
    with facts.open(newline="") as file:
        facts = list(csv.DictReader(file))
    run_documented(quickstart)
    for store in [quickstart, *others]:
        check(store, facts)


if __name__ == "__main__":
    main()
