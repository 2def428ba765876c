"""Runs streamgauge and its peers in turn on the same workloads, and prints a table; --json writes every measurement.

A side that stored something else than float64 Hugging Face computes is an error, not a row. See README.md.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import texts
import torch
from peer import NEW_TOKENS, taps, vector_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROW = 512
WORKLOADS = {
    "a": ("residuals", "equal", "every residual stream, rows of 512 tokens"),
    "b": ("residuals", "ragged", "every residual stream, ragged text"),
    "c": ("last-token", "short", "one middle layer at the last token of short samples"),
    "d": ("hook-points", "ragged", "14 hook points of one middle layer, ragged text"),
    "e": ("steered", "prompts", f"steered greedy generation, {NEW_TOKENS} tokens"),
}
PEERS = {
    "residuals": ("hf-hidden-states", "hf-hooks", "transformer-lens", "nnsight", "candle-mi"),
    "last-token": ("hf-hooks", "transformer-lens", "nnsight", "candle-mi"),
    "hook-points": ("hf-hooks", "transformer-lens", "nnsight"),  # candle-mi has not all of them
    "steered": ("hf-hooks", "transformer-lens", "nnsight", "candle-mi"),
}
CANDLE_MI = ROOT / "target" / "peers" / "release" / "candle-mi-peer"
# Relative L2 difference to float64 beyond which a side did not do the work. (That of bf16 is of the order of 1e-2, docs/fidelity.md; of a
# sample whose massive numbers are luckily or unluckily rounded it is more.)
NEAR = {"float32": 1e-4, "bfloat16": 0.2}
# Greedy texts of two roundings part sooner or later; these many tokens must be equal.
SAME_TOKENS = {"float32": 8, "bfloat16": 1}
OUR_DTYPES = {"float32": "f32", "bfloat16": "bf16"}


def make_data(model, folder, args):
    """{name: (path, [lengths])}"""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    sections = [tokenizer.encode(text).ids for text in texts.sections(folder)]
    stream = [token for section in sections for token in section]
    draw, at, short = random.Random(1), 0, []
    for _ in range(args.short):
        length = draw.randint(5, 20)
        short.append(stream[at : at + length])
        at += length
    ragged = []
    for section in sections:
        if sum(map(len, ragged)) < args.tokens:
            ragged.append(section[: texts.LONGEST])
    rows = {
        "equal": [stream[i * ROW : (i + 1) * ROW] for i in range(max(args.tokens // ROW, 1))],
        "ragged": ragged,
        "short": short,
        "prompts": [section[:40] for section in sections if len(section) >= 40][: args.prompts],
    }
    made = {}
    for name, samples in rows.items():
        texts.write(folder / f"{name}.jsonl", samples)
        made[name] = (folder / f"{name}.jsonl", [len(sample) for sample in samples])
    return made


class Side:
    """A command that is timed: seconds, resident memory and bytes written."""

    def __init__(self, args):
        self.args = args
        self.environment = os.environ | {
            name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        }

    def call(self, command, out):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), env=self.environment, stdout=subprocess.PIPE, text=True)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: this failed with status {process.returncode}: {' '.join(map(str, command))}")
        files = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
        return text, {
            "whole_s": time.perf_counter() - start,
            "resident_mb": usage.ru_maxrss / 1024,
            "written_mb": sum(path.stat().st_size for path in files) / 1e6,
        }


class Ours(Side):
    name = "streamgauge"

    def run(self, workload, data):
        args, out = self.args, self.args.scratch / "ours"
        layers = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        common = ["--model", args.model, "--data", data, "--tokens-field", "tokens", "--out", out, "--device", "cpu", "--quiet"]
        common += ["--dtype", OUR_DTYPES[args.dtype]]
        if workload == "steered":
            vector = args.scratch / "vector.safetensors"
            edit = f"add at=blocks.{layers // 2}.hook_resid_post v={vector}#v c=1"
            # A store wants a tap: one row a sample, which the peers are not asked for.
            command = [args.binary, "generate", *common, "--edit", edit, "--max-new-tokens", NEW_TOKENS]
            command += ["--tap", f"blocks.{layers // 2}.hook_resid_post@last"]
        else:
            names = ["blocks.*.hook_resid_post"] if workload == "residuals" else taps(workload, layers)
            command = [args.binary, "extract", *common]
            for name in names:
                command += ["--tap", name + ("@last" if workload == "last-token" else "")]
        _, found = self.call(command, out)
        timing = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["timing"]
        # Generation has no such record: ours is then the whole process, loading too.
        return found | {"seconds": timing["wall_s"] if timing else found["whole_s"]}

    def rows(self, sample, name):
        folder = self.args.scratch / "ours" / name
        found = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                of = (file.get_tensor("sample") == sample).nonzero().flatten()
                if len(of):
                    found.append(file.get_slice("activations")[int(of[0]) : int(of[-1]) + 1].flatten(1))
        return torch.cat(found)

    def generated(self, sample, prompt):
        import pyarrow.parquet

        paths = sorted((self.args.scratch / "ours" / "samples").glob("*.parquet"))
        rows = [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]
        return torch.tensor(next(row["tokens"] for row in rows if row["sample"] == sample)[prompt:])


class Peer(Side):
    def __init__(self, args, name):
        super().__init__(args)
        self.name, self.size = name, {}

    def command(self, workload, data, *more, dtype=None):
        program = [CANDLE_MI] if self.name == "candle-mi" else [sys.executable, HERE / "peer.py", "--peer", self.name]
        command = [*program, "--workload", workload, "--model", self.args.model]
        command += ["--dtype", dtype or self.args.dtype]
        return [*command, "--data", data, "--out", self.folder(), "--threads", self.args.threads, *more]

    def folder(self):
        return self.args.scratch / self.name

    def tune(self, workload, data):
        ways = json.loads(self.call(self.command(workload, data, "--tune"), self.folder())[0])
        self.size[workload, data] = min(ways, key=lambda way: way["seconds"])["batch_size"]
        say(f"  {self.name}: batches of {self.size[workload, data]}")

    def run(self, workload, data):
        text, found = self.call(self.command(workload, data, "--batch-size", self.size[workload, data]), self.folder())
        return found | {"seconds": json.loads(text)["seconds"], "batch_size": self.size[workload, data]}

    def tensor(self, name):
        for path in self.folder().glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                if name in file.keys():
                    return file.get_tensor(name)
        sys.exit(f"error: {self.name} stored no {name}")

    def rows(self, sample, name):
        return self.tensor(f"{sample}.{name}").flatten(1)

    def generated(self, sample, _prompt):
        return self.tensor(f"{sample}.generated")


def truth(args, workload, data, lengths):
    """(samples, what float64 Hugging Face has of them)"""
    samples = sorted({0, len(lengths) // 2, len(lengths) - 1})
    peer = Peer(args, "hf-hooks")
    only = ",".join(map(str, samples))
    peer.call(peer.command(workload, data, "--only", only, dtype="float64"), peer.folder())
    found = {}
    for path in peer.folder().glob("*.safetensors"):
        found |= load_file(path)
    return samples, found


def check(side, workload, layers, lengths, samples, right, dtype):
    """The largest relative L2 difference to float64; of generation, how many tokens are equal from the first on, the fewest."""
    if workload == "steered":
        equal = []
        for sample in samples:
            ours, theirs = side.generated(sample, lengths[sample]), right[f"{sample}.generated"]
            n = min(len(ours), len(theirs))
            differ = (ours[:n] != theirs[:n]).nonzero().flatten()
            equal.append(int(differ[0]) if len(differ) else n)
        if min(equal) < SAME_TOKENS[dtype]:
            sys.exit(f"error: {side.name} generates another text than float64 from token {min(equal)} on")
        return min(equal)
    worst = 0.0
    for sample in samples:
        for name in taps(workload, layers):
            if side.name == "hf-hidden-states" and name == f"blocks.{layers - 1}.hook_resid_post":
                continue  # it has this one after the final norm only
            rows, wanted = side.rows(sample, name), right[f"{sample}.{name}"].flatten(1)
            if rows.shape != wanted.shape:
                sys.exit(f"error: {side.name} stored {tuple(rows.shape)} of {name}, not {tuple(wanted.shape)}")
            worst = max(worst, float((rows.double() - wanted).norm() / wanted.norm()))
    if not worst < NEAR[dtype]:
        sys.exit(f"error: {side.name} is {worst:.1e} from float64 on {workload}")
    return worst


def measure(args, key, made):
    workload, name, title = WORKLOADS[key]
    data, lengths = made[name]
    layers = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    tokens = NEW_TOKENS * len(lengths) if workload == "steered" else sum(lengths)
    say(f"{key}: {title}; {len(lengths)} samples, {tokens} tokens")
    samples, right = truth(args, workload, data, lengths)
    # In bf16 candle-mi is 0.31 from float64 where the others are 0.02: not the same work.
    peers = [peer for peer in PEERS[workload] if (peer, args.dtype) != ("candle-mi", "bfloat16")]
    peers = [peer for peer in peers if not args.peers or peer in args.peers.split(",")]
    sides = [Ours(args)] + [Peer(args, peer) for peer in peers]
    for side in sides[1:]:
        side.tune(workload, data)
    runs = {side.name: [] for side in sides}
    for repeat in range(args.repeats):
        # Whoever comes later finds a warmer machine: take turns.
        shift = repeat % len(sides)
        for side in sides[shift:] + sides[:shift]:
            runs[side.name].append(side.run(workload, data))
            if repeat == 0:
                runs[side.name][0]["against_float64"] = check(side, workload, layers, lengths, samples, right, args.dtype)
        say(f"  repeat {repeat + 1}: " + ", ".join(f"{name} {of[-1]['seconds']:.1f} s" for name, of in runs.items()))
    return {"title": title, "samples": len(lengths), "tokens": tokens, "runs": runs}


def shown(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(results):
    lines = [
        "| workload | | tokens/s | ours is so many times as fast, run by run | resident, MB | written, MB | against float64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, result in results.items():
        ours = [run["seconds"] for run in result["runs"]["streamgauge"]]
        for name, runs in result["runs"].items():
            rate = shown([result["tokens"] / run["seconds"] for run in runs], ".0f")
            ratio = "" if name == "streamgauge" else shown([run["seconds"] / mine for run, mine in zip(runs, ours)], ".2f")
            size = f", batch {runs[0]['batch_size']}" if "batch_size" in runs[0] else ""
            off = runs[0]["against_float64"]
            off = f"{off} tokens equal" if isinstance(off, int) else f"{off:.0e}"
            resident, written = (statistics.median(run[of] for run in runs) for of in ("resident_mb", "written_mb"))
            lines.append(f"| {key} | {name}{size} | {rate} | {ratio} | {resident:.0f} | {written:.0f} | {off} |")
    for key, result in results.items():
        lines += ["", f"{key}: {result['title']}; {result['samples']} samples, {result['tokens']} tokens."]
    return "\n".join(lines)


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "streamgauge")
    parser.add_argument("--model", type=Path, default=ROOT / ".models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "compare", help="where all sides write; emptied")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="size of the datasets of a, b and d, about")
    parser.add_argument("--short", type=int, default=2000, help="samples of c")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of e")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=tuple(NEAR), default="float32", help="of all sides, computing and storing")
    parser.add_argument("--only", default="abcde", help="workloads, as ace")
    parser.add_argument("--peers", help="only these, as hf-hooks,candle-mi")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    args = parser.parse_args()
    args.model = args.model.resolve()
    args.scratch.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    save_file({"v": vector_of(config["hidden_size"])}, args.scratch / "vector.safetensors")
    made = make_data(args.model, args.scratch, args)
    results = {key: measure(args, key, made) for key in args.only}
    if args.json:
        machine = {"machine": platform.machine(), "threads": args.threads, "torch": torch.__version__}
        args.json.write_text(json.dumps(machine | {"workloads": results}, indent=1), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
