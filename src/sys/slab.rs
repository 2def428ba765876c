//! Memory that others than its user hold on to: a device copies into it, a disk is written from it. A [`Memory`] stays mapped
//! while anyone has a share of it; a [`Slab`] is a part of it that one owner alone may touch, and needs no borrow to be safe, so
//! that a copy nobody waited for can never write to memory that became something else.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use memmap2::{MmapMut, MmapRaw};

/// A mapping at a place that does not change, of a file or of nothing.
pub struct Memory {
    /// What a device or a ring wants undone before the memory goes: dropped before `map`.
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
    map: MmapRaw,
    /// The parts that are slabs now: start to end.
    lent: Mutex<BTreeMap<usize, usize>>,
}

impl Memory {
    fn of(map: MmapRaw) -> Arc<Memory> {
        Arc::new(Memory {
            attached: OnceLock::new(),
            map,
            lent: Mutex::new(BTreeMap::new()),
        })
    }

    /// Where it begins.
    pub fn address(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps `guard` for as long as the memory is mapped: it is dropped after the last slab, before the mapping. Gives it back if
    /// there is one already.
    pub fn attach(
        &self,
        guard: Box<dyn Any + Send + Sync>,
    ) -> Result<(), Box<dyn Any + Send + Sync>> {
        self.attached.set(guard)
    }

    /// Whether there is a guard.
    pub fn is_attached(&self) -> bool {
        self.attached.get().is_some()
    }

    fn lent(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, usize>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether part of `range` is a slab.
    fn is_lent(&self, range: &Range<usize>) -> bool {
        let lent = self.lent();
        let last = lent.range(..range.end).next_back();
        last.is_some_and(|(_, &end)| end > range.start)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:p}", self.len(), self.address())
    }
}

/// The one owner of a [`Memory`], which lends its slabs.
#[derive(Debug)]
pub struct Lender {
    memory: Arc<Memory>,
}

impl Lender {
    /// `len` zero bytes of the process's own, page-aligned; at least one.
    ///
    /// # Errors
    /// The system has no memory left.
    pub fn anonymous(len: usize) -> io::Result<Lender> {
        Ok(Lender::of(MmapMut::map_anon(len.max(1))?.into()))
    }

    pub(super) fn of(map: MmapRaw) -> Lender {
        Lender {
            memory: Memory::of(map),
        }
    }

    pub(super) fn map(&self) -> &MmapRaw {
        &self.memory.map
    }

    /// The memory, to be registered somewhere.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Makes a slab of a part that is none.
    ///
    /// # Panics
    /// The part is not in the memory, or another slab has some of it.
    pub fn lend(&mut self, range: Range<usize>) -> Slab {
        self.check(&range);
        if !range.is_empty() {
            self.memory.lent().insert(range.start, range.end);
        }
        Slab {
            memory: Arc::clone(&self.memory),
            range,
        }
    }

    /// A part that no slab has anything of.
    ///
    /// # Panics
    /// One has, or the part is not in the memory.
    pub fn part(&self, range: Range<usize>) -> &[u8] {
        self.check(&range);
        // SAFETY: in bounds of the mapping, which lives as long as `self`; no slab has any of it, and none can be made while the
        // borrow of the only lender lasts.
        unsafe { std::slice::from_raw_parts(self.memory.address().add(range.start), range.len()) }
    }

    /// As [`part`](Self::part), to be written to.
    pub fn part_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.check(&range);
        // SAFETY: as above, and the borrow is the only one.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.address().add(range.start), range.len())
        }
    }

    /// Whether a slab has part of it.
    pub fn is_lent(&self, range: &Range<usize>) -> bool {
        self.memory.is_lent(range)
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.memory.len(),
            "bytes {range:?} of {}",
            self.memory.len()
        );
        assert!(!self.memory.is_lent(range), "bytes {range:?} are lent");
    }
}

/// A part of a [`Memory`] that is its owner's alone.
#[derive(Debug)]
pub struct Slab {
    memory: Arc<Memory>,
    range: Range<usize>,
}

