//! What the system lets this process do.

use std::io;

/// Whether rings of `io_uring` can be made; else why not, with the remedy.
///
/// # Errors
/// The kernel is too old, was built without it, or bars this process from it.
pub fn io_uring() -> Result<(), String> {
    // Larger than `struct io_uring_params` has ever been.
    let mut params = [0_u64; 32];
    // SAFETY: the kernel reads and writes the struct behind the pointer, which has room for it.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the descriptor was just made, and is nobody else's.
        unsafe { libc::close(ring as i32) };
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring: take Linux 5.6 or newer".into(),
        Some(libc::EPERM | libc::EACCES) => {
            "it is barred: set sysctl kernel.io_uring_disabled=0, or run the container with a seccomp profile that allows io_uring_setup"
                .into()
        }
        _ => format!("io_uring_setup says {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_yes_or_why_not() {
        if let Err(why) = io_uring() {
            assert!(!why.is_empty());
        }
    }
}
