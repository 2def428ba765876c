//! The runs of one prompt's patches, by replay.
//!
//! The two runs without patches go through the model once; what they hold where patches begin is kept. The patched runs then
//! walk the layers together, from one layer with patched places to the next. A run joins at the layer of its first patch, from
//! the stream of the run that it equals until there: one of the two, or, for several places together, the run that has the first
//! of them alone, which walks along once for all patches that begin with these. So nothing is computed twice, and nothing that cannot change.
//! All runs that are at a layer go through it in the same batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;

use super::metric::{Target, plain_tap};
use super::pairs::{PromptPair, Run};
use super::{Sweep, Way};
use crate::backend::{Batch, Change, Edit, EditSpec, Receipt, Sink, SinkSpec};
use crate::engine::machine::SavedResidual;
use crate::engine::selected::{Part, SelectedSample};
use crate::engine::{Machine, Plan, Result};
use crate::hooks::{HookPoint, Site};

/// Runs whose logits exist at a time.
const RUNS_OF_A_BATCH: usize = 128;

/// A run by what is patched in it: which way, and the places in the order of the pass.
type Key = (Way, Vec<usize>);

/// What was done.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    /// Blocks run, each for one run's tokens.
    pub layer_runs: u64,
    /// Per site of the sweep.
    pub patched: Vec<Receipt>,
}

/// One prompt's runs without patches.
pub(super) struct References {
    /// By layer, the stream that enters it, `[tokens, d]`.
    streams: [BTreeMap<usize, Vec<f32>>; 2],
    /// By hook point, every row.
    values: [BTreeMap<HookPoint, Vec<f32>>; 2],
    /// Which rows the job's edits take in each run.
    selected: [SelectedSample; 2],
    pub target: Target,
    /// What the job's edits did.
    pub edited: Vec<Receipt>,
    pub layer_runs: u64,
}

impl References {
    /// Runs both.
    pub fn run(sweep: &Sweep<'_>, machine: &mut dyn Machine, pair: &PromptPair) -> Result<Self> {
        let prepared = sweep.prepared;
        let selected = selections(sweep, pair)?;
        let stream_at: BTreeMap<usize, HookPoint> =
            sweep.layers.iter().map(|&l| (l, enters(l))).collect();
        let wanted: BTreeSet<HookPoint> = sweep
            .sites
            .iter()
            .map(|site| site.point)
            .chain(stream_at.values().copied())
            .collect();
        let mut taps: Vec<_> = wanted.iter().map(|&point| plain_tap(point)).collect();
        taps.extend(sweep.measures.taps());
        let edited_points = prepared.edits.iter().map(|e| e.edit.point);
        let plan = Plan::new(&taps).with_edits(edited_points, false);
        let mut both = Unpatched {
            sweep,
            pair,
            selected: &selected,
            wanted: &wanted,
            plan: &plan,
            values: [BTreeMap::new(), BTreeMap::new()],
            read: [Vec::new(), Vec::new()],
            edited: vec![Receipt::default(); prepared.edits.len()],
        };
        let runs = [Run::Clean, Run::Corrupt];
        let tokens: usize = runs.iter().map(|&run| pair.tokens(run).len()).sum();
        if tokens <= prepared.job.batch_tokens {
            both.run(machine, &runs)?;
        } else {
            runs.iter().try_for_each(|&run| both.run(machine, &[run]))?;
        }
        let Unpatched {
            values,
            read,
            edited,
            ..
        } = both;
        let n_layers = prepared.dims.n_layers;
        let streams = [0, 1].map(|run: usize| {
            let stream = |(&l, point): (&usize, &HookPoint)| (l, values[run][point].clone());
            stream_at.iter().map(stream).collect()
        });
        let [clean, corrupt] = [0, 1].map(|run: usize| sweep.measures.of_run(&read[run], 0));
        Ok(References {
            target: sweep.measures.target(pair, [&clean, &corrupt]),
            streams,
            values,
            selected,
            edited,
            layer_runs: 2 * plan.layers_run(n_layers) as u64,
        })
    }
}

