"""Compares stores with the float64 reference, element by element, and writes the table docs/fidelity.md.

    fidelity_table.py --binary target/release/streamgauge --machine "…" --commit HASH
        extracts every hook point of the golden samples of all golden models (tests/fixtures/goldens, SmolLM2 among
        them) to a temporary folder (1.5 GB) and compares those
    fidelity_table.py --machine "…" --commit HASH MODEL=STORE …
        compares stores made before; MODEL is a folder in Hugging Face layout

A *cell* is one hook point, layer, sample and group of rows (token 0, or the later ones). The gate, per cell: the
relative L2 error is at most twice Hugging Face float32's in that cell (or 1e-6, where that is less), and at most 1e-5.
One sample's activations are held at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
import torch
import transformers
from hf_reference import Reference, groups, is_ragged, relative_error
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "fixtures" / "goldens"
GROUPS = ("first token", "later tokens")
FLOOR, CEILING, FACTOR = 1e-6, 1e-5, 2.0


@dataclass
class Cell:
    layer: str
    sample: str
    group: str
    ours: float
    theirs: float

    @property
    def share(self):
        """Our error as a share of what the gate allows: above 1 it fails."""
        return self.ours / min(max(FACTOR * self.theirs, FLOOR), CEILING)


class Store:
    """The rows of one store, sample by sample."""

    def __init__(self, folder):
        self.folder = Path(folder)
        manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["state"] != "complete":
            sys.exit(f"error: {folder} is not complete; extract it again")
        self.taps = {}
        for tap in manifest["taps"]:
            if tap["reduction"] or tap["heads"]:
                sys.exit(f"error: {folder} taps {tap['hook']} with a reduction or a choice of heads; compare whole rows")
            self.taps[tap["folder"]] = tap["hook"]
        self.samples, self._files = {}, {}
        for shard in manifest["shards"]:
            rows = parquet.read_table(self.folder / shard["samples_file"]["file"]).to_pylist()
            files = {tap["tap"]: self.folder / tap["file"] for tap in shard["taps"]}
            for row in rows:
                if row["chunk"]:
                    sys.exit(f"error: {folder} has chunked samples; the reference does not chunk")
                self.samples[row["sample"]] = (row.get("name") or str(row["sample"]), row["tokens"])
                self._files[row["sample"]] = files

    def rows(self, sample):
        """Yields (hook point, positions, tensor) for each tap; a ragged tensor is [H, rows, n]."""
        for tap, hook in self.taps.items():
            with safe_open(self._files[sample][tap], "pt") as file:
                mine = torch.nonzero(file.get_tensor("sample") == sample).flatten()
                if not len(mine):
                    continue
                start, end = int(mine[0]), int(mine[-1]) + 1
                assert end - start == len(mine), f"{hook}: the rows of sample {sample} are not together"
                positions = file.get_tensor("position")[start:end].long()
                yield hook, positions, (
                    file.get_tensor(str(sample)) if is_ragged(hook) else file.get_slice("activations")[start:end]
                )


def split(point):
    """('blocks.3.attn.hook_z') -> ('attn.hook_z', '3')."""
    if not point.startswith("blocks."):
        return point, ""
    _, layer, name = point.split(".", 2)
    return name, layer


def by_group(point, positions, tensors):
    """Yields (group's name, its part of each tensor) for the groups that have rows among `positions`."""
    if positions[0] != 0:
        yield GROUPS[1], tensors
        return
    for group, parts in zip(GROUPS, zip(*(groups(point, tensor) for tensor in tensors))):
        if parts[0].numel():
            yield group, parts


def compare(reference, store):
    """{hook point without its layer: [Cell]} in forward order."""
    cells = defaultdict(list)
    for sample, (name, ids) in sorted(store.samples.items()):
        wanted = set(store.taps.values()).__contains__
        truth, float32 = reference.truth(ids, wanted), reference.float32(ids, wanted)
        for point, positions, ours in store.rows(sample):
            pick = (lambda t: t[:, positions]) if is_ragged(point) else (lambda t: t[positions])  # noqa: B023
            exact, theirs = pick(truth[point]), [pick(run[point]) for run in float32]
            if ours.shape != exact.shape:
                sys.exit(f"error: {point} of sample {name}: the store has {tuple(ours.shape)}, expected {tuple(exact.shape)}")
            for group, parts in by_group(point, positions, [exact, ours, *theirs]):
                exact_part, our_part, *their_parts = parts
                floor = max(relative_error(part, exact_part) for part in their_parts)
                key, layer = split(point)
                cells[key].append(Cell(layer, name, group, relative_error(our_part, exact_part), floor))
        print(f"  {name}: {len(ids)} tokens", file=sys.stderr, flush=True)
    return cells


def markdown(name, cells):
    """One model's table, and whether it passes."""
    lines = [
        f"## {name}",
        "",
        "| hook point | cells | ours, worst | HF float32, worst | nearest to the gate | ours there | HF there | share of the gate |",
        "|---|---:|---:|---:|---|---:|---:|---|",
    ]
    for point, entries in cells.items():
        nearest = max(entries, key=lambda cell: cell.share)
        place = ", ".join(filter(None, [nearest.layer and f"layer {nearest.layer}", nearest.sample, nearest.group]))
        ours, theirs = (max(getattr(cell, side) for cell in entries) for side in ("ours", "theirs"))
        failed = sum(cell.share > 1 for cell in entries)
        verdict = f"**{failed} fail**" if failed else f"{nearest.share:.0%}"
        lines.append(
            f"| `{point}` | {len(entries)} | {ours:.1e} | {theirs:.1e} | {place} | {nearest.ours:.1e} "
            f"| {nearest.theirs:.1e} | {verdict} |"
        )
    return "\n".join(lines) + "\n", all(cell.share <= 1 for entries in cells.values() for cell in entries)


def extract(binary, name, folder):
    """Runs `streamgauge extract` over the golden samples of a model; gives (model folder, store)."""
    fixture = ROOT / "tests" / "fixtures" / "models" / name
    model = fixture if fixture.is_dir() else ROOT / ".models" / name
    data, store = folder / f"{name}.jsonl", folder / name
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as golden, open(data, "w", encoding="utf-8") as file:
        points = dict.fromkeys(split(point) for point in golden.metadata()["points"].split("\n"))
        for key in golden.keys():
            sample, kind = key.rsplit("/", 1)
            if kind == "tokens":
                file.write(json.dumps({"name": sample, "tokens": golden.get_tensor(key).tolist()}) + "\n")
    taps = dict.fromkeys(f"blocks.*.{point}" if layer else point for point, layer in points)
    command = [binary, "extract", "--model", model, "--data", data, "--tokens-field", "tokens", "--keep", "name"]
    command += ["--device", "cpu", "--quiet", "--out", store]
    command += [word for tap in taps for word in ("--tap", tap)]
    subprocess.run(command, check=True)
    return model, store


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="MODEL=STORE")
    parser.add_argument("--binary", type=Path, help="a built streamgauge, to extract the golden samples with")
    parser.add_argument("--machine", required=True, help="processor and threads, for the table's heading")
    parser.add_argument("--commit", required=True, help="what the binary was built from")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "fidelity.md")
    args = parser.parse_args()
    if bool(args.pairs) == bool(args.binary):
        parser.error("give either MODEL=STORE pairs or --binary")

    with tempfile.TemporaryDirectory() as scratch:
        if args.binary:
            names = sorted(path.stem for path in GOLDENS.glob("*.safetensors"))
            pairs = [extract(args.binary.resolve(), name, Path(scratch)) for name in names]
        else:
            pairs = [tuple(map(Path, pair.split("=", 1))) for pair in args.pairs]
        tables, passed, by_model = [], True, defaultdict(lambda: defaultdict(list))
        for model, store in pairs:
            print(f"{model.name}:", file=sys.stderr)
            for point, cells in compare(Reference(model), Store(store)).items():
                by_model[model.name][point] += cells
    for name, cells in by_model.items():
        table, good = markdown(name, cells)
        tables.append(table)
        passed &= good
    text = f"""# Fidelity

How far every hook point is from a float64 reference, and how far Hugging Face float32 is from it at the same place. Made by
`scripts/reference/fidelity_table.py` on {args.machine}, from commit {args.commit}, with transformers
{transformers.__version__} and PyTorch {torch.__version__.split("+")[0]}.

Errors are relative, in L2, over one *cell*: one hook point, layer, sample and group of rows. Token 0 is a group of its own, because
it carries massive activations in real models. The gate, cell by cell: at most twice Hugging Face's error there (the worse of two
float32 runs: the sample alone, and with padding after it; no less than {FLOOR:.0e}), and at most {CEILING:.0e}. The last column is the
nearest cell's share of what it may use, or how many cells fail. **{"All cells pass." if passed else "Some cells fail."}**

"""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n".join(tables), encoding="utf-8")
    print(f"{args.out}: {'all cells pass' if passed else 'SOME CELLS FAIL'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
