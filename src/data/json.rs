//! JSON: an array of objects, streamed an element at a time.
//!
//! A scanner finds where each element ends (it counts brackets outside strings, without recursion) and
//! only that element's bytes are held and parsed. So a bad element is one bad record, and the array's
//! own syntax (brackets and commas between elements) is all that can spoil the rest of the file.

use super::error::{Error, Place, Result};
use super::fields::Wanted;
use super::lines::{TextInput, fill};
use super::object;
use super::source::{Body, RawRecord, RecordReader};
use std::io::{self, BufRead};
use std::sync::Arc;

const ONE_ARRAY: &str =
    "a .json file holds one array of objects, [{…}, {…}]; for an object a line name it .jsonl";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Array,
    FirstElement,
    CommaOrEnd,
    Nothing,
}

pub(super) struct JsonReader {
    file: Arc<str>,
    input: TextInput,
    limit: usize,
    expect: Expect,
    /// Elements begun.
    element: u64,
    /// The line that the next byte is on.
    line: u64,
    held: Vec<u8>,
}

/// How an element's bytes ended.
enum Scanned {
    Whole,
    TooLong,
    /// The file ended inside it.
    Cut,
}

impl JsonReader {
    /// Elements of at most `limit` bytes.
    pub fn new(file: Arc<str>, input: TextInput, limit: usize) -> Self {
        JsonReader {
            file,
            input,
            limit,
            expect: Expect::Array,
            element: 0,
            line: 1,
            held: Vec::new(),
        }
    }

    /// Passes over whitespace; the byte that follows is not consumed.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let chunk = match fill(&mut self.input) {
                Ok([]) => return Ok(None),
                Ok(chunk) => chunk,
                Err(source) => return Err(self.io(source)),
            };
            let blank = |b: &&u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
            let spaces = chunk.iter().take_while(blank).count();
            self.line += newlines(&chunk[..spaces]);
            let next = chunk.get(spaces).copied();
            self.input.consume(spaces);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io {
            file: self.file.to_string(),
            line: Some(self.line),
            source,
        }
    }

    /// An error of the array itself.
    fn broken(&self, what: String) -> Error {
        Error::File {
            file: self.file.clone(),
            place: Some(Place::Line(self.line)),
            what,
            remedy: ONE_ARRAY.into(),
        }
    }

    fn cut(&self, place: Place) -> Error {
        Error::File {
            file: self.file.clone(),
            place: Some(place),
            what: "the file ends before its array does".to_owned(),
            remedy: "it seems truncated: fetch or write it again".into(),
        }
    }

    /// Goes to the next element; false at the array's end.
    fn seek_element(&mut self) -> Result<bool> {
        if self.expect == Expect::Array {
            match self.peek()? {
                Some(b'[') => self.input.consume(1),
                Some(other) => return Err(self.broken(format!("begins with {}", shown(other)))),
                None => return Err(self.broken("the file is empty".to_owned())),
            }
            self.expect = Expect::FirstElement;
        }
        if self.expect == Expect::Nothing {
            return Ok(false);
        }
        let mut next = self.peek()?;
        if next == Some(b']') {
            self.input.consume(1);
            self.expect = Expect::Nothing;
            return match self.peek()? {
                None => Ok(false),
                Some(more) => {
                    Err(self.broken(format!("{} after the end of the array", shown(more))))
                }
            };
        }
        if self.expect == Expect::CommaOrEnd {
            if next == Some(b',') {
                self.input.consume(1);
                next = self.peek()?;
            } else if let Some(other) = next {
                return Err(self.broken(format!("{} between elements", shown(other))));
            }
        }
        match next {
            None => Err(self.cut(Place::Line(self.line))),
            Some(other @ (b',' | b']' | b'}')) => {
                Err(self.broken(format!("{} where an object should be", shown(other))))
            }
            Some(_) => Ok(true),
        }
    }

    /// Reads one element's bytes, up to the comma or bracket that ends it.
    fn scan(&mut self) -> io::Result<Scanned> {
        self.held = Vec::new();
        let (mut depth, mut in_string, mut escaped, mut too_long) = (0u64, false, false, false);
        let mut ended = false;
        while !ended {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                return Ok(Scanned::Cut);
            }
            let mut used = chunk.len();
            for (n, &byte) in chunk.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b',' | b'}' | b']' if depth == 0 => {
                        (used, ended) = (n, true);
                        break;
                    }
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
            }
            too_long |= self.held.len() + used > self.limit;
            if too_long {
                self.held = Vec::new();
            } else {
                self.held.extend_from_slice(&chunk[..used]);
            }
            self.line += newlines(&chunk[..used]);
            self.input.consume(used);
        }
        Ok(if too_long {
            Scanned::TooLong
        } else {
            Scanned::Whole
        })
    }

    fn read_element(&mut self, wanted: &Wanted) -> Result<Option<RawRecord>> {
        if !self.seek_element()? {
            return Ok(None);
        }
        self.expect = Expect::CommaOrEnd;
        self.element += 1;
        let (element, line) = (self.element, self.line);
        let place = Place::Element { element, line };
        let flaw = match self.scan() {
            Err(source) => return Err(self.io(source)),
            Ok(Scanned::Cut) => return Err(self.cut(place)),
            Ok(Scanned::TooLong) => object::too_long(self.limit),
            Ok(Scanned::Whole) => match object::parse(&self.held, wanted) {
                Ok((cells, names)) => {
                    let body = Body::Fields { cells, names };
                    return Ok(Some(RawRecord { place, body }));
                }
                Err(flaw) => flaw,
            },
        };
        Err(Error::Record {
            file: self.file.clone(),
            place: Place::Element {
                element,
                line: line + flaw.line.saturating_sub(1),
            },
            what: flaw.what,
            remedy: flaw.remedy,
        })
    }
}

impl RecordReader for JsonReader {
    fn next_record(&mut self, wanted: &Wanted) -> Option<Result<RawRecord>> {
        self.read_element(wanted).transpose()
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() {
        format!("`{}`", byte as char)
    } else {
        format!("the byte 0x{byte:02x}")
    }
}
