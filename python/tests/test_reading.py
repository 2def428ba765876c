"""What a store holds is what is read, whichever way it is asked for."""

import gc
import pickle

import numpy as np
import pytest
import torch
from made import NUMPY, Made, make_store, widened

import streamgauge

TAPS = {
    "f32": lambda: Made("blocks.0.hook_resid_post", "f32"),
    "f16": lambda: Made("blocks.0.hook_resid_post", "f16"),
    "bf16": lambda: Made("blocks.0.hook_resid_post", "bf16", width=3),
}


@pytest.mark.parametrize("dtype", TAPS)
def test_rows_of_every_dtype_are_those_of_the_files_across_shards(tmp_path, dtype):
    made = TAPS[dtype]()
    make_store(tmp_path / "s", [made])
    tap = streamgauge.open(tmp_path / "s")["blocks.0.hook_resid_post"]
    raw = np.concatenate(made.values)
    assert tap.shape == raw.shape and len(tap) == 15
    assert tap.numpy().dtype == NUMPY[dtype] and np.array_equal(tap.numpy(), raw)
    assert tap[:].dtype == np.float32 and np.array_equal(tap[:], widened(raw, dtype))
    torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert tap.torch().dtype == torch_dtype and np.array_equal(tap.torch().double().numpy(), widened(raw, dtype))
    for shard, values in zip(tap.shards, made.values):
        assert np.array_equal(shard.numpy(), values) and not shard.numpy().flags.writeable
        assert shard.torch().dtype == torch_dtype
        assert np.array_equal(shard.torch().double().numpy(), widened(values, dtype))
        assert np.array_equal(shard.float32(), widened(values, dtype))


def test_a_shards_views_are_the_mapped_file_and_a_written_tensor_changes_neither_it_nor_numpys(tmp_path):
    made = Made("a", "bf16")
    make_store(tmp_path / "s", [made])
    file = tmp_path / "s/a/00000.safetensors"
    before = file.read_bytes()
    tap = streamgauge.open(tmp_path / "s")["a"]
    shard = tap.shards[0]
    assert np.shares_memory(shard.numpy(), shard.numpy())
    assert shard.torch().data_ptr() == shard.torch().data_ptr()
    shard.torch().fill_(7)
    assert file.read_bytes() == before and np.array_equal(shard.numpy(), made.values[0])
    # A view outlives what it was taken from.
    view = shard.numpy()
    del shard, tap
    gc.collect()
    assert np.array_equal(view, made.values[0])


def test_any_way_of_naming_rows_gives_them_in_the_order_named(tmp_path):
    made = Made("a")
    make_store(tmp_path / "s", [made], [(4,), (), (3, 6)])
    tap = streamgauge.open(tmp_path / "s")["a"]
    raw = np.concatenate(made.values)
    mask = np.arange(13) % 3 == 0
    for rows in [slice(2, 9), slice(None, None, -2), slice(9, 2), [12, 0, 5, 5, -1], np.array([3, 7]), [], mask]:
        assert np.array_equal(tap[rows], raw[rows]), rows
        assert np.array_equal(tap.sample(rows), np.array(made.sample)[rows]), rows
        assert np.array_equal(tap.position(rows), np.array(made.position)[rows]), rows
        assert np.array_equal(tap.token(rows), np.array(made.token)[rows]), rows
    assert np.array_equal(tap[-2], raw[-2]) and tap.token(4) == made.token[4]
    for wrong in ([13], [-14], 13):
        with pytest.raises(IndexError, match="13 rows"):
            tap[wrong]
    with pytest.raises(TypeError):
        tap[[0.5]]
    with pytest.raises(IndexError, match="mask"):
        tap[mask[:5]]


