"""Opens the activation stores that `streamgauge extract` writes.

    store = streamgauge.open("run")
    tap = store["blocks.15.hook_resid_post"]
    tap[:8]                            # float32 rows
    tap.shards[0].numpy()              # the mapped file, nothing copied
    store.samples()                    # pandas
    store.context(tap, 0)              # where a row comes from
    streamgauge.RowDataset(tap)        # PyTorch, shuffled, several workers

Needs numpy; pyarrow for samples and contexts, and pandas, polars and torch where they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._manifest import TapInfo
from ._store import Context, Store, open
from ._tap import RaggedSample, Shard, Tap
from .errors import (
    DamagedStoreError,
    FormatVersionError,
    MissingPackageError,
    NoSuchTapError,
    PartialStoreError,
    StoreError,
)

if TYPE_CHECKING:
    from ._dataset import RowDataset

__version__ = "0.1.0"

__all__ = [
    "Context",
    "DamagedStoreError",
    "FormatVersionError",
    "MissingPackageError",
    "NoSuchTapError",
    "PartialStoreError",
    "RaggedSample",
    "RowDataset",
    "Shard",
    "Store",
    "StoreError",
    "Tap",
    "TapInfo",
    "open",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import: not before it is asked for.
    if name == "RowDataset":
        from ._dataset import RowDataset

        return RowDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
