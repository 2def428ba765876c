//! A job as opened: model, tokenizer, taps and edits, and which rows of a sample each of them takes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::directions::hash_of;
use super::edits::{self, OpenEdit};
use super::sample::{OnLong, Sample, Tokenising};
use super::selected::{BatchRows, Part, SelectedSample};
use super::stored_taps::describe;
use super::{EditReceipt, Error, Job, Memory, Plan, Result, Trace, dims, shape};
use crate::backend::cpu::{Cpu, Precision};
use crate::backend::cuda::Dtype;
use crate::backend::{Edit, Receipt, SinkSpec};
use crate::hooks::{Dims, Reduction, SampleView, Selection, Tap, TapSpec};
use crate::model::Model;
use crate::store::{ShardLimits, TapInfo, TapRows, Xxh3, side_row_bytes};

/// What a job is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Extract,
    Generate,
}

/// An opened job: everything is checked that can be without reading the dataset.
pub struct Prepared {
    pub job: Job,
    pub model: Model,
    pub dims: Dims,
    pub tokenising: Tokenising,
    pub taps: Vec<Tap>,
    pub plan: Plan,
    /// How the store describes each tap.
    pub infos: Vec<TapInfo>,
    /// What the backend does to each tap's rows.
    pub specs: Vec<Arc<SinkSpec>>,
    pub edits: Vec<OpenEdit>,
    /// Where a run notes what it does when, if it is to.
    pub trace: Option<Trace>,
    /// The dataset's fingerprint, once it was taken.
    fingerprint: OnceLock<Option<String>>,
    /// The selections that differ, and which of them each tap and each edit has.
    selections: Vec<Selection>,
    selection_of: Vec<usize>,
    selection_of_edit: Vec<usize>,
}

impl Prepared {
    /// Resolves the model and opens it, its tokenizer and its template, and resolves every tap.
    ///
    /// # Errors
    /// No such model, a checkpoint or tokenizer that is refused, unknown hook points, directions or edits that do not fit.
    pub fn open(job: Job) -> Result<Self> {
        let dir = crate::model::resolve(&job.model)?;
        let model = Model::open(&dir)?;
        Self::with_model(job, model)
    }

    /// As [`Prepared::open`], for a model that is open.
    ///
    /// # Errors
    /// As there.
    pub fn with_model(job: Job, model: Model) -> Result<Self> {
        Self::prepare(job, model, Use::Extract, &Memory::default())
    }

    /// As [`Prepared::with_model`]; edits may take what `memory` keeps.
    ///
    /// # Errors
    /// As there; rows that are not kept or do not fit.
    pub fn with_memory(job: Job, model: Model, memory: &Memory) -> Result<Self> {
        Self::prepare(job, model, Use::Extract, memory)
    }

    /// As [`Prepared::open`], for generation: taps may be none, and selections may go by generated tokens.
    ///
    /// # Errors
    /// As there; and taps, selections and edits that generation does not have.
    pub fn for_generation(job: Job) -> Result<Self> {
        let dir = crate::model::resolve(&job.model)?;
        Self::for_generation_with(job, Model::open(&dir)?)
    }

    /// As [`Prepared::for_generation`], for a model that is open.
    ///
    /// # Errors
    /// As there.
    pub fn for_generation_with(job: Job, model: Model) -> Result<Self> {
        Self::prepare(job, model, Use::Generate, &Memory::default())
    }

    fn prepare(mut job: Job, model: Model, purpose: Use, memory: &Memory) -> Result<Self> {
        let dims = dims(&model.config);
        for (flag, value) in [
            ("batch-tokens", job.batch_tokens as u64),
            ("shard-size", job.shard_bytes),
        ] {
            if value == 0 {
                return Err(Error::Zero { flag }.into());
            }
        }
        check_packing(&job)?;
        let tokenising = Tokenising::open(&job, &model)?;
        job.tokens_first = tokenising.tokenizer.is_none();
        let default: Selection = job.select.parse()?;
        let mut taps = Vec::new();
        for spec in &job.taps {
            taps.extend(TapSpec::parse(spec)?.resolve(&dims, &default)?);
        }
        if taps.is_empty() && purpose == Use::Extract {
            return Err(Error::NoTaps.into());
        }
        let edits = edits::open(&job.edits, &dims, &model.fingerprint, memory)?;
        let mut plan =
            Plan::new(&taps).with_edits(edits.iter().map(|e| e.edit.point), job.tap_before_edits);
        if purpose == Use::Generate {
            plan = plan.choosing_from(taps.len());
        }
        check_seen(&edits, &plan)?;
        let mut selections: Vec<Selection> = Vec::new();
        let mut number = |selection: &Selection| {
            let known = selections.iter().position(|s| s == selection);
            known.unwrap_or_else(|| {
                selections.push(selection.clone());
                selections.len() - 1
            })
        };
        let selection_of = taps.iter().map(|tap| number(&tap.selection)).collect();
        let selection_of_edit = edits.iter().map(|e| number(&e.edit.selection)).collect();
        match purpose {
            Use::Extract => check_selections(&selections, &job)?,
            Use::Generate => super::generate::check(&taps, &edits, &selections)?,
        }
        let store_dtype = job.stored();
        let (infos, specs) = describe(&taps, &dims, store_dtype, job.shuffle, &model.fingerprint)?;
        Ok(Prepared {
            plan,
            job,
            model,
            dims,
            tokenising,
            taps,
            infos,
            specs,
            edits,
            trace: None,
            fingerprint: OnceLock::new(),
            selections,
            selection_of,
            selection_of_edit,
        })
    }

