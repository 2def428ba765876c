//! `streamgauge verify`

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliResult, Failure, Usage, format, out};
use crate::engine::{Device, Recomputed, recompute_on};
use crate::store::statistics::{Statistics, StatisticsManifest};
use crate::store::{Manifest, Report, State, verify};

/// Check that a store is what was written, and, if asked, that the model still gives it.
///
/// Also of a folder of statistics (`extract --stats`), without --recompute.
///
/// Reads every listed file once and compares structure and checksums with the manifest. With --recompute, K random samples
/// are read from the dataset again and run through the model, one at a time, and their rows compared with the stored ones:
/// bit by bit where device and version compute as those that made the store, else within a gate, which is told.
/// Exit status: 0 all well, 1 when anything is wrong or the store is partial; what it is stands on stdout.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The store.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Run K random samples again (all, if there are fewer).
    #[arg(long, value_name = "K", default_value_t = 0)]
    recompute: usize,
    /// Which random samples.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Where to run them: auto, cpu, cuda or cuda:N. `auto` is where the store was made, if that can be had.
    #[arg(
        long,
        value_name = "DEVICE",
        default_value = "auto",
        requires = "recompute"
    )]
    device: Device,
    /// Where the model is now, if it was moved.
    #[arg(long, value_name = "M", requires = "recompute")]
    model: Option<String>,
    /// Where the dataset is now, if it was moved.
    #[arg(long, value_name = "F", requires = "recompute", num_args = 1..)]
    data: Vec<String>,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

/// Compares the checksums of a folder of statistics.
fn check_statistics(args: &VerifyArgs) -> CliResult {
    if args.recompute > 0 {
        let what = "--recompute of statistics: they hold no rows to compare; leave it out";
        return Err(Usage(what.into()).into());
    }
    let statistics = Statistics::open(&args.dir)?;
    let bytes = statistics.check()?;
    let files = statistics.taps().len();
    if args.json {
        let value = serde_json::json!({ "ok": true, "state": "complete", "files": files, "bytes": bytes, "problems": [] });
        out(format_args!("{value}\n"));
    } else {
        out(format_args!(
            "{}, {} bytes, every checksum agrees\n",
            format::counted(files as u64, "file"),
            format::count(bytes)
        ));
    }
    Ok(())
}

pub fn run(args: &VerifyArgs) -> CliResult {
    if StatisticsManifest::is_in(&args.dir) {
        return check_statistics(args);
    }
    let report = check_files(args)?;
    // Rows of a damaged file would only be compared with the damage.
    let recomputed = if args.recompute > 0 && report.ok() && report.state == State::Complete {
        let data = (!args.data.is_empty()).then_some(&args.data[..]);
        Some(recompute_on(
            args.device,
            &args.dir,
            args.recompute,
            args.seed,
            args.model.as_deref(),
            data,
        )?)
    } else {
        None
    };
    let complete = report.state == State::Complete;
    let ok =
        complete && report.ok() && recomputed.as_ref().is_none_or(|r| r.differences.is_empty());
    if args.json {
        let value = serde_json::json!({
            "ok": ok,
            "state": report.state,
            "files": report.files,
            "bytes": report.bytes,
            "problems": report.problems,
            "warnings": report.warnings,
            "recomputed": recomputed,
        });
        out(format_args!("{value}\n"));
    } else {
        out(text(args, &report, recomputed.as_ref()));
    }
    if ok { Ok(()) } else { Err(Failure::Told) }
}

/// Checks the files, with a bar on a terminal.
fn check_files(args: &VerifyArgs) -> Result<Report, Failure> {
    let manifest = Manifest::read(&args.dir)?;
    let of_shard = |s: &crate::store::ShardEntry| {
        s.taps.iter().map(|t| t.bytes).sum::<u64>() + s.samples_file.bytes
    };
    let bar = if args.quiet || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        let style = ProgressStyle::with_template(
            "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}",
        );
        ProgressBar::new(manifest.shards.iter().map(of_shard).sum())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    };
    let report = verify(&args.dir, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(report?)
}

fn text(args: &VerifyArgs, report: &Report, recomputed: Option<&Recomputed>) -> String {
    let mut lines = report.problems.clone();
    lines.extend(report.warnings.iter().map(|w| format!("warning: {w}")));
    let state = if report.state == State::Partial {
        ", of a partial store"
    } else {
        ""
    };
    let checked = format!(
        "{}, {} bytes{state}",
        format::counted(report.files as u64, "file"),
        format::count(report.bytes)
    );
    lines.push(if report.ok() {
        format!("{checked}: every checksum agrees")
    } else {
        format!(
            "{checked}: {}",
            format::counted(report.problems.len() as u64, "problem")
        )
    });
    match recomputed {
        Some(recomputed) => lines.extend(said(recomputed)),
        None if args.recompute > 0 => {
            let why = if report.ok() {
                "the store is partial"
            } else {
                "files are damaged"
            };
            lines.push(format!("nothing was recomputed, because {why}"));
        }
        None => {}
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What the comparison says, in words.
fn said(r: &Recomputed) -> Vec<String> {
    let mut lines: Vec<String> = r
        .differences
        .iter()
        .map(|d| format!("recomputed rows differ: {d}"))
        .collect();
    let ran = format!(
        "{} run again, {}",
        format::counted(r.samples, "sample"),
        format::counted(r.rows, "row")
    );
    let good = r.differences.is_empty();
    lines.push(match (r.exact, good) {
        (true, true) => format!("{ran}: every bit is the same"),
        (true, false) => format!("{ran}: bits differ (relative error up to {:.1e}) where the same device and version must give the same", r.worst),
        (false, true) => format!("{ran}: relative error at most {:.1e}, within what another machine or version may differ by", r.worst),
        (false, false) => format!("{ran}: relative error up to {:.1e}, more than another machine or version explains", r.worst),
    });
    if let Some(why) = &r.why_not_exact {
        let gate = r.gate.as_deref().unwrap_or_default();
        lines.push(format!("bits were not compared: {why}"));
        lines.push(format!("the gate instead: {gate}"));
    }
    lines
}
