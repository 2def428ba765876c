//! Joins the stores of a dataset's slices into the store of the whole. Files are linked under their new names, not copied; only the
//! manifest is new, and samples tables whose kept columns have to be of a wider type than their slice knew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::{Error, Result};
use super::manifest::{
    KeptColumn, Manifest, PARTIAL, Provenance, SAMPLES, ShardEntry, State, TapInfo, listed_file,
    sync_dir,
};
use super::reader::Store;
use super::widen::{join, rewrite_table};
use super::writer::StoreWriter;
use crate::sys::writable::create_anew;

/// What a merged store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    pub shards: usize,
    pub samples: u64,
    pub bytes: u64,
}

/// Makes the receipts of the whole from its slices'.
pub type JoinReceipts<'a> = &'a dyn Fn(&[&[Value]]) -> Vec<Value>;

/// Joins the stores in `dirs`, in whatever order they are named, into a new one in `out`. With `copy`, files are copied: for stores on
/// another file system.
///
/// # Errors
/// They are not the slices of one dataset under one job, each once and none missing; a store that is partial or damaged; a tap that has
/// no row in any; and the disk's. Nothing of a new store is left behind then.
pub fn merge(
    out: &Path,
    dirs: &[PathBuf],
    copy: bool,
    receipts: JoinReceipts<'_>,
) -> Result<Merged> {
    let mut slices = dirs
        .iter()
        .map(|dir| Slice::open(dir))
        .collect::<Result<Vec<_>>>()?;
    slices.sort_by_key(|s| s.index());
    let described: Vec<Described<'_>> = slices.iter().map(Slice::described).collect();
    check_job(&described)?;
    check_whole(&described)?;
    check_rows(&slices)?;
    let manifest = whole(&slices, receipts);
    let names: Vec<String> = manifest.keep.iter().map(|c| c.name.clone()).collect();
    let taps = manifest.taps.clone();
    let writer = StoreWriter::create(out, manifest.provenance.clone(), taps, &names)?;
    let mut made = Vec::new();
    let merged = fill(&writer, manifest, &slices, copy, &mut made);
    if merged.is_err() {
        for path in made {
            let _ = fs::remove_file(path);
        }
        writer.abandon();
    }
    merged
}

/// One of the stores.
struct Slice {
    dir: PathBuf,
    root: PathBuf,
    manifest: Manifest,
}

impl Slice {
    fn open(dir: &Path) -> Result<Self> {
        let store = Store::open(dir)?;
        let manifest = store.manifest().clone();
        if manifest.provenance.slice.is_none() {
            return Err(Error::Merge(format!(
                "{} is no slice of a dataset: it was made without --shard",
                dir.display()
            )));
        }
        Ok(Slice {
            root: dir.canonicalize().map_err(|e| Error::io("read", dir, e))?,
            dir: dir.to_owned(),
            manifest,
        })
    }

    fn described(&self) -> Described<'_> {
        let kept: Vec<&str> = self.manifest.keep.iter().map(|c| c.name.as_str()).collect();
        Described {
            dir: &self.dir,
            provenance: &self.manifest.provenance,
            taps: json!(self.manifest.taps),
            kept: json!(kept),
        }
    }

    fn index(&self) -> u64 {
        self.manifest
            .provenance
            .slice
            .map_or(0, |slice| slice.index)
    }
}

/// What is compared of slices.
pub(super) struct Described<'a> {
    pub dir: &'a Path,
    pub provenance: &'a Provenance,
    pub taps: Value,
    /// Fields that were read besides the input.
    pub kept: Value,
}

impl Described<'_> {
    fn slice(&self) -> super::Slice {
        self.provenance.slice.unwrap_or(super::Slice {
            index: 0,
            of: 1,
            first: 0,
            end: 0,
            records: 0,
        })
    }

    fn index(&self) -> u64 {
        self.slice().index
    }
}