    /// The fingerprint of the dataset's contents ([`Dataset::fingerprint`](crate::data::Dataset::fingerprint); `None` where there is no dataset), for which its files are read through once however often it is
    /// asked for.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn dataset_fingerprint(&self) -> Result<Option<String>> {
        if let Some(taken) = self.fingerprint.get() {
            return Ok(taken.clone());
        }
        let taken = match self.job.data.is_empty() {
            // Prompts of the command line.
            true => None,
            false => self.job.dataset_in_order(false)?.fingerprint()?,
        };
        Ok(self.fingerprint.get_or_init(|| taken).clone())
    }

    /// Whether any selection is by span.
    pub fn needs_spans(&self) -> bool {
        self.selections.iter().any(|s| !s.needs_spans().is_empty())
    }

    /// The sample's rows under every selection.
    ///
    /// # Errors
    /// A selection that needs turns, of a sample without any; a row that an edit replaces and has nothing to replace it by.
    pub fn select(&self, sample: &Sample) -> Result<SelectedSample> {
        let selected = self.select_view(&sample.view())?;
        let whole = Part {
            sample: sample.row.sample,
            selected: &selected,
            positions: 0..sample.row.tokens.len() as u32,
        };
        self.check_replacements(sample, &whole)?;
        Ok(selected)
    }

    /// The rows of what is seen of a sample under every selection.
    pub(super) fn select_view(&self, view: &SampleView<'_>) -> Result<SelectedSample> {
        let mut clipped = 0;
        let positions = self
            .selections
            .iter()
            .map(|selection| {
                let rows = selection.rows(view)?;
                clipped += rows.clipped;
                Ok(rows.positions)
            })
            .collect::<Result<_>>()?;
        Ok(SelectedSample { positions, clipped })
    }

    /// Whether every row of a part that an edit replaces has something to replace it by.
    pub(super) fn check_replacements(&self, sample: &Sample, part: &Part<'_>) -> Result<()> {
        for (open, &selection) in self.edits.iter().zip(&self.selection_of_edit) {
            open.check(sample, part.selected(selection))?;
        }
        Ok(())
    }

    /// Hashes of what each tap projects on, if it does; empty where none does.
    pub(super) fn directions(&self) -> Vec<Option<Xxh3>> {
        let of = |spec: &Arc<SinkSpec>| spec.directions().map(hash_of);
        let hashes: Vec<_> = self.specs.iter().map(of).collect();
        match hashes.iter().any(Option::is_some) {
            true => hashes,
            false => Vec::new(),
        }
    }

    /// What each edit has done.
    pub(super) fn receipts(&self, done: &[Receipt]) -> Vec<EditReceipt> {
        let edits = self.edits.iter().zip(done);
        edits.map(|(edit, done)| edit.receipt(done)).collect()
    }

    /// An edit that touched nothing is a mistake.
    ///
    /// # Errors
    /// There is one; `samples` were run.
    pub(super) fn check_touched(&self, done: &[Receipt], samples: u64) -> Result<()> {
        match done.iter().position(|receipt| receipt.rows == 0) {
            None => Ok(()),
            Some(edit) => Err(Error::EditTouchedNothing {
                edit: self.edits[edit].describe(),
                samples,
            }
            .into()),
        }
    }

    /// Whether samples can be chats.
    pub fn may_be_chat(&self) -> bool {
        self.job.may_be_chat()
    }

    /// Positions that tap `tap` takes of the sample.
    pub fn positions<'s>(&self, selected: &'s SelectedSample, tap: usize) -> &'s [u32] {
        &selected.positions[self.selection_of[tap]]
    }

    /// Positions of the sample that edit `edit` changes.
    pub(super) fn edited_positions<'s>(
        &self,
        selected: &'s SelectedSample,
        edit: usize,
    ) -> &'s [u32] {
        &selected.positions[self.selection_of_edit[edit]]
    }

    /// Rows that tap `tap` takes of the batch that these parts make.
    pub(super) fn tapped(&self, parts: &[Part<'_>], tap: usize) -> BatchRows {
        BatchRows::of(parts, self.selection_of[tap])
    }

    /// Positions that tap `tap` takes of a part.
    pub(super) fn tapped_positions<'s>(&self, part: &'s Part<'_>, tap: usize) -> &'s [u32] {
        part.selected(self.selection_of[tap])
    }

    /// Bytes of a stored row of tap `tap`, and of what it has beside that: component numbers, or the side row of 8 bits.
    pub(super) fn row_bytes(&self, tap: usize) -> (usize, usize) {
        let info = &self.infos[tap];
        let row = info.row_shape.iter().product::<usize>() * info.dtype.size();
        (row, side_row_bytes(info))
    }

    /// Every edit's share of the batch that these parts make.
    pub(super) fn batch_edits(&self, parts: &[Part<'_>]) -> Vec<Edit> {
        let of = |(edit, open): (usize, &OpenEdit)| {
            let selection = self.selection_of_edit[edit];
            let BatchRows { rows, per_sample } = BatchRows::of(parts, selection);
            let mut replacement = Vec::new();
            for part in parts {
                if let Some(from) = &open.replacement {
                    from.gather(part.sample, part.selected(selection), &mut replacement);
                }
            }
            Edit::new(Arc::clone(&open.spec), rows, per_sample, replacement)
        };
        self.edits.iter().enumerate().map(of).collect()
    }

    /// Rows that tap `tap` stores of the sample.
    pub fn stored_rows(&self, selected: &SelectedSample, tap: usize) -> u64 {
        let rows = self.positions(selected, tap).len() as u64;
        if self.is_mean(tap) { rows.min(1) } else { rows }
    }

    /// The sample's rows as the store lays them out, per tap.
    pub fn tap_rows(&self, sample: &Sample, selected: &SelectedSample) -> Vec<TapRows> {
        let mut made: BTreeMap<(usize, bool), TapRows> = BTreeMap::new();
        (0..self.taps.len())
            .map(|tap| {
                let key = (self.selection_of[tap], self.is_mean(tap));
                let rows = || {
                    let positions = self.positions(selected, tap);
                    if self.is_mean(tap) {
                        let made_of_several = vec![-1; positions.len().min(1)];
                        return TapRows {
                            positions: made_of_several.clone().into(),
                            tokens: made_of_several.into(),
                        };
                    }
                    TapRows {
                        tokens: positions
                            .iter()
                            .map(|&p| sample.row.tokens[p as usize] as i32)
                            .collect(),
                        positions: positions.iter().map(|&p| p as i32).collect(),
                    }
                };
                made.entry(key).or_insert_with(rows).clone()
            })
            .collect()
    }

    /// When a shard is full.
    pub fn shard_limits(&self) -> ShardLimits {
        ShardLimits {
            bytes: self.job.shard_bytes,
            ..ShardLimits::default()
        }
    }

    /// The CPU backend for this model.
    pub fn cpu(&self) -> Cpu<'_> {
        Cpu::new(
            shape(&self.model.config),
            &self.model,
            crate::sys::free_memory(),
            precision(self.job.dtype, self.job.f32_resid),
        )
    }

    fn is_mean(&self, tap: usize) -> bool {
        matches!(self.taps[tap].reduction, Reduction::Mean)
    }
}

