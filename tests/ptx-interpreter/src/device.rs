//! The face to the host: memory and launches.

use std::collections::HashMap;

use crate::finding::{Finding, FindingKind, fault};
use crate::machine::Machine;
use crate::memory::{Allocation, Global};
use crate::module::{Kernel, Module};
use crate::program::Space;

/// The order in which blocks run, and the warps of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Schedule {
    #[default]
    Forward,
    Reverse,
    /// A random order of blocks; warps are switched at random instructions. The same seed gives the same run.
    Seeded(u64),
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    pub schedule: Schedule,
}

/// The shape of a launch without its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
}

impl Dims {
    pub fn launch(self, schedule: Schedule) -> Launch {
        Launch {
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            schedule,
        }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    pub blocks: u64,
    /// Instructions that warps (or parts of them) executed.
    pub warp_instructions: u64,
    /// The same, times the threads that took part.
    pub thread_instructions: u64,
    pub divergent_branches: u64,
    /// Arrivals of warps at barriers of their block.
    pub barriers: u64,
    /// Matrix instructions.
    pub mma: u64,
    /// Atomic operations of threads.
    pub atomics: u64,
    /// Bytes that threads read from global memory (asynchronous copies included), and wrote to it.
    pub global_read: u64,
    pub global_written: u64,
    pub shared_read: u64,
    pub shared_written: u64,
    pub local_read: u64,
    pub local_written: u64,
}

impl Stats {
    pub(crate) fn count_load(&mut self, space: Space, m: u32, bytes: usize) {
        let bytes = u64::from(m.count_ones()) * bytes as u64;
        match space {
            Space::Shared => self.shared_read += bytes,
            Space::Local => self.local_read += bytes,
            Space::Param | Space::Const => {}
            _ => self.global_read += bytes,
        }
    }

    pub(crate) fn count_store(&mut self, space: Space, m: u32, bytes: usize) {
        let bytes = u64::from(m.count_ones()) * bytes as u64;
        match space {
            Space::Shared => self.shared_written += bytes,
            Space::Local => self.local_written += bytes,
            Space::Param | Space::Const => {}
            _ => self.global_written += bytes,
        }
    }
}

/// A host-side mistake with device memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("0x{address:x} lies in no allocation")]
    NoAllocation { address: u64 },
    #[error("0x{address:x} lies in an allocation that was freed")]
    Freed { address: u64 },
    #[error("{bytes} bytes at offset {offset} reach beyond an allocation of {size}")]
    OutOfBounds {
        offset: u64,
        bytes: usize,
        size: usize,
    },
    #[error("byte {offset} of the {bytes} read was never written")]
    Uninitialised { offset: usize, bytes: usize },
    #[error("0x{address:x} is not the start of an allocation")]
    NotAStart { address: u64 },
    #[error("the module has no variable `{name}`")]
    NoVariable { name: String },
}

/// A device: memory, and kernels run on it.
#[derive(Debug)]
pub struct Device {
    global: Global,
    /// Addresses of each module's variables.
    variables: HashMap<u64, Vec<u64>>,
    next_tag: u32,
    step_limit: u64,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    pub fn new() -> Self {
        Device {
            global: Global::new(),
            variables: HashMap::new(),
            next_tag: 1,
            step_limit: 1 << 28,
        }
    }

    /// Bounds the warp instructions of one block (2^28 at first): a kernel that waits for what never comes ends there.
    pub fn set_step_limit(&mut self, warp_instructions: u64) {
        self.step_limit = warp_instructions;
    }

