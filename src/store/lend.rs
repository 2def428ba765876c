//! Slabs that outlive a borrow of the shard: a device copies rows into one while the next batch's are being lent. They are parts of the
//! mapped files, or of a ring from which the disk is written past the page cache.
//!
//! A disk is written to in whole blocks. A batch ends within one more often than not: what it has of its last block is kept and goes
//! in front of the next batch's rows. The blocks that activations share with the index tensors behind them are written through the mapping.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::error::{Error, Result};
use super::journal::TapLine;
use super::manifest::Xxh3;
use super::shard::ShardWriter;
use crate::sys::disk::{Disk, Tally};
use crate::sys::ring::{BLOCK, SlabRing};
use crate::sys::slab::{Memory, Slab};

/// One tap's share of a batch, as [`TapSlab`](super::TapSlab), and its own.
#[derive(Debug)]
pub struct LentSlab {
    /// The batch's rows among the tap's rows in this shard.
    pub rows: Range<usize>,
    pub activations: Slab,
    /// Of a top-K tap.
    pub index: Option<Slab>,
}

/// The ring that batches pass through on their way to a disk, and the thread that writes it.
#[derive(Debug)]
pub struct RingToDisk {
    slabs: Mutex<SlabRing>,
    disk: Disk,
}

impl RingToDisk {
    pub fn new(slabs: SlabRing, disk: Disk) -> RingToDisk {
        RingToDisk {
            slabs: Mutex::new(slabs),
            disk,
        }
    }

    /// How the disk is written to.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// `bytes` bytes; `None` if all room is taken by slabs that no write will free.
    fn take(&self, bytes: usize) -> Result<Option<Slab>> {
        loop {
            let left = self.disk.left();
            let mut slabs = self.slabs.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = slabs.take(bytes);
            drop(slabs);
            match taken.map_err(|e| Error::Plan(format!("no memory for a batch's rows: {e}")))? {
                None if left > 0 => self.disk.wait(left - 1),
                taken => return Ok(taken),
            }
        }
    }
}

/// What a shard has lent and has on its way to the disk.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// Up to which sample slabs were lent.
    until: usize,
    batches: VecDeque<LentBatch>,
    direct: Option<Direct>,
}

#[derive(Debug)]
struct LentBatch {
    samples: Range<usize>,
    /// What of each tap's first block comes before its rows; without a ring, nothing.
    heads: Vec<Slab>,
}

/// A batch on its way to the disk.
#[derive(Debug)]
struct Writing {
    samples: Range<usize>,
    sums: Vec<TapLine>,
    carry: Value,
    tally: Arc<Tally>,
}

/// A shard whose files are written from a ring. Its batches are in no journal, because the last block of one is not on the disk before the
/// next one's rows are: whoever resumes begins the shard anew.
#[derive(Debug)]
struct Direct {
    ring: Arc<RingToDisk>,
    files: Vec<Arc<File>>,
    /// Of each tap, the rows that do not fill a block yet.
    tails: Vec<Vec<u8>>,
    /// Oldest first.
    writing: VecDeque<Writing>,
}

impl ShardWriter {
    /// From here on, what is lent are slabs of the ring.
    ///
    /// # Errors
    /// The files cannot be opened for it.
    pub(super) fn write_from(&mut self, ring: &Arc<RingToDisk>) -> Result<()> {
        let open = |path: &std::path::PathBuf| {
            let file = ring.disk.path().open(path);
            file.map(Arc::new).map_err(|e| Error::write(path, 0, 0, e))
        };
        self.lent.direct = Some(Direct {
            ring: Arc::clone(ring),
            files: self.tap_paths.iter().map(open).collect::<Result<_>>()?,
            tails: vec![Vec::new(); self.maps.len()],
            writing: VecDeque::new(),
        });
        Ok(())
    }

    /// The mapped files, to be registered with a device.
    pub fn memories(&self) -> impl Iterator<Item = &Arc<Memory>> {
        self.maps.iter().map(|map| map.memory())
    }

    /// Lends slabs for all taps' rows of the samples that follow those lent last; give them back to
    /// [`take_back`](Self::take_back), in the order they were lent. `None` if there is no room before an earlier batch is given back.
    ///
    /// # Errors
    /// The samples are not those that follow, or the system has no memory left.
    pub fn lend(&mut self, samples: Range<usize>) -> Result<Option<Vec<LentSlab>>> {
        let next = self.lent.until.max(self.finished);
        if samples.start != next || samples.end <= next || samples.end > self.n_samples {
            return Err(Error::Plan(format!(
                "samples {samples:?} are lent out of turn: {next} of {} were",
                self.n_samples
            )));
        }
        let lent = match &self.lent.direct {
            Some(direct) => {
                let ring = Arc::clone(&direct.ring);
                self.lend_of(&ring, &samples)?
            }
            None => Some(self.lend_mapped(&samples)),
        };
        let Some((slabs, heads)) = lent else {
            return Ok(None);
        };
        self.lent.until = samples.end;
        self.lent.batches.push_back(LentBatch { samples, heads });
        Ok(Some(slabs))
    }

    fn lend_mapped(&mut self, samples: &Range<usize>) -> (Vec<LentSlab>, Vec<Slab>) {
        let taps = self.maps.iter_mut().zip(&self.layout.taps);
        let slabs = taps.map(|(map, layout)| LentSlab {
            rows: layout.row_starts[samples.start]..layout.row_starts[samples.end],
            activations: map.lend(layout.activations(samples.clone())),
            index: (layout.index_row_bytes > 0).then(|| map.lend(layout.index(samples.clone()))),
        });
        (slabs.collect(), Vec::new())
    }

