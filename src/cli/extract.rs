//! `streamgauge extract`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::devices::{self, Devices, Worker};
use super::job_args::JobArgs;
use super::model_args::told;
use super::progress::{Meter, ProgressArg};
use super::{CliResult, Failure, Usage, format, out, statistics};
use crate::engine::{
    EditReceipt, Ending, Error, Extracted, Machine, Options, Prepared, Progress, Trace,
    extract_with,
};
use crate::store::{Manifest, verify};
use crate::sys::stop;

/// Run a dataset through a model and store activations.
///
/// The store is a directory of safetensors files, one folder per tap, with a Parquet table of the samples and a manifest.
/// It never looks finished unless it is. A run that was stopped (Ctrl-C ends it after the current batch, with status 130), killed or
/// out of disk goes on with --resume, and ends with the same bits as one that was never stopped.
#[derive(Debug, Clone, Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    pub(super) job: JobArgs,
    /// Run on several devices, by a process each: all (every GPU), a list of GPUs as in 0,1, or processes on the CPU as in 4xcpu. Slices lie
    /// in OUT.slices/ until all are joined into OUT. A process that dies is started once more; --resume goes on, on any number of devices.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["device", "shard", "trace"])]
    pub(super) devices: Option<Devices>,
    /// What `--devices` puts behind the command line of the processes that it starts.
    #[arg(long, value_name = "WORKER", hide = true, requires = "devices")]
    pub(super) worker: Option<Worker>,
    /// Make finished batches durable at least this often, in seconds: what a crash can lose. 0: every batch.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    pub(super) commit_every: f64,
    /// Write a timeline of the run to FILE, for chrome://tracing or Perfetto.
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
    /// How far it is: for people, or for a program.
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) progress: ProgressArg,
    /// No progress for people, no summary.
    #[arg(long)]
    pub(super) quiet: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

pub fn run(args: &ExtractArgs) -> CliResult {
    if let Some(kinds) = args.job.kinds() {
        return statistics::run(args, &kinds);
    }
    match (&args.devices, &args.worker) {
        (Some(devices), None) => devices::run(args, devices),
        (_, Some(worker)) => run_here(&as_worker(args, worker)?),
        (None, None) => run_here(args),
    }
}

impl ExtractArgs {
    /// The timeline to be kept, if one is asked for; that its file can be written is found out before the run, not after it.
    pub(super) fn begin_trace(&self) -> Result<Option<Trace>, Failure> {
        let Some(path) = &self.trace else {
            return Ok(None);
        };
        let file = std::fs::File::create(path);
        file.map_err(|e| unwritable_trace(path, &e))?;
        Ok(Some(Trace::default()))
    }

    pub(super) fn write_trace(&self, prepared: &Prepared) -> CliResult {
        match (&self.trace, &prepared.trace) {
            (Some(path), Some(trace)) => trace.write(path).map_err(|e| unwritable_trace(path, &e)),
            _ => Ok(()),
        }
    }

    /// Tells of records that were passed over, and of rows that there are not.
    pub(super) fn tell_of_skipped(&self, done: &Extracted) {
        if done.skipped > 0 {
            eprintln!("skipped {}:", format::counted(done.skipped, "bad record"));
            for reason in &done.skip_reasons {
                eprintln!("  {reason}");
            }
        }
        if done.clipped > 0 {
            eprintln!(
                "clipped {} that selections asked for outside their samples",
                format::counted(done.clipped, "row")
            );
        }
    }
}

fn unwritable_trace(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    Failure::Refused(format!(
        "--trace {path}: {error}; give a file that can be written"
    ))
}

/// What a worker of `--devices` does of the command.
fn as_worker(args: &ExtractArgs, worker: &Worker) -> Result<ExtractArgs, Failure> {
    worker.end_with_supervisor()?;
    let mut args = args.clone();
    args.job.out = args.job.out.map(|out| worker.store(&out)).transpose()?;
    args.job.shard = Some(format!("{}/{}", worker.slice, worker.of));
    args.job.model.device = worker.device;
    args.job.resume = true;
    args.progress = ProgressArg::Json;
    args.quiet = true;
    args.json = false;
    Ok(args)
}

