//! Ops that treat rows one by one, put off and then run together, block of rows by block of rows.
//!
//! A block's activations then stay in its core's cache from op to op, and the threads meet only where rows meet: at
//! attention, and at a tap that picks rows. What each op computes, and where to, is as if it had run at once.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::elementwise::{add, norm_rows, rope_rows, swiglu};
use super::emit::store_row;
use super::matmul::{Fused, Out, Product, Rows, blocks, linear, multiply_rows};
use super::packing::PackedMatrix;
use super::precision::{Precision, Rounding};
use crate::backend::SinkDtype;

/// Fewest rows per thread that are worth a block; fewer are multiplied op by op, each thread taking some of the columns.
const FEWEST_ROWS: usize = 32;

/// The memory of one activation during a batch: `rows` rows of `width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    at: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: a view is only read or written through `rows` and `rows_mut`, whose callers answer for it.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// # Safety
    /// `at` begins `rows · width` elements that stay where they are for as long as the view is used.
    pub unsafe fn new(at: *mut f32, rows: usize, width: usize) -> Self {
        View { at, rows, width }
    }

    pub fn all(&self) -> Range<usize> {
        0..self.rows
    }

    /// # Safety
    /// The memory is there, and nobody writes these rows while the slice lives.
    pub unsafe fn rows<'a>(&self, rows: Range<usize>) -> &'a [f32] {
        assert!(rows.end <= self.rows);
        // SAFETY: in bounds by the assert; the rest as the caller promises.
        unsafe {
            std::slice::from_raw_parts(
                self.at.add(rows.start * self.width),
                rows.len() * self.width,
            )
        }
    }

    /// # Safety
    /// The memory is there, and nobody else uses these rows while the slice lives.
    pub unsafe fn rows_mut<'a>(&self, rows: Range<usize>) -> &'a mut [f32] {
        assert!(rows.end <= self.rows);
        // SAFETY: in bounds by the assert; the rest as the caller promises.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.at.add(rows.start * self.width),
                rows.len() * self.width,
            )
        }
    }
}

/// The memory of a sink that takes every row of a batch, each in `stride` bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct SinkView {
    at: *mut u8,
    rows: usize,
    stride: usize,
    dtype: SinkDtype,
}

// SAFETY: as of a `View`.
unsafe impl Send for SinkView {}
// SAFETY: as above.
unsafe impl Sync for SinkView {}

impl SinkView {
    /// # Safety
    /// The memory stays where it is for as long as the view is used.
    pub unsafe fn new(bytes: &mut [u8], rows: usize, dtype: SinkDtype) -> Self {
        SinkView {
            at: bytes.as_mut_ptr(),
            rows,
            stride: bytes.len() / rows.max(1),
            dtype,
        }
    }

    /// # Safety
    /// The memory is there, and nobody else uses these rows meanwhile.
    unsafe fn store(&self, x: &[f32], rows: Range<usize>) {
        assert!(rows.end <= self.rows);
        // SAFETY: in bounds by the assert; the rest as the caller promises.
        let out = unsafe {
            let first = self.at.add(rows.start * self.stride);
            std::slice::from_raw_parts_mut(first, rows.len() * self.stride)
        };
        store_row(x, self.dtype, out);
    }
}

/// An op on rows. Its output is none of its inputs.
pub(super) enum RowOp {
    Norm {
        x: View,
        gain: Arc<[f32]>,
        scale: View,
        normalized: Option<View>,
        out: View,
    },
    Linear {
        x: View,
        w: Arc<PackedMatrix>,
        out: View,
    },
    Rope {
        x: View,
        out: View,
    },
    SwiGlu {
        gate: View,
        up: View,
        out: View,
    },
    Add {
        a: View,
        b: View,
        out: View,
        rounding: Rounding,
    },
    /// The tap of every row, as `to` stores it.
    Emit {
        x: View,
        to: SinkView,
    },
}

/// What ops need besides their rows.
pub(super) struct Constants<'a> {
    pub precision: Precision,
    pub eps: f32,
    pub head_dim: usize,
    pub positions: &'a [u32],
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// Runs the ops in order, over `rows` rows. Outputs among `dead` may be left unwritten: nothing but these ops reads them.
///
/// # Safety
/// The views' memory is there and nobody else uses it meanwhile; no op's output overlaps one of its inputs.
pub(super) unsafe fn run(ops: &[RowOp], rows: usize, constants: &Constants<'_>, dead: &[View]) {
    if rows < FEWEST_ROWS * rayon::current_num_threads() {
        for op in ops {
            // SAFETY: as the caller promises.
            unsafe { run_on_few_rows(op, rows, constants) };
        }
        return;
    }
    let (blocks, size) = blocks(constants.precision.tile(), rows);
    (0..blocks)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|block| {
            let rows = block * size..((block + 1) * size).min(rows);
            let mut rest = ops;
            while let Some(op) = rest.first() {
                // SAFETY: a task uses the rows of its own block alone; the rest as the caller promises.
                let done = unsafe {
                    match op {
                        RowOp::Linear { x, .. } => {
                            products(rest, *x, rows.clone(), dead, constants.precision)
                        }
                        _ => {
                            run_rowwise(op, rows.clone(), constants);
                            1
                        }
                    }
                };
                rest = &rest[done..];
            }
        });
}

