//! Products of bf16: two numbers of k side by side in one 32-bit lane, as the processor's dot products take them.
//!
//! Lane j of a row holds numbers 2j (low half) and 2j + 1. A step multiplies the pair of x with the pair of w and adds both to an f32
//! sum: the odd product first, then the even one, each by a fused multiply-add. That is what VDPBF16PS does (Intel's manual), so the
//! loops without that instruction give the same bits; only of numbers below 1.2e-38, which it takes as 0, do they make something.

use super::precision::to_bf16;
use super::simd::vectorised;
use super::tile::Tile;

/// The dot products of AVX-512-BF16, tiled as the f32 ones are: Zen 5 does twice the multiply-adds of f32 with them.
#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Tile = Tile::of_pairs(8, 48, x86::avx512_bf16::<8, 3>);

/// As [`AVX512_BF16`], for few columns.
#[cfg(target_arch = "x86_64")]
static AVX512_BF16_NARROW: Tile = Tile::of_pairs(8, 32, x86::avx512_bf16::<8, 2>);

/// Without these instructions there is no gain over f32 but the smaller memory. 8 rows of 16: x and w are taken apart in registers.
#[cfg(target_arch = "x86_64")]
static AVX512: Tile = Tile::of_pairs(8, 16, x86::avx512);

#[cfg(target_arch = "x86_64")]
static AVX2: Tile = Tile::of_pairs(6, 8, x86::avx2);

static PORTABLE: Tile = Tile::of_pairs(6, 8, portable);

impl Tile {
    /// The fastest instance for bf16 here.
    pub fn best_of_pairs() -> &'static Tile {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512_bf16() {
                return &AVX512_BF16;
            }
            if super::simd::has_avx512() {
                return &AVX512;
            }
            if super::simd::has_avx2_and_fma() {
                return &AVX2;
            }
        }
        &PORTABLE
    }

    /// The instance of fewer columns beside this one.
    pub(super) fn narrow_of_pairs(&'static self) -> Option<&'static Tile> {
        #[cfg(target_arch = "x86_64")]
        if std::ptr::eq(self, &AVX512_BF16) {
            return Some(&AVX512_BF16_NARROW);
        }
        None
    }

    /// Every instance for bf16 that runs here.
    #[cfg(test)]
    pub fn available_of_pairs() -> Vec<&'static Tile> {
        let mut tiles = vec![&PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if super::simd::has_avx2_and_fma() {
                tiles.push(&AVX2);
            }
            if super::simd::has_avx512() {
                tiles.push(&AVX512);
            }
            if has_avx512_bf16() {
                tiles.extend([&AVX512_BF16, &AVX512_BF16_NARROW]);
            }
        }
        tiles
    }
}

