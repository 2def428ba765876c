//! Patching sweeps: what a model does when a part of one run is taken from another.
//!
//! A prompt has two runs, a clean and a corrupt one (two texts, or one text with and without the job's edits). A *denoising*
//! patch takes a part of the clean run into the corrupt one, a *noising* patch the other way. [`Sweep`] lists the parts
//! (`site`), reads the prompts (`pairs`) and measures each patched run at its last position (`metric`). `walk` runs them by
//! replay, `journal` keeps what is done, `table` writes it.

mod journal;
mod metric;
mod pairs;
mod site;
mod table;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use metric::Metric;
pub use pairs::{PromptPair, Run, read_pairs};
pub use site::{PatchSite, Positions};
pub use table::{Row, means, write};

use journal::{Journal, Part};
use metric::Measures;
use site::SiteSpec;
use walk::{Done, References, Walk};

use super::edits::note;
use super::prepared::check_seen;
use super::{EditReceipt, Error, Machine, Plan, Prepared, Result};
use crate::backend::Receipt;
use crate::hooks::Site;

/// Which run is patched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The corrupt run, with a part of the clean one.
    Denoising,
    /// The clean run, with a part of the corrupt one.
    Noising,
}

impl Way {
    /// The run that is patched.
    pub fn base(self) -> Run {
        match self {
            Way::Denoising => Run::Corrupt,
            Way::Noising => Run::Clean,
        }
    }

    /// The run that the part is taken from.
    pub fn source(self) -> Run {
        match self {
            Way::Denoising => Run::Clean,
            Way::Noising => Run::Corrupt,
        }
    }

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Denoising => "denoising",
            Way::Noising => "noising",
        }
    }
}

/// What a sweep patches and how it measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepSpec {
    /// `PATTERN[@POSITIONS]`: a patch of each place.
    pub sites: Vec<String>,
    /// The same form: a patch of every two places among them.
    pub pairs: Vec<String>,
    /// The same form: of each set, one patch of all its places together.
    pub sets: Vec<Vec<String>>,
    pub ways: Vec<Way>,
    /// All are measured in the same runs, each kind once.
    pub metrics: Vec<Metric>,
    /// Prompts of unequal lengths: match whole runs from their ends, and don't refuse.
    pub align_from_end: bool,
    /// Prompts whose runs are nearer than this by KL, in nats, are left out (where kl-recovery is among the metrics).
    pub min_kl: f64,
    /// Bytes that the streams of patched runs may take.
    pub memory: u64,
}

impl SweepSpec {
    /// Denoising patches of these places, by KL.
    pub fn new(sites: Vec<String>) -> Self {
        SweepSpec {
            sites,
            pairs: Vec::new(),
            sets: Vec::new(),
            ways: vec![Way::Denoising],
            metrics: vec![Metric::KlRecovery],
            align_from_end: false,
            min_kl: 0.01,
            memory: 1 << 30,
        }
    }
}

/// A sweep, opened: everything is checked, nothing has run.
pub struct Sweep<'p> {
    prepared: &'p Prepared,
    spec: SweepSpec,
    prompts: Vec<PromptPair>,
    /// In the order of the pass.
    sites: Vec<PatchSite>,
    /// Places, by their index among the sites, rising.
    patches: Vec<Vec<usize>>,
    /// Layers that have a site.
    layers: BTreeSet<usize>,
    measures: Measures,
}

/// How far a sweep is.
#[derive(Debug, Clone, Default)]
pub struct SweepProgress {
    /// Patched runs, done (or found done) and in all.
    pub done: u64,
    pub total: u64,
    pub layer_runs: u64,
    pub elapsed: Duration,
}

/// What a sweep found.
#[derive(Debug, Clone)]
pub struct Swept {
    /// Prompt by prompt, way by way, patch by patch, metric by metric.
    pub rows: Vec<Row>,
    /// Prompts, by their number, that were left out because their two runs hardly differ, with the KL between these.
    pub left_out: Vec<(u64, f64)>,
    /// Blocks run, each for the tokens of one run, and how many a full pass for each run would have taken.
    pub layer_runs: u64,
    pub naive_layer_runs: u64,
    /// What each place was, and what was overwritten there over all runs.
    pub receipts: Vec<EditReceipt>,
    /// Of the job's edits.
    pub edits: Vec<EditReceipt>,
    /// Parts that an earlier run had done.
    pub resumed: u64,
    pub elapsed: Duration,
}

