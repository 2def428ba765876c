//! Every hook point within the gates: 16 bits against float64 Hugging Face, f32 against the CPU backend.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use streamgauge::backend::SinkDtype;
use streamgauge::backend::cuda::Dtype;
use streamgauge::engine::dims;
use streamgauge::hooks::HookPoint;

use crate::{BF16, F16, common, gpu, model, noise, open, options, run};

/// What a golden file says of one sample.
struct Golden {
    name: String,
    tokens: Vec<u32>,
    sketch: Vec<f32>,
    norm: Vec<f64>,
    masked: Vec<i32>,
    hf: Vec<f32>,
}

/// The points of a golden file and its samples; `hf`: which of Hugging Face's errors.
fn goldens(name: &str, hf: &str) -> (Vec<String>, Vec<Golden>) {
    let path = common::fixtures().join(format!("goldens/{name}.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let points = metadata.metadata().as_ref().unwrap()["points"].clone();
    let data = |t: String| tensors.tensor(&t).unwrap().data();
    let mut names: Vec<String> = tensors
        .names()
        .into_iter()
        .filter_map(|n| n.strip_suffix("/tokens").map(str::to_owned))
        .collect();
    names.sort();
    let samples = names.into_iter().map(|name| Golden {
        tokens: bytemuck::pod_collect_to_vec::<u8, i32>(data(format!("{name}/tokens")))
            .iter()
            .map(|&t| t as u32)
            .collect(),
        sketch: bytemuck::pod_collect_to_vec(data(format!("{name}/sketch"))),
        norm: bytemuck::pod_collect_to_vec(data(format!("{name}/norm"))),
        masked: bytemuck::pod_collect_to_vec(data(format!("{name}/masked"))),
        hf: bytemuck::pod_collect_to_vec(data(format!("{name}/{hf}"))),
        name,
    });
    (
        points.lines().map(str::to_owned).collect(),
        samples.collect(),
    )
}

/// The gate for 16 bits: per hook point the root mean square over layers and samples at most 1.1 × Hugging Face's in
/// the same dtype with SDPA, and every cell at most 2.5 × (floor: 1 ulp of the dtype). Errors are estimated from 32 random signs, to an
/// eighth: a cell may exceed by 4.5 of those, and a mean over a hook point's cells, of which there are at least five, by 3 / √cells of one.
fn check_16_bits(name: &str, dtype: Dtype, sink: SinkDtype, ulp: f64) {
    let model = model(name);
    let (points, samples) = goldens(name, "hf_half");
    let points: Vec<HookPoint> = points
        .iter()
        .map(|p| HookPoint::parse(p, &dims(&model.config)).unwrap())
        .collect();
    assert_eq!(points, HookPoint::all(&dims(&model.config)));
    let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.tokens[..]).collect();
    let mut cuda = open(&model, gpu(), options(dtype));
    let found = run(&mut cuda, &model, &tokens, &points, sink);
    let mut failures = Vec::new();
    // (ours², Hugging Face's², cells) per site
    let mut squares: BTreeMap<String, (f64, f64, usize)> = BTreeMap::new();
    for (p, point) in points.iter().enumerate() {
        let site = point.to_string();
        let site = site.rsplit_once('.').map_or(site.clone(), |_| {
            site.split('.')
                .filter(|w| w.parse::<u32>().is_err())
                .collect::<Vec<_>>()
                .join(".")
        });
        for (s, golden) in samples.iter().enumerate() {
            let n = golden.tokens.len();
            for (g, group) in common::groups(*point, &found[p][s], n)
                .into_iter()
                .enumerate()
            {
                let cell = p * 2 + g;
                let (ours, masked) = common::sketch(group.into_iter());
                assert_eq!(
                    masked, golden.masked[cell] as usize,
                    "{point} {} masked",
                    golden.name
                );
                if golden.norm[cell] == 0.0 {
                    continue;
                }
                let truth = &golden.sketch[cell * common::PROJECTIONS..][..common::PROJECTIONS];
                let square: f64 = ours
                    .iter()
                    .zip(truth)
                    .map(|(a, &b)| (a - f64::from(b)).powi(2))
                    .sum::<f64>()
                    / common::PROJECTIONS as f64
                    / golden.norm[cell].powi(2);
                let hf = f64::from(golden.hf[cell]);
                let limit = (2.5 * hf).max(ulp) * common::SKETCH_SLACK;
                if square.is_nan() || square.sqrt() > limit {
                    failures.push(format!(
                        "{point} {} group {g}: {:.2e} against {limit:.2e}",
                        golden.name,
                        square.sqrt()
                    ));
                }
                let sum = squares.entry(site.clone()).or_default();
                *sum = (sum.0 + square, sum.1 + hf * hf, sum.2 + 1);
            }
        }
    }
    for (site, (ours, hf, cells)) in squares {
        let (ours, hf) = ((ours / cells as f64).sqrt(), (hf / cells as f64).sqrt());
        let limit = (1.1 * hf).max(ulp) * (1.0 + 3.0 / 8.0 / (cells as f64).sqrt());
        if ours > limit {
            failures.push(format!(
                "{site}: root mean square {ours:.2e}, Hugging Face {hf:.2e}"
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{name}: {} {failures:#?}",
        failures.len()
    );
}

#[test]
fn bf16_is_as_near_to_float64_as_hugging_face_at_every_hook_point() {
    check_16_bits(BF16, Dtype::BF16, SinkDtype::BF16, 2f64.powi(-8));
}

#[test]
fn f16_is_as_near_to_float64_as_hugging_face_at_every_hook_point() {
    check_16_bits(F16, Dtype::F16, SinkDtype::F16, 2f64.powi(-11));
}
#[test]
fn f32_agrees_with_the_cpu_backend_at_every_hook_point() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let (a, b) = (noise(40, 1), noise(9, 2));
    let samples = [&a[..], &b[..]];
    let ours = run(
        &mut open(&model, gpu(), options(Dtype::F32)),
        &model,
        &samples,
        &points,
        SinkDtype::F32,
    );
    let theirs = common::run(&mut common::cpu(&model), &model, &samples, &points);
    for ((point, ours), theirs) in points.iter().zip(&ours).zip(&theirs) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (&x, &y) in ours.iter().zip(theirs) {
                if y == f32::NEG_INFINITY {
                    assert_eq!(x, y, "{point}");
                } else {
                    difference += f64::from(x - y).powi(2);
                    norm += f64::from(y).powi(2);
                }
            }
            let error = (difference / norm).sqrt();
            assert!(error < 3e-6, "{point}: {error:.1e}");
        }
    }
}
