"""A store, opened: its taps, its samples, and what lies around a row."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Literal, Mapping, Optional, Sequence, Tuple, Union, overload

import numpy as np

from . import _manifest
from ._file import _open
from ._numbers import Array
from ._samples import ShardSamples, arrow_table
from ._tap import Tap
from .errors import NoSuchTapError, PartialStoreError, missing

#: Shards whose samples are kept in memory for `Store.context`.
SHARDS_KEPT = 4


@dataclass(frozen=True)
class Context:
    """Where a row comes from, and the tokens around it."""

    #: The sample's number in the dataset (of the context, in a store of packed contexts), and which piece of it.
    sample: int
    chunk: int
    #: Where the document that the token is of stands; of a row made of several tokens, the sample's first document.
    file: str
    line: int
    #: The row's token in the sample; −1 for a row made of several, as `|mean` makes them.
    position: int
    token: int
    #: Token ids around it, and the position of the first of them; of a row made of several, all of the sample's.
    tokens: Array
    start: int
    #: The sample's chat turns: role, first and last token, both inclusive.
    turns: List[Tuple[str, int, int]]
    #: The fields that `--keep` named.
    kept: Dict[str, Any]
    #: The document that the token is of, by its number in the dataset, and which of the document's tokens it is: not `sample` and
    #: `position` in a later chunk or in a packed context. −1 for a row made of several tokens, and for one that no document holds
    #: (it was generated); the position too in a later chunk of a store from before there were pieces.
    document: int
    document_position: int


class Store(Mapping[str, Tap]):
    """A store: a mapping from its taps' folders to its taps. Reads what the manifest lists and nothing else."""

    def __init__(self, path: Union[str, "os.PathLike[str]"], partial: bool = False) -> None:
        given = Path(path)
        self._partial = partial
        self._manifest = _manifest.read(given)
        if not self._manifest.complete and not partial:
            raise PartialStoreError(
                f"{given}: the run that writes it has not ended; go on with extract --resume, "
                "or open it with partial=True to read what was committed"
            )
        #: The store's directory, links followed.
        self.path = given.resolve(strict=True)
        for shard in self._manifest.shards:
            for file in (shard.samples_file, *shard.taps):
                os.close(_open(self.path, self.path / file.file, file.bytes))
        self._taps = {tap.folder: Tap(self, at) for at, tap in enumerate(self._manifest.taps)}
        self._shards: "OrderedDict[int, ShardSamples]" = OrderedDict()

    def __reduce__(self) -> Tuple[Callable[..., "Store"], Tuple[Any, ...]]:
        return (Store, (str(self.path), self._partial))

    def __repr__(self) -> str:
        m = self._manifest
        state = "" if m.complete else ", partial"
        return f"<Store {self.path}: {len(m.taps)} taps, {m.samples} samples, {len(m.shards)} shards{state}>"

    @property
    def manifest(self) -> Dict[str, Any]:
        """`manifest.json` as it is: model, dataset, job, edits, numeric record …"""
        return self._manifest.raw

    @property
    def complete(self) -> bool:
        return self._manifest.complete

    def __len__(self) -> int:
        return len(self._taps)

    def __iter__(self) -> Any:
        return iter(self._taps)

    def __getitem__(self, name: str) -> Tap:
        """The tap with this folder, or the first one at this hook point."""
        if name in self._taps:
            return self._taps[name]
        for tap in self._taps.values():
            if tap.info.hook == name:
                return tap
        raise NoSuchTapError(f"no tap {name!r} in {self.path}; it has {', '.join(self._taps)}")

    def __contains__(self, name: object) -> bool:
        return any(name in (tap.info.folder, tap.info.hook) for tap in self._taps.values())

    @overload
    def samples(self, form: Literal["pandas"] = ..., columns: Optional[Sequence[str]] = ...) -> "Any": ...
    @overload
    def samples(self, form: Literal["polars", "arrow"], columns: Optional[Sequence[str]] = ...) -> "Any": ...

    def samples(self, form: str = "pandas", columns: Optional[Sequence[str]] = None) -> Any:
        """The samples table, all shards in order, as a pandas or polars DataFrame or a pyarrow Table.

        `columns` are those to read; without `tokens` a table is much smaller.
        """
        if form not in ("pandas", "polars", "arrow"):
            raise ValueError(f"form is 'pandas', 'polars' or 'arrow', not {form!r}")
        tables = [arrow_table(self.path, shard.samples_file, columns) for shard in self._manifest.shards]
        try:
            import pyarrow
        except ImportError:
            raise missing("pyarrow", "samples") from None
        table = pyarrow.concat_tables(tables) if tables else pyarrow.table({})
        if form == "arrow":
            return table
        try:
            if form == "pandas":
                import pandas

                del pandas
                return table.to_pandas()
            import polars

            return polars.from_arrow(table)
        except ImportError:
            raise missing(form, form) from None

    def context(self, tap: Union[str, Tap], row: int, before: int = 16, after: int = 16) -> Context:
        """Where row `row` of a tap comes from, with up to `before` and `after` tokens around it."""
        found = tap if isinstance(tap, Tap) else self[tap]
        at = int(found._numbers(np.asarray([row]))[0])
        shard = int(np.searchsorted(found._starts, at, side="right")) - 1
        local = at - int(found._starts[shard])
        table = self._shard_samples(shard)
        i = table.of_row(found._at, local)
        files = found.shards[shard]
        position, token = int(files.position[local]), int(files.token[local])
        tokens: Array = table.tokens.row(i).to_numpy(zero_copy_only=False)
        if position < 0:
            start, end = 0, len(tokens)
        else:
            start, end = max(position - before, 0), min(position + after + 1, len(tokens))
        origin = _origin(table, i, position)
        return Context(
            sample=int(table.sample[i]),
            chunk=int(table.chunk[i]),
            file=origin.file,
            line=origin.line,
            position=position,
            token=token,
            tokens=tokens[start:end],
            start=start,
            turns=[(turn["role"], turn["first"], turn["last"]) for turn in table.turns.row(i).to_pylist()],
            kept={name: column[i].as_py() for name, column in table.kept.items()},
            document=origin.document,
            document_position=origin.position,
        )

    def _shard_samples(self, shard: int) -> ShardSamples:
        if shard not in self._shards:
            self._shards[shard] = ShardSamples(self.path, self._manifest, shard)
            if len(self._shards) > SHARDS_KEPT:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]


@dataclass(frozen=True)
class _Origin:
    """Where in the dataset a token is from."""

    file: str
    line: int
    document: int
    position: int


def _origin(table: ShardSamples, i: int, position: int) -> _Origin:
    """Of the token at a position of the shard's i-th sample."""
    file, line = table.file[i].as_py(), int(table.line[i])
    if position < 0:
        return _Origin(file, line, -1, -1)
    if table.pieces is None:
        return _Origin(file, line, int(table.sample[i]), position if table.chunk[i] == 0 else -1)
    for piece in table.pieces.row(i).to_pylist():
        if piece["first"] <= position < piece["first"] + piece["tokens"]:
            at = piece["offset"] + position - piece["first"]
            return _Origin(piece["file"], piece["line"], piece["document"], at)
    return _Origin(file, line, -1, -1)


def open(path: Union[str, "os.PathLike[str]"], partial: bool = False) -> Store:
    """Opens the store in a directory; one whose run has not ended only with `partial`, and then what was committed.

    Raises `StoreError`: there is no store, it is of another format version, or its manifest and files do not agree.
    """
    return Store(path, partial)
