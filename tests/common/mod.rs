//! What several tests share: the fixtures' place, and every hook point of a few samples in memory.
#![allow(dead_code)] // each test binary uses a part

use std::path::{Path, PathBuf};
use std::sync::Arc;

use streamgauge::backend::cpu::Cpu;
use streamgauge::backend::{Batch, Sink, SinkSpec};
use streamgauge::engine::{Plan, dims, forward, shape};
use streamgauge::hooks::{HookPoint, Tap, TapSpec};
use streamgauge::model::Model;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// SmolLM2-135M-Instruct, which `scripts/fetch-model` makes; `scripts/test` runs that first.
pub fn smollm2() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".models/SmolLM2-135M-Instruct");
    assert!(
        dir.join("config.json").is_file(),
        "{} is not there: run scripts/fetch-model",
        dir.display()
    );
    dir
}

pub fn tap(spec: &str, model: &Model) -> Tap {
    let taps = TapSpec::parse(spec)
        .unwrap()
        .resolve(&dims(&model.config), &"all".parse().unwrap())
        .unwrap();
    assert_eq!(taps.len(), 1);
    taps.into_iter().next().unwrap()
}

/// The f32 rows of each hook point for these samples in one batch: per point, the bytes of each sample as numbers.
pub fn run(
    cpu: &mut Cpu<'_>,
    model: &Model,
    samples: &[&[u32]],
    points: &[HookPoint],
) -> Vec<Vec<Vec<f32>>> {
    let batch = Batch::pack(samples.iter().copied());
    let taps: Vec<Tap> = points.iter().map(|p| tap(&p.to_string(), model)).collect();
    let dims = dims(&model.config);
    let elements = |tap: &Tap, n: usize| {
        let width: usize = tap.row_shape(&dims).iter().product();
        if tap.point.site.is_ragged() {
            width * n * n
        } else {
            width * n
        }
    };
    let mut memory: Vec<Vec<f32>> = taps
        .iter()
        .map(|t| vec![f32::NAN; samples.iter().map(|s| elements(t, s.len())).sum()])
        .collect();
    let spec = Arc::new(SinkSpec::plain());
    let sinks = memory
        .iter_mut()
        .map(|m| {
            let rows = (0..batch.rows() as u32).collect();
            let per_sample = samples.iter().map(|s| s.len() as u32).collect();
            Sink::new(
                spec.clone(),
                rows,
                per_sample,
                bytemuck::cast_slice_mut(m),
                None,
            )
        })
        .collect();
    let mut pass = cpu.begin(&batch, sinks).unwrap();
    forward(&mut pass, model.config.n_layers, &Plan::new(&taps));
    drop(pass);
    taps.iter()
        .zip(&memory)
        .map(|(tap, m)| {
            let mut at = 0;
            samples
                .iter()
                .map(|s| {
                    let len = elements(tap, s.len());
                    at += len;
                    m[at - len..at].to_vec()
                })
                .collect()
        })
        .collect()
}

pub fn cpu(model: &Model) -> Cpu<'_> {
    Cpu::new(shape(&model.config), model, 8 << 30)
}
