//! `streamgauge merge`

use std::path::PathBuf;

use clap::Args;

use super::{CliResult, format, out};
use crate::engine::merge_receipts;
use crate::store::merge;

/// Join the stores of a dataset's slices (`extract --shard i/n`) into one.
///
/// The slices are told by their manifests, so their order does not matter; they must be of one job, each once and none missing. Files are hard-linked, so
/// nothing is copied and the slices may be removed afterwards. Every sample has the bits that one run over the whole dataset gives it.
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
