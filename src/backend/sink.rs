//! Where one tap's rows of one batch go, and what is done to a row on its way.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::Receipt;
use crate::compact::{Code, Compact};
use crate::sys::slab::Slab;

/// What a row is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkDtype {
    F32,
    F16,
    BF16,
    /// 8 bits, with side rows: see [`crate::compact`].
    F8E4M3,
    /// As above.
    Int8,
}

impl SinkDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            SinkDtype::F32 => 4,
            SinkDtype::F16 | SinkDtype::BF16 => 2,
            SinkDtype::F8E4M3 | SinkDtype::Int8 => 1,
        }
    }

    /// What an 8-bit form stores numbers as.
    pub fn code(self) -> Option<Code> {
        match self {
            SinkDtype::F32 | SinkDtype::F16 | SinkDtype::BF16 => None,
            SinkDtype::F8E4M3 => Some(Code::F8E4M3),
            SinkDtype::Int8 => Some(Code::I8),
        }
    }
}

/// What becomes of a row (`[width]`, after the choice of heads) before it is stored.
#[derive(Debug, Clone)]
pub enum Reduce {
    /// The row as it is.
    None,
    /// One row per sample: the mean of its selected rows, summed in f64 in row order.
    Mean,
    /// Projection on directions, `[n_dirs, width]`: `[n_dirs]` per row.
    Dot(Arc<[f32]>),
    /// L2 norm: `[1]` per row.
    Norm,
    /// The largest `K` components, largest first, ties by the lower index: values `[K]` and indices `[K]`.
    TopK(usize),
    /// As `TopK`, of the row's log-softmax.
    LogProbTopK(usize),
}

/// What does not change from batch to batch.
#[derive(Debug, Clone)]
pub struct SinkSpec {
    /// Columns of the activation to keep, as ranges in order; empty: all of them.
    pub columns: Vec<std::ops::Range<usize>>,
    /// For ragged points: the query heads to keep, in order; empty: all of them.
    pub heads: Vec<usize>,
    pub reduce: Reduce,
    pub dtype: SinkDtype,
}

impl SinkSpec {
    /// The whole row, as f32.
    pub fn plain() -> Self {
        SinkSpec {
            columns: Vec::new(),
            heads: Vec::new(),
            reduce: Reduce::None,
            dtype: SinkDtype::F32,
        }
    }

    /// What it projects rows on, if it does.
    pub fn directions(&self) -> Option<&[f32]> {
        match &self.reduce {
            Reduce::Dot(directions) => Some(directions),
            _ => None,
        }
    }

    /// Width of a stored row, given the activation's.
    pub fn stored_width(&self, act_width: usize) -> usize {
        let width = self.width(act_width);
        match &self.reduce {
            Reduce::None | Reduce::Mean => width,
            Reduce::Dot(directions) => directions.len() / width,
            Reduce::Norm => 1,
            Reduce::TopK(k) | Reduce::LogProbTopK(k) => *k,
        }
    }

    /// The 8-bit form of stored rows, if they have one.
    pub fn compact(&self, act_width: usize) -> Option<Compact> {
        self.dtype.code().map(|code| Compact {
            code,
            width: self.stored_width(act_width),
        })
    }

    /// Width after the choice of columns, before the reduction.
    pub fn width(&self, act_width: usize) -> usize {
        if self.columns.is_empty() {
            act_width
        } else {
            self.columns.iter().map(|c| c.len()).sum()
        }
    }
}

/// Memory that a sink's rows go to.
#[derive(Debug)]
pub enum SinkBytes<'s> {
    /// The caller's, who waits for the batch.
    Lent(&'s mut [u8]),
    /// The sink's own: nobody need wait.
    Own(Slab),
}

impl Deref for SinkBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            SinkBytes::Lent(bytes) => bytes,
            SinkBytes::Own(slab) => slab,
        }
    }
}

impl DerefMut for SinkBytes<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            SinkBytes::Lent(bytes) => bytes,
            SinkBytes::Own(slab) => slab,
        }
    }
}

