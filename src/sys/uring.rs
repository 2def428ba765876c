//! Writes through io_uring: many at a time, out of memory that the kernel need not map anew for each.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::slab::{Memory, Slab};

/// The kernel takes no larger buffer.
const FIXED_MOST: usize = 1 << 30;
/// Bytes of one write: enough of them are under way to keep a disk busy, and none is so long that others wait for it.
const PIECE: usize = 1 << 20;
/// Writes under way at most.
const ENTRIES: u32 = 64;

/// Why this process has no io_uring, with the remedy; `None` if it has.
pub fn why_not() -> Option<String> {
    IoUring::new(ENTRIES).err().map(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring: take Linux 5.6 or newer".into(),
        Some(libc::EPERM | libc::EACCES) => {
            "it is barred: set sysctl kernel.io_uring_disabled=0, or run the container with a seccomp profile that allows io_uring_setup"
                .into()
        }
        Some(libc::ENOMEM | libc::EMFILE) => {
            format!("io_uring_setup says {error}: raise `ulimit -l` (memory) and `ulimit -n` (files)")
        }
        _ => format!("io_uring_setup says {error}: take Linux 5.6 or newer"),
    })
}

/// Writes under way.
pub struct Uring {
    ring: IoUring,
    /// Registered, so that its pages are pinned once and not for every write.
    fixed: Option<Arc<Memory>>,
    writes: HashMap<u64, Write>,
    /// By the number that the kernel gives back.
    pieces: HashMap<u64, Piece>,
    next: u64,
    ended: Vec<Ended>,
}

/// A slab on its way; freed when its last piece ends.
struct Write {
    slab: Slab,
    file: Arc<File>,
    /// Where in the file the slab's first byte goes.
    offset: u64,
    tag: u64,
    pieces: usize,
    result: io::Result<()>,
}

/// What of a write the kernel has now.
#[derive(Clone, Copy)]
struct Piece {
    write: u64,
    from: usize,
    end: usize,
}

/// How a write ended.
#[derive(Debug)]
pub struct Ended {
    /// The caller's name for it.
    pub tag: u64,
    pub result: io::Result<()>,
}

impl Uring {
    /// Opens a ring; `memory` is registered with it where the system allows that much to be pinned.
    ///
    /// # Errors
    /// The system has no io_uring, or bars it.
    pub fn open(memory: Option<&Arc<Memory>>) -> io::Result<Uring> {
        let mut uring = Uring {
            ring: IoUring::new(ENTRIES)?,
            fixed: None,
            writes: HashMap::new(),
            pieces: HashMap::new(),
            next: 0,
            ended: Vec::new(),
        };
        if let Some(memory) = memory
            && uring.register(memory).is_ok()
        {
            uring.fixed = Some(Arc::clone(memory));
        }
        Ok(uring)
    }

    /// Whether the memory is registered.
    pub fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    fn register(&self, memory: &Memory) -> io::Result<()> {
        let parts: Vec<libc::iovec> = (0..memory.len())
            .step_by(FIXED_MOST)
            .map(|at| libc::iovec {
                iov_base: memory.address().wrapping_add(at).cast(),
                iov_len: FIXED_MOST.min(memory.len() - at),
            })
            .collect();
        // SAFETY: the memory is mapped, and stays so while the ring lives: `open` keeps a share of it.
        unsafe { self.ring.submitter().register_buffers(&parts) }
    }

    /// Writes under way.
    pub fn under_way(&self) -> usize {
        self.writes.len()
    }

    /// Begins to write the whole slab at `offset` of the file.
    ///
    /// # Errors
    /// The ring's own; what the disk says of the write comes from [`wait`](Self::wait).
    pub fn write(&mut self, file: Arc<File>, offset: u64, slab: Slab, tag: u64) -> io::Result<()> {
        let len = slab.len();
        let id = self.next;
        self.next += 1;
        let write = Write {
            slab,
            file,
            offset,
            tag,
            pieces: len.div_ceil(PIECE),
            result: Ok(()),
        };
        if len == 0 {
            self.ended.push(Ended {
                tag,
                result: Ok(()),
            });
            return Ok(());
        }
        self.writes.insert(id, write);
        for from in (0..len).step_by(PIECE) {
            while self.pieces.len() >= ENTRIES as usize {
                self.reap(1)?;
            }
            let end = (from + PIECE).min(len);
            self.begin(Piece {
                write: id,
                from,
                end,
            })?;
        }
        self.ring.submit().map(|_| ())
    }

    fn begin(&mut self, piece: Piece) -> io::Result<()> {
        let Some(write) = self.writes.get(&piece.write) else {
            return Ok(());
        };
        let bytes = &write.slab[piece.from..piece.end];
        let (fd, at, len) = (
            types::Fd(write.file.as_raw_fd()),
            bytes.as_ptr(),
            bytes.len() as u32,
        );
        let offset = write.offset + piece.from as u64;
        let number = self.next;
        self.next += 1;
        let entry = match self.fixed_part(&write.slab, piece) {
            Some(part) => opcode::WriteFixed::new(fd, at, len, part)
                .offset(offset)
                .build(),
            None => opcode::Write::new(fd, at, len).offset(offset).build(),
        }
        .user_data(number);
        loop {
            // SAFETY: the slab's bytes and the file stay in `writes` until the kernel has told the end of every piece; `drop` waits
            // for it too. Nobody writes to the bytes meanwhile: the slab is theirs alone, and it is ours.
            match unsafe { self.ring.submission().push(&entry) } {
                Ok(()) => break,
                Err(_full) => self.ring.submit().map(|_| ())?,
            }
        }
        self.pieces.insert(number, piece);
        Ok(())
    }

