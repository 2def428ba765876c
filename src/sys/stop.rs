//! Ctrl-C and SIGTERM as a question that long work asks itself now and then: whether to end.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// The signal that asked for the end; 0 while none did.
static ASKED: AtomicI32 = AtomicI32::new(0);

/// From now on the first SIGINT or SIGTERM only asks the process to end ([`asked`]); the second one ends it at once, with the
/// exit status that a shell gives a process killed by it.
///
/// # Errors
/// The system refuses the handler.
pub fn on_signals() -> io::Result<()> {
    let handler = handle as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is a valid one, and it is filled in before use.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` lives through the call, and the handler does only what a signal handler may.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The exit status of a process that ends because it was asked to: 130 after Ctrl-C, 143 after SIGTERM. `None` while nobody asked.
pub fn asked() -> Option<u8> {
    match ASKED.load(Relaxed) {
        0 => None,
        signal => Some(status(signal)),
    }
}

fn status(signal: i32) -> u8 {
    128 + signal as u8
}

extern "C" fn handle(signal: libc::c_int) {
    if ASKED.swap(signal, Relaxed) != 0 {
        // SAFETY: `_exit` may be called in a signal handler; it runs nothing of ours.
        unsafe { libc::_exit(status(signal).into()) }
    }
}
