//! The thread that runs ahead of the model: reads records, tokenises them on all cores and fills shards, so that a
//! shard's layout is known before its first row is computed.

use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::packing::{Packer, Start};
use super::slice::Share;
use super::trace::{Stage, since};
use super::{Document, Error, Prepared, Result, Sample, SelectedSample};
use crate::data::{Dataset, Record};
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
    /// Where the next shard begins: the place of its record in the order, and which chunk of it or, of a context, which of its tokens;
    /// `None` after the last one.
    pub next: Option<(u64, u64)>,
    /// The number of the context that it begins with, where records are packed.
    pub context: u64,
    /// Records before that one which could be read and not be used.
    pub skipped: u64,
    pub tokens: u64,
    /// Rows of each tap, and rows that each edit changes.
    pub rows: Vec<u64>,
    pub edited: Vec<u64>,
}

impl ReadState {
    /// Before the first record of a share.
    pub fn new(prepared: &Prepared, share: &Share) -> Self {
        ReadState {
            next: Some(share.begin),
            context: share.contexts.start,
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
/// Records before that place are read and not used. Where records are packed, contexts are made up to number `contexts`. With `check`,
/// taps and edits without a row are an error as soon as all of the dataset was read, which is before its last shard is computed.
///
/// # Errors
/// The first bad record's, unless bad ones are skipped.
pub fn read_ahead(
    prepared: &Prepared,
    mut dataset: Dataset,
    state: ReadState,
    contexts: u64,
    check: bool,
    shards: &SyncSender<PlannedShard>,
) -> Result<ReadSummary> {
    let mut summary = ReadSummary::default();
    let from = state.next.unwrap_or((u64::MAX, u64::MAX));
    let mut skipped = state.skipped;
    let length = prepared.job.pack_context;
    let mut packer = length.map(|length| Packer::new(length, state.context..contexts));
    let mut planner = Planner::new(prepared, state, shards);
    loop {
        let records = dataset.next_placed(RECORDS)?;
        if records.is_empty() {
            break;
        }
        summary.records += records.len() as u64;
        let (tokenising, n) = (Instant::now(), records.len());
        let tokenised: Vec<_> = records
            .into_par_iter()
            .filter(|(order, _)| *order >= from.0)
            .map(|(order, record)| (order, Tokenised::of(prepared, record)))
            .collect();
        let trace = prepared.trace.as_ref();
        since(trace, Stage::Read, tokenising, || format!("{n} records"));
        for (order, record) in tokenised {
            let samples = match (record, &mut packer) {
                (Ok(Tokenised::Samples(samples)), _) => {
                    let place = |sample: &Sample| (order, u64::from(sample.row.chunk));
                    let start = |sample: &Sample| Start {
                        place: place(sample),
                        skipped,
                    };
                    let new = samples.into_iter().filter(|(s, _)| place(s) >= from);
                    new.map(|(s, selected)| (start(&s), s, selected)).collect()
                }
                (Ok(Tokenised::Document(document)), Some(packer)) => {
                    let at = if order == from.0 { from.1 as usize } else { 0 };
                    selected(prepared, packer.push(order, &document, at, skipped))?
                }
                (Ok(Tokenised::Document(_)), None) => Vec::new(),
                (Err(crate::Error::Engine(bad)), _)
                    if prepared.job.skip_bad && bad.is_of_one_record() =>
                {
                    skipped += 1;
                    if summary.skip_reasons.len() < REASONS {
                        summary.skip_reasons.push(bad.to_string());
                    }
                    continue;
                }
                (Err(error), _) => return Err(error),
            };
            for (start, sample, selected) in samples {
                if !planner.add(start, sample, selected, &dataset) {
                    return Ok(summary);
                }
            }
        }
    }
    let rest = packer.as_mut().and_then(Packer::finish);
    for (start, sample, selected) in selected(prepared, rest.into_iter().collect())? {
        if !planner.add(start, sample, selected, &dataset) {
            return Ok(summary);
        }
    }
    let good = summary.records - skipped;
    planner.finish(skipped, check.then_some(good).filter(|&n| n > 0))?;
    summary.records += dataset.skipped();
    summary.skipped = skipped + dataset.skipped();
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

/// Fills shards, and sends each that is full.
struct Planner<'a> {
    prepared: &'a Prepared,
    /// Of the samples in all shards so far.
    state: ReadState,
    fill: ShardFill,
    shard: PlannedShard,
    shards: &'a SyncSender<PlannedShard>,
}

impl<'a> Planner<'a> {
    fn new(prepared: &'a Prepared, state: ReadState, shards: &'a SyncSender<PlannedShard>) -> Self {
        Planner {
            fill: ShardFill::new(prepared.shard_limits()),
            shard: PlannedShard::default(),
            prepared,
            state,
            shards,
        }
    }

    /// Takes a sample up; says whether there is still somebody to send shards to.
    fn add(
        &mut self,
        start: Start,
        sample: Sample,
        selected: SelectedSample,
        dataset: &Dataset,
    ) -> bool {
        let prepared = self.prepared;
        let tokens = sample.row.tokens.len() as u64;
        let rows_of =
            |(tap, info)| sample_bytes(info, tokens, prepared.stored_rows(&selected, tap));
        let bytes: u64 = prepared.infos.iter().enumerate().map(rows_of).sum();
        if !self.fill.add(tokens, bytes) {
            self.shard.expected_tokens = expected_tokens(self.state.tokens, dataset);
            self.state.next = Some(start.place);
            self.state.skipped = start.skipped;
            if prepared.job.pack_context.is_some() {
                self.state.context = sample.row.sample;
            }
            self.shard.then = self.state.clone();
            if self.shards.send(std::mem::take(&mut self.shard)).is_err() {
                return false;
            }
            self.fill = ShardFill::new(prepared.shard_limits());
            self.fill.add(tokens, bytes);
        }
        self.state.add(prepared, &sample, &selected);
        self.shard.samples.push((sample, selected));
        true
    }

    /// Sends the last shard. `check`: the samples that were read, if every tap and edit must have a row.
    fn finish(mut self, skipped: u64, check: Option<u64>) -> Result<(), Error> {
        if let Some(samples) = check {
            self.state.check(self.prepared, samples)?;
        }
        if !self.shard.samples.is_empty() {
            self.shard.expected_tokens = Some(self.state.tokens);
            self.state.next = None;
            self.state.skipped = skipped;
            self.shard.then = self.state;
            // A closed channel means that the model stopped, and its error is the one that counts.
            let _ = self.shards.send(self.shard);
        }
        Ok(())
    }
}

fn expected_tokens(planned: u64, dataset: &Dataset) -> Option<u64> {
    let read = dataset.fraction_read().filter(|&f| f > 0.0)?;
    Some((planned as f64 / read) as u64)
}

/// A record after tokenising.
enum Tokenised {
    Samples(Vec<(Sample, SelectedSample)>),
    /// To be packed.
    Document(Box<Document>),
}

impl Tokenised {
    fn of(prepared: &Prepared, record: Record) -> Result<Self> {
        if prepared.job.pack_context.is_some() {
            return Ok(Tokenised::Document(Box::new(
                prepared.tokenising.document(record)?,
            )));
        }
        let place = record.place();
        let samples = prepared.tokenising.samples(record)?;
        let select = |sample| select(prepared, sample, &place);
        let samples = samples.into_iter().map(select).collect::<Result<_>>()?;
        Ok(Tokenised::Samples(samples))
    }
}

fn select(prepared: &Prepared, sample: Sample, place: &str) -> Result<(Sample, SelectedSample)> {
    match prepared.select(&sample) {
        Ok(selected) => Ok((sample, selected)),
        Err(crate::Error::Hooks(source)) => Err(Error::Selection {
            place: place.to_owned(),
            source,
        }
        .into()),
        Err(error) => Err(error),
    }
}

/// Contexts, with their selected rows.
fn selected(
    prepared: &Prepared,
    contexts: Vec<(Start, Sample)>,
) -> Result<Vec<(Start, Sample, SelectedSample)>> {
    let select = |(start, context): (Start, Sample)| {
        let row = &context.row;
        let place = format!(
            "the context {} that begins at {}:{}",
            row.sample, row.file, row.line
        );
        let (context, selected) = select(prepared, context, &place)?;
        Ok((start, context, selected))
    };
    contexts.into_iter().map(select).collect()
}
