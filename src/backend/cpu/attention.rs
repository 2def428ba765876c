//! Causal attention with a sliding window and grouped key/value heads, per sample.
//!
//! A task is one query head of one sample. It takes the queries in tiles of [`TILE`]: scores of the tile against the
//! keys it may see, softmax row by row, and the weighted sum of the values. Tiles begin at the sample's first token,
//! so a sample's bits do not depend on what else is in the batch.
//! Window W keeps W keys, the query's own included: key j is visible to query i iff i − W < j ≤ i.

use std::cell::RefCell;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::edit::{self, HeadRow, PatternEdits};
use super::emit::store_row;
use super::math::{exp, max, sum_by};
use super::matmul::{Rows, RowsMut, Size, product};
use super::simd::vectorised;
use crate::backend::{Edit, Sink};

/// Queries per tile.
pub const TILE: usize = 64;

/// The sizes of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
}

impl Heads {
    /// The keys that query `i` sees.
    pub(super) fn visible(&self, i: usize) -> Range<usize> {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1
    }
}

/// Inputs: `q` `[rows, H, h]` and `k` `[rows, K, h]` after RoPE, `v` `[rows, K, h]`.
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// What is read and written between the ops of attention.
pub(super) struct Hooks<'a, 's> {
    pub scores: &'a mut [Sink<'s>],
    pub patterns: &'a mut [Sink<'s>],
    pub edits: &'a mut [Edit],
    pub taps_before_edits: bool,
}

/// The same, as the tasks share it.
struct Shared<'a> {
    scores: RaggedSinks<'a>,
    patterns: RaggedSinks<'a>,
    edits: PatternEdits<'a>,
    taps_before_edits: bool,
}

/// z `[rows, H, h]`; and the rows that the sinks ask for, of the scores (−∞ where a key is not visible) and of the patterns,
/// which are edited before they weigh the values.
pub(super) fn attention(
    heads: Heads,
    samples: &[Range<usize>],
    inputs: &Inputs<'_>,
    z: &mut [f32],
    hooks: Hooks<'_, '_>,
) {
    let shared = Shared {
        scores: RaggedSinks::new(hooks.scores, samples, heads.n_heads),
        patterns: RaggedSinks::new(hooks.patterns, samples, heads.n_heads),
        edits: PatternEdits::new(hooks.edits, samples, heads.n_heads),
        taps_before_edits: hooks.taps_before_edits,
    };
    let z = SharedOut(z.as_mut_ptr(), z.len());
    let done: Vec<Vec<HeadRow>> = (0..samples.len() * heads.n_heads)
        .into_par_iter()
        .map(|task| {
            let (sample, head) = (task / heads.n_heads, task % heads.n_heads);
            let rows = samples[sample].clone();
            one_head(heads, sample, head, rows, inputs, &z, &shared)
        })
        .collect();
    edit::receipts(hooks.edits, done.into_iter().flatten());
}

/// The output that tasks share; each writes its own head of its own sample.
struct SharedOut(*mut f32, usize);
// SAFETY: tasks write disjoint elements (see `one_head`).
unsafe impl Sync for SharedOut {}

