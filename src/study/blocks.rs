//! E7: which blocks carry the effect? `attn_out` and `mlp_out` of one layer at a time, at all positions, taken from the edited
//! run into the plain one (denoising) and the other way (noising).

use crate::analysis::Bootstrap;
use crate::engine::sweep::Way;
use crate::hooks::Site;
use crate::report::finding::{Body, Exhibit, Finding, Number, Reference, Series};

use super::effect::{self, Effect, axis, largest, next_come, said_of_no};
use super::estimate::Estimate;
use super::patched::Patched;
use super::prompts::Half;
use super::sweeping::{Patches, sweep};
use super::{Result, Study, finding};

const WAYS: [Way; 2] = [Way::Denoising, Way::Noising];
/// Blocks whose effects are named.
const NAMED: usize = 5;

/// The experiment.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding(
        "Which attention and MLP blocks, each by itself, bring the edited run's first token about, and which can it not do without?",
    );
    let layer = study.choice()?.layer;
    let layers = format!("{{{}-{}}}", layer.saturating_sub(1), study.n_layers() - 1);
    let sites = ["hook_attn_out", "hook_mlp_out"].map(|site| format!("blocks.{layers}.{site}"));
    let patches = Patches {
        sites: sites.into(),
        ways: WAYS.to_vec(),
        ..Patches::default()
    };
    let patched = sweep(study, "E7", &study.prompts(None), patches)?;
    let blocks = Blocks {
        effects: Effect::all(&patched, &study.bootstrap()),
        edited: layer,
    };
    found.answer = blocks.answer(&patched, &study.bootstrap());
    found.numbers = blocks.numbers(study, &patched);
    found.exhibits = blocks.exhibits();
    found.manifests.extend(patched.manifest);
    Ok(found)
}

struct Blocks {
    effects: Vec<Effect>,
    /// The layer of the edit.
    edited: usize,
}

impl Blocks {
    fn of(&self, way: Way) -> impl Iterator<Item = &Effect> {
        self.effects.iter().filter(move |effect| effect.way == way)
    }

    /// The largest recovery, without sign, of a block that stands before the edit: what it writes is the same in both runs.
    fn largest_below(&self) -> f64 {
        let below = self.effects.iter().filter(|e| e.layer() <= self.edited);
        let all = below.flat_map(|e| e.points.iter().chain([&e.tuning]));
        all.filter(|r| r.is_finite())
            .map(|r| r.abs())
            .fold(0.0, f64::max)
    }

    fn numbers(&self, study: &Study<'_>, patched: &Patched) -> Vec<Number> {
        let mut numbers = Vec::new();
        for way in WAYS {
            let published =
                |e: &Effect| study.published(&format!("E7.{}.{}", way.name(), e.name()));
            let mut named = largest(self.of(way), NAMED);
            let also = self.of(way).filter(|e| published(e).is_some());
            let also: Vec<&Effect> = also
                .filter(|e| named.iter().all(|n| n.patch != e.patch))
                .collect();
            named.extend(also);
            numbers.extend(
                named
                    .iter()
                    .map(|e| e.number(format!("{}, {}", e.name(), way.name()), published(e))),
            );
        }
        let whole = patched.whole_no_less_yes(Half::Report);
        let whole = Estimate::mean(&whole, &study.bootstrap());
        let answers = study.words().no_less_yes();
        numbers.push(whole.number(format!("move of {answers} by the whole edit"), None));
        let note = format!(
            "largest recovery, without sign, at layer {} or below: must be 0",
            self.edited
        );
        numbers.push(Number::new("check: effect below the edit", self.largest_below()).note(note));
        numbers
    }

