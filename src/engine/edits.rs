//! The edits of a job, opened: resolved against the model, their numbers read and checked before anything runs; and what
//! they do to each batch, with the receipts.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::memory::{KeptRows, Memory};
use super::replacement::Replacement;
use super::{Error, Result, Sample, directions};
use crate::backend::{self, Change, Receipt};
use crate::hooks::{ChangeSpec, Dims, Edit, EditSpec, Site, Source};
use crate::store::{Store, TapInfo, Xxh3};

/// An edit of the job at one hook point.
pub struct OpenEdit {
    pub edit: Edit,
    /// What the backend does.
    pub spec: Arc<backend::EditSpec>,
    /// For `replace`: where the rows come from.
    pub replacement: Option<Replacement>,
    /// As the user wrote it (canonical), and a hash of the numbers that it read.
    text: String,
    numbers: Option<Xxh3>,
    /// What the receipt has to add.
    note: Option<String>,
}

/// What an edit did in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EditReceipt {
    pub edit: String,
    /// Hook point and heads.
    pub at: String,
    pub selection: String,
    /// Rows touched.
    pub rows: u64,
    /// Mean L2 norm, over these rows, of what was edited of them.
    pub mean_norm_before: f64,
    pub mean_norm_after: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Opens edits as they are written, in order; `model` is the model's fingerprint, `memory` what they may take from there.
///
/// # Errors
/// Bad syntax, a point, layer or head that is not there, and numbers that cannot be had or do not fit.
pub fn open(edits: &[String], dims: &Dims, model: &str, memory: &Memory) -> Result<Vec<OpenEdit>> {
    let mut opened = Vec::new();
    for text in edits {
        let spec: EditSpec = text.parse()?;
        for edit in spec.resolve(dims)? {
            opened.push(OpenEdit::new(edit, spec.to_string(), dims, model, memory)?);
        }
    }
    Ok(opened)
}

impl OpenEdit {
    fn new(edit: Edit, text: String, dims: &Dims, model: &str, memory: &Memory) -> Result<Self> {
        let fail = |why: String| Error::Edit {
            edit: text.clone(),
            why,
        };
        let numbers = Numbers {
            edit: &edit,
            dims,
            model,
            memory,
        };
        let mut replacement = None;
        let (change, hash) = match &edit.change {
            ChangeSpec::Scale { c } => (Change::Scale(*c), None),
            ChangeSpec::Zero => (Change::Zero, None),
            ChangeSpec::Replace { from } => {
                let rows = numbers.rows(from).map_err(fail)?;
                let hash = rows.hash();
                replacement = Some(rows);
                (Change::Replace, Some(hash))
            }
            ChangeSpec::Add { v, .. }
            | ChangeSpec::Mean { v }
            | ChangeSpec::ProjectOut { v }
            | ChangeSpec::Clamp { v, .. } => {
                let v = numbers.vector(v).map_err(fail)?;
                let hash = Xxh3::of(bytemuck::cast_slice(&v));
                (with_vector(&edit.change, v).map_err(fail)?, Some(hash))
            }
        };
        let heads = edit.heads.clone().unwrap_or_default();
        let ragged = edit.point.site.is_ragged();
        let spec = backend::EditSpec {
            columns: if ragged {
                Vec::new()
            } else {
                super::stored_taps::head_columns(&heads, dims.d_head)
            },
            heads: if ragged { heads } else { Vec::new() },
            change,
        };
        Ok(OpenEdit {
            note: note(edit.point.site, edit.heads.as_deref(), dims),
            edit,
            spec: Arc::new(spec),
            replacement,
            text,
            numbers: hash,
        })
    }

    /// The edit as the manifest records it: what it says, where, and the checksum of the numbers that it read.
    pub fn record(&self) -> Value {
        json!({ "edit": self.text, "at": self.edit.place(), "numbers_xxh3": self.numbers })
    }

    /// The edit as it is written, with where it is.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.text, self.edit.place())
    }

    /// Refuses a sample of which this edit has no replacement for a row.
    ///
    /// # Errors
    /// As it says.
    pub fn check(&self, sample: &Sample, positions: &[u32]) -> Result<()> {
        let Some(replacement) = &self.replacement else {
            return Ok(());
        };
        replacement.check(sample, positions).map_err(|why| {
            Error::Edit {
                edit: self.text.clone(),
                why,
            }
            .into()
        })
    }

    /// What it did.
    pub fn receipt(&self, done: &Receipt) -> EditReceipt {
        let mean = |sum: f64| sum / done.rows.max(1) as f64;
        EditReceipt {
            edit: self.text.clone(),
            at: self.edit.place(),
            selection: self.edit.selection.to_string(),
            rows: done.rows,
            mean_norm_before: mean(done.norm_before),
            mean_norm_after: mean(done.norm_after),
            note: self.note.clone(),
        }
    }
}

