//! What a mapped file that is lost ends in. A page of a file that was cut short, or whose disk or mount is gone, cannot be read:
//! the kernel sends SIGBUS to whoever touches it, and there is nothing to go on with. The handler here names the file in one line
//! and exits with status 1, so that the process does not die of a signal without a word. Which file it was the kernel knows:
//! `/proc/self/maps` says whose bytes lie at the address. A handler may neither allocate nor lock, so the lines are read into
//! memory of its own and written with `write`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether a thread is telling of a lost file: several may come upon one at a time.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Has lost files told from now on.
///
/// # Errors
/// The system refuses the handler.
pub fn tell_of_lost_files() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one, and it is filled in before use.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    action.sa_sigaction = handler as usize;
    // On the thread's own stack: the few pages that threads have for signals would hardly hold what is read here.
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` lives through the call; the handler keeps to what a signal handler may do.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, whose address field SIGBUS fills in.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut line = [0; LINE];
    let length = mapping_at(address, &mut line);
    match path(&line[..length]) {
        Some(path) => {
            if TOLD.swap(true, Relaxed) {
                // Another thread tells of it, and ends the process.
                loop {
                    // SAFETY: `pause` may be called in a signal handler.
                    unsafe { libc::pause() };
                }
            }
            // SAFETY: `isatty` only asks about the descriptor.
            if unsafe { libc::isatty(2) } == 1 {
                tell(b"\r\x1b[2K"); // a progress bar may stand there
            }
            tell(b"error: ");
            tell(path);
            tell(
                b": cannot be read any further: it was cut short while in use, or its disk or mount is gone; put it back and run again \
                 (extract keeps what it committed: pass --resume)\n",
            );
            // SAFETY: `_exit` may be called in a signal handler; it runs nothing of ours.
            unsafe { libc::_exit(1) }
        }
        // No file of ours: let the signal do what it does without us, when the instruction is tried again.
        // SAFETY: `signal` may be called in a signal handler.
        None => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
    }
}

/// As much of a line of /proc/self/maps as is kept: some 75 characters, and a path.
const LINE: usize = 4096 + 128;

/// The line of /proc/self/maps whose addresses hold `address`, into `line`; its length, 0 if there is none.
fn mapping_at(address: usize, line: &mut [u8; LINE]) -> usize {
    // SAFETY: a C string that ends in 0, and `open` may be called in a signal handler.
    let file = unsafe {
        libc::open(
            c"/proc/self/maps".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if file < 0 {
        return 0;
    }
    let mut piece = [0u8; 1024];
    let mut length = 0;
    let mut found = 0;
    'reading: loop {
        // SAFETY: `piece` is this long and ours; `read` may be called in a signal handler.
        let n = unsafe { libc::read(file, piece.as_mut_ptr().cast(), piece.len()) };
        let Ok(n @ 1..) = usize::try_from(n) else {
            break;
        };
        for &byte in &piece[..n] {
            if byte != b'\n' {
                if length < LINE {
                    line[length] = byte;
                    length += 1;
                }
                continue;
            }
            if holds(&line[..length], address) {
                found = length;
                break 'reading;
            }
            length = 0;
        }
    }
    // SAFETY: the descriptor is ours and open.
    unsafe { libc::close(file) };
    found
}

/// Whether a line, `start-end rights offset device inode path`, is of the mapping that holds `address`.
fn holds(line: &[u8], address: usize) -> bool {
    let mut bounds = [0usize; 2];
    let mut which = 0;
    for &byte in line {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'-' if which == 0 => {
                which = 1;
                continue;
            }
            _ => break,
        };
        bounds[which] = (bounds[which] << 4) | usize::from(digit);
    }
    (bounds[0]..bounds[1]).contains(&address)
}

/// The path at the end of a line; `None` for memory that is no file's.
fn path(line: &[u8]) -> Option<&[u8]> {
    let at = line.iter().position(|&b| b == b'/')?;
    Some(&line[at..])
}

fn tell(text: &[u8]) {
    // SAFETY: `text` is readable for its length, and `write` may be called in a signal handler.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_behind_an_address_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("with a blank");
        std::fs::write(&file, vec![1; 10_000]).unwrap();
        let map = crate::sys::map::MappedFile::open(&file).unwrap();
        let mut line = [0; LINE];
        let n = mapping_at(map.as_ptr() as usize + 9_999, &mut line);
        assert_eq!(path(&line[..n]), Some(file.as_os_str().as_encoded_bytes()));
        assert_eq!(mapping_at(8, &mut line), 0);
        let here = 0u8;
        let n = mapping_at(&raw const here as usize, &mut line);
        assert!(n > 0 && path(&line[..n]).is_none(), "the stack is no file");
    }
}
