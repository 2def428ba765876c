"""The samples table: which samples a shard holds, all of their tokens, and where their rows lie."""

from __future__ import annotations

from typing import Any, List, NoReturn, Optional, Sequence

import numpy as np

from ._file import MappedFile
from ._manifest import ListedFile, Manifest
from ._numbers import Array
from .errors import DamagedStoreError, StoreError, missing


def arrow_table(root: Any, listed: ListedFile, columns: Optional[Sequence[str]]) -> Any:
    """A shard's table, read from the very file that was checked to lie inside the store."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing("pyarrow", "samples") from None
    file = MappedFile(root, listed)
    try:
        opened = parquet.ParquetFile(pyarrow.py_buffer(file.map))
        names = opened.schema_arrow.names
        unknown = [name for name in columns or () if name not in names]
        if unknown:
            raise StoreError(f"the samples table has no column {unknown[0]!r}; it has {', '.join(names)}")
        table = opened.read(columns=list(columns) if columns is not None else None, use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedStoreError(f"{file.path}: no samples table ({error})") from None
    if table.num_rows != listed.rows:
        raise DamagedStoreError(f"{file.path}: has {table.num_rows} rows where the manifest says {listed.rows}")
    return table


class Lists:
    """A column of lists: all elements, and where each row's begin."""

    def __init__(self, column: Any) -> None:
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        self.values = array.flatten()
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        self.starts: Array = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

    def row(self, i: int) -> Any:
        return self.values.slice(int(self.starts[i]), int(self.starts[i + 1] - self.starts[i]))


class ShardSamples:
    """The samples of one shard, in order."""

    def __init__(self, root: Any, manifest: Manifest, shard: int) -> None:
        entry = manifest.shards[shard]
        self._path = f"{root}/{entry.samples_file.file}"
        table = arrow_table(root, entry.samples_file, None)
        columns = ("sample", "file", "line", "chunk", "tokens", "turns", "selections", *manifest.keep)
        lacking = [name for name in columns if name not in table.column_names]
        if lacking:
            self._wrong(f"has no column {lacking[0]!r}")
        self.sample: Array = table["sample"].to_numpy()
        self.chunk: Array = table["chunk"].to_numpy()
        self.line: Array = table["line"].to_numpy()
        self.file = table["file"]
        self.tokens = Lists(table["tokens"])
        self.turns = Lists(table["turns"])
        #: Tables from before there were pieces lack them.
        self.pieces = Lists(table["pieces"]) if "pieces" in table.column_names else None
        self.kept = {name: table[name] for name in manifest.keep}
        self._starts = self._row_starts(table, manifest, shard)

    def _row_starts(self, table: Any, manifest: Manifest, shard: int) -> List[Array]:
        """Per tap: where each sample's rows begin in its file; checked to follow one another and to fill it."""
        selections = Lists(table["selections"]).values
        n = table.num_rows
        taps = np.asarray(selections.field("tap").to_pylist(), dtype=object)
        starts = selections.field("row_start").to_numpy(zero_copy_only=False)
        counts = selections.field("rows").to_numpy(zero_copy_only=False)
        found = []
        for tap, listed in zip(manifest.taps, manifest.shards[shard].taps):
            mine = taps == tap.folder
            begin = np.concatenate([[0], np.cumsum(counts[mine])])
            if mine.sum() != n or (counts[mine] < 0).any() or begin[-1] != listed.rows:
                self._wrong(f"its selections do not account for the {listed.rows} rows of {listed.file}")
            if (starts[mine] != begin[:-1]).any():
                self._wrong(f"its selections in {listed.file} do not follow one another")
            found.append(begin.astype(np.int64))
        return found

    def of_row(self, tap: int, row: int) -> int:
        """Which sample, counted in the shard, has that row of the tap's file."""
        return int(np.searchsorted(self._starts[tap], row, side="right")) - 1

    def _wrong(self, what: str) -> NoReturn:
        raise DamagedStoreError(f"{self._path}: {what}")
