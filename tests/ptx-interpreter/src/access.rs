//! Loads and stores, lane by lane: where an address lies, whether the access is allowed, and its traces in the shadow.

use crate::finding::{Fault, FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::memory::{
    Global, LOCAL_WINDOW, PARAM_WINDOW, Refusal, Region, SHARED_START, SHARED_WINDOW, Shared,
};
use crate::program::{Access, Address, Base, Space};
use crate::race::{Actor, Spill};
use crate::registers::{LANES, Registers, write};
use crate::shadow::{CHUNK, Phase};
use crate::warp::{lanes, space_of};

pub(crate) fn resolve(registers: &Registers, address: Address) -> [u64; LANES] {
    let offset = address.offset as u64;
    match address.base {
        Base::None => [offset; LANES],
        // A 32-bit address wraps in 32 bits.
        Base::R32(slot) => registers
            .row32(slot)
            .map(|base| u64::from(base.wrapping_add(offset as u32))),
        Base::R64(slot) => registers.row64(slot).map(|base| base.wrapping_add(offset)),
    }
}

/// Everything an access needs beside its address.
pub(crate) struct View<'v> {
    pub global: &'v mut Global,
    pub shared: &'v mut Shared,
    pub spill: &'v mut Spill,
    pub hint: &'v mut u32,
    pub global_granule: u8,
    /// Shared memory is new for every block, in whatever order they run.
    pub shared_tag: u32,
}

/// Why an access failed: already in words, or as the shadow knows it.
pub(crate) enum Failure {
    Fault(Box<Fault>),
    Refused(Refusal, Space, u64),
}

impl From<Box<Fault>> for Failure {
    fn from(fault: Box<Fault>) -> Self {
        Failure::Fault(fault)
    }
}

