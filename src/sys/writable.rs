//! A new file of a length known beforehand, mapped for writing. All its blocks are reserved first, so a full disk is an
//! error at creation and never a SIGBUS while rows are written.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use memmap2::{MmapOptions, UncheckedAdvice};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::slab::{Lender, Memory, Slab};

/// A file whose blocks are all reserved, and its shared mapping. Starts as zeros.
#[derive(Debug)]
pub struct WritableMap {
    file: Arc<File>,
    map: Lender,
}

impl WritableMap {
    /// Creates the file at `path` (or empties the one there), reserves `len` > 0 bytes and maps them.
    ///
    /// # Errors
    /// The file cannot be created or mapped, or there is no room for it: the error then carries `ENOSPC`, `EDQUOT` or `EFBIG`.
    /// The file is left for the caller to remove.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        let file = create_anew(path)?;
        reserve(&file, len)?;
        Self::map(file, len)
    }

    /// A file of `len` > 0 bytes in `dir` that nobody else can open, and that is gone when it is dropped or the process ends.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn unnamed(dir: &Path, len: u64) -> io::Result<Self> {
        let file = unnamed(dir, 0)?;
        reserve(&file, len)?;
        Self::map(file, len)
    }

    /// Maps the file of `len` bytes that [`create`](Self::create) made at `path` in an earlier process, its bytes as they are.
    /// `None` where there is no such file: none at all, one of another length, a link, or a file that has another name elsewhere.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or its blocks cannot be reserved.
    pub fn reopen(path: &Path, len: u64) -> io::Result<Option<Self>> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if is_no_file(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() != len || meta.nlink() != 1 {
            return Ok(None);
        }
        // Zeros, where the file system has no `fallocate`, would be written over the rows.
        match allocate(&file, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
        Self::map(file, len).map(Some)
    }

    fn map(file: File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: the file was made by us and is this long. It lies in a directory that our lock keeps other writers out of,
        // so nobody else changes the bytes that the lender lends out.
        let map = unsafe { MmapOptions::new().len(len).map_mut(&file)? };
        Ok(Self {
            file: Arc::new(file),
            map: Lender::of(map.into()),
        })
    }

    /// The file, for a thread that makes it durable: `fdatasync` takes what was written through the mapping along.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// All bytes.
    ///
    /// # Panics
    /// Some of them are lent.
    pub fn bytes(&self) -> &[u8] {
        self.part(0..self.map.memory().len())
    }

    /// As [`bytes`](Self::bytes), to be written to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.part_mut(0..self.map.memory().len())
    }

    /// Some bytes, of which none is lent.
    ///
    /// # Panics
    /// Some are, or there are fewer.
    pub fn part(&self, range: Range<usize>) -> &[u8] {
        self.map.part(range)
    }

    /// As [`part`](Self::part), to be written to.
    pub fn part_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.map.part_mut(range)
    }

    /// Makes a slab of some bytes, which are its owner's until it is dropped.
    ///
    /// # Panics
    /// Some of them are lent, or there are fewer.
    pub fn lend(&mut self, range: Range<usize>) -> Slab {
        self.map.lend(range)
    }

    /// The mapping.
    pub fn memory(&self) -> &Arc<Memory> {
        self.map.memory()
    }

    /// Takes the pages of `range` out of this process's memory. The bytes stay: they are the file's, and come back when touched.
    ///
    /// # Errors
    /// The kernel refuses the advice.
    pub fn drop_pages(&mut self, range: Range<usize>) -> io::Result<()> {
        let page = rustix::param::page_size();
        let start = range.start / page * page;
        let end = range.end.min(self.map.memory().len());
        if start >= end {
            return Ok(());
        }
        // SAFETY: the mapping is shared and backed by the file, so MADV_DONTNEED loses no byte: dirty pages stay in the page
        // cache, and whoever reads or writes them meanwhile finds them there.
        unsafe {
            self.map
                .map()
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        }
    }

    /// Returns when every byte is on disk: `msync`, then `fsync`.
    ///
    /// # Errors
    /// The disk failed to take the bytes.
    pub fn sync(&self) -> io::Result<()> {
        self.map.map().flush()?;
        self.file.sync_all()
    }
}

/// A thread that has the kernel begin writing parts of files to disk, so that what a later [`WritableMap::sync`] waits for is
/// short. The kernel makes whoever asks wait while the disk has enough to do: hence a thread.
#[derive(Debug)]
pub struct Writeback {
    parts: Sender<(Arc<File>, Range<usize>)>,
}

impl Writeback {
    /// Starts the thread, which ends some time after this is dropped.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start() -> io::Result<Self> {
        let (parts, asked) = channel::<(Arc<File>, Range<usize>)>();
        std::thread::Builder::new()
            .name("writeback".into())
            .spawn(move || {
                asked
                    .into_iter()
                    .for_each(|(file, part)| begin_writing(&file, part))
            })?;
        Ok(Writeback { parts })
    }

    /// Asks for `range` of the file to be written. Only a hint: a file system that does not know it changes nothing.
    pub fn ask(&self, map: &WritableMap, range: Range<usize>) {
        if !range.is_empty() {
            // The thread ends only after `self`: and if it did not, the sync at the end would do its work.
            let _ = self.parts.send((Arc::clone(&map.file), range));
        }
    }
}

