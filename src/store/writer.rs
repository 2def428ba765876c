//! Begins a store, begins its shards, ends it. One writer at a time: the lock file `.partial/lock` is held (`flock`) for as long as
//! the writer or one of its shards lives, and freed by the kernel if the process dies.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use parquet::errors::ParquetError;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3 as Hasher;

use super::error::{Error, Result};
use super::journal::{self, Behind, Head, Journal};
use super::layout::{ShardLayout, TapRows, write_fixed};
use super::lend::RingToDisk;
use super::manifest::{
    DatasetInfo, FORMAT_VERSION, KeptColumn, MANIFEST, Manifest, PARTIAL, Provenance, SAMPLES,
    SamplesFile, State, TapInfo, Xxh3, check_taps, sync_dir,
};
use super::samples::{
    KeptType, RowRange, SampleRow, SamplesTable, check_keep, kept_columns, settle_types, widened,
};
use super::shard::{Begun, ShardWriter};
use crate::sys::disk::file_system;
use crate::sys::lock::{Attempt, LockFile};
use crate::sys::writable::{WritableMap, Writeback, create_anew};

/// How often finished batches are made durable, unless [`StoreWriter::commit_every`] says otherwise.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// What the writer and its shards have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub root: PathBuf,
    /// As it is on disk.
    pub manifest: Manifest,
    /// Whether a batch was made durable, in this process or an earlier one.
    pub journaled: Arc<AtomicBool>,
    pub _lock: LockFile,
}

/// What is known of a run only when it ends.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub receipts: Vec<Value>,
    /// The mean norm of each tap's rows, by its folder.
    pub mean_norms: Value,
    pub timing: Value,
    pub stalls: Value,
    /// Replaces what the manifest said of the dataset, now that it was read to its end.
    pub dataset: Option<DatasetInfo>,
}

/// Writes a store. Dropped without [`finish`](Self::finish) or [`abandon`](Self::abandon), it leaves one whose manifest says
/// `partial`.
#[derive(Debug)]
pub struct StoreWriter {
    shared: Arc<Mutex<Shared>>,
    taps: Arc<[TapInfo]>,
    /// The kept columns; types are settled by the first shard, and widened where a later one needs it.
    keep: Vec<KeptColumn>,
    model_fingerprint: String,
    /// Shards begun, and samples in them.
    begun: usize,
    samples: u64,
    commit_every: Duration,
    /// What lent rows pass through on their way to the disk, if not the mapped files themselves.
    ring: Option<Arc<RingToDisk>>,
}

/// Tells the manifest what becomes known of the dataset while the writer is busy.
#[derive(Debug, Clone)]
pub struct DatasetRecord(Arc<Mutex<Shared>>);

impl DatasetRecord {
    /// Replaces what the manifest says of the dataset.
    ///
    /// # Errors
    /// The disk's.
    pub fn set(&self, dataset: DatasetInfo) -> Result<()> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.manifest.provenance.dataset == dataset {
            return Ok(());
        }
        let mut manifest = shared.manifest.clone();
        manifest.provenance.dataset = dataset;
        manifest.publish(&shared.root)?;
        shared.manifest = manifest;
        Ok(())
    }
}

