//! `streamgauge analyze probe`

use clap::Args;
use serde_json::json;

use super::super::{CliResult, Usage};
use super::labelled::{self, LabelledArgs, LayerResult, Method, Score};
use crate::analysis::directions::Direction;
use crate::analysis::{ProbeResult, Probing, probe};

/// Fit, layer by layer, a logistic regression that tells two kinds of samples apart, and score it on held-out ones.
///
/// Features are standardised on the training side; the strength of the L2 penalty is chosen there too, by the log-loss over five folds
/// that never part a group. Every tap must have one row per sample: extract with a selection such as @last, and --keep the labels.
///
/// Written to --out: accuracy_by_layer.svg, .png and .csv, and directions.safetensors with the weights, for rows as they are stored, as a unit
/// vector `direction.LAYER` per layer. A probe says that something can be read, not that the model reads it.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
    /// Candidates for C, the inverse of the penalty (scikit-learn's C on standardised features).
    #[arg(long, value_name = "C", value_delimiter = ',', default_values_t = Probing::default().strengths)]
    strength: Vec<f64>,
}

pub fn run(args: &ProbeArgs) -> CliResult {
    if let Some(bad) = args.strength.iter().find(|c| !(c.is_finite() && **c > 0.0)) {
        return Err(Usage(format!("--strength {bad}: C is a positive number")).into());
    }
    let method = Method {
        name: "logistic-probe",
        heading: "Logistic probe",
        pair: None,
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

    fn score(&self) -> Score {
        Score {
            layer: self.layer,
            accuracy: self.accuracy,
            low: self.ci_low,
            high: self.ci_high,
            method: self.ci_method,
        }
    }

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
