//! `kernels/gemm.cu` against sums in float64.

use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::gemm::{Gemm, GemmArgs, TileSize};

use crate::harness::{
    Element, assert_relative_l2, cases, is_poison, normal, on_every_schedule, ulp, wide,
};
use crate::layout::assert_same_bits;

/// Where the elements of a `[batch, rows, columns]` tensor lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    batch: usize,
    rows: usize,
    columns: usize,
    stride: usize,
    batch_stride: usize,
}

impl Layout {
    fn dense(rows: usize, columns: usize) -> Layout {
        Layout::gapped(1, rows, columns, 0)
    }

    /// `gap` elements behind every row.
    fn gapped(batch: usize, rows: usize, columns: usize, gap: usize) -> Layout {
        let stride = columns + gap;
        let batch_stride = rows * stride;
        Layout {
            batch,
            rows,
            columns,
            stride,
            batch_stride,
        }
    }

    fn elements(&self) -> usize {
        self.batch * self.rows * self.columns
    }

    /// From the first element to the last: nothing behind it may be touched.
    fn span(&self) -> usize {
        (self.batch - 1) * self.batch_stride + (self.rows - 1) * self.stride + self.columns
    }

    fn places(self) -> impl Iterator<Item = usize> {
        (0..self.batch).flat_map(move |b| {
            (0..self.rows).flat_map(move |r| {
                (0..self.columns).map(move |c| b * self.batch_stride + r * self.stride + c)
            })
        })
    }

    /// Dense elements in their places, NaN in the gaps.
    fn spread<T: Element>(&self, dense: &[T]) -> Vec<T> {
        let mut memory = vec![T::round(f64::NAN); self.span()];
        self.places()
            .zip(dense)
            .for_each(|(at, &element)| memory[at] = element);
        memory
    }

    /// The dense elements; what lies between them is untouched.
    #[track_caller]
    fn gather<T: Element>(&self, memory: &[T]) -> Vec<T> {
        let mut ours = vec![false; memory.len()];
        let dense = self
            .places()
            .map(|at| (ours[at] = true, memory[at]).1)
            .collect();
        let strayed = (0..memory.len()).find(|&at| !ours[at] && !is_poison(&memory[at]));
        assert_eq!(
            strayed, None,
            "an element between the rows of out was written"
        );
        dense
    }
}

/// Operands and result of batched products.
#[derive(Clone, Copy, Debug)]
struct Product {
    x: Layout,
    weight: Layout,
    out: Layout,
}

impl Product {
    fn dense(m: usize, n: usize, k: usize) -> Product {
        Product {
            x: Layout::dense(m, k),
            weight: Layout::dense(n, k),
            out: Layout::dense(m, n),
        }
    }

    fn run<T: Element, O: Element>(&self, tile: TileSize, x: &[T], weight: &[T]) -> Vec<O> {
        let (x, weight) = (self.x.spread(x), self.weight.spread(weight));
        let gemm = Gemm {
            input: T::DTYPE,
            output: O::DTYPE,
            tile,
        };
        let memory = on_every_schedule(|gpu| {
            let (x, weight) = (gpu.input(&x), gpu.input(&weight));
            let out = gpu.canvas::<O>(self.out.span());
            let args = GemmArgs {
                x: x.ptr(),
                weight: weight.ptr(),
                out: out.ptr(),
                x_batch_stride: self.x.batch_stride as u64,
                weight_batch_stride: self.weight.batch_stride as u64,
                out_batch_stride: self.out.batch_stride as u64,
                m: self.x.rows as u32,
                n: self.weight.rows as u32,
                k: self.x.columns as u32,
                batch: self.out.batch as u32,
                x_stride: self.x.stride as u32,
                weight_stride: self.weight.stride as u32,
                out_stride: self.out.stride as u32,
                _pad: 0,
            };
            gpu.launch(&gemm, &args);
            gpu.read(&out)
        });
        self.out.gather(&memory)
    }

