//! `streamgauge analyze probe`

use clap::Args;
use serde_json::json;

use super::super::{CliResult, Failure, Usage};
use super::labelled::{self, LabelledArgs, LayerResult, Method};
use super::summed;
use crate::analysis::directions::Direction;
use crate::analysis::from_sums::ridge_direction;
use crate::analysis::{ProbeResult, Probing, RidgeResult, probe, ridge_probe};
use crate::store::statistics::StatisticsManifest;

/// Fit, layer by layer, a logistic regression that tells two kinds of samples apart, and score it on held-out ones.
///
/// Features are standardised on the training side; the strength of the L2 penalty is chosen there too, by the log-loss over five folds
/// that never part a group. Every tap must have one row per sample: extract with a selection such as @last, and --keep the labels.
///
/// Written to --out: accuracy_by_layer.svg, .png and .csv, and directions.safetensors with the weights, for rows as they are stored, as a unit
/// vector `direction.LAYER` per layer. With --ridge it is a least-squares fit instead, in closed form, which is also what `extract --stats cov
/// --label FIELD` has the sums for: of all rows then, with nothing held out and the separation in place of scores. A probe says that something can be read, not that the model reads it.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
    /// Candidates for C, the inverse of the penalty (scikit-learn's C on standardised features).
    #[arg(long, value_name = "C", value_delimiter = ',', default_values_t = Probing::default().strengths)]
    strength: Vec<f64>,
    /// Fit by ridge regression on the label (−1 or +1) instead: PENALTY·‖w‖² beside the mean squared error, on standardised features
    /// (scikit-learn's Ridge with alpha = PENALTY · rows).
    #[arg(long, value_name = "PENALTY", num_args = 0..=1, default_missing_value = "0.01", allow_negative_numbers = true, conflicts_with = "strength")]
    ridge: Option<f64>,
}

pub fn run(args: &ProbeArgs) -> CliResult {
    if let Some(bad) = args.strength.iter().find(|c| !(c.is_finite() && **c > 0.0)) {
        return Err(Usage(format!("--strength {bad}: C is a positive number")).into());
    }
    if let Some(bad) = args.ridge.filter(|p| !(p.is_finite() && *p > 0.0)) {
        return Err(Usage(format!("--ridge {bad}: the penalty is a positive number")).into());
    }
    match args.ridge {
        Some(penalty) => run_ridge(args, penalty),
        None if StatisticsManifest::is_in(&args.labelled.store) => Err(Failure::Refused(format!(
            "{} holds sums, and a logistic regression needs rows: pass --ridge, or extract without --stats",
            args.labelled.store.display()
        ))),
        None => run_logistic(args),
    }
}

fn run_ridge(args: &ProbeArgs, penalty: f64) -> CliResult {
    let method = Method {
        name: "ridge-probe",
        heading: "Ridge probe",
        pair: None,
        // The covariance, and what solving takes.
        memory: |width, _| 8 * 4 * width * width,
    };
    if StatisticsManifest::is_in(&args.labelled.store) {
        return summed::run(&args.labelled, &method, |statistics, tap, layer| {
            let [no, yes] = summed::classes(statistics, tap)?;
            Ok(ridge_direction(layer, [&no, &yes], penalty)?)
        });
    }
    labelled::run(
        &args.labelled,
        &method,
        |rows, samples, split, bootstrap| {
            ridge_probe(rows, &samples.statements, split, penalty, bootstrap)
        },
    )
}

fn run_logistic(args: &ProbeArgs) -> CliResult {
    let method = Method {
        name: "logistic-probe",
        heading: "Logistic probe",
        pair: None,
        // Standardised rows, in fewer coordinates, weighted; of a few folds and strengths at a time.
        memory: |width, samples| 8 * 8 * width * samples,
    };
    let probing = Probing {
        strengths: args.strength.clone(),
        seed: args.labelled.seed,
        ..Probing::default()
    };
    labelled::run(
        &args.labelled,
        &method,
        |rows, samples, split, bootstrap| {
            probe(rows, &samples.statements, split, &probing, bootstrap)
        },
    )
}

impl LayerResult for ProbeResult {
    const COLUMNS: &'static str = "layer  accuracy  interval         AUC    log-loss  C";

    fn direction(&self) -> Direction<'_> {
        Direction {
            layer: self.layer,
            hook: &self.hook,
            values: &self.direction,
            about: json!({
                "threshold": self.threshold,
                "norm": self.norm,
                "n_train": self.n_train,
                "strength": self.strength,
            }),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:>5}     {:.3}  {:.3} to {:.3}  {:.3}     {:.3}  {:e}",
            self.layer,
            self.accuracy,
            self.ci_low,
            self.ci_high,
            self.auc,
            self.log_loss,
            self.strength
        )
    }
}

impl LayerResult for RidgeResult {
    const COLUMNS: &'static str = "layer  accuracy  interval         AUC    length of weights";

    fn direction(&self) -> Direction<'_> {
        Direction {
            layer: self.layer,
            hook: &self.hook,
            values: &self.direction,
            about: json!({
                "threshold": self.threshold,
                "norm": self.norm,
                "n_train": self.n_train,
                "penalty": self.penalty,
            }),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:>5}     {:.3}  {:.3} to {:.3}  {:.3}  {:.4}",
            self.layer, self.accuracy, self.ci_low, self.ci_high, self.auc, self.norm
        )
    }
}
