//! E5: which injected positions matter? Adding the direction at some positions alone is a patch of the edited layer's stream there:
//! the edited run's row into the plain run (at these alone), the plain run's into the edited one (everywhere but there).

use crate::engine::sweep::{PatchSite, Positions, Way};
use crate::hooks::Site;
use crate::report::finding::{Bar, Body, Exhibit, Finding, Number};

use super::effect::{self, Effect, axis, said_of_no, said_of_padding};
use super::patched::block;
use super::prompts::Half;
use super::sweeping::{Patches, sweep};
use super::{Result, Study, finding};

/// Positions that are taken one by one, from the end; what stands before them is taken together.
const SINGLE: usize = 12;
/// Positions of the best set.
const BEST: usize = 3;

/// The experiment.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding("Is the edit needed at every position, or do the last few carry it?");
    let layer = study.choice()?.layer;
    let prompts = study.prompts(None);
    let lengths = || prompts.iter().map(|asked| asked.tokens().len());
    let (shortest, longest) = (lengths().min().unwrap_or(1), lengths().max().unwrap_or(1));
    let single = SINGLE.min(shortest.saturating_sub(1)).max(1);
    let at = |positions: &str| format!("blocks.{layer}.hook_resid_post@{positions}");
    let mut sites = vec![at(&format!("each:-{single}..-1"))];
    if shortest > single {
        sites.push(at(&format!("-{longest}..-{}", single + 1)));
    }
    let patches = Patches {
        sites,
        ways: vec![Way::Denoising, Way::Noising],
        ..Patches::default()
    };
    let patched = sweep(study, "E5", &prompts, patches)?;
    let effects = Effect::all(&patched, &study.bootstrap());
    let best = best(&effects).into_iter();
    let best: Vec<String> = best.map(|site| at(&site.positions.to_string())).collect();
    let mut together = Vec::new();
    if !best.is_empty() {
        let patches = Patches {
            sets: vec![best],
            ..Patches::default()
        };
        let patched = sweep(
            study,
            "E5-best",
            &study.prompts(Some(Half::Report)),
            patches,
        )?;
        together = Effect::all(&patched, &study.bootstrap());
        found.manifests.extend(patched.manifest);
    }
    let positions = Found {
        layer,
        effects,
        together,
    };
    found.answer = positions.answer();
    found.answer.extend(said_of_padding(study));
    found.answer.extend(said_of_no(
        &patched,
        positions.of(Way::Denoising),
        &study.bootstrap(),
    ));
    found.answer.extend(patched.said_of_left_out());
    found.answer.push(patched.said_of_replay());
    found.numbers = positions.numbers(study);
    found.exhibits = positions.exhibits(study);
    found.manifests.extend(patched.manifest);
    Ok(found)
}

/// The single positions with the largest recoveries on the tuning half, in the order of the prompt.
fn best(effects: &[Effect]) -> Vec<PatchSite> {
    let single = effects
        .iter()
        .filter(|e| e.way == Way::Denoising && is_single(&e.patch[0]));
    let mut single: Vec<&Effect> = single.filter(|e| e.tuning.is_finite()).collect();
    single.sort_by(|a, b| b.tuning.total_cmp(&a.tuning));
    single.truncate(BEST);
    let mut sites: Vec<PatchSite> = single.iter().map(|e| e.patch[0].clone()).collect();
    sites.sort();
    sites
}

fn is_single(site: &PatchSite) -> bool {
    matches!(site.positions, Positions::FromEnd(first, last) if first == last)
}

struct Found {
    layer: usize,
    /// Of single positions and of all that stand before them, both ways.
    effects: Vec<Effect>,
    /// Of the best set: one, or none where no prompt could be used.
    together: Vec<Effect>,
}

impl Found {
    fn of(&self, way: Way) -> impl Iterator<Item = &Effect> {
        self.effects.iter().filter(move |e| e.way == way)
    }

    /// Of the position before the end, counted from 1.
    fn single(&self, way: Way, back: i32) -> Option<&Effect> {
        let site = PatchSite {
            positions: Positions::FromEnd(-back, -back),
            ..block(Site::ResidPost, self.layer)
        };
        self.of(way).find(|e| e.patch[0] == site)
    }