fn bad(flag: &'static str, text: &str, why: impl Into<String>) -> crate::Error {
    Error::Sweep {
        flag,
        text: text.into(),
        why: why.into(),
    }
    .into()
}

/// The patches: of single places, of every two, of sets; none twice.
fn patches(
    sites: &[PatchSite],
    single: &BTreeSet<PatchSite>,
    paired: &BTreeSet<PatchSite>,
    sets: &[BTreeSet<PatchSite>],
) -> Vec<Vec<usize>> {
    let index: BTreeMap<&PatchSite, usize> = sites.iter().zip(0..).collect();
    let mut patches: Vec<Vec<usize>> = single.iter().map(|s| vec![index[s]]).collect();
    let paired: Vec<usize> = paired.iter().map(|s| index[s]).collect();
    for (i, &a) in paired.iter().enumerate() {
        patches.extend(paired[i + 1..].iter().map(|&b| vec![a, b]));
    }
    let mut known: BTreeSet<Vec<usize>> = patches.iter().cloned().collect();
    let of = |set: &BTreeSet<PatchSite>| set.iter().map(|s| index[s]).collect();
    let new = sets.iter().map(of).filter(|p| known.insert(Vec::clone(p)));
    let new: Vec<Vec<usize>> = new.collect();
    patches.extend(new);
    patches
}

impl<'p> Sweep<'p> {
    /// For a job that was opened for generation (it needs no taps; its edits make the clean run), and prompts of [`read_pairs`].
    ///
    /// # Errors
    /// Places that the model or the prompts don't have, a metric that a prompt lacks something for, prompts of unequal lengths
    /// without a word on how to match them, an edit that touches no row.
    pub fn new(prepared: &'p Prepared, spec: SweepSpec, prompts: Vec<PromptPair>) -> Result<Self> {
        let dims = &prepared.dims;
        let resolve = |flag, texts: &[String]| -> Result<BTreeSet<PatchSite>> {
            let mut sites = BTreeSet::new();
            for text in texts {
                sites.extend(SiteSpec::parse(flag, text)?.resolve(dims, &prompts)?);
            }
            Ok(sites)
        };
        let (single, paired) = (
            resolve("sites", &spec.sites)?,
            resolve("pairs", &spec.pairs)?,
        );
        let sets = spec.sets.iter().map(|set| resolve("sets", set));
        let sets: Vec<BTreeSet<PatchSite>> = sets.collect::<Result<_>>()?;
        if single.is_empty() && paired.len() < 2 && sets.is_empty() {
            return Err(bad(
                "sites",
                "",
                "nothing to patch: pass --sites, for example --sites 'blocks.*.hook_mlp_out', or --pairs that name two places",
            ));
        }
        if sets.iter().any(BTreeSet::is_empty) {
            return Err(bad("sets", "", "a set names no place"));
        }
        if spec.ways.is_empty() {
            return Err(bad("way", "", "choose denoising, noising or both"));
        }
        let all: BTreeSet<&PatchSite> = single
            .iter()
            .chain(&paired)
            .chain(sets.iter().flatten())
            .collect();
        let sites: Vec<PatchSite> = all.into_iter().cloned().collect();
        let patches = patches(&sites, &single, &paired, &sets);
        let sweep = Sweep {
            layers: sites.iter().map(|s| s.point.layer).collect(),
            measures: Measures::open(&spec.metrics, prepared)?,
            prepared,
            spec,
            prompts,
            sites,
            patches,
        };
        sweep.check()?;
        Ok(sweep)
    }

