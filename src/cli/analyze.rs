//! `streamgauge analyze`

mod mean_diff;

use clap::{Args, Subcommand};

use super::CliResult;

/// Analyse what a store holds.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Subcommand)]
enum Method {
    MeanDiff(mean_diff::MeanDiffArgs),
}

pub fn run(args: &AnalyzeArgs) -> CliResult {
    match &args.method {
        Method::MeanDiff(args) => mean_diff::run(args),
    }
}
