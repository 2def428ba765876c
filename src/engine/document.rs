//! A record after tokenising, before it is cut into samples: its tokens, and which of its characters each of them stands for.

use std::ops::Range;

use super::sample::{Sample, stored_turns};
use crate::hooks::{TokenSpan, TokenTurn};
use crate::store::{Piece, SampleRow};

/// A record's tokens, whole.
pub struct Document {
    /// All of it as one sample, but for its `pieces`, which cutting makes.
    whole: Sample,
    /// Where its tokens lie in its text; `None` where it is no plain text.
    text: Option<TokenText>,
}

impl Document {
    pub(super) fn new(whole: Sample, text: Option<TokenText>) -> Self {
        Document { whole, text }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.whole.row.tokens.len()
    }

    /// Puts a token after the last, unless it is that already.
    pub(super) fn end_with(&mut self, token: u32) {
        if self.whole.row.tokens.last() != Some(&token) {
            self.whole.row.tokens.push(token);
        }
    }

    /// The tokens `range` as a sample, which knows where they are from. Turns and spans keep their places in the lists, empty where they
    /// are cut off.
    pub fn cut(&self, range: Range<usize>, chunk: u32) -> Sample {
        let whole = &self.whole;
        let cut = |r: &Range<u32>| {
            let clip =
                |at: u32| at.clamp(range.start as u32, range.end as u32) - range.start as u32;
            clip(r.start)..clip(r.end)
        };
        let turns: Vec<TokenTurn> = whole
            .turns
            .iter()
            .map(|t| TokenTurn {
                role: t.role.clone(),
                content: cut(&t.content),
                whole: cut(&t.whole),
            })
            .collect();
        let spans = whole.spans.iter().map(|s| TokenSpan {
            name: s.name.clone(),
            tokens: cut(&s.tokens),
        });
        let piece = Piece {
            document: whole.row.sample,
            file: whole.row.file.clone(),
            line: whole.row.line,
            first: 0,
            tokens: range.len() as u32,
            offset: range.start as u64,
            chars: self.text.as_ref().and_then(|text| text.chars(&range)),
        };
        Sample {
            has_bos: whole.has_bos && range.start == 0,
            spans: spans.collect(),
            row: SampleRow {
                sample: whole.row.sample,
                chunk,
                file: whole.row.file.clone(),
                line: whole.row.line,
                tokens: whole.row.tokens[range.clone()].to_vec(),
                turns: stored_turns(&turns),
                pieces: vec![piece],
                kept: whole.row.kept.clone(),
            },
            turns,
        }
    }
}

/// A text, and the bytes of it that each token stands for.
pub(super) struct TokenText {
    text: String,
    /// Per token; empty for one that stands for none of the text.
    offsets: Vec<Range<usize>>,
    /// Characters that begin before every `STEP`th byte.
    begun: Vec<u64>,
}

/// Bytes between two counts of characters: what finding a character has to count again at most.
const STEP: usize = 1024;

impl TokenText {
    pub fn new(text: String, offsets: Vec<Range<usize>>) -> Self {
        let mut total = 0;
        let count = |bytes: &[u8]| {
            let before = total;
            total += beginnings(bytes);
            before
        };
        TokenText {
            begun: text.as_bytes().chunks(STEP).map(count).collect(),
            text,
            offsets,
        }
    }

    /// First character that some of these tokens hold a byte of, and one past the last; `None` if they hold none.
    fn chars(&self, tokens: &Range<usize>) -> Option<(u64, u64)> {
        let end = tokens.end.min(self.offsets.len());
        let held = self.offsets.get(tokens.start..end)?;
        let held = || held.iter().filter(|bytes| !bytes.is_empty());
        let first = held().map(|bytes| bytes.start).min()?;
        let end = held().map(|bytes| bytes.end).max()?;
        // A token may begin within a character: that one counts.
        Some((
            self.begun_before(first + 1).saturating_sub(1),
            self.begun_before(end),
        ))
    }

    /// Characters whose first byte is before `byte`.
    fn begun_before(&self, byte: usize) -> u64 {
        let byte = byte.min(self.text.len());
        let step = (byte / STEP).min(self.begun.len().saturating_sub(1));
        let before = self.begun.get(step).copied().unwrap_or(0);
        before + beginnings(&self.text.as_bytes()[step * STEP..byte])
    }
}

/// Bytes that begin a character in UTF-8.
fn beginnings(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b & 0xC0 != 0x80).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_hold_the_characters_whose_bytes_they_have(text in "[aé€😀]{1,900}", cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            // Tokens of two bytes each, which cut characters up.
            let offsets: Vec<_> = (0..text.len().div_ceil(2)).map(|t| 2 * t..(2 * t + 2).min(text.len())).collect();
            let mut ends: Vec<usize> = cuts.iter().map(|c| c.index(offsets.len())).collect();
            ends.sort();
            let held = TokenText::new(text.clone(), offsets.clone());
            for pair in ends.windows(2).filter(|p| p[0] < p[1]) {
                let bytes = offsets[pair[0]].start..offsets[pair[1] - 1].end;
                let chars = text.char_indices().enumerate().filter(|(_, (at, c))| *at < bytes.end && bytes.start < at + c.len_utf8());
                let numbers: Vec<u64> = chars.map(|(n, _)| n as u64).collect();
                prop_assert_eq!(held.chars(&(pair[0]..pair[1])), Some((numbers[0], numbers[numbers.len() - 1] + 1)));
            }
        }
    }

    #[test]
    fn tokens_of_no_text_have_no_characters() {
        let held = TokenText::new("ab".into(), vec![0..0, 0..1, 1..2]);
        assert_eq!(held.chars(&(0..1)), None);
        assert_eq!(held.chars(&(0..2)), Some((0, 1)));
        assert_eq!(
            held.chars(&(1..5)),
            Some((0, 2)),
            "a separator behind the text has no offset"
        );
        assert_eq!(
            TokenText::new(String::new(), Vec::new()).chars(&(0..1)),
            None
        );
    }
}