    fn check(&self) -> Result<()> {
        for read in self.measures.readings.iter().map(|r| r.point) {
            if let Some(site) = self.sites.iter().find(|site| site.point > read) {
                let why = format!("{site} is patched behind it: read there or after it");
                return Err(bad("direction-at", &read.to_string(), why));
            }
        }
        let whole = self.sites.iter().any(|s| s.positions == Positions::All);
        for pair in &self.prompts {
            self.measures.check(pair)?;
            let (clean, corrupt) = (
                pair.tokens(Run::Clean).len(),
                pair.tokens(Run::Corrupt).len(),
            );
            if whole && clean != corrupt && !self.spec.align_from_end {
                let why = format!(
                    "`clean` has {clean} tokens and `corrupt` {corrupt}: pass --align end to match them from their ends, or patch positions (-1, or named ones)"
                );
                let place = pair.place.clone();
                return Err(Error::Pair { place, why }.into());
            }
        }
        self.check_edits()
    }

    /// An edit that touches nothing is a mistake, and so is one that nothing measured comes after.
    fn check_edits(&self) -> Result<()> {
        let edits = &self.prepared.edits;
        let points = edits.iter().map(|e| e.edit.point);
        let taps: Vec<_> = self.measures.taps().collect();
        check_seen(edits, &Plan::new(&taps).with_edits(points, false))?;
        let mut rows = vec![0; edits.len()];
        for pair in &self.prompts {
            let selected = walk::selections(self, pair)?;
            let parts = walk::parts(pair, &selected, &[Run::Clean]);
            // Logits are computed at the last position alone.
            let last = pair.tokens(Run::Clean).len() as u32 - 1;
            let batch_edits = self.prepared.batch_edits(&parts);
            for ((rows, open), edit) in rows.iter_mut().zip(edits).zip(batch_edits) {
                let at_logits = open.edit.point.site == Site::Logits;
                let there = |row: &&u32| !at_logits || **row == last;
                *rows += edit.rows.iter().filter(there).count();
            }
        }
        match rows.iter().position(|&rows| rows == 0) {
            None => Ok(()),
            Some(edit) => Err(Error::EditTouchedNothing {
                edit: self.prepared.edits[edit].describe(),
                samples: self.prompts.len() as u64,
            }
            .into()),
        }
    }

    /// The places, in the order of the pass.
    pub fn sites(&self) -> &[PatchSite] {
        &self.sites
    }

    /// The patches: the places of each, by their index.
    pub fn patches(&self) -> &[Vec<usize>] {
        &self.patches
    }

    /// The prompts.
    pub fn prompts(&self) -> &[PromptPair] {
        &self.prompts
    }

    /// Everything that decides the numbers, for the manifest and the journal.
    pub fn record(&self, machine: &dyn Machine) -> Value {
        let identity = machine.identity();
        let tokens = |run| {
            let tokens = self.prompts.iter().flat_map(move |p| p.tokens(run));
            let bytes: Vec<u8> = tokens.flat_map(|t| t.to_le_bytes()).collect();
            crate::store::Xxh3::of(&bytes)
        };
        let ends = |p: &PromptPair| {
            json!([
                p.clean.row.tokens.len(),
                p.corrupt.row.tokens.len(),
                p.answer,
                p.wrong,
                p.named
            ])
        };
        let named: Vec<Value> = self.prompts.iter().map(ends).collect();
        json!({
            "sweep": self.spec,
            "model": self.prepared.model.fingerprint,
            "prompts": self.prompts.len(),
            "prompts_xxh3": [tokens(Run::Clean), tokens(Run::Corrupt), crate::store::Xxh3::of(json!(named).to_string().as_bytes())],
            "directions_xxh3": self.measures.directions().map(super::directions::hash_of).collect::<Vec<_>>(),
            "edits": self.prepared.edits.iter().map(|e| e.record()).collect::<Vec<_>>(),
            "backend": identity.backend,
            "device": identity.device,
            "compute_dtype": identity.compute_dtype,
            "numeric_record": identity.numeric_record,
        })
    }

