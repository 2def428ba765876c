//! Which `cp.async` a thread has issued and not yet waited for.

use std::collections::VecDeque;

use crate::registers::LANES;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    /// Offset in shared memory.
    pub at: u32,
    pub bytes: u8,
    group: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    lanes: [VecDeque<Copy>; LANES],
    /// The group that the next copy of a lane will belong to.
    group: [u32; LANES],
}

impl Copies {
    pub fn clear(&mut self) {
        for lane in &mut self.lanes {
            lane.clear();
        }
        self.group = [0; LANES];
    }

    pub fn issue(&mut self, lane: usize, at: u32, bytes: u8) {
        self.lanes[lane].push_back(Copy {
            at,
            bytes,
            group: self.group[lane],
        });
    }

    pub fn commit(&mut self, lane: usize) {
        self.group[lane] += 1;
    }

    /// The next copy that is done once at most `allowed` of the committed groups are left open.
    pub fn next_done(&mut self, lane: usize, allowed: u32) -> Option<Copy> {
        let front = self.lanes[lane].front()?;
        // Groups below `group` are committed.
        if front.group < self.group[lane].saturating_sub(allowed) {
            self.lanes[lane].pop_front()
        } else {
            None
        }
    }

    /// Any copy, committed or not.
    pub fn next_any(&mut self, lane: usize) -> Option<Copy> {
        self.lanes[lane].pop_front()
    }
}
