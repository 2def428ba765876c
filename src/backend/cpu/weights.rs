//! Weights as the checkpoint stores them, packed as f32 or bf16 for the matrix products.
//!
//! A matrix is packed when first used, and kept only if all of them together fit in half of the memory that was
//! free at the start; otherwise each role has one scratch that the next layer overwrites.

use std::collections::HashMap;
use std::mem::Discriminant;
use std::sync::Arc;

use half::{bf16, f16};

use super::packing::{Lines, PackedMatrix};
use super::precision::{Precision, round_all};
use super::simd::vectorised;
use crate::backend::Weight;

/// How a checkpoint stores a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredDtype {
    F32,
    F16,
    BF16,
}

/// A tensor's bytes, little-endian, row-major, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    pub dtype: StoredDtype,
    pub bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.element_size()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn element_size(&self) -> usize {
        if self.dtype == StoredDtype::F32 { 4 } else { 2 }
    }

    /// Widens elements `first..first + out.len()` (exact: f32 holds every f16 and bf16).
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let size = self.element_size();
        let bytes = &self.bytes[first * size..(first + out.len()) * size];
        match self.dtype {
            StoredDtype::F32 => widen_by(bytes, out, f32::from_le_bytes),
            StoredDtype::F16 => widen_by(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            StoredDtype::BF16 => widen_bf16(bytes, out),
        }
    }
}

vectorised! {
    fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_loop;
}

#[inline(always)]
fn widen_bf16_loop(bytes: &[u8], out: &mut [f32]) {
    widen_by(bytes, out, |b| bf16::from_le_bytes(b).to_f32());
}

#[inline(always)]
fn widen_by<const SIZE: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; SIZE]) -> f32) {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    for (o, &b) in out.iter_mut().zip(elements) {
        *o = f(b);
    }
}

/// A checkpoint's tensors by role.
pub trait StoredWeights: Sync {
    /// The matrix or vector of that role.
    fn tensor(&self, weight: Weight) -> StoredTensor<'_>;
    /// The embedding, `[V, d]`.
    fn embed(&self) -> StoredTensor<'_>;
}

/// Packed weights, made when first asked for.
pub(super) struct PackedWeights<'m> {
    stored: &'m dyn StoredWeights,
    precision: Precision,
    keep: bool,
    vectors: HashMap<Weight, Arc<[f32]>>,
    kept: HashMap<Weight, Arc<PackedMatrix>>,
    /// One matrix per role, and the layer it is of.
    scratch: HashMap<Discriminant<Weight>, (Weight, Arc<PackedMatrix>)>,
}

impl<'m> PackedWeights<'m> {
    /// `keep`: hold every packed matrix instead of one layer's.
    pub fn new(stored: &'m dyn StoredWeights, precision: Precision, keep: bool) -> Self {
        PackedWeights {
            stored,
            precision,
            keep,
            vectors: HashMap::new(),
            kept: HashMap::new(),
            scratch: HashMap::new(),
        }
    }

    /// The checkpoint's own tensors.
    pub fn stored(&self) -> &'m dyn StoredWeights {
        self.stored
    }

    /// A norm's gain.
    pub fn vector(&mut self, weight: Weight) -> Arc<[f32]> {
        let (stored, rounding) = (self.stored, self.precision.rounding());
        Arc::clone(self.vectors.entry(weight).or_insert_with(|| {
            let tensor = stored.tensor(weight);
            let mut wide = vec![0.0; tensor.len()];
            tensor.widen(0, &mut wide);
            round_all(rounding, &mut wide);
            wide.into()
        }))
    }

    /// A matrix with `n` outputs.
    pub fn matrix(&mut self, weight: Weight, n: usize) -> Arc<PackedMatrix> {
        let (stored, tile) = (self.stored, self.precision.tile());
        let pack = |old| Arc::new(PackedMatrix::pack(tile, &stored.tensor(weight), n, old));
        if self.keep {
            let kept = self.kept.entry(weight);
            return Arc::clone(kept.or_insert_with(|| pack(Lines::default())));
        }
        let role = std::mem::discriminant(&weight);
        let old = match self.scratch.remove(&role) {
            Some((held, matrix)) if held == weight => matrix,
            // Memory that an op still to run reads is left to it.
            Some((_, matrix)) => pack(
                Arc::try_unwrap(matrix)
                    .map_or_else(|_| Lines::default(), PackedMatrix::into_memory),
            ),
            None => pack(Lines::default()),
        };
        self.scratch.insert(role, (weight, Arc::clone(&old)));
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TwoLayers(Vec<u8>, Vec<u8>);

    impl StoredWeights for TwoLayers {
        fn tensor(&self, weight: Weight) -> StoredTensor<'_> {
            let bytes = if weight == Weight::Q(0) {
                &self.0
            } else {
                &self.1
            };
            StoredTensor {
                dtype: StoredDtype::BF16,
                bytes,
            }
        }
        fn embed(&self) -> StoredTensor<'_> {
            self.tensor(Weight::Q(0))
        }
    }

    #[test]
    fn every_layer_gets_its_own_weights_whether_they_are_kept_or_not() {
        let bytes = |v: &[f32]| {
            v.iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let stored = TwoLayers(bytes(&[1.0, -2.5]), bytes(&[3.0, 0.125]));
        for keep in [false, true] {
            let mut packed = PackedWeights::new(&stored, Precision::F32, keep);
            for _ in 0..2 {
                for (layer, expected) in [[1.0, -2.5], [3.0, 0.125]].into_iter().enumerate() {
                    let matrix = packed.matrix(Weight::Q(layer), 2);
                    assert_eq!(matrix.k, 1);
                    assert_eq!(matrix.panel(0, 0..1)[..2], expected);
                    assert_eq!(*packed.vector(Weight::Q(layer)), expected);
                }
            }
            // One that is in use when the next is asked for stays as it is.
            let first = packed.matrix(Weight::Q(0), 2);
            let _second = packed.matrix(Weight::Q(1), 2);
            assert_eq!(first.panel(0, 0..1)[..2], [1.0, -2.5]);
        }
    }

    #[test]
    fn a_misaligned_f32_tensor_is_copied() {
        let mut bytes = [0_u8; 9];
        bytes[1..5].copy_from_slice(&1.5_f32.to_le_bytes());
        bytes[5..9].copy_from_slice(&(-7.0_f32).to_le_bytes());
        let mut out = [0.0; 2];
        StoredTensor {
            dtype: StoredDtype::F32,
            bytes: &bytes[1..],
        }
        .widen(0, &mut out);
        assert_eq!(out, [1.5, -7.0]);
    }
}
