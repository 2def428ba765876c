//! A model as the backend sees it.

use crate::backend::Weight;
use crate::backend::cpu::{Shape, StoredDtype, StoredTensor, StoredWeights};
use crate::hooks::Dims;
use crate::model::{Config, Dtype, Model, Tensor};

impl StoredWeights for Model {
    fn tensor(&self, weight: Weight) -> StoredTensor<'_> {
        stored(match weight {
            Weight::Ln1(l) => self.weights.layer(l).input_norm,
            Weight::Q(l) => self.weights.layer(l).q,
            Weight::K(l) => self.weights.layer(l).k,
            Weight::V(l) => self.weights.layer(l).v,
            Weight::O(l) => self.weights.layer(l).o,
            Weight::Ln2(l) => self.weights.layer(l).post_norm,
            Weight::Gate(l) => self.weights.layer(l).gate,
            Weight::Up(l) => self.weights.layer(l).up,
            Weight::Down(l) => self.weights.layer(l).down,
            Weight::LnFinal => self.weights.norm(),
            Weight::LmHead => self.weights.lm_head(),
        })
    }

    fn embed(&self) -> StoredTensor<'_> {
        stored(self.weights.embed())
    }
}

fn stored(tensor: Tensor<'_>) -> StoredTensor<'_> {
    let dtype = match tensor.dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::BF16 => StoredDtype::BF16,
    };
    StoredTensor {
        dtype,
        bytes: tensor.bytes,
    }
}

/// The sizes and constants that ops need.
pub fn shape(config: &Config) -> Shape {
    Shape {
        d_model: config.hidden_size,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        d_mlp: config.intermediate_size,
        vocab: config.vocab_size,
        rms_norm_eps: config.rms_norm_eps as f32,
        window: config.sliding_window,
        inv_freq: config.rope.inv_freq(config.head_dim),
        n_layers: config.n_layers,
    }
}

/// The sizes that hook points have.
pub fn dims(config: &Config) -> Dims {
    Dims {
        n_layers: config.n_layers,
        d_model: config.hidden_size,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        d_head: config.head_dim,
        d_mlp: config.intermediate_size,
        vocab: config.vocab_size,
    }
}
