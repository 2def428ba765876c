//! One batch under way on the CPU: the ops of [`Ops`](crate::backend::Ops) over scratch that outlives the batch.
//!
//! Ops on rows are put off ([`RowOp`]) until something needs their output, so that they run block by block.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{self, Heads, Inputs, PackedHeads};
use super::blocks::{self, Constants, RowOp, SinkView, View};
use super::decode::{self, KvCache};
use super::matmul::{self, Rows};
use super::packing::{Lines, PackedMatrix};
use super::precision::{Precision, Rounding, round_all};
use super::weights::{PackedWeights, StoredWeights};
use super::{edit, emit};
use crate::backend::{
    Act, AttentionHooks, Batch, Edit, EditId, Landed, Ops, Receipt, Result, Sink, SinkId, Weight,
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

    /// Bytes of every matrix when packed, without the embedding and the LM head.
    fn packed_bytes(&self, precision: Precision) -> u64 {
        let (d, qz, kv, f) = (
            self.d_model,
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
            self.d_mlp,
        );
        let layer = [(qz, d), (kv, d), (kv, d), (d, qz), (f, d), (f, d), (d, f)];
        let tile = precision.tile();
        let bytes = layer.map(|(n, k)| PackedMatrix::bytes(tile, n, k) as u64);
        self.n_layers as u64 * bytes.iter().sum::<u64>()
    }
}

/// The CPU backend: the model's weights, and memory that is reused from batch to batch.
pub struct Cpu<'m> {
    shape: Shape,
    precision: Precision,
    weights: PackedWeights<'m>,
    scratch: Vec<Lines>,
    packed_heads: PackedHeads,
    /// cos and sin of position × inv_freq, `[positions so far, h / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Keys and values of the sequences that are generated, between their batches.
    pub kept: Vec<KvCache>,
}

impl<'m> Cpu<'m> {
    /// `free_memory` in bytes decides whether packed weights are kept.
    pub fn new(
        shape: Shape,
        weights: &'m dyn StoredWeights,
        free_memory: u64,
        precision: Precision,
    ) -> Self {
        let keep = shape.packed_bytes(precision) <= free_memory / 2;
        Cpu {
            precision,
            weights: PackedWeights::new(weights, precision, keep),
            scratch: (0..Act::COUNT).map(|_| Lines::default()).collect(),
            packed_heads: PackedHeads::default(),
            cos: Vec::new(),
            sin: Vec::new(),
            kept: Vec::new(),
            shape,
        }
    }

    /// The model's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What it computes in.
    pub fn precision(&self) -> Precision {
        self.precision
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
        batch.check_tokens(vocab)?;
        let positions = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        self.extend_rope_tables(positions);
        Ok(Pass {
            samples: batch.samples().collect(),
            sinks: sinks.into_iter().map(Some).collect(),
            edits: Vec::new(),
            caches: Vec::new(),
            bound: [None; Act::COUNT],
            put_off: Vec::new(),
            cpu: self,
            batch,
        })
    }

