//! Plain text: a line a sample, nothing but text.

use super::error::{Error, Place, Result, SAVE_AS_UTF8, not_utf8};
use super::fields::Wanted;
use super::lines::{LineRead, Lines, TextInput};
use super::object;
use super::source::{Body, RawRecord, RecordReader};
use std::borrow::Cow;
use std::sync::Arc;

pub(super) struct TxtReader {
    file: Arc<str>,
    lines: Lines,
    limit: usize,
}

impl TxtReader {
    /// Lines of at most `limit` bytes.
    pub fn new(file: Arc<str>, input: TextInput, limit: usize) -> Self {
        TxtReader {
            file,
            lines: Lines::new(input, limit),
            limit,
        }
    }
}

impl RecordReader for TxtReader {
    fn next_record(&mut self, _: &Wanted) -> Option<Result<RawRecord>> {
        let reached = self.lines.number();
        let place = Place::Line(reached + 1);
        let (what, remedy): (String, Cow<'static, str>) = match self.lines.read() {
            Err(source) => {
                return Some(Err(Error::Io {
                    file: self.file.to_string(),
                    line: Some(reached + 1),
                    source,
                }));
            }
            Ok(LineRead::End) => return None,
            Ok(LineRead::TooLong) => {
                let flaw = object::too_long(self.limit);
                (flaw.what, flaw.remedy)
            }
            Ok(LineRead::Line([])) => (
                "an empty line, and an empty text is no sample".to_owned(),
                "remove the line".into(),
            ),
            // A text file has no NUL bytes; UTF-16 without a mark and binary files do.
            Ok(LineRead::Line(line)) if line.contains(&0) => {
                ("a NUL byte in the text".to_owned(), SAVE_AS_UTF8.into())
            }
            Ok(LineRead::Line(line)) => match std::str::from_utf8(line) {
                Ok(text) => {
                    let body = Body::Line(text.to_owned());
                    return Some(Ok(RawRecord { place, body }));
                }
                Err(error) => (not_utf8(error), SAVE_AS_UTF8.into()),
            },
        };
        Some(Err(Error::Record {
            file: self.file.clone(),
            place,
            what,
            remedy,
        }))
    }
}