impl View<'_> {
    #[inline(always)]
    fn global_region(&mut self, address: u64, bytes: usize) -> Outcome<(&mut Region, usize, bool)> {
        let index = self.global.locate(address, bytes as u64, self.hint)?;
        let allocation = &mut self.global.allocations[index];
        let offset = (address - allocation.start) as usize;
        match &mut allocation.region {
            Some(region) => {
                region.track(self.global_granule);
                Ok((region, offset, allocation.read_only))
            }
            None => Err(fault(FindingKind::UseAfterFree, "freed memory")),
        }
    }

    #[inline(always)]
    pub fn load_global(
        &mut self,
        address: u64,
        bytes: usize,
        actor: &Actor,
    ) -> Result<u128, Failure> {
        let index = self.global.locate(address, bytes as u64, self.hint)?;
        let allocation = &mut self.global.allocations[index];
        let offset = (address - allocation.start) as usize;
        let Some(region) = &mut allocation.region else {
            return Ok(0);
        };
        region.track(self.global_granule);
        region
            .load(offset, bytes, actor, self.spill)
            .map_err(|refusal| Failure::Refused(refusal, Space::Global, address))
    }

    #[inline(always)]
    pub fn load_shared(
        &mut self,
        address: u64,
        bytes: usize,
        actor: &Actor,
    ) -> Result<u128, Failure> {
        let offset = self.shared.locate(address, bytes as u64)?;
        let shadow = &mut self.shared.shadow;
        shadow.touch(offset, bytes, false, actor.order)?;
        self.load_at(offset, bytes, actor)
    }

    /// What lies at an offset in shared memory, by the cells alone.
    #[inline(always)]
    pub fn load_at(&mut self, offset: usize, bytes: usize, actor: &Actor) -> Result<u128, Failure> {
        let address = offset as u64 + u64::from(SHARED_START);
        let actor = self.in_shared(actor);
        self.shared
            .region
            .load(offset, bytes, &actor, self.spill)
            .map_err(|refusal| Failure::Refused(refusal, Space::Shared, address))
    }

    #[inline(always)]
    fn in_shared<'a>(&self, actor: &Actor<'a>) -> Actor<'a> {
        Actor {
            tag: self.shared_tag,
            first_tag: self.shared_tag,
            ..*actor
        }
    }

    #[inline(always)]
    pub fn store_global(
        &mut self,
        address: u64,
        bytes: usize,
        value: u128,
        actor: &Actor,
    ) -> Result<(), Failure> {
        let index = self.global.locate(address, bytes as u64, self.hint)?;
        let allocation = &mut self.global.allocations[index];
        if allocation.read_only {
            return Err(fault(FindingKind::ReadOnly, "a store to constant memory").into());
        }
        let offset = (address - allocation.start) as usize;
        let Some(region) = &mut allocation.region else {
            return Ok(());
        };
        region.track(self.global_granule);
        let refused = |refusal| Failure::Refused(refusal, Space::Global, address);
        region
            .store(offset, bytes, value, actor, self.spill)
            .map_err(refused)
    }

    #[inline(always)]
    pub fn store_shared(
        &mut self,
        address: u64,
        bytes: usize,
        value: u128,
        actor: &Actor,
    ) -> Result<(), Failure> {
        let offset = self.shared.locate(address, bytes as u64)?;
        let shadow = &mut self.shared.shadow;
        shadow.touch(offset, bytes, true, actor.order)?;
        let refused = |refusal| Failure::Refused(refusal, Space::Shared, address);
        let actor = self.in_shared(actor);
        self.shared
            .region
            .store(offset, bytes, value, &actor, self.spill)
            .map_err(refused)
    }

    /// A chunk that a product reads, at an offset in shared memory; the read itself is noted when the product is waited for.
    pub fn peek_for_product(&mut self, offset: usize, actor: &Actor) -> Result<u128, Failure> {
        self.shared.shadow.product_reads(offset, actor.order)?;
        let address = offset as u64 + u64::from(SHARED_START);
        let actor = self.in_shared(actor);
        let peeked = self.shared.region.peek(offset, CHUNK, &actor);
        peeked.map_err(|refusal| Failure::Refused(refusal, Space::Shared, address))
    }

    /// A tensor copy's chunk comes to an offset in shared memory.
    pub fn store_copied(
        &mut self,
        offset: usize,
        value: u128,
        actor: &Actor,
        phase: Phase,
    ) -> Result<(), Failure> {
        let shadow = &mut self.shared.shadow;
        shadow.copy_writes(offset, actor.order, phase)?;
        let address = offset as u64 + u64::from(SHARED_START);
        let actor = self.in_shared(actor);
        self.shared
            .region
            .store_copied(offset, CHUNK, value, &actor, self.spill)
            .map_err(|refusal| Failure::Refused(refusal, Space::Shared, address))
    }

    pub fn modify(
        &mut self,
        space: Space,
        address: u64,
        bytes: usize,
        actor: &Actor,
        f: impl FnOnce(u128) -> u128,
    ) -> Result<u128, Failure> {
        if space == Space::Shared {
            let offset = self.shared.locate(address, bytes as u64)?;
            let shadow = &mut self.shared.shadow;
            shadow.touch(offset, bytes, true, actor.order)?;
            let refused = |refusal| Failure::Refused(refusal, Space::Shared, address);
            let actor = self.in_shared(actor);
            return self
                .shared
                .region
                .modify(offset, bytes, &actor, self.spill, f)
                .map_err(refused);
        }
        let (spill, refused) = (std::mem::take(self.spill), |refusal| {
            Failure::Refused(refusal, Space::Global, address)
        });
        let mut spill = spill;
        let (region, offset, read_only) = self.global_region(address, bytes)?;
        if read_only {
            return Err(fault(
                FindingKind::ReadOnly,
                "an atomic operation on constant memory",
            )
            .into());
        }
        let result = region
            .modify(offset, bytes, actor, &mut spill, f)
            .map_err(refused);
        *self.spill = spill;
        result
    }
}

pub(crate) fn check_aligned(address: u64, bytes: usize) -> Outcome<()> {
    if !address.is_multiple_of(bytes as u64) {
        Err(misaligned(address, bytes))
    } else {
        Ok(())
    }
}

#[cold]
fn misaligned(address: u64, bytes: usize) -> Box<Fault> {
    fault(
        FindingKind::Misaligned,
        format!("{bytes} bytes at 0x{address:x}, which is no multiple of {bytes}"),
    )
}

/// Splits the machine into what an access needs, without borrowing it whole.
macro_rules! parts {
    ($machine:ident, $w:expr, $pc:expr, $strong:expr => $warp:ident, $view:ident, $actor:ident) => {
        let $warp = &mut $machine.warps[$w];
        #[allow(unused_mut)]
        let mut $view = $crate::access::View {
            global: &mut *$machine.global,
            shared: &mut $machine.shared,
            spill: &mut $machine.spill,
            hint: &mut $machine.hints[$pc as usize],
            global_granule: $machine.program.global_granule,
            shared_tag: $machine.shared_tag,
        };
        let $actor = $crate::race::Actor {
            tag: $machine.tag,
            first_tag: $machine.first_tag,
            warp: $warp.index,
            lane: 0,
            pc: u16::try_from($pc).unwrap_or(u16::MAX),
            strong: $strong,
            order: &$warp.order,
        };
    };
}
pub(crate) use parts;

