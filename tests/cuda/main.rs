//! The CUDA backend without a GPU: whole passes on the interpreter's device, against float64 Hugging Face, against the CPU backend,
//! and against itself.

#[path = "../common/mod.rs"]
mod common;

mod edits;
mod failures;
mod fidelity;
mod fused_swiglu;
mod generate;
mod invariance;
mod jobs;
mod leaks;
mod score;
mod statistics;
mod taps;

use std::sync::Arc;

use half::{bf16, f16};
use ptx_interpreter::Schedule;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{StreamOrder, VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Sink, SinkDtype, SinkSpec};
use streamgauge::engine::{Plan, dims, forward, shape};
use streamgauge::hooks::{HookPoint, Tap};
use streamgauge::model::Model;

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
        sequences: 4,
        means: 8,
        ring_bytes: Some(2 << 20),
        gemm_chunk: 128,
        gemm: None,
        fused_swiglu: false,
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
        SinkDtype::F8E4M3 | SinkDtype::Int8 => {
            unreachable!("no test of whole activations stores 8 bits")
        }
    }
}

fn noise(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|t| (t * 31 + seed * 17 + 3) % 160)
        .collect()
}

fn bits(values: &[Vec<Vec<f32>>]) -> Vec<Vec<Vec<u32>>> {
    let of = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect();
    values.iter().map(|p| p.iter().map(of).collect()).collect()
}
