//! mbarriers: barriers in shared memory that count arrivals of threads and bytes of copies. A phase ends when both are in;
//! whoever then waits for it has synchronised with all who arrived, and sees what the copies brought.

use crate::access::{check_aligned, parts, resolve, settle};
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::memory::SHARED_START;
use crate::program::{Address, Slot, Space};
use crate::race::{Actor, Release};
use crate::registers::{LANES, write};
use crate::shadow::Phase;
use crate::warp::{Next, Wait, lanes};

/// Arrivals of a phase at most.
const MOST: u32 = (1 << 20) - 1;

#[derive(Clone, Copy, Debug)]
pub(crate) enum MbarrierKind {
    Init {
        count: Slot,
    },
    Inval,
    Arrive {
        /// The phase that was arrived at.
        d: Slot,
        count: Option<Slot>,
        /// Bytes that the phase is to wait for besides.
        bytes: Option<Slot>,
    },
    Expect {
        bytes: Slot,
    },
    Wait {
        p: Slot,
        which: Waited,
        /// Whether the thread may be suspended meanwhile (`try_wait`).
        suspends: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Waited {
    Parity(Slot),
    /// What an arrival returned.
    Phase(Slot),
}

/// An operation on an mbarrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MbarrierOp {
    pub kind: MbarrierKind,
    pub space: Space,
    pub address: Address,
}

/// An mbarrier of the block that runs.
#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    /// Offset in shared memory.
    pub at: usize,
    /// Among those that the block has made, from 1.
    pub number: u32,
    /// Arrivals of a phase, and how many of them are missing.
    count: u32,
    missing: u32,
    /// Bytes that are expected and have not come; below zero where they came first.
    bytes: i64,
    /// Phases that have ended.
    pub phase: u32,
    /// The warp that made it, until a fence has shown it to copies.
    unfenced: Option<u16>,
    /// What those who arrive have synchronised with, and what those who arrived in the last phase had.
    arriving: Release,
    arrived: Release,
}

