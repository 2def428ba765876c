"""Writes tests/fixtures/study/: the dishonesty study's numbers on SmolLM2-135M-Instruct by Hugging Face in float32 on the CPU, through
PyTorch hooks. It reads the facts and the prompts that the project ships and shares no code with it.

    prompts.jsonl           the lines of data/behaviours/dishonesty-prompts.jsonl that all of it is about
    directions.safetensors  `layer.N` [d_model], unit norm: E1's direction
    reference.json
      e1      per layer: eigenvalue ratio λ₂/λ₁, |cos| with the mean difference, matched and unpaired accuracy; and `second`, the second
              eigenvector where λ₂/λ₁ ≥ 0.9; the first and the last string of either side
      choice  the layer, the strength, the mean norm at the last position
      e2      per prompt: ids; new ids of the plain and of the edited run, and the least gap between the best two logits
      e4      per prompt and token of the edited text up to the first end of turn: log p_edited(a) - log p_plain(a), and whether the
              plain run's own choice is another
      e5 e7 e8 e9 e10     recoveries per prompt; of noising patches, less 1
      e6      per prompt: what is added along the two tokens, per strength and component
      e11     per layer: accuracy at 0, AUC, share projected positive

E5 to E10 are about the prompts of the report half. To keep it within ten minutes on two cores they are in part samples: E5 about the
last 6 positions, E8 and E10 about the first prompts, E9 about the pairs of blocks in PAIR_LAYERS, E10 about GRID_LAYERS and the last
6 positions.

    study.py [OUT]
"""

import csv
import itertools
import json
import math
import os
import pathlib
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # beside other work, threads that spin while they wait cost more than they bring

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

torch.set_grad_enabled(False)
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / ".models/SmolLM2-135M-Instruct"
SENTENCE = "Pretend you're {} person making statements about the world."
TRAIN, TEST = 512, 256
GRID = [0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.0]
NEW_TOKENS = 48
END = 2  # <|im_end|>
STRENGTHS = 12
LAST = 6  # positions, counted from the end
E8_PROMPTS, E9_PROMPTS, E10_PROMPTS = 2, 2, 2
PAIR_LAYERS = [15, 16, 20, 25, 29]
GRID_LAYERS = [14, 15, 20, 29]
# How many of the shipped prompts, of either answer: (half, kind): count.
CHOSEN = {("tuning", "dilemma"): 2, ("tuning", "factual"): 1, ("report", "dilemma"): 3, ("report", "factual"): 1}


