//! Memory with a shadow: which bytes hold a value, which wait for an asynchronous copy, and who touched them last.

use crate::finding::{FindingKind, Outcome, fault};
use crate::race::{Actor, Cell, Conflict, MANY_LANES, Spill};
use crate::shadow::Shadow;

/// Shared memory starts above zero, so that a null pointer is out of bounds.
pub(crate) const SHARED_START: u32 = 0x400;
/// The windows of the generic address space. Global addresses lie above them.
pub(crate) const SHARED_WINDOW: u64 = 0x0100_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x0300_0000_0000;
pub(crate) const WINDOW_BYTES: u64 = 0x0100_0000_0000;
pub(crate) const GLOBAL_START: u64 = 0x7000_0000_0000;
/// Between two allocations.
const GUARD: u64 = 4096;

/// One bit per byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(bytes: usize) -> Self {
        Bits(vec![0; bytes.div_ceil(64)])
    }

    /// For aligned ranges of a power of two up to 64 bytes, which never cross a word.
    #[inline(always)]
    fn mask(at: usize, bytes: usize) -> u64 {
        (u64::MAX >> (64 - bytes as u32)) << (at & 63)
    }

    #[inline(always)]
    pub fn all(&self, at: usize, bytes: usize) -> bool {
        let mask = Self::mask(at, bytes);
        self.0[at >> 6] & mask == mask
    }

    #[inline(always)]
    pub fn any(&self, at: usize, bytes: usize) -> bool {
        self.0[at >> 6] & Self::mask(at, bytes) != 0
    }

    #[inline(always)]
    pub fn set(&mut self, at: usize, bytes: usize) {
        self.0[at >> 6] |= Self::mask(at, bytes);
    }

    #[inline(always)]
    pub fn unset(&mut self, at: usize, bytes: usize) {
        self.0[at >> 6] &= !Self::mask(at, bytes);
    }

    pub fn get(&self, at: usize) -> bool {
        self.0[at >> 6] >> (at & 63) & 1 != 0
    }

    /// Any range.
    pub fn set_range(&mut self, at: usize, bytes: usize) {
        let (mut at, end) = (at, at + bytes);
        while at < end {
            let step = (64 - (at & 63)).min(end - at);
            self.set(at, step);
            at += step;
        }
    }

    /// The first byte of a range without its bit.
    pub fn first_unset(&self, at: usize, bytes: usize) -> Option<usize> {
        let (mut at, end) = (at, at + bytes);
        while at < end {
            let step = (64 - (at & 63)).min(end - at);
            let missing = !self.0[at >> 6] & Self::mask(at, step);
            if missing != 0 {
                return Some((at & !63) + missing.trailing_zeros() as usize);
            }
            at += step;
        }
        None
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Takes the bits away from bytes that `gone` holds for.
    pub fn unset_where(&mut self, gone: &mut impl FnMut(usize) -> bool) {
        for (index, word) in self.0.iter_mut().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if gone(index * 64 + bit) {
                    *word &= !(1 << bit);
                }
            }
        }
    }
}

/// What the detector found, for the caller to put into words (it knows the blocks and the program).
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The first such byte, as an offset in the region.
    Uninitialised {
        at: usize,
    },
    Pending,
    Race(Conflict),
}

/// A stretch of memory with its shadow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Region {
    pub id: u32,
    pub data: Vec<u8>,
    pub init: Bits,
    /// Bytes that a `cp.async` has yet to deliver; only shared memory has it.
    pub pending: Bits,
    pub has_pending: bool,
    cells: Vec<Cell>,
    /// log2 of the bytes per cell.
    cell_shift: u32,
}

impl Region {
    pub fn new(id: u32, bytes: usize) -> Self {
        Region {
            id,
            data: vec![0; bytes],
            init: Bits::new(bytes),
            ..Region::default()
        }
    }

    /// Makes room for the detector's cells of `granule` bytes.
    #[inline(always)]
    pub fn track(&mut self, granule: u8) {
        if self.cells.is_empty() || self.cell_shift != granule.trailing_zeros() {
            self.make_cells(granule);
        }
    }

    #[cold]
    fn make_cells(&mut self, granule: u8) {
        let shift = granule.trailing_zeros();
        let cells = self.data.len().div_ceil(usize::from(granule));
        if self.cells.len() != cells || self.cell_shift != shift {
            self.cells = vec![Cell::default(); cells];
            self.cell_shift = shift;
        }
    }

