//! C1: whether what the direction does to answers is more than any push does: random directions, some with the rows' own covariance, LAT on shuffled
//! pairs, and a persona's irrelevant adjectives; at equal length and at equal KL.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cuts::Cuts;
use super::passes::point;
use super::prompts::Answer;
use super::push::{Push, Pushed, Summary};
use super::statistics::mean;
use super::tell::{self, control, draws, exhibit, number, table, with_interval};
use super::{Result, Study, Words, direction};
use crate::analysis::project::dot;
use crate::analysis::{LatResult, Matching, null};
use crate::hooks::Site;
use crate::report::finding::{At, Axis, Bar, Body, Exhibit, Finding, Number, Series};

/// Prompts that the pushes are tried on.
const PROMPTS: usize = 12;
/// Random directions, covariance-matched ones, and ones of shuffled pairs.
const DRAWS: [usize; 3] = [99, 49, 29];
const QUICK_DRAWS: [usize; 3] = [20, 10, 5];
/// No push is longer than so many times the study's.
const LONGEST: f64 = 8.0;

/// Directions that should not matter, of one kind.
struct Kind {
    name: &'static str,
    directions: Vec<Vec<f32>>,
    /// At the study's own length.
    equal_norm: Vec<Summary>,
    /// At the length that moves the first token's distribution as far.
    equal_kl: Vec<Summary>,
    /// How many of them came within 5 % of that.
    met: usize,
}

/// The direction of the other adjectives.
struct Adjectives {
    lat: LatResult,
    cosine: f64,
    words: [String; 2],
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let steer = study.steer()?;
    let pushed = Pushed::new(study, PROMPTS)?;
    let ours = pushed
        .effects(&[Push {
            v: steer.direction,
            c: steer.c,
        }])?
        .remove(0);
    let summary = ours.summary(f64::from(steer.c));
    let adjectives = Adjectives::fit(study, steer.layer)?;
    let mut kinds = kinds(study, &pushed, &adjectives)?;
    for kind in &mut kinds {
        kind.try_all(&pushed, &summary)?;
    }
    let outcome = Outcome {
        words: study.words().clone(),
        ours: Ours::new(study, &ours, summary),
        n: pushed.len(),
        kinds,
        adjectives,
        flips: ours.dishonest,
    };
    Ok(Finding {
        answer: outcome.answer(study)?,
        numbers: outcome.numbers(),
        exhibits: outcome.exhibits(),
        ..super::finding(
            "Does the direction do to the answers what a push of that size along any direction would do?",
        )
    })
}

fn kinds(study: &Study<'_>, pushed: &Pushed<'_, '_>, adjectives: &Adjectives) -> Result<Vec<Kind>> {
    let (d, seed, steer) = (study.dims().d_model, study.options().seed, study.steer()?);
    let [random, matched, shuffled] = if study.options().quick {
        QUICK_DRAWS
    } else {
        DRAWS
    };
    let words = &study.behaviour().template;
    let cuts = Cuts::new(study, &words.positive, &words.negative)?;
    let trained = &cuts.sequences()[2 * cuts.train.start..2 * cuts.train.end];
    let rows = study.last_rows(&[point(Site::ResidPost, steer.layer)], trained)?;
    let rows = rows.gather(0, 0..trained.len());
    let opposite = adjectives.lat.direction.iter().map(|x| -x).collect();
    let kind = |name, directions| Kind {
        name,
        directions,
        equal_norm: Vec::new(),
        equal_kl: Vec::new(),
        met: 0,
    };
    Ok(vec![
        kind("random", null::random(random, d, seed)),
        kind(
            "covariance-matched",
            null::covariance_matched(&pushed.stream(), d, matched, seed)?,
        ),
        kind(
            "LAT on shuffled pairs",
            null::shuffled_lat(&rows, d, shuffled, seed)?,
        ),
        kind(
            "irrelevant adjectives, ±",
            vec![adjectives.lat.direction.clone(), opposite],
        ),
    ])
}

impl Adjectives {
    fn fit(study: &Study<'_>, layer: usize) -> Result<Self> {
        let words = &study.behaviour().template;
        let words = [
            words.control_positive.clone(),
            words.control_negative.clone(),
        ];
        let cuts = Cuts::new(study, &words[0], &words[1])?;
        let lat = direction::fit(study, &cuts, &[point(Site::ResidPost, layer)])?
            .remove(0)
            .lat;
        Ok(Adjectives {
            cosine: dot(&lat.direction, study.directions()?.layer(layer)),
            lat,
            words,
        })
    }
}

impl Kind {
    /// Tries all at the study's length, then looks for the length of equal KL, all together.
    fn try_all(&mut self, pushed: &Pushed<'_, '_>, ours: &Summary) -> Result<()> {
        let length = ours.c.abs();
        let mut searches =
            vec![Matching::new(ours.kl, length, LONGEST * length); self.directions.len()];
        let mut tried: Vec<Vec<Summary>> = vec![Vec::new(); self.directions.len()];
        loop {
            let next = |(i, search): (usize, &Matching)| search.strength().map(|c| (i, c));
            let now: Vec<(usize, f64)> = searches.iter().enumerate().filter_map(next).collect();
            if now.is_empty() {
                break;
            }
            let pushes = now.iter().map(|&(i, c)| Push {
                v: &self.directions[i],
                c: c as f32,
            });
            let found = pushed.effects(&pushes.collect::<Vec<_>>())?;
            for (&(i, c), effects) in now.iter().zip(&found) {
                let summary = effects.summary(c);
                searches[i].found(summary.kl);
                tried[i].push(summary);
            }
        }
        self.met = searches.iter().filter(|search| search.is_met()).count();
        for (search, tried) in searches.iter().zip(tried) {
            let best = search
                .best()
                .and_then(|(c, _)| tried.iter().find(|t| t.c == c).copied());
            self.equal_norm.extend(tried.first());
            self.equal_kl.extend(best);
        }
        Ok(())
    }

