//! Extraction end to end, in the library: every selection, reduction and dtype gives the rows of the full run that it says,
//! and a store does not depend on how its run was cut up.

mod common;

use std::path::Path;

use streamgauge::engine::{
    Extracted, InputKind, Job, OnLong, Prepared, estimate, extract, recompute,
};
use streamgauge::store::{Store, StoreDtype, verify};

fn model() -> String {
    common::fixtures()
        .join("models/mistral-window4")
        .display()
        .to_string()
}

/// Samples of 1, 3, 9, 30 and 70 ids, with spans and labels.
fn dataset(dir: &Path) -> String {
    let mut lines = String::new();
    for (i, n) in [9_u32, 1, 30, 3, 70].into_iter().enumerate() {
        let tokens: Vec<u32> = (0..n).map(|t| (t * 31 + i as u32 * 17) % 160).collect();
        lines += &format!(
            "{{\"tokens\": {tokens:?}, \"label\": {}, \"id\": \"s{i}\"}}\n",
            i % 2
        );
    }
    let path = dir.join("data.jsonl");
    std::fs::write(&path, lines).unwrap();
    path.display().to_string()
}

fn job(data: &str, taps: &[&str]) -> Job {
    Job::new(
        model(),
        vec![data.to_owned()],
        taps.iter().map(|t| t.to_string()).collect(),
    )
}

fn run(job: Job, out: &Path) -> Extracted {
    let prepared = Prepared::open(job).unwrap();
    let done = extract(&prepared, out, &mut |_| ()).unwrap();
    let report = verify(out, &|_| ()).unwrap();
    assert!(report.ok(), "{:?}", report.problems);
    let told = done.progress.expected_tokens;
    assert_eq!(told, Some(done.progress.tokens), "the end was foreseen");
    done
}

/// Every row of a tap: (sample, position, values).
fn rows(store: &Store, tap: &str) -> Vec<(i64, i32, Vec<f32>)> {
    let reader = store.tap(tap).unwrap();
    (0..reader.rows())
        .map(|i| {
            let row = reader.row(i).unwrap();
            (row.sample(), row.position(), row.to_f32())
        })
        .collect()
}

