//! A whole file mapped for reading.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

/// A file's bytes, paged in as they are read. An empty file is an empty slice.
#[derive(Debug)]
pub struct ReadMap {
    map: Option<Mmap>,
}

impl ReadMap {
    /// Maps the regular file at `path` at the length it has now.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is no regular file (a pipe would hang, a device lies about its length).
    pub fn open(path: &Path) -> io::Result<Self> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let file = File::open(path)?;
        let len =
            usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the mapping is private to this value and read only. Committed files are immutable by the store's
        // protocol; whoever truncates one behind our back raises SIGBUS here, as any reader of mapped files must accept.
        let map = unsafe { MmapOptions::new().len(len).map(&file)? };
        Ok(Self { map: Some(map) })
    }

    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_and_an_empty_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"some bytes"] {
            let path = dir.path().join("f");
            std::fs::write(&path, content).unwrap();
            assert_eq!(ReadMap::open(&path).unwrap().bytes(), content);
        }
    }

    #[test]
    fn a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ReadMap::open(dir.path()).is_err());
    }
}
