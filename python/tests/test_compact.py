"""Rows in 8 bits are read back to float32, whichever way they are asked for."""

import json

import numpy as np
import pytest
import torch
from made import Made, make_store

import streamgauge

BOTH = pytest.mark.parametrize("dtype", ["fp8-e4m3", "int8"])


def made_tap(tmp_path, dtype, width=130):
    made = Made("a", dtype, width=width)
    make_store(tmp_path / "s", [made])
    return streamgauge.open(tmp_path / "s")["a"], np.concatenate(made.values)


@BOTH
@pytest.mark.parametrize("width", [1, 64, 130, 700])
def test_rows_are_codes_times_scales_with_the_numbers_kept_apart_in_their_places(tmp_path, dtype, width):
    tap, rows = made_tap(tmp_path, dtype, width)
    assert tap.shape == rows.shape
    for found in (tap[:], tap.numpy(), tap.torch().numpy(), np.concatenate([s.float32() for s in tap.shards])):
        assert found.dtype == np.float32 and np.array_equal(found, rows)
    assert np.array_equal(tap[[9, 0, 9]], rows[[9, 0, 9]]) and np.array_equal(tap[-1], rows[-1])
    assert np.array_equal(tap.shards[1].torch().numpy(), rows[len(rows) - tap.shards[1].rows :])


@BOTH
def test_the_files_own_tensors_are_views_and_the_loss_stands_beside_each_row(tmp_path, dtype):
    tap, _ = made_tap(tmp_path, dtype)
    shard = tap.shards[0]
    assert shard.stored("activations").dtype == ("u1" if dtype == "fp8-e4m3" else "i1")
    assert np.shares_memory(shard.stored("activations"), shard.stored("activations"))
    assert not shard.stored("activations").flags.writeable
    assert shard.relative_error.shape == shard.cosine.shape == (shard.rows,)
    with pytest.raises(KeyError):
        shard.stored("sample")


@BOTH
def test_a_dataset_gives_the_rows_read_back(tmp_path, dtype):
    tap, rows = made_tap(tmp_path, dtype)
    batches = list(streamgauge.RowDataset(tap, batch_size=4, shuffle=False))
    assert np.array_equal(torch.cat([b["a"] for b in batches]).numpy(), rows)


@BOTH
def test_a_place_outside_the_row_is_damage(tmp_path, dtype):
    tap, _ = made_tap(tmp_path, dtype)
    path = tmp_path / "s/a/00000.safetensors"
    data = bytearray(path.read_bytes())
    at = tap.shards[0]._file.tensors["outlier_index"].start
    data[at : at + 2] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(streamgauge.DamagedStoreError, match="outlier_index"):
        streamgauge.open(tmp_path / "s")["a"][:]


def test_plain_rows_have_no_codes_and_8_bits_no_ragged_taps(tmp_path):
    make_store(tmp_path / "s", [Made("a")])
    with pytest.raises(streamgauge.StoreError, match="not of rows in 8 bits"):
        streamgauge.open(tmp_path / "s")["a"].shards[0].stored("activations")
    path = tmp_path / "s/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["taps"][0].update(dtype="int8", ragged=True, row_shape=[2])
    path.write_text(json.dumps(manifest))
    with pytest.raises(streamgauge.DamagedStoreError, match="int8 is for rows"):
        streamgauge.open(tmp_path / "s")
