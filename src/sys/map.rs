//! A whole file, mapped read-only: bytes come from the page cache when they are touched, and
//! resident memory stays the kernel's to give back.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A file mapped for reading. Dereferences to its bytes; an empty file is an empty slice.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    /// `None` for an empty file, which can't be mapped.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole of the regular file at `path`.
    ///
    /// # Errors
    /// When the file can't be opened or mapped, or isn't a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before opening: to open a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let file = File::open(path)?;
        let map = if file.metadata()?.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is private to this process and never written through. Its bytes are only read as
            // plain integers or floats, for which every bit pattern is valid, so a writer elsewhere could change a
            // value but not break an invariant; a file shrunk under us ends in SIGBUS, which `lost` explains.
            Some(unsafe { memmap2::Mmap::map(&file)? })
        };
        Ok(Self {
            path: path.to_path_buf(),
            map,
        })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes_and_an_empty_one_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let full = dir.path().join("full");
        std::fs::write(&full, b"residual stream").unwrap();
        let map = MappedFile::open(&full).unwrap();
        assert_eq!(&map[..], b"residual stream");
        assert_eq!(map.path(), full);

        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(MappedFile::open(&empty).unwrap().is_empty());
        assert!(MappedFile::open(dir.path()).is_err());
        assert!(MappedFile::open(&dir.path().join("absent")).is_err());
    }
}
