//! E4: whether the injection is still needed once an answer has begun: the edited and the plain run on the edited run's own text.

use serde_json::{Value, json};

use super::passes::{Steer, point};
use super::prompts::Half;
use super::statistics::mean;
use super::tell::{self, exhibit, labels, table, with_interval};
use super::{Asked, Result, Study};
use crate::backend::{HEAD_ROWS, HeadRows};
use crate::hooks::Site;
use crate::report::finding::{At, Axis, Body, Exhibit, Finding, Number, Reference, Series};

/// The later tokens of the published average: 2 to 29, counted from 1.
const LATER: std::ops::Range<usize> = 1..29;
/// Rows of either run that a KL is taken of at a time.
const PAIRS: usize = HEAD_ROWS / 2;

/// One token of the edited run's text.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    /// log p_edited(a) − log p_plain(a), where a is the edited run's likeliest token: nats.
    difference: f64,
    /// Whether the plain run's likeliest token is another.
    differs: bool,
    /// −log p_plain(a).
    nll: f64,
    /// KL(p_edited ‖ p_plain).
    kl: f64,
}

/// One prompt's text, first token first.
struct Answer {
    prompt: String,
    steps: Vec<Step>,
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let texts = study
        .prompts(None)
        .into_iter()
        .zip(&study.generations()?.edited);
    let report = texts.filter(|(asked, _)| asked.prompt.half == Half::Report);
    let (asked, texts): (Vec<Asked<'_>>, Vec<&[u32]>) =
        report.map(|(asked, of)| (asked, &of.tokens[..])).unzip();
    let answers = forced(study, &asked, &texts)?;
    let numbers = numbers(study, &answers, &asked)?;
    Ok(Finding {
        answer: answer(&numbers, &answers),
        exhibits: exhibits(study, &answers),
        numbers,
        ..super::finding(
            "Does the injection have to go on while the answer is written, or is the first token enough to turn it?",
        )
    })
}

/// Both runs on the texts that the edited run has written, greedily, up to its first end-of-sequence token.
fn forced(study: &Study<'_>, asked: &[Asked<'_>], texts: &[&[u32]]) -> Result<Vec<Answer>> {
    let before: Vec<Vec<u32>> = asked
        .iter()
        .zip(texts)
        .map(|(asked, text)| (asked.tokens().len() as u32 - 1..text.len() as u32 - 1).collect())
        .collect();
    let normed = |steer: Option<Steer<'_>>| -> Result<Vec<f32>> {
        let mut rows = study.rows(&[point(Site::LnFinalOut, 0)], texts, &before, steer)?;
        Ok(rows.swap_remove(0))
    };
    let steps = compared(study, &normed(Some(study.steer()?))?, &normed(None)?)?;
    let mut steps = steps.into_iter();
    let answers = asked.iter().zip(&before).map(|(asked, before)| Answer {
        prompt: asked.prompt.id.clone(),
        steps: steps.by_ref().take(before.len()).collect(),
    });
    Ok(answers.collect())
}

/// Of what the LM head reads in either run, row by row.
fn compared(study: &Study<'_>, edited: &[f32], plain: &[f32]) -> Result<Vec<Step>> {
    let d = study.dims().d_model;
    let rows = |normed| HeadRows {
        normed,
        edits: Vec::new(),
    };
    let mut machine = study.machine();
    let mut steps = Vec::with_capacity(edited.len() / d);
    for (edited, plain) in edited.chunks(PAIRS * d).zip(plain.chunks(PAIRS * d)) {
        let none = vec![None; edited.len() / d];
        let ours = machine.scores(rows(edited), &none, 1)?;
        let likeliest: Vec<Option<u32>> = ours.iter().map(|s| Some(s.argmax)).collect();
        let theirs = machine.scores(rows(plain), &likeliest, 0)?;
        let kls = machine.divergences(rows(edited), rows(plain))?;
        for ((ours, theirs), kl) in ours.iter().zip(&theirs).zip(kls) {
            let of_ours = ours.top.first().map_or(f64::NAN, |top| top.1);
            let of_theirs = theirs.logprob.unwrap_or(f64::NAN);
            steps.push(Step {
                difference: of_ours - of_theirs,
                differs: ours.argmax != theirs.argmax,
                nll: -of_theirs,
                kl,
            });
        }
    }
    Ok(steps)
}

