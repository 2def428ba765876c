//! CSV and TSV: a header, then a record a row, quoted as RFC 4180 has it.
//!
//! The `csv` crate takes a quote that never closes for a field that ends with the file, and holds all of
//! it. Two things we feed it change that: a budget of bytes per record, and a sentinel record after the
//! end of the file, which only an open quote can swallow.

use super::error::{Error, Place, Result, SAVE_AS_UTF8, not_utf8};
use super::fields::Wanted;
use super::lines::TextInput;
use super::source::{Body, Cell, RawRecord, RecordReader};
use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::Arc;

/// What follows the end of the file. NUL bytes are refused in cells, so no file can say this.
const SENTINEL: &[u8] = b"\0end of file\0";

pub(super) struct TableReader {
    file: Arc<str>,
    rows: csv::Reader<Fed>,
    limit: u64,
    columns: Arc<[String]>,
    /// Wanted slot → column.
    slots: Vec<Option<usize>>,
    row: ByteRecord,
}

/// The file's bytes, then the sentinel.
struct Fed {
    input: TextInput,
    /// Bytes that may still be read for this row.
    budget: u64,
    overrun: bool,
    /// Bytes of the file read.
    read: u64,
    tail: Option<io::Cursor<Vec<u8>>>,
    /// The bytes given last, and the offset of the first of them.
    last: Vec<u8>,
    last_from: u64,
}

impl Fed {
    fn pull(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(tail) = &mut self.tail {
            return tail.read(into);
        }
        let room = usize::try_from(self.budget).map_or(into.len(), |budget| into.len().min(budget));
        if room == 0 && !into.is_empty() {
            self.overrun = true;
            return Err(io::Error::other("row too long"));
        }
        let n = loop {
            match self.input.read(&mut into[..room]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.budget -= n as u64;
        self.read += n as u64;
        if n > 0 || into.is_empty() {
            return Ok(n);
        }
        let tail = [b"\n", SENTINEL, b"\n"].concat();
        self.tail.insert(io::Cursor::new(tail)).read(into)
    }

    /// Whether a row that ends at byte `end` reaches beyond the file, and the newline after it.
    fn is_past(&self, end: u64) -> bool {
        self.tail.is_some() && end > self.read + 1
    }

    /// Whether the byte before the offset `end`, which is among those given last, is a carriage return.
    fn ends_in_cr(&self, end: u64) -> bool {
        let before = end.checked_sub(self.last_from + 1);
        let before = before.and_then(|n| self.last.get(usize::try_from(n).ok()?));
        before == Some(&b'\r')
    }
}

impl Read for Fed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.pull(into)?;
        self.last_from += self.last.len() as u64;
        self.last.clear();
        self.last.extend_from_slice(&into[..n]);
        Ok(n)
    }
}

/// What the next row of the table is.
enum Row {
    Record,
    End,
}

impl TableReader {
    /// Reads the header; rows may have at most about `limit` bytes. Fails where no column can be the
    /// input, or a field to keep has no column.
    pub fn new(
        file: Arc<str>,
        input: TextInput,
        delimiter: u8,
        limit: usize,
        wanted: &Wanted,
    ) -> Result<Self> {
        let fed = Fed {
            input,
            budget: 0,
            overrun: false,
            read: 0,
            tail: None,
            last: Vec::new(),
            last_from: 0,
        };
        let rows = ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(64 << 10)
            .from_reader(fed);
        let mut reader = TableReader {
            file,
            rows,
            limit: limit as u64,
            columns: Arc::new([]),
            slots: Vec::new(),
            row: ByteRecord::new(),
        };
        reader.read_header(wanted)?;
        Ok(reader)
    }