fn run_here(args: &ExtractArgs) -> CliResult {
    let Some(dir) = &args.job.out else {
        return Err(Usage("--out DIR is missing: say where the store goes".into()).into());
    };
    let (mut prepared, place) = args.job.open()?;
    prepared.trace = args.begin_trace()?;
    // What is gone on with is computed as it was begun: by the same library's algorithm, on a GPU.
    let begun = args.job.resume.then(|| Manifest::read(dir).ok()).flatten();
    let record = begun.map(|manifest| manifest.provenance.numeric_record);
    let mut opened = place.open(&prepared, record.as_ref())?;
    if let Some(line) = told(&place, &opened).filter(|_| !args.quiet) {
        eprintln!("{line}");
    }
    let mut meter = Meter::of(args.progress, args.quiet);
    let machine = &mut *opened.machine;
    let ending = run_job(args, &prepared, machine, dir, &mut |progress| {
        meter.show(progress)
    });
    meter.done();
    args.write_trace(&prepared)?;
    let done = match ending? {
        Ending::Done(done) => done,
        Ending::Already(manifest) => {
            if args.progress == ProgressArg::Json {
                meter.show(&whole(&manifest));
            }
            return recheck(dir, &manifest, args.json, args.quiet);
        }
    };
    args.tell_of_skipped(&done);
    if args.json {
        let mut value = summary_json(&done, dir);
        value["device"] = opened.machine.identity().device.into();
        value["upload_bytes_per_s"] = opened.upload.map(|upload| upload.bytes_per_s()).into();
        out(format_args!("{value}\n"));
    } else if !args.quiet {
        out(summary(&done, dir));
    }
    Ok(())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n >= 0.0 && Duration::try_from_secs_f64(n).is_ok() => Ok(n),
        _ => Err("write a number of seconds, at least 0".into()),
    }
}

/// Runs the job until its end, or until a signal asks it to stop.
fn run_job(
    args: &ExtractArgs,
    prepared: &Prepared,
    machine: &mut dyn Machine,
    dir: &Path,
    report: &mut dyn FnMut(&Progress),
) -> Result<Ending, Failure> {
    stop::on_signals().map_err(|e| Failure::Refused(format!("cannot take signals: {e}")))?;
    let options = Options {
        resume: args.job.resume,
        commit_every: Some(Duration::from_secs_f64(args.commit_every)),
        stop: &|| stop::asked().is_some(),
    };
    let ending = extract_with(prepared, machine, dir, &options, report);
    ending.map_err(|error| match (error, stop::asked()) {
        (crate::Error::Engine(error @ Error::Stopped { .. }), Some(status)) => {
            Failure::Stopped(error.to_string(), status)
        }
        (error, _) => error.into(),
    })
}

/// `--resume` of a store that is complete: there is nothing to run, and its files are rechecked.
pub(super) fn recheck(dir: &Path, manifest: &Manifest, json: bool, quiet: bool) -> CliResult {
    let report = verify(dir, &|_| ())?;
    if json {
        out(format_args!(
            "{}\n",
            serde_json::json!({
                "store": dir,
                "already_complete": true,
                "samples": manifest.samples,
                "shards": manifest.shards.len(),
                "files": report.files,
                "bytes": report.bytes,
                "problems": report.problems,
            })
        ));
    } else {
        report
            .problems
            .iter()
            .for_each(|problem| out(format_args!("{problem}\n")));
        if report.ok() && !quiet {
            out(format_args!(
                "{} was complete already: {}, {} bytes, every checksum agrees\n",
                dir.display(),
                format::counted(report.files as u64, "file"),
                format::count(report.bytes)
            ));
        }
    }
    if report.ok() {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "{} is complete and damaged: remove it and run again without --resume",
        dir.display()
    )))
}

