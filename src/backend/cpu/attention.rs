//! Causal attention with a sliding window and grouped key/value heads, per sample.
//!
//! Keys and values are packed once per sample and key/value head. A task is then one tile of [`TILE`] queries of all
//! query heads that share them: scores against the keys the tile may see, softmax row by row, and the weighted sum of the
//! values. Tiles, and the runs of every sum, begin at the sample's first token, so a sample's bits do not depend on
//! what else is in the batch.
//! Window W keeps W keys, the query's own included: key j is visible to query i iff i − W < j ≤ i.
//! In bf16, scores and softmax are f32; the pattern is rounded as it is packed to weigh the values, and so is their sum.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::edit::{self, HeadRow, PatternEdits};
use super::math::{exp, max, sum_by};
use super::matmul::{Out, Rows, multiply_panel};
use super::packing::{DEPTH, Lines, pack_panel, pack_rows};
use super::pairs::pair_rows;
use super::precision::{Precision, round_all};
use super::ragged::RaggedSinks;
use super::simd::vectorised;
use super::tile::Tile;
use crate::backend::{Edit, Sink};

/// What stands beside the last of an odd number of keys; no tile has more columns.
const NO_KEY: [f32; 64] = [0.0; 64];

/// Queries per tile.
pub const TILE: usize = 64;

/// The sizes of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    pub precision: Precision,
}

impl Heads {
    /// The keys that query `i` sees.
    pub(super) fn visible(&self, i: usize) -> Range<usize> {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// What multiplies queries with keys.
    fn key_tile(&self) -> &'static Tile {
        self.precision.tile()
    }

    /// What multiplies patterns with values.
    fn value_tile(&self) -> &'static Tile {
        self.precision.tile().for_columns(self.head_dim)
    }

    /// Lanes that the packed keys, and the packed values, of one head of `n` keys take.
    fn packed_sizes(&self, n: usize) -> [usize; 2] {
        let (keys, values) = (self.key_tile(), self.value_tile());
        [
            n.next_multiple_of(keys.columns) * keys.lanes(self.head_dim),
            values.lanes(n) * self.head_dim.next_multiple_of(values.columns),
        ]
    }
}

/// Inputs: `q` `[rows, H, h]` and `k` `[rows, K, h]` after RoPE, `v` `[rows, K, h]`.
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// The batch's keys and values as tiles read them, kept to use the memory again.
#[derive(Debug, Default)]
pub(super) struct PackedHeads {
    memory: Lines,
}

/// One head's keys, `[panel of keys][lanes of h][keys of a panel]`, and values, `[panel of h][lanes of keys][h of a panel]`.
struct PackedHead<'a> {
    keys: &'a [f32],
    values: &'a [f32],
}

impl PackedHeads {
    /// Packs every sample's every head; returns where each begins.
    fn pack(&mut self, heads: Heads, samples: &[Range<usize>], inputs: &Inputs<'_>) -> Vec<usize> {
        let mut begins = Vec::with_capacity(samples.len() * heads.n_kv_heads + 1);
        let mut at = 0;
        for sample in samples {
            for _ in 0..heads.n_kv_heads {
                begins.push(at);
                at += heads.packed_sizes(sample.len()).iter().sum::<usize>();
            }
        }
        self.memory.resize(at);
        let mut rest = &mut self.memory[..];
        let mut parts = Vec::with_capacity(begins.len());
        for (i, &begin) in begins.iter().enumerate() {
            let end = begins.get(i + 1).copied().unwrap_or(at);
            let (part, others) = rest.split_at_mut(end - begin);
            parts.push(part);
            rest = others;
        }
        parts.into_par_iter().enumerate().for_each(|(i, part)| {
            let (sample, kv_head) = (i / heads.n_kv_heads, i % heads.n_kv_heads);
            pack_head(heads, samples[sample].clone(), kv_head, inputs, part);
        });
        begins
    }

    fn head(&self, begin: usize, n: usize, heads: Heads) -> PackedHead<'_> {
        let [keys, values] = heads.packed_sizes(n);
        PackedHead {
            keys: &self.memory[begin..begin + keys],
            values: &self.memory[begin + keys..begin + keys + values],
        }
    }
}

