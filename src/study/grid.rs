//! E10: where does the effect live? Every layer × position of the residual stream, of `attn_out` and of `mlp_out`, taken from the edited run
//! into the plain one. By far the costliest sweep: two prompts, unless all are asked for.

use std::collections::BTreeMap;

use serde_json::json;

use super::effect::{axis, said_of_padding};
use super::patched::{Patched, block};
use super::prompts::{Answer, Half, Kind};
use super::statistics::mean;
use super::sweeping::{Patches, sweep};
use super::{Asked, Result, Study, finding};
use crate::engine::kl;
use crate::engine::sweep::{PatchSite, Positions, Way};
use crate::hooks::Site;
use crate::report::finding::{Body, Exhibit, Finding, Labels, Number};

const SITES: [(Site, &str, &str); 3] = [
    (Site::ResidPost, "resid_post", "hook_resid_post"),
    (Site::AttnOut, "attn_out", "hook_attn_out"),
    (Site::MlpOut, "mlp_out", "hook_mlp_out"),
];
/// Positions of a quick study, from the end.
const QUICK_POSITIONS: usize = 12;
/// Prompts whose two runs are nearer than this, in nats, cannot be used.
const NEAR: f64 = 0.01;

/// The experiment.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding(
        "At which layers and positions does a part of the edited run bring its first token about?",
    );
    let (layer, last) = (study.choice()?.layer, study.n_layers() - 1);
    let prompts = chosen(study)?;
    if prompts.is_empty() {
        found.answer.push(
            "No prompt could be used: the edit changes no first token's distribution.".into(),
        );
        return Ok(found);
    }
    let each = match study.options().quick {
        true => {
            let longest = prompts
                .iter()
                .map(|asked| asked.tokens().len())
                .max()
                .unwrap_or(1);
            format!("each:-{}..-1", QUICK_POSITIONS.min(longest))
        }
        false => "each".into(),
    };
    let mut sites: Vec<String> = SITES
        .iter()
        .map(|(_, _, hook)| format!("blocks.{{{layer}-{last}}}.{hook}@{each}"))
        .collect();
    // What the last layer writes at the last position is all of it that counts.
    sites.extend(
        SITES
            .iter()
            .map(|(_, _, hook)| format!("blocks.{last}.{hook}")),
    );
    let patched = sweep(
        study,
        "E10",
        &prompts,
        Patches {
            sites,
            ..Patches::default()
        },
    )?;
    let grid = Grid {
        grids: SITES
            .iter()
            .map(|&(site, name, _)| (site, name, cells(&patched, site)))
            .collect(),
        columns: columns(study, &prompts)?,
        layer,
        last,
        largest_difference: SITES
            .iter()
            .map(|&(site, _, _)| difference(&patched, site, last))
            .fold(0.0, f64::max),
        prompts: prompts
            .iter()
            .map(|asked| asked.prompt.id.clone())
            .collect(),
    };
    found.answer = grid.said();
    found.answer.extend(said_of_padding(study));
    found.answer.extend(patched.said_of_left_out());
    found.answer.push(patched.said_of_replay());
    found.numbers = grid.numbers(study);
    found.exhibits = grid.exhibits();
    found.manifests.extend(patched.manifest);
    Ok(found)
}

/// All prompts; or of the report half the first dilemma of either honest answer on which the edit has an effect (in a quick study one).
fn chosen<'s>(study: &'s Study<'_>) -> Result<Vec<Asked<'s>>> {
    if study.options().all_prompts {
        return Ok(study.prompts(None));
    }
    let half = study.prompts(Some(Half::Report));
    let tokens: Vec<&[u32]> = half.iter().map(Asked::tokens).collect();
    let plain = study.logits(&tokens, None)?;
    let edited = study.logits(&tokens, Some(study.steer()?))?;
    let rows = edited
        .chunks(study.vocab())
        .zip(plain.chunks(study.vocab()));
    let usable: Vec<Asked<'_>> = half
        .iter()
        .zip(rows)
        .filter(|(_, (e, p))| kl(e, p) >= NEAR)
        .map(|(asked, _)| *asked)
        .collect();
    let first = |honest: Answer| {
        usable
            .iter()
            .find(|a| a.prompt.kind == Kind::Dilemma && a.prompt.honest == honest)
            .copied()
    };
    let mut chosen: Vec<Asked<'_>> = [Answer::Yes, Answer::No]
        .into_iter()
        .filter_map(first)
        .collect();
    if chosen.is_empty() {
        chosen.extend(usable.first());
    }
    chosen.truncate(if study.options().quick { 1 } else { 2 });
    Ok(chosen)
}

