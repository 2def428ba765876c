"""One peer's side of one workload, in a process of its own. Prints one JSON object.

    peer.py --peer nnsight --workload residuals --model M --data F.jsonl --out DIR --batch-size 4 --threads 2
    peer.py ... --tune        tries each batch size on every fourth sample, prints all

Each peer runs as its documentation has it, at the setting that was fastest: no gradients, samples sorted by length and padded
on the right (generation: on the left), no mask where a batch needs none, and no layer after the last one that is read. Rows go to
safetensors, a file per batch, with a tensor `SAMPLE.NAME` of the sample's real rows. `seconds` covers the loop from token ids to closed
files, not imports or loading; nothing waits for the disk.
"""

import argparse
import contextlib
import json
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

warnings.simplefilter("ignore")

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
NEW_TOKENS = 64

# TransformerLens's names of the points of a block that have a row per token, and where Hugging Face's modules have them.
POINTS = {
    "hook_resid_pre": ("", "in"),
    "ln1.hook_out": ("input_layernorm", "out"),
    "attn.hook_q": ("self_attn.q_proj", "out"),
    "attn.hook_k": ("self_attn.k_proj", "out"),
    "attn.hook_v": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.o_proj", "in"),
    "hook_attn_out": ("self_attn.o_proj", "out"),
    "hook_resid_mid": ("post_attention_layernorm", "in"),
    "ln2.hook_out": ("post_attention_layernorm", "out"),
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "hook_mlp_out": ("mlp.down_proj", "out"),
    "hook_resid_post": ("", "out"),
}


def taps(workload, n_layers):
    """The names that a workload reads."""
    middle = n_layers // 2
    return {
        "residuals": [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)],
        "last-token": [f"blocks.{middle}.hook_resid_post"],
        "hook-points": [f"blocks.{middle}.{point}" for point in POINTS],
        "steered": [],
    }[workload]


def split(tap):
    """(layer, point) of a tap's name."""
    _, layer, point = tap.split(".", 2)
    return int(layer), point


def submodule(block, path):
    for part in filter(None, path.split(".")):
        block = getattr(block, part)
    return block


class HiddenStates:
    """Hugging Face's `output_hidden_states`: residual streams alone, the last one after the final norm."""

    def __init__(self, model, dtype):
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(model, dtype=dtype, local_files_only=True).eval()

    def read(self, ids, mask, taps):
        last = max(split(tap)[0] for tap in taps)
        states = self.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        return {tap: states[split(tap)[0] + 1] for tap in taps if split(tap)[0] <= last}


class Hooks:
    """PyTorch forward hooks on Hugging Face's modules; the blocks after the last one that is read are cut off beforehand."""

    def __init__(self, model, dtype):
        from transformers import AutoModelForCausalLM

        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, local_files_only=True).eval()
        self.model = self.lm.model

    def read(self, ids, mask, taps):
        blocks = self.model.layers
        self.model.layers = blocks[: max(split(tap)[0] for tap in taps) + 1]
        found, handles = {}, []
        for tap in taps:
            layer, point = split(tap)
            path, side = POINTS[point]
            module = submodule(blocks[layer], path)
            if side == "in":
                handles.append(module.register_forward_pre_hook(lambda _, given, tap=tap: found.__setitem__(tap, given[0])))
            else:
                handles.append(module.register_forward_hook(lambda _, given, out, tap=tap: found.__setitem__(tap, first(out))))
        try:
            self.model(ids, attention_mask=mask, use_cache=False)
        finally:
            self.model.layers = blocks
            for handle in handles:
                handle.remove()
        return found

    def generate(self, ids, mask, layer, vector):
        hook = self.model.layers[layer].register_forward_hook(lambda _, given, out: add(out, vector))
        with contextlib.closing(Removing(hook)):
            return self.lm.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )


class Removing:
    def __init__(self, handle):
        self.close = handle.remove


def first(output):
    return output[0] if isinstance(output, tuple) else output


def add(output, vector):
    return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector


class TransformerLens:
    """The bridge of TransformerLens: `run_with_cache` with the names that are wanted, stopped after the last layer."""

    def __init__(self, model, dtype):
        from transformer_lens.model_bridge import TransformerBridge

        self.model = TransformerBridge.boot_transformers(str(model), device="cpu", dtype=dtype)

    def read(self, ids, mask, taps):
        keywords = {} if mask is None else {"attention_mask": mask}
        stop = max(split(tap)[0] for tap in taps) + 1
        if stop < self.model.cfg.n_layers:
            keywords["stop_at_layer"] = stop
        _, cache = self.model.run_with_cache(ids, return_type=None, names_filter=list(taps), **keywords)
        return {tap: cache[tap].flatten(2) for tap in taps}

    def generate(self, ids, mask, layer, vector):
        with self.model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", lambda x, hook: x + vector)]):
            return self.model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, verbose=False,
                return_type="tokens",
            )  # fmt: skip


