//! What every form's reader gives: raw records, of which only the wanted fields were read.

use super::error::{Place, Result};
use super::fields::Wanted;
use serde_json::Value;
use std::sync::Arc;

/// A record longer than this is refused, so that a file without line ends, or with a quote that never
/// closes, is an error and not the end of all memory.
pub(super) const MAX_RECORD_BYTES: usize = 1 << 30;

/// Reads the records of one file in order, holding about one of them at a time.
///
/// `Error::Record` concerns that record only and the next call goes on; after any other error the
/// reader is not used again.
pub(super) trait RecordReader: Send {
    fn next_record(&mut self, wanted: &Wanted) -> Option<Result<RawRecord>>;
}

/// A record as its file holds it.
#[derive(Debug)]
pub(super) struct RawRecord {
    pub place: Place,
    pub body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    /// A line of plain text.
    Line(String),
    Fields {
        /// One per wanted name; `None` where the record lacks it.
        cells: Vec<Option<Cell>>,
        /// The names that are there (perhaps not all of very many), for messages.
        names: Arc<[String]>,
    },
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Json(Value),
    /// A NaN or an infinity, which JSON cannot hold and Parquet can.
    NonFinite(f64),
    /// A cell of CSV or TSV: text that may stand for something else.
    Plain(String),
}

impl Cell {
    /// Whether the field is there but holds nothing.
    pub fn is_null(&self) -> bool {
        match self {
            Cell::Json(value) => value.is_null(),
            Cell::NonFinite(_) => false,
            Cell::Plain(text) => text.is_empty(),
        }
    }
}
