//! A batch that goes on where others ended: keys and values are kept in caches, and the one new token of a sequence sees them.

use super::{Launched, Pass};
use crate::backend::cuda::arena::PieceId;
use crate::backend::cuda::backend::{DECODE_CHUNK, View};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::cache::{CacheRows, CacheRowsArgs};
use crate::backend::cuda::kernels::decode_attention::{
    DecodeAttention, DecodeAttentionArgs, DecodeAttentionCombine,
};
use crate::backend::cuda::kernels::pattern::{PatternOfLast, PatternOfLastArgs};
use crate::backend::cuda::launch::{DevicePtr, LaunchError, launch};
use crate::backend::{Act, AttentionHooks};

/// Whose next tokens a batch is.
pub(in crate::backend::cuda) struct Continued {
    /// The sequence of each sample.
    pub sequences: Vec<usize>,
    /// Tokens of each by the end of the batch.
    pub lengths: Vec<u32>,
    /// Each has one token, which sees a cache; else none has a cache yet.
    pub decoding: bool,
}

impl<D: Driver> Pass<'_, '_, D> {
    pub(super) fn is_decoding(&self) -> bool {
        self.continued.as_ref().is_some_and(|c| c.decoding)
    }

    /// Rows of a chunk of the matrix products.
    pub(super) fn chunk(&self) -> u32 {
        if self.is_decoding() {
            DECODE_CHUNK
        } else {
            self.cuda.gemms.chunk()
        }
    }

    /// Puts the batch's keys and values into the caches of their sequences, if it has any.
    pub(super) fn keep_keys_and_values(&mut self, layer: usize) -> Launched {
        let (Some(_), Some(cache)) = (&self.continued, &self.cuda.places.cache) else {
            return Ok(());
        };
        let [k, v] = [Act::RotK, Act::V].map(|act| self.view(act));
        let vectors = |elements: usize, view: View| elements * view.dtype.bytes() / 16;
        let (k_cache, v_cache) = cache.layers[layer];
        let args = CacheRowsArgs {
            k: k.at,
            v: v.at,
            k_cache,
            v_cache,
            slots: cache.slots,
            k_stride: vectors(k.stride, k) as u64,
            v_stride: vectors(v.stride, v) as u64,
            rows: self.rows(),
            vectors: vectors(k.width, k) as u32,
        };
        launch(&mut self.cuda.driver, &CacheRows, &args)
    }

    /// Attention of each sequence's new token over its cache.
    pub(super) fn attend_newest(
        &mut self,
        layer: usize,
        z: Act,
        hooks: AttentionHooks<'_>,
    ) -> Launched {
        if !(hooks.scores.is_empty() && hooks.patterns.is_empty()) {
            return Err(LaunchError::Device {
                what: "tapping attention scores or patterns of a new token".into(),
                reason: "extract them from the text that was generated".into(),
            });
        }
        if !hooks.edits.is_empty() {
            self.move_home(Act::RotQ)?; // read piece by piece, while the ring goes round
        }
        let (Some(continued), Some(cache)) = (&self.continued, &self.cuda.places.cache) else {
            return Ok(());
        };
        let (q, to) = (self.view(Act::RotQ), self.view(z));
        let shape = &self.cuda.shape;
        let width = shape.n_kv_heads * shape.head_dim;
        let (k_cache, v_cache) = cache.layers[layer];
        let sequence_stride = (cache.capacity * width) as u64;
        let args = DecodeAttentionArgs {
            q: q.at,
            k_cache,
            v_cache,
            lengths: cache.lengths,
            caches: cache.caches,
            partial_out: cache.partial_out,
            partial_softmax: cache.partial_softmax,
            out: to.at,
            k_sequence_stride: sequence_stride,
            v_sequence_stride: sequence_stride,
            k_slot_stride: width as u32,
            v_slot_stride: width as u32,
            q_stride: q.stride as u32,
            out_stride: to.stride as u32,
            sequences: continued.sequences.len() as u32,
            n_heads: shape.n_heads as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            capacity: cache.capacity as u32,
            window: self.cuda.window(),
            splits: cache.splits,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            _pad: 0,
        };
        let kernel = DecodeAttention {
            dtype: self.dtype(),
            head_dim: shape.head_dim as u32,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        launch(
            &mut self.cuda.driver,
            &DecodeAttentionCombine(kernel),
            &args,
        )?;
        if hooks.edits.is_empty() {
            return Ok(());
        }
        for (sample, (sequence, n)) in self.sequences_and_lengths().into_iter().enumerate() {
            let skipped = sequence * args.k_sequence_stride as usize * self.dtype().bytes();
            let (k, v) = (args.k_cache.offset(skipped), args.v_cache.offset(skipped));
            let q_row = sample * q.stride * q.dtype.bytes();
            let last = PatternOfLastArgs {
                q: q.at.offset(q_row),
                k,
                pattern: DevicePtr::NULL,
                heads: DevicePtr::NULL,
                k_stride: args.k_slot_stride,
                n_heads: args.n_heads,
                n_kv_heads: args.n_kv_heads,
                heads_kept: 0,
                n,
                capacity: args.capacity,
                window: args.window,
                scale: args.scale,
            };
            let pattern = |p: &mut Self, heads: &[u32]| p.pattern_of_newest(last, heads);
            let values = (v, args.v_slot_stride, args.capacity);
            self.edit_newest(hooks.edits, sample, n, pattern, values)?;
        }
        Ok(())
    }

    fn sequences_and_lengths(&self) -> Vec<(usize, u32)> {
        let each = self.continued.iter().flat_map(|c| {
            let sequences = c.sequences.iter().copied();
            sequences.zip(c.lengths.iter().copied())
        });
        each.collect()
    }

    /// `[heads, n]` f32 in a piece.
    fn pattern_of_newest(
        &mut self,
        args: PatternOfLastArgs,
        heads: &[u32],
    ) -> Launched<(PieceId, DevicePtr)> {
        let (heads_piece, heads_at) = self.upload(bytemuck::cast_slice(heads))?;
        let (piece, at) = self.take(heads.len() * args.n as usize * 4)?;
        let kernel = PatternOfLast {
            dtype: self.dtype(),
            head_dim: self.cuda.shape.head_dim as u32,
        };
        let args = PatternOfLastArgs {
            pattern: at,
            heads: heads_at,
            heads_kept: heads.len() as u32,
            ..args
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        self.release(heads_piece);
        Ok((piece, at))
    }
}
