//! What a stopped run left of its sums: a folder in `.partial/` that is written whole before it gets its name, so that there is always
//! one that holds together. The chunks of rows that are not summed yet are kept too: sums go on with the very same bits.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::error::{Error, Result};
use super::super::format::{Header, TensorSpec};
use super::super::manifest::{PARTIAL, Xxh3, sync_dir};
use super::file::{self, Entry};
use super::folder::{StatisticsWriter, write_json};
use super::manifest::{SetInfo, StatisticsManifest, TapStatistics, file_of, read_json};
use super::moments::{Moments, Set};
use super::reader::width;
use crate::sys::map::MappedFile;

const STATE: &str = "state.json";
const PAIRS: &str = "pairs.safetensors";

/// Sums under way of one set: what was added up, and rows `[n, width]` that still wait for a whole chunk.
pub type UnderWay = (Set, Moments, Vec<f32>);

/// Rows whose partner has not come, end to end, and the hashes of the names of whole pairs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairRows {
    pub rows: Vec<f32>,
    pub whole: Vec<u64>,
}

/// Sums of a run that did not end.
#[derive(Debug)]
pub struct Checkpoint {
    /// What they are of; its taps' files are the checkpoint's.
    pub manifest: StatisticsManifest,
    /// The engine's own account of the run.
    pub account: Value,
    /// Of each tap.
    pub taps: Vec<Vec<UnderWay>>,
    pub pairs: PairRows,
}

/// As it lies in `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    manifest: StatisticsManifest,
    account: Value,
    pairs: Listed,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    bytes: u64,
    xxh3: Xxh3,
}

/// A checkpoint in the making.
#[derive(Debug)]
pub struct CheckpointWriter<'w> {
    writer: &'w StatisticsWriter,
    number: u64,
    made: PathBuf,
    manifest: StatisticsManifest,
}

impl StatisticsWriter {
    /// Begins a checkpoint; `manifest` has no taps yet.
    ///
    /// # Errors
    /// The disk's.
    pub fn checkpoint(&self, manifest: StatisticsManifest) -> Result<CheckpointWriter<'_>> {
        let partial = self.root().join(PARTIAL);
        let made = partial.join("next");
        if made.exists() {
            fs::remove_dir_all(&made).map_err(|e| Error::io("remove", &made, e))?;
        }
        fs::create_dir(&made).map_err(|e| Error::write(&made, 0, 0, e))?;
        Ok(CheckpointWriter {
            number: numbers(&partial)?.last().map_or(0, |last| last + 1),
            writer: self,
            made,
            manifest,
        })
    }
}

impl CheckpointWriter<'_> {
    /// Writes a tap's sums under way.
    ///
    /// # Errors
    /// The disk's.
    pub fn tap(&mut self, info: &super::super::TapInfo, sets: &[Entry<'_>]) -> Result<()> {
        let name = file_of(info);
        let (bytes, xxh3) = file::write(&self.made.join(&name), info, sets)?;
        let of_set = |(set, moments, _): &Entry<'_>| SetInfo {
            name: set.to_string(),
            count: moments.count,
            outer: moments.outer.is_some(),
        };
        self.manifest.taps.push(TapStatistics {
            info: info.clone(),
            file: name,
            bytes,
            xxh3,
            sets: sets.iter().map(of_set).collect(),
        });
        Ok(())
    }

    /// Ends it: from here on this is what a run goes on from.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(self, account: Value, pairs: &PairRows) -> Result<()> {
        let spec = |name: &str, dtype, size: u64, n: usize| TensorSpec {
            name: name.into(),
            dtype,
            shape: vec![n as u64],
            bytes: size * n as u64,
        };
        let tensors = [
            spec("whole", Dtype::U64, 8, pairs.whole.len()),
            spec("rows", Dtype::F32, 4, pairs.rows.len()),
        ];
        let (bytes, xxh3) = file::write_tensors(&self.made.join(PAIRS), &tensors, |to| {
            to.put_words(pairs.whole.iter().map(|n| n.to_le_bytes()))?;
            to.put_words(pairs.rows.iter().map(|x| x.to_le_bytes()))
        })?;
        let state = State {
            manifest: self.manifest,
            account,
            pairs: Listed { bytes, xxh3 },
        };
        let state = serde_json::to_value(&state).unwrap_or_default();
        write_json(&self.made.join(STATE), &state)?;
        sync_dir(&self.made)?;
        let partial = self.writer.root().join(PARTIAL);
        let to = folder(&partial, self.number);
        fs::rename(&self.made, &to).map_err(|e| Error::write(&to, 0, 0, e))?;
        sync_dir(&partial)?;
        for old in numbers(&partial)?.into_iter().filter(|&n| n < self.number) {
            let old = folder(&partial, old);
            fs::remove_dir_all(&old).map_err(|e| Error::io("remove", &old, e))?;
        }
        Ok(())
    }
}

