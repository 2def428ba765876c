//! The memory that tiles read: x interleaved by a few rows, w by the columns of a tile, once and for all.

use std::ops::{Deref, DerefMut, Range};

use rayon::prelude::*;

use super::matmul::Rows;
use super::tile::Tile;
use super::weights::StoredTensor;

/// Longest run of products that is summed in one register before it is added to the rest: docs/architecture.md has what was
/// measured of others. Shorter ones cost more additions (48 makes the AVX-512 tile 2 % slower).
pub const DEPTH: usize = 112;

/// The runs that a sum over `k` is made of.
pub(super) fn runs(k: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    k.clone()
        .step_by(DEPTH)
        .map(move |first| first..(first + DEPTH).min(k.end))
}

/// f32 memory that begins at a cache line and costs nothing until it is touched.
///
/// Huge pages made passes 2 to 3 % faster where they were tried, and first touching them slower by more than a short run
/// gets back (the host of that machine had to find the memory first).
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// A plain vector, because memory that must be aligned is not taken from the system as zeros but filled, on one core.
    memory: Vec<f32>,
    /// Where the first line begins.
    start: usize,
    len: usize,
}

impl Lines {
    /// Elements of a cache line.
    const LINE: usize = 16;

    /// Makes room for `len` elements; what they hold is not said.
    pub fn resize(&mut self, len: usize) {
        if self.memory.len() < self.start + len {
            self.memory = vec![0.0; len + Self::LINE];
            let start = self.memory.as_ptr().align_offset(4 * Self::LINE);
            self.start = start.min(Self::LINE); // it may decline to tell, and count past the end: slower, not wrong
        }
        self.len = len;
    }
}

impl Deref for Lines {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Interleaves `m` rows of x for tiles of `tile_rows`: `[run of k][tile][depth of the run][tile_rows]`, rows past the last as zeros.
pub(super) fn pack_rows(tile_rows: usize, x: Rows<'_>, m: usize, k: Range<usize>, out: &mut Lines) {
    let tiles = m.div_ceil(tile_rows);
    out.resize(tiles * tile_rows * k.len());
    let mut rest = &mut out[..];
    for run in runs(k) {
        for first in (0..m).step_by(tile_rows) {
            let (tile, others) = rest.split_at_mut(run.len() * tile_rows);
            let rows = tile_rows.min(m - first);
            let x = Rows {
                data: &x.data[first * x.stride + run.start..],
                stride: x.stride,
            };
            if rows < tile_rows {
                tile.fill(0.0);
            }
            interleave(x, rows, run.len(), tile, tile_rows);
            rest = others;
        }
    }
}

/// A weight `[n, k]` in panels of a tile's columns: `[panel][k][columns]`, columns past the last as zeros.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    pub tile: &'static Tile,
    pub n: usize,
    pub k: usize,
    elements: Lines,
}

impl PackedMatrix {
    /// Widens and packs a stored `[n, k]`, on all cores, into the memory of `old`.
    pub fn pack(tile: &'static Tile, tensor: &StoredTensor<'_>, n: usize, mut old: Lines) -> Self {
        let k = tensor.len() / n;
        old.resize(n.next_multiple_of(tile.columns) * k);
        old.par_chunks_mut(tile.columns * k)
            .enumerate()
            .for_each(|(panel, out)| {
                let columns = panel * tile.columns..((panel + 1) * tile.columns).min(n);
                pack_panel(columns, k, out, tile.columns, |row, first, out| {
                    tensor.widen(row * k + first, out);
                });
            });
        PackedMatrix {
            tile,
            n,
            k,
            elements: old,
        }
    }

    /// Bytes of a packed `[n, k]`.
    pub fn bytes(n: usize, k: usize) -> usize {
        4 * n.next_multiple_of(Tile::best().columns) * k
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(self.tile.columns)
    }

    /// Rows `k` of a panel, `[k, columns]`.
    pub fn panel(&self, panel: usize, k: Range<usize>) -> &[f32] {
        let first = panel * self.k;
        &self.elements[(first + k.start) * self.tile.columns..(first + k.end) * self.tile.columns]
    }

    /// The memory, to use again.
    pub fn into_memory(self) -> Lines {
        self.elements
    }
}

/// Packs some rows of w as the `width` columns of one panel `[k, width]`; `read(row, first, out)` reads a row's elements from `first` on.
pub(super) fn pack_panel(
    rows: Range<usize>,
    k: usize,
    out: &mut [f32],
    width: usize,
    read: impl Fn(usize, usize, &mut [f32]),
) {
    const AT_ONCE: usize = 64;
    if rows.len() < width {
        out.fill(0.0);
    }
    let mut staged = [0.0_f32; 8 * AT_ONCE];
    for first in (0..k).step_by(AT_ONCE) {
        let depth = AT_ONCE.min(k - first);
        for column in (0..rows.len()).step_by(8) {
            let count = 8.min(rows.len() - column);
            for (r, staged) in staged.chunks_exact_mut(AT_ONCE).take(count).enumerate() {
                read(rows.start + column + r, first, &mut staged[..depth]);
            }
            let x = Rows {
                data: &staged,
                stride: AT_ONCE,
            };
            interleave(x, count, depth, &mut out[first * width + column..], width);
        }
    }
}

