//! Matrix products: x `[m, k]` · (w `[n, k]`)ᵀ, by tiles of packed memory.
//!
//! Every element is the same sum whatever the number of rows, threads or tiles: runs of [`DEPTH`] products, each run one
//! chain of fused multiply-adds from zero in the order of k, added up in order. So a row's bits depend on the row alone. Of bf16
//! the same holds with [`DEPTH`] pairs (`pairs.rs` has their order), and the sum is rounded once, when it is whole.
//!
//! A thread packs a block of rows once for all products that read them, and takes the panels of w one after the
//! other: a run of a panel stays in the first-level cache while the block's tiles pass, the block in the second.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::elementwise::{add, swiglu};
use super::packing::{DEPTH, Lines, PackedMatrix, pack_rows, runs};
use super::precision::{Rounding, round_all};
use super::tile::{FETCHED, Tile};

/// The matrix product, for the numeric record: another way to sum gives other bits.
pub const GEMM: &str = "streamgauge 1, fused multiply-adds in runs of 112";
/// The same of bf16.
pub const GEMM_BF16: &str =
    "streamgauge 1, bf16 pairs in fused multiply-adds, odd first, in runs of 112 pairs";
const _: () = assert!(DEPTH == 112, "both say how long a run is");

/// Rows that a thread multiplies at a time: enough to pay for reading the weights.
pub(super) const BLOCK: usize = 128;

/// Most lanes of k that are packed at a time: a block then takes 0.8 MB of the second-level cache.
const PACKED_LANES: usize = 14 * DEPTH;

/// A row-major matrix in memory: element (r, c) is `data[r · stride + c]`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Where a product goes: element (r, c) is `stride · r + c` after `at`. Tasks share it, each writing its own elements.
#[derive(Clone, Copy)]
pub(super) struct Out {
    at: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: whoever shares it sees to it that no element is used by two threads at once (`multiply_rows`).
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    pub fn new(data: &mut [f32], stride: usize) -> Self {
        Out {
            at: data.as_mut_ptr(),
            len: data.len(),
            stride,
        }
    }

    /// The same from row `first` on.
    pub fn skip_rows(self, first: usize) -> Self {
        let skipped = (first * self.stride).min(self.len);
        Out {
            at: self.at.wrapping_add(skipped),
            len: self.len - skipped,
            stride: self.stride,
        }
    }

    /// Has the cache lines of these elements fetched for writing: reading them first would halt the store.
    #[inline]
    fn will_write(&self, row: usize, columns: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        for column in columns.step_by(16) {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let at = self.at.wrapping_add(row * self.stride + column);
            // SAFETY: a hint, for which any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (row, columns);
    }

    /// Elements `columns` of a row.
    ///
    /// # Safety
    /// The memory is alive, and nobody else uses these elements meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let first = row * self.stride + columns.start;
        assert!(first + columns.len() <= self.len && columns.end <= self.stride);
        // SAFETY: in bounds by the assert, and ours alone, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(first), columns.len()) }
    }
}

/// One product of rows: by rows `first_k..` of the panels `panels` of `w`.
#[derive(Clone)]
pub(super) struct Product<'a> {
    pub w: &'a PackedMatrix,
    pub first_k: usize,
    pub panels: Range<usize>,
    pub out: Out,
    /// Whether `out` is read later: if not, a fused op may leave it unwritten.
    pub keep: bool,
}

/// A product and what is done with it while it is at hand.
#[derive(Clone)]
pub(super) enum Fused<'a> {
    Plain(Product<'a>),
    /// out = a + product, rounded
    Add {
        product: Product<'a>,
        a: Rows<'a>,
        out: Out,
        rounding: Rounding,
    },
    /// out = silu(gate) · up
    SwiGlu {
        gate: Product<'a>,
        up: Product<'a>,
        out: Out,
    },
}

thread_local! {
    static PACKED_X: RefCell<Lines> = RefCell::default();
    static SUMS: RefCell<[Lines; 2]> = RefCell::default();
}

