//! A job as asked for: what the manifest records field by field.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Result;
use super::sample::OnLong;
use crate::backend::cuda::Dtype;
use crate::data::{Dataset, Fields, Fraction, ReadOptions, Shuffle};
use crate::store::StoreDtype;

/// Everything that decides what a run computes and stores. Two runs with equal jobs write equal tap files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Directory or hub id.
    pub model: String,
    /// Files, globs, directories or `-`.
    pub data: Vec<String>,
    /// `PATTERN[@SELECTION][|REDUCTION]`
    pub taps: Vec<String>,
    /// Selection of taps that name none.
    pub select: String,
    /// `KIND key=value …`, applied in this order where they meet.
    #[serde(default)]
    pub edits: Vec<String>,
    /// Taps of an edited point take the value before its edits.
    #[serde(default)]
    pub tap_before_edits: bool,
    /// What is computed in. (The CPU computes in f32 where it is f16.) Rows are stored in it where `store_dtype` is `None`.
    #[serde(default = "f32_dtype")]
    pub dtype: Dtype,
    /// The residual stream is kept in f32 beside a 16-bit `dtype`.
    #[serde(default)]
    pub f32_resid: bool,
    /// `None`: the compute dtype.
    pub store_dtype: Option<StoreDtype>,
    /// Which field holds the input: (`text`, `tokens` or `messages`; its name). `None`: decided per record.
    pub input_field: Option<(InputKind, String)>,
    /// Fields that the samples table carries along.
    pub keep: Vec<String>,
    /// Role that plain text is wrapped in.
    pub chat: Option<String>,
    pub add_generation_prompt: bool,
    pub special_tokens: bool,
    /// `None`: the model's positions.
    pub max_length: Option<usize>,
    pub on_long: OnLong,
    /// Tokens that a chunk has in common with the one before it, under [`OnLong::Chunk`].
    #[serde(default)]
    pub chunk_overlap: usize,
    /// Samples are contexts of so many tokens, cut out of the records end to end.
    #[serde(default)]
    pub pack_context: Option<usize>,
    pub skip_bad: bool,
    /// Read the first so many records only,
    pub limit: Option<u64>,
    /// of these some,
    #[serde(default)]
    pub sample_fraction: Option<Fraction>,
    /// and these in the random order of this seed.
    #[serde(default)]
    pub shuffle: Option<u64>,
    /// Directory for what a run needs beside its store until it ends: the records that wait for their turn under `shuffle`. `None`: the
    /// system's directory for temporary files.
    #[serde(skip)]
    pub scratch: Option<PathBuf>,
    /// Which slice of the dataset, from 0, of how many. Not of what is computed: the slices of a dataset are one job's.
    #[serde(skip)]
    pub shard: Option<(u64, u64)>,
    /// Whether a record's `tokens` go before its `text`, where `input_field` names neither. Not asked for but found: the model
    /// has no tokenizer.
    #[serde(skip)]
    pub tokens_first: bool,
    /// Bytes of a shard, summed over taps.
    pub shard_bytes: u64,
    /// Most tokens of a batch; a longer sample makes a batch of its own.
    pub batch_tokens: usize,
}

/// Manifests from before there was a choice say nothing.
fn f32_dtype() -> Dtype {
    Dtype::F32
}

/// What an input field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    Text,
    Tokens,
    Messages,
}

impl Job {
    /// A job with every option at its default.
    pub fn new(model: impl Into<String>, data: Vec<String>, taps: Vec<String>) -> Self {
        Job {
            model: model.into(),
            data,
            taps,
            select: "all".into(),
            edits: Vec::new(),
            tap_before_edits: false,
            dtype: Dtype::F32,
            f32_resid: false,
            store_dtype: None,
            input_field: None,
            keep: Vec::new(),
            chat: None,
            add_generation_prompt: false,
            special_tokens: true,
            max_length: None,
            on_long: OnLong::Error,
            chunk_overlap: 0,
            pack_context: None,
            skip_bad: false,
            limit: None,
            sample_fraction: None,
            shuffle: None,
            scratch: None,
            shard: None,
            tokens_first: false,
            shard_bytes: 2 << 30,
            batch_tokens: 4096,
        }
    }

    /// Whether samples can be chats: text wrapped in a turn, messages, or whatever each record holds.
    pub fn may_be_chat(&self) -> bool {
        self.chat.is_some()
            || !matches!(
                self.input_field,
                Some((InputKind::Text | InputKind::Tokens, _))
            )
    }

    /// Dtype of stored rows (`hook_scale`'s are f32 all the same).
    pub fn stored(&self) -> StoreDtype {
        self.store_dtype.unwrap_or(match self.dtype {
            Dtype::F32 => StoreDtype::F32,
            Dtype::F16 => StoreDtype::F16,
            Dtype::BF16 => StoreDtype::BF16,
        })
    }

    /// The dataset, opened anew.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn dataset(&self, needs_spans: bool) -> Result<Dataset> {
        let fields = self.input_field.clone().map(|(kind, name)| match kind {
            InputKind::Text => Fields::Text(name),
            InputKind::Tokens => Fields::Tokens(name),
            InputKind::Messages => Fields::Messages(name),
        });
        let options = ReadOptions {
            fields,
            tokens_first: self.tokens_first,
            spans_field: if needs_spans {
                "spans".into()
            } else {
                String::new()
            },
            keep: self.keep.clone(),
            skip_bad: self.skip_bad,
            limit: self.limit,
            fraction: self.sample_fraction,
            shuffle: self.shuffle.map(|seed| Shuffle {
                seed,
                scratch: self.scratch.clone().unwrap_or_else(std::env::temp_dir),
            }),
        };
        Ok(Dataset::open(&self.data, options)?)
    }

    /// The dataset, opened anew, in the order of its files: to count it, to hash it, to find records in it.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn dataset_in_order(&self, needs_spans: bool) -> Result<Dataset> {
        let in_order = Job {
            shuffle: None,
            ..self.clone()
        };
        in_order.dataset(needs_spans)
    }
}
