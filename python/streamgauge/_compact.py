"""Rows in 8 bits: a code per number, scales, and the few largest numbers of each row kept apart as bfloat16."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Tuple, Union

import numpy as np

from ._numbers import Array, float32

#: Numbers that share a scale under int8; the last group of a row may be shorter.
GROUP = 64
#: A number of a row is kept apart for each so many, and at most so many are.
PER_OUTLIER, MOST_OUTLIERS = 64, 8
#: The widest row: places of numbers kept apart are 16 bits.
WIDEST = 1 << 16

#: Store dtype: the code's dtype in a safetensors header, and how numpy sees it. It has no FP8: those are their bits.
CODES: Dict[str, Tuple[str, str]] = {"fp8-e4m3": ("F8_E4M3", "u1"), "int8": ("I8", "i1")}


def _e4m3() -> Array:
    """The number that each E4M3 code stands for: sign, 4 bits of exponent, 3 of mantissa; no infinities, one NaN of either sign."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 512, (8 + mantissa) * 2.0**exponent / 1024)
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype("<f4")


E4M3: Array = _e4m3()


@dataclass(frozen=True)
class Compact:
    """The tensors beside the codes, for rows of one width."""

    dtype: str
    width: int

    @property
    def outliers(self) -> int:
        return min(-(-self.width // PER_OUTLIER), MOST_OUTLIERS)

    def tensors(self) -> Dict[str, Tuple[str, Tuple[int, ...], str]]:
        """Name: dtype in the header, shape of one row, dtype in numpy."""
        scale: Tuple[str, Tuple[int, ...], str] = ("F32", (), "<f4")
        if self.dtype == "int8":
            scale = ("BF16", (math.ceil(self.width / GROUP),), "<u2")
        return {
            "scale": scale,
            "outlier_index": ("U16", (self.outliers,), "<u2"),
            "outlier_value": ("BF16", (self.outliers,), "<u2"),
            "relative_error": ("F32", (), "<f4"),
            "cosine": ("F32", (), "<f4"),
        }

    def read(self, codes: Array, scale: Array, outlier_index: Array, outlier_value: Array) -> Array:
        """float32 [rows, width]: code × scale, and the numbers kept apart in their places."""
        if self.dtype == "int8":
            scales = np.repeat(float32(scale, "bf16"), GROUP, axis=1)[:, : self.width]
            rows = codes.astype("<f4") * scales
        else:
            rows = E4M3[codes] * scale[:, None]
        np.put_along_axis(rows, outlier_index.astype(np.int64), float32(outlier_value, "bf16"), axis=1)
        return rows  # type: ignore[no-any-return]


#: One row, a run of them, or their numbers.
At = Union[slice, Array]