fn begin_writing(file: &File, range: Range<usize>) {
    let (Ok(offset), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.len())) else {
        return;
    };
    // SAFETY: the descriptor is open for as long as `file` lives; the call touches no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Makes a file anew at `path`. Whatever was there goes first, a link too, so that nothing is written through one.
///
/// # Errors
/// The old one cannot be removed, or the new one not be made.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// Makes a file in `dir` that has no name, opened with these flags too: however the process ends, it leaves nothing there. Where the file
/// system cannot make one, it has a name until it is opened.
///
/// # Errors
/// No file can be made there, or not one of these flags.
pub fn unnamed(dir: &Path, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let made = options.custom_flags(flags | libc::O_TMPFILE).open(dir);
    match made {
        Err(e)
            if matches!(
                Errno::from_io_error(&e),
                Some(Errno::OPNOTSUPP | Errno::ISDIR)
            ) => {}
        made => return made,
    }
    let path = dir.join(format!(".streamgauge-unnamed-{}", std::process::id()));
    create_anew(&path)?;
    let opened = options.custom_flags(flags).open(&path);
    std::fs::remove_file(&path)?;
    opened
}

/// Whether opening failed because there is no file of the kind: nothing at all, a link, a socket, a directory.
fn is_no_file(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR)
    )
}

/// Reserves the file's first `len` bytes: by `fallocate`, or by writing zeros where the file system has no `fallocate`.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    match allocate(file, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, len),
        reserved => Ok(reserved?),
    }
}

fn allocate(file: &File, len: u64) -> Result<(), Errno> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0u8; 1 << 20];
    let mut done = 0;
    while done < len {
        let n = zeros
            .len()
            .min((len - done).try_into().unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..n], done)?;
        done += n as u64;
    }
    Ok(())
}

/// Bytes that an unprivileged process may still write to the file system of `path`; `None` where it does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_survive_dropping_the_pages_and_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut map = WritableMap::create(&path, 3 * 4096 + 5).unwrap();
        assert!(map.bytes().iter().all(|&b| b == 0));
        map.bytes_mut()[4000..4100].fill(7);
        let writeback = Writeback::start().unwrap();
        writeback.ask(&map, 4000..4100);
        writeback.ask(&map, 7..7);
        map.drop_pages(4000..4100).unwrap();
        map.drop_pages(0..usize::MAX).unwrap();
        assert!(map.bytes()[4000..4100].iter().all(|&b| b == 7));
        map.sync().unwrap();
        drop(map);
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), 3 * 4096 + 5);
        assert_eq!(read.iter().filter(|&&b| b == 7).count(), 100);
    }

    #[test]
    fn a_file_without_a_name_is_in_no_directory_even_while_it_is_open() {
        // Of the system's temporary files and of the disk that this is built on.
        for dir in [tempfile::tempdir(), tempfile::tempdir_in(".")] {
            let dir = dir.unwrap();
            let mut map = WritableMap::unnamed(dir.path(), 5000).unwrap();
            map.bytes_mut().fill(3);
            map.sync().unwrap();
            let plain = unnamed(dir.path(), 0).unwrap();
            plain.write_all_at(b"rows", 0).unwrap();
            assert_eq!(map.file().metadata().unwrap().len(), 5000);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        assert!(unnamed(Path::new("/no/such/directory"), 0).is_err());
    }

    #[test]
    fn a_file_is_taken_up_again_with_its_bytes_and_only_if_it_is_the_one_that_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut map = WritableMap::create(&path, 5000).unwrap();
        map.bytes_mut()[4999] = 9;
        drop(map);
        let again = WritableMap::reopen(&path, 5000).unwrap().unwrap();
        assert_eq!((again.bytes()[0], again.bytes()[4999]), (0, 9));
        drop(again);
        let none = |path: &Path, len| WritableMap::reopen(path, len).unwrap().is_none();
        assert!(none(&path, 4999));
        assert!(none(&dir.path().join("absent"), 5000));
        assert!(none(dir.path(), 5000));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(none(&link, 5000));
        std::fs::hard_link(&path, dir.path().join("other name")).unwrap();
        assert!(none(&path, 5000), "another name may be somebody else's");
    }

    #[test]
    fn a_file_is_made_beside_what_a_link_of_its_name_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("thesis.tex"), dir.path().join("f"));
        std::fs::write(&target, "draft").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        drop(WritableMap::create(&path, 10).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), b"draft");
        assert_eq!(std::fs::read(&path).unwrap(), [0; 10]);
    }

    #[test]
    fn a_file_system_without_fallocate_gets_zeros_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        write_zeros(&file, (1 << 20) + 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; (1 << 20) + 3]);
    }

    #[test]
    fn reserving_more_than_any_disk_holds_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(WritableMap::create(&dir.path().join("f"), 1 << 60).is_err());
    }
}