impl StoreWriter {
    /// Begins a store in `dir`, which is made if it is not there. `keep` names the dataset fields that samples carry along.
    ///
    /// # Errors
    /// `dir` is not empty, cannot be written to, or is being written by another process; taps or kept fields that no store can
    /// hold. Nothing of a store is left behind then.
    pub fn create(
        dir: &Path,
        provenance: Provenance,
        taps: Vec<TapInfo>,
        keep: &[String],
    ) -> Result<Self> {
        check_taps(&taps).map_err(Error::Plan)?;
        check_keep(keep)?;
        let existed = dir.exists();
        if existed && !dir.is_dir() {
            return Err(Error::NotADirectory {
                path: dir.to_owned(),
            });
        }
        fs::create_dir_all(dir).map_err(|e| Error::write(dir, 0, 0, e))?;
        if !file_system(dir).takes_writes() {
            if !existed {
                let _ = fs::remove_dir(dir);
            }
            return Err(Error::OnlyMapped {
                path: dir.to_owned(),
            });
        }
        if fs::read_dir(dir)
            .map_err(|e| Error::io("read", dir, e))?
            .next()
            .is_some()
        {
            return Err(occupied(dir));
        }
        let partial = dir.join(PARTIAL);
        match fs::create_dir(&partial) {
            Ok(()) => {}
            // Another process was quicker since we looked.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(occupied(dir)),
            Err(e) => return Err(Error::write(dir, 0, 0, e)),
        }
        let keep: Vec<_> = keep
            .iter()
            .map(|name| KeptColumn {
                name: name.clone(),
                kind: None,
            })
            .collect();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            state: State::Partial,
            provenance,
            taps: taps.clone(),
            keep: keep.clone(),
            samples: 0,
            mean_norms: Value::Null,
            losses: Default::default(),
            timing: Value::Null,
            stalls: Value::Null,
            attempts: 1,
            carry: Value::Null,
            shards: Vec::new(),
        };
        let shared = furnish(dir, manifest).inspect_err(|_| clear(dir, &taps, existed))?;
        Ok(Self::of(shared))
    }

    /// The writer that goes on after what the manifest lists.
    pub(super) fn of(shared: Shared) -> Self {
        let manifest = &shared.manifest;
        Self {
            taps: manifest.taps.clone().into(),
            keep: manifest.keep.clone(),
            model_fingerprint: manifest.provenance.model.fingerprint.clone(),
            begun: manifest.shards.len(),
            samples: manifest.samples,
            commit_every: COMMIT_EVERY,
            shared: Arc::new(Mutex::new(shared)),
            ring: None,
        }
    }

    /// Shards begun, those of earlier runs included.
    pub fn shards(&self) -> usize {
        self.begun
    }

    /// Sets how much time may pass until finished batches are made durable: what a crash can lose. Zero: each batch at once.
    pub fn commit_every(&mut self, time: Duration) {
        self.commit_every = time;
    }

    /// What tells the manifest of the dataset.
    pub fn dataset_record(&self) -> DatasetRecord {
        DatasetRecord(Arc::clone(&self.shared))
    }

    /// Has the shards begun from here on lend slabs of this ring, which the disk is written from, instead of mapped files.
    pub fn write_from(&mut self, ring: RingToDisk) {
        self.ring = Some(Arc::new(ring));
    }

    /// The taps, in the order that slabs come in.
    pub fn taps(&self) -> &[TapInfo] {
        &self.taps
    }

    /// Lays out the next shard for `samples`, with `rows[sample][tap]`: plans every offset, reserves and maps its files, writes
    /// headers, index tensors and the samples table. What is left to write is the rows; where an earlier process left this very shard
    /// unfinished, those of the batches after [`ShardWriter::finished`].
    ///
    /// # Errors
    /// No room on the disk for the whole shard, or samples and rows that do not fit. The shard's files are
    /// then removed again.
    pub fn begin_shard(
        &mut self,
        samples: &[SampleRow],
        rows: &[Vec<TapRows>],
    ) -> Result<ShardWriter> {
        let after = self.samples.checked_add(samples.len() as u64);
        let after = after.ok_or_else(|| {
            Error::Plan(format!(
                "the manifest counts {} samples: no more can follow; remove the store and run again",
                self.samples
            ))
        })?;
        let layout = ShardLayout::plan(&self.taps, samples, rows, &self.model_fingerprint)?;
        let names = || self.keep.iter().map(|c| c.name.clone());
        let settled: Option<Vec<KeptType>> = self.keep.iter().map(|c| c.kind).collect();
        let kinds = match settled.filter(|_| self.begun > 0) {
            Some(kinds) => widened(&kinds, samples),
            None => settle_types(self.keep.len(), samples),
        };
        let keep: Vec<(String, KeptType)> = names().zip(kinds).collect();
        let kept = kept_columns(&keep, samples)?;

        let partial = self.lock().root.join(PARTIAL);
        let index = self.begun;
        let tap_paths: Vec<_> = self
            .taps
            .iter()
            .map(|t| partial.join(format!("{index:05}.{}.safetensors", t.folder)))
            .collect();
        let table_path = partial.join(format!("{index:05}.{SAMPLES}.parquet"));
        let journal_path = partial.join(format!("{index:05}.journal"));
        let head = Head::new(index, &layout, samples, rows);
        let mut found = journal::read(&journal_path, &head)?;
        let again = match found.lines.is_empty() {
            true => None,
            false => retake(&tap_paths, &layout)?,
        };
        if again.is_none() {
            found = journal::Found::default();
        }
        let is_new = again.is_none();
        let made = || -> Result<_> {
            let mut maps = match again {
                Some(maps) => maps,
                None => reserve(&tap_paths, &layout)?,
            };
            for (t, (map, tap)) in maps.iter_mut().zip(&layout.taps).enumerate() {
                write_fixed(tap, map.bytes_mut(), samples, rows, t);
            }
            let range = |t: usize, i: usize| {
                let starts = &layout.taps[t].row_starts;
                RowRange {
                    start: starts[i] as u64,
                    rows: (starts[i + 1] - starts[i]) as u64,
                }
            };
            let folders: Vec<_> = self.taps.iter().map(|t| t.folder.as_str()).collect();
            let table = SamplesTable {
                keep: &keep,
                samples,
                kept: &kept,
                taps: &folders,
                rows: &range,
            };
            let (bytes, xxh3) = write_table(&table_path, &table, layout.bytes())?;
            Ok((
                maps,
                SamplesFile {
                    file: format!("{SAMPLES}/{index:05}.parquet"),
                    rows: samples.len() as u64,
                    bytes,
                    xxh3,
                },
            ))
        };
        let (maps, table) = made().inspect_err(|_| {
            // The room that they hold is what the user is now short of. Rows of an earlier process are worth it.
            for path in tap_paths.iter().filter(|_| is_new).chain([&table_path]) {
                let _ = fs::remove_file(path);
            }
        })?;
        let writeback =
            Writeback::start().map_err(|e| Error::io("start a thread for", &partial, e))?;
        self.keep = keep
            .into_iter()
            .map(|(name, kind)| KeptColumn {
                name,
                kind: Some(kind),
            })
            .collect();
        let first = self.samples;
        let mut shard = ShardWriter::new(Begun {
            shared: self.shared.clone(),
            taps: self.taps.clone(),
            index,
            first,
            n_samples: samples.len(),
            layout,
            maps,
            writeback,
            tap_paths,
            table_path,
            table,
            keep: self.keep.clone(),
            commit_every: self.commit_every,
        });
        let keep = shard.take_up(found);
        let journaled = Arc::clone(&self.lock().journaled);
        let files = shard.files();
        let behind = Behind {
            head,
            keep,
            files,
            journaled,
        };
        shard.journal = Some(Journal::start(journal_path, behind)?);
        if let Some(ring) = &self.ring {
            shard.write_from(ring)?;
        }
        self.begun += 1;
        self.samples = after;
        Ok(shard)
    }

    /// Ends the store: its manifest says `complete`, and `.partial/` goes.
    ///
    /// # Errors
    /// A shard was begun and not committed, or the disk fails.
    pub fn finish(self, summary: Summary) -> Result<()> {
        let mut shared = self.lock();
        if shared.manifest.shards.len() != self.begun {
            return Err(Error::Plan(format!(
                "the store has {} of its {} shards committed",
                shared.manifest.shards.len(),
                self.begun
            )));
        }
        let mut manifest = shared.manifest.clone();
        manifest.state = State::Complete;
        manifest.provenance.receipts = summary.receipts;
        manifest.mean_norms = summary.mean_norms;
        manifest.losses = manifest.sum_losses();
        manifest.timing = summary.timing;
        manifest.stalls = summary.stalls;
        manifest.carry = Value::Null;
        if let Some(dataset) = summary.dataset {
            manifest.provenance.dataset = dataset;
        }
        manifest.publish(&shared.root)?;
        shared.manifest = manifest;
        let partial = shared.root.join(PARTIAL);
        fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
        sync_dir(&shared.root)
    }

    /// Gives the run up. What was committed stays, in a store that says `partial`; a store without a durable batch
    /// goes, so that the directory is free for the next attempt. Whether anything stays.
    pub fn abandon(self) -> bool {
        let shared = self.lock();
        // A commit that failed midway has put files there.
        let is_empty = |folder: &str| {
            let entries = fs::read_dir(shared.root.join(folder));
            entries.is_ok_and(|mut entries| entries.next().is_none())
        };
        let mut folders = self.taps.iter().map(|t| t.folder.as_str()).chain([SAMPLES]);
        let stays = !shared.manifest.shards.is_empty()
            || shared.journaled.load(Relaxed)
            || !folders.all(is_empty);
        if !stays {
            clear(&shared.root, &self.taps, true);
        }
        stays
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock, makes the folders and writes the first manifest: from here on the directory is a partial store.
fn furnish(dir: &Path, manifest: Manifest) -> Result<Shared> {
    let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
    let lock = locked(&root)?;
    for folder in manifest
        .taps
        .iter()
        .map(|t| t.folder.as_str())
        .chain([SAMPLES])
    {
        let folder = root.join(folder);
        fs::create_dir(&folder).map_err(|e| Error::write(&folder, 0, 0, e))?;
    }
    manifest.publish(&root)?;
    Ok(Shared {
        root,
        manifest,
        journaled: Arc::default(),
        _lock: lock,
    })
}

/// Takes the lock of the store at `root`, whose `.partial/` is there.
///
/// # Errors
/// Another process has it.
pub(super) fn locked(root: &Path) -> Result<LockFile> {
    let path = lock_path(root);
    match LockFile::try_acquire(&path).map_err(|e| Error::write(&path, 0, 0, e))? {
        Attempt::Held(lock) => Ok(lock),
        Attempt::Busy(pid) => Err(Error::Locked {
            path: root.to_owned(),
            pid,
        }),
    }
}

/// Reserves and maps a shard's files.
fn reserve(paths: &[PathBuf], layout: &ShardLayout) -> Result<Vec<WritableMap>> {
    let files = paths.iter().zip(&layout.taps);
    files
        .map(|(path, tap)| {
            let bytes = tap.file_bytes as u64;
            WritableMap::create(path, bytes)
                .map_err(|e| Error::write(path, layout.bytes(), bytes, e))
        })
        .collect()
}

/// Maps the files that an earlier process left of a shard; `None` unless all of them are there.
fn retake(paths: &[PathBuf], layout: &ShardLayout) -> Result<Option<Vec<WritableMap>>> {
    let files = paths.iter().zip(&layout.taps);
    files
        .map(|(path, tap)| {
            let bytes = tap.file_bytes as u64;
            WritableMap::reopen(path, bytes)
                .map_err(|e| Error::write(path, layout.bytes(), bytes, e))
        })
        .collect()
}

/// Undoes what [`StoreWriter::create`] made. Only empty folders and our own `.partial/` go.
fn clear(dir: &Path, taps: &[TapInfo], existed: bool) {
    let _ = fs::remove_dir_all(dir.join(PARTIAL));
    let _ = fs::remove_file(dir.join(MANIFEST));
    for folder in taps.iter().map(|t| t.folder.as_str()).chain([SAMPLES]) {
        let _ = fs::remove_dir(dir.join(folder));
    }
    if !existed {
        let _ = fs::remove_dir(dir);
    }
}

/// Why a directory that is not empty is refused.
pub(super) fn occupied(dir: &Path) -> Error {
    let path = dir.to_owned();
    let lock = lock_path(dir);
    if lock.exists()
        && let Ok(Attempt::Busy(pid)) = LockFile::try_acquire(&lock)
    {
        return Error::Locked { path, pid };
    }
    match Manifest::read(dir) {
        Ok(manifest) => Error::AlreadyAStore {
            path,
            state: manifest.state.name(),
        },
        Err(_) => Error::NotEmpty { path },
    }
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.join(PARTIAL).join("lock")
}

/// Writes a samples table durably; its length and checksum.
pub(super) fn write_table(
    path: &Path,
    table: &SamplesTable<'_>,
    shard_bytes: u64,
) -> Result<(u64, Xxh3)> {
    let failed = |e: io::Error| Error::write(path, shard_bytes, 0, e);
    let mut sink = io::BufWriter::new(HashingFile {
        file: create_anew(path).map_err(failed)?,
        hasher: Hasher::new(),
        bytes: 0,
    });
    table.write(&mut sink).map_err(|e| match e {
        ParquetError::External(e) => match e.downcast::<io::Error>() {
            Ok(e) => failed(*e),
            Err(e) => Error::Plan(format!("cannot encode {}: {e}", path.display())),
        },
        e => Error::Plan(format!("cannot encode {}: {e}", path.display())),
    })?;
    let sink = sink.into_inner().map_err(|e| failed(e.into_error()))?;
    sink.file.sync_all().map_err(failed)?;
    Ok((sink.bytes, Xxh3(sink.hasher.digest())))
}

/// A file that is hashed as it is written.
struct HashingFile {
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl Write for HashingFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
