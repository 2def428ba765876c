//! Attention of one new token per sequence over the keys and values of those before it.
//!
//! A task is one key/value head of one sequence: its group of query heads reads the same keys. Dots, softmax and the
//! weighted sum go in an order that the number of visible keys alone decides, oldest key first; so a sequence's bits do not
//! depend on what else is decoded with it.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{Heads, softmax};
use super::edit::{self, HeadRow, PatternEdits};
use super::math::sum_of_products;
use super::precision::round_all;
use super::simd::vectorised;
use crate::backend::Edit;

/// The rotated keys and the values of one sequence, per layer. With a window W there are W places, taken in turn: what no
/// query can see any more is overwritten.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Rows `[places, K · h]`; position p has place p, or p mod W.
#[derive(Debug, Default, Clone)]
struct LayerCache {
    k: Vec<f32>,
    v: Vec<f32>,
    /// Positions seen, from 0.
    len: usize,
}

impl KvCache {
    /// An empty one.
    pub fn new(n_layers: usize) -> Self {
        KvCache {
            layers: vec![LayerCache::default(); n_layers],
        }
    }

    /// Positions seen by that layer.
    pub(super) fn len(&self, layer: usize) -> usize {
        self.layers[layer].len
    }

    /// Takes up the rows of the next positions.
    pub(super) fn append(
        &mut self,
        layer: usize,
        window: Option<usize>,
        k: &[f32],
        v: &[f32],
        width: usize,
    ) {
        let cache = &mut self.layers[layer];
        for (k, v) in k.chunks_exact(width).zip(v.chunks_exact(width)) {
            let place = window.map_or(cache.len, |w| cache.len % w) * width;
            if place == cache.k.len() {
                cache.k.extend_from_slice(k);
                cache.v.extend_from_slice(v);
            } else {
                cache.k[place..place + width].copy_from_slice(k);
                cache.v[place..place + width].copy_from_slice(v);
            }
            cache.len += 1;
        }
    }
}

/// z `[sequences, H, h]` of one new token each: `q` is `[sequences, H, h]` after RoPE; the caches hold the new tokens' keys and
/// values already. Patterns are edited before they weigh the values.
pub(super) fn attention(
    heads: Heads,
    layer: usize,
    caches: &[&mut KvCache],
    q: &[f32],
    z: &mut [f32],
    edits: &mut [Edit],
) {
    let group = heads.n_heads / heads.n_kv_heads * heads.head_dim;
    let samples: Vec<Range<usize>> = (0..caches.len()).map(|i| i..i + 1).collect();
    let shared = PatternEdits::new(edits, &samples, heads.n_heads);
    let done: Vec<Vec<HeadRow>> = z
        .par_chunks_mut(group)
        .zip(q.par_chunks(group))
        .enumerate()
        .map(|(task, (z, q))| {
            let (sequence, kv_head) = (task / heads.n_kv_heads, task % heads.n_kv_heads);
            let keys = Keys::of(heads, &caches[sequence].layers[layer], kv_head);
            keys.attend(q, z, sequence, &shared)
        })
        .collect();
    edit::receipts(edits, done.into_iter().flatten());
}

/// What one key/value head has for the newest query.
struct Keys<'a> {
    cache: &'a LayerCache,
    heads: Heads,
    kv_head: usize,
    visible: Range<usize>,
}

impl<'a> Keys<'a> {
    fn of(heads: Heads, cache: &'a LayerCache, kv_head: usize) -> Self {
        Keys {
            visible: heads.visible(cache.len - 1),
            cache,
            heads,
            kv_head,
        }
    }

    /// Every head of the group; returns what was edited.
    fn attend(
        &self,
        q: &[f32],
        z: &mut [f32],
        sequence: usize,
        edits: &PatternEdits<'_>,
    ) -> Vec<HeadRow> {
        let h = self.heads.head_dim;
        let scale = 1.0 / (h as f32).sqrt();
        let rounding = self.heads.precision.rounding();
        let first_head = self.kv_head * (self.heads.n_heads / self.heads.n_kv_heads);
        let mut pattern = vec![0.0; self.visible.len()];
        let mut done = Vec::new();
        for (g, (q, z)) in q.chunks_exact(h).zip(z.chunks_exact_mut(h)).enumerate() {
            for (p, at) in pattern.iter_mut().zip(self.places()) {
                dot(q, &self.cache.k[at..at + h], scale, p);
            }
            softmax(&mut pattern);
            let n = self.visible.end;
            edits.apply(
                sequence,
                first_head + g,
                0,
                n,
                self.visible.start,
                &mut pattern,
                &mut done,
            );
            round_all(rounding, &mut pattern);
            z.fill(0.0);
            for (&p, at) in pattern.iter().zip(self.places()) {
                add_scaled(z, &self.cache.v[at..at + h], p);
            }
            round_all(rounding, z);
        }
        done
    }

    /// Where the visible positions' rows of this head begin, oldest first.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let (h, width) = (
            self.heads.head_dim,
            self.heads.n_kv_heads * self.heads.head_dim,
        );
        let place = |p: usize| self.heads.window.map_or(p, |w| p % w);
        self.visible
            .clone()
            .map(move |p| place(p) * width + self.kv_head * h)
    }
}

vectorised! {
    fn dot(q: &[f32], k: &[f32], scale: f32, out: &mut f32) = dot_loop;
}

#[inline(always)]
fn dot_loop(q: &[f32], k: &[f32], scale: f32, out: &mut f32) {
    *out = sum_of_products(q, k) * scale;
}

vectorised! {
    fn add_scaled(z: &mut [f32], v: &[f32], p: f32) = add_scaled_loop;
}

#[inline(always)]
fn add_scaled_loop(z: &mut [f32], v: &[f32], p: f32) {
    for (z, &v) in z.iter_mut().zip(v) {
        *z = p.mul_add(v, *z);
    }
}

#[cfg(test)]
mod tests {
    use super::super::precision::Precision;
    use super::*;

    #[test]
    fn a_window_keeps_as_many_places_and_reads_the_oldest_first() {
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 2,
            window: Some(3),
            precision: Precision::F32,
        };
        let mut cache = KvCache::new(1);
        let rows: Vec<f32> = (0..10).map(|i| i as f32).collect();
        cache.append(0, Some(3), &rows[..4], &rows[..4], 2);
        cache.append(0, Some(3), &rows[4..], &rows[4..], 2);
        let keys = Keys::of(heads, &cache.layers[0], 0);
        let seen: Vec<f32> = keys.places().map(|at| cache.layers[0].k[at]).collect();
        assert_eq!(seen, [4.0, 6.0, 8.0]);
        assert_eq!(cache.layers[0].k.len(), 6);
        assert_eq!(cache.len(0), 5);
    }
}