    /// Every output with the sum of its terms' magnitudes.
    fn oracle<T: Element>(&self, x: &[T], weight: &[T]) -> Vec<(f64, f64)> {
        let (x, weight) = (wide(x), wide(weight));
        let k = self.x.columns;
        let mut sums = Vec::with_capacity(self.out.elements());
        for (x, weight) in x
            .chunks(self.x.rows * k)
            .zip(weight.chunks(self.weight.rows * k))
        {
            for x in x.chunks(k) {
                for weight in weight.chunks(k) {
                    let terms = || x.iter().zip(weight).map(|(x, weight)| x * weight);
                    sums.push((terms().sum(), terms().map(f64::abs).sum()));
                }
            }
        }
        sums
    }

    /// Runs with random operands and holds every element to the rounding that `bound` allows.
    fn check<T: Element, O: Element>(&self, tile: TileSize, seed: u64, bound: Bound) {
        let x = normal::<T>(self.x.elements(), seed, 1.0);
        let weight = normal::<T>(self.weight.elements(), seed + 1, 0.1);
        let got = self.run::<T, O>(tile, &x, &weight);
        let want = self.oracle(&x, &weight);
        let what = format!("{} to {}, {tile:?}, {self:?}", T::DTYPE, O::DTYPE);
        for (i, (got, &(want, magnitude))) in got.iter().zip(&want).enumerate() {
            let allowed = bound.of::<O>(self.x.columns, want, magnitude);
            let off = (got.wide() - want).abs();
            assert!(
                off <= allowed,
                "{what}: element {i} is {got:?}, should be {want}: off by {off:.2e}, {allowed:.2e} allowed"
            );
        }
        let want: Vec<f64> = want.iter().map(|want| want.0).collect();
        assert_relative_l2(
            &what,
            &got,
            &want,
            if O::DTYPE.bytes() == 4 { 1e-6 } else { 3e-3 },
        );
    }
}

/// How far an element may be from the sum in float64.
#[derive(Clone, Copy)]
enum Bound {
    /// f32 accumulation in any order, rounded once: 1 ulp and k · 2⁻²⁴ · Σ|x||w|.
    AnyOrder,
    /// f32: runs of 128 terms, then the runs.
    Runs,
}

impl Bound {
    fn of<O: Element>(self, k: usize, want: f64, magnitude: f64) -> f64 {
        let roundings = match self {
            Bound::AnyOrder => k,
            Bound::Runs => k.min(128) + k.div_ceil(128),
        };
        ulp::<O>(want) + roundings as f64 * 2f64.powi(-24) * magnitude
    }
}

fn check_every_instance(product: &Product, seed: u64) {
    for tile in [TileSize::Large, TileSize::Small] {
        product.check::<bf16, bf16>(tile, seed, Bound::AnyOrder);
        product.check::<f16, f16>(tile, seed, Bound::AnyOrder);
        product.check::<bf16, f32>(tile, seed, Bound::AnyOrder);
        product.check::<f16, f32>(tile, seed, Bound::AnyOrder);
    }
    product.check::<f32, f32>(TileSize::Large, seed, Bound::Runs);
}

#[test]
fn products_smaller_than_a_tile_at_its_edges_and_of_several_tiles_match_float64() {
    for (i, (m, n, k)) in [
        (1, 8, 8),
        (63, 24, 40),
        (64, 32, 64),
        (65, 136, 24),
        (127, 120, 32),
        (128, 128, 96),
        (129, 8, 104),
    ]
    .into_iter()
    .enumerate()
    {
        check_every_instance(&Product::dense(m, n, k), i as u64);
    }
}

#[test]
fn k_may_be_longer_than_the_ring_of_stages_and_than_a_run() {
    check_every_instance(&Product::dense(70, 16, 328), 1);
    // few rows: 8 stages of 64
    check_every_instance(&Product::dense(3, 40, 712), 2);
}

