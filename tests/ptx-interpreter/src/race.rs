//! The race detector: what every granule of memory remembers of its last write and its last reads, and which accesses
//! are ordered before the present one.
//!
//! Two clocks order accesses. A block's clock ticks whenever a barrier completes (or a warp arrives without waiting), and
//! each warp knows, per other warp, up to which tick it has synchronised with it: a vector clock at the grain of warps.
//! A warp's own clock ticks whenever its lanes synchronise. Blocks of one launch are never ordered.

use std::collections::HashMap;

pub(crate) const WARPS: usize = 32;
/// In place of a lane: several lanes, or the warp as a whole.
pub(crate) const MANY_LANES: u16 = 32;

const LANE: u16 = 0x3f;
const STRONG: u16 = 1 << 15;
const SEVERAL_BLOCKS: u16 = 1 << 14;
const SPILLED: u16 = 1 << 13;

/// What a granule remembers. Tags number the blocks of all launches, so that nothing is cleared in between.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    w_tag: u32,
    w_time: u32,
    r_tag: u32,
    r_time: u32,
    /// The warps that read at `r_time`, as bits.
    r_warps: u32,
    w_sync: u16,
    r_sync: u16,
    /// `warp << 6 | lane`, and `STRONG`
    w_who: u16,
    /// The last reading lane, or `MANY_LANES`, with flags.
    r_who: u16,
    w_pc: u16,
    r_pc: u16,
}

/// What a warp has synchronised with.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The block's clock.
    pub now: u32,
    /// The warp's own, since `now` last moved for it.
    pub sync: u16,
    /// Accesses of warp `u` before tick `seen[u]` come before everything this warp does next.
    pub seen: [u32; WARPS],
    /// The least of them, over the warps of the block.
    pub seen_of_all: u32,
    /// The last synchronisation of all lanes.
    full: u64,
    /// Synchronisations of some lanes: their mask and when.
    partial: Vec<(u32, u64)>,
    /// Per mbarrier, how many of its phases are known to have ended.
    phases: Vec<u32>,
}

/// What those who acquire it have synchronised with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Release {
    /// As in [`Order`].
    pub seen: [u32; WARPS],
    phases: Vec<u32>,
}

impl Release {
    /// Adds what a warp has synchronised with.
    pub fn gather(&mut self, order: &Order) {
        merge(&mut self.seen, &order.seen);
        merge_phases(&mut self.phases, &order.phases);
    }

    /// So many phases of an mbarrier (numbered from 1) have ended.
    pub fn end_phase(&mut self, barrier: u32, ended: u32) {
        let index = barrier as usize - 1;
        if self.phases.len() <= index {
            self.phases.resize(index + 1, 0);
        }
        self.phases[index] = ended;
    }
}

fn merge(into: &mut [u32], from: &[u32]) {
    for (mine, theirs) in into.iter_mut().zip(from) {
        *mine = (*mine).max(*theirs);
    }
}

fn merge_phases(into: &mut Vec<u32>, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    merge(into, from);
}

fn key(time: u32, sync: u16) -> u64 {
    u64::from(time) << 16 | u64::from(sync)
}

impl Order {
    pub fn new() -> Self {
        Order {
            now: 1,
            sync: 0,
            seen: [0; WARPS],
            seen_of_all: 0,
            full: 0,
            partial: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// How many phases of an mbarrier are known to have ended.
    pub fn phase(&self, barrier: u32) -> u32 {
        self.phases.get(barrier as usize - 1).copied().unwrap_or(0)
    }

    /// All that was released comes before what this warp does next; `warps` are in the block.
    pub fn acquire(&mut self, release: &Release, warps: usize) {
        merge(&mut self.seen, &release.seen);
        merge_phases(&mut self.phases, &release.phases);
        self.seen_of_all = self.seen[..warps].iter().copied().min().unwrap_or(0);
    }

    pub fn reset(&mut self) {
        *self = Order {
            partial: std::mem::take(&mut self.partial),
            ..Order::new()
        };
        self.partial.clear();
    }

    /// The lanes of `mask` have synchronised; `clock` is the block's.
    pub fn warp_sync(&mut self, mask: u32, all: u32, clock: &mut u32) {
        if self.sync == u16::MAX {
            *clock += 1;
            (self.now, self.sync) = (*clock, 0);
        } else {
            self.sync += 1;
        }
        let when = key(self.now, self.sync);
        if mask & all == all {
            self.full = when;
            self.partial.clear();
        } else {
            self.partial.retain(|&(other, _)| other & !mask != 0);
            self.partial.push((mask, when));
        }
    }

    /// All lanes have synchronised at a barrier of the block that completed at `time`.
    pub fn barrier(&mut self, time: u32) {
        (self.now, self.sync) = (time, 0);
        self.full = key(time, 0);
        self.partial.clear();
    }

    fn lanes_ordered(&self, a: u16, b: u16, time: u32, sync: u16) -> bool {
        let then = key(time, sync);
        // Many lanes at once are none of them.
        let has = |mask: u32, lane: u16| mask.checked_shr(lane.into()).unwrap_or(0) & 1 != 0;
        then < self.full
            || self
                .partial
                .iter()
                .any(|&(mask, when)| then < when && has(mask, a) && has(mask, b))
    }
}

/// Who makes an access.
#[derive(Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub tag: u32,
    /// The first tag of this launch.
    pub first_tag: u32,
    pub warp: u16,
    pub lane: u16,
    pub pc: u16,
    /// An atomic or volatile access: does not race with its like.
    pub strong: bool,
    pub order: &'a Order,
}

/// The earlier access that the present one is not ordered after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub wrote: bool,
    pub pc: u16,
    pub tag: u32,
    pub warp: u16,
    /// [`MANY_LANES`] where it is not known.
    pub lane: u16,
    /// Blocks other than the last one that read have read, too.
    pub by_several_blocks: bool,
}

