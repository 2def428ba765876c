//! Where ops run. [`Ops`] is the transformer's vocabulary as a trait: every op is told where to write
//! ([`Act`], destination passing) and never allocates its output. A [`Sink`] is where one tap's rows of
//! one batch go; an activation may be *bound* to a sink, and then the op that makes it writes the tap itself.
//! An [`Edit`] is what one edit does to some of a batch's rows.
//! `cpu` is the backend that runs anywhere and the oracle of the others.
//! This module knows nothing of stores, datasets or analyses.

pub mod cpu;
pub mod cuda;
mod edit;
mod head;
mod sink;

pub use edit::{Change, Edit, EditSpec, Receipt};
pub use head::{HEAD_ROWS, HeadRows, Scores};
pub use sink::{Landed, Reduce, Sink, SinkBytes, SinkDtype, SinkSpec};

/// What can go wrong while ops run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token id that the embedding has no row for.
    #[error(
        "token id {token} at row {row} of the batch is not below the vocabulary size {vocab}: use this model's own tokenizer"
    )]
    TokenOutOfRange {
        token: u32,
        row: usize,
        vocab: usize,
    },
    /// A batch that is larger than the device's memory was planned for.
    #[error(
        "{asked} {what}, and the device's memory was planned for {planned}: raise --batch-tokens or --max-length before the run"
    )]
    BeyondPlan {
        what: &'static str,
        asked: usize,
        planned: usize,
    },
    /// A model that a backend has no kernels for.
    #[error("the CUDA backend has no kernels for {what}: use --device cpu")]
    Unsupported { what: String },
    /// The device is too small.
    #[error("{device} has {free} bytes free, and {needed} are needed: {weights} for the weights, the rest for batches of {rows} rows{}", what_fits(*fits))]
    DeviceMemory {
        device: String,
        free: usize,
        needed: usize,
        weights: usize,
        rows: usize,
        /// The largest batch that fits.
        fits: Option<usize>,
    },
    /// An allocation, a copy or a launch that failed.
    #[error(transparent)]
    Device(Box<cuda::LaunchError>),
}

fn what_fits(rows: Option<usize>) -> String {
    rows.map_or(
        "; no batch fits: use a smaller model or a larger device".into(),
        |rows| format!("; {rows} rows fit: pass --batch-tokens {rows} --max-length {rows}"),
    )
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Samples packed end to end, no padding between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// Position of each row in its sample, `[rows]`.
    pub positions: Vec<u32>,
    /// Where each sample begins, and where the last one ends, `[samples + 1]`.
    pub cu_seqlens: Vec<u32>,
}

impl Batch {
    /// Packs samples in the order given.
    pub fn pack<'a>(samples: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Batch {
            cu_seqlens: vec![0],
            ..Batch::default()
        };
        for sample in samples {
            batch.tokens.extend_from_slice(sample);
            batch.positions.extend(0..sample.len() as u32);
            batch.cu_seqlens.push(batch.tokens.len() as u32);
        }
        batch
    }

    /// Refuses token ids that the vocabulary does not have.
    pub(crate) fn check_tokens(&self, vocab: usize) -> Result<()> {
        match self.tokens.iter().position(|&t| t as usize >= vocab) {
            None => Ok(()),
            Some(row) => Err(Error::TokenOutOfRange {
                token: self.tokens[row],
                row,
                vocab,
            }),
        }
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of each sample, in order.
    pub fn samples(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.cu_seqlens
            .windows(2)
            .map(|w| w[0] as usize..w[1] as usize)
    }
}

/// The activations that an op reads or writes, one row per token.
/// `d` hidden size, `H` query heads, `K` key/value heads, `h` head dim, `f` MLP width, `V` vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Act {
    /// `[d]`: the residual stream that enters the block.
    ResidPre,
    /// `[d]`: after attention.
    ResidMid,
    /// `[d]`: after the MLP.
    ResidPost,
    /// `[1]`: sqrt(mean(x²) + eps) of the norm that ran last.
    NormScale,
    /// `[d]`: x / scale, before the gain.
    Normalized,
    /// `[d]`: after the gain; what the attention block, the MLP or the LM head reads.
    Normed,
    /// `[H, h]` before RoPE.
    Q,
    /// `[K, h]` before RoPE.
    K,
    /// `[K, h]`.
    V,
    /// `[H, h]` after RoPE.
    RotQ,
    /// `[K, h]` after RoPE.
    RotK,
    /// `[H, h]`: attention-weighted values.
    Z,
    /// `[H, d]`, a few rows at a time: z·W_O per head.
    HeadOut,
    /// `[d]`.
    AttnOut,
    /// `[f]`: gate projection.
    Gate,
    /// `[f]`: up projection.
    Up,
    /// `[f]`: silu(gate)·up.
    Post,
    /// `[d]`.
    MlpOut,
    /// `[V]`, a few rows at a time.
    Logits,
}

impl Act {
    /// How many there are.
    pub const COUNT: usize = Act::Logits as usize + 1;