impl Machine<'_> {
    pub fn mbarrier(&mut self, w: usize, pc: u32, m: u32, op: &MbarrierOp) -> Outcome<Next> {
        let addresses = resolve(&self.warps[w].registers, op.address);
        let mut in_vain = 0;
        for lane in lanes(m) {
            let at = self
                .mbarrier_place(op.space, addresses[lane])
                .in_lane(lane)?;
            let tried = self.mbarrier_of_lane(w, pc, lane, at, op).in_lane(lane)?;
            in_vain |= u32::from(tried) << lane;
        }
        let tried = &mut self.warps[w].tried_in_vain;
        // A try may come back in vain, so the first does: whoever does not try again goes on unsynchronised.
        let before = std::mem::replace(tried, (in_vain != 0).then_some(pc));
        if in_vain == 0 || before != Some(pc) {
            return Ok(Next::Advance);
        }
        self.define_results(w, pc, m & !in_vain);
        Ok(Next::Stay(in_vain, Wait::Mbarrier))
    }

    fn mbarrier_place(&mut self, space: Space, address: u64) -> Outcome<usize> {
        check_aligned(address, 8)?;
        match settle(space, address) {
            (Space::Shared, address) => self.shared.locate(address, 8),
            _ => Err(fault(
                FindingKind::OutOfBounds,
                format!("an mbarrier at 0x{address:x}, which is not in shared memory"),
            )),
        }
    }

    /// Whether the lane tried to see a phase end and did not.
    fn mbarrier_of_lane(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: usize,
        op: &MbarrierOp,
    ) -> Outcome<bool> {
        let value = |slot: Slot| self.warps[w].registers.row32(slot)[lane];
        match op.kind {
            MbarrierKind::Init { count } => {
                let count = value(count);
                self.init_mbarrier(w, pc, lane, at, count)?;
            }
            MbarrierKind::Inval => {
                self.mbarrier_at(w, pc, lane, at)?;
                self.mbarriers.retain(|barrier| barrier.at != at);
                self.shared.shadow.set_barrier(at, false);
            }
            MbarrierKind::Arrive { d, count, bytes } => {
                let (count, bytes) = (count.map_or(1, value), bytes.map_or(0, value));
                let index = self.mbarrier_at(w, pc, lane, at)?;
                let phase = self.mbarriers[index].phase;
                self.arrive_at_mbarrier(w, index, count, bytes)?;
                write(
                    &mut self.warps[w].registers,
                    1 << lane,
                    d,
                    &[u64::from(phase); LANES],
                );
            }
            MbarrierKind::Expect { bytes } => {
                let bytes = value(bytes);
                let index = self.mbarrier_at(w, pc, lane, at)?;
                self.mbarriers[index].bytes += i64::from(bytes);
            }
            MbarrierKind::Wait { p, which, suspends } => {
                let index = self.mbarrier_at(w, pc, lane, at)?;
                let registers = &self.warps[w].registers;
                let phase = self.mbarriers[index].phase;
                let ended = match which {
                    Waited::Parity(slot) => {
                        let parity = registers.row32(slot)[lane];
                        if parity > 1 {
                            let what = format!("waits for parity {parity}; there are 0 and 1");
                            return Err(fault(FindingKind::Mbarrier, what));
                        }
                        phase & 1 != parity
                    }
                    Waited::Phase(slot) => u64::from(phase) > registers.row64(slot)[lane],
                };
                if ended {
                    let warps = self.warps.len();
                    let order = &mut self.warps[w].order;
                    order.acquire(&self.mbarriers[index].arrived, warps);
                }
                let bits = if ended { u32::MAX } else { 0 };
                self.warps[w].registers.set_pred(p, 1 << lane, bits);
                return Ok(suspends && !ended);
            }
        }
        Ok(false)
    }

    fn init_mbarrier(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: usize,
        count: u32,
    ) -> Outcome<()> {
        if !(1..=MOST).contains(&count) {
            let what = format!("an mbarrier of {count} arrivals; there are 1 to {MOST}");
            return Err(fault(FindingKind::Mbarrier, what));
        }
        if self.mbarriers.iter().any(|barrier| barrier.at == at) {
            let what = format!("makes an mbarrier at offset {at}, where there is one");
            return Err(fault(FindingKind::Mbarrier, what));
        }
        let stored = {
            parts!(self, w, pc, false => _warp, view, actor);
            let actor = Actor {
                lane: lane as u16,
                ..actor
            };
            view.store_shared(at as u64 + u64::from(SHARED_START), 8, 0, &actor)
        };
        stored.map_err(|failure| self.explain(failure, lane, 8, true))?;
        self.shared.shadow.set_barrier(at, true);
        self.mbarriers_made += 1;
        self.mbarriers.push(Mbarrier {
            at,
            number: self.mbarriers_made,
            count,
            missing: count,
            bytes: 0,
            phase: 0,
            unfenced: Some(w as u16),
            arriving: Release::default(),
            arrived: Release::default(),
        });
        Ok(())
    }

    fn arrive_at_mbarrier(
        &mut self,
        w: usize,
        index: usize,
        count: u32,
        bytes: u32,
    ) -> Outcome<()> {
        let barrier = &mut self.mbarriers[index];
        if count > barrier.missing {
            let what = format!(
                "arrives {count} times at an mbarrier of {}, where {} arrivals are missing",
                barrier.count, barrier.missing
            );
            return Err(fault(FindingKind::Mbarrier, what));
        }
        // What this warp does from now on is not ordered by the barrier.
        self.clock += 1;
        let order = &mut self.warps[w].order;
        barrier.arriving.gather(order);
        barrier.arriving.seen[w] = self.clock;
        (order.now, order.sync) = (self.clock, 0);
        barrier.missing -= count;
        barrier.bytes += i64::from(bytes);
        self.end_phase(index);
        Ok(())
    }

    /// Ends the phase if nothing is missing.
    fn end_phase(&mut self, index: usize) {
        let barrier = &mut self.mbarriers[index];
        if barrier.missing != 0 || barrier.bytes != 0 {
            return;
        }
        barrier.phase += 1;
        barrier.missing = barrier.count;
        barrier.arriving.end_phase(barrier.number, barrier.phase);
        barrier.arrived = barrier.arriving.clone();
        for fragment in self.warps.iter_mut().flat_map(|warp| &mut warp.fragments) {
            if fragment.wait == Wait::Mbarrier {
                fragment.wait = Wait::Ready;
            }
        }
    }

    /// The mbarrier that a copy of this lane tells its bytes, and the phase that they count for.
    pub fn mbarrier_of_copy(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        address: u64,
    ) -> Outcome<(usize, Phase)> {
        let at = self.mbarrier_place(Space::Shared, address)?;
        let index = self.mbarrier_at(w, pc, lane, at)?;
        let barrier = &self.mbarriers[index];
        if barrier.unfenced.is_some() {
            let what = "a copy that tells an mbarrier, where neither fence.mbarrier_init nor fence.proxy.async has followed its making";
            return Err(fault(FindingKind::MissingFence, what));
        }
        let phase = Phase {
            barrier: barrier.number,
            phase: barrier.phase,
        };
        Ok((index, phase))
    }

    /// Bytes of a copy have come.
    pub fn bytes_came(&mut self, index: usize, bytes: u32) {
        self.mbarriers[index].bytes -= i64::from(bytes);
        self.end_phase(index);
    }

    /// Copies see the mbarriers that the warp has made.
    pub fn fence_mbarriers(&mut self, w: usize) {
        for barrier in &mut self.mbarriers {
            if barrier.unfenced == Some(w as u16) {
                barrier.unfenced = None;
            }
        }
    }

    /// The mbarrier that an operation names.
    fn named(&self, w: usize, lane: usize, op: &MbarrierOp) -> Option<&Mbarrier> {
        let address = resolve(&self.warps[w].registers, op.address)[lane];
        let (_, address) = settle(op.space, address);
        let at = address.wrapping_sub(SHARED_START.into()) as usize;
        self.mbarriers.iter().find(|barrier| barrier.at == at)
    }

    /// Whether it waits for bytes that no copy brings.
    pub fn lacks_bytes(&self, w: usize, lane: usize, op: &MbarrierOp) -> bool {
        self.named(w, lane, op)
            .is_some_and(|barrier| barrier.bytes != 0)
    }

    /// What a thread waits for at the mbarrier that this operation names.
    pub fn describe_mbarrier(&self, w: usize, lane: usize, op: &MbarrierOp) -> String {
        match self.named(w, lane, op) {
            Some(barrier) => format!(
                "phase {} of an mbarrier at offset {} of shared memory, to which {} of {} arrivals and {} bytes are missing",
                barrier.phase, barrier.at, barrier.missing, barrier.count, barrier.bytes
            ),
            None => "an mbarrier that is gone".into(),
        }
    }

    /// The mbarrier there, whose making must be ordered before.
    fn mbarrier_at(&mut self, w: usize, pc: u32, lane: usize, at: usize) -> Outcome<usize> {
        let found = self.mbarriers.iter().position(|barrier| barrier.at == at);
        let Some(index) = found else {
            let what = format!("no mbarrier was made at offset {at} of shared memory");
            return Err(fault(FindingKind::Mbarrier, what));
        };
        let noted = {
            parts!(self, w, pc, false => _warp, view, actor);
            let actor = Actor {
                lane: lane as u16,
                ..actor
            };
            view.load_at(at, 8, &actor)
        };
        noted.map_err(|failure| self.explain(failure, lane, 8, false))?;
        Ok(index)
    }
}
