//! Extraction: a dataset through the model into a store.
//!
//! A thread reads and tokenises ahead and plans whole shards ([`read_ahead`]); another lays them out ([`super::lay_out`]); this one runs
//! their batches ([`Run`]) and hands each shard to a thread that makes it durable while the next one runs. Bounded channels between
//! them give back-pressure.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime};

use super::lay_out::LaidOut;
use super::live::Consumer;
use super::provenance::provenance;
use super::read_ahead::{PlannedShard, read_ahead};
use super::resume::{Beginning, Carry, begin, stopped};
use super::route::{BATCHES, Route, ring_bytes};
use super::run::{Destination, Run, joined};
use super::slice::Share;
use super::{EditReceipt, Ending, Error, Machine, Options, Prepared, Result};
use crate::store::Provenance;
use crate::sys::ring::SlabRing;

/// How far a run is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub samples: u64,
    pub tokens: u64,
    /// Of the samples and tokens, those that an earlier run of the same job had done.
    pub resumed: (u64, u64),
    /// Tokens that there seem to be in all; exact from the last shard on, `None` while nothing tells.
    pub expected_tokens: Option<u64>,
    /// Bytes of activations written.
    pub bytes: u64,
    pub elapsed: Duration,
    /// Time that the model waited for the tokeniser, and for the disk.
    pub waited_for_tokeniser: Duration,
    pub waited_for_disk: Duration,
    /// Of the time in the forward pass: what was waited for a GPU to compute, and then for PCIe to bring its rows.
    pub waited_for_gpu: Duration,
    pub waited_for_pcie: Duration,
}

/// What a finished run did.
#[derive(Debug, Clone)]
pub struct Extracted {
    pub progress: Progress,
    /// Time in the forward pass, taps included.
    pub computing: Duration,
    /// Rows stored, per tap.
    pub rows: Vec<u64>,
    pub skipped: u64,
    /// The first few records that were skipped, and why.
    pub skip_reasons: Vec<String>,
    /// Rows asked for that lie outside their sample.
    pub clipped: u64,
    pub shards: usize,
    /// What each edit did, at each of its hook points.
    pub receipts: Vec<EditReceipt>,
    /// How rows got from the backend to where they went: `mapped`, `registered`, `io_uring`, `pwrite` or `live`.
    pub write_path: &'static str,
}

/// Runs the job into `out`, which must be empty or not there; `report` hears of the progress after every batch.
///
/// # Errors
/// Whatever is wrong with a record, the disk or the store; what was committed before stays, in a store that says it is partial.
pub fn extract(
    prepared: &Prepared,
    out: &Path,
    report: &mut dyn FnMut(&Progress),
) -> Result<Extracted> {
    extract_on(prepared, &mut prepared.cpu(), out, report)
}

/// As [`extract`], on a backend that holds the job's model.
///
/// # Errors
/// As there, and the backend's.
pub fn extract_on(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    out: &Path,
    report: &mut dyn FnMut(&Progress),
) -> Result<Extracted> {
    match extract_with(prepared, machine, out, &Options::default(), report)? {
        Ending::Done(done) => Ok(*done),
        Ending::Already(_) => Err(Error::Thread("the run that has an end already").into()),
    }
}