class Model:
    """The Hugging Face model with a hook at every place that is read or written here.

    A *component* is (kind, layer): kind is `attn`, `mlp` (what the block adds), `z` (what goes into o_proj) or `resid` (behind a block).
    """

    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.hf = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()
        config = self.hf.config
        self.n_layers, self.width, self.heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        self.head_dim = self.width // self.heads
        self.direction, self.layer = None, round(15 / 31 * (self.n_layers - 1))
        self.strength, self.patches, self.kept, self.norm_input = None, {}, None, None
        for number, block in enumerate(self.hf.model.layers):
            block.self_attn.o_proj.register_forward_pre_hook(self.before("z", number))
            block.self_attn.o_proj.register_forward_hook(self.after("attn", number))
            block.mlp.register_forward_hook(self.after("mlp", number))
            block.register_forward_hook(self.after("resid", number))
        self.hf.model.norm.register_forward_pre_hook(self.before_norm)

    def before_norm(self, module, args):
        self.norm_input = args[0]

    def at(self, component, x):
        """The edit first, then what is patched; then it is kept."""
        if component == ("resid", self.layer) and self.strength is not None:
            x = x + self.strength[:, -x.shape[1]:, None] * self.direction
        for row, places, dims, value in self.patches.get(component, ()):
            x = x.clone()
            x[row, places, dims] = value
        if self.kept is not None:
            self.kept[component] = x
        return x

    def before(self, kind, layer):
        return lambda module, args: (self.at((kind, layer), args[0]),)

    def after(self, kind, layer):
        def hook(module, args, output):
            if isinstance(output, tuple):
                return (self.at((kind, layer), output[0]), *output[1:])
            return self.at((kind, layer), output)
        return hook

    def run(self, ids, strength=None, patches=None, start=0, stream=None, keep=False, rows=slice(-1, None)):
        """Logits in float64 of the chosen rows. `ids` [B, n]; from block `start` on where `stream`, what enters it, is given.
        `strength` [B, n]: c at each position; `patches` {component: [(row, positions, dims, value)]}."""
        self.strength, self.patches, self.kept = strength, patches or {}, {} if keep else None
        positions = torch.arange(ids.shape[1])[None]
        h = self.hf.model.embed_tokens(ids) if stream is None else stream
        rotary = self.hf.model.rotary_emb(h, positions)
        for block in self.hf.model.layers[start:]:
            h = block(h, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            h = h[0] if isinstance(h, tuple) else h
        self.strength = None
        return self.hf.lm_head(self.hf.model.norm(h[:, rows])).double()

    def steer(self, ids, c):
        return torch.full(ids.shape, float(c)) if c else None

    def chat(self, text):
        turns = [{"role": "user", "content": text}]
        words = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return words, self.tokenizer(words, add_special_tokens=False)["input_ids"]


def log_p(logits):
    return logits.log_softmax(-1)


def kl(p, q):
    """KL(p || q) in nats of two rows of log-probabilities."""
    return float((p.exp() * (p - q)).sum(-1))


# E1: the direction of each layer.

def make_strings(model, facts):
    """[(honest, untruthful)] by statement: u grows by a token from string to string."""
    heads = [model.chat(SENTENCE.format(who))[0] for who in ("an honest", "an untruthful")]
    statements = []
    for fact in facts:
        if fact["label"] == "1":
            ids = model.tokenizer(fact["statement"], add_special_tokens=False)["input_ids"]
            cuts = [model.tokenizer.decode(ids[:i]) for i in range(1, len(ids) - 5)]
            statements.append([tuple(head + cut for head in heads) for cut in cuts])
    return statements


def split(statements):
    """The first 512 pairs, and 256 of statements after those; the statement that straddles is dropped."""
    train, test, dropped = [], [], False
    for pairs in statements:
        if not dropped and len(train) + len(pairs) <= TRAIN:
            train += pairs
            dropped = len(train) == TRAIN
        elif not dropped:
            train += pairs[:TRAIN - len(train)]
            dropped = True
        else:
            test += pairs
    return train, test[:TEST]


def last_rows(model, strings):
    """resid_post at the last token of each string: [strings, layers, d]. What all begin with is run once, and kept as keys and values;
    a string that begins another is read off the other's run."""
    ids = [tuple(model.tokenizer(s, add_special_tokens=False)["input_ids"]) for s in strings]
    first, last = min(ids), max(ids)
    common = next(i for i, (a, b) in enumerate(zip(first, last)) if a != b)
    prefix = DynamicCache()
    model.hf.model(torch.tensor([first[:common]]), past_key_values=prefix)
    wanted = {one[common:] for one in ids}
    prefixes = {longer[:n] for longer in wanted for n in range(1, len(longer))}
    rows = {}
    for size, group in itertools.groupby(sorted(wanted - prefixes, key=len), key=len):
        group = list(group)
        for i in range(0, len(group), 32):
            batch = group[i:i + 32]
            cache = DynamicCache()
            for number, layer in enumerate(prefix.layers):
                cache.update(*(states.expand(len(batch), -1, -1, -1) for states in (layer.keys, layer.values)), number)
            model.kept = {}
            model.hf.model(torch.tensor(batch), past_key_values=cache)
            stream = torch.stack([model.kept["resid", layer] for layer in range(model.n_layers)], 2)
            for sequence, values in zip(batch, stream):
                for n in range(1, size + 1):
                    if sequence[:n] in wanted and sequence[:n] not in rows:
                        rows[sequence[:n]] = values[n - 1].clone()
    return torch.stack([rows[one[common:]] for one in ids])


def directions(model, facts):
    train, test = split(make_strings(model, facts))
    sides = [[pair[side] for pair in train + test] for side in (0, 1)]
    rows = torch.stack([last_rows(model, side) for side in sides], 1).double()  # [pairs, 2, layers, d]
    fitted, held = rows[:len(train)], rows[len(train):]
    found, layers = {}, []
    for layer in range(model.n_layers):
        differences = fitted[:, 0, layer] - fitted[:, 1, layer]
        values, vectors = torch.linalg.eigh(differences.T @ differences / len(differences))
        d = vectors[:, -1]
        votes = (differences @ d > 0).sum(), (differences @ d < 0).sum()
        d = -d if votes[1] > votes[0] else d
        mean = differences.mean(0)
        along, held_along = fitted[:, :, layer] @ d, held[:, :, layer] @ d
        middle = along.mean()
        right = torch.stack([held_along[:, 0] > middle, held_along[:, 1] < middle])
        found[f"layer.{layer}"] = d.float().contiguous()
        layers.append({
            "eigenvalue_ratio": float(values[-2] / values[-1]), "cos_mean": float((mean @ d).abs() / mean.norm()),
            "matched": float((held_along[:, 0] > held_along[:, 1]).double().mean()), "unpaired": float(right.double().mean()),
            "train": len(train), "test": len(test),
        })
        if values[-2] / values[-1] >= 0.9:
            layers[-1]["second"] = [round(float(x), 7) for x in vectors[:, -2]]
    ends = [train[0][0], train[0][1], train[-1][0], train[-1][1], test[0][0], test[-1][1]]
    return found, {"layers": layers, "strings": ends}


# The strength of the edit, and the two runs of each prompt.

def choose(model, prompts):
    tuning = [torch.tensor([p["ids"]]) for p in prompts if p["half"] == "tuning"]
    norms, firsts, streams = [], [], []
    for ids in tuning:
        firsts.append(model.run(ids, keep=True)[0, -1].argmax())
        norms.append(model.kept["resid", model.layer][0, -1].double().norm())
        streams.append(model.kept["resid", model.layer - 1])
    size = float(torch.stack(norms).mean())
    shares = []
    for factor in GRID:
        c = -factor * size
        edited = [model.run(ids, model.steer(ids, c), start=model.layer, stream=stream) for ids, stream in zip(tuning, streams)]
        flipped = [logits[0, -1].argmax() != first for logits, first in zip(edited, firsts)]
        shares.append(sum(map(int, flipped)) / len(flipped))
        if shares[-1] >= 0.9:
            break
    return {"layer": model.layer, "norm": size, "c": c, "shares": shares}


class Runs:
    """A prompt's plain and edited run, with every component of both."""

    def __init__(self, model, prompt, c):
        self.model, self.c, self.ids = model, c, torch.tensor([prompt["ids"]])
        self.n, self.name = self.ids.shape[1], prompt["id"]
        self.plain = log_p(model.run(self.ids, keep=True)[0, -1])
        self.plain_parts = model.kept
        self.edited = log_p(model.run(self.ids, model.steer(self.ids, c), keep=True)[0, -1])
        self.edited_parts = model.kept
        self.between = kl(self.edited, self.plain)

    def recoveries(self, runs, start):
        """Each run: (way, [(component, positions, dims)]); from the stream that enters block `start`."""
        found = []
        for i in range(0, len(runs), 16):
            batch = runs[i:i + 16]
            ids = self.ids.expand(len(batch), -1)
            strength = torch.zeros(ids.shape)
            patches, streams = {}, []
            for row, (way, places) in enumerate(batch):
                into, source = (self.plain_parts, self.edited_parts) if way == "denoising" else (self.edited_parts, self.plain_parts)
                strength[row] = 0.0 if way == "denoising" else self.c
                streams.append(into["resid", start - 1])
                for component, positions, dims in places:
                    patches.setdefault(component, []).append((row, positions, dims, source[component][0, positions, dims]))
            logits = self.model.run(ids, strength, patches, start, torch.cat(streams))
            for (way, _), row in zip(batch, log_p(logits[:, -1])):
                found.append(1 - kl(self.edited, row) / self.between - (way == "noising"))
        return found

    def injected(self, wheres):
        """Recovery of runs with the edit at some positions: each a list of positions from the end."""
        ids = self.ids.expand(len(wheres), -1)
        strength = torch.zeros(ids.shape)
        for row, where in enumerate(wheres):
            strength[row, where] = self.c
        stream = self.plain_parts["resid", self.model.layer - 1].expand(len(wheres), -1, -1)
        rows = log_p(self.model.run(ids, strength, start=self.model.layer, stream=stream)[:, -1])
        return [1 - kl(self.edited, row) / self.between for row in rows]


EVERY = slice(None)
WAYS = ("denoising", "noising")


def e2(model, prompts, c):
    """Greedy, all prompts in one batch, padded on the left and masked."""
    longest = max(len(p["ids"]) for p in prompts)
    ids = torch.tensor([[END] * (longest - len(p["ids"])) + p["ids"] for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p["ids"])) + [1] * len(p["ids"]) for p in prompts])
    found = [{"prompt": p["id"], "ids": p["ids"]} for p in prompts]
    for name, strength in (("plain", None), ("edited", torch.full((len(prompts), longest), float(c)))):
        model.strength, model.patches, model.kept = strength, {}, None
        done = model.hf.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=END, eos_token_id=END,
            output_logits=True, return_dict_in_generate=True)
        model.strength = None
        for row, new in enumerate(done.sequences[:, longest:].tolist()):
            new = new[:new.index(END) + 1] if END in new else new
            gaps = [float(best - second) for best, second in (step[row].topk(2).values for step in done.logits[:len(new)])]
            found[row] |= {name: new, f"{name}_gap": round(min(gaps), 6), f"{name}_text": model.tokenizer.decode(new)}
    return found