impl Answer {
    fn later(&self) -> &[Step] {
        &self.steps[LATER.start.min(self.steps.len())..LATER.end.min(self.steps.len())]
    }
}

/// A prompt's mean over some of its tokens; `None` without any.
fn per_prompt(steps: &[Step], of: impl Fn(&Step) -> f64) -> Option<f64> {
    (!steps.is_empty()).then(|| mean(&steps.iter().map(of).collect::<Vec<_>>()))
}

fn differs(step: &Step) -> f64 {
    f64::from(u8::from(step.differs))
}

fn numbers(study: &Study<'_>, answers: &[Answer], asked: &[Asked<'_>]) -> Result<Vec<Number>> {
    let over = |name: &str, unit: &str, of: &dyn Fn(&Answer) -> Option<f64>| {
        let values: Vec<f64> = answers.iter().filter_map(of).collect();
        tell::mean(study, name, &values, unit)
    };
    let first = |of: fn(&Step) -> f64| move |a: &Answer| a.steps.first().map(of);
    let later = |of: fn(&Step) -> f64| move |a: &Answer| per_prompt(a.later(), of);
    let whole = |of: fn(&Step) -> f64| move |a: &Answer| per_prompt(&a.steps, of);
    let published = |number: Number, key: &str| number.published(study.published(key));
    let mut told = vec![
        published(
            over(
                "difference at the first token",
                "nat",
                &first(|s| s.difference),
            ),
            "E4.first-token",
        ),
        published(
            over(
                "share of prompts whose first token differs",
                "",
                &first(differs),
            ),
            "E4.first-token-flips",
        ),
        published(
            over(
                "difference at tokens 2 to 29",
                "nat",
                &later(|s| s.difference),
            ),
            "E4.later-tokens",
        ),
        published(
            over("share of tokens 2 to 29 that differ", "", &later(differs)),
            "E4.later-token-flips",
        ),
        over(
            "KL(edited ‖ plain) per token, whole text",
            "nat",
            &whole(|s| s.kl),
        ),
        over(
            "KL(edited ‖ plain), tokens 2 to 29",
            "nat",
            &later(|s| s.kl),
        ),
        over(
            "NLL of the edited run's text under the plain run",
            "nat per token",
            &whole(|s| s.nll),
        ),
    ];
    let sequences: Vec<&[u32]> = asked.iter().map(Asked::tokens).collect();
    for (name, steer) in [("plain", None), ("edited", Some(study.steer()?))] {
        let logits = study.logits(&sequences, steer)?;
        let no = logits
            .chunks_exact(study.vocab())
            .map(|row| study.no_less_yes(row));
        let no: Vec<f64> = no.collect();
        told.push(tell::mean(
            study,
            format!("{} at the first token, {name}", study.words().no_less_yes()),
            &no,
            "",
        ));
    }
    Ok(told)
}

fn answer(numbers: &[Number], answers: &[Answer]) -> Vec<String> {
    let [first, first_flips, later, later_flips, kl, ..] = numbers else {
        return Vec::new();
    };
    let share = later.value.unwrap_or(f64::NAN) / first.value.unwrap_or(f64::NAN);
    let remains = later.interval.is_some_and(|[low, _]| low > 0.0);
    let most = answers.iter().map(|a| a.steps.len()).max().unwrap_or(0);
    let ended = answers.iter().filter(|a| a.steps.len() < most).count();
    vec![
        format!(
            "On the edited run's own text, the injection raises the log-probability of its first token by {} nats, and the plain run would have begun with another token for a share of {} of {} prompts.",
            with_interval(first),
            with_interval(first_flips),
            answers.len()
        ),
        format!(
            "At tokens 2 to 29 it raises it by {} nats, {:.0} % of that; a share of {} of these tokens is not the plain run's likeliest. {}",
            with_interval(later),
            100.0 * share,
            with_interval(later_flips),
            match (remains, share < 0.5) {
                (true, true) =>
                    "So most of the work is done at the first token and the text carries on from there, but the injection still matters later.",
                (true, false) =>
                    "So the injection goes on to matter: the text alone does not carry on what its first token began.",
                (false, _) => "That it matters at all after the first token is not shown here.",
            }
        ),
        format!(
            "Over whole texts the two runs differ by {} nats a token (KL). {ended} of {} texts end before {most} tokens; what would follow their end is not counted. The prompts are the unit of the intervals, never the tokens.",
            with_interval(kl),
            answers.len()
        ),
    ]
}

