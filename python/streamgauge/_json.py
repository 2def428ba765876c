"""JSON that comes from a file which may be damaged or forged: every access says what was expected where."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple, TypeVar

T = TypeVar("T")

#: Counts and lengths stay below what a file offset can hold.
MOST = 1 << 62


def parse(text: bytes, wrong: Callable[[str], NoReturn]) -> Any:
    """The value of a JSON text in which no object names a key twice."""

    def distinct(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        wrong(f"no valid JSON ({error})")


class Node:
    """A value and the path to it, for messages."""

    def __init__(self, value: Any, where: str, wrong: Callable[[str], NoReturn]) -> None:
        self.value = value
        self.where = where
        self._wrong = wrong

    def fail(self, what: str) -> NoReturn:
        self._wrong(f"{self.where or 'the whole'}: {what}")

    def _of(self, kind: type, word: str) -> Any:
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            self.fail(f"{word} belongs here, not {_short(self.value)}")
        return self.value

    def __getitem__(self, key: str) -> "Node":
        found: Dict[str, Any] = self._of(dict, "an object")
        if key not in found:
            self.fail(f"`{key}` is missing")
        return Node(found[key], f"{self.where}.{key}" if self.where else key, self._wrong)

    def get(self, key: str) -> Optional["Node"]:
        """The field, unless it is missing or null."""
        return self[key] if self._of(dict, "an object").get(key) is not None else None

    def items(self) -> List["Node"]:
        found: List[Any] = self._of(list, "a list")
        return [Node(v, f"{self.where}[{i}]", self._wrong) for i, v in enumerate(found)]

    def text(self) -> str:
        found: str = self._of(str, "a string")
        return found

    def flag(self) -> bool:
        found: bool = self._of(bool, "true or false")
        return found

    def count(self) -> int:
        found: int = self._of(int, "a whole number")
        if not 0 <= found < MOST:
            self.fail(f"{found} is no count")
        return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
