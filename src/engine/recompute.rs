//! The re-check of a store: reads random samples anew from the dataset, runs each alone, and compares what the taps give
//! with what the store holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::Value;

use super::gate::{Gate, differences};
use super::packing::context;
use super::resume::{GENERATE, command};
use super::run::run_batch;
use super::{Device, Error, Identity, Job, Machine, Place, Prepared, Result, Sample};
use crate::model::Model;
use crate::store::{Provenance, SampleRow, Store, StoreWriter, Summary, TapInfo, TapSlab, to_f32};

/// What the comparison found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Recomputed {
    /// Samples that were run again (chunks of one sample count once).
    pub samples: u64,
    pub rows: u64,
    /// Whether bits were compared; else relative L2 errors, because the store was made on another machine or version.
    pub exact: bool,
    /// Why bits could not be compared.
    pub why_not_exact: Option<String>,
    /// Which error was let pass then, in words.
    pub gate: Option<String>,
    /// What computed them again.
    pub device: String,
    /// Largest relative L2 error of a tap's rows of one sample.
    pub worst: f64,
    /// How many taps of samples differ.
    pub different: u64,
    /// The first of them: tap, sample, and by how much.
    pub differences: Vec<String>,
}

impl Recomputed {
    /// Nothing compared yet.
    fn on(machine: &Identity, stored: &Value, place: &Place, job: &Job) -> Self {
        let differ = differences(stored, &machine.numeric_record);
        let exact = differ.is_empty();
        let why = || match &place.why_cpu {
            Some(why) => format!("{differ} ({why})"),
            None => differ.clone(),
        };
        Recomputed {
            exact,
            why_not_exact: (!exact).then(why),
            gate: (!exact).then(|| Gate::of(job.dtype).words()),
            device: machine.device.clone(),
            ..Recomputed::default()
        }
    }
}

/// Differences that are told apart.
const TOLD: usize = 10;

/// Runs `k` random samples of the store in `dir` again, where it was made if that can be had. `model` and `data` replace the
/// paths in its manifest.
///
/// # Errors
/// A store, model or dataset that cannot be opened, or is not the one that the store was made from.
pub fn recompute(
    dir: &Path,
    k: usize,
    seed: u64,
    model: Option<&str>,
    data: Option<&[String]>,
) -> Result<Recomputed> {
    recompute_on(Device::Auto, dir, k, seed, model, data)
}

/// As [`recompute`], on that device.
///
/// # Errors
/// As there, and the device's.
pub fn recompute_on(
    device: Device,
    dir: &Path,
    k: usize,
    seed: u64,
    model: Option<&str>,
    data: Option<&[String]>,
) -> Result<Recomputed> {
    let store = Store::open(dir)?;
    let manifest = store.manifest();
    if command(&manifest.provenance.job) == GENERATE {
        let why = "it was tapped while generating; rows of that kind are not run again yet".into();
        return Err(Error::ForeignJob {
            dir: dir.display().to_string(),
            why,
        }
        .into());
    }
    let mut job: Job =
        serde_json::from_value(manifest.provenance.job.clone()).map_err(|e| Error::ForeignJob {
            dir: dir.display().to_string(),
            why: e.to_string(),
        })?;
    job.model = model.map_or_else(|| manifest.provenance.model.path.clone(), str::to_owned);
    job.data = data.map_or_else(
        || manifest.provenance.dataset.paths.clone(),
        <[String]>::to_vec,
    );
    if job.data.iter().any(|d| d == "-") {
        let why = "its dataset came from standard input: pass --data with the same records".into();
        return Err(Error::ForeignJob {
            dir: dir.display().to_string(),
            why,
        }
        .into());
    }
    let opened = Model::open(&crate::model::resolve(&job.model)?)?;
    same(
        "the model",
        &opened.fingerprint,
        &manifest.provenance.model.fingerprint,
        "--model",
    )?;
    let prepared = Prepared::with_model(job, opened)?;
    for (edit, stored) in prepared.edits.iter().zip(&manifest.provenance.edits) {
        if edit.record() != *stored {
            return Err(Error::EditDiffers {
                dir: dir.display().to_string(),
                edit: edit.describe(),
            }
            .into());
        }
    }
    let stored = &manifest.provenance.directions;
    if !stored.is_empty() && *stored != prepared.directions() {
        let dir = dir.display().to_string();
        return Err(Error::DirectionsDiffer { dir }.into());
    }
    if let Some(stored) = &manifest.provenance.dataset.fingerprint
        && let Some(found) = prepared.dataset_fingerprint()?
    {
        same("the dataset", &found, stored, "--data")?;
    }

    let place = Place::again(device, &manifest.provenance, &prepared.job);
    let stored = &manifest.provenance.numeric_record;
    // Where the store's products cannot be had, others are compared within a gate.
    let opened = match place.open(&prepared, Some(stored)) {
        Err(_) if stored["backend"] == "cuda" => place.open(&prepared, None),
        opened => opened,
    }?;
    let mut machine = opened.machine;
    let mut result = Recomputed::on(&machine.identity(), stored, &place, &prepared.job);
    let chosen = choose(&store, k, seed)?;
    let scratch = Scratch::new();
    let mut check = |number: u64, samples: &[Sample]| {
        let scratch = scratch.0.join(number.to_string());
        result.samples += 1;
        compare(
            &prepared,
            &mut *machine,
            &store,
            samples,
            &scratch,
            &mut result,
        )
    };
    if prepared.job.pack_context.is_some() {
        for context in contexts(&prepared, &store, &chosen, dir)? {
            check(context.row.sample, &[context])?;
        }
        return Ok(result);
    }
    let mut dataset = prepared.job.dataset_in_order(prepared.needs_spans())?;
    let mut left = chosen;
    while let Some(next) = left.pop_first() {
        let missing = || Error::MissingSample {
            dir: dir.display().to_string(),
            sample: next,
        };
        let found = dataset.find(|r| !matches!(r, Ok(r) if r.index < next));
        let record = found.ok_or_else(missing)??;
        if record.index != next {
            return Err(missing().into());
        }
        check(next, &prepared.tokenising.samples(record)?)?;
    }
    Ok(result)
}

