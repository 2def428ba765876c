//! `streamgauge merge`

use std::path::PathBuf;

use clap::Args;

use super::{CliResult, Usage, format, out};
use crate::engine::merge_receipts;
use crate::store::merge;
use crate::store::statistics::{StatisticsManifest, merge_statistics};

/// Join the stores of a dataset's slices (`extract --shard i/n`) into one.
///
/// The slices are told by their manifests, so their order does not matter; they must be of one job, each once and none missing. Files are hard-linked, so
/// nothing is copied and the slices may be removed afterwards. Every sample has the bits that one run over the whole dataset gives it.
///
/// Folders of statistics (`extract --stats`) are added up: counts are exact, sums to the last bits of f64 those of one run.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Where the whole goes: a directory that is empty or not there.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The slices' stores.
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Copy the files: for stores on another file system.
    #[arg(long)]
    copy: bool,
    /// Print what was merged as JSON.
    #[arg(long)]
    json: bool,
    /// No summary.
    #[arg(long)]
    quiet: bool,
}

pub fn run(args: &MergeArgs) -> CliResult {
    if args.dirs.iter().any(|dir| StatisticsManifest::is_in(dir)) {
        return add_statistics(args);
    }
    let merged = merge(&args.out, &args.dirs, args.copy, &merge_receipts)?;
    if args.json {
        let value = serde_json::json!({
            "store": args.out,
            "stores": args.dirs.len(),
            "shards": merged.shards,
            "samples": merged.samples,
            "bytes": merged.bytes,
        });
        out(format_args!("{value}\n"));
    } else if !args.quiet {
        out(format_args!(
            "{}, {}, {} from {}\n{}\n",
            format::counted(merged.samples, "sample"),
            format::counted(merged.shards as u64, "shard"),
            format::bytes(merged.bytes),
            format::counted(args.dirs.len() as u64, "store"),
            args.out.display()
        ));
    }
    Ok(())
}

/// The statistics of slices, added up.
fn add_statistics(args: &MergeArgs) -> CliResult {
    if args.copy {
        let what = "--copy with statistics: they are added up, not linked; leave it out";
        return Err(Usage(what.into()).into());
    }
    let whole = merge_statistics(&args.out, &args.dirs, &merge_receipts)?;
    let bytes: u64 = whole.taps.iter().map(|tap| tap.bytes).sum();
    if args.json {
        let value = serde_json::json!({
            "statistics": args.out,
            "folders": args.dirs.len(),
            "samples": whole.counted.samples,
            "tokens": whole.counted.tokens,
            "bytes": bytes,
        });
        out(format_args!("{value}\n"));
    } else if !args.quiet {
        out(format_args!(
            "{}, sums of {} ({}) from {}\n{}\n",
            format::counted(whole.counted.samples, "sample"),
            format::counted(whole.taps.len() as u64, "tap"),
            format::bytes(bytes),
            format::counted(args.dirs.len() as u64, "folder"),
            args.out.display()
        ));
    }
    Ok(())
}
