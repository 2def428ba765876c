"""Random-sign sketches: a few numbers that stand in for a tensor too large to commit.

    s_j = sum over i of sign(i, j) * T_i,   j in 0..32,   sign(i, j) = +1 where bit j of splitmix64(i) is 0, else -1

over the group's elements in row-major order, computed in float64. For two tensors A and B,
|sketch(A) - sketch(B)|^2 / 32 has the expectation |A - B|^2 and a relative standard deviation of about
sqrt(2/32) = 0.25, so an error's norm is known to about an eighth.
"""

import numpy as np
import torch

PROJECTIONS = 32
CHUNK = 1 << 17


def splitmix64(index):
    """The output of splitmix64 seeded with 0 after index + 1 steps; `index`: uint64 array."""
    z = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_signs = []


def signs(chunk):
    """[CHUNK, PROJECTIONS] of +1 and -1 for the elements of that chunk."""
    while len(_signs) <= chunk:
        start = len(_signs) * CHUNK
        z = splitmix64(np.arange(start, start + CHUNK, dtype=np.uint64))
        bits = (z[:, None] >> np.arange(PROJECTIONS, dtype=np.uint64)) & np.uint64(1)
        _signs.append(torch.from_numpy(1 - 2 * bits.astype(np.int8)))
    return _signs[chunk]


def sketch(tensor):
    """(s [PROJECTIONS] in float64, norm, how many elements were -inf): those count as 0."""
    flat = tensor.reshape(-1)
    masked = torch.isneginf(flat)
    flat = torch.where(masked, 0.0, flat.double())
    s = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for chunk, start in enumerate(range(0, flat.numel(), CHUNK)):
        part = flat[start : start + CHUNK]
        s += part @ signs(chunk)[: part.numel()].double()
    return s, float(flat.norm()), int(masked.sum())