/// Runs the products at the head of `ops` that read the same `x`, on these rows, with what follows on them; says how many ops that were.
///
/// # Safety
/// As [`run`], and these rows are this thread's.
unsafe fn products(
    ops: &[RowOp],
    x: View,
    rows: Range<usize>,
    dead: &[View],
    precision: Precision,
) -> usize {
    let mut fused = Vec::with_capacity(4);
    let mut rest = ops;
    // SAFETY: the rows are this thread's, as the caller promises.
    while let Some((next, taken)) = unsafe { fuse(rest, x, &rows, dead) } {
        fused.push(next);
        rest = &rest[taken..];
    }
    // SAFETY: x is not written by these ops, and their outputs are this thread's.
    unsafe {
        let from = Rows {
            data: x.rows(rows.clone()),
            stride: x.width,
        };
        multiply_rows(precision.tile(), from, rows.len(), x.width, &fused);
    }
    ops.len() - rest.len()
}

/// The product of `x` at the head of `ops`, and how many ops it takes with it.
///
/// # Safety
/// As [`products`].
unsafe fn fuse<'o>(
    ops: &'o [RowOp],
    x: View,
    rows: &Range<usize>,
    dead: &[View],
) -> Option<(Fused<'o>, usize)> {
    // SAFETY: the rows are this thread's, as the caller promises.
    let to = |view: &View| Out::new(unsafe { view.rows_mut(rows.clone()) }, view.width);
    let product = |op: &'o RowOp| match op {
        RowOp::Linear { x: its, w, out } if *its == x => Some((
            Product {
                w,
                first_k: 0,
                panels: 0..w.panels(),
                out: to(out),
                keep: !dead.contains(out),
            },
            *out,
        )),
        _ => None,
    };
    let (first, first_out) = product(ops.first()?)?;
    match ops.get(1..) {
        Some(
            [
                RowOp::Add {
                    a,
                    b,
                    out,
                    rounding,
                },
                ..,
            ],
        ) if *b == first_out && *a != first_out => {
            let a = Rows {
                // SAFETY: a is not written by these ops.
                data: unsafe { a.rows(rows.clone()) },
                stride: a.width,
            };
            let out = to(out);
            Some((
                Fused::Add {
                    product: first,
                    a,
                    out,
                    rounding: *rounding,
                },
                2,
            ))
        }
        Some([second, RowOp::SwiGlu { gate, up, out }, ..]) if *gate == first_out => {
            match product(second) {
                Some((second, second_out)) if *up == second_out => {
                    let (gate, up, out) = (first, second, to(out));
                    Some((Fused::SwiGlu { gate, up, out }, 3))
                }
                _ => Some((Fused::Plain(first), 1)),
            }
        }
        _ => Some((Fused::Plain(first), 1)),
    }
}

/// # Safety
/// As [`run`].
unsafe fn run_on_few_rows(op: &RowOp, rows: usize, constants: &Constants<'_>) {
    // SAFETY: as the caller promises.
    unsafe {
        match op {
            RowOp::Linear { x, w, out } => {
                let from = Rows {
                    data: x.rows(0..rows),
                    stride: x.width,
                };
                linear(rows, x.width, from, w, 0, out.rows_mut(0..rows), out.width);
            }
            _ => run_rowwise(op, 0..rows, constants),
        }
    }
}

/// Any op but a product, on these rows and this thread.
///
/// # Safety
/// As [`run`], and these rows are this thread's.
unsafe fn run_rowwise(op: &RowOp, rows: Range<usize>, constants: &Constants<'_>) {
    let r = || rows.clone();
    let rounding = constants.precision.rounding();
    // SAFETY: an op's output is none of its inputs, and the rows are this thread's, as the caller promises.
    unsafe {
        match op {
            RowOp::Norm {
                x,
                gain,
                scale,
                normalized,
                out,
            } => norm_rows(
                rounding,
                x.rows(r()),
                gain,
                constants.eps,
                scale.rows_mut(r()),
                normalized.map(|n| n.rows_mut(r())),
                out.rows_mut(r()),
            ),
            RowOp::Rope { x, out } => rope_rows(
                rounding,
                x.rows(r()),
                &constants.positions[r()],
                constants.cos,
                constants.sin,
                constants.head_dim,
                out.rows_mut(r()),
            ),
            RowOp::SwiGlu { gate, up, out } => {
                swiglu(rounding, gate.rows(r()), up.rows(r()), out.rows_mut(r()));
            }
            RowOp::Add {
                a,
                b,
                out,
                rounding,
            } => add(*rounding, a.rows(r()), b.rows(r()), out.rows_mut(r())),
            RowOp::Emit { x, to } => to.store(x.rows(r()), r()),
            RowOp::Linear { .. } => unreachable!("products are run by `linears` or `linear`"),
        }
    }
}