/// out\[r, c\] = Σ x\[r, i\] · w\[c, first_k + i\] over i < k, for `m` rows of x and each product, on this thread. Every w is
/// packed for tiles of that many rows and numbers a lane.
///
/// # Safety
/// The products' outputs are alive, and nobody else uses the `m` rows of their panels' columns meanwhile.
pub(super) unsafe fn multiply_rows(
    tile: &Tile,
    x: Rows<'_>,
    m: usize,
    k: usize,
    products: &[Fused<'_>],
) {
    PACKED_X.with_borrow_mut(|packed| {
        SUMS.with_borrow_mut(|sums| {
            let packed_k = PACKED_LANES * tile.per_lane;
            for first in (0..k).step_by(packed_k) {
                let part = Part {
                    m,
                    k: first..(first + packed_k).min(k),
                    last: first + packed_k >= k,
                };
                pack_rows(tile, x, m, part.k.clone(), packed);
                for product in products {
                    // SAFETY: as the caller promises.
                    unsafe { part.fused(packed, product, sums) };
                }
            }
        });
    });
}

/// A part of k, for some rows.
struct Part {
    m: usize,
    k: Range<usize>,
    last: bool,
}

impl Part {
    /// # Safety
    /// As [`multiply_rows`].
    unsafe fn fused(&self, x: &[f32], fused: &Fused<'_>, [one, two]: &mut [Lines; 2]) {
        // SAFETY: as the caller promises, here and below.
        unsafe {
            match fused {
                Fused::Plain(product) => {
                    for panel in product.panels.clone() {
                        self.panel(x, product, panel, product.out, one);
                        self.store(product, panel, one);
                    }
                }
                Fused::Add {
                    product,
                    a,
                    out,
                    rounding,
                } => {
                    for panel in product.panels.clone() {
                        self.panel(x, product, panel, *out, one);
                        if product.keep || !self.last {
                            self.store(product, panel, one);
                        }
                        if self.last {
                            let columns = product.columns(panel);
                            for (r, sums) in product.rows_of(one, self.m).enumerate() {
                                let a = &a.data[r * a.stride..][columns.clone()];
                                let out = out.row(r, columns.clone());
                                add(*rounding, a, &sums[..columns.len()], out);
                            }
                        }
                    }
                }
                Fused::SwiGlu { gate, up, out } => {
                    for panel in gate.panels.clone() {
                        self.panel(x, gate, panel, *out, one);
                        self.panel(x, up, panel, *out, two);
                        for (product, sums) in [(gate, &mut *one), (up, &mut *two)] {
                            if product.keep || !self.last {
                                self.store(product, panel, sums);
                            }
                        }
                        if self.last {
                            let columns = gate.columns(panel);
                            let ups = up.rows_of(two, self.m);
                            for (r, (gates, ups)) in gate.rows_of(one, self.m).zip(ups).enumerate()
                            {
                                let out = out.row(r, columns.clone());
                                let (gates, ups) = (&gates[..columns.len()], &ups[..columns.len()]);
                                swiglu(gate.w.rounding(), gates, ups, out);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Sums of one panel over this part of k and those before it; `to` is where they will go.
    ///
    /// # Safety
    /// As [`multiply_rows`].
    unsafe fn panel(
        &self,
        x: &[f32],
        product: &Product<'_>,
        panel: usize,
        to: Out,
        sums: &mut Lines,
    ) {
        let (w, tile) = (product.w, product.w.tile);
        let columns = product.columns(panel);
        sums.resize(self.m.next_multiple_of(tile.rows) * tile.columns);
        if self.k.start > 0 {
            for (r, sums) in sums.chunks_exact_mut(tile.columns).take(self.m).enumerate() {
                // SAFETY: this task's own rows and columns, as the caller promises.
                let before = unsafe { product.out.row(r, columns.clone()) };
                sums[..columns.len()].copy_from_slice(before);
            }
        }
        let k = product.first_k + self.k.start..product.first_k + self.k.end;
        multiply_panel(tile, x, w.panel(panel, k), sums, self.k.start > 0, |i| {
            let rows = i * tile.rows..((i + 1) * tile.rows).min(self.m);
            rows.for_each(|r| to.will_write(r, columns.clone()));
        });
        if self.last {
            round_all(w.rounding(), sums);
        }
    }

    /// # Safety
    /// As [`multiply_rows`].
    unsafe fn store(&self, product: &Product<'_>, panel: usize, sums: &Lines) {
        let columns = product.columns(panel);
        for (r, sums) in product.rows_of(sums, self.m).enumerate() {
            // SAFETY: this task's own rows and columns, as the caller promises.
            let out = unsafe { product.out.row(r, columns.clone()) };
            out.copy_from_slice(&sums[..columns.len()]);
        }
    }
}

impl Product<'_> {
    /// The columns of the output that a panel makes.
    fn columns(&self, panel: usize) -> Range<usize> {
        let width = self.w.tile.columns;
        panel * width..((panel + 1) * width).min(self.w.n)
    }

    fn rows_of<'s>(&self, sums: &'s Lines, m: usize) -> impl Iterator<Item = &'s [f32]> {
        sums.chunks_exact(self.w.tile.columns).take(m)
    }
}

/// sums (+)= x · w for packed rows (`pack_rows`) and one panel `[k, columns]`; `sums` is `[tiles, tile rows, columns]`.
/// `finishing` is told of each tile before its last run.
pub(super) fn multiply_panel(
    tile: &Tile,
    x: &[f32],
    panel: &[f32],
    sums: &mut [f32],
    add: bool,
    finishing: impl Fn(usize),
) {
    let area = tile.rows * tile.columns;
    let tiles = sums.len() / area;
    let lanes = panel.len() / tile.columns;
    assert_eq!(
        x.len(),
        tiles * tile.rows * lanes,
        "x holds the tiles' rows of k"
    );
    let mut at = 0;
    for run in runs(lanes) {
        let w = &panel[run.start * tile.columns..run.end * tile.columns];
        // Weights are read from memory once per block of rows, in one long sweep: fetch what follows.
        let mut soon = w.as_ptr_range().end;
        for (i, sums) in sums.chunks_exact_mut(area).enumerate() {
            if run.end == lanes {
                finishing(i);
            }
            let length = run.len() * tile.rows;
            tile.multiply(&x[at..at + length], w, sums, add || run.start > 0, soon);
            soon = soon.wrapping_add(FETCHED);
            at += length;
        }
    }
}

/// How many tasks rows are cut into, and of how many rows each is at most: about [`BLOCK`], and as many for every thread.
pub(super) fn blocks(tile: &Tile, rows: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let blocks = rows.div_ceil(BLOCK).next_multiple_of(threads);
    let size = rows.div_ceil(blocks).next_multiple_of(tile.rows);
    (rows.div_ceil(size), size)
}

/// out\[r, c\] = Σ x\[r, i\] · w\[c, first_k + i\] over i < k, on all cores: in tasks of some rows and some panels.
pub(super) fn linear(
    m: usize,
    k: usize,
    x: Rows<'_>,
    w: &PackedMatrix,
    first_k: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    if m == 0 || w.n == 0 {
        return;
    }
    assert!(
        w.n <= out_stride && (m - 1) * out_stride + w.n <= out.len(),
        "out holds m rows of n"
    );
    let threads = rayon::current_num_threads();
    let (row_tasks, size) = blocks(w.tile, m);
    let groups = (4 * threads).div_ceil(row_tasks).clamp(1, w.panels());
    let groups = if row_tasks >= 2 * threads { 1 } else { groups };
    let out = Out::new(out, out_stride);
    (0..row_tasks * groups)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (block, group) = (task / groups, task % groups);
            let rows = block * size..((block + 1) * size).min(m);
            let x = Rows {
                data: &x.data[rows.start * x.stride..],
                stride: x.stride,
            };
            let product = Product {
                w,
                first_k,
                panels: group * w.panels() / groups..(group + 1) * w.panels() / groups,
                out: out.skip_rows(rows.start),
                keep: true,
            };
            // SAFETY: `out` is borrowed mutably for the whole call, and tasks differ in rows or in panels.
            unsafe { multiply_rows(w.tile, x, rows.len(), k, &[Fused::Plain(product)]) };
        });
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::super::testing::noise;
    use super::super::weights::{StoredDtype, StoredTensor};
    use super::*;

    fn packed(tile: &'static Tile, w: &[f32], n: usize) -> PackedMatrix {
        let tensor = StoredTensor {
            dtype: StoredDtype::F32,
            bytes: bytemuck::cast_slice(w),
        };
        PackedMatrix::pack(tile, &tensor, n, Lines::default())
    }

    fn product(m: usize, x: Rows<'_>, w: &PackedMatrix) -> Vec<f32> {
        let stride = w.n + 2;
        let mut out = vec![f32::NAN; m * stride];
        linear(m, w.k, x, w, 0, &mut out, stride);
        out.chunks_exact(stride)
            .flat_map(|row| {
                assert!(
                    row[w.n..].iter().all(|v| v.is_nan()),
                    "padding is left alone"
                );
                row[..w.n].to_vec()
            })
            .collect()
    }

    /// Element by element, as `GEMM` and `GEMM_BF16` say.
    fn by_definition(tile: &Tile, x: &[f32], w: &[f32]) -> f32 {
        let round = |v| match tile.per_lane {
            1 => v,
            _ => bf16::from_f32(v).to_f32(),
        };
        let run_of = tile.per_lane * DEPTH;
        let mut sum: Option<f32> = None;
        for (x, w) in x.chunks(run_of).zip(w.chunks(run_of)) {
            let lanes = x.chunks(tile.per_lane).zip(w.chunks(tile.per_lane));
            let products = lanes.flat_map(|(x, w)| x.iter().zip(w).rev());
            let run = products.fold(0.0_f32, |s, (&x, &w)| round(x).mul_add(round(w), s));
            sum = Some(sum.map_or(run, |s| s + run));
        }
        round(sum.unwrap_or(0.0))
    }

    fn every_tile() -> Vec<&'static Tile> {
        [Tile::available(), Tile::available_of_pairs()].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_row_has_the_bits_of_the_definition_whatever_shares_the_product(
            n in prop_oneof![1_usize..100, Just(192_usize), Just(576)],
            k in prop_oneof![1_usize..200, Just(576_usize), Just(PACKED_LANES), Just(2 * PACKED_LANES + 71)],
            m in prop_oneof![1_usize..20, 60_usize..300], padding in 0_usize..3, seed in any::<u64>(),
        ) {
            let stride = k + padding;
            let (x, w) = (noise(m * stride, seed), noise(n * k, seed ^ 1));
            for tile in every_tile() {
                let found = product(m, Rows { data: &x, stride }, &packed(tile, &w, n));
                // All of a few columns, and a few of all.
                for r in 0..m {
                    for c in (0..n).filter(|c| c % 17 == r % 17 || *c == n - 1) {
                        let truth = by_definition(tile, &x[r * stride..][..k], &w[c * k..][..k]);
                        prop_assert_eq!(found[r * n + c].to_bits(), truth.to_bits());
                    }
                }
            }
        }

        #[test]
        fn the_product_is_the_sum_over_k(in_pairs in any::<bool>(), m in 1_usize..9, n in 1_usize..60, k in 1_usize..400, seed in any::<u64>()) {
            // Numbers that bf16 holds; its sum is rounded to one of 8 bits.
            let numbers = |len, seed| noise(len, seed).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect::<Vec<f32>>();
            let (x, w) = (numbers(m * k, seed), numbers(n * k, seed ^ 1));
            let tile = if in_pairs { Tile::best_of_pairs() } else { Tile::best() };
            let found = product(m, Rows { data: &x, stride: k }, &packed(tile, &w, n));
            for r in 0..m {
                for c in 0..n {
                    let products = (0..k).map(|i| x[r * k + i] as f64 * w[c * k + i] as f64);
                    let truth: f64 = products.clone().sum();
                    let size: f64 = products.map(f64::abs).sum();
                    let rounding = if in_pairs { truth.abs() / 256.0 } else { 0.0 };
                    prop_assert!((found[r * n + c] as f64 - truth).abs() <= 2e-6 * size + rounding + 1e-30);
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (m, n, k) = (301, 100, 130);
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let w = packed(Tile::best(), &w, n);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                product(
                    m,
                    Rows {
                        data: &x,
                        stride: k,
                    },
                    &w,
                )
            })
        };
        let one = with(1);
        for threads in [2, 3, 16] {
            assert!(
                one.iter()
                    .zip(with(threads))
                    .all(|(a, b)| a.to_bits() == b.to_bits())
            );
        }
    }

    #[test]
    fn a_part_of_k_multiplies_as_a_weight_of_its_own() {
        let (m, n, k, first) = (5, 20, 96, 32);
        let (x, w) = (noise(m * 48, 1), noise(n * k, 2));
        let part: Vec<f32> = w
            .chunks_exact(k)
            .flat_map(|row| row[first..first + 48].to_vec())
            .collect();
        let x = Rows {
            data: &x,
            stride: 48,
        };
        for tile in [Tile::best(), Tile::best_of_pairs()] {
            let expected = product(m, x, &packed(tile, &part, n));
            let mut out = vec![0.0; m * n];
            linear(m, 48, x, &packed(tile, &w, n), first, &mut out, n);
            assert_eq!(out, expected);
        }
    }
}
