"""Stores that streamgauge itself made, beside what plain safetensors and pandas read of them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

import streamgauge

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / ".models/SmolLM2-135M-Instruct"


def run(binary, *args):
    done = subprocess.run([str(binary), *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def extract(binary, out, *args):
    run(binary, "extract", "--quiet", "--model", MODEL, "--data", "data/facts.csv", "--text-field", "statement",
        "--keep", "id,label", "--limit", "20", "--shard-size", "200kB", "--out", out, *args)  # fmt: skip


@pytest.fixture(scope="module")
def stores(binary, tmp_path_factory):
    """One of every kind of tap, and the same from two slices, merged."""
    at = tmp_path_factory.mktemp("stores")
    taps = ["--store-dtype", "bf16",
            "--tap", "blocks.{0,3}.hook_resid_post", "blocks.3.hook_resid_post@-3..-1", "blocks.2.attn.hook_z[2,5-6]@first",
            "blocks.3.ln1.hook_scale", "blocks.1.hook_mlp_out|mean", "blocks.2.attn.hook_pattern[0,4]@-2..-1",
            "blocks.3.hook_resid_post@last|top:5"]  # fmt: skip
    extract(binary, at / "whole", *taps)
    for i in range(2):
        extract(binary, at / f"slice-{i}", *taps, "--shard", f"{i}/2")
    run(binary, "merge", at / "merged", at / "slice-0", at / "slice-1")
    return at


@pytest.mark.parametrize("name", ["whole", "merged"])
def test_every_tap_reads_as_safetensors_reads_its_files(stores, name):
    store = streamgauge.open(stores / name)
    assert len(store) == 8 and len(store["blocks.0.hook_resid_post"].shards) > 1
    for tap in store.values():
        files = [load_file(stores / name / entry["file"]) for shard in store.manifest["shards"] for entry in shard["taps"] if entry["tap"] == tap.name]
        for column, found in (("sample", tap.sample()), ("position", tap.position()), ("token", tap.token())):
            assert np.array_equal(torch.cat([f[column] for f in files]).numpy(), found), (tap, column)
        if tap.info.ragged:
            for file in files:
                for key, value in file.items():
                    if key not in ("sample", "position", "token"):
                        assert torch.equal(tap.ragged(int(key)).torch(), value)
            continue
        whole = torch.cat([f["activations"] for f in files])
        assert tap.torch().dtype == whole.dtype and torch.equal(tap.torch(), whole)
        assert np.array_equal(tap[:], whole.float().numpy())
        for shard, file in zip(tap.shards, files):
            assert torch.equal(shard.torch(), file["activations"])
        if tap.info.top_k:
            assert np.array_equal(tap.index(), torch.cat([f["index"] for f in files]).numpy())


def test_a_merged_store_reads_as_the_whole_one(stores):
    whole, merged = streamgauge.open(stores / "whole"), streamgauge.open(stores / "merged")
    for name, tap in whole.items():
        assert np.array_equal(tap.sample(), merged[name].sample())
        if not tap.info.ragged:
            assert np.array_equal(tap.numpy(), merged[name].numpy())
    columns = ["sample", "tokens", "label"]
    assert whole.samples("polars", columns).equals(merged.samples("polars", columns))


@pytest.mark.parametrize("name", ["whole", "merged"])
def test_the_mean_norms_are_those_of_the_rows(stores, name):
    for tap in streamgauge.open(stores / name).values():
        if tap.info.ragged:
            assert tap.mean_norm is None
        else:
            norms = np.linalg.norm(tap[:].astype(np.float64).reshape(len(tap), -1), axis=1)
            assert tap.mean_norm == pytest.approx(norms.mean(), rel=1e-12)


def test_tokens_of_shuffled_packed_contexts_are_those_of_their_documents(stores, binary, tmp_path):
    run(binary, "extract", "--quiet", "--model", MODEL, "--data", "data/facts.csv", "--text-field", "statement", "--limit", "40",
        "--shuffle", "3", "--pack-context", "32", "--tap", "hook_embed", "--out", tmp_path / "packed")  # fmt: skip
    alone = streamgauge.open(stores / "whole").samples().set_index("sample")["tokens"]
    store = streamgauge.open(tmp_path / "packed")
    seen = set()
    separator = store.manifest["dataset"]["fields"]["separator"]
    for row in range(len(store["hook_embed"])):
        here = store.context("hook_embed", row)
        seen.add((here.document, here.document_position))
        if here.document in alone.index:
            expected = [*alone[here.document], separator]
            assert here.token == expected[here.document_position]
    assert len(seen) == len(store["hook_embed"]), "every token once"
    assert all((d, len(alone[d])) in seen for d in alone.index), "every document to its end"


def test_contexts_agree_with_the_table_that_pandas_reads(stores):
    store = streamgauge.open(stores / "whole")
    table = pandas.read_parquet(stores / "whole/samples").set_index("sample")
    for tap in store.values():
        for row in range(len(tap)):
            here = store.context(tap, row, before=2, after=2)
            truth = table.loc[here.sample]
            assert here.sample == tap.sample(row) and here.line == truth["line"] and here.kept["id"] == truth["id"]
            if here.position >= 0:
                assert here.token == truth["tokens"][here.position]
                assert here.tokens.tolist() == truth["tokens"][max(here.position - 2, 0) : here.position + 3].tolist()
            else:
                assert here.tokens.tolist() == truth["tokens"].tolist()


def test_what_a_killed_run_left_is_read_when_asked_for(stores, tmp_path):
    """The partial form of a store: its first shard listed, the files of the others left where they are."""
    root = stores / "whole"
    manifest = json.loads((root / "manifest.json").read_text())
    assert len(manifest["shards"]) > 1
    manifest.update(state="partial", shards=manifest["shards"][:1], samples=manifest["shards"][0]["count"])
    left = tmp_path / "left"
    run("/bin/cp", "-r", root, left)
    (left / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(streamgauge.PartialStoreError):
        streamgauge.open(left)
    store = streamgauge.open(left, partial=True)
    for name, tap in store.items():
        assert len(tap) == manifest["shards"][0]["taps"][list(store).index(name)]["rows"]
    assert len(store.samples()) == manifest["samples"]


def test_the_dataset_gives_every_row_of_a_real_store_once(stores):
    store = streamgauge.open(stores / "whole")
    tap = store["blocks.0.hook_resid_post"]
    batches = list(streamgauge.RowDataset([tap, store["blocks.3.hook_resid_post"]], batch_size=32, block=8, mix=2))
    places = torch.cat([torch.stack([b["sample"], b["position"].long()], 1) for b in batches])
    order = np.lexsort((places[:, 1], places[:, 0]))
    assert np.array_equal(places.numpy()[order], np.stack([tap.sample(), tap.position()], 1))
    assert torch.equal(torch.cat([b[tap.name] for b in batches])[order], tap.torch())


@pytest.mark.parametrize("dtype", ["fp8-e4m3", "int8"])
def test_rows_in_8_bits_read_as_the_documented_lines_read_them_and_are_as_far_off_as_they_say(stores, binary, tmp_path, dtype):
    taps = ["--tap", "blocks.{0,20}.hook_resid_post", "blocks.2.attn.hook_z[2,5-6]"]
    extract(binary, tmp_path / "exact", *taps)
    extract(binary, tmp_path / "compact", *taps, "--store-dtype", dtype)
    exact, compact = streamgauge.open(tmp_path / "exact"), streamgauge.open(tmp_path / "compact")
    for tap in compact.values():
        for shard in tap.shards:
            f = load_file(tmp_path / "compact" / shard._listed.file)
            codes = f["activations"].float().flatten(1)
            d = codes.shape[1]
            scale = f["scale"].float().repeat_interleave(64, 1)[:, :d] if dtype == "int8" else f["scale"][:, None]
            x = codes * scale
            x.scatter_(1, f["outlier_index"].long(), f["outlier_value"].float())
            assert np.array_equal(shard.float32().reshape(len(x), -1), x.numpy())
        rows = exact[tap.name][:].reshape(len(tap), -1).astype(np.float64)
        read = tap[:].reshape(len(tap), -1).astype(np.float64)
        norm = np.linalg.norm(rows, axis=1)
        errors = np.linalg.norm(read - rows, axis=1) / norm
        cosines = (read * rows).sum(axis=1) / (norm * np.linalg.norm(read, axis=1))
        told = tap.loss
        assert told["rows"] == len(tap) and told["not_finite"] == 0
        assert told["relative_error"]["rms"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
        assert told["relative_error"]["worst"] == pytest.approx(errors.max(), rel=1e-5)
        assert told["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=1e-7)
        assert errors.max() < (0.04 if dtype == "fp8-e4m3" else 0.02)
        found = np.concatenate([shard.relative_error for shard in tap.shards])
        assert np.allclose(found, errors, rtol=1e-5)
