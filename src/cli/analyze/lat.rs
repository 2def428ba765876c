//! `streamgauge analyze lat`

use clap::Args;
use serde_json::json;

use super::super::CliResult;
use super::labelled::{self, LabelledArgs, LayerResult, Method};
use super::summed;
use crate::analysis::directions::Direction;
use crate::analysis::from_sums::lat_of_sums;
use crate::analysis::lat::pairs;
use crate::analysis::{LatResult, lat};
use crate::store::statistics::StatisticsManifest;

/// Find, layer by layer, the direction in which the two samples of a pair differ (LAT, Zou et al. 2023), and score it on held-out pairs.
///
/// The direction is the first principal component, about zero, of the differences between the true and the false sample of each
/// training pair; most training pairs settle its sign. Two samples make a pair when they have the same value in the field --pair
/// and opposite labels. Every tap must have one row per sample: extract with @last, and --keep label and pair.
///
/// Two scores are given. Matched: the share of held-out pairs whose true sample lies further along; any word that differs within a pair
/// and leaks into later tokens is enough for 1. Unpaired, the one that is drawn: held-out samples one by one against the midpoint of the
/// training means. Near-equal eigenvalues (λ₂/λ₁ near 1) or a small cosine with the mean difference mean that the direction is not a settled one.
///
/// Of `extract --stats pairdiff` the direction is that of all pairs, its sign the mean difference's, and nothing is held out: instead of a
/// score there is the separation, the mean of the differences along the direction over their deviation.
#[derive(Debug, Args)]
pub struct LatArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
    /// Kept field that the two samples of a pair share.
    #[arg(long, value_name = "FIELD", default_value = "pair")]
    pair: String,
}

pub fn run(args: &LatArgs) -> CliResult {
    let method = Method {
        name: "lat",
        heading: "LAT direction",
        pair: Some(&args.pair),
        // The second moment, its eigenvectors and what finding these takes, or as much of the pairs where these are fewer.
        memory: |width, samples| 8 * 4 * width * width.min(samples.max(1024)),
    };
    if StatisticsManifest::is_in(&args.labelled.store) {
        return summed::run(&args.labelled, &method, |statistics, tap, layer| {
            let [differences, both] = summed::pairs(statistics, tap)?;
            Ok(lat_of_sums(layer, &differences, &both)?)
        });
    }
    labelled::run(
        &args.labelled,
        &method,
        |rows, samples, split, bootstrap| {
            let pairs = pairs(&samples.pairs, &samples.statements.labels)?;
            lat(rows, &samples.statements, &pairs, split, bootstrap)
        },
    )
}

impl LayerResult for LatResult {
    const COLUMNS: &'static str =
        "layer  unpaired  interval         AUC    matched  λ₂/λ₁  |cos mean difference|";

    fn direction(&self) -> Direction<'_> {
        Direction {
            layer: self.layer,
            hook: &self.hook,
            values: &self.direction,
            about: json!({
                "threshold": self.threshold,
                "norm": self.norm,
                "n_train": self.n_train,
                "eigenvalue_ratio": self.eigenvalue_ratio,
                "cos_mean_difference": self.cos_mean_difference,
                "sign_votes": self.sign_votes,
            }),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:>5}     {:.3}  {:.3} to {:.3}  {:.3}    {:.3}  {:.3}  {:.3}",
            self.layer,
            self.accuracy,
            self.ci_low,
            self.ci_high,
            self.auc,
            self.matched_accuracy,
            self.eigenvalue_ratio,
            self.cos_mean_difference
        )
    }
}
