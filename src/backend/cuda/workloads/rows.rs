//! Ops that go row by row over the batch: embed, add, norm, RoPE, SwiGLU.

use super::{Build, Cost, Memory, Shapes, Workload, by, product};
use crate::backend::cuda::kernels::add::{Add, AddArgs};
use crate::backend::cuda::kernels::embed::{Embed, EmbedArgs};
use crate::backend::cuda::kernels::rms_norm::{RmsNorm, RmsNormArgs};
use crate::backend::cuda::kernels::rope::{Rope, RopeArgs};
use crate::backend::cuda::kernels::swiglu::{Swiglu, SwigluArgs};
use crate::backend::cuda::launch::{DevicePtr, Dtype, LaunchError};

pub(super) fn add(builds: &mut Vec<Build>) {
    for (dtype, f32_resid) in [
        (Dtype::BF16, false),
        (Dtype::F16, false),
        (Dtype::F32, false),
        (Dtype::BF16, true),
        (Dtype::F16, true),
    ] {
        builds.push(Box::new(move |s, m| {
            embed(Embed { dtype, f32_resid }, s, m)
        }));
        builds.push(Box::new(move |s, m| {
            residual_add(Add { dtype, f32_resid }, s, m)
        }));
        builds.push(Box::new(move |s, m| {
            norm(RmsNorm { dtype, f32_resid }, s, m)
        }));
    }
    for dtype in Dtype::ALL {
        builds.push(Box::new(move |s, m| rope(Rope { dtype }, s, m)));
        builds.push(Box::new(move |s, m| swiglu(Swiglu { dtype }, s, m)));
    }
}

fn resid(dtype: Dtype, f32_resid: bool) -> Dtype {
    if f32_resid { Dtype::F32 } else { dtype }
}

fn embed(kernel: Embed, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let resid = resid(kernel.dtype, kernel.f32_resid);
    let (element, out) = (kernel.dtype.bytes(), resid.bytes() as u64);
    let elements = product(s.tokens, s.d);
    // Spread over the vocabulary, none twice if there are enough.
    let tokens: Vec<u32> = (0..s.tokens).map(|i| i * 7919 % s.vocab).collect();
    let args = EmbedArgs {
        table: memory.noise(kernel.dtype, product(s.vocab, s.d))?,
        tokens: memory.table(&tokens)?,
        out: memory.output(elements * out)?,
        out_stride: s.d.into(),
        rows: s.tokens,
        width: s.d,
    };
    let cost = Cost::bytes(elements * (element as u64 + out));
    Workload::new(by(s.tokens, s.d), &kernel, &args, cost)
}

fn residual_add(kernel: Add, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let resid = resid(kernel.dtype, kernel.f32_resid);
    let elements = product(s.tokens, s.d);
    let args = AddArgs {
        a: memory.noise(resid, elements)?,
        b: memory.noise(kernel.dtype, elements)?,
        out: memory.output(elements * resid.bytes() as u64)?,
        a_stride: s.d.into(),
        b_stride: s.d.into(),
        out_stride: s.d.into(),
        rows: s.tokens,
        width: s.d,
    };
    let cost = Cost::bytes(elements * (2 * resid.bytes() + kernel.dtype.bytes()) as u64);
    Workload::new(by(s.tokens, s.d), &kernel, &args, cost)
}

fn norm(kernel: RmsNorm, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let resid = resid(kernel.dtype, kernel.f32_resid);
    let elements = product(s.tokens, s.d);
    let args = RmsNormArgs {
        x: memory.noise(resid, elements)?,
        y: memory.noise(kernel.dtype, elements)?,
        gain: memory.noise(kernel.dtype, s.d.into())?,
        resid_out: memory.output(elements * resid.bytes() as u64)?,
        scale: DevicePtr::NULL,
        normalized: DevicePtr::NULL,
        out: memory.output(elements * kernel.dtype.bytes() as u64)?,
        x_stride: s.d.into(),
        y_stride: s.d.into(),
        resid_stride: s.d.into(),
        normalized_stride: s.d.into(),
        out_stride: s.d.into(),
        rows: s.tokens,
        width: s.d,
        eps: 1e-5,
        _pad: 0,
    };
    let cost = Cost::bytes(elements * 2 * (resid.bytes() + kernel.dtype.bytes()) as u64);
    let what = format!("residual add and norm, {}", by(s.tokens, s.d));
    Workload::new(what, &kernel, &args, cost)
}

fn rope(kernel: Rope, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let head_dim = s.d / s.heads;
    let (q_width, kv_width) = (s.heads * head_dim, s.kv_heads * head_dim);
    let stride = q_width + 2 * kv_width;
    let qkv = memory.noise(kernel.dtype, product(s.tokens, stride))?;
    let k = qkv.offset(q_width as usize * kernel.dtype.bytes());
    let positions: Vec<u32> = (0..s.tokens).map(|i| i % s.sample).collect();
    let tables = product(s.sample, head_dim / 2);
    let args = RopeArgs {
        q: qkv,
        k,
        q_out: qkv,
        k_out: k,
        positions: memory.table(&positions)?,
        cos: memory.noise(Dtype::F32, tables)?,
        sin: memory.noise(Dtype::F32, tables)?,
        q_stride: stride.into(),
        k_stride: stride.into(),
        q_out_stride: stride.into(),
        k_out_stride: stride.into(),
        rows: s.tokens,
        q_heads: s.heads,
        k_heads: s.kv_heads,
        head_dim,
    };
    let cost = Cost::bytes(2 * product(s.tokens, q_width + kv_width) * kernel.dtype.bytes() as u64);
    let what = format!("q and k in place, {}", by(s.tokens, q_width + kv_width));
    Workload::new(what, &kernel, &args, cost)
}

fn swiglu(kernel: Swiglu, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let gate = memory.noise(kernel.dtype, product(s.tokens, 2 * s.f))?;
    let bytes = product(s.tokens, s.f) * kernel.dtype.bytes() as u64;
    let args = SwigluArgs {
        gate,
        up: gate.offset(s.f as usize * kernel.dtype.bytes()),
        out: memory.output(bytes)?,
        gate_stride: (2 * s.f).into(),
        up_stride: (2 * s.f).into(),
        out_stride: s.f.into(),
        rows: s.tokens,
        width: s.f,
    };
    Workload::new(by(s.tokens, s.f), &kernel, &args, Cost::bytes(3 * bytes))
}
