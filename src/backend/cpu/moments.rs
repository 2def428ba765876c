//! Sums over rows, for statistics: Σ x and Σ x·xᵀ, a chunk of rows at a time.
//!
//! Products are made in f32 by the tiles of the matrix products, of rows less the chunk's own mean, and the mean's share is added in
//! f64. So what f32 rounds is the rows' spread, not their mean, which can be a thousand times as large. Only the lower triangle is made.

use rayon::prelude::*;

use super::matmul::{BLOCK, Fused, Out, Product, Rows, multiply_rows};
use super::packing::{DEPTH, Lines, PackedMatrix};
use super::simd::vectorised;
use super::tile::Tile;
use super::weights::{StoredDtype, StoredTensor};

/// Most rows of a chunk: four runs of the products. Over so many the products are summed in f32.
pub const MOMENT_ROWS: usize = 4 * DEPTH;

/// Columns that a task sums: enough for a few cache lines of every row.
const COLUMNS: usize = 64;

/// Adds row-major `rows` `[n, width]` to `sum` `[width]` and, if it is wanted, the lower triangle of their Σ x·xᵀ to that of `outer`
/// `[width, width]`. The bits depend on the rows alone: not on the number of threads, nor on the processor; a GPU
/// (`kernels/moments.cu`) makes the same.
///
/// # Panics
/// More than [`MOMENT_ROWS`] rows, or lengths that do not go together.
pub fn add_moments(rows: &[f32], sum: &mut [f64], outer: Option<&mut [f64]>) {
    let width = sum.len();
    assert!(
        width > 0 && rows.len().is_multiple_of(width),
        "whole rows of {width}"
    );
    let n = rows.len() / width;
    assert!(n <= MOMENT_ROWS, "at most {MOMENT_ROWS} rows");
    if n == 0 {
        return;
    }
    let of_chunk = column_sums(rows, width);
    for (sum, x) in sum.iter_mut().zip(&of_chunk) {
        *sum += x;
    }
    if let Some(outer) = outer {
        assert_eq!(outer.len(), width * width, "a matrix of {width} by {width}");
        let share = 1.0 / n as f64;
        let mean: Vec<f32> = of_chunk.iter().map(|x| (x * share) as f32).collect();
        // By the exact sum: what rounding does to single rows would come in times the other columns' means.
        let left = |(total, &mean): (&f64, &f32)| total - n as f64 * f64::from(mean);
        let rest = of_chunk.iter().zip(&mean).map(left).collect();
        add_outer(&Spread::of(rows, n, mean, rest), outer);
    }
}

/// Σ x, in the order of the rows.
fn column_sums(rows: &[f32], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    sums.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(i, sums)| {
            for row in rows.chunks_exact(width) {
                for (sum, &x) in sums.iter_mut().zip(&row[i * COLUMNS..]) {
                    *sum += f64::from(x);
                }
            }
        });
    sums
}

/// A chunk's rows less their mean.
struct Spread {
    n: usize,
    /// In f32, as it was taken off.
    mean: Vec<f32>,
    /// `[width, n]`: a column of the rows after the other.
    columns: Vec<f32>,
    /// What is left of each column's sum less n times the mean, which was rounded.
    rest: Vec<f64>,
}

impl Spread {
    fn of(rows: &[f32], n: usize, mean: Vec<f32>, rest: Vec<f64>) -> Self {
        let width = mean.len();
        let mut columns = vec![0.0; width * n];
        columns
            .par_chunks_mut(COLUMNS * n)
            .enumerate()
            .for_each(|(i, columns)| {
                let first = i * COLUMNS;
                for (r, row) in rows.chunks_exact(width).enumerate() {
                    for (j, column) in columns.chunks_exact_mut(n).enumerate() {
                        column[r] = row[first + j] - mean[first + j];
                    }
                }
            });
        Spread {
            n,
            mean,
            columns,
            rest,
        }
    }
}

