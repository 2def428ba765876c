"""One tap of a store: rows numbered over all shards, in files that are mapped when first looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from ._compact import CODES, At, Compact
from ._file import Tensor, TensorFile
from ._manifest import TapInfo
from ._numbers import NUMPY, SAFETENSORS, Array, float32, import_torch, torch_of, torch_view
from .errors import StoreError

if TYPE_CHECKING:
    import torch

    from ._store import Store

#: Which rows: one, a slice, or any numbers in any order. Negative ones count from the end.
Rows = Union[int, slice, Sequence[int], Array]


class Shard:
    """The rows of a tap in one shard."""

    def __init__(self, store: "Store", tap: int, shard: int, first_row: int) -> None:
        entry = store._manifest.shards[shard]
        self.info: TapInfo = store._manifest.taps[tap]
        self.rows: int = entry.taps[tap].rows
        #: Place of its first row among all rows of the tap.
        self.first_row = first_row
        self._root, self._listed, self._samples = store.path, entry.taps[tap], entry.count

    def __repr__(self) -> str:
        return f"<Shard {self._listed.file}: {self.rows} rows>"

    @cached_property
    def _file(self) -> TensorFile:
        """The file, mapped: exactly the tensors that the manifest promises."""
        file, info, rows = TensorFile(self._root, self._listed), self.info, self.rows
        index: Tuple[str, ...] = ("sample", "position", "token")
        file.expect("sample", "I64", (rows,))
        file.expect("position", "I32", (rows,))
        file.expect("token", "I32", (rows,))
        if info.order_seed is not None:
            index += ("order",)
            file.expect("order", "I32", (rows,))
        known = len(index)
        if info.top_k is not None:
            file.expect("index", "I32", (rows, info.top_k))
            known += 1
        if info.ragged:
            tensors = [t for t in file.tensors.values() if t.name not in index]
            known += self._samples
            if len(file.tensors) != known:
                file.wrong(f"has {len(tensors)} tensors for {self._samples} samples")
            for tensor in tensors:
                if tensor.dtype != SAFETENSORS[info.dtype] or len(tensor.shape) != 3 or tensor.shape[:1] != info.row_shape:
                    file.wrong(f"`{tensor.name}` is {tensor.dtype} {list(tensor.shape)}")
            if sum(t.shape[1] for t in tensors) != rows:
                file.wrong(f"its samples' rows are not the manifest's {rows}")
        else:
            code = CODES[info.dtype][0] if info.compact else SAFETENSORS[info.dtype]
            file.expect("activations", code, (rows, *info.row_shape))
            known += 1
        for name, (dtype, shape, _) in info.compact.tensors().items() if info.compact else ():
            file.expect(name, dtype, (rows, *shape))
            known += 1
        if len(file.tensors) != known:
            file.wrong("has tensors that a tap's file does not have")
        return file

    @property
    def _activations(self) -> Tensor:
        if self.info.ragged:
            raise StoreError(f"tap {self.info.folder} is ragged: it has a tensor per sample, not rows; use `ragged`")
        return self._file.tensors["activations"]

    def numpy(self) -> Array:
        """[rows, …row shape] as in the file: read-only, nothing copied. bf16 as its bits, uint16: see `float32`. Of rows in 8 bits a copy,
        read back to float32."""
        if self.info.compact:
            return self._read(slice(None))
        return self._file.view(self._activations, NUMPY[self.info.dtype])

    def float32(self) -> Array:
        """[rows, …row shape], widened exactly, or read back from 8 bits; a copy unless the tap is f32."""
        return float32(self.numpy(), self.info.dtype)

    def torch(self) -> "torch.Tensor":
        """[rows, …row shape] in the tap's dtype, bf16 too; nothing copied. Writing to it changes neither the file nor `numpy`'s view. Of
        rows in 8 bits a copy, read back to float32."""
        if self.info.compact:
            return torch_of(self.numpy(), self.info.dtype)
        t = self._activations
        return torch_view(self._file.private(), self.info.dtype, t.shape, t.start)

    def _read(self, at: At) -> Array:
        """Some rows in 8 bits as float32."""
        compact = self._compact
        # An array's rows may lie at odd addresses in the file; indexing copies them.
        parts = [self.stored(name)[at] for name in ("activations", "scale", "outlier_index", "outlier_value")]
        if (parts[2] >= compact.width).any():
            self._file.wrong(f"`outlier_index` names a number past the {compact.width} of a row")
        codes = parts[0].reshape(len(parts[0]), compact.width)
        return compact.read(codes, *parts[1:]).reshape(len(codes), *self.info.row_shape)

    @property
    def _compact(self) -> Compact:
        if self.info.compact is None:
            raise StoreError(f"tap {self.info.folder} is of {self.info.dtype}, not of rows in 8 bits")
        return self.info.compact

    def stored(self, name: str) -> Array:
        """Of rows in 8 bits, a tensor as it is in the file, read-only, nothing copied: `activations` (the codes; FP8 as its bits, uint8),
        `scale`, `outlier_index`, `outlier_value` (bfloat16 as its bits, uint16)."""
        compact = self._compact
        kinds = {part: numpy for part, (_, _, numpy) in compact.tensors().items()}
        kinds["activations"] = CODES[compact.dtype][1]
        if name not in kinds:
            raise KeyError(f"{name!r} is none of {', '.join(kinds)}")
        return self._file.view(self._file.tensors[name], kinds[name])

    @property
    def relative_error(self) -> Array:
        """float32 [rows] of rows in 8 bits: ‖read − row‖ / ‖row‖, measured as they were written; NaN where a number was not finite."""
        return self.stored("relative_error")

    @property
    def cosine(self) -> Array:
        """float32 [rows] of rows in 8 bits: the cosine between each row and what is read for it."""
        return self.stored("cosine")

    # As in the file too, and perhaps at odd addresses there, which numpy minds and other libraries may not.

    @cached_property
    def sample(self) -> Array:
        """int64 [rows]: the number in the dataset of each row's sample."""
        return self._index("sample", "<i8")

    @cached_property
    def position(self) -> Array:
        """int32 [rows]: each row's token position in its sample; −1 for a row made of several."""
        return self._index("position", "<i4")

    @cached_property
    def token(self) -> Array:
        """int32 [rows]: each row's token id; −1 for a row made of several."""
        return self._index("token", "<i4")

    @cached_property
    def index(self) -> Array:
        """int32 [rows, K] of a top-K tap: which components the K values are."""
        if self.info.top_k is None:
            raise StoreError(f"tap {self.info.folder} has no `|top:K` or `|logprob:K`, and so no index")
        return self._index("index", "<i4")

    @cached_property
    def order(self) -> Array:
        """int32 [rows]: the shard's rows in the random order that `--shuffle` drew, each by its number in the shard."""
        if self.info.order_seed is None:
            raise StoreError(f"tap {self.info.folder} has no order of rows: it is written under --shuffle SEED, but not for ragged taps")
        order = self._index("order", "<i4")
        if not np.array_equal(np.sort(order), np.arange(self.rows)):
            self._file.wrong(f"`order` is no order of its {self.rows} rows")
        return order

    def _index(self, name: str, dtype: str) -> Array:
        return self._file.view(self._file.tensors[name], dtype)


