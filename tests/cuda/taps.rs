//! Taps that are less than a whole activation.

use std::collections::BTreeMap;

use streamgauge::backend::cuda::Dtype;
use streamgauge::engine::{Job, Prepared, extract_on};
use streamgauge::hooks::HookPoint;
use streamgauge::store::Store;

use crate::jobs::{Bench, assert_alike, tensor};
use crate::{BF16, F16, gpu, open, options};

#[test]
fn selections_heads_and_reductions_store_what_the_cpu_backend_stores() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let direction = tensor(bench.dir.path(), "direction", 64);
    let dot = format!("blocks.0.hook_mlp_out|dot:{direction}");
    let prepared = bench.job(
        &[
            "blocks.*.hook_resid_post@last",
            "blocks.1.hook_resid_pre@-5..-2",
            "blocks.0.attn.hook_z[1]@every:3",
            "blocks.1.attn.hook_q[0,1]@first",
            "blocks.1.hook_resid_post|mean",
            "blocks.0.attn.hook_z[0]|mean",
            "blocks.1.mlp.hook_post|norm",
            "blocks.1.hook_attn_out|top:3",
            "logits@last|logprob:4",
            "logits|mean",
            "blocks.1.attn.hook_result[1]@-2..-1",
            "blocks.0.attn.hook_pattern[1]@last",
            "blocks.1.attn.hook_attn_scores@every:7",
            &dot,
        ],
        &[],
    );
    assert_alike(&bench.stores(&prepared));
}

/// The rows of a tap by sample and position, as bytes: of a ragged one, of every head.
fn bits(store: &Store, tap: usize, positions: &[Vec<i32>]) -> BTreeMap<(u64, i32), Vec<u8>> {
    let reader = store.tap_at(tap);
    if !reader.info().ragged {
        return (0..reader.rows())
            .map(|i| {
                let row = reader.row(i).unwrap();
                ((row.sample() as u64, row.position()), row.bytes().to_vec())
            })
            .collect();
    }
    let mut found = BTreeMap::new();
    for (sample, positions) in (0..).zip(positions) {
        let Some(tensor) = reader.ragged(sample, 0).unwrap() else {
            continue;
        };
        let (rows, heads) = (positions.len(), reader.info().row_shape[0]);
        if rows == 0 {
            continue;
        }
        let row = tensor.bytes().len() / (heads * rows);
        for (r, &position) in positions.iter().enumerate() {
            let of_head = |head| &tensor.bytes()[(head * rows + r) * row..][..row];
            found.insert(
                (sample, position),
                (0..heads).flat_map(of_head).copied().collect(),
            );
        }
    }
    found
}

/// Of whole taps the gates of 16 bits are known to hold (`fidelity`), so they do of rows with the same bits.
#[test]
fn whatever_rows_are_selected_in_16_bits_they_have_the_bits_of_the_whole_tap_at_every_hook_point() {
    let lengths = [40, 1, 9];
    type Selected = fn(i32) -> Vec<i32>;
    let selections: [(&str, Selected); 4] = [
        ("all", |n| (0..n).collect()),
        ("last", |n| vec![n - 1]),
        ("-5..-2", |n| ((n - 5).max(0)..n - 1).collect()),
        ("every:3", |n| (0..n).step_by(3).collect()),
    ];
    for (model, dtype) in [(BF16, Dtype::BF16), (F16, Dtype::F16)] {
        let bench = Bench {
            dir: tempfile::tempdir().unwrap(),
        };
        let mut taps = Vec::new();
        for point in HookPoint::all(&bench.job_of(model, &["logits"], &[]).dims) {
            taps.extend(selections.map(|(selection, _)| format!("{point}@{selection}")));
        }
        let names: Vec<&str> = taps.iter().map(String::as_str).collect();
        let prepared = Prepared::open(Job {
            dtype,
            ..bench.job_of(model, &names, &[]).job
        })
        .unwrap();
        let mut machine = open(&prepared.model, gpu(), options(dtype));
        let out = bench.dir.path().join("store");
        extract_on(&prepared, &mut machine, &out, &mut |_| ()).unwrap();
        let store = Store::open(&out).unwrap();
        assert_eq!(store.taps().len(), taps.len());
        let mut whole = BTreeMap::new();
        for (tap, name) in taps.iter().enumerate() {
            let positions = lengths.map(selections[tap % selections.len()].1);
            let found = bits(&store, tap, &positions);
            let selected = (0_u64..)
                .zip(&positions)
                .flat_map(|(sample, of)| of.iter().map(move |&p| (sample, p)));
            assert!(
                found.keys().copied().eq(selected),
                "{name}: {:?}",
                found.keys()
            );
            if tap % selections.len() == 0 {
                whole = found;
                continue;
            }
            for (at, row) in &found {
                assert!(*row == whole[at], "{name} {at:?}");
            }
        }
    }
}

#[test]
fn rows_that_are_not_selected_never_leave_the_device() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let prepared = bench.job(
        &[
            "blocks.*.hook_resid_post@last",
            "blocks.1.attn.hook_z[1]@-5..-2",
            "blocks.0.mlp.hook_post@every:8|norm",
            "blocks.0.hook_mlp_out|mean",
            "blocks.1.attn.hook_pattern[0]@first",
            "logits@last",
        ],
        &[],
    );
    let mut machine = open(&prepared.model, gpu(), options(Dtype::F32));
    let out = bench.dir.path().join("store");
    let done = extract_on(&prepared, &mut machine, &out, &mut |_| ()).unwrap();
    // What is stored of three samples of 40, 1 and 9 tokens, in f32.
    let (resid, z) = (2 * 3 * 64, (4 + 4) * 64);
    let (norm, mean, pattern, logits) = (5 + 1 + 2, 3 * 64, 40 + 1 + 9, 3 * 160);
    let stored = 4 * (resid + z + norm + mean + pattern + logits);
    assert_eq!(done.progress.bytes, stored);
    assert_eq!(machine.driver().copied_out(), stored);
}
