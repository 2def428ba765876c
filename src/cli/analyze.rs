//! `streamgauge analyze`

mod labelled;
mod lat;
mod mean_diff;
mod probe;

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
    Lat(lat::LatArgs),
    Probe(probe::ProbeArgs),
}

pub fn run(args: &AnalyzeArgs) -> CliResult {
    match &args.method {
        Method::MeanDiff(args) => mean_diff::run(args),
        Method::Lat(args) => lat::run(args),
        Method::Probe(args) => probe::run(args),
    }
}
