//! `--pack-context N`: documents end to end, cut into contexts of N tokens. A context knows which tokens of which documents it holds.

use std::ops::Range;

use super::Sample;
use super::document::Document;
use crate::hooks::{TokenSpan, TokenTurn};

/// Where the dataset is read on if a shard begins with some sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The record's place in the order, and which chunk of it the sample is or, of a context, which of its tokens is the first.
    pub place: (u64, u64),
    /// Records before it that could be read and not be used.
    pub skipped: u64,
}

/// Makes contexts of documents.
pub struct Packer {
    /// Tokens of a context.
    length: usize,
    /// The contexts still to be made.
    numbers: Range<u64>,
    parts: Vec<Sample>,
    tokens: usize,
    begun: Start,
}

impl Packer {
    /// One that makes the contexts with these numbers, of `length` tokens each.
    pub fn new(length: usize, numbers: Range<u64>) -> Self {
        Packer {
            length,
            numbers,
            parts: Vec::new(),
            tokens: 0,
            begun: Start {
                place: (0, 0),
                skipped: 0,
            },
        }
    }

    /// Appends the document at place `order` from its token `from` on; `skipped` records before it were not used. Gives the contexts that
    /// are full.
    pub fn push(
        &mut self,
        order: u64,
        document: &Document,
        from: usize,
        skipped: u64,
    ) -> Vec<(Start, Sample)> {
        let mut full = Vec::new();
        let mut at = from;
        while at < document.tokens() && !self.numbers.is_empty() {
            if self.parts.is_empty() {
                let place = (order, at as u64);
                self.begun = Start { place, skipped };
            }
            let end = document.tokens().min(at + self.length - self.tokens);
            self.parts.push(document.cut(at..end, 0));
            self.tokens += end - at;
            at = end;
            if self.tokens == self.length {
                full.extend(self.finish());
            }
        }
        full
    }

    /// What is left: a context that is not full, behind the last document.
    pub fn finish(&mut self) -> Option<(Start, Sample)> {
        let number = (!self.parts.is_empty()).then(|| self.numbers.next())??;
        self.tokens = 0;
        Some((
            self.begun,
            context(number, std::mem::take(&mut self.parts))?,
        ))
    }
}

/// Cut documents end to end, as the context with this number.
pub fn context(number: u64, parts: Vec<Sample>) -> Option<Sample> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next()?;
    whole.row.sample = number;
    whole.row.chunk = 0;
    for part in parts {
        let first = whole.row.tokens.len() as u32;
        let shift = |r: Range<u32>| r.start + first..r.end + first;
        whole.row.tokens.extend(part.row.tokens);
        let turns = part.turns.into_iter().map(|t| TokenTurn {
            role: t.role,
            content: shift(t.content),
            whole: shift(t.whole),
        });
        whole.turns.extend(turns);
        let stored = part.row.turns.into_iter();
        whole
            .row
            .turns
            .extend(stored.map(|(role, a, b)| (role, a + first, b + first)));
        let spans = part.spans.into_iter().map(|s| TokenSpan {
            name: s.name,
            tokens: shift(s.tokens),
        });
        whole.spans.extend(spans);
        let pieces = part.row.pieces.into_iter().map(|mut piece| {
            piece.first += first;
            piece
        });
        whole.row.pieces.extend(pieces);
    }
    Some(whole)
}
