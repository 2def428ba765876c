//! What a selection picks in one sample.
//!
//! A selection is a chain of picks, each applied to the rows that the one before has left. Picks by number (`first`, `-3..-1`,
//! `every`, `sample`) count among those rows; picks by meaning (`no-bos`, `role`, `turn`, `span`, `prompt`, `generated`, `step`)
//! keep the rows whose position in the sample has it. At the start the rows are the whole sample.

use std::ops::Range;

use super::number::from_end;
use super::{Error, Result, Selection};

/// What selections need to know of a sample; positions are 0-based token places in it.
#[derive(Debug, Clone, Copy)]
pub struct SampleView<'a> {
    /// The sample's place in the dataset; with the seed it decides what `sample:N#seed` draws.
    pub index: u64,
    pub n_tokens: usize,
    /// Whether token 0 is a BOS.
    pub has_bos: bool,
    /// **All** chat turns, in order; those that truncation or chunking left out keep their place with empty ranges,
    /// so that `turn:-1` means the same turn in each chunk. Empty for input that is not messages.
    pub turns: &'a [TokenTurn],
    pub spans: &'a [TokenSpan],
    /// How many leading tokens were given to generation; `None` where nothing was generated.
    pub prompt_len: Option<usize>,
}

/// One chat turn in tokens, half open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTurn {
    pub role: String,
    /// The message itself.
    pub content: Range<u32>,
    /// With the template's header and end-of-turn tokens.
    pub whole: Range<u32>,
}

/// A named span of the dataset in tokens, half open; several may share a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpan {
    pub name: String,
    pub tokens: Range<u32>,
}

/// The rows a selection keeps of one sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelectedRows {
    /// Token positions, strictly increasing.
    pub positions: Vec<u32>,
    /// How many rows were asked for by number (`last`, `7`, `-5..-1`, `step:0..3`) that are not there.
    pub clipped: u64,
}

impl Selection {
    /// The rows of one sample. A turn, role or span that this sample happens not to have selects nothing.
    ///
    /// # Errors
    /// A selection by turn where there are no turns at all, and one by generation step where nothing was generated.
    pub fn rows(&self, sample: &SampleView) -> Result<SelectedRows> {
        let end = u32::try_from(sample.n_tokens).unwrap_or(u32::MAX);
        let mut positions: Vec<u32> = (0..end).collect();
        let clipped = self.pick(sample, &mut positions)?;
        Ok(SelectedRows { positions, clipped })
    }

    /// Leaves in `rows` (increasing positions) those that are picked; returns how many were asked for in vain.
    fn pick(&self, sample: &SampleView, rows: &mut Vec<u32>) -> Result<u64> {
        match self {
            Selection::All => {}
            Selection::First => return Ok(keep_places(rows, 0, 0)),
            Selection::Last => return Ok(keep_places(rows, -1, -1)),
            &Selection::Positions { first, last } => return Ok(keep_places(rows, first, last)),
            Selection::NoBos => rows.retain(|&position| !(sample.has_bos && position == 0)),
            Selection::Role { role, whole } => {
                let turns = self.turns(sample)?.iter().filter(|turn| turn.role == *role);
                keep_within(rows, sample, turns.map(|turn| turn.range(*whole)));
            }
            &Selection::Turn { index, whole } => {
                let turns = self.turns(sample)?;
                let turn = usize::try_from(from_end(index, turns.len())).ok();
                let turn = turn.and_then(|at| turns.get(at));
                keep_within(rows, sample, turn.into_iter().map(|turn| turn.range(whole)));
            }
            Selection::Span(name) => {
                let spans = sample.spans.iter().filter(|span| span.name == *name);
                keep_within(rows, sample, spans.map(|span| span.tokens.clone()));
            }
            &Selection::Every(n) => {
                // A step of 0 cannot be parsed; made by hand, it keeps every row.
                let step = n.max(1) as usize;
                let mut places = 0usize..;
                rows.retain(|_| {
                    places
                        .next()
                        .is_some_and(|place| place.is_multiple_of(step))
                });
            }
            &Selection::Sample { count, seed } => draw(rows, count as usize, seed, sample.index),
            Selection::Prompt => {
                let generated = self.generated(sample)?;
                rows.retain(|position| !generated.contains(position));
            }
            Selection::Generated => {
                let generated = self.generated(sample)?;
                rows.retain(|position| generated.contains(position));
            }
            &Selection::Steps { first, last } => {
                let mut steps: Vec<u32> = self.generated(sample)?.collect();
                let clipped = keep_places(&mut steps, first, last);
                rows.retain(|position| steps.binary_search(position).is_ok());
                return Ok(clipped);
            }
            Selection::And(picks) => {
                let mut clipped = 0;
                for pick in picks {
                    clipped += pick.pick(sample, rows)?;
                }
                return Ok(clipped);
            }
        }
        Ok(0)
    }