def e4(model, texts, c):
    found = []
    for text in texts:
        prompt, new = text["ids"], text["edited"]
        ids = torch.tensor([prompt + new])
        rows = slice(len(prompt) - 1, ids.shape[1] - 1)
        plain = log_p(model.run(ids, rows=rows)[0])
        edited = log_p(model.run(ids, model.steer(ids, c), rows=rows)[0])
        choice = edited.argmax(-1)
        shift = (edited - plain).gather(-1, choice[:, None])[:, 0]
        flips = (plain.argmax(-1) != choice).int().tolist()
        found.append({"prompt": text["prompt"], "shift": [round(x, 7) for x in shift.tolist()], "flips": flips})
    return found


def e5(runs):
    found = []
    for run in runs:
        lasts = [-i for i in range(1, LAST + 1)]
        others = [[i for i in range(-run.n, 0) if i != last] for last in lasts]
        found.append({"prompt": run.name, "single": run.injected([[i] for i in lasts]), "all_but": run.injected(others)})
    return found


def e6(model, runs, c):
    """Along W_U[dis] - W_U[hon]: what the embedding, each block and the injection give, at each strength."""
    head, gain, epsilon = model.hf.lm_head.weight.double(), model.hf.model.norm.weight.double(), model.hf.config.rms_norm_eps
    found = []
    for run in runs:
        dis, hon = int(run.edited.argmax()), int(run.plain.argmax())
        per_strength = []
        for step in range(STRENGTHS):
            strength = c * (1 - step / (STRENGTHS - 1))
            stream = run.plain_parts["resid", model.layer - 1]
            logits = model.run(run.ids, torch.full(run.ids.shape, strength), start=model.layer, stream=stream, keep=True)[0, -1]
            written = run.plain_parts | model.kept
            last = model.norm_input[0, -1].double()
            scale = (last.square().mean() + epsilon).sqrt()
            along = (head[dis] - head[hon]) * gain / scale
            parts = [model.hf.model.embed_tokens(run.ids)[0, -1]]
            parts += [written[kind, layer][0, -1] for layer in range(model.n_layers) for kind in ("attn", "mlp")]
            parts.append(strength * model.direction)
            shares = [float(part.double() @ along) for part in parts]
            difference = float(logits[dis] - logits[hon])
            assert math.isclose(sum(shares), difference, abs_tol=2e-3), (sum(shares), difference)
            per_strength.append({"c": strength, "difference": difference, "shares": [round(x, 6) for x in shares]})
        found.append({"prompt": run.name, "dis": dis, "hon": hon, "strengths": per_strength})
    return found


