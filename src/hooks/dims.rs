//! The sizes of a model that hook points need to know.

/// Sizes of one model, as counts; every shape of a hook point follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream, `d`.
    pub d_model: usize,
    /// Query heads, `H`.
    pub n_heads: usize,
    /// Key/value heads, `K`; a group of `H / K` query heads shares each.
    pub n_kv_heads: usize,
    /// Width of one head, `h`; not always `d / H`.
    pub d_head: usize,
    /// Width of the MLP, `f`.
    pub d_mlp: usize,
    /// Rows of the LM head, `V`.
    pub vocab: usize,
}

#[cfg(test)]
pub(super) mod tests {
    use super::Dims;

    /// Mistral-7B's sizes.
    pub(in crate::hooks) const MISTRAL: Dims = Dims {
        n_layers: 32,
        d_model: 4096,
        n_heads: 32,
        n_kv_heads: 8,
        d_head: 128,
        d_mlp: 14336,
        vocab: 32000,
    };
}