/// A key/value head is read by a group of query heads: whoever edits one edits them all.
pub(super) fn note(site: Site, heads: Option<&[usize]>, dims: &Dims) -> Option<String> {
    if !site.has_kv_heads() || dims.n_heads == dims.n_kv_heads {
        return None;
    }
    let group = dims.n_heads / dims.n_kv_heads;
    let all: Vec<usize> = (0..dims.n_kv_heads).collect();
    let heads = heads.unwrap_or(&all);
    let groups: Vec<String> = heads
        .iter()
        .map(|k| format!("{}-{}", k * group, (k + 1) * group - 1))
        .collect();
    let groups = groups.join(", ");
    Some(format!(
        "each key/value head is shared by {group} query heads: query heads {groups} are affected"
    ))
}

fn with_vector(change: &ChangeSpec, v: Vec<f32>) -> Result<Change, String> {
    let unit = || {
        let norm = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err("its vector is 0 and has no direction".to_owned());
        }
        Ok(v.iter().map(|&v| f64::from(v) / norm).collect::<Vec<f64>>())
    };
    Ok(match *change {
        ChangeSpec::Add { c, unit: true, .. } => Change::Add {
            v: unit()?.into_iter().map(|v| v as f32).collect(),
            c,
        },
        ChangeSpec::Add { c, .. } => Change::Add { v: v.into(), c },
        ChangeSpec::ProjectOut { .. } => Change::ProjectOut(unit()?.into()),
        ChangeSpec::Clamp { lo, hi, .. } => Change::Clamp {
            unit: unit()?.into(),
            lo,
            hi,
        },
        _ => Change::Set(v.into()),
    })
}

/// Reads the numbers of one edit.
struct Numbers<'a> {
    edit: &'a Edit,
    dims: &'a Dims,
    model: &'a str,
    memory: &'a Memory,
}