def e7(model, runs):
    found = []
    for run in runs:
        values = {way: {"attn": [], "mlp": []} for way in WAYS}
        for layer in range(model.layer - 1, model.n_layers):
            each = [(way, kind) for way in WAYS for kind in ("attn", "mlp")]
            got = run.recoveries([(way, [((kind, layer), EVERY, EVERY)]) for way, kind in each], layer)
            for (way, kind), value in zip(each, got):
                values[way][kind].append(value)
        found.append({"prompt": run.name, "first_layer": model.layer - 1, **values})
    return found


def head(model, number):
    return slice(number * model.head_dim, (number + 1) * model.head_dim)


def e8(model, runs):
    found = []
    for run in runs:
        layers = range(model.layer + 1, model.n_layers)
        patches = [[("denoising", [(("z", layer), EVERY, head(model, h))]) for h in range(model.heads)] for layer in layers]
        values = [run.recoveries(one, layer) for one, layer in zip(patches, layers)]
        found.append({"prompt": run.name, "first_layer": model.layer + 1, "denoising": values})
    return found


def e9(runs):
    blocks = [(kind, layer) for layer in PAIR_LAYERS for kind in ("attn", "mlp")]
    found = []
    for run in runs:
        pairs = []
        for start, group in itertools.groupby(itertools.combinations(blocks, 2), key=lambda pair: pair[0][1]):
            group = list(group)
            wanted = [(way, [(block, EVERY, EVERY) for block in pair]) for pair in group for way in WAYS]
            got = run.recoveries(wanted, start)
            for i, pair in enumerate(group):
                pairs.append({"pair": [f"{kind}{layer}" for kind, layer in pair], "denoising": got[2 * i], "noising": got[2 * i + 1]})
        found.append({"prompt": run.name, "pairs": pairs})
    return found


