//! What can go wrong in a job.

use crate::store::StoreDtype;

/// An error of a job: one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record has no token.
    #[error("{place}: the sample has no tokens: give it a text, or leave it out")]
    NoTokens { place: String },
    #[error(
        "{place}: token id {id} is not below the model's vocabulary size {vocab}: use ids of this model's tokenizer"
    )]
    TokenOutOfRange {
        place: String,
        id: u32,
        vocab: usize,
    },
    #[error(
        "{place}: the sample is text, but {dir} has no tokenizer.json: add one, or give `tokens` instead"
    )]
    NoTokenizer { place: String, dir: String },
    #[error(
        "{place}: the sample is a chat, but {dir} has no chat template: add chat_template.jinja, or give `text` or `tokens`"
    )]
    NoTemplate { place: String, dir: String },
    #[error("{place}: {source}")]
    Chat {
        place: String,
        #[source]
        source: Box<crate::model::Error>,
    },
    #[error(
        "{place}: the span '{name}' [{start}, {end}) is not in its text ({why}): spans count characters from 0, the end not included"
    )]
    Span {
        place: String,
        name: String,
        start: usize,
        end: usize,
        why: String,
    },
    #[error("{place}: the sample has {tokens} tokens, more than {limit}{}: pass --on-long truncate, or --on-long chunk to extract{}",
        if limit == positions { ", the model's positions" } else { "" }, if limit == positions { "" } else { ", or raise --max-length" })]
    TooLong {
        place: String,
        tokens: usize,
        limit: usize,
        positions: usize,
    },
    #[error("--{flag} {asked} is more than the model's {positions} positions: lower it")]
    MaxLength {
        flag: &'static str,
        asked: usize,
        positions: usize,
    },
    /// A flag that asks of the CPU what it does not do.
    #[error("{what} is not for the CPU{why}: {instead}")]
    NotOnCpu {
        what: String,
        /// Why it is the CPU, where that was not asked for.
        why: String,
        instead: String,
    },
    /// A flag that names what this version cannot do.
    #[error("{what} is not available yet{instead}")]
    NotYet { what: String, instead: String },
    #[error(
        "tap {tap}: --store-dtype {dtype} {why}: take bf16, or leave the tap to a run of its own"
    )]
    NotCompact {
        tap: String,
        dtype: StoreDtype,
        why: &'static str,
    },
    #[error("no taps: pass --tap, for example --tap 'blocks.*.hook_resid_post'")]
    NoTaps,
    #[error("--{flag} {why}")]
    Number {
        flag: &'static str,
        why: &'static str,
    },
    #[error(
        "{place}: the prompt's {tokens} tokens fill all of the model's positions: shorten it, nothing can follow"
    )]
    NoRoom { place: String, tokens: usize },
    #[error(
        "sample {sample}: a logit after position {position} is {value}: an edit may have driven the model out of range"
    )]
    NotFinite {
        sample: u64,
        position: usize,
        value: f32,
    },
    /// Asked to, by a signal.
    #[error("stopped after {done} of {total} patched runs, which are kept: pass --resume to go on")]
    SweepStopped { done: u64, total: u64 },
    /// Rows that cannot be kept for edits.
    #[error("rows kept as '{name}': {why}")]
    Memory { name: String, why: String },
    /// Two runs that are to be compared row by row.
    #[error("a run of {p} rows is compared with one of {q}: read both at the same positions")]
    RowsDiffer { p: usize, q: usize },
    /// A line of a pairs file that cannot be used.
    #[error("{place}: {why}")]
    Pair { place: String, why: String },
    /// Statistics that cannot be made of these samples or taps.
    #[error("{place}: {why}")]
    Statistics { place: String, why: String },
    /// Something asked of a sweep that makes no sense for this model or these prompts.
    #[error("--{flag} '{text}': {why}")]
    Sweep {
        flag: &'static str,
        text: String,
        why: String,
    },
    /// A file of a sweep that cannot be read or written, or is not what it should be.
    #[error("{path}: {why}")]
    SweepFile { path: String, why: String },
    /// A flag that says nothing where records are packed into contexts.
    #[error("{flag} with --pack-context: {why}; leave one of them out")]
    Packing {
        flag: &'static str,
        why: &'static str,
    },
    /// Where a count that would mean nothing at all is asked for.
    #[error("--{flag} must be at least 1")]
    Zero { flag: &'static str },
    #[error(
        "the selection '{selection}' needs chat turns, but no sample can have them: give messages, or wrap text with --chat user"
    )]
    NeedsMessages { selection: String },
    /// A selection that needs what the record does not have.
    #[error("{place}: {source}")]
    Selection {
        place: String,
        #[source]
        source: crate::hooks::Error,
    },
    #[error("directions in {file}: {why}")]
    Directions { file: String, why: String },
    /// Numbers of an edit that cannot be had, or do not fit.
    #[error("edit `{edit}`: {why}")]
    Edit { edit: String, why: String },
    #[error(
        "edit `{edit}` changes nothing that is tapped: the last tap is at {last}{}; tap something after it, or leave it out",
        if *before { ", before its edits" } else { "" }
    )]
    EditUnseen {
        edit: String,
        last: String,
        before: bool,
    },
    #[error(
        "edit `{edit}` touched no row: its selection picked nothing that was computed in any of the {samples} samples; give it another, or leave the edit out"
    )]
    EditTouchedNothing { edit: String, samples: u64 },
    #[error(
        "{dir}: edit `{edit}` reads other numbers than it did when the store was made: put the original file or store back"
    )]
    EditDiffers { dir: String, edit: String },
    /// A file of directions that has other numbers than a store's rows were projected on.
    #[error(
        "{dir}: the directions that its taps project on have changed since; put the file back that it was extracted with"
    )]
    DirectionsDiffer { dir: String },
    #[error(
        "no sample has a row for the tap {tap}: its selection picked nothing in any of the {samples} samples; give it another, or leave the tap out"
    )]
    NothingSelected { tap: String, samples: u64 },
    /// Asked to, by a signal.
    #[error("stopped after {samples} samples{kept}")]
    Stopped { samples: u64, kept: &'static str },
    /// A command that is not the one that began the store.
    #[error(
        "{dir} was begun by another command: {what}; give the flags that it was begun with, or another directory"
    )]
    Changed { dir: String, what: String },
    #[error(
        "{what} reads the dataset more than once, and {path} can be read only once: write it to a file first"
    )]
    Stream { what: &'static str, path: String },
    #[error(
        "--shard {index}/{of}: the dataset has {records} records, too few for {of} slices: take fewer"
    )]
    EmptySlice { index: u64, of: u64, records: u64 },
    #[error("all {records} records are bad; the first: {first}")]
    AllBad { records: u64, first: String },
    #[error("reading ahead stopped unexpectedly: {0}")]
    Thread(&'static str),
    #[error("{dir}: the manifest's job cannot be run again ({why})")]
    ForeignJob { dir: String, why: String },
    #[error(
        "{what} is not what the store was made from ({found}, the store has {stored}): pass {flag} with the original"
    )]
    Different {
        what: &'static str,
        found: String,
        stored: String,
        flag: &'static str,
    },
    #[error("{dir}: sample {sample} of the store is not in the dataset any more")]
    MissingSample { dir: String, sample: u64 },
}

impl Error {
    /// True for flags that make no sense whatever the model and the data are.
    pub fn is_of_the_command_line(&self) -> bool {
        matches!(
            self,
            Error::Zero { .. } | Error::Number { .. } | Error::Packing { .. }
        )
    }

    /// True for what is wrong with one record alone: `--skip-bad` passes over it.
    pub fn is_of_one_record(&self) -> bool {
        use Error::{Chat, NoTokens, Selection, Span, TokenOutOfRange};
        matches!(
            self,
            NoTokens { .. } | TokenOutOfRange { .. } | Span { .. } | Chat { .. } | Selection { .. }
        )
    }
}

pub type Result<T, E = crate::Error> = std::result::Result<T, E>;
