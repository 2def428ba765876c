//! Extraction: a dataset through the model into a store.
//!
//! A thread reads and tokenises ahead and plans whole shards ([`read_ahead`]); this thread lays a shard out, runs its
//! batches straight into the mapped files, and hands it to a thread that makes it durable while the next one runs.
//! Bounded channels between them give back-pressure, and each wait is counted by its cause.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::read_ahead::{PlannedShard, ReadSummary, read_ahead};
use super::resume::{Beginning, Carry, begin};
use super::selected::{BatchRows, Part};
use super::slice;
use super::{EditReceipt, Ending, Error, Identity, Machine, Options, Prepared, Result};
use crate::backend::{Batch, Receipt, Sink};
use crate::store::{
    DatasetInfo, ModelInfo, Provenance, ShardWriter, Slice, StoreWriter, Summary, TapSlab,
};

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
    let slice = slice::of(prepared)?;
    let provenance = Provenance {
        slice,
        ..provenance(prepared, machine.identity())
    };
    let (mut writer, carry) = match begin(prepared, provenance, out, options.resume)? {
        Beginning::Writer(writer, carry) => (*writer, *carry),
        Beginning::Already(manifest) => return Ok(Ending::Already(manifest)),
    };
    if let Some(time) = options.commit_every {
        writer.commit_every(time);
    }
    let run = Run::new(prepared, machine, start, options, carry);
    match run.whole(&mut writer, slice, report) {
        Ok((run, read, fingerprint)) => {
            let done = run.finish(writer, read, fingerprint, started)?;
            Ok(Ending::Done(Box::new(done)))
        }
        Err(crate::Error::Engine(Error::Stopped { samples, .. })) => {
            let from_stdin = prepared.job.data.iter().any(|data| data == "-");
            let kept = match (writer.abandon(), from_stdin) {
                (true, false) => ", which are kept: pass --resume to go on",
                (true, true) => ", which a partial store keeps; standard input cannot be resumed",
                (false, _) => ": nothing was left to go on with",
            };
            Err(Error::Stopped { samples, kept }.into())
        }
        Err(error) => {
            writer.abandon();
            Err(error)
        }
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>, name: &'static str) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Thread(name))
}

/// Everything that is known before the first row.
pub(super) fn provenance(prepared: &Prepared, machine: Identity) -> Provenance {
    let Prepared {
        job,
        model,
        tokenising,
        ..
    } = prepared;
    Provenance {
        engine_version: env!("CARGO_PKG_VERSION").into(),
        model: ModelInfo {
            id: job.model.clone(),
            path: absolute(&model.dir),
            fingerprint: model.fingerprint.clone(),
        },
        tokenizer_fingerprint: tokenising.tokenizer.as_ref().map(|t| t.fingerprint()),
        dataset: dataset_info(prepared, None, None, 0),
        chat_template: (prepared.may_be_chat())
            .then(|| tokenising.template.as_ref().map(|t| t.source().to_owned()))
            .flatten(),
        compute_dtype: machine.compute_dtype,
        store_dtype: job.store_dtype.map_or("f32".into(), |d| d.to_string()),
        backend: machine.backend,
        device: machine.device,
        kernel_build: machine.kernel_build,
        batch_tokens: job.batch_tokens as u64,
        job: json!(job),
        edits: prepared.edits.iter().map(|e| e.record()).collect(),
        numeric_record: machine.numeric_record,
        ..Provenance::default()
    }
}

pub(super) fn dataset_info(
    prepared: &Prepared,
    fingerprint: Option<String>,
    samples: Option<u64>,
    skipped: u64,
) -> DatasetInfo {
    let job = &prepared.job;
    DatasetInfo {
        paths: job.data.iter().map(|p| absolute(Path::new(p))).collect(),
        fields: json!({ "input": job.input_field, "keep": job.keep }),
        fingerprint,
        samples,
        skipped,
    }
}

