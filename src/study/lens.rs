//! E6: which components write the other answer, as the logit lens reads them? Direct logit attribution (`attribution`) at 12 strengths of
//! the edit.

use super::attribution::{Attribution, NAMED, Shares, component_name};
use super::effect::axis;
use super::estimate::Estimate;
use super::prompts::Half;
use super::statistics::mean;
use super::{Result, Study, finding};
use crate::report::finding::{At, Bar, Body, Exhibit, Finding, Number, Reference, Series};

/// From none to all of the edit.
const STRENGTHS: usize = 12;

/// The experiment.
///
/// # Errors
/// What a backend can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding(
        "Which components write the edited run's answer against the plain run's, as the final norm and the unembedding read them?",
    );
    let c = study.choice()?.c;
    let share = |i: usize| 1.0 - i as f64 / (STRENGTHS - 1) as f64;
    let strengths: Vec<f64> = (0..STRENGTHS).map(|i| c * share(i)).collect();
    let report = Attribution::of(study, Half::Report, &strengths)?;
    let tuning = Attribution::of(study, Half::Tuning, &[c, 0.0])?;
    if report.prompts.is_empty() {
        found.answer.push("The edit turns the likeliest first token of no prompt of the report half: there is no difference to \
            attribute.".into());
        return Ok(found);
    }
    let lens = Lens {
        named: report.named(study, &tuning),
        report,
        tuning,
    };
    found.answer = lens.said(study);
    found.numbers = lens.numbers(study);
    found.exhibits = lens.exhibits(study);
    Ok(found)
}

struct Lens {
    report: Attribution,
    tuning: Attribution,
    named: Vec<usize>,
}

impl Lens {
    fn name(&self, component: usize) -> String {
        component_name(component, self.report.n_layers)
    }

    fn last(&self) -> usize {
        self.report.strengths.len() - 1
    }

    fn estimate(&self, study: &Study<'_>, of: impl Fn(&Shares) -> f64) -> Estimate {
        let values: Vec<f64> = self.report.prompts.iter().map(of).collect();
        Estimate::mean(&values, &study.bootstrap())
    }

    fn change(&self, study: &Study<'_>, component: usize) -> Estimate {
        Estimate::mean(&self.report.changes(component), &study.bootstrap())
    }

    /// Where the mean difference crosses 0, between two of the strengths.
    fn crossing(&self, study: &Study<'_>) -> Option<f64> {
        let means: Vec<f64> = (0..=self.last())
            .map(|s| self.estimate(study, |p| p.logits[s]).value)
            .collect();
        crossing(&self.report.strengths, &means)
    }

    fn numbers(&self, study: &Study<'_>) -> Vec<Number> {
        let last = self.last();
        let mut numbers = vec![
            self.estimate(study, |p| p.logits[last]).number(
                "logit of dis − logit of hon, no edit",
                study.published("E6.difference.none"),
            ),
            self.estimate(study, |p| p.logits[0]).number(
                "logit of dis − logit of hon, whole edit",
                study.published("E6.difference.full"),
            ),
        ];
        let crossing = Number::new(
            "strength at which the mean difference crosses 0",
            self.crossing(study),
        );
        numbers.push(crossing.note("between two strengths by a straight line"));
        for &component in &self.named {
            let name = self.name(component);
            let number = self.change(study, component).number(
                format!("{name}: whole edit less none"),
                study.published(&format!("E6.{name}")),
            );
            numbers.push(number);
        }
        numbers.push(
            self.estimate(study, |p| p.no_less_yes[0] - p.no_less_yes[last])
                .number(
                    format!("move of {} by the whole edit", study.words().no_less_yes()),
                    None,
                ),
        );
        let note = "largest |sum of all components − logit difference| over its size (at least 1), over prompts and strengths: must \
            be below 1e-3";
        numbers.push(
            Number::new("check: the components add up", self.report.largest_error()).note(note),
        );
        numbers
    }