fn pack_head(
    heads: Heads,
    rows: Range<usize>,
    kv_head: usize,
    inputs: &Inputs<'_>,
    out: &mut [f32],
) {
    let (n, h) = (rows.len(), heads.head_dim);
    let stride = heads.n_kv_heads * h;
    let at = |row: usize| (rows.start + row) * stride + kv_head * h;
    let (key_out, value_out) = out.split_at_mut(heads.packed_sizes(n)[0]);
    let tile = heads.key_tile();
    let panels = key_out.chunks_exact_mut(tile.columns * tile.lanes(h));
    for (panel, out) in panels.enumerate() {
        let keys = panel * tile.columns..((panel + 1) * tile.columns).min(n);
        pack_panel(tile, keys, h, out, |key, first, out| {
            out.copy_from_slice(&inputs.k[at(key) + first..][..out.len()]);
        });
    }
    let tile = heads.value_tile();
    let panels = value_out.chunks_exact_mut(tile.columns * tile.lanes(n));
    for (panel, out) in panels.enumerate() {
        let columns = panel * tile.columns..((panel + 1) * tile.columns).min(h);
        for (lane, out) in out.chunks_exact_mut(tile.columns).enumerate() {
            let of_key = |key: usize| &inputs.v[at(key)..][columns.clone()];
            let (out, padding) = out.split_at_mut(columns.len());
            padding.fill(0.0);
            match (tile.per_lane, 2 * lane + 1 < n) {
                (1, _) => out.copy_from_slice(of_key(lane)),
                (_, true) => pair_rows(of_key(2 * lane), of_key(2 * lane + 1), out),
                (_, false) => pair_rows(of_key(2 * lane), &NO_KEY[..columns.len()], out),
            }
        }
    }
}

/// What is read and written between the ops of attention.
pub(super) struct Hooks<'a, 's> {
    pub scores: &'a mut [Sink<'s>],
    pub patterns: &'a mut [Sink<'s>],
    pub edits: &'a mut [Edit],
    pub taps_before_edits: bool,
}

/// z `[rows, H, h]`; and the rows that the sinks ask for, of the scores (−∞ where a key is not visible) and of the patterns,
/// which are edited before they weigh the values.
pub(super) fn attention(
    heads: Heads,
    samples: &[Range<usize>],
    inputs: &Inputs<'_>,
    packed: &mut PackedHeads,
    z: &mut [f32],
    hooks: Hooks<'_, '_>,
) {
    let begins = packed.pack(heads, samples, inputs);
    let task = Attention {
        heads,
        q: inputs.q,
        z: Out::new(z, heads.n_heads * heads.head_dim),
        scores: RaggedSinks::new(hooks.scores, samples, heads.n_heads),
        patterns: RaggedSinks::new(hooks.patterns, samples, heads.n_heads),
        edits: PatternEdits::new(hooks.edits, samples, heads.n_heads),
        taps_before_edits: hooks.taps_before_edits,
    };
    // The longest sums first, so that no thread is left with one at the end.
    let mut tiles: Vec<(usize, usize)> = samples
        .iter()
        .enumerate()
        .flat_map(|(sample, rows)| (0..rows.len()).step_by(TILE).map(move |q| (sample, q)))
        .collect();
    tiles.sort_by_key(|&(_, first)| std::cmp::Reverse(first));
    let done: Vec<Vec<HeadRow>> = (0..tiles.len() * heads.n_kv_heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| {
            let ((sample, first), kv_head) = (tiles[i / heads.n_kv_heads], i % heads.n_kv_heads);
            let rows = samples[sample].clone();
            let begin = begins[sample * heads.n_kv_heads + kv_head];
            let keys_and_values = packed.head(begin, rows.len(), heads);
            (kv_head * heads.group()..(kv_head + 1) * heads.group())
                .flat_map(|head| task.tile(sample, rows.clone(), head, first, &keys_and_values))
                .collect()
        })
        .collect();
    edit::receipts(hooks.edits, done.into_iter().flatten());
}

/// What the tasks share.
struct Attention<'a> {
    heads: Heads,
    q: &'a [f32],
    z: Out,
    scores: RaggedSinks<'a>,
    patterns: RaggedSinks<'a>,
    edits: PatternEdits<'a>,
    taps_before_edits: bool,
}

