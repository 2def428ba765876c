//! Some answers token by token, coloured by their projection on the study's direction.

use super::generation::Generations;
use super::passes::{Steer, point};
use super::prompts::Half;
use super::statistics::mean;
use super::tell::exhibit;
use super::{Result, Study};
use crate::analysis::project::dot;
use crate::engine::Generated;
use crate::hooks::Site;
use crate::report::finding::{Axis, Body, Exhibit, Text};

/// Prompts of the report half that are shown.
const SHOWN: usize = 4;

/// The plain and the edited answers to the first prompts of the report half.
///
/// # Errors
/// What a backend can fail at.
pub(super) fn answers(study: &Study<'_>) -> Result<Exhibit> {
    let layer = study.choice()?.layer;
    let Generations { plain, edited } = study.generations()?;
    let prompts = study.prompts(None);
    let shown = prompts.iter().enumerate();
    let shown: Vec<usize> = shown
        .filter(|(_, asked)| asked.prompt.half == Half::Report)
        .map(|(i, _)| i)
        .take(SHOWN)
        .collect();
    let pick = |all: &'_ [Generated]| shown.iter().map(|&i| all[i].clone()).collect::<Vec<_>>();
    let (plain, edited) = (pick(plain), pick(edited));
    let [of_plain, of_edited] = [&plain, &edited].map(|answers| projections(study, answers));
    let (of_plain, of_edited) = (of_plain?, of_edited?);
    let middle = mean(&of_plain.concat());
    let mut texts = Vec::new();
    for (i, &prompt) in shown.iter().enumerate() {
        let id = &prompts[prompt].prompt.id;
        let both = [
            ("plain", &plain[i], &of_plain[i]),
            ("edited", &edited[i], &of_edited[i]),
        ];
        for (run, generated, values) in both {
            let words = generated.new_tokens().iter();
            let words = words.map(|&t| study.tokenizer()?.decode(&[t], false).map_err(Into::into));
            texts.push(Text {
                name: format!("{id}, {run}"),
                tokens: words.collect::<Result<_>>()?,
                values: values.iter().map(|value| Some(value - middle)).collect(),
            });
        }
    }
    Ok(exhibit(
        "E2-tokens",
        format!(
            "Answers to {} prompts of the report half token by token, by the projection of layer {layer}'s stream on the direction as it is before anything is added, less the mean of the plain answers here.",
            shown.len(),
        ),
        Body::Tokens {
            value: Axis::new("projection on d, less the plain mean", ""),
            texts,
        },
    ))
}

/// Of each answer's tokens, the projection of the stream at the edited layer. Up to there the plain and the edited run of the same tokens
/// are one, so plain runs tell both.
fn projections(study: &Study<'_>, answers: &[Generated]) -> Result<Vec<Vec<f64>>> {
    let Steer {
        layer, direction, ..
    } = study.steer()?;
    let tokens: Vec<&[u32]> = answers.iter().map(|a| &a.tokens[..]).collect();
    let positions = |a: &Generated| (a.prompt_len as u32..a.tokens.len() as u32).collect();
    let positions: Vec<Vec<u32>> = answers.iter().map(positions).collect();
    let rows = study.rows(&[point(Site::ResidPost, layer)], &tokens, &positions, None)?;
    let mut rows = rows[0].chunks_exact(direction.len());
    let of = |at: &Vec<u32>| {
        let here = rows.by_ref().take(at.len());
        here.map(|row| dot(row, direction)).collect()
    };
    Ok(positions.iter().map(of).collect())
}