/// Refuses stores that one run could not have made.
pub(super) fn check_job(slices: &[Described<'_>]) -> Result<()> {
    let Some((first, others)) = slices.split_first() else {
        return Err(Error::Merge(
            "no stores to merge: name their directories".into(),
        ));
    };
    let facts = |of: &Described<'_>| {
        let p = of.provenance;
        [
            (
                "slices of their dataset",
                json!(p.slice.map(|s| (s.of, s.records))),
            ),
            ("job", p.job.clone()),
            ("taps", of.taps.clone()),
            ("kept fields", of.kept.clone()),
            ("directions", json!(p.directions)),
            ("edits", json!(p.edits)),
            ("model", json!(p.model.fingerprint)),
            ("tokenizer", json!(p.tokenizer_fingerprint)),
            ("chat template", json!(p.chat_template)),
            ("dataset", json!(p.dataset.fingerprint)),
            ("compute dtype", json!(p.compute_dtype)),
            ("store dtype", json!(p.store_dtype)),
            ("backend", json!(p.backend)),
            ("kernel build", json!(p.kernel_build)),
            ("version", json!(p.engine_version)),
            ("numeric record", p.numeric_record.clone()),
        ]
    };
    for other in others {
        let pairs = facts(first).into_iter().zip(facts(other));
        for ((what, a), (_, b)) in pairs {
            if a != b {
                return Err(Error::Merge(format!(
                    "{} and {} are not of one job: their {what} differ: {}",
                    first.dir.display(),
                    other.dir.display(),
                    difference(&a, &b)
                )));
            }
        }
    }
    Ok(())
}

/// Two values, or the first of their fields that differ.
fn difference(a: &Value, b: &Value) -> String {
    let field = a.as_object().zip(b.as_object()).and_then(|(a, b)| {
        let name = a.keys().find(|&k| a.get(k) != b.get(k))?;
        Some((name.as_str(), &a[name.as_str()], b.get(name.as_str())?))
    });
    let short = |v: &Value| v.to_string().chars().take(100).collect::<String>();
    match field {
        Some((name, a, b)) => format!("{name} is {} and {}", short(a), short(b)),
        None => format!("{} and {}", short(a), short(b)),
    }
}

