"""Compares stores with the float64 reference, element by element, and writes the table docs/fidelity.md.

    fidelity_table.py --binary target/release/streamgauge --machine "…" --commit HASH
        extracts every hook point of the golden samples of all golden models (tests/fixtures/goldens, SmolLM2 among
        them) to a temporary folder (1.5 GB) and compares those; those of models in bf16 once more in bf16
    fidelity_table.py --machine "…" --commit HASH MODEL=STORE …
        compares stores made before; MODEL is a folder in Hugging Face layout

A *cell* is one hook point, layer, sample and group of rows (token 0, or the later ones). The gate, per cell: the
relative L2 error is at most twice the largest that Hugging Face float32 shows there in several runs (hf_runs.py; or
1e-6, where that is less), and at most 1e-5. In bf16 it is at most 2.5 times that of Hugging Face's bf16 (or 2^-8), and the root mean
square over a hook point's cells at most 1.1 times that of its plain run. What Hugging Face shows is read from the goldens where the samples are theirs,
and measured otherwise. One sample's activations are held at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
import transformers
from hf_reference import Reference, groups, hook_points, is_ragged, relative_error
from hf_runs import RUNS, errors_of_runs, gate
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "fixtures" / "goldens"
GROUPS = ("first token", "later tokens")


@dataclass
class Cell:
    layer: str
    sample: str
    group: str
    ours: float
    theirs: float  # the largest of several runs
    theirs_once: float  # the plain run's
    kind: str = "float32"

    @property
    def share(self):
        """Our error as a share of what the gate allows: above 1 it fails."""
        return self.ours / float(gate(self.kind, self.theirs))


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
        """Yields (hook point, tensor of all the sample's rows) for each tap; a ragged tensor is [H, n, n]."""
        everything = list(range(len(self.samples[sample][1])))
        for tap, hook in self.taps.items():
            with safe_open(self._files[sample][tap], "pt") as file:
                mine = torch.nonzero(file.get_tensor("sample") == sample).flatten()
                if file.get_tensor("position")[mine].tolist() != everything:
                    sys.exit(f"error: {self.folder}/{tap} does not hold every row of sample {sample}; tap with @all")
                rows = slice(int(mine[0]), int(mine[-1]) + 1)
                yield hook, file.get_tensor(str(sample)) if is_ragged(hook) else file.get_slice("activations")[rows]


def split(point):
    """('blocks.3.attn.hook_z') -> ('attn.hook_z', '3')."""
    if not point.startswith("blocks."):
        return point, ""
    _, layer, name = point.split(".", 2)
    return name, layer


def floor_of(kind, folder, samples):
    """{sample: ([points, 2] largest error of all runs, [points, 2] of the plain run)} of Hugging Face."""
    golden = GOLDENS / f"{folder.name}.safetensors"
    if golden.is_file():
        with safe_open(golden, "pt") as file:
            held = {key.removesuffix("/tokens") for key in file.keys() if key.endswith("/tokens")}
            if all(name in held and file.get_tensor(f"{name}/tokens").tolist() == ids for name, ids in samples.items()):
                kinds = (f"hf_{kind}", f"hf_{kind}_one")
                return {name: [file.get_tensor(f"{name}/{kind}").numpy() for kind in kinds] for name in samples}
    runs = errors_of_runs(kind, folder, samples)
    return {name: [np.max([run[name] for run in runs.values()], axis=0), runs["plain"][name]] for name in samples}


def share_first_tokens(floor, samples):
    """What token 0 holds depends on that token alone: samples that begin alike are runs of one computation, and each gets their largest."""
    for name, ids in samples.items():
        alike = [floor[other][0][:, 0] for other, theirs in samples.items() if theirs[0] == ids[0]]
        floor[name] = [floor[name][0].copy(), floor[name][1]]
        floor[name][0][:, 0] = np.max(alike, axis=0)
    return floor


def compare(folder, store, kind):
    """{hook point without its layer: [Cell]} in forward order."""
    samples = dict(store.samples.values())
    floor = floor_of(kind, folder, samples)
    if kind == "half":
        floor = share_first_tokens(floor, samples)
    reference = Reference(folder)
    index = {point: i for i, point in enumerate(hook_points(reference.n_layers))}
    cells = defaultdict(list)
    for sample, (name, ids) in sorted(store.samples.items()):
        truth = reference.truth(ids, set(store.taps.values()).__contains__)
        for point, ours in store.rows(sample):
            exact = truth.pop(point)
            if ours.shape != exact.shape:
                sys.exit(f"error: {point} of sample {name}: the store has {tuple(ours.shape)}, expected {tuple(exact.shape)}")
            key, layer = split(point)
            for group, (our_part, part) in enumerate(zip(groups(point, ours), groups(point, exact))):
                if part.numel():
                    theirs = [float(errors[index[point], group]) for errors in floor[name]]
                    cells[key].append(Cell(layer, name, GROUPS[group], relative_error(our_part, part), *theirs, kind))
        print(f"  {name}: {len(ids)} tokens", file=sys.stderr, flush=True)
    return cells


def markdown(name, cells):
    """One model's table, and whether it passes."""
    lines = [
        f"## {name}",
        "",
        "| hook point | cells | ours, worst | HF float32, worst | HF, worst run | nearest to the gate | ours there | HF there | share of the gate |",
        "|---|---:|---:|---:|---:|---|---:|---:|---|",
    ]
    for point, entries in cells.items():
        nearest = max(entries, key=lambda cell: cell.share)
        place = ", ".join(filter(None, [nearest.layer and f"layer {nearest.layer}", nearest.sample, nearest.group]))
        sides = ("ours", "theirs_once", "theirs")
        worst = " | ".join(f"{max(getattr(cell, side) for cell in entries):.1e}" for side in sides)
        failed = sum(cell.share > 1 for cell in entries)
        verdict = f"**{failed} fail**" if failed else f"{nearest.share:.0%}"
        lines.append(
            f"| `{point}` | {len(entries)} | {worst} | {place} | {nearest.ours:.1e} "
            f"| {nearest.theirs:.1e} | {verdict} |"
        )
    return "\n".join(lines) + "\n", all(cell.share <= 1 for entries in cells.values() for cell in entries)


def markdown_16_bits(name, cells):
    """One model's table in bf16, and whether it passes."""
    lines = [
        f"## {name} in bf16",
        "",
        "| hook point | cells | ours, root mean square | HF | ratio | nearest to the gate | share of the gate |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    good = True
    for point, entries in cells.items():
        ours, theirs = (np.sqrt(np.mean([getattr(cell, of) ** 2 for cell in entries])) for of in ("ours", "theirs_once"))
        nearest = max(entries, key=lambda cell: cell.share)
        place = ", ".join(filter(None, [nearest.layer and f"layer {nearest.layer}", nearest.sample, nearest.group]))
        good &= ours <= max(1.1 * theirs, 2**-8) and nearest.share <= 1
        ratio = f"{ours / theirs:.2f}" if theirs else ""
        lines.append(f"| `{point}` | {len(entries)} | {ours:.1e} | {theirs:.1e} | {ratio} | {place} | {nearest.share:.0%} |")
    return "\n".join(lines) + "\n", good


def folder_of(name):
    fixture = ROOT / "tests" / "fixtures" / "models" / name
    return fixture if fixture.is_dir() else ROOT / ".models" / name


def extract(binary, name, folder, kind):
    """Runs `streamgauge extract` over the golden samples of a model; gives (model folder, store, kind)."""
    model = folder_of(name)
    data, store = folder / f"{name}.jsonl", folder / f"{name}-{kind}"
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as golden, open(data, "w", encoding="utf-8") as file:
        points = dict.fromkeys(split(point) for point in golden.metadata()["points"].split("\n"))
        for key in golden.keys():
            sample, what = key.rsplit("/", 1)
            if what == "tokens":
                file.write(json.dumps({"name": sample, "tokens": golden.get_tensor(key).tolist()}) + "\n")
    taps = dict.fromkeys(f"blocks.*.{point}" if layer else point for point, layer in points)
    command = [binary, "extract", "--model", model, "--data", data, "--tokens-field", "tokens", "--keep", "name"]
    command += ["--device", "cpu", "--quiet", "--out", store]
    command += ["--dtype", "bf16", "--store-dtype", "f32"] if kind == "half" else []
    command += [word for tap in taps for word in ("--tap", tap)]
    subprocess.run(command, check=True)
    return model, store, kind


def in_bf16(name):
    """Whether the golden file says what Hugging Face shows in bf16."""
    config = json.loads((folder_of(name) / "config.json").read_text(encoding="utf-8"))
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as golden:
        return "half_runs" in golden.metadata() and "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


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
            binary = args.binary.resolve()
            stores = [extract(binary, name, Path(scratch), "float32") for name in names]
            stores += [extract(binary, name, Path(scratch), "half") for name in filter(in_bf16, names)]
        else:
            stores = [(*map(Path, pair.split("=", 1)), "float32") for pair in args.pairs]
        tables, passed, by_model = [], {"float32": True, "half": True}, defaultdict(lambda: defaultdict(list))
        for model, store, kind in stores:
            print(f"{model.name}, {kind}:", file=sys.stderr)
            for point, cells in compare(model, Store(store), kind).items():
                by_model[model.name, kind][point] += cells
    for (name, kind), cells in by_model.items():
        table, good = (markdown if kind == "float32" else markdown_16_bits)(name, cells)
        tables.append(table)
        passed[kind] &= good
    in_half = [cell for (_, kind), by_point in by_model.items() if kind == "half" for cells in by_point.values() for cell in cells]
    over = sum(cell.share > 1 for cell in in_half)
    text = f"""# Fidelity

How far every hook point is from a float64 reference, and how far Hugging Face float32 is from it at the same place. Made by
`scripts/reference/fidelity_table.py` on {args.machine}, from commit {args.commit}, with transformers
{transformers.__version__} and PyTorch {torch.__version__.split("+")[0]}.

Errors are relative, in L2, over one *cell*: one hook point, layer, sample and group of rows. Token 0 is a group of its own, because
it carries massive activations in real models. *HF float32* is one plain run; *HF, worst run* and *HF there* are the largest error of
{len(RUNS["float32"])} runs whose libraries round differently (`scripts/reference/hf_runs.py`): where a single number is nearly the whole norm,
one run may be luckily close. The gate, cell by cell: at most twice *HF there* (or 1e-6, where that is less), and at most 1e-5. The last
column is the nearest cell's share of what it may use, or how many cells fail. **{"All cells pass." if passed["float32"] else "Some cells fail."}**

The last tables are of bf16: root mean squares over a hook point's cells beside those of Hugging Face in bf16 with SDPA (its plain run; the gate is 1.1 ×, or 2⁻⁸), and the cell nearest to its own
gate, 2.5 × the largest of {len(RUNS["half"])} runs, or 2⁻⁸. Samples that begin with the same token share what Hugging Face shows in it. **{over} of {len(in_half)} cells are over their gate.** (Of Hugging Face's own runs, up to 12 are over the
gate that the others make, tests/fixtures/README.md. In `hook_scale` a cell of the first token is one single number, and its error a draw.)

"""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n".join(tables), encoding="utf-8")
    print(f"{args.out}: {passed}; in bf16 {over} cells are over their gate")
    sys.exit(not passed["float32"])


if __name__ == "__main__":
    main()
