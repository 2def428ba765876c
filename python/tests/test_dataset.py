"""The PyTorch dataset: every row once an epoch, with its own numbers, whatever the workers."""

import numpy as np
import pytest
import torch
from made import Made, make_store
from torch.utils.data import DataLoader

import streamgauge


def made(tmp_path, *taps, shards=((40, 17, 1), (60,), (5, 80, 9))):
    make_store(tmp_path / "s", list(taps), shards)
    return streamgauge.open(tmp_path / "s")


def rows(batches, name="a"):
    """Every row's place and numbers, in the order given."""
    return [
        ((int(s), int(p), int(t)), tuple(values.double().tolist()))
        for batch in batches
        for s, p, t, values in zip(batch["sample"], batch["position"], batch["token"], batch[name])
    ]


def truth(store, name="a"):
    tap = store[name]
    places = zip(tap.sample().tolist(), tap.position().tolist(), tap.token().tolist())
    return [(place, tuple(float(v) for v in values)) for place, values in zip(places, tap[:])]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_every_row_comes_once_an_epoch_with_its_own_numbers(tmp_path, workers, block):
    store = made(tmp_path, Made("a", "bf16"))
    dataset = streamgauge.RowDataset(store["a"], batch_size=16, block=block, mix=2, seed=1)
    found = rows(DataLoader(dataset, batch_size=None, num_workers=workers))
    assert sorted(found) == sorted(truth(store)) and found != truth(store)


def test_the_order_is_the_seeds_and_the_epochs(tmp_path):
    store = made(tmp_path, Made("a"))

    def order(seed, epoch=0, shuffle=True):
        dataset = streamgauge.RowDataset(store["a"], batch_size=8, block=4, seed=seed, shuffle=shuffle)
        dataset.set_epoch(epoch)
        return rows(dataset)

    assert order(1) == order(1)
    assert len({str(o) for o in (order(1), order(2), order(1, epoch=1))}) == 3
    assert order(1, shuffle=False) == truth(store)


def test_ranks_share_the_rows_out_between_them(tmp_path):
    store = made(tmp_path, Made("a"))
    parts = [
        rows(streamgauge.RowDataset(store["a"], batch_size=8, block=4, seed=5, rank=rank, world_size=3)) for rank in range(3)
    ]
    assert sorted(sum(parts, [])) == sorted(truth(store)) and all(parts)


def test_batches_are_of_the_size_asked_for_but_for_the_last(tmp_path):
    store = made(tmp_path, Made("a"))
    n = len(store["a"])
    sizes = [len(b["a"]) for b in streamgauge.RowDataset(store["a"], batch_size=10, block=4, mix=3)]
    assert sizes == [10] * (n // 10) + [n % 10]
    dropped = [len(b["a"]) for b in streamgauge.RowDataset(store["a"], batch_size=10, block=4, mix=3, drop_last=True)]
    assert dropped == [10] * (n // 10)


def test_several_taps_give_rows_of_the_same_tokens_and_a_dtype_converts(tmp_path):
    store = made(tmp_path, Made("a", "bf16"), Made("b", "f32"), Made("c", top_k=2), Made("d", selection="last"))
    dataset = streamgauge.RowDataset([store["a"], store["b"], store["c"]], batch_size=32, dtype=torch.float32)
    batches = list(dataset)
    assert batches[0]["a"].dtype == batches[0]["b"].dtype == torch.float32
    for name in "abc":
        assert sorted(rows(batches, name)) == sorted(truth(store, name))
    index = {p: i for p, i in zip(zip(store["c"].sample().tolist(), store["c"].position().tolist()), store["c"].index())}
    for batch in batches:
        for s, p, i in zip(batch["sample"].tolist(), batch["position"].tolist(), batch["c.index"].numpy()):
            assert np.array_equal(index[s, p], i)
    with pytest.raises(streamgauge.StoreError, match="same selection"):
        streamgauge.RowDataset([store["a"], store["d"]])


def test_what_cannot_be_is_refused(tmp_path):
    store = made(tmp_path, Made("a"), Made("p", ragged=True))
    with pytest.raises(streamgauge.StoreError, match="ragged"):
        streamgauge.RowDataset(store["p"])
    for wrong in ({"batch_size": 0}, {"block": 0}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ValueError):
            streamgauge.RowDataset(store["a"], **wrong)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_stored_order_comes_as_it_is_whatever_the_workers_and_ranks(tmp_path, workers):
    a = Made("a", "bf16", order_seed=2**64 - 1)
    store = made(tmp_path, a)
    expected = [truth(store)[row] for row in a.order]
    assert expected != truth(store)

    def batches(**more):
        dataset = streamgauge.RowDataset(store["a"], batch_size=16, shuffle="stored", **more)
        return list(DataLoader(dataset, batch_size=None, num_workers=workers))

    assert rows(batches()) == expected
    whole = batches(drop_last=True)
    assert rows(whole) == expected[: 16 * len(whole)] and {len(b["a"]) for b in whole} == {16}
    by_rank = [batches(rank=rank, world_size=2) for rank in range(2)]
    turns = [batch for pair in zip(*by_rank) for batch in pair]
    assert rows(turns) == expected[: sum(len(b["a"]) for b in turns)]
    assert sorted(rows(sum(by_rank, []))) == sorted(expected)


def test_a_stored_order_that_is_not_there_is_refused(tmp_path):
    store = made(tmp_path, Made("a"))
    with pytest.raises(streamgauge.StoreError, match="--shuffle SEED"):
        streamgauge.RowDataset(store["a"], shuffle="stored")
    with pytest.raises(ValueError, match="stored"):
        streamgauge.RowDataset(store["a"], shuffle="storred")
