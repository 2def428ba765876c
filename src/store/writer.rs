//! Begins a store, begins its shards, ends it. One writer at a time: the lock file `.partial/lock` is held (`flock`) for as long as
//! the writer or one of its shards lives, and freed by the kernel if the process dies.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use parquet::errors::ParquetError;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3 as Hasher;

use super::error::{Error, Result};
use super::layout::{ShardLayout, TapRows, write_fixed};
use super::lend::RingToDisk;
use super::manifest::{
    DatasetInfo, FORMAT_VERSION, KeptColumn, MANIFEST, Manifest, PARTIAL, Provenance, SAMPLES,
    SamplesFile, State, TapInfo, Xxh3, check_taps, sync_dir,
};
use super::samples::{
    KeptType, RowRange, SampleRow, SamplesTable, check_keep, kept_columns, settle_types,
};
use super::shard::{Begun, ShardWriter};
use crate::sys::lock::{Attempt, LockFile};
use crate::sys::writable::{WritableMap, Writeback};

/// What the writer and its shards have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub root: PathBuf,
    /// As it is on disk.
    pub manifest: Manifest,
    _lock: LockFile,
}

/// What is known of a run only when it ends.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub receipts: Vec<Value>,
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
    /// The kept columns; types are settled by the first shard.
    keep: Vec<KeptColumn>,
    model_fingerprint: String,
    /// Shards begun, and samples in them.
    begun: usize,
    samples: u64,
    /// What lent rows pass through on their way to the disk, if not the mapped files themselves.
    ring: Option<Arc<RingToDisk>>,
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
        let model_fingerprint = provenance.model.fingerprint.clone();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            state: State::Partial,
            provenance,
            taps: taps.clone(),
            keep: keep.clone(),
            samples: 0,
            timing: Value::Null,
            stalls: Value::Null,
            shards: Vec::new(),
        };
        let shared = furnish(dir, manifest).inspect_err(|_| clear(dir, &taps, existed))?;
        Ok(Self {
            shared: Arc::new(Mutex::new(shared)),
            taps: taps.into(),
            keep,
            model_fingerprint,
            begun: 0,
            samples: 0,
            ring: None,
        })
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
    /// headers, index tensors and the samples table. What is left to write is the rows.
    ///
    /// # Errors
    /// No room on the disk for the whole shard, samples and rows that do not fit, or a kept field whose type changes. The shard's files are
    /// then removed again.
    pub fn begin_shard(
        &mut self,
        samples: &[SampleRow],
        rows: &[Vec<TapRows>],
    ) -> Result<ShardWriter> {
        let layout = ShardLayout::plan(&self.taps, samples, rows, &self.model_fingerprint)?;
        let names = || self.keep.iter().map(|c| c.name.clone());
        let settled: Option<Vec<KeptType>> = self.keep.iter().map(|c| c.kind).collect();
        let kinds = settled
            .filter(|_| self.begun > 0)
            .unwrap_or_else(|| settle_types(self.keep.len(), samples));
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
        let made = || -> Result<_> {
            let mut maps = Vec::with_capacity(self.taps.len());
            for (path, tap) in tap_paths.iter().zip(&layout.taps) {
                let bytes = tap.file_bytes as u64;
                maps.push(
                    WritableMap::create(path, bytes)
                        .map_err(|e| Error::write(path, layout.bytes(), bytes, e))?,
                );
            }
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
            // The room that they hold is what the user is now short of.
            for path in tap_paths.iter().chain([&table_path]) {
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
        self.begun += 1;
        self.samples += samples.len() as u64;
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
        });
        if let Some(ring) = &self.ring {
            shard.write_from(ring)?;
        }
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
        manifest.timing = summary.timing;
        manifest.stalls = summary.stalls;
        if let Some(dataset) = summary.dataset {
            manifest.provenance.dataset = dataset;
        }
        manifest.publish(&shared.root)?;
        shared.manifest = manifest;
        let partial = shared.root.join(PARTIAL);
        fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
        sync_dir(&shared.root)
    }

    /// Gives the run up. What was committed stays, in a store that says `partial`; a store without a committed shard
    /// goes, so that the directory is free for the next attempt.
    pub fn abandon(self) {
        let (root, committed) = {
            let shared = self.lock();
            (shared.root.clone(), shared.manifest.shards.len())
        };
        if committed == 0 {
            clear(&root, &self.taps, true);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock, makes the folders and writes the first manifest: from here on the directory is a partial store.
fn furnish(dir: &Path, manifest: Manifest) -> Result<Shared> {
    let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
    let path = lock_path(&root);
    let lock = match LockFile::try_acquire(&path).map_err(|e| Error::write(&path, 0, 0, e))? {
        Attempt::Held(lock) => lock,
        Attempt::Busy(pid) => {
            return Err(Error::Locked {
                path: dir.to_owned(),
                pid,
            });
        }
    };
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
        _lock: lock,
    })
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
fn occupied(dir: &Path) -> Error {
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
fn write_table(path: &Path, table: &SamplesTable<'_>, shard_bytes: u64) -> Result<(u64, Xxh3)> {
    let failed = |e: io::Error| Error::write(path, shard_bytes, 0, e);
    let mut sink = HashingFile {
        file: File::create(path).map_err(failed)?,
        hasher: Hasher::new(),
        bytes: 0,
    };
    table.write(&mut sink).map_err(|e| match e {
        ParquetError::External(e) => match e.downcast::<io::Error>() {
            Ok(e) => failed(*e),
            Err(e) => Error::Plan(format!("cannot encode {}: {e}", path.display())),
        },
        e => Error::Plan(format!("cannot encode {}: {e}", path.display())),
    })?;
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
