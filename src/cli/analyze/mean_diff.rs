//! `streamgauge analyze mean-diff`

use clap::Args;
use serde_json::json;

use super::super::CliResult;
use super::labelled::{self, LabelledArgs, LayerResult, Method};
use super::summed;
use crate::analysis::directions::Direction;
use crate::analysis::from_sums::mean_difference;
use crate::analysis::{MassMeanResult, mass_mean};
use crate::store::statistics::StatisticsManifest;

/// Find, layer by layer, the direction between the means of two kinds of samples, and score it on held-out ones.
///
/// The direction is the mean row of the samples labelled true minus the mean row of those labelled false (mass mean,
/// Marks and Tegmark 2023); a held-out sample is called true when its row lies beyond the midpoint of the two means.
/// Every tap must have one row per sample: extract with a selection such as @last, and --keep the labels.
///
/// Samples of one group stay on one side of the split; topics are spread over both. The interval is the 95 % BCa bootstrap
/// over held-out groups. Written to --out: accuracy_by_layer.svg, .png and .csv, and directions.safetensors with a unit
/// vector `direction.LAYER` per layer. Each layer is scored by itself: the highest of many held-out accuracies is
/// higher than what that layer would reach on new samples.
///
/// Of `extract --stats mean --label FIELD` the direction is that of all rows, of which a sample may have any number, and nothing is held
/// out: instead of an accuracy there is, with --stats cov, the separation, the distance of the means over the rows' deviation along it.
#[derive(Debug, Args)]
pub struct MeanDiffArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
}

pub fn run(args: &MeanDiffArgs) -> CliResult {
    let method = Method {
        name: "mass-mean",
        heading: "Mean-difference direction",
        pair: None,
        // Two means, and what is drawn of single rows.
        memory: |width, _| 64 * width,
    };
    if StatisticsManifest::is_in(&args.labelled.store) {
        return summed::run(&args.labelled, &method, |statistics, tap, layer| {
            let [no, yes] = summed::classes(statistics, tap)?;
            Ok(mean_difference(layer, [&no, &yes])?)
        });
    }
    labelled::run(
        &args.labelled,
        &method,
        |rows, samples, split, bootstrap| mass_mean(rows, &samples.statements, split, bootstrap),
    )
}

impl LayerResult for MassMeanResult {
    const COLUMNS: &'static str = "layer  accuracy  interval         AUC    distance of means";

    fn direction(&self) -> Direction<'_> {
        Direction {
            layer: self.layer,
            hook: &self.hook,
            values: &self.direction,
            about: json!({ "threshold": self.threshold, "norm": self.norm, "n_train": self.n_train }),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:>5}     {:.3}  {:.3} to {:.3}  {:.3}  {:.4}",
            self.layer, self.accuracy, self.ci_low, self.ci_high, self.auc, self.norm
        )
    }
}
