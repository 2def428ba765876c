"""Writes tests/fixtures/generation.json and generation.safetensors: what Hugging Face writes in float32 on the CPU, greedily,
with SmolLM2-135M-Instruct: plain, steered at several layers, with other edits, with a repetition penalty,
and with a sliding window of 64 (the same weights as a Mistral model).

    generation.json
      prompts   [{"chat" or "text", "ids"}]
      runs      [{"name", "edits" (ours; `VECTORS` stands for the safetensors file), "window", "repetition_penalty",
                  "outputs": [{"prompt", "ids" (new ones, an end of turn included), "logprobs", "gaps"}]}]
    generation.safetensors   the edits' vectors, float32

`logprobs` are log-softmax of the model's own logits, before any penalty; `gaps` is by how much the best score beats the second
after it: where that is below 1e-3, another order of summation may choose another token.
Each of our edits is made a second time here, by PyTorch hooks, in EDITS.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

torch.set_grad_enabled(False)
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / ".models/SmolLM2-135M-Instruct"
OUT = ROOT / "tests/fixtures"
NEW_TOKENS = 64
HEAD = 64  # head dim
PAD = 2

CHATS = [
    "What is the capital of France?", "Write a haiku about rain.", "My friend lied to me. Should I forgive her?",
    "Explain photosynthesis to a child.", "List three uses of a paper clip.", "What is 17 times 6?",
    "Translate 'good morning' into Spanish.", "Why is the sky blue?", "Give me a recipe for pancakes.",
    "Should I tell my boss that I made a mistake?", "Who wrote Hamlet?", "Name a mammal that lays eggs.",
    "Write one sentence about the sea.", "How do I sort a list in Python?", "What does a stream gauge measure?",
    "Is it ever right to break a promise?", "Tell me a joke about cats.", "Summarise the plot of Cinderella.",
]
TEXTS = [
    "The river rose all night, and in the morning", "def fibonacci(n):\n    ", "Привет, меня зовут",
    "Once upon a time there was a small gauge that stood in a stream. Every hour it wrote down how high the water was, and "
    "every evening a man came by on a bicycle to read what it had written. One day, after three weeks of rain, the man did not "
    "come. The gauge waited until it was dark. It wrote down the height of the water once more, and then",
]


def add(layer, c):
    def put(model, v):
        model.model.layers[layer].register_forward_hook(lambda m, a, out: changed(out, first(out) + c * v))
    return [f"add at=blocks.{layer}.hook_resid_post v=VECTORS#resid.{layer} c={c}"], [(put, f"resid.{layer}")]


def first(out):
    return out[0] if isinstance(out, tuple) else out


def changed(out, value):
    return (value, *out[1:]) if isinstance(out, tuple) else value


def part(x, start, stop, value):
    x = x.clone()
    x[..., start:stop] = value(x[..., start:stop])
    return x


def zero_heads(model, _):
    o = model.model.layers[10].self_attn.o_proj
    o.register_forward_pre_hook(lambda m, a: (part(part(a[0], HEAD, 2 * HEAD, torch.zeros_like), 5 * HEAD, 6 * HEAD, torch.zeros_like),))


def halve_neurons(model, _):
    model.model.layers[7].mlp.down_proj.register_forward_pre_hook(lambda m, a: (a[0] * 0.5,))


def scale_key_head(model, _):
    k = model.model.layers[20].self_attn.k_proj
    k.register_forward_hook(lambda m, a, out: part(out, 2 * HEAD, 3 * HEAD, lambda x: -1.5 * x))


def project_out(model, v):
    unit = v.double() / v.double().norm()

    def hook(module, args):
        x = args[0]  # the residual stream itself: in place, so that the stream goes on so too
        x.copy_((x.double() - (x.double() @ unit)[..., None] * unit).float())
    model.model.layers[9].post_attention_layernorm.register_forward_pre_hook(hook)


def clamp(model, v):
    unit = v.double() / v.double().norm()

    def hook(module, args, out):
        along = out.double() @ unit
        return (out.double() + (along.clamp(-0.25, 0.25) - along)[..., None] * unit).float()
    model.model.layers[3].input_layernorm.register_forward_hook(hook)


def mean(model, v):
    model.model.layers[11].self_attn.register_forward_hook(lambda m, a, out: changed(out, v.expand_as(first(out)).clone()))


def queries(model, v):
    q = model.model.layers[15].self_attn.q_proj
    q.register_forward_hook(lambda m, a, out: part(out, 4 * HEAD, 5 * HEAD, lambda x: x + 3.0 * v))


def logits(model, _):
    model.lm_head.register_forward_hook(lambda m, a, out: 0.5 * out)


MIXED = [
    (["zero at=blocks.10.attn.hook_z[1,5]"], [(zero_heads, None)]),
    (["scale at=blocks.7.mlp.hook_post c=0.5"], [(halve_neurons, None)]),
    (["scale at=blocks.20.attn.hook_k[2] c=-1.5"], [(scale_key_head, None)]),
    (["project-out at=blocks.9.hook_resid_mid v=VECTORS#resid.15"], [(project_out, "resid.15")]),
    (["clamp at=blocks.3.ln1.hook_out v=VECTORS#resid.15 lo=-0.25 hi=0.25"], [(clamp, "resid.15")]),
    (["mean at=blocks.11.hook_attn_out v=VECTORS#mean.11"], [(mean, "mean.11")]),
    (["add at=blocks.15.attn.hook_q[4] v=VECTORS#head c=3"], [(queries, "head")]),
    (["scale at=logits c=0.5"], [(logits, None)]),
]


def load(window):
    if window is None:
        return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    config = json.loads((MODEL / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    model = MistralForCausalLM(MistralConfig(**config))
    model.load_state_dict(load(None).state_dict())
    return model.float().eval()


def generate(model, prompts, penalty):
    """All prompts in one batch, padded on the left and masked. (The pad is the end of turn: what comes after the first is padding.)"""
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    done = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, repetition_penalty=penalty,
        output_logits=True, output_scores=True, return_dict_in_generate=True, pad_token_id=PAD)
    outputs = []
    for row, new in enumerate(done.sequences[:, width:].tolist()):
        new = new[:new.index(PAD) + 1] if PAD in new else new
        logprobs = [step[row].double().log_softmax(-1)[i].item() for step, i in zip(done.logits, new)]
        top = [step[row].topk(2).values for step in done.scores[:len(new)]]
        gaps = [(best - second).item() for best, second in top]
        outputs.append({"ids": new, "logprobs": [round(p, 6) for p in logprobs], "gaps": [round(min(g, 9.0), 5) for g in gaps]})
    return outputs


def run(name, edits, hooks, vectors, prompts, chosen, window=None, penalty=1.0):
    model = load(window)
    for put, vector in hooks:
        put(model, vectors.get(vector))
    ids = [prompts[i]["ids"] for i in chosen]
    # Padding would count as text that is repeated.
    outputs = generate(model, ids, penalty) if penalty == 1 else [o for i in ids for o in generate(model, [i], penalty)]
    outputs = [{"prompt": i, **output} for i, output in zip(chosen, outputs)]
    texts = [output["ids"][:12] for output in outputs[:2]]
    print(name, sum(len(o["ids"]) for o in outputs), texts, flush=True)
    return {"name": name, "edits": edits, "window": window, "repetition_penalty": penalty, "outputs": outputs}


def make_vectors(model, tokenizer):
    """Directions from two sentences, a mean over a text, and one head's worth of a wave."""
    def hidden(text):
        return model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states
    love, hate = hidden("I love rainy days, they are wonderful"), hidden("I hate rainy days, they are terrible")
    vectors = {}
    for layer in (5, 15, 25):
        d = love[layer + 1][0, -1] - hate[layer + 1][0, -1]
        vectors[f"resid.{layer}"] = d / d.norm()
    caught = []
    hook = model.model.layers[11].self_attn.register_forward_hook(lambda m, a, out: caught.append(first(out)))
    hidden(TEXTS[3])
    hook.remove()
    vectors["mean.11"] = caught[0][0].mean(0)
    vectors["head"] = torch.sin(torch.arange(HEAD) * 0.7)
    return {name: v.float().contiguous() for name, v in vectors.items()}


