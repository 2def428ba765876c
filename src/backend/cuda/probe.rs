//! What can be found out about a machine's driver and GPU without running a job: for `doctor` and `bench ceilings`.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::path::Path;

use cudarc::driver::result as cu;
use cudarc::driver::sys;
use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::MemfdFlags;

use super::device::{CudaDevice, failed};
use super::launch::LaunchError;
use crate::sys::writable::WritableMap;

/// Bytes that are tried to be registered.
const TRIED: usize = 4 << 20;

/// Whether the driver takes a kind of memory as a place that the GPU may copy to.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Registration {
    pub memory: &'static str,
    /// `None`: it does.
    pub why_not: Option<String>,
}

/// The release of the kernel's driver, as `580.65.06`; `None` where there is none, or it does not say.
pub fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = text.lines().next()?;
    let release = line.split_whitespace().find(|word| {
        let mut parts = word.split('.');
        parts.clone().count() >= 2 && parts.all(|part| part.parse::<u32>().is_ok())
    });
    release.map(str::to_owned)
}

/// Bytes that can be allocated on a GPU now, after what opening it takes.
pub fn free_bytes(ordinal: u32) -> Option<u64> {
    let device = CudaDevice::open(ordinal).ok()?;
    device.bind().ok()?;
    cu::mem_get_info().ok().map(|(free, _)| free as u64)
}

/// Memory that stays registered with the driver until this is dropped; copies to and from it do not stop at a buffer of the driver's.
pub struct Registered<'m> {
    memory: &'m mut [u8],
}

impl<'m> Registered<'m> {
    /// Registers memory; a GPU was opened on this thread.
    ///
    /// # Errors
    /// The driver does not take memory of this kind, or no more of it.
    pub fn new(memory: &'m mut [u8]) -> Result<Self, LaunchError> {
        // SAFETY: the memory is borrowed until it is given back in drop, and nothing is copied to it meanwhile but through `bytes_mut`.
        unsafe { register(memory.as_mut_ptr().cast(), memory.len(), 0)? };
        Ok(Registered { memory })
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: registered in `new`. Where it fails, the driver is gone.
        let _ = unsafe { sys::cuMemHostUnregister(self.memory.as_mut_ptr().cast()) };
    }
}

/// # Safety
/// The memory stays mapped until it is given back.
unsafe fn register(at: *mut c_void, bytes: usize, flags: u32) -> Result<(), LaunchError> {
    // SAFETY: the caller's.
    unsafe { sys::cuMemHostRegister_v2(at, bytes, flags) }
        .result()
        .map_err(|e| failed("registering memory", e))
}

/// Tries what stores and weights may lie in: the process's own memory, a memfd, tmpfs, the disk of `dir`, and a file that is mapped
/// to be read only.
///
/// # Errors
/// The GPU cannot be opened.
pub fn registrations(ordinal: u32, dir: &Path) -> Result<Vec<Registration>, LaunchError> {
    let _on = CudaDevice::open(ordinal)?;
    let writable = |mut map: MmapMut| Registered::new(&mut map).map(drop);
    let of_file = |at: &Path| {
        let name = format!(".streamgauge-register-{}", std::process::id());
        let path = at.join(name);
        let tried = WritableMap::create(&path, TRIED as u64)
            .map_err(told)
            .and_then(|mut map| Registered::new(map.bytes_mut()).map(drop));
        let read = Registration {
            memory: "a read-only file",
            why_not: why(File::open(&path).map_err(told).and_then(|f| read_only(&f))),
        };
        let _ = std::fs::remove_file(&path);
        (why(tried), read)
    };
    let anonymous = MmapMut::map_anon(TRIED).map_err(told).and_then(writable);
    let (disk, read_only) = of_file(dir);
    let (tmpfs, _) = of_file(Path::new("/dev/shm"));
    let found = [
        ("own memory", why(anonymous)),
        ("memfd", why(memfd().map_err(told).and_then(writable))),
        ("tmpfs (/dev/shm)", tmpfs),
        ("the current directory's disk", disk),
    ];
    let mut found: Vec<_> = found
        .map(|(memory, why_not)| Registration { memory, why_not })
        .into();
    found.push(read_only);
    Ok(found)
}

fn memfd() -> io::Result<MmapMut> {
    let file = File::from(rustix::fs::memfd_create(
        "streamgauge",
        MemfdFlags::CLOEXEC,
    )?);
    file.set_len(TRIED as u64)?;
    // SAFETY: nobody else has the file.
    unsafe { MmapOptions::new().len(TRIED).map_mut(&file) }
}

fn read_only(file: &File) -> Result<(), LaunchError> {
    // SAFETY: a file of ours, which nobody else changes.
    let map = unsafe { Mmap::map(file) }.map_err(told)?;
    let at = map.as_ptr().cast_mut().cast::<c_void>();
    // SAFETY: given back before the mapping goes; the GPU is told that it may only read.
    unsafe {
        register(at, map.len(), sys::CU_MEMHOSTREGISTER_READ_ONLY)?;
        let _ = sys::cuMemHostUnregister(at);
    }
    Ok(())
}

fn told(e: io::Error) -> LaunchError {
    LaunchError::Device {
        what: "mapping memory to register".into(),
        reason: e.to_string(),
    }
}

fn why(tried: Result<(), LaunchError>) -> Option<String> {
    tried.err().map(|e| match e {
        LaunchError::Device { reason, .. } => reason,
        other => other.to_string(),
    })
}