impl Slab {
    /// `len` zero bytes of their own.
    ///
    /// # Errors
    /// The system has no memory left.
    pub fn anonymous(len: usize) -> io::Result<Slab> {
        Ok(Lender::anonymous(len)?.lend(0..len))
    }

    /// What it is a part of.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where in the memory it lies.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// One slab of this one and the one that follows it.
    ///
    /// # Errors
    /// `next` does not begin where this one ends: both, as they were.
    pub fn joined(mut self, mut next: Slab) -> Result<Slab, Box<(Slab, Slab)>> {
        if !Arc::ptr_eq(&self.memory, &next.memory) || self.range.end != next.range.start {
            return Err(Box::new((self, next)));
        }
        let mut lent = self.memory.lent();
        for part in [&self.range, &next.range] {
            if !part.is_empty() {
                lent.remove(&part.start);
            }
        }
        let all = self.range.start..next.range.end;
        if !all.is_empty() {
            lent.insert(all.start, all.end);
        }
        drop(lent);
        // Nothing is left of it to take back.
        next.range = next.range.end..next.range.end;
        self.range = all;
        Ok(self)
    }

    /// Splits off its first `n` bytes.
    ///
    /// # Panics
    /// It is shorter.
    pub fn split_to(&mut self, n: usize) -> Slab {
        assert!(n <= self.range.len(), "{n} of {} bytes", self.range.len());
        let at = self.range.start + n;
        let first = self.range.start..at;
        let mut lent = self.memory.lent();
        if !self.range.is_empty() {
            lent.remove(&self.range.start);
        }
        for part in [&first, &(at..self.range.end)] {
            if !part.is_empty() {
                lent.insert(part.start, part.end);
            }
        }
        drop(lent);
        self.range.start = at;
        Slab {
            memory: Arc::clone(&self.memory),
            range: first,
        }
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: in bounds of the mapping, which the share keeps; the part is this slab's alone.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.address().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.address().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if !self.range.is_empty() {
            self.memory.lent().remove(&self.range.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_apart_and_their_bytes_come_back_to_the_lender() {
        let mut lender = Lender::anonymous(100).unwrap();
        let mut a = lender.lend(0..10);
        let b = lender.lend(10..20);
        a.fill(7);
        assert!(b.iter().all(|&x| x == 0));
        assert_eq!(lender.part(20..100), [0; 80]);
        drop(a);
        assert_eq!(lender.part(0..10), [7; 10]);
        assert!(lender.lend(0..0).is_empty());
    }

    #[test]
    #[should_panic(expected = "are lent")]
    fn what_is_lent_is_not_lent_again() {
        let mut lender = Lender::anonymous(100).unwrap();
        let _a = lender.lend(8..20);
        let _ = lender.lend(19..21);
    }

    #[test]
    #[should_panic(expected = "are lent")]
    fn what_is_lent_is_not_read_by_the_lender() {
        let mut lender = Lender::anonymous(100).unwrap();
        let _a = lender.lend(8..20);
        let _ = lender.part(0..100);
    }

    #[test]
    fn a_slab_keeps_its_memory_and_what_is_attached_to_it() {
        struct Guard(Arc<Mutex<bool>>);
        impl Drop for Guard {
            fn drop(&mut self) {
                *self.0.lock().unwrap() = true;
            }
        }
        let gone = Arc::new(Mutex::new(false));
        let mut lender = Lender::anonymous(100).unwrap();
        assert!(
            lender
                .memory()
                .attach(Box::new(Guard(gone.clone())))
                .is_ok()
        );
        let mut slab = lender.lend(0..100);
        drop(lender);
        slab.fill(1);
        let first = slab.split_to(40);
        assert!(first[39] == 1 && slab.len() == 60);
        let middle = slab.split_to(1);
        let (first, slab) = *first.joined(slab).unwrap_err();
        let rest = first.joined(middle).unwrap().joined(slab).unwrap();
        assert_eq!((rest.len(), *gone.lock().unwrap()), (100, false));
        drop(rest);
        assert!(*gone.lock().unwrap());
    }
}
