//! Blocks on several threads, with the answer that one thread would give.
//!
//! Each worker has a copy of device memory and runs its share of the blocks. Then the copies are merged, and what the
//! detector remembers tells whether two workers met: if they did, or if any of them found anything, all that the workers
//! did is thrown away and the blocks run one after another, which finds the first finding by the schedule's order.

use crate::device::Stats;
use crate::finding::Finding;
use crate::machine::Machine;
use crate::memory::Global;
use crate::program::{Inst, Op, Program, Space};

/// Warp instructions still to run below which a copy of memory does not pay.
const WORTHWHILE: u64 = 1 << 20;
const MAX_COPIED_BYTES: u64 = 1 << 28;

/// Whether blocks can be told apart from running alone: by atomics, strong accesses or the clock.
fn independent(program: &Program) -> bool {
    let shared = |space| space == Space::Shared;
    !program.code.iter().any(|Inst { op, .. }| match op {
        Op::Atom(atom) => !shared(atom.space),
        Op::Load(access) | Op::Store(access) => access.strong && !shared(access.space),
        Op::Clock { .. } => true,
        _ => false,
    })
}

impl Machine<'_> {
    /// Runs the blocks at `done..blocks` of the schedule on several threads; None where that is not worth it or not
    /// possible, and then nothing has changed.
    pub fn run_in_parallel(&mut self, done: u64, blocks: u64) -> Option<Stats> {
        let rest = blocks - done;
        let expected = self
            .stats
            .warp_instructions
            .checked_div(done)?
            .saturating_mul(rest);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let workers = threads.min(rest);
        if expected < WORTHWHILE
            || workers < 2
            || self.global.live > MAX_COPIED_BYTES
            || !independent(self.program)
        {
            return None;
        }
        let copies: Vec<Global> = (0..workers).map(|_| self.global.without_cells()).collect();
        let this = &*self;
        let results: Vec<Option<(Global, Result<Stats, Finding>)>> = std::thread::scope(|scope| {
            let spawn = |(worker, mut global): (u64, Global)| {
                scope.spawn(move || {
                    let positions = (done + worker..blocks).step_by(workers as usize);
                    let result = this.on(&mut global).run_positions(positions, blocks);
                    (global, result)
                })
            };
            let handles: Vec<_> = (0..workers).zip(copies).map(spawn).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().ok())
                .collect()
        });
        let mut merged = self.global.clone();
        let mut stats = self.stats;
        for result in results {
            let (global, Ok(part)) = result? else {
                return None;
            };
            if !merged.merge(global, self.first_tag) {
                return None;
            }
            stats.add(&part);
        }
        *self.global = merged;
        Some(stats)
    }
}
