//! Single ops in bf16 and f16 beside Hugging Face's, fed the same input (`tests/fixtures/ops.safetensors`): the bits of norm, RoPE, SwiGLU and
//! add are its, but for one in a thousand that is one unit in the last place off; products and attention are as near as their gates say.

use half::{bf16, f16};
use safetensors::SafeTensors;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::add::{Add, AddArgs};
use streamgauge::backend::cuda::kernels::gemm::{Gemm, GemmArgs};
use streamgauge::backend::cuda::kernels::rms_norm::{RmsNorm, RmsNormArgs};
use streamgauge::backend::cuda::kernels::rope::{Rope, RopeArgs};
use streamgauge::backend::cuda::kernels::swiglu::{Swiglu, SwigluArgs};

use crate::attention::{PADDING, Problem, Shape, attend};
use crate::harness::{
    Element, assert_op_by_op, assert_op_by_op_within, assert_relative_l2, on_every_schedule, wide,
};

/// Compiled in: these tests are carried to machines that have nothing else of the project.
const OPS: &[u8] = include_bytes!("../fixtures/ops.safetensors");

fn tensor<T: Element>(op: &str, name: &str) -> Vec<T> {
    let tensors = SafeTensors::deserialize(OPS).unwrap();
    let dtype = T::DTYPE.word();
    let tensor = tensors.tensor(&format!("{dtype}/{op}/{name}")).unwrap();
    bytemuck::pod_collect_to_vec(tensor.data())
}

fn norm<T: Element>() {
    let [x, gain, want] = ["x", "gain", "out"].map(|name| tensor::<T>("norm", name));
    let (rows, width) = (16, 256);
    let got = on_every_schedule(|gpu| {
        let (x, gain) = (gpu.input(&x), gpu.input(&gain));
        let out = gpu.output::<T>(rows * width);
        let kernel = RmsNorm {
            dtype: T::DTYPE,
            f32_resid: false,
        };
        gpu.launch(
            &kernel,
            &RmsNormArgs {
                x: x.ptr(),
                y: DevicePtr::NULL,
                gain: gain.ptr(),
                resid_out: DevicePtr::NULL,
                scale: DevicePtr::NULL,
                normalized: DevicePtr::NULL,
                out: out.ptr(),
                x_stride: width as u64,
                y_stride: 0,
                resid_stride: width as u64,
                normalized_stride: width as u64,
                out_stride: width as u64,
                rows: rows as u32,
                width: width as u32,
                eps: 1e-5,
                _pad: 0,
            },
        );
        gpu.read(&out)
    });
    // The normalised row is rounded, and then what the gain, some of it above 1, makes of it.
    assert_op_by_op_within("norm", &got, &want, 2);
}

fn add<T: Element>() {
    let [a, b, want] = ["a", "b", "out"].map(|name| tensor::<T>("add", name));
    let (rows, width) = (16, 256);
    let got = on_every_schedule(|gpu| {
        let (a, b) = (gpu.input(&a), gpu.input(&b));
        let out = gpu.output::<T>(rows * width);
        let kernel = Add {
            dtype: T::DTYPE,
            f32_resid: false,
        };
        gpu.launch(
            &kernel,
            &AddArgs {
                a: a.ptr(),
                b: b.ptr(),
                out: out.ptr(),
                a_stride: width as u64,
                b_stride: width as u64,
                out_stride: width as u64,
                rows: rows as u32,
                width: width as u32,
            },
        );
        gpu.read(&out)
    });
    assert_op_by_op("add", &got, &want);
}

