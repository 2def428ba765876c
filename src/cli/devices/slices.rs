//! The slices of one dataset beside the store that they become: `OUT.slices/0-of-4`, `OUT.slices/1-of-4`, … They are joined there too, so that
//! OUT appears whole or not at all. `scripts/lib/slices.py` and `scripts/slurm/` keep the same places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::engine::merge_receipts;
use crate::store::{Merged, merge};
use crate::sys::lock::{Attempt, LockFile};

/// `OUT.slices/`, held by this process.
pub struct Slices {
    out: PathBuf,
    pub dir: PathBuf,
    pub count: u64,
    _lock: LockFile,
}

impl Slices {
    /// Takes the place: `wanted` slices, or as many as an earlier run made of the dataset.
    ///
    /// # Errors
    /// `out` is not free, or on another file system than what lies beside it; without `resume`, an earlier run was here; another process is
    /// at it; and the disk's.
    pub fn take(out: &Path, wanted: u64, resume: bool) -> Result<Self, Failure> {
        let out = std::path::absolute(out).map_err(|e| failed("find", out, &e))?;
        if let Ok(mut entries) = fs::read_dir(&out)
            && entries.next().is_some()
        {
            return refuse(format!(
                "{} is not empty: name another --out, or empty it",
                out.display()
            ));
        }
        let dir = beside(&out)?;
        if dir.exists() && !resume {
            return refuse(format!(
                "{} holds the slices of a run that did not finish: pass --resume to go on with it, or remove it",
                dir.display()
            ));
        }
        fs::create_dir_all(&dir).map_err(|e| failed("make", &dir, &e))?;
        refuse_mount(&out, &dir)?;
        let path = dir.join("lock");
        let lock = match LockFile::try_acquire(&path).map_err(|e| failed("lock", &path, &e))? {
            Attempt::Held(lock) => lock,
            Attempt::Busy(pid) => {
                let who = pid.map_or_else(String::new, |pid| format!(" {pid}"));
                return refuse(format!(
                    "{} is being worked on by process{who}: wait for it, or stop it",
                    dir.display()
                ));
            }
        };
        let count = begun(&dir)?.unwrap_or(wanted);
        let slices = Slices {
            out,
            dir,
            count,
            _lock: lock,
        };
        for i in 0..count {
            // Made now, so that a later run knows how many there are.
            let store = slices.store(i);
            fs::create_dir_all(&store).map_err(|e| failed("make", &store, &e))?;
        }
        Ok(slices)
    }

    /// Where slice `i`'s store lies.
    pub fn store(&self, i: u64) -> PathBuf {
        store(&self.dir, i, self.count)
    }

    /// Joins the finished slices to the store of the whole and removes them.
    ///
    /// # Errors
    /// As [`merge`]'s, and the disk's; the slices stay then.
    pub fn join(&self) -> Result<Merged, Failure> {
        let whole = self.dir.join("whole");
        if whole.exists() {
            // Of a process that did not come to its end here.
            fs::remove_dir_all(&whole).map_err(|e| failed("remove", &whole, &e))?;
        }
        let stores: Vec<_> = (0..self.count).map(|i| self.store(i)).collect();
        let merged = merge(&whole, &stores, false, &merge_receipts)?;
        fs::rename(&whole, &self.out).map_err(|e| failed("put into its place", &whole, &e))?;
        if let Some(parent) = self.out.parent() {
            let synced = fs::File::open(parent).and_then(|folder| folder.sync_all());
            synced.map_err(|e| failed("write", parent, &e))?;
        }
        fs::remove_dir_all(&self.dir).map_err(|e| failed("remove", &self.dir, &e))?;
        Ok(merged)
    }
}

impl Slices {
    /// Removes the place again if nothing has come of it; whether anything stays.
    pub fn leave(&self) -> bool {
        let mut stays = false;
        for i in 0..self.count {
            // Goes if it is empty.
            stays |= fs::remove_dir(self.store(i)).is_err();
        }
        if stays {
            // How many slices there are must stay known, too.
            (0..self.count).for_each(|i| drop(fs::create_dir(self.store(i))));
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
        stays
    }
}

/// Where a slice's store lies among all slices.
pub fn store(dir: &Path, i: u64, count: u64) -> PathBuf {
    dir.join(format!("{i}-of-{count}"))
}

/// Where the slices of the store at `out` lie.
///
/// # Errors
/// `out` has no name.
pub fn beside(out: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = out.file_name() else {
        return refuse(format!("--out {} names no directory", out.display()));
    };
    let mut name = name.to_owned();
    name.push(".slices");
    Ok(out.with_file_name(name))
}

/// How many slices an earlier run made.
fn begun(dir: &Path) -> Result<Option<u64>, Failure> {
    let entries = fs::read_dir(dir).map_err(|e| failed("read", dir, &e))?;
    let of = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (i, of) = name.split_once("-of-")?;
        i.parse::<u64>().ok().and(of.parse::<u64>().ok())
    };
    let counts: BTreeSet<u64> = entries.flatten().filter_map(of).collect();
    match counts.len() {
        0 | 1 => Ok(counts.first().copied().filter(|&n| n > 0)),
        _ => refuse(format!(
            "{} holds slices of several runs: remove those that are not of this one",
            dir.display()
        )),
    }
}

/// The whole is renamed to its place, which is not possible onto a mount.
fn refuse_mount(out: &Path, dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let (Ok(out_is), Ok(dir_is)) = (fs::metadata(out), fs::metadata(dir)) else {
        return Ok(());
    };
    if out_is.dev() == dir_is.dev() {
        return Ok(());
    }
    let _ = fs::remove_dir(dir);
    refuse(format!(
        "{} is a file system of its own, and the slices must lie on it, beside the store: name a directory in it",
        out.display()
    ))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::Refused(format!("cannot {what} {}: {error}", path.display()))
}

fn refuse<T>(message: String) -> Result<T, Failure> {
    Err(Failure::Refused(message))
}
