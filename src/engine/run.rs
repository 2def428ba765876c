//! The computing side of an extraction: takes shards as they are laid out, has the machine run their batches, a few under way at a
//! time where there is a device, and hands each shard on to be committed while the next one runs. Each wait is counted by its cause.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::lay_out::{LaidOut, lay_out};
use super::live::{self, Consumer, LiveBatch};
use super::norms::add_norms;
use super::provenance::dataset_info;
use super::read_ahead::{PlannedShard, ReadSummary, read_ahead};
use super::resume::Carry;
use super::selected::{BatchRows, Part};
use super::slice::Share;
use super::trace::{Stage, since};
use super::{Error, Extracted, Machine, Options, Prepared, Progress, Result};
use crate::backend::cuda::driver::Track;
use crate::backend::cuda::{Pinner, Timed};
use crate::backend::{Batch, Landed, Receipt, Sink};
use crate::store::{LentSlab, ShardWriter, StoreWriter, Summary, TapInfo, TapSlab};
use crate::sys::ring::SlabRing;

pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>, name: &'static str) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Thread(name))
}

/// The computing side of a run.
pub(super) struct Run<'p> {
    prepared: &'p Prepared,
    machine: &'p mut dyn Machine,
    options: &'p Options<'p>,
    start: Instant,
    progress: Progress,
    computing: Duration,
    rows: Vec<u64>,
    /// Per tap, the sum of its rows' norms.
    norms: Vec<f64>,
    clipped: u64,
    shards: usize,
    receipts: Vec<Receipt>,
    /// As it stands in the store.
    carry: Carry,
    /// Shards with batches to come or under way, oldest first.
    open: VecDeque<Open>,
    /// Batches under way, oldest first.
    flying: VecDeque<Flying>,
}

/// A shard whose batches are being computed.
struct Open {
    laid_out: LaidOut,
    /// Samples whose rows are there.
    landed: usize,
}

/// A batch under way.
struct Flying {
    samples: Range<usize>,
    /// Rows of each tap.
    rows: Vec<usize>,
}

/// Where rows go.
pub(super) enum Destination<'d> {
    /// Into shards, which are committed by whoever receives them.
    Store(SyncSender<ShardWriter>),
    /// To a consumer, from slabs of this ring.
    Live {
        ring: SlabRing,
        consumer: &'d mut dyn Consumer,
    },
}

impl<'p> Run<'p> {
    pub(super) fn new(
        prepared: &'p Prepared,
        machine: &'p mut dyn Machine,
        start: Instant,
        options: &'p Options<'p>,
        carry: Carry,
    ) -> Self {
        machine.set_tracing(prepared.trace.is_some());
        let mut run = Run {
            machine,
            options,
            rows: Vec::new(),
            norms: Vec::new(),
            receipts: Vec::new(),
            prepared,
            start,
            progress: Progress::default(),
            computing: Duration::ZERO,
            clipped: 0,
            shards: 0,
            carry: Carry::default(),
            open: VecDeque::new(),
            flying: VecDeque::new(),
        };
        run.take_up(carry);
        run
    }

    /// Goes on from an account that the store kept.
    fn take_up(&mut self, carry: Carry) {
        self.rows.clone_from(&carry.rows);
        self.norms = carry.norms.iter().copied().map(f64::from_bits).collect();
        self.clipped = carry.clipped;
        self.receipts = carry.receipts();
        let progress = &mut self.progress;
        progress.resumed.0 += carry.samples.saturating_sub(progress.samples);
        progress.resumed.1 += carry.tokens.saturating_sub(progress.tokens);
        progress.samples = carry.samples;
        progress.tokens = carry.tokens;
        progress.bytes = carry.bytes;
        self.carry = carry;
    }

    /// The account of the run so far, in a shard that `planned` is.
    fn account(&mut self, planned: &PlannedShard) -> serde_json::Value {
        let carry = &mut self.carry;
        carry.samples = self.progress.samples;
        carry.tokens = self.progress.tokens;
        carry.bytes = self.progress.bytes;
        carry.rows.clone_from(&self.rows);
        carry.norms = self.norms.iter().map(|sum| sum.to_bits()).collect();
        carry.clipped = self.clipped;
        carry.set_receipts(&self.receipts);
        carry.read.clone_from(&planned.then);
        json!(carry)
    }