/// outer\[i, j\] += Σ x_i·x_j for j ≤ i, where x = mean + y: Σ y_i·y_j by the products, and the rest in f64.
fn add_outer(spread: &Spread, outer: &mut [f64]) {
    let (width, n) = (spread.mean.len(), spread.n);
    let tile = Tile::best().for_columns(width);
    let stored = StoredTensor {
        dtype: StoredDtype::F32,
        bytes: bytemuck::cast_slice(&spread.columns),
    };
    let w = PackedMatrix::pack(tile, &stored, width, Lines::default());
    outer
        .par_chunks_mut(BLOCK * width)
        .enumerate()
        .rev() // the longest rows first
        .with_max_len(1)
        .for_each(|(block, outer)| {
            let first = block * BLOCK;
            let m = outer.len() / width;
            let panels = 0..(first + m).div_ceil(tile.columns);
            let stride = (panels.end * tile.columns).min(width);
            let mut products = vec![0.0_f32; m * stride];
            let product = Product {
                w: &w,
                first_k: 0,
                panels,
                out: Out::new(&mut products, stride),
                keep: true,
            };
            let x = Rows {
                data: &spread.columns[first * n..],
                stride: n,
            };
            // SAFETY: `products` is this task's own, and holds m rows of the panels' columns.
            unsafe { multiply_rows(tile, x, m, n, &[Fused::Plain(product)]) };
            for (r, (to, products)) in outer
                .chunks_exact_mut(width)
                .zip(products.chunks_exact(stride))
                .enumerate()
            {
                let i = first + r;
                add_row(&mut to[..=i], products, spread, i);
            }
        });
}

vectorised! {
    fn add_row(to: &mut [f64], products: &[f32], spread: &Spread, i: usize) = add_row_loop;
}

#[inline(always)]
fn add_row_loop(to: &mut [f64], products: &[f32], spread: &Spread, i: usize) {
    let (mean, rest) = (f64::from(spread.mean[i]), spread.rest[i]);
    let all = spread.n as f64 * mean + rest;
    let others = spread.mean.iter().zip(&spread.rest);
    for ((to, &product), (&other, &other_rest)) in to.iter_mut().zip(products).zip(others) {
        *to += f64::from(product) + (mean * other_rest + all * f64::from(other));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    /// Rows with a spread of about 1 about means of up to `offset`.
    fn rows(n: usize, width: usize, offset: f32) -> Vec<f32> {
        let mut rows = noise(n * width, 7);
        for row in rows.chunks_exact_mut(width) {
            for (j, x) in row.iter_mut().enumerate() {
                *x += offset * (j % 5) as f32;
            }
        }
        rows
    }

    fn exact(rows: &[f32], width: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut sum, mut outer) = (vec![0.0; width], vec![0.0; width * width]);
        for row in rows.chunks_exact(width) {
            for i in 0..width {
                sum[i] += f64::from(row[i]);
                for j in 0..=i {
                    outer[i * width + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        (sum, outer)
    }

    #[test]
    fn sums_are_those_of_f64_to_within_the_rounding_of_the_rows_spread() {
        for (n, width) in [(1, 3), (5, 64), (113, 131), (MOMENT_ROWS, 200)] {
            for offset in [0.0, 1000.0] {
                let rows = rows(n, width, offset);
                let (mut sum, mut outer) = (vec![0.0; width], vec![0.0; width * width]);
                add_moments(&rows, &mut sum, Some(&mut outer));
                let (want_sum, want) = exact(&rows, width);
                assert_eq!(sum, want_sum);
                for i in 0..width {
                    for j in 0..width {
                        let (got, want) = (outer[i * width + j], want[i * width + j]);
                        // A spread below 4, squared, n times, in f32; beside the f64 rounding of the means' products.
                        let most = 16.0 * n as f64 * 1e-6 + 1e-13 * want.abs();
                        assert!(
                            (got - want).abs() <= most,
                            "{n} rows of {width} about {offset}, ({i}, {j}): {got}, not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (n, width) = (300, 300);
        let rows = rows(n, width, 3.0);
        let sums = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let (mut sum, mut outer) = (vec![0.5; width], vec![0.25; width * width]);
                add_moments(&rows, &mut sum, Some(&mut outer));
                (sum, outer)
            })
        };
        assert!(sums(1) == sums(3));
    }
}
