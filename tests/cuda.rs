//! The CUDA backend without a GPU: whole passes on the interpreter's device, against float64 Hugging Face, against the CPU backend,
//! and against itself.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use proptest::prelude::*;
use ptx_interpreter::Schedule;
use safetensors::SafeTensors;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{StreamOrder, VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype, GemmRecord};
use streamgauge::backend::{Batch, Sink, SinkDtype, SinkSpec};
use streamgauge::engine::{
    Job, Machine, Plan, Prepared, dims, extract, extract_on, forward, shape,
};
use streamgauge::hooks::{HookPoint, Tap};
use streamgauge::model::Model;
use streamgauge::store::{Store, verify};

const BF16: &str = "mistral-bf16-h64";
const F16: &str = "llama-f16-h80";

fn gpu() -> VirtualGpuOptions {
    VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_90a",
            schedule: Schedule::Seeded(7),
        },
        memory: 256 << 20,
        fail_at: None,
        fickle_gemm: None,
        order: StreamOrder::LaunchesFirst,
        mistake: None,
        registers: true,
    }
}

fn options(dtype: Dtype) -> CudaOptions {
    CudaOptions {
        dtype,
        f32_resid: false,
        rows: 256,
        positions: 160,
        means: 8,
        ring_bytes: Some(2 << 20),
        gemm_chunk: 128,
        gemm: None,
    }
}

fn model(name: &str) -> Model {
    Model::open(&common::fixtures().join("models").join(name)).unwrap()
}

fn open(model: &Model, gpu: VirtualGpuOptions, options: CudaOptions) -> Cuda<VirtualGpu> {
    Cuda::open(VirtualGpu::new(gpu), shape(&model.config), model, options).unwrap()
}

/// Every element of each point for each of these samples, as f32, from one batch with sinks of that dtype.
fn run(
    cuda: &mut Cuda<VirtualGpu>,
    model: &Model,
    samples: &[&[u32]],
    points: &[HookPoint],
    dtype: SinkDtype,
) -> Vec<Vec<Vec<f32>>> {
    let batch = Batch::pack(samples.iter().copied());
    let taps: Vec<Tap> = points
        .iter()
        .map(|p| common::tap(&p.to_string(), model))
        .collect();
    let dims = dims(&model.config);
    let elements = |tap: &Tap, n: usize| {
        let width: usize = tap.row_shape(&dims).iter().product();
        width * if tap.point.site.is_ragged() { n * n } else { n }
    };
    // The scale of a norm is f32 whatever the rest is.
    let dtype_of = |tap: &Tap| match tap.point.to_string().ends_with("hook_scale") {
        true => SinkDtype::F32,
        false => dtype,
    };
    let mut memory: Vec<Vec<u8>> = taps
        .iter()
        .map(|t| {
            let all: usize = samples.iter().map(|s| elements(t, s.len())).sum();
            vec![0xff; all * dtype_of(t).size()]
        })
        .collect();
    let sinks = memory
        .iter_mut()
        .zip(&taps)
        .map(|(bytes, tap)| {
            let spec = SinkSpec {
                dtype: dtype_of(tap),
                ..SinkSpec::plain()
            };
            let rows = (0..batch.rows() as u32).collect();
            let per_sample = samples.iter().map(|s| s.len() as u32).collect();
            Sink::new(Arc::new(spec), rows, per_sample, bytes, None)
        })
        .collect();
    let mut pass = cuda.begin(&batch, sinks, Vec::new()).unwrap();
    forward(&mut pass, model.config.n_layers, &Plan::new(&taps));
    pass.complete().unwrap();
    taps.iter()
        .zip(&memory)
        .map(|(tap, bytes)| {
            let wide = widened(bytes, dtype_of(tap));
            let mut at = 0;
            samples
                .iter()
                .map(|s| {
                    let len = elements(tap, s.len());
                    at += len;
                    wide[at - len..at].to_vec()
                })
                .collect()
        })
        .collect()
}

fn widened(bytes: &[u8], dtype: SinkDtype) -> Vec<f32> {
    match dtype {
        SinkDtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        SinkDtype::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes)
            .iter()
            .map(|v| v.to_f32())
            .collect(),
        SinkDtype::BF16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes)
            .iter()
            .map(|v| v.to_f32())
            .collect(),
    }
}

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

