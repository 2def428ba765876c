//! E8: which heads carry the effect? The z of one head, at all positions, from the edited run into the plain one: its share of
//! `attn_out` by W_O.

use crate::report::finding::{Body, Exhibit, Finding, Labels, Number};

use super::effect::{self, Effect, axis, largest, next_come, said_of_no};
use super::sweeping::{Patches, sweep};
use super::{Result, Study, finding};

/// Heads whose effects are named.
const NAMED: usize = 8;
/// A mean recovery that is called large.
const LARGE: f64 = 0.05;

/// The experiment.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding(
        "Which attention heads above the edit, each by itself, bring the edited run's first token about?",
    );
    let (above, n_layers) = (study.choice()?.layer + 1, study.n_layers());
    if above >= n_layers {
        found.answer.push("No block stands above the edit.".into());
        return Ok(found);
    }
    let site = format!("blocks.{{{above}-{}}}.attn.hook_z[0--1]", n_layers - 1);
    let patches = Patches {
        sites: vec![site],
        ..Patches::default()
    };
    let patched = sweep(study, "E8", &study.prompts(None), patches)?;
    let effects = Effect::all(&patched, &study.bootstrap());
    found.answer = said(&effects);
    found
        .answer
        .extend(said_of_no(&patched, &effects, &study.bootstrap()));
    found.answer.extend(patched.said_of_left_out());
    found.answer.push(patched.said_of_replay());
    found.numbers = numbers(study, &effects);
    found.exhibits = exhibits(study, &effects);
    found.manifests.extend(patched.manifest);
    Ok(found)
}

/// How many heads have a mean recovery above `LARGE`, without sign.
fn large(effects: &[Effect]) -> usize {
    effects
        .iter()
        .filter(|e| e.recovery.value.abs() > LARGE)
        .count()
}

fn key(effect: &Effect) -> String {
    format!("E8.{}", effect.name())
}

/// The heads that are named: the largest of the tuning half, and those that were published.
fn named<'e>(study: &Study<'_>, effects: &'e [Effect]) -> Vec<&'e Effect> {
    let mut named = largest(effects, NAMED);
    for effect in effects {
        if study.published(&key(effect)).is_some() && named.iter().all(|n| n.patch != effect.patch)
        {
            named.push(effect);
        }
    }
    named
}

fn numbers(study: &Study<'_>, effects: &[Effect]) -> Vec<Number> {
    let named = named(study, effects).into_iter();
    let mut numbers: Vec<Number> = named
        .map(|e| e.number(e.name(), study.published(&key(e))))
        .collect();
    let above = effects.iter().filter(|e| e.recovery.value > LARGE).count();
    numbers.push(
        Number::new(
            format!("heads with a mean recovery above {LARGE}"),
            above as f64,
        )
        .published(study.published("E8.above-0.05"))
        .note(format!("of {} above the edit", effects.len())),
    );
    numbers
}

fn said(effects: &[Effect]) -> Vec<String> {
    let named = largest(effects, NAMED);
    let Some((first, rest)) = named.split_first() else {
        return vec![
            "No prompt could be used: the edit changes no first token's distribution.".into(),
        ];
    };
    let kept = named.iter().filter(|e| !e.recovery.may_be_zero()).count();
    let sum: f64 = effects
        .iter()
        .map(|e| e.recovery.value)
        .filter(|v| v.is_finite())
        .sum();
    vec![
        format!(
            "The head that mattered most on the tuning half, {}, on the report half (mean over prompts, 95 % BCa interval){}. Of \
                these {}, {kept} keep an interval that leaves out 0.",
            first.text(),
            next_come(rest),
            named.len(),
        ),
        format!(
            "Of {} heads above the edit, {} have a mean recovery beyond {LARGE} without sign; all of them add up to {sum:.3}.",
            effects.len(),
            large(effects),
        ),
    ]
}

fn exhibits(study: &Study<'_>, effects: &[Effect]) -> Vec<Exhibit> {
    let mut layers: Vec<usize> = effects.iter().map(Effect::layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let head = |e: &Effect| e.patch[0].head;
    let heads = effects.iter().filter_map(head).max().map_or(0, |h| h + 1);
    let value = |layer: usize, h: usize| {
        let effect = effects
            .iter()
            .find(|e| e.layer() == layer && head(e) == Some(h));
        effect.map(|e| e.recovery.value).filter(|v| v.is_finite())
    };
    let row = |&layer: &usize| (0..heads).map(|h| value(layer, h)).collect();
    vec![
        Exhibit {
            name: "E8-heads".into(),
            caption: "Mean recovery of the plain run, over the report half's prompts, with one head's z taken from the edited run.".into(),
            body: Body::Heatmap {
                rows: Labels { name: "layer".into(), labels: layers.iter().map(usize::to_string).collect() },
                columns: Labels { name: "head".into(), labels: (0..heads).map(|h| h.to_string()).collect() },
                values: layers.iter().map(row).collect(),
                value: axis("recovery"),
            },
        },
        Exhibit {
            name: "E8-largest".into(),
            caption: "The heads that were largest on the tuning half, without sign, as the report half has them: mean, 95 % BCa \
                interval, every prompt.".into(),
            body: Body::Bars {
                y: axis("recovery"),
                bars: named(study, effects).iter().map(|e| e.bar(e.name(), study.published(&key(e)))).collect(),
            },
        },
        effect::table("E8-table", "Every head above the edit, denoising.", effects),
    ]
}