    fn read_header(&mut self, wanted: &Wanted) -> Result<()> {
        let line = match self.advance()? {
            // An empty file is a file without samples, as it is in the other forms.
            Row::End => return Ok(()),
            Row::Record => self.line(),
        };
        let fail = |what: String, remedy: Cow<'static, str>| Error::File {
            file: self.file.clone(),
            place: Some(Place::Line(line)),
            what,
            remedy,
        };
        let columns = self
            .row
            .iter()
            .map(|name| std::str::from_utf8(name).map(str::to_owned))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| fail(not_utf8(error), SAVE_AS_UTF8.into()))?;
        for name in wanted.names() {
            if columns.iter().filter(|column| *column == name).count() > 1 {
                return Err(fail(
                    format!("two columns are named `{name}`"),
                    "rename one of them".into(),
                ));
            }
        }
        if let Some((what, remedy)) = wanted.missing_column(&columns) {
            let header = "the first row must be a header";
            return Err(fail(what, format!("{header}; {remedy}").into()));
        }
        self.slots = wanted
            .names()
            .iter()
            .map(|name| columns.iter().position(|column| column == name))
            .collect();
        self.columns = columns.into();
        Ok(())
    }

    /// Reads the next row into `self.row`.
    fn advance(&mut self) -> Result<Row> {
        let from = self.rows.position().line();
        self.rows.get_mut().budget = self.limit;
        let more = match self.rows.read_byte_record(&mut self.row) {
            Ok(more) => more,
            Err(_) if self.rows.get_ref().overrun => {
                return Err(Error::File {
                    file: self.file.clone(),
                    place: Some(Place::Line(from)),
                    what: format!(
                        "the row that begins here is longer than {} bytes",
                        self.limit
                    ),
                    remedy: "look for a quote that is not closed".into(),
                });
            }
            Err(error) => {
                let shown = error.to_string();
                let source = match error.into_kind() {
                    ErrorKind::Io(source) => source,
                    _ => io::Error::other(shown),
                };
                return Err(Error::Io {
                    file: self.file.to_string(),
                    line: Some(from),
                    source,
                });
            }
        };
        let end = self.rows.position().byte();
        // The first byte of the tail is a newline: a row that reaches further holds the sentinel.
        if more && !self.rows.get_ref().is_past(end) {
            return Ok(Row::Record);
        }
        if !more || (self.row.len() == 1 && self.row.get(0) == Some(SENTINEL)) {
            return Ok(Row::End);
        }
        Err(Error::File {
            file: self.file.clone(),
            place: Some(Place::Line(self.line_of_open_quote())),
            what: "a quote opened in this row is never closed".to_owned(),
            remedy: "close it, or double a quote that belongs to the text (\"\")".into(),
        })
    }

    /// The line that the row just read begins on. The crate's own position may be that of blank lines
    /// before it, so we count back from where the row ends. The crate ends a row at the first byte of
    /// `\r\n`, before it counts the newline.
    fn line(&self) -> u64 {
        let end = self.rows.position();
        let inside: u64 = self.row.iter().map(count_newlines).sum();
        let terminator = u64::from(!self.rows.get_ref().ends_in_cr(end.byte()));
        end.line().saturating_sub(inside + terminator).max(1)
    }

    /// The line of a row that swallowed the whole tail, newlines and all.
    fn line_of_open_quote(&self) -> u64 {
        let inside: u64 = self.row.iter().map(count_newlines).sum();
        self.rows.position().line().saturating_sub(inside).max(1)
    }

    fn read_row(&mut self) -> Result<Option<RawRecord>> {
        if matches!(self.advance()?, Row::End) {
            return Ok(None);
        }
        let place = Place::Line(self.line());
        let bad = |what: String, remedy: Cow<'static, str>| Error::Record {
            file: self.file.clone(),
            place,
            what,
            remedy,
        };
        if self.row.len() != self.columns.len() {
            let (found, expected) = (self.row.len(), self.columns.len());
            return Err(bad(
                format!("{found} cells, where the header has {expected} columns"),
                "quote cells that hold a delimiter".into(),
            ));
        }
        if self.row.as_slice().contains(&0) {
            return Err(bad("a NUL byte in a cell".to_owned(), SAVE_AS_UTF8.into()));
        }
        let texts = self
            .row
            .iter()
            .map(std::str::from_utf8)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| {
                let what = "a cell is not valid UTF-8".to_owned();
                let at = error.valid_up_to() + 1;
                bad(format!("{what} at its byte {at}"), SAVE_AS_UTF8.into())
            })?;
        let cells = self
            .slots
            .iter()
            .map(|column| column.map(|column| Cell::Plain(texts[column].to_owned())))
            .collect();
        let names = self.columns.clone();
        let body = Body::Fields { cells, names };
        Ok(Some(RawRecord { place, body }))
    }
}

impl RecordReader for TableReader {
    fn next_record(&mut self, _: &Wanted) -> Option<Result<RawRecord>> {
        self.read_row().transpose()
    }
}

fn count_newlines(cell: &[u8]) -> u64 {
    cell.iter().filter(|&&b| b == b'\n').count() as u64
}
