//! The model's weights on the device, in the compute dtype. What reads the same input stands in one matrix: q, k and v; gate and up.

use half::{bf16, f16};
use rayon::prelude::*;

use super::arena::Cutter;
use super::driver::Driver;
use super::launch::{DevicePtr, Dtype, LaunchError};
use crate::backend::Weight;
use crate::backend::cpu::{Shape, StoredDtype, StoredTensor, StoredWeights};

/// Elements converted and uploaded at a time.
const PIECE: usize = 8 << 20;

/// One block's.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights {
    /// `[d]`
    pub ln1: DevicePtr,
    /// `[(H + 2K)·h, d]`: q, then k, then v.
    pub qkv: DevicePtr,
    /// `[d, H·h]`
    pub o: DevicePtr,
    /// `[d]`
    pub ln2: DevicePtr,
    /// `[2f, d]`: gate, then up.
    pub gate_up: DevicePtr,
    /// `[d, f]`
    pub down: DevicePtr,
}

/// All of a model's.
#[derive(Debug)]
pub struct DeviceWeights {
    pub layers: Vec<LayerWeights>,
    /// `[d]`
    pub ln_final: DevicePtr,
    /// `[V, d]`
    pub embed: DevicePtr,
    /// `[V rounded up to 8, d]`, the rows behind V zero; the embedding itself where they are tied and V is a multiple of 8.
    pub lm_head: DevicePtr,
    tied: bool,
}

/// Rows of the LM head on the device: products come in columns of 8.
pub fn padded_vocab(shape: &Shape) -> usize {
    shape.vocab.next_multiple_of(8)
}

impl DeviceWeights {
    /// Cuts the places of a model's weights.
    pub fn place(
        cutter: &mut Cutter,
        shape: &Shape,
        dtype: Dtype,
        weights: &dyn StoredWeights,
    ) -> DeviceWeights {
        let mut take = |elements: usize| cutter.take(elements * dtype.bytes());
        let (d, qz, kv) = (
            shape.d_model,
            shape.n_heads * shape.head_dim,
            shape.n_kv_heads * shape.head_dim,
        );
        let layers = (0..shape.n_layers)
            .map(|_| LayerWeights {
                ln1: take(d),
                qkv: take((qz + 2 * kv) * d),
                o: take(d * qz),
                ln2: take(d),
                gate_up: take(2 * shape.d_mlp * d),
                down: take(d * shape.d_mlp),
            })
            .collect();
        let (embedding, head) = (weights.embed(), weights.tensor(Weight::LmHead));
        let tied = embedding.bytes.as_ptr() == head.bytes.as_ptr() && shape.vocab.is_multiple_of(8);
        let embed = take(shape.vocab * d);
        DeviceWeights {
            layers,
            ln_final: take(d),
            embed,
            lm_head: if tied {
                embed
            } else {
                take(padded_vocab(shape) * d)
            },
            tied,
        }
    }

    /// Uploads all of them; returns the bytes that went over.
    ///
    /// # Errors
    /// The device's.
    pub fn upload(
        &self,
        driver: &mut dyn Driver,
        shape: &Shape,
        dtype: Dtype,
        weights: &dyn StoredWeights,
    ) -> Result<u64, LaunchError> {
        let mut bytes = 0;
        let mut put = |to: DevicePtr, tensors: &[StoredTensor<'_>]| -> Result<(), LaunchError> {
            let mut at = to;
            for tensor in tensors {
                at = at.offset(put_tensor(driver, at, tensor, dtype)?);
            }
            bytes += at.0 - to.0;
            Ok(())
        };
        let stored = |weight| weights.tensor(weight);
        for (l, layer) in self.layers.iter().enumerate() {
            put(layer.ln1, &[stored(Weight::Ln1(l))])?;
            put(
                layer.qkv,
                &[Weight::Q(l), Weight::K(l), Weight::V(l)].map(stored),
            )?;
            put(layer.o, &[stored(Weight::O(l))])?;
            put(layer.ln2, &[stored(Weight::Ln2(l))])?;
            put(layer.gate_up, &[Weight::Gate(l), Weight::Up(l)].map(stored))?;
            put(layer.down, &[stored(Weight::Down(l))])?;
        }
        put(self.ln_final, &[stored(Weight::LnFinal)])?;
        put(self.embed, &[weights.embed()])?;
        if !self.tied {
            put(self.lm_head, &[stored(Weight::LmHead)])?;
            let row = shape.d_model * dtype.bytes();
            let padding = (padded_vocab(shape) - shape.vocab) * row;
            if padding > 0 {
                driver.fill(self.lm_head.offset(shape.vocab * row), 0, padding)?;
            }
        }
        driver.synchronize()?;
        Ok(bytes)
    }
}

/// Uploads one tensor; returns its bytes on the device.
fn put_tensor(
    driver: &mut dyn Driver,
    to: DevicePtr,
    tensor: &StoredTensor<'_>,
    dtype: Dtype,
) -> Result<usize, LaunchError> {
    let size = dtype.bytes();
    let same = matches!(
        (tensor.dtype, dtype),
        (StoredDtype::F32, Dtype::F32)
            | (StoredDtype::F16, Dtype::F16)
            | (StoredDtype::BF16, Dtype::BF16)
    );
    if same {
        for (i, piece) in tensor.bytes.chunks(PIECE * size).enumerate() {
            driver.upload_in_order(to.offset(i * PIECE * size), piece)?;
        }
        return Ok(tensor.bytes.len());
    }
    let mut converted = Vec::new();
    for first in (0..tensor.len()).step_by(PIECE) {
        let len = PIECE.min(tensor.len() - first);
        converted.resize(len * size, 0);
        convert(tensor, first, dtype, &mut converted);
        driver.upload_in_order(to.offset(first * size), &converted)?;
    }
    Ok(tensor.len() * size)
}

/// Elements from `first` on in `dtype`, rounded to nearest even where it holds less.
fn convert(tensor: &StoredTensor<'_>, first: usize, dtype: Dtype, out: &mut [u8]) {
    const TASK: usize = 1 << 16;
    let size = dtype.bytes();
    out.par_chunks_mut(TASK * size)
        .enumerate()
        .for_each(|(task, out)| {
            let mut wide = vec![0.0_f32; out.len() / size];
            tensor.widen(first + task * TASK, &mut wide);
            narrow(&wide, dtype, out);
        });
}

/// Those numbers in `dtype`, rounded to nearest even where it holds less.
pub(super) fn narrowed(wide: &[f32], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; wide.len() * dtype.bytes()];
    narrow(wide, dtype, &mut bytes);
    bytes
}

fn narrow(wide: &[f32], dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F32 => out.copy_from_slice(bytemuck::cast_slice(wide)),
        Dtype::F16 => store(wide, out, |v| f16::from_f32(v).to_le_bytes()),
        Dtype::BF16 => store(wide, out, |v| bf16::from_f32(v).to_le_bytes()),
    }
}

fn store(wide: &[f32], out: &mut [u8], narrow: impl Fn(f32) -> [u8; 2]) {
    for (out, &v) in out.as_chunks_mut::<2>().0.iter_mut().zip(wide) {
        *out = narrow(v);
    }
}
