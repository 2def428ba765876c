//! What a patched run is measured by: its last position's distribution, two of its tokens, or its projection on a direction.
//! Several metrics are read off the same runs.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pairs::{PromptPair, Run};
use super::{Way, bad};
use crate::backend::{Batch, Reduce, Sink, SinkSpec};
use crate::engine::score::log_sum_exp;
use crate::engine::{Prepared, Result, directions};
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// A metric of a sweep, always at the last position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// KL(p_clean ‖ p) in nats, over the whole vocabulary at temperature 1.
    KlRecovery,
    /// The logit of `answer` less the logit of `wrong`.
    LogitDiff,
    /// The probability of `answer` less the probability of `wrong`; or, of every prompt alike, the probabilities of the first of these
    /// lists of tokens less those of the second.
    ProbDiff { of: Option<[Vec<u32>; 2]> },
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
            Metric::ProbDiff { .. } => "prob-diff",
            Metric::Direction { .. } => "direction",
        }
    }

    /// How much of the way from the corrupt to the clean run a run has gone: 1 where it behaves as the clean one, 0 where as the
    /// corrupt one; less 1 for a noising patch, whose run starts as the clean one. Not finite where the two runs don't differ.
    fn recovery(&self, (clean, corrupt): (f64, f64), way: Way, value: f64) -> f64 {
        let r = match self {
            Metric::KlRecovery => 1.0 - value / corrupt,
            _ => (value - corrupt) / (clean - corrupt),
        };
        match way {
            Way::Denoising => r,
            Way::Noising => r - 1.0,
        }
    }

    fn check_tokens(&self, prepared: &Prepared) -> Result<()> {
        let Metric::ProbDiff { of: Some(lists) } = self else {
            return Ok(());
        };
        let vocab = prepared.dims.vocab;
        match lists.iter().flatten().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(bad(
                "metric",
                self.name(),
                format!("the vocabulary has {vocab} tokens, and no {id}"),
            )),
        }
    }

    fn reads_logits(&self) -> bool {
        !matches!(self, Metric::Direction { .. })
    }

    fn needs_tokens(&self) -> bool {
        matches!(self, Metric::LogitDiff | Metric::ProbDiff { of: None })
    }
}

/// The metrics of a sweep, opened: what is read at the end of a run. Metrics of one kind of reading share it.
pub(super) struct Measures {
    metrics: Vec<Metric>,
    /// Of each metric, its reading.
    reading_of: Vec<usize>,
    pub readings: Vec<Reading>,
}

/// What is read of each run's last row, at one hook point.
pub(super) struct Reading {
    pub point: HookPoint,
    spec: Arc<SinkSpec>,
    /// Numbers per run.
    width: usize,
}

/// What a prompt's runs without patches say, and with them how far apart these are.
pub(super) struct Target {
    /// Log-probabilities and probabilities of the clean run; empty unless they are a metric.
    logp: Vec<f64>,
    p: Vec<f64>,
    tokens: Option<[usize; 2]>,
    /// The metrics' values of both runs.
    pub clean: Vec<f64>,
    pub corrupt: Vec<f64>,
}

impl Measures {
    /// # Errors
    /// No metric, one twice, a direction that is not there or does not fit.
    pub fn open(metrics: &[Metric], prepared: &Prepared) -> Result<Self> {
        if metrics.is_empty() {
            return Err(bad("metric", "", "choose at least one"));
        }
        let mut measures = Measures {
            metrics: metrics.to_vec(),
            reading_of: Vec::new(),
            readings: Vec::new(),
        };
        for (i, metric) in metrics.iter().enumerate() {
            if metrics[..i].iter().any(|m| m.name() == metric.name()) {
                return Err(bad("metric", metric.name(), "it is given twice"));
            }
            metric.check_tokens(prepared)?;
            let reading = Reading::open(metric, prepared)?;
            let shared =
                (metrics[..i].iter()).position(|m| m.reads_logits() && metric.reads_logits());
            let at = match shared {
                Some(other) => measures.reading_of[other],
                None => {
                    measures.readings.push(reading);
                    measures.readings.len() - 1
                }
            };
            measures.reading_of.push(at);
        }
        Ok(measures)
    }

    /// How many metrics there are.
    pub fn len(&self) -> usize {
        self.metrics.len()
    }

    /// What is projected on.
    pub fn directions(&self) -> impl Iterator<Item = &[f32]> {
        self.readings.iter().filter_map(|r| r.spec.directions())
    }

    /// What the plan needs to know.
    pub fn taps(&self) -> impl Iterator<Item = Tap> {
        self.readings.iter().map(|r| plain_tap(r.point))
    }

    /// Memory for what is read of some runs, by reading.
    pub fn memory(&self, runs: usize) -> Vec<Vec<f32>> {
        let room = |r: &Reading| vec![0.0; runs * r.width];
        self.readings.iter().map(room).collect()
    }