    /// Runs it. `report` hears of the progress after every part.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn run(
        &self,
        machine: &mut dyn Machine,
        report: &mut dyn FnMut(&SweepProgress),
    ) -> Result<Swept> {
        self.run_with(machine, Journal::nowhere(), &|| false, report)
    }

    /// As [`Sweep::run`], keeping what is done in a journal in `dir`; with `resume`, what it holds is not done again. After each part
    /// `stop` is asked whether to end.
    ///
    /// # Errors
    /// As there; a journal that cannot be read or written, or is of another sweep; [`Error::SweepStopped`].
    pub fn run_in(
        &self,
        machine: &mut dyn Machine,
        dir: &Path,
        resume: bool,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(&SweepProgress),
    ) -> Result<Swept> {
        let journal = Journal::open(dir, &self.record(machine), resume)?;
        self.run_with(machine, journal, stop, report)
    }

    /// Whether `dir` holds this very sweep, done.
    ///
    /// # Errors
    /// It holds another one's results, or they cannot be read.
    pub fn is_done(&self, machine: &dyn Machine, dir: &Path) -> Result<bool> {
        journal::is_done(dir, &self.record(machine))
    }

    fn run_with(
        &self,
        machine: &mut dyn Machine,
        mut journal: Journal,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(&SweepProgress),
    ) -> Result<Swept> {
        let start = Instant::now();
        let total = self.prompts.iter().map(|pair| self.runs(pair).len());
        let mut progress = SweepProgress {
            total: total.sum::<usize>() as u64,
            ..SweepProgress::default()
        };
        let mut sum = Sum::new(self);
        for (prompt, pair) in self.prompts.iter().enumerate() {
            let (runs, mut references) = (self.runs(pair), None);
            let parts = runs.chunks(self.runs_of_a_part(pair));
            for (number, keys) in parts.enumerate() {
                let kept = journal.take(prompt, number);
                let is_new = kept.is_none();
                let part = match kept {
                    Some(part) => part,
                    None => {
                        let part = self.part(machine, pair, number == 0, keys, &mut references)?;
                        journal.keep(prompt, number, &part)?;
                        part
                    }
                };
                sum.add(self, prompt, keys, part);
                progress.done += keys.len() as u64;
                progress.layer_runs = sum.layer_runs;
                progress.elapsed = start.elapsed();
                report(&progress);
                if is_new && progress.done < progress.total && stop() {
                    let SweepProgress { done, total, .. } = progress;
                    return Err(Error::SweepStopped { done, total }.into());
                }
            }
        }
        Ok(sum.finish(self, journal.resumed(), start.elapsed()))
    }

    /// Every run of a prompt: `(way, places)`. Left out are patches at positions that it is too short for.
    fn runs(&self, pair: &PromptPair) -> Vec<(Way, Vec<usize>)> {
        let ways: BTreeSet<Way> = self.spec.ways.iter().copied().collect();
        let is_there = |&site: &usize| {
            let rows = self.sites[site]
                .positions
                .rows(pair, Run::Clean, Run::Corrupt);
            !rows.0.is_empty()
        };
        let patches = self.patches.iter().filter(|p| p.iter().all(is_there));
        let mut runs: Vec<_> = patches
            .flat_map(|patch| ways.iter().map(move |&way| (way, patch.clone())))
            .collect();
        runs.sort(); // runs that begin with the same patch go together
        runs
    }

    /// How many of a prompt's runs the memory is enough for: each has a stream before and one after a layer, and may share a
    /// beginning with none.
    fn runs_of_a_part(&self, pair: &PromptPair) -> usize {
        let longest = pair
            .tokens(Run::Clean)
            .len()
            .max(pair.tokens(Run::Corrupt).len());
        let stream = longest * self.prepared.dims.d_model * size_of::<f32>();
        (self.spec.memory / (4 * stream as u64)).max(1) as usize
    }

    fn part(
        &self,
        machine: &mut dyn Machine,
        pair: &PromptPair,
        is_first: bool,
        keys: &[(Way, Vec<usize>)],
        references: &mut Option<References>,
    ) -> Result<Part> {
        let mut done = Done {
            layer_runs: 0,
            patched: vec![Receipt::default(); self.sites.len()],
        };
        let references = match references {
            Some(references) => references,
            none => {
                let run = References::run(self, machine, pair)?;
                done.layer_runs += run.layer_runs;
                none.insert(run)
            }
        };
        let target = &references.target;
        let mut ends = target.clean.iter().chain(&target.corrupt);
        if let Some(&bad) = ends.find(|v| !v.is_finite()) {
            return Err(pair.lost("no patch", bad));
        }
        let too_near = self.measures.are_too_near(target, self.spec.min_kl);
        let values = if too_near {
            Vec::new()
        } else {
            let mut walk = Walk {
                sweep: self,
                machine,
                pair,
                references,
                done,
            };
            let values = walk.run(keys)?;
            done = walk.done;
            let n = self.measures.len();
            if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                let places: Vec<String> = (keys[bad / n].1.iter())
                    .map(|&site| self.sites[site].to_string())
                    .collect();
                return Err(pair.lost(&places.join(" + "), values[bad]));
            }
            values
        };
        Ok(Part {
            clean: target.clean.clone(),
            corrupt: target.corrupt.clone(),
            values,
            layer_runs: done.layer_runs,
            patched: done.patched,
            edited: if is_first {
                references.edited.clone()
            } else {
                Vec::new()
            },
        })
    }
}

