//! The gate for 16 bits against float64 Hugging Face (docs/fidelity.md), for any backend.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use streamgauge::engine::dims;
use streamgauge::hooks::HookPoint;
use streamgauge::model::Model;

/// What a golden file says of one sample.
struct Golden {
    name: String,
    tokens: Vec<u32>,
    sketch: Vec<f32>,
    norm: Vec<f64>,
    masked: Vec<i32>,
    /// What Hugging Face is off by: the largest of several runs that round differently, and the first run.
    hf: Vec<f32>,
    hf_one: Vec<f32>,
}

/// The points of a golden file and its samples.
fn goldens(name: &str) -> (Vec<String>, Vec<Golden>) {
    let path = super::fixtures().join(format!("goldens/{name}.safetensors"));
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
        hf: bytemuck::pod_collect_to_vec(data(format!("{name}/hf_half"))),
        hf_one: bytemuck::pod_collect_to_vec(data(format!("{name}/hf_half_one"))),
        name,
    });
    let mut samples: Vec<Golden> = samples.collect();
    share_first_tokens(&mut samples);
    (points.lines().map(str::to_owned).collect(), samples)
}

/// What token 0 holds depends on that token alone: samples that begin alike are several runs of one computation (and Hugging Face, which
/// takes another product for one row than for many, is 7 × further off in one of them than in the other). Each gets their largest.
fn share_first_tokens(samples: &mut [Golden]) {
    let mut largest: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for golden in samples.iter() {
        let shown = golden.hf.iter().step_by(2);
        let all = largest.entry(golden.tokens[0]).or_default();
        all.resize(shown.len(), 0.0);
        all.iter_mut().zip(shown).for_each(|(a, &b)| *a = a.max(b));
    }
    for golden in samples {
        let cells = golden.hf.iter_mut().step_by(2);
        cells
            .zip(&largest[&golden.tokens[0]])
            .for_each(|(a, &b)| *a = b);
    }
}

/// The gate for 16 bits: per hook point the root mean square over layers and samples at most 1.1 × Hugging Face's in
/// the same dtype with SDPA, and every cell at most 2.5 × (floor: 1 ulp of the dtype). What it shows in a cell is the worst of five runs
/// that its libraries round differently: made of one run, the gate fails other runs of Hugging Face itself in up to 44 cells of
/// SmolLM2 (tests/fixtures/README.md). Errors are estimated from 32 random signs, to an
/// eighth: a cell may exceed by 4.5 of those, and a mean over a hook point's cells, of which there are at least five, by 3 / √cells of one.
///
/// `run` gives every sample's values at each of some points.
pub fn check_16_bits(
    name: &str,
    model: &Model,
    ulp: f64,
    run: impl FnMut(&[&[u32]], &[HookPoint]) -> Vec<Vec<Vec<f32>>>,
) {
    let failures = gate(name, model, ulp, run).failures();
    assert!(
        failures.is_empty(),
        "{name}: {} {failures:#?}",
        failures.len()
    );
}

/// Our root mean square error at each kind of hook point.
pub fn root_mean_squares(
    name: &str,
    model: &Model,
    run: impl FnMut(&[&[u32]], &[HookPoint]) -> Vec<Vec<Vec<f32>>>,
) -> BTreeMap<&'static str, f64> {
    let squares = gate(name, model, 0.0, run).squares.into_iter();
    squares
        .map(|(site, (ours, _, cells))| (site, (ours / cells as f64).sqrt()))
        .collect()
}

fn gate(
    name: &str,
    model: &Model,
    ulp: f64,
    mut run: impl FnMut(&[&[u32]], &[HookPoint]) -> Vec<Vec<Vec<f32>>>,
) -> Gate {
    let (points, samples) = goldens(name);
    let points: Vec<HookPoint> = points
        .iter()
        .map(|p| HookPoint::parse(p, &dims(&model.config)).unwrap())
        .collect();
    assert_eq!(points, HookPoint::all(&dims(&model.config)));
    let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.tokens[..]).collect();
    let mut gate = Gate {
        ulp,
        failures: Vec::new(),
        squares: BTreeMap::new(),
    };
    // A few dozen points at a time keep the memory of per-head results and logits small.
    for (chunk, points) in points.chunks(40).enumerate() {
        let found = run(&tokens, points);
        for (p, point) in points.iter().enumerate() {
            for (golden, values) in samples.iter().zip(&found[p]) {
                gate.take(golden, *point, 40 * chunk + p, values);
            }
        }
    }
    gate
}

struct Gate {
    ulp: f64,
    failures: Vec<String>,
    /// Of each kind of hook point: our squares, Hugging Face's, and how many cells.
    squares: BTreeMap<&'static str, (f64, f64, usize)>,
}

impl Gate {
    /// A sample's values at a hook point, the `p`-th of the golden file.
    fn take(&mut self, golden: &Golden, point: HookPoint, p: usize, values: &[f32]) {
        let groups = super::groups(point, values, golden.tokens.len());
        for (g, group) in groups.into_iter().enumerate() {
            let cell = p * 2 + g;
            let (ours, masked) = super::sketch(group.into_iter());
            assert_eq!(
                masked, golden.masked[cell] as usize,
                "{point} {} masked",
                golden.name
            );
            if golden.norm[cell] == 0.0 {
                continue;
            }
            let truth = &golden.sketch[cell * super::PROJECTIONS..][..super::PROJECTIONS];
            let square: f64 = ours
                .iter()
                .zip(truth)
                .map(|(a, &b)| (a - f64::from(b)).powi(2))
                .sum::<f64>()
                / super::PROJECTIONS as f64
                / golden.norm[cell].powi(2);
            let hf = f64::from(golden.hf[cell]);
            let limit = (2.5 * hf).max(self.ulp) * super::SKETCH_SLACK;
            if square.is_nan() || square.sqrt() > limit {
                self.failures.push(format!(
                    "{point} {} group {g}: {:.2e} against {limit:.2e}",
                    golden.name,
                    square.sqrt()
                ));
            }
            let hf = f64::from(golden.hf_one[cell]);
            let sum = self.squares.entry(point.site.template()).or_default();
            *sum = (sum.0 + square, sum.1 + hf * hf, sum.2 + 1);
        }
    }

    /// The cells that are outside, and the hook points.
    fn failures(mut self) -> Vec<String> {
        for (site, (ours, hf, cells)) in self.squares {
            let (ours, hf) = ((ours / cells as f64).sqrt(), (hf / cells as f64).sqrt());
            println!("{site}: root mean square {ours:.2e}, Hugging Face {hf:.2e}, {cells} cells");
            let limit = (1.1 * hf).max(self.ulp) * (1.0 + 3.0 / 8.0 / (cells as f64).sqrt());
            if ours > limit {
                self.failures.push(format!(
                    "{site}: root mean square {ours:.2e}, Hugging Face {hf:.2e}"
                ));
            }
        }
        self.failures
    }
}