class Nnsight:
    """nnsight's trace, which is stopped after the last module that is read."""

    def __init__(self, model, dtype):
        from nnsight import TransformersModel

        self.model = TransformersModel(
            str(model), task="text-generation", device_map="cpu", dtype=dtype, dispatch=True
        )

    def read(self, ids, mask, taps):
        given = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
        places = [(tap, *split(tap)) for tap in taps]
        blocks = self.model.model.layers
        with self.model.trace(given, use_cache=False) as tracer:
            found = dict().save()
            for tap, layer, point in places:
                path, side = POINTS[point]
                module = submodule(blocks[layer], path)
                found[tap] = module.input if side == "in" else module.output
            tracer.stop()
        return {tap: first(rows) for tap, rows in found.items()}

    def generate(self, ids, mask, layer, vector):
        given = {"input_ids": ids, "attention_mask": mask}
        block = self.model.model.layers[layer]
        with self.model.generate(
            given, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        ) as tracer:
            with tracer.iter[0:NEW_TOKENS]:
                block.output[:] += vector
            tokens = tracer.result.save()
        return tokens


PEERS = {"hf-hidden-states": HiddenStates, "hf-hooks": Hooks, "transformer-lens": TransformerLens, "nnsight": Nnsight}


def batches(samples, size):
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(samples, left=False):
    """(ids, mask) of these samples; no mask where none is padded."""
    lengths = [len(tokens) for tokens in samples]
    longest = max(lengths)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros(len(samples), longest, dtype=torch.long)
    for row, tokens in enumerate(samples):
        place = slice(longest - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return ids, None if min(lengths) == longest and not left else mask


def extract(peer, samples, numbers, names, last, size, out):
    for number, batch in enumerate(batches(samples, size)):
        ids, mask = padded([samples[i] for i in batch])
        found = peer.read(ids, mask, names)
        rows = {}
        for name, values in found.items():
            for row, i in enumerate(batch):
                n = len(samples[i])
                rows[f"{numbers[i]}.{name}"] = values[row, n - 1 if last else 0 : n].contiguous()
        save_file(rows, out / f"{number:05}.safetensors")


def generate(peer, samples, numbers, layer, vector, size, out):
    for number, batch in enumerate(batches(samples, size)):
        ids, mask = padded([samples[i] for i in batch], left=True)
        tokens = peer.generate(ids, mask, layer, vector)[:, ids.shape[1] :]
        rows = {f"{numbers[i]}.generated": tokens[row].contiguous() for row, i in enumerate(batch)}
        save_file(rows, out / f"{number:05}.safetensors")


def timed(peer, args, samples, numbers, size):
    args.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    n_layers = config["num_hidden_layers"]

    def run(samples, numbers):
        if args.workload == "steered":
            vector = vector_of(config["hidden_size"]).to(getattr(torch, args.dtype))
            generate(peer, samples, numbers, n_layers // 2, vector, size, args.out)
        else:
            names = taps(args.workload, n_layers)
            extract(peer, samples, numbers, names, args.workload == "last-token", size, args.out)

    if args.workload != "steered":
        run(samples[:1], numbers[:1])  # first-call costs
    start = time.perf_counter()
    run(samples, numbers)
    return {"batch_size": size, "seconds": time.perf_counter() - start}


def vector_of(width):
    """The vector of the steered workload: fixed numbers, of length 20."""
    vector = torch.sin(torch.arange(width, dtype=torch.float32))
    return 20.0 * vector / vector.norm()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--workload", choices=("residuals", "last-token", "hook-points", "steered"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--only", type=lambda text: list(map(int, text.split(","))), help="samples, by number")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = [json.loads(line)["tokens"] for line in args.data.read_text(encoding="utf-8").splitlines()]
    numbers = args.only or list(range(len(samples)))
    samples = [samples[i] for i in numbers]
    with torch.inference_mode():
        peer = PEERS[args.peer](args.model, getattr(torch, args.dtype))
        if args.tune:
            few = list(range(0, len(samples), 4))
            samples, numbers = [samples[i] for i in few], [numbers[i] for i in few]
            sizes = [size for size in BATCH_SIZES if size <= max(len(samples), 1)]
            print(json.dumps([timed(peer, args, samples, numbers, size) for size in sizes]))
        else:
            print(json.dumps(timed(peer, args, samples, numbers, args.batch_size)))


if __name__ == "__main__":
    main()