    /// The sinks that fill such memory from the last row of each sample of a batch.
    pub fn sinks<'s>(&self, batch: &Batch, memory: &'s mut [Vec<f32>]) -> Vec<Sink<'s>> {
        let last: Vec<u32> = batch.samples().map(|rows| rows.end as u32 - 1).collect();
        let sink = |(reading, memory): (&Reading, &'s mut Vec<f32>)| {
            let bytes = bytemuck::cast_slice_mut(memory);
            let each = vec![1; last.len()];
            Sink::new(Arc::clone(&reading.spec), last.clone(), each, bytes, None)
        };
        self.readings.iter().zip(memory).map(sink).collect()
    }

    /// What such memory holds of one run, by reading.
    pub fn of_run<'m>(&self, memory: &'m [Vec<f32>], run: usize) -> Vec<&'m [f32]> {
        let row = |(reading, memory): (&Reading, &'m Vec<f32>)| {
            &memory[run * reading.width..(run + 1) * reading.width]
        };
        self.readings.iter().zip(memory).map(row).collect()
    }

    /// Refuses a prompt that lacks what a metric asks for.
    pub fn check(&self, pair: &PromptPair) -> Result<()> {
        let Some(metric) = self.metrics.iter().find(|m| m.needs_tokens()) else {
            return Ok(());
        };
        if pair.answer.is_some() && pair.answer == pair.wrong {
            return Err(crate::engine::Error::Pair {
                place: pair.place.clone(),
                why: "`answer` and `wrong` are the same token".into(),
            }
            .into());
        }
        if pair.answer.is_none() || pair.wrong.is_none() {
            return Err(crate::engine::Error::Pair {
                place: pair.place.clone(),
                why: format!("the metric {} needs `answer` and `wrong`", metric.name()),
            }
            .into());
        }
        Ok(())
    }

    /// From what was read of the clean and the corrupt run.
    pub fn target(&self, pair: &PromptPair, read: [&[&[f32]]; 2]) -> Target {
        let [clean, corrupt] = [Run::Clean as usize, Run::Corrupt as usize].map(|r| read[r]);
        let tokens = pair.answer.zip(pair.wrong);
        let kl = self.metrics.iter().position(|m| *m == Metric::KlRecovery);
        let logits = kl.map(|kl| clean[self.reading_of[kl]]);
        let mut target = Target::new(tokens, logits);
        target.clean = self.values(&target, clean);
        target.corrupt = self.values(&target, corrupt);
        target
    }

    /// The metrics of one run, from what was read of it.
    pub fn values(&self, target: &Target, read: &[&[f32]]) -> Vec<f64> {
        // The sum over the vocabulary is what costs.
        let needs_lse = |m: &Metric| matches!(m, Metric::KlRecovery | Metric::ProbDiff { .. });
        let with_lse = self.metrics.iter().position(needs_lse);
        let lse = with_lse.map_or(f64::NAN, |m| log_sum_exp(read[self.reading_of[m]]));
        let each = self.metrics.iter().zip(&self.reading_of);
        each.map(|(metric, &reading)| target.value(metric, read[reading], lse))
            .collect()
    }

    /// KL between the two runs, from the corrupt one's values; NaN where it is no metric.
    pub fn kl(&self, corrupt: &[f64]) -> f64 {
        let kl = self.metrics.iter().position(|m| *m == Metric::KlRecovery);
        kl.map_or(f64::NAN, |kl| corrupt[kl])
    }

    /// Whether the two runs differ by less than `min_kl`, where KL is a metric. NaN is too near as well.
    pub fn are_too_near(&self, target: &Target, min_kl: f64) -> bool {
        self.metrics.contains(&Metric::KlRecovery)
            && !(self.kl(&target.corrupt).partial_cmp(&min_kl)).is_some_and(|o| o.is_ge())
    }

    /// Name, clean, corrupt, patched and recovery by each metric, of one run's values.
    pub fn recoveries<'a>(
        &'a self,
        clean: &'a [f64],
        corrupt: &'a [f64],
        way: Way,
        values: &'a [f64],
    ) -> impl Iterator<Item = (&'static str, [f64; 4])> {
        self.metrics.iter().enumerate().map(move |(i, metric)| {
            let recovery = metric.recovery((clean[i], corrupt[i]), way, values[i]);
            (metric.name(), [clean[i], corrupt[i], values[i], recovery])
        })
    }
}

impl Reading {
    fn open(metric: &Metric, prepared: &Prepared) -> Result<Self> {
        let dims = &prepared.dims;
        let Metric::Direction { file, key, at } = metric else {
            return Ok(Reading {
                point: HookPoint {
                    site: Site::Logits,
                    layer: 0,
                },
                spec: Arc::new(SinkSpec::plain()),
                width: dims.vocab,
            });
        };
        let point = HookPoint::parse(at, dims)?;
        if point.site.is_ragged() || point.site == Site::Result {
            return Err(bad(
                "direction-at",
                at,
                "choose a point that has a row per token",
            ));
        }
        let width = point.site.row_shape(dims).iter().product();
        let v = directions::load(file, key, width, &prepared.model.fingerprint)?;
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
        Ok(Reading {
            point,
            spec: Arc::new(spec),
            width: 1,
        })
    }
}

