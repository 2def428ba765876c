//! `streamgauge analyze`

mod compare;
mod dla;
mod labelled;
mod lat;
mod mean_diff;
mod pca;
mod pictures;
mod probe;
mod project;
mod rows;
mod stored_rows;
mod summed;
mod top;

use clap::{Args, Subcommand};

pub use labelled::make_out;
pub use pictures::{axis, curves, heatmap, save};

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
    Pca(pca::PcaArgs),
    Project(project::ProjectArgs),
    Compare(compare::CompareArgs),
    Dla(dla::DlaArgs),
    Top(top::TopArgs),
}

pub fn run(args: &AnalyzeArgs) -> CliResult {
    match &args.method {
        Method::MeanDiff(args) => mean_diff::run(args),
        Method::Lat(args) => lat::run(args),
        Method::Probe(args) => probe::run(args),
        Method::Pca(args) => pca::run(args),
        Method::Project(args) => project::run(args),
        Method::Compare(args) => compare::run(args),
        Method::Dla(args) => dla::run(args),
        Method::Top(args) => top::run(args),
    }
}
