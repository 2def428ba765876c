use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::swiglu::{Swiglu, SwigluArgs};

use crate::harness::{Element, assert_op_by_op, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_near, assert_same_bits};

/// Gate and up are the halves of a packed row. Returns post with the `up` given and with 1 for it.
fn run<T: Element>(gate: &[T], up: &[T], rows: usize, gap: usize) -> (Vec<T>, Vec<T>) {
    let width = gate.len() / rows;
    let packed: Vec<T> = (gate.chunks_exact(width).zip(up.chunks_exact(width)))
        .flat_map(|(gate, up)| gate.iter().chain(up).copied())
        .collect();
    let at = Layout::with_gaps(rows, width, gap);
    on_every_schedule(|gpu| {
        let packed = gpu.input(&packed);
        let ones = gpu.input(&vec![T::round(1.0); width]);
        let outs = [(); 2].map(|()| gpu.canvas::<T>(at.len()));
        for (out, given) in outs.iter().zip([true, false]) {
            for row in 0..if given { 1 } else { rows } {
                // The row of ones is one row for all: it is launched for each row.
                let launched = if given { rows } else { 1 };
                gpu.launch(
                    &Swiglu { dtype: T::DTYPE },
                    &SwigluArgs {
                        gate: packed.at(row * 2 * width),
                        up: if given { packed.at(width) } else { ones.ptr() },
                        out: out.at(at.offset + row * at.stride),
                        gate_stride: 2 * width as u64,
                        up_stride: 2 * width as u64,
                        out_stride: at.stride as u64,
                        rows: launched as u32,
                        width: width as u32,
                    },
                );
            }
        }
        let [post, silu] = outs;
        (at.take(&gpu.read(&post)), at.take(&gpu.read(&silu)))
    })
}

fn silu(g: f64) -> f64 {
    g / (1.0 + (-g).exp())
}

fn check<T: Element>(gate: &[T], up: &[T], rows: usize, gap: usize) {
    let (post, gated) = run(gate, up, rows, gap);
    if size_of::<T>() == 4 {
        let want: Vec<f64> = gate.iter().map(|g| silu(g.wide())).collect();
        assert_near("silu", &gated, &want, 5e-7, 1e-36);
    } else {
        let want: Vec<T> = gate.iter().map(|g| T::round(silu(g.wide()))).collect();
        assert_op_by_op("silu", &gated, &want);
    }
    // From the kernel's own rounded silu on, the product has one right answer.
    let want: Vec<T> = (gated.iter().zip(up))
        .map(|(s, u)| T::round(s.wide() * u.wide()))
        .collect();
    assert_same_bits("post", &post, &want);
}

fn check_normal<T: Element>(rows: usize, width: usize, gap: usize, seed: u64) {
    let gate = normal::<T>(rows * width, seed, 3.0);
    check(&gate, &normal(rows * width, seed ^ 1, 2.0), rows, gap);
}

proptest! {
    #![proptest_config(cases(3))]
    #[test]
    fn post_is_silu_of_the_gate_times_up(
        rows in 1usize..4, eighths in 1usize..300, gap in (0usize..3).prop_map(|g| g * 8), seed: u64,
    ) {
        check_normal::<bf16>(rows, eighths * 8, gap, seed);
        check_normal::<f16>(rows, eighths * 8, gap, seed);
        check_normal::<f32>(rows, eighths * 8, gap, seed);
    }
}

#[test]
fn extreme_gates_neither_overflow_nor_vanish_early() {
    let gates = [
        0.0, -0.0, 1e-30, -1e-30, 11.0, -11.0, 60_000.0, -60_000.0, 80.0, -80.0, -86.5, -87.5,
        -88.0, -88.5, 88.5, -104.0,
    ];
    fn as_type<T: Element>(gates: &[f64]) {
        let gate: Vec<T> = gates.iter().map(|&g| T::round(g)).collect();
        check(&gate, &vec![T::round(1.0); gate.len()], 1, 0);
    }
    as_type::<bf16>(&gates);
    as_type::<f16>(&gates);
    as_type::<f32>(&gates);
}
