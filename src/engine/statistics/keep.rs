//! The consumer of a run that leaves statistics: sums each batch, and from time to time keeps the sums under way, so that a run that is
//! stopped can go on with the very same ones.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::live::{Consumer, LiveBatch};
use super::super::read_ahead::{PlannedShard, ReadState};
use super::super::resume::Carry;
use super::super::{Error, Machine, Prepared, Result};
use super::sums::Sums;
use crate::store::statistics::{Checkpoint, StatisticsManifest, StatisticsWriter};

/// A checkpoint is made again after this many times what the last one took.
const PATIENCE: u32 = 20;

/// Shards that were begun, oldest first: their samples, and where reading goes on after each.
#[derive(Debug, Default)]
pub(super) struct Begun(RefCell<VecDeque<(u64, ReadState)>>);

impl Begun {
    /// Notes a shard; of the first one `done` samples are left out.
    pub fn note(&self, planned: &mut PlannedShard, done: u64) {
        let mut begun = self.0.borrow_mut();
        begun.push_back((planned.samples.len() as u64, planned.then.clone()));
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        planned.samples.drain(..done.min(planned.samples.len()));
    }
}

/// How far the dataset is summed: where the shard begins that is being summed, and its samples that are.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Place {
    pub start: ReadState,
    pub done: u64,
}

pub(super) struct Keeper<'k> {
    pub sums: Sums,
    pub prepared: &'k Prepared,
    pub writer: &'k StatisticsWriter,
    pub begun: &'k Begun,
    pub place: Place,
    /// What a checkpoint says that it is of.
    pub manifest: StatisticsManifest,
    /// The run's account, as of the last batch.
    pub account: Value,
    /// Least time between checkpoints, when the last one ended, and what it took.
    pub every: Duration,
    pub last: Instant,
    pub took: Duration,
}

impl Consumer for Keeper<'_> {
    fn batch(&mut self, batch: &LiveBatch<'_>, machine: &mut dyn Machine) -> Result<()> {
        self.sums.add(batch, machine)?;
        self.account.clone_from(&batch.account);
        self.place.done += batch.samples.len() as u64;
        let mut begun = self.begun.0.borrow_mut();
        if begun.front().is_some_and(|(n, _)| *n <= self.place.done)
            && let Some((_, then)) = begun.pop_front()
        {
            self.place = Place {
                start: then,
                done: 0,
            };
        }
        drop(begun);
        if self.last.elapsed() >= self.every.max(self.took * PATIENCE) {
            self.checkpoint(machine)?;
        }
        Ok(())
    }
}

impl Keeper<'_> {
    /// Keeps the sums under way.
    ///
    /// # Errors
    /// The disk's, the dataset's and the device's.
    pub fn checkpoint(&mut self, machine: &mut dyn Machine) -> Result<()> {
        let began = Instant::now();
        self.sums.read(machine)?;
        let dataset = &mut self.manifest.provenance.dataset;
        dataset.fingerprint = self.prepared.dataset_fingerprint()?;
        self.manifest.counted = self.sums.counted;
        let mut checkpoint = self.writer.checkpoint(self.manifest.clone())?;
        for (info, sets) in self.prepared.infos.iter().zip(&self.sums.taps) {
            let entries: Vec<_> = sets
                .iter()
                .map(|(set, summing)| (set, &summing.moments, &summing.chunk[..]))
                .collect();
            checkpoint.tap(info, &entries)?;
        }
        let (waiting, rows) = match &self.sums.pairs {
            Some(pairs) => pairs.kept(),
            None => (Value::Null, Default::default()),
        };
        let account = json!({ "run": self.account, "place": self.place, "waiting": waiting });
        checkpoint.finish(account, &rows)?;
        self.took = began.elapsed();
        self.last = Instant::now();
        Ok(())
    }
}

/// Where a run goes on after a checkpoint: the run's account, the place in the dataset, the sums.
///
/// # Errors
/// The checkpoint does not fit the job.
pub(super) fn take_up(
    checkpoint: Checkpoint,
    mut sums: Sums,
    prepared: &Prepared,
    dir: &std::path::Path,
) -> Result<(Carry, Place, Sums)> {
    let foreign = |why: &str| -> crate::Error {
        Error::ForeignJob {
            dir: dir.display().to_string(),
            why: why.into(),
        }
        .into()
    };
    let account = &checkpoint.account;
    let place: Place = serde_json::from_value(account["place"].clone())
        .map_err(|_| foreign("its account of the run so far does not fit its job"))?;
    let mut run = account["run"].clone();
    run["read"] = json!(place.start);
    let carry = Carry::read(&run, prepared, dir)?;
    sums.counted = checkpoint.manifest.counted;
    if sums.counted.samples != carry.samples {
        return Err(foreign(
            "its sums and its account differ in the number of samples",
        ));
    }
    if !sums.take_up(checkpoint.taps) {
        return Err(foreign("its sums are of other taps"));
    }
    if let Some(pairs) = &mut sums.pairs
        && !pairs.take_up(&account["waiting"], &checkpoint.pairs)
    {
        return Err(foreign("its pairs do not fit their rows"));
    }
    Ok((carry, place, sums))
}
