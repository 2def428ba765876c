//! What a sweep has done so far, a JSON line for each part (some of one prompt's runs), so that a stopped sweep can go on.
//! Numbers are kept as their bits.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::Receipt;
use crate::engine::{Error, Result};

/// The file's name in the sweep's folder.
pub(super) const NAME: &str = "journal.jsonl";

/// The numbers of one part.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// The metrics of the prompt's runs without patches.
    pub clean: Vec<f64>,
    pub corrupt: Vec<f64>,
    /// Of each patched run in turn; empty where the prompt is left out.
    pub values: Vec<f64>,
    pub layer_runs: u64,
    /// Per site.
    pub patched: Vec<Receipt>,
    /// Per edit of the job, in a prompt's first part.
    pub edited: Vec<Receipt>,
}

/// A part as the file has it.
#[derive(Serialize, Deserialize)]
struct Written {
    prompt: usize,
    part: usize,
    ends: [Vec<u64>; 2],
    values: Vec<u64>,
    layer_runs: u64,
    patched: Vec<[u64; 3]>,
    edited: Vec<[u64; 3]>,
}

/// The file under way, or none.
pub(super) struct Journal {
    file: Option<(File, PathBuf)>,
    found: BTreeMap<(usize, usize), Part>,
    resumed: u64,
}

impl Journal {
    /// One that keeps nothing.
    pub fn nowhere() -> Self {
        Journal {
            file: None,
            found: BTreeMap::new(),
            resumed: 0,
        }
    }

    /// Begins a journal in `dir`, or goes on with the one that is there. `record` says what the sweep is.
    ///
    /// # Errors
    /// A folder that holds something else, no journal to go on with, or one of another sweep.
    pub fn open(dir: &Path, record: &Value, resume: bool) -> Result<Self> {
        let path = dir.join(NAME);
        let fail = |why: String| Error::SweepFile {
            path: path.display().to_string(),
            why,
        };
        let io = |e: std::io::Error| fail(e.to_string());
        let mut journal = Journal::nowhere();
        if resume && path.exists() {
            let text = std::fs::read_to_string(&path).map_err(io)?;
            // A line that a stopped run did not finish has no end, and is dropped.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let mut lines = text[..whole].lines();
            if let Some(first) = lines.next() {
                check(first, record).map_err(fail)?;
                for line in lines {
                    let part: Written = serde_json::from_str(line)
                        .map_err(|e| fail(format!("a line is damaged ({e}): begin anew")))?;
                    journal.found.insert((part.prompt, part.part), part.read());
                }
            }
            let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
            file.set_len(whole as u64).map_err(io)?;
            let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
            journal.file = Some((file, path.clone()));
            if whole == 0 {
                journal.line(&record.to_string())?;
            }
            return Ok(journal);
        }
        std::fs::create_dir_all(dir).map_err(io)?;
        if std::fs::read_dir(dir).map_err(io)?.next().is_some() {
            let why = if resume {
                "there is nothing to resume: it is finished, or of something else; choose an empty directory"
            } else {
                "the directory is not empty: choose another, or pass --resume to go on with a stopped sweep"
            };
            return Err(Error::SweepFile {
                path: dir.display().to_string(),
                why: why.into(),
            }
            .into());
        }
        let file = File::create(&path).map_err(io)?;
        journal.file = Some((file, path.clone()));
        journal.line(&record.to_string())?;
        Ok(journal)
    }

    /// The part, if an earlier run did it.
    pub fn take(&mut self, prompt: usize, part: usize) -> Option<Part> {
        let found = self.found.remove(&(prompt, part))?;
        self.resumed += 1;
        Some(found)
    }

    /// How many parts were taken.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Keeps a part, durably.
    pub fn keep(&mut self, prompt: usize, number: usize, part: &Part) -> Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let written = serde_json::to_string(&Written::of(prompt, number, part));
        self.line(&written.map_err(|e| self.fail(&e))?)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let Some((file, _)) = &mut self.file else {
            return Ok(());
        };
        let written = file
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| file.sync_data());
        written.map_err(|e| self.fail(&e))
    }

    fn fail(&self, why: &dyn std::fmt::Display) -> crate::Error {
        let path = self
            .file
            .as_ref()
            .map(|(_, path)| path.display().to_string());
        Error::SweepFile {
            path: path.unwrap_or_default(),
            why: why.to_string(),
        }
        .into()
    }
}

/// Refuses the journal of another sweep, naming what differs.
/// Whether a sweep's results lie in `dir`, whole.
///
/// # Errors
/// Another sweep's.
pub(super) fn is_done(dir: &Path, record: &Value) -> Result<bool> {
    let path = dir.join("manifest.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(false);
    };
    let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
    if manifest["status"] != "complete" || dir.join(NAME).exists() {
        return Ok(false);
    }
    let path = path.display().to_string();
    same(&manifest["job"], record).map_err(|why| Error::SweepFile { path, why })?;
    Ok(true)
}

fn check(first: &str, record: &Value) -> Result<(), String> {
    let old: Value = serde_json::from_str(first).map_err(|e| format!("not a journal ({e})"))?;
    same(&old, record)
}

fn same(old: &Value, record: &Value) -> Result<(), String> {
    let mut differing: Vec<String> = Vec::new();
    for (key, new) in record.as_object().into_iter().flatten() {
        let old = &old[key];
        match (new.as_object(), old.as_object()) {
            (Some(inner), Some(_)) if key == "sweep" => {
                let differs = |k: &&String| inner[*k] != old[*k];
                differing.extend(inner.keys().filter(differs).cloned());
            }
            _ if old != new => differing.push(key.clone()),
            _ => {}
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "it was begun with other {}: resume with the same command, or begin anew in another directory",
        differing.join(", ")
    ))
}

impl Written {
    fn of(prompt: usize, number: usize, part: &Part) -> Self {
        let bits = |r: &Receipt| [r.rows, r.norm_before.to_bits(), r.norm_after.to_bits()];
        let numbers = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect();
        Written {
            prompt,
            part: number,
            ends: [numbers(&part.clean), numbers(&part.corrupt)],
            values: numbers(&part.values),
            layer_runs: part.layer_runs,
            patched: part.patched.iter().map(bits).collect(),
            edited: part.edited.iter().map(bits).collect(),
        }
    }

    fn read(self) -> Part {
        let receipt = |[rows, before, after]: [u64; 3]| Receipt {
            rows,
            norm_before: f64::from_bits(before),
            norm_after: f64::from_bits(after),
        };
        let numbers = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
        let [clean, corrupt] = self.ends.map(numbers);
        Part {
            clean,
            corrupt,
            values: numbers(self.values),
            layer_runs: self.layer_runs,
            patched: self.patched.into_iter().map(receipt).collect(),
            edited: self.edited.into_iter().map(receipt).collect(),
        }
    }
}
