//! What C1 found, told in numbers, words and pictures.

use std::sync::Arc;

use serde_json::{Value, json};

use super::measure::{FLIPPED, KL, MEASURES, Measure, NEGATIVE, NO};
use super::{Adjectives, Equal, Kind};
use crate::analysis::null;
use crate::report::finding::{At, Axis, Bar, Body, Exhibit, Number, Series};
use crate::study::prompts::Answer;
use crate::study::push::{Effects, Summary};
use crate::study::statistics::mean;
use crate::study::tell::{self, control, draws, exhibit, number, table, with_interval};
use crate::study::{Result, Study, Words};

/// The study's own push, over prompts.
pub(super) struct Ours {
    pub summary: Summary,
    /// As `MEASURES`.
    numbers: Vec<Number>,
}

impl Ours {
    pub fn new(study: &Study<'_>, effects: &Effects, summary: Summary) -> Self {
        let values = [
            &effects.negative,
            &effects.no,
            &effects.kl,
            &effects.flipped,
            &effects.recovery,
        ];
        let numbers = MEASURES.iter().zip(values);
        Ours {
            summary,
            numbers: numbers
                .map(|(m, values)| tell::mean(study, (m.name)(study.words()), values, m.unit))
                .collect(),
        }
    }
}

/// All that is told.
pub(super) struct Outcome {
    pub words: Arc<Words>,
    pub ours: Ours,
    pub n: usize,
    pub kinds: Vec<Kind>,
    pub adjectives: Adjectives,
    /// The study's push, prompt by prompt: shifts towards the answer that is not honest.
    pub shifts: Vec<f64>,
}

impl Outcome {
    /// How often a random direction does as much, either way.
    fn p(&self, kind: usize, at: Equal, of: Measure) -> f64 {
        null::rank_p((of.of)(&self.ours.summary).abs(), &self.sizes(kind, at, of))
    }

    fn rank(&self, kind: usize, at: Equal, of: Measure) -> String {
        tell::rank((of.of)(&self.ours.summary).abs(), &self.sizes(kind, at, of))
    }

    fn sizes(&self, kind: usize, at: Equal, of: Measure) -> Vec<f64> {
        let values = self.kinds[kind].values(at, of);
        values.iter().map(|x| x.abs()).collect()
    }

    pub fn numbers(&self) -> Vec<Number> {
        let mut told = Vec::new();
        for (measure, ours) in MEASURES.iter().zip(&self.ours.numbers) {
            let mut ours = ours.clone();
            for at in [Equal::Norm, Equal::Kl] {
                ours.controls.extend(self.kinds.iter().filter_map(|kind| {
                    draws(
                        format!("{}, {}", kind.name, at.name()),
                        &kind.values(at, *measure),
                    )
                }));
            }
            ours.note = "the study's push, over prompts; of each control the mean of its directions and where 95 % of them lie".into();
            told.push(ours);
        }
        let both = [Equal::Norm, Equal::Kl];
        // At equal KL the KL tells nothing.
        for (measure, ats) in [
            (NEGATIVE, &both[..]),
            (NO, &both),
            (KL, &both[..1]),
            (FLIPPED, &both),
        ] {
            for &at in ats {
                let name = format!(
                    "p by rank among random directions {}: {}",
                    at.name(),
                    (measure.name)(&self.words)
                );
                let mut p = number(name, self.p(0, at, measure), "");
                p.controls
                    .extend(control(self.kinds[1].name, self.p(1, at, measure)));
                p.note = "share of directions whose size is at least the study's, itself counted; beside it the same among covariance-matched ones".into();
                told.push(p);
            }
        }
        let lat = &self.adjectives.lat;
        told.extend([
            number(
                "matched-pair accuracy of the irrelevant adjectives' direction",
                lat.matched_accuracy,
                "",
            ),
            number(
                "unpaired accuracy of the irrelevant adjectives' direction",
                lat.accuracy,
                "",
            ),
            number(
                "mean |cosine| of two directions of LAT on shuffled pairs",
                self.kinds[2].alike(),
                "",
            )
            .note("near 1: they are one direction up to sign"),
            number(
                "cosine of the irrelevant adjectives' direction with the study's",
                self.adjectives.cosine,
                "",
            ),
        ]);
        told
    }

