"""Runs streamgauge and Hugging Face in turn on the same token ids, and this machine's matrix products beside them.

Prints a table; --json writes every measurement. See README.md for what is compared with what.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import texts
from gemm_rate import shapes
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TAP = "blocks.*.hook_resid_post"
# Whose products are the machine's limit: not ours, or a slow product of ours would look like a fast extraction.
LIMITS = ("PyTorch", "gemm crate")


def flops(config, lengths):
    """Of a forward pass over samples of these lengths, without embedding and LM head: 2 per weight and token, and for
    causal attention's two products 2 · 2 · H · h per query and visible key."""
    h = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    window = config.get("sliding_window") or max(lengths)
    keys = sum(min(i + 1, window) for n in lengths for i in range(n))
    linear = 2 * sum(n * k for n, k in shapes(config)) * sum(lengths)
    attention = 2 * 2 * config["num_attention_heads"] * h * keys
    return config["num_hidden_layers"] * (linear + attention)


class Bench:
    def __init__(self, args):
        self.args = args
        self.model = args.model.resolve()
        self.config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        self.environment = os.environ | {
            name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        }
        # Children inherit it. Threads left to wander over more CPUs than they are would measure the scheduler.
        cpus = args.cpus or sorted(os.sched_getaffinity(0))[: args.threads]
        os.sched_setaffinity(0, cpus)
        self.cpus = cpus

    def call(self, command):
        """(standard output, seconds) of a command, which must succeed."""
        start = time.perf_counter()
        done = subprocess.run(list(map(str, command)), env=self.environment, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"error: this failed with status {done.returncode}: {' '.join(map(str, command))}")
        return done.stdout, seconds

    def fresh(self, name):
        out = self.args.scratch / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    def ours(self, data):
        out = self.fresh("ours")
        command = [self.args.binary, "extract", "--model", self.model, "--data", data, "--tokens-field", "tokens"]
        command += ["--tap", TAP, "--out", out, "--device", "cpu", "--quiet"]
        _, whole = self.call(command)
        timing = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["timing"]
        return {"steady_s": timing["wall_s"], "whole_s": whole, "timing": timing}

    def theirs(self, data, *way):
        out = self.fresh("hf")
        command = [sys.executable, HERE / "hf_extract.py", "--model", self.model, "--data", data, "--out", out]
        text, whole = self.call([*command, "--threads", self.args.threads, *way])
        found = json.loads(text)
        return found if isinstance(found, list) else {"steady_s": found["seconds"], "whole_s": whole}

    def gemm(self):
        """GFLOP/s of a layer's products: PyTorch's and the gemm crate's, which are the machine's limit, and ours."""
        command = [sys.executable, HERE / "gemm_rate.py", "--model", self.model, "--rows", self.args.gemm_rows]
        rates = {"PyTorch": json.loads(self.call([*command, "--threads", self.args.threads])[0])["gflops"]}
        layer = shapes(self.config)
        seconds = {"gemm crate": 0.0, "streamgauge": 0.0}
        for n, k in sorted(set(layer)):
            command = [self.args.binary, "bench", "gemm", "--json", "--m", self.args.gemm_rows, "--n", n, "--k", k]
            found = json.loads(self.call(command)[0])["shapes"][0]
            for who, rate in (("gemm crate", found["gflops"]), ("streamgauge", found["product_gflops"])):
                seconds[who] += layer.count((n, k)) * n * k / rate
        return rates | {who: sum(n * k for n, k in layer) / s for who, s in seconds.items()}

    def same(self):
        """Both sides' rows of the first sample in a middle layer agree, so both did the work; the relative L2 difference."""
        layer = self.config["num_hidden_layers"] // 2
        folder = self.args.scratch / "ours" / f"blocks.{layer}.hook_resid_post"
        with safe_open(folder / "00000.safetensors", "pt") as file:
            rows = int((file.get_tensor("sample") == 0).sum())
            ours = file.get_slice("activations")[:rows]
        for path in (self.args.scratch / "hf").glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                if f"0.{layer}" in file.keys():
                    theirs = file.get_tensor(f"0.{layer}")
                    difference = float((ours - theirs).norm() / theirs.norm())
                    if difference > 1e-4:
                        sys.exit(f"error: layer {layer} of sample 0 differs by {difference:.1e}: not the same work")
                    return difference
        sys.exit("error: Hugging Face's files lack sample 0")

    def dataset(self, name, data, lengths):
        say(f"{name}: {len(lengths)} samples, {sum(lengths)} tokens, lengths {min(lengths)} to {max(lengths)}")
        if self.args.hf:
            attention, size = self.args.hf.split(",")
            best, tuned = {"attention": attention, "batch_size": int(size)}, []
        else:
            tuned = self.theirs(data, "--tune")
            best = max(tuned, key=lambda way: way["tokens_per_s"])
        way = ["--attention", best["attention"], "--batch-size", best["batch_size"]]
        say(f"  Hugging Face runs with {best['attention']}, batches of {best['batch_size']}")
        repeats = []
        for repeat in range(self.args.repeats):
            found = {"gemm": self.gemm()}
            # Whoever comes second finds a warmer machine: take turns.
            for side in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
                found[side] = self.ours(data) if side == "ours" else self.theirs(data, *way)
            repeats.append(found)
            say(f"  repeat {repeat + 1}: ours {found['ours']['steady_s']:.1f} s, theirs {found['theirs']['steady_s']:.1f} s")
        total, work = sum(lengths), flops(self.config, lengths)
        result = {
            "samples": len(lengths),
            "tokens": total,
            "lengths": sorted(lengths),
            "gflop_per_token": work / total / 1e9,
            "difference": self.same(),
            "hugging_face": {"best": best, "tuned": tuned},
            "repeats": repeats,
        }
        gemm = [max(repeat["gemm"][who] for who in LIMITS) for repeat in repeats]
        for side in ("ours", "theirs"):
            for part in ("steady", "whole"):
                result[f"{side}_{part}_tokens_per_s"] = spread([total / r[side][f"{part}_s"] for r in repeats])
            rates = [work / r[side]["steady_s"] / 1e9 for r in repeats]
            result[f"{side}_share_of_gemm"] = spread([rate / limit for rate, limit in zip(rates, gemm)])
        for part in ("steady", "whole"):
            result[f"ratio_{part}"] = spread([r["theirs"][f"{part}_s"] / r["ours"][f"{part}_s"] for r in repeats])
        result["gemm_gflops"] = {
            who: spread([r["gemm"][who] for r in repeats]) for who in repeats[0]["gemm"]
        }
        return result


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def say(text):
    print(text, file=sys.stderr, flush=True)


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def shown(values, form):
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def table(results):
    lines = [
        "| data | | tokens/s, steady | tokens/s, whole process | share of the GEMM rate |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        best = result["hugging_face"]["best"]
        labels = {"ours": "streamgauge", "theirs": f"HF, {best['attention']}, batch {best['batch_size']}"}
        for side, label in labels.items():
            steady, whole = (shown(result[f"{side}_{part}_tokens_per_s"], ".0f") for part in ("steady", "whole"))
            lines.append(f"| {name} | {label} | {steady} | {whole} | {shown(result[f'{side}_share_of_gemm'], '.2f')} |")
        ratios = [shown(result[f"ratio_{part}"], ".2f") for part in ("steady", "whole")]
        lines.append(f"| {name} | **ratio, run by run** | {ratios[0]} | {ratios[1]} | |")
    for name, result in results.items():
        rates = ", ".join(f"{who} {shown(rate, '.1f')}" for who, rate in result["gemm_gflops"].items())
        lines += ["", f"{name}: {result['tokens']} tokens in {result['samples']} samples, "
                  f"{result['gflop_per_token']:.3f} GFLOP per token; GEMM rate in GFLOP/s: {rates}."]  # fmt: skip
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "streamgauge")
    parser.add_argument("--model", type=Path, default=ROOT / ".models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "peers", help="where both sides write; emptied")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", type=lambda text: list(map(int, text.split(","))), help="which CPUs to stay on, as 0,1")
    parser.add_argument("--tokens", type=int, default=16384, help="size of each dataset, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("equal", "ragged"))
    parser.add_argument("--hf", metavar="ATTENTION,BATCH", help="don't search for HF's best way, take this: sdpa,4")
    parser.add_argument("--gemm-rows", type=int, default=2048, help="M of the GEMM measurement: our batch's tokens")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    args = parser.parse_args()
    if not args.binary.is_file():
        sys.exit(f"error: {args.binary} is not there; build it with cargo build --release, or give --binary")
    args.binary, args.scratch = args.binary.resolve(), args.scratch.resolve()

    bench = Bench(args)
    made = texts.make(bench.model, args.scratch / "data", args.tokens)
    results = {name: bench.dataset(name, *made[name]) for name in made if args.only in (None, name)}
    machine = f"{processor()}, {args.threads} threads on CPUs {','.join(map(str, bench.cpus))}"
    print(f"{machine}, {args.repeats} interleaved repeats, median (lowest–highest).\n\n{table(results)}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
