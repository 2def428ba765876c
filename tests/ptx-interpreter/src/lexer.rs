//! PTX text to tokens. A word keeps its dots and double colons, so that `ld.global.L2::128B.v4.f32` and `%tid.x` are one
//! token each.

use crate::ParseError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    /// An identifier, a directive or an opcode.
    Word(&'a str),
    Int(u64),
    /// `0f3F800000`
    F32(u32),
    /// `0d3FF0000000000000`, or a decimal fraction
    F64(u64),
    Str(&'a str),
    /// A single character of punctuation.
    Punct(u8),
    End,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub kind: Kind<'a>,
    /// Byte range in the text.
    pub start: usize,
    pub end: usize,
    pub line: u32,
}

/// All tokens of `text`, ending with [`Kind::End`].
pub(crate) fn lex(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::with_capacity(text.len() / 5 + 1);
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::at(self.line, message)
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r' | 0x0c, _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => self.skip_block_comment()?,
                _ => break,
            }
        }
        Ok(())
    }

    fn skip_block_comment(&mut self) -> Result<(), ParseError> {
        let opened = self.line;
        self.at += 2;
        while self.at < self.bytes.len() {
            if self.peek(0) == b'*' && self.peek(1) == b'/' {
                self.at += 2;
                return Ok(());
            }
            if self.peek(0) == b'\n' {
                self.line += 1;
            }
            self.at += 1;
        }
        Err(ParseError::at(opened, "a comment is not closed"))
    }

    fn slice(&self, start: usize, end: usize) -> Result<&'a str, ParseError> {
        self.text
            .get(start..end)
            .ok_or_else(|| self.error("text outside ASCII where a name was expected"))
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blank()?;
        let (start, line) = (self.at, self.line);
        let kind = if start >= self.bytes.len() {
            Kind::End
        } else if self.peek(0).is_ascii_digit() {
            self.number()?
        } else if self.peek(0) == b'"' {
            self.string()?
        } else if is_word(self.peek(0)) {
            self.word()?
        } else {
            self.at += 1;
            let byte = self.bytes[start];
            if !byte.is_ascii_punctuation() {
                return Err(self.error(format!("unexpected byte 0x{byte:02x}")));
            }
            Kind::Punct(byte)
        };
        Ok(Token {
            kind,
            start,
            end: self.at,
            line,
        })
    }

    fn word(&mut self) -> Result<Kind<'a>, ParseError> {
        let start = self.at;
        loop {
            if is_word(self.peek(0)) {
                self.at += 1;
            } else if self.peek(0) == b':' && self.peek(1) == b':' {
                self.at += 2;
            } else {
                break;
            }
        }
        Ok(Kind::Word(self.slice(start, self.at)?))
    }

    fn string(&mut self) -> Result<Kind<'a>, ParseError> {
        self.at += 1;
        let start = self.at;
        while self.at < self.bytes.len() && !matches!(self.peek(0), b'"' | b'\n') {
            self.at += 1 + usize::from(self.peek(0) == b'\\' && self.peek(1) != b'\n');
        }
        if self.peek(0) != b'"' {
            return Err(self.error("a string is not closed"));
        }
        self.at += 1;
        Ok(Kind::Str(self.slice(start, self.at - 1)?))
    }

    fn number(&mut self) -> Result<Kind<'a>, ParseError> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric()
            || matches!(self.peek(0), b'.' | b'_')
            || self.at_exponent_sign(start)
        {
            self.at += 1;
        }
        let text = self.slice(start, self.at)?;
        parse_number(text).ok_or_else(|| self.error(format!("`{text}` is not a number")))
    }

    /// The sign in `1.5e-3`.
    fn at_exponent_sign(&self, start: usize) -> bool {
        matches!(self.peek(0), b'+' | b'-')
            && self.at > start
            && matches!(self.bytes[self.at - 1], b'e' | b'E')
            && self.bytes[start..self.at].contains(&b'.')
    }
}

fn parse_number(text: &str) -> Option<Kind<'_>> {
    let digits = text.strip_suffix('U').unwrap_or(text);
    let int = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(Kind::Int);
    match text.get(..2) {
        Some("0x" | "0X") => int(&digits[2..], 16),
        Some("0b" | "0B") => int(&digits[2..], 2),
        Some("0f" | "0F") if text.len() == 10 => {
            u32::from_str_radix(&text[2..], 16).ok().map(Kind::F32)
        }
        Some("0d" | "0D") if text.len() == 18 => {
            u64::from_str_radix(&text[2..], 16).ok().map(Kind::F64)
        }
        _ if text.contains(['.', 'e', 'E']) => text
            .parse::<f64>()
            .ok()
            .map(|value| Kind::F64(value.to_bits())),
        _ if digits.len() > 1 && digits.starts_with('0') => int(&digits[1..], 8),
        _ => int(digits, 10),
    }
}
