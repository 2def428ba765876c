//! Makes a folder of statistics: the directory and its lock at the beginning, every file by way of `.partial/`, `statistics.json` last.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::super::error::{Error, Result};
use super::super::manifest::{MANIFEST, PARTIAL, TapInfo, sync_dir};
use super::super::writer::locked;
use super::checkpoint::{self, Checkpoint};
use super::file::{self, Entry};
use super::manifest::{STATISTICS, SetInfo, StatisticsManifest, TapStatistics, file_of};
use super::moments::TapSets;
use crate::sys::lock::LockFile;
use crate::sys::writable::create_anew;

/// A folder of statistics that is being made.
#[derive(Debug)]
pub struct StatisticsWriter {
    root: PathBuf,
    _lock: LockFile,
}

impl StatisticsWriter {
    /// Begins one in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `dir` is not empty, cannot be written to, or is being written by another process.
    pub fn create(dir: &Path) -> Result<Self> {
        if dir.exists() && !dir.is_dir() {
            return Err(Error::NotADirectory {
                path: dir.to_owned(),
            });
        }
        fs::create_dir_all(dir).map_err(|e| Error::write(dir, 0, 0, e))?;
        let mut entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
        if entries.next().is_some() {
            return Err(occupied(dir));
        }
        let partial = dir.join(PARTIAL);
        fs::create_dir(&partial).map_err(|e| Error::write(&partial, 0, 0, e))?;
        Self::lock(dir)
    }

    fn lock(dir: &Path) -> Result<Self> {
        let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
        let lock = locked(&root)?;
        Ok(StatisticsWriter { root, _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes every tap's file, then `statistics.json`: only with that are they there. `manifest` has no taps yet; `sets` gives each
    /// tap's sums in turn.
    ///
    /// # Errors
    /// The disk's, and those of `sets`.
    pub fn publish(
        self,
        mut manifest: StatisticsManifest,
        taps: &[TapInfo],
        sets: &mut dyn FnMut(usize) -> Result<TapSets>,
    ) -> Result<StatisticsManifest> {
        let partial = self.root.join(PARTIAL);
        for (tap, info) in taps.iter().enumerate() {
            let sets = sets(tap)?;
            let name = file_of(info);
            let made = partial.join(&name);
            let entries: Vec<Entry<'_>> = sets.iter().map(|(set, m)| (set, m, &[][..])).collect();
            let (bytes, xxh3) = file::write(&made, info, &entries)?;
            into_place(&made, &self.root.join(&name))?;
            manifest.taps.push(TapStatistics {
                info: info.clone(),
                file: name,
                bytes,
                xxh3,
                sets: listed(&sets),
            });
        }
        sync_dir(&self.root)?;
        let made = partial.join(STATISTICS);
        write_json(&made, &serde_json::to_value(&manifest).unwrap_or_default())?;
        into_place(&made, &self.root.join(STATISTICS))?;
        sync_dir(&self.root)?;
        fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
        Ok(manifest)
    }

    /// Gives up. What a checkpoint holds stays; where there is none, the folder goes. Whether something stays.
    pub fn abandon(self) -> bool {
        if checkpoint::begun(&self.root).is_some() {
            return true;
        }
        let _ = fs::remove_dir_all(self.root.join(PARTIAL));
        let _ = fs::remove_dir(&self.root); // not if something else is in it
        false
    }
}

/// What is there where statistics are to go on.
#[derive(Debug)]
pub enum FoundStatistics {
    Nothing,
    Complete(Box<StatisticsManifest>),
    /// A folder whose run did not end, locked from here on, and what it left last.
    Unfinished(StatisticsWriter, Option<Box<Checkpoint>>),
}

/// Looks for statistics in `dir`, and locks unfinished ones.
///
/// # Errors
/// Another process writes them, they are damaged, or there is something else in the directory.
pub fn find_statistics(dir: &Path) -> Result<FoundStatistics> {
    if !dir.exists() {
        return Ok(FoundStatistics::Nothing);
    }
    if !dir.is_dir() {
        return Err(Error::NotADirectory {
            path: dir.to_owned(),
        });
    }
    let partial = dir.join(PARTIAL);
    let ours = fs::symlink_metadata(&partial).is_ok_and(|meta| meta.is_dir());
    if StatisticsManifest::is_in(dir) {
        if ours {
            // All that its run had still to do.
            let writer = StatisticsWriter::lock(dir)?;
            let partial = writer.root.join(PARTIAL);
            fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
        }
        return Ok(FoundStatistics::Complete(Box::new(
            StatisticsManifest::read(dir)?,
        )));
    }
    let is_empty = fs::read_dir(dir)
        .map_err(|e| Error::io("read", dir, e))?
        .next()
        .is_none();
    if is_empty {
        return Ok(FoundStatistics::Nothing);
    }
    if !ours || dir.join(MANIFEST).exists() {
        return Err(super::super::writer::occupied(dir));
    }
    let writer = StatisticsWriter::lock(dir)?;
    let left = checkpoint::read(&writer.root)?;
    Ok(FoundStatistics::Unfinished(writer, left.map(Box::new)))
}

fn listed(sets: &TapSets) -> Vec<SetInfo> {
    let info = |(set, moments): (&super::Set, &super::Moments)| SetInfo {
        name: set.to_string(),
        count: moments.count,
        outer: moments.outer.is_some(),
    };
    sets.iter().map(info).collect()
}

fn into_place(made: &Path, path: &Path) -> Result<()> {
    fs::rename(made, path).map_err(|e| Error::write(path, 0, 0, e))
}

/// Writes JSON durably.
pub(super) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = format!("{value:#}\n");
    let written = create_anew(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Error::write(path, text.len() as u64, 0, e))
}

/// Why a directory with something in it is refused.
fn occupied(dir: &Path) -> Error {
    let error = super::super::writer::occupied(dir);
    let path = dir.to_owned();
    match error {
        Error::NotEmpty { .. } if dir.join(STATISTICS).exists() => Error::AlreadyStatistics {
            path,
            state: "complete",
        },
        Error::NotEmpty { .. } if dir.join(PARTIAL).exists() => Error::AlreadyStatistics {
            path,
            state: "partial",
        },
        error => error,
    }
}