    /// Angles, cos and sin in f32, as Hugging Face computes its tables; then rounded, as it casts them.
    fn extend_rope_tables(&mut self, positions: usize) {
        let (half, known) = (self.shape.inv_freq.len(), self.cos.len());
        for position in known / half.max(1)..positions {
            for &f in &self.shape.inv_freq {
                let (sin, cos) = (position as f32 * f).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
        for table in [&mut self.cos, &mut self.sin] {
            round_all(self.precision.rounding(), &mut table[known..]);
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
    /// Activations that are written straight into a sink's memory.
    bound: [Option<(SinkId, View)>; Act::COUNT],
    /// Ops still to run, in order. They read and write scratch and bound sinks, which therefore nobody else touches
    /// before `run_put_off`.
    put_off: Vec<RowOp>,
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
        self.run_put_off();
        let to = self.all(act);
        // SAFETY: the memory is this pass's, and nothing is put off.
        unsafe { to.rows_mut(to.all()) }.copy_from_slice(values);
    }

    /// Every row of an activation, as the last op left it.
    pub fn values(&mut self, act: Act) -> &[f32] {
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

    /// What an op rounds the activation to when it writes it.
    fn rounding(&self, act: Act) -> Rounding {
        match act {
            Act::NormScale => Rounding::Exact,
            Act::ResidPre | Act::ResidMid | Act::ResidPost => self.cpu.precision.resid_rounding(),
            _ => self.cpu.precision.rounding(),
        }
    }

    /// Where the activation is, with room for `rows` rows.
    fn view(&mut self, act: Act, rows: usize) -> View {
        if let Some((_, view)) = self.bound[act as usize] {
            return view;
        }
        let width = self.width(act);
        let memory = &mut self.cpu.scratch[act as usize];
        memory.resize(rows * width);
        // SAFETY: a batch's activations of one name have one size, so the memory moves only when a batch first uses it;
        // those of a few rows at a time are not put off.
        unsafe { View::new(memory.as_mut_ptr(), rows, width) }
    }

    /// The activation of every row, to read or write.
    fn all(&mut self, act: Act) -> View {
        self.view(act, self.rows())
    }

    /// Runs what was put off; afterwards every activation holds what its op computes.
    fn run_put_off(&mut self) {
        self.run_put_off_but_for(&[]);
    }

    /// Runs what was put off. Activations among `dead` are not read any more, and may hold anything (unless bound).
    fn run_put_off_but_for(&mut self, dead: &[Act]) {
        if self.put_off.is_empty() {
            return;
        }
        let scratch = dead
            .iter()
            .filter(|&&act| self.bound[act as usize].is_none());
        let scratch: Vec<Act> = scratch.copied().collect();
        let mut dead: Vec<View> = scratch.into_iter().map(|act| self.all(act)).collect();
        for op in &self.put_off {
            if let RowOp::Emit { x, .. } = op {
                dead.retain(|view| view != x);
            }
        }
        let constants = Constants {
            precision: self.cpu.precision,
            eps: self.cpu.shape.rms_norm_eps,
            head_dim: self.cpu.shape.head_dim,
            positions: &self.batch.positions,
            cos: &self.cpu.cos,
            sin: &self.cpu.sin,
        };
        // SAFETY: the views are of this pass's scratch and sinks, all borrowed for as long as it lives and used by nobody
        // else now; distinct activations are distinct memory, and no op of the transformer writes what it reads.
        unsafe { blocks::run(&self.put_off, self.batch.rows(), &constants, &dead) };
        self.put_off.clear();
    }

    /// Every row of the activation.
    fn read(&mut self, act: Act) -> &[f32] {
        self.run_put_off();
        let view = self.all(act);
        // SAFETY: the memory is this pass's, and nothing is put off that could write it while `self` is borrowed.
        unsafe { view.rows(view.all()) }
    }

    /// A few rows of x, one after the other.
    fn pick(&mut self, x: Act, rows: &[u32]) -> Vec<f32> {
        let width = self.width(x);
        let from = self.read(x);
        rows.iter()
            .flat_map(|&r| &from[r as usize * width..][..width])
            .copied()
            .collect()
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
        self.run_put_off();
        let mut one = std::mem::replace(&mut self.edits[id], Edit::nothing());
        let which: Vec<(usize, usize)> = match rows {
            None => one.rows.iter().map(|&r| r as usize).enumerate().collect(),
            Some(rows) => rows
                .iter()
                .enumerate()
                .filter_map(|(place, r)| Some((one.rows.binary_search(r).ok()?, place)))
                .collect(),
        };
        let (width, rounding) = (self.width(act), self.rounding(act));
        let view = self.view(act, rows.map_or(self.rows(), <[u32]>::len));
        // SAFETY: the memory is this pass's, and nothing is put off.
        let memory = unsafe { view.rows_mut(view.all()) };
        edit::edit(&mut one, memory, width, &which, rounding);
        self.edits[id] = one;
    }

    /// Has the sink's rows written with the ops on rows, if it takes all of them as they are; says whether it does.
    fn put_off_emit(&mut self, act: Act, id: SinkId) -> bool {
        let n = self.rows();
        let taken = self.sinks[id].as_mut();
        let Some(sink) = taken.filter(|sink| sink.seen == 0 && sink.takes_all_whole(n)) else {
            return false;
        };
        sink.seen = n;
        // SAFETY: the sink's memory is borrowed for longer than this pass, and used through the view alone until it has run.
        let to = unsafe { SinkView::new(&mut sink.bytes, n, sink.spec.dtype) };
        let x = self.all(act);
        self.put_off.push(RowOp::Emit { x, to });
        true
    }

    /// Emits the rows whose batch index is in `rows` (all when `None`).
    fn emit_some(&mut self, act: Act, rows: Option<&[u32]>, id: SinkId) {
        if self.bound[act as usize].is_some_and(|(bound, _)| bound == id) {
            return; // the op writes the sink itself
        }
        if rows.is_none() && self.put_off_emit(act, id) {
            return;
        }
        self.run_put_off();
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
        let width = self.width(act);
        let view = self.view(act, rows.map_or(self.rows(), <[u32]>::len));
        // SAFETY: the memory is this pass's, and `sink` is not what the activation is bound to.
        let src = unsafe { view.rows(view.all()) };
        emit::emit(&mut sink, src, width, &src_rows);
        self.sinks[id] = Some(sink);
    }
}

impl Pass<'_, '_, 'static> {
    /// What its sinks hold, when nothing is put off any more.
    pub fn landed(self) -> Landed {
        debug_assert!(self.put_off.is_empty(), "ops wait for `finish`");
        let receipts = self.receipts();
        Landed::new(self.sinks.into_iter().flatten().collect(), receipts)
    }
}

impl Ops for Pass<'_, '_, '_> {
    fn bind(&mut self, act: Act, sink: SinkId) -> bool {
        let (rows, width) = (self.rows(), self.width(act));
        let Some(taken) = self.sinks[sink].as_mut().filter(|s| s.is_direct(rows)) else {
            return false;
        };
        let memory: &mut [f32] = bytemuck::cast_slice_mut(&mut taken.bytes);
        assert_eq!(memory.len(), rows * width, "a direct sink takes every row");
        // SAFETY: the sink's memory is borrowed for longer than this pass, and from here on used through the view alone.
        let view = unsafe { View::new(memory.as_mut_ptr(), rows, width) };
        taken.seen = taken.rows.len();
        self.bound[act as usize] = Some((sink, view));
        true
    }

    fn sink_rows(&self, sink: SinkId) -> &[u32] {
        self.sinks[sink].as_ref().map_or(&[], |s| &s.rows)
    }

    fn unbind(&mut self, act: Act) {
        self.bound[act as usize] = None;
    }

    fn own(&mut self, act: Act) {
        if self.bound[act as usize].is_none() {
            return;
        }
        self.run_put_off();
        let from = self.all(act);
        self.bound[act as usize] = None;
        let to = self.all(act);
        // SAFETY: the sink's memory and the scratch are this pass's and apart, and nothing is put off.
        unsafe { to.rows_mut(to.all()).copy_from_slice(from.rows(from.all())) };
    }

    fn swap(&mut self, a: Act, b: Act) {
        self.cpu.scratch.swap(a as usize, b as usize);
        self.bound.swap(a as usize, b as usize);
    }

    fn embed(&mut self, out: Act) {
        self.run_put_off();
        let (d, to) = (self.cpu.shape.d_model, self.all(out));
        let embedding = self.cpu.weights.stored().embed();
        let rounding = self.cpu.precision.rounding();
        // SAFETY: the memory is this pass's, and nothing is put off.
        unsafe { to.rows_mut(to.all()) }
            .par_chunks_mut(d)
            .zip(&self.batch.tokens)
            .for_each(|(row, &token)| {
                embedding.widen(token as usize * d, row);
                round_all(rounding, row);
            });
    }

    fn rms_norm(&mut self, x: Act, gain: Weight, normalized: bool, out: Act) {
        let op = RowOp::Norm {
            x: self.all(x),
            gain: self.cpu.weights.vector(gain),
            scale: self.all(Act::NormScale),
            normalized: normalized.then(|| self.all(Act::Normalized)),
            out: self.all(out),
        };
        self.put_off.push(op);
    }

    fn linear(&mut self, x: Act, w: Weight, out: Act) {
        let n = self.width(out);
        let op = RowOp::Linear {
            x: self.all(x),
            w: self.cpu.weights.matrix(w, n),
            out: self.all(out),
        };
        self.put_off.push(op);
    }

    fn linear_rows(&mut self, x: Act, rows: &[u32], w: Weight, out: Act) {
        let picked = self.pick(x, rows);
        let (m, n, k) = (rows.len(), self.width(out), self.width(x));
        let to = self.view(out, m);
        let w = self.cpu.weights.matrix(w, n);
        let x = Rows {
            data: &picked,
            stride: k,
        };
        // SAFETY: the memory is this pass's, and nothing is put off.
        let to = unsafe { to.rows_mut(to.all()) };
        matmul::linear(m, k, x, &w, 0, to, n);
    }

    fn rope(&mut self, x: Act, out: Act) {
        let op = RowOp::Rope {
            x: self.all(x),
            out: self.all(out),
        };
        self.put_off.push(op);
    }

    fn attention(&mut self, layer: usize, z: Act, hooks: AttentionHooks<'_>) {
        // Each block writes these after its attention, and reads them before the next one's.
        self.run_put_off_but_for(&[Act::AttnOut, Act::Gate, Act::Up, Act::MlpOut]);
        let mut score_sinks = self.take_sinks(hooks.scores);
        let mut pattern_sinks = self.take_sinks(hooks.patterns);
        let mut edits = self.take_edits(hooks.edits);
        let mut caches = std::mem::take(&mut self.caches);
        let [q, k, v, z] = [Act::RotQ, Act::RotK, Act::V, z].map(|act| self.all(act));
        let shape = &self.cpu.shape;
        let heads = Heads {
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            window: shape.window,
            precision: self.cpu.precision,
        };
        // SAFETY: the memory is this pass's and of four activations; nothing is put off.
        let (inputs, z) = unsafe {
            let inputs = Inputs {
                q: q.rows(q.all()),
                k: k.rows(k.all()),
                v: v.rows(v.all()),
            };
            (inputs, z.rows_mut(z.all()))
        };
        let is_decoding = caches.first().is_some_and(|c| c.len(layer) > 0);
        let width = shape.n_kv_heads * shape.head_dim;
        for (cache, rows) in caches.iter_mut().zip(&self.samples) {
            let rows = rows.start * width..rows.end * width;
            let (k, v) = (&inputs.k[rows.clone()], &inputs.v[rows]);
            cache.append(layer, shape.window, k, v, width);
        }
        if is_decoding {
            decode::attention(heads, layer, &caches, inputs.q, z, &mut edits);
        } else {
            let hooks = attention::Hooks {
                scores: &mut score_sinks,
                patterns: &mut pattern_sinks,
                edits: &mut edits,
                taps_before_edits: hooks.taps_before_edits,
            };
            let packed = &mut self.cpu.packed_heads;
            attention::attention(heads, &self.samples, &inputs, packed, z, hooks);
        }
        self.caches = caches;
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
        let picked = self.pick(Act::Z, rows);
        let to = self.view(out, rows.len());
        let w = self.cpu.weights.matrix(Weight::O(layer), d_model);
        // SAFETY: the memory is this pass's, and nothing is put off.
        let to = unsafe { to.rows_mut(to.all()) };
        for head in 0..n_heads {
            let x = Rows {
                data: &picked[head * head_dim..],
                stride: n_heads * head_dim,
            };
            let first_k = head * head_dim;
            let to = &mut to[head * d_model..];
            matmul::linear(rows.len(), head_dim, x, &w, first_k, to, n_heads * d_model);
        }
    }

    fn swiglu(&mut self, out: Act) {
        let op = RowOp::SwiGlu {
            gate: self.all(Act::Gate),
            up: self.all(Act::Up),
            out: self.all(out),
        };
        self.put_off.push(op);
    }

    fn add(&mut self, a: Act, b: Act, out: Act) {
        let op = RowOp::Add {
            a: self.all(a),
            b: self.all(b),
            out: self.all(out),
            rounding: self.rounding(out),
        };
        self.put_off.push(op);
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

    fn finish(&mut self) {
        self.run_put_off_but_for(&[Act::AttnOut, Act::Gate, Act::Up, Act::MlpOut]);
    }
}