fn rope<T: Element>() {
    let [q, want] = ["q", "out"].map(|name| tensor::<T>("rope", name));
    let (rows, heads, head_dim) = (40, 2, 64);
    let positions: Vec<u32> = (0..rows as u32).collect();
    let frequency = |i: usize| 1.0 / 10_000f32.powf((2 * i) as f32 / head_dim as f32);
    let angles =
        (positions.iter()).flat_map(|&p| (0..head_dim / 2).map(move |i| p as f32 * frequency(i)));
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
    let width = (heads * head_dim) as u64;
    let got = on_every_schedule(|gpu| {
        let (q, positions) = (gpu.input(&q), gpu.input(&positions));
        let (cos, sin) = (gpu.input(&cos), gpu.input(&sin));
        let out = gpu.output::<T>(rows * heads * head_dim);
        gpu.launch(
            &Rope { dtype: T::DTYPE },
            &RopeArgs {
                q: q.ptr(),
                k: DevicePtr::NULL,
                q_out: out.ptr(),
                k_out: DevicePtr::NULL,
                positions: positions.ptr(),
                cos: cos.ptr(),
                sin: sin.ptr(),
                q_stride: width,
                k_stride: 0,
                q_out_stride: width,
                k_out_stride: 0,
                rows: rows as u32,
                q_heads: heads as u32,
                k_heads: 0,
                head_dim: head_dim as u32,
            },
        );
        gpu.read(&out)
    });
    assert_op_by_op("RoPE", &got, &want);
}

fn swiglu<T: Element>() {
    let [gate, up, want] = ["gate", "up", "out"].map(|name| tensor::<T>("swiglu", name));
    let (rows, width) = (16, 112);
    let got = on_every_schedule(|gpu| {
        let (gate, up) = (gpu.input(&gate), gpu.input(&up));
        let out = gpu.output::<T>(rows * width);
        gpu.launch(
            &Swiglu { dtype: T::DTYPE },
            &SwigluArgs {
                gate: gate.ptr(),
                up: up.ptr(),
                out: out.ptr(),
                gate_stride: width as u64,
                up_stride: width as u64,
                out_stride: width as u64,
                rows: rows as u32,
                width: width as u32,
            },
        );
        gpu.read(&out)
    });
    assert_op_by_op("SwiGLU", &got, &want);
}

fn product<T: Element>() {
    let [x, weight, want] = ["x", "weight", "out"].map(|name| tensor::<T>("gemm", name));
    let (m, n, k) = (24, 64, 128);
    let got = on_every_schedule(|gpu| {
        let (x, weight) = (gpu.input(&x), gpu.input(&weight));
        let out = gpu.output::<T>(m * n);
        gpu.launch(
            &Gemm::new(T::DTYPE, T::DTYPE, m as u32, n as u32),
            &GemmArgs {
                x: x.ptr(),
                weight: weight.ptr(),
                out: out.ptr(),
                x_batch_stride: 0,
                weight_batch_stride: 0,
                out_batch_stride: 0,
                m: m as u32,
                n: n as u32,
                k: k as u32,
                batch: 1,
                x_stride: k as u32,
                weight_stride: k as u32,
                out_stride: n as u32,
                _pad: 0,
            },
        );
        gpu.read(&out)
    });
    assert_relative_l2("product", &got, &wide(&want), 3e-3);
}

fn attention<T: Element>() {
    let [q, k, v, want] = ["q", "k", "v", "out"].map(|name| tensor::<T>("attention", name));
    let (rows, group, kv_heads, head_dim) = (40, 2, 2, 64);
    let (q_width, kv_width) = (group * kv_heads * head_dim, kv_heads * head_dim);
    let parts =
        (q.chunks_exact(q_width).zip(k.chunks_exact(kv_width))).zip(v.chunks_exact(kv_width));
    let qkv = parts
        .flat_map(|((q, k), v)| [q, k, v, &[T::round(f64::NAN); PADDING][..]].concat())
        .collect();
    let problem = Problem {
        shape: Shape::new(&[rows], group, kv_heads, None),
        head_dim,
        stride: q_width + 2 * kv_width + PADDING,
        qkv,
    };
    let (z, _) = attend(&problem, false);
    assert_relative_l2("z", &z, &wide(&want), 5e-3);
}

macro_rules! in_both_dtypes {
    ($($test:ident: $op:ident;)*) => {
        $(#[test] fn $test() { $op::<bf16>(); $op::<f16>(); })*
    };
}

in_both_dtypes! {
    a_norm_has_the_bits_of_hugging_faces: norm;
    a_residual_add_has_the_bits_of_hugging_faces: add;
    rope_has_the_bits_of_hugging_faces: rope;
    swiglu_has_the_bits_of_hugging_faces: swiglu;
    products_are_within_3_in_1000_of_hugging_faces: product;
    attention_is_within_5_in_1000_of_hugging_faces_sdpa: attention;
}