/// Whether the processor has dot products of bf16.
#[inline]
pub(super) fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *HAS.get_or_init(|| super::simd::has_avx512() && is_x86_feature_detected!("avx512bf16"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

vectorised! {
    /// Rounds numbers to bf16 and lays each two in a lane; the last of an odd number of them has a zero beside it.
    pub(super) fn pair(numbers: &[f32], lanes: &mut [f32]) = pair_loop;
}

#[inline(always)]
fn pair_loop(numbers: &[f32], lanes: &mut [f32]) {
    let (pairs, last) = numbers.as_chunks::<2>();
    for (lane, &[even, odd]) in lanes.iter_mut().zip(pairs) {
        *lane = lane_of(even, odd);
    }
    if let (Some(lane), &[last]) = (lanes.get_mut(pairs.len()), last) {
        *lane = lane_of(last, 0.0);
    }
}

vectorised! {
    /// Lays two rows of numbers, rounded to bf16, side by side in lanes.
    pub(super) fn pair_rows(even: &[f32], odd: &[f32], lanes: &mut [f32]) = pair_rows_loop;
}

#[inline(always)]
fn pair_rows_loop(even: &[f32], odd: &[f32], lanes: &mut [f32]) {
    for ((lane, &even), &odd) in lanes.iter_mut().zip(even).zip(odd) {
        *lane = lane_of(even, odd);
    }
}

/// Both as bf16 (rounded, ties to even) in one lane.
#[inline(always)]
pub(super) fn lane_of(even: f32, odd: f32) -> f32 {
    f32::from_bits(to_bf16(even).to_bits() >> 16 | to_bf16(odd).to_bits())
}

/// The even and the odd number of a lane.
#[inline(always)]
fn apart(lane: f32) -> [f32; 2] {
    let bits = lane.to_bits();
    [
        f32::from_bits(bits << 16),
        f32::from_bits(bits & 0xffff_0000),
    ]
}

/// # Safety
/// As of every instance: `x`, `w` and `c` hold `depth · 6`, `depth · 8` and `6 · 8` lanes.
unsafe fn portable(
    depth: usize,
    x: *const f32,
    w: *const f32,
    c: *mut f32,
    add: bool,
    _: *const f32,
) {
    // SAFETY: as the caller promises.
    unsafe { multiply::<6, 8>(depth, x, w, c, add) }
}

/// # Safety
/// `x`, `w` and `c` hold `depth · ROWS`, `depth · COLUMNS` and `ROWS · COLUMNS` lanes.
#[inline(always)]
unsafe fn multiply<const ROWS: usize, const COLUMNS: usize>(
    depth: usize,
    x: *const f32,
    w: *const f32,
    c: *mut f32,
    add: bool,
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
    for (x, w) in x
        .as_chunks::<ROWS>()
        .0
        .iter()
        .zip(w.as_chunks::<COLUMNS>().0)
    {
        let w = w.map(apart);
        for (sums, &x) in sums.iter_mut().zip(x) {
            let [x_even, x_odd] = apart(x);
            for (sum, [w_even, w_odd]) in sums.iter_mut().zip(w) {
                *sum = x_even.mul_add(w_even, x_odd.mul_add(w_odd, *sum));
            }
        }
    }
    for (c, &sum) in c.iter_mut().zip(sums.as_flattened()) {
        *c = if add { *c + sum } else { sum };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::tile::FETCH_EVERY;

    /// # Safety
    /// AVX-512F is there; `x`, `w` and `c` hold `depth · 8`, `depth · 16` and `8 · 16` lanes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub unsafe fn avx512(
        depth: usize,
        x: *const f32,
        w: *const f32,
        c: *mut f32,
        add: bool,
        _: *const f32,
    ) {
        // SAFETY: as the caller promises.
        unsafe { super::multiply::<8, 16>(depth, x, w, c, add) }
    }

    /// # Safety
    /// AVX2 and FMA are there; `x`, `w` and `c` hold `depth · 6`, `depth · 8` and `6 · 8` lanes.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(
        depth: usize,
        x: *const f32,
        w: *const f32,
        c: *mut f32,
        add: bool,
        _: *const f32,
    ) {
        // SAFETY: as the caller promises.
        unsafe { super::multiply::<6, 8>(depth, x, w, c, add) }
    }

    /// # Safety
    /// AVX-512F and AVX-512-BF16 are there; `x`, `w` and `c` hold `depth · ROWS`, `depth · VECTORS · 16` and `ROWS · VECTORS · 16`
    /// lanes.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn avx512_bf16<const ROWS: usize, const VECTORS: usize>(
        depth: usize,
        mut x: *const f32,
        mut w: *const f32,
        c: *mut f32,
        add: bool,
        mut soon: *const f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for k in 0..depth {
            // SAFETY: step k of `depth` reads the k-th ROWS lanes of x and the k-th VECTORS · 16 of w; to prefetch is a hint, for
            // which any address will do; a register of 32-bit lanes is one of pairs of bf16.
            unsafe {
                if k.is_multiple_of(FETCH_EVERY) {
                    _mm_prefetch::<_MM_HINT_T1>(soon.cast());
                    soon = soon.wrapping_add(16);
                }
                let mut columns = [_mm512_setzero_si512(); VECTORS];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_si512(w.add(v * 16).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32((*x.add(r)).to_bits() as i32);
                    let x: __m512bh = std::mem::transmute(x);
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_dpbf16_ps(
                            *sum,
                            x,
                            std::mem::transmute::<__m512i, __m512bh>(column),
                        );
                    }
                }
                x = x.add(ROWS);
                w = w.add(VECTORS * 16);
            }
        }
        // SAFETY: c holds ROWS · VECTORS · 16 elements.
        unsafe { super::super::tile::x86::store(sums.as_flattened(), c, add) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::packing::DEPTH;
    use super::super::testing::noise;
    use super::*;

    #[test]
    fn every_instance_gives_the_bits_of_two_fused_multiply_adds_a_lane() {
        for tile in Tile::available_of_pairs() {
            for depth in [1, 2, 7, DEPTH] {
                let (x, w) = (
                    noise(2 * depth * tile.rows, 1),
                    noise(2 * depth * tile.columns, 2),
                );
                let lanes = |numbers: &[f32]| {
                    let pairs = numbers.chunks_exact(2);
                    pairs.map(|p| lane_of(p[0], p[1])).collect::<Vec<f32>>()
                };
                let mut c = noise(tile.rows * tile.columns, 3);
                let before = c.clone();
                let packed = lanes(&w);
                tile.multiply(&lanes(&x), &packed, &mut c, true, packed.as_ptr());
                for r in 0..tile.rows {
                    for j in 0..tile.columns {
                        let mut sum = 0.0_f32;
                        for k in 0..depth {
                            let x = &x[2 * (k * tile.rows + r)..][..2];
                            let w = &w[2 * (k * tile.columns + j)..][..2];
                            sum = to_bf16(x[1]).mul_add(to_bf16(w[1]), sum);
                            sum = to_bf16(x[0]).mul_add(to_bf16(w[0]), sum);
                        }
                        let at = r * tile.columns + j;
                        assert_eq!(c[at].to_bits(), (before[at] + sum).to_bits(), "{tile:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_of_an_odd_number_has_a_zero_beside_it() {
        let mut lanes = [f32::NAN; 3];
        pair(&[1.0, -2.0, 0.5, 4.0, 3.0], &mut lanes);
        assert_eq!(lanes.map(apart), [[1.0, -2.0], [0.5, 4.0], [3.0, 0.0]]);
    }
}