/// Mean recovery and how many prompts it is over, by layer and by position before the end (1 is the last).
type Cells = BTreeMap<(usize, usize), (f64, usize)>;

fn cells(patched: &Patched, site: Site) -> Cells {
    let of = |patch: &[PatchSite]| {
        let [
            PatchSite {
                point,
                positions: Positions::FromEnd(first, last),
                ..
            },
        ] = patch
        else {
            return None;
        };
        if point.site != site || first != last {
            return None;
        }
        let values = patched.recoveries(Way::Denoising, patch, None);
        Some((
            (point.layer, first.unsigned_abs() as usize),
            (mean(&values), values.len()),
        ))
    };
    patched.patches(Way::Denoising).filter_map(of).collect()
}

/// The largest difference, over prompts, between the last layer's last position and its all positions, as E7 takes them.
fn difference(patched: &Patched, site: Site, last: usize) -> f64 {
    let all = block(site, last);
    let end = PatchSite {
        positions: Positions::FromEnd(-1, -1),
        ..all.clone()
    };
    let [all, end] = [all, end].map(|place| patched.recoveries(Way::Denoising, &[place], None));
    all.iter()
        .zip(&end)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// What each position is called, from −1 back: with its token, where all prompts have the same.
fn columns(study: &Study<'_>, prompts: &[Asked<'_>]) -> Result<Vec<String>> {
    let longest = prompts
        .iter()
        .map(|asked| asked.tokens().len())
        .max()
        .unwrap_or(0);
    let tokenizer = study.tokenizer()?;
    let name = |back: usize| {
        let mut ids: Vec<u32> = prompts
            .iter()
            .filter_map(|asked| {
                let tokens = asked.tokens();
                tokens.len().checked_sub(back).map(|at| tokens[at])
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        match ids[..] {
            [id] => Ok(format!(
                "-{back} {}",
                tokenizer.decode(&[id], false)?.escape_debug()
            )),
            _ => Ok(format!("-{back}")),
        }
    };
    (1..=longest).map(name).collect()
}

struct Grid {
    grids: Vec<(Site, &'static str, Cells)>,
    columns: Vec<String>,
    /// The layer of the edit, the first of the grid.
    layer: usize,
    last: usize,
    largest_difference: f64,
    prompts: Vec<String>,
}

impl Grid {
    fn cell(&self, site: Site, layer: usize, back: usize) -> Option<(f64, usize)> {
        let grid = self.grids.iter().find(|(s, _, _)| *s == site);
        grid.and_then(|(_, _, cells)| cells.get(&(layer, back)).copied())
    }

    fn numbers(&self, study: &Study<'_>) -> Vec<Number> {
        let few = "no interval: too few prompts, each is in the sweep's table";
        let number = |name: String, (value, n): (f64, usize)| {
            Number::new(name, Some(value).filter(|v| v.is_finite()))
                .over(n)
                .note(few)
        };
        let mut numbers = Vec::new();
        let mut layers = vec![self.layer, self.last];
        layers.dedup();
        for layer in layers {
            if let Some(cell) = self.cell(Site::ResidPost, layer, 1) {
                let published = study.published(&format!("E10.resid_post.{layer}.-1"));
                numbers.push(
                    number(format!("resid_post, layer {layer}, last position"), cell)
                        .published(published),
                );
            }
        }
        for (site, name, cells) in &self.grids {
            let largest = cells
                .iter()
                .max_by(|a, b| a.1.0.abs().total_cmp(&b.1.0.abs()));
            if let Some(((layer, back), cell)) = largest.filter(|_| *site != Site::ResidPost) {
                numbers.push(number(
                    format!("largest of {name}: layer {layer}, position -{back}"),
                    *cell,
                ));
            }
        }
        let note = "largest difference between the last layer's last position and E7's patch of its all positions: must be 0";
        numbers.push(Number::new("check: as E7", self.largest_difference).note(note));
        numbers
    }

    fn said(&self) -> Vec<String> {
        let value = |layer| {
            self.cell(Site::ResidPost, layer, 1)
                .map_or(f64::NAN, |cell| cell.0)
        };
        let first = (self.layer..=self.last).find(|&layer| value(layer) >= 0.9);
        let at = first.map_or(String::new(), |layer| {
            format!(" it passes 0.9 at layer {layer};")
        });
        let others = self
            .grids
            .iter()
            .filter(|(site, _, _)| *site != Site::ResidPost)
            .map(|(_, name, cells)| {
                let all: f64 = cells.values().map(|c| c.0.abs()).sum();
                let end: f64 = cells
                    .iter()
                    .filter(|(at, _)| at.1 == 1)
                    .map(|(_, c)| c.0.abs())
                    .sum();
                format!(
                    "{:.0} % of {name}'s effects, signs left out, are at the last position",
                    100.0 * end / all.max(f64::MIN_POSITIVE)
                )
            });
        let others: Vec<String> = others.collect();
        let mut said = vec![
            format!(
                "The stream at the last position alone recovers {:.3} at layer {}, where the direction is added;{at} at the last \
                    layer it is {:.3}. {}.",
                value(self.layer),
                self.layer,
                value(self.last),
                others.join("; "),
            ),
            format!(
                "Over {} alone: a picture, not an estimate. Positions are counted from the end, a column's mean is over the prompts \
                    that have it.",
                match &self.prompts[..] {
                    [one] => format!("one prompt ({one})"),
                    some if some.len() <= 4 =>
                        format!("{} prompts ({})", some.len(), some.join(", ")),
                    some => format!("{} prompts", some.len()),
                }
            ),
        ];
        said.push(match self.largest_difference {
            0.0 => "At the last layer, the last position patched alone is E7's patch of the whole block, to the last bit, \
                as it must be.".into(),
            d => format!("At the last layer, the last position patched alone differs from E7's patch of the whole block by {d:e}, \
                which cannot be: do not trust these numbers."),
        });
        said
    }

    fn exhibits(&self) -> Vec<Exhibit> {
        let mut exhibits: Vec<Exhibit> = self
            .grids
            .iter()
            .map(|(site, name, cells)| self.heatmap(*site, name, cells))
            .collect();
        let row = |name: &str, (&(layer, back), &(value, n)): (&(usize, usize), &(f64, usize))| {
            vec![
                json!(name),
                json!(layer),
                json!(-(back as i64)),
                json!(value),
                json!(n),
            ]
        };
        exhibits.push(Exhibit {
            name: "E10-table".into(),
            caption:
                "Every layer and position: mean recovery, and the prompts that have the position."
                    .into(),
            body: Body::Table {
                columns: ["component", "layer", "position", "recovery", "n"]
                    .map(String::from)
                    .into(),
                rows: self
                    .grids
                    .iter()
                    .flat_map(|(_, name, cells)| cells.iter().map(move |cell| row(name, cell)))
                    .collect(),
            },
        });
        exhibits
    }

    fn heatmap(&self, site: Site, name: &str, cells: &Cells) -> Exhibit {
        let deepest = cells.keys().map(|at| at.1).max().unwrap_or(0);
        let backs: Vec<usize> = (1..=deepest).rev().collect();
        let row = |layer: usize| {
            backs
                .iter()
                .map(|&back| {
                    self.cell(site, layer, back)
                        .map(|c| c.0)
                        .filter(|v| v.is_finite())
                })
                .collect()
        };
        Exhibit {
            name: format!("E10-{}", name.replace('_', "-")),
            caption: format!(
                "Mean recovery of the plain run with one row of {name} taken from the edited run."
            ),
            body: Body::Heatmap {
                rows: Labels {
                    name: "layer".into(),
                    labels: (self.layer..=self.last).map(|l| l.to_string()).collect(),
                },
                columns: Labels {
                    name: "position from the end".into(),
                    labels: backs
                        .iter()
                        .map(|&back| self.columns[back - 1].clone())
                        .collect(),
                },
                values: (self.layer..=self.last).map(row).collect(),
                value: axis("recovery"),
            },
        }
    }
}