impl Target {
    /// `clean`: the clean run's logits, where KL is a metric.
    fn new(tokens: Option<(u32, u32)>, clean: Option<&[f32]>) -> Self {
        let logp: Vec<f64> = clean.map_or(Vec::new(), |logits| {
            let lse = log_sum_exp(logits);
            logits.iter().map(|&l| f64::from(l) - lse).collect()
        });
        Target {
            p: logp.iter().map(|l| l.exp()).collect(),
            logp,
            tokens: tokens.map(|(a, w)| [a as usize, w as usize]),
            clean: Vec::new(),
            corrupt: Vec::new(),
        }
    }

    /// One metric of a run, from its reading and the log of its softmax's denominator.
    fn value(&self, metric: &Metric, read: &[f32], lse: f64) -> f64 {
        match (metric, self.tokens) {
            (Metric::KlRecovery, _) => {
                // Equal logits give equal differences, and so exactly 0.
                let each =
                    |((&p, &logp), &l): ((&f64, &f64), &f32)| p * (logp - (f64::from(l) - lse));
                self.p.iter().zip(&self.logp).zip(read).map(each).sum()
            }
            (Metric::LogitDiff, Some([answer, wrong])) => {
                f64::from(read[answer]) - f64::from(read[wrong])
            }
            (
                Metric::ProbDiff {
                    of: Some([plus, minus]),
                },
                _,
            ) => {
                let p = |token: &u32| (f64::from(read[*token as usize]) - lse).exp();
                let sum = |tokens: &[u32]| tokens.iter().map(p).sum::<f64>();
                sum(plus) - sum(minus)
            }
            (Metric::ProbDiff { of: None }, Some([answer, wrong])) => {
                (f64::from(read[answer]) - lse).exp() - (f64::from(read[wrong]) - lse).exp()
            }
            (Metric::LogitDiff | Metric::ProbDiff { of: None }, None) => f64::NAN,
            (Metric::Direction { .. }, _) => f64::from(read[0]),
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

    fn measures(metrics: &[Metric]) -> Measures {
        Measures {
            metrics: metrics.to_vec(),
            reading_of: vec![0; metrics.len()],
            readings: Vec::new(),
        }
    }

    fn target(measures: &Measures, clean: &[f32], corrupt: &[f32]) -> Target {
        let mut target = Target::new(Some((0, 2)), Some(clean));
        target.clean = measures.values(&target, &[clean]);
        target.corrupt = measures.values(&target, &[corrupt]);
        target
    }

    #[test]
    fn recovery_by_kl_is_exactly_one_as_clean_and_exactly_zero_as_corrupt() {
        let kl = measures(&[Metric::KlRecovery]);
        let (clean, corrupt) = ([0.3_f32, 1.7, -2.0], [1.0_f32, 0.1, 0.4]);
        let target = target(&kl, &clean, &corrupt);
        let r = |way, logits: &[f32]| {
            let ends = (target.clean[0], target.corrupt[0]);
            Metric::KlRecovery.recovery(ends, way, kl.values(&target, &[logits])[0])
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
        let diff = Metric::LogitDiff;
        let target = target(
            &measures(std::slice::from_ref(&diff)),
            &[3.0, 0.0, 1.0],
            &[1.0, 0.0, 3.0],
        );
        assert_eq!((target.clean[0], target.corrupt[0]), (2.0, -2.0));
        assert_eq!(diff.recovery((2.0, -2.0), Way::Denoising, 1.0), 0.75);
        assert_eq!(diff.recovery((2.0, -2.0), Way::Noising, 1.0), -0.25);
    }

    #[test]
    fn metrics_read_together_are_what_each_is_alone() {
        let (clean, corrupt) = ([0.3_f32, 1.7, -2.0], [1.0_f32, 0.1, 0.4]);
        let of = Some([vec![0], vec![2, 1]]);
        let four = [
            Metric::KlRecovery,
            Metric::LogitDiff,
            Metric::ProbDiff { of: None },
            Metric::ProbDiff { of },
        ];
        let together = target(&measures(&four), &clean, &corrupt);
        for (i, metric) in four.into_iter().enumerate() {
            let alone = target(&measures(&[metric]), &clean, &corrupt);
            assert_eq!(together.corrupt[i].to_bits(), alone.corrupt[0].to_bits());
        }
        let total: f64 = corrupt.iter().map(|&l| f64::from(l).exp()).sum();
        let p = |i: usize| f64::from(corrupt[i]).exp() / total;
        assert!((together.corrupt[2] - (p(0) - p(2))).abs() < 1e-12);
        assert!((together.corrupt[3] - (p(0) - p(2) - p(1))).abs() < 1e-12);
    }
}