/// These contexts, put together anew from the dataset's records as the store says that they were.
fn contexts(
    prepared: &Prepared,
    store: &Store,
    chosen: &BTreeSet<u64>,
    dir: &Path,
) -> Result<Vec<Sample>> {
    let mut stored = store.samples().collect::<Result<Vec<_>, _>>()?;
    stored.retain(|row| chosen.contains(&row.sample));
    let missing = |sample| Error::MissingSample {
        dir: dir.display().to_string(),
        sample,
    };
    // Which pieces are of a document: the context's place among those chosen, and the piece's in it.
    let mut wanted: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
    for (c, row) in stored.iter().enumerate() {
        for (p, piece) in row.pieces.iter().enumerate() {
            wanted.entry(piece.document).or_default().push((c, p));
        }
    }
    let empty = |row: &SampleRow| vec![None; row.pieces.len()];
    let mut parts: Vec<Vec<Option<Sample>>> = stored.iter().map(empty).collect();
    let mut dataset = prepared.job.dataset_in_order(prepared.needs_spans())?;
    while let Some((document, pieces)) = wanted.pop_first() {
        let gone = missing(stored[pieces[0].0].sample);
        let found = dataset.find(|r| !matches!(r, Ok(r) if r.index < document));
        let record = match found {
            Some(record) => record?,
            None => return Err(gone.into()),
        };
        if record.index != document {
            return Err(gone.into());
        }
        let document = prepared.tokenising.document(record)?;
        for (c, p) in pieces {
            let piece = &stored[c].pieces[p];
            let first = usize::try_from(piece.offset).unwrap_or(usize::MAX);
            let end = first.saturating_add(piece.tokens as usize);
            if end > document.tokens() || first >= end {
                return Err(missing(stored[c].sample).into());
            }
            parts[c][p] = Some(document.cut(first..end, 0));
        }
    }
    let again = stored.iter().zip(parts).map(|(row, parts)| {
        let made = context(row.sample, parts.into_iter().flatten().collect());
        let same =
            |made: &Sample| (&made.row.tokens, &made.row.pieces) == (&row.tokens, &row.pieces);
        made.filter(same).ok_or_else(|| missing(row.sample).into())
    });
    again.collect()
}

fn same(what: &'static str, found: &str, stored: &str, flag: &'static str) -> Result<()> {
    if found == stored {
        return Ok(());
    }
    Err(Error::Different {
        what,
        found: found.into(),
        stored: stored.into(),
        flag,
    }
    .into())
}

/// Numbers of `k` samples of the store, drawn by a splitmix64 stream.
fn choose(store: &Store, k: usize, seed: u64) -> Result<BTreeSet<u64>> {
    let numbers: BTreeSet<u64> = store
        .samples()
        .map(|s| s.map(|s| s.sample))
        .collect::<Result<_, _>>()?;
    let numbers: Vec<u64> = numbers.into_iter().collect();
    let mut chosen = BTreeSet::new();
    let mut state = seed;
    while chosen.len() < k.min(numbers.len()) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        chosen.insert(numbers[((z ^ (z >> 31)) % numbers.len() as u64) as usize]);
    }
    Ok(chosen)
}

