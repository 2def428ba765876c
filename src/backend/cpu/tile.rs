//! The innermost loop of every matrix product: a small tile of the result, held in registers while it runs along k.
//!
//! A tile reads packed memory only (`packing.rs`): for each k the tile's rows of x side by side, and its columns of w
//! side by side. Each element is one chain of fused multiply-adds in the order of k, whatever the instruction set,
//! so every instance gives the same bits; tiles at an edge multiply padding and throw it away.
//!
//! The instances here multiply f32; those of `pairs.rs` two bf16 in each lane of the same memory.

use super::packing::DEPTH;

/// Steps of k after which another cache line is fetched ahead.
pub(super) const FETCH_EVERY: usize = 4;

/// Elements that one call over a whole run fetches ahead.
pub(super) const FETCHED: usize = DEPTH / FETCH_EVERY * 16;

/// One compiled instance of the loop.
#[derive(Debug)]
pub(super) struct Tile {
    /// Rows of x, and columns of w, that one call multiplies.
    pub rows: usize,
    pub columns: usize,
    /// Numbers of k in a lane of the packed memory: one f32, or two bf16.
    pub per_lane: usize,
    multiply: Loop,
}

/// Depth, x, w, c, whether to add, and what is fetched meanwhile: see [`Tile::multiply`].
type Loop = unsafe fn(usize, *const f32, *const f32, *mut f32, bool, *const f32);

/// For AVX-512: 24 accumulators of 16 lanes; a row of x is read by broadcast. On Sapphire Rapids within 5 % of the peak.
#[cfg(target_arch = "x86_64")]
static AVX512: Tile = Tile::of_f32(8, 48, x86::avx512::<8, 3>);

/// As [`AVX512`], for few columns: 64, say, are two of these and no padding.
#[cfg(target_arch = "x86_64")]
static AVX512_NARROW: Tile = Tile::of_f32(8, 32, x86::avx512::<8, 2>);

/// For AVX2 and FMA: 12 accumulators of 8 lanes, which leaves 4 of the 16 registers for x and w.
#[cfg(target_arch = "x86_64")]
static AVX2: Tile = Tile::of_f32(6, 16, x86::avx2::<6, 2>);

/// For any processor; LLVM makes what vector code it can of it.
static PORTABLE: Tile = Tile::of_f32(6, 16, portable::<6, 16>);

impl Tile {
    const fn of_f32(rows: usize, columns: usize, multiply: Loop) -> Self {
        let per_lane = 1;
        Tile {
            rows,
            columns,
            per_lane,
            multiply,
        }
    }

    pub(super) const fn of_pairs(rows: usize, columns: usize, multiply: Loop) -> Self {
        let per_lane = 2;
        Tile {
            rows,
            columns,
            per_lane,
            multiply,
        }
    }

    /// Lanes that `k` numbers take.
    pub fn lanes(&self, k: usize) -> usize {
        k.div_ceil(self.per_lane)
    }

    /// The fastest instance for f32 here.
    pub fn best() -> &'static Tile {
        #[cfg(target_arch = "x86_64")]
        {
            if super::simd::has_avx512() {
                return &AVX512;
            }
            if super::simd::has_avx2_and_fma() {
                return &AVX2;
            }
        }
        &PORTABLE
    }

    /// The instance of the same instruction set, and of as many rows, that multiplies the fewest padding columns onto `n`.
    pub fn for_columns(&'static self, n: usize) -> &'static Tile {
        let padded = |tile: &Tile| n.next_multiple_of(tile.columns);
        match self.narrow() {
            Some(narrow) if padded(narrow) < padded(self) && n < 10 * self.columns => narrow,
            _ => self,
        }
    }

    /// The instance of fewer columns beside this one, if it has one.
    fn narrow(&'static self) -> Option<&'static Tile> {
        #[cfg(target_arch = "x86_64")]
        if std::ptr::eq(self, &AVX512) {
            return Some(&AVX512_NARROW);
        }
        self.narrow_of_pairs()
    }

    /// Every instance for f32 that runs here.
    #[cfg(test)]
    pub fn available() -> Vec<&'static Tile> {
        let mut tiles = vec![&PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if super::simd::has_avx2_and_fma() {
                tiles.push(&AVX2);
            }
            if super::simd::has_avx512() {
                tiles.extend([&AVX512, &AVX512_NARROW]);
            }
        }
        tiles
    }

    /// c\[r, j\] (+)= Σ_k x\[k, r\] · w\[k, j\], over one run of at most [`DEPTH`] lanes; `x` is `[depth, rows]`, `w` `[depth, columns]`, `c`
    /// `[rows, columns]`. The run's sum is made from zero, then added to `c` (or stored, if not `add`). Meanwhile the cache
    /// lines from `soon` on are fetched, one every [`FETCH_EVERY`] steps.
    #[inline]
    pub fn multiply(&self, x: &[f32], w: &[f32], c: &mut [f32], add: bool, soon: *const f32) {
        let depth = w.len() / self.columns;
        assert!(
            x.len() == depth * self.rows
                && w.len() == depth * self.columns
                && c.len() == self.rows * self.columns
                && depth <= DEPTH
        );
        // SAFETY: the lengths are those that the instance reads and writes, by the assert; an instance is only handed out
        // where the processor has its instructions.
        unsafe { (self.multiply)(depth, x.as_ptr(), w.as_ptr(), c.as_mut_ptr(), add, soon) }
    }
}

