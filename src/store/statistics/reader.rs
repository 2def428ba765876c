//! Reads a finished folder of statistics.

use std::path::{Path, PathBuf};

use super::super::error::{Error, Result};
use super::super::format::Header;
use super::super::manifest::{TapInfo, Xxh3};
use super::file;
use super::manifest::{StatisticsManifest, TapStatistics};
use super::moments::{Moments, Set, TapSets};
use crate::sys::map::MappedFile;

/// A finished folder of statistics.
#[derive(Debug)]
pub struct Statistics {
    root: PathBuf,
    manifest: StatisticsManifest,
}

impl Statistics {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is none, not finished, or does not hold together.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Statistics {
            root: dir.to_owned(),
            manifest: StatisticsManifest::read(dir)?,
        })
    }

    pub fn manifest(&self) -> &StatisticsManifest {
        &self.manifest
    }

    /// The taps, in the order of the run.
    pub fn taps(&self) -> &[TapStatistics] {
        &self.manifest.taps
    }

    /// What every tap reads, in the order of the run.
    pub fn infos(&self) -> Vec<TapInfo> {
        self.manifest
            .taps
            .iter()
            .map(|tap| tap.info.clone())
            .collect()
    }

    /// The sums of one set of a tap; `None` where it has no such set.
    ///
    /// # Errors
    /// The file is missing, damaged, or not what the manifest says.
    pub fn set(&self, tap: usize, set: &Set) -> Result<Option<Moments>> {
        let tap = &self.manifest.taps[tap];
        let name = set.to_string();
        let Some(listed) = tap.sets.iter().find(|s| s.name == name) else {
            return Ok(None);
        };
        let (path, file) = self.mapped(tap)?;
        let header = Header::parse(&path, &file)?;
        let shape = (width(&tap.info), listed.outer);
        let moments = file::read(&path, &file, &header, set, shape)?;
        if moments.count != listed.count {
            let what = format!("{name} counts {}, not {}", moments.count, listed.count);
            return Err(Error::damaged(&path, what));
        }
        Ok(Some(moments))
    }

    /// All sets of a tap.
    ///
    /// # Errors
    /// As [`set`](Self::set)'s.
    pub fn sets(&self, tap: usize) -> Result<TapSets> {
        let mut sets = TapSets::new();
        for listed in &self.manifest.taps[tap].sets {
            let Some(set) = Set::named(&listed.name) else {
                continue; // the manifest's check refuses it
            };
            if let Some(moments) = self.set(tap, &set)? {
                sets.insert(set, moments);
            }
        }
        Ok(sets)
    }

    /// Compares every file's checksum; what is wrong with the first that differs.
    ///
    /// # Errors
    /// A file is missing or not what the manifest says.
    pub fn check(&self) -> Result<u64> {
        let mut bytes = 0;
        for tap in &self.manifest.taps {
            let (path, file) = self.mapped(tap)?;
            if Xxh3::of(&file) != tap.xxh3 {
                return Err(Error::damaged(&path, "its checksum is not the manifest's"));
            }
            bytes += tap.bytes;
        }
        Ok(bytes)
    }

    fn mapped(&self, tap: &TapStatistics) -> Result<(PathBuf, MappedFile)> {
        let path = self.root.join(&tap.file);
        let file = MappedFile::open(&path).map_err(|e| Error::io("read", &path, e))?;
        if file.len() as u64 != tap.bytes {
            let what = format!(
                "{} bytes, where the manifest says {}",
                file.len(),
                tap.bytes
            );
            return Err(Error::damaged(&path, what));
        }
        Ok((path, file))
    }
}

/// Components of a tap's rows.
pub(super) fn width(tap: &TapInfo) -> usize {
    tap.row_shape.iter().product()
}
