"""Makes the committed fixtures that say what a model computes:

    tests/fixtures/models/NAME/                 small random models (tiny_models.py)
    tests/fixtures/goldens/NAME.safetensors     their activations, and SmolLM2's, as sketches (sketch.py)
    tests/fixtures/smollm2_samples.jsonl        SmolLM2's samples, ready for `extract --tokens-field tokens`
    tests/fixtures/smollm2_tokens.json          texts, conversations and their token ids

SmolLM2-135M-Instruct must be in .models (scripts/fetch-model).

A golden file holds for each sample S, with the hook points in the order of the metadata's `points` (one name a line)
and two groups of rows, token 0 and the later tokens:

    S/tokens      I32 [n]              token ids
    S/sketch      F32 [points, 2, 32]  sketch of the float64 reference, rows first ([token, …]; hook_attn_scores and
                                       hook_pattern as [query token, head, key token] with all n keys), -inf as 0
    S/norm        F64 [points, 2]      L2 norm of the same elements
    S/hf_float32  F32 [points, 2]      relative L2 error of Hugging Face float32 against the reference, the largest over
                                       the metadata's `float32_runs` (hf_runs.py; one name a line)
    S/hf_float32_one  F32 [points, 2]  the same of the first run alone
    S/masked      I32 [points, 2]      how many elements were -inf
    S/hf_half     F32 [points, 2]      for models with `half`: the same of Hugging Face in the dtype of the file, with SDPA
                                       (the metadata's `half_runs`)
    S/hf_half_one F32 [points, 2]      and of the first run alone
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from hf_reference import Reference, groups, hook_points
from hf_runs import RUNS, errors_of_runs, failures
from samples import CHATS, SAMPLES, TOKENIZER_TEXTS
from sketch import PROJECTIONS, sketch
from tiny_models import MODELS, make, samples
from tokenizers import Tokenizer
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "lib"))
from safetensors_file import write_safetensors  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SMOLLM2 = ROOT / ".models" / "SmolLM2-135M-Instruct"


def hf_errors(kind, folder, inputs):
    """({tensor name: tensor}, the table of failures): what several runs of Hugging Face are off by."""
    runs = errors_of_runs(kind, folder, inputs)
    tensors = {}
    for sample in inputs:
        tensors[f"{sample}/hf_{kind}"] = ("F32", np.max([run[sample] for run in runs.values()], axis=0))
        tensors[f"{sample}/hf_{kind}_one"] = ("F32", next(iter(runs.values()))[sample])
    return tensors, failures(kind, runs)


def goldens(name, folder, inputs, half=False):
    """`inputs`: {sample name: token ids}; `half`: also what the model's own 16-bit dtype shows."""
    kinds = ["float32", "half"] if half else ["float32"]
    shown = {kind: hf_errors(kind, folder, inputs) for kind in kinds}
    tensors = {name: tensor for of_kind, _ in shown.values() for name, tensor in of_kind.items()}
    worst = max(tensors[f"{sample}/hf_float32"][1].max() for sample in inputs)
    reference = Reference(folder)
    points = hook_points(reference.n_layers)
    for sample, ids in inputs.items():
        truth = reference.truth(ids)
        sketches = np.zeros((len(points), 2, PROJECTIONS), np.float32)
        norms = np.zeros((len(points), 2), np.float64)
        masked = np.zeros((len(points), 2), np.int32)
        for i, point in enumerate(points):
            for group, exact in enumerate(groups(point, truth.pop(point))):
                s, norms[i, group], masked[i, group] = sketch(exact)
                sketches[i, group] = s.numpy()
        assert not truth
        tensors |= {
            f"{sample}/tokens": ("I32", np.array(ids, np.int32)),
            f"{sample}/sketch": ("F32", sketches),
            f"{sample}/norm": ("F64", norms),
            f"{sample}/masked": ("I32", masked),
        }
    path = FIXTURES / "goldens" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    metadata = {
        "made_by": "scripts/reference/make_fixtures.py",
        "points": "\n".join(points),
    } | {f"{kind}_runs": "\n".join(RUNS[kind]) for kind in kinds}
    write_safetensors(path, tensors, metadata)
    print(f"{path.relative_to(ROOT)}: {len(inputs)} samples, Hugging Face float32 at worst {worst:.1e}", flush=True)
    for _, table in shown.values():
        print(table, flush=True)


def smollm2_inputs():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    ids = {}
    for name, content in SAMPLES.items():
        if isinstance(content, list):
            content = tokenizer.apply_chat_template(content, tokenize=False)
        ids[name] = tokenizer(content)["input_ids"]
    return ids


def smollm2_tokens():
    library = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    texts = [{"text": text, "ids": library.encode(text).ids} for text in TOKENIZER_TEXTS]
    for entry in texts:
        assert entry["ids"] == tokenizer(entry["text"])["input_ids"], entry
    chats = []
    for chat in CHATS:
        text = tokenizer.apply_chat_template(
            chat["messages"], add_generation_prompt=chat["add_generation_prompt"], tokenize=False
        )
        chats.append({**chat, "text": text, "ids": library.encode(text, add_special_tokens=False).ids})
    parts = []
    for key, entries in (("texts", texts), ("chats", chats)):
        lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=True) for entry in entries)
        parts.append(f' "{key}": [\n{lines}\n ]')
    path = FIXTURES / "smollm2_tokens.json"
    path.write_text('{"made_by": "scripts/reference/make_fixtures.py",\n' + ",\n".join(parts) + "\n}\n")


def main():
    torch.manual_seed(0)
    if not SMOLLM2.is_dir():
        sys.exit(f"error: {SMOLLM2} is missing; run scripts/fetch-model")
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        make(name, FIXTURES / "models" / name)
        goldens(name, FIXTURES / "models" / name, samples(name), model.get("half", False))
    smollm2_tokens()
    inputs = smollm2_inputs()
    with open(FIXTURES / "smollm2_samples.jsonl", "w", encoding="utf-8") as file:
        for name, ids in inputs.items():
            file.write(json.dumps({"name": name, "tokens": ids}) + "\n")
    goldens("SmolLM2-135M-Instruct", SMOLLM2, inputs, half=True)


if __name__ == "__main__":
    main()