/// Refuses a gap or an overlap; the slices come in order.
pub(super) fn check_whole(slices: &[Described<'_>]) -> Result<()> {
    let of = slices.first().map_or(0, |s| s.slice().of);
    for pair in slices.windows(2) {
        if pair[0].index() == pair[1].index() {
            return Err(Error::Merge(format!(
                "{} and {} are both slice {}/{of}: name one of them",
                pair[0].dir.display(),
                pair[1].dir.display(),
                pair[0].index()
            )));
        }
    }
    let mut next = 0;
    for slice in slices {
        let (told, dir) = (slice.slice(), slice.dir.display());
        if told.index > next {
            return Err(missing(next, told.index, of));
        }
        next = told.index + 1;
        let at = |i: u64| (u128::from(told.records) * u128::from(i) / u128::from(of.max(1))) as u64;
        if told.index >= of || (told.first, told.end) != (at(told.index), at(next)) {
            return Err(Error::Merge(format!(
                "{dir}: its records {} to {} are not slice {}/{of} of {}",
                told.first, told.end, told.index, told.records
            )));
        }
    }
    if next < of {
        Err(missing(next, of, of))
    } else {
        Ok(())
    }
}

fn missing(from: u64, to: u64, of: u64) -> Error {
    let which = match to - from {
        1 => format!("slice {from}/{of} is"),
        _ => format!("slices {from}/{of} to {}/{of} are", to - 1),
    };
    Error::Merge(format!("{which} missing: name all {of} stores"))
}

/// A selection that picks nothing anywhere is a mistake; in one slice it may well.
fn check_rows(slices: &[Slice]) -> Result<()> {
    let shards = || slices.iter().flat_map(|s| &s.manifest.shards);
    for (t, tap) in slices[0].manifest.taps.iter().enumerate() {
        if shards().all(|shard| shard.taps[t].rows == 0) {
            return Err(Error::Merge(format!(
                "tap {}@{} has no row in any of the stores: its selection picked nothing in the whole dataset",
                tap.hook, tap.selection
            )));
        }
    }
    Ok(())
}

/// What the whole was made from.
pub(super) fn whole_provenance(slices: &[&Provenance], receipts: JoinReceipts<'_>) -> Provenance {
    let of_each: Vec<&[Value]> = slices.iter().map(|p| &p.receipts[..]).collect();
    let mut devices: Vec<&str> = slices.iter().map(|p| p.device.as_str()).collect();
    devices.dedup();
    let mut whole = slices[0].clone();
    whole.slice = None;
    whole.receipts = receipts(&of_each);
    whole.device = devices.join(" + ");
    whole.dataset.samples = slices.iter().map(|p| p.dataset.samples).sum();
    whole.dataset.skipped = slices.iter().map(|p| p.dataset.skipped).sum();
    whole
}

/// The manifest of the whole, without its shards.
fn whole(slices: &[Slice], receipts: JoinReceipts<'_>) -> Manifest {
    let each = || slices.iter().map(|s| &s.manifest);
    let mut whole = slices[0].manifest.clone();
    let of_each: Vec<&Provenance> = each().map(|m| &m.provenance).collect();
    whole.provenance = whole_provenance(&of_each, receipts);
    let columns = (0..whole.keep.len()).map(|k| KeptColumn {
        name: whole.keep[k].name.clone(),
        kind: each().fold(None, |kind, m| join(kind, m.keep[k].kind)),
    });
    whole.keep = columns.collect();
    whole.samples = each().map(|m| m.samples).sum();
    whole.attempts = each().map(|m| m.attempts).sum();
    whole.mean_norms = mean_norms(slices);
    let tokens: Option<u64> = each().map(|m| m.timing["tokens"].as_u64()).sum();
    whole.timing =
        json!({ "tokens": tokens, "slices": each().map(|m| m.timing.clone()).collect::<Vec<_>>() });
    whole.stalls = json!({ "slices": each().map(|m| m.stalls.clone()).collect::<Vec<_>>() });
    whole.shards = Vec::new();
    whole
}

/// The mean norms over all slices' rows.
fn mean_norms(slices: &[Slice]) -> Value {
    let mean = |(t, tap): (usize, &TapInfo)| {
        let (mut sum, mut rows) = (Some(0.0), 0);
        for manifest in slices.iter().map(|s| &s.manifest) {
            let n: u64 = manifest.shards.iter().map(|shard| shard.taps[t].rows).sum();
            let mean = manifest.mean_norms[&tap.folder].as_f64();
            sum = sum
                .zip(mean.or((n == 0).then_some(0.0)))
                .map(|(sum, mean)| sum + mean * n as f64);
            rows += n;
        }
        let mean = sum
            .filter(|_| !tap.ragged && rows > 0)
            .map(|sum| sum / rows as f64);
        (tap.folder.clone(), json!(mean))
    };
    let taps = slices[0].manifest.taps.iter().enumerate();
    taps.map(mean).collect::<serde_json::Map<_, _>>().into()
}

/// Brings the files in and publishes the manifest. Every path that is made is added to `made` before it is.
fn fill(
    writer: &StoreWriter,
    mut manifest: Manifest,
    slices: &[Slice],
    copy: bool,
    made: &mut Vec<PathBuf>,
) -> Result<Merged> {
    let root = writer.lock().root.clone();
    let mut bytes = 0;
    let mut first = 0;
    for slice in slices {
        for shard in &slice.manifest.shards {
            let index = manifest.shards.len();
            let mut entry = ShardEntry {
                index,
                first,
                ..shard.clone()
            };
            for tap in &mut entry.taps {
                let file = format!("{}/{index:05}.safetensors", tap.tap);
                made.push(root.join(&file));
                bring(&slice.root, &tap.file, tap.bytes, &root.join(&file), copy)?;
                tap.file = file;
                bytes += tap.bytes;
            }
            let file = format!("{SAMPLES}/{index:05}.parquet");
            let (table, keep) = (&mut entry.samples_file, &manifest.keep);
            made.push(root.join(&file));
            if slice.manifest.keep == *keep {
                bring(
                    &slice.root,
                    &table.file,
                    table.bytes,
                    &root.join(&file),
                    copy,
                )?;
                table.file = file;
            } else {
                *table = rewrite_table(&slice.root, &slice.manifest, shard, keep, &root, file)?;
            }
            bytes += table.bytes;
            first += entry.count;
            manifest.shards.push(entry);
        }
    }
    let folders = manifest.taps.iter().map(|t| t.folder.as_str());
    for folder in folders.chain([SAMPLES]) {
        sync_dir(&root.join(folder))?;
    }
    manifest.losses = manifest.sum_losses();
    manifest.state = State::Complete;
    manifest.publish(&root)?;
    let partial = root.join(PARTIAL);
    fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
    sync_dir(&root)?;
    Ok(Merged {
        shards: manifest.shards.len(),
        samples: manifest.samples,
        bytes,
    })
}

/// Makes a file of another store this one's too.
fn bring(from: &Path, file: &str, bytes: u64, to: &Path, copy: bool) -> Result<()> {
    let source = listed_file(from, file, bytes)?;
    if copy {
        let copied = fs::File::open(&source).and_then(|mut source| {
            let mut file = create_anew(to)?;
            io::copy(&mut source, &mut file)?;
            file.sync_all()
        });
        return copied.map_err(|e| Error::write(to, bytes, bytes, e));
    }
    fs::hard_link(&source, to).map_err(|e| {
        use rustix::io::Errno;
        match Errno::from_io_error(&e) {
            Some(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) => Error::Merge(format!(
                "{} cannot be linked into {} ({e}): they are on different file systems, or on one without links; pass --copy",
                source.display(),
                to.parent().unwrap_or(to).display()
            )),
            _ => Error::write(to, 0, 0, e),
        }
    })
}
