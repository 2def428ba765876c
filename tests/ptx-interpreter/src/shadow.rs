//! What asynchronous copies and products add to the shadow of shared memory. Both go through the async proxy: they are ordered by
//! mbarriers and by waits rather than by the instruction that starts them, and see what ordinary stores wrote only after a
//! proxy fence.

use crate::finding::{Fault, FindingKind, Outcome, fault};
use crate::memory::Bits;
use crate::race::Order;

/// Bytes that asynchronous copies and products touch at once.
pub(crate) const CHUNK: usize = 16;

/// A phase of one of the block's mbarriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    /// The mbarrier's number in the block, from 1; 0: none.
    pub barrier: u32,
    pub phase: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    /// Whether the program has anything that this is about; nothing else is kept up to date where not.
    active: bool,
    /// Per chunk, the phase that a copy to it ends in.
    arrives: Vec<Phase>,
    /// Per chunk, the products under way that read it.
    readers: Vec<u32>,
    /// Bytes that ordinary stores wrote and no proxy fence has shown.
    ordinary: Bits,
    /// Bytes of mbarriers.
    barriers: Bits,
}

impl Shadow {
    pub fn new(bytes: usize, active: bool) -> Shadow {
        let bytes = if active { bytes } else { 0 };
        Shadow {
            active,
            arrives: vec![Phase::default(); bytes.div_ceil(CHUNK)],
            readers: vec![0; bytes.div_ceil(CHUNK)],
            ordinary: Bits::new(bytes),
            barriers: Bits::new(bytes),
        }
    }

    pub fn reset(&mut self) {
        self.arrives.fill(Phase::default());
        self.readers.fill(0);
        self.ordinary.clear();
        self.barriers.clear();
    }

    /// An ordinary access to 1 to 16 aligned bytes.
    #[inline(always)]
    pub fn touch(&mut self, at: usize, bytes: usize, writes: bool, order: &Order) -> Outcome<()> {
        if !self.active {
            return Ok(());
        }
        self.touch_active(at, bytes, writes, order)
    }

    fn touch_active(
        &mut self,
        at: usize,
        bytes: usize,
        writes: bool,
        order: &Order,
    ) -> Outcome<()> {
        if self.barriers.any(at, bytes) {
            let what = "shared memory that holds an mbarrier";
            return Err(fault(FindingKind::Mbarrier, what));
        }
        self.arrived(at, order)?;
        if writes {
            self.unread(at)?;
            self.ordinary.set(at, bytes);
        }
        Ok(())
    }

    /// A product reads the chunk at `at`.
    pub fn product_reads(&self, at: usize, order: &Order) -> Outcome<()> {
        self.seen_by_proxy(at)?;
        self.arrived(at, order)
    }

    /// A copy writes the chunk at `at`, in this phase.
    pub fn copy_writes(&mut self, at: usize, order: &Order, phase: Phase) -> Outcome<()> {
        self.seen_by_proxy(at)?;
        self.arrived(at, order)?;
        self.unread(at)?;
        self.arrives[at / CHUNK] = phase;
        Ok(())
    }

    /// Products under way read these chunks; or no more.
    pub fn set_reading(&mut self, chunks: &[u32], reading: bool) {
        for &chunk in chunks {
            let readers = &mut self.readers[chunk as usize];
            *readers = if reading {
                *readers + 1
            } else {
                readers.saturating_sub(1)
            };
        }
    }

    pub fn set_barrier(&mut self, at: usize, is: bool) {
        match is {
            true => self.barriers.set(at, 8),
            false => self.barriers.unset(at, 8),
        }
    }

    /// Stores to these bytes are seen by the async proxy from here on.
    pub fn show(&mut self, mut ours: impl FnMut(usize) -> bool) {
        self.ordinary.unset_where(&mut ours);
    }

    /// The copy that wrote this chunk has ended, and whoever accesses it knows.
    fn arrived(&self, at: usize, order: &Order) -> Outcome<()> {
        let Phase { barrier, phase } = self.arrives[at / CHUNK];
        if barrier == 0 || order.phase(barrier) > phase {
            return Ok(());
        }
        Err(unwaited(at))
    }

    fn unread(&self, at: usize) -> Outcome<()> {
        if self.readers[at / CHUNK] == 0 {
            return Ok(());
        }
        let what = format!(
            "shared memory at offset {at} that a wgmma under way reads: no wgmma.wait_group has ended it"
        );
        Err(fault(FindingKind::SharedRace, what))
    }

    fn seen_by_proxy(&self, at: usize) -> Outcome<()> {
        if self.barriers.any(at, CHUNK) {
            let what = "shared memory that holds an mbarrier";
            return Err(fault(FindingKind::Mbarrier, what));
        }
        if !self.ordinary.any(at, CHUNK) {
            return Ok(());
        }
        let what = format!(
            "shared memory at offset {at} through the async proxy, where an ordinary store came before with no fence.proxy.async"
        );
        Err(fault(FindingKind::MissingFence, what))
    }
}

#[cold]
fn unwaited(at: usize) -> Box<Fault> {
    let what = format!(
        "shared memory at offset {at}, where a tensor copy's mbarrier has not been waited for"
    );
    fault(FindingKind::MissingAsyncWait, what)
}
