//! Datasets: reads samples from files, one record at a time, in bounded memory.
//!
//! [`Dataset`] takes files, globs, directories or `-` and yields [`Record`]s in order; each form has a
//! reader of its own (`jsonl`, `json`, `csv` with TSV, `txt`, `parquet`), `unpack` is before it where a file is compressed, and `fields` and `spans` turn
//! what it read into an input, its spans and its kept fields. Every error names file, place and remedy.

mod csv;
mod dataset;
mod error;
mod fields;
mod files;
mod json;
mod jsonl;
mod lines;
mod object;
mod order;
mod parquet;
mod source;
mod spans;
mod spool;
mod txt;
mod unpack;

#[cfg(test)]
mod tests;

pub use dataset::Dataset;
pub use error::{Error, Place, Result};
pub use order::{Fraction, Shuffle};

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The field of a record that holds its input (`--text-field`, `--tokens-field`, `--messages-field`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// A string.
    Text(String),
    /// An array of token ids.
    Tokens(String),
    /// An array of `{"role": …, "content": …}` objects.
    Messages(String),
}

/// How a dataset is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// Where the input is. `None`: per record, the first of `text`, `tokens`, `messages` that is there
    /// and not null.
    pub fields: Option<Fields>,
    /// Look for `tokens` before `text` where `fields` names none: for a model without a tokenizer, which can use nothing else.
    pub tokens_first: bool,
    /// The field with character spans (default `spans`); records without it have none. Empty: spans
    /// are not read at all.
    pub spans_field: String,
    /// Fields kept beside each record, in this order (`--keep label,id`).
    pub keep: Vec<String>,
    /// Skip and count bad records instead of stopping at the first one. What makes the rest of a file
    /// unreadable (I/O errors, a truncated file, a missing column) stops all the same.
    pub skip_bad: bool,
    /// Read only the first N records of the dataset, bad ones counted: a limit picks the same records
    /// whether or not bad ones are skipped.
    pub limit: Option<u64>,
    /// Read some of these records only.
    pub fraction: Option<Fraction>,
    /// Give them in random order.
    pub shuffle: Option<Shuffle>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            fields: None,
            tokens_first: false,
            spans_field: "spans".to_owned(),
            keep: Vec::new(),
            skip_bad: false,
            limit: None,
            fraction: None,
            shuffle: None,
        }
    }
}

/// What a record gives the model. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    Text(String),
    /// Token ids; whether the vocabulary has them is for whoever knows the model.
    Tokens(Vec<u32>),
    /// `(role, content)` of each chat turn.
    Messages(Vec<(String, String)>),
}

/// A named range of characters of a record's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CharSpan {
    pub name: String,
    /// First character (Unicode scalar value), counted from 0.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
    /// The message whose content `start` and `end` count in; `None` for plain text, and for spans of a
    /// chat as a whole, whose bounds are then not checked here.
    pub message: Option<usize>,
}

/// One sample of a dataset, before tokenising.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Place in the dataset, from 0, over all its files; bad records count.
    pub index: u64,
    /// The file as it was named, `<stdin>` for `-`.
    #[serde(skip)]
    pub file: Arc<str>,
    /// 1-based: the line it begins on (JSONL, CSV, TSV, TXT), the element (JSON) or the row (Parquet).
    pub line: u64,
    pub input: Input,
    pub spans: Vec<CharSpan>,
    /// One entry per [`ReadOptions::keep`], `None` for null (an empty cell in CSV and TSV).
    pub kept: Vec<Option<Kept>>,
}

impl Record {
    /// Where the record is, for messages: `facts.jsonl:12`, `facts.json element 3`, `facts.parquet row 12`.
    pub fn place(&self) -> String {
        match files::Form::of(self.file.as_ref().as_ref()) {
            Some(files::Form::Json) => format!("{} element {}", self.file, self.line),
            Some(files::Form::Parquet) => format!("{} row {}", self.file, self.line),
            _ => format!("{}:{}", self.file, self.line),
        }
    }
}

/// The value of a kept field.
///
/// Nested values are kept as their JSON text, integers beyond `i64` as their digits. Cells of CSV and TSV
/// carry no type: one is an `Int` where the integer prints back as the very same text (so `007` stays
/// text), a `Float` where it is a plain decimal such as `-0.50`, else `Text`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Kept {
    Bool(bool),
    Int(i64),
    #[serde(with = "bits")]
    Float(f64),
    Text(String),
}

/// A double by its bits: JSON has no NaN and no infinity.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}
