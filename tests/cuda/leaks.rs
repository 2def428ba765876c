//! Nothing grows from batch to batch.

use std::sync::Arc;

use streamgauge::backend::cuda::{CudaOptions, Dtype};
use streamgauge::backend::{Batch, Change, Edit, EditSpec, Sink, SinkSpec};
use streamgauge::engine::{Job, Machine, Plan, Prepared, extract_on};
use streamgauge::sys::disk::file_system;

use crate::{BF16, common, gpu, model, open, options};

#[test]
fn a_thousand_batches_take_no_more_than_the_first() {
    let model = model(BF16);
    let taps = [
        common::tap("blocks.0.hook_resid_mid", &model),
        common::tap("blocks.0.attn.hook_pattern", &model),
    ];
    let plan = Plan::new(&taps).with_edits([taps[1].point, taps[0].point], false);
    let spec = |change| {
        Arc::new(EditSpec {
            columns: vec![],
            heads: vec![],
            change,
        })
    };
    let specs = [spec(Change::Scale(0.5)), spec(Change::Zero)];
    // A piece that is not given back is missed soon: the ring holds a few batches.
    let small = CudaOptions {
        rows: 8,
        positions: 8,
        sequences: 0,
        means: 1,
        ring_bytes: Some(64 << 10),
        ..options(Dtype::BF16)
    };
    let mut cuda = open(&model, gpu(), small);
    let tokens = [5_u32, 9];
    let batch = Batch::pack([&tokens[..]]);
    let mut first = None;
    for number in 0..1000 {
        let (mut resid, mut pattern) = (vec![0_u8; 2 * 64 * 4], vec![0_u8; 2 * 2 * 2 * 4]);
        let sinks = [&mut resid, &mut pattern]
            .into_iter()
            .map(|to| Sink::new(Arc::new(SinkSpec::plain()), vec![0, 1], vec![2], to, None))
            .collect();
        let edits = specs
            .iter()
            .map(|s| Edit::new(s.clone(), vec![1], vec![1], vec![]))
            .collect();
        let before = cuda.driver().calls();
        let receipts = cuda.run(&batch, sinks, edits, 2, &plan).unwrap();
        let now = (
            cuda.driver().allocated(),
            cuda.driver().allocations(),
            cuda.bytes(),
            receipts,
            resid,
            pattern,
        );
        // The ring's rounds differ in what they wait for, and in nothing else.
        assert!(cuda.driver().calls() - before < 200, "batch {number}");
        assert_eq!(
            first.get_or_insert_with(|| now.clone()),
            &now,
            "batch {number}"
        );
    }
    let memory = first.unwrap().0;
    assert!(memory > 0);
}

#[test]
fn a_thousand_batches_of_a_job_give_back_all_that_they_registered_and_every_event() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let data = memory.path().join("data.jsonl");
    let lines: String = (0..1000)
        .map(|i| format!("{{\"tokens\": [{}]}}\n", i % 160))
        .collect();
    std::fs::write(&data, lines).unwrap();
    let taps = ["blocks.0.hook_resid_pre", "blocks.0.ln1.hook_out"];
    let prepared = Prepared::open(Job {
        batch_tokens: 1,
        // Some thirty shards.
        shard_bytes: 32 * 2 * 64 * 2,
        ..Job::new(
            common::fixtures()
                .join("models")
                .join(BF16)
                .display()
                .to_string(),
            vec![data.display().to_string()],
            taps.map(String::from).to_vec(),
        )
    })
    .unwrap();
    let mut cuda = open(&prepared.model, gpu(), options(Dtype::BF16));
    let opened = (cuda.driver().allocated(), cuda.driver().allocations());
    let mut batches = 0;
    let out = memory.path().join("store");
    let done = extract_on(&prepared, &mut cuda, &out, &mut |_| batches += 1).unwrap();
    assert!(
        batches >= 1000 && done.shards > 20,
        "{batches}, {}",
        done.shards
    );
    let driver = cuda.driver();
    assert_eq!((driver.allocated(), driver.allocations()), opened);
    assert_eq!((driver.registrations(), driver.open_events()), (0, 0));
    if file_system(memory.path()).is_memory() {
        assert_eq!(done.write_path, "registered");
        // A shard that is laid out ahead, one that is computed, one whose last batches land, one that is committed; and what was tried.
        let most = driver.most_registrations();
        assert!((2..=4 * taps.len() as u64 + 1).contains(&most), "{most}");
    }
}
