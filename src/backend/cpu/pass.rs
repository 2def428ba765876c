//! One batch under way on the CPU: the ops of [`Ops`](crate::backend::Ops) over scratch that outlives the batch.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{self, Heads, Inputs};
use super::decode::{self, KvCache};
use super::matmul::{self, Rows, RowsMut, Size};
use super::weights::{StoredWeights, WideWeights};
use super::{edit, elementwise, emit};
use crate::backend::{
    Act, AttentionHooks, Batch, Edit, EditId, Error, Ops, Receipt, Result, Sink, SinkId, Weight,
};

/// The model's sizes and constants, as ops need them.
#[derive(Debug, Clone)]
pub struct Shape {
    pub d_model: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub d_mlp: usize,
    pub vocab: usize,
    pub rms_norm_eps: f32,
    /// Keys that a query sees, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// Angle per position of each rotated pair, `[h / 2]`.
    pub inv_freq: Vec<f32>,
    pub n_layers: usize,
}

impl Shape {
    /// Width of an activation's row.
    pub fn width(&self, act: Act) -> usize {
        match act {
            Act::NormScale => 1,
            Act::Q | Act::RotQ | Act::Z => self.n_heads * self.head_dim,
            Act::K | Act::V | Act::RotK => self.n_kv_heads * self.head_dim,
            Act::HeadOut => self.n_heads * self.d_model,
            Act::Gate | Act::Up | Act::Post => self.d_mlp,
            Act::Logits => self.vocab,
            Act::ResidPre
            | Act::ResidMid
            | Act::ResidPost
            | Act::Normalized
            | Act::Normed
            | Act::AttnOut
            | Act::MlpOut => self.d_model,
        }
    }

    /// Elements of every matrix, without the embedding and the LM head.
    fn matrix_elements(&self) -> usize {
        let (d, qz, kv) = (
            self.d_model,
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        self.n_layers * d * (2 * qz + 2 * kv + 3 * self.d_mlp)
    }
}

/// The CPU backend: the model's weights, and memory that is reused from batch to batch.
pub struct Cpu<'m> {
    shape: Shape,
    weights: WideWeights<'m>,
    scratch: Vec<Vec<f32>>,
    /// cos and sin of position × inv_freq, `[positions so far, h / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    pad: Vec<f32>,
}

impl<'m> Cpu<'m> {
    /// `free_memory` in bytes decides whether widened weights are kept.
    pub fn new(shape: Shape, weights: &'m dyn StoredWeights, free_memory: u64) -> Self {
        let keep = (shape.matrix_elements() as u64).saturating_mul(4) <= free_memory / 2;
        Cpu {
            weights: WideWeights::new(weights, keep),
            scratch: (0..Act::COUNT).map(|_| Vec::new()).collect(),
            cos: Vec::new(),
            sin: Vec::new(),
            pad: Vec::new(),
            shape,
        }
    }

    /// The model's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Takes up a batch; `sinks` are named by their index from here on.
    ///
    /// # Errors
    /// A token id that is not in the vocabulary.
    pub fn begin<'c, 's>(
        &'c mut self,
        batch: &'c Batch,
        sinks: Vec<Sink<'s>>,
    ) -> Result<Pass<'c, 'm, 's>> {
        let vocab = self.shape.vocab;
        if let Some(row) = batch.tokens.iter().position(|&t| t as usize >= vocab) {
            return Err(Error::TokenOutOfRange {
                token: batch.tokens[row],
                row,
                vocab,
            });
        }
        let positions = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        self.extend_rope_tables(positions);
        Ok(Pass {
            samples: batch.samples().collect(),
            sinks: sinks.into_iter().map(Some).collect(),
            edits: Vec::new(),
            caches: Vec::new(),
            bound: [None; Act::COUNT],
            cpu: self,
            batch,
        })
    }

    /// Angles, cos and sin in f32, as Hugging Face computes its tables.
    fn extend_rope_tables(&mut self, positions: usize) {
        let half = self.shape.inv_freq.len();
        for position in self.cos.len() / half.max(1)..positions {
            for &f in &self.shape.inv_freq {
                let (sin, cos) = (position as f32 * f).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }
}

/// One batch under way.
pub struct Pass<'c, 'm, 's> {
    cpu: &'c mut Cpu<'m>,
    batch: &'c Batch,
    samples: Vec<Range<usize>>,
    sinks: Vec<Option<Sink<'s>>>,
    edits: Vec<Edit>,
    /// One per sample, where keys and values are kept from batch to batch.
    caches: Vec<&'c mut KvCache>,
    bound: [Option<SinkId>; Act::COUNT],
}