    fn numbers(&self, study: &Study<'_>) -> Vec<Number> {
        let mut numbers = Vec::new();
        for effect in self.of(Way::Denoising) {
            let position = label(&effect.patch[0]);
            let published = study.published(&format!("E5.position.{position}"));
            numbers.push(effect.number(format!("at {position} alone"), published));
        }
        for effect in self.of(Way::Noising) {
            let position = label(&effect.patch[0]);
            let published = study.published(&format!("E5.all-but.{position}"));
            numbers
                .push(all_but(effect).number(format!("everywhere but at {position}"), published));
        }
        for effect in &self.together {
            let name = format!("at the best three of the tuning half ({})", labels(effect));
            numbers.push(effect.number(name, study.published("E5.three")));
        }
        numbers
    }

    fn answer(&self) -> Vec<String> {
        let (Some(last), Some(without)) =
            (self.single(Way::Denoising, 1), self.single(Way::Noising, 1))
        else {
            return vec![
                "No prompt could be used: the edit changes no first token's distribution.".into(),
            ];
        };
        let mut said = vec![format!(
            "Added at the last position alone, the direction recovers {} of the edit's effect on the first token (mean over \
                prompts, 95 % BCa interval); added everywhere but there, {}.",
            last.recovery.text(),
            all_but(without).recovery.text(),
        )];
        if let Some(together) = self.together.first() {
            let alone: f64 = together
                .patch
                .iter()
                .filter_map(|site| self.of(Way::Denoising).find(|e| e.patch[0] == *site))
                .map(|e| e.recovery.value)
                .sum();
            said.push(format!(
                "At the three positions that recovered most on the tuning half ({}) together it recovers {}, where the three alone \
                    add up to {alone:.3}.",
                labels(together),
                together.recovery.text(),
            ));
        }
        if let Some(before) = self.of(Way::Denoising).find(|e| !is_single(&e.patch[0])) {
            said.push(format!(
                "At every position before these ({}) together it recovers {}.",
                label(&before.patch[0]),
                before.recovery.text()
            ));
        }
        said
    }

    fn exhibits(&self, study: &Study<'_>) -> Vec<Exhibit> {
        let mut bars: Vec<Bar> = self
            .of(Way::Denoising)
            .map(|e| {
                let position = label(&e.patch[0]);
                e.bar(
                    format!("{position} alone"),
                    study.published(&format!("E5.position.{position}")),
                )
            })
            .collect();
        bars.extend(
            self.together
                .iter()
                .map(|e| e.bar(labels(e), study.published("E5.three"))),
        );
        let without = self.of(Way::Noising).map(|e| {
            let position = label(&e.patch[0]);
            let published = study.published(&format!("E5.all-but.{position}"));
            all_but(e).bar(format!("all but {position}"), published)
        });
        bars.extend(without);
        let all: Vec<Effect> = self.effects.iter().chain(&self.together).cloned().collect();
        vec![
            Exhibit {
                name: "E5-positions".into(),
                caption: "Recovery with the direction added at one position alone, at the best three together, and at all but one; \
                    positions counted from the prompt's end. Means over the report half's prompts, 95 % BCa intervals, and every \
                    prompt.".into(),
                body: Body::Bars { y: axis("recovery"), bars },
            },
            effect::table("E5-table", "Every position; noising is the edit everywhere but there.", &all),
        ]
    }
}

/// A noising patch takes the edit away from its positions: what is left recovers 1 + (r − 1).
fn all_but(effect: &Effect) -> Effect {
    let mut effect = effect.clone();
    effect.recovery.value += 1.0;
    effect.recovery.interval = effect.recovery.interval.map(|i| i.map(|end| end + 1.0));
    effect.points.iter_mut().for_each(|point| *point += 1.0);
    effect
}

/// `-1`; `before -12` for all that stand before.
fn label(site: &PatchSite) -> String {
    match &site.positions {
        Positions::FromEnd(first, last) if first != last => format!("before {}", last + 1),
        positions => positions.to_string(),
    }
}

fn labels(effect: &Effect) -> String {
    effect
        .patch
        .iter()
        .map(label)
        .collect::<Vec<_>>()
        .join(", ")
}
