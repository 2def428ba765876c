//! How rows get from the backend to the store's files: chosen before a run by trying, since what a kernel allows of a file system is not
//! written anywhere.

use std::path::Path;

use serde_json::{Value, json};

use super::{Machine, Prepared, Result};
use crate::backend::cuda::Pinner;
use crate::store::{RingToDisk, StoreWriter};
use crate::sys::disk::{Disk, DiskPath, FileSystem, file_system};
use crate::sys::ring::{BLOCK, SlabRing};
use crate::sys::writable::WritableMap;

/// The ring holds so many batches where a device has some under way: those, one that the disk is given, one that it writes.
pub(super) const BATCHES: usize = 5;
/// Without a device: one that is computed, one that the disk writes, and room for them to follow each other around the ring's end.
const BATCHES_OF_CPU: usize = 3;
/// Bytes of the ring.
const RING_LEAST: usize = 1 << 20;
const RING_MOST: usize = 8 << 30;

/// The way of a run's rows.
pub(super) struct Route {
    name: &'static str,
    file_system: FileSystem,
    /// What stood in the way of a better one.
    why: Option<String>,
    ring: Option<RingToDisk>,
    /// Registers each shard's files, where that is the way.
    pub pinner: Option<Pinner>,
}

impl Route {
    /// Chooses for a store in `out`:
    /// - files that are memory themselves are mapped, and written there: by ops, or by a device with which they are registered;
    /// - a disk is written past the page cache from a ring, which ops write to or a device copies into;
    /// - where it cannot be, ops write into the mapped files, and the ring that a device copies into is written to them.
    ///
    /// # Errors
    /// The device's, and a system without memory for the ring.
    pub fn choose(prepared: &Prepared, machine: &dyn Machine, out: &Path) -> Result<Route> {
        let absolute = std::path::absolute(out).unwrap_or_else(|_| out.into());
        let dir = absolute.ancestors().find(|d| d.is_dir());
        let dir = dir.unwrap_or(Path::new("/"));
        let mapped = Route {
            name: "mapped",
            file_system: file_system(dir),
            why: None,
            ring: None,
            pinner: None,
        };
        let pinner = machine.pinner()?;
        if !mapped.file_system.is_memory() {
            let (path, why) = DiskPath::probe(dir);
            return match pinner {
                Some(pinner) => mapped.through_pinned_ring(prepared, &pinner, path, why),
                None if path == DiskPath::Uring => mapped.through_ring(prepared, path),
                None => Ok(Route { why, ..mapped }),
            };
        }
        let Some(pinner) = pinner else {
            return Ok(mapped);
        };
        let tried = try_registering(dir, &pinner);
        Ok(Route {
            name: if tried.is_ok() {
                "registered"
            } else {
                "mapped"
            },
            pinner: tried.is_ok().then_some(pinner),
            why: tried.err(),
            ..mapped
        })
    }

    /// From a ring that is registered with a device, and with the disk.
    fn through_pinned_ring(
        self,
        prepared: &Prepared,
        pinner: &Pinner,
        path: DiskPath,
        why: Option<String>,
    ) -> Result<Route> {
        let slabs = SlabRing::new(ring_bytes(prepared, BATCHES)).map_err(no_memory)?;
        let unregistered = pinner.pin(slabs.memory()).err();
        let disk = Disk::start(path, Some(slabs.memory())).map_err(no_memory)?;
        Ok(Route {
            name: path.name(),
            why: why.or(unregistered.map(|e| e.to_string())),
            ring: Some(RingToDisk::new(slabs, disk)),
            ..self
        })
    }

    /// From a ring that ops write to, which takes no more memory than they use.
    fn through_ring(self, prepared: &Prepared, path: DiskPath) -> Result<Route> {
        let bytes = ring_bytes(prepared, BATCHES_OF_CPU);
        let slabs = SlabRing::untouched(bytes).map_err(no_memory)?;
        let disk = Disk::start(path, None).map_err(no_memory)?;
        Ok(Route {
            name: path.name(),
            ring: Some(RingToDisk::new(slabs, disk)),
            ..self
        })
    }

    /// For the manifest.
    pub fn record(&self) -> Value {
        json!({
            "path": self.name,
            "file_system": self.file_system.name(),
            "ring_registered_with_the_disk": self.ring.as_ref().map(|ring| ring.disk().is_fixed()),
            "why_not_better": self.why,
        })
    }

    /// In a word.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Has a store written this way.
    pub fn lead(&mut self, writer: &mut StoreWriter) {
        if let Some(ring) = self.ring.take() {
            writer.write_from(ring);
        }
    }
}

fn no_memory(error: std::io::Error) -> crate::store::Error {
    crate::store::Error::Plan(format!("no memory for the tap ring: {error}"))
}

/// Bytes of a ring for so many of the job's batches; one whose patterns are larger gets memory of its own.
pub(super) fn ring_bytes(prepared: &Prepared, batches: usize) -> usize {
    let row = |tap| {
        let (row, index) = prepared.row_bytes(tap);
        row + index
    };
    let rows: usize = (0..prepared.infos.len()).map(row).sum();
    let batch = rows * prepared.job.batch_tokens + prepared.infos.len() * 3 * BLOCK;
    let free = crate::sys::free_memory() as usize / 4;
    let most = RING_MOST.min(free.max(RING_LEAST));
    (batches * batch).clamp(RING_LEAST, most)
}

/// Registers a file of one block, which has no name; says why it cannot be.
fn try_registering(dir: &Path, pinner: &Pinner) -> Result<(), String> {
    WritableMap::unnamed(dir, BLOCK as u64)
        .map_err(|e| e.to_string())
        .and_then(|map| pinner.pin(map.memory()).map_err(|e| e.to_string()))
}