/// How far a complete store is.
fn whole(manifest: &Manifest) -> Progress {
    let tokens = manifest.timing["tokens"].as_u64().unwrap_or(0);
    let taps = manifest.shards.iter().flat_map(|shard| &shard.taps);
    Progress {
        samples: manifest.samples,
        tokens,
        resumed: (manifest.samples, tokens),
        expected_tokens: Some(tokens),
        bytes: taps.map(|tap| tap.bytes).sum(),
        ..Progress::default()
    }
}

fn summary(done: &Extracted, dir: &Path) -> String {
    let p = &done.progress;
    let seconds = p.elapsed.as_secs_f64();
    let share = |d: Duration| format!("{:.0} %", 100.0 * d.as_secs_f64() / seconds.max(1e-9));
    let on_device = !(p.waited_for_gpu + p.waited_for_pcie).is_zero();
    let device = if on_device {
        let (gpu, pcie) = (share(p.waited_for_gpu), share(p.waited_for_pcie));
        format!(" (of it waiting for the GPU {gpu}, for PCIe {pcie})")
    } else {
        String::new()
    };
    format!(
        "{}, {}, {} in {}, {}, {} in {} ({} tokens/s)\n\
         time: model {}{}, waiting for the tokeniser {}, waiting for the disk {}; rows {}\n\
         {}{}\n",
        format::counted(p.samples, "sample"),
        format::counted(p.tokens, "token"),
        format::counted(done.rows.iter().sum(), "row"),
        format::counted(done.rows.len() as u64, "tap"),
        format::counted(done.shards as u64, "shard"),
        format::bytes(p.bytes),
        format_args!("{}{}", format::duration(seconds), before(p)),
        format::count((p.tokens.saturating_sub(p.resumed.1) as f64 / seconds.max(1e-9)) as u64),
        share(done.computing),
        device,
        share(p.waited_for_tokeniser),
        share(p.waited_for_disk),
        way(done.write_path),
        receipts(&done.receipts),
        dir.display(),
    )
}

/// What of the samples an earlier run had done.
fn before(p: &Progress) -> String {
    match p.resumed.0 {
        0 => String::new(),
        n => format!(", {} of them before", format::count(n)),
    }
}

/// How rows got to the store, in words.
fn way(write_path: &str) -> &'static str {
    match write_path {
        "registered" => "copied into registered memory",
        "io_uring" => "written past the page cache (io_uring)",
        "pwrite" => "written by pwrite",
        "live" => "given to the consumer",
        _ => "written into mapped files",
    }
}

/// A line for each edit: what it was, what it touched.
pub(super) fn receipts(receipts: &[EditReceipt]) -> String {
    let line = |r: &EditReceipt| {
        let note = r
            .note
            .as_ref()
            .map_or_else(String::new, |n| format!(" ({n})"));
        let norms = match r.mean_norm_before.is_nan() {
            true => "norms not known".into(),
            false => format!(
                "mean norm {:.4} before, {:.4} after",
                r.mean_norm_before, r.mean_norm_after
            ),
        };
        let rows = format::counted(r.rows, "row");
        format!("edit {}: at {}, {rows}, {norms}{note}\n", r.edit, r.at)
    };
    receipts.iter().map(line).collect()
}

fn summary_json(done: &Extracted, dir: &Path) -> serde_json::Value {
    let p = &done.progress;
    serde_json::json!({
        "store": dir,
        "samples": p.samples,
        "resumed_samples": p.resumed.0,
        "tokens": p.tokens,
        "rows": done.rows,
        "shards": done.shards,
        "activation_bytes": p.bytes,
        "wall_s": p.elapsed.as_secs_f64(),
        "compute_s": done.computing.as_secs_f64(),
        "waited_for_tokeniser_s": p.waited_for_tokeniser.as_secs_f64(),
        "waited_for_disk_s": p.waited_for_disk.as_secs_f64(),
        "waited_for_gpu_s": p.waited_for_gpu.as_secs_f64(),
        "waited_for_pcie_s": p.waited_for_pcie.as_secs_f64(),
        "write_path": done.write_path,
        "skipped": done.skipped,
        "skip_reasons": done.skip_reasons,
        "clipped_rows": done.clipped,
        "edits": done.receipts,
    })
}