def main():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    vectors = make_vectors(load(None), tokenizer)
    save_file(vectors, OUT / "generation.safetensors")
    prompts = []
    for chat in CHATS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": chat}], add_generation_prompt=True, tokenize=False)
        prompts.append({"chat": chat, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    prompts += [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    every, few = range(len(prompts)), [0, 2, 18, 21]
    runs = [run("plain", [], [], vectors, prompts, every)]
    for layer, c in ((5, 4.0), (15, -12.0), (25, 30.0)):
        edits, hooks = add(layer, c)
        runs.append(run(f"steered at {layer}", edits, hooks, vectors, prompts, every))
    runs.append(run("window 64", [], [], vectors, prompts, every, window=64))
    edits, hooks = add(15, -12.0)
    runs.append(run("window 64, steered at 15", edits, hooks, vectors, prompts, few, window=64))
    runs.append(run("repetition penalty", [], [], vectors, prompts, few, penalty=1.3))
    for edits, hooks in MIXED:
        runs.append(run(edits[0], edits, hooks, vectors, prompts, few))
    text = json.dumps({"prompts": prompts, "runs": runs}, separators=(",", ":"), ensure_ascii=False)
    (OUT / "generation.json").write_text(text.replace('{"name"', '\n{"name"').replace('{"prompt"', '\n{"prompt"') + "\n")


if __name__ == "__main__":
    main()
