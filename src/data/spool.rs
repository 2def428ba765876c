//! The records of a shuffled dataset: read once in order, kept in a file that nobody else sees, and given out in another order. No form
//! of dataset needs random access for that, and memory holds eight bytes a record.

use super::Record;
use super::error::{Error, Result};
use crate::permutation::Permutation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a place in the order holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Entry {
    /// A record, and which of the sources it is of.
    Good(usize, Record),
    /// Why a record cannot be used.
    Bad(String),
}

/// A file being filled with entries.
pub(super) struct Filling {
    dir: PathBuf,
    file: BufWriter<File>,
    /// Where each entry begins, and the end of the last.
    starts: Vec<u64>,
}

impl Filling {
    /// An unnamed file in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let file = unnamed(dir).map_err(|e| failed(dir, e))?;
        Ok(Filling {
            dir: dir.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            starts: vec![0],
        })
    }

    /// Entries so far.
    pub fn len(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// Appends an entry; `None` for one that nobody will ask for.
    pub fn push(&mut self, entry: Option<&Entry>) -> Result<()> {
        let mut bytes = Vec::new();
        if let Some(entry) = entry {
            let written = serde_json::to_writer(&mut bytes, entry).map_err(io::Error::from);
            let written = written.and_then(|()| self.file.write_all(&bytes));
            written.map_err(|e| failed(&self.dir, e))?;
        }
        self.starts
            .push(self.starts[self.starts.len() - 1] + bytes.len() as u64);
        Ok(())
    }

    pub fn done(self, order: Permutation, files: Vec<Arc<str>>) -> Result<Spool> {
        let file = self.file.into_inner();
        Ok(Spool {
            file: file.map_err(|e| failed(&self.dir, e.into_error()))?,
            dir: self.dir,
            starts: self.starts,
            order,
            files,
        })
    }
}

/// The entries of a dataset, at their places in the order.
pub(super) struct Spool {
    dir: PathBuf,
    file: File,
    starts: Vec<u64>,
    order: Permutation,
    files: Vec<Arc<str>>,
}

impl Spool {
    pub fn len(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// The record at a place of the order, or why it is bad.
    pub fn at(&self, place: u64) -> Result<Result<Record, String>> {
        match self.read(place) {
            Ok(Entry::Good(source, mut record)) => {
                record.file = self.files.get(source).cloned().unwrap_or_default();
                Ok(Ok(record))
            }
            Ok(Entry::Bad(reason)) => Ok(Err(reason)),
            Err(e) => Err(failed(&self.dir, e)),
        }
    }

    fn read(&self, place: u64) -> io::Result<Entry> {
        let number = self.order.at(place) as usize;
        let Range { start, end } = self.starts[number]..self.starts[number + 1];
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

fn failed(dir: &Path, source: io::Error) -> Error {
    let dir = dir.to_owned();
    Error::Spool { dir, source }
}

/// A new file that has no name any more: it is gone when the process ends, however it ends.
fn unnamed(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        ".streamgauge-shuffled-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    );
    let path = dir.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
