//! Extraction: a dataset through the model into a store.
//!
//! A thread reads and tokenises ahead and plans whole shards ([`read_ahead`]); this thread lays a shard out, runs its
//! batches straight into the mapped files, and hands it to a thread that makes it durable while the next one runs.
//! Bounded channels between them give back-pressure, and each wait is counted by its cause.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::read_ahead::{PlannedShard, ReadSummary, read_ahead};
use super::selected::{BatchRows, Part};
use super::{EditReceipt, Error, Identity, Machine, Prepared, Result};
use crate::backend::{Batch, Receipt, Sink};
use crate::store::{
    DatasetInfo, ModelInfo, Provenance, ShardWriter, StoreWriter, Summary, TapSlab,
};

/// How far a run is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub samples: u64,
    pub tokens: u64,
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
    let start = Instant::now();
    let started = SystemTime::now();
    let mut writer = StoreWriter::create(
        out,
        provenance(prepared, machine.identity()),
        prepared.infos.clone(),
        &prepared.job.keep,
    )?;
    match run(prepared, machine, &mut writer, start, report) {
        Ok((run, read, fingerprint)) => run.finish(writer, read, fingerprint, started),
        Err(error) => {
            writer.abandon();
            Err(error)
        }
    }
}

/// Runs the three threads; also returns what the dataset was.
fn run<'p>(
    prepared: &'p Prepared,
    machine: &'p mut dyn Machine,
    writer: &mut StoreWriter,
    start: Instant,
    report: &mut dyn FnMut(&Progress),
) -> Result<(Run<'p>, ReadSummary, Option<String>)> {
    let dataset = prepared.job.dataset(prepared.needs_spans())?;
    let to_hash = prepared.job.dataset(false)?;
    let (shards_to, shards_from) = sync_channel(1);
    let (commits_to, commits_from) = sync_channel::<ShardWriter>(0);
    std::thread::scope(|scope| {
        let fingerprint = scope.spawn(move || to_hash.fingerprint());
        let reader = scope.spawn(move || read_ahead(prepared, dataset, &shards_to));
        let committer =
            scope.spawn(move || commits_from.into_iter().try_for_each(ShardWriter::commit));
        let mut run = Run::new(prepared, machine, start);
        let computed = run.shards(shards_from, writer, commits_to, report);
        // A failed commit is why the computing thread could not hand its shard over: its error says more.
        joined(committer, "the thread that commits shards")??;
        computed?;
        let read = joined(reader, "the thread that reads the dataset")??;
        let fingerprint = joined(fingerprint, "the thread that hashes the dataset")??;
        run.check_rows()?;
        run.check_edits()?;
        Ok((run, read, fingerprint))
    })
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
        store_dtype: job.stored().to_string(),
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
    start: Instant,
    progress: Progress,
    computing: Duration,
    rows: Vec<u64>,
    clipped: u64,
    shards: usize,
    receipts: Vec<Receipt>,
}

impl<'p> Run<'p> {
    fn new(prepared: &'p Prepared, machine: &'p mut dyn Machine, start: Instant) -> Self {
        Run {
            machine,
            rows: vec![0; prepared.taps.len()],
            receipts: vec![Receipt::default(); prepared.edits.len()],
            prepared,
            start,
            progress: Progress::default(),
            computing: Duration::ZERO,
            clipped: 0,
            shards: 0,
        }
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
            let Ok(shard) = planned.recv() else {
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
            self.shards += 1;
        }
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
        for batch in planned.batches(self.prepared.job.batch_tokens) {
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
            shard.finish_batch(batch.clone())?;
            self.progress.samples += batch.len() as u64;
            self.progress.tokens += samples
                .iter()
                .map(|(s, _)| s.row.tokens.len() as u64)
                .sum::<u64>();
            self.progress.elapsed = self.start.elapsed();
            report(&self.progress);
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
        let edits = self.prepared.edits.iter().zip(&self.receipts);
        let receipts: Vec<_> = edits.map(|(edit, done)| edit.receipt(done)).collect();
        writer.finish(Summary {
            receipts: receipts.iter().map(|r| json!(r)).collect(),
            timing: json!({
                "started_unix": started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
                "wall_s": seconds(elapsed),
                "compute_s": seconds(self.computing),
                "tokens": tokens,
                "tokens_per_s": (tokens as f64 / elapsed.as_secs_f64()).round(),
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
            shards: self.shards,
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