    fn turns<'a>(&self, sample: &SampleView<'a>) -> Result<&'a [TokenTurn]> {
        if sample.turns.is_empty() {
            return Err(Error::NeedsMessages {
                selection: self.to_string(),
                sample: sample.index,
            });
        }
        Ok(sample.turns)
    }

    /// The positions after the prompt.
    fn generated(&self, sample: &SampleView) -> Result<Range<u32>> {
        let prompt = sample.prompt_len.ok_or_else(|| Error::NeedsGeneration {
            selection: self.to_string(),
            sample: sample.index,
        })?;
        let position = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(position(prompt.min(sample.n_tokens))..position(sample.n_tokens))
    }
}

impl TokenTurn {
    fn range(&self, whole: bool) -> Range<u32> {
        if whole {
            self.whole.clone()
        } else {
            self.content.clone()
        }
    }
}

/// Keeps the rows at places `first..=last` of the list; returns how many of those places it does not have.
/// A range that is empty in a list this short (`3..-1` of two rows) asks for nothing.
fn keep_places(rows: &mut Vec<u32>, first: i32, last: i32) -> u64 {
    let (first, last) = (from_end(first, rows.len()), from_end(last, rows.len()));
    let wanted = (last - first + 1).max(0);
    let start = first.clamp(0, rows.len() as i64);
    let end = (last + 1).clamp(start, rows.len() as i64);
    rows.truncate(end as usize);
    rows.drain(..start as usize);
    (wanted - (end - start)) as u64
}

/// Keeps the rows whose position lies in any of the ranges.
fn keep_within(rows: &mut Vec<u32>, sample: &SampleView, ranges: impl Iterator<Item = Range<u32>>) {
    let mut inside = vec![false; sample.n_tokens];
    for range in ranges {
        let end = (range.end as usize).min(sample.n_tokens);
        let start = (range.start as usize).min(end);
        inside[start..end].fill(true);
    }
    rows.retain(|&position| inside[position as usize]);
}

/// Keeps `count` of the rows at random, each set of that size equally likely (Knuth's selection sampling, TAOCP 3.4.2 S):
/// row i of n is taken with probability (still wanted) / (still to come).
fn draw(rows: &mut Vec<u32>, count: usize, seed: u64, sample: u64) {
    let mut random = SplitMix64::of_sample(seed, sample);
    let mut to_come = rows.len() as u64;
    let mut wanted = (count as u64).min(to_come);
    rows.retain(|_| {
        let taken = random.below(to_come) < wanted;
        to_come -= 1;
        wanted -= u64::from(taken);
        taken
    });
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): small, and the same on every machine and in every version.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// The numbers of one sample under one seed. Seed and index are hashed one after the other, so that neighbouring samples and
    /// seeds share nothing.
    pub(crate) fn of_sample(seed: u64, sample: u64) -> Self {
        let mut random = SplitMix64(SplitMix64(seed).next().wrapping_add(sample));
        SplitMix64(random.next())
    }

    /// A number in [0, 1), a multiple of 2⁻⁵³.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..n`: the high half of the product, whose bias is below n / 2⁶⁴.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
