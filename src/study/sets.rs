//! The greedy search of E9: blocks are taken into the plain run one after another, each time the one that with those already taken recovers
//! most on the tuning half; what each set recovers is reported on the other half, beside random sets of as many blocks.

use serde_json::json;

use super::effect::{Effect, axis};
use super::estimate::Estimate;
use super::patched::{Patched, name};
use super::prompts::Half;
use super::statistics::mean;
use super::sweeping::{Patches, sweep, try_out};
use super::{Result, Study};
use crate::analysis::random::Rng;
use crate::engine::sweep::{PatchSite, Way};
use crate::report::finding::{At, Body, Exhibit, Number, Reference, Series};

/// Blocks of the largest set.
const LARGEST: usize = 5;
const QUICK_LARGEST: usize = 3;
/// Random sets of each size.
const RANDOM: usize = 5;

/// What the search found.
pub(super) struct Sets {
    /// Recovery of each block alone on the tuning half, largest first.
    single: Vec<(PatchSite, f64)>,
    /// By size from 1: the set as it grew, its mean recovery on the tuning half and what it does on the report half.
    pub grown: Vec<Grown>,
    /// Every block above the edit together.
    all: Option<Effect>,
    manifest: Option<String>,
}

pub(super) struct Grown {
    /// In the order they were taken.
    taken: Vec<PatchSite>,
    tuning: f64,
    report: Effect,
    /// Mean recoveries on the report half of random sets of as many blocks.
    random: Vec<f64>,
}

/// Searches among these places, `blocks.L.hook_…` each.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn search(study: &Study<'_>, blocks: &[String]) -> Result<Sets> {
    let most = if study.options().quick {
        QUICK_LARGEST
    } else {
        LARGEST
    }
    .min(blocks.len());
    let prompts = study.prompts(Some(Half::Tuning));
    let mut sets = Sets {
        single: Vec::new(),
        grown: Vec::new(),
        all: None,
        manifest: None,
    };
    // Each with its mean on the tuning half.
    let mut taken: Vec<(Vec<String>, f64)> = Vec::new();
    while taken.len() < most {
        let (before, so_far) = taken.last().cloned().unwrap_or((Vec::new(), 0.0));
        let next = blocks.iter().filter(|b| !before.contains(b));
        let tried: Vec<Vec<String>> = next
            .map(|b| [&before[..], std::slice::from_ref(b)].concat())
            .collect();
        let found = try_out(
            study,
            &prompts,
            Patches {
                sets: tried.clone(),
                ..Patches::default()
            },
        )?;
        if taken.is_empty() {
            sets.single = ranked(&found);
        }
        let best = tried
            .into_iter()
            .map(|set| (value(&found, &set), set))
            .filter(|(r, _)| r.is_finite());
        match best.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((r, set)) if r > so_far => taken.push((set, r)),
            _ => break,
        }
    }
    sets.report(study, blocks, taken)?;
    Ok(sets)
}

/// The mean recovery of a set, given by its places' texts in any order.
fn value(found: &Patched, set: &[String]) -> f64 {
    find(found, set).map_or(f64::NAN, |patch| {
        mean(&found.recoveries(Way::Denoising, &patch, None))
    })
}

/// The set as a sweep has it.
fn find(found: &Patched, set: &[String]) -> Option<Vec<PatchSite>> {
    let is = |patch: &&[PatchSite]| {
        patch.len() == set.len()
            && patch
                .iter()
                .all(|site| set.contains(&site.point.to_string()))
    };
    found
        .patches(Way::Denoising)
        .find(is)
        .map(<[PatchSite]>::to_vec)
}

fn ranked(found: &Patched) -> Vec<(PatchSite, f64)> {
    let single = found
        .patches(Way::Denoising)
        .filter(|patch| patch.len() == 1);
    let mut ranked: Vec<(PatchSite, f64)> = single
        .map(|patch| {
            (
                patch[0].clone(),
                mean(&found.recoveries(Way::Denoising, patch, None)),
            )
        })
        .filter(|(_, r)| r.is_finite())
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// Which of `of` things make a random set of `size`, rising.
fn random_set(size: usize, of: usize, rng: &mut Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..of).collect();
    for i in 0..size.min(of) {
        order.swap(i, i + rng.below((of - i) as u32) as usize);
    }
    order.truncate(size);
    order.sort_unstable();
    order
}

impl Sets {
    /// Runs the sets on the report half, and random ones beside them.
    fn report(
        &mut self,
        study: &Study<'_>,
        blocks: &[String],
        taken: Vec<(Vec<String>, f64)>,
    ) -> Result<()> {
        let mut rng = Rng::new(study.options().seed);
        let random: Vec<Vec<Vec<String>>> = taken
            .iter()
            .map(|(set, _)| {
                let draw = |_| {
                    random_set(set.len(), blocks.len(), &mut rng)
                        .iter()
                        .map(|&i| blocks[i].clone())
                        .collect()
                };
                (0..RANDOM).map(draw).collect()
            })
            .collect();
        let mut sets: Vec<Vec<String>> = taken.iter().map(|(set, _)| set.clone()).collect();
        sets.extend(random.iter().flatten().cloned());
        sets.push(blocks.to_vec());
        let found = sweep(
            study,
            "E9-sets",
            &study.prompts(Some(Half::Report)),
            Patches {
                sets,
                ..Patches::default()
            },
        )?;
        let bootstrap = study.bootstrap();
        let effect = |set: &[String]| {
            find(&found, set).map(|patch| Effect::of(&found, Way::Denoising, &patch, &bootstrap))
        };
        self.all = effect(blocks);
        for ((set, tuning), random) in taken.iter().zip(&random) {
            let Some(report) = effect(set) else { continue };
            let site = |text: &String| {
                report
                    .patch
                    .iter()
                    .find(|s| s.point.to_string() == *text)
                    .cloned()
            };
            self.grown.push(Grown {
                taken: set.iter().filter_map(site).collect(),
                tuning: *tuning,
                random: random.iter().map(|set| value(&found, set)).collect(),
                report,
            });
        }
        self.manifest = found.manifest;
        Ok(())
    }