def test_a_stored_order_names_rows_over_all_shards_and_a_forged_one_is_damage(tmp_path):
    made, plain = Made("a", order_seed=7), Made("b")
    make_store(tmp_path / "s", [made, plain], [(4,), (), (3, 6)])
    store = streamgauge.open(tmp_path / "s")
    tap = store["a"]
    assert tap.info.order_seed == 7 and store["b"].info.order_seed is None
    assert tap.order().tolist() == made.order and sorted(made.order) == list(range(13))
    assert tap.order(slice(3, 6)).tolist() == made.order[3:6] and tap.order(-1) == made.order[-1]
    assert np.array_equal(tap[tap.order()], np.concatenate(made.values)[made.order])
    assert tap.shards[2].order.dtype == np.int32 and (tap.shards[2].order + 4).tolist() == made.order[4:]
    with pytest.raises(streamgauge.StoreError, match="--shuffle SEED"):
        store["b"].order()
    file = tmp_path / "s/a/00000.safetensors"
    for forged in ([0, 1, 2, 2], [0, 1, 2, 4], [0, 1, 2, -1]):
        file.write_bytes(file.read_bytes()[:-16] + np.array(forged, "<i4").tobytes())
        with pytest.raises(streamgauge.DamagedStoreError, match="`order` is no order of its 4 rows"):
            streamgauge.open(tmp_path / "s")["a"].order()


def test_the_rows_of_a_sample_are_found_and_none_are_of_one_that_is_not_there(tmp_path):
    made = Made("a")
    make_store(tmp_path / "s", [made])
    tap = streamgauge.open(tmp_path / "s")["a"]
    for sample in range(5):
        assert tap.rows_of(sample).tolist() == [i for i, s in enumerate(made.sample) if s == sample]
    assert tap.rows_of(5).size == 0 and tap.rows_of(-1).size == 0


def test_partial_selections_reductions_and_second_taps_of_a_point_are_read(tmp_path):
    last, mean, top = Made("a", selection="last", folder="a~2"), Made("b", mean=True), Made("logits", top_k=3)
    make_store(tmp_path / "s", [Made("a"), last, mean, top])
    store = streamgauge.open(tmp_path / "s")
    assert list(store) == ["a", "a~2", "b", "logits"] and len(store) == 4
    assert np.array_equal(store["a~2"][:], np.concatenate(last.values)) and len(store["a~2"]) == 5
    assert set(store["b"].position()) == {-1} and store["b"].info.reduction == "mean"
    assert store["logits"].index().shape == (15, 3)
    assert np.array_equal(store["logits"].shards[1].index, store["logits"].index()[8:])
    with pytest.raises(streamgauge.StoreError, match="no index"):
        store["a"].index()
    with pytest.raises(streamgauge.NoSuchTapError, match="it has a, a~2, b, logits"):
        store["c"]


def test_ragged_taps_have_a_tensor_a_sample(tmp_path):
    made = Made("blocks.0.attn.hook_pattern", "bf16", ragged=True, selection="last")
    make_store(tmp_path / "s", [made])
    tap = streamgauge.open(tmp_path / "s")["blocks.0.attn.hook_pattern"]
    for shard in made.values:
        for name, value in shard.items():
            found = tap.ragged(int(name))
            assert found.shape == value.shape and np.array_equal(found.numpy(), value)
            assert np.array_equal(found.float32(), widened(value, "bf16"))
            assert found.torch().dtype == torch.bfloat16 and found.torch().shape == value.shape
    with pytest.raises(KeyError, match="no sample 9"):
        tap.ragged(9)
    with pytest.raises(streamgauge.StoreError, match="ragged"):
        tap[0]


def test_samples_are_read_as_pandas_polars_and_arrow(tmp_path):
    make_store(tmp_path / "s", [Made("a")])
    store = streamgauge.open(tmp_path / "s")
    pandas, polars, arrow = (store.samples(form) for form in ("pandas", "polars", "arrow"))
    assert list(pandas["sample"]) == polars["sample"].to_list() == arrow["sample"].to_pylist() == [0, 1, 2, 3, 4]
    assert [len(t) for t in pandas["tokens"]] == [3, 5, 1, 4, 2]
    assert list(store.samples(columns=["sample", "label"]).columns) == ["sample", "label"]
    with pytest.raises(streamgauge.StoreError, match="no column 'lable'"):
        store.samples(columns=["lable"])
    with pytest.raises(ValueError, match="excel"):
        store.samples("excel")