fn noise(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|t| (t * 31 + seed * 17 + 3) % 160)
        .collect()
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

fn bits(values: &[Vec<Vec<f32>>]) -> Vec<Vec<Vec<u32>>> {
    let of = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect();
    values.iter().map(|p| p.iter().map(of).collect()).collect()
}

#[test]
fn taps_that_are_pointers_and_taps_that_are_gathered_hold_the_same_bits() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let a = noise(33, 5);
    let mut cuda = open(&model, gpu(), options(Dtype::BF16));
    let pointers = run(&mut cuda, &model, &[&a], &points, SinkDtype::BF16);
    let gathered = run(&mut cuda, &model, &[&a], &points, SinkDtype::F32);
    for ((point, pointers), gathered) in points.iter().zip(&pointers).zip(&gathered) {
        // Scores and patterns are computed anew in f32, and rounded on their way to a 16-bit sink.
        let ragged = point.site.is_ragged();
        let stored = |v: &f32| {
            if ragged {
                bf16::from_f32(*v).to_f32()
            } else {
                *v
            }
        };
        for (a, b) in pointers[0].iter().zip(&gathered[0]) {
            assert_eq!(a.to_bits(), stored(b).to_bits(), "{point}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// A ring that holds next to nothing makes copies wait for each other, and moves activations out of it, anywhere in the pass.
    #[test]
    fn the_size_of_the_ring_changes_no_bits(
        kib in 40_usize..400, length in 1_usize..140, first in 0_usize..50, every in 1_usize..4,
    ) {
        let model = model(BF16);
        let all = HookPoint::all(&dims(&model.config));
        // Every point twice: the second sink of a point finds it bound to the first.
        let points: Vec<HookPoint> =
            all.iter().skip(first).step_by(every).flat_map(|&p| [p, p]).collect();
        prop_assume!(!points.is_empty());
        let tokens = noise(length, kib as u32);
        let found: Vec<_> = [2 << 20, kib << 10]
            .into_iter()
            .map(|ring| {
                let options = CudaOptions { ring_bytes: Some(ring), ..options(Dtype::BF16) };
                let mut cuda = open(&model, gpu(), options);
                bits(&run(&mut cuda, &model, &[&tokens], &points, SinkDtype::BF16))
            })
            .collect();
        for ((point, a), b) in points.iter().zip(&found[0]).zip(&found[1]) {
            prop_assert!(a == b, "{point}");
        }
    }
}

#[test]
fn a_samples_bits_depend_on_neither_its_batch_nor_the_order_of_blocks() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let (a, b, c) = (noise(37, 1), noise(1, 2), noise(70, 3));
    let mut cuda = open(&model, gpu(), options(Dtype::BF16));
    let together = run(&mut cuda, &model, &[&c, &a, &b], &points, SinkDtype::BF16);
    let backwards = VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_80",
            schedule: Schedule::Reverse,
        },
        ..gpu()
    };
    let alone = run(
        &mut open(&model, backwards, options(Dtype::BF16)),
        &model,
        &[&a],
        &points,
        SinkDtype::BF16,
    );
    for (together, alone) in bits(&together).iter().zip(bits(&alone)) {
        assert_eq!(together[1], alone[0]);
    }
}

#[test]
fn a_library_that_changes_its_algorithms_changes_no_bits_of_a_job() {
    // In f32, where the order of a sum shows in its last bits; bf16 would round most of it away.
    let model = model(BF16);
    let point = HookPoint::parse("blocks.1.hook_resid_post", &dims(&model.config)).unwrap();
    let a = noise(20, 1);
    let fickle = |seed, gemm: Option<GemmRecord>| {
        let gpu = VirtualGpuOptions {
            fickle_gemm: Some(seed),
            ..gpu()
        };
        let options = CudaOptions {
            gemm,
            ..options(Dtype::F32)
        };
        open(&model, gpu, options)
    };
    let mut job = fickle(1, None);
    // The second batch fills a chunk of 128 rows, and the sample lies in the full one and in the rest.
    let b = noise(120, 2);
    let first = run(&mut job, &model, &[&a], &[point], SinkDtype::F32);
    let packed = run(&mut job, &model, &[&b, &a], &[point], SinkDtype::F32);
    assert_eq!(bits(&first)[0][0], bits(&packed)[0][1]);
    let mut resumed = fickle(2, Some(job.gemm_record()));
    let again = run(&mut resumed, &model, &[&a], &[point], SinkDtype::F32);
    assert_eq!(bits(&first), bits(&again));
    // The library is fickle indeed: without the record other bits come out.
    let others = (3..9).map(|seed| {
        run(
            &mut fickle(seed, None),
            &model,
            &[&a],
            &[point],
            SinkDtype::F32,
        )
    });
    assert!(others.into_iter().any(|other| bits(&other) != bits(&first)));
}

