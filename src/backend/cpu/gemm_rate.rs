//! What this machine reaches in f32 matrix products: the `gemm` crate's rate, as a limit from outside, and ours.

use std::time::Instant;

use gemm::Parallelism;

use super::matmul::{Rows, linear};
use super::packing::{Lines, PackedMatrix};
use super::tile::Tile;
use super::weights::{StoredDtype, StoredTensor};

/// GFLOP/s of x`[m, k]` · w`[n, k]`ᵀ on all cores, as an extraction multiplies: w packed beforehand. Best of `repeats`.
pub fn product_gflops(m: usize, n: usize, k: usize, repeats: usize) -> f64 {
    let (x, w) = operands(m, n, k);
    let stored = StoredTensor {
        dtype: StoredDtype::F32,
        bytes: bytemuck::cast_slice(&w),
    };
    let w = PackedMatrix::pack(Tile::best(), &stored, n, Lines::default());
    let mut out = vec![0.0; m * n];
    best(m, n, k, repeats, || {
        let x = Rows {
            data: &x,
            stride: k,
        };
        linear(m, k, x, &w, 0, &mut out, n);
        std::hint::black_box(&mut out);
    })
}

/// GFLOP/s of the same product by the `gemm` crate, with the fastest kernels it has for this processor and its own way of
/// using the cores. Best of `repeats`.
pub fn gemm_crate_gflops(m: usize, n: usize, k: usize, repeats: usize) -> f64 {
    let (x, w) = operands(m, n, k);
    let mut out = vec![0.0_f32; m * n];
    best(m, n, k, repeats, || {
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
    })
}

fn operands(m: usize, n: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
    let wave = |len: usize, step: usize, period: usize| {
        (0..len)
            .map(|i| ((i * step % period) as f32 - period as f32 / 2.0) * 0.02)
            .collect()
    };
    (wave(m * k, 37, 101), wave(n * k, 53, 103))
}

fn best(m: usize, n: usize, k: usize, repeats: usize, mut product: impl FnMut()) -> f64 {
    product(); // touches all memory
    let seconds = (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            product();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (m * n * k) as f64 / seconds / 1e9
}
