//! What one edit does to one batch: which rows, what becomes of each, and the receipt.

use std::ops::Range;
use std::sync::Arc;

/// What becomes of what is edited of a row, x. A vector v may be shorter than x, and divide it: then each part of x of v's
/// width (each head) is changed by itself.
#[derive(Debug, Clone)]
pub enum Change {
    /// fma(c, v, x), rounded once.
    Add { v: Arc<[f32]>, c: f32 },
    /// c·x
    Scale(f32),
    /// 0
    Zero,
    /// v
    Set(Arc<[f32]>),
    /// The row that came with the batch ([`Edit::replacement`]).
    Replace,
    /// x − (x·v̂)v̂, in f64, rounded once; v̂ has norm 1.
    ProjectOut(Arc<[f64]>),
    /// x + (clamp(x·v̂, lo, hi) − x·v̂)v̂, in f64, rounded once; x untouched where x·v̂ is within.
    Clamp { unit: Arc<[f64]>, lo: f32, hi: f32 },
}

/// What does not change from batch to batch.
#[derive(Debug, Clone)]
pub struct EditSpec {
    /// Columns of the activation that are edited, as ranges in order; empty: all of them.
    pub columns: Vec<Range<usize>>,
    /// For the pattern: the query heads that are edited, in order; empty: all of them.
    pub heads: Vec<usize>,
    pub change: Change,
}

/// One edit's share of one batch.
#[derive(Debug)]
pub struct Edit {
    pub spec: Arc<EditSpec>,
    /// Rows of the batch, rising.
    pub rows: Vec<u32>,
    /// How many of `rows` belong to each sample of the batch, in order. Sums to `rows.len()`.
    pub per_sample: Vec<u32>,
    /// For [`Change::Replace`]: what each of `rows` becomes, `[rows, edited width]`; at the pattern each sample's
    /// `[heads, rows, tokens]` in turn. Else empty.
    pub replacement: Vec<f32>,
    /// What has been done so far.
    pub receipt: Receipt,
}

/// What an edit did. Norms are L2, of what was edited of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Receipt {
    pub rows: u64,
    /// Sums over the rows.
    pub norm_before: f64,
    pub norm_after: f64,
}

impl Receipt {
    /// Adds one row's norms.
    pub fn row(&mut self, before: f64, after: f64) {
        self.rows += 1;
        self.norm_before += before;
        self.norm_after += after;
    }

    /// Adds another batch's.
    pub fn add(&mut self, other: &Receipt) {
        self.rows += other.rows;
        self.norm_before += other.norm_before;
        self.norm_after += other.norm_after;
    }
}

impl Edit {
    /// An edit that has not begun.
    pub fn new(
        spec: Arc<EditSpec>,
        rows: Vec<u32>,
        per_sample: Vec<u32>,
        replacement: Vec<f32>,
    ) -> Self {
        debug_assert_eq!(per_sample.iter().sum::<u32>() as usize, rows.len());
        Edit {
            spec,
            rows,
            per_sample,
            replacement,
            receipt: Receipt::default(),
        }
    }

    /// What stands in an edit's place while it is at work.
    pub(super) fn nothing() -> Self {
        let change = Change::Zero;
        let spec = EditSpec {
            columns: Vec::new(),
            heads: Vec::new(),
            change,
        };
        Edit::new(Arc::new(spec), Vec::new(), Vec::new(), Vec::new())
    }
}
