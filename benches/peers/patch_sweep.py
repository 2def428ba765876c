"""A patching sweep beside a PyTorch-hooks loop that does the same work, and whether their numbers agree. Prints one JSON object.

    patch_sweep.py --streamgauge target/release/streamgauge --model M --threads 2

Per prompt and both ways: every block (attention and MLP) of the last layers, every head of theirs, and every pair of blocks. The
prompts' two runs are one text with and without a direction added at a layer before these (a random one, of a length relative to
the stream's). The measure is recovery: 1 - KL(p_edited || p_x) / KL(p_edited || p_plain) at the last position.

The peer is as favourable as it can be while staying a loop of hooks: float32, all prompts in one batch (of one length, so that
none is padded), the two runs' activations kept once, logits at the last position only, no KV cache, and KL, in float64 as
ours, for all prompts at once. Both are timed from token ids to numbers, without loading the model; they take turns, --repeats times.
"""

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

WAYS = ("denoising", "noising")


def prompts(vocab, count, length):
    """Token ids that any model has; the numbers mean nothing, the work does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, min(vocab, 20000), (count, length), generator=generator)


class Peer:
    """The loop of hooks. A patch is a list of (kind, layer, head or None); all of its places are replaced at all positions."""

    def __init__(self, model, ids, edit_layer, direction):
        self.model, self.ids = model, ids
        self.layers = model.model.layers
        self.edit = (edit_layer, direction)
        self.head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads

    def forward(self, is_edited, hooks):
        handles = [place.register_forward_pre_hook(hook) if is_pre else place.register_forward_hook(hook) for place, is_pre, hook in hooks]
        if is_edited:
            layer, direction = self.edit

            def add(module, inputs, output):
                return (output[0] + direction, *output[1:]) if isinstance(output, tuple) else output + direction

            handles.append(self.layers[layer].register_forward_hook(add))
        logits = self.model(self.ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        for handle in handles:
            handle.remove()
        return torch.log_softmax(logits.double(), -1)  # a KL of 1e-5 is no sum of float32 logarithms

    def keep(self, is_edited, layers):
        """{(kind, layer): activation} of a run, and its log-probabilities."""
        kept, hooks = {}, []
        for l in layers:

            def out(key):
                def hook(module, inputs, output):
                    kept[key] = (output[0] if isinstance(output, tuple) else output).clone()

                return hook

            def before(key):
                def hook(module, inputs):
                    kept[key] = inputs[0].clone()

                return hook

            hooks.append((self.layers[l].self_attn, False, out(("attn", l))))
            hooks.append((self.layers[l].mlp, False, out(("mlp", l))))
            hooks.append((self.layers[l].self_attn.o_proj, True, before(("z", l))))
        return self.forward(is_edited, hooks), kept

    def patched(self, is_edited, source, patch):
        hooks = []
        for kind, layer, head in patch:
            value = source[("z" if head is not None else kind, layer)]
            if head is not None:
                columns = slice(head * self.head_dim, (head + 1) * self.head_dim)

                def replace(module, inputs, value=value, columns=columns):
                    z = inputs[0].clone()
                    z[..., columns] = value[..., columns]
                    return (z, *inputs[1:])

                hooks.append((self.layers[layer].self_attn.o_proj, True, replace))
            else:

                def swap(module, inputs, output, value=value):
                    return (value, *output[1:]) if isinstance(output, tuple) else value

                hooks.append((self.layers[layer].self_attn if kind == "attn" else self.layers[layer].mlp, False, swap))
        return self.forward(is_edited, hooks)

    def sweep(self, layers, patches):
        """{(way, patch): [recovery per prompt]}"""
        clean, from_clean = self.keep(True, layers)
        corrupt, from_corrupt = self.keep(False, layers)
        p = clean.exp()

        def kl(q):
            return (p * (clean - q)).sum(-1)

        base = kl(corrupt)
        found = {}
        for way, patch in itertools.product(WAYS, patches):
            is_noising = way == "noising"
            run = self.patched(is_noising, from_corrupt if is_noising else from_clean, patch)
            found[way, patch] = (1 - kl(run) / base - int(is_noising)).tolist()
        return found, base.tolist()


def ours(args, folder, ids, edit_layer, layers, heads):
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"clean": row}) + "\n" for row in ids.tolist()), encoding="utf-8")
    span = f"{{{layers[0]}-{layers[-1]}}}" if len(layers) > 1 else str(layers[0])
    blocks = [f"blocks.{span}.hook_attn_out", f"blocks.{span}.hook_mlp_out"]
    command = [args.streamgauge, "patch", "--model", args.model, "--data", folder / "prompts.jsonl", "--out", folder / "out"]
    command += ["--sites", *blocks, f"blocks.{span}.attn.hook_z[0-{heads - 1}]", "--pairs", *blocks, "--way", "both", "--min-kl", "0"]
    command += ["--edit", f"add at=blocks.{edit_layer}.hook_resid_post v={folder / 'direction.safetensors'}#v c=1", "--json", "--quiet"]
    environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    done = subprocess.run([str(word) for word in command], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {command[0]} patch exited with {done.returncode}")
    kinds = {"hook_attn_out": "attn", "hook_mlp_out": "mlp", "attn.hook_z": "z"}
    found = {}
    with open(folder / "out" / "sweep.csv", newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            place = lambda n: (kinds[row["site" + n]], int(row["layer" + n]), int(row["head" + n]) if row["head" + n] else None)
            patch = (place(""),) + ((place("2"),) if row["site2"] else ())
            found.setdefault((row["way"], patch), {})[int(row["prompt"])] = float(row["recovery"])
    return json.loads(done.stdout), {key: [by[i] for i in range(len(ids))] for key, by in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streamgauge", type=Path, required=True, help="the release binary")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--length", type=int, default=40, help="tokens of each prompt")
    parser.add_argument("--first-layer", type=int, help="first patched layer [default: the last 16]; the edit is one before it")
    parser.add_argument("--strength", type=float, default=0.3, help="of the edit, as a share of the stream's mean norm at the last position")
    parser.add_argument("--sample", type=int, help="time and compare only every n-th of the peer's patches, and scale its time up")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, local_files_only=True).eval()
        n_layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
        first = args.first_layer if args.first_layer is not None else max(n_layers - 16, 1)
        layers = list(range(first, n_layers))
        ids = prompts(model.config.vocab_size, args.prompts, args.length)
        stream = model(ids, output_hidden_states=True, use_cache=False).hidden_states[first][:, -1]
        direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(1))
        direction *= args.strength * stream.norm(dim=-1).mean() / direction.norm()
        blocks = [(kind, l, None) for l in layers for kind in ("attn", "mlp")]
        patches = [(block,) for block in blocks] + [(("z", l, h),) for l in layers for h in range(heads)]
        patches += list(itertools.combinations(blocks, 2))
        peer = Peer(model, ids, first - 1, direction)
        peer.sweep(layers, patches[:1])  # first-call costs
        chosen = patches[:: args.sample] if args.sample else patches
        folder = Path(folder)
        save_file({"v": direction.contiguous()}, folder / "direction.safetensors")
        peer_seconds, our_seconds = [], []
        for _ in range(args.repeats):
            start = time.perf_counter()
            theirs, base = peer.sweep(layers, chosen)
            peer_seconds.append((time.perf_counter() - start) * len(patches) / len(chosen))
            shutil.rmtree(folder / "out", ignore_errors=True)
            summary, found = ours(args, folder, ids, first - 1, layers, heads)
            our_seconds.append(summary["wall_s"])
            print(f"peer {peer_seconds[-1]:.1f} s, streamgauge {our_seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    ratios = [peers / mine for peers, mine in zip(peer_seconds, our_seconds)]
    differences = [abs(a - b) for key, values in theirs.items() for a, b in zip(values, found[key], strict=True)]
    result = {
        "model": Path(args.model).name,
        "prompts": args.prompts,
        "length": args.length,
        "layers": [first, n_layers - 1],
        "patches": len(patches),
        "ways": len(WAYS),
        "kl_between_runs": base,
        "peer_patches_timed": len(chosen),
        "peer_seconds": peer_seconds,
        "streamgauge_seconds": our_seconds,
        "times_faster": {"median": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios)},
        "layer_runs": summary["layer_runs"],
        "naive_layer_runs": summary["naive_layer_runs"],
        "largest_difference": max(differences),
        "differences_compared": len(differences),
    }
    print(json.dumps(result))
    if not all(map(math.isfinite, differences)) or max(differences) > 1e-3:
        sys.exit(f"error: recoveries differ by up to {max(differences)}, more than 0.001")


if __name__ == "__main__":
    main()