/// An address in the space it lies in, if it was generic.
#[inline(always)]
pub(crate) fn settle(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    match space_of(address) {
        Space::Shared => (Space::Shared, address - SHARED_WINDOW),
        Space::Local => (Space::Local, address - LOCAL_WINDOW),
        space => (space, address),
    }
}

impl Machine<'_> {
    pub fn load(&mut self, w: usize, pc: u32, m: u32, access: &Access) -> Outcome<()> {
        let addresses = resolve(&self.warps[w].registers, access.address);
        let bytes = usize::from(access.width) * usize::from(access.count);
        let mut values = [0u128; LANES];
        let mut failed = None;
        {
            parts!(self, w, pc, access.strong => warp, view, actor);
            for lane in lanes(m) {
                let address = addresses[lane];
                check_aligned(address, bytes).in_lane(lane)?;
                let (space, address) = settle(access.space, address);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                let value = match space {
                    Space::Shared => view.load_shared(address, bytes, &actor),
                    Space::Local => {
                        let at =
                            local_offset(address, bytes, lane, warp.local_stride).in_lane(lane)?;
                        if warp.local_init.all(at, bytes) {
                            Ok(from_bytes(&warp.local[at..at + bytes]))
                        } else {
                            Err(Failure::Refused(
                                Refusal::Uninitialised {
                                    at: address as usize,
                                },
                                Space::Local,
                                address,
                            ))
                        }
                    }
                    Space::Param => load_param(self.params, address, bytes).map_err(Failure::Fault),
                    _ => view.load_global(address, bytes, &actor),
                };
                match value {
                    Ok(value) => values[lane] = value,
                    Err(failure) => {
                        failed = Some((failure, lane));
                        break;
                    }
                }
            }
        }
        if let Some((failure, lane)) = failed {
            return Err(self.explain(failure, lane, bytes, false));
        }
        self.stats.count_load(access.space, m, bytes);
        deliver(&mut self.warps[w].registers, m, access, &values);
        Ok(())
    }

    pub fn store(&mut self, w: usize, pc: u32, m: u32, access: &Access) -> Outcome<()> {
        let addresses = resolve(&self.warps[w].registers, access.address);
        let bytes = usize::from(access.width) * usize::from(access.count);
        let values = collect(&self.warps[w].registers, access);
        let mut failed = None;
        {
            parts!(self, w, pc, access.strong => warp, view, actor);
            for lane in lanes(m) {
                let address = addresses[lane];
                check_aligned(address, bytes).in_lane(lane)?;
                let (space, address) = settle(access.space, address);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                let value = values[lane];
                let stored = match space {
                    Space::Shared => view.store_shared(address, bytes, value, &actor),
                    Space::Local => {
                        let at =
                            local_offset(address, bytes, lane, warp.local_stride).in_lane(lane)?;
                        warp.local[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                        warp.local_init.set(at, bytes);
                        Ok(())
                    }
                    Space::Param | Space::Const => Err(fault(
                        FindingKind::ReadOnly,
                        "a store to the kernel's parameters or constants",
                    )
                    .into()),
                    _ => view.store_global(address, bytes, value, &actor),
                };
                if let Err(failure) = stored {
                    failed = Some((failure, lane));
                    break;
                }
            }
        }
        if let Some((failure, lane)) = failed {
            return Err(self.explain(failure, lane, bytes, true));
        }
        self.stats.count_store(access.space, m, bytes);
        Ok(())
    }

    /// Puts a failure into words.
    #[cold]
    pub fn explain(&self, failure: Failure, lane: usize, bytes: usize, writes: bool) -> Box<Fault> {
        let (refusal, space, address) = match failure {
            Failure::Fault(mut fault) => {
                fault.lane.get_or_insert(lane as u32);
                fault.what = format!("{} {}", if writes { "writes" } else { "reads" }, fault.what);
                return fault;
            }
            Failure::Refused(refusal, space, address) => (refusal, space, address),
        };
        let place = self.place_in(space, address);
        let verb = if writes { "writes" } else { "reads" };
        let mut fault = match refusal {
            Refusal::Uninitialised { at } => {
                let what = format!(
                    "reads {bytes} bytes of {place}; the byte at offset {at} was never written"
                );
                fault(FindingKind::UninitialisedMemory, what)
            }
            Refusal::Pending => {
                let what = format!(
                    "{verb} {bytes} bytes of {place}, where a cp.async has not been waited for"
                );
                fault(FindingKind::MissingAsyncWait, what)
            }
            Refusal::Race(conflict) => {
                let did = if conflict.wrote { "wrote" } else { "read" };
                let by = self.describe_pc(conflict.pc);
                if space != Space::Shared
                    && (conflict.tag != self.tag || conflict.by_several_blocks)
                {
                    let [gx, gy, _] = self.launch.grid;
                    let linear = conflict.tag - self.first_tag;
                    let block = if conflict.tag == self.tag {
                        "another block".to_owned()
                    } else {
                        format!(
                            "block ({}, {}, {})",
                            linear % gx,
                            linear / gx % gy,
                            linear / (gx * gy)
                        )
                    };
                    let what = format!(
                        "{verb} {bytes} bytes of {place} that {block} of the same launch {did} ({by})"
                    );
                    fault(FindingKind::GlobalRace, what)
                } else {
                    let kind = if space == Space::Shared {
                        FindingKind::SharedRace
                    } else {
                        FindingKind::GlobalRace
                    };
                    let who = conflict.lane_text();
                    let what = format!(
                        "{verb} {bytes} bytes of {place} that warp {} ({who}) {did} with no synchronisation in between ({by})",
                        conflict.warp
                    );
                    fault(kind, what)
                }
            }
        };
        fault.lane = Some(lane as u32);
        fault
    }

    fn place_in(&self, space: Space, address: u64) -> String {
        match space {
            Space::Shared => {
                let offset = address.wrapping_sub(SHARED_START.into());
                let range =
                    self.shared.ranges.iter().find(|(start, end, _)| {
                        (u64::from(*start)..u64::from(*end)).contains(&offset)
                    });
                match range {
                    Some((start, _, name)) => format!(
                        "shared memory at offset {} of `{name}`",
                        offset - u64::from(*start)
                    ),
                    None => format!("shared memory at 0x{address:x}"),
                }
            }
            Space::Local => format!("local memory at offset {address}"),
            _ => match self
                .global
                .index_of(address)
                .map(|index| &self.global.allocations[index])
            {
                Some(allocation) => {
                    let name = allocation
                        .name
                        .clone()
                        .unwrap_or_else(|| "an allocation".into());
                    let offset = address - allocation.start;
                    format!(
                        "global memory at offset {offset} of {name} ({} bytes at 0x{:x})",
                        allocation.bytes, allocation.start
                    )
                }
                None => format!("global memory at 0x{address:x}"),
            },
        }
    }
}

