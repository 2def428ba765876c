//! `kernels/gate_up.cu` against the product and the activation that it fuses, and against float64. On a GPU, too, which must be one
//! of compute capability 9.0; elsewhere the tests say so and pass.

use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::LaunchError;
use streamgauge::backend::cuda::kernels::gate_up::{GateUp, GateUpCall};
use streamgauge::backend::cuda::kernels::gemm::{Gemm, GemmArgs};
use streamgauge::backend::cuda::kernels::swiglu::{Swiglu, SwigluArgs};

use crate::harness::{Element, assert_relative_l2, cases, normal, on_every_schedule_of_sm_90a};
use crate::layout::{Layout, assert_same_bits};

#[derive(Debug, Clone, Copy)]
struct Shape {
    m: usize,
    f: usize,
    k: usize,
    /// Elements between the rows of x and of out.
    gap: usize,
    blocks: u32,
}

/// x and weight.
struct Operands<T> {
    x: Vec<T>,
    weight: Vec<T>,
}

impl<T: Element> Operands<T> {
    /// Sums of a few units, so that the activation is neither 0 nor its input.
    fn noise(of: Shape, seed: u64) -> Operands<T> {
        let scale = 1.5 / (of.k as f64).sqrt();
        Operands {
            x: normal(of.m * of.k, seed, 1.0),
            weight: normal(2 * of.f * of.k, seed ^ 1, scale),
        }
    }
}

/// By the fused kernel, and by the two that it stands for; None on a GPU that cannot run it.
fn run<T: Element>(of: Shape, operands: &Operands<T>) -> Option<[Vec<T>; 2]> {
    let Shape { m, f, k, .. } = of;
    let (x_rows, out_rows) = (
        Layout::with_gaps(m, k, of.gap),
        Layout::with_gaps(m, f, of.gap),
    );
    on_every_schedule_of_sm_90a(|gpu| {
        let x = gpu.input(&x_rows.lay(&operands.x));
        let weight = gpu.input(&operands.weight);
        let fused = gpu.canvas::<T>(out_rows.len());
        let kernel = GateUp {
            dtype: T::DTYPE,
            blocks: of.blocks,
        };
        let call = GateUpCall {
            x: x.at(x_rows.offset),
            weight: weight.ptr(),
            out: fused.at(out_rows.offset),
            x_stride: x_rows.stride as u32,
            out_stride: out_rows.stride as u32,
            m: m as u32,
            f: f as u32,
            k: k as u32,
        };
        let args = match kernel.args(gpu.launcher(), &call) {
            Err(LaunchError::NotOnThisGpu { capability, .. }) if !gpu.watches() => {
                eprintln!("not run: compute capability {capability}");
                return None;
            }
            args => args.unwrap_or_else(|e| panic!("{e}")),
        };
        gpu.launch(&kernel, &args);
        let (packed, plain) = (gpu.output::<T>(m * 2 * f), gpu.output::<T>(m * f));
        gpu.launch(
            &Gemm::new(T::DTYPE, T::DTYPE, m as u32, 2 * f as u32),
            &GemmArgs {
                x: call.x,
                weight: weight.ptr(),
                out: packed.ptr(),
                x_batch_stride: 0,
                weight_batch_stride: 0,
                out_batch_stride: 0,
                m: m as u32,
                n: 2 * f as u32,
                k: k as u32,
                batch: 1,
                x_stride: call.x_stride,
                weight_stride: k as u32,
                out_stride: 2 * f as u32,
                _pad: 0,
            },
        );
        gpu.launch(
            &Swiglu { dtype: T::DTYPE },
            &SwigluArgs {
                gate: packed.ptr(),
                up: packed.at(f),
                out: plain.ptr(),
                gate_stride: 2 * f as u64,
                up_stride: 2 * f as u64,
                out_stride: f as u64,
                rows: m as u32,
                width: f as u32,
            },
        );
        let fused = out_rows.take(&gpu.read(&fused));
        Some(([fused, gpu.read(&plain)], gpu.watches()))
    })
    .map(|(both, interpreted)| {
        // The interpreter sums 16 products at a time in one way, whichever instruction asks; what a tensor core does in the one and
        // in the other need not agree to the last bit of the sum.
        let [fused, plain] = &both;
        if interpreted {
            assert_same_bits("fused and plain", fused, plain);
        } else {
            let wide = |values: &[T]| values.iter().map(|v| v.wide()).collect::<Vec<f64>>();
            assert_relative_l2("fused and plain", fused, &wide(plain), 3e-3);
        }
        both
    })
}

/// The same in float64, from the same operands.
fn wanted<T: Element>(of: Shape, operands: &Operands<T>) -> Vec<f64> {
    let sum = |r: usize, n: usize| -> f64 {
        let (x, w) = (
            &operands.x[r * of.k..][..of.k],
            &operands.weight[n * of.k..][..of.k],
        );
        x.iter().zip(w).map(|(x, w)| x.wide() * w.wide()).sum()
    };
    let element = |i: usize| {
        let (gate, up) = (sum(i / of.f, i % of.f), sum(i / of.f, of.f + i % of.f));
        gate / (1.0 + (-gate).exp()) * up
    };
    (0..of.m * of.f).map(element).collect()
}

fn check<T: Element>(of: Shape, seed: u64) {
    let operands = Operands::<T>::noise(of, seed);
    let Some([fused, _]) = run(of, &operands) else {
        return;
    };
    assert_relative_l2("silu(gate) · up", &fused, &wanted(of, &operands), 1.5e-2);
}

proptest! {
    #![proptest_config(cases(2))]
    #[test]
    fn any_tails_of_rows_and_columns_give_what_two_kernels_give(
        m in 1usize..150, f in 1usize..20, k in 1usize..20, gap in (0usize..2).prop_map(|g| g * 8), blocks in 1u32..3, seed: u64,
    ) {
        let of = Shape { m, f: f * 8, k: k * 8, gap, blocks };
        check::<bf16>(of, seed);
        check::<f16>(of, seed);
    }
}

#[test]
fn the_ring_turns_several_times_and_blocks_go_through_several_tiles() {
    // K of six stages where the ring has four; 2 × 2 tiles for one block.
    let of = Shape {
        m: 130,
        f: 136,
        k: 384,
        gap: 0,
        blocks: 1,
    };
    check::<bf16>(of, 7);
}

#[test]
fn a_row_has_the_same_bits_in_any_company_and_from_any_number_of_blocks() {
    let whole = Shape {
        m: 140,
        f: 144,
        k: 72,
        gap: 0,
        blocks: 2,
    };
    let operands = Operands::<bf16>::noise(whole, 3);
    let Some([all, _]) = run(whole, &operands) else {
        return;
    };
    let one = Operands {
        x: operands.x[133 * whole.k..134 * whole.k].to_vec(),
        weight: operands.weight,
    };
    let alone = Shape {
        m: 1,
        gap: 8,
        blocks: 132,
        ..whole
    };
    let [row, _] = run(alone, &one).expect("it ran before");
    assert_same_bits("row 133", &row, &all[133 * whole.f..134 * whole.f]);
}
