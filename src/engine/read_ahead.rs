//! The thread that runs ahead of the model: reads records, tokenises them on all cores and fills shards, so that a
//! shard's layout is known before its first row is computed.

use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::trace::{Stage, since};
use super::{Error, Prepared, Result, Sample, SelectedSample};
use crate::data::Dataset;
use crate::store::{ShardFill, sample_bytes};

/// Records that are tokenised together.
const RECORDS: usize = 256;
/// Skipped records that are told apart.
const REASONS: usize = 5;

/// The samples of one shard, and their selected rows.
#[derive(Default)]
pub struct PlannedShard {
    pub samples: Vec<(Sample, SelectedSample)>,
    /// Tokens that the whole dataset seems to hold, by what was read of it until this shard was full; exact in the last
    /// one. `None` where nothing tells how long the dataset is.
    pub expected_tokens: Option<u64>,
    /// Where reading goes on after it.
    pub then: ReadState,
}

/// How far the dataset was read where a shard ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadState {
    /// Record and chunk that the next shard begins with; `None` after the last one.
    pub next: Option<(u64, u32)>,
    /// Records before that one which could be read and not be used.
    pub skipped: u64,
    pub tokens: u64,
    /// Rows of each tap, and rows that each edit changes.
    pub rows: Vec<u64>,
    pub edited: Vec<u64>,
}

impl ReadState {
    /// Before the first record.
    pub fn new(prepared: &Prepared) -> Self {
        ReadState {
            next: Some((0, 0)),
            rows: vec![0; prepared.taps.len()],
            edited: vec![0; prepared.edits.len()],
            ..ReadState::default()
        }
    }

    fn add(&mut self, prepared: &Prepared, sample: &Sample, selected: &SelectedSample) {
        self.tokens += sample.row.tokens.len() as u64;
        for (tap, rows) in self.rows.iter_mut().enumerate() {
            *rows += prepared.stored_rows(selected, tap);
        }
        for (edit, rows) in self.edited.iter_mut().enumerate() {
            *rows += prepared.edited_positions(selected, edit).len() as u64;
        }
    }

    /// A selection that picks nothing anywhere is a mistake, not a result; so is an edit that touches nothing.
    fn check(&self, prepared: &Prepared, samples: u64) -> Result<(), Error> {
        if let Some(tap) = self.rows.iter().position(|&rows| rows == 0) {
            let tap = prepared.taps[tap].to_string();
            return Err(Error::NothingSelected { tap, samples });
        }
        if let Some(edit) = self.edited.iter().position(|&rows| rows == 0) {
            let edit = prepared.edits[edit].describe();
            return Err(Error::EditTouchedNothing { edit, samples });
        }
        Ok(())
    }
}

impl PlannedShard {
    /// Consecutive samples of at most `batch_tokens` tokens together; a longer sample makes a batch of its own.
    pub fn batches(&self, batch_tokens: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = next;
            let mut tokens = 0;
            while let Some((sample, _)) = self.samples.get(next) {
                tokens += sample.row.tokens.len();
                if next > first && tokens > batch_tokens {
                    break;
                }
                next += 1;
            }
            (next > first).then_some(first..next)
        })
    }
}

/// What reading the dataset to its end told.
#[derive(Debug, Default)]
pub struct ReadSummary {
    /// Records in the dataset, skipped ones included.
    pub records: u64,
    pub skipped: u64,
    pub skip_reasons: Vec<String>,
}

/// Sends the dataset's shards in order, from the one that begins where `state` stands, until its end or until nobody listens any more.
/// Records before that place are read and not used. With `check`, taps and edits without a row are an error as soon as all of the
/// dataset was read, which is before its last shard is computed.
///
/// # Errors
/// The first bad record's, unless bad ones are skipped.
pub fn read_ahead(
    prepared: &Prepared,
    mut dataset: Dataset,
    mut state: ReadState,
    check: bool,
    shards: &SyncSender<PlannedShard>,
) -> Result<ReadSummary> {
    let mut summary = ReadSummary::default();
    let mut fill = ShardFill::new(prepared.shard_limits());
    let mut shard = PlannedShard::default();
    let from = state.next.unwrap_or((u64::MAX, u32::MAX));
    loop {
        let records = dataset
            .by_ref()
            .take(RECORDS)
            .collect::<Result<Vec<_>, _>>()?;
        if records.is_empty() {
            break;
        }
        summary.records += records.len() as u64;
        let (tokenising, n) = (Instant::now(), records.len());
        let tokenised: Vec<_> = records
            .into_par_iter()
            .filter(|record| record.index >= from.0)
            .map(|record| select_all(prepared, record))
            .collect();
        let trace = prepared.trace.as_ref();
        since(trace, Stage::Read, tokenising, || format!("{n} records"));
        for samples in tokenised {
            let samples = match samples {
                Ok(samples) => samples,
                Err(crate::Error::Engine(bad))
                    if prepared.job.skip_bad && bad.is_of_one_record() =>
                {
                    state.skipped += 1;
                    if summary.skip_reasons.len() < REASONS {
                        summary.skip_reasons.push(bad.to_string());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (sample, selected) in samples {
                let place = (sample.row.sample, sample.row.chunk);
                if place < from {
                    continue;
                }
                let tokens = sample.row.tokens.len() as u64;
                let rows_of =
                    |(tap, info)| sample_bytes(info, tokens, prepared.stored_rows(&selected, tap));
                let bytes: u64 = prepared.infos.iter().enumerate().map(rows_of).sum();
                if !fill.add(tokens, bytes) {
                    shard.expected_tokens = expected_tokens(state.tokens, &dataset);
                    state.next = Some(place);
                    shard.then = state.clone();
                    if shards.send(std::mem::take(&mut shard)).is_err() {
                        return Ok(summary);
                    }
                    fill = ShardFill::new(prepared.shard_limits());
                    fill.add(tokens, bytes);
                }
                state.add(prepared, &sample, &selected);
                shard.samples.push((sample, selected));
            }
        }
    }
    let good = summary.records - state.skipped;
    if check && good > 0 {
        state.check(prepared, good)?;
    }
    if !shard.samples.is_empty() {
        shard.expected_tokens = Some(state.tokens);
        state.next = None;
        shard.then = state.clone();
        // A closed channel means that the model stopped, and its error is the one that counts.
        let _ = shards.send(shard);
    }
    summary.records += dataset.skipped();
    summary.skipped = state.skipped + dataset.skipped();
    summary
        .skip_reasons
        .extend(dataset.skip_reasons().iter().take(REASONS).cloned());
    summary.skip_reasons.truncate(REASONS);
    if summary.skipped > 0 && summary.skipped == summary.records {
        return Err(Error::AllBad {
            records: summary.records,
            first: summary.skip_reasons.first().cloned().unwrap_or_default(),
        }
        .into());
    }
    Ok(summary)
}

fn expected_tokens(planned: u64, dataset: &Dataset) -> Option<u64> {
    let read = dataset.fraction_read().filter(|&f| f > 0.0)?;
    Some((planned as f64 / read) as u64)
}

fn select_all(
    prepared: &Prepared,
    record: crate::data::Record,
) -> Result<Vec<(Sample, SelectedSample)>> {
    let place = record.place();
    let samples = prepared.tokenising.samples(record)?;
    samples
        .into_iter()
        .map(|sample| match prepared.select(&sample) {
            Ok(selected) => Ok((sample, selected)),
            Err(crate::Error::Hooks(source)) => Err(Error::Selection {
                place: place.clone(),
                source,
            }
            .into()),
            Err(error) => Err(error),
        })
        .collect()
}