/// What the CPU computes in where a dtype is asked for. It has no f16: rows that a device made in it are computed again in f32.
pub fn precision(dtype: Dtype, f32_resid: bool) -> Precision {
    match dtype {
        Dtype::BF16 => Precision::Bf16 { f32_resid },
        Dtype::F32 | Dtype::F16 => Precision::F32,
    }
}

/// Refuses what has no meaning where records are packed into contexts.
fn check_packing(job: &Job) -> Result<()> {
    let refused = [
        (
            !job.keep.is_empty(),
            "--keep",
            "a context has several documents; `pieces` in the samples table tells which, by their number in the dataset",
        ),
        (
            job.max_length.is_some(),
            "--max-length",
            "a context has the length that it asks for",
        ),
        (
            job.on_long != OnLong::Error,
            "--on-long",
            "documents of any length are packed",
        ),
    ];
    let asked = refused
        .into_iter()
        .find(|r| job.pack_context.is_some() && r.0);
    match asked {
        Some((_, flag, why)) => Err(Error::Packing { flag, why }.into()),
        None => Ok(()),
    }
}

/// Refuses edits that no tap sees: they stand behind the last one.
pub(super) fn check_seen(edits: &[OpenEdit], plan: &Plan) -> Result<()> {
    match edits.iter().find(|e| !plan.is_seen(e.edit.point)) {
        None => Ok(()),
        Some(edit) => Err(Error::EditUnseen {
            edit: edit.describe(),
            last: plan.last().map_or_else(String::new, |p| p.to_string()),
            before: plan.taps_before_edits(),
        }
        .into()),
    }
}

/// Refuses selections that no sample of this job can satisfy.
fn check_selections(selections: &[Selection], job: &Job) -> Result<()> {
    for selection in selections {
        if selection.needs_generation() {
            let what = format!(
                "the selection '{selection}' (it picks among generated tokens) in extraction"
            );
            return Err(Error::NotYet {
                what,
                instead: ": choose positions, roles or spans".into(),
            }
            .into());
        }
        if selection.needs_messages() && !job.may_be_chat() {
            return Err(Error::NeedsMessages {
                selection: selection.to_string(),
            }
            .into());
        }
    }
    Ok(())
}
