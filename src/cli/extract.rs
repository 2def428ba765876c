//! `streamgauge extract`

use std::path::PathBuf;

use clap::Args;

use super::device_args::told;
use super::job_args::JobArgs;
use super::progress::Meter;
use super::{CliResult, Failure, Usage, format, out};
use crate::engine::{EditReceipt, Extracted, extract_on, trace};

/// Run a dataset through a model and store activations.
///
/// The store is a directory of safetensors files, one folder per tap, with a Parquet table of the samples and a manifest.
/// It never looks finished unless it is.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Write a timeline of what the host does, as Chrome's tracing and Perfetto read it: batches, each hook point's op, waits.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// No progress, no summary.
    #[arg(long)]
    quiet: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ExtractArgs) -> CliResult {
    let Some(dir) = &args.job.out else {
        return Err(Usage("--out DIR is missing: say where the store goes".into()).into());
    };
    let (prepared, place) = args.job.open()?;
    let mut opened = place.open(&prepared, None)?;
    if let Some(line) = told(&place, &opened).filter(|_| !args.quiet) {
        eprintln!("{line}");
    }
    if args.trace.is_some() {
        trace::start();
    }
    let mut meter = Meter::new(args.quiet);
    let result = extract_on(&prepared, &mut *opened.machine, dir, &mut |progress| {
        meter.show(progress);
    });
    meter.done();
    if let Some(path) = &args.trace {
        let told = |e| Failure::Refused(format!("--trace {}: {e}", path.display()));
        trace::finish(path).map_err(told)?;
    }
    let done = result?;
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

fn summary(done: &Extracted, dir: &std::path::Path) -> String {
    let p = &done.progress;
    let seconds = p.elapsed.as_secs_f64();
    let share =
        |d: std::time::Duration| format!("{:.0} %", 100.0 * d.as_secs_f64() / seconds.max(1e-9));
    format!(
        "{}, {}, {} in {}, {}, {} in {} ({} tokens/s)\n\
         time: model {}, waiting for the tokeniser {}, waiting for the disk {}\n\
         {}{}\n",
        format::counted(p.samples, "sample"),
        format::counted(p.tokens, "token"),
        format::counted(done.rows.iter().sum(), "row"),
        format::counted(done.rows.len() as u64, "tap"),
        format::counted(done.shards as u64, "shard"),
        format::bytes(p.bytes),
        format::duration(seconds),
        format::count((p.tokens as f64 / seconds.max(1e-9)) as u64),
        share(done.computing),
        share(p.waited_for_tokeniser),
        share(p.waited_for_disk),
        receipts(&done.receipts),
        dir.display(),
    )
}

/// A line for each edit: what it was, what it touched.
pub(super) fn receipts(receipts: &[EditReceipt]) -> String {
    let line = |r: &EditReceipt| {
        let note = r
            .note
            .as_ref()
            .map_or_else(String::new, |n| format!(" ({n})"));
        format!(
            "edit {}: at {}, {}, mean norm {:.4} before, {:.4} after{note}\n",
            r.edit,
            r.at,
            format::counted(r.rows, "row"),
            r.mean_norm_before,
            r.mean_norm_after,
        )
    };
    receipts.iter().map(line).collect()
}

fn summary_json(done: &Extracted, dir: &std::path::Path) -> serde_json::Value {
    let p = &done.progress;
    serde_json::json!({
        "store": dir,
        "samples": p.samples,
        "tokens": p.tokens,
        "rows": done.rows,
        "shards": done.shards,
        "activation_bytes": p.bytes,
        "wall_s": p.elapsed.as_secs_f64(),
        "compute_s": done.computing.as_secs_f64(),
        "waited_for_tokeniser_s": p.waited_for_tokeniser.as_secs_f64(),
        "waited_for_disk_s": p.waited_for_disk.as_secs_f64(),
        "skipped": done.skipped,
        "skip_reasons": done.skip_reasons,
        "clipped_rows": done.clipped,
        "edits": done.receipts,
    })
}