    fn said(&self, study: &Study<'_>) -> Vec<String> {
        let last = self.last();
        let ends = [last, 0].map(|s| self.estimate(study, |p| p.logits[s]));
        let crossing = match self.crossing(study) {
            Some(c) => format!(", crossing 0 at c = {c:.2}"),
            None => String::new(),
        };
        let injection = self.report.components() - 1;
        let total = ends[1].value - ends[0].value;
        let text = |&component: &usize| {
            format!(
                "{} {}",
                self.name(component),
                self.change(study, component).text()
            )
        };
        let named: Vec<String> = self
            .named
            .iter()
            .take(NAMED)
            .filter(|&&c| c != injection)
            .map(text)
            .collect();
        let direct = self.change(study, injection);
        let mut said = vec![
            format!(
                "From no edit to the whole edit (c = {:.2}) the logit of the edited run's first token less that of the plain run's \
                    goes from {} to {}{crossing} (means over {} prompts of the report half, 95 % BCa intervals).",
                self.report.strengths[0],
                ends[0].text(),
                ends[1].text(),
                self.report.prompts.len()
            ),
            format!(
                "The components that changed most on the tuning half change the difference, on the report half, by: {}.",
                named.join(", ")
            ),
            format!(
                "What is injected adds {} by itself, {:.0} % of the whole change: {} the later blocks' doing.",
                direct.text(),
                100.0 * direct.value / total,
                if (direct.value / total).abs() < 0.5 {
                    "the change is mostly"
                } else {
                    "the smaller part of the change is"
                },
            ),
            self.said_of_direction(study),
            format!(
                "The shares of all components add up to the model's own logits within {:.1e} of their difference.",
                self.report.largest_error()
            ),
        ];
        let moved = self.estimate(study, |p| p.no_less_yes[0] - p.no_less_yes[last]);
        said.push(format!(
            "Over the same strengths {} moves by {}.",
            study.words().no_less_yes(),
            moved.text()
        ));
        if !self.report.unturned.is_empty() {
            said.push(format!(
                "Left out, because the edit leaves their likeliest first token as it is: {}.",
                self.report.unturned.join(", ")
            ));
        }
        if self.tuning.prompts.is_empty() {
            said.push("The edit turns no first token of the tuning half: the components named were selected on the report half \
                itself, so expect them to look larger than they are.".into());
        }
        said
    }

    /// Which components write the direction, without any patch.
    fn said_of_direction(&self, study: &Study<'_>) -> String {
        let injection = self.report.components() - 1;
        let by = if self.tuning.prompts.is_empty() {
            &self.report
        } else {
            &self.tuning
        };
        let mut order: Vec<usize> = (0..injection).collect();
        let size =
            |&c: &usize| mean(&by.prompts.iter().map(|p| p.along[c]).collect::<Vec<_>>()).abs();
        order.sort_by(|a, b| size(b).total_cmp(&size(a)));
        let text = |&c: &usize| {
            format!(
                "{} {}",
                self.name(c),
                self.estimate(study, |p| p.along[c]).text()
            )
        };
        let first: Vec<String> = order.iter().take(3).map(text).collect();
        let put = self.estimate(study, |p| p.along[injection]).value;
        let written: f64 = (0..injection)
            .map(|c| self.estimate(study, |p| p.along[c]).value)
            .sum();
        format!(
            "Along the injected direction itself, at the last position, the edit puts {:.2} and later components write {written:.2} \
                ({}); those that write most, by the tuning half: {}.",
            put,
            if put * written < 0.0 {
                "the other way, so that they undo a part of it"
            } else {
                "the same way"
            },
            first.join(", "),
        )
    }

    fn exhibits(&self, study: &Study<'_>) -> Vec<Exhibit> {
        vec![
            self.strengths(study),
            self.bars(study),
            self.direction(study),
            self.table(study),
        ]
    }

    fn strengths(&self, study: &Study<'_>) -> Exhibit {
        let curve = |name: String, control: bool, of: &dyn Fn(&Shares, usize) -> f64| Series {
            name,
            control,
            points: (0..=self.last())
                .rev()
                .map(|s| {
                    let estimate = self.estimate(study, |p| of(p, s));
                    At {
                        x: self.report.strengths[s],
                        y: Some(estimate.value),
                        low: estimate.interval.map(|i| i[0]).filter(|_| !control),
                        high: estimate.interval.map(|i| i[1]).filter(|_| !control),
                        label: estimate.text(),
                    }
                })
                .collect(),
        };
        let mut series = vec![curve("logit difference".into(), false, &|p, s| p.logits[s])];
        series.extend(
            self.named
                .iter()
                .take(5)
                .map(|&c| curve(self.name(c), false, &|p, s| p.by_strength[s][c])),
        );
        let injection = self.report.components() - 1;
        series.push(curve("injection".into(), true, &|p, s| {
            p.by_strength[s][injection]
        }));
        Exhibit {
            name: "E6-strengths".into(),
            caption: "The logit of the edited run's first token less that of the plain run's, at 12 strengths, and what single \
                components add to it. Means over the report half's prompts, 95 % BCa intervals.".into(),
            body: Body::Lines {
                x: axis("strength c"),
                y: axis("logit difference"),
                series,
                references: vec![Reference { name: "both as likely".into(), at: 0.0 }],
            },
        }
    }