/// out\[k, r\] = x\[r, k\] for at most 8 rows; `out` has rows of `width`.
fn interleave(x: Rows<'_>, rows: usize, depth: usize, out: &mut [f32], width: usize) {
    if rows == 0 || depth == 0 {
        return;
    }
    assert!(
        rows <= 8
            && rows <= width
            && (rows - 1) * x.stride + depth <= x.data.len()
            && (depth - 1) * width + rows <= out.len(),
        "{rows} rows of {depth} lie in x and out"
    );
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if matches!(rows, 6 | 8) && super::simd::has_avx2_and_fma() {
        done = depth / 8 * 8;
        for k in (0..done).step_by(8) {
            // SAFETY: the processor has AVX2; elements k..k + 8 of the rows lie in x and out, by the assert.
            unsafe {
                let (from, to) = (x.data.as_ptr().add(k), out.as_mut_ptr().add(k * width));
                if rows == 8 {
                    x86::transpose::<8>(from, x.stride, to, width);
                } else {
                    x86::transpose::<6>(from, x.stride, to, width);
                }
            }
        }
    }
    for k in done..depth {
        for r in 0..rows {
            out[k * width + r] = x.data[r * x.stride + k];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// to\[k, r\] = from\[r, k\] for 8 of k and 6 or 8 rows.
    ///
    /// # Safety
    /// AVX2 is there; `from` holds ROWS rows of 8 elements, `from_stride` apart; `to` 8 rows of ROWS elements, `to_stride` apart.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn transpose<const ROWS: usize>(
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        const { assert!(ROWS == 6 || ROWS == 8) };
        let mut rows = [_mm256_setzero_ps(); 8];
        for (r, row) in rows.iter_mut().enumerate().take(ROWS) {
            // SAFETY: row `r` of ROWS.
            *row = unsafe { _mm256_loadu_ps(from.add(r * from_stride)) };
        }
        // Of each pair of rows, then of each four, then of all eight.
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = pairs;
        for i in 0..2 {
            let [a, b, c, d] = [
                pairs[4 * i],
                pairs[4 * i + 1],
                pairs[4 * i + 2],
                pairs[4 * i + 3],
            ];
            fours[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
            fours[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
            fours[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
            fours[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
        }
        for k in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(fours[k], fours[k + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(fours[k], fours[k + 4]);
            // SAFETY: rows `k` and `k + 4` of 8.
            unsafe {
                store::<ROWS>(to.add(k * to_stride), low);
                store::<ROWS>(to.add((k + 4) * to_stride), high);
            }
        }
    }

    /// # Safety
    /// `to` holds ROWS elements.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store<const ROWS: usize>(to: *mut f32, lanes: __m256) {
        // SAFETY: 8 elements, or 4 and 2.
        unsafe {
            if ROWS == 8 {
                _mm256_storeu_ps(to, lanes);
            } else {
                _mm_storeu_ps(to, _mm256_castps256_ps128(lanes));
                _mm_storel_pd(
                    to.add(4).cast(),
                    _mm_castps_pd(_mm256_extractf128_ps::<1>(lanes)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::testing::noise;
    use super::super::weights::StoredDtype;
    use super::*;

    #[test]
    fn packed_rows_are_interleaved_by_run_and_tile() {
        for (tile_rows, m, k) in [(8, 19, 150), (6, 13, 64), (8, 8, 9), (6, 1, 1)] {
            let stride = k + 3;
            let data = noise(m * stride, 5);
            let mut packed = Lines::default();
            pack_rows(
                tile_rows,
                Rows {
                    data: &data,
                    stride,
                },
                m,
                2.min(k - 1)..k,
                &mut packed,
            );
            let mut at = 0;
            for run in runs(2.min(k - 1)..k) {
                for tile in 0..m.div_ceil(tile_rows) {
                    for k in run.clone() {
                        for row in tile * tile_rows..(tile + 1) * tile_rows {
                            let expected = if row < m { data[row * stride + k] } else { 0.0 };
                            assert_eq!(packed[at], expected, "row {row}, k {k}");
                            at += 1;
                        }
                    }
                }
            }
            assert_eq!(at, packed.len());
        }
    }

    #[test]
    fn a_packed_weight_holds_every_element_widened_and_zeros_after_the_last_column() {
        for tile in Tile::available() {
            for (n, k) in [(1, 1), (tile.columns + 5, 70), (2 * tile.columns, 64)] {
                let stored: Vec<bf16> = noise(n * k, 6).into_iter().map(bf16::from_f32).collect();
                let tensor = StoredTensor {
                    dtype: StoredDtype::BF16,
                    bytes: bytemuck::cast_slice(&stored),
                };
                let packed = PackedMatrix::pack(tile, &tensor, n, Lines::default());
                for panel in 0..packed.panels() {
                    for (k, row) in packed
                        .panel(panel, 0..k)
                        .chunks_exact(tile.columns)
                        .enumerate()
                    {
                        for (c, &value) in row.iter().enumerate() {
                            let column = panel * tile.columns + c;
                            let expected = if column < n {
                                stored[column * packed.k + k].to_f32()
                            } else {
                                0.0
                            };
                            assert_eq!(value, expected);
                        }
                    }
                }
            }
        }
    }
}
