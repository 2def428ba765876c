//! What one patch does, summed up over the prompts of the report half, and how that is shown.

use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::analysis::Bootstrap;
use crate::engine::sweep::{PatchSite, Way};
use crate::report::finding::{At, Axis, Bar, Body, Control, Exhibit, Number, Published};

use super::estimate::Estimate;
use super::patched::{Patched, name};
use super::prompts::{Answer, Half};
use super::statistics::mean;
use super::{Study, Words};

/// A patch, one way.
#[derive(Debug, Clone)]
pub(super) struct Effect {
    /// What the report calls answers.
    pub words: Arc<Words>,
    pub patch: Vec<PatchSite>,
    pub way: Way,
    /// Of a noising patch r − 1.
    pub recovery: Estimate,
    /// The mean recovery on the other half.
    pub tuning: f64,
    /// How far P(no) − P(yes) moves.
    pub no_less_yes: Estimate,
    /// The share of the edit's whole move along the injected direction.
    pub along: Estimate,
    /// The prompts' own recoveries.
    pub points: Vec<f64>,
    /// How far P(no) − P(yes) moves at each prompt.
    moves: Vec<f64>,
}

impl Effect {
    pub fn of(patched: &Patched, way: Way, patch: &[PatchSite], bootstrap: &Bootstrap) -> Self {
        let runs = patched.of(way, patch, Some(Half::Report));
        let points: Vec<f64> = runs.iter().map(|run| run.recovery).collect();
        let moves: Vec<f64> = runs.iter().map(|run| run.no_less_yes).collect();
        let along: Vec<[f64; 2]> = runs.iter().map(|run| run.along).collect();
        Effect {
            words: patched.words.clone(),
            patch: patch.to_vec(),
            way,
            recovery: Estimate::mean(&points, bootstrap),
            tuning: mean(&patched.recoveries(way, patch, Some(Half::Tuning))),
            no_less_yes: Estimate::mean(&moves, bootstrap),
            along: Estimate::share(&along, bootstrap),
            points,
            moves,
        }
    }

    /// Of every patch of a sweep.
    pub fn all(patched: &Patched, bootstrap: &Bootstrap) -> Vec<Self> {
        let of = |way| patched.patches(way).map(move |patch| (way, patch));
        let all = of(Way::Denoising).chain(of(Way::Noising));
        let all: Vec<(Way, &[PatchSite])> = all.collect();
        all.into_par_iter()
            .map(|(way, patch)| Effect::of(patched, way, patch, bootstrap))
            .collect()
    }

    /// `mlp20`.
    pub fn name(&self) -> String {
        name(&self.patch)
    }

    /// The layer of its first place.
    pub fn layer(&self) -> usize {
        self.patch.first().map_or(0, |site| site.point.layer)
    }

    /// `mlp20 0.336 (0.260 to 0.420)`
    pub fn text(&self) -> String {
        format!("{} {}", self.name(), self.recovery.text())
    }

    /// As a number of the table; what else the patch moves stands beside it.
    pub fn number(&self, name: impl Into<String>, published: Option<Published>) -> Number {
        let mut number = self.recovery.number(name, published);
        let answers = format!("move of {}", self.words.no_less_yes());
        for (name, estimate) in [
            (answers.as_str(), self.no_less_yes),
            ("share of the move along d", self.along),
        ] {
            if estimate.value.is_finite() {
                number.controls.push(Control {
                    name: name.into(),
                    value: estimate.value,
                    interval: estimate.interval,
                });
            }
        }
        number
    }

    /// As a point of a curve.
    pub fn at(&self, x: f64, estimate: Estimate) -> At {
        At {
            x,
            y: Some(estimate.value).filter(|v| v.is_finite()),
            low: estimate.interval.map(|i| i[0]),
            high: estimate.interval.map(|i| i[1]),
            label: format!("{} {}", self.name(), estimate.text()),
        }
    }

