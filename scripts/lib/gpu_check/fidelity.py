"""A store's activations against float64, beside Hugging Face in the store's dtype."""

import collections
import hashlib
import json
import math

BLOCK = """hook_resid_pre ln1.hook_scale ln1.hook_normalized ln1.hook_out attn.hook_q attn.hook_k attn.hook_v attn.hook_rot_q
attn.hook_rot_k attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result hook_attn_out hook_resid_mid ln2.hook_scale
ln2.hook_normalized ln2.hook_out mlp.hook_pre mlp.hook_pre_linear mlp.hook_post hook_mlp_out hook_resid_post""".split()
POINTS = ["hook_embed", *(f"blocks.*.{point}" for point in BLOCK), "ln_final.hook_out", "logits"]
# One unit in the last place, relative.
ULP = {"bf16": 2**-8, "f16": 2**-11, "f32": 2**-24}


def same_bits(one, other):
    """Whether two stores of one job hold the same tap files, whatever shards they were cut into: here, one shard each."""

    def digests(store):
        manifest = json.loads((store / "manifest.json").read_text())
        files = [file["file"] for shard in manifest["shards"] for file in shard["taps"]]
        return {file: hashlib.sha256((store / file).read_bytes()).hexdigest() for file in files}

    return digests(one) == digests(other)


def cells(model, samples, store):
    """(hook point, layer, sample, group of rows, our error, Hugging Face's, one ulp); None without torch and transformers."""
    try:
        import torch
        from safetensors.torch import load_file

        from . import hf
    except ImportError:
        return None
    manifest = json.loads((store / "manifest.json").read_text())
    dtype = manifest["compute_dtype"]
    taps = [tap["hook"] for tap in manifest["taps"]]
    wanted = set(taps).__contains__
    names = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    theirs = hf.activations(model, samples, wanted, names[dtype])
    truth = hf.activations(model, samples, wanted, None)
    (shard,) = manifest["shards"]
    found = []
    for hook, entry in zip(taps, shard["taps"]):
        tensors = load_file(store / entry["file"])
        for s in range(len(samples)):
            ours = tensors[str(s)] if str(s) in tensors else tensors["activations"][tensors["sample"] == s]
            exact = truth[s][hook]
            half = theirs[s][hook]
            triples = zip(*(hf.hf_reference.groups(hook, t.reshape(exact.shape)) for t in (ours, half, exact)))
            for group, (mine, other, right) in enumerate(triples):
                if right.numel() and right[torch.isfinite(right)].norm() > 0:
                    errors = (hf.hf_reference.relative_error(t, right) for t in (mine, other))
                    found.append((hook, s, group, *errors, ULP[dtype]))
    return found


def gates(found):
    """Per hook point over its layers: the root mean square at most 1.1 times Hugging Face's, every cell at most 2.5 times (or 1 ulp)."""
    by_point = collections.defaultdict(list)
    for hook, _, _, ours, theirs, ulp in found:
        words = [word for word in hook.split(".") if not word.isdigit()]
        by_point[".".join(words)].append((ours, max(theirs, ulp / 2.5), max(theirs, ulp / 1.1)))
    points, failures = {}, []
    for point, rows in by_point.items():
        mean = lambda column: math.sqrt(sum(row[column] ** 2 for row in rows) / len(rows))  # noqa: E731
        ratios = {"rms_ratio": mean(0) / mean(2), "cell_ratio": max(ours / cell for ours, cell, _ in rows)}
        points[point] = {"cells": len(rows), "rms": mean(0), **ratios}
        if ratios["rms_ratio"] > 1.1 or ratios["cell_ratio"] > 2.5:
            failures.append(f"{point}: {ratios['rms_ratio']:.2f} and {ratios['cell_ratio']:.2f} times Hugging Face's")
    return points, failures
