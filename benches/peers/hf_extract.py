"""The peer: every layer's hidden states by Hugging Face transformers, to safetensors. Prints one JSON object.

    hf_extract.py --model M --data F.jsonl --out DIR --attention sdpa --batch-size 8 --threads 2
    hf_extract.py --model M --data F.jsonl --out DIR --tune --threads 2      tries each way, prints all

As favourable as it can be while staying plain use of the library: float32, `output_hidden_states` of the base model (no
logits, no KV cache), samples sorted by length and padded on the right, no mask where a batch needs none, and each
sample's real rows given to safetensors without a copy of ours. `seconds` covers the loop from token ids to closed files,
not imports or the loading of the model; nothing waits for the disk.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.numpy import save_file
from transformers import AutoModel

ATTENTION = ("sdpa", "eager")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def extract(model, samples, batch_size, out):
    """Writes DIR/NNNNN.safetensors, a file per batch, with a tensor `SAMPLE.LAYER` [n, d] for each."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    for number, start in enumerate(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        lengths = [len(samples[i]) for i in batch]
        ids = torch.zeros(len(batch), max(lengths), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : lengths[row]] = torch.tensor(samples[i])
        mask = None
        if min(lengths) < max(lengths):
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        states = model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        rows = {}
        for layer, state in enumerate(states[1:]):  # 0 is the embedding; the last one is after the final norm
            state = state.numpy()
            for row, i in enumerate(batch):
                rows[f"{i}.{layer}"] = state[row, : lengths[row]]
        save_file(rows, out / f"{number:05}.safetensors")


def timed(model, samples, attention, batch_size, out):
    model.set_attn_implementation(attention)
    out.mkdir(parents=True, exist_ok=True)
    extract(model, samples[:1], 1, out)  # first-call costs
    start = time.perf_counter()
    extract(model, samples, batch_size, out)
    seconds = time.perf_counter() - start
    tokens = sum(map(len, samples))
    return {
        "attention": attention,
        "batch_size": batch_size,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attention", choices=ATTENTION)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = [json.loads(line)["tokens"] for line in args.data.read_text(encoding="utf-8").splitlines()]
    with torch.inference_mode():
        model = AutoModel.from_pretrained(args.model, dtype=torch.float32, local_files_only=True).eval()
        if args.tune:
            ways = [(attention, size) for attention in ATTENTION for size in BATCH_SIZES]
            print(json.dumps([timed(model, samples, *way, args.out) for way in ways]))
        else:
            print(json.dumps(timed(model, samples, args.attention, args.batch_size, args.out)))


if __name__ == "__main__":
    main()