    fn answer(&self, patched: &Patched, bootstrap: &Bootstrap) -> Vec<String> {
        let mut said: Vec<String> = WAYS.iter().filter_map(|&way| self.said_of(way)).collect();
        if said.is_empty() {
            said.push(
                "No prompt could be used: the edit changes no first token's distribution.".into(),
            );
        }
        let (edited, below) = (self.edited, self.largest_below());
        said.push(if below == 0.0 {
            format!("At layer {edited} and below no patch has any effect, to the last bit, as it must be: the two runs are the same there.")
        } else {
            format!("At layer {edited} or below a patch has an effect ({below:e}), which cannot be: do not trust these numbers.")
        });
        said.extend(said_of_no(
            patched,
            self.of(Way::Denoising).filter(|e| e.layer() > edited),
            bootstrap,
        ));
        said.extend(patched.said_of_left_out());
        said.push(patched.said_of_replay());
        said
    }

    fn said_of(&self, way: Way) -> Option<String> {
        let named = largest(self.of(way), NAMED);
        let (first, rest) = named.split_first()?;
        let verb = match way {
            Way::Denoising => {
                "Put alone into the plain run (denoising), the block that mattered most on the tuning half has, on the report half, a recovery of"
            }
            Way::Noising => {
                "Taken alone out of the edited run (noising), the block that mattered most on the tuning half changes recovery, on \
                    the report half, by"
            }
        };
        let above: Vec<f64> = self
            .of(way)
            .filter(|e| e.layer() > self.edited)
            .map(|e| e.recovery.value)
            .collect();
        let large = above.iter().filter(|m| m.abs() >= 0.05).count();
        Some(format!(
            "{verb} {} (mean over prompts, 95 % BCa interval){}. Of {} blocks above the edit, {large} have a mean of 0.05 or more \
                without sign; the largest is {:.0} % of what all of them add up to, signs left out.",
            first.text(),
            next_come(rest),
            above.len(),
            100.0 * share_of_largest(&above),
        ))
    }

    fn exhibits(&self) -> Vec<Exhibit> {
        let recovery = |e: &Effect| e.recovery;
        let denoising = "Recovery of the plain run with one block's output, at all positions, taken from the edited run.";
        let noising = "Change of recovery of the edited run with one block's output taken from the plain run: 0 is no effect, −1 \
            undoes the edit.";
        let direction = "Which blocks write the direction: the share of the edit's whole move along d, read after the last block, \
            that one block's output brings into the plain run. The injection itself is not among the blocks.";
        vec![
            self.curves(
                "E7-denoising",
                denoising,
                "recovery",
                Way::Denoising,
                recovery,
            ),
            self.curves(
                "E7-noising",
                noising,
                "change of recovery",
                Way::Noising,
                recovery,
            ),
            self.curves(
                "E7-direction",
                direction,
                "share of the move along d",
                Way::Denoising,
                |e| e.along,
            ),
            effect::table("E7-blocks", "Every block, both ways.", &self.effects),
        ]
    }

    fn curves(
        &self,
        file: &str,
        caption: &str,
        y: &str,
        way: Way,
        of: impl Fn(&Effect) -> Estimate,
    ) -> Exhibit {
        let series = [(Site::AttnOut, "attention"), (Site::MlpOut, "MLP")].map(|(site, name)| {
            let points = self.of(way).filter(|e| e.patch[0].point.site == site);
            Series {
                name: name.into(),
                control: false,
                points: points.map(|e| e.at(e.layer() as f64, of(e))).collect(),
            }
        });
        Exhibit {
            name: file.into(),
            caption: format!(
                "{caption} Means over the report half's prompts, with 95 % BCa intervals."
            ),
            body: Body::Lines {
                x: axis("layer"),
                y: axis(y),
                series: series.into(),
                references: vec![Reference {
                    name: "no effect".into(),
                    at: 0.0,
                }],
            },
        }
    }
}

/// How much of the sum of all sizes is the largest.
fn share_of_largest(means: &[f64]) -> f64 {
    let sizes = || means.iter().filter(|m| m.is_finite()).map(|m| m.abs());
    sizes().fold(0.0, f64::max) / sizes().sum::<f64>().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_share_is_of_sizes_without_signs() {
        assert_eq!(share_of_largest(&[0.1, -0.3, f64::NAN]), 0.3 / (0.1 + 0.3));
        assert_eq!(share_of_largest(&[0.0]), 0.0);
    }
}
