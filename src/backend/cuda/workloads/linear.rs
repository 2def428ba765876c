//! Matrix products.

use bytemuck::Zeroable;

use super::{Build, Cost, Memory, Shapes, Units, Workload, product};
use crate::backend::cuda::kernels::gate_up::{GateUp, GateUpCall};
use crate::backend::cuda::kernels::gemm::{Gemm, GemmArgs};
use crate::backend::cuda::launch::{Dtype, LaunchError};

pub(super) fn add(builds: &mut Vec<Build>) {
    let mut add = |what: &'static str, input, output, sizes: fn(&Shapes) -> [u32; 3]| {
        builds.push(Box::new(move |shapes, memory| {
            gemm(what, input, output, sizes(shapes), memory)
        }));
    };
    let bf16 = Dtype::BF16;
    add("q, k and v", bf16, bf16, |s| [s.tokens, s.d + s.d / 2, s.d]);
    add("output projection", bf16, bf16, |s| [s.tokens, s.d, s.d]);
    add("down projection", bf16, bf16, |s| [s.tokens, s.d, s.f]);
    for dtype in Dtype::ALL {
        add("gate and up", dtype, dtype, |s| [s.tokens, 2 * s.f, s.d]);
    }
    for dtype in [Dtype::BF16, Dtype::F16] {
        add("logits", dtype, Dtype::F32, |s| {
            [s.logit_rows.max(65), s.vocab, s.d]
        });
        add("decode: gate and up", dtype, dtype, |s| {
            [s.sequences, 2 * s.f, s.d]
        });
        add("decode: logits", dtype, Dtype::F32, |s| {
            [s.sequences, s.vocab, s.d]
        });
    }
    for dtype in [Dtype::BF16, Dtype::F16] {
        builds.push(Box::new(move |shapes, memory| {
            gate_up(dtype, [shapes.tokens, shapes.f, shapes.d], memory)
        }));
    }
}

fn gemm(
    what: &str,
    input: Dtype,
    output: Dtype,
    [m, n, k]: [u32; 3],
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let (x, weight, out) = (product(m, k), product(n, k), product(m, n));
    let args = GemmArgs {
        x: memory.noise(input, x)?,
        weight: memory.noise(input, weight)?,
        out: memory.output(out * output.bytes() as u64)?,
        m,
        n,
        k,
        batch: 1,
        x_stride: k,
        weight_stride: k,
        out_stride: n,
        ..GemmArgs::zeroed()
    };
    let cost = Cost {
        bytes: (x + weight) * input.bytes() as u64 + out * output.bytes() as u64,
        flops: 2 * out * u64::from(k),
        units: match input {
            Dtype::F32 => Units::Fp32,
            _ => Units::TensorCores,
        },
    };
    let what = format!("{what}, {m}×{n}×{k}");
    Workload::new(what, &Gemm::new(input, output, m, n), &args, cost)
}

fn gate_up(
    dtype: Dtype,
    [m, f, k]: [u32; 3],
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let (x, weight, out) = (product(m, k), product(2 * f, k), product(m, f));
    let call = GateUpCall {
        x: memory.noise(dtype, x)?,
        weight: memory.noise(dtype, weight)?,
        out: memory.output(out * dtype.bytes() as u64)?,
        x_stride: k,
        out_stride: f,
        m,
        f,
        k,
    };
    let kernel = GateUp::new(dtype);
    let args = kernel.args(&mut *memory.on, &call)?;
    let cost = Cost {
        bytes: (x + weight + out) * dtype.bytes() as u64,
        flops: 4 * out * u64::from(k),
        units: Units::TensorCores,
    };
    let what = format!("gate, up and SwiGLU, {m}×{f}×{k}");
    Workload::new(what, &kernel, &args, cost)
}