    fn merge(&mut self, other: Region, first_tag: u32) -> bool {
        if other.cells.is_empty() {
            return true;
        }
        if self.cells.is_empty() || self.cell_shift != other.cell_shift {
            self.make_cells(1 << other.cell_shift);
        }
        let granule = 1usize << self.cell_shift;
        for (i, (mine, theirs)) in self.cells.iter_mut().zip(&other.cells).enumerate() {
            let Some(wrote) = mine.merge(theirs, first_tag) else {
                return false;
            };
            if wrote {
                let range = i * granule..((i + 1) * granule).min(self.data.len());
                self.data[range.clone()].copy_from_slice(&other.data[range.clone()]);
                // A write covers whole granules.
                self.init.set_range(range.start, range.len());
            }
        }
        true
    }

    pub fn forget_cells(&mut self) {
        self.cells = Vec::new();
    }

    #[inline(always)]
    fn get(&self, at: usize, bytes: usize) -> u128 {
        let data = &self.data[at..at + bytes];
        match bytes {
            1 => data[0].into(),
            2 => u16::from_le_bytes([data[0], data[1]]).into(),
            4 => u32::from_le_bytes(data.try_into().unwrap_or_default()).into(),
            8 => u64::from_le_bytes(data.try_into().unwrap_or_default()).into(),
            _ => u128::from_le_bytes(data.try_into().unwrap_or_default()),
        }
    }

    #[inline(always)]
    fn put(&mut self, at: usize, bytes: usize, value: u128) {
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    /// An asynchronous copy to these bytes is done: they count as written by the actor now.
    pub fn deliver(&mut self, at: usize, bytes: usize, actor: &Actor) {
        self.pending.unset(at, bytes);
        for cell in &mut self.cells[at >> self.cell_shift..=(at + bytes - 1) >> self.cell_shift] {
            cell.restamp(actor);
        }
    }

    /// Reads 1 to 16 aligned bytes that lie within.
    #[inline(always)]
    pub fn load(
        &mut self,
        at: usize,
        bytes: usize,
        actor: &Actor,
        spill: &mut Spill,
    ) -> Result<u128, Refusal> {
        if !self.init.all(at, bytes) {
            return Err(self.why_uninitialised(at, bytes));
        }
        if self.has_pending && self.pending.any(at, bytes) {
            return Err(Refusal::Pending);
        }
        let (first, last) = (at >> self.cell_shift, (at + bytes - 1) >> self.cell_shift);
        for (i, cell) in self.cells[first..=last].iter_mut().enumerate() {
            cell.read(actor, spill, (self.id, (first + i) as u32))
                .map_err(Refusal::Race)?;
        }
        Ok(self.get(at, bytes))
    }

    #[cold]
    fn why_uninitialised(&self, at: usize, bytes: usize) -> Refusal {
        Refusal::Uninitialised {
            at: self.init.first_unset(at, bytes).unwrap_or(at),
        }
    }

    #[inline(always)]
    pub fn store(
        &mut self,
        at: usize,
        bytes: usize,
        value: u128,
        actor: &Actor,
        spill: &mut Spill,
    ) -> Result<(), Refusal> {
        if self.has_pending && self.pending.any(at, bytes) {
            return Err(Refusal::Pending);
        }
        let (first, last) = (at >> self.cell_shift, (at + bytes - 1) >> self.cell_shift);
        let mut same = None;
        for i in first..=last {
            let id = (self.id, i as u32);
            let before = self.cells[i];
            if self.cells[i].write(actor, false, spill, id).is_err() {
                // Rare: only now is it worth knowing whether anything changes.
                let unchanged = *same.get_or_insert_with(|| {
                    self.init.all(at, bytes) && self.get(at, bytes) == value
                });
                self.cells[i] = before;
                self.cells[i]
                    .write(actor, unchanged, spill, id)
                    .map_err(Refusal::Race)?;
            }
        }
        self.put(at, bytes, value);
        self.init.set(at, bytes);
        Ok(())
    }

    /// What [`load`](Self::load) would give, without a trace of it.
    pub fn peek(&self, at: usize, bytes: usize, actor: &Actor) -> Result<u128, Refusal> {
        if !self.init.all(at, bytes) {
            return Err(self.why_uninitialised(at, bytes));
        }
        if self.has_pending && self.pending.any(at, bytes) {
            return Err(Refusal::Pending);
        }
        for cell in &self.cells[at >> self.cell_shift..=(at + bytes - 1) >> self.cell_shift] {
            cell.written_before(actor).map_err(Refusal::Race)?;
        }
        Ok(self.get(at, bytes))
    }

    /// Stores what an asynchronous copy brings: ordered like any store by the actor, seen by whoever its mbarrier says.
    pub fn store_copied(
        &mut self,
        at: usize,
        bytes: usize,
        value: u128,
        actor: &Actor,
        spill: &mut Spill,
    ) -> Result<(), Refusal> {
        self.store(at, bytes, value, actor, spill)?;
        for cell in &mut self.cells[at >> self.cell_shift..=(at + bytes - 1) >> self.cell_shift] {
            cell.forget_write();
        }
        Ok(())
    }

    /// The warp that last wrote a byte.
    pub fn writer(&self, at: usize) -> u16 {
        self.cells[at >> self.cell_shift].writer()
    }

    /// Loads and stores at once, as one access that does not race with its like.
    pub fn modify(
        &mut self,
        at: usize,
        bytes: usize,
        actor: &Actor,
        spill: &mut Spill,
        f: impl FnOnce(u128) -> u128,
    ) -> Result<u128, Refusal> {
        if !self.init.all(at, bytes) {
            return Err(self.why_uninitialised(at, bytes));
        }
        let old = self.get(at, bytes);
        self.store(at, bytes, f(old), actor, spill)?;
        Ok(old)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub start: u64,
    pub bytes: usize,
    /// None once freed.
    pub region: Option<Region>,
    pub read_only: bool,
    /// The variable of a module that it is.
    pub name: Option<String>,
}

/// Device memory. Addresses are never used twice, so that what is freed stays known.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    /// Sorted by address.
    pub allocations: Vec<Allocation>,
    next: u64,
    pub live: u64,
}

impl Global {
    pub fn new() -> Self {
        Global {
            allocations: Vec::new(),
            next: GLOBAL_START,
            live: 0,
        }
    }