    /// The blocks with the largest recoveries alone on the tuning half.
    pub fn best_single(&self, n: usize) -> Vec<PatchSite> {
        self.single
            .iter()
            .take(n)
            .map(|(site, _)| site.clone())
            .collect()
    }

    pub fn manifests(&self) -> Option<String> {
        self.manifest.clone()
    }

    pub fn said(&self) -> Vec<String> {
        let Some(last) = self.grown.last() else {
            return vec![
                "No block recovers anything on the tuning half: there is no set to grow.".into(),
            ];
        };
        let mut said = vec![format!(
            "The greedy search on the tuning half took {}: on the report half these {} recover {} (tuning half {:.3}); random sets \
                of as many blocks recover {:.3} on average.",
            last.taken
                .iter()
                .map(|site| name(std::slice::from_ref(site)))
                .collect::<Vec<_>>()
                .join(", then "),
            last.taken.len(),
            last.report.recovery.text(),
            last.tuning,
            mean(&last.random),
        )];
        if let Some(all) = &self.all {
            said.push(format!("All {} blocks above the edit together recover {}; what is missing to 1 the injection itself brings, \
                or it takes both.", all.patch.len(), all.recovery.text()));
        }
        said
    }

    pub fn numbers(&self) -> Vec<Number> {
        let of = |grown: &Grown| {
            let what = format!(
                "best {} by greedy search ({})",
                grown.taken.len(),
                name(&grown.report.patch)
            );
            grown
                .report
                .number(what, None)
                .beside("random sets of as many", mean(&grown.random))
                .beside("tuning half", grown.tuning)
        };
        let mut numbers: Vec<Number> = self.grown.iter().map(of).collect();
        numbers.extend(self.all.iter().map(|all| {
            all.number(
                format!("all {} blocks above the edit", all.patch.len()),
                None,
            )
        }));
        numbers
    }

    pub fn exhibit(&self) -> Exhibit {
        let point =
            |grown: &Grown, estimate: Estimate| grown.report.at(grown.taken.len() as f64, estimate);
        let plain = |x: usize, y: f64, ends: Option<[f64; 2]>| At {
            low: ends.map(|e| e[0]),
            high: ends.map(|e| e[1]),
            ..At::new(x as f64, Some(y).filter(|y| y.is_finite()))
        };
        let ends = |random: &[f64]| {
            [
                random.iter().copied().fold(f64::INFINITY, f64::min),
                random.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ]
        };
        let series = |name: &str, control, points| Series {
            name: name.into(),
            control,
            points,
        };
        let grown = || self.grown.iter();
        Exhibit {
            name: "E9-sets".into(),
            caption: "Recovery with the sets of the greedy search patched into the plain run: selected on the tuning half, reported \
                on the other with 95 % BCa intervals; and of random sets of as many blocks (mean, smallest, largest).".into(),
            body: Body::Lines {
                x: axis("blocks"),
                y: axis("recovery"),
                series: vec![
                    series("greedy, report half", false, grown().map(|g| point(g, g.report.recovery)).collect()),
                    series("greedy, tuning half", true, grown().map(|g| plain(g.taken.len(), g.tuning, None)).collect()),
                    series("random sets, report half", true, grown().map(|g| plain(g.taken.len(), mean(&g.random), Some(ends(&g.random)))).collect()),
                ],
                references: self.all.iter().filter(|all| all.recovery.value.is_finite()).map(|all| Reference { name: "all blocks \
                    above the edit".into(), at: all.recovery.value }).collect(),
            },
        }
    }

    pub fn table(&self) -> Exhibit {
        let row = |grown: &Grown| {
            let [low, high] = grown
                .report
                .recovery
                .interval
                .map_or([None; 2], |i| i.map(Some));
            vec![
                json!(grown.taken.len()),
                json!(name(&grown.report.patch)),
                json!(grown.tuning),
                json!(grown.report.recovery.value),
                json!(low),
                json!(high),
                json!(grown.report.no_less_yes.value),
                json!(grown.report.along.value),
                json!(mean(&grown.random)),
                json!(grown.report.recovery.n),
            ]
        };
        Exhibit {
            name: "E9-sets-table".into(),
            caption: "The sets of the greedy search.".into(),
            body: Body::Table {
                columns: [
                    "blocks",
                    "set",
                    "recovery_tuning",
                    "recovery",
                    "low",
                    "high",
                    "no_less_yes",
                    "along_d",
                    "random_mean",
                    "n",
                ]
                .map(String::from)
                .into(),
                rows: self.grown.iter().map(row).collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_set_has_its_size_and_nothing_twice() {
        let mut rng = Rng::new(1);
        let sets: Vec<Vec<usize>> = (0..50).map(|_| random_set(4, 9, &mut rng)).collect();
        for set in &sets {
            assert!(set.len() == 4 && set.is_sorted_by(|a, b| a < b) && set[3] < 9);
        }
        assert!((0..9).all(|i| sets.iter().any(|set| set.contains(&i))));
    }
}
