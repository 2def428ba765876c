//! Slabs cut one after another out of one memory, around and around: made once, touched once, and registered with a device or a disk
//! once, instead of fresh memory for every batch.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::slab::{Lender, Memory, Slab};

/// Slabs begin at multiples of this: what direct I/O asks for.
pub const BLOCK: usize = 4096;

/// The memory, and what of it is in use.
#[derive(Debug)]
pub struct SlabRing {
    lender: Lender,
    /// Where the next slab begins.
    head: usize,
    /// What was taken and may still be in use, oldest first.
    taken: VecDeque<Range<usize>>,
    oversize: u64,
}

impl SlabRing {
    /// A ring of `bytes` bytes, every page of it touched.
    ///
    /// # Errors
    /// The system has no memory left.
    pub fn new(bytes: usize) -> io::Result<SlabRing> {
        let mut ring = SlabRing::untouched(bytes)?;
        let all = 0..ring.lender.memory().len();
        ring.lender.part_mut(all).fill(0);
        Ok(ring)
    }

    /// As [`new`](Self::new); a page takes no memory before a slab that has it is written to.
    ///
    /// # Errors
    /// As there.
    pub fn untouched(bytes: usize) -> io::Result<SlabRing> {
        let lender = Lender::anonymous(bytes.next_multiple_of(BLOCK))?;
        // A hint: fewer, larger pages are quicker to come by.
        let _ = lender.map().advise(memmap2::Advice::HugePage);
        Ok(SlabRing {
            lender,
            head: 0,
            taken: VecDeque::new(),
            oversize: 0,
        })
    }

    /// What the slabs are parts of.
    pub fn memory(&self) -> &Arc<Memory> {
        self.lender.memory()
    }

    /// The next `bytes` bytes; `None` until an older slab is dropped. What is larger than the whole ring gets memory of its own.
    ///
    /// # Errors
    /// The system has no memory left.
    pub fn take(&mut self, bytes: usize) -> io::Result<Option<Slab>> {
        if bytes > self.lender.memory().len() {
            self.oversize += 1;
            return Slab::anonymous(bytes).map(Some);
        }
        while let Some(oldest) = self.taken.front()
            && !self.lender.is_lent(oldest)
        {
            self.taken.pop_front();
        }
        let Some(at) = self.room(bytes.next_multiple_of(BLOCK)) else {
            return Ok(None);
        };
        self.head = at + bytes.next_multiple_of(BLOCK);
        if bytes > 0 {
            self.taken.push_back(at..at + bytes);
        }
        Ok(Some(self.lender.lend(at..at + bytes)))
    }

    /// Slabs that were larger than the ring.
    pub fn oversize(&self) -> u64 {
        self.oversize
    }

    /// Where `bytes` bytes fit between the newest slab and the oldest: at the start if they do, so that small slabs use few pages.
    fn room(&self, bytes: usize) -> Option<usize> {
        let size = self.lender.memory().len();
        let Some(oldest) = self.taken.front() else {
            return Some(0);
        };
        if oldest.start < self.head {
            if bytes <= oldest.start {
                return Some(0);
            }
            return (self.head + bytes <= size).then_some(self.head);
        }
        (self.head + bytes <= oldest.start).then_some(self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_follow_each_other_and_room_comes_back_when_the_oldest_goes() {
        let mut ring = SlabRing::new(4 * BLOCK).unwrap();
        let a = ring.take(BLOCK + 1).unwrap().unwrap();
        let b = ring.take(BLOCK).unwrap().unwrap();
        assert_eq!((a.range(), b.range()), (0..BLOCK + 1, 2 * BLOCK..3 * BLOCK));
        assert!(ring.take(2 * BLOCK).unwrap().is_none());
        drop(b);
        assert!(
            ring.take(2 * BLOCK).unwrap().is_none(),
            "the oldest is in use"
        );
        drop(a);
        let c = ring.take(4 * BLOCK).unwrap().unwrap();
        assert_eq!(c.range(), 0..4 * BLOCK);
        assert!(ring.take(1).unwrap().is_none());
        assert!(ring.take(0).unwrap().is_some(), "nothing takes no room");
        assert_eq!(ring.oversize(), 0);
        assert_eq!(
            ring.take(4 * BLOCK + 1).unwrap().unwrap().len(),
            4 * BLOCK + 1
        );
        assert_eq!(ring.oversize(), 1);
    }
}