    /// The registered buffer that the piece lies in.
    fn fixed_part(&self, slab: &Slab, piece: Piece) -> Option<u16> {
        let fixed = self.fixed.as_ref()?;
        let at = slab.range().start;
        let (first, last) = (at + piece.from, at + piece.end - 1);
        let one = first / FIXED_MOST == last / FIXED_MOST;
        (Arc::ptr_eq(fixed, slab.memory()) && one).then_some((first / FIXED_MOST) as u16)
    }

    /// Waits until a write has ended, unless none is under way; tells of all that have.
    ///
    /// # Errors
    /// The ring's own.
    pub fn wait(&mut self) -> io::Result<Vec<Ended>> {
        while self.ended.is_empty() && !self.writes.is_empty() {
            self.reap(1)?;
        }
        self.reap(0)?;
        Ok(std::mem::take(&mut self.ended))
    }

    fn reap(&mut self, least: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(least) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => break done.map(|_| ())?,
            }
        }
        let done: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (number, result) in done {
            if let Some(piece) = self.pieces.remove(&number) {
                self.end(piece, result)?;
            }
        }
        Ok(())
    }

    /// What the kernel says of a piece: it goes on, or has ended.
    fn end(&mut self, mut piece: Piece, result: i32) -> io::Result<()> {
        const AGAIN: [i32; 2] = [-libc::EINTR, -libc::EAGAIN];
        if AGAIN.contains(&result) {
            return self.begin(piece);
        }
        let ended = match result {
            0 => Err(io::ErrorKind::WriteZero.into()),
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            written => {
                piece.from += written as usize;
                if piece.from < piece.end {
                    return self.begin(piece);
                }
                Ok(())
            }
        };
        let Some(write) = self.writes.get_mut(&piece.write) else {
            return Ok(());
        };
        write.pieces -= 1;
        if write.result.is_ok() {
            write.result = ended;
        }
        if write.pieces == 0
            && let Some(write) = self.writes.remove(&piece.write)
        {
            self.ended.push(Ended {
                tag: write.tag,
                result: write.result,
            });
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while !self.pieces.is_empty() {
            if self.reap(1).is_err() {
                // The kernel may still read what is under way: better lost than freed.
                std::mem::forget(std::mem::take(&mut self.writes));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::{BLOCK, SlabRing};
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    /// `None` where the system bars io_uring.
    fn uring(memory: Option<&Arc<Memory>>) -> Option<Uring> {
        Uring::open(memory)
            .inspect_err(|e| eprintln!("no io_uring here: {e}"))
            .ok()
    }

    fn pattern(slab: &mut Slab, seed: usize) {
        for (i, b) in slab.iter_mut().enumerate() {
            *b = (i * 7 + seed + i / 4096) as u8;
        }
    }

    #[test]
    fn what_is_written_past_the_page_cache_is_in_the_file_and_slabs_come_back() {
        let mut slabs = SlabRing::new(8 << 20).unwrap();
        let Some(mut uring) = uring(Some(slabs.memory())) else {
            return;
        };
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("f");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path);
        let Ok(file) = file else {
            return; // this file system has no direct I/O
        };
        let (file, mut expected) = (Arc::new(file), Vec::new());
        let mut told = Vec::new();
        for i in 0..12 {
            // Some lengths are several pieces, and together they go round the ring twice.
            let bytes = BLOCK * (1 + i * 37 % 400);
            let mut slab = loop {
                match slabs.take(bytes).unwrap() {
                    Some(slab) => break slab,
                    None => told.extend(uring.wait().unwrap()),
                }
            };
            pattern(&mut slab, i);
            let at = expected.len() as u64;
            expected.extend_from_slice(&slab);
            uring.write(Arc::clone(&file), at, slab, i as u64).unwrap();
        }
        while uring.under_way() > 0 {
            told.extend(uring.wait().unwrap());
        }
        told.extend(uring.wait().unwrap());
        let mut tags: Vec<u64> = told.iter().map(|ended| ended.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..12).collect::<Vec<_>>());
        assert!(told.iter().all(|ended| ended.result.is_ok()), "{told:?}");
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(
            slabs.take(8 << 20).unwrap().is_some(),
            "a slab is still held"
        );
    }

    #[test]
    fn a_write_that_the_disk_refuses_is_told_and_frees_its_slab() {
        let Some(mut uring) = uring(None) else { return };
        let mut slabs = SlabRing::new(4 << 20).unwrap();
        let read_only = Arc::new(File::open("/proc/self/exe").unwrap());
        let slab = slabs.take(3 << 20).unwrap().unwrap();
        uring.write(read_only, 0, slab, 5).unwrap();
        let ended = uring.wait().unwrap();
        assert_eq!(ended.len(), 1);
        let code = ended[0].result.as_ref().unwrap_err().raw_os_error();
        assert_eq!((ended[0].tag, code), (5, Some(libc::EBADF)));
        assert!(slabs.take(4 << 20).unwrap().is_some());
    }

    #[test]
    fn a_ring_that_goes_waits_for_what_is_under_way() {
        let Some(mut uring) = uring(None) else { return };
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut slab = Slab::anonymous(5 << 20).unwrap();
        pattern(&mut slab, 3);
        let expected = slab.to_vec();
        uring.write(Arc::clone(&file), 0, slab, 0).unwrap();
        drop(uring);
        let mut read = vec![0; expected.len()];
        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut read, 0).unwrap();
        assert!(read == expected);
    }
}
