//! What can go wrong with a store. Each message is one line: what, where, what to do.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A store is begun in an empty directory only.
    #[error("{} is not empty; give another directory, or remove this one", path.display())]
    NotEmpty { path: PathBuf },
    /// A file, or something else that is no directory, is where the store should go.
    #[error("{} is there and is not a directory; give another path for the store", path.display())]
    NotADirectory { path: PathBuf },
    /// On hugetlbfs, where a manifest cannot be written.
    #[error("{} is on hugetlbfs, whose files can only be mapped, and a store has some that are written: give a directory of a tmpfs that is mounted with huge=always", path.display())]
    OnlyMapped { path: PathBuf },
    /// An earlier run's store is already there.
    #[error("{} already holds a store ({state}); give another directory, remove this one{}", path.display(), if *state == "partial" { ", or pass --resume to go on with it" } else { "" })]
    AlreadyAStore { path: PathBuf, state: &'static str },
    /// An earlier run's statistics are already there.
    #[error("{} already holds statistics ({state}); give another directory, remove this one{}", path.display(), if *state == "partial" { ", or pass --resume to go on with them" } else { "" })]
    AlreadyStatistics { path: PathBuf, state: &'static str },
    /// Another process writes this store.
    #[error("{} is being written by another process{}; wait for it to end, or give another directory", path.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked { path: PathBuf, pid: Option<u32> },
    /// No right to write here, or a read-only file system.
    #[error("cannot write to {}: {source}; give a directory that you can write to", path.display())]
    ReadOnly { path: PathBuf, source: io::Error },
    /// A shard has a file per tap, and two shards are open at a time.
    #[error("cannot write {}: {source}; raise the limit on open files (ulimit -n), or tap fewer hook points at once", path.display())]
    TooManyFiles { path: PathBuf, source: io::Error },
    /// Found when the shard's files are reserved, before any of its rows is computed.
    #[error("no room for {}: the shard needs {needed} bytes{}{} ({source}); free some space, or give a directory on a larger disk", path.display(), free.map(|f| format!(", free there: {f} bytes")).unwrap_or_default(), if *file > 0 { format!(", this file {file} bytes") } else { String::new() })]
    NoSpace {
        path: PathBuf,
        /// Bytes of the whole shard, all taps together.
        needed: u64,
        /// Bytes of the file that did not fit; 0 where its length was not known beforehand.
        file: u64,
        free: Option<u64>,
        source: io::Error,
    },
    /// The writer was asked for something that no store can hold, or called out of order.
    #[error("{0}")]
    Plan(String),
    /// A kept field's value fits no type that the other samples' values fit too.
    #[error(
        "{file}:{line}: kept field {field:?} is {value}, which a column of type {column} cannot hold exactly, and other samples need that type; give the field one type in the data (text always works), or leave it out of --keep"
    )]
    Kept {
        file: String,
        line: u64,
        field: String,
        value: String,
        column: &'static str,
    },
    /// No store, or one whose manifest does not hold together.
    #[error("{}: {what}", path.display())]
    Manifest { path: PathBuf, what: String },
    #[error("{}: format_version {found} is not known to this version, which reads {}; use a newer streamgauge", path.display(), super::FORMAT_VERSION)]
    FormatVersion { path: PathBuf, found: String },
    /// The run that wrote the store did not end.
    #[error("{} is partial: the run that wrote it did not finish; run its command again with --resume", path.display())]
    Partial { path: PathBuf },
    #[error("no tap {name:?} in this store; it has {}", known.join(", "))]
    NoTap { name: String, known: Vec<String> },
    /// A listed file that is missing, damaged or lies about itself.
    #[error("{}: {what}; `streamgauge verify` lists all damage", path.display())]
    Damaged { path: PathBuf, what: String },
    /// Stores that cannot be joined.
    #[error("{0}")]
    Merge(String),
    /// Asked of a tap what it does not hold.
    #[error("tap {tap}: {what}")]
    Access { tap: String, what: String },
}

impl Error {
    /// Wraps an I/O error met while reading or syncing `path`.
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// Wraps an I/O error met while writing: rights and room get words of their own. `needed` and `file` as in [`Error::NoSpace`].
    pub(crate) fn write(path: &Path, needed: u64, file: u64, source: io::Error) -> Self {
        use rustix::io::Errno;
        let path = path.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                let free = path.parent().and_then(crate::sys::writable::free_bytes);
                Self::NoSpace {
                    path,
                    needed,
                    file,
                    free,
                    source,
                }
            }
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Self::ReadOnly { path, source },
            Some(Errno::MFILE | Errno::NFILE) => Self::TooManyFiles { path, source },
            _ => Self::Io {
                what: "write",
                path,
                source,
            },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