impl Numbers<'_> {
    /// A vector of the edited width, or of one head's: of a file's tensor, or the mean over the rows of a store's tap.
    fn vector(&self, source: &Source) -> Result<Vec<f32>, String> {
        if let Some(kept) = self.kept(source)? {
            return Ok(kept.mean());
        }
        if source.path.is_dir() {
            let (store, tap, columns) = self.tap(source)?;
            return mean_row(&store, tap, &columns).map_err(|why| format!("{source}: {why}"));
        }
        let loaded = self.tensor(source)?;
        let d_head = self.dims.d_head;
        // A stored row may come as one of a stack of one.
        let shape: Vec<usize> = (loaded.shape.iter().copied())
            .skip_while(|&n| n == 1)
            .collect();
        let shape = if shape.is_empty() { vec![1] } else { shape };
        let by_head = self.edit.point.site.heads(self.dims).is_some();
        if self.is_row(&shape) || (by_head && shape == [d_head]) {
            return Ok(loaded.values);
        }
        let alike = match by_head {
            true => format!(", or [{d_head}] for each head alike"),
            false => String::new(),
        };
        Err(format!(
            "{source} has shape {:?}; {} needs {}{alike}",
            loaded.shape,
            self.edit.place(),
            self.row_shapes(),
        ))
    }

    /// Whether a tensor of this shape is what is edited of one row.
    fn is_row(&self, shape: &[usize]) -> bool {
        let width = self.edit.width(self.dims);
        let by_head = self.edit.point.site.heads(self.dims).is_some();
        let d_head = self.dims.d_head;
        shape == [width] || (by_head && shape == [width / d_head, d_head])
    }

    /// Such shapes, in words.
    fn row_shapes(&self) -> String {
        let (width, d_head) = (self.edit.width(self.dims), self.dims.d_head);
        match self.edit.point.site.heads(self.dims) {
            Some(_) => format!("[{width}] or [{}, {d_head}]", width / d_head),
            None => format!("[{width}]"),
        }
    }

    /// The rows that replace.
    fn rows(&self, source: &Source) -> Result<Replacement, String> {
        if let Some(kept) = self.kept(source)? {
            return Ok(Replacement::kept(source, kept));
        }
        if source.path.is_dir() {
            let (store, tap, columns) = self.tap(source)?;
            return Replacement::of_store(source, &store, tap, columns);
        }
        if self.edit.point.site.is_ragged() {
            return Err("rows of a pattern come from a store: from=STORE#TAP".into());
        }
        let (loaded, width) = (self.tensor(source)?, self.edit.width(self.dims));
        let shape = &loaded.shape[..];
        // One row, or a stack of them.
        let is_stack = !shape.is_empty() && self.is_row(&shape[1..]);
        if loaded.values.is_empty() || !(self.is_row(shape) || is_stack) {
            return Err(format!(
                "{source} has shape {shape:?}; {} needs rows of shape {}",
                self.edit.place(),
                self.row_shapes(),
            ));
        }
        let rows = loaded.values.len() / width;
        Ok(Replacement::listed(source, loaded.values, rows, width))
    }

    /// The rows in memory that `@NAME` means.
    fn kept(&self, source: &Source) -> Result<Option<Arc<KeptRows>>, String> {
        let Some(name) = source.path.to_str().and_then(|p| p.strip_prefix('@')) else {
            return Ok(None);
        };
        let Some(kept) = self.memory.get(name) else {
            return Err(format!(
                "no rows are kept in memory as '{name}': a program keeps them (engine::Memory); give a file or a store"
            ));
        };
        let width = self.edit.width(self.dims);
        let by_head = self.edit.point.site.heads(self.dims).is_some() && kept.samples.is_empty();
        if kept.width == width || (by_head && kept.width == self.dims.d_head) {
            return Ok(Some(Arc::clone(kept)));
        }
        Err(format!(
            "{source} has rows of {} numbers; {} needs {width}",
            kept.width,
            self.edit.place()
        ))
    }

    fn tensor(&self, source: &Source) -> Result<directions::Loaded, String> {
        if !source.path.exists() {
            return Err(format!(
                "{} is not there; check the path",
                source.path.display()
            ));
        }
        let loaded = directions::read(&source.path, source.key.as_deref())
            .map_err(|why| format!("{}: {why}", source.path.display()))?;
        match &loaded.model {
            Some(model) if model != self.model => Err(self.another_model(source, model)),
            _ => Ok(loaded),
        }
    }

    fn another_model(&self, source: &Source, model: &str) -> String {
        format!("{source} {}", directions::another_model(model, self.model))
    }

    /// The tap of a store, and which columns of its rows are the edited ones (empty: all).
    fn tap(&self, source: &Source) -> Result<(Store, usize, Vec<std::ops::Range<usize>>), String> {
        let store = Store::open(&source.path).map_err(|e| e.to_string())?;
        let model = &store.manifest().provenance.model.fingerprint;
        if model != self.model {
            return Err(self.another_model(source, model));
        }
        let hook = self.edit.point.to_string();
        let name = source.key.as_deref().unwrap_or(&hook);
        let folder = store.tap(name).map_err(|e| e.to_string())?;
        let info = folder.info().clone();
        let tap = store.taps().iter().position(|t| *t == info).unwrap_or(0);
        let columns = self
            .columns(&info)
            .map_err(|why| format!("{source}: {why}"))?;
        Ok((store, tap, columns))
    }

    fn columns(&self, info: &TapInfo) -> Result<Vec<std::ops::Range<usize>>, String> {
        let site = self.edit.point.site;
        if !info.reduction.is_empty() {
            return Err(format!(
                "its rows are reduced (|{}); store them whole",
                info.reduction
            ));
        }
        if info.ragged != site.is_ragged() {
            return Err(format!(
                "rows of {} and of {} have no common shape",
                info.hook, self.edit.point
            ));
        }
        let shape = site.row_shape(self.dims);
        let by_head = info.row_shape.len() == shape.len()
            && info.row_shape.get(1) == shape.get(1)
            && site.heads(self.dims).is_some();
        if by_head {
            return self.head_columns(info, shape.get(1).copied().unwrap_or(1));
        }
        let (has, needs) = (
            info.row_shape.iter().product::<usize>(),
            self.edit.width(self.dims),
        );
        if has != needs {
            return Err(format!(
                "its rows have {has} numbers; {} needs {needs}",
                self.edit.place()
            ));
        }
        Ok(Vec::new())
    }

    /// Columns of the edited heads in rows of the heads that the tap kept.
    fn head_columns(
        &self,
        info: &TapInfo,
        width: usize,
    ) -> Result<Vec<std::ops::Range<usize>>, String> {
        let kept: Vec<usize> = match &info.heads {
            Some(heads) => heads.clone(),
            None => (0..info.row_shape[0]).collect(),
        };
        let all: Vec<usize> = (0..self.edit.point.site.heads(self.dims).unwrap_or(0)).collect();
        let edited = self.edit.heads.as_ref().unwrap_or(&all);
        edited
            .iter()
            .map(|head| match kept.iter().position(|k| k == head) {
                Some(place) => Ok(place * width..(place + 1) * width),
                None => Err(format!("its rows hold heads {kept:?}, and not head {head}")),
            })
            .collect()
    }
}

/// The mean over all rows of a tap.
fn mean_row(
    store: &Store,
    tap: usize,
    columns: &[std::ops::Range<usize>],
) -> Result<Vec<f32>, String> {
    let reader = store.tap_at(tap);
    if reader.rows() == 0 {
        return Err("it has no rows, and so no mean".into());
    }
    let mut sum: Vec<f64> = Vec::new();
    for shard in reader.shards() {
        let shard = shard.map_err(|e| e.to_string())?;
        for row in 0..shard.rows() {
            let row = super::replacement::columns_of(&shard, row, columns);
            sum.resize(row.len(), 0.0);
            for (sum, v) in sum.iter_mut().zip(row) {
                *sum += f64::from(v);
            }
        }
    }
    let rows = reader.rows() as f64;
    let mean: Vec<f32> = sum.into_iter().map(|s| (s / rows) as f32).collect();
    match mean.iter().position(|v| !v.is_finite()) {
        None => Ok(mean),
        Some(bad) => Err(format!(
            "the mean of its rows is {} at component {bad}: every row that it is used on would be lost",
            mean[bad]
        )),
    }
}