fn folder(partial: &Path, number: u64) -> PathBuf {
    partial.join(format!("checkpoint-{number}"))
}

/// The checkpoints that are there, rising.
fn numbers(partial: &Path) -> Result<Vec<u64>> {
    let failed = |e| Error::io("read", partial, e);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(partial).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("checkpoint-"));
        numbers.extend(number.and_then(|n| n.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the run that wrote `root` left last, if it came so far; without its sums.
pub(super) fn begun(root: &Path) -> Option<StatisticsManifest> {
    let partial = root.join(PARTIAL);
    let last = *numbers(&partial).ok()?.last()?;
    let state = read_json(&folder(&partial, last).join(STATE)).ok()?;
    let state: State = serde_json::from_value(state).ok()?;
    Some(state.manifest)
}

/// Reads what the run that wrote `root` left last; `None` where it left nothing.
///
/// # Errors
/// It is damaged.
pub(super) fn read(root: &Path) -> Result<Option<Checkpoint>> {
    let partial = root.join(PARTIAL);
    let Some(&last) = numbers(&partial)?.last() else {
        return Ok(None);
    };
    let dir = folder(&partial, last);
    let path = dir.join(STATE);
    let state: State = serde_json::from_value(read_json(&path)?)
        .map_err(|e| Error::damaged(&path, e.to_string()))?;
    state
        .manifest
        .check()
        .map_err(|what| Error::damaged(&path, what))?;
    let mut taps = Vec::new();
    for tap in &state.manifest.taps {
        let path = dir.join(&tap.file);
        let file = checked(&path, tap.bytes, tap.xxh3)?;
        let header = Header::parse(&path, &file)?;
        let mut sets = Vec::new();
        for listed in &tap.sets {
            let set = Set::named(&listed.name)
                .ok_or_else(|| Error::damaged(&path, format!("{} is no set", listed.name)))?;
            let shape = (width(&tap.info), listed.outer);
            let moments = file::read(&path, &file, &header, &set, shape)?;
            let chunk = file::read_chunk(&path, &file, &header, &set, shape.0)?;
            sets.push((set, moments, chunk));
        }
        taps.push(sets);
    }
    let path = dir.join(PAIRS);
    let file = checked(&path, state.pairs.bytes, state.pairs.xxh3)?;
    let header = Header::parse(&path, &file)?;
    let bytes = |name: &str, dtype: Dtype| {
        header
            .tensor(name)
            .filter(|t| t.dtype == dtype)
            .and_then(|t| file.get(t.bytes.clone()))
            .ok_or_else(|| Error::damaged(&path, format!("no {name}")))
    };
    let (whole, _) = bytes("whole", Dtype::U64)?.as_chunks::<8>();
    let (rows, _) = bytes("rows", Dtype::F32)?.as_chunks::<4>();
    let pairs = PairRows {
        whole: whole.iter().map(|&w| u64::from_le_bytes(w)).collect(),
        rows: rows.iter().map(|&w| f32::from_le_bytes(w)).collect(),
    };
    Ok(Some(Checkpoint {
        manifest: state.manifest,
        account: state.account,
        taps,
        pairs,
    }))
}

fn checked(path: &Path, bytes: u64, xxh3: Xxh3) -> Result<MappedFile> {
    let file = MappedFile::open(path).map_err(|e| Error::io("read", path, e))?;
    if file.len() as u64 != bytes || Xxh3::of(&file) != xxh3 {
        let what = "it is not what the run wrote; remove the folder and run again without --resume";
        return Err(Error::damaged(path, what));
    }
    Ok(file)
}
