//! Matrix products by the `gemm` crate, in a form whose bits do not depend on how many rows share the call.
//!
//! `gemm` picks its inner kernel by size: products of at most 16·16 elements, a single row, and products with
//! both sides at most 64 sum in other orders than the rest (read in its source, version 0.19, and tested below).
//! Such a call is made with padding rows, so that every row always takes the general path.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

/// A row-major matrix in memory: element (r, c) is `data[r · stride + c]`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// As [`Rows`], to write.
pub(super) struct RowsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// out `[m, n]` = x `[m, k]` · (w `[n, k]`)ᵀ
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Longest run of products that is summed in one register before it is added to the rest. Left to itself `gemm` sums
/// runs of up to 512, and over SmolLM2's hook points its error is 1.3 × that of PyTorch's product (2 × at token 0); with
/// 256 the two are equal, and with 128 ours is 0.9 × (0.76 ×), for a few per cent of the product's speed.
const DEPTH: usize = 128;

/// Rows that one thread multiplies at a time: enough to pay for packing the weights.
const ROWS: usize = 256;

/// Fewest rows that are worth handing to a thread of their own.
const FEWEST_ROWS_OF_A_THREAD: usize = 64;

/// The matrix product, for the numeric record: another one, or another depth, sums in another order.
pub const GEMM: &str = "gemm 0.19, depth 128";

/// Fewest rows with which a product onto `n` columns takes the general path.
fn fewest_rows(n: usize) -> usize {
    if n > 64 {
        4
    } else {
        (257_usize.div_ceil(n.max(1))).max(65)
    }
}

/// out\[r, c\] = Σ_k x\[r, k\] · w\[c, k\], on all cores. `pad` is scratch that is used when there are few rows.
pub(super) fn linear(size: Size, x: Rows<'_>, w: Rows<'_>, out: RowsMut<'_>, pad: &mut Vec<f32>) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    let fewest = fewest_rows(n);
    if m < fewest {
        return padded(fewest, size, x, w, out, pad);
    }
    let threads = rayon::current_num_threads();
    let pieces = m.div_ceil(ROWS).next_multiple_of(threads);
    if m / pieces < fewest.max(FEWEST_ROWS_OF_A_THREAD) {
        return product(size, x, w, out, 1.0, Parallelism::Rayon(0));
    }
    let stride = out.stride;
    let mut rest = out.data;
    let mut work: Vec<(Range<usize>, &mut [f32])> = Vec::with_capacity(pieces);
    for piece in 0..pieces {
        let rows = piece * m / pieces..(piece + 1) * m / pieces;
        let (mine, others) = rest.split_at_mut((rows.len() * stride).min(rest.len()));
        work.push((rows, mine));
        rest = others;
    }
    work.into_par_iter().for_each(|(rows, out)| {
        let x = Rows {
            data: &x.data[rows.start * x.stride..],
            ..x
        };
        let size = Size {
            m: rows.len(),
            n,
            k,
        };
        product(
            size,
            x,
            w,
            RowsMut { data: out, stride },
            1.0,
            Parallelism::None,
        );
    });
}

/// The product of fewer rows than take the general path, by way of `fewest` rows.
fn padded(
    fewest: usize,
    size: Size,
    x: Rows<'_>,
    w: Rows<'_>,
    out: RowsMut<'_>,
    pad: &mut Vec<f32>,
) {
    let Size { m, n, k } = size;
    pad.clear();
    pad.resize(fewest * (k + n), 0.0);
    let (wide_x, wide_out) = pad.split_at_mut(fewest * k);
    for r in 0..m {
        wide_x[r * k..(r + 1) * k].copy_from_slice(&x.data[r * x.stride..r * x.stride + k]);
    }
    let wide = RowsMut {
        data: wide_out,
        stride: n,
    };
    product(
        Size { m: fewest, n, k },
        Rows {
            data: wide_x,
            stride: k,
        },
        w,
        wide,
        1.0,
        Parallelism::Rayon(0),
    );
    for r in 0..m {
        out.data[r * out.stride..r * out.stride + n].copy_from_slice(&wide_out[r * n..(r + 1) * n]);
    }
}

