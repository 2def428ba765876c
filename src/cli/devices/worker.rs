//! A worker: a process of this binary with the supervisor's command line and `--worker` behind it, which says what of it is to be done here.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use super::slices::{beside, store};
use crate::cli::Failure;
use crate::engine::Device;

/// `--worker PID:i/n:DEVICE`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Of the supervisor.
    pub parent: u32,
    pub slice: u64,
    pub of: u64,
    pub device: Device,
}

impl FromStr for Worker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let mut parts = text.splitn(3, ':');
            let parent = parts.next()?.parse().ok()?;
            let (slice, of) = parts.next()?.split_once('/')?;
            Some(Worker {
                parent,
                slice: slice.parse().ok()?,
                of: of.parse().ok()?,
                device: parts.next()?.parse().ok()?,
            })
        };
        parsed().ok_or_else(|| "is for processes that --devices starts".into())
    }
}

impl Worker {
    /// Starts it. It is in a process group of its own, so that Ctrl-C on a terminal reaches it through its supervisor only, and once. What
    /// it says comes through its stderr.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&self, threads: Option<usize>) -> io::Result<Child> {
        // This very binary, even where another one has taken its place on the disk.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("streamgauge")
            .args(std::env::args_os().skip(1))
            .arg("--worker")
            .arg(self.to_string())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(threads) = threads.filter(|_| std::env::var_os(THREADS).is_none()) {
            command.env(THREADS, threads.to_string());
        }
        command.spawn()
    }

    /// In the worker: has it end with its supervisor, however that ends. At once, so that the slice is free for the next run, which goes on
    /// from its last durable batch.
    ///
    /// # Errors
    /// The supervisor is gone already; the system refuses.
    pub fn end_with_supervisor(&self) -> Result<(), Failure> {
        let refused = |e| Failure::Refused(format!("cannot be bound to its supervisor: {e}"));
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(refused)?;
        let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if parent != Some(self.parent) {
            return Err(Failure::Refused("its supervisor is gone".into()));
        }
        Ok(())
    }

    /// Where its slice's store lies.
    ///
    /// # Errors
    /// `out` has no name.
    pub fn store(&self, out: &Path) -> Result<PathBuf, Failure> {
        let out = std::path::absolute(out)
            .map_err(|e| Failure::Refused(format!("--out {}: {e}", out.display())))?;
        Ok(store(&beside(&out)?, self.slice, self.of))
    }
}

impl std::fmt::Display for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Worker {
            parent,
            slice,
            of,
            device,
        } = self;
        write!(f, "{parent}:{slice}/{of}:{device}")
    }
}

/// The threads that a process computes with on the CPU.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Asks a worker to commit and leave; one that has ended meanwhile is none to ask.
pub fn ask_to_stop(child: &Child, status: u8) {
    let signal = if status == 130 {
        Signal::INT
    } else {
        Signal::TERM
    };
    let _ = kill_process(Pid::from_child(child), signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_in_a_word_what_it_is() {
        let worker = Worker {
            parent: 4711,
            slice: 3,
            of: 8,
            device: Device::Cuda(3),
        };
        assert_eq!(worker.to_string(), "4711:3/8:cuda:3");
        assert_eq!(worker.to_string().parse(), Ok(worker));
        for bad in ["", "1:2/3", "x:0/1:cpu", "1:2:cpu", "1:0/1:gpu"] {
            assert!(bad.parse::<Worker>().is_err(), "{bad}");
        }
    }
}
