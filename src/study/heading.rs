//! The study's page: all that the folder has found, under what holds for all of it.

use super::{EXPERIMENTS, Result, Study, folder};
use crate::report::finding::Finding;
use crate::report::page::{Heading, write};

/// Writes the page of every finding in the folder, those of earlier runs included.
pub(super) fn page(study: &Study<'_>) -> Result<()> {
    let there = EXPERIMENTS
        .iter()
        .filter_map(|e| folder::finding(study, e.id).transpose());
    let findings: Vec<Finding> = there.collect::<Result<_>>()?;
    Ok(write(&study.options().out, &heading(study)?, &findings)?)
}

fn heading(study: &Study<'_>) -> Result<Heading> {
    let (prepared, behaviour) = (study.prepared(), study.behaviour());
    let mut lead = vec![match &behaviour.source {
        Some(source) => format!(
            "The experiments of {source}, with the controls, baselines and intervals that their conclusions call for."
        ),
        None => format!(
            "What Golechha and Dao (arXiv 2402.03855) asked of dishonesty, asked of {}, with the controls, baselines and intervals that such conclusions call for.",
            behaviour.name
        ),
    }];
    match (study.published_study(), &behaviour.published) {
        (Some(published), _) => lead.push(format!(
            "The model is the published one, {}: published values stand beside ours. Those marked ° are recomputed from the authors' saved results.",
            published.model
        )),
        (None, None) => (),
        (None, Some(_)) => lead.push("The model is not the published one, so published values are not shown.".into()),
    }
    if study.options().quick {
        lead.push(super::QUICK.into());
    }
    let missing: Vec<&str> = EXPERIMENTS
        .iter()
        .map(|e| e.id)
        .filter(|id| !folder::has(study, id))
        .collect();
    if !missing.is_empty() {
        lead.push(format!("Not run: {}.", missing.join(", ")));
    }
    let mut facts = vec![
        ("model".to_owned(), prepared.job.model.clone()),
        ("fingerprint".into(), prepared.model.fingerprint.clone()),
        ("layers".into(), study.n_layers().to_string()),
        ("instruction".into(), behaviour.template.user.clone()),
        (
            "personas".into(),
            format!(
                "{} / {}",
                behaviour.template.positive, behaviour.template.negative
            ),
        ),
        (
            "facts".into(),
            format!(
                "{}, {} statements ({} of them again)",
                study.facts().file,
                study.facts().facts.len(),
                study.facts().duplicates.len()
            ),
        ),
        (
            "prompts".into(),
            format!(
                "{}, {} of them",
                study.prompts_file(),
                study.prompts(None).len()
            ),
        ),
    ];
    if let Some(choice) = folder::kept_choice(study)? {
        let how = match (choice.published, choice.reached) {
            (true, _) => ", as published",
            _ if choice.given => ", as given",
            (false, true) => "",
            (false, false) => ", the largest tried: none turns 90 % of first tokens",
        };
        facts.push(("layer of the edit".into(), choice.layer.to_string()));
        facts.push((
            "strength of the edit".into(),
            format!(
                "{:.4} ({:.2} of the mean norm{how})",
                choice.c,
                choice.share()
            ),
        ));
    }
    facts.push(("seed".into(), study.options().seed.to_string()));
    Ok(Heading {
        title: format!("{}: a study of one model", behaviour.title),
        lead,
        facts,
    })
}