/// What is read of the runs without patches.
struct Unpatched<'a, 'p> {
    sweep: &'a Sweep<'p>,
    pair: &'a PromptPair,
    selected: &'a [SelectedSample; 2],
    wanted: &'a BTreeSet<HookPoint>,
    plan: &'a Plan,
    values: [BTreeMap<HookPoint, Vec<f32>>; 2],
    /// By reading.
    read: [Vec<Vec<f32>>; 2],
    edited: Vec<Receipt>,
}

impl Unpatched<'_, '_> {
    /// Runs these together, in one batch.
    fn run(&mut self, machine: &mut dyn Machine, runs: &[Run]) -> Result<()> {
        let (sweep, prepared) = (self.sweep, self.sweep.prepared);
        let batch = Batch::pack(runs.iter().map(|&run| self.pair.tokens(run)));
        let lengths: Vec<u32> = batch.samples().map(|rows| rows.len() as u32).collect();
        let width = |p: &HookPoint| p.site.row_shape(&prepared.dims).iter().product::<usize>();
        let mut memory: Vec<Vec<f32>> = (self.wanted.iter())
            .map(|point| vec![0.0; batch.rows() * width(point)])
            .collect();
        let mut read = sweep.measures.memory(runs.len());
        let plain = Arc::new(SinkSpec::plain());
        let mut sinks: Vec<Sink<'_>> = memory
            .iter_mut()
            .map(|memory| {
                let rows = (0..batch.rows() as u32).collect();
                let bytes = bytemuck::cast_slice_mut(memory);
                Sink::new(Arc::clone(&plain), rows, lengths.clone(), bytes, None)
            })
            .collect();
        sinks.extend(sweep.measures.sinks(&batch, &mut read));
        let edits = prepared.batch_edits(&parts(self.pair, self.selected, runs));
        let n_layers = prepared.dims.n_layers;
        let edited = machine.run(&batch, sinks, edits, n_layers, self.plan)?;
        for (sum, receipt) in self.edited.iter_mut().zip(&edited) {
            sum.add(receipt);
        }
        for (i, (&run, rows)) in runs.iter().zip(batch.samples()).enumerate() {
            let of_run = sweep.measures.of_run(&read, i);
            self.read[run as usize] = of_run.into_iter().map(<[f32]>::to_vec).collect();
            for (&point, memory) in self.wanted.iter().zip(&memory) {
                let width = width(&point);
                let rows = rows.start * width..rows.end * width;
                self.values[run as usize].insert(point, memory[rows].to_vec());
            }
        }
        Ok(())
    }
}

/// The point that holds what enters a block, its own edits not made yet.
fn enters(layer: usize) -> HookPoint {
    match layer.checked_sub(1) {
        None => HookPoint {
            site: Site::Embed,
            layer: 0,
        },
        Some(layer) => HookPoint {
            site: Site::ResidPost,
            layer,
        },
    }
}

/// The rows that the job's edits take of the clean run, and none of the corrupt one.
pub(super) fn selections(sweep: &Sweep<'_>, pair: &PromptPair) -> Result<[SelectedSample; 2]> {
    let clean = sweep.prepared.select(&pair.clean)?;
    let corrupt = SelectedSample {
        positions: vec![Vec::new(); clean.positions.len()],
        clipped: 0,
    };
    Ok([clean, corrupt])
}

pub(super) fn parts<'a>(
    pair: &PromptPair,
    selected: &'a [SelectedSample; 2],
    runs: &[Run],
) -> Vec<Part<'a>> {
    let part = |&run: &Run| Part {
        sample: pair.sample(run).row.sample,
        selected: &selected[run as usize],
        positions: 0..pair.tokens(run).len() as u32,
    };
    runs.iter().map(part).collect()
}

/// The walk of one prompt's patched runs.
pub(super) struct Walk<'a, 'p> {
    pub sweep: &'a Sweep<'p>,
    pub machine: &'a mut dyn Machine,
    pub pair: &'a PromptPair,
    pub references: &'a References,
    pub done: Done,
}

