"""Reads GGUF version 3: metadata, and tensors of type F32, F16, Q8_0 and Q4_1 widened to float32.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Blocks of 32 weights share a scale `d`, and in
Q4_1 a minimum `m` (float16 each): Q8_0 is d*q with q in int8, Q4_1 is d*q + m with q in 0..15, the low nibbles of
its 16 bytes being weights 0..15 and the high ones 16..31.
"""

import mmap
import struct

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = 32
# weights per block, bytes per block
LAYOUT = {F32: (1, 4), F16: (1, 2), Q4_1: (BLOCK, 20), Q8_0: (BLOCK, 34)}


class GgufFile:
    """`metadata`: {key: value}; `tensor(name)`: float32 array, rows first."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version = self._bytes[:4], self._skip(4)._scalar("I")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{path} is not a GGUF version 3 file")
        n_tensors, n_pairs = self._scalar("Q"), self._scalar("Q")
        self.metadata = {}
        for _ in range(n_pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        self._tensors = {}
        for _ in range(n_tensors):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))[::-1]
            self._tensors[name] = (shape, self._scalar("I"), self._scalar("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def names(self):
        return list(self._tensors)

    def tensor(self, name):
        shape, kind, offset = self._tensors[name]
        if kind not in LAYOUT:
            raise ValueError(f"tensor {name} has GGML type {kind}, which this reader does not know")
        weights, size = LAYOUT[kind]
        blocks = int(np.prod(shape)) // weights
        raw = np.frombuffer(self._bytes, np.uint8, blocks * size, self._data + offset).reshape(blocks, size)
        if kind == F32:
            values = raw.view("<f4")
        elif kind == F16:
            values = raw.view("<f2").astype(np.float32)
        elif kind == Q8_0:
            d = raw[:, :2].copy().view("<f2").astype(np.float32)
            values = d * raw[:, 2:].view(np.int8).astype(np.float32)
        else:
            d = raw[:, :2].copy().view("<f2").astype(np.float32)
            m = raw[:, 2:4].copy().view("<f2").astype(np.float32)
            q = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1).astype(np.float32)
            values = d * q + m
        return values.reshape(shape)

    def _skip(self, count):
        self._at += count
        return self

    def _scalar(self, code):
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self):
        length = self._scalar("Q")
        value = self._bytes[self._at : self._at + length].decode("utf-8")
        self._at += length
        return value

    def _value(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item, count = self._scalar("I"), self._scalar("Q")
            return [self._value(item) for _ in range(count)]
        return self._scalar(SCALARS[kind])
