"""Small random models in Hugging Face layout, each with a feature that a real checkpoint may have.

Weights come from a seeded generator and are scaled so that activations stay near 1, attention is neither flat nor
one-hot, and the norms' gains matter.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "lib"))
from safetensors_file import to_bfloat16, write_safetensors  # noqa: E402

VOCABULARY = 160
COMMON = {
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "vocab_size": VOCABULARY,
}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **COMMON}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False, **COMMON}

MODELS = {
    # A sliding window far shorter than most samples, grouped queries, and transformers 5's spelling of RoPE.
    "mistral-window4": {
        "dtype": "bfloat16",
        "config": {
            **MISTRAL,
            "dtype": "bfloat16",
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_window": 4,
            "tie_word_embeddings": False,
        },
    },
    # One key head for all queries, a head dimension that is not hidden size / heads, several files.
    "mistral-gqa41": {
        "dtype": "float32",
        "shards": 3,
        "config": {
            **MISTRAL,
            "head_dim": 20,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    },
    # Llama 3's RoPE with frequencies kept, blended and scaled; float16; no lm_head in the file.
    "llama3-rope": {
        "dtype": "float16",
        "config": {
            **LLAMA,
            "hidden_size": 64,
            "intermediate_size": 96,
            "max_position_embeddings": 5120,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 640,
                "rope_type": "llama3",
            },
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
        },
    },
    # Linearly scaled RoPE in the oldest spelling, as many key heads as query heads.
    "linear-rope": {
        "dtype": "bfloat16",
        "config": {
            **LLAMA,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    },
    # What the CUDA kernels are compiled for: a head dimension of 64, two query heads a key head, a window, bfloat16.
    "mistral-bf16-h64": {
        "dtype": "bfloat16",
        "half": True,
        "config": {
            **MISTRAL,
            "dtype": "bfloat16",
            "head_dim": 64,
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_window": 20,
            "tie_word_embeddings": False,
        },
    },
    # The same for float16: a head dimension of 80, tied embeddings, no window.
    "llama-f16-h80": {
        "dtype": "float16",
        "half": True,
        "config": {
            **LLAMA,
            "head_dim": 80,
            "hidden_size": 48,
            "intermediate_size": 56,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
        },
    },
}

LENGTHS = {
    "mistral-window4": [1, 3, 4, 5, 23, 100],
    # Long enough for several tiles of attention, short enough for an interpreter of kernels.
    "mistral-bf16-h64": [1, 4, 23, 70, 140],
    "llama-f16-h80": [1, 4, 23, 70, 140],
}
DEFAULT_LENGTHS = [1, 4, 23, 100]


def samples(name):
    """{sample name: token ids} for that model."""
    generator = np.random.default_rng(len(name))
    return {
        f"tokens{length}": generator.integers(0, VOCABULARY, length).tolist()
        for length in LENGTHS.get(name, DEFAULT_LENGTHS)
    }


def weights(config, generator):
    """{tensor name: float32 array}, in the order of the forward pass."""
    d, f = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    h = config.get("head_dim", d // heads)

    def matrix(rows, columns, scale=1.0):
        return generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale / columns**0.5)

    def gain():
        return np.float32(1) + np.float32(0.3) * generator.standard_normal(d, dtype=np.float32)

    tensors = {"model.embed_tokens.weight": generator.standard_normal((VOCABULARY, d), dtype=np.float32)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": gain(),
            prefix + "self_attn.q_proj.weight": matrix(heads * h, d, 1.5),
            prefix + "self_attn.k_proj.weight": matrix(kv_heads * h, d, 1.5),
            prefix + "self_attn.v_proj.weight": matrix(kv_heads * h, d),
            prefix + "self_attn.o_proj.weight": matrix(d, heads * h),
            prefix + "post_attention_layernorm.weight": gain(),
            prefix + "mlp.gate_proj.weight": matrix(f, d, 1.5),
            prefix + "mlp.up_proj.weight": matrix(f, d),
            prefix + "mlp.down_proj.weight": matrix(d, f),
        }
    tensors["model.norm.weight"] = gain()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(VOCABULARY, d)
    return tensors


STORED = {
    "float32": lambda array: ("F32", array),
    "float16": lambda array: ("F16", array.astype(np.float16)),
    "bfloat16": lambda array: ("BF16", to_bfloat16(array)),
}


def make(name, folder):
    model = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model["config"], indent=2, sort_keys=True) + "\n")
    generator = np.random.default_rng(list(MODELS).index(name))
    tensors = {key: STORED[model["dtype"]](array) for key, array in weights(model["config"], generator).items()}
    shards = model.get("shards", 1)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return
    names, per_shard, files = list(tensors), -(-len(tensors) // shards), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in names[shard * per_shard : (shard + 1) * per_shard]}
        write_safetensors(folder / file, part, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    total = sum(array.nbytes for _, array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