#[test]
fn selections_and_heads_pick_rows_of_the_full_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (full, picked) = (dir.path().join("full"), dir.path().join("picked"));
    run(
        job(&data, &["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]),
        &full,
    );
    let done = run(
        job(
            &data,
            &[
                "blocks.1.hook_resid_post@last",
                "blocks.1.hook_resid_post@-3..-2",
                "blocks.1.hook_resid_post@every:8",
                "blocks.1.hook_resid_post@sample:2#5",
                "blocks.2.attn.hook_z[1,3]@first",
            ],
        ),
        &picked,
    );
    assert_eq!(done.rows, [5, 8, 2 + 1 + 4 + 1 + 9, 9, 5]);
    assert_eq!(
        done.clipped, 2,
        "two rows of -3..-2 lie before the one-token sample"
    );
    let (full, picked) = (Store::open(&full).unwrap(), Store::open(&picked).unwrap());
    let all = rows(&full, "blocks.1.hook_resid_post");
    for (tap, count) in [("", 5), ("~2", 8), ("~3", 17), ("~4", 9)] {
        let some = rows(&picked, &format!("blocks.1.hook_resid_post{tap}"));
        assert_eq!(some.len(), count);
        for row in some {
            assert!(
                all.contains(&row),
                "{tap}: sample {} position {}",
                row.0,
                row.1
            );
        }
    }
    let z = rows(&full, "blocks.2.attn.hook_z");
    for (sample, position, heads) in rows(&picked, "blocks.2.attn.hook_z") {
        let whole = &z
            .iter()
            .find(|r| (r.0, r.1) == (sample, position))
            .unwrap()
            .2;
        let h = whole.len() / 4;
        assert_eq!(heads, [&whole[h..2 * h], &whole[3 * h..4 * h]].concat());
    }
    assert_eq!(
        picked.tap("blocks.2.attn.hook_z").unwrap().info().row_shape,
        [2, 16]
    );
}

#[test]
fn reductions_are_of_the_full_runs_rows() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let directions = dir.path().join("d.safetensors");
    let values: Vec<f32> = (0..128).map(|i| (i as f32 * 0.37).sin()).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 64], &bytes).unwrap();
    safetensors::serialize_to_file([("two", view)], None, &directions).unwrap();
    let (full, reduced) = (dir.path().join("full"), dir.path().join("reduced"));
    run(job(&data, &["blocks.0.hook_resid_mid", "logits"]), &full);
    let dot = format!("blocks.0.hook_resid_mid|dot:{}#two", directions.display());
    let done = run(
        job(
            &data,
            &[
                "blocks.0.hook_resid_mid|mean",
                &dot,
                "blocks.0.hook_resid_mid|norm",
                "blocks.0.hook_resid_mid@last|top:3",
                "logits|logprob:160",
                "logits@-2..-1|mean",
            ],
        ),
        &reduced,
    );
    assert_eq!(done.rows, [5, 113, 113, 5, 113, 5]);
    let (full, reduced) = (Store::open(&full).unwrap(), Store::open(&reduced).unwrap());
    let all = rows(&full, "blocks.0.hook_resid_mid");
    for (sample, position, mean) in rows(&reduced, "blocks.0.hook_resid_mid") {
        assert_eq!(position, -1);
        let of: Vec<_> = all.iter().filter(|r| r.0 == sample).collect();
        for (i, m) in mean.iter().enumerate() {
            let truth = of.iter().map(|r| r.2[i] as f64).sum::<f64>() / of.len() as f64;
            assert_eq!(*m, truth as f32);
        }
    }
    for (row, (_, _, dots)) in all.iter().zip(rows(&reduced, "blocks.0.hook_resid_mid~2")) {
        for (d, dot) in dots.iter().enumerate() {
            let truth: f64 = row
                .2
                .iter()
                .zip(&values[d * 64..])
                .map(|(&a, &b)| a as f64 * b as f64)
                .sum();
            assert!((*dot as f64 - truth).abs() < 1e-5 * (1.0 + truth.abs()));
        }
    }
    for (row, (_, _, norm)) in all.iter().zip(rows(&reduced, "blocks.0.hook_resid_mid~3")) {
        assert_eq!(
            norm,
            [row.2
                .iter()
                .map(|&v| v as f64 * v as f64)
                .sum::<f64>()
                .sqrt() as f32]
        );
    }
    let top = reduced.tap("blocks.0.hook_resid_mid~4").unwrap();
    for i in 0..top.rows() {
        let (row, index) = (top.row(i).unwrap(), top.row(i).unwrap().index().unwrap());
        let whole = &all
            .iter()
            .find(|r| (r.0, r.1) == (row.sample(), row.position()))
            .unwrap()
            .2;
        let mut sorted = whole.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(row.to_f32(), sorted[..3]);
        assert_eq!(
            index.iter().map(|&i| whole[i as usize]).collect::<Vec<_>>(),
            sorted[..3]
        );
    }
    for (sample, position, log_probs) in rows(&reduced, "logits") {
        let total: f64 = log_probs.iter().map(|&p| (p as f64).exp()).sum();
        assert!(
            (total - 1.0).abs() < 1e-5,
            "sample {sample} position {position}: {total}"
        );
        assert!(log_probs.is_sorted_by(|a, b| a >= b));
    }
}