    fn bar(
        &self,
        component: usize,
        estimate: Estimate,
        points: Vec<f64>,
        published: Option<f64>,
    ) -> Bar {
        Bar {
            name: self.name(component),
            value: Some(estimate.value),
            interval: estimate.interval,
            control: component + 1 == self.report.components(),
            points,
            published,
        }
    }

    fn bars(&self, study: &Study<'_>) -> Exhibit {
        let bar = |&c: &usize| {
            let published = study
                .published(&format!("E6.{}", self.name(c)))
                .map(|p| p.value);
            self.bar(c, self.change(study, c), self.report.changes(c), published)
        };
        Exhibit {
            name: "E6-components".into(),
            caption: "What a component adds to the logit difference at the whole edit, less what it adds without one. Means over \
                the report half's prompts, 95 % BCa intervals, every prompt; selected on the tuning half.".into(),
            body: Body::Bars { y: axis("change of its share of the logit difference"), bars: self.named.iter().map(bar).collect() },
        }
    }

    fn direction(&self, study: &Study<'_>) -> Exhibit {
        let n_layers = self.report.n_layers;
        let series = ["attention", "MLP"]
            .iter()
            .enumerate()
            .map(|(kind, name)| Series {
                name: (*name).into(),
                control: false,
                points: (0..n_layers)
                    .map(|l| {
                        let estimate = self.estimate(study, |p| p.along[1 + 2 * l + kind]);
                        At {
                            x: l as f64,
                            y: Some(estimate.value),
                            low: estimate.interval.map(|i| i[0]),
                            high: estimate.interval.map(|i| i[1]),
                            label: format!("{} {}", self.name(1 + 2 * l + kind), estimate.text()),
                        }
                    })
                    .collect(),
            });
        Exhibit {
            name: "E6-direction".into(),
            caption: "Which components write the injected direction: projection of a component's output on it, at the last \
                position, with the whole edit less without one. Below 0 is the edit's way.".into(),
            body: Body::Lines { x: axis("layer"), y: axis("projection on \
                d"), series: series.collect(), references: vec![Reference { name: "nothing".into(), at: 0.0 }] },
        }
    }

    fn table(&self, study: &Study<'_>) -> Exhibit {
        let last = self.last();
        let row = |c: usize| {
            let (none, full) = (
                self.estimate(study, |p| p.by_strength[last][c]),
                self.estimate(study, |p| p.by_strength[0][c]),
            );
            let change = self.change(study, c);
            let along = self.estimate(study, |p| p.along[c]);
            let [low, high] = change.interval.map_or([None; 2], |i| i.map(Some));
            let tuning = mean(&self.tuning.changes(c));
            vec![
                self.name(c).into(),
                none.value.into(),
                full.value.into(),
                change.value.into(),
                low.into(),
                high.into(),
                tuning.into(),
                along.value.into(),
                change.n.into(),
            ]
        };
        Exhibit {
            name: "E6-table".into(),
            caption: "Every component: its share of the logit difference without the edit, with the whole edit, the change with its \
                interval, the change on the tuning half, and the change of its projection on d.".into(),
            body: Body::Table {
                columns: ["component", "none", "full", "change", "low", "high", "change_tuning", "along_d", "n"].map(String::from).into(),
                rows: (0..self.report.components()).map(row).collect(),
            },
        }
    }
}

/// Where a curve of these points, in their order, first crosses 0; `None` where it does not.
fn crossing(x: &[f64], y: &[f64]) -> Option<f64> {
    let pairs = x.windows(2).zip(y.windows(2));
    let mut crossings = pairs.filter(|(_, y)| (y[0] > 0.0) != (y[1] > 0.0));
    crossings
        .next()
        .map(|(x, y)| x[0] + (x[1] - x[0]) * y[0] / (y[0] - y[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_crosses_zero_between_two_points_or_nowhere() {
        assert_eq!(crossing(&[-8.0, -4.0, 0.0], &[3.0, 1.0, -1.0]), Some(-2.0));
        assert_eq!(crossing(&[-8.0, -4.0], &[3.0, 1.0]), None);
    }
}
