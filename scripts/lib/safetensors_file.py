"""Writes safetensors files, byte for byte the same for the same input (the library's metadata come in no fixed order)."""

import json
import struct

ITEM_SIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}


def write_safetensors(path, tensors, metadata):
    """`tensors`: {name: (dtype, numpy array)}, a BF16 array holding its bits as uint16."""
    order = sorted(tensors, key=lambda name: (-ITEM_SIZE[tensors[name][0]], name))
    header, offset = {"__metadata__": metadata}, 0
    for name in order:
        dtype, array = tensors[name]
        assert array.itemsize == ITEM_SIZE[dtype], (name, dtype, array.dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name][1].tobytes())


def to_bfloat16(values):
    """Bits of the nearest bfloat16, ties to even, of finite float32 values."""
    import numpy as np

    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