    /// One slab of the ring, cut up: each tap's begins at a block, with room for what comes before its rows in it.
    fn lend_of(
        &self,
        ring: &RingToDisk,
        samples: &Range<usize>,
    ) -> Result<Option<(Vec<LentSlab>, Vec<Slab>)>> {
        let places: Vec<_> = self
            .layout
            .taps
            .iter()
            .map(|layout| {
                let rows = layout.activations(samples.clone());
                let head = rows.start % BLOCK;
                let index = layout.index(samples.clone()).len();
                (head, rows.len(), index)
            })
            .collect();
        let blocks = |bytes: usize| bytes.next_multiple_of(BLOCK);
        let sizes = places
            .iter()
            .map(|&(head, rows, index)| blocks(head + rows) + blocks(index));
        let Some(mut all) = ring.take(sizes.sum())? else {
            return Ok(None);
        };
        let (mut slabs, mut heads) = (Vec::new(), Vec::new());
        for (layout, (head, rows, index)) in self.layout.taps.iter().zip(places) {
            let mut part = all.split_to(blocks(head + rows));
            heads.push(part.split_to(head));
            let mut after = all.split_to(blocks(index));
            slabs.push(LentSlab {
                rows: layout.row_starts[samples.start]..layout.row_starts[samples.end],
                activations: part.split_to(rows),
                index: (layout.index_row_bytes > 0).then(|| after.split_to(index)),
            });
        }
        Ok(Some((slabs, heads)))
    }

    /// Takes the slabs of the oldest lent batch back, all rows written: [`finish_batch`](Self::finish_batch) for what was lent. From a
    /// ring they go to the disk, and the batch is finished once they are there.
    ///
    /// # Errors
    /// Another batch's slabs; and what the disk says of earlier ones.
    pub fn take_back(&mut self, slabs: Vec<(Slab, Option<Slab>)>) -> Result<()> {
        self.take_back_with(slabs, Value::Null)
    }

    /// As [`take_back`](Self::take_back), with the caller's account of the run so far, as
    /// [`finish_batch_with`](Self::finish_batch_with) takes it.
    ///
    /// # Errors
    /// As there.
    pub fn take_back_with(&mut self, slabs: Vec<(Slab, Option<Slab>)>, carry: Value) -> Result<()> {
        let batch = self.lent.batches.pop_front();
        let expected = batch.filter(|_| slabs.len() == self.maps.len());
        let Some(LentBatch { samples, heads }) = expected else {
            return Err(Error::Plan("slabs come back that were not lent".into()));
        };
        if self.lent.direct.is_none() {
            drop(slabs);
            return self.finish_batch_with(samples, carry);
        }
        self.send(samples, heads, slabs, carry)?;
        self.finish_written(false)
    }

    /// Sends a batch to the disk.
    fn send(
        &mut self,
        samples: Range<usize>,
        heads: Vec<Slab>,
        slabs: Vec<(Slab, Option<Slab>)>,
        carry: Value,
    ) -> Result<()> {
        let sums = self.sums_of(&samples, &slabs);
        let tally = Arc::new(Tally::default());
        for (tap, (mut head, (rows, index))) in heads.into_iter().zip(slabs).enumerate() {
            let layout = &self.layout.taps[tap];
            let (place, at) = (
                layout.activations(samples.clone()),
                layout.index(samples.clone()),
            );
            if let Some(index) = index {
                self.maps[tap].part_mut(at).copy_from_slice(&index);
            }
            let Some(direct) = &mut self.lent.direct else {
                continue;
            };
            let begin = place.start - head.len();
            if direct.tails[tap].len() != head.len() {
                // The rows before were another process's.
                direct.tails[tap] = self.maps[tap].part(begin..place.start).to_vec();
            }
            head.copy_from_slice(&direct.tails[tap]);
            let mut block = head
                .joined(rows)
                .map_err(|_| Error::Plan("slabs come back that were not lent".into()))?;
            let whole = block.len() / BLOCK * BLOCK;
            direct.tails[tap] = block[whole..].to_vec();
            if whole > 0 {
                let whole = block.split_to(whole);
                let file = &direct.files[tap];
                direct.ring.disk.write(file, begin as u64, whole, &tally);
            }
            if samples.end == self.n_samples {
                let tail = std::mem::take(&mut direct.tails[tap]);
                let end = place.end;
                self.maps[tap]
                    .part_mut(end - tail.len()..end)
                    .copy_from_slice(&tail);
            }
        }
        if let Some(direct) = &mut self.lent.direct {
            direct.writing.push_back(Writing {
                samples,
                sums,
                carry,
                tally,
            });
        }
        Ok(())
    }

    fn sums_of(&self, samples: &Range<usize>, slabs: &[(Slab, Option<Slab>)]) -> Vec<TapLine> {
        use rayon::prelude::*;
        let taps = slabs.par_iter().zip(&self.layout.taps);
        taps.map(|((rows, index), layout)| TapLine {
            rows: (layout.row_starts[samples.end] - layout.row_starts[samples.start]) as u64,
            activations: Xxh3::of(rows),
            index: index.as_ref().map(|index| Xxh3::of(index)),
        })
        .collect()
    }

    /// Finishes the batches that are on the disk; all, if it is to wait for them.
    pub(super) fn finish_written(&mut self, wait: bool) -> Result<()> {
        while let Some(direct) = &mut self.lent.direct
            && let Some(Writing { tally, .. }) = direct.writing.front()
            && (wait || tally.left() == 0)
        {
            let written = tally.wait(0);
            let path = self.tap_paths.first().cloned().unwrap_or_default();
            written.map_err(|e| Error::write(&path, 0, 0, e))?;
            if let Some(batch) = direct.writing.pop_front() {
                self.carry = batch.carry;
                self.add(batch.samples, batch.sums);
            }
        }
        Ok(())
    }
}
