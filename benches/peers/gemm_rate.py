"""How fast this machine multiplies matrices of a model's shapes, in float32 through PyTorch. Prints one JSON object.

One round is a layer's products x[M, K] · W[N, K]ᵀ in turn, all layers' weights being distinct memory as in a real pass; the
rate is the FLOPs of the rounds over the median round's time.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch


def shapes(config):
    """(N, K) of the linear maps of one layer."""
    d, f, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    h = config.get("head_dim") or d // heads
    kv = config["num_key_value_heads"] * h
    return [(heads * h, d), (kv, d), (kv, d), (d, heads * h), (f, d), (f, d), (d, f)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True, help="M")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    layer = shapes(config)
    weights = [[torch.randn(n, k) for n, k in layer] for _ in range(config["num_hidden_layers"])]
    inputs = {k: torch.randn(args.rows, k) for _, k in layer}
    outputs = {n: torch.empty(args.rows, n) for n, _ in layer}

    def round_of(matrices):
        for weight in matrices:
            torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[weight.shape[0]])

    times, end = [], time.perf_counter() + args.seconds
    with torch.inference_mode():
        round_of(weights[0])
        while not times or time.perf_counter() < end:
            for matrices in weights:
                start = time.perf_counter()
                round_of(matrices)
                times.append(time.perf_counter() - start)
    flops = 2 * args.rows * sum(n * k for n, k in layer)
    print(json.dumps({"gflops": flops / statistics.median(times) / 1e9, "rounds": len(times)}))


if __name__ == "__main__":
    main()