class _Read:
    """A shard's rows in 8 bits, of which those that are asked for are read back."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def __getitem__(self, at: At) -> Array:
        return self._shard._read(at)


@dataclass(frozen=True)
class RaggedSample:
    """One sample's tensor in a ragged tap: [heads, rows selected, tokens of the sample]."""

    shard: Shard
    tensor: Tensor

    @property
    def shape(self) -> Tuple[int, ...]:
        return self.tensor.shape

    def numpy(self) -> Array:
        """As in the file: read-only, nothing copied. bf16 as its bits, uint16."""
        return self.shard._file.view(self.tensor, NUMPY[self.shard.info.dtype])

    def float32(self) -> Array:
        return float32(self.numpy(), self.shard.info.dtype)

    def torch(self) -> "torch.Tensor":
        """In the tap's dtype; nothing copied."""
        t = self.tensor
        return torch_view(self.shard._file.private(), self.shard.info.dtype, t.shape, t.start)


class Tap:
    """One tap: `tap[rows]` is float32, `tap.shards` the files as they are."""

    def __init__(self, store: "Store", at: int) -> None:
        self.store = store
        self.info: TapInfo = store._manifest.taps[at]
        self._at = at
        rows = [entry.taps[at].rows for entry in store._manifest.shards]
        #: First row of each shard, and the number of rows at the end.
        self._starts: Array = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        self.shards: List[Shard] = [Shard(store, at, i, int(self._starts[i])) for i in range(len(rows))]

    def __reduce__(self) -> Tuple[Callable[..., "Tap"], Tuple[Any, ...]]:
        # A worker process maps the files anew.
        return (Tap, (self.store, self._at))

    def __repr__(self) -> str:
        return f"<Tap {self.info.folder}@{self.info.selection}: {list(self.shape)} {self.info.dtype}>"

    @property
    def name(self) -> str:
        """Its folder, which tells it apart in its store."""
        return self.info.folder

    @property
    def shape(self) -> Tuple[int, ...]:
        return (len(self), *self.info.row_shape)

    @property
    def mean_norm(self) -> Optional[float]:
        """The mean Euclidean norm of the rows, as the manifest has it; None of a ragged tap, of one without rows, where a number was not
        finite, and where the run has not ended."""
        norms = self.store.manifest.get("mean_norms")
        norm = norms.get(self.name) if isinstance(norms, dict) else None
        return float(norm) if isinstance(norm, (int, float)) else None

    @property
    def loss(self) -> Optional[Dict[str, Any]]:
        """Of rows in 8 bits, what rounding lost over all rows, as the manifest has it: `relative_error` (`rms`, `worst`) and `cosine`
        (`mean`, `worst`); None of other rows, and where the run has not ended."""
        losses = self.store.manifest.get("losses")
        loss = losses.get(self.name) if isinstance(losses, dict) else None
        return loss if isinstance(loss, dict) else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Rows) -> Array:
        return self.float32(rows)

    def numpy(self, rows: Rows = slice(None)) -> Array:
        """These rows in one array, copied; bf16 as its bits, uint16. Rows in 8 bits are read back to float32."""
        part: Callable[[Shard], Any] = _Read if self.info.compact else Shard.numpy
        return self._take(rows, part, NUMPY[self.info.dtype], self.info.row_shape)

    def float32(self, rows: Rows = slice(None)) -> Array:
        """These rows in one array, copied and widened exactly to float32, or read back from 8 bits."""
        return float32(self.numpy(rows), self.info.dtype)

    def torch(self, rows: Rows = slice(None)) -> "torch.Tensor":
        """These rows in one tensor of the tap's dtype, copied; of rows in 8 bits float32."""
        import_torch()
        return torch_of(self.numpy(rows), self.info.dtype)

    def sample(self, rows: Rows = slice(None)) -> Array:
        """int64: the number in the dataset of each row's sample."""
        return self._take(rows, lambda shard: shard.sample, "<i8", ())

    def position(self, rows: Rows = slice(None)) -> Array:
        """int32: each row's token position in its sample; −1 for a row made of several."""
        return self._take(rows, lambda shard: shard.position, "<i4", ())

    def token(self, rows: Rows = slice(None)) -> Array:
        """int32: each row's token id; −1 for a row made of several."""
        return self._take(rows, lambda shard: shard.token, "<i4", ())

    def index(self, rows: Rows = slice(None)) -> Array:
        """int32 […, K] of a top-K tap: which components the K values are."""
        return self._take(rows, lambda shard: shard.index, "<i4", (self.info.top_k or 0,))

    def order(self, places: Rows = slice(None)) -> Array:
        """int64: the numbers of the rows that stand at these places of the random order that `--shuffle` drew, shard after shard. So
        `tap[tap.order(slice(0, 1024))]` are its first 1,024 rows."""
        return self._take(places, lambda shard: shard.order.astype(np.int64) + shard.first_row, "<i8", ())

    def rows_of(self, sample: int) -> Array:
        """The numbers of the rows of a sample (of all its chunks), in order; none if the tap has none of it."""
        samples, begins, ends = self._runs
        first, last = np.searchsorted(samples, [sample, sample + 1])
        runs = [np.arange(begin, end) for begin, end in zip(begins[first:last], ends[first:last])]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    @cached_property
    def _runs(self) -> Tuple[Array, Array, Array]:
        """Runs of rows of one sample: the sample, the first row, one past the last; by sample."""
        samples, begins, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for shard in self.shards:
            if shard.rows == 0:
                continue
            of = shard.sample
            begin = np.concatenate([[0], np.flatnonzero(of[1:] != of[:-1]) + 1])
            samples.append(of[begin])
            begins.append(begin + shard.first_row)
            ends.append(np.append(begin[1:], shard.rows) + shard.first_row)
        run_samples = np.concatenate(samples)
        order = np.argsort(run_samples, kind="stable")
        return run_samples[order], np.concatenate(begins)[order], np.concatenate(ends)[order]

    def ragged(self, sample: int, chunk: int = 0) -> RaggedSample:
        """A ragged tap's tensor of one sample, and of one chunk of it.

        Raises `KeyError` where the store does not hold it.
        """
        if not self.info.ragged:
            raise StoreError(f"tap {self.name} is not ragged: it has rows; use `tap[rows]`")
        name = f"{sample}.{chunk}" if chunk else str(sample)
        for shard in self.shards:
            if name in shard._file.tensors:
                return RaggedSample(shard, shard._file.tensors[name])
        raise KeyError(f"tap {self.name} has no sample {name}")

    def _take(self, rows: Rows, part: Callable[[Shard], Any], dtype: str, shape: Tuple[int, ...]) -> Array:
        if isinstance(rows, slice):
            begin, end, step = rows.indices(len(self))
            if step == 1:
                return self._run(begin, max(begin, end), part, dtype, shape)
            rows = range(begin, end, step)
        elif isinstance(rows, (int, np.integer)):
            at = int(self._numbers(np.asarray([rows]))[0])
            return self._run(at, at + 1, part, dtype, shape)[0]  # type: ignore[no-any-return]
        numbers = self._numbers(np.asarray(rows))
        out = np.empty((len(numbers), *shape), dtype)
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for i in np.unique(shards):
            here = shards == i
            out[here] = part(self.shards[i])[numbers[here] - self._starts[i]]
        return out

    def _run(self, begin: int, end: int, part: Callable[[Shard], Any], dtype: str, shape: Tuple[int, ...]) -> Array:
        pieces = [
            part(shard)[max(begin - shard.first_row, 0) : end - shard.first_row]
            for shard in self.shards
            if shard.first_row < end and begin < shard.first_row + shard.rows
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, *shape), dtype)

    def _numbers(self, rows: Array) -> Array:
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of {list(rows.shape)} for the {len(self)} rows of tap {self.name}")
            return np.flatnonzero(rows)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise TypeError("rows are a whole number, a slice, or a list of whole numbers")
        numbers = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        outside = (numbers < 0) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"tap {self.name} has {len(self)} rows; there is no row {rows[outside][0]}")
        return numbers

    def __iter__(self) -> Iterator[Array]:
        raise TypeError("a tap is too long to go through row by row: use `tap.shards`, or streamgauge.RowDataset")