    /// Memory that holds nothing yet, at a multiple of 256. Its address is never given out again.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        self.global.alloc(bytes, 256, None, false)
    }

    /// # Errors
    /// Where `address` is not the start of an allocation that lives.
    pub fn free(&mut self, address: u64) -> Result<(), DeviceError> {
        let index = self
            .global
            .index_of(address)
            .ok_or(DeviceError::NoAllocation { address })?;
        let allocation = &mut self.global.allocations[index];
        if allocation.start != address {
            return Err(DeviceError::NotAStart { address });
        }
        if allocation.region.take().is_none() {
            return Err(DeviceError::Freed { address });
        }
        self.global.live -= allocation.bytes as u64;
        Ok(())
    }

    /// Bytes allocated and not freed, module variables included.
    pub fn live_bytes(&self) -> u64 {
        self.global.live
    }

    fn range(
        &mut self,
        address: u64,
        bytes: usize,
    ) -> Result<(&mut Allocation, usize), DeviceError> {
        let index = self
            .global
            .index_of(address)
            .ok_or(DeviceError::NoAllocation { address })?;
        let allocation = &mut self.global.allocations[index];
        if allocation.region.is_none() {
            return Err(DeviceError::Freed { address });
        }
        let offset = address - allocation.start;
        if offset + bytes as u64 > allocation.bytes as u64 {
            return Err(DeviceError::OutOfBounds {
                offset,
                bytes,
                size: allocation.bytes,
            });
        }
        Ok((allocation, offset as usize))
    }

    /// Copies to the device; the bytes count as initialised.
    ///
    /// # Errors
    /// Where the range does not lie within one allocation that lives.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let (allocation, offset) = self.range(address, bytes.len())?;
        if let Some(region) = &mut allocation.region {
            region.data[offset..offset + bytes.len()].copy_from_slice(bytes);
            region.init.set_range(offset, bytes.len());
        }
        Ok(())
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// As [`Device::write`], and where a byte was never written.
    pub fn read(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let (allocation, offset) = self.range(address, bytes)?;
        let Some(region) = &allocation.region else {
            return Ok(Vec::new());
        };
        if let Some(at) = region.init.first_unset(offset, bytes) {
            return Err(DeviceError::Uninitialised {
                offset: at - offset,
                bytes,
            });
        }
        Ok(region.data[offset..offset + bytes].to_vec())
    }

    /// Copies from the device, with a mark per byte that says whether it was ever written.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub fn read_raw(
        &mut self,
        address: u64,
        bytes: usize,
    ) -> Result<(Vec<u8>, Vec<bool>), DeviceError> {
        let (allocation, offset) = self.range(address, bytes)?;
        let Some(region) = &allocation.region else {
            return Ok((Vec::new(), Vec::new()));
        };
        let written = (offset..offset + bytes)
            .map(|at| region.init.get(at))
            .collect();
        Ok((region.data[offset..offset + bytes].to_vec(), written))
    }

    /// The address of a module's variable (`__device__` or `__constant__`) on this device.
    ///
    /// # Errors
    /// Where the module has none of that name.
    pub fn variable(&mut self, module: &Module, name: &str) -> Result<u64, DeviceError> {
        let addresses = self.make_variables(module);
        let index = module
            .variables
            .iter()
            .position(|variable| variable.name == name && variable.bytes > 0);
        index
            .map(|index| addresses[index])
            .ok_or_else(|| DeviceError::NoVariable {
                name: name.to_owned(),
            })
    }

    /// A module's variables are made when it is first used.
    fn make_variables(&mut self, module: &Module) -> Vec<u64> {
        if let Some(addresses) = self.variables.get(&module.id) {
            return addresses.clone();
        }
        let mut addresses = Vec::new();
        for variable in &module.variables {
            let name = Some(variable.name.clone());
            addresses.push(self.global.alloc(
                variable.bytes,
                variable.align as u64,
                name,
                variable.constant,
            ));
        }
        for (variable, &address) in module.variables.iter().zip(&addresses) {
            let mut image = variable.image.clone();
            // What has no initial value is zero.
            image.resize(variable.bytes, 0);
            for &(at, index, offset) in &variable.relocations {
                let target = addresses
                    .get(index)
                    .copied()
                    .unwrap_or(0)
                    .wrapping_add(offset as u64);
                if let Some(place) = image.get_mut(at..at + 8) {
                    place.copy_from_slice(&target.to_le_bytes());
                }
            }
            if !image.is_empty() {
                let written = self.write(address, &image);
                debug_assert!(written.is_ok());
            }
        }
        self.variables.insert(module.id, addresses.clone());
        addresses
    }

    /// Runs a kernel to its end. `args` are its parameters as they lie in memory.
    ///
    /// # Errors
    /// The first finding, by the schedule's order.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        launch: &Launch,
        args: &[u8],
    ) -> Result<Stats, Finding> {
        let bad = |what: String| Finding {
            kind: FindingKind::BadLaunch,
            kernel: kernel.to_owned(),
            what,
            place: None,
        };
        let Some(found) = module
            .kernels
            .iter()
            .find(|candidate| candidate.info.name == kernel)
        else {
            let names: Vec<_> = module.kernels().map(|info| info.name.as_str()).collect();
            return Err(bad(format!(
                "the module has no such kernel; it has {}",
                names.join(", ")
            )));
        };
        Self::check(found, launch, args).map_err(|fault| bad(fault.what))?;
        let variables = self.make_variables(module);
        let blocks = launch.grid.iter().product::<u32>();
        let first_tag = self.take_tags(blocks);
        let limits = (first_tag, self.step_limit);
        Machine::new(
            module,
            found,
            launch,
            args,
            &mut self.global,
            &variables,
            limits,
        )
        .run()
    }

    fn check(
        kernel: &Kernel,
        launch: &Launch,
        args: &[u8],
    ) -> Result<(), Box<crate::finding::Fault>> {
        if args.len() != kernel.info.param_bytes {
            let what = format!(
                "{} bytes of arguments, but its parameters take {}",
                args.len(),
                kernel.info.param_bytes
            );
            return Err(fault(FindingKind::BadLaunch, what));
        }
        Machine::check_launch(&kernel.program, launch)
    }

    /// One tag per block. When they run out, what the detector remembers is forgotten.
    fn take_tags(&mut self, blocks: u32) -> u32 {
        if self.next_tag.checked_add(blocks).is_none() {
            for region in self
                .global
                .allocations
                .iter_mut()
                .filter_map(|allocation| allocation.region.as_mut())
            {
                region.forget_cells();
            }
            self.next_tag = 1;
        }
        let first = self.next_tag;
        self.next_tag += blocks;
        first
    }
}
