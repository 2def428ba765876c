"""Every hook point of a Hugging Face model, in float64 (the truth) and in plain float32 (the noise floor).

The truth is `transformers` with eager attention and all weights in float64, with RMSNorm and the softmax kept in
float64 too: unpatched they drop to float32, and "float64" is then 1e-6 off after 30 layers. A dispatch mode checks
that no float32 operation is left but RoPE's cos/sin tables, which belong to the model's definition in float32.

    reference = Reference(folder)
    reference.truth(ids)       {hook point: float64 tensor}
    reference.float32(ids)     the same from the unpatched float32 model
    reference.half(ids)        the same from the unpatched model in the dtype of its file, attention by SDPA

Shapes are ours: rows first ([n, d], [n, H, h], …); `hook_attn_scores` and `hook_pattern` are [H, n, n], and masked
scores are -inf.
"""

import contextlib
import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

torch.set_grad_enabled(False)

FAMILIES = {"llama": modeling_llama, "mistral": modeling_mistral}
BLOCK_POINTS = """hook_resid_pre ln1.hook_scale ln1.hook_normalized ln1.hook_out attn.hook_q attn.hook_k attn.hook_v
attn.hook_rot_q attn.hook_rot_k attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result hook_attn_out
hook_resid_mid ln2.hook_scale ln2.hook_normalized ln2.hook_out mlp.hook_pre mlp.hook_pre_linear mlp.hook_post
hook_mlp_out hook_resid_post""".split()
FINAL_POINTS = ["ln_final.hook_scale", "ln_final.hook_normalized", "ln_final.hook_out", "logits"]


def hook_points(n_layers):
    """All names, in forward order."""
    blocks = [f"blocks.{layer}.{point}" for layer in range(n_layers) for point in BLOCK_POINTS]
    return ["hook_embed", *blocks, *FINAL_POINTS]


def is_ragged(point):
    return point.endswith(("hook_attn_scores", "hook_pattern"))


class OnlyFloat64(TorchDispatchMode):
    """Raises at an operation that gives float32 (or narrower) outside `allowed()`."""

    def __init__(self):
        super().__init__()
        self.exempt = False

    @contextlib.contextmanager
    def allowed(self):
        self.exempt = True
        try:
            yield
        finally:
            self.exempt = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                if not self.exempt:
                    raise AssertionError(f"{function} computed in {tensor.dtype} in the float64 reference")
        return result


def rms_norm_float64(norm, x):
    normalized = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * normalized


