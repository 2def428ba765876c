//! `--shard i/n`: the i-th of n runs of the dataset's records that follow one another in the order they are read in; of its contexts, where
//! records are packed. Which these are, only a count of all of them tells, so the dataset is read once beforehand.

use std::ops::Range;

use rayon::prelude::*;

use super::{Error, Prepared, Result};
use crate::data::{Dataset, Record};
use crate::store::Slice;

/// What of the dataset a run reads.
#[derive(Debug, Clone)]
pub struct Share {
    /// `None`: all of it.
    pub slice: Option<Slice>,
    /// The places in the order whose records it needs, and how many places there are.
    places: Option<(Range<u64>, u64)>,
    /// Where its first sample begins: the record's place, and which of the record's chunks or (packed) tokens.
    pub begin: (u64, u64),
    /// Numbers of the contexts that it makes, where records are packed.
    pub contexts: Range<u64>,
}

impl Share {
    /// All of the dataset.
    pub fn whole() -> Self {
        Share {
            slice: None,
            places: None,
            begin: (0, 0),
            contexts: 0..u64::MAX,
        }
    }

    /// The share that the job asks for, counted.
    ///
    /// # Errors
    /// The dataset cannot be read, or only once; it has fewer records than there are slices.
    pub fn of(prepared: &Prepared) -> Result<Self> {
        let Some((index, of)) = prepared.job.shard else {
            return Ok(Self::whole());
        };
        match prepared.job.pack_context {
            None => Self::of_records(prepared, index, of),
            Some(length) => Self::of_contexts(prepared, length as u64, index, of),
        }
    }

    fn of_records(prepared: &Prepared, index: u64, of: u64) -> Result<Self> {
        let mut dataset = prepared.job.dataset_in_order(false)?;
        refuse_streams(&dataset, "--shard")?;
        let mut records = 0;
        for record in dataset.by_ref() {
            record?;
            records += 1;
        }
        records += dataset.skipped();
        let slice = cut(index, of, records)?;
        Ok(Share {
            places: Some((slice.first..slice.end, records)),
            begin: (slice.first, 0),
            slice: Some(slice),
            ..Self::whole()
        })
    }

    /// As many tokens of the packed dataset as the others have: only tokenising all of it tells which.
    fn of_contexts(prepared: &Prepared, length: u64, index: u64, of: u64) -> Result<Self> {
        let dataset = prepared.job.dataset(false)?;
        refuse_streams(&dataset, "--shard")?;
        let starts = token_starts(prepared, dataset)?;
        let (&tokens, records) = (starts.last().unwrap_or(&0), starts.len() as u64 - 1);
        let slice = cut(index, of, tokens.div_ceil(length))?;
        let begin = find(&starts, slice.first * length);
        let end = match slice.end == slice.records {
            true => (records, 0),
            false => find(&starts, slice.end * length),
        };
        let places = begin.0..end.0 + u64::from(end.1 > 0);
        Ok(Share {
            places: Some((places, records)),
            begin,
            contexts: slice.first..slice.end,
            slice: Some(slice),
        })
    }

    /// The records of the share, opened anew.
    pub fn dataset(&self, prepared: &Prepared, needs_spans: bool) -> Result<Dataset> {
        let dataset = prepared.job.dataset(needs_spans)?;
        Ok(match &self.places {
            Some((places, of)) => dataset.only(places.clone(), *of),
            None => dataset,
        })
    }
}

/// Slice `index` of `of` that share `records` things out.
fn cut(index: u64, of: u64, records: u64) -> Result<Slice, Error> {
    if records < of {
        return Err(Error::EmptySlice { index, of, records });
    }
    let at = |i: u64| (u128::from(records) * u128::from(i) / u128::from(of)) as u64;
    Ok(Slice {
        index,
        of,
        first: at(index),
        end: at(index + 1),
        records,
    })
}

/// Records that are tokenised together.
const RECORDS: usize = 256;

/// Tokens before each place of the order, and at the end of all tokens. A record that is not used has none.
fn token_starts(prepared: &Prepared, mut dataset: Dataset) -> Result<Vec<u64>> {
    let mut starts = vec![0];
    let mut total = 0;
    loop {
        let records = dataset.next_placed(RECORDS)?;
        if records.is_empty() {
            break;
        }
        let count = |(order, record): (u64, Record)| (order, prepared.tokenising.document(record));
        let counted: Vec<_> = records.into_par_iter().map(count).collect();
        for (order, document) in counted {
            starts.resize(order as usize + 1, total);
            total += match document {
                Ok(document) => document.tokens() as u64,
                Err(crate::Error::Engine(bad))
                    if prepared.job.skip_bad && bad.is_of_one_record() =>
                {
                    0
                }
                Err(error) => return Err(error),
            };
            starts.push(total);
        }
    }
    starts.resize(dataset.passed() as usize + 1, total);
    Ok(starts)
}

/// The place and the token there that a token of all tokens is; the first place that begins with it, if one does.
fn find(starts: &[u64], token: u64) -> (u64, u64) {
    let first = starts.partition_point(|&start| start < token);
    match starts.get(first) {
        Some(&start) if start == token => (first as u64, 0),
        _ => {
            let place = first.saturating_sub(1);
            (place as u64, token - starts[place])
        }
    }
}

/// Refuses what can be read only once.
pub fn refuse_streams(dataset: &Dataset, what: &'static str) -> Result<(), Error> {
    match dataset.stream() {
        None => Ok(()),
        Some(path) => Err(Error::Stream {
            what,
            path: path.display().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn a_token_is_found_in_the_record_that_holds_it() {
        // Records of 3, 0, 0 and 2 tokens.
        let starts = [0, 3, 3, 3, 5];
        let found: Vec<_> = (0..5).map(|token| find(&starts, token)).collect();
        assert_eq!(found, [(0, 0), (0, 1), (0, 2), (1, 0), (3, 1)]);
    }
}
