//! The memory that tiles read: x interleaved by a few rows, w by the columns of a tile, once and for all.

use std::ops::{Deref, DerefMut, Range};

use rayon::prelude::*;

use super::matmul::Rows;
use super::pairs::pair;
use super::precision::Rounding;
use super::tile::Tile;
use super::weights::StoredTensor;

/// Longest run of lanes that is summed in one register before it is added to the rest: docs/architecture.md has what was
/// measured of others. Shorter ones cost more additions (48 makes the AVX-512 tile 2 % slower).
pub const DEPTH: usize = 112;

/// The runs that a sum over so many lanes is made of.
pub(super) fn runs(lanes: usize) -> impl Iterator<Item = Range<usize>> {
    (0..lanes)
        .step_by(DEPTH)
        .map(move |first| first..(first + DEPTH).min(lanes))
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

/// Lanes of a row that are laid side by side at a time.
const AT_ONCE: usize = 64;

/// Interleaves `m` rows of x for a tile: `[run of k][tile][depth of the run][tile's rows]`, rows past the last as zeros. Bf16 lies
/// there in pairs, and is rounded on its way.
pub(super) fn pack_rows(tile: &Tile, x: Rows<'_>, m: usize, k: Range<usize>, out: &mut Lines) {
    let lanes = tile.lanes(k.len());
    out.resize(m.div_ceil(tile.rows) * tile.rows * lanes);
    let mut rest = &mut out[..];
    for run in runs(lanes) {
        for first in (0..m).step_by(tile.rows) {
            let (packed, others) = rest.split_at_mut(run.len() * tile.rows);
            rest = others;
            let rows = tile.rows.min(m - first);
            if rows < tile.rows {
                packed.fill(0.0);
            }
            let begin = k.start + run.start * tile.per_lane;
            let x = Rows {
                data: &x.data[first * x.stride + begin..],
                stride: x.stride,
            };
            if tile.per_lane == 1 {
                interleave(x, rows, run.len(), packed, tile.rows);
            } else {
                interleave_pairs(x, rows, k.end - begin, packed, tile.rows);
            }
        }
    }
}

/// As [`interleave`], each two of the `k` numbers of a row in a lane; as many as `out` has room for.
fn interleave_pairs(x: Rows<'_>, rows: usize, k: usize, out: &mut [f32], width: usize) {
    let mut staged = [0.0_f32; 8 * AT_ONCE];
    for (first, out) in (0..)
        .step_by(2 * AT_ONCE)
        .zip(out.chunks_mut(AT_ONCE * width))
    {
        let depth = out.len() / width;
        let numbers = first..k.min(first + 2 * depth);
        for (r, staged) in staged.chunks_exact_mut(AT_ONCE).take(rows).enumerate() {
            let row = &x.data[r * x.stride..][numbers.clone()];
            pair(row, &mut staged[..depth]);
        }
        let x = Rows {
            data: &staged,
            stride: AT_ONCE,
        };
        interleave(x, rows, depth, out, width);
    }
}

/// A weight `[n, k]` in panels of a tile's columns: `[panel][lanes of k][columns]`, columns past the last as zeros.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    pub tile: &'static Tile,
    pub n: usize,
    pub k: usize,
    elements: Lines,
}

