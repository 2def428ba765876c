use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::add::{Add, AddArgs};

use crate::harness::{Element, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_same_bits};

fn check<R: Element, C: Element>(rows: usize, width: usize, gap: usize, in_place: bool) {
    let (at_a, at_b) = (
        Layout::with_gaps(rows, width, gap),
        Layout::with_gaps(rows, width, 8),
    );
    let a: Vec<R> = normal(rows * width, 1, 30.0);
    let b: Vec<C> = normal(rows * width, 2, 1.0);
    let want: Vec<R> = a
        .iter()
        .zip(&b)
        .map(|(a, b)| R::round(a.wide() + b.wide()))
        .collect();
    let got = on_every_schedule(|gpu| {
        let b = gpu.input(&at_b.lay(&b));
        let (a, out) = if in_place {
            let a = gpu.in_place(&at_a.lay(&a));
            (a.at(at_a.offset), a)
        } else {
            let a = gpu.input(&at_a.lay(&a));
            (a.at(at_a.offset), gpu.canvas::<R>(at_a.len()))
        };
        let add = Add {
            dtype: C::DTYPE,
            f32_resid: R::DTYPE != C::DTYPE,
        };
        gpu.launch(
            &add,
            &AddArgs {
                a,
                b: b.at(at_b.offset),
                out: out.at(at_a.offset),
                a_stride: at_a.stride as u64,
                b_stride: at_b.stride as u64,
                out_stride: at_a.stride as u64,
                rows: rows as u32,
                width: width as u32,
            },
        );
        gpu.read(&out)
    });
    assert_same_bits("sum", &at_a.take(&got), &want);
}

proptest! {
    #![proptest_config(cases(3))]
    #[test]
    fn a_sum_is_rounded_once(rows in 1usize..5, eighths in 1usize..300, gap in (0usize..3).prop_map(|g| g * 8), in_place: bool) {
        check::<bf16, bf16>(rows, eighths * 8, gap, in_place);
        check::<f16, f16>(rows, eighths * 8, gap, in_place);
        check::<f32, f32>(rows, eighths * 8, gap, in_place);
        check::<f32, bf16>(rows, eighths * 8, gap, in_place);
        check::<f32, f16>(rows, eighths * 8, gap, in_place);
    }
}