    /// As a bar with its prompts.
    pub fn bar(&self, name: impl Into<String>, published: Option<Published>) -> Bar {
        Bar {
            name: name.into(),
            value: Some(self.recovery.value).filter(|v| v.is_finite()),
            interval: self.recovery.interval,
            control: false,
            points: self.points.clone(),
            published: published.map(|p| p.value),
        }
    }

    fn cells(&self) -> Vec<Value> {
        let [low, high] = self.recovery.interval.map_or([None; 2], |i| i.map(Some));
        vec![
            json!(self.name()),
            json!(self.way.name()),
            json!(self.recovery.value),
            json!(low),
            json!(high),
            json!(self.tuning),
            json!(self.no_less_yes.value),
            json!(self.along.value),
            json!(self.recovery.n),
        ]
    }
}

/// An axis without a unit.
pub(super) fn axis(name: &str) -> Axis {
    Axis::new(name, "")
}

/// All effects as a table, numbers in full.
pub(super) fn table(name: &str, what: &str, effects: &[Effect]) -> Exhibit {
    let columns = [
        "patch",
        "way",
        "recovery",
        "low",
        "high",
        "recovery_tuning",
        "no_less_yes",
        "along_d",
        "n",
    ];
    let first = effects.first();
    let answers = first.map_or_else(|| "the answers".into(), |effect| effect.words.no_less_yes());
    Exhibit {
        name: name.into(),
        caption: format!(
            "{what} Recovery (of noising less 1) on the report half with its 95 % BCa interval, its mean on the tuning half, how \
                far {answers} moves, the share of the edit's move along d, and the prompts of the report half."
        ),
        body: Body::Table {
            columns: columns.map(String::from).into(),
            rows: effects.iter().map(Effect::cells).collect(),
        },
    }
}

/// The effects that were largest, without sign, on the tuning half; largest first.
pub(super) fn largest<'e>(
    effects: impl IntoIterator<Item = &'e Effect>,
    n: usize,
) -> Vec<&'e Effect> {
    let mut effects: Vec<&Effect> = effects.into_iter().collect();
    effects.retain(|effect| effect.tuning.is_finite());
    effects.sort_by(|a, b| b.tuning.abs().total_cmp(&a.tuning.abs()));
    effects.truncate(n);
    effects
}

/// Fewest patches over which a correlation is told.
const ENOUGH: usize = 10;

/// Whether what the patches carry may be no more than one word, in a sentence.
pub(super) fn said_of_no<'e>(
    patched: &Patched,
    effects: impl IntoIterator<Item = &'e Effect>,
    bootstrap: &Bootstrap,
) -> Option<String> {
    let whole = Estimate::mean(&patched.whole_no_less_yes(Half::Report), bootstrap);
    if !whole.value.is_finite() {
        return None;
    }
    let (answers, no) = (
        patched.words.no_less_yes(),
        patched.words.answer(Answer::No),
    );
    let said = format!("The whole edit moves {answers} by {}", whole.text());
    if whole.may_be_zero() {
        return Some(format!(
            "{said}, which is not told from 0: no general readiness to say {no} can be what is recovered here."
        ));
    }
    let together = together(effects, whole.value.signum(), bootstrap);
    let Some((n, r)) = together else {
        return Some(format!(
            "{said}; the column beside tells how far each patch moves it."
        ));
    };
    let verdict = match r.interval {
        Some([low, _]) if low > 0.0 => {
            format!(
                "what recovers more also moves the answers more the edit's way, so a part of it may be how readily the model says {no}"
            )
        }
        Some([_, high]) if high < 0.0 => {
            format!(
                "what recovers more moves the answers less the edit's way, so it is not the readiness to say {no} that is recovered"
            )
        }
        _ => "that the two go together is not shown".into(),
    };
    Some(format!(
        "{said}. Over {n} patches, recovery and the move of {answers} the edit's way correlate with r = {} (interval over prompts): {verdict}.",
        r.text()
    ))
}

