//! A lock file that one process holds at a time (`flock`): the kernel frees it when the holder ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
    /// The file cannot be opened, locked or written, or is a link: that would have us write somewhere else.
    pub fn try_acquire(path: &Path) -> io::Result<Attempt> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)?;
            match file.try_lock() {
                // Its last holder removed it between our opening and our locking it: a lock that nobody else will meet.
                Ok(()) if !is_at(&file, path)? => {}
                Ok(()) => {
                    file.set_len(0)?;
                    writeln!(file, "{}", std::process::id())?;
                    return Ok(Attempt::Held(Self { _file: file }));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    let read = file.take(32).read_to_string(&mut pid);
                    return Ok(Attempt::Busy(
                        read.ok().and_then(|_| pid.trim().parse().ok()),
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }
}

/// Whether `path` still names this open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
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

    #[test]
    fn a_link_is_not_followed_and_its_target_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("thesis.tex");
        std::fs::write(&target, "draft").unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(LockFile::try_acquire(&path).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"draft");
    }
}
