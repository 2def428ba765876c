"""Damaged and forged stores: each is refused with a message that names the file, and nothing outside of the store is read."""

import copy
import json
import os
import random
import shutil

import numpy as np
import pytest
from made import Made, make_store, tensor_file

import streamgauge


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good") / "s"
    make_store(root, [Made("a", "bf16", width=3), Made("p", ragged=True), Made("k", top_k=2)])
    return root


@pytest.fixture
def root(good, tmp_path):
    return shutil.copytree(good, tmp_path / "s")


def read_all(root):
    """Everything that there is to read."""
    store = streamgauge.open(root)
    for tap in store.values():
        tap.sample(), tap.position(), tap.token()
        if tap.info.ragged:
            for shard in tap.shards:
                for name in list(shard._file.tensors):
                    if name not in ("sample", "position", "token"):
                        tap.ragged(int(name)).float32()
        else:
            tap[:], tap.torch()
            if tap.info.top_k:
                tap.index()
        for row in range(len(tap)):
            store.context(tap, row)
    store.samples("arrow")


def refused(root, match=None, kind=streamgauge.StoreError):
    with pytest.raises(kind, match=match) as error:
        read_all(root)
    assert "\n" not in str(error.value) or "samples table" in str(error.value)
    return error


def rewritten(root, change):
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))


def put(*path_and_value):
    *path, key, value = path_and_value

    def change(manifest):
        at = manifest
        for step in path:
            at = at[step]
        at[key] = value

    return change


SHARD, FILE = ("shards", 0), ("shards", 0, "taps", 0)

MANIFESTS = {
    "no version": (lambda m: m.pop("format_version"), "no format_version"),
    "a later version": (put("format_version", 2), "format version 2"),
    "a version that is text": (put("format_version", "1"), "format version '1'"),
    "a version that is a fraction": (put("format_version", 1.0), "format version 1.0"),
    "a version that is true": (put("format_version", True), "format version True"),
    "no state": (lambda m: m.pop("state"), "`state` is missing"),
    "an unknown state": (put("state", "done"), "no state"),
    "taps that are no list": (put("taps", {}), "a list belongs"),
    "a tap that is text": (put("taps", 0, "a"), "an object belongs"),
    "two taps of one folder": (put("taps", 1, "folder", "a"), "one folder"),
    "an unknown dtype": (put("taps", 0, "dtype", "f64"), "f64"),
    "a negative size": (put("taps", 0, "row_shape", [-3]), "no count"),
    "a huge row": (put("taps", 0, "row_shape", [2**40, 2**40]), "overflows"),
    "a size that is a fraction": (put("taps", 0, "row_shape", [3.5]), "a whole number"),
    "a ragged tap of two dimensions": (put("taps", 1, "row_shape", [2, 2]), "row shape"),
    "a top-K of another K": (put("taps", 2, "top_k", 3), "top-K"),
    "a shape that is not the file's": (put("taps", 0, "row_shape", [4]), "manifest says"),
    "a dtype that is not the file's": (put("taps", 0, "dtype", "f16"), "manifest says"),
    "a flat tap called ragged": (lambda m: m["taps"][0].update(ragged=True), None),
    "a ragged tap called flat": (put("taps", 1, "ragged", False), "no tensor `activations`"),
    "a top-K that is not told": (lambda m: m["taps"][2].update(top_k=None, row_shape=[2]), "does not have"),
    "a seed of more than 64 bits": (put("taps", 0, "order_seed", 2**64), "64 bits"),
    "a seed that is true": (put("taps", 0, "order_seed", True), "64 bits"),
    "an order that the file has not": (put("taps", 0, "order_seed", 1), "no tensor `order`"),
    "an order of a ragged tap": (put("taps", 1, "order_seed", 1), "no order of rows"),
    "more samples than shards hold": (put("samples", 6), "hold 5 samples, not 6"),
    "a shard out of place": (put(*SHARD, "index", 1), "follows"),
    "a shard that begins elsewhere": (put(*SHARD, "first", 1), "follows"),
    "a count that is not its batches'": (put(*SHARD, "count", 3), "differ in number"),
    "a huge count": (put(*SHARD, "count", 2**70), "no count"),
    "a negative count": (put(*SHARD, "count", -1), "no count"),
    "a count that is true": (put(*SHARD, "count", True), "a whole number"),
    "a tap without a file": (lambda m: m["shards"][0]["taps"].pop(), "one file per tap"),
    "files in another order": (lambda m: m["shards"][0]["taps"].reverse(), "one file per tap"),
    "rows that do not fit": (put(*FILE, "rows", 10**9), "do not fit"),
    "rows that are not the batches'": (put(*FILE, "batch_rows", [7]), "differ in number"),
    "other rows": (lambda m: m["shards"][0]["taps"][0].update(rows=7, batch_rows=[7]), "manifest says"),
    "another length": (put(*FILE, "bytes", 5000), "bytes where the manifest says 5000"),
    "a listed file twice": (put("shards", 1, "taps", 0, "file", "a/00000.safetensors"), "listed twice"),
    "a file that is not there": (put(*FILE, "file", "a/7.safetensors"), "cannot be found"),
    "a folder as a file": (put(*FILE, "file", "a"), "regular"),
    "another tap's file": (
        lambda m: m["shards"][0]["taps"][0].update(
            file="k/00000.safetensors", bytes=m["shards"][0]["taps"][2]["bytes"]
        )
        or m["shards"][0]["taps"][2].update(file="a/00000.safetensors", bytes=m["shards"][0]["taps"][0]["bytes"]),
        None,
    ),
    "keep that is text": (put("keep", "label"), "a list belongs"),
    "a kept field that is not there": (put("keep", [{"name": "lable", "type": "int64"}]), "no column 'lable'"),
}
for where in ("../s2/x", "/etc/passwd", "a/../../x", "./a/x", "a//x", "", "..", "a\\..\\x", "a/\0x"):
    MANIFESTS[f"the file {where!r}"] = (put(*FILE, "file", where), "leads out of the store")
    MANIFESTS[f"the samples file {where!r}"] = (put(*SHARD, "samples_file", "file", where), "leads out of the store")