#[test]
fn tiles_beyond_a_band_of_sixteen_are_all_computed() {
    Product::dense(17 * 128 - 5, 136, 8).check::<bf16, bf16>(TileSize::Large, 3, Bound::AnyOrder);
    Product::dense(17 * 64 - 5, 136, 8).check::<f32, f32>(TileSize::Large, 4, Bound::Runs);
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn rows_may_lie_anywhere_with_anything_between_them(
        m in 1usize..150, n in 1usize..20, k in 1usize..14, batch in 1usize..3,
        x_gap in 0usize..3, weight_gap in 0usize..3, out_gap in 0usize..3, seed in any::<u32>(),
    ) {
        let (n, k) = (8 * n, 8 * k);
        let product = Product {
            x: Layout::gapped(batch, m, k, 8 * x_gap),
            weight: Layout::gapped(batch, n, k, 8 * weight_gap),
            out: Layout::gapped(batch, m, n, 8 * out_gap),
        };
        check_every_instance(&product, seed.into());
    }
}

/// hook_result: what each head adds to the residual stream, z\[:, head\] · W_O\[:, head\]ᵀ, as one batch.
#[test]
fn results_per_head_are_a_batch_of_slices() {
    let (rows, heads, head_dim, width) = (5, 3, 16, 40);
    let packed = |rows| Layout {
        batch: heads,
        rows,
        columns: head_dim,
        stride: heads * head_dim,
        batch_stride: head_dim,
    };
    let product = Product {
        x: packed(rows),
        weight: packed(width),
        out: Layout {
            batch: heads,
            rows,
            columns: width,
            stride: heads * width,
            batch_stride: width,
        },
    };
    check_every_instance(&product, 5);
}

/// The same row as the last of `m`, among others.
fn last_row_of<T: Element, O: Element>(
    tile: TileSize,
    m: usize,
    row: &[T],
    weight: &[T],
    n: usize,
) -> Vec<O> {
    let mut x = normal::<T>((m - 1) * row.len(), m as u64, 3.0);
    x.extend_from_slice(row);
    let out = Product::dense(m, n, row.len()).run::<T, O>(tile, &x, weight);
    out[(m - 1) * n..].to_vec()
}

fn check_row_bits<T: Element, O: Element>(tiles: &[TileSize]) {
    let (n, k) = (40, 136);
    let row = normal::<T>(k, 6, 1.0);
    let weight = normal::<T>(n * k, 7, 0.1);
    let alone = last_row_of::<T, O>(TileSize::Large, 1, &row, &weight, n);
    for &tile in tiles {
        for m in [1, 16, 39, 64, 65, 130] {
            let among_others = last_row_of::<T, O>(tile, m, &row, &weight, n);
            let what = format!("{} to {}: row {m} of {m}, {tile:?}", T::DTYPE, O::DTYPE);
            assert_same_bits(&what, &among_others, &alone);
        }
    }
    let part = last_row_of::<T, O>(TileSize::Large, 1, &row, &weight[24 * k..], 16);
    assert_same_bits("by a part of the weight", &part, &alone[24..]);
}

#[test]
fn a_row_has_the_same_bits_alone_among_others_and_from_either_tile() {
    let both = [TileSize::Large, TileSize::Small];
    check_row_bits::<bf16, bf16>(&both);
    check_row_bits::<f16, f16>(&both);
    check_row_bits::<bf16, f32>(&both);
    check_row_bits::<f32, f32>(&both[..1]);
}

#[test]
fn f16_sums_beyond_its_range_become_infinite_and_f32_outputs_keep_them() {
    let product = Product::dense(2, 8, 16);
    let x = vec![f16::from_f32(200.0); 32];
    let weight = vec![f16::from_f32(-100.0); 128];
    let rounded = product.run::<f16, f16>(TileSize::Small, &x, &weight);
    assert!(rounded.iter().all(|&out| out == f16::NEG_INFINITY));
    let kept = product.run::<f16, f32>(TileSize::Small, &x, &weight);
    assert!(kept.iter().all(|&out| out == -320_000.0));
}
