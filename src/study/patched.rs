//! Patched runs of the study's prompts: the edited run is the clean one, the plain run the corrupt one. Every sweep measures, in
//! the same runs, the recovery by KL, P(no) − P(yes), and the projection on the injected direction; here they are gathered prompt
//! by prompt.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::sweep::{PatchSite, Positions, Row, Swept, Way};
use crate::hooks::{HookPoint, Site};

use super::Words;
use super::prompts::Half;
use super::statistics::mean;

/// What one patched run did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// By its place among the sweep's prompts.
    pub prompt: usize,
    /// By KL: of a denoising patch r, of a noising one r − 1.
    pub recovery: f64,
    /// How far P(no) − P(yes) moved from the run that was patched.
    pub no_less_yes: f64,
    /// How far the projection on the direction moved from the run that was patched, and how far the whole edit moves it.
    pub along: [f64; 2],
}

/// A sweep's measurements, by patch.
#[derive(Debug)]
pub(super) struct Patched {
    /// What the report calls answers.
    pub words: Arc<Words>,
    by_patch: BTreeMap<(Way, Vec<PatchSite>), Vec<Measured>>,
    prompts: Vec<(String, Half)>,
    /// Prompts, by id, whose two runs are too near to divide by their KL, with that KL in nats.
    pub left_out: Vec<(String, f64)>,
    /// Blocks run, and how many whole passes would have run.
    layer_runs: [u64; 2],
    /// By path from the study's folder; none, where nothing was kept.
    pub manifest: Option<String>,
    /// P(no) − P(yes) of the edited and of the plain run, of the prompts that are not left out.
    ends: BTreeMap<usize, [f64; 2]>,
}

impl Patched {
    /// `prompts`: those of the sweep, in its order, by id and half.
    pub fn new(swept: &Swept, prompts: Vec<(String, Half)>, words: &Arc<Words>) -> Self {
        let mut patched = Patched {
            words: words.clone(),
            by_patch: BTreeMap::new(),
            left_out: swept
                .left_out
                .iter()
                .map(|&(prompt, kl)| (prompts[prompt as usize].0.clone(), kl))
                .collect(),
            prompts,
            layer_runs: [swept.layer_runs, swept.naive_layer_runs],
            manifest: None,
            ends: BTreeMap::new(),
        };
        for row in &swept.rows {
            patched.add(row);
        }
        patched
    }

    /// The rows of one run come one after the other.
    fn add(&mut self, row: &Row) {
        let prompt = row.prompt as usize;
        let runs = self
            .by_patch
            .entry((row.way, row.sites.clone()))
            .or_default();
        if runs.last().is_none_or(|run| run.prompt != prompt) {
            runs.push(Measured {
                prompt,
                recovery: f64::NAN,
                no_less_yes: f64::NAN,
                along: [f64::NAN; 2],
            });
        }
        let Some(run) = runs.last_mut() else { return };
        let base = match row.way {
            Way::Denoising => row.corrupt,
            Way::Noising => row.clean,
        };
        let whole = match row.way {
            Way::Denoising => row.clean - row.corrupt,
            Way::Noising => row.corrupt - row.clean,
        };
        match row.metric {
            "kl-recovery" => run.recovery = row.recovery,
            "prob-diff" => {
                run.no_less_yes = row.patched - base;
                self.ends.insert(prompt, [row.clean, row.corrupt]);
            }
            _ => run.along = [row.patched - base, whole],
        }
    }

    /// A patch's runs over the prompts of a half, or all; none, where no prompt has the place.
    pub fn of(&self, way: Way, patch: &[PatchSite], half: Option<Half>) -> Vec<Measured> {
        let runs = self.by_patch.get(&(way, patch.to_vec()));
        let runs = runs.into_iter().flatten();
        runs.filter(|run| half.is_none_or(|half| self.prompts[run.prompt].1 == half))
            .copied()
            .collect()
    }

    /// The recoveries alone.
    pub fn recoveries(&self, way: Way, patch: &[PatchSite], half: Option<Half>) -> Vec<f64> {
        let runs = self.of(way, patch, half);
        runs.into_iter().map(|run| run.recovery).collect()
    }

    /// The patches one way, in the order of the pass.
    pub fn patches(&self, way: Way) -> impl Iterator<Item = &[PatchSite]> {
        let all = self.by_patch.keys().filter(move |key| key.0 == way);
        all.map(|(_, patch)| &patch[..])
    }

    /// How far the whole edit moves P(no) − P(yes), over the prompts of a half that are not left out.
    pub fn whole_no_less_yes(&self, half: Half) -> Vec<f64> {
        let ends = self.ends.iter();
        ends.filter(|(prompt, _)| self.prompts[**prompt].1 == half)
            .map(|(_, [edited, plain])| edited - plain)
            .collect()
    }

    /// The patches with the largest mean recoveries over all prompts of the sweep, largest first.
    pub fn largest(&self, way: Way, n: usize) -> Vec<Vec<PatchSite>> {
        let mut found: Vec<(f64, &[PatchSite])> = self
            .patches(way)
            .map(|patch| (mean(&self.recoveries(way, patch, None)), patch))
            .filter(|(mean, _)| mean.is_finite())
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.truncate(n);
        found.into_iter().map(|(_, patch)| patch.to_vec()).collect()
    }