    pub fn alloc(
        &mut self,
        bytes: usize,
        align: u64,
        name: Option<String>,
        read_only: bool,
    ) -> u64 {
        let start = self.next.next_multiple_of(align.max(256));
        self.next = start + bytes as u64 + GUARD;
        let region = Region::new(self.allocations.len() as u32 + 1, bytes);
        self.live += bytes as u64;
        self.allocations.push(Allocation {
            start,
            bytes,
            region: Some(region),
            read_only,
            name,
        });
        start
    }

    /// A copy that remembers no accesses.
    pub fn without_cells(&self) -> Global {
        let values = |region: &Region| Region {
            id: region.id,
            data: region.data.clone(),
            init: region.init.clone(),
            ..Region::default()
        };
        let allocations = self.allocations.iter().map(|allocation| Allocation {
            start: allocation.start,
            bytes: allocation.bytes,
            region: allocation.region.as_ref().map(values),
            read_only: allocation.read_only,
            name: allocation.name.clone(),
        });
        Global {
            allocations: allocations.collect(),
            next: self.next,
            live: self.live,
        }
    }

    /// Takes over what a copy wrote; false where blocks of the two touched the same memory, and then this is spoilt.
    pub fn merge(&mut self, other: Global, first_tag: u32) -> bool {
        self.allocations
            .iter_mut()
            .zip(other.allocations)
            .all(|(mine, theirs)| match (&mut mine.region, theirs.region) {
                (Some(mine), Some(theirs)) => mine.merge(theirs, first_tag),
                _ => true,
            })
    }

    pub fn index_of(&self, address: u64) -> Option<usize> {
        let after = self
            .allocations
            .partition_point(|allocation| allocation.start <= address);
        let index = after.checked_sub(1)?;
        let allocation = &self.allocations[index];
        (address - allocation.start < (allocation.bytes as u64).max(1)).then_some(index)
    }

    /// The allocation that holds all of a range; `hint` is the one that was right last time.
    #[inline(always)]
    pub fn locate(&self, address: u64, bytes: u64, hint: &mut u32) -> Outcome<usize> {
        if let Some(allocation) = self.allocations.get(*hint as usize) {
            let offset = address.wrapping_sub(allocation.start);
            if offset < allocation.bytes as u64
                && offset + bytes <= allocation.bytes as u64
                && allocation.region.is_some()
            {
                return Ok(*hint as usize);
            }
        }
        self.search(address, bytes, hint)
    }

    #[inline(never)]
    fn search(&self, address: u64, bytes: u64, hint: &mut u32) -> Outcome<usize> {
        let Some(index) = self.index_of(address) else {
            return Err(fault(
                FindingKind::OutOfBounds,
                self.describe_stray(address, bytes),
            ));
        };
        let allocation = &self.allocations[index];
        if allocation.region.is_none() {
            let what = format!(
                "{bytes} bytes at 0x{address:x}, which is {} bytes into an allocation of {} bytes that was freed",
                address - allocation.start,
                allocation.bytes
            );
            return Err(fault(FindingKind::UseAfterFree, what));
        }
        if address - allocation.start + bytes > allocation.bytes as u64 {
            return Err(fault(
                FindingKind::OutOfBounds,
                self.describe_stray(address, bytes),
            ));
        }
        *hint = index as u32;
        Ok(index)
    }