fn from_bytes(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u128::from(byte))
}

fn load_param(params: &[u8], address: u64, bytes: usize) -> Outcome<u128> {
    let offset = address.wrapping_sub(PARAM_WINDOW) as usize;
    match offset
        .checked_add(bytes)
        .and_then(|end| params.get(offset..end))
    {
        Some(slice) => Ok(from_bytes(slice)),
        None => {
            let what = format!(
                "{bytes} bytes at offset {offset} of the {} bytes of parameters",
                params.len()
            );
            Err(fault(FindingKind::OutOfBounds, what))
        }
    }
}

fn local_offset(address: u64, bytes: usize, lane: usize, stride: usize) -> Outcome<usize> {
    let offset = usize::try_from(address).unwrap_or(usize::MAX);
    match offset.checked_add(bytes) {
        Some(end) if end <= stride => Ok(lane * stride + offset),
        _ => Err(fault(
            FindingKind::OutOfBounds,
            format!("{bytes} bytes at offset {address} of {stride} bytes of local memory"),
        )),
    }
}

/// Loaded bytes to the registers, extended as the type says.
fn deliver(registers: &mut Registers, m: u32, access: &Access, values: &[u128; LANES]) {
    let bits = u32::from(access.width) * 8;
    let unused = 64 - bits;
    for (element, &slot) in access.regs[..usize::from(access.count)].iter().enumerate() {
        let value = |lane: usize| {
            let raw = (values[lane] >> (bits * element as u32)) as u64;
            if access.signed {
                ((raw << unused) as i64 >> unused) as u64
            } else {
                raw << unused >> unused
            }
        };
        if access.wide {
            let row: [u64; LANES] = std::array::from_fn(value);
            write(registers, m, slot, &row);
        } else {
            let row: [u32; LANES] = std::array::from_fn(|lane| value(lane) as u32);
            write(registers, m, slot, &row);
        }
    }
}

/// The bytes that each lane stores.
pub(crate) fn collect(registers: &Registers, access: &Access) -> [u128; LANES] {
    let bits = u32::from(access.width) * 8;
    let mask = u64::MAX >> (64 - bits);
    let mut values = [0u128; LANES];
    for (element, &slot) in access.regs[..usize::from(access.count)].iter().enumerate() {
        for (lane, value) in values.iter_mut().enumerate() {
            let raw = if access.wide {
                registers.row64(slot)[lane]
            } else {
                registers.row32(slot)[lane].into()
            };
            *value |= u128::from(raw & mask) << (bits * element as u32);
        }
    }
    values
}