/// The results so far.
struct Sum {
    rows: Vec<Row>,
    left_out: BTreeMap<u64, f64>,
    layer_runs: u64,
    naive_runs: u64,
    patched: Vec<Receipt>,
    edited: Vec<Receipt>,
}

impl Sum {
    fn new(sweep: &Sweep<'_>) -> Self {
        Sum {
            rows: Vec::new(),
            left_out: BTreeMap::new(),
            layer_runs: 0,
            naive_runs: 2 * sweep.prompts.len() as u64,
            patched: vec![Receipt::default(); sweep.sites.len()],
            edited: vec![Receipt::default(); sweep.prepared.edits.len()],
        }
    }

    fn add(&mut self, sweep: &Sweep<'_>, prompt: usize, keys: &[(Way, Vec<usize>)], part: Part) {
        self.layer_runs += part.layer_runs;
        let n_metrics = sweep.measures.len();
        self.naive_runs += (part.values.len() / n_metrics) as u64;
        for (sum, receipt) in self.patched.iter_mut().zip(&part.patched) {
            sum.add(receipt);
        }
        for (sum, receipt) in self.edited.iter_mut().zip(&part.edited) {
            sum.add(receipt);
        }
        if part.values.is_empty() {
            let kl = sweep.measures.kl(&part.corrupt);
            self.left_out.insert(prompt as u64, kl);
        }
        for ((way, patch), values) in keys.iter().zip(part.values.chunks(n_metrics)) {
            let sites = || patch.iter().map(|&s| sweep.sites[s].clone()).collect();
            let measured = (sweep.measures).recoveries(&part.clean, &part.corrupt, *way, values);
            let row = |(metric, [clean, corrupt, patched, recovery]): (_, [f64; 4])| Row {
                recovery,
                metric,
                prompt: prompt as u64,
                clean,
                corrupt,
                patched,
                way: *way,
                sites: sites(),
            };
            self.rows.extend(measured.map(row));
        }
    }

    fn finish(self, sweep: &Sweep<'_>, resumed: u64, elapsed: Duration) -> Swept {
        let prepared = sweep.prepared;
        let receipt = |(site, done): (&PatchSite, &Receipt)| EditReceipt {
            edit: "replace".into(),
            at: site.to_string(),
            selection: site.positions.to_string(),
            rows: done.rows,
            mean_norm_before: done.norm_before / done.rows.max(1) as f64,
            mean_norm_after: done.norm_after / done.rows.max(1) as f64,
            note: note(
                site.point.site,
                site.head.as_ref().map(std::slice::from_ref),
                &prepared.dims,
            ),
        };
        let edits = prepared.edits.iter().zip(&self.edited);
        Swept {
            receipts: sweep.sites.iter().zip(&self.patched).map(receipt).collect(),
            edits: edits.map(|(edit, done)| edit.receipt(done)).collect(),
            rows: self.rows,
            left_out: self.left_out.into_iter().collect(),
            layer_runs: self.layer_runs,
            naive_layer_runs: self.naive_runs * prepared.dims.n_layers as u64,
            resumed,
            elapsed,
        }
    }
}