#[test]
fn a_job_of_another_library_is_not_gone_on_with() {
    let model = model(BF16);
    let record = open(&model, gpu(), options(Dtype::BF16)).gemm_record();
    let other = VirtualGpuOptions {
        fickle_gemm: Some(1),
        ..gpu()
    };
    let options = CudaOptions {
        gemm: Some(record),
        ..options(Dtype::BF16)
    };
    let error = Cuda::open(
        VirtualGpu::new(other),
        shape(&model.config),
        &model,
        options,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(
        error.contains("own") && error.contains("fickle 1.0"),
        "{error}"
    );
}

#[test]
fn a_device_that_is_too_small_says_what_would_fit() {
    let model = model(BF16);
    let small = VirtualGpuOptions {
        memory: 4 << 20,
        ..gpu()
    };
    let options = CudaOptions {
        rows: 1 << 16,
        positions: 1 << 16,
        ..options(Dtype::BF16)
    };
    let error = Cuda::open(
        VirtualGpu::new(small),
        shape(&model.config),
        &model,
        options,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(error.contains("--batch-tokens"), "{error}");
}

/// A job over a few samples of the bf16 model, and the stores that the two backends make of it.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn job(&self, taps: &[&str], edits: &[&str]) -> Prepared {
        let data = self.dir.path().join("data.jsonl");
        let line = |(i, n): (u32, usize)| format!("{{\"tokens\": {:?}}}\n", noise(n, i));
        let lines: String = (0..).zip([40, 1, 9]).map(line).collect();
        std::fs::write(&data, lines).unwrap();
        let model = common::fixtures().join("models").join(BF16);
        Prepared::open(Job {
            edits: edits.iter().map(|e| e.to_string()).collect(),
            batch_tokens: 48,
            ..Job::new(
                model.display().to_string(),
                vec![data.display().to_string()],
                taps.iter().map(|t| t.to_string()).collect(),
            )
        })
        .unwrap()
    }

    fn stores(&self, prepared: &Prepared) -> [PathBuf; 2] {
        let [cpu, cuda] = ["cpu", "cuda"].map(|name| self.dir.path().join(name));
        let on_cpu = extract(prepared, &cpu, &mut |_| ()).unwrap();
        let mut machine = open(&prepared.model, gpu(), options(Dtype::F32));
        let on_cuda = extract_on(prepared, &mut machine, &cuda, &mut |_| ()).unwrap();
        assert_eq!(on_cpu.receipts.len(), on_cuda.receipts.len());
        for (a, b) in on_cpu.receipts.iter().zip(&on_cuda.receipts) {
            let [a, b] = [a, b].map(|r| serde_json::to_value(r).unwrap());
            assert_eq!(a["rows"], b["rows"], "{a} {b}");
        }
        [cpu, cuda]
    }
}

fn assert_alike(stores: &[PathBuf; 2]) {
    let [cpu, cuda] = stores.each_ref().map(|dir| {
        assert!(verify(dir, &|_| ()).unwrap().ok());
        Store::open(dir).unwrap()
    });
    for (tap, info) in cpu.taps().iter().enumerate() {
        let (cpu_rows, cuda_rows) = (rows(&cpu, tap), rows(&cuda, tap));
        assert_eq!(cpu_rows.len(), cuda_rows.len(), "{}", info.folder);
        // A projection may nearly vanish where the row that is projected does not: errors are measured against the tap's rows together.
        let squares = cpu_rows
            .iter()
            .flat_map(|(_, x)| x)
            .map(|a| f64::from(*a).powi(2));
        let typical = (squares.sum::<f64>() / cpu_rows.len() as f64).sqrt();
        for ((at, x), (at_too, y)) in cpu_rows.iter().zip(&cuda_rows) {
            assert_eq!(at, at_too);
            let difference: f64 = x.iter().zip(y).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!(
                difference.sqrt() <= 1e-5 * typical,
                "{} {at:?}: {x:?} {y:?}",
                info.folder
            );
        }
    }
}