    /// The mean |cosine| of any two.
    fn alike(&self) -> f64 {
        let of = |(i, a): (usize, &Vec<f32>)| {
            let others = self.directions[i + 1..].iter();
            others.map(|b| dot(a, b).abs()).collect::<Vec<_>>()
        };
        let cosines: Vec<f64> = self.directions.iter().enumerate().flat_map(of).collect();
        mean(&cosines)
    }

    fn values(&self, at: Equal, of: Measure) -> Vec<f64> {
        let summaries = match at {
            Equal::Norm => &self.equal_norm,
            Equal::Kl => &self.equal_kl,
        };
        summaries.iter().map(of.of).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Equal {
    Norm,
    Kl,
}

impl Equal {
    fn name(self) -> &'static str {
        match self {
            Equal::Norm => "at equal norm",
            Equal::Kl => "at equal KL",
        }
    }
}

/// One of a summary's numbers.
#[derive(Clone, Copy)]
struct Measure {
    name: fn(&Words) -> String,
    unit: &'static str,
    of: fn(&Summary) -> f64,
}

const KL: Measure = Measure {
    name: |_| "KL(edited ‖ plain) of the first token".into(),
    unit: "nat",
    of: |s| s.kl,
};
const FLIPPED: Measure = Measure {
    name: |_| "share of first tokens that turn".into(),
    unit: "",
    of: |s| s.flipped,
};
const NO: Measure = Measure {
    name: |words| {
        let no = words.answer(Answer::No);
        format!("shift of the log-odds towards '{no}'")
    },
    unit: "nat",
    of: |s| s.no,
};
const DISHONEST: Measure = Measure {
    name: |words| {
        let positive = &words.positive;
        format!("shift of the log-odds towards the answer that is not {positive}")
    },
    unit: "nat",
    of: |s| s.dishonest,
};
const RECOVERY: Measure = Measure {
    name: |_| "recovery of the edited run's distribution".into(),
    unit: "",
    of: |s| s.recovery,
};
const MEASURES: [Measure; 5] = [DISHONEST, NO, KL, FLIPPED, RECOVERY];

/// The study's own push, over prompts.
struct Ours {
    summary: Summary,
    /// As `MEASURES`.
    numbers: Vec<Number>,
}

impl Ours {
    fn new(study: &Study<'_>, effects: &super::push::Effects, summary: Summary) -> Self {
        let values = [
            &effects.dishonest,
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

struct Outcome {
    words: Arc<Words>,
    ours: Ours,
    n: usize,
    kinds: Vec<Kind>,
    adjectives: Adjectives,
    /// The study's push, prompt by prompt: shifts towards the answer that is not honest.
    flips: Vec<f64>,
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

    fn numbers(&self) -> Vec<Number> {
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
            (DISHONEST, &both[..]),
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

    fn answer(&self, study: &Study<'_>) -> Result<Vec<String>> {
        let [dishonest, no, kl, flipped, _] = &self.ours.numbers[..] else {
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
        let p = self.p(0, Equal::Kl, DISHONEST);
        let settled = |n: &Number| {
            n.interval
                .is_some_and(|[low, high]| low > 0.0 || high < 0.0)
        };
        let holds = settled(dishonest);
        told.push(format!(
            "Towards the answer that is not {positive}, whichever it is, it moves the log-odds by {} nats. Pushed as far by KL ({} of {} random directions could be), random directions move them by {:.2} on average, and {} of them by as much either way. {}",
            with_interval(dishonest),
            random.met,
            random.directions.len(),
            average(Equal::Kl, DISHONEST),
            self.rank(0, Equal::Kl, DISHONEST),
            match (holds && size(dishonest) > 0.0, p <= 0.05) {
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
                    if size(no).abs() > size(dishonest).abs() { "more" } else { "less" },
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
            adjectives.equal_kl.first().map_or(f64::NAN, |s| s.dishonest),
            adjectives.equal_kl.get(1).map_or(f64::NAN, |s| s.dishonest),
        ));
        told.push(format!(
            "Of directions with the stream's covariance {} do as much (at equal KL, towards the answer that is not {positive}). LAT has no null of shuffled labels: swapping them within a pair changes nothing, since it takes \
             differences about zero, and shuffling rows over all pairs leaves what rows differ in most. The {} directions that this gives have a |cosine| of {:.2} with each other on average: they are nearly one \
             direction up to sign, shown for comparison and without a p value.",
            self.rank(1, Equal::Kl, DISHONEST),
            self.kinds[2].directions.len(),
            self.kinds[2].alike(),
        ));
        Ok(told)
    }

    fn exhibits(&self) -> Vec<Exhibit> {
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
            y: Some(summary.dishonest),
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
                y: Axis::new(&(DISHONEST.name)(&self.words), DISHONEST.unit),
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
            points: self.flips.clone(),
            published: None,
        };
        let others = self.kinds.iter().map(|kind| {
            let values = kind.values(Equal::Kl, DISHONEST);
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
                y: Axis::new(&(DISHONEST.name)(&self.words), DISHONEST.unit),
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
