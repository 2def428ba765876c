"""Numbers of a store's dtypes as numpy and PyTorch have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

import numpy as np

from .errors import missing

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

#: How numpy sees a store dtype. It has no bfloat16: those are their bits. Rows in 8 bits are read back to float32.
NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "fp8-e4m3": "<f4", "int8": "<f4"}
SAFETENSORS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def float32(raw: Array, dtype: str) -> Array:
    """Numbers as `NUMPY` has them, widened to float32 (exactly). float32 numbers are not copied."""
    if dtype == "bf16":
        wide = raw.astype("<u4")
        wide <<= 16
        return wide.view("<f4")
    return raw.astype("<f4", copy=False)


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing("PyTorch", "torch") from None
    return torch


def torch_view(buffer: Any, dtype: str, shape: Tuple[int, ...], start: int) -> "torch.Tensor":
    """A tensor of bytes of `buffer`, which must be writable for PyTorch not to complain; nothing is copied."""
    torch = import_torch()
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        return torch.empty(shape, dtype=kind)  # type: ignore[no-any-return]
    return torch.frombuffer(buffer, dtype=kind, count=count, offset=start).reshape(shape)  # type: ignore[no-any-return]


def torch_of(raw: Array, dtype: str) -> "torch.Tensor":
    """A numpy array as `NUMPY` has it, as a tensor of the dtype proper; shares memory."""
    torch = import_torch()
    if dtype == "bf16":
        return torch.from_numpy(raw.view("<i2")).view(torch.bfloat16)  # type: ignore[no-any-return]
    return torch.from_numpy(raw)  # type: ignore[no-any-return]