    /// Runs the threads; also returns what the dataset was.
    pub(super) fn whole(
        mut self,
        writer: &mut StoreWriter,
        pinner: Option<Pinner>,
        share: &Share,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<(Self, ReadSummary, Option<String>)> {
        let prepared = self.prepared;
        let dataset = share.dataset(prepared, prepared.needs_spans())?;
        let (is_all, end) = (share.slice.is_none(), share.contexts.end);
        let trace = prepared.trace.as_ref();
        let record = writer.dataset_record();
        let from = self.carry.read.clone();
        let (shards_to, shards_from) = sync_channel(1);
        let (laid_out_to, laid_out_from) = sync_channel(0);
        let (commits_to, commits_from) = sync_channel::<ShardWriter>(0);
        std::thread::scope(|scope| {
            let read = move || read_ahead(prepared, dataset, from, end, is_all, &shards_to);
            let reader = scope.spawn(read);
            let layer = scope.spawn(move || {
                let pinner = pinner.as_ref();
                lay_out(prepared, writer, pinner, &shards_from, &laid_out_to)
            });
            let committer = scope.spawn(move || -> Result<_> {
                // Whoever resumes must know that the dataset is the same: before anything of it is committed.
                let fingerprint = prepared.dataset_fingerprint()?;
                record.set(dataset_info(prepared, fingerprint.clone(), None, 0))?;
                for shard in commits_from {
                    let (begun, n) = (Instant::now(), shard.index());
                    shard.commit()?;
                    since(trace, Stage::Commit, begun, || format!("shard {n}"));
                }
                Ok(fingerprint)
            });
            let next = |wait| laid_out_from.recv_timeout(wait);
            let computed = self.shards(next, Destination::Store(commits_to), report);
            // Nobody takes what is laid out any more.
            drop(laid_out_from);
            // A failed commit is why the computing thread could not hand its shard over: its error says more.
            let fingerprint = joined(committer, "the thread that commits shards")??;
            computed?;
            joined(layer, "the thread that lays out shards")??;
            let mut read = joined(reader, "the thread that reads the dataset")??;
            // A document that a slice goes on with is counted where it begins.
            read.records -= u64::from(share.begin.1 > 0);
            if is_all {
                self.check_rows()?;
                self.check_edits()?;
            }
            Ok((self, read, fingerprint))
        })
    }

    pub(super) fn shards(
        &mut self,
        next: impl Fn(Duration) -> Result<LaidOut, RecvTimeoutError>,
        mut to: Destination<'_>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<()> {
        loop {
            let waiting = Instant::now();
            let Some(laid_out) = self.next(&next)? else {
                break;
            };
            let (reading, laying_out) = laid_out.waited(waiting);
            self.progress.waited_for_tokeniser += reading;
            self.progress.waited_for_disk += laying_out;
            self.progress.expected_tokens = laid_out.planned.expected_tokens;
            let done = laid_out.shard.as_ref().map_or(0, ShardWriter::finished);
            if done > 0 && !self.go_on_with(&laid_out, &mut to, report)? {
                return Ok(());
            }
            let batch_tokens = self.prepared.job.batch_tokens;
            let batches = laid_out.planned.batches(batch_tokens);
            let batches: Vec<_> = batches.filter(|batch| batch.end > done).collect();
            self.open.push_back(Open {
                laid_out,
                landed: done,
            });
            for batch in batches {
                let slabs = self.lend(&batch, &mut to, report)?;
                let begun = Instant::now();
                let n = batch.len();
                let landed = self.submit(batch, slabs)?;
                let trace = self.prepared.trace.as_ref();
                since(trace, Stage::Compute, begun, || format!("{n} samples"));
                if !self.landed(landed, &mut to, report)? {
                    return Ok(()); // the committer's own error is reported
                }
                if let Err(stopped) = self.heed_stop() {
                    self.land_all(&mut to, report)?;
                    for open in &mut self.open {
                        let shard = open.laid_out.shard.as_mut();
                        shard.map_or(Ok(()), ShardWriter::flush)?;
                    }
                    // What came to an end meanwhile counts too.
                    let samples = self.progress.samples;
                    return Err(match stopped {
                        Error::Stopped { kept, .. } => Error::Stopped { samples, kept }.into(),
                        other => other.into(),
                    });
                }
            }
        }
        self.land_all(&mut to, report).map(drop)
    }

    /// Takes up the account that came with the rows which an earlier process left of a shard, once everything before it has landed.
    fn go_on_with(
        &mut self,
        laid_out: &LaidOut,
        to: &mut Destination<'_>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<bool> {
        let goes_on = self.land_all(to, report)?;
        if let Some(shard) = &laid_out.shard {
            let dir = Path::new("the store");
            self.take_up(Carry::read(shard.carry(), self.prepared, dir)?);
        }
        Ok(goes_on)
    }

    /// Waits for every batch under way; says whether there is still somebody to pass rows to.
    fn land_all(
        &mut self,
        to: &mut Destination<'_>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<bool> {
        while !self.flying.is_empty() {
            let landed = self.computing(|run| run.machine.land())?;
            if !self.landed(landed, to, report)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next shard that was laid out; `None` after the last one.
    fn next(
        &self,
        next: impl Fn(Duration) -> Result<LaidOut, RecvTimeoutError>,
    ) -> Result<Option<LaidOut>> {
        const LOOK_UP: Duration = Duration::from_millis(200);
        loop {
            self.heed_stop()?;
            match next(LOOK_UP) {
                Ok(shard) => return Ok(Some(shard)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn heed_stop(&self) -> Result<(), Error> {
        if (self.options.stop)() {
            let (samples, kept) = (self.progress.samples, "");
            return Err(Error::Stopped { samples, kept });
        }
        Ok(())
    }

    /// Runs something of the machine's, and counts its time.
    fn computing<T>(&mut self, of: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let waited = self.machine.waited();
        let done = of(self);
        self.computing += begun.elapsed();
        let now = self.machine.waited();
        self.progress.waited_for_gpu += now.launches - waited.launches;
        self.progress.waited_for_pcie += now.copies - waited.copies;
        done
    }

    /// Slabs for a batch of the newest shard; where there is no room for them, earlier batches land first.
    fn lend(
        &mut self,
        batch: &Range<usize>,
        to: &mut Destination<'_>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<LentSlab>> {
        loop {
            let waiting = Instant::now();
            let newest = self.open.back_mut().map(|open| &mut open.laid_out);
            let lent = match (newest, &mut *to) {
                (Some(laid_out), Destination::Live { ring, .. }) => {
                    let no_memory = |e| crate::store::Error::Plan(format!("no memory: {e}"));
                    live::lend(self.prepared, ring, laid_out, batch.clone()).map_err(no_memory)?
                }
                (
                    Some(LaidOut {
                        shard: Some(shard), ..
                    }),
                    _,
                ) => shard.lend(batch.clone())?,
                _ => None,
            };
            self.progress.waited_for_disk += waiting.elapsed();
            match lent {
                Some(slabs) => return Ok(slabs),
                None => {
                    let landed = self.computing(|run| run.machine.land())?;
                    if landed.is_none() {
                        return Err(Error::Thread("no batch is under way to make room").into());
                    }
                    self.landed(landed, to, report)?;
                }
            }
        }
    }

    /// Has the machine take up a batch of the newest shard.
    fn submit(&mut self, samples: Range<usize>, slabs: Vec<LentSlab>) -> Result<Option<Landed>> {
        self.flying.push_back(Flying {
            samples: samples.clone(),
            rows: slabs.iter().map(|slab| slab.rows.len()).collect(),
        });
        self.computing(|run| {
            let prepared = run.prepared;
            let Some(open) = run.open.back() else {
                return Ok(None);
            };
            let (batch, parts) = packed(&open.laid_out.planned.samples[samples]);
            let sinks = slabs
                .into_iter()
                .enumerate()
                .map(|(tap, slab)| {
                    let BatchRows { rows, per_sample } = prepared.tapped(&parts, tap);
                    let spec = Arc::clone(&prepared.specs[tap]);
                    Sink::owning(spec, rows, per_sample, slab.activations, slab.index)
                })
                .collect();
            let edits = prepared.batch_edits(&parts);
            let n_layers = prepared.model.config.n_layers;
            run.machine
                .submit(&batch, sinks, edits, n_layers, &prepared.plan)
        })
    }

    /// Passes a landed batch's rows on, and its shard if it was the last of it; says whether there is still somebody to pass it to.
    fn landed(
        &mut self,
        landed: Option<Landed>,
        to: &mut Destination<'_>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<bool> {
        let Some(landed) = landed else {
            return Ok(true);
        };
        let (Some(batch), Some(mut open)) = (self.flying.pop_front(), self.open.pop_front()) else {
            return Err(Error::Thread("a batch came back that was not under way").into());
        };
        if let Some(trace) = &self.prepared.trace {
            for Timed {
                track,
                name,
                begin,
                end,
            } in self.machine.timeline()
            {
                let stage = match track {
                    Track::Launches => Stage::Device,
                    Track::Copies => Stage::Copies,
                };
                trace.span(stage, name, begin, end);
            }
        }
        let samples = &open.laid_out.planned.samples[batch.samples.clone()];
        for (sum, rows) in self.rows.iter_mut().zip(&batch.rows) {
            *sum += *rows as u64;
        }
        let of_taps = self.norms.iter_mut().zip(&self.prepared.infos);
        for ((sum, info), ((rows, side), &n)) in of_taps.zip(landed.slabs.iter().zip(&batch.rows)) {
            add_norms(sum, info, n, rows, side.as_deref());
        }
        for (sum, receipt) in self.receipts.iter_mut().zip(&landed.receipts) {
            sum.add(receipt);
        }
        self.clipped += samples.iter().map(|(_, s)| s.clipped).sum::<u64>();
        self.progress.bytes += landed.slabs.iter().map(|s| s.0.len() as u64).sum::<u64>();
        self.progress.samples += batch.samples.len() as u64;
        let tokens = samples.iter().map(|(s, _)| s.row.tokens.len() as u64);
        self.progress.tokens += tokens.sum::<u64>();
        let account = self.account(&open.laid_out.planned);
        let passing_on = Instant::now();
        match (&mut open.laid_out.shard, &mut *to) {
            (Some(shard), _) => shard.take_back_with(landed.slabs, account)?,
            (None, Destination::Live { consumer, .. }) => {
                let batch = LiveBatch::of(self.prepared, samples, &landed, account);
                consumer.batch(&batch, &mut *self.machine)?;
            }
            (None, Destination::Store(_)) => {}
        }
        open.landed = batch.samples.end;
        let whole = open.landed == open.laid_out.planned.samples.len();
        let mut taken = true;
        if !whole {
            self.open.push_front(open);
        } else {
            if let (Some(shard), Destination::Store(commits)) = (open.laid_out.shard, to) {
                let handing_over = Instant::now();
                taken = commits.send(shard).is_ok();
                self.progress.waited_for_disk += handing_over.elapsed();
            }
            self.shards += usize::from(taken);
        }
        let trace = self.prepared.trace.as_ref();
        since(trace, Stage::Compute, passing_on, || "pass rows on".into());
        self.progress.elapsed = self.start.elapsed();
        report(&self.progress);
        Ok(taken)
    }

    /// A selection that picks nothing anywhere is a mistake, not a result.
    pub(super) fn check_rows(&self) -> Result<(), Error> {
        match self.rows.iter().position(|&rows| rows == 0) {
            None => Ok(()),
            Some(tap) => Err(Error::NothingSelected {
                tap: self.prepared.taps[tap].to_string(),
                samples: self.progress.samples,
            }),
        }
    }

    /// So is an edit that touches nothing.
    pub(super) fn check_edits(&self) -> Result<(), Error> {
        match self.receipts.iter().position(|receipt| receipt.rows == 0) {
            None => Ok(()),
            Some(edit) => Err(Error::EditTouchedNothing {
                edit: self.prepared.edits[edit].describe(),
                samples: self.progress.samples,
            }),
        }
    }

    /// The mean norm of each tap's rows, by its folder; null for ragged taps, without rows, and where a number was not finite.
    fn mean_norms(&self) -> serde_json::Value {
        let of_taps = self
            .prepared
            .infos
            .iter()
            .zip(self.norms.iter().zip(&self.rows));
        let mean = |(info, (&sum, &rows)): (&TapInfo, (&f64, &u64))| {
            let mean = (!info.ragged && rows > 0).then(|| sum / rows as f64);
            (info.folder.clone(), json!(mean))
        };
        of_taps.map(mean).collect::<serde_json::Map<_, _>>().into()
    }

    pub(super) fn finish(
        mut self,
        writer: Option<StoreWriter>,
        write_path: &'static str,
        read: ReadSummary,
        fingerprint: Option<String>,
        started: SystemTime,
    ) -> Result<Extracted> {
        self.progress.elapsed = self.start.elapsed();
        let Progress {
            tokens,
            elapsed,
            waited_for_tokeniser,
            waited_for_disk,
            waited_for_gpu,
            waited_for_pcie,
            ..
        } = self.progress;
        let seconds = |d: Duration| (d.as_secs_f64() * 1e3).round() / 1e3;
        let edits = self.prepared.edits.iter().zip(&self.receipts);
        let receipts: Vec<_> = edits.map(|(edit, done)| edit.receipt(done)).collect();
        let summary = Summary {
            mean_norms: self.mean_norms(),
            receipts: receipts.iter().map(|r| json!(r)).collect(),
            timing: json!({
                "started_unix": started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
                "wall_s": seconds(elapsed),
                "compute_s": seconds(self.computing),
                "tokens": tokens,
                "tokens_per_s": (tokens.saturating_sub(self.progress.resumed.1) as f64 / elapsed.as_secs_f64()).round(),
                "clipped_rows": self.clipped,
            }),
            stalls: json!({
                "waited_for_tokeniser_s": seconds(waited_for_tokeniser),
                "waited_for_disk_s": seconds(waited_for_disk),
                "waited_for_gpu_s": seconds(waited_for_gpu),
                "waited_for_pcie_s": seconds(waited_for_pcie),
            }),
            dataset: Some(dataset_info(
                self.prepared,
                fingerprint,
                Some(read.records),
                read.skipped,
            )),
        };
        let mut shards = self.shards;
        if let Some(writer) = writer {
            shards = writer.shards();
            writer.finish(summary)?;
        }
        Ok(Extracted {
            write_path,
            receipts,
            progress: self.progress,
            computing: self.computing,
            rows: self.rows,
            skipped: read.skipped,
            skip_reasons: read.skip_reasons,
            clipped: self.clipped,
            shards,
        })
    }
}

/// Runs one batch; its rows go into `slabs`, one per tap. Returns what each edit did.
pub(super) fn run_batch(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    samples: &[(super::Sample, super::SelectedSample)],
    slabs: Vec<TapSlab<'_>>,
) -> Result<Vec<Receipt>> {
    let (batch, parts) = packed(samples);
    let sinks = slabs
        .into_iter()
        .enumerate()
        .map(|(tap, slab)| {
            let BatchRows { rows, per_sample } = prepared.tapped(&parts, tap);
            Sink::new(
                Arc::clone(&prepared.specs[tap]),
                rows,
                per_sample,
                slab.activations,
                slab.index,
            )
        })
        .collect();
    let edits = prepared.batch_edits(&parts);
    let n_layers = prepared.model.config.n_layers;
    machine.run(&batch, sinks, edits, n_layers, &prepared.plan)
}

/// Whole samples as a batch, and what the batch holds of each.
fn packed(samples: &[(super::Sample, super::SelectedSample)]) -> (Batch, Vec<Part<'_>>) {
    let batch = Batch::pack(samples.iter().map(|(s, _)| &s.row.tokens[..]));
    let parts = samples
        .iter()
        .map(|(sample, selected)| Part {
            sample: sample.row.sample,
            selected,
            positions: 0..sample.row.tokens.len() as u32,
        })
        .collect();
    (batch, parts)
}