class Recorder:
    """Hooks on one model that fill `points` during a forward pass."""

    def __init__(self, model, softmax_dtype, sdpa=False):
        self.model, self.softmax_dtype, self.sdpa = model, softmax_dtype, sdpa
        self.points, self.wanted = {}, lambda point: True
        self.heads = model.config.num_attention_heads
        self.head_dim = model.model.layers[0].self_attn.head_dim
        base = model.model
        self.after(base.embed_tokens, "hook_embed")
        for layer, block in enumerate(base.layers):
            name = f"blocks.{layer}."
            attention, mlp = block.self_attn, block.mlp
            block.register_forward_pre_hook(self.before(name + "hook_resid_pre"))
            self.norm(block.input_layernorm, name + "ln1.")
            for letter in "qkv":
                self.after(getattr(attention, f"{letter}_proj"), f"{name}attn.hook_{letter}", self.by_head)
            self.after(attention.o_proj, name + "hook_attn_out")
            block.post_attention_layernorm.register_forward_pre_hook(self.before(name + "hook_resid_mid"))
            self.norm(block.post_attention_layernorm, name + "ln2.")
            self.after(mlp.gate_proj, name + "mlp.hook_pre")
            self.after(mlp.up_proj, name + "mlp.hook_pre_linear")
            mlp.down_proj.register_forward_pre_hook(self.before(name + "mlp.hook_post"))
            self.after(mlp.down_proj, name + "hook_mlp_out")
            self.after(block, name + "hook_resid_post")
        self.norm(base.norm, "ln_final.")
        self.after(model.lm_head, "logits")

    def put(self, point, tensor):
        if self.wanted(point):
            self.points[point] = tensor.detach().clone()

    def by_head(self, rows):
        return rows.reshape(rows.shape[0], -1, self.head_dim)

    def before(self, point):
        def hook(module, args, kwargs=None):
            self.put(point, args[0][0])

        return hook

    def after(self, module, point, shape=lambda rows: rows):
        module.register_forward_hook(lambda _module, _args, output: self.put(point, shape(output[0])))

    def norm(self, module, prefix):
        def hook(module, args, output):
            x = args[0][0]
            variance = x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon
            self.put(prefix + "hook_scale", variance.sqrt())
            self.put(prefix + "hook_normalized", x * torch.rsqrt(variance))
            self.put(prefix + "hook_out", output[0])

        module.register_forward_hook(hook)

    def attention(self, module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        """transformers' `eager_attention_forward`, operation for operation, with the softmax's dtype made explicit."""
        name = f"blocks.{module.layer_idx}.attn."
        groups = module.num_key_value_groups
        self.put(name + "hook_rot_q", query[0].transpose(0, 1))
        self.put(name + "hook_rot_k", key[0].transpose(0, 1))
        keys, values = (modeling_llama.repeat_kv(states, groups) for states in (key, value))
        scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
        if self.wanted(name + "hook_attn_scores"):
            self.put(name + "hook_attn_scores", scores[0].masked_fill(attention_mask[0] < 0, -torch.inf))
        pattern = torch.softmax(scores + attention_mask, dim=-1, dtype=self.softmax_dtype).to(query.dtype)
        self.put(name + "hook_pattern", pattern[0])
        if self.sdpa:  # which has no scores to show: those above are what eager attention would have made of its input
            z = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attention_mask, scale=scaling)
        else:
            z = torch.matmul(pattern, values)
        z = z.transpose(1, 2).contiguous()
        self.put(name + "hook_z", z[0])
        if self.wanted(name + "hook_result"):
            output = module.o_proj.weight.reshape(-1, self.heads, self.head_dim)
            self.put(name + "hook_result", torch.einsum("nhe,dhe->nhd", z[0], output))
        return z, pattern

    def run(self, ids, wanted, padded=False):
        """`padded`: as the first of two in a batch, padded on the right; what is returned leaves the padding out."""
        n = len(ids)
        batch = {"input_ids": torch.tensor([ids])}
        if padded:
            length = max(n + 7, 64)
            longer, mask = (ids * length)[:length], [1] * n + [0] * (length - n)
            batch["input_ids"] = torch.tensor([ids + [0] * (length - n), longer])
            batch["attention_mask"] = torch.tensor([mask, [1] * length])
        self.points, self.wanted = {}, wanted
        family = FAMILIES[self.model.config.model_type]
        eager, family.eager_attention_forward = family.eager_attention_forward, self.attention
        try:
            self.model(**batch, use_cache=False)
        finally:
            family.eager_attention_forward = eager
        points, self.points = self.points, {}
        return {name: rows[:, :n, :n] if is_ragged(name) else rows[:n] for name, rows in points.items()}


class Reference:
    """The two models of one folder in Hugging Face layout."""

    def __init__(self, folder):
        load = lambda dtype: AutoModelForCausalLM.from_pretrained(  # noqa: E731
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        ).eval()
        exact = load(torch.float64)
        self.n_layers = exact.config.num_hidden_layers
        family = FAMILIES[exact.config.model_type]
        self._norm_class = getattr(family, f"{exact.config.model_type.capitalize()}RMSNorm")
        self._mode = OnlyFloat64()
        self._exempt_rope(exact.model.rotary_emb)
        self._exact, self._float32 = Recorder(exact, torch.float64), Recorder(load(torch.float32), torch.float32)
        self._load = load

    def _exempt_rope(self, rotary):
        forward = rotary.forward

        def exempt(*args, **kwargs):
            with self._mode.allowed():
                return forward(*args, **kwargs)

        rotary.forward = exempt

    def truth(self, ids, wanted=lambda point: True):
        forward, self._norm_class.forward = self._norm_class.forward, rms_norm_float64
        try:
            with self._mode:
                points = self._exact.run(ids, wanted)
        finally:
            self._norm_class.forward = forward
        assert all(tensor.dtype == torch.float64 for tensor in points.values())
        return points

    def float32(self, ids, wanted=lambda point: True, padded=False):
        return self._float32.run(ids, wanted, padded)

    @functools.cached_property
    def _half(self):
        return Recorder(self._load("auto"), torch.float32, sdpa=True)

    def half(self, ids, wanted=lambda point: True, padded=False):
        return self._half.run(ids, wanted, padded)


def groups(point, tensor):
    """The tensor's rows of token 0, and of the later tokens: massive activations live in the first token and would
    drown the others in a common norm. Rows of a ragged point are query tokens: [n, H, n]."""
    rows = tensor.transpose(0, 1) if is_ragged(point) else tensor
    return rows[:1], rows[1:]


def relative_error(found, truth):
    """|found - truth| / |truth| in L2, over the finite elements of `truth`; inf where the two are not masked alike."""
    finite = torch.isfinite(truth)
    if not torch.equal(torch.isfinite(found), finite):
        return float("inf")
    truth = torch.where(finite, truth, 0.0)
    difference = torch.where(finite, found.double(), 0.0) - truth
    norm = truth.norm()
    return float(difference.norm() / norm) if norm > 0 else float(difference.norm())