    pub fn answer(&self, study: &Study<'_>) -> Result<Vec<String>> {
        let [negative, no, kl, flipped, _] = &self.ours.numbers[..] else {
            return Ok(Vec::new());
        };
        let Words { positive, name, .. } = &*self.words;
        let random = &self.kinds[0];
        let average = |at, of| mean(&random.values(at, of));
        let size = |number: &Number| number.value.unwrap_or(f64::NAN);
        let mut told = vec![format!(
            "On {} dilemmas of the report half, the study's push (|c| = {:.3}, {:.2} of the stream's mean length) moves the first token's distribution by {} nats and turns {} of the first tokens. \
             {} random directions of the same length move it by {:.3} nats and turn {:.2} on average; p = {:.2} by rank.",
            self.n,
            self.ours.summary.c.abs(),
            study.choice()?.share(),
            with_interval(kl),
            with_interval(flipped),
            random.directions.len(),
            average(Equal::Norm, KL),
            average(Equal::Norm, FLIPPED),
            self.p(0, Equal::Norm, KL),
        )];
        let p = self.p(0, Equal::Kl, NEGATIVE);
        let settled = |n: &Number| {
            n.interval
                .is_some_and(|[low, high]| low > 0.0 || high < 0.0)
        };
        let holds = settled(negative);
        told.push(format!(
            "Towards the answer that is not {positive}, whichever it is, it moves the log-odds by {} nats. Pushed as far by KL ({} of {} random directions could be), random directions move them by {:.2} on average, and {} of them by as much either way. {}",
            with_interval(negative),
            random.met,
            random.directions.len(),
            average(Equal::Kl, NEGATIVE),
            self.rank(0, Equal::Kl, NEGATIVE),
            match (holds && size(negative) > 0.0, p <= 0.05) {
                (true, true) => format!("So the answers become less {positive}, and more so than by random pushes of that effect."),
                (true, false) => format!("So the answers become less {positive}, but no more than many random pushes of that effect would make them."),
                (false, true) => "The size is rare among random pushes, but over these prompts the sign is not settled.".into(),
                (false, false) => format!("That it makes answers less {positive} than any push of that effect is not shown."),
            },
        ));
        told.push(format!(
            "Towards '{}' it moves them by {} nats: {}",
            self.words.answer(Answer::No),
            with_interval(no),
            if settled(no) {
                format!(
                    "it moves all answers {} '{}', whatever is asked and whichever answer is {positive}, by {} than towards the answer that is not {positive}.",
                    if size(no) > 0.0 { "towards" } else { "away from" },
                    self.words.answer(Answer::No),
                    if size(no).abs() > size(negative).abs() { "more" } else { "less" },
                )
            } else {
                "these prompts do not settle whether it moves all answers one way, whatever is asked.".into()
            }
        ));
        let lat = &self.adjectives.lat;
        let adjectives = &self.kinds[3];
        told.push(format!(
            "The same template with '{}' and '{}' gives a direction too: it tells matched pairs apart with {:.3} and rows by themselves with {:.3}. {} \
             Its cosine with the study's direction is {:.2}; at equal KL it moves the log-odds towards the answer that is not {positive} by {:.2} one way and {:.2} the other.",
            self.adjectives.words[0],
            self.adjectives.words[1],
            lat.matched_accuracy,
            lat.accuracy,
            if lat.matched_accuracy > 0.9 {
                format!("Matched pairs are told apart by any word of the instruction, because it leaks into every later token: that accuracy is no sign of {name}.")
            } else {
                "An irrelevant word of the instruction is told apart less well here than where it leaks into every later token.".into()
            },
            self.adjectives.cosine,
            adjectives.equal_kl.first().map_or(f64::NAN, |s| s.negative),
            adjectives.equal_kl.get(1).map_or(f64::NAN, |s| s.negative),
        ));
        told.push(format!(
            "Of directions with the stream's covariance {} do as much (at equal KL, towards the answer that is not {positive}). LAT has no null of shuffled labels: swapping them within a pair changes nothing, since it takes \
             differences about zero, and shuffling rows over all pairs leaves what rows differ in most. The {} directions that this gives have a |cosine| of {:.2} with each other on average: they are nearly one \
             direction up to sign, shown for comparison and without a p value.",
            self.rank(1, Equal::Kl, NEGATIVE),
            self.kinds[2].directions.len(),
            self.kinds[2].alike(),
        ));
        Ok(told)
    }

    pub fn exhibits(&self) -> Vec<Exhibit> {
        let positive = &self.words.positive;
        vec![
            self.scatter(Equal::Kl, NO, "C1-answers", format!(
                "What each push does to the answers, at equal KL: to the right towards '{}', upwards towards the answer that is not {positive}.",
                self.words.answer(Answer::No)
            )),
            self.scatter(Equal::Norm, KL, "C1-norm", format!(
                "Pushes of equal length: how far each moves the first token's distribution, and how far towards the answer that is not {positive}."
            )),
            self.bars(),
            self.summary(),
            self.table(),
        ]
    }