/// Read times per warp, for the granules whose readers did not read at the same tick.
pub(crate) type Spill = HashMap<(u32, u32), [u32; WARPS]>;

impl Cell {
    fn write_conflict(&self) -> Conflict {
        Conflict {
            wrote: true,
            pc: self.w_pc,
            tag: self.w_tag,
            warp: self.w_who >> 6 & 0x1f,
            lane: self.w_who & LANE,
            by_several_blocks: false,
        }
    }

    /// Whether the last write is ordered before the actor.
    #[inline(always)]
    fn write_seen(&self, actor: &Actor) -> bool {
        if self.w_tag < actor.first_tag || actor.strong && self.w_who & STRONG != 0 {
            return true;
        }
        if self.w_tag != actor.tag {
            return false;
        }
        let (warp, lane) = (self.w_who >> 6 & 0x1f, self.w_who & LANE);
        if warp != actor.warp {
            return actor.order.seen[usize::from(warp)] > self.w_time;
        }
        lane == actor.lane && lane != MANY_LANES
            || actor
                .order
                .lanes_ordered(lane, actor.lane, self.w_time, self.w_sync)
    }

    /// The actor reads.
    #[inline(always)]
    pub fn read(
        &mut self,
        actor: &Actor,
        spill: &mut Spill,
        id: (u32, u32),
    ) -> Result<(), Conflict> {
        if !self.write_seen(actor) {
            return Err(self.write_conflict());
        }
        let me = 1u32 << actor.warp;
        let strong = if actor.strong { STRONG } else { 0 };
        if self.r_tag != actor.tag {
            let several = if self.r_tag >= actor.first_tag {
                SEVERAL_BLOCKS
            } else {
                0
            };
            let all_strong = if several != 0 {
                strong & self.r_who
            } else {
                strong
            };
            self.r_warps = me;
            self.r_who = actor.lane | several | all_strong;
        } else if self.r_warps == me {
            let ordered =
                actor
                    .order
                    .lanes_ordered(self.r_who & LANE, actor.lane, self.r_time, self.r_sync);
            let same = self.r_who & LANE == actor.lane;
            let lane = if ordered || same {
                actor.lane
            } else {
                MANY_LANES
            };
            self.r_who = self.r_who & (SEVERAL_BLOCKS | strong) | lane;
        } else if self.r_time < actor.order.seen_of_all {
            // Whoever read before is ordered before this read, which then stands for all of them.
            self.r_warps = me;
            self.r_who = self.r_who & (SEVERAL_BLOCKS | strong) | actor.lane;
        } else if self.r_who & SPILLED == 0 && self.r_time == actor.order.now {
            // All have read since the same barrier, so that no one is ordered before anyone.
            self.r_warps |= me;
            self.r_who = self.r_who & (SEVERAL_BLOCKS | strong) | MANY_LANES;
        } else {
            self.read_by_another_warp(actor, spill, id);
            self.r_who &= SEVERAL_BLOCKS | SPILLED | strong | LANE;
        }
        self.r_tag = actor.tag;
        (self.r_time, self.r_sync, self.r_pc) = (actor.order.now, actor.order.sync, actor.pc);
        Ok(())
    }

    fn read_by_another_warp(&mut self, actor: &Actor, spill: &mut Spill, id: (u32, u32)) {
        let me = 1u32 << actor.warp;
        let seen = &actor.order.seen;
        let mut times = [self.r_time; WARPS];
        if self.r_who & SPILLED != 0 {
            times = spill.get(&id).copied().unwrap_or(times);
        }
        // A reader that is ordered before this read needs no memory of its own.
        let unordered =
            (0..WARPS).filter(|&u| self.r_warps >> u & 1 != 0 && u != usize::from(actor.warp));
        let unordered: u32 = unordered
            .filter(|&u| seen[u] <= times[u])
            .map(|u| 1 << u)
            .sum();
        self.r_warps = unordered | me;
        times[usize::from(actor.warp)] = actor.order.now;
        let differ = (0..WARPS).any(|u| unordered >> u & 1 != 0 && times[u] != actor.order.now);
        let flags = self.r_who & SEVERAL_BLOCKS;
        let strong = self.r_who & STRONG;
        self.r_who = flags
            | strong
            | if unordered == 0 {
                actor.lane
            } else {
                MANY_LANES
            };
        if differ {
            self.r_who |= SPILLED;
            spill.insert(id, times);
        }
    }

