"""Makes stores without streamgauge, after docs/store-format.md: what the tests read, and damage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import pyarrow
from pyarrow import parquet

NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass
class Made:
    """A tap: `width` numbers a row, of `dtype`; `rows` of each sample's tokens are selected (`None`: all of them)."""

    hook: str
    dtype: str = "f32"
    width: int = 4
    selection: str = "all"
    mean: bool = False
    top_k: Optional[int] = None
    ragged: bool = False
    folder: str = ""
    order_seed: Optional[int] = None
    #: Filled while the store is made: all rows as numpy has them, and the samples' tensors of a ragged tap.
    values: List[Any] = field(default_factory=list)
    sample: List[int] = field(default_factory=list)
    position: List[int] = field(default_factory=list)
    token: List[int] = field(default_factory=list)
    #: The rows in stored order, numbered over all shards; and how many there are by now.
    order: List[int] = field(default_factory=list)
    rows_before: int = 0

    def positions(self, n: int) -> List[int]:
        if self.mean:
            return [-1]
        return [n - 1] if self.selection == "last" else list(range(n))

    @property
    def row_shape(self) -> List[int]:
        return [2] if self.ragged else [self.top_k or self.width]


def tensor_file(tensors: Dict[str, Any], names: Dict[str, str], metadata: Dict[str, str]) -> bytes:
    """A safetensors file as streamgauge writes it: in this order, its header padded."""
    header: Dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, value in tensors.items():
        header[name] = {"dtype": names[name], "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    return len(text).to_bytes(8, "little") + text + b"".join(v.tobytes() for v in tensors.values())


def random_numbers(random: Any, dtype: str, shape: Sequence[int]) -> Any:
    values = random.standard_normal(shape).astype("<f4")
    if dtype == "bf16":
        return (values.view("<u4") >> 16).astype("<u2")
    return values.astype(NUMPY[dtype])


def quantised(random: Any, dtype: str, n: int, width: int) -> Any:
    """`n` rows in 8 bits, random in every part: the tensors, their dtypes, and number by number what the rows are."""
    k, groups = min(-(-width // 64), 8), -(-width // 64)
    bf16 = (random.standard_normal((n, k)).astype("<f4").view("<u4") >> 16).astype("<u2")
    index = np.array([random.permutation(width)[:k] for _ in range(n)], "<u2").reshape(n, k)
    tensors: Dict[str, Any] = {"activations": random.integers(0, 127, (n, width)).astype("u1")}
    names = {"activations": "F8_E4M3", "scale": "F32", "outlier_index": "U16", "outlier_value": "BF16"}
    if dtype == "int8":
        tensors["activations"] = random.integers(-127, 128, (n, width)).astype("i1")
        tensors["scale"] = (random.uniform(0.01, 2, (n, groups)).astype("<f4").view("<u4") >> 16).astype("<u2")
        names.update(activations="I8", scale="BF16")
    else:
        tensors["scale"] = random.uniform(0.01, 2, n).astype("<f4")
    tensors.update(outlier_index=index, outlier_value=bf16)
    for name in ("relative_error", "cosine"):
        tensors[name], names[name] = random.uniform(0, 1, n).astype("<f4"), "F32"
    rows = np.zeros((n, width), "<f4")
    for r in range(n):
        for i in range(width):
            code = int(tensors["activations"][r, i])
            if dtype == "int8":
                number, scale = float(code), widened(tensors["scale"][r, i // 64], "bf16")
            else:
                exponent, mantissa = code >> 3, code & 7
                number = mantissa / 512 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
                scale = tensors["scale"][r]
            rows[r, i] = np.float32(number) * np.float32(scale)
        for place, value in zip(index[r], bf16[r]):
            rows[r, place] = widened(value, "bf16")
    return tensors, names, rows


def make_store(
    root: Path,
    taps: List[Made],
    shards: Sequence[Sequence[int]] = ((3, 5), (1, 4, 2)),
    seed: int = 0,
    state: str = "complete",
    pieces: Optional[Callable[[int, int], List[Dict[str, Any]]]] = None,
) -> Dict[str, Any]:
    """Writes a store whose shards hold samples of these lengths; returns its manifest. `pieces` of a sample's number and length."""
    random = np.random.default_rng(seed)
    root.mkdir(parents=True)
    (root / "samples").mkdir()
    for tap in taps:
        tap.folder = tap.folder or tap.hook
        (root / tap.folder).mkdir()
    entries = []
    number = 0
    for s, lengths in enumerate(shards):
        tokens = [random.integers(0, 1000, n).astype(np.int32) for n in lengths]
        files, selections = [], [[] for _ in lengths]
        for tap in taps:
            sample, position, token, ragged = [], [], [], {}
            for i, ids in enumerate(tokens):
                at = tap.positions(len(ids))
                selections[i].append({"tap": tap.folder, "row_start": len(sample), "rows": len(at)})
                sample += [number + i] * len(at)
                position += at
                token += [int(ids[p]) if p >= 0 else -1 for p in at]
                if tap.ragged:
                    ragged[str(number + i)] = random_numbers(random, tap.dtype, (2, len(at), len(ids)))
            kinds = {name: tap.dtype.upper() for name in [*ragged, "activations"]}
            kinds.update(index="I32", sample="I64", position="I32", token="I32")
            tensors: Dict[str, Any] = dict(ragged)
            rows: Any = None
            if tap.dtype in ("fp8-e4m3", "int8"):
                tensors, compact_kinds, rows = quantised(random, tap.dtype, len(sample), tap.width)
                kinds.update(compact_kinds)
            elif not tap.ragged:
                tensors["activations"] = random_numbers(random, tap.dtype, (len(sample), *tap.row_shape))
            if tap.top_k:
                tensors["index"] = random.integers(0, 100, (len(sample), tap.top_k)).astype("<i4")
            tensors.update(
                sample=np.array(sample, "<i8"), position=np.array(position, "<i4"), token=np.array(token, "<i4")
            )
            if tap.order_seed is not None:
                kinds["order"] = "I32"
                tensors["order"] = random.permutation(len(sample)).astype("<i4")
                tap.order += (tensors["order"].astype(int) + tap.rows_before).tolist()
                tap.rows_before += len(sample)
            tap.values.append(ragged if tap.ragged else tensors["activations"] if rows is None else rows)
            tap.sample += sample
            tap.position += position
            tap.token += token
            data = tensor_file(tensors, kinds, {"hook": tap.hook, "format_version": "1"})
            name = f"{tap.folder}/{s:05}.safetensors"
            (root / name).write_bytes(data)
            files.append(
                {"tap": tap.folder, "file": name, "rows": len(sample), "bytes": len(data), "batch_rows": [len(sample)], "checksums": []}
            )
        table = f"samples/{s:05}.parquet"
        write_samples(root / table, number, tokens, selections, pieces)
        entries.append(
            {
                "index": s,
                "first": number,
                "count": len(lengths),
                "batches": [len(lengths)],
                "samples_file": {"file": table, "rows": len(lengths), "bytes": (root / table).stat().st_size, "xxh3": "0" * 16},
                "taps": files,
            }
        )
        number += len(lengths)
    manifest = {
        "format_version": 1,
        "state": state,
        "taps": [
            {
                "hook": tap.hook,
                "folder": tap.folder,
                "selection": tap.selection,
                "reduction": "mean" if tap.mean else f"top:{tap.top_k}" if tap.top_k else "",
                "heads": None,
                "dtype": tap.dtype,
                "row_shape": tap.row_shape,
                "ragged": tap.ragged,
                "top_k": tap.top_k,
                **({} if tap.order_seed is None else {"order_seed": tap.order_seed}),
            }
            for tap in taps
        ],
        "keep": [{"name": "label", "type": "int64"}],
        "samples": number,
        "shards": entries,
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def write_samples(
    path: Path,
    first: int,
    tokens: List[Any],
    selections: List[Any],
    pieces: Optional[Callable[[int, int], List[Dict[str, Any]]]] = None,
) -> None:
    n = len(tokens)
    structs = {
        "turns": [("role", pyarrow.string()), ("first", pyarrow.int32()), ("last", pyarrow.int32())],
        "selections": [("tap", pyarrow.string()), ("row_start", pyarrow.int64()), ("rows", pyarrow.int64())],
    }
    list_of = {name: pyarrow.list_(pyarrow.struct(fields)) for name, fields in structs.items()}
    columns = (
        {
            "sample": pyarrow.array(range(first, first + n), pyarrow.int64()),
            "file": ["made.jsonl"] * n,
            "line": pyarrow.array(range(first + 1, first + n + 1), pyarrow.int64()),
            "chunk": pyarrow.array([0] * n, pyarrow.int32()),
            "tokens": pyarrow.array([ids.tolist() for ids in tokens], pyarrow.list_(pyarrow.int32())),
            "turns": pyarrow.array([[{"role": "user", "first": 0, "last": len(ids) - 1}] for ids in tokens], list_of["turns"]),
            "selections": pyarrow.array(selections, list_of["selections"]),
            "label": pyarrow.array([i % 2 for i in range(first, first + n)], pyarrow.int64()),
        }
    )
    if pieces is not None:
        numbers = {name: pyarrow.int64() for name in ("document", "line", "first", "tokens", "offset", "char_start", "char_end")}
        kind = pyarrow.list_(pyarrow.struct([("file", pyarrow.string()), *numbers.items()]))
        columns["pieces"] = pyarrow.array([pieces(first + i, len(ids)) for i, ids in enumerate(tokens)], kind)
    parquet.write_table(pyarrow.table(columns), path)


def widened(raw: Any, dtype: str) -> Any:
    """Numbers as float64, by another way than the package's: sign, exponent and fraction of a bfloat16 one by one."""
    if dtype != "bf16":
        return raw.astype(np.float64)

    def one(bits: int) -> float:
        sign, exponent, fraction = bits >> 15, (bits >> 7) & 255, bits & 127
        size = math.ldexp(fraction + (128 if exponent else 0), max(exponent, 1) - 134)
        return -size if sign else size

    return np.array([one(int(b)) for b in raw.ravel()]).reshape(raw.shape)
