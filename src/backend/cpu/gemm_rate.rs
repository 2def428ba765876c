//! What this machine reaches in matrix products: the `gemm` crate's rate in f32, as a limit that is not of our making, and ours.
//!
//! Each repeat multiplies by a weight of its own, as each layer does, so that the caches hold no more of it than in a real
//! pass; the median repeat counts.

use std::time::{Duration, Instant};

use gemm::Parallelism;

use super::matmul::{Rows, linear};
use super::packing::{Lines, PackedMatrix};
use super::precision::Precision;
use super::weights::{StoredDtype, StoredTensor};

/// Bytes of distinct weights at most.
const WEIGHTS: usize = 256 << 20;

const WARM_UP: Duration = Duration::from_millis(100);

/// GFLOP/s of x`[m, k]` · w`[n, k]`ᵀ on all cores, as an extraction in that precision multiplies: w packed beforehand.
pub fn product_gflops(precision: Precision, m: usize, n: usize, k: usize, repeats: usize) -> f64 {
    let x = wave(m * k, 37, 101);
    let stored = wave(n * k, 53, 103);
    let stored = StoredTensor {
        dtype: StoredDtype::F32,
        bytes: bytemuck::cast_slice(&stored),
    };
    let weights: Vec<PackedMatrix> = (0..distinct(n, k, repeats))
        .map(|_| PackedMatrix::pack(precision.tile(), &stored, n, Lines::default()))
        .collect();
    let mut out = vec![0.0; m * n];
    let seconds = median_seconds(repeats, |i| {
        let x = Rows {
            data: &x,
            stride: k,
        };
        linear(m, k, x, &weights[i % weights.len()], 0, &mut out, n);
        std::hint::black_box(&mut out);
    });
    2.0 * (m * n * k) as f64 / seconds / 1e9
}

/// GFLOP/s of the same product by the `gemm` crate, with the fastest kernels it has for this processor and its own way of
/// using the cores.
pub fn gemm_crate_gflops(m: usize, n: usize, k: usize, repeats: usize) -> f64 {
    let x = wave(m * k, 37, 101);
    let weights: Vec<Vec<f32>> = (0..distinct(n, k, repeats))
        .map(|_| wave(n * k, 53, 103))
        .collect();
    let mut out = vec![0.0_f32; m * n];
    let seconds = median_seconds(repeats, |i| {
        let w = &weights[i % weights.len()];
        // SAFETY: x, w and out hold m · k, n · k and m · n elements, with these strides; out is borrowed mutably.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                false,
                x.as_ptr(),
                1,
                k as isize,
                w.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
        }
        std::hint::black_box(&mut out);
    });
    2.0 * (m * n * k) as f64 / seconds / 1e9
}

fn distinct(n: usize, k: usize, repeats: usize) -> usize {
    (WEIGHTS / (4 * n * k)).clamp(1, repeats.max(1))
}

fn wave(len: usize, step: usize, period: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * step % period) as f32 - period as f32 / 2.0) * 0.02)
        .collect()
}

fn median_seconds(repeats: usize, mut product: impl FnMut(usize)) -> f64 {
    // Until the memory is touched, the threads are awake and the system has spread them over the cores.
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        product(0);
    }
    let mut seconds: Vec<f64> = (0..repeats.max(1))
        .map(|i| {
            let start = Instant::now();
            product(i);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
