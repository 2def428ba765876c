//! Slabs that outlive a borrow of the shard: a device copies rows into one while the next batch's are being lent. They are parts of the
//! mapped files, or of a ring from which the disk is written past the page cache.
//!
//! A disk is written to in whole blocks. A batch ends within one more often than not: what it has of its last block is kept and goes
//! in front of the next batch's rows. Where the journal is to vouch for a batch, that block is written as well, padded, and written again
//! with the next. The blocks that activations share with the index tensors behind them are written through the mapping.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;

use super::error::{Error, Result};
use super::journal::{Line, TapLine};
use super::manifest::Xxh3;
use super::shard::{RELEASE_BYTES, ShardWriter, sides};
use crate::sys::disk::{Disk, Tally};
use crate::sys::ring::{BLOCK, SlabRing};
use crate::sys::slab::{Memory, Slab};

/// One tap's share of a batch, as [`TapSlab`](super::TapSlab), and its own.
#[derive(Debug)]
pub struct LentSlab {
    /// The batch's rows among the tap's rows in this shard.
    pub rows: Range<usize>,
    pub activations: Slab,
    /// Of a top-K tap, the components; of rows in 8 bits, their side rows.
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
    /// Whether its last blocks are on their way too.
    whole: bool,
}

/// A shard whose files are written from a ring.
#[derive(Debug)]
struct Direct {
    ring: Arc<RingToDisk>,
    files: Vec<Arc<File>>,
    /// Of each tap, the rows that do not fill a block yet.
    tails: Vec<Vec<u8>>,
    /// Oldest first.
    writing: VecDeque<Writing>,
    /// Samples that were sent.
    sent: usize,
    /// Bytes sent since last blocks were.
    since_tails: usize,
    /// The padded blocks that were sent last, until the next batch is.
    padded: Option<Arc<Tally>>,
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
            sent: self.finished,
            since_tails: 0,
            padded: None,
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
            None => Some(self.lend_mapped(&samples)?),
        };
        let Some((slabs, heads)) = lent else {
            return Ok(None);
        };
        self.lent.until = samples.end;
        self.lent.batches.push_back(LentBatch { samples, heads });
        Ok(Some(slabs))
    }

    fn lend_mapped(&mut self, samples: &Range<usize>) -> Result<(Vec<LentSlab>, Vec<Slab>)> {
        let taps = self.maps.iter_mut().zip(&self.layout.taps);
        let slabs = taps.map(|(map, layout)| {
            let rows = layout.rows_of(samples.clone());
            // Side rows that make several tensors are taken apart when they come back.
            let index = match layout.only_side(samples.clone()) {
                Some(bytes) => Some(map.lend(bytes)),
                None if layout.sides.is_empty() => None,
                None => Some(
                    Slab::anonymous((rows.len() * layout.side_row_bytes()).max(1)).map_err(
                        |e| Error::Plan(format!("no memory for what stands beside rows: {e}")),
                    )?,
                ),
            };
            Ok(LentSlab {
                activations: map.lend(layout.activations(samples.clone())),
                index,
                rows,
            })
        });
        Ok((slabs.collect::<Result<_>>()?, Vec::new()))
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
                let index = layout.rows_of(samples.clone()).len() * layout.side_row_bytes();
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
                index: (!layout.sides.is_empty()).then(|| after.split_to(index)),
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
            for (tap, (_, index)) in slabs.iter().enumerate() {
                let layout = &self.layout.taps[tap];
                if let Some(index) = index.as_ref().filter(|_| layout.sides.len() > 1) {
                    self.put_side_rows_of(tap, &samples, index);
                }
            }
            drop(slabs);
            return self.finish_batch_with(samples, carry);
        }
        self.send(samples, heads, slabs, carry)?;
        self.finish_written(false)
    }

    /// Writes the side rows of a batch, which may come with room to spare.
    fn put_side_rows_of(&mut self, tap: usize, samples: &Range<usize>, side_rows: &[u8]) {
        let layout = &self.layout.taps[tap];
        let rows = layout.rows_of(samples.clone());
        let bytes = rows.len() * layout.side_row_bytes();
        self.put_side_rows(tap, rows, &side_rows[..bytes]);
    }

    /// Sends a batch to the disk.
    fn send(
        &mut self,
        samples: Range<usize>,
        heads: Vec<Slab>,
        slabs: Vec<(Slab, Option<Slab>)>,
        carry: Value,
    ) -> Result<()> {
        for (tap, (_, index)) in slabs.iter().enumerate() {
            if let Some(index) = index {
                self.put_side_rows_of(tap, &samples, index);
            }
        }
        let sums = self.sums_of(&samples, &slabs);
        let tally = Arc::new(Tally::default());
        if let Some(padded) = self.lent.direct.as_mut().and_then(|d| d.padded.take()) {
            // The disk may take writes in any order, and this batch's rows belong into those blocks.
            padded.settle(0);
        }
        for (tap, (head, (rows, _))) in heads.into_iter().zip(slabs).enumerate() {
            self.send_rows(tap, &samples, head, rows, &tally)?;
        }
        let Some(direct) = &mut self.lent.direct else {
            return Ok(());
        };
        direct.sent = samples.end;
        let is_last = samples.end == self.n_samples;
        let whole = !is_last
            && (direct.since_tails >= RELEASE_BYTES
                || self.committed_at.elapsed() >= self.commit_every);
        direct.writing.push_back(Writing {
            samples,
            sums,
            carry,
            tally: Arc::clone(&tally),
            whole,
        });
        if is_last || whole {
            self.send_tails(&tally)?;
        }
        Ok(())
    }

    /// Sends one tap's rows of a batch, but for those that do not fill a block.
    fn send_rows(
        &mut self,
        tap: usize,
        samples: &Range<usize>,
        mut head: Slab,
        rows: Slab,
        tally: &Arc<Tally>,
    ) -> Result<()> {
        let Some(direct) = &mut self.lent.direct else {
            return Ok(());
        };
        let start = self.layout.taps[tap].activations(samples.clone()).start;
        let begin = start - head.len();
        if direct.tails[tap].len() != head.len() {
            // The rows before were another process's.
            direct.tails[tap] = self.maps[tap].part(begin..start).to_vec();
        }
        head.copy_from_slice(&direct.tails[tap]);
        direct.since_tails += rows.len();
        let mut block = head
            .joined(rows)
            .map_err(|_| Error::Plan("slabs come back that were not lent".into()))?;
        let whole = block.len() / BLOCK * BLOCK;
        direct.tails[tap] = block[whole..].to_vec();
        if whole > 0 {
            let whole = block.split_to(whole);
            let file = &direct.files[tap];
            direct.ring.disk.write(file, begin as u64, whole, tally);
        }
        Ok(())
    }

    /// Sends the rows of the batch sent last that do not fill a block, padded; those of a block that the index tensors have a share in go
    /// through the mapping.
    fn send_tails(&mut self, tally: &Arc<Tally>) -> Result<()> {
        let Some(direct) = &mut self.lent.direct else {
            return Ok(());
        };
        direct.since_tails = 0;
        let mut blocks = Slab::anonymous(self.maps.len() * BLOCK)
            .map_err(|e| Error::Plan(format!("no memory for the last blocks of a batch: {e}")))?;
        let taps = self.maps.iter_mut().zip(&self.layout.taps);
        for ((map, layout), (tail, file)) in taps.zip(direct.tails.iter().zip(&direct.files)) {
            let end = layout.activations(0..direct.sent).end;
            let begin = end - tail.len();
            if begin + BLOCK > layout.activations(0..self.n_samples).end {
                map.part_mut(begin..end).copy_from_slice(tail);
            } else if !tail.is_empty() {
                let mut block = blocks.split_to(BLOCK);
                block[..tail.len()].copy_from_slice(tail);
                direct.ring.disk.write(file, begin as u64, block, tally);
                direct.padded = Some(Arc::clone(tally));
            }
        }
        Ok(())
    }

    /// Waits until all that was sent is on the disk, last blocks included, so that the journal can vouch for it.
    pub(super) fn finish_sent(&mut self) -> Result<()> {
        let whole = |direct: &Direct| direct.sent == self.n_samples || direct.since_tails == 0;
        if self
            .lent
            .direct
            .as_ref()
            .is_some_and(|direct| !whole(direct))
        {
            let tally = Arc::new(Tally::default());
            self.send_tails(&tally)?;
            self.written(&tally)?;
        }
        self.finish_written(true)
    }

    fn sums_of(&self, samples: &Range<usize>, slabs: &[(Slab, Option<Slab>)]) -> Vec<TapLine> {
        use rayon::prelude::*;
        let taps = slabs.par_iter().zip(&self.layout.taps);
        taps.zip(&self.maps)
            .map(|(((rows, _), layout), map)| TapLine {
                rows: layout.rows_of(samples.clone()).len() as u64,
                activations: Xxh3::of(rows),
                sides: sides(map, layout, samples.clone()),
            })
            .collect()
    }

    /// Finishes the batches that are on the disk; all, if it is to wait for them.
    pub(super) fn finish_written(&mut self, wait: bool) -> Result<()> {
        while let Some(direct) = &mut self.lent.direct
            && let Some(Writing { tally, .. }) = direct.writing.front()
            && (wait || tally.left() == 0)
        {
            let tally = Arc::clone(tally);
            self.written(&tally)?;
            let oldest = self
                .lent
                .direct
                .as_mut()
                .and_then(|d| d.writing.pop_front());
            if let Some(batch) = oldest {
                self.finish_sent_batch(batch)?;
            }
        }
        Ok(())
    }

    /// Waits for some writes.
    fn written(&self, tally: &Tally) -> Result<()> {
        let path = self.tap_paths.first().cloned().unwrap_or_default();
        tally.wait(0).map_err(|e| Error::write(&path, 0, 0, e))
    }

    fn finish_sent_batch(&mut self, batch: Writing) -> Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.note(&Line {
                batch: self.batches.len(),
                samples: batch.samples.len() as u64,
                taps: batch.sums.clone(),
                carry: batch.carry.clone(),
            })?;
            // What comes before it is on the disk wholly: its last blocks were written with the batches after.
            if batch.whole {
                journal.commit()?;
                self.committed_at = Instant::now();
            }
        }
        self.carry = batch.carry;
        self.add(batch.samples, batch.sums);
        Ok(())
    }
}