fn exhibits(study: &Study<'_>, answers: &[Answer]) -> Vec<Exhibit> {
    vec![
        heatmap(
            answers,
            "E4-difference",
            "log p(edited run's likeliest token), edited less plain run, on the edited run's text. Blank after a text's end.",
            Axis::new("log p, edited less plain", "nat"),
            |s| s.difference,
        ),
        heatmap(
            answers,
            "E4-kl",
            "KL(edited ‖ plain) along the edited run's text.",
            Axis::new("KL", "nat"),
            |s| s.kl,
        ),
        lines(study, answers),
        by_prompt(answers),
    ]
}

fn heatmap(
    answers: &[Answer],
    name: &str,
    caption: &str,
    value: Axis,
    of: impl Fn(&Step) -> f64,
) -> Exhibit {
    let longest = answers.iter().map(|a| a.steps.len()).max().unwrap_or(0);
    let row = |a: &Answer| (0..longest).map(|t| a.steps.get(t).map(&of)).collect();
    exhibit(
        name,
        caption,
        Body::Heatmap {
            rows: labels("prompt", answers.iter().map(|a| a.prompt.clone())),
            columns: labels("generated token", (1..=longest).map(|t| t.to_string())),
            values: answers.iter().map(row).collect(),
            value,
        },
    )
}

fn lines(study: &Study<'_>, answers: &[Answer]) -> Exhibit {
    let longest = answers.iter().map(|a| a.steps.len()).max().unwrap_or(0);
    let series = |name: &str, of: fn(&Step) -> f64| Series {
        name: name.into(),
        control: false,
        points: (0..longest)
            .map(|t| {
                let values: Vec<f64> = answers
                    .iter()
                    .filter_map(|a| a.steps.get(t).map(of))
                    .collect();
                let ends = study.mean_interval(&values);
                At {
                    low: ends.map(|e| e[0]),
                    high: ends.map(|e| e[1]),
                    label: format!("{} prompts", values.len()),
                    ..At::new((t + 1) as f64, mean(&values))
                }
            })
            .collect(),
    };
    exhibit(
        "E4-tokens",
        "Means over the prompts whose text is that long, with their intervals.",
        Body::Lines {
            x: Axis::new("generated token", ""),
            y: Axis::new("log p difference, KL", "nat"),
            series: vec![
                series("log p, edited less plain", |s| s.difference),
                series("KL(edited ‖ plain)", |s| s.kl),
            ],
            references: vec![Reference {
                name: "no effect".into(),
                at: 0.0,
            }],
        },
    )
}

fn by_prompt(answers: &[Answer]) -> Exhibit {
    let row = |a: &Answer| -> Vec<Value> {
        let first = a.steps.first();
        vec![
            json!(a.prompt),
            json!(a.steps.len()),
            json!(first.map(|s| s.difference)),
            json!(first.map(|s| s.differs)),
            json!(per_prompt(a.later(), |s| s.difference)),
            json!(per_prompt(a.later(), differs)),
            json!(per_prompt(&a.steps, |s| s.kl)),
            json!(per_prompt(&a.steps, |s| s.nll)),
        ]
    };
    exhibit(
        "E4-prompts",
        "By prompt.",
        table(
            &[
                "prompt",
                "tokens",
                "first_difference",
                "first_differs",
                "later_difference",
                "later_differ",
                "kl_per_token",
                "nll_under_plain",
            ],
            answers.iter().map(row).collect(),
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_tokens_are_the_second_to_the_twenty_ninth_as_far_as_there_are_any() {
        let step = |i: usize| Step {
            difference: i as f64,
            differs: i.is_multiple_of(2),
            nll: 0.0,
            kl: 0.0,
        };
        let of = |n: usize| Answer {
            prompt: String::new(),
            steps: (1..=n).map(step).collect(),
        };
        let numbers = |n| {
            of(n)
                .later()
                .iter()
                .map(|s| s.difference as usize)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(48), (2..=29).collect::<Vec<_>>());
        assert_eq!(numbers(5), [2, 3, 4, 5]);
        assert_eq!(per_prompt(of(5).later(), differs), Some(0.5));
        assert_eq!(per_prompt(of(1).later(), differs), None);
    }
}
