//! What a patched run is measured by: its last position's distribution, two of its logits, or its projection on a direction.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pairs::{PromptPair, Run};
use super::{Way, bad};
use crate::backend::{Reduce, SinkSpec};
use crate::engine::score::log_sum_exp;
use crate::engine::{Prepared, Result, directions};
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// The metric of a sweep, always at the last position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// KL(p_clean ‖ p) in nats, over the whole vocabulary at temperature 1.
    KlRecovery,
    /// The logit of `answer` less the logit of `wrong`.
    LogitDiff,
    /// The dot product of the hook point's row with a direction of a safetensors file, as it is (not normalised).
    Direction {
        file: PathBuf,
        key: String,
        at: String,
    },
}

impl Metric {
    /// As the command line and the table call it.
    pub fn name(&self) -> &'static str {
        match self {
            Metric::KlRecovery => "kl-recovery",
            Metric::LogitDiff => "logit-diff",
            Metric::Direction { .. } => "direction",
        }
    }
}

/// A metric, opened: what is read at the end of a run.
pub(super) struct Measure {
    metric: Metric,
    pub point: HookPoint,
    pub spec: Arc<SinkSpec>,
    /// Numbers read per run.
    pub width: usize,
}

/// What a prompt's runs without patches say, and with them how far apart these are.
pub(super) struct Target {
    /// Log-probabilities and probabilities of the clean run; empty unless they are the metric.
    logp: Vec<f64>,
    p: Vec<f64>,
    tokens: Option<[usize; 2]>,
    /// The metric's value of both runs.
    pub clean: f64,
    pub corrupt: f64,
}

impl Measure {
    pub fn open(metric: &Metric, prepared: &Prepared) -> Result<Self> {
        let dims = &prepared.dims;
        let logits = HookPoint {
            site: Site::Logits,
            layer: 0,
        };
        let (point, spec, width) = match metric {
            Metric::KlRecovery | Metric::LogitDiff => (logits, SinkSpec::plain(), dims.vocab),
            Metric::Direction { file, key, at } => {
                let point = HookPoint::parse(at, dims)?;
                if point.site.is_ragged() || point.site == Site::Result {
                    return Err(bad(
                        "direction-at",
                        at,
                        "choose a point that has a row per token",
                    ));
                }
                let width = point.site.row_shape(dims).iter().product();
                let v = directions::load(file, key, width)?;
                if v.len() != width {
                    let file = format!("{}#{key}", file.display());
                    return Err(bad(
                        "direction",
                        &file,
                        "it holds several directions; give one",
                    ));
                }
                let spec = SinkSpec {
                    reduce: Reduce::Dot(v.into()),
                    ..SinkSpec::plain()
                };
                (point, spec, 1)
            }
        };
        Ok(Measure {
            metric: metric.clone(),
            point,
            spec: Arc::new(spec),
            width,
        })
    }

    /// What the plan needs to know.
    pub fn tap(&self) -> Tap {
        plain_tap(self.point)
    }

    pub fn is_kl(&self) -> bool {
        self.metric == Metric::KlRecovery
    }

    /// Refuses a prompt that lacks what the metric asks for.
    pub fn check(&self, pair: &PromptPair) -> Result<()> {
        if self.metric == Metric::LogitDiff && (pair.answer.is_none() || pair.wrong.is_none()) {
            return Err(crate::engine::Error::Pair {
                place: pair.place.clone(),
                why: "the metric logit-diff needs `answer` and `wrong`".into(),
            }
            .into());
        }
        Ok(())
    }

    /// From what was read of the runs without patches.
    pub fn target(&self, pair: &PromptPair, read: [&[f32]; 2]) -> Target {
        let [clean, corrupt] = [Run::Clean as usize, Run::Corrupt as usize].map(|r| read[r]);
        let mut target = Target {
            logp: Vec::new(),
            p: Vec::new(),
            tokens: pair
                .answer
                .zip(pair.wrong)
                .map(|(a, w)| [a, w].map(|t| t as usize)),
            clean: 0.0,
            corrupt: 0.0,
        };
        if self.is_kl() {
            let lse = log_sum_exp(clean);
            target.logp = clean.iter().map(|&l| f64::from(l) - lse).collect();
            target.p = target.logp.iter().map(|l| l.exp()).collect();
        }
        target.clean = self.value(&target, clean);
        target.corrupt = self.value(&target, corrupt);
        target
    }

