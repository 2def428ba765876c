//! `kernels/decode_attention.cu` against softmax attention in float64.

use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::Dtype;
use streamgauge::backend::cuda::kernels::decode_attention::{
    DecodeAttention, DecodeAttentionArgs, DecodeAttentionCombine, splits,
};

use crate::harness::{Element, assert_relative_l2, cases, normal, on_every_schedule, ulp, wide};
use crate::layout::{Layout, assert_same_bits};

#[derive(Clone, Debug)]
struct Case {
    head_dim: usize,
    n_heads: usize,
    n_kv_heads: usize,
    /// Tokens of each sequence, the query's own included.
    lengths: Vec<usize>,
    /// 0: none.
    window: usize,
    capacity: usize,
    /// Elements behind every row of q, out and the caches.
    gap: usize,
    /// Standard deviation of q: how far apart scores are.
    spread: f64,
}

/// One sequence: its query `[n_heads, h]` and all its keys and values `[length, n_kv_heads, h]`.
#[derive(Clone)]
struct Sequence<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

impl Case {
    fn new(head_dim: usize, n_heads: usize, n_kv_heads: usize, lengths: &[usize]) -> Case {
        Case {
            head_dim,
            n_heads,
            n_kv_heads,
            lengths: lengths.to_vec(),
            window: 0,
            capacity: lengths.iter().copied().max().unwrap_or(1).max(1),
            gap: 0,
            spread: 1.0,
        }
    }