/// A run that goes through the next layers.
struct Joined<'a> {
    key: &'a Key,
    stream: &'a [f32],
    /// The places patched in the first of these layers.
    now: Vec<usize>,
}

impl Walk<'_, '_> {
    /// The metrics' values of each run, in order: `(way, places)`, the places in the order of the pass.
    pub fn run(&mut self, runs: &[Key]) -> Result<Vec<f64>> {
        let (sweep, references) = (self.sweep, self.references);
        let layer = |site: usize| sweep.sites[site].point.layer;
        let sites = || runs.iter().flat_map(|(_, sites)| sites);
        let layers: BTreeSet<usize> = sites().map(|&site| layer(site)).collect();
        let layers: Vec<usize> = layers.into_iter().collect();
        let mut live: BTreeMap<Key, Vec<f32>> = BTreeMap::new();
        let mut values: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
        for (i, &l) in layers.iter().enumerate() {
            let keys: BTreeSet<Key> = runs
                .iter()
                .map(|(way, sites)| (*way, until(sites, |site| layer(site) <= l)))
                .filter(|(_, sites)| !sites.is_empty())
                .collect();
            let joined = keys.iter().map(|key| {
                let before = until(&key.1, |site| layer(site) < l);
                let now = key.1[before.len()..].to_vec();
                let stream = match before.is_empty() {
                    true => &references.streams[key.0.base() as usize][&l],
                    false => &live[&(key.0, before)],
                };
                Joined { key, stream, now }
            });
            let joined: Vec<Joined<'_>> = joined.collect();
            let mut next = BTreeMap::new();
            for batch in self.batches(&joined) {
                match layers.get(i + 1) {
                    Some(&end) => self.through(batch, l, end, &mut next)?,
                    None => self.run_to_the_end(batch, l, &mut values)?,
                }
            }
            live = next;
        }
        Ok(runs.iter().flat_map(|key| &values[key]).copied().collect())
    }

