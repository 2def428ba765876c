//! A lock file that one process holds at a time (`flock`): the kernel frees it when the holder ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;

/// A held lock; dropping it frees the lock and leaves the file.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

/// What came of trying to take a lock.
#[derive(Debug)]
pub enum Attempt {
    Held(LockFile),
    /// Someone else holds it; their process id, as far as the file tells it.
    Busy(Option<u32>),
}

impl LockFile {
    /// Tries to take the lock at `path` without waiting, creating the file where it is missing, and notes our process id in it.
    ///
    /// # Errors
    /// The file cannot be opened, locked or written.
    pub fn try_acquire(path: &Path) -> io::Result<Attempt> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Attempt::Held(Self { _file: file }))
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.take(32).read_to_string(&mut pid);
                Ok(Attempt::Busy(
                    read.ok().and_then(|_| pid.trim().parse().ok()),
                ))
            }
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_holds_the_lock_and_gets_it_when_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Held(first) = LockFile::try_acquire(&path).unwrap() else {
            panic!("free lock not taken")
        };
        let Attempt::Busy(pid) = LockFile::try_acquire(&path).unwrap() else {
            panic!("lock taken twice")
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(first);
        assert!(matches!(
            LockFile::try_acquire(&path).unwrap(),
            Attempt::Held(_)
        ));
    }
}
