"""`manifest.json`: what a store holds. A file that it does not list does not exist."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, NoReturn, Optional, Tuple

from . import _json
from ._compact import CODES, WIDEST, Compact
from ._json import Node
from .errors import DamagedStoreError, FormatVersionError, StoreError

FORMAT_VERSION = 1
MAX_MANIFEST = 2 << 30

#: Bytes of a number of each store dtype.
DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "fp8-e4m3": 1, "int8": 1}


@dataclass(frozen=True)
class TapInfo:
    """One tap: what it reads, and how its rows are stored."""

    #: Name of the hook point.
    hook: str
    #: Folder of its files in the store: the hook point's name, `…~2` for the second tap there.
    folder: str
    selection: str
    #: Empty when there is none.
    reduction: str
    #: The heads taken, where the tap chose some.
    heads: Optional[Tuple[int, ...]]
    #: `f32`, `f16`, `bf16`, `fp8-e4m3` or `int8`.
    dtype: str
    #: Shape of one row; `(heads,)` for a ragged tap, whose samples are [heads, rows, tokens] each.
    row_shape: Tuple[int, ...]
    ragged: bool
    #: K of `|top:K` and `|logprob:K`.
    top_k: Optional[int]
    #: The seed that the order of each shard's rows was drawn by (`Shard.order`); None unless the run was shuffled.
    order_seed: Optional[int] = None

    @property
    def compact(self) -> Optional[Compact]:
        """The 8-bit form of its rows, if they have one."""
        return Compact(self.dtype, math.prod(self.row_shape)) if self.dtype in CODES else None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class ListedFile:
    """A file that the manifest lists: its path from the store's directory, its rows and its length."""

    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class ShardEntry:
    first: int
    count: int
    samples_file: ListedFile
    #: One per tap, in the order of the taps.
    taps: Tuple[ListedFile, ...]


@dataclass(frozen=True)
class Manifest:
    raw: Dict[str, Any]
    complete: bool
    samples: int
    taps: Tuple[TapInfo, ...]
    keep: Tuple[str, ...]
    shards: Tuple[ShardEntry, ...]


def read(root: Path) -> Manifest:
    """Reads and checks the manifest of the store in `root`: lists and totals agree, no path leads out of the store."""
    path = root / "manifest.json"

    def wrong(what: str) -> NoReturn:
        raise DamagedStoreError(f"{path}: {what}")

    value = _json.parse(_text(root, path), wrong)
    if not isinstance(value, dict):
        wrong("an object belongs here")
    version = value.get("format_version")
    if version is None:
        wrong("no format_version: not the manifest of a store")
    if isinstance(version, bool) or version != FORMAT_VERSION or not isinstance(version, int):
        raise FormatVersionError(
            f"{path}: format version {_json._short(version)}; this version of the package reads {FORMAT_VERSION}. "
            "Install the package that came with the streamgauge that wrote the store"
        )
    whole = Node(value, "", wrong)
    state = whole["state"].text()
    if state not in ("complete", "partial"):
        whole["state"].fail(f"{state!r} is no state")
    taps = tuple(_tap(tap) for tap in whole["taps"].items())
    folders = [tap.folder for tap in taps]
    if len(set(folders)) != len(folders):
        wrong("two taps have one folder")
    keep = tuple(column["name"].text() for column in whole["keep"].items())
    shards = _shards(whole["shards"], taps)
    samples = whole["samples"].count()
    held = sum(shard.count for shard in shards)
    if held != samples:
        wrong(f"the shards hold {held} samples, not {samples}")
    return Manifest(value, state == "complete", samples, taps, keep, shards)