/// out = scale · x · wᵀ, summed over runs of at most [`DEPTH`].
pub(super) fn product(
    size: Size,
    x: Rows<'_>,
    w: Rows<'_>,
    out: RowsMut<'_>,
    scale: f32,
    parallelism: Parallelism,
) {
    let Size { m, n, k } = size;
    assert!(
        k <= x.stride && (m - 1) * x.stride + k <= x.data.len(),
        "x holds m rows of k"
    );
    assert!(
        k <= w.stride && (n - 1) * w.stride + k <= w.data.len(),
        "w holds n rows of k"
    );
    assert!(
        n <= out.stride && (m - 1) * out.stride + n <= out.data.len(),
        "out holds m rows of n"
    );
    let depth = k.div_ceil(k.div_ceil(DEPTH)).next_multiple_of(8);
    for first in (0..k).step_by(depth) {
        // SAFETY: the three asserts keep every element that gemm addresses inside its slice, since `first + depth` is
        // cut off at k; `out` is borrowed mutably, so it overlaps neither `x` nor `w`.
        unsafe {
            gemm::gemm(
                m,
                n,
                depth.min(k - first),
                out.data.as_mut_ptr(),
                1,
                out.stride as isize,
                first > 0,
                x.data.as_ptr().add(first),
                1,
                x.stride as isize,
                w.data.as_ptr().add(first),
                w.stride as isize,
                1,
                1.0,
                scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// The instruction set that `gemm` and this backend's loops choose on this processor: part of the numeric record,
/// because another one sums in another order.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            "x86-64-v3"
        } else {
            "x86-64"
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}

/// GFLOP/s of the machine's f32 matrix product at one shape: best of `repeats` calls of x`[m, k]` · w`[n, k]`ᵀ.
pub fn gemm_gflops(m: usize, n: usize, k: usize, repeats: usize) -> f64 {
    let x: Vec<f32> = (0..m * k)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.02)
        .collect();
    let w: Vec<f32> = (0..n * k)
        .map(|i| ((i * 53 % 103) as f32 - 51.0) * 0.02)
        .collect();
    let mut out = vec![0.0_f32; m * n];
    let mut pad = Vec::new();
    let mut best = f64::INFINITY;
    for _ in 0..=repeats {
        let start = std::time::Instant::now();
        let (x, w) = (
            Rows {
                data: &x,
                stride: k,
            },
            Rows {
                data: &w,
                stride: k,
            },
        );
        linear(
            Size { m, n, k },
            x,
            w,
            RowsMut {
                data: &mut out,
                stride: n,
            },
            &mut pad,
        );
        best = best.min(start.elapsed().as_secs_f64());
        std::hint::black_box(&mut out);
    }
    2.0 * (m * n * k) as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                ((state >> 33) as f32 / (1u64 << 31) as f32) * 2.0 - 1.0
            })
            .collect()
    }

    fn rows_of(m: usize, n: usize, k: usize, x: &[f32], w: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * n];
        let (x, w) = (Rows { data: x, stride: k }, Rows { data: w, stride: k });
        linear(
            Size { m, n, k },
            x,
            w,
            RowsMut {
                data: &mut out,
                stride: n,
            },
            &mut Vec::new(),
        );
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_rows_bits_do_not_depend_on_how_many_rows_share_the_product(
            n in prop_oneof![Just(4_usize), Just(16), Just(32), Just(64), Just(72), Just(160), Just(576)],
            k in prop_oneof![Just(8_usize), Just(48), Just(64), Just(576), Just(1536)],
            m in prop_oneof![1_usize..200, 500_usize..1200], first in 0_usize..150, seed in any::<u64>(),
        ) {
            let first = first % m;
            let x = noise(m * k, seed);
            let w = noise(n * k, seed ^ 1);
            let together = rows_of(m, n, k, &x, &w);
            for few in [1, 2, 5, m - first] {
                let few = few.min(m - first);
                let alone = rows_of(few, n, k, &x[first * k..(first + few) * k], &w);
                for (a, b) in alone.iter().zip(&together[first * n..]) {
                    prop_assert_eq!(a.to_bits(), b.to_bits());
                }
            }
        }
    }

    #[test]
    fn the_product_is_the_sum_over_k() {
        let (m, n, k) = (3, 5, 8);
        let (x, w) = (noise(m * k, 3), noise(n * k, 4));
        let out = rows_of(m, n, k, &x, &w);
        for r in 0..m {
            for c in 0..n {
                let truth: f64 = (0..k)
                    .map(|i| x[r * k + i] as f64 * w[c * k + i] as f64)
                    .sum();
                assert!((out[r * n + c] as f64 - truth).abs() < 1e-6);
            }
        }
    }
}
