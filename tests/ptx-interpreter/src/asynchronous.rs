//! `cp.async`. The bytes are copied when the instruction is executed, and marked as pending: no one may touch them until
//! the thread that issued the copy has waited for it. Then they count as written by that thread at that moment, so that
//! other warps need a barrier after the wait.

use crate::access::{Failure, check_aligned, parts, resolve, settle};
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::memory::SHARED_START;
use crate::program::{AsyncCopy, Space};
use crate::race::Actor;
use crate::registers::LANES;
use crate::warp::lanes;

impl Machine<'_> {
    pub fn cp_async(&mut self, w: usize, pc: u32, m: u32, copy: &AsyncCopy) -> Outcome<()> {
        let registers = &self.warps[w].registers;
        let (to, from) = (resolve(registers, copy.to), resolve(registers, copy.from));
        let bytes = usize::from(copy.bytes);
        let counts = copy
            .from_bytes
            .map_or([u32::from(copy.bytes); LANES], |slot| {
                *registers.row32(slot)
            });
        let ignored = copy.ignore.map_or(0, |pred| registers.pred(pred));
        for lane in lanes(m) {
            check_aligned(to[lane], bytes).in_lane(lane)?;
            let count = if ignored >> lane & 1 != 0 {
                0
            } else {
                counts[lane] as usize
            };
            if count > bytes {
                let what = format!("takes {count} bytes from the source of a copy of {bytes}");
                return Err(fault(FindingKind::OutOfBounds, what)).in_lane(lane);
            }
            if count > 0 {
                check_aligned(from[lane], bytes).in_lane(lane)?;
            }
            let outcome = {
                parts!(self, w, pc, false => warp, view, actor);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                let mut value = 0u128;
                let mut done = 0;
                let mut read = Ok(());
                // The source may be any number of bytes; whole powers of two are read at a time.
                while done < count && read.is_ok() {
                    let step = 1 << (count - done).ilog2();
                    let (space, address) = settle(copy.from_space, from[lane] + done as u64);
                    let part = if space == Space::Shared {
                        view.load_shared(address, step, &actor)
                    } else {
                        view.load_global(address, step, &actor)
                    };
                    match part {
                        Ok(part) => value |= part << (8 * done),
                        Err(failure) => read = Err((failure, false)),
                    }
                    done += step;
                }
                let result = read.and_then(|()| {
                    let (_, address) = settle(Space::Shared, to[lane]);
                    view.store_shared(address, bytes, value, &actor)
                        .map_err(|failure| (failure, true))
                });
                if result.is_ok() {
                    let at = to[lane] as u32 - SHARED_START;
                    view.shared.region.pending.set(at as usize, bytes);
                    view.shared.region.has_pending = true;
                    warp.copies.issue(lane, at, copy.bytes);
                }
                result
            };
            if let Err((failure, writes)) = outcome {
                let bytes = if writes { bytes } else { count };
                return Err(self.explain(failure, lane, bytes, writes));
            }
        }
        self.stats.count_load(Space::Global, m, bytes);
        Ok(())
    }

    /// Waits until at most `groups` committed groups are left open, or for all copies whatever.
    pub fn cp_wait(&mut self, w: usize, pc: u32, m: u32, groups: Option<u32>) {
        for lane in lanes(m) {
            loop {
                let copies = &mut self.warps[w].copies;
                let done = match groups {
                    Some(allowed) => copies.next_done(lane, allowed),
                    None => copies.next_any(lane),
                };
                let Some(copy) = done else {
                    break;
                };
                let (at, bytes) = (copy.at as usize, usize::from(copy.bytes));
                self.shared.region.pending.unset(at, bytes);
                parts!(self, w, pc, false => _warp, view, actor);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                // No one could touch these bytes in the meantime, so this finds nothing; it moves the write's date.
                let value = view.shared.region.peek(at, bytes);
                let restamped: Result<(), Failure> =
                    view.store_shared(u64::from(copy.at + SHARED_START), bytes, value, &actor);
                debug_assert!(restamped.is_ok());
            }
        }
    }
}