def _text(root: Path, path: Path) -> bytes:
    try:
        # Not a link, and nothing that could block.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        what = "not a store (it has no manifest.json)" if root.is_dir() else "there is no such directory"
        raise StoreError(f"{root}: {what}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    meta = os.fstat(fd)
    if not stat.S_ISREG(meta.st_mode) or meta.st_size > MAX_MANIFEST:
        os.close(fd)
        raise DamagedStoreError(f"{path}: no manifest (not a regular file, or larger than 2 GiB)")
    with open(fd, "rb") as file:
        return file.read(MAX_MANIFEST)


def _tap(node: Node) -> TapInfo:
    folder = node["folder"].text()
    if not _is_name(folder) or folder in ("manifest.json", ".partial", "samples"):
        node.fail(f"{folder!r} cannot be a tap's folder")
    dtype = node["dtype"].text()
    if dtype not in DTYPE_BYTES:
        node.fail(f"rows of {dtype!r}; this version of the package reads {', '.join(DTYPE_BYTES)}")
    ragged, reduction, heads, top_k, seed = (node.get(key) for key in ("ragged", "reduction", "heads", "top_k", "order_seed"))
    tap = TapInfo(
        hook=node["hook"].text(),
        folder=folder,
        selection=node["selection"].text(),
        reduction=reduction.text() if reduction else "",
        heads=tuple(head.count() for head in heads.items()) if heads else None,
        dtype=dtype,
        row_shape=tuple(size.count() for size in node["row_shape"].items()),
        ragged=ragged is not None and ragged.flag(),
        top_k=top_k.count() if top_k else None,
        order_seed=_seed(seed) if seed else None,
    )
    if tap.ragged and tap.order_seed is not None:
        node.fail("a ragged tap has a tensor per sample and no order of rows")
    if tap.ragged and (len(tap.row_shape) != 1 or tap.top_k is not None):
        node.fail("a ragged tap has the row shape [heads] and no reduction")
    if tap.top_k is not None and tap.row_shape != (tap.top_k,):
        node.fail("the row shape of a top-K tap is [K]")
    if tap.row_bytes >= _json.MOST:
        node.fail(f"the row shape {list(tap.row_shape)} overflows")
    if tap.compact and (tap.ragged or tap.top_k is not None or not 1 <= tap.compact.width <= WIDEST):
        node.fail(f"{dtype} is for rows of 1 to {WIDEST} numbers")
    return tap


def _seed(node: Node) -> int:
    """Any whole number of 64 bits, also one too large for a count."""
    seed = node.value
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        node.fail("a seed of 64 bits belongs here")
    return seed


def _shards(node: Node, taps: Tuple[TapInfo, ...]) -> Tuple[ShardEntry, ...]:
    shards = []
    listed = set()
    first = 0
    for i, entry in enumerate(node.items()):
        count = entry["count"].count()
        if entry["index"].count() != i or entry["first"].count() != first:
            entry.fail("not the shard that follows those before it")
        first += count
        table = _file(entry["samples_file"])
        files = tuple(_file(tap) for tap in entry["taps"].items())
        names = [tap["tap"].text() for tap in entry["taps"].items()]
        if sum(batch.count() for batch in entry["batches"].items()) != count or table.rows != count:
            entry.fail("samples of batches, table and shard differ in number")
        if names != [tap.folder for tap in taps]:
            entry.fail("not one file per tap, in the order of the taps")
        for file, at in zip(files, entry["taps"].items()):
            # Every row has 16 bytes of index tensors: a count that its file cannot hold is a lie.
            if file.rows > file.bytes // 16:
                at.fail(f"{file.rows} rows do not fit {file.bytes} bytes")
            if sum(rows.count() for rows in at["batch_rows"].items()) != file.rows:
                at.fail("batches and rows differ in number")
        for file in (table, *files):
            if file.file in listed:
                entry.fail(f"{file.file} is listed twice")
            listed.add(file.file)
        shards.append(ShardEntry(entry["first"].count(), count, table, files))
    return tuple(shards)


def _file(node: Node) -> ListedFile:
    file = node["file"].text()
    if not all(_is_name(part) for part in file.split("/")):
        node.fail(f"lists {file!r}, a path that leads out of the store")
    return ListedFile(file, node["rows"].count(), node["bytes"].count())


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..") and not any(c in part for c in "/\\\0")
