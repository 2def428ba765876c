//! `streamgauge extract`

use clap::Args;

use super::job_args::JobArgs;
use super::progress::Meter;
use super::{CliResult, Usage, format, out};
use crate::engine::{EditReceipt, Extracted, Prepared, Trace, extract};

/// Run a dataset through a model and store activations.
///
/// The store is a directory of safetensors files, one folder per tap, with a Parquet table of the samples and a manifest.
/// It never looks finished unless it is.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Write a timeline of the run to FILE, for chrome://tracing or Perfetto.
    #[arg(long, value_name = "FILE")]
    trace: Option<std::path::PathBuf>,
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
    let mut prepared = Prepared::open(args.job.job()?)?;
    prepared.trace = args.trace.as_ref().map(|_| Trace::default());
    let mut meter = Meter::new(args.quiet);
    let result = extract(&prepared, dir, &mut |progress| meter.show(progress));
    meter.done();
    if let (Some(path), Some(trace)) = (&args.trace, &prepared.trace) {
        let failed = |source| crate::store::Error::Io {
            what: "write",
            path: path.clone(),
            source,
        };
        trace
            .write(path)
            .map_err(|e| crate::Error::from(failed(e)))?;
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
        out(format_args!("{}\n", summary_json(&done, dir)));
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
        format::duration(seconds),
        format::count((p.tokens as f64 / seconds.max(1e-9)) as u64),
        share(done.computing),
        device,
        share(p.waited_for_tokeniser),
        share(p.waited_for_disk),
        way(done.write_path),
        receipts(&done.receipts),
        dir.display(),
    )
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
        "waited_for_gpu_s": p.waited_for_gpu.as_secs_f64(),
        "waited_for_pcie_s": p.waited_for_pcie.as_secs_f64(),
        "write_path": done.write_path,
        "skipped": done.skipped,
        "skip_reasons": done.skip_reasons,
        "clipped_rows": done.clipped,
        "edits": done.receipts,
    })
}