/// Memory taken out of its place while an op writes it.
enum Taken<'s> {
    Scratch(Vec<f32>),
    Bound(SinkId, &'s mut [u8]),
}

impl Taken<'_> {
    fn as_mut(&mut self) -> &mut [f32] {
        match self {
            Taken::Scratch(memory) => memory,
            Taken::Bound(_, bytes) => bytemuck::cast_slice_mut(bytes),
        }
    }
}

impl<'c, 's> Pass<'c, '_, 's> {
    /// With a cache for each sample, which keeps the keys and values of this batch. Either the caches are all empty, or the samples
    /// are all one token, which sees what its cache holds; then scores and patterns have no sinks.
    pub fn with_caches(mut self, caches: Vec<&'c mut KvCache>) -> Self {
        assert_eq!(caches.len(), self.samples.len(), "a cache for each sample");
        self.caches = caches;
        self
    }

    /// Puts every row of an activation there.
    ///
    /// # Panics
    /// They are not as many numbers as the batch's rows have.
    pub fn fill(&mut self, act: Act, values: &[f32]) {
        assert_eq!(values.len(), self.rows() * self.width(act), "{act:?}");
        let mut to = self.take(act, self.rows());
        to.as_mut().copy_from_slice(values);
        self.put_back(act, to);
    }

    /// The rows of an activation, as the last op left them.
    pub fn values(&self, act: Act) -> &[f32] {
        self.read(act)
    }

    /// With these edits, which are named by their index from here on.
    pub fn with_edits(mut self, edits: Vec<Edit>) -> Self {
        self.edits = edits;
        self
    }

    /// What each edit has done.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.edits.iter().map(|edit| edit.receipt).collect()
    }

    fn rows(&self) -> usize {
        self.batch.rows()
    }

    fn width(&self, act: Act) -> usize {
        self.cpu.shape.width(act)
    }

    fn read(&self, act: Act) -> &[f32] {
        match self.bound[act as usize] {
            Some(id) => bytemuck::cast_slice(self.sinks[id].as_ref().map_or(&[][..], |s| s.bytes)),
            None => &self.cpu.scratch[act as usize],
        }
    }

    /// `rows` rows of the activation, to write into.
    fn take(&mut self, act: Act, rows: usize) -> Taken<'s> {
        if let Some(id) = self.bound[act as usize]
            && let Some(sink) = &mut self.sinks[id]
        {
            sink.seen = sink.rows.len();
            return Taken::Bound(id, std::mem::take(&mut sink.bytes));
        }
        let mut memory = std::mem::take(&mut self.cpu.scratch[act as usize]);
        memory.resize(rows * self.width(act), 0.0);
        Taken::Scratch(memory)
    }

    fn put_back(&mut self, act: Act, taken: Taken<'s>) {
        match taken {
            Taken::Scratch(memory) => self.cpu.scratch[act as usize] = memory,
            Taken::Bound(id, bytes) => {
                if let Some(sink) = &mut self.sinks[id] {
                    sink.bytes = bytes;
                }
            }
        }
    }

    /// out = x · Wᵀ for `m` rows of x.
    fn multiply(&mut self, m: usize, x: &[f32], w: Weight, out: Act) {
        let n = self.width(out);
        let mut to = self.take(out, m);
        let mut pad = std::mem::take(&mut self.cpu.pad);
        let weights = self.cpu.weights.get(w);
        let k = weights.len() / n;
        let (x, w) = (
            Rows { data: x, stride: k },
            Rows {
                data: &weights,
                stride: k,
            },
        );
        matmul::linear(
            Size { m, n, k },
            x,
            w,
            RowsMut {
                data: to.as_mut(),
                stride: n,
            },
            &mut pad,
        );
        self.cpu.pad = pad;
        self.put_back(out, to);
    }

    fn take_sinks(&mut self, ids: &[SinkId]) -> Vec<Sink<'s>> {
        ids.iter().filter_map(|&id| self.sinks[id].take()).collect()
    }

    fn put_back_sinks(&mut self, ids: &[SinkId], sinks: Vec<Sink<'s>>) {
        for (&id, sink) in ids.iter().zip(sinks) {
            self.sinks[id] = Some(sink);
        }
    }

    fn take_edits(&mut self, ids: &[EditId]) -> Vec<Edit> {
        ids.iter()
            .map(|&id| std::mem::replace(&mut self.edits[id], Edit::nothing()))
            .collect()
    }

    fn put_back_edits(&mut self, ids: &[EditId], edits: Vec<Edit>) {
        for (&id, edit) in ids.iter().zip(edits) {
            self.edits[id] = edit;
        }
    }

    /// Edits the rows whose batch index is in `rows` (all when `None`), where the activation lies.
    fn edit_some(&mut self, act: Act, rows: Option<&[u32]>, id: EditId) {
        let mut one = std::mem::replace(&mut self.edits[id], Edit::nothing());
        let width = self.width(act);
        let which: Vec<(usize, usize)> = match rows {
            None => one.rows.iter().map(|&r| r as usize).enumerate().collect(),
            Some(rows) => rows
                .iter()
                .enumerate()
                .filter_map(|(place, r)| Some((one.rows.binary_search(r).ok()?, place)))
                .collect(),
        };
        let memory = match self.bound[act as usize] {
            Some(sink) => match &mut self.sinks[sink] {
                Some(sink) => bytemuck::cast_slice_mut(sink.bytes),
                None => &mut [],
            },
            None => &mut self.cpu.scratch[act as usize][..],
        };
        edit::edit(&mut one, memory, width, &which);
        self.edits[id] = one;
    }

    /// Emits the rows whose batch index is in `rows` (all when `None`).
    fn emit_some(&mut self, act: Act, rows: Option<&[u32]>, id: SinkId) {
        if self.bound[act as usize] == Some(id) {
            return; // the op wrote the sink itself
        }
        let Some(mut sink) = self.sinks[id].take() else {
            return;
        };
        let left = &sink.rows[sink.seen..];
        let src_rows: Vec<u32> = match rows {
            None => left.to_vec(),
            Some(rows) => left
                .iter()
                .map_while(|r| rows.binary_search(r).ok())
                .map(|r| r as u32)
                .collect(),
        };
        emit::emit(&mut sink, self.read(act), self.width(act), &src_rows);
        self.sinks[id] = Some(sink);
    }
}

