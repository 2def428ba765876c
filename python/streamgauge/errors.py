"""What can be wrong with a store, or with what was asked of it."""

from __future__ import annotations


class StoreError(Exception):
    """Anything that this package refuses; the message says what, where and what to do."""


class FormatVersionError(StoreError):
    """The store is of a format that this version of the package does not read."""


class PartialStoreError(StoreError):
    """The run that writes the store has not ended."""


class DamagedStoreError(StoreError):
    """The manifest, or a file that it lists, contradicts itself or the other."""


class NoSuchTapError(StoreError, KeyError):
    """The store has no tap of that name."""

    def __str__(self) -> str:
        # KeyError would print the message's repr.
        return str(self.args[0])


class MissingPackageError(StoreError, ImportError):
    """An optional package is not installed."""


def missing(package: str, extra: str) -> MissingPackageError:
    return MissingPackageError(f"this needs {package}: pip install 'streamgauge[{extra}]'")