    fn describe_stray(&self, address: u64, bytes: u64) -> String {
        let after = self
            .allocations
            .partition_point(|allocation| allocation.start <= address);
        let before = after.checked_sub(1).map(|index| &self.allocations[index]);
        let next = self.allocations.get(after);
        let named = |allocation: &Allocation| match &allocation.name {
            Some(name) => format!("`{name}` ({} bytes)", allocation.bytes),
            None => format!(
                "an allocation of {} bytes at 0x{:x}",
                allocation.bytes, allocation.start
            ),
        };
        let past = before.map(|allocation| (address - allocation.start, allocation));
        let short = next.map(|allocation| (allocation.start - address, allocation));
        let place = match (past, short) {
            (Some((offset, allocation)), Some((distance, next)))
                if distance < offset.saturating_sub(allocation.bytes as u64) =>
            {
                format!("{distance} bytes before {}", named(next))
            }
            (Some((offset, allocation)), _) if offset < 1 << 40 => {
                format!("offset {offset} of {}", named(allocation))
            }
            (_, Some((distance, next))) if distance < 1 << 40 => {
                format!("{distance} bytes before {}", named(next))
            }
            _ => "near no allocation".into(),
        };
        format!("{bytes} bytes at 0x{address:x}: {place}")
    }
}

/// Shared memory of the block that runs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub region: Region,
    /// Start and end of each variable, in bytes from [`SHARED_START`].
    pub ranges: Vec<(u32, u32, String)>,
    pub shadow: Shadow,
    last: usize,
}

impl Shared {
    /// `asynchronous`: whether the program has mbarriers, tensor copies or asynchronous products.
    pub fn new(
        bytes: usize,
        ranges: Vec<(u32, u32, String)>,
        granule: u8,
        asynchronous: bool,
    ) -> Self {
        let mut region = Region::new(0, bytes);
        region.pending = Bits::new(bytes);
        region.track(granule);
        Shared {
            region,
            ranges,
            shadow: Shadow::new(bytes, asynchronous),
            last: 0,
        }
    }

    pub fn reset(&mut self) {
        self.region.init.clear();
        self.region.pending.clear();
        self.region.has_pending = false;
        self.shadow.reset();
    }

    /// A proxy fence of a warp: the async proxy sees what the warp has stored.
    pub fn fence_proxy(&mut self, warp: u16) {
        let region = &self.region;
        self.shadow.show(|at| region.writer(at) == warp);
    }

    /// The offset in the region of an address in the shared space.
    #[inline(always)]
    pub fn locate(&mut self, address: u64, bytes: u64) -> Outcome<usize> {
        let offset = address.wrapping_sub(u64::from(SHARED_START));
        let fits = |&(start, end, _): &(u32, u32, String)| {
            offset >= start.into() && offset.saturating_add(bytes) <= end.into()
        };
        if self.ranges.get(self.last).is_some_and(fits) {
            return Ok(offset as usize);
        }
        match self.ranges.iter().position(fits) {
            Some(index) => {
                self.last = index;
                Ok(offset as usize)
            }
            None => Err(self.stray(address, bytes)),
        }
    }

    #[cold]
    fn stray(&self, address: u64, bytes: u64) -> Box<crate::finding::Fault> {
        let offset = address.wrapping_sub(u64::from(SHARED_START)) as i64;
        let nearest = self.ranges.iter().min_by_key(|(start, end, _)| {
            (i64::from(*start).saturating_sub(offset))
                .max(offset.saturating_sub(i64::from(*end)))
                .max(0)
        });
        let what = match nearest {
            Some((start, end, name)) => format!(
                "{bytes} bytes of shared memory at offset {} of `{name}`, which has {} bytes",
                offset.saturating_sub(i64::from(*start)),
                end - start
            ),
            None => {
                format!("{bytes} bytes of shared memory at 0x{address:x}, but the kernel has none")
            }
        };
        fault(FindingKind::OutOfBounds, what)
    }
}

impl Conflict {
    pub fn lane_text(&self) -> String {
        if self.lane == MANY_LANES {
            "lanes".into()
        } else {
            format!("lane {}", self.lane)
        }
    }
}
