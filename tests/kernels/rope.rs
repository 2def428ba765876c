use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::rope::{Rope, RopeArgs};

use crate::harness::{Element, Random, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_same_bits, rounded};

const POSITIONS: usize = 9;

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    q_heads: usize,
    k_heads: usize,
    head_dim: usize,
    in_place: bool,
    seed: u64,
}

/// cos and sin `[POSITIONS, head_dim / 2]`, as the engine makes them.
fn tables(head_dim: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let angle = |i: usize| {
        let frequency = 10_000f32.powf(-((i % half) as f32) / half as f32);
        (i / half) as f32 * 37.0 * frequency
    };
    let angles = (0..POSITIONS * half).map(angle);
    (
        angles.clone().map(f32::cos).collect(),
        angles.map(f32::sin).collect(),
    )
}

/// Each product and the sum rounded. f64 holds products of two elements, so that each is rounded once.
fn rotated<T: Element>(x: &[T], positions: &[u32], heads: usize, head_dim: usize) -> Vec<T> {
    let (cos, sin) = tables(head_dim);
    let half = head_dim / 2;
    let mut out = x.to_vec();
    for (i, out) in out.iter_mut().enumerate() {
        let (row, in_head) = (i / (heads * head_dim), i % head_dim);
        let angle = positions[row] as usize * half + in_head % half;
        let cos = rounded::<T>(cos[angle].into());
        let sin = rounded::<T>(sin[angle].into());
        let partner = if in_head < half {
            -x[i + half].wide()
        } else {
            x[i - half].wide()
        };
        *out = T::round(rounded::<T>(x[i].wide() * cos) + rounded::<T>(partner * sin));
    }
    out
}

fn check<T: Element>(case: Case) {
    let Case {
        rows,
        q_heads,
        k_heads,
        head_dim,
        ..
    } = case;
    let (q_width, k_width) = (q_heads * head_dim, k_heads * head_dim);
    let qkv_width = q_width + 2 * k_width;
    let qkv: Vec<T> = normal(rows * qkv_width, case.seed, 2.0);
    let mut random = Random(case.seed);
    let positions: Vec<u32> = (0..rows).map(|_| random.below(POSITIONS) as u32).collect();
    let columns = |first: usize, width: usize| -> Vec<T> {
        (qkv.chunks_exact(qkv_width))
            .flat_map(|row| &row[first..first + width])
            .copied()
            .collect()
    };
    let (q, k) = (columns(0, q_width), columns(q_width, k_width));
    let (cos, sin) = tables(head_dim);
    let (at_q, at_k) = (
        Layout::with_gaps(rows, q_width, 16),
        Layout::with_gaps(rows, k_width, 8),
    );

    let (got_qkv, got_q, got_k) = on_every_schedule(|gpu| {
        let qkv = gpu.in_place(&qkv);
        let positions = gpu.input(&positions);
        let (cos, sin) = (gpu.input(&cos), gpu.input(&sin));
        let (q_out, k_out) = (gpu.canvas::<T>(at_q.len()), gpu.canvas::<T>(at_k.len()));
        let mut args = RopeArgs {
            q: qkv.ptr(),
            k: qkv.at(q_width),
            q_out: q_out.at(at_q.offset),
            k_out: k_out.at(at_k.offset),
            positions: positions.ptr(),
            cos: cos.ptr(),
            sin: sin.ptr(),
            q_stride: qkv_width as u64,
            k_stride: qkv_width as u64,
            q_out_stride: at_q.stride as u64,
            k_out_stride: at_k.stride as u64,
            rows: rows as u32,
            q_heads: q_heads as u32,
            k_heads: k_heads as u32,
            head_dim: head_dim as u32,
        };
        if case.in_place {
            (args.q_out, args.k_out) = (args.q, args.k);
            (args.q_out_stride, args.k_out_stride) = (args.q_stride, args.k_stride);
        }
        gpu.launch(&Rope { dtype: T::DTYPE }, &args);
        (gpu.read(&qkv), gpu.read(&q_out), gpu.read(&k_out))
    });

    let (want_q, want_k) = (
        rotated(&q, &positions, q_heads.max(1), head_dim),
        rotated(&k, &positions, k_heads.max(1), head_dim),
    );
    let what = format!("{case:?}");
    if case.in_place {
        let mut want = qkv.clone();
        for (r, row) in want.chunks_exact_mut(qkv_width).enumerate() {
            row[..q_width].copy_from_slice(&want_q[r * q_width..][..q_width]);
            row[q_width..q_width + k_width].copy_from_slice(&want_k[r * k_width..][..k_width]);
        }
        assert_same_bits(&what, &got_qkv, &want);
    } else {
        assert_same_bits(&what, &got_qkv, &qkv);
        assert_same_bits(&what, &at_q.take(&got_q), &want_q);
        assert_same_bits(&what, &at_k.take(&got_k), &want_k);
    }
}

fn check_all(case: Case) {
    check::<bf16>(case);
    check::<f16>(case);
    check::<f32>(case);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn queries_and_keys_are_rotated_by_their_position(
        rows in 1usize..5, k_heads in 1usize..4, group in 1usize..9,
        head_dim in prop::sample::select(vec![16, 64, 80, 96, 128]), in_place: bool, seed: u64,
    ) {
        check_all(Case { rows, q_heads: k_heads * group, k_heads, head_dim, in_place, seed });
    }
}

#[test]
fn queries_or_keys_may_be_left_out() {
    for (q_heads, k_heads) in [(3, 0), (0, 2)] {
        for in_place in [false, true] {
            check_all(Case {
                rows: 2,
                q_heads,
                k_heads,
                head_dim: 64,
                in_place,
                seed: 3,
            });
        }
    }
}

#[test]
fn more_heads_than_a_block_takes_at_once_are_each_rotated_once() {
    for head_dim in [80, 96, 128] {
        check_all(Case {
            rows: 1,
            q_heads: 24,
            k_heads: 8,
            head_dim,
            in_place: true,
            seed: 4,
        });
    }
}
