//! Barriers of a block: who has arrived, what completion orders, and what to say when it never comes.

use crate::finding::{Finding, FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::program::{Barrier, BarrierKind, Op};
use crate::race::Release;
use crate::registers::write;
use crate::warp::{Fragment, Wait, lanes};

#[derive(Clone, Debug, Default)]
pub(crate) struct BarrierState {
    expected: u32,
    arrived: u32,
    /// What all who arrived have synchronised with.
    release: Release,
    /// The warps that wait, with their lanes and the kind of barrier that each executed.
    waiting: Vec<(usize, u32, BarrierKind)>,
    /// How many threads' predicate held, and how many had one.
    holds: u32,
    voted: u32,
}

pub(crate) enum Arrival {
    Through,
    Waits(Wait),
}

impl Machine<'_> {
    pub fn arrive(&mut self, w: usize, pc: u32, m: u32, barrier: &Barrier) -> Outcome<Arrival> {
        let warp = &self.warps[w];
        if barrier.aligned && warp.live != m {
            if warp.live == warp.all {
                return Ok(Arrival::Waits(Wait::Lanes));
            }
            let ended = warp.all & !warp.live;
            let what = format!("an aligned barrier in a warp whose lanes 0x{ended:08x} have ended");
            return Err(fault(FindingKind::DivergentBarrier, what));
        }
        if barrier.aligned && warp.live != warp.all {
            let ended = warp.all & !warp.live;
            let what = format!("an aligned barrier in a warp whose lanes 0x{ended:08x} have ended");
            return Err(fault(FindingKind::DivergentBarrier, what));
        }
        let (id, count) = self.barrier_operands(w, m, barrier)?;
        let expected = count.unwrap_or(self.threads);
        // Warps are counted whole, also the last one of a block that is not a multiple of 32.
        let arriving = if barrier.aligned && count.is_some() {
            32
        } else {
            m.count_ones()
        };
        let state = &mut self.barriers[id as usize];
        if state.arrived > 0 && state.expected != expected {
            let what = format!(
                "barrier {id} is for {expected} threads here, for {} elsewhere",
                state.expected
            );
            return Err(fault(FindingKind::DivergentBarrier, what));
        }
        state.expected = expected;
        state.arrived += arriving;
        if state.arrived > expected {
            let what = format!(
                "{} threads at barrier {id}, which is for {expected}",
                state.arrived
            );
            return Err(fault(FindingKind::DivergentBarrier, what));
        }
        state.release.gather(&self.warps[w].order);
        if let BarrierKind::Popc { a, .. }
        | BarrierKind::All { a, .. }
        | BarrierKind::Any { a, .. } = barrier.kind
        {
            state.holds += (self.warps[w].registers.pred(a) & m).count_ones();
            state.voted += m.count_ones();
        }
        let full = state.arrived == expected;
        if barrier.kind == BarrierKind::Arrive {
            // What this warp does from now on is not ordered by the barrier.
            self.clock += 1;
            let state = &mut self.barriers[id as usize];
            state.release.seen[usize::from(self.warps[w].index)] = self.clock;
            let order = &mut self.warps[w].order;
            (order.now, order.sync) = (self.clock, 0);
            if full {
                self.complete(id);
            }
            return Ok(Arrival::Through);
        }
        let state = &mut self.barriers[id as usize];
        state.waiting.push((w, m, barrier.kind));
        self.stats.barriers += 1;
        if full {
            // The one that arrives last does not wait; its own fragment is still running.
            self.complete_with(id, Some((w, pc)));
            return Ok(Arrival::Through);
        }
        Ok(Arrival::Waits(Wait::Barrier(id)))
    }

    fn barrier_operands(&self, w: usize, m: u32, barrier: &Barrier) -> Outcome<(u32, Option<u32>)> {
        let registers = &self.warps[w].registers;
        let first = m.trailing_zeros() as usize;
        let uniform = |slot| {
            let row = registers.row32(slot);
            match lanes(m).find(|&lane| row[lane] != row[first]) {
                Some(lane) => {
                    let what = format!(
                        "lanes of a warp name different barriers ({} and {})",
                        row[first], row[lane]
                    );
                    Err(fault(FindingKind::DivergentBarrier, what)).in_lane(lane)
                }
                None => Ok(row[first]),
            }
        };
        let id = uniform(barrier.id)?;
        let count = barrier.count.map(uniform).transpose()?;
        if id > 15 {
            return Err(fault(
                FindingKind::BadLaunch,
                format!("barrier {id}; there are 0 to 15"),
            ));
        }
        if let Some(count) = count.filter(|&count| count == 0 || count % 32 != 0) {
            return Err(fault(
                FindingKind::DivergentBarrier,
                format!("a barrier for {count} threads, which are not whole warps"),
            ));
        }
        Ok((id, count))
    }

    fn complete(&mut self, id: u32) {
        self.complete_with(id, None);
    }

    fn complete_with(&mut self, id: u32, last: Option<(usize, u32)>) {
        self.clock += 1;
        let time = self.clock;
        let warps = self.warps.len();
        let mut state = std::mem::take(&mut self.barriers[id as usize]);
        for &(w, ..) in &state.waiting {
            state.release.seen[w] = time;
        }
        for &(w, m, kind) in &state.waiting {
            let warp = &mut self.warps[w];
            warp.order.acquire(&state.release, warps);
            warp.order.barrier(time);
            let bit = |holds: bool| if holds { u32::MAX } else { 0 };
            match kind {
                BarrierKind::Popc { d, .. } => write(&mut warp.registers, m, d, &[state.holds; 32]),
                BarrierKind::All { d, .. } => {
                    warp.registers
                        .set_pred(d, m, bit(state.holds == state.voted))
                }
                BarrierKind::Any { d, .. } => warp.registers.set_pred(d, m, bit(state.holds > 0)),
                BarrierKind::Sync | BarrierKind::Arrive => {}
            }
            for fragment in &mut warp.fragments {
                if fragment.wait == Wait::Barrier(id)
                    && fragment.mask == m
                    && last.is_none_or(|(last, _)| last != w)
                {
                    *fragment = Fragment {
                        pc: fragment.pc + 1,
                        wait: Wait::Ready,
                        ..*fragment
                    };
                }
            }
        }
        // Results of a reduction count as defined.
        let waiting = std::mem::take(&mut state.waiting);
        for (w, m, kind) in waiting {
            let id = match kind {
                BarrierKind::Popc { d, .. } => {
                    crate::registers::register_id(crate::registers::BANK32, d)
                }
                BarrierKind::All { d, .. } | BarrierKind::Any { d, .. } => {
                    crate::registers::register_id(crate::registers::BANK_PRED, d)
                }
                _ => continue,
            };
            self.warps[w].registers.set_defined(id, m, m);
        }
    }

    /// No warp can go on, and not all have ended: why.
    pub fn stuck(&self) -> Finding {
        let mut waits: Vec<(usize, Fragment)> = Vec::new();
        for (w, warp) in self.warps.iter().enumerate() {
            waits.extend(warp.fragments.iter().map(|fragment| (w, *fragment)));
        }
        let ended: u32 = self
            .warps
            .iter()
            .map(|warp| (warp.all & !warp.live).count_ones())
            .sum();
        let is_barrier = |fragment: &Fragment| {
            matches!(self.program.code[fragment.pc as usize].op, Op::Barrier(_))
        };
        let lacks_bytes = |&&(w, fragment): &&(usize, Fragment)| {
            let lane = fragment.mask.trailing_zeros() as usize;
            match &self.program.code[fragment.pc as usize].op {
                Op::Mbarrier(op) => self.lacks_bytes(w, lane, op),
                _ => false,
            }
        };
        // A copy's bytes that never come are nobody else's fault.
        let Some(&(w, fragment)) = waits
            .iter()
            .find(lacks_bytes)
            .or(waits.iter().find(|(_, fragment)| is_barrier(fragment)))
            .or(waits.first())
        else {
            return Finding {
                kind: FindingKind::Deadlock,
                kernel: self.kernel.info.name.clone(),
                what: "threads wait, but none is found".into(),
                place: None,
            };
        };
        let here: u32 = waits
            .iter()
            .filter(|(_, other)| other.pc == fragment.pc)
            .map(|(_, f)| f.mask.count_ones())
            .sum();
        let elsewhere: u32 = waits
            .iter()
            .filter(|(_, other)| other.pc != fragment.pc)
            .map(|(_, f)| f.mask.count_ones())
            .sum();
        let other = waits.iter().find(|(_, other)| other.pc != fragment.pc);
        let mut what = match &self.program.code[fragment.pc as usize].op {
            Op::Mbarrier(op) => {
                let lane = fragment.mask.trailing_zeros() as usize;
                let waited = self.describe_mbarrier(w, lane, op);
                format!("{here} threads wait here for {waited}; {ended} have ended")
            }
            _ => format!("{here} threads wait here for others; {ended} have ended"),
        };
        if let Some((_, other)) = other {
            let at = self.describe_pc(u16::try_from(other.pc).unwrap_or(u16::MAX));
            what += &format!(", {elsewhere} wait elsewhere (some in {at})");
        }
        let barriers = waits
            .iter()
            .filter_map(|(_, fragment)| match fragment.wait {
                Wait::Barrier(id) => Some(id),
                _ => None,
            });
        let mut ids: Vec<u32> = barriers.collect();
        ids.sort_unstable();
        ids.dedup();
        let kind = if is_barrier(&fragment) && ids.len() <= 1 {
            FindingKind::DivergentBarrier
        } else {
            FindingKind::Deadlock
        };
        self.locate(
            w,
            fragment.pc,
            fragment.mask.trailing_zeros(),
            *fault(kind, what),
        )
    }
}
