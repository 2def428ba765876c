//! JSONL: an object a line.

use super::error::{Error, Place, Result};
use super::fields::Wanted;
use super::lines::{LineRead, Lines, TextInput};
use super::object;
use super::source::{Body, RawRecord, RecordReader};
use std::sync::Arc;

pub(super) struct JsonlReader {
    file: Arc<str>,
    lines: Lines,
    limit: usize,
}

impl JsonlReader {
    /// Records of at most `limit` bytes.
    pub fn new(file: Arc<str>, input: TextInput, limit: usize) -> Self {
        JsonlReader {
            file,
            lines: Lines::new(input, limit),
            limit,
        }
    }
}

impl RecordReader for JsonlReader {
    fn next_record(&mut self, wanted: &Wanted) -> Option<Result<RawRecord>> {
        let reached = self.lines.number();
        let place = Place::Line(reached + 1);
        let flaw = match self.lines.read() {
            Err(source) => {
                return Some(Err(Error::Io {
                    file: self.file.to_string(),
                    line: Some(reached + 1),
                    source,
                }));
            }
            Ok(LineRead::End) => return None,
            Ok(LineRead::TooLong) => object::too_long(self.limit),
            Ok(LineRead::Line(line)) if line.trim_ascii().is_empty() => object::Flaw {
                what: "an empty line where a JSON object should be".to_owned(),
                remedy: "remove the line".into(),
                line: 1,
            },
            Ok(LineRead::Line(line)) => match object::parse(line, wanted) {
                Ok((cells, names)) => {
                    let body = Body::Fields { cells, names };
                    return Some(Ok(RawRecord { place, body }));
                }
                Err(flaw) => flaw,
            },
        };
        Some(Err(Error::Record {
            file: self.file.clone(),
            place,
            what: flaw.what,
            remedy: flaw.remedy,
        }))
    }
}