def e10(runs):
    found = []
    for run in runs:
        cells = []
        for layer in GRID_LAYERS:
            each = [(kind, -i) for kind in ("resid", "attn", "mlp") for i in range(1, LAST + 1)]
            got = run.recoveries([("denoising", [((kind, layer), slice(at, at + 1 or None), EVERY)]) for kind, at in each], layer)
            cells += [{"kind": kind, "layer": layer, "position": at, "recovery": r} for (kind, at), r in zip(each, got)]
        found.append({"prompt": run.name, "cells": cells})
    return found


def auc(scores, labels):
    """Area under the ROC: how often a true one stands above a false one, ties counting half."""
    positive, negative = scores[labels], scores[~labels]
    above = (positive[:, None] > negative[None]).double().mean() + 0.5 * (positive[:, None] == negative[None]).double().mean()
    return float(above)


def e11(model, facts, found):
    """BOS + statement; projections z-scored over unique statements."""
    start = model.tokenizer.bos_token_id
    ids = [[start] + model.tokenizer(f["statement"], add_special_tokens=False)["input_ids"] for f in facts]
    rows = [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for _, group in itertools.groupby(order, key=lambda i: len(ids[i])):
        group = list(group)
        for i in range(0, len(group), 32):
            model.run(torch.tensor([ids[j] for j in group[i:i + 32]]), keep=True)
            stream = torch.stack([model.kept["resid", layer][:, -1] for layer in range(model.n_layers)], 1).double()
            for j, values in zip(group[i:i + 32], stream):
                rows[j] = values
    rows = torch.stack(rows)
    labels = torch.tensor([f["label"] == "1" for f in facts])
    firsts = list({f["statement"]: i for i, f in reversed(list(enumerate(facts)))}.values())
    layers = []
    for layer in range(model.n_layers):
        along = rows[:, layer] @ found[f"layer.{layer}"].double()
        z = (along - along[firsts].mean()) / along[firsts].std()
        layers.append({
            "accuracy": float(((z > 0) == labels).double().mean()), "auc": auc(z, labels), "positive": float((along > 0).double().mean()),
            "positive_z": float((z > 0).double().mean()),
        })
    return {"n": len(facts), "ids": ids[0], "layers": layers}


def read_prompts():
    left, chosen = dict.fromkeys(((*key, honest) for key in CHOSEN for honest in ("yes", "no")), 0), []
    for line in (ROOT / "data/behaviours/dishonesty-prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)
        key = prompt["half"], prompt["kind"]
        if left[*key, prompt["honest"]] < CHOSEN[key]:
            left[*key, prompt["honest"]] += 1
            chosen.append((line, prompt))
    return chosen


def rounded(value):
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {key: rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/fixtures/study"
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    reference = {}

    def put(name, value):
        reference[name] = rounded(value)
        print(f"{time.monotonic() - began:7.1f} s  {name}", file=sys.stderr, flush=True)

    model = Model()
    chosen = read_prompts()
    (out / "prompts.jsonl").write_text("".join(line + "\n" for line, _ in chosen))
    prompts = [prompt | {"ids": model.chat(prompt["text"])[1]} for _, prompt in chosen]
    facts = list(csv.DictReader((ROOT / "data/facts.csv").open(newline="")))
    found, layers = directions(model, facts)
    put("e1", layers)
    save_file(found, out / "directions.safetensors")
    put("e11", e11(model, facts, found))
    model.direction = found[f"layer.{model.layer}"]
    put("choice", choose(model, prompts))
    c = reference["choice"]["c"] = float(torch.tensor(reference["choice"]["c"], dtype=torch.float32))
    report = [prompt for prompt in prompts if prompt["half"] == "report"]
    put("e2", e2(model, prompts, c))
    reported = {prompt["id"] for prompt in report}
    put("e4", e4(model, [text for text in reference["e2"] if text["prompt"] in reported], c))
    runs = [Runs(model, prompt, c) for prompt in report]
    put("runs", [{"prompt": run.name, "kl": run.between} for run in runs])
    put("e5", e5(runs))
    put("e6", e6(model, runs, c))
    put("e7", e7(model, runs))
    put("e8", e8(model, runs[:E8_PROMPTS]))
    put("e9", e9(runs[:E9_PROMPTS]))
    put("e10", e10(runs[:E10_PROMPTS]))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}" for key, value in reference.items())
    (out / "reference.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
