//! Statistics summed on the device: the bits that the CPU makes of the same rows.

use std::path::Path;

use streamgauge::backend::cpu::{MOMENT_ROWS, add_moments};
use streamgauge::backend::cuda::Dtype;
use streamgauge::engine::{Machine, Options, Prepared, StatisticsEnding, extract_on, statistics};
use streamgauge::store::Store;
use streamgauge::store::statistics::{Kinds, Moments, Set, Statistics};

use crate::{BF16, common, gpu, noise, open, options};

const TAPS: [&str; 2] = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"];

/// A job over more rows than a chunk has.
fn job(dir: &Path) -> Prepared {
    let data = dir.join("data.jsonl");
    let line = |(i, n): (u32, usize)| format!("{{\"tokens\": {:?}}}\n", noise(n, i));
    let lines: String = (0..).zip([150, 90, 1, 120, 99]).map(line).collect();
    std::fs::write(&data, lines).unwrap();
    let model = common::fixtures().join("models").join(BF16);
    Prepared::open(streamgauge::engine::Job {
        batch_tokens: 160,
        ..streamgauge::engine::Job::new(
            model.display().to_string(),
            vec![data.display().to_string()],
            TAPS.iter().map(|t| t.to_string()).collect(),
        )
    })
    .unwrap()
}

fn summed(prepared: &Prepared, machine: &mut dyn Machine, out: &Path) -> Vec<Moments> {
    let kinds = Kinds {
        mean: true,
        cov: true,
        ..Kinds::default()
    };
    let options = Options::default();
    let ending = statistics(prepared, &kinds, machine, out, &options, &mut |_| ()).unwrap();
    assert!(matches!(ending, StatisticsEnding::Done(_)));
    let statistics = Statistics::open(out).unwrap();
    let of_tap = |tap| statistics.set(tap, &Set::Rows).unwrap().unwrap();
    (0..TAPS.len()).map(of_tap).collect()
}

/// What the CPU makes of rows that a store has.
fn by_hand(store: &Path, tap: usize) -> Moments {
    let store = Store::open(store).unwrap();
    let reader = store.tap_at(tap);
    let width: usize = reader.info().row_shape.iter().product();
    let shards = reader.shards().map(Result::unwrap);
    let rows: Vec<f32> = shards.flat_map(|shard| shard.to_f32()).collect();
    let mut moments = Moments::new(width, true);
    for chunk in rows.chunks(MOMENT_ROWS * width) {
        moments.count += (chunk.len() / width) as u64;
        add_moments(chunk, &mut moments.sum, moments.outer.as_deref_mut());
    }
    let outer = moments.outer.as_mut().unwrap();
    for i in 0..width {
        for j in i + 1..width {
            outer[i * width + j] = outer[j * width + i];
        }
    }
    moments
}

#[test]
fn sums_of_the_device_are_to_the_bit_the_cpus_of_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = job(dir.path());
    let mut machine = open(&prepared.model, gpu(), options(Dtype::F32));
    let store = dir.path().join("store");
    extract_on(&prepared, &mut machine, &store, &mut |_| ()).unwrap();
    let found = summed(&prepared, &mut machine, &dir.path().join("stats"));
    for (tap, found) in found.iter().enumerate() {
        assert_eq!(found.count, 460);
        assert!(*found == by_hand(&store, tap), "{}", TAPS[tap]);
    }
    // The rows themselves differ from the CPU backend's by rounding, and so do their sums.
    let on_cpu = summed(&prepared, &mut prepared.cpu(), &dir.path().join("cpu"));
    for (a, b) in found.iter().zip(&on_cpu) {
        let (a, b) = (a.outer.as_ref().unwrap(), b.outer.as_ref().unwrap());
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        assert!(norm(&difference) <= 1e-5 * norm(b));
    }
}

#[test]
fn a_device_without_room_leaves_the_sums_to_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = job(dir.path());
    let roomy = summed(
        &prepared,
        &mut open(&prepared.model, gpu(), options(Dtype::F32)),
        &dir.path().join("roomy"),
    );
    let mut machine = open(&prepared.model, gpu(), options(Dtype::F32));
    // All but a little is taken.
    let free = streamgauge::backend::cuda::driver::Driver::free_bytes(machine.driver()).unwrap();
    let launcher: &mut dyn streamgauge::backend::cuda::Launcher = machine.driver();
    launcher.alloc(free - (16 << 10)).unwrap();
    let tight = summed(&prepared, &mut machine, &dir.path().join("tight"));
    assert!(roomy == tight);
}