fn absolute(path: &Path) -> String {
    if path == Path::new("-") {
        return "-".into();
    }
    std::path::absolute(path)
        .unwrap_or_else(|_| path.into())
        .display()
        .to_string()
}

/// The computing side of a run.
struct Run<'p> {
    prepared: &'p Prepared,
    machine: &'p mut dyn Machine,
    options: &'p Options<'p>,
    start: Instant,
    progress: Progress,
    computing: Duration,
    rows: Vec<u64>,
    clipped: u64,
    receipts: Vec<Receipt>,
    /// As it stands in the store.
    carry: Carry,
}

impl<'p> Run<'p> {
    fn new(
        prepared: &'p Prepared,
        machine: &'p mut dyn Machine,
        start: Instant,
        options: &'p Options<'p>,
        carry: Carry,
    ) -> Self {
        let mut run = Run {
            machine,
            options,
            rows: Vec::new(),
            receipts: Vec::new(),
            prepared,
            start,
            progress: Progress::default(),
            computing: Duration::ZERO,
            clipped: 0,
            carry: Carry::default(),
        };
        run.take_up(carry);
        run
    }

    /// Goes on from an account that the store kept.
    fn take_up(&mut self, carry: Carry) {
        self.rows.clone_from(&carry.rows);
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
        carry.clipped = self.clipped;
        carry.set_receipts(&self.receipts);
        carry.read.clone_from(&planned.then);
        json!(carry)
    }