thread_local! {
    static TILE_SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn one_head(
    heads: Heads,
    sample: usize,
    head: usize,
    rows: Range<usize>,
    inputs: &Inputs<'_>,
    z: &SharedOut,
    shared: &Shared<'_>,
) -> Vec<HeadRow> {
    let Shared {
        scores,
        patterns,
        edits,
        taps_before_edits,
    } = shared;
    let mut done = Vec::new();
    let Heads {
        n_heads,
        n_kv_heads,
        head_dim,
        ..
    } = heads;
    let kv_head = head / (n_heads / n_kv_heads);
    let (q_stride, kv_stride) = (n_heads * head_dim, n_kv_heads * head_dim);
    let n = rows.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    TILE_SCRATCH.with_borrow_mut(|scratch| {
        for first in (0..n).step_by(TILE) {
            let queries = first..(first + TILE).min(n);
            let keys = heads.visible(queries.start).start..queries.end;
            let (m, width) = (queries.len(), keys.len());
            scratch.clear();
            scratch.resize(m * width + m * head_dim, 0.0);
            let (tile, z_tile) = scratch.split_at_mut(m * width);
            let q = Rows {
                data: &inputs.q[(rows.start + queries.start) * q_stride + head * head_dim..],
                stride: q_stride,
            };
            let k = Rows {
                data: &inputs.k[(rows.start + keys.start) * kv_stride + kv_head * head_dim..],
                stride: kv_stride,
            };
            let size = Size {
                m,
                n: width,
                k: head_dim,
            };
            product(
                size,
                q,
                k,
                RowsMut {
                    data: tile,
                    stride: width,
                },
                scale,
                Parallelism::None,
            );

            let seen = |r: usize| {
                let seen = heads.visible(queries.start + r);
                seen.start - keys.start..seen.end - keys.start
            };
            if !scores.is_empty() {
                for (r, row) in tile.chunks_exact(width).enumerate() {
                    let (i, seen) = (queries.start + r, seen(r));
                    let first = keys.start + seen.start;
                    scores.write(sample, head, i, n, first, &row[seen], f32::NEG_INFINITY);
                }
            }
            for (r, row) in tile.chunks_exact_mut(width).enumerate() {
                let seen = seen(r);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                softmax(&mut row[seen]);
            }
            let write = |tile: &[f32]| {
                for (r, row) in tile.chunks_exact(width).enumerate() {
                    let (i, seen) = (queries.start + r, seen(r));
                    patterns.write(sample, head, i, n, keys.start + seen.start, &row[seen], 0.0);
                }
            };
            if !patterns.is_empty() && *taps_before_edits {
                write(tile);
            }
            if !edits.is_empty() {
                for (r, row) in tile.chunks_exact_mut(width).enumerate() {
                    let (i, seen) = (queries.start + r, seen(r));
                    let first = keys.start + seen.start;
                    edits.apply(sample, head, i, n, first, &mut row[seen], &mut done);
                }
            }
            if !patterns.is_empty() && !taps_before_edits {
                write(tile);
            }
            weighted_values(
                tile,
                m,
                width,
                inputs.v,
                (rows.start + keys.start) * kv_stride + kv_head * head_dim,
                kv_stride,
                head_dim,
                z_tile,
            );
            for (r, row) in z_tile.chunks_exact(head_dim).enumerate() {
                let at = (rows.start + queries.start + r) * q_stride + head * head_dim;
                assert!(at + head_dim <= z.1);
                // SAFETY: in bounds by the assert; elements of this row and head belong to this task alone.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), z.0.add(at), head_dim) };
            }
        }
    });
    done
}

vectorised! {
    pub(super) fn softmax(row: &mut [f32]) = softmax_loop;
}

#[inline(always)]
fn softmax_loop(row: &mut [f32]) {
    let largest = max(row);
    for s in row.iter_mut() {
        *s = exp(*s - largest);
    }
    let inverse = 1.0 / sum_by(row, |p| p);
    for p in row.iter_mut() {
        *p *= inverse;
    }
}

/// z\[r\] = Σ_j tile\[r, j\] · v\[j\]
#[allow(clippy::too_many_arguments)]
fn weighted_values(
    tile: &[f32],
    m: usize,
    width: usize,
    v: &[f32],
    v_at: usize,
    v_stride: usize,
    head_dim: usize,
    z: &mut [f32],
) {
    assert!(
        v_at + (width - 1) * v_stride + head_dim <= v.len()
            && z.len() == m * head_dim
            && tile.len() == m * width
    );
    // SAFETY: the assert keeps every element that gemm addresses inside its slice; z is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            head_dim,
            width,
            z.as_mut_ptr(),
            1,
            head_dim as isize,
            false,
            tile.as_ptr(),
            1,
            width as isize,
            v.as_ptr().add(v_at),
            1,
            v_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Sinks of ragged rows, shared by the tasks: for each sample `[heads, selected rows, tokens]`.
struct RaggedSinks<'r>(Vec<RaggedSink<'r>>);

struct RaggedSink<'r> {
    bytes: *mut u8,
    len: usize,
    dtype: crate::backend::SinkDtype,
    /// Place of each query head among those kept.
    head_place: Vec<Option<usize>>,
    heads_kept: usize,
    /// Selected rows of each sample, counted in the sample, and the element where its tensor begins.
    samples: Vec<(Vec<u32>, usize)>,
    marker: std::marker::PhantomData<&'r mut [u8]>,
}

// SAFETY: `write` touches only the row of the task's own sample and head.
unsafe impl Sync for RaggedSinks<'_> {}

impl<'r> RaggedSinks<'r> {
    fn new(sinks: &'r mut [Sink<'_>], samples: &[Range<usize>], n_heads: usize) -> Self {
        RaggedSinks(
            sinks
                .iter_mut()
                .map(|sink| {
                    let kept: Vec<usize> = if sink.spec.heads.is_empty() {
                        (0..n_heads).collect()
                    } else {
                        sink.spec.heads.clone()
                    };
                    let mut at = 0;
                    let mut row = 0;
                    let layout = samples
                        .iter()
                        .zip(&sink.per_sample)
                        .map(|(sample, &count)| {
                            let rows: Vec<u32> = sink.rows[row..row + count as usize]
                                .iter()
                                .map(|&r| r - sample.start as u32)
                                .collect();
                            row += count as usize;
                            let begins = at;
                            at += kept.len() * rows.len() * sample.len();
                            (rows, begins)
                        })
                        .collect();
                    assert_eq!(
                        sink.bytes.len(),
                        at * sink.spec.dtype.size(),
                        "a ragged sink holds [heads, rows, tokens] of its samples"
                    );
                    sink.seen = sink.rows.len();
                    RaggedSink {
                        bytes: sink.bytes.as_mut_ptr(),
                        len: sink.bytes.len(),
                        dtype: sink.spec.dtype,
                        head_place: (0..n_heads)
                            .map(|h| kept.iter().position(|&k| k == h))
                            .collect(),
                        heads_kept: kept.len(),
                        samples: layout,
                        marker: std::marker::PhantomData,
                    }
                })
                .collect(),
        )
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes query `i`'s row of `n` keys: `values` from key `first` on, `rest` elsewhere.
    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        sample: usize,
        head: usize,
        i: usize,
        n: usize,
        first: usize,
        values: &[f32],
        rest: f32,
    ) {
        for sink in &self.0 {
            let (rows, begins) = &sink.samples[sample];
            let (Some(head), Ok(row)) = (sink.head_place[head], rows.binary_search(&(i as u32)))
            else {
                continue;
            };
            debug_assert!(head < sink.heads_kept);
            let size = sink.dtype.size();
            let at = (begins + (head * rows.len() + row) * n) * size;
            assert!(at + n * size <= sink.len);
            // SAFETY: in bounds by the assert; this row belongs to this task alone, and the slice ends with the call.
            let out = unsafe { std::slice::from_raw_parts_mut(sink.bytes.add(at), n * size) };
            let mut full = vec![rest; n];
            full[first..first + values.len()].copy_from_slice(values);
            store_row(&full, sink.dtype, out);
        }
    }
}