fn rows(store: &Store, tap: usize) -> Vec<((i64, i32), Vec<f32>)> {
    let reader = store.tap_at(tap);
    if reader.info().ragged {
        let samples = store.samples().map(|s| s.unwrap().sample);
        let finite = |v: f32| if v.is_finite() { v } else { 0.0 };
        return samples
            .filter_map(|s| {
                let values = reader.ragged(s, 0).unwrap()?.to_f32();
                Some(((s as i64, -1), values.into_iter().map(finite).collect()))
            })
            .collect();
    }
    let row = |i| reader.row(i).unwrap();
    (0..reader.rows())
        .map(|i| ((row(i).sample(), row(i).position()), row(i).to_f32()))
        .collect()
}

fn tensor(dir: &Path, name: &str, n: usize) -> String {
    let values: Vec<u8> = (0..n)
        .flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![n], &values);
    let path = dir.join(name);
    safetensors::serialize_to_file([("v", view.unwrap())], None, &path).unwrap();
    format!("{}#v", path.display())
}

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

#[test]
fn edits_do_what_they_do_on_the_cpu_backend() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let (whole, head) = (
        tensor(bench.dir.path(), "whole", 64),
        tensor(bench.dir.path(), "head", 64),
    );
    let edits = [
        format!("add at=blocks.0.hook_resid_post v={whole} c=1.5"),
        "scale at=blocks.0.attn.hook_v c=0.5 select=first".to_owned(),
        format!("project-out at=blocks.0.attn.hook_z v={head}"),
        format!("clamp at=blocks.1.hook_resid_mid v={whole} lo=-0.1 hi=0.2 select=-3..-1"),
        format!("mean at=blocks.1.attn.hook_q[1] v={head} select=last"),
        "zero at=blocks.1.hook_mlp_out select=every:4".to_owned(),
        "scale at=blocks.1.hook_resid_post c=2".to_owned(),
        "scale at=logits c=0.25 select=last".to_owned(),
    ];
    let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
    let taps = [
        "blocks.*.hook_resid_post",
        "blocks.0.attn.hook_z",
        "blocks.1.attn.hook_q",
        "blocks.1.hook_resid_mid@last",
        "logits@last",
    ];
    let edited = bench.job(&taps, &edits);
    assert_alike(&bench.stores(&edited));
}

#[test]
fn a_call_that_fails_ends_the_pass_with_its_error_and_the_next_batch_goes_well() {
    let model = model(BF16);
    let point = HookPoint::parse("blocks.1.hook_resid_post", &dims(&model.config)).unwrap();
    let tokens = noise(3, 1);
    let batch = Batch::pack([&tokens[..]]);
    let plan = Plan::new(&[common::tap(&point.to_string(), &model)]);
    let n_layers = model.config.n_layers;
    let run = |cuda: &mut Cuda<VirtualGpu>| {
        let mut memory = vec![0u8; 3 * 64 * 4];
        let spec = Arc::new(SinkSpec::plain());
        let sink = Sink::new(spec, vec![0, 1, 2], vec![3], &mut memory, None);
        let done = cuda.run(&batch, vec![sink], Vec::new(), n_layers, &plan);
        done.map(|_| memory).map_err(|e| e.to_string())
    };
    // Calls made until the first batch is done.
    let attempt = |fail_at| -> Result<u64, String> {
        let gpu = VirtualGpuOptions { fail_at, ..gpu() };
        let options = options(Dtype::BF16);
        let mut cuda = Cuda::open(VirtualGpu::new(gpu), shape(&model.config), &model, options)
            .map_err(|e| e.to_string())?;
        let first = run(&mut cuda);
        let calls = cuda.driver().calls();
        let again = run(&mut cuda).expect("only one call fails");
        assert_eq!(first?, again);
        Ok(calls)
    };
    let calls = attempt(None).unwrap();
    assert!(calls > 30);
    for call in 0..calls {
        let error = attempt(Some(call)).unwrap_err();
        assert!(
            error.contains(&format!("call {call} was made to fail")),
            "{error}"
        );
    }
}