    /// Runs the three threads; also returns what the dataset was.
    fn whole(
        mut self,
        writer: &mut StoreWriter,
        slice: Option<Slice>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<(Self, ReadSummary, Option<String>)> {
        let prepared = self.prepared;
        let dataset = slice::dataset(prepared, slice.as_ref(), prepared.needs_spans())?;
        let to_hash = prepared.job.dataset(false)?;
        let record = writer.dataset_record();
        let from = self.carry.read.clone();
        let (shards_to, shards_from) = sync_channel(1);
        let (commits_to, commits_from) = sync_channel::<ShardWriter>(0);
        std::thread::scope(|scope| {
            let reader = scope
                .spawn(move || read_ahead(prepared, dataset, from, slice.is_none(), &shards_to));
            let committer = scope.spawn(move || -> Result<_> {
                // Whoever resumes must know that the dataset is the same: before anything of it is committed.
                let fingerprint = to_hash.fingerprint()?;
                record.set(dataset_info(prepared, fingerprint.clone(), None, 0))?;
                commits_from.into_iter().try_for_each(ShardWriter::commit)?;
                Ok(fingerprint)
            });
            let computed = self.shards(shards_from, writer, commits_to, report);
            // A failed commit is why the computing thread could not hand its shard over: its error says more.
            let fingerprint = joined(committer, "the thread that commits shards")??;
            computed?;
            let read = joined(reader, "the thread that reads the dataset")??;
            if slice.is_none() {
                self.check_rows()?;
                self.check_edits()?;
            }
            Ok((self, read, fingerprint))
        })
    }

    fn shards(
        &mut self,
        planned: Receiver<PlannedShard>,
        writer: &mut StoreWriter,
        commits: SyncSender<ShardWriter>,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<()> {
        loop {
            let waiting = Instant::now();
            let Some(shard) = self.next(&planned)? else {
                return Ok(());
            };
            self.progress.waited_for_tokeniser += waiting.elapsed();
            self.progress.expected_tokens = shard.expected_tokens;
            let laid_out = self.shard(&shard, writer, report)?;
            let waiting = Instant::now();
            let handed_over = commits.send(laid_out);
            self.progress.waited_for_disk += waiting.elapsed();
            if handed_over.is_err() {
                return Ok(()); // the committer's own error is reported
            }
        }
    }

    /// The next shard that was read ahead; `None` after the last one.
    fn next(&self, planned: &Receiver<PlannedShard>) -> Result<Option<PlannedShard>> {
        const LOOK_UP: Duration = Duration::from_millis(200);
        loop {
            self.heed_stop()?;
            match planned.recv_timeout(LOOK_UP) {
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

    /// Lays one shard out and runs all its batches.
    fn shard(
        &mut self,
        planned: &PlannedShard,
        writer: &mut StoreWriter,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<ShardWriter> {
        let laying_out = Instant::now();
        let rows: Vec<_> = planned
            .samples
            .iter()
            .map(|(sample, selected)| self.prepared.tap_rows(sample, selected))
            .collect();
        let table: Vec<_> = planned
            .samples
            .iter()
            .map(|(sample, _)| sample.row.clone())
            .collect();
        let mut shard = writer.begin_shard(&table, &rows)?;
        drop((rows, table));
        self.progress.waited_for_disk += laying_out.elapsed();
        let done = shard.finished();
        if done > 0 {
            let dir = Path::new("the store");
            self.take_up(Carry::read(shard.carry(), self.prepared, dir)?);
        }
        for batch in planned.batches(self.prepared.job.batch_tokens) {
            if batch.end <= done {
                continue;
            }
            let slabs = shard.batch_slabs(batch.clone());
            for (rows, slab) in self.rows.iter_mut().zip(&slabs) {
                *rows += slab.rows.len() as u64;
            }
            self.progress.bytes += slabs
                .iter()
                .map(|s| s.activations.len() as u64)
                .sum::<u64>();
            let computing = Instant::now();
            let samples = &planned.samples[batch.clone()];
            self.clipped += samples.iter().map(|(_, s)| s.clipped).sum::<u64>();
            let receipts = run_batch(self.prepared, self.machine, samples, slabs)?;
            for (sum, receipt) in self.receipts.iter_mut().zip(&receipts) {
                sum.add(receipt);
            }
            self.computing += computing.elapsed();
            self.progress.samples += batch.len() as u64;
            self.progress.tokens += samples
                .iter()
                .map(|(s, _)| s.row.tokens.len() as u64)
                .sum::<u64>();
            let account = self.account(planned);
            shard.finish_batch_with(batch, account)?;
            self.progress.elapsed = self.start.elapsed();
            report(&self.progress);
            if let Err(stopped) = self.heed_stop() {
                shard.flush()?;
                return Err(stopped.into());
            }
        }
        Ok(shard)
    }

    /// A selection that picks nothing anywhere is a mistake, not a result.
    fn check_rows(&self) -> Result<(), Error> {
        match self.rows.iter().position(|&rows| rows == 0) {
            None => Ok(()),
            Some(tap) => Err(Error::NothingSelected {
                tap: self.prepared.taps[tap].to_string(),
                samples: self.progress.samples,
            }),
        }
    }

    /// So is an edit that touches nothing.
    fn check_edits(&self) -> Result<(), Error> {
        match self.receipts.iter().position(|receipt| receipt.rows == 0) {
            None => Ok(()),
            Some(edit) => Err(Error::EditTouchedNothing {
                edit: self.prepared.edits[edit].describe(),
                samples: self.progress.samples,
            }),
        }
    }

    fn finish(
        mut self,
        writer: StoreWriter,
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
            ..
        } = self.progress;
        let seconds = |d: Duration| (d.as_secs_f64() * 1e3).round() / 1e3;
        let shards = writer.shards();
        let edits = self.prepared.edits.iter().zip(&self.receipts);
        let receipts: Vec<_> = edits.map(|(edit, done)| edit.receipt(done)).collect();
        writer.finish(Summary {
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
            }),
            dataset: Some(dataset_info(self.prepared, fingerprint, Some(read.records), read.skipped)),
        })?;
        Ok(Extracted {
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
    let batch = Batch::pack(samples.iter().map(|(s, _)| &s.row.tokens[..]));
    let parts: Vec<Part<'_>> = samples
        .iter()
        .map(|(sample, selected)| Part {
            sample: sample.row.sample,
            selected,
            positions: 0..sample.row.tokens.len() as u32,
        })
        .collect();
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
