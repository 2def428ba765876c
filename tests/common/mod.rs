//! What several tests share: the fixtures' place, and every hook point of a few samples in memory.
#![allow(dead_code)] // each test binary uses a part

pub mod half;
pub mod tiny_chat;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use streamgauge::backend::cpu::{Cpu, Precision};
use streamgauge::backend::{Batch, Sink, SinkSpec};
use streamgauge::engine::{Plan, dims, forward, shape};
use streamgauge::hooks::{HookPoint, Tap, TapSpec};
use streamgauge::model::Model;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Token ids of sample `i` of a made-up dataset: 1 to 23 of them, below 160.
pub fn ids(i: usize) -> Vec<usize> {
    let tokens = 0..1 + i * 7 % 23;
    tokens.map(|t| (t * 31 + i * 17) % 160).collect()
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
    cpu_in(model, Precision::F32)
}

pub fn cpu_in(model: &Model, precision: Precision) -> Cpu<'_> {
    Cpu::new(shape(&model.config), model, 8 << 30, precision)
}

pub const PROJECTIONS: usize = 32;
/// The gate's estimate from 32 projections has a relative standard deviation of 1/8. Over some ten thousand cells the
/// largest of such estimates is about 4.5 of these above the truth; a wrong computation is off by orders of magnitude.
pub const SKETCH_SLACK: f64 = 1.0 + 4.5 / 8.0;

/// 32 random-sign sums of the elements (scripts/reference/sketch.py), and how many were −∞, which count as 0.
pub fn sketch(values: impl Iterator<Item = f32>) -> ([f64; PROJECTIONS], usize) {
    let (mut s, mut masked) = ([0.0; PROJECTIONS], 0);
    for (i, v) in values.enumerate() {
        if v == f32::NEG_INFINITY {
            masked += 1;
            continue;
        }
        let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        for (j, s) in s.iter_mut().enumerate() {
            // Flips the sign where the bit is set.
            *s += f64::from_bits((v as f64).to_bits() ^ (((z >> j) & 1) << 63));
        }
    }
    (s, masked)
}

/// The elements of token 0 and of the later tokens, token first: ragged points are stored [head, query, key].
pub fn groups(point: HookPoint, values: &[f32], n: usize) -> [Vec<f32>; 2] {
    let width = values.len() / n;
    if !point.site.is_ragged() {
        return [values[..width].to_vec(), values[width..].to_vec()];
    }
    let heads = width / n;
    let row =
        |q: usize| (0..heads).flat_map(move |h| values[(h * n + q) * n..][..n].iter().copied());
    [row(0).collect(), (1..n).flat_map(row).collect()]
}