impl Ops for Pass<'_, '_, '_> {
    fn bind(&mut self, act: Act, sink: SinkId) -> bool {
        let direct = self.sinks[sink]
            .as_ref()
            .is_some_and(|s| s.is_direct(self.rows()));
        if direct {
            self.bound[act as usize] = Some(sink);
        }
        direct
    }

    fn sink_rows(&self, sink: SinkId) -> &[u32] {
        self.sinks[sink].as_ref().map_or(&[], |s| &s.rows)
    }

    fn unbind(&mut self, act: Act) {
        self.bound[act as usize] = None;
    }

    fn own(&mut self, act: Act) {
        if self.bound[act as usize].is_some() {
            let mut memory = std::mem::take(&mut self.cpu.scratch[act as usize]);
            memory.clear();
            memory.extend_from_slice(self.read(act));
            self.cpu.scratch[act as usize] = memory;
            self.bound[act as usize] = None;
        }
    }

    fn swap(&mut self, a: Act, b: Act) {
        self.cpu.scratch.swap(a as usize, b as usize);
        self.bound.swap(a as usize, b as usize);
    }

    fn embed(&mut self, out: Act) {
        let d = self.cpu.shape.d_model;
        let mut to = self.take(out, self.rows());
        let embedding = self.cpu.weights.stored().embed();
        to.as_mut()
            .par_chunks_mut(d)
            .zip(&self.batch.tokens)
            .for_each(|(row, &token)| embedding.widen(token as usize * d, row));
        self.put_back(out, to);
    }

    fn rms_norm(&mut self, x: Act, gain: Weight, normalized: bool, out: Act) {
        let rows = self.rows();
        let mut scale = self.take(Act::NormScale, rows);
        let mut before_gain = normalized.then(|| self.take(Act::Normalized, rows));
        let mut to = self.take(out, rows);
        let gain = self.cpu.weights.get(gain).into_owned();
        let eps = self.cpu.shape.rms_norm_eps;
        elementwise::rms_norm(
            self.read(x),
            &gain,
            eps,
            scale.as_mut(),
            before_gain.as_mut().map(Taken::as_mut),
            to.as_mut(),
        );
        self.put_back(out, to);
        if let Some(taken) = before_gain {
            self.put_back(Act::Normalized, taken);
        }
        self.put_back(Act::NormScale, scale);
    }

    fn linear(&mut self, x: Act, w: Weight, out: Act) {
        let mut from = self.take(x, self.rows());
        self.multiply(self.rows(), from.as_mut(), w, out);
        self.put_back(x, from);
    }

    fn linear_rows(&mut self, x: Act, rows: &[u32], w: Weight, out: Act) {
        let width = self.width(x);
        let from = self.read(x);
        let picked: Vec<f32> = rows
            .iter()
            .flat_map(|&r| &from[r as usize * width..][..width])
            .copied()
            .collect();
        self.multiply(rows.len(), &picked, w, out);
    }

    fn rope(&mut self, x: Act, out: Act) {
        let mut to = self.take(out, self.rows());
        let cpu = &self.cpu;
        elementwise::rope(
            self.read(x),
            &self.batch.positions,
            &cpu.cos,
            &cpu.sin,
            cpu.shape.head_dim,
            cpu.shape.width(out),
            to.as_mut(),
        );
        self.put_back(out, to);
    }

    fn attention(&mut self, layer: usize, z: Act, hooks: AttentionHooks<'_>) {
        let mut score_sinks = self.take_sinks(hooks.scores);
        let mut pattern_sinks = self.take_sinks(hooks.patterns);
        let mut edits = self.take_edits(hooks.edits);
        let mut caches = std::mem::take(&mut self.caches);
        let mut to = self.take(z, self.rows());
        let shape = &self.cpu.shape;
        let heads = Heads {
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            window: shape.window,
        };
        let inputs = Inputs {
            q: self.read(Act::RotQ),
            k: self.read(Act::RotK),
            v: self.read(Act::V),
        };
        let is_decoding = caches.first().is_some_and(|c| c.len(layer) > 0);
        let width = shape.n_kv_heads * shape.head_dim;
        for (cache, rows) in caches.iter_mut().zip(&self.samples) {
            let rows = rows.start * width..rows.end * width;
            let (k, v) = (&inputs.k[rows.clone()], &inputs.v[rows]);
            cache.append(layer, shape.window, k, v, width);
        }
        if is_decoding {
            decode::attention(heads, layer, &caches, inputs.q, to.as_mut(), &mut edits);
        } else {
            let hooks = attention::Hooks {
                scores: &mut score_sinks,
                patterns: &mut pattern_sinks,
                edits: &mut edits,
                taps_before_edits: hooks.taps_before_edits,
            };
            attention::attention(heads, &self.samples, &inputs, to.as_mut(), hooks);
        }
        self.caches = caches;
        self.put_back(z, to);
        self.put_back_sinks(hooks.scores, score_sinks);
        self.put_back_sinks(hooks.patterns, pattern_sinks);
        self.put_back_edits(hooks.edits, edits);
    }

    fn head_results(&mut self, rows: &[u32], layer: usize, out: Act) {
        let Shape {
            n_heads,
            head_dim,
            d_model,
            ..
        } = self.cpu.shape;
        let z_width = n_heads * head_dim;
        let mut to = self.take(out, rows.len());
        let z = self.read(Act::Z);
        let picked: Vec<f32> = rows
            .iter()
            .flat_map(|&r| &z[r as usize * z_width..][..z_width])
            .copied()
            .collect();
        let mut pad = std::mem::take(&mut self.cpu.pad);
        let weights = self.cpu.weights.get(Weight::O(layer));
        for head in 0..n_heads {
            let x = Rows {
                data: &picked[head * head_dim..],
                stride: z_width,
            };
            let w = Rows {
                data: &weights[head * head_dim..],
                stride: z_width,
            };
            let size = Size {
                m: rows.len(),
                n: d_model,
                k: head_dim,
            };
            let out = RowsMut {
                data: &mut to.as_mut()[head * d_model..],
                stride: n_heads * d_model,
            };
            matmul::linear(size, x, w, out, &mut pad);
        }
        self.cpu.pad = pad;
        self.put_back(out, to);
    }

    fn swiglu(&mut self, out: Act) {
        let mut to = self.take(out, self.rows());
        elementwise::swiglu(self.read(Act::Gate), self.read(Act::Up), to.as_mut());
        self.put_back(out, to);
    }

    fn add(&mut self, a: Act, b: Act, out: Act) {
        let mut to = self.take(out, self.rows());
        elementwise::add(self.read(a), self.read(b), to.as_mut());
        self.put_back(out, to);
    }

    fn emit(&mut self, act: Act, sink: SinkId) {
        self.emit_some(act, None, sink);
    }

    fn emit_rows(&mut self, act: Act, rows: &[u32], sink: SinkId) {
        self.emit_some(act, Some(rows), sink);
    }

    fn edit(&mut self, act: Act, edit: EditId) {
        self.edit_some(act, None, edit);
    }

    fn edit_rows(&mut self, act: Act, rows: &[u32], edit: EditId) {
        self.edit_some(act, Some(rows), edit);
    }
}
