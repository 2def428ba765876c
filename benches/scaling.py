"""How the cost of an extraction grows: tokens/s and resident memory over sequence length, batch tokens, taps, dataset size and threads.

    .venv-reference/bin/python -m pip install matplotlib
    .venv-reference/bin/python benches/scaling.py --out runs/scaling        measures, and draws runs/scaling/scaling.svg
    .venv-reference/bin/python benches/scaling.py --out runs/scaling --draw draws what was measured again

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


def summary(values):
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def draw(points, path):
    """A row of panels for speed and one for memory: median, and from the smallest to the largest as a band."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scaling", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    rows = (("tokens_per_s", "tokens/s"), ("resident_mb", "largest resident memory, MB"))
    figure, panels = pyplot.subplots(2, len(SWEEPS), figsize=(14, 5), layout="constrained", sharey="row")
    for line, (measure, label) in zip(panels, rows):
        for panel, (name, (title, values)) in zip(line, SWEEPS.items()):
            for dtype, colour, mark in zip(DTYPES, ("#0072b2", "#d55e00"), "os"):
                of = [point[measure] for value in values for point in points if (point["sweep"], point["value"], point["dtype"]) == (name, value, dtype)]
                panel.plot(values, [one["median"] for one in of], color=colour, marker=mark, markersize=3, label=dtype)
                panel.fill_between(values, [one["smallest"] for one in of], [one["largest"] for one in of], color=colour, alpha=0.2, linewidth=0)
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, map(str, values), rotation=45 if len(values) > 2 else 0)
            panel.minorticks_off()
            panel.grid(axis="y", color="#e4e4e4")
            panel.set_xlabel(title)
        line[0].set_ylim(bottom=0)
        line[0].set_ylabel(label)
    panels[0][0].legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "streamgauge")
    parser.add_argument("--model", type=Path, default=ROOT / ".models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is there")
    args = parser.parse_args()
    if args.draw:
        draw(json.loads((args.out / "scaling.json").read_text(encoding="utf-8")), args.out / "scaling.svg")
        return
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
    points = [
        {
            "sweep": name,
            "value": value,
            "dtype": dtype,
            "tokens_per_s": summary([run[0] for run in runs]),
            "resident_mb": summary([run[1] for run in runs]),
        }
        for (name, value, dtype), runs in found.items()
    ]
    (args.out / "scaling.json").write_text(json.dumps(points, indent=1), encoding="utf-8")
    shutil.rmtree(args.out / "scratch")
    draw(points, args.out / "scaling.svg")
    print(f"{args.out / 'scaling.json'} and .svg", file=sys.stderr)


if __name__ == "__main__":
    main()
