//! Weights as the checkpoint stores them, widened to f32 for the matrix products.
//!
//! 16-bit matrices are widened when first used, and kept only if all of them together fit in half of the memory
//! that was free at the start; otherwise each role has one scratch that the next layer overwrites. f32 matrices
//! are used where they are mapped.

use std::borrow::Cow;
use std::collections::HashMap;

use half::{bf16, f16};
use rayon::prelude::*;

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
            StoredDtype::BF16 => widen_by(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        }
    }
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

/// Widened weights, made when first asked for.
pub(super) struct WideWeights<'m> {
    stored: &'m dyn StoredWeights,
    keep: bool,
    kept: HashMap<Weight, Vec<f32>>,
    /// One matrix per role, and the layer it is of.
    scratch: HashMap<std::mem::Discriminant<Weight>, (Weight, Vec<f32>)>,
}

impl<'m> WideWeights<'m> {
    /// `keep`: hold every widened matrix instead of one layer's.
    pub fn new(stored: &'m dyn StoredWeights, keep: bool) -> Self {
        WideWeights {
            stored,
            keep,
            kept: HashMap::new(),
            scratch: HashMap::new(),
        }
    }

    /// The checkpoint's own tensors.
    pub fn stored(&self) -> &'m dyn StoredWeights {
        self.stored
    }

    /// The weight as f32.
    pub fn get(&mut self, weight: Weight) -> Cow<'_, [f32]> {
        let tensor = self.stored.tensor(weight);
        if tensor.dtype == StoredDtype::F32
            && let Ok(mapped) = bytemuck::try_cast_slice(tensor.bytes)
        {
            return Cow::Borrowed(mapped);
        }
        if self.keep {
            return Cow::Borrowed(
                self.kept
                    .entry(weight)
                    .or_insert_with(|| widen_all(&tensor, Vec::new())),
            );
        }
        let (held, wide) = self
            .scratch
            .entry(std::mem::discriminant(&weight))
            .or_insert_with(|| (weight, widen_all(&tensor, Vec::new())));
        if *held != weight {
            *wide = widen_all(&tensor, std::mem::take(wide));
            *held = weight;
        }
        Cow::Borrowed(wide)
    }
}

fn widen_all(tensor: &StoredTensor<'_>, mut out: Vec<f32>) -> Vec<f32> {
    const CHUNK: usize = 1 << 16;
    out.resize(tensor.len(), 0.0);
    out.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(i, chunk)| tensor.widen(i * CHUNK, chunk));
    out
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
            let mut wide = WideWeights::new(&stored, keep);
            for _ in 0..2 {
                assert_eq!(*wide.get(Weight::Q(0)), [1.0, -2.5]);
                assert_eq!(*wide.get(Weight::Q(1)), [3.0, 0.125]);
            }
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