    /// Cuts the runs into batches.
    fn batches<'j, 'k>(&self, joined: &'j [Joined<'k>]) -> Vec<&'j [Joined<'k>]> {
        let limit = self.sweep.prepared.job.batch_tokens;
        let tokens = |joined: &Joined<'_>| self.pair.tokens(joined.key.0.base()).len();
        let mut batches = Vec::new();
        let (mut first, mut rows) = (0, 0);
        for (i, joined_run) in joined.iter().enumerate() {
            let full = rows + tokens(joined_run) > limit || i - first == RUNS_OF_A_BATCH;
            if i > first && full {
                batches.push(&joined[first..i]);
                (first, rows) = (i, 0);
            }
            rows += tokens(joined_run);
        }
        if first < joined.len() {
            batches.push(&joined[first..]);
        }
        batches
    }

    /// Takes runs from the entry of layer `from` to that of layer `end`.
    fn through(
        &mut self,
        runs: &[Joined<'_>],
        from: usize,
        end: usize,
        next: &mut BTreeMap<Key, Vec<f32>>,
    ) -> Result<()> {
        let batch = self.pack(runs);
        let d = self.sweep.prepared.dims.d_model;
        let mut memory = vec![0.0_f32; batch.rows() * d];
        let sink = Sink::new(
            Arc::new(SinkSpec::plain()),
            (0..batch.rows() as u32).collect(),
            batch.samples().map(|rows| rows.len() as u32).collect(),
            bytemuck::cast_slice_mut(&mut memory),
            None,
        );
        let plan = Plan::new(&[plain_tap(enters(end))]);
        self.replay(&batch, runs, from, vec![sink], plan)?;
        for (run, rows) in runs.iter().zip(batch.samples()) {
            let stream = memory[rows.start * d..rows.end * d].to_vec();
            next.insert(run.key.clone(), stream);
        }
        Ok(())
    }

    /// Takes runs from the entry of layer `from` to the metrics.
    fn run_to_the_end(
        &mut self,
        runs: &[Joined<'_>],
        from: usize,
        values: &mut BTreeMap<Key, Vec<f64>>,
    ) -> Result<()> {
        let (measures, target) = (&self.sweep.measures, &self.references.target);
        let batch = self.pack(runs);
        let mut read = measures.memory(runs.len());
        let sinks = measures.sinks(&batch, &mut read);
        let taps: Vec<_> = measures.taps().collect();
        self.replay(&batch, runs, from, sinks, Plan::new(&taps))?;
        let measured: Vec<Vec<f64>> = (0..runs.len())
            .into_par_iter()
            .map(|run| measures.values(target, &measures.of_run(&read, run)))
            .collect();
        values.extend(runs.iter().map(|run| run.key.clone()).zip(measured));
        Ok(())
    }

    fn pack(&self, runs: &[Joined<'_>]) -> Batch {
        Batch::pack(runs.iter().map(|run| self.pair.tokens(run.key.0.base())))
    }

    fn replay(
        &mut self,
        batch: &Batch,
        runs: &[Joined<'_>],
        from: usize,
        sinks: Vec<Sink<'_>>,
        plan: Plan,
    ) -> Result<()> {
        let prepared = self.sweep.prepared;
        let bases: Vec<Run> = runs.iter().map(|run| run.key.0.base()).collect();
        let parts = parts(self.pair, &self.references.selected, &bases);
        let mut edits = prepared.batch_edits(&parts);
        let own = edits.len();
        let patches = self.patches(batch, runs);
        let points = prepared.edits.iter().map(|e| e.edit.point);
        let patched = patches.keys().map(|&site| self.sweep.sites[site].point);
        let plan = plan.with_edits(points.chain(patched), false);
        let sites: Vec<usize> = patches.keys().copied().collect();
        edits.extend(patches.into_values());
        let stream: Vec<f32> = runs.iter().flat_map(|run| run.stream).copied().collect();
        let start = SavedResidual {
            layer: from,
            rows: &stream,
        };
        let n_layers = prepared.dims.n_layers;
        let receipts = self
            .machine
            .run_from(start, batch, sinks, edits, n_layers, &plan)?;
        for (&site, receipt) in sites.iter().zip(&receipts[own..]) {
            self.done.patched[site].add(receipt);
        }
        self.done.layer_runs += (runs.len() * (plan.layers_run(n_layers) - from)) as u64;
        Ok(())
    }

    /// The patches of these runs' first layer, as edits of the batch, by site.
    fn patches(&self, batch: &Batch, runs: &[Joined<'_>]) -> BTreeMap<usize, Edit> {
        let dims = &self.sweep.prepared.dims;
        let sites: BTreeSet<usize> = runs.iter().flat_map(|run| &run.now).copied().collect();
        let edit = |site: usize| {
            let place = &self.sweep.sites[site];
            let columns = place.columns(dims);
            let width: usize = place.point.site.row_shape(dims).iter().product();
            let (mut rows, mut per_sample, mut replacement) = (Vec::new(), Vec::new(), Vec::new());
            for (run, batch_rows) in runs.iter().zip(batch.samples()) {
                if !run.now.contains(&site) {
                    per_sample.push(0);
                    continue;
                }
                let (way, from) = (run.key.0, run.key.0.source());
                let (to_rows, from_rows) = place.positions.rows(self.pair, way.base(), from);
                per_sample.push(to_rows.len() as u32);
                rows.extend(to_rows.iter().map(|r| batch_rows.start as u32 + r));
                let values = &self.references.values[from as usize][&place.point];
                for row in from_rows {
                    let row = &values[row as usize * width..][..width];
                    match &columns[..] {
                        [] => replacement.extend_from_slice(row),
                        some => replacement.extend(some.iter().flat_map(|c| &row[c.clone()])),
                    }
                }
            }
            let spec = EditSpec {
                columns,
                heads: Vec::new(),
                change: Change::Replace,
            };
            Edit::new(Arc::new(spec), rows, per_sample, replacement)
        };
        sites.into_iter().map(|site| (site, edit(site))).collect()
    }
}

/// The first places, while it holds.
fn until(sites: &[usize], holds: impl Fn(usize) -> bool) -> Vec<usize> {
    sites.iter().copied().take_while(|&s| holds(s)).collect()
}