    fn scatter(&self, at: Equal, x: Measure, name: &str, caption: String) -> Exhibit {
        let dot = |summary: &Summary| At {
            x: (x.of)(summary),
            y: Some(summary.negative),
            low: None,
            high: None,
            label: format!("c = {:.3}", summary.c),
        };
        let ours = Series {
            name: "the direction".into(),
            control: false,
            points: vec![dot(&self.ours.summary)],
        };
        let others = self.kinds.iter().map(|kind| Series {
            name: kind.name.into(),
            control: kind.name == self.kinds[0].name,
            points: match at {
                Equal::Norm => kind.equal_norm.iter().map(dot).collect(),
                Equal::Kl => kind.equal_kl.iter().map(dot).collect(),
            },
        });
        exhibit(
            name,
            caption,
            Body::Scatter {
                x: Axis::new(&(x.name)(&self.words), x.unit),
                y: Axis::new(&(NEGATIVE.name)(&self.words), NEGATIVE.unit),
                series: others.chain([ours]).collect(),
                diagonal: None,
            },
        )
    }

    fn bars(&self) -> Exhibit {
        let ours = Bar {
            name: "the direction (a point per prompt)".into(),
            value: self.ours.numbers[0].value,
            interval: self.ours.numbers[0].interval,
            control: false,
            points: self.shifts.clone(),
            published: None,
        };
        let others = self.kinds.iter().map(|kind| {
            let values = kind.values(Equal::Kl, NEGATIVE);
            Bar {
                name: format!("{} (a point per direction)", kind.name),
                value: Some(mean(&values)),
                interval: tell::spread(&values),
                control: true,
                points: values,
                published: None,
            }
        });
        exhibit(
            "C1-shift",
            format!(
                "Shift towards the answer that is not {}, at equal KL. The direction's interval is over prompts; of the others 95 % of directions lie within it.",
                self.words.positive
            ),
            Body::Bars {
                y: Axis::new(&(NEGATIVE.name)(&self.words), NEGATIVE.unit),
                bars: std::iter::once(ours).chain(others).collect(),
            },
        )
    }

    fn summary(&self) -> Exhibit {
        let row = |kind: &Kind, at: Equal| -> Vec<Value> {
            let names = [
                json!(kind.name),
                json!(at.name()),
                json!(kind.directions.len()),
            ];
            let means = MEASURES.iter().map(|m| json!(mean(&kind.values(at, *m))));
            names.into_iter().chain(means).collect()
        };
        let ours = ["the direction", "its own", "1"]
            .map(|t| json!(t))
            .into_iter();
        let ours = ours
            .chain(MEASURES.iter().map(|m| json!((m.of)(&self.ours.summary))))
            .collect();
        let others = self
            .kinds
            .iter()
            .flat_map(|kind| [Equal::Norm, Equal::Kl].map(|at| row(kind, at)));
        exhibit(
            "C1-summary",
            "Means over directions.",
            table(
                &[
                    "directions",
                    "strength",
                    "n",
                    &self.words.column("towards_", &self.words.negative),
                    "towards_no",
                    "kl",
                    "flipped",
                    "recovery",
                ],
                std::iter::once(ours).chain(others).collect(),
            ),
        )
    }

    fn table(&self) -> Exhibit {
        let rows = self.kinds.iter().flat_map(|kind| {
            [(Equal::Norm, &kind.equal_norm), (Equal::Kl, &kind.equal_kl)]
                .into_iter()
                .flat_map(move |(at, summaries)| {
                    summaries.iter().enumerate().map(move |(i, s)| {
                        let measured = MEASURES.iter().map(|m| json!((m.of)(s)));
                        [json!(kind.name), json!(at.name()), json!(i), json!(s.c)]
                            .into_iter()
                            .chain(measured)
                            .collect::<Vec<Value>>()
                    })
                })
        });
        exhibit(
            "C1-directions",
            "Every push that was tried, means over prompts.",
            table(
                &[
                    "directions",
                    "strength",
                    "number",
                    "c",
                    &self.words.column("towards_", &self.words.negative),
                    "towards_no",
                    "kl",
                    "flipped",
                    "recovery",
                ],
                rows.collect(),
            ),
        )
    }
}
