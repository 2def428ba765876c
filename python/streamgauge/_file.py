"""A listed file, mapped; and a tap's file, a safetensors file whose header is checked before it is believed."""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple

import numpy as np

from . import _json
from ._json import Node
from ._manifest import ListedFile
from .errors import DamagedStoreError, StoreError

#: The longest header that safetensors readers accept.
MAX_HEADER = 100_000_000

#: safetensors dtype: bytes of a number.
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U16": 2, "I64": 8, "I32": 4}


class MappedFile:
    """The whole of a listed file. A mapping lives as long as any view of it does."""

    def __init__(self, root: Path, listed: ListedFile) -> None:
        self._root = root
        self._listed = listed
        self.path = root / listed.file
        self.map = self._mapped(mmap.ACCESS_READ)
        self._private: Optional[Any] = None

    def private(self) -> Any:
        """The file mapped copy-on-write. PyTorch has no read-only tensors: what is written to one stays in this process."""
        if self._private is None:
            self._private = self._mapped(mmap.ACCESS_COPY)
        return self._private

    def _mapped(self, access: int) -> Any:
        fd = _open(self._root, self.path, self._listed.bytes)
        try:
            # An empty file cannot be mapped.
            return mmap.mmap(fd, self._listed.bytes, access=access, **_NO_FD) if self._listed.bytes else b""
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be mapped ({error.strerror}){_remedy(error)}") from None
        finally:
            os.close(fd)


#: A mapping needs no open file, and before Python 3.13 keeps one all the same.
_NO_FD: Dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def _remedy(error: OSError) -> str:
    return "; raise the limit: ulimit -n 65536" if error.errno == errno.EMFILE else ""


def _open(root: Path, path: Path, length: int) -> int:
    """Opens a file for reading, provided it is regular, of this length, and inside the store when every link is followed."""

    def wrong(what: str) -> NoReturn:
        raise DamagedStoreError(f"{path}: {what}")

    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        wrong(f"listed in the manifest, but cannot be found ({error})")
    if root not in real.parents:
        wrong("is a link that leads out of the store")
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror}){_remedy(error)}") from None
    meta = os.fstat(fd)
    if not stat.S_ISREG(meta.st_mode) or meta.st_size != length:
        os.close(fd)
        if stat.S_ISREG(meta.st_mode):
            wrong(f"has {meta.st_size} bytes where the manifest says {length}")
        wrong("is not a regular file")
    return fd


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    start: int
    end: int


class TensorFile(MappedFile):
    """A safetensors file: every tensor lies inside of it, they leave no hole, shapes and lengths agree."""

    def __init__(self, root: Path, listed: ListedFile) -> None:
        super().__init__(root, listed)
        self.tensors: Dict[str, Tensor] = {t.name: t for t in self._parse()}

    def wrong(self, what: str) -> NoReturn:
        raise DamagedStoreError(f"{self.path}: {what}")

    def _parse(self) -> List[Tensor]:
        def wrong(what: str) -> NoReturn:
            self.wrong(f"no valid safetensors file ({what})")

        size = len(self.map)
        n = int.from_bytes(self.map[:8], "little") if size >= 8 else 0
        if not 2 <= n <= min(MAX_HEADER, size - 8):
            wrong("its header does not fit")
        header = Node(_json.parse(self.map[8 : 8 + n], wrong), "header", wrong)
        if not isinstance(header.value, dict):
            header.fail("an object belongs here")
        tensors = []
        for name in header.value:
            if name == "__metadata__":
                continue
            entry = header[name]
            dtype = entry["dtype"].text()
            if dtype not in SIZES:
                entry.fail(f"a tensor of {dtype!r} has no place in a store")
            shape = tuple(d.count() for d in entry["shape"].items())
            offsets = [o.count() for o in entry["data_offsets"].items()]
            if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
                entry.fail(f"the offsets {offsets} do not hold {dtype} {list(shape)}")
            tensors.append(Tensor(name, dtype, shape, 8 + n + offsets[0], 8 + n + offsets[1]))
        at = 8 + n
        for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
            if tensor.start != at:
                wrong(f"tensor {tensor.name!r} leaves a hole or overlaps another")
            at = tensor.end
        if at != size:
            wrong(f"its tensors end at byte {at} of {size}")
        return tensors

    def expect(self, name: str, dtype: str, shape: Tuple[int, ...]) -> Tensor:
        """The tensor of that name, which must be of this dtype and shape."""
        tensor = self.tensors.get(name)
        if tensor is None:
            self.wrong(f"has no tensor `{name}`")
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            self.wrong(
                f"`{name}` is {tensor.dtype} {list(tensor.shape)}, where the manifest says {dtype} {list(shape)}"
            )
        return tensor

    def view(self, tensor: Tensor, dtype: str) -> "np.ndarray[Any, Any]":
        """The tensor as it lies in the file, read-only."""
        count = math.prod(tensor.shape)
        if count == 0:
            return np.empty(tensor.shape, dtype)
        return np.frombuffer(self.map, dtype, count, tensor.start).reshape(tensor.shape)
