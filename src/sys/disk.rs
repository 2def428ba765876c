//! The thread that writes slabs to files, past the page cache where the disk can be written to so: by io_uring, or with plain writes where
//! that is barred.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::ring::BLOCK;
use super::slab::{Memory, Slab};
use super::uring::Uring;
use super::writable::unnamed;

/// How a disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPath {
    /// io_uring, past the page cache.
    Uring,
    /// `pwrite`, through the page cache.
    Pwrite,
}

impl DiskPath {
    pub fn name(self) -> &'static str {
        match self {
            DiskPath::Uring => "io_uring",
            DiskPath::Pwrite => "pwrite",
        }
    }

    /// Opens a file that is there for writing this way.
    ///
    /// # Errors
    /// The system's.
    pub fn open(self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true);
        if self == DiskPath::Uring {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(path)
    }

    /// The best way that works in `dir`, by trying it on a file of one block, which has no name; and why it is not io_uring where it is not.
    pub fn probe(dir: &Path) -> (DiskPath, Option<String>) {
        let tried = (|| {
            let file = Arc::new(unnamed(dir, libc::O_DIRECT)?);
            let mut uring = Uring::open(None)?;
            uring.write(file, 0, Slab::anonymous(BLOCK)?, 0)?;
            uring.wait()?.into_iter().try_for_each(|ended| ended.result)
        })();
        match tried {
            Ok(()) => (DiskPath::Uring, None),
            Err(e) => (DiskPath::Pwrite, Some(e.to_string())),
        }
    }
}

/// What kind of file system a directory is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem(i64);

impl FileSystem {
    const TMPFS: i64 = 0x0102_1994;
    const HUGETLBFS: i64 = 0x9584_58f6;
    const RAMFS: i64 = 0x8584_58f6;

    /// Whether its files are memory and nothing else.
    pub fn is_memory(self) -> bool {
        matches!(self.0, Self::TMPFS | Self::HUGETLBFS | Self::RAMFS)
    }

    /// Whether its files can be written by `write`; hugetlbfs only maps them.
    pub fn takes_writes(self) -> bool {
        self.0 != Self::HUGETLBFS
    }

    /// Its name, if it is one of the usual.
    pub fn name(self) -> String {
        match self.0 {
            Self::TMPFS => "tmpfs".into(),
            Self::HUGETLBFS => "hugetlbfs".into(),
            Self::RAMFS => "ramfs".into(),
            0xef53 => "ext4".into(),
            0x5846_5342 => "xfs".into(),
            0x9123_683e => "btrfs".into(),
            0x794c_7630 => "overlayfs".into(),
            0x6969 => "nfs".into(),
            0x2fc1_2fc1 => "zfs".into(),
            other => format!("{other:#x}"),
        }
    }
}

/// The file system of a directory.
pub fn file_system(dir: &Path) -> FileSystem {
    #[allow(clippy::unnecessary_cast)] // the field's type differs from platform to platform
    let magic = rustix::fs::statfs(dir).map_or(0, |stat| stat.f_type as i64);
    FileSystem(magic & 0xffff_ffff)
}

/// Writes that somebody waits for.
#[derive(Debug, Default)]
pub struct Tally {
    left: Mutex<Left>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Left {
    writes: u64,
    done: u64,
    failed: Option<io::Error>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) {
        self.lock().writes += 1;
    }

    fn ended(&self, result: io::Result<()>) {
        let mut left = self.lock();
        left.done += 1;
        if let Err(e) = result {
            left.failed.get_or_insert(e);
        }
        self.changed.notify_all();
    }

    /// Writes asked for and not ended.
    pub fn left(&self) -> u64 {
        let left = self.lock();
        left.writes - left.done
    }

    /// Returns when at most `most` writes are left.
    ///
    /// # Errors
    /// The first write's that failed, told once.
    pub fn wait(&self, most: u64) -> io::Result<()> {
        self.settled(most).failed.take().map_or(Ok(()), Err)
    }

    /// As [`wait`](Self::wait); what failed is left to be told to whoever calls that.
    pub fn settle(&self, most: u64) {
        drop(self.settled(most));
    }

    fn settled(&self, most: u64) -> MutexGuard<'_, Left> {
        let mut left = self.lock();
        while left.writes - left.done > most {
            left = self
                .changed
                .wait(left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        left
    }
}

struct Job {
    file: Arc<File>,
    offset: u64,
    slab: Slab,
    tally: Arc<Tally>,
}

/// The thread, and the way to it.
#[derive(Debug)]
pub struct Disk {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Of all writes.
    all: Arc<Tally>,
    path: DiskPath,
    fixed: bool,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {}", self.slab.len(), self.offset)
    }
}

impl Disk {
    /// Starts the thread; `memory`, which most slabs are parts of, is registered with its ring where that can be: all of it
    /// stays in memory then.
    ///
    /// # Errors
    /// The system has no thread left, or bars io_uring after all.
    pub fn start(path: DiskPath, memory: Option<&Arc<Memory>>) -> io::Result<Disk> {
        let uring = match path {
            DiskPath::Uring => Some(Uring::open(memory)?),
            DiskPath::Pwrite => None,
        };
        let fixed = uring.as_ref().is_some_and(Uring::is_fixed);
        let (jobs, asked) = channel();
        let all = Arc::new(Tally::default());
        let tally = Arc::clone(&all);
        let thread =
            std::thread::Builder::new()
                .name("disk".into())
                .spawn(move || match uring {
                    Some(uring) => by_uring(uring, &asked, &tally),
                    None => by_pwrite(&asked, &tally),
                })?;
        Ok(Disk {
            jobs: Some(jobs),
            thread: Some(thread),
            all,
            path,
            fixed,
        })
    }