for name in ("..", "a/b", "", "samples", "manifest.json", ".partial", "/a"):
    MANIFESTS[f"the folder {name!r}"] = (put("taps", 0, "folder", name), "cannot be a tap's folder")


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_lies_is_refused(root, name):
    change, match = MANIFESTS[name]
    rewritten(root, change)
    kind = streamgauge.FormatVersionError if match and match.startswith("format version") else streamgauge.DamagedStoreError
    assert str(root) in str(refused(root, match, kind).value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 1, "format_version": 1}', "\xff", "9" * 5000])
def test_a_manifest_that_is_no_json_object_is_refused(root, text):
    (root / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(root, "manifest.json", streamgauge.DamagedStoreError)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(streamgauge.StoreError, match="no manifest.json"):
        streamgauge.open(tmp_path / "empty")
    with pytest.raises(streamgauge.StoreError, match="no such directory"):
        streamgauge.open(tmp_path / "nowhere")
    (tmp_path / "folder/manifest.json").mkdir(parents=True)
    with pytest.raises(streamgauge.StoreError, match="regular"):
        streamgauge.open(tmp_path / "folder")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/manifest.json")
    with pytest.raises(streamgauge.StoreError, match="regular"):
        streamgauge.open(tmp_path / "pipe")


@pytest.mark.parametrize("listed", ["a/00000.safetensors", "samples/00000.parquet", "manifest.json"])
def test_a_link_that_leads_out_of_the_store_is_refused(root, tmp_path, listed):
    outside = tmp_path / "outside"
    shutil.move(root / listed, outside)
    (root / listed).symlink_to(outside)
    refused(root, "manifest.json" if listed == "manifest.json" else "leads out of the store")


def test_a_folder_that_is_a_link_out_of_the_store_is_refused(root, tmp_path):
    shutil.move(root / "a", tmp_path / "elsewhere")
    (root / "a").symlink_to(tmp_path / "elsewhere")
    refused(root, "leads out of the store")


def test_links_within_a_store_hard_links_and_a_link_to_a_store_are_followed(root, tmp_path):
    shutil.move(root / "a/00000.safetensors", root / "a/real")
    (root / "a/00000.safetensors").symlink_to("real")
    os.link(root / "a/00001.safetensors", tmp_path / "second name")
    (tmp_path / "link").symlink_to(root)
    read_all(tmp_path / "link")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_listed_file_that_is_no_file_is_refused_and_does_not_block(root, make):
    (root / "a/00000.safetensors").unlink()
    make(root / "a/00000.safetensors")
    refused(root, "regular")


def header_of(data):
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def with_header(header, body, length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def lie(**of):
    def change(header):
        for name, fields in of.items():
            header[name].update(fields)

    return change


HEADERS = {
    "offsets beyond the file": lie(token={"data_offsets": [0, 1 << 40], "shape": [1 << 38]}),
    "offsets that run backwards": lie(activations={"data_offsets": [48, 0]}),
    "an overlap": lie(token={"data_offsets": [0, 32]}),
    "a negative offset": lie(activations={"data_offsets": [-48, 0]}),
    "an offset that is a fraction": lie(activations={"data_offsets": [0.0, 48]}),
    "three offsets": lie(activations={"data_offsets": [0, 24, 48]}),
    "a shape of other bytes": lie(activations={"shape": [8, 4]}),
    "a huge shape": lie(activations={"shape": [2**63, 2**63]}),
    "a shape whose product wraps": lie(activations={"shape": [2**32, 2**32 + 0]}),
    "another shape of the same bytes": lie(activations={"shape": [3, 8]}),
    "another dtype of the same size": lie(activations={"dtype": "F16"}),
    "an unknown dtype": lie(activations={"dtype": "F99"}),
    "a dtype that is a number": lie(activations={"dtype": 16}),
    "another index dtype": lie(sample={"dtype": "F32", "shape": [16]}),
    "no activations": lambda h: h.update(other=h.pop("activations")),
    "a tensor more": lambda h: h.update(more={"dtype": "I32", "shape": [0], "data_offsets": [0, 0]}),
    "no token": lambda h: h.pop("token"),
    "a tensor that is null": lambda h: h.update(token=None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(root, name):
    file = root / "a/00000.safetensors"
    header, body = header_of(file.read_bytes())
    HEADERS[name](header)
    file.write_bytes(with_header(header, body))
    rewritten(root, put(*FILE, "bytes", file.stat().st_size))
    refused(root, "a/00000.safetensors", streamgauge.DamagedStoreError)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 400, b"\xff" * 400, with_header(b"[]" + b" " * 400, b""), with_header(b"{}", b"", 1 << 62) + b" " * 300])
def test_a_file_without_a_header_is_refused(root, data):
    file = root / "a/00000.safetensors"
    file.write_bytes(data)
    rewritten(root, lambda m: m["shards"][0]["taps"][0].update(bytes=len(data), **({"rows": 0, "batch_rows": [0]} if len(data) < 128 else {})))
    refused(root, "a/00000.safetensors", streamgauge.DamagedStoreError)


def test_rows_of_a_ragged_tap_that_are_not_its_index_are_refused(root):
    values = {"0": np.zeros((2, 1, 3), "<f4"), "1": np.zeros((2, 5, 5), "<f4")}
    index = {"sample": np.zeros(8, "<i8"), "position": np.zeros(8, "<i4"), "token": np.zeros(8, "<i4")}
    kinds = {"0": "F32", "1": "F32", "sample": "I64", "position": "I32", "token": "I32"}
    file = root / "p/00000.safetensors"
    file.write_bytes(tensor_file({**values, **index}, kinds, {}))
    rewritten(root, put("shards", 0, "taps", 1, "bytes", file.stat().st_size))
    refused(root, "rows are not the manifest's 8")


def test_selections_that_lie_are_refused(root):
    import pyarrow
    from pyarrow import parquet

    file = root / "samples/00000.parquet"
    table = parquet.read_table(file)
    for change in ("row_start", "rows", "tap"):
        selections = copy.deepcopy(table["selections"].to_pylist())
        selections[1][0][change] = "b" if change == "tap" else 10**6
        changed = table.set_column(
            table.column_names.index("selections"), "selections", pyarrow.array(selections, table["selections"].type)
        )
        parquet.write_table(changed, file)
        rewritten(root, put(*SHARD, "samples_file", "bytes", file.stat().st_size))
        refused(root, "selections", streamgauge.DamagedStoreError)


@pytest.mark.parametrize("file", ["manifest.json", "a/00000.safetensors", "p/00001.safetensors"])
def test_every_cut_and_many_flipped_bits_are_refused_or_harmless(root, file):
    """Whatever the damage, no exception but the package's own. (Activations carry checksums: `streamgauge verify` finds flips there.)"""
    whole = (root / file).read_bytes()
    draw = random.Random(1)
    cuts = [whole[:n] for n in sorted(draw.sample(range(len(whole)), 40))]
    flips = []
    for _ in range(300):
        at = draw.randrange(min(len(whole), 3000))
        flips.append(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
    told = 0
    for data in cuts + flips:
        (root / file).write_bytes(data)
        try:
            read_all(root)
        except streamgauge.StoreError as error:
            told += 1
            assert str(root) in str(error)
    assert told > len(cuts), "no flip was found"
