//! Rows for whoever wants them at once instead of from a store: each finished batch's, lent from the memory that the backend wrote
//! them to.

use std::ops::Range;

use serde_json::Value;

use super::lay_out::LaidOut;
use super::{Machine, Prepared, Result, Sample, SelectedSample};
use crate::backend::Landed;
use crate::store::{LentSlab, SampleRow, StoreDtype, TapInfo, TapRows, side_row_bytes, to_f32};
use crate::sys::ring::{BLOCK, SlabRing};

/// Takes the rows of a run as batches finish, in the order of the dataset.
///
/// A closure that takes a [`LiveBatch`] is one.
pub trait Consumer {
    /// Takes a batch. Its rows are lent: what is to stay is to be copied. `machine` made it; batches that follow may be under way on it.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn batch(&mut self, batch: &LiveBatch<'_>, machine: &mut dyn Machine) -> Result<()>;
}

impl<F: FnMut(&LiveBatch<'_>) -> Result<()>> Consumer for F {
    fn batch(&mut self, batch: &LiveBatch<'_>, _: &mut dyn Machine) -> Result<()> {
        self(batch)
    }
}

/// The rows of some consecutive samples.
#[derive(Debug)]
pub struct LiveBatch<'a> {
    /// What each sample is, tokens included.
    pub samples: Vec<&'a SampleRow>,
    /// One per tap of the job, in order.
    pub taps: Vec<LiveTap<'a>>,
    /// The run's account of itself, this batch included.
    pub(super) account: Value,
}

/// One tap's rows of a batch.
#[derive(Debug)]
pub struct LiveTap<'a> {
    /// The tap, and the shape and dtype of its rows.
    pub info: &'a TapInfo,
    /// Of each sample, the position and token of its rows.
    pub rows: Vec<TapRows>,
    /// The rows, `[rows, …row shape]`; of a ragged tap the samples' `[heads, rows, tokens]` end to end.
    pub bytes: &'a [u8],
    /// Of a top-K tap: which components the values are, I32 `[rows, K]`. Of rows in 8 bits: their side rows.
    pub index: Option<&'a [u8]>,
}

impl<'a> LiveBatch<'a> {
    /// What landed of a job's batch.
    pub(super) fn of(
        prepared: &'a Prepared,
        samples: &'a [(Sample, SelectedSample)],
        landed: &'a Landed,
        account: Value,
    ) -> Self {
        let mut rows: Vec<Vec<_>> = prepared.infos.iter().map(|_| Vec::new()).collect();
        for (sample, selected) in samples {
            for (of_tap, rows) in rows.iter_mut().zip(prepared.tap_rows(sample, selected)) {
                of_tap.push(rows);
            }
        }
        let taps = prepared.infos.iter().zip(rows).zip(&landed.slabs);
        LiveBatch {
            account,
            samples: samples.iter().map(|(sample, _)| &sample.row).collect(),
            taps: taps
                .map(|((info, rows), (bytes, index))| LiveTap {
                    info,
                    rows,
                    bytes,
                    index: index.as_deref(),
                })
                .collect(),
        }
    }
}

impl LiveTap<'_> {
    /// The rows as f32; `None` if they are of another dtype.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.as_slice(StoreDtype::F32)
    }

    /// The rows as bf16; `None` if they are of another dtype.
    pub fn as_bf16(&self) -> Option<&[half::bf16]> {
        self.as_slice(StoreDtype::BF16)
    }

    /// The rows as f16; `None` if they are of another dtype.
    pub fn as_f16(&self) -> Option<&[half::f16]> {
        self.as_slice(StoreDtype::F16)
    }

    fn as_slice<T: bytemuck::Pod>(&self, dtype: StoreDtype) -> Option<&[T]> {
        // Slabs begin at pages, so alignment is never what is wrong.
        let of = |bytes| bytemuck::try_cast_slice(bytes).ok();
        (self.info.dtype == dtype).then(|| of(self.bytes)).flatten()
    }

    /// The rows widened to f32, or read back from 8 bits (a copy).
    pub fn to_f32(&self) -> Vec<f32> {
        to_f32(self.info, self.bytes, self.index)
    }

    /// A top-K tap's component numbers.
    pub fn index(&self) -> Option<&[i32]> {
        self.index
            .filter(|_| self.info.top_k.is_some())
            .and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
    }

    /// Which of the tap's rows in this batch are the `sample`-th sample's.
    pub fn rows_of(&self, sample: usize) -> Range<usize> {
        let count = |rows: &[TapRows]| rows.iter().map(|r| r.positions.len()).sum();
        let first: usize = count(&self.rows[..sample]);
        first..first + self.rows[sample].positions.len()
    }
}

/// Cuts a batch's slabs out of the ring: `None` until an earlier batch's are dropped.
pub(super) fn lend(
    prepared: &Prepared,
    ring: &mut SlabRing,
    laid_out: &LaidOut,
    samples: Range<usize>,
) -> std::io::Result<Option<Vec<LentSlab>>> {
    let sizes: Vec<(usize, usize, usize)> = (0..prepared.infos.len())
        .map(|tap| {
            let (row, index_row) = prepared.row_bytes(tap);
            let (mut rows, mut bytes) = (0, 0);
            for (sample, selected) in &laid_out.planned.samples[samples.clone()] {
                let n = prepared.stored_rows(selected, tap);
                let wide = match prepared.infos[tap].ragged {
                    true => sample.row.tokens.len(),
                    false => 1,
                };
                bytes += n as usize * row * wide;
                rows += n as usize;
            }
            (rows, bytes, rows * index_row)
        })
        .collect();
    let blocks = |bytes: usize| bytes.next_multiple_of(BLOCK);
    let all = sizes
        .iter()
        .map(|&(_, rows, index)| blocks(rows) + blocks(index));
    let Some(mut all) = ring.take(all.sum())? else {
        return Ok(None);
    };
    let slabs = sizes.into_iter().zip(&prepared.infos);
    Ok(Some(
        slabs
            .map(|((rows, bytes, index), info)| {
                let mut at = all.split_to(blocks(bytes));
                let mut after = all.split_to(blocks(index));
                LentSlab {
                    rows: 0..rows,
                    activations: at.split_to(bytes),
                    index: (side_row_bytes(info) > 0).then(|| after.split_to(index)),
                }
            })
            .collect(),
    ))
}