    /// The actor writes; `same` says that the bytes stay what they were.
    #[inline(always)]
    pub fn write(
        &mut self,
        actor: &Actor,
        same: bool,
        spill: &mut Spill,
        id: (u32, u32),
    ) -> Result<(), Conflict> {
        // Writing again what is there harms no one.
        if !self.write_seen(actor) && !same {
            return Err(self.write_conflict());
        }
        if self.r_tag >= actor.first_tag {
            self.reads_seen(actor, same, spill, id)?;
        }
        self.w_tag = actor.tag;
        (self.w_time, self.w_sync, self.w_pc) = (actor.order.now, actor.order.sync, actor.pc);
        self.w_who = actor.warp << 6 | actor.lane | if actor.strong { STRONG } else { 0 };
        Ok(())
    }

    /// Adds what other blocks of the launch did: whether they wrote here, or None where the two met.
    pub fn merge(&mut self, other: &Cell, first_tag: u32) -> Option<bool> {
        let (mine_wrote, mine_read) = (self.w_tag >= first_tag, self.r_tag >= first_tag);
        let (wrote, read) = (other.w_tag >= first_tag, other.r_tag >= first_tag);
        if mine_wrote && (wrote || read) || mine_read && wrote {
            return None;
        }
        if wrote {
            (self.w_tag, self.w_time, self.w_sync) = (other.w_tag, other.w_time, other.w_sync);
            (self.w_who, self.w_pc) = (other.w_who, other.w_pc);
        }
        if read {
            let several = if mine_read { SEVERAL_BLOCKS } else { 0 };
            (self.r_tag, self.r_time, self.r_sync) = (other.r_tag, other.r_time, other.r_sync);
            self.r_warps = other.r_warps;
            (self.r_who, self.r_pc) = (other.r_who | several, other.r_pc);
        }
        Some(wrote)
    }

    /// Whether the last write, if there was one, comes before.
    pub fn written_before(&self, actor: &Actor) -> Result<(), Conflict> {
        match self.write_seen(actor) {
            true => Ok(()),
            false => Err(self.write_conflict()),
        }
    }

    /// The warp that wrote last in this block.
    pub fn writer(&self) -> u16 {
        self.w_who >> 6 & 0x1f
    }

    /// The last write is ordered before everything; who may see it is told elsewhere.
    pub fn forget_write(&mut self) {
        self.w_tag = 0;
    }

    /// Moves the date of the last write, which was the actor's own, to now.
    pub fn restamp(&mut self, actor: &Actor) {
        self.w_tag = actor.tag;
        (self.w_time, self.w_sync) = (actor.order.now, actor.order.sync);
        self.w_who = actor.warp << 6 | actor.lane;
    }

    #[inline(always)]
    fn reads_seen(
        &self,
        actor: &Actor,
        same: bool,
        spill: &Spill,
        id: (u32, u32),
    ) -> Result<(), Conflict> {
        if same || actor.strong && self.r_who & STRONG != 0 {
            return Ok(());
        }
        let by_several_blocks = self.r_who & SEVERAL_BLOCKS != 0;
        let conflict = |warp: u16, lane: u16| Conflict {
            wrote: false,
            pc: self.r_pc,
            tag: self.r_tag,
            warp,
            lane,
            by_several_blocks,
        };
        if self.r_tag != actor.tag || self.r_who & SEVERAL_BLOCKS != 0 {
            return Err(conflict(0, MANY_LANES));
        }
        let me = 1u32 << actor.warp;
        let lane = self.r_who & LANE;
        if self.r_warps == me {
            let ordered = lane == actor.lane && lane != MANY_LANES
                || actor
                    .order
                    .lanes_ordered(lane, actor.lane, self.r_time, self.r_sync);
            return if ordered {
                Ok(())
            } else {
                Err(conflict(actor.warp, lane))
            };
        }
        let times = if self.r_who & SPILLED != 0 {
            spill.get(&id)
        } else {
            None
        };
        for u in (0..WARPS).filter(|&u| self.r_warps >> u & 1 != 0 && u != usize::from(actor.warp))
        {
            let time = times.map_or(self.r_time, |times| times[u]);
            if actor.order.seen[u] <= time {
                return Err(conflict(u as u16, MANY_LANES));
            }
        }
        Ok(())
    }
}