impl PackedMatrix {
    /// Packs a stored `[n, k]`, on all cores, into the memory of `old`: as f32, or rounded to bf16, as the tile takes it.
    pub fn pack(tile: &'static Tile, tensor: &StoredTensor<'_>, n: usize, mut old: Lines) -> Self {
        let k = tensor.len() / n;
        let lanes = tile.lanes(k);
        old.resize(n.next_multiple_of(tile.columns) * lanes);
        old.par_chunks_mut(tile.columns * lanes)
            .enumerate()
            .for_each(|(panel, out)| {
                let columns = panel * tile.columns..((panel + 1) * tile.columns).min(n);
                pack_panel(tile, columns, k, out, |row, first, out| {
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

    /// Bytes of a `[n, k]` packed for that tile.
    pub fn bytes(tile: &Tile, n: usize, k: usize) -> usize {
        4 * n.next_multiple_of(tile.columns) * tile.lanes(k)
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(self.tile.columns)
    }

    /// Rows `k` of a panel, `[lanes of k, columns]`; they begin with a lane, and end with one or the weight's last.
    pub fn panel(&self, panel: usize, k: Range<usize>) -> &[f32] {
        let tile = self.tile;
        assert!(
            k.start.is_multiple_of(tile.per_lane)
                && (k.end.is_multiple_of(tile.per_lane) || k.end == self.k),
            "{k:?} are whole lanes"
        );
        let first = panel * tile.lanes(self.k);
        let lanes = first + tile.lanes(k.start)..first + tile.lanes(k.end);
        &self.elements[lanes.start * tile.columns..lanes.end * tile.columns]
    }

    /// What its products are rounded to.
    pub fn rounding(&self) -> Rounding {
        match self.tile.per_lane {
            1 => Rounding::Exact,
            _ => Rounding::Bf16,
        }
    }

    /// The memory, to use again.
    pub fn into_memory(self) -> Lines {
        self.elements
    }
}

/// Packs some rows of w as the columns of one panel `[lanes of k, columns]`; `read(row, first, out)` reads a row's numbers from
/// `first` on.
pub(super) fn pack_panel(
    tile: &Tile,
    rows: Range<usize>,
    k: usize,
    out: &mut [f32],
    read: impl Fn(usize, usize, &mut [f32]),
) {
    let width = tile.columns;
    if rows.len() < width {
        out.fill(0.0);
    }
    let mut numbers = [0.0_f32; 2 * AT_ONCE];
    let mut staged = [0.0_f32; 8 * AT_ONCE];
    for first in (0..tile.lanes(k)).step_by(AT_ONCE) {
        let depth = AT_ONCE.min(tile.lanes(k) - first);
        let begin = first * tile.per_lane;
        let numbers = &mut numbers[..(depth * tile.per_lane).min(k - begin)];
        for column in (0..rows.len()).step_by(8) {
            let count = 8.min(rows.len() - column);
            for (r, staged) in staged.chunks_exact_mut(AT_ONCE).take(count).enumerate() {
                let row = rows.start + column + r;
                if tile.per_lane == 1 {
                    read(row, begin, &mut staged[..depth]);
                } else {
                    read(row, begin, numbers);
                    pair(numbers, &mut staged[..depth]);
                }
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

    /// Lane `lane` of some numbers, as the tile takes them.
    fn lane_of(tile: &Tile, numbers: &[f32], lane: usize) -> u32 {
        if tile.per_lane == 1 {
            return numbers[lane].to_bits();
        }
        let half = |i: usize| bf16::from_f32(numbers.get(i).copied().unwrap_or(0.0)).to_bits();
        u32::from(half(2 * lane + 1)) << 16 | u32::from(half(2 * lane))
    }

    fn every_tile() -> Vec<&'static Tile> {
        [Tile::available(), Tile::available_of_pairs()].concat()
    }

    #[test]
    fn packed_rows_are_interleaved_by_run_and_tile() {
        for tile in every_tile() {
            for (m, k) in [(19, 150), (13, 64), (8, 9), (1, 1), (9, 2 * DEPTH + 131)] {
                let stride = k + 3;
                let data = noise(m * stride, 5);
                let mut packed = Lines::default();
                let (range, x) = (
                    2.min(k - 1)..k,
                    Rows {
                        data: &data,
                        stride,
                    },
                );
                pack_rows(tile, x, m, range.clone(), &mut packed);
                let mut at = 0;
                for run in runs(tile.lanes(range.len())) {
                    for first in (0..m).step_by(tile.rows) {
                        for lane in run.clone() {
                            for row in first..first + tile.rows {
                                let expected = if row < m {
                                    let numbers = &data[row * stride..][range.clone()];
                                    lane_of(tile, numbers, lane)
                                } else {
                                    0
                                };
                                assert_eq!(
                                    packed[at].to_bits(),
                                    expected,
                                    "row {row}, lane {lane}"
                                );
                                at += 1;
                            }
                        }
                    }
                }
                assert_eq!(at, packed.len());
            }
        }
    }

    #[test]
    fn a_packed_weight_holds_every_element_and_zeros_after_the_last_column() {
        for tile in every_tile() {
            for (n, k) in [(1, 1), (tile.columns + 5, 171), (2 * tile.columns, 64)] {
                let stored: Vec<bf16> = noise(n * k, 6).into_iter().map(bf16::from_f32).collect();
                let tensor = StoredTensor {
                    dtype: StoredDtype::BF16,
                    bytes: bytemuck::cast_slice(&stored),
                };
                let wide: Vec<f32> = stored.iter().map(|v| v.to_f32()).collect();
                let packed = PackedMatrix::pack(tile, &tensor, n, Lines::default());
                for panel in 0..packed.panels() {
                    let rows = packed.panel(panel, 0..k).chunks_exact(tile.columns);
                    assert_eq!(rows.len(), tile.lanes(k));
                    for (lane, row) in rows.enumerate() {
                        for (c, &value) in row.iter().enumerate() {
                            let column = panel * tile.columns + c;
                            let expected = if column < n {
                                lane_of(tile, &wide[column * k..][..k], lane)
                            } else {
                                0
                            };
                            assert_eq!(value.to_bits(), expected);
                        }
                    }
                }
            }
        }
    }
}
