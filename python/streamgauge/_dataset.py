"""A PyTorch dataset of a store's rows: every row once an epoch, in a seeded random order, over any number of workers.

Reading rows one by one in random order from a disk is slow, and a permutation of all rows takes memory. So blocks of neighbouring rows
are permuted, dealt out to workers, and some blocks at a time are read and their rows permuted together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Literal, Optional, Sequence, Tuple, Union

import numpy as np

from ._numbers import Array, import_torch, torch_of
from ._tap import Tap
from .errors import StoreError, missing

if TYPE_CHECKING:
    import torch
    from torch.utils.data import IterableDataset
else:
    try:
        from torch.utils.data import IterableDataset
    except ImportError:
        raise missing("PyTorch", "torch") from None


class RowDataset(IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
    """Batches of rows of one tap, or of several whose rows are of the same tokens.

    A batch is a dict: under each tap's name [batch, …row shape], under `sample`, `position` and `token` where the rows come from.
    Use it with `DataLoader(dataset, batch_size=None, num_workers=…)`: batches are made here.

    `shuffle`: the order is drawn from `seed` and the epoch (`set_epoch`); it also depends on how many workers there are. Rows are mixed
    within `mix` blocks of `block` rows (32 times 1024), the blocks being chosen at random: `block=1` mixes perfectly, and reads row by row.
    `shuffle="stored"` gives rows in the order that `extract --shuffle SEED` drew, shard after shard: the same in every epoch, whatever the
    number of workers, and with several ranks by turns.
    `dtype` converts, for example to torch.float32; without it rows have their tap's.
    `rank` and `world_size` deal rows out to processes; every process has its own rows.
    """

    def __init__(
        self,
        taps: Union[Tap, Sequence[Tap]],
        batch_size: int = 1024,
        shuffle: Union[bool, Literal["stored"]] = True,
        seed: int = 0,
        block: int = 1024,
        mix: int = 32,
        drop_last: bool = False,
        dtype: Optional["torch.dtype"] = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.taps: List[Tap] = [taps] if isinstance(taps, Tap) else list(taps)
        _check(self.taps)
        for name, value in (("batch_size", batch_size), ("block", block), ("mix", mix), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}: ranks count from 0")
        if isinstance(shuffle, str):
            if shuffle != "stored":
                raise ValueError(f'shuffle is True, False or "stored", not {shuffle!r}')
            for tap in self.taps:
                tap.order(slice(0, 1))
        self.batch_size, self.shuffle, self.seed, self.block, self.mix = batch_size, shuffle, seed, block, mix
        self.drop_last, self.dtype, self.rank, self.world_size = drop_last, dtype, rank, world_size
        self.epoch = 0

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all workers and ranks."""
        return len(self.taps[0])

    def set_epoch(self, epoch: int) -> None:
        """Draws another order. Call it before the workers are started, that is, before going through the DataLoader again."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Dict[str, "torch.Tensor"]]:
        import torch.utils.data as data

        info = data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        parts = self.world_size * workers
        if self.shuffle == "stored":
            groups = self._stored(worker * self.world_size + self.rank, parts)
        else:
            groups = self._groups(self.rank * workers + worker, parts)
        left: Optional[Array] = None
        for numbers in groups:
            if left is not None:
                numbers = np.concatenate([left, numbers])
            whole = len(numbers) // self.batch_size * self.batch_size
            for begin in range(0, whole, self.batch_size):
                yield self._batch(numbers[begin : begin + self.batch_size])
            left = numbers[whole:]
        if left is not None and len(left) and not self.drop_last:
            yield self._batch(left)

    def _groups(self, part: int, parts: int) -> Iterator[Array]:
        """The numbers of the rows of this part, some blocks at a time."""
        random = np.random.default_rng([self.seed, self.epoch])
        n_blocks = -(-self.rows // self.block)
        # All workers draw the same order of blocks, and take turns.
        blocks = random.permutation(n_blocks) if self.shuffle else np.arange(n_blocks)
        mine = blocks[part::parts]
        own = np.random.default_rng([self.seed, self.epoch, part])
        for begin in range(0, len(mine), self.mix):
            firsts = mine[begin : begin + self.mix] * self.block
            numbers = (firsts[:, None] + np.arange(self.block)).ravel()
            numbers = numbers[numbers < self.rows]
            if self.shuffle:
                own.shuffle(numbers)
            yield numbers

    def _stored(self, part: int, parts: int) -> Iterator[Array]:
        """Every `parts`-th batch of the order in the store. A DataLoader takes its workers' batches by turns, and so all in this order."""
        for begin in range(part * self.batch_size, self.rows, parts * self.batch_size):
            yield self.taps[0].order(slice(begin, begin + self.batch_size))

    def _batch(self, numbers: Array) -> Dict[str, "torch.Tensor"]:
        torch = import_torch()
        batch: Dict[str, Any] = {}
        for tap in self.taps:
            rows = torch_of(tap.numpy(numbers), tap.info.dtype)
            batch[tap.name] = rows if self.dtype is None else rows.to(self.dtype)
            if tap.info.top_k is not None:
                batch[f"{tap.name}.index"] = torch.from_numpy(tap.index(numbers))
        first = self.taps[0]
        for name, column in (("sample", first.sample), ("position", first.position), ("token", first.token)):
            batch[name] = torch.from_numpy(column(numbers))
        return batch


def _check(taps: List[Tap]) -> None:
    if not taps:
        raise ValueError("name at least one tap")
    first = taps[0]
    for tap in taps:
        if tap.info.ragged:
            raise StoreError(f"tap {tap.name} is ragged: it has a tensor per sample, not rows")
    if len({tap.name for tap in taps}) != len(taps):
        raise ValueError("two taps of one name: rows of two stores do not go into one batch")
    for tap in taps[1:]:
        if [shard.rows for shard in tap.shards] != [shard.rows for shard in first.shards] or not _same_rows(first, tap):
            raise StoreError(f"taps {first.name} and {tap.name} have rows of different tokens: give them the same selection")


def _same_rows(a: Tap, b: Tap) -> bool:
    def key(tap: Tap, shard: int) -> Tuple[Array, Array]:
        return tap.shards[shard].sample, tap.shards[shard].position

    return all(
        np.array_equal(x, y) for i in range(len(a.shards)) for x, y in zip(key(a, i), key(b, i))
    )
