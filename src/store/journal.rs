//! The journal of a shard being written, `.partial/NNNNN.journal`: which batches' rows are on disk. First the rows are made durable,
//! then their line is, so a line vouches for its rows. Both are done on a thread of their own, some batches at a time.
//!
//! A line is a checksum, a blank, and JSON; the first says which shard it is and how it was laid out. Whoever takes the shard up
//! again believes the lines up to the first that is torn or does not fit.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Result};
use super::layout::{ShardLayout, TapRows};
use super::manifest::{Xxh3, sync_dir};
use super::samples::SampleRow;
use crate::sys::writable::create_anew;

/// Version of the journal's form. One of another version is not believed; its shard is computed anew.
const VERSION: u32 = 1;
/// A line longer than this ends what is believed: 100,000 taps make one of 6 MiB.
const MAX_LINE: u64 = 64 << 20;
/// Files made durable at a time: a file system commits several in the time of one.
pub(super) const AT_A_TIME: usize = 8;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    journal: u32,
    shard: usize,
    samples: u64,
    /// Of the files' headers, the samples' tokens and the selected rows: equal layouts hold the same rows at the same places.
    layout: Xxh3,
}

impl Head {
    pub fn new(
        shard: usize,
        layout: &ShardLayout,
        samples: &[SampleRow],
        rows: &[Vec<TapRows>],
    ) -> Self {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for tap in &layout.taps {
            hash.update(&tap.header);
        }
        let mut numbers = |numbers: &mut dyn Iterator<Item = u64>| {
            numbers.for_each(|n| hash.update(&n.to_le_bytes()));
        };
        for (sample, rows) in samples.iter().zip(rows) {
            let name = [sample.sample, sample.chunk.into()];
            numbers(&mut name.into_iter());
            numbers(&mut sample.tokens.iter().map(|&t| t.into()));
            for rows in rows {
                numbers(&mut rows.positions.iter().map(|&p| p as u64));
            }
        }
        Self {
            journal: VERSION,
            shard,
            samples: samples.len() as u64,
            layout: Xxh3(hash.digest()),
        }
    }
}

/// A batch whose rows are on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub batch: usize,
    pub samples: u64,
    pub taps: Vec<TapLine>,
    /// What the engine gave with the batch: its own account of the run so far.
    pub carry: Value,
}

/// One tap's rows of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TapLine {
    pub rows: u64,
    pub activations: Xxh3,
    /// Of the side tensors, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sides: Vec<Xxh3>,
}

/// A line as it stands in the file.
pub(super) fn encode(line: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(line)
        .map_err(|e| Error::Plan(format!("the journal cannot hold this ({e})")))?;
    Ok(format!("{} {json}\n", Xxh3::of(json.as_bytes())))
}

fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = (line.get(..16)?, line.get(17..)?);
    let sum = std::str::from_utf8(sum).ok()?;
    let good = line[16] == b' ' && sum == Xxh3::of(json).to_string();
    good.then(|| serde_json::from_slice(json).ok())?
}

/// What an earlier process left of a shard's journal.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each with the length of the file up to its end.
    pub lines: Vec<(Line, u64)>,
    /// Up to the end of the first line.
    pub head: u64,
}

/// The lines of the journal at `path` that can be believed; none if it is not there, not of this shard, or not a plain file.
///
/// # Errors
/// It is there and cannot be read.
pub(super) fn read(path: &Path, head: &Head) -> Result<Found> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ELOOP) => {
            return Ok(Found::default());
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let failed = |e| Error::io("read", path, e);
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(Found::default());
    }
    let mut lines = Lines {
        file: BufReader::new(file),
        line: Vec::new(),
    };
    match lines.next_line().map_err(failed)? {
        Some(first) if decode::<Head>(first).as_ref() == Some(head) => {}
        _ => return Ok(Found::default()),
    }
    let mut end = lines.line.len() as u64;
    let mut found = Found {
        head: end,
        ..Found::default()
    };
    while let Some(line) = lines.next_line().map_err(failed)? {
        end += line.len() as u64;
        match decode::<Line>(line) {
            Some(line) if line.batch == found.lines.len() => found.lines.push((line, end)),
            _ => break,
        }
    }
    Ok(found)
}

struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line with its line end; `None` at the end of the file and at a line that is too long to be one.
    fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut some = self.file.by_ref().take(MAX_LINE);
        some.read_until(b'\n', &mut self.line)?;
        Ok(Some(&self.line[..]).filter(|line| line.ends_with(b"\n")))
    }
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Lines of batches that the thread was not given yet.
    pending: String,
    groups: Option<Sender<Group>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Error>>>,
}

/// Lines that are to become durable together, and who waits for it.
struct Group {
    lines: String,
    done: Option<Sender<()>>,
}

