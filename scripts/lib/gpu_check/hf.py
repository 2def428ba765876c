"""The Hugging Face side of a GPU check: a random model's files, and its activations in float64 and in the model's own dtype."""

import gc
import json
import pathlib
import sys
import time

import torch
import transformers  # noqa: F401  its absence is told where this is imported
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM
from transformers.models.mistral import modeling_mistral

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "reference"))
import hf_reference  # noqa: E402

torch.set_grad_enabled(False)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(folder, config):
    """A file per block; weights are drawn where they are used, and only one block's are in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(DEVICE).manual_seed(1)
    d, f = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = d // heads

    def matrix(rows, columns, gain=1.0):
        drawn = torch.randn(rows, columns, generator=generator, device=DEVICE)
        return (drawn * gain / columns**0.5).bfloat16().cpu()

    def norm():
        return (1 + 0.1 * torch.randn(d, generator=generator, device=DEVICE)).bfloat16().cpu()

    where = {}

    def save(name, tensors):
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    for layer in range(config["num_hidden_layers"]):
        block = {
            "input_layernorm": norm(),
            "self_attn.q_proj": matrix(heads * head, d, 1.5),
            "self_attn.k_proj": matrix(kv * head, d, 1.5),
            "self_attn.v_proj": matrix(kv * head, d),
            "self_attn.o_proj": matrix(d, heads * head),
            "post_attention_layernorm": norm(),
            "mlp.gate_proj": matrix(f, d),
            "mlp.up_proj": matrix(f, d),
            "mlp.down_proj": matrix(d, f),
        }
        named = {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in block.items()}
        save(f"model-{layer:05}.safetensors", named)
    rest = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], d, d**0.5),
        "model.norm.weight": norm(),
        "lm_head.weight": matrix(config["vocab_size"], d),
    }
    save("model-rest.safetensors", rest)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def load(folder, dtype, attention):
    """The model on the device in `dtype`, a file at a time: float64 takes four times the room of the files."""
    # A model whose hooks refer to it goes only when it is collected, and a GPU has not the room for two.
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    config = MistralConfig(**json.loads((folder / "config.json").read_text()))
    config._attn_implementation = attention
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {name: tensor.to(DEVICE, dtype) for name, tensor in load_file(file).items()}
        model.load_state_dict(tensors, strict=False, assign=True)
    model.model.rotary_emb = modeling_mistral.MistralRotaryEmbedding(config).to(DEVICE)
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert not left, f"the files lack {left}"
    return model.eval()


def activations(folder, samples, wanted, dtype):
    """Per sample {hook point: tensor on the host}; `dtype` None is the truth, else Hugging Face in that dtype with SDPA."""
    exact = dtype is None
    model = load(folder, torch.float64 if exact else dtype, "eager")
    recorder = hf_reference.Recorder(model, torch.float64 if exact else torch.float32, sdpa=not exact)
    norm = modeling_mistral.MistralRMSNorm
    patched = norm.forward
    if exact:
        norm.forward = hf_reference.rms_norm_float64
    try:
        found = []
        for ids in samples:
            with torch.device(DEVICE):
                points = recorder.run(ids, wanted)
            found.append({name: tensor.cpu() for name, tensor in points.items()})
        return found
    finally:
        norm.forward = patched


def throughput(folder, batches, layers, out):
    """Tokens a second of a forward pass with hidden states that are saved; `layers` None: all of them."""
    model = load(folder, torch.bfloat16, "sdpa")
    out.mkdir(parents=True, exist_ok=True)
    n_tokens, began = 0, 0.0
    for number, batch in enumerate([batches[0], *batches]):
        if number == 1:  # the first was to warm up
            began = time.monotonic()
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=DEVICE)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=DEVICE)
        states = model.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        kept = states if layers is None else [states[layer + 1] for layer in layers]
        rows = {str(i): state[mask.bool()].cpu() for i, state in enumerate(kept)}
        save_file(rows, out / f"{number}.safetensors")
        n_tokens += sum(map(len, batch)) if number else 0
    return n_tokens / (time.monotonic() - began)