#[test]
fn sixteen_bit_stores_hold_the_f32_rows_rounded_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let taps = [
        "blocks.1.hook_resid_post",
        "blocks.1.ln1.hook_scale",
        "blocks.1.attn.hook_pattern",
    ];
    run(job(&data, &taps), &dir.path().join("f32"));
    let full = Store::open(&dir.path().join("f32")).unwrap();
    for dtype in [StoreDtype::BF16, StoreDtype::F16] {
        let out = dir.path().join(dtype.to_string());
        run(
            Job {
                store_dtype: Some(dtype),
                ..job(&data, &taps)
            },
            &out,
        );
        let store = Store::open(&out).unwrap();
        let round = |v: f32| match dtype {
            StoreDtype::BF16 => half::bf16::from_f32(v).to_f32(),
            _ => half::f16::from_f32(v).to_f32(),
        };
        for (ours, truth) in rows(&store, taps[0]).iter().zip(rows(&full, taps[0])) {
            assert_eq!(
                ours.2,
                truth.2.iter().map(|&v| round(v)).collect::<Vec<_>>()
            );
        }
        assert_eq!(
            rows(&store, taps[1]),
            rows(&full, taps[1]),
            "hook_scale is always f32"
        );
        let (ours, truth) = (store.tap(taps[2]).unwrap(), full.tap(taps[2]).unwrap());
        let (ours, truth) = (
            ours.ragged(2, 0).unwrap().unwrap(),
            truth.ragged(2, 0).unwrap().unwrap(),
        );
        assert_eq!(ours.shape(), [4, 30, 30]);
        assert_eq!(
            ours.to_f32(),
            truth.to_f32().iter().map(|&v| round(v)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn ragged_points_hold_the_selected_query_rows_of_the_chosen_heads() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    run(
        job(
            &data,
            &[
                "blocks.1.attn.hook_pattern",
                "blocks.1.attn.hook_pattern[2]@-2..-1",
                "blocks.1.attn.hook_attn_scores@first",
            ],
        ),
        &out,
    );
    let store = Store::open(&out).unwrap();
    let (all, some) = (
        store.tap("blocks.1.attn.hook_pattern").unwrap(),
        store.tap("blocks.1.attn.hook_pattern~2").unwrap(),
    );
    for (sample, n) in [(0, 9), (1, 1), (2, 30), (3, 3), (4, 70)] {
        let whole = all.ragged(sample, 0).unwrap().unwrap();
        assert_eq!(whole.shape(), [4, n, n]);
        let whole = whole.to_f32();
        for (q, row) in whole.chunks_exact(n).enumerate() {
            let q = q % n;
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let seen: Vec<usize> = (0..n).filter(|&k| row[k] != 0.0).collect();
            // A window of 4 holds four keys, the query's own included.
            assert_eq!(seen, (q.saturating_sub(3)..=q).collect::<Vec<_>>());
        }
        let part = some.ragged(sample, 0).unwrap().unwrap();
        let r = n.min(2);
        assert_eq!(part.shape(), [1, r, n]);
        assert_eq!(part.to_f32(), whole[(2 * n + n - r) * n..3 * n * n]);
        let scores = store
            .tap("blocks.1.attn.hook_attn_scores")
            .unwrap()
            .ragged(sample, 0)
            .unwrap()
            .unwrap()
            .to_f32();
        assert!(
            scores
                .chunks_exact(n)
                .all(|row| row[0].is_finite() && row[1..].iter().all(|&s| s == f32::NEG_INFINITY))
        );
    }
}

#[test]
fn a_store_does_not_depend_on_batches_or_shards_and_recomputes_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let taps = [
        "blocks.*.hook_resid_post",
        "blocks.0.attn.hook_pattern@last",
        "blocks.2.mlp.hook_post|mean",
    ];
    let one = dir.path().join("one");
    let base = Job {
        keep: vec!["label".into(), "id".into()],
        ..job(&data, &taps)
    };
    assert_eq!(run(base.clone(), &one).shards, 1);
    let store = Store::open(&one).unwrap();
    for (batch_tokens, shard_bytes) in [(1, 1), (12, 20_000), (64, 40_000), (100_000, 70_000)] {
        let out = dir.path().join(format!("{batch_tokens}-{shard_bytes}"));
        let cut = Job {
            batch_tokens,
            shard_bytes,
            ..base.clone()
        };
        let planned = estimate(&Prepared::open(cut.clone()).unwrap(), &mut |_| ()).unwrap();
        let done = run(cut, &out);
        assert!(done.shards > 1);
        assert_eq!(planned.shards, done.shards as u64);
        assert_eq!(
            planned.taps.iter().map(|t| t.rows).collect::<Vec<_>>(),
            done.rows
        );
        for tap in &planned.taps {
            let files = std::fs::read_dir(out.join(&tap.folder)).unwrap();
            let bytes: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
            assert_eq!(
                bytes, tap.bytes,
                "{}: plan's bytes are those on disk",
                tap.folder
            );
        }
        let other = Store::open(&out).unwrap();
        for info in store.taps().iter().filter(|t| !t.ragged) {
            assert_eq!(
                rows(&store, &info.folder),
                rows(&other, &info.folder),
                "{}",
                info.folder
            );
        }
        let samples: Vec<_> = other.samples().map(Result::unwrap).collect();
        assert_eq!(
            samples,
            store.samples().map(Result::unwrap).collect::<Vec<_>>()
        );
        let again = recompute(&out, 5, 1, None, None).unwrap();
        assert_eq!(
            (again.exact, again.samples, again.differences.len()),
            (true, 5, 0),
            "{:?}",
            again.differences
        );
    }
}

#[test]
fn recompute_notices_a_changed_row() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    run(job(&data, &["blocks.1.hook_resid_post"]), &out);
    let path = out.join("blocks.1.hook_resid_post/00000.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 5] ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
    let again = recompute(&out, 5, 1, None, None).unwrap();
    assert_eq!(again.differences.len(), 1);
    assert!(
        again.differences[0].contains("sample 0"),
        "{:?}",
        again.differences
    );
}

#[test]
fn long_samples_are_refused_truncated_or_chunked() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let base = Job {
        max_length: Some(32),
        ..job(&data, &["blocks.0.hook_resid_pre"])
    };
    let refused = Prepared::open(base.clone()).unwrap();
    let error = extract(&refused, &dir.path().join("refused"), &mut |_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("data.jsonl:5")
            && error.contains("70 tokens")
            && error.contains("--on-long"),
        "{error}"
    );
    let truncated = run(
        Job {
            on_long: OnLong::Truncate,
            ..base.clone()
        },
        &dir.path().join("truncated"),
    );
    assert_eq!(truncated.rows, [9 + 1 + 30 + 3 + 32]);
    let chunked = dir.path().join("chunked");
    let done = run(
        Job {
            on_long: OnLong::Chunk,
            ..base
        },
        &chunked,
    );
    assert_eq!(done.rows, [113]);
    let store = Store::open(&chunked).unwrap();
    let last: Vec<_> = store
        .samples()
        .map(Result::unwrap)
        .filter(|s| s.sample == 4)
        .collect();
    assert_eq!(
        last.iter()
            .map(|s| (s.chunk, s.tokens.len()))
            .collect::<Vec<_>>(),
        [(0, 32), (1, 32), (2, 6)]
    );
    assert_eq!(
        recompute(&chunked, 5, 0, None, None).unwrap().differences,
        Vec::<String>::new()
    );
}