/// What the thread needs.
pub(super) struct Behind {
    pub head: Head,
    /// Bytes of the journal that are kept, its first line included; 0 begins it anew.
    pub keep: u64,
    /// The taps' files and their paths.
    pub files: Vec<(Arc<File>, PathBuf)>,
    /// Set when the first group is durable.
    pub journaled: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the thread. The file is begun, or cut to what is kept of it, with the first group.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(path: PathBuf, behind: Behind) -> Result<Self> {
        let (groups, asked) = channel();
        let failed = Arc::new(Mutex::new(None));
        let (to, failure) = (path.clone(), Arc::clone(&failed));
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                if let Err(error) = keep_journal(&to, &behind, &asked) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .map_err(|e| Error::io("start a thread for", &path, e))?;
        Ok(Self {
            path,
            pending: String::new(),
            groups: Some(groups),
            thread: Some(thread),
            failed,
        })
    }

    /// Notes a batch whose rows are written.
    pub fn note(&mut self, line: &Line) -> Result<()> {
        self.pending.push_str(&encode(line)?);
        Ok(())
    }

    /// Has what was noted made durable, behind the caller's back.
    ///
    /// # Errors
    /// An earlier group could not be.
    pub fn commit(&mut self) -> Result<()> {
        self.send(None)
    }

    /// As [`commit`](Self::commit), and waits for it.
    ///
    /// # Errors
    /// As there, and this group's.
    pub fn flush(&mut self) -> Result<()> {
        let (done, wait) = channel();
        self.send(Some(done))?;
        wait.recv().map_err(|_| self.failure())
    }

    fn send(&mut self, done: Option<Sender<()>>) -> Result<()> {
        let lines = std::mem::take(&mut self.pending);
        let sent = self
            .groups
            .as_ref()
            .is_some_and(|to| to.send(Group { lines, done }).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    /// Why the thread ended.
    fn failure(&mut self) -> Error {
        self.stop();
        let failed = self.failed.lock();
        let told = failed.unwrap_or_else(PoisonError::into_inner).take();
        told.unwrap_or_else(|| Error::Plan(format!("{}: already ended", self.path.display())))
    }

    /// Ends the thread; the journal's path.
    pub fn end(mut self) -> PathBuf {
        self.stop();
        std::mem::take(&mut self.path)
    }

    /// Ends the thread, when it has done what it was given. What is noted and not given is dropped.
    pub fn stop(&mut self) {
        self.groups = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic, and what failed it has told
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread: rows first, then lines, whatever has gathered at once.
fn keep_journal(path: &Path, behind: &Behind, groups: &Receiver<Group>) -> Result<()> {
    let mut file = None;
    while let Ok(group) = groups.recv() {
        let Group { mut lines, done } = group;
        let mut waiting: Vec<_> = done.into_iter().collect();
        while let Ok(more) = groups.try_recv() {
            lines.push_str(&more.lines);
            waiting.extend(more.done);
        }
        if !lines.is_empty() {
            sync_all(&behind.files, &|file: &Arc<File>| file.sync_data())?;
            let file = match &mut file {
                Some(file) => file,
                None => file.insert(open(path, behind)?),
            };
            let wrote = file
                .write_all(lines.as_bytes())
                .and_then(|()| file.sync_data());
            wrote.map_err(|e| Error::write(path, lines.len() as u64, 0, e))?;
            behind.journaled.store(true, Relaxed);
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
    Ok(())
}

/// The journal, ready for its next line; begun, if nothing of it is kept.
fn open(path: &Path, behind: &Behind) -> Result<File> {
    let failed = |e| Error::write(path, 0, 0, e);
    if behind.keep > 0 {
        let mut file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        file.set_len(behind.keep).map_err(failed)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
        return Ok(file);
    }
    let mut file = create_anew(path).map_err(failed)?;
    file.write_all(encode(&behind.head)?.as_bytes())
        .map_err(failed)?;
    // The files' names have to outlive a crash too.
    if let Some(dir) = path.parent() {
        sync_dir(dir)?;
    }
    Ok(file)
}

/// Makes files durable, a few at a time.
pub(super) fn sync_all<F: Sync>(
    files: &[(F, PathBuf)],
    sync: &(dyn Fn(&F) -> io::Result<()> + Sync),
) -> Result<()> {
    let share = files.len().div_ceil(AT_A_TIME).max(1);
    std::thread::scope(|scope| {
        let syncing: Vec<_> = files
            .chunks(share)
            .map(|files| {
                scope.spawn(|| {
                    files.iter().try_for_each(|(file, path)| {
                        sync(file).map_err(|e| Error::io("sync", path, e))
                    })
                })
            })
            .collect();
        syncing
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}