/// How many patches, and over these the correlation of mean recovery with the mean move of P(no) − P(yes) towards `side`; prompts are
/// what its interval draws. `None` of too few, or where they are not all of the same prompts.
fn together<'e>(
    effects: impl IntoIterator<Item = &'e Effect>,
    side: f64,
    bootstrap: &Bootstrap,
) -> Option<(usize, Estimate)> {
    let effects: Vec<&Effect> = effects.into_iter().collect();
    let n = effects.first()?.points.len();
    if effects.len() < ENOUGH || effects.iter().any(|e| e.points.len() != n) {
        return None;
    }
    let mean = |values: &[f64], drawn: &[u32]| {
        drawn.iter().map(|&i| values[i as usize]).sum::<f64>() / drawn.len() as f64
    };
    let r = Estimate::of(n, bootstrap, |drawn| {
        let both = effects.iter();
        let both = both.map(|e| (mean(&e.points, drawn), side * mean(&e.moves, drawn)));
        correlation(&both.collect::<Vec<_>>())
    });
    r.value.is_finite().then_some((effects.len(), r))
}

/// What is to be known of the values published of E5 and E10, where they stand beside ours.
pub(super) fn said_of_padding(study: &Study<'_>) -> Option<String> {
    study.published_study()?;
    Some(
        "The published values come from a run whose prompts were padded on the left and that seems to have attended to the \
            padding: they are shown, and are no measure of ours."
            .into(),
    )
}

/// `; next come a, b`; nothing of none.
pub(super) fn next_come(effects: &[&Effect]) -> String {
    if effects.is_empty() {
        return String::new();
    }
    let texts: Vec<String> = effects.iter().map(|effect| effect.text()).collect();
    format!("; next come {}", texts.join(", "))
}

/// Pearson's r; NaN where one of the two does not vary.
pub(super) fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let mx = pairs.iter().map(|p| p.0).sum::<f64>() / n;
    let my = pairs.iter().map(|p| p.1).sum::<f64>() / n;
    let sum = |f: fn(f64, f64) -> f64| pairs.iter().map(|p| f(p.0 - mx, p.1 - my)).sum::<f64>();
    sum(|x, y| x * y) / (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_is_one_on_a_line_and_minus_one_on_a_falling_one() {
        let rising: Vec<(f64, f64)> = (0..5)
            .map(|i| (f64::from(i), 2.0 * f64::from(i) + 1.0))
            .collect();
        let falling: Vec<(f64, f64)> = rising.iter().map(|p| (p.0, -p.1)).collect();
        assert!((correlation(&rising) - 1.0).abs() < 1e-12);
        assert!((correlation(&falling) + 1.0).abs() < 1e-12);
        assert!(correlation(&[(1.0, 2.0), (1.0, 3.0)]).is_nan());
    }

    /// Patches whose recoveries rise from one to the next, and whose moves do `slope` times as much, over five prompts.
    fn patches(n: usize, slope: f64) -> Vec<Effect> {
        let none = Estimate::mean(&[], &Bootstrap::default());
        let of = |i: usize, by: f64| (0..5).map(|p| by * i as f64 + 0.1 * f64::from(p)).collect();
        let words = Arc::new(Words::of(&super::super::Behaviour::dishonesty().unwrap()));
        let effect = |i| Effect {
            words: words.clone(),
            patch: Vec::new(),
            way: Way::Denoising,
            recovery: none,
            tuning: 0.0,
            no_less_yes: none,
            along: none,
            points: of(i, 1.0),
            moves: of(i, slope),
        };
        (0..n).map(effect).collect()
    }

    #[test]
    fn recovery_and_answers_go_together_only_the_way_the_whole_edit_moves_them() {
        let bootstrap = Bootstrap::default();
        let r = |n: usize, slope: f64, side: f64| {
            together(&patches(n, slope), side, &bootstrap).map(|(_, r)| r.value)
        };
        assert!((r(12, 2.0, 1.0).unwrap() - 1.0).abs() < 1e-12);
        assert!(
            (r(12, 2.0, -1.0).unwrap() + 1.0).abs() < 1e-12,
            "the edit goes the other way"
        );
        assert_eq!(r(ENOUGH - 1, 2.0, 1.0), None, "too few");
    }
}