#[test]
fn roles_and_spans_select_the_tokens_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.jsonl");
    let line = serde_json::json!({
        "messages": [{"role": "user", "content": "Is the sky blue?"}, {"role": "assistant", "content": "Yes, it is."}],
        "spans": [{"name": "colour", "start": 11, "end": 15, "message": 0}],
    });
    std::fs::write(&path, format!("{line}\n")).unwrap();
    let out = dir.path().join("store");
    let taps = [
        "hook_embed@role:assistant",
        "hook_embed@span:colour",
        "hook_embed@turn:-1 & last",
        "hook_embed@no-bos",
    ];
    let job = Job {
        input_field: Some((InputKind::Messages, "messages".into())),
        ..Job::new(
            common::smollm2().display().to_string(),
            vec![path.display().to_string()],
            taps.map(str::to_owned).to_vec(),
        )
    };
    run(job, &out);
    let store = Store::open(&out).unwrap();
    let tokenizer = streamgauge::model::Tokenizer::open(&common::smollm2()).unwrap();
    let text = |tap: &str| {
        let reader = store.tap(tap).unwrap();
        let ids: Vec<u32> = (0..reader.rows())
            .map(|i| reader.row(i).unwrap().token() as u32)
            .collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!(text("hook_embed"), "Yes, it is.");
    assert_eq!(text("hook_embed~2").trim(), "blue");
    assert_eq!(text("hook_embed~3"), ".");
    let sample = store.samples().next().unwrap().unwrap();
    assert_eq!(
        store.tap("hook_embed~4").unwrap().rows(),
        sample.tokens.len() - 1
    );
    assert_eq!(
        sample
            .turns
            .iter()
            .map(|t| t.0.as_str())
            .collect::<Vec<_>>(),
        ["user", "assistant"]
    );
}

#[test]
fn a_tap_that_selects_nothing_anywhere_is_an_error_and_the_store_stays_partial() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    let prepared = Prepared::open(job(&data, &["hook_embed@500..600"])).unwrap();
    let error = extract(&prepared, &out, &mut |_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("hook_embed@500..600") && error.contains("5 samples"),
        "{error}"
    );
    assert!(Store::open(&out).is_err());
}

#[test]
fn bad_records_are_skipped_and_counted_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mixed.jsonl");
    std::fs::write(&path, "{\"tokens\": [1, 2]}\nnot json\n{\"tokens\": [1, 999]}\n{\"tokens\": [3]}\n{\"tokens\": []}\n").unwrap();
    let base = job(&path.display().to_string(), &["hook_embed"]);
    let error = extract(
        &Prepared::open(base.clone()).unwrap(),
        &dir.path().join("a"),
        &mut |_| (),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("mixed.jsonl:2"), "{error}");
    let done = run(
        Job {
            skip_bad: true,
            ..base
        },
        &dir.path().join("b"),
    );
    assert_eq!((done.skipped, done.rows[0]), (3, 3));
    let store = Store::open(&dir.path().join("b")).unwrap();
    assert_eq!(
        store
            .samples()
            .map(|s| s.unwrap().sample)
            .collect::<Vec<_>>(),
        [0, 3],
        "samples keep their place"
    );
    assert_eq!(store.manifest().provenance.dataset.skipped, 3);
    assert_eq!(store.manifest().provenance.dataset.samples, Some(5));
}