    fn windowed(self, window: usize, capacity: usize) -> Case {
        Case {
            window,
            capacity,
            ..self
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Positions that the query of a sequence of this length sees.
    fn visible(&self, length: usize) -> std::ops::Range<usize> {
        match self.window {
            0 => 0..length,
            window => length.saturating_sub(window)..length,
        }
    }

    fn sequences<T: Element>(&self, seed: u64) -> Vec<Sequence<T>> {
        let kv_row = self.n_kv_heads * self.head_dim;
        let make = |(i, &length): (usize, &usize)| Sequence {
            q: normal(
                self.n_heads * self.head_dim,
                seed + 3 * i as u64,
                self.spread,
            ),
            k: normal(length * kv_row, seed + 3 * i as u64 + 1, 1.0),
            v: normal(length * kv_row, seed + 3 * i as u64 + 2, 1.0),
        };
        self.lengths.iter().enumerate().map(make).collect()
    }

    /// Whose cache each sequence has: the other way round.
    fn caches(&self) -> Vec<u32> {
        (0..self.lengths.len() as u32).rev().collect()
    }

    /// The caches after all tokens: visible rows in their slots, NaN elsewhere.
    fn cache<'a, T: Element>(&self, rows: impl Iterator<Item = &'a Vec<T>>) -> Vec<T> {
        let (row, stride) = (
            self.n_kv_heads * self.head_dim,
            self.n_kv_heads * self.head_dim + self.gap,
        );
        let mut cache = vec![T::round(f64::NAN); self.lengths.len() * self.capacity * stride];
        for ((rows, &length), i) in rows.zip(&self.lengths).zip(self.caches()) {
            for position in self.visible(length) {
                let at = (i as usize * self.capacity + position % self.capacity) * stride;
                cache[at..at + row].copy_from_slice(&rows[position * row..][..row]);
            }
        }
        cache
    }

    fn splits(&self) -> u32 {
        let most = self
            .lengths
            .iter()
            .map(|&length| splits(length as u32, self.window as u32))
            .max();
        most.unwrap_or(0).max(1)
    }

    /// `[sequences, n_heads, h]`
    fn run<T: Element>(&self, sequences: &[Sequence<T>]) -> Vec<T> {
        let row = self.n_heads * self.head_dim;
        let stride = row + self.gap;
        let rows = Layout {
            rows: sequences.len(),
            width: row,
            stride,
            offset: 0,
        };
        let queries: Vec<T> = sequences
            .iter()
            .flat_map(|sequence| sequence.q.clone())
            .collect();
        let q = rows.lay(&queries);
        let k = self.cache(sequences.iter().map(|sequence| &sequence.k));
        let v = self.cache(sequences.iter().map(|sequence| &sequence.v));
        let lengths: Vec<u32> = self.lengths.iter().map(|&length| length as u32).collect();
        let kernel = DecodeAttention {
            dtype: T::DTYPE,
            head_dim: self.head_dim as u32,
        };
        let partial_rows = sequences.len() * self.n_heads * self.splits() as usize;

        let memory = on_every_schedule(|gpu| {
            let (q, k, v, lengths, caches) = (
                gpu.input(&q),
                gpu.input(&k),
                gpu.input(&v),
                gpu.input(&lengths),
                gpu.input(&self.caches()),
            );
            let partial_out = gpu.output::<f32>(partial_rows * self.head_dim);
            let partial_softmax = gpu.output::<[f32; 2]>(partial_rows);
            let out = gpu.canvas::<T>(rows.len());
            let slot_stride = self.n_kv_heads * self.head_dim + self.gap;
            let args = DecodeAttentionArgs {
                q: q.ptr(),
                k_cache: k.ptr(),
                v_cache: v.ptr(),
                lengths: lengths.ptr(),
                caches: caches.ptr(),
                partial_out: partial_out.ptr(),
                partial_softmax: partial_softmax.ptr(),
                out: out.ptr(),
                k_sequence_stride: (self.capacity * slot_stride) as u64,
                v_sequence_stride: (self.capacity * slot_stride) as u64,
                k_slot_stride: slot_stride as u32,
                v_slot_stride: slot_stride as u32,
                q_stride: stride as u32,
                out_stride: stride as u32,
                sequences: sequences.len() as u32,
                n_heads: self.n_heads as u32,
                n_kv_heads: self.n_kv_heads as u32,
                capacity: self.capacity as u32,
                window: self.window as u32,
                splits: self.splits(),
                scale: self.scale(),
                _pad: 0,
            };
            gpu.launch(&kernel, &args);
            gpu.launch(&DecodeAttentionCombine(kernel), &args);
            gpu.read(&out)
        });
        rows.take(&memory)
    }

    /// Every output in float64, with how far from it rounding may lead.
    fn oracle<T: Element>(&self, sequences: &[Sequence<T>]) -> Vec<(f64, f64)> {
        let mut outs = Vec::new();
        for (sequence, &length) in sequences.iter().zip(&self.lengths) {
            for head in 0..self.n_heads {
                outs.extend(self.oracle_of_head(sequence, length, head));
            }
        }
        outs
    }

    fn oracle_of_head<T: Element>(
        &self,
        sequence: &Sequence<T>,
        length: usize,
        head: usize,
    ) -> Vec<(f64, f64)> {
        let h = self.head_dim;
        let kv_head = head / (self.n_heads / self.n_kv_heads);
        let q = wide(&sequence.q[head * h..][..h]);
        let row_of = |rows: &[T], position: usize| {
            wide(&rows[(position * self.n_kv_heads + kv_head) * h..][..h])
        };
        let scale = f64::from(self.scale());

        let (mut scores, mut score_error) = (Vec::new(), 0f64);
        for position in self.visible(length) {
            let k = row_of(&sequence.k, position);
            let terms = || q.iter().zip(&k).map(|(q, k)| scale * q * k);
            scores.push(terms().sum::<f64>());
            score_error =
                score_error.max(terms().map(f64::abs).sum::<f64>() * h as f64 * 2f64.powi(-24));
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();

        let (rounding, flushed) = weight_rounding::<T>();
        let mut outs = vec![(0.0, 0.0); h];
        for (position, weight) in self.visible(length).zip(&weights) {
            for (out, v) in outs.iter_mut().zip(row_of(&sequence.v, position)) {
                out.0 += weight / total * v;
                // rounded weight, both scores of its exponent and of the total's, the rest of the f32 arithmetic
                let relative = rounding + 4.0 * score_error + 2f64.powi(-20);
                out.1 += weight / total * v.abs() * relative + flushed * v.abs() / total;
            }
        }
        outs.into_iter()
            .map(|(out, error)| (out, error + ulp::<T>(out)))
            .collect()
    }

    fn check<T: Element>(&self, seed: u64) {
        let sequences = self.sequences::<T>(seed);
        let got = self.run(&sequences);
        let want = self.oracle(&sequences);
        let what = format!("{} {self:?}", T::DTYPE);
        for (i, (got, &(want, allowed))) in got.iter().zip(&want).enumerate() {
            let off = (got.wide() - want).abs();
            assert!(
                off <= allowed,
                "{what}: element {i} is {got:?}, should be {want}: off by {off:.2e}, {allowed:.2e} allowed"
            );
        }
        let want: Vec<f64> = want.iter().map(|want| want.0).collect();
        let gate = match T::DTYPE {
            Dtype::F32 => 1e-6 * self.spread.max(1.0),
            _ => 5e-3,
        };
        assert_relative_l2(&what, &got, &want, gate);
    }

    fn check_every_dtype(&self, seed: u64) {
        self.check::<bf16>(seed);
        self.check::<f16>(seed);
        self.check::<f32>(seed);
    }
}

/// What a weight loses to T, relative to itself; and absolutely, where it is subnormal.
fn weight_rounding<T: Element>() -> (f64, f64) {
    match T::DTYPE {
        Dtype::BF16 => (2f64.powi(-8), 0.0),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::F32 => (0.0, 0.0),
    }
}

#[test]
fn every_head_dim_attends_over_one_token_no_token_and_a_little_more_than_a_split() {
    for head_dim in [64, 80, 96, 128] {
        Case::new(head_dim, 5, 1, &[1, 0, 257]).check_every_dtype(head_dim as u64);
    }
}

#[test]
fn a_window_of_w_sees_w_keys_in_a_rolling_cache() {
    for (window, capacity) in [(1, 1), (7, 7), (100, 128), (256, 256), (300, 301)] {
        Case::new(64, 2, 1, &[5, 300, 700])
            .windowed(window, capacity)
            .check::<bf16>(1);
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_lose_the_largest() {
    Case {
        spread: 50.0,
        ..Case::new(64, 2, 2, &[300, 3])
    }
    .check_every_dtype(2);
}

proptest! {
    #![proptest_config(cases(5))]

    #[test]
    fn ragged_batches_of_any_grouping_match_float64(
        head_dim in prop::sample::select(vec![64usize, 80, 96, 128]),
        group in 1usize..9, n_kv_heads in 1usize..3,
        lengths in prop::collection::vec(0usize..330, 1..4),
        window in prop::sample::select(vec![0usize, 1, 9, 65, 270]),
        room in 0usize..40, gap in 0usize..2, seed in any::<u32>(),
    ) {
        let dense = Case::new(head_dim, group * n_kv_heads, n_kv_heads, &lengths);
        let visible = dense.capacity.min(if window == 0 { usize::MAX } else { window });
        let case = Case { gap: 8 * gap, ..dense.windowed(window, visible + room) };
        case.check_every_dtype(seed.into());
    }
}

#[test]
fn a_sequence_has_the_same_bits_beside_any_others_and_from_any_slots() {
    let (h, n_heads) = (64, 3);
    let alone = Case::new(h, n_heads, 1, &[610]).windowed(520, 610);
    let sequence = alone.sequences::<bf16>(3).remove(0);
    let expected = alone.run(std::slice::from_ref(&sequence));

    for (before, capacity) in [(1, 521), (1100, 1100), (0, 700)] {
        let among = Case::new(h, n_heads, 1, &[before, 610, 30]).windowed(520, capacity);
        let mut sequences = among.sequences::<bf16>(4);
        sequences[1] = sequence.clone();
        let got = among.run(&sequences);
        let what = format!("after {before} tokens, capacity {capacity}");
        assert_same_bits(&what, &got[n_heads * h..][..n_heads * h], &expected);
    }
}

#[test]
fn a_query_head_has_the_same_bits_alone_and_in_a_group_of_eight() {
    let grouped = Case::new(80, 8, 1, &[290]);
    let sequence = grouped.sequences::<f16>(5).remove(0);
    let together = grouped.run(std::slice::from_ref(&sequence));
    for head in [0, 3, 4, 7] {
        let own = head * 80..(head + 1) * 80;
        let alone = Sequence {
            q: sequence.q[own.clone()].to_vec(),
            ..sequence.clone()
        };
        let got = Case::new(80, 1, 1, &[290]).run(&[alone]);
        assert_same_bits(&format!("head {head}"), &got, &together[own]);
    }
}

/// Two keys, of values 0 and 1: the output is the second key's weight, rounded, over the sum of the unrounded weights.
#[test]
fn weights_are_rounded_to_the_dtype_and_their_sum_is_not() {
    let heads = 64;
    let case = Case::new(64, heads, heads, &[2]);
    let mut sequence = case.sequences::<bf16>(6).remove(0);
    let row = heads * case.head_dim;
    sequence.v[..row].fill(bf16::ZERO);
    sequence.v[row..].fill(bf16::ONE);
    let got = case.run(std::slice::from_ref(&sequence));

    let (q, k) = (wide(&sequence.q), wide(&sequence.k));
    let score = |position: usize, head: usize| -> f64 {
        let terms = (head * 64..(head + 1) * 64).map(|d| q[d] * k[position * row + d]);
        terms.sum::<f64>() * f64::from(case.scale())
    };
    let (mut as_rounded, mut as_unrounded) = (0, 0);
    for head in 0..heads {
        let (first, second) = (score(0, head), score(1, head));
        let weights = [first, second].map(|score| (score - first.max(second)).exp());
        let total: f64 = weights.iter().sum();
        let got = got[head * 64];
        as_rounded += usize::from(got == bf16::round(bf16::round(weights[1]).to_f64() / total));
        as_unrounded += usize::from(got == bf16::round(weights[1] / total));
    }
    assert_eq!(as_rounded, heads);
    assert!(
        as_unrounded < heads * 9 / 10,
        "{as_unrounded} of {heads} outputs do not tell whether weights were rounded"
    );
}