def test_a_rows_context_is_its_sample_and_the_tokens_around_it(tmp_path):
    every, last, mean = Made("a"), Made("b", selection="last"), Made("c", mean=True)
    make_store(tmp_path / "s", [every, last, mean])
    store = streamgauge.open(tmp_path / "s")
    tokens = {row.sample: row.tokens for row in store.samples().itertuples()}
    for tap in (every, last):
        for row in range(len(tap.sample)):
            here = store.context(tap.hook, row, before=1, after=2)
            assert (here.sample, here.position, here.token) == (tap.sample[row], tap.position[row], tap.token[row])
            assert here.tokens[here.position - here.start] == here.token
            begin = max(here.position - 1, 0)
            assert here.start == begin and here.tokens.tolist() == tokens[here.sample][begin : here.position + 3].tolist()
            assert (here.line, here.kept) == (here.sample + 1, {"label": here.sample % 2})
            assert (here.document, here.document_position) == (here.sample, here.position)
    whole = store.context("c", -1)
    assert (whole.sample, whole.position, whole.token) == (4, -1, -1) and whole.tokens.tolist() == tokens[4].tolist()
    assert store.context(store["a"], 0).turns == [("user", 0, 2)]


def test_a_packed_contexts_rows_know_the_document_and_its_token(tmp_path):
    def pieces(sample, length):
        """The end of one document, and the beginning of another one."""
        cut = length // 2
        parts = [(10 * sample, 0, cut, 100), (10 * sample + 1, cut, length - cut, 0)]
        return [
            {"document": d, "file": f"{d}.txt", "line": d + 5, "first": first, "tokens": n, "offset": offset}
            for d, first, n, offset in parts
            if n > 0
        ]

    made, mean = Made("a"), Made("b", mean=True)
    make_store(tmp_path / "s", [made, mean], pieces=pieces)
    store = streamgauge.open(tmp_path / "s")
    lengths = {row.sample: len(row.tokens) for row in store.samples().itertuples()}
    for row in range(len(made.sample)):
        here = store.context("a", row)
        cut = lengths[here.sample] // 2
        document = 10 * here.sample + (here.position >= cut)
        at = here.position - cut if here.position >= cut else 100 + here.position
        assert (here.document, here.document_position) == (document, at)
        assert (here.file, here.line) == (f"{document}.txt", document + 5)
    several = store.context("b", 0)
    assert (several.document, several.document_position) == (-1, -1)
    assert list(store.samples()["pieces"][1][0]) == ["file", "document", "line", "first", "tokens", "offset", "char_start", "char_end"]


def test_stores_taps_and_datasets_can_be_sent_to_another_process(tmp_path):
    make_store(tmp_path / "s", [Made("a")])
    store = streamgauge.open(tmp_path / "s")
    again = pickle.loads(pickle.dumps(store["a"]))
    assert np.array_equal(again[:], store["a"][:]) and again.store.path == store.path
    dataset = pickle.loads(pickle.dumps(streamgauge.RowDataset(store["a"], batch_size=4, seed=3)))
    assert sum(len(batch["a"]) for batch in dataset) == 15


def test_a_partial_store_is_opened_only_when_asked_for_and_holds_what_was_committed(tmp_path):
    root = tmp_path / "s"
    made = Made("a")
    make_store(root, [made], state="partial")
    # What a crash leaves behind: the next shard, not listed.
    (root / ".partial").mkdir()
    (root / ".partial/00002.journal").write_text("torn")
    (root / "a/00002.safetensors").write_bytes(b"half a shard")
    (root / "samples/00002.parquet").write_bytes(b"half a table")
    with pytest.raises(streamgauge.PartialStoreError, match="--resume"):
        streamgauge.open(root)
    store = streamgauge.open(root, partial=True)
    assert not store.complete and len(store["a"]) == 15 and len(store["a"].shards) == 2
    assert len(store.samples()) == 5


def test_a_store_without_samples_is_empty(tmp_path):
    make_store(tmp_path / "s", [Made("a")], [])
    store = streamgauge.open(tmp_path / "s")
    assert len(store["a"]) == 0 and store["a"][:].shape == (0, 4) and len(store.samples()) == 0
    assert store["a"].torch().shape == (0, 4) and store["a"].rows_of(0).size == 0