    /// All of them, in order.
    pub const ALL: [Act; Act::COUNT] = [
        Act::ResidPre,
        Act::ResidMid,
        Act::ResidPost,
        Act::NormScale,
        Act::Normalized,
        Act::Normed,
        Act::Q,
        Act::K,
        Act::V,
        Act::RotQ,
        Act::RotK,
        Act::Z,
        Act::HeadOut,
        Act::AttnOut,
        Act::Gate,
        Act::Up,
        Act::Post,
        Act::MlpOut,
        Act::Logits,
    ];
}

/// A weight by its role; the layer counts from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weight {
    /// `[d]`: gain of the norm before attention.
    Ln1(usize),
    /// `[H·h, d]`
    Q(usize),
    /// `[K·h, d]`
    K(usize),
    /// `[K·h, d]`
    V(usize),
    /// `[d, H·h]`
    O(usize),
    /// `[d]`: gain of the norm before the MLP.
    Ln2(usize),
    /// `[f, d]`
    Gate(usize),
    /// `[f, d]`
    Up(usize),
    /// `[d, f]`
    Down(usize),
    /// `[d]`: gain of the final norm.
    LnFinal,
    /// `[V, d]`
    LmHead,
}

/// Index of a sink among those a batch was begun with.
pub type SinkId = usize;

/// Index of an edit among those a batch was begun with.
pub type EditId = usize;

/// What happens inside attention, where the rows of a sample's scores and pattern exist a few at a time.
#[derive(Debug, Clone, Copy)]
pub struct AttentionHooks<'a> {
    /// Sinks of the scores.
    pub scores: &'a [SinkId],
    /// Sinks of the pattern.
    pub patterns: &'a [SinkId],
    /// Edits of the pattern, in order.
    pub edits: &'a [EditId],
    /// Whether the pattern's sinks take it before its edits.
    pub taps_before_edits: bool,
}

/// The transformer's ops over one batch. Each writes every row of its destination.
pub trait Ops {
    /// Lets the ops that write `act` from here on write straight into the sink's memory, if the sink takes every
    /// row whole and unconverted; says whether it does.
    fn bind(&mut self, act: Act, sink: SinkId) -> bool;
    /// `act` is written to memory of the backend's own again.
    fn unbind(&mut self, act: Act);
    /// `act`, which stays as it is, lies in memory of the backend's own: what is done to it from here on changes no sink.
    fn own(&mut self, act: Act);
    /// The rows of the batch that the sink takes, rising.
    fn sink_rows(&self, sink: SinkId) -> &[u32];
    /// Exchanges two activations (of one width) without moving a byte.
    fn swap(&mut self, a: Act, b: Act);

    /// out = E\[token\]
    fn embed(&mut self, out: Act);
    /// scale = sqrt(mean(x²) + eps), normalized = x / scale, out = normalized · gain. Scale is always kept;
    /// `normalized` only when asked for.
    fn rms_norm(&mut self, x: Act, gain: Weight, normalized: bool, out: Act);
    /// out = x · Wᵀ
    fn linear(&mut self, x: Act, w: Weight, out: Act);
    /// out\[r\] = x\[rows\[r\]\] · Wᵀ, for the rows given only.
    fn linear_rows(&mut self, x: Act, rows: &[u32], w: Weight, out: Act);
    /// Rotate-half rotary embedding by the row's position.
    fn rope(&mut self, x: Act, out: Act);
    /// z = softmax(q·kᵀ/√h, causal, within the window) · v, per sample. Scores and patterns go to the sinks given, and the
    /// patterns are edited, on their way.
    fn attention(&mut self, layer: usize, z: Act, hooks: AttentionHooks<'_>);
    /// out\[r, head\] = z\[rows\[r\], head\] · W_Oᵀ\[head\]: each head's share of attn_out, for the rows given.
    fn head_results(&mut self, rows: &[u32], layer: usize, out: Act);
    /// out = silu(gate) · up
    fn swiglu(&mut self, out: Act);
    /// out = a + b
    fn add(&mut self, a: Act, b: Act, out: Act);

    /// Writes the sink's rows out of `act`, which holds every row of the batch.
    fn emit(&mut self, act: Act, sink: SinkId);
    /// Writes those of the sink's rows that are among `rows`; `act` holds just these, in this (rising) order.
    fn emit_rows(&mut self, act: Act, rows: &[u32], sink: SinkId);

    /// Changes the edit's rows of `act`, which holds every row of the batch, where they are.
    fn edit(&mut self, act: Act, edit: EditId);
    /// Changes those of the edit's rows that are among `rows`; `act` holds just these, in this (rising) order.
    fn edit_rows(&mut self, act: Act, rows: &[u32], edit: EditId);

    /// What comes is the computing of this hook point: its name in a timeline, if the backend makes one.
    fn label(&mut self, _point: &dyn std::fmt::Display) {}

    /// Nothing is put off any more: every op so far has run and the sinks hold their rows, or, on a device, will without anything
    /// more being called.
    fn finish(&mut self);
}
