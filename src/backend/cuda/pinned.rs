//! Host memory registered with the device.

use std::sync::Arc;

use super::driver::Registrar;
use super::launch::LaunchError;
use crate::sys::slab::Memory;

/// Registers memory with a device, from any thread.
#[derive(Clone)]
pub struct Pinner(Arc<dyn Registrar>);

/// What is attached to registered memory, and ends its registration before it is unmapped.
struct Pinned {
    registrar: Arc<dyn Registrar>,
    memory: usize,
}

impl Pinner {
    pub(super) fn new(registrar: Arc<dyn Registrar>) -> Pinner {
        Pinner(registrar)
    }

    /// Registers the memory for as long as anyone holds it: copies out to its slabs then run beside the computing.
    ///
    /// # Errors
    /// The device cannot register it, as most cannot what a disk's file is mapped to. The memory is as good as before.
    pub fn pin(&self, memory: &Memory) -> Result<(), LaunchError> {
        if memory.is_attached() {
            return Ok(());
        }
        let at = memory.address();
        // SAFETY: the guard below, which the memory drops before it is unmapped, ends the registration.
        unsafe { self.0.register(at, memory.len())? };
        let guard = Pinned {
            registrar: Arc::clone(&self.0),
            memory: at.expose_provenance(),
        };
        // Attached meanwhile by another thread: the guard goes at once, and with it this registration.
        let _ = memory.attach(Box::new(guard));
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let at = std::ptr::with_exposed_provenance_mut(self.memory);
        self.registrar.unregister(at);
    }
}
