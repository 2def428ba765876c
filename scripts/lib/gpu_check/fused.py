"""The stage of the fused SwiGLU: what it computes, and how long it takes beside the two kernels that it stands for."""

import json

from . import fidelity as compare
from .check import Skipped


def swiglu(check, found):
    """The kernel of gate, up and SwiGLU in one (--fused-swiglu), off until this has passed: beside the two that it stands for."""
    if not check.dry and check.streamgauge("doctor")["cuda"]["gpus"][0]["compute_capability"] != "9.0":
        raise Skipped("it is for GPUs of compute capability 9.0")
    model, work = check.model(), check.args.work
    lengths = [7, 33, 12] if check.dry else [200, 61, 120]
    data = check.tokens("fused", lengths)
    never_written = ("hook_result", "mlp.hook_pre", "mlp.hook_pre_linear")
    points = [p for p in compare.POINTS if not p.endswith(never_written)]
    one_shard = ("--shard-size", "64GiB")
    check.extract(model, data, points, work / "plain", *one_shard)
    check.extract(model, data, points, work / "fused", "--fused-swiglu", *one_shard)
    check.extract(model, data, points, work / "again", "--fused-swiglu", *one_shard, "--batch-tokens", max(lengths))
    found["same_bits_as_two_kernels"] = compare.same_bits(work / "plain", work / "fused")
    found["two_packings"] = compare.same_bits(work / "fused", work / "again")
    found["table"] = [f"the bits of two kernels: {'yes' if found['same_bits_as_two_kernels'] else 'no'}"]
    found["failures"] = [] if found["two_packings"] else ["a sample's bits hang on its batch"]
    samples = [json.loads(line)["tokens"] for line in data.read_text().splitlines()]
    cells = compare.cells(model, samples, work / "fused")
    if cells is None:
        found["table"].append("not compared with Hugging Face: python3 has no torch or no transformers")
    else:
        found["points"], failures = compare.gates(cells)
        found["failures"] += failures
        post = next(ratios for point, ratios in found["points"].items() if point.endswith("hook_post"))
        found["table"].append(f"hook_post beside Hugging Face's: {post['rms_ratio']:.2f}, worst cell {post['cell_ratio']:.2f}")
    if not check.dry:
        time(check, found, model)


def time(check, found, model):
    """The kernels alone, and whole batches with the one and with the two."""
    found["kernels"] = []
    for name in ("gate_up_bf16", "gemm_bf16", "swiglu_bf16"):
        found["kernels"] += check.streamgauge("bench", "kernels", "--only", name)["kernels"]
    for timing in found["kernels"]:
        if "gate" in timing["what"] or timing["kernel"] == "swiglu_bf16":
            line = f"{timing['kernel']:14} {timing['what']:40} {1e6 * timing['seconds']:8.1f} µs"
            found["table"].append(f"{line}, {timing['ratio']:.2f} of its bound")
    data = check.tokens("fused-length", [2048] * 32)
    last = check.sizes["num_hidden_layers"] - 1
    taps = [f"blocks.{last}.hook_resid_post@last"]
    rates = {"plain": [], "fused": []}
    for _ in range(3):
        for name, flags in (("plain", ()), ("fused", ("--fused-swiglu",))):
            done = check.extract(model, data, taps, check.args.work / name, *flags)
            rates[name].append(done["tokens"] / done["wall_s"])
    found.update({f"{name}_tokens_per_s": sorted(each)[1] for name, each in rates.items()})
    ratio = found["fused_tokens_per_s"] / found["plain_tokens_per_s"]
    found["table"].append(f"2048 tokens, to the last layer: {found['fused_tokens_per_s']:.0f} tokens/s, {ratio:.3f} times two kernels'")