    /// The metric of one run, from what was read of it.
    pub fn value(&self, target: &Target, read: &[f32]) -> f64 {
        match (&self.metric, target.tokens) {
            (Metric::KlRecovery, _) => {
                let lse = log_sum_exp(read);
                // Equal logits give equal differences, and so exactly 0.
                let each =
                    |((&p, &logp), &l): ((&f64, &f64), &f32)| p * (logp - (f64::from(l) - lse));
                target.p.iter().zip(&target.logp).zip(read).map(each).sum()
            }
            (Metric::LogitDiff, Some([answer, wrong])) => {
                f64::from(read[answer]) - f64::from(read[wrong])
            }
            (Metric::LogitDiff, None) => f64::NAN,
            (Metric::Direction { .. }, _) => f64::from(read[0]),
        }
    }

    /// How much of the way from the corrupt to the clean run a run has gone: 1 where it behaves as the clean one, 0 where as the
    /// corrupt one; less 1 for a noising patch, whose run starts as the clean one. Not finite where the two runs don't differ.
    pub fn recovery(&self, ends: (f64, f64), way: Way, value: f64) -> f64 {
        let (clean, corrupt) = ends;
        let r = if self.is_kl() {
            1.0 - value / corrupt
        } else {
            (value - corrupt) / (clean - corrupt)
        };
        match way {
            Way::Denoising => r,
            Way::Noising => r - 1.0,
        }
    }
}

/// A tap of every row, as it is.
pub(super) fn plain_tap(point: HookPoint) -> Tap {
    Tap {
        point,
        heads: None,
        selection: Selection::All,
        reduction: Reduction::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(metric: Metric) -> Measure {
        Measure {
            metric,
            point: HookPoint {
                site: Site::Logits,
                layer: 0,
            },
            spec: Arc::new(SinkSpec::plain()),
            width: 3,
        }
    }

    fn target(kl: &Measure, clean: &[f32], corrupt: &[f32]) -> Target {
        let mut target = Target {
            logp: Vec::new(),
            p: Vec::new(),
            tokens: Some([0, 2]),
            clean: 0.0,
            corrupt: 0.0,
        };
        let lse = log_sum_exp(clean);
        target.logp = clean.iter().map(|&l| f64::from(l) - lse).collect();
        target.p = target.logp.iter().map(|l| l.exp()).collect();
        target.clean = kl.value(&target, clean);
        target.corrupt = kl.value(&target, corrupt);
        target
    }

    #[test]
    fn recovery_by_kl_is_exactly_one_as_clean_and_exactly_zero_as_corrupt() {
        let kl = measure(Metric::KlRecovery);
        let (clean, corrupt) = ([0.3_f32, 1.7, -2.0], [1.0_f32, 0.1, 0.4]);
        let target = target(&kl, &clean, &corrupt);
        let r = |way, logits| {
            kl.recovery(
                (target.clean, target.corrupt),
                way,
                kl.value(&target, logits),
            )
        };
        assert_eq!(r(Way::Denoising, &clean), 1.0);
        assert_eq!(r(Way::Denoising, &corrupt), 0.0);
        assert_eq!(r(Way::Noising, &clean), 0.0);
        assert_eq!(r(Way::Noising, &corrupt), -1.0);
        // The logits of a softmax are free of a constant: KL sees none.
        let shifted = corrupt.map(|l| l + 2.0);
        assert!(r(Way::Denoising, &shifted).abs() < 1e-6);
    }

    #[test]
    fn recovery_by_logits_goes_from_the_corrupt_to_the_clean_difference() {
        let diff = measure(Metric::LogitDiff);
        let target = target(&diff, &[3.0, 0.0, 1.0], &[1.0, 0.0, 3.0]);
        assert_eq!((target.clean, target.corrupt), (2.0, -2.0));
        assert_eq!(diff.recovery((2.0, -2.0), Way::Denoising, 1.0), 0.75);
        assert_eq!(diff.recovery((2.0, -2.0), Way::Noising, 1.0), -0.25);
    }
}