/// # Safety
/// `x`, `w` and `c` hold `depth · ROWS`, `depth · COLUMNS` and `ROWS · COLUMNS` elements.
unsafe fn portable<const ROWS: usize, const COLUMNS: usize>(
    depth: usize,
    x: *const f32,
    w: *const f32,
    c: *mut f32,
    add: bool,
    _soon: *const f32,
) {
    // SAFETY: as the caller promises.
    let (x, w, c) = unsafe {
        (
            std::slice::from_raw_parts(x, depth * ROWS),
            std::slice::from_raw_parts(w, depth * COLUMNS),
            std::slice::from_raw_parts_mut(c, ROWS * COLUMNS),
        )
    };
    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
    for (x, w) in x.chunks_exact(ROWS).zip(w.chunks_exact(COLUMNS)) {
        for (sums, &x) in sums.iter_mut().zip(x) {
            for (sum, &w) in sums.iter_mut().zip(w) {
                *sum = x.mul_add(w, *sum);
            }
        }
    }
    for (c, &sum) in c.iter_mut().zip(sums.as_flattened()) {
        *c = if add { *c + sum } else { sum };
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::FETCH_EVERY;

    /// # Safety
    /// AVX-512F is there; `x`, `w` and `c` hold `depth · ROWS`, `depth · VECTORS · 16` and `ROWS · VECTORS · 16` elements.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512<const ROWS: usize, const VECTORS: usize>(
        depth: usize,
        mut x: *const f32,
        mut w: *const f32,
        c: *mut f32,
        add: bool,
        mut soon: *const f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for k in 0..depth {
            // SAFETY: step k of `depth` reads the k-th ROWS elements of x and the k-th VECTORS · 16 of w; to prefetch is a
            // hint, for which any address will do.
            unsafe {
                if k.is_multiple_of(FETCH_EVERY) {
                    _mm_prefetch::<_MM_HINT_T1>(soon.cast());
                    soon = soon.wrapping_add(16);
                }
                let mut columns = [_mm512_setzero_ps(); VECTORS];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(w.add(v * 16));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(r));
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_fmadd_ps(x, column, *sum);
                    }
                }
                x = x.add(ROWS);
                w = w.add(VECTORS * 16);
            }
        }
        // SAFETY: c holds ROWS · VECTORS · 16 elements.
        unsafe { store(sums.as_flattened(), c, add) };
    }

    /// Adds the sums to `c`, or stores them there.
    ///
    /// # Safety
    /// AVX-512F is there; `c` holds 16 elements for each of `sums`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn store(sums: &[__m512], c: *mut f32, add: bool) {
        for (i, &sum) in sums.iter().enumerate() {
            // SAFETY: `i` is below the number of sums.
            unsafe {
                let at = c.add(i * 16);
                let whole = if add {
                    _mm512_add_ps(_mm512_loadu_ps(at), sum)
                } else {
                    sum
                };
                _mm512_storeu_ps(at, whole);
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA are there; `x`, `w` and `c` hold `depth · ROWS`, `depth · VECTORS · 8` and `ROWS · VECTORS · 8` elements.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<const ROWS: usize, const VECTORS: usize>(
        depth: usize,
        mut x: *const f32,
        mut w: *const f32,
        c: *mut f32,
        add: bool,
        mut soon: *const f32,
    ) {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        for k in 0..depth {
            // SAFETY: step k of `depth` reads the k-th ROWS elements of x and the k-th VECTORS · 8 of w; to prefetch is a
            // hint, for which any address will do.
            unsafe {
                if k.is_multiple_of(FETCH_EVERY) {
                    _mm_prefetch::<_MM_HINT_T1>(soon.cast());
                    soon = soon.wrapping_add(16);
                }
                let mut columns = [_mm256_setzero_ps(); VECTORS];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = _mm256_loadu_ps(w.add(v * 8));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(r));
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm256_fmadd_ps(x, column, *sum);
                    }
                }
                x = x.add(ROWS);
                w = w.add(VECTORS * 8);
            }
        }
        for (i, &sum) in sums.as_flattened().iter().enumerate() {
            // SAFETY: `i` is below ROWS · VECTORS.
            unsafe {
                let at = c.add(i * 8);
                let whole = if add {
                    _mm256_add_ps(_mm256_loadu_ps(at), sum)
                } else {
                    sum
                };
                _mm256_storeu_ps(at, whole);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    #[test]
    fn every_instance_gives_the_bits_of_the_portable_one() {
        for tile in Tile::available() {
            for depth in [1, 2, 7, DEPTH] {
                let x = noise(depth * tile.rows, 1);
                let w = noise(depth * tile.columns, 2);
                let mut c = noise(tile.rows * tile.columns, 3);
                let before = c.clone();
                tile.multiply(&x, &w, &mut c, true, w.as_ptr());
                for r in 0..tile.rows {
                    for j in 0..tile.columns {
                        let sum = (0..depth).fold(0.0_f32, |sum, k| {
                            x[k * tile.rows + r].mul_add(w[k * tile.columns + j], sum)
                        });
                        let at = r * tile.columns + j;
                        assert_eq!(c[at].to_bits(), (before[at] + sum).to_bits(), "{tile:?}");
                    }
                }
            }
        }
    }
}
