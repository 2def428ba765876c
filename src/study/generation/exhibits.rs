//! What is shown of the answers: how the strength was chosen, P(no) − P(yes) with and without the edit, and the texts.

use serde_json::{Value, json};

use super::{Answered, Told};
use crate::report::finding::{At, Axis, Body, Exhibit, Reference, Series};
use crate::study::prompts::Answer;
use crate::study::{Choice, Words};

pub(super) fn strengths(choice: &Choice) -> Exhibit {
    let points = choice.tried.iter().map(|tried| At {
        label: format!("c = {:.4}, median KL {:.3} nat", tried.c, tried.median_kl),
        ..At::new(tried.share, tried.flipped)
    });
    Exhibit {
        name: "E2-strengths".into(),
        caption: "First tokens of the tuning prompts that turn, by strength: the weakest that reaches the line is taken.".into(),
        body: Body::Lines {
            x: Axis::new("|c| over mean ‖x‖", ""),
            y: Axis::new("share of first tokens flipped", ""),
            series: vec![Series {
                name: "tuning prompts".into(),
                control: false,
                points: points.collect(),
            }],
            references: vec![Reference {
                name: "enough".into(),
                at: 0.9,
            }],
        },
    }
}

pub(super) fn no_and_yes(words: &Words, answered: &[Answered<'_>]) -> Exhibit {
    let series = |honest: Answer| Series {
        name: format!("{} answer {}", words.positive, words.answer(honest)),
        control: false,
        points: answered
            .iter()
            .filter(|a| a.asked.prompt.honest == honest)
            .map(|a| At {
                label: a.asked.prompt.id.clone(),
                ..At::new(a.plain.no_less_yes, a.edited.no_less_yes)
            })
            .collect(),
    };
    let answers = words.no_less_yes();
    Exhibit {
        name: "E2-no-less-yes".into(),
        caption: format!(
            "{answers} of the first token, plain against edited, a point per prompt. A direction of {} moves the two groups apart, one of saying {} moves both up.",
            words.name,
            words.capital(Answer::No)
        ),
        body: Body::Scatter {
            x: Axis::new(&format!("{answers}, plain"), ""),
            y: Axis::new(&format!("{answers}, edited"), ""),
            series: vec![series(Answer::Yes), series(Answer::No)],
            diagonal: Some("no change".into()),
        },
    }
}

pub(super) fn texts(words: &Words, answered: &[Answered<'_>]) -> Exhibit {
    let says = |told: &Told| told.says.map_or("other", |answer| words.answer(answer));
    let row = |a: &Answered<'_>| -> Vec<Value> {
        let prompt = a.asked.prompt;
        vec![
            json!(prompt.id),
            json!(prompt.kind.name()),
            json!(prompt.half.name()),
            json!(words.answer(prompt.honest)),
            json!(says(&a.plain)),
            json!(says(&a.edited)),
            json!(a.flipped),
            json!(a.kl),
            json!(a.plain.no_less_yes),
            json!(a.edited.no_less_yes),
            json!(a.plain.nll),
            json!(a.edited.nll),
            json!(a.plain.repetition),
            json!(a.edited.repetition),
            json!(prompt.text),
            json!(a.plain.text),
            json!(a.edited.text),
        ]
    };
    let columns = [
        "id",
        "kind",
        "half",
        &words.column("", &words.positive),
        "plain_says",
        "edited_says",
        "flipped",
        "kl",
        "no_less_yes_plain",
        "no_less_yes_edited",
        "nll_plain",
        "nll_edited",
        "repetition_plain",
        "repetition_edited",
        "prompt",
        "plain",
        "edited",
    ];
    Exhibit {
        name: "E2-answers".into(),
        caption: "Every prompt with both answers, and what is measured of them.".into(),
        body: Body::Table {
            columns: columns.map(String::from).to_vec(),
            rows: answered.iter().map(row).collect(),
        },
    }
}
