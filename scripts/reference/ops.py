"""Makes tests/fixtures/ops.safetensors: what single ops of a Hugging Face model give in bf16 and in f16, each fed the same input as the
kernels are in the tests.

Per dtype D (bf16, f16), all in that dtype:

    D/norm/x [16, 256], gain [256], out      RMSNorm, eps 1e-5; one component of x as large as real models' are
    D/add/a, b, out [16, 256]                residual add
    D/rope/q [40, 2, 64], out                RoPE at positions 0 to 39, base 10,000
    D/swiglu/gate, up, out [16, 112]         silu(gate) · up
    D/gemm/x [24, 128], weight [64, 128], out [24, 64]
    D/attention/q [40, 4, 64], k, v [40, 2, 64], out [40, 4, 64]      causal, by SDPA
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import MistralConfig
from transformers.models.mistral import modeling_mistral as mistral

sys.path.append(str(Path(__file__).resolve().parents[1] / "lib"))
from safetensors_file import write_safetensors  # noqa: E402

FIXTURE = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "ops.safetensors"
NAMES = {torch.bfloat16: ("bf16", "BF16"), torch.float16: ("f16", "F16")}

torch.set_grad_enabled(False)


def ops(dtype):
    """{op: {tensor: values}} in `dtype`."""
    generator = torch.Generator().manual_seed(20)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    x = normal(16, 256, scale=1.5)
    x[3, 57] = 25_000.0
    norm = mistral.MistralRMSNorm(256, eps=1e-5).to(dtype)
    norm.weight.data = (1 + 0.1 * torch.randn(256, generator=generator)).to(dtype)
    a, b = normal(16, 256, scale=30.0), normal(16, 256)
    # As the model has it: [batch, heads, tokens, head dim], and the tables' angles in float32.
    q = normal(40, 2, 64, scale=2.0)
    config = MistralConfig(hidden_size=128, num_attention_heads=2, head_dim=64, max_position_embeddings=64)
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"}
    heads_first = q.transpose(0, 1)[None]
    cos, sin = mistral.MistralRotaryEmbedding(config)(heads_first, torch.arange(40)[None])
    rotated, _ = mistral.apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    gate, up = normal(16, 112, scale=3.0), normal(16, 112, scale=2.0)
    rows, weight = normal(24, 128), normal(64, 128, scale=128**-0.5)
    q4, k2, v2 = normal(40, 4, 64), normal(40, 2, 64), normal(40, 2, 64)
    grouped = [tensor.transpose(0, 1)[None] for tensor in (q4, k2, v2)]
    z = functional.scaled_dot_product_attention(*grouped, is_causal=True, enable_gqa=True)
    return {
        "norm": {"x": x, "gain": norm.weight.data, "out": norm(x)},
        "add": {"a": a, "b": b, "out": a + b},
        "rope": {"q": q, "out": rotated[0].transpose(0, 1)},
        "swiglu": {"gate": gate, "up": up, "out": functional.silu(gate) * up},
        "gemm": {"x": rows, "weight": weight, "out": functional.linear(rows, weight)},
        "attention": {"q": q4, "k": k2, "v": v2, "out": z[0].transpose(0, 1)},
    }


tensors = {}
for dtype, (name, stored) in NAMES.items():
    for op, of_op in ops(dtype).items():
        for tensor, values in of_op.items():
            assert values.dtype == dtype, (op, tensor, values.dtype)
            bits = values.contiguous().view(torch.int16).numpy()
            tensors[f"{name}/{op}/{tensor}"] = (stored, bits.astype(np.int16))
write_safetensors(FIXTURE, tensors, {"torch": torch.__version__, "transformers": transformers.__version__})
print(f"{FIXTURE.name}: {len(tensors)} tensors, {FIXTURE.stat().st_size} bytes")