/// As [`extract_on`], resumed or stopped early as `options` say.
///
/// # Errors
/// As there; a command that is not the one that began the store; [`Error::Stopped`] when the run was asked to stop.
pub fn extract_with(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    out: &Path,
    options: &Options<'_>,
    report: &mut dyn FnMut(&Progress),
) -> Result<Ending> {
    let start = Instant::now();
    let started = SystemTime::now();
    let share = Share::of(prepared)?;
    let mut route = Route::choose(prepared, machine, out)?;
    let provenance = Provenance {
        slice: share.slice,
        write_path: route.record(),
        ..provenance(prepared, machine.identity())
    };
    let (mut writer, carry) = match begin(prepared, provenance, &share, out, options.resume)? {
        Beginning::Writer(writer, carry) => (*writer, *carry),
        Beginning::Already(manifest) => return Ok(Ending::Already(manifest)),
    };
    if let Some(time) = options.commit_every {
        writer.commit_every(time);
    }
    route.lead(&mut writer);
    let pinner = route.pinner.take();
    let run = Run::new(prepared, &mut *machine, start, options, carry);
    let error = match run.whole(&mut writer, pinner, &share, report) {
        Ok((run, read, fingerprint)) => {
            let done = run.finish(Some(writer), route.name(), read, fingerprint, started)?;
            return Ok(Ending::Done(Box::new(done)));
        }
        Err(error) => error,
    };
    machine.give_up();
    let kept = writer.abandon();
    Err(match error {
        crate::Error::Engine(Error::Stopped { samples, .. }) => {
            stopped(samples, kept, &prepared.job).into()
        }
        error => error,
    })
}

/// Runs the job's rows past `consumer`, batch by batch and in the dataset's order, and stores nothing.
///
/// # Errors
/// Whatever is wrong with a record, the backend's, and the consumer's own.
pub fn extract_live(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    consumer: &mut dyn Consumer,
    report: &mut dyn FnMut(&Progress),
) -> Result<Extracted> {
    let whole = Share::whole();
    let carry = Carry::new(prepared, &whole);
    let options = Options::default();
    let passing = Passing {
        share: &whole,
        carry,
        options: &options,
        shard: &|_| (),
    };
    pass(prepared, machine, passing, consumer, report).map(|(done, _)| done)
}

/// How a job's rows are passed by.
pub(super) struct Passing<'a> {
    pub share: &'a Share,
    /// Where the run goes on.
    pub carry: Carry,
    pub options: &'a Options<'a>,
    /// Sees each shard before its batches are computed, and may leave samples out.
    pub shard: &'a dyn Fn(&mut PlannedShard),
}

/// Runs a share of the job past `consumer`; also says what was read.
///
/// # Errors
/// As [`extract_live`]'s; [`Error::Stopped`] once all that was under way has been passed on.
pub(super) fn pass(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    passing: Passing<'_>,
    consumer: &mut dyn Consumer,
    report: &mut dyn FnMut(&Progress),
) -> Result<(Extracted, (u64, u64))> {
    let Passing {
        share,
        carry,
        options,
        shard,
    } = passing;
    let (start, started) = (Instant::now(), SystemTime::now());
    let no_memory = |e| crate::store::Error::Plan(format!("no memory for the tap ring: {e}"));
    let ring = SlabRing::new(ring_bytes(prepared, BATCHES)).map_err(no_memory)?;
    if let Some(pinner) = machine.pinner()? {
        // Rows arrive in memory that cannot be registered too, only later.
        let _ = pinner.pin(ring.memory());
    }
    let dataset = share.dataset(prepared, prepared.needs_spans())?;
    let (is_all, end) = (share.slice.is_none(), share.contexts.end);
    let (shards_to, shards_from) = sync_channel(1);
    let done = std::thread::scope(|scope| {
        let from = carry.read.clone();
        let read = move || read_ahead(prepared, dataset, from, end, is_all, &shards_to);
        let reader = scope.spawn(read);
        let mut run = Run::new(prepared, &mut *machine, start, options, carry);
        let computed = run.shards(
            |wait| {
                let mut planned = shards_from.recv_timeout(wait)?;
                shard(&mut planned);
                Ok(LaidOut::unstored(planned))
            },
            Destination::Live { ring, consumer },
            report,
        );
        // The reader goes on while anyone might listen.
        drop(shards_from);
        computed?;
        let mut read = joined(reader, "the thread that reads the dataset")??;
        // A document that a slice goes on with is counted where it begins.
        read.records -= u64::from(share.begin.1 > 0);
        if is_all {
            run.check_rows()?;
            run.check_edits()?;
        }
        let counted = (read.records, read.skipped);
        let done = run.finish(None, "live", read, None, started)?;
        Ok((done, counted))
    });
    if done.is_err() {
        machine.give_up();
    }
    done
}
