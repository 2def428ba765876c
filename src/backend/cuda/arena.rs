//! Device memory of the engine: one allocation, cut once into regions, and a ring for what lives for a moment.

use std::collections::VecDeque;

use super::driver::Fence;
use super::launch::DevicePtr;

/// Alignment of every region and of every piece of a ring: what vector accesses, tensor cores and copies like best.
const ALIGN: usize = 256;

/// Cuts regions off one allocation, or only adds their sizes up.
#[derive(Debug, Default)]
pub struct Cutter {
    base: DevicePtr,
    used: usize,
}

impl Cutter {
    /// Measures: what is cut has no address yet.
    pub fn measure() -> Cutter {
        Cutter::default()
    }

    /// Cuts from the allocation at `base`.
    pub fn cut_from(base: DevicePtr) -> Cutter {
        Cutter { base, used: 0 }
    }

    /// The next `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> DevicePtr {
        let at = self.base.offset(self.used);
        self.used += bytes.next_multiple_of(ALIGN);
        at
    }

    /// Bytes cut so far.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Why a ring has no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Its oldest piece is free once this fence is reached: wait, [`pop`](Ring::pop), try again.
    Until(Fence),
    /// Its oldest piece is in use, and no fence says until when.
    InUse,
    /// The ring is smaller than what is asked for.
    TooSmall,
}

/// Memory handed out in order and given back in order.
#[derive(Debug)]
pub struct Ring {
    base: DevicePtr,
    size: usize,
    /// Where the next piece begins.
    head: usize,
    pieces: VecDeque<Piece>,
    /// Number of the first of `pieces`.
    first: u64,
}

/// The number of a piece that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceId(u64);

#[derive(Debug)]
struct Piece {
    at: usize,
    until: Option<Fence>,
    /// Read or written by launches yet to come.
    held: bool,
}

impl Ring {
    pub fn new(base: DevicePtr, size: usize) -> Ring {
        Ring {
            base,
            size,
            head: 0,
            pieces: VecDeque::new(),
            first: 0,
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// The next `bytes` bytes, held.
    pub fn take(&mut self, bytes: usize) -> Result<(PieceId, DevicePtr), Full> {
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        if bytes > self.size {
            return Err(Full::TooSmall);
        }
        let Some(at) = self.room(bytes) else {
            return Err(match self.pieces.front() {
                Some(piece) if !piece.held => Full::Until(piece.until.unwrap_or(Fence(0))),
                _ => Full::InUse,
            });
        };
        self.head = at + bytes;
        self.pieces.push_back(Piece {
            at,
            until: None,
            held: true,
        });
        let id = PieceId(self.first + self.pieces.len() as u64 - 1);
        Ok((id, self.base.offset(at)))
    }

    /// Where `bytes` bytes fit between the newest piece and the oldest.
    fn room(&self, bytes: usize) -> Option<usize> {
        let Some(oldest) = self.pieces.front() else {
            return Some(0);
        };
        if oldest.at < self.head {
            if self.head + bytes <= self.size {
                return Some(self.head);
            }
            // Around the end, which stays unused this time.
            return (bytes <= oldest.at).then_some(0);
        }
        (self.head + bytes <= oldest.at).then_some(self.head)
    }

    /// What the piece held is wanted until the fence.
    pub fn until(&mut self, id: PieceId, fence: Fence) {
        if let Some(piece) = self.piece(id) {
            piece.until = piece.until.max(Some(fence));
        }
    }

    /// No launch from here on touches the piece.
    pub fn release(&mut self, id: PieceId) {
        if let Some(piece) = self.piece(id) {
            piece.held = false;
        }
    }

    fn piece(&mut self, id: PieceId) -> Option<&mut Piece> {
        let place = id.0.checked_sub(self.first)?;
        self.pieces.get_mut(place as usize)
    }

    /// Gives back the oldest pieces that are not held and whose fences are at most `reached`; a piece without a fence has
    /// none to wait for.
    pub fn pop(&mut self, reached: Fence) {
        while let Some(piece) = self.pieces.front()
            && !piece.held
            && piece.until.is_none_or(|fence| fence <= reached)
        {
            self.pieces.pop_front();
            self.first += 1;
        }
    }

    /// Gives back every piece: nothing uses any.
    pub fn clear(&mut self) {
        self.first += self.pieces.len() as u64;
        self.pieces.clear();
    }

    /// The oldest piece, if it is held.
    pub fn oldest_held(&self) -> Option<PieceId> {
        let oldest = self.pieces.front()?;
        oldest.held.then_some(PieceId(self.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn regions_follow_each_other_aligned_and_measuring_counts_what_cutting_takes() {
        let sizes = [1, 256, 257, 0, 1000];
        let (mut measured, mut cut) = (Cutter::measure(), Cutter::cut_from(DevicePtr(4096)));
        let places: Vec<u64> = sizes
            .iter()
            .map(|&bytes| {
                measured.take(bytes);
                cut.take(bytes).0
            })
            .collect();
        assert_eq!(places, [4096, 4352, 4608, 5120, 5120]);
        assert_eq!(measured.used(), cut.used());
    }

    #[test]
    fn a_full_ring_says_what_it_waits_for() {
        let mut ring = Ring::new(DevicePtr(0), 1024);
        assert_eq!(ring.take(2000), Err(Full::TooSmall));
        let (first, _) = ring.take(512).unwrap();
        let (second, _) = ring.take(512).unwrap();
        assert_eq!(ring.take(1), Err(Full::InUse));
        ring.until(first, Fence(3));
        assert_eq!(ring.take(1), Err(Full::InUse), "held all the same");
        ring.release(first);
        assert_eq!(ring.take(1), Err(Full::Until(Fence(3))));
        ring.pop(Fence(2));
        assert_eq!(ring.take(1), Err(Full::Until(Fence(3))));
        ring.pop(Fence(3));
        assert_eq!(ring.take(512).unwrap().1, DevicePtr(0));
        assert_eq!(ring.oldest_held(), Some(second));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_come_back(sizes in prop::collection::vec(0_usize..900, 1..60), keep in 0_usize..4) {
            let mut ring = Ring::new(DevicePtr(1 << 20), 4096);
            let mut live: VecDeque<(PieceId, u64, u64)> = VecDeque::new();
            for (i, bytes) in sizes.into_iter().enumerate() {
                let (id, at) = loop {
                    match ring.take(bytes) {
                        Ok(piece) => break piece,
                        Err(Full::InUse) => {
                            let (oldest, ..) = live.pop_front().unwrap();
                            ring.release(oldest);
                            ring.until(oldest, Fence(i as u64));
                        }
                        Err(Full::Until(fence)) => ring.pop(fence),
                        Err(Full::TooSmall) => unreachable!(),
                    }
                };
                let (from, to) = (at.0, at.0 + bytes as u64);
                prop_assert!(from >= 1 << 20 && to <= (1 << 20) + 4096);
                for &(_, a, b) in &live {
                    prop_assert!(to <= a || b <= from, "{from}..{to} over {a}..{b}");
                }
                live.push_back((id, from, to));
                while live.len() > keep {
                    let (oldest, ..) = live.pop_front().unwrap();
                    ring.release(oldest);
                    ring.until(oldest, Fence(i as u64));
                }
            }
            for (id, ..) in live {
                ring.release(id);
            }
            ring.pop(Fence(u64::MAX));
            prop_assert!(ring.pieces.is_empty());
        }
    }
}