/// One tap's share of one batch: which rows, and the memory they go to.
#[derive(Debug)]
pub struct Sink<'s> {
    pub spec: Arc<SinkSpec>,
    /// Rows of the batch, rising.
    pub rows: Vec<u32>,
    /// How many of `rows` belong to each sample of the batch, in order. Sums to `rows.len()`.
    pub per_sample: Vec<u32>,
    /// The stored rows, `[rows or samples, …]`; for ragged points each sample's `[heads, rows, tokens]` in turn.
    pub bytes: SinkBytes<'s>,
    /// For `TopK` and `LogProbTopK`: the indices, I32 `[rows, K]`. For 8 bits: the side rows.
    pub index: Option<SinkBytes<'s>>,
    /// How far the sink is written (rows seen); `emit_rows` goes on from here.
    pub(super) seen: usize,
    /// Running sum of the sample whose mean is being taken.
    pub(super) sum: Vec<f64>,
}

impl<'s> Sink<'s> {
    /// A sink that nothing has been written to.
    pub fn new(
        spec: Arc<SinkSpec>,
        rows: Vec<u32>,
        per_sample: Vec<u32>,
        bytes: &'s mut [u8],
        index: Option<&'s mut [u8]>,
    ) -> Self {
        Sink::with(
            spec,
            rows,
            per_sample,
            SinkBytes::Lent(bytes),
            index.map(SinkBytes::Lent),
        )
    }

    fn with(
        spec: Arc<SinkSpec>,
        rows: Vec<u32>,
        per_sample: Vec<u32>,
        bytes: SinkBytes<'s>,
        index: Option<SinkBytes<'s>>,
    ) -> Self {
        debug_assert_eq!(per_sample.iter().sum::<u32>() as usize, rows.len());
        Sink {
            spec,
            rows,
            per_sample,
            bytes,
            index,
            seen: 0,
            sum: Vec::new(),
        }
    }

    /// True if an op may write into the sink's memory itself: every row of the batch, whole and as f32.
    pub fn is_direct(&self, batch_rows: usize) -> bool {
        self.takes_all_whole(batch_rows)
            && self.spec.dtype == SinkDtype::F32
            && self.bytes.as_ptr().addr().is_multiple_of(align_of::<f32>())
    }

    /// True if it takes every row of the batch, and of each every number, as its dtype rounds it.
    pub fn takes_all_whole(&self, batch_rows: usize) -> bool {
        self.rows.len() == batch_rows
            && self.spec.columns.is_empty()
            && self.index.is_none()
            && matches!(self.spec.reduce, Reduce::None)
    }
}

/// A batch whose rows are in the memory that its sinks owned, and what each edit did.
#[derive(Debug)]
pub struct Landed {
    /// Of each sink, its stored rows, and its indices.
    pub slabs: Vec<(Slab, Option<Slab>)>,
    pub receipts: Vec<Receipt>,
}

impl Landed {
    pub(super) fn new(sinks: Vec<Sink<'static>>, receipts: Vec<Receipt>) -> Self {
        let owned = |bytes| match bytes {
            SinkBytes::Own(slab) => Some(slab),
            SinkBytes::Lent(_) => None,
        };
        let slabs = |sink: Sink<'static>| Some((owned(sink.bytes)?, sink.index.and_then(owned)));
        Landed {
            slabs: sinks.into_iter().filter_map(slabs).collect(),
            receipts,
        }
    }
}

impl Sink<'static> {
    /// As [`new`](Self::new), with memory of its own.
    pub fn owning(
        spec: Arc<SinkSpec>,
        rows: Vec<u32>,
        per_sample: Vec<u32>,
        bytes: Slab,
        index: Option<Slab>,
    ) -> Self {
        Sink::with(
            spec,
            rows,
            per_sample,
            SinkBytes::Own(bytes),
            index.map(SinkBytes::Own),
        )
    }
}
