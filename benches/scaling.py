"""How the cost of an extraction grows: tokens/s and resident memory over sequence length, batch tokens, taps, dataset size and threads.

    .venv-reference/bin/python benches/scaling.py --out runs/scaling
    cargo run --release --example 08_report -- runs/scaling runs/scaling    draws it: runs/scaling/exhibits/*.svg

Every point is the median of --repeats runs, which go round all points in turn, with the smallest and the largest as its interval; once
computing and storing in f32, once in bf16. The rows are pieces of one text; what is not varied is 512 tokens a sample, 8,192 tokens,
all residual streams, 4,096 tokens a batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "peers"))

import texts  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

DTYPES = ("f32", "bf16")
USUAL = {"length": 512, "tokens": 8192, "batch": 4096, "taps": 30, "threads": 2}
SWEEPS = {
    "length": ("tokens of a sample", [32, 64, 128, 256, 512, 1024, 2048, 4096]),
    "batch": ("tokens of a batch", [128, 256, 512, 1024, 2048, 4096, 8192]),
    "taps": ("residual streams stored", [1, 2, 5, 10, 20, 30]),
    "tokens": ("tokens of the dataset", [1024, 2048, 4096, 8192, 16384, 32768]),
    "threads": ("threads", [1, 2]),
}


def taps(count, layers):
    """So many residual streams, evenly spread, the last one among them: the same blocks are run."""
    return [f"blocks.{layers - 1 - i * layers // count}.hook_resid_post" for i in range(count)]


def run(args, stream, layers, point):
    folder = args.out / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    length, tokens = point["length"], point["tokens"]
    rows = [stream[i * length : (i + 1) * length] for i in range(tokens // length)]
    texts.write(folder / "data.jsonl", rows)
    command = [args.binary, "extract", "--model", args.model, "--data", folder / "data.jsonl", "--tokens-field", "tokens"]
    command += ["--out", folder / "store", "--device", "cpu", "--quiet", "--batch-tokens", point["batch"]]
    command += ["--dtype", point["dtype"]]
    for tap in taps(point["taps"], layers):
        command += ["--tap", tap]
    environment = os.environ | {"RAYON_NUM_THREADS": str(point["threads"])}
    process = subprocess.Popen(list(map(str, command)), env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: this failed with status {process.returncode}: {' '.join(map(str, command))}")
    manifest = json.loads((folder / "store" / "manifest.json").read_text(encoding="utf-8"))
    return sum(map(len, rows)) / manifest["timing"]["wall_s"], usage.ru_maxrss / 1024


def exhibit(name, title, points, of, unit):
    def at(value, runs):
        found = [run[of] for run in runs]
        return {"x": value, "y": statistics.median(found), "low": min(found), "high": max(found), "label": ""}

    what = ("speed", "resident memory")[of]
    return {
        "name": f"scaling-{name}-{('speed', 'memory')[of]}",
        "caption": f"{what.capitalize()} over {title}: median, smallest and largest.",
        "body": {
            "kind": "lines",
            "x": {"name": title, "unit": ""},
            "y": {"name": what, "unit": unit},
            "series": [
                {"name": dtype, "control": False, "points": [at(value, runs) for value, runs in points[dtype]]}
                for dtype in DTYPES
            ],
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "streamgauge")
    parser.add_argument("--model", type=Path, default=ROOT / ".models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    stream = [token for text in texts.sections(args.out / "data") for token in tokenizer.encode(text).ids]
    points = [(name, value, dtype) for name, (_, values) in SWEEPS.items() for value in values for dtype in DTYPES]
    found = {point: [] for point in points}
    for repeat in range(args.repeats):
        for point in points:
            name, value, dtype = point
            found[point].append(run(args, stream, layers, USUAL | {name: value, "dtype": dtype}))
            print(f"{repeat + 1} {name} {value} {dtype}: {found[point][-1][0]:.0f} tokens/s", file=sys.stderr, flush=True)
    exhibits = []
    for name, (title, values) in SWEEPS.items():
        of_sweep = {dtype: [(value, found[name, value, dtype]) for value in values] for dtype in DTYPES}
        exhibits.append(exhibit(name, title, of_sweep, 0, "tokens/s"))
        exhibits.append(exhibit(name, title, of_sweep, 1, "MB"))
    finding = {
        "id": "scaling",
        "title": "How the cost of an extraction grows",
        "question": "How do speed and memory change with the data, the batch, the taps and the threads?",
        "answer": [],
        "numbers": [],
        "exhibits": exhibits,
        "command": "benches/scaling.py",
        "manifests": [],
        "seconds": 0.0,
    }
    (args.out / "findings").mkdir(parents=True, exist_ok=True)
    (args.out / "findings" / "scaling.json").write_text(json.dumps(finding, indent=1), encoding="utf-8")
    shutil.rmtree(args.out / "scratch")
    print("| | | dtype | tokens/s | resident, MB |\n|---|---|---|---|---|")
    for (name, value, dtype), runs in found.items():
        speed, memory = (statistics.median(run[of] for run in runs) for of in (0, 1))
        print(f"| {SWEEPS[name][0]} | {value} | {dtype} | {speed:.0f} ({min(r[0] for r in runs):.0f}–{max(r[0] for r in runs):.0f}) | {memory:.0f} |")


if __name__ == "__main__":
    main()