    pub fn path(&self) -> DiskPath {
        self.path
    }

    /// Whether the memory is registered with the ring.
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Writes the slab at `offset` of the file, and counts it in `tally`. A file opened for io_uring wants offset and length in
    /// multiples of [`BLOCK`].
    pub fn write(&self, file: &Arc<File>, offset: u64, slab: Slab, tally: &Arc<Tally>) {
        tally.begun();
        self.all.begun();
        let job = Job {
            file: Arc::clone(file),
            offset,
            slab,
            tally: Arc::clone(tally),
        };
        let gone = match &self.jobs {
            Some(jobs) => jobs.send(job).is_err(),
            None => true,
        };
        if gone {
            let ended = || Err(io::Error::other("the thread that writes has ended"));
            tally.ended(ended());
            self.all.ended(ended());
        }
    }

    /// Writes asked for and not ended, by anyone.
    pub fn left(&self) -> u64 {
        self.all.left()
    }

    /// Returns when at most `most` writes are left. What failed is told to whoever asked for it.
    pub fn wait(&self, most: u64) {
        let _ = self.all.wait(most);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // what failed it has told
        }
    }
}

fn by_pwrite(jobs: &Receiver<Job>, all: &Tally) {
    for job in jobs {
        let result = job.file.write_all_at(&job.slab, job.offset);
        drop(job.slab);
        job.tally.ended(result);
        all.ended(Ok(()));
    }
}

fn by_uring(mut uring: Uring, jobs: &Receiver<Job>, all: &Tally) {
    let mut tallies: Vec<Option<Arc<Tally>>> = Vec::new();
    let mut open = true;
    while open || uring.under_way() > 0 {
        loop {
            // Nothing under way: there is only the next job to wait for.
            let job = if uring.under_way() == 0 && open {
                jobs.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                jobs.try_recv()
            };
            match job {
                Ok(job) => {
                    let free = tallies.iter().position(Option::is_none);
                    let tag = free.unwrap_or(tallies.len());
                    if tag == tallies.len() {
                        tallies.push(None);
                    }
                    let begun = uring.write(job.file, job.offset, job.slab, tag as u64);
                    match begun {
                        Ok(()) => tallies[tag] = Some(job.tally),
                        Err(e) => {
                            job.tally.ended(Err(e));
                            all.ended(Ok(()));
                        }
                    }
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
            if uring.under_way() >= WRITES {
                break;
            }
        }
        match uring.wait() {
            Ok(ended) => {
                for ended in ended {
                    if let Some(tally) = tallies[ended.tag as usize].take() {
                        tally.ended(ended.result);
                        all.ended(Ok(()));
                    }
                }
            }
            Err(e) => {
                // The ring is lost, and what was under way with it.
                for tally in tallies.iter_mut().filter_map(Option::take) {
                    tally.ended(Err(io::Error::new(e.kind(), e.to_string())));
                    all.ended(Ok(()));
                }
                return;
            }
        }
    }
}

/// Writes given to the ring at a time.
const WRITES: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::ring::SlabRing;
    use super::*;

    #[test]
    fn either_way_the_bytes_arrive_and_failures_are_told_to_whoever_asked() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let (probed, why) = DiskPath::probe(dir.path());
        assert_eq!(probed == DiskPath::Pwrite, why.is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for path in [probed, DiskPath::Pwrite] {
            let mut slabs = SlabRing::new(64 * BLOCK).unwrap();
            let disk = Disk::start(path, Some(slabs.memory())).unwrap();
            let name = dir.path().join(path.name());
            File::create(&name).unwrap();
            let file = Arc::new(path.open(&name).unwrap());
            let (good, bad) = (Arc::new(Tally::default()), Arc::new(Tally::default()));
            let mut expected = Vec::new();
            for i in 0..40u8 {
                let mut slab = loop {
                    match slabs.take(BLOCK * (1 + usize::from(i) % 7)).unwrap() {
                        Some(slab) => break slab,
                        None => disk.wait(disk.left().saturating_sub(1)),
                    }
                };
                slab.fill(i + 1);
                let at = expected.len() as u64;
                expected.extend_from_slice(&slab);
                disk.write(&file, at, slab, &good);
            }
            let read_only = Arc::new(File::open(&name).unwrap());
            let slab = Slab::anonymous(BLOCK).unwrap();
            disk.write(&read_only, 0, slab, &bad);
            assert!(bad.wait(0).is_err());
            good.wait(0).unwrap();
            disk.wait(0);
            assert_eq!((disk.left(), good.left()), (0, 0));
            assert!(std::fs::read(&name).unwrap() == expected);
            assert!(slabs.take(64 * BLOCK).unwrap().is_some());
        }
    }
}