    /// What replay saved, in a sentence.
    pub fn said_of_replay(&self) -> String {
        let [run, naive] = self.layer_runs;
        format!(
            "Patched runs start at their first patched layer and share batches: {run} layers were run where whole passes run {naive}."
        )
    }

    /// A sentence on the prompts that could not be used; none, where all could.
    pub fn said_of_left_out(&self) -> Option<String> {
        if self.left_out.is_empty() {
            return None;
        }
        let of = |(id, kl): &(String, f64)| format!("{id} ({kl:.4} nat)");
        let ids: Vec<String> = self.left_out.iter().map(of).collect();
        Some(format!(
            "Left out, because the edit hardly changes the first token's distribution (KL below 0.01 nat, and recovery divides by it): {}.",
            ids.join(", ")
        ))
    }
}

/// One whole block's output at all positions.
pub(super) fn block(site: Site, layer: usize) -> PatchSite {
    PatchSite {
        point: HookPoint { site, layer },
        head: None,
        positions: Positions::All,
    }
}

/// `attn16`, `mlp20`, `L16H8`; of several places joined by `+`.
pub(super) fn name(patch: &[PatchSite]) -> String {
    let one = |site: &PatchSite| {
        let layer = site.point.layer;
        let name = match (site.point.site, site.head) {
            (_, Some(head)) => format!("L{layer}H{head}"),
            (Site::AttnOut, None) => format!("attn{layer}"),
            (Site::MlpOut, None) => format!("mlp{layer}"),
            (Site::ResidPost, None) => format!("resid{layer}"),
            _ => site.point.to_string(),
        };
        match &site.positions {
            Positions::All => name,
            some => format!("{name}@{some}"),
        }
    };
    patch.iter().map(one).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: u64, way: Way, metric: &'static str, ends: [f64; 2], patched: f64) -> Row {
        Row {
            sites: vec![block(Site::MlpOut, 2)],
            prompt,
            metric,
            clean: ends[0],
            corrupt: ends[1],
            patched,
            recovery: 0.25,
            way,
        }
    }

    fn swept(rows: Vec<Row>) -> Swept {
        Swept {
            rows,
            left_out: vec![(1, 0.002)],
            layer_runs: 40,
            naive_layer_runs: 120,
            receipts: Vec::new(),
            edits: Vec::new(),
            resumed: 0,
            elapsed: Default::default(),
        }
    }

    #[test]
    fn what_a_patch_moves_counts_from_the_run_that_was_patched() {
        let prompts = [
            ("a", Half::Tuning),
            ("b", Half::Tuning),
            ("c", Half::Report),
        ];
        let prompts = prompts.map(|(id, half)| (id.to_owned(), half)).to_vec();
        let rows = vec![
            row(2, Way::Denoising, "kl-recovery", [0.0, 4.0], 3.0),
            row(2, Way::Denoising, "prob-diff", [0.9, -0.1], 0.2),
            row(2, Way::Denoising, "direction", [-8.0, 2.0], 1.0),
            row(2, Way::Noising, "kl-recovery", [0.0, 4.0], 3.0),
            row(2, Way::Noising, "prob-diff", [0.9, -0.1], 0.7),
            row(2, Way::Noising, "direction", [-8.0, 2.0], -6.0),
        ];
        let words = Words::of(&crate::study::Behaviour::dishonesty().unwrap());
        let patched = Patched::new(&swept(rows), prompts, &Arc::new(words));
        let site = [block(Site::MlpOut, 2)];
        let denoised = patched.of(Way::Denoising, &site, Some(Half::Report))[0];
        assert!((denoised.no_less_yes - 0.3).abs() < 1e-12);
        assert_eq!(denoised.along, [-1.0, -10.0]);
        let noised = patched.of(Way::Noising, &site, Some(Half::Report))[0];
        assert!((noised.no_less_yes + 0.2).abs() < 1e-12);
        assert_eq!(noised.along, [2.0, 10.0]);
        assert!(
            patched
                .of(Way::Noising, &site, Some(Half::Tuning))
                .is_empty()
        );
        assert!((patched.whole_no_less_yes(Half::Report)[0] - 1.0).abs() < 1e-12);
        let said = patched.said_of_left_out().unwrap();
        assert!(said.ends_with("b (0.0020 nat)."), "{said}");
        let saved = patched.said_of_replay();
        assert!(saved.ends_with("40 layers were run where whole passes run 120."));
    }

    #[test]
    fn places_are_named_as_the_paper_names_them() {
        let head = PatchSite {
            head: Some(8),
            ..block(Site::Z, 16)
        };
        let at = PatchSite {
            positions: Positions::FromEnd(-1, -1),
            ..block(Site::ResidPost, 15)
        };
        assert_eq!(
            name(&[block(Site::AttnOut, 16), block(Site::MlpOut, 20)]),
            "attn16+mlp20"
        );
        assert_eq!(name(&[head]), "L16H8");
        assert_eq!(name(&[at]), "resid15@-1");
    }
}