/// A thread's memory for one tile.
#[derive(Default)]
struct Scratch {
    packed: Lines,
    sums: Lines,
    /// Scores, then the pattern: `[queries, keys]`.
    pattern: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Attention<'_> {
    /// One head of the queries from `first` on of a sample, whose rows in the batch are `rows`; returns what was edited.
    fn tile(
        &self,
        sample: usize,
        rows: Range<usize>,
        head: usize,
        first: usize,
        kv: &PackedHead<'_>,
    ) -> Vec<HeadRow> {
        let queries = first..(first + TILE).min(rows.len());
        // Sums over keys begin where a run does, whatever the window leaves of it.
        let run = DEPTH * self.heads.value_tile().per_lane;
        let keys = self.heads.visible(first).start / run * run..queries.end;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.pattern.resize(queries.len() * keys.len());
            self.scores_of(&rows, head, &queries, &keys, kv, scratch);
            let done = self.softmax_of(
                sample,
                rows.len(),
                head,
                &queries,
                &keys,
                &mut scratch.pattern,
            );
            self.values_of(&rows, head, &queries, &keys, kv, scratch);
            done
        })
    }

    /// Scaled scores of the tile against all of `keys`, visible or not, but for those before the first visible panel.
    fn scores_of(
        &self,
        rows: &Range<usize>,
        head: usize,
        queries: &Range<usize>,
        keys: &Range<usize>,
        kv: &PackedHead<'_>,
        scratch: &mut Scratch,
    ) {
        let Heads {
            n_heads, head_dim, ..
        } = self.heads;
        let (m, tile) = (queries.len(), self.heads.key_tile());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let q = Rows {
            data: &self.q[((rows.start + queries.start) * n_heads + head) * head_dim..],
            stride: n_heads * head_dim,
        };
        pack_rows(tile, q, m, 0..head_dim, &mut scratch.packed);
        scratch
            .sums
            .resize(m.next_multiple_of(tile.rows) * tile.columns);
        for panel in keys.start / tile.columns..keys.end.div_ceil(tile.columns) {
            let size = tile.columns * tile.lanes(head_dim);
            let panel_keys = &kv.keys[panel * size..(panel + 1) * size];
            multiply_panel(
                tile,
                &scratch.packed,
                panel_keys,
                &mut scratch.sums,
                false,
                |_| (),
            );
            let here = panel * tile.columns..(panel + 1) * tile.columns;
            let wanted = here.start.max(keys.start)..here.end.min(keys.end);
            let pattern = scratch.pattern.chunks_exact_mut(keys.len());
            for (row, sums) in pattern.zip(scratch.sums.chunks_exact(tile.columns)) {
                let row = &mut row[wanted.start - keys.start..wanted.end - keys.start];
                let sums = &sums[wanted.start - here.start..wanted.end - here.start];
                for (s, &sum) in row.iter_mut().zip(sums) {
                    *s = scale * sum;
                }
            }
        }
    }

    /// Turns scores into patterns, and edits these; both go to their sinks.
    fn softmax_of(
        &self,
        sample: usize,
        n: usize,
        head: usize,
        queries: &Range<usize>,
        keys: &Range<usize>,
        pattern: &mut [f32],
    ) -> Vec<HeadRow> {
        let mut done = Vec::new();
        for (i, row) in queries.clone().zip(pattern.chunks_exact_mut(keys.len())) {
            let visible = self.heads.visible(i);
            let seen = visible.start - keys.start..visible.end - keys.start;
            if !self.scores.is_empty() {
                let scores = &row[seen.clone()];
                self.scores
                    .write(sample, head, i, n, visible.start, scores, f32::NEG_INFINITY);
            }
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            softmax(row);
            let tap = |row: &[f32]| {
                if !self.patterns.is_empty() {
                    self.patterns
                        .write(sample, head, i, n, visible.start, row, 0.0);
                }
            };
            if self.taps_before_edits {
                tap(row);
            }
            if !self.edits.is_empty() {
                self.edits
                    .apply(sample, head, i, n, visible.start, row, &mut done);
            }
            if !self.taps_before_edits {
                tap(row);
            }
        }
        done
    }

    /// z\[i\] = Σ_j pattern\[i, j\] · v\[j\]
    fn values_of(
        &self,
        rows: &Range<usize>,
        head: usize,
        queries: &Range<usize>,
        keys: &Range<usize>,
        kv: &PackedHead<'_>,
        scratch: &mut Scratch,
    ) {
        let head_dim = self.heads.head_dim;
        let (m, tile) = (queries.len(), self.heads.value_tile());
        let pattern = Rows {
            data: &scratch.pattern,
            stride: keys.len(),
        };
        pack_rows(tile, pattern, m, 0..keys.len(), &mut scratch.packed);
        scratch
            .sums
            .resize(m.next_multiple_of(tile.rows) * tile.columns);
        let panels = kv
            .values
            .chunks_exact(tile.lanes(rows.len()) * tile.columns);
        let lanes = tile.lanes(keys.start)..tile.lanes(keys.end);
        for (panel, values) in panels.enumerate() {
            let values = &values[lanes.start * tile.columns..lanes.end * tile.columns];
            multiply_panel(
                tile,
                &scratch.packed,
                values,
                &mut scratch.sums,
                false,
                |_| (),
            );
            let columns = panel * tile.columns..((panel + 1) * tile.columns).min(head_dim);
            for (i, sums) in queries.clone().zip(scratch.sums.chunks_exact(tile.columns)) {
                let at = head * head_dim + columns.start..head * head_dim + columns.end;
                // SAFETY: z is borrowed for the whole of `attention`; this head of this row belongs to this task alone.
                let z = unsafe { self.z.row(rows.start + i, at) };
                z.copy_from_slice(&sums[..columns.len()]);
                round_all(self.heads.precision.rounding(), z);
            }
        }
    }
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
