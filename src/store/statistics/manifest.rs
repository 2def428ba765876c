//! `statistics.json`: what the folder holds, from what and how it was made.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::error::{Error, Result};
use super::super::manifest::{Provenance, TapInfo, Xxh3, check_taps};
use super::moments::Set;

/// The file's name. A folder without it is no finished one.
pub const STATISTICS: &str = "statistics.json";

/// A longer one is refused rather than read into memory.
const MOST_BYTES: u64 = 64 << 20;

/// What was summed, over what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kinds {
    /// Σ x of the rows.
    pub mean: bool,
    /// Σ x·xᵀ of the rows.
    pub cov: bool,
    /// Both, of the differences of pairs.
    pub pairdiff: bool,
    /// Field of the dataset by whose values rows are summed apart.
    #[serde(default)]
    pub label: Option<String>,
    /// Field of the dataset that the two samples of a pair share.
    #[serde(default)]
    pub pair: Option<String>,
}

impl Kinds {
    /// Whether rows are summed by themselves, not as pairs alone.
    pub fn of_rows(&self) -> bool {
        self.mean || self.cov
    }
}

/// What was run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    pub samples: u64,
    pub tokens: u64,
}

/// A set of sums of one tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetInfo {
    /// As its tensors' names begin.
    pub name: String,
    /// Rows, or pairs.
    pub count: u64,
    /// Whether there is Σ x·xᵀ.
    pub outer: bool,
}

/// A tap and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapStatistics {
    #[serde(flatten)]
    pub info: TapInfo,
    pub file: String,
    pub bytes: u64,
    pub xxh3: Xxh3,
    pub sets: Vec<SetInfo>,
}

/// What `statistics.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatisticsManifest {
    pub statistics_version: u32,
    #[serde(flatten)]
    pub provenance: Provenance,
    pub statistics: Kinds,
    /// How sums were made: rows of a chunk that is summed in f32, and by what.
    pub arithmetic: Value,
    #[serde(flatten)]
    pub counted: Counted,
    /// Folders of slices that were added up: 1 where one run made it all.
    pub slices: u64,
    #[serde(default)]
    pub timing: Value,
    /// Processes that worked on it.
    pub attempts: u64,
    pub taps: Vec<TapStatistics>,
}

impl StatisticsManifest {
    /// The version of the format.
    pub const VERSION: u32 = 1;

    /// Whether `dir` is a finished folder of statistics.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(STATISTICS).is_file()
    }

    /// What the run that did not end, and left `dir`, was of; `None` where none has come so far.
    pub fn begun(dir: &Path) -> Option<Self> {
        super::checkpoint::begun(dir)
    }

    /// Reads and checks `statistics.json` in `dir`.
    ///
    /// # Errors
    /// There is none, it is of another version, or it does not hold together.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(STATISTICS);
        let wrong = |what: String| Error::Manifest {
            path: path.clone(),
            what,
        };
        let value = read_json(&path)?;
        let version = &value["statistics_version"];
        if version.as_u64() != Some(Self::VERSION.into()) {
            return Err(wrong(format!(
                "statistics_version {version} is not known to this version, which reads {}; use a newer streamgauge",
                Self::VERSION
            )));
        }
        let read: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        read.check().map_err(wrong)?;
        Ok(read)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let infos: Vec<TapInfo> = self.taps.iter().map(|tap| tap.info.clone()).collect();
        check_taps(&infos)?;
        for tap in &self.taps {
            if tap.file != file_of(&tap.info) {
                return Err(format!("{:?} is no file of {}", tap.file, tap.info.folder));
            }
            let mut names = HashSet::new();
            for set in &tap.sets {
                if Set::named(&set.name).is_none() || !names.insert(&set.name) {
                    return Err(format!(
                        "{}: {:?} is no set, or named twice",
                        tap.file, set.name
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A JSON file, provided that it is not too long.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let wrong = |what: String| Error::Manifest {
        path: path.to_owned(),
        what,
    };
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::io("read", path, e))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("longer than {MOST_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|e| wrong(format!("no valid JSON ({e})")))
}

/// The name of a tap's file.
pub(super) fn file_of(tap: &TapInfo) -> String {
    format!("{}.safetensors", tap.folder)
}