/// A directory for the recomputed rows, removed at the end.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "streamgauge-verify-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Scratch(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs each chunk of one sample as a batch of its own, into a store of its own, and compares that with `store`.
fn compare(
    prepared: &Prepared,
    machine: &mut dyn Machine,
    store: &Store,
    samples: &[Sample],
    scratch: &Path,
    result: &mut Recomputed,
) -> Result<()> {
    let gate = (!result.exact).then(|| Gate::of(prepared.job.dtype));
    let selected = samples
        .iter()
        .map(|sample| Ok((sample.clone(), prepared.select(sample)?)))
        .collect::<Result<Vec<_>>>()?;
    let rows: Vec<_> = selected
        .iter()
        .map(|(sample, selected)| prepared.tap_rows(sample, selected))
        .collect();
    let table: Vec<_> = samples
        .iter()
        .map(|s| SampleRow {
            kept: Vec::new(),
            ..s.row.clone()
        })
        .collect();
    let mut writer =
        StoreWriter::create(scratch, Provenance::default(), prepared.infos.clone(), &[])?;
    let mut shard = writer.begin_shard(&table, &rows)?;
    for chunk in 0..samples.len() {
        let slabs = shard.batch_slabs(chunk..chunk + 1);
        let side_rows = |(tap, slab): (usize, &TapSlab<'_>)| {
            vec![0; slab.rows.len() * prepared.row_bytes(tap).1]
        };
        let mut side_rows: Vec<Vec<u8>> = slabs.iter().enumerate().map(side_rows).collect();
        let with_side = slabs.into_iter().zip(&mut side_rows);
        let slabs = with_side.map(|(slab, side)| TapSlab {
            index: (!side.is_empty()).then_some(&mut side[..]),
            ..slab
        });
        let batch = &selected[chunk..chunk + 1];
        run_batch(prepared, machine, batch, slabs.collect())?;
        for (tap, side_rows) in side_rows.iter().enumerate() {
            let rows = shard.rows_before(tap, chunk)..shard.rows_before(tap, chunk + 1);
            shard.put_side_rows(tap, rows, side_rows);
        }
        shard.finish_batch(chunk..chunk + 1)?;
    }
    shard.commit()?;
    writer.finish(Summary::default())?;
    let again = Store::open(scratch)?;
    for (tap, info) in prepared.infos.iter().enumerate() {
        let stored = stored_rows(store, tap, samples)?;
        let fresh = stored_rows(&again, tap, samples)?;
        result.rows += rows
            .iter()
            .map(|r| r[tap].positions.len() as u64)
            .sum::<u64>();
        let limit = gate.map(|gate| gate.limit(info.dtype));
        let what = format!("{}, sample {}", info.folder, samples[0].row.sample);
        judge(result, what, [&stored, &fresh], limit, info);
    }
    Ok(())
}

/// What a tap has of a sample.
#[derive(Debug, Default, PartialEq)]
struct Rows {
    activations: Vec<u8>,
    /// A top-K tap's component numbers, or the side rows of 8 bits. Where bits may differ so may these, among components that are nearly
    /// equal: the values say more.
    side: Vec<u8>,
}

/// A sample's rows, chunk after chunk, or its ragged tensors.
fn stored_rows(store: &Store, tap: usize, samples: &[Sample]) -> Result<Rows> {
    let reader = store.tap_at(tap);
    let mut found = Rows::default();
    if reader.info().ragged {
        for sample in samples {
            if let Some(tensor) = reader.ragged(sample.row.sample, sample.row.chunk)? {
                found.activations.extend_from_slice(tensor.bytes());
            }
        }
        return Ok(found);
    }
    for row in &reader.for_sample(samples[0].row.sample)? {
        found.activations.extend_from_slice(row.bytes());
        found.side.extend(row.side_row());
    }
    Ok(found)
}

/// `limit`: the error that is let pass; `None`: no bit may differ.
fn judge(
    result: &mut Recomputed,
    what: String,
    [stored, fresh]: [&Rows; 2],
    limit: Option<f64>,
    info: &TapInfo,
) {
    if stored == fresh {
        return;
    }
    let as_many = stored.activations.len() == fresh.activations.len();
    let error = if as_many {
        relative_error(stored, fresh, info)
    } else {
        f64::INFINITY
    };
    result.worst = result.worst.max(error);
    // Not `error > limit`: NaN is a difference.
    if limit.is_some_and(|limit| error <= limit) {
        return;
    }
    result.different += 1;
    if result.differences.len() < TOLD {
        let how = if as_many {
            format!("relative L2 {error:.1e}")
        } else {
            "another number of rows".into()
        };
        result.differences.push(format!("{what}: {how}"));
    }
}

fn relative_error(stored: &Rows, fresh: &Rows, info: &TapInfo) -> f64 {
    let widen = |rows: &Rows| -> Vec<f64> {
        let numbers = to_f32(info, &rows.activations, Some(&rows.side));
        numbers.into_iter().map(f64::from).collect()
    };
    let (stored, fresh) = (widen(stored), widen(fresh));
    // Equal infinities (masked scores) and NaNs are no difference; a NaN on one side makes the error NaN.
    let square: f64 = stored
        .iter()
        .zip(&fresh)
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let norm: f64 = stored.iter().filter(|v| v.is_finite()).map(|v| v * v).sum();
    (square / norm.max(f64::MIN_POSITIVE)).sqrt()
}
