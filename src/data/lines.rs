//! Text input: buffered, without a byte-order mark, and split into lines of bounded length.

use super::error::{Error, Result};
use std::io::{self, BufRead, BufReader, Chain, Cursor, ErrorKind, Read};
use std::sync::Arc;

/// What the readers of text pull from.
pub(super) type TextInput = BufReader<Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

/// One read's worth: large enough that system calls do not show, small beside a batch.
const BUFFER_BYTES: usize = 256 << 10;

/// A line buffer that grew beyond this is given back before the next line.
const KEPT_CAPACITY: usize = 1 << 20;

/// Buffers `input`, dropping a UTF-8 byte-order mark; refuses UTF-16 by its mark.
pub(super) fn text_input(file: &Arc<str>, mut input: Box<dyn Read + Send>) -> Result<TextInput> {
    let mut head = Vec::with_capacity(3);
    (&mut input)
        .take(3)
        .read_to_end(&mut head)
        .map_err(|source| Error::Io {
            file: file.to_string(),
            line: None,
            source,
        })?;
    if head.starts_with(&[0xFF, 0xFE]) || head.starts_with(&[0xFE, 0xFF]) {
        return Err(Error::File {
            file: file.clone(),
            place: None,
            what: "its first bytes are a UTF-16 byte-order mark".to_owned(),
            remedy: "convert the file to UTF-8 (iconv -f UTF-16 -t UTF-8)".into(),
        });
    }
    if head == [0xEF, 0xBB, 0xBF] {
        head.clear();
    }
    Ok(BufReader::with_capacity(
        BUFFER_BYTES,
        Cursor::new(head).chain(input),
    ))
}

/// The bytes buffered next, empty at the end of the input; goes on after an interrupted system call.
pub(super) fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    while let Err(error) = input.fill_buf() {
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    input.fill_buf()
}

/// What [`Lines::read`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineRead<'a> {
    Line(&'a [u8]),
    /// Longer than the limit; it was passed over, not held.
    TooLong,
    End,
}

/// The lines of a text input.
pub(super) struct Lines {
    input: TextInput,
    limit: usize,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub fn new(input: TextInput, limit: usize) -> Self {
        Lines {
            input,
            limit,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The number of the line last read, from 1; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line without its `\n` or `\r\n`. The last line needs neither.
    pub fn read(&mut self) -> io::Result<LineRead<'_>> {
        if self.line.capacity() > KEPT_CAPACITY {
            self.line = Vec::new();
        }
        self.line.clear();
        let (mut seen_any, mut too_long, mut ended) = (false, false, false);
        while !ended {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                break;
            }
            seen_any = true;
            let newline = chunk.iter().position(|&b| b == b'\n');
            ended = newline.is_some();
            let part = &chunk[..newline.unwrap_or(chunk.len())];
            let used = part.len() + usize::from(ended);
            if too_long || self.line.len() + part.len() > self.limit {
                too_long = true;
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            self.input.consume(used);
        }
        if !seen_any {
            return Ok(LineRead::End);
        }
        self.number += 1;
        if too_long {
            return Ok(LineRead::TooLong);
        }
        if ended && self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok(LineRead::Line(&self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(bytes: &[u8], limit: usize) -> Vec<Option<Vec<u8>>> {
        let input = text_input(&"t".into(), Box::new(Cursor::new(bytes.to_vec()))).unwrap();
        let mut lines = Lines::new(input, limit);
        let mut all = Vec::new();
        loop {
            match lines.read().unwrap() {
                LineRead::Line(line) => all.push(Some(line.to_vec())),
                LineRead::TooLong => all.push(None),
                LineRead::End => return all,
            }
        }
    }

    #[test]
    fn line_ends_of_both_kinds_are_stripped_and_the_last_needs_none() {
        let lines = lines_of(b"a\r\n\nb\nc", 10);
        let expected: [&[u8]; 4] = [b"a", b"", b"b", b"c"];
        assert_eq!(lines, expected.map(|l| Some(l.to_vec())));
    }

    #[test]
    fn a_line_beyond_the_limit_is_passed_over_and_the_next_one_is_read() {
        let lines = lines_of(b"abc\nabcd\nab\n", 3);
        assert_eq!(lines, [Some(b"abc".to_vec()), None, Some(b"ab".to_vec())]);
    }

    #[test]
    fn a_long_line_is_read_whole_across_buffers() {
        let mut bytes = vec![b'x'; 3 * BUFFER_BYTES + 7];
        bytes.push(b'\n');
        let lines = lines_of(&bytes, 1 << 22);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].as_ref().unwrap().len(), 3 * BUFFER_BYTES + 7);
    }

    #[test]
    fn a_byte_order_mark_is_dropped_and_utf16_is_refused_with_the_remedy() {
        assert_eq!(lines_of(b"\xEF\xBB\xBFa\n", 9), [Some(b"a".to_vec())]);
        assert_eq!(lines_of(b"\xEF\xBB\xBF", 9), []);
        let utf16 = Box::new(Cursor::new(b"\xFF\xFEa\0".to_vec()));
        let refused = text_input(&"t.txt".into(), utf16).err();
        let error = refused.unwrap().to_string();
        assert!(
            error.contains("t.txt") && error.contains("iconv"),
            "{error}"
        );
    }
}
