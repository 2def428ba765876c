//! Edits: selected rows of an activation, changed in place. Each row's arithmetic depends on that row alone, and norms are
//! summed in row order, so that neither rows nor receipts depend on threads.

use rayon::prelude::*;

use super::precision::{Rounding, round_all};
use super::simd::vectorised;
use crate::backend::{Change, Edit, EditSpec};

/// L2 norms of what was edited, before and after.
type Norms = (f64, f64);

/// Edits rows of `act` `[.., width]`: `which` says, rising, the place of a row among the edit's and its place in `act`. What comes of
/// it is rounded.
pub(super) fn edit(
    edit: &mut Edit,
    act: &mut [f32],
    width: usize,
    which: &[(usize, usize)],
    rounding: Rounding,
) {
    let spec = &*edit.spec;
    let edited = spec.edited_width(width);
    let replacement = &edit.replacement[..];
    let mut rows: Vec<(usize, &mut [f32])> = Vec::with_capacity(which.len());
    let (mut rest, mut at) = (act, 0);
    for &(row, place) in which {
        let (here, after) = rest[(place - at) * width..].split_at_mut(width);
        rows.push((row, here));
        (rest, at) = (after, place + 1);
    }
    let norms: Vec<Norms> = rows
        .into_par_iter()
        .map(|(row, x)| {
            let new = replacement.get(row * edited..(row + 1) * edited);
            let norms = edit_row(spec, x, new.unwrap_or_default());
            round_all(rounding, x);
            norms
        })
        .collect();
    for (before, after) in norms {
        edit.receipt.row(before, after);
    }
}

impl EditSpec {
    fn edited_width(&self, width: usize) -> usize {
        if self.columns.is_empty() {
            width
        } else {
            self.columns.iter().map(|c| c.len()).sum()
        }
    }
}

fn edit_row(spec: &EditSpec, row: &mut [f32], new: &[f32]) -> Norms {
    match &spec.columns[..] {
        [] => change(&spec.change, row, new),
        [one] => change(&spec.change, &mut row[one.clone()], new),
        many => {
            let columns = || many.iter().flat_map(|c| c.clone());
            let mut x: Vec<f32> = columns().map(|c| row[c]).collect();
            let norms = change(&spec.change, &mut x, new);
            for (c, x) in columns().zip(x) {
                row[c] = x;
            }
            norms
        }
    }
}

/// Changes `x` and says its norms.
pub(super) fn change(change: &Change, x: &mut [f32], new: &[f32]) -> Norms {
    let before = norm(x);
    match change {
        Change::Add { v, c } => parts(x, v.len(), |x| add_scaled(x, v, *c)),
        Change::Scale(c) => x.iter_mut().for_each(|x| *x *= c),
        Change::Zero => x.fill(0.0),
        Change::Set(v) => parts(x, v.len(), |x| x.copy_from_slice(v)),
        Change::Replace => x.copy_from_slice(new),
        Change::ProjectOut(unit) => parts(x, unit.len(), |x| {
            let along = dot(x, unit);
            add_along(x, unit, -along);
        }),
        Change::Clamp { unit, lo, hi } => parts(x, unit.len(), |x| {
            let along = dot(x, unit);
            let held = along.clamp(f64::from(*lo), f64::from(*hi));
            if held != along {
                add_along(x, unit, held - along);
            }
        }),
    }
    (before, norm(x))
}

fn parts(x: &mut [f32], width: usize, f: impl Fn(&mut [f32])) {
    x.chunks_exact_mut(width).for_each(f);
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn dot(x: &[f32], unit: &[f64]) -> f64 {
    x.iter().zip(unit).map(|(&x, &v)| f64::from(x) * v).sum()
}

fn add_along(x: &mut [f32], unit: &[f64], by: f64) {
    for (x, &v) in x.iter_mut().zip(unit) {
        *x = (f64::from(*x) + by * v) as f32;
    }
}

vectorised! {
    fn add_scaled(x: &mut [f32], v: &[f32], c: f32) = add_scaled_loop;
}

#[inline(always)]
fn add_scaled_loop(x: &mut [f32], v: &[f32], c: f32) {
    for (x, &v) in x.iter_mut().zip(v) {
        *x = c.mul_add(v, *x);
    }
}

/// Edits of the attention pattern, shared by the tasks of one batch's attention.
pub(super) struct PatternEdits<'e> {
    edits: Vec<PatternEdit<'e>>,
}

struct PatternEdit<'e> {
    edit: &'e Edit,
    /// Place of each query head among those edited.
    head_place: Vec<Option<usize>>,
    /// Selected rows of each sample, counted in the sample; where they begin among the edit's rows; and where the sample's
    /// `[heads, rows, tokens]` begin in the replacement.
    samples: Vec<(Vec<u32>, usize, usize)>,
}

/// Squared norms of one row of one head: (edit, row of the edit, before, after).
pub(super) type HeadRow = (usize, usize, f64, f64);

impl<'e> PatternEdits<'e> {
    pub fn new(edits: &'e [Edit], samples: &[std::ops::Range<usize>], n_heads: usize) -> Self {
        let of = |edit: &'e Edit| {
            let kept = |h: usize| edit.spec.heads.iter().position(|&k| k == h);
            let all = edit.spec.heads.is_empty();
            let heads = if all { n_heads } else { edit.spec.heads.len() };
            let (mut row, mut at) = (0, 0);
            PatternEdit {
                edit,
                head_place: (0..n_heads)
                    .map(|h| if all { Some(h) } else { kept(h) })
                    .collect(),
                samples: samples
                    .iter()
                    .zip(&edit.per_sample)
                    .map(|(sample, &count)| {
                        let rows: Vec<u32> = edit.rows[row..row + count as usize]
                            .iter()
                            .map(|&r| r - sample.start as u32)
                            .collect();
                        let begins = (row, at);
                        row += rows.len();
                        at += heads * rows.len() * sample.len();
                        (rows, begins.0, begins.1)
                    })
                    .collect(),
            }
        };
        PatternEdits {
            edits: edits.iter().map(of).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Edits query `i`'s row of one head of a sample of `n` tokens: `pattern` holds the keys that it sees, from `first` on.
    /// (Keys that it does not see have no weight, and none can be given to them.)
    #[allow(clippy::too_many_arguments)]
    pub fn apply(
        &self,
        sample: usize,
        head: usize,
        i: usize,
        n: usize,
        first: usize,
        pattern: &mut [f32],
        done: &mut Vec<HeadRow>,
    ) {
        for (
            e,
            PatternEdit {
                edit,
                head_place,
                samples,
            },
        ) in self.edits.iter().enumerate()
        {
            let (rows, first_row, at) = &samples[sample];
            let (Some(head), Ok(row)) = (head_place[head], rows.binary_search(&(i as u32))) else {
                continue;
            };
            let new = match edit.spec.change {
                Change::Replace => {
                    let from = at + (head * rows.len() + row) * n + first;
                    &edit.replacement[from..from + pattern.len()]
                }
                _ => &[],
            };
            let (before, after) = change(&edit.spec.change, pattern, new);
            done.push((e, first_row + row, before * before, after * after));
        }
    }
}

/// Adds what the tasks did, in the tasks' order, to the edits' receipts: a row's norm is over the edited heads.
pub(super) fn receipts(edits: &mut [Edit], done: impl IntoIterator<Item = HeadRow>) {
    let mut squares: Vec<Vec<Norms>> = edits
        .iter()
        .map(|e| vec![(0.0, 0.0); e.rows.len()])
        .collect();
    for (edit, row, before, after) in done {
        let square = &mut squares[edit][row];
        *square = (square.0 + before, square.1 + after);
    }
    for (edit, squares) in edits.iter_mut().zip(squares) {
        for (before, after) in squares {
            edit.receipt.row(before.sqrt(), after.sqrt());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn done(
        spec: EditSpec,
        act: &[f32],
        width: usize,
        rows: &[u32],
    ) -> (Vec<f32>, crate::backend::Receipt) {
        let mut act = act.to_vec();
        let mut one = Edit::new(
            Arc::new(spec),
            rows.to_vec(),
            vec![rows.len() as u32],
            vec![],
        );
        let which: Vec<_> = rows.iter().map(|&r| r as usize).enumerate().collect();
        edit(&mut one, &mut act, width, &which, Rounding::Exact);
        (act, one.receipt)
    }

    fn whole(change: Change) -> EditSpec {
        EditSpec {
            columns: vec![],
            heads: vec![],
            change,
        }
    }

    #[test]
    fn an_edit_touches_its_rows_and_columns_only_and_says_their_norms() {
        let act: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let spec = EditSpec {
            columns: vec![0..1, 2..3],
            ..whole(Change::Scale(2.0))
        };
        let (out, receipt) = done(spec, &act, 4, &[0, 2]);
        assert_eq!(out, [0., 1., 4., 3., 4., 5., 6., 7., 16., 9., 20., 11.]);
        assert_eq!(receipt.rows, 2);
        assert_eq!(receipt.norm_before, 2.0 + (64.0_f64 + 100.0).sqrt());
        assert_eq!(receipt.norm_after, 2.0 * receipt.norm_before);
    }

    #[test]
    fn adding_rounds_once() {
        let (x, v, c) = (1.0_f32 + f32::EPSILON, 1.1_f32, -0.3_f32);
        let (out, _) = done(whole(Change::Add { v: [v].into(), c }), &[x], 1, &[0]);
        let exact = f64::from(x) + f64::from(c) * f64::from(v);
        assert_eq!(out[0], exact as f32);
    }

    #[test]
    fn a_vector_of_one_heads_width_changes_each_head_by_itself() {
        let unit: Arc<[f64]> = [0.6, 0.8].into();
        let (out, _) = done(
            whole(Change::ProjectOut(unit.clone())),
            &[3., 4., 5., 0.],
            4,
            &[0],
        );
        for head in out.chunks(2) {
            assert!(dot(head, &unit).abs() < 1e-6);
        }
        let clamp = Change::Clamp {
            unit: unit.clone(),
            lo: -1.0,
            hi: 4.0,
        };
        let (out, _) = done(whole(clamp), &[3., 4., 5., 0.], 4, &[0]);
        assert!((dot(&out[..2], &unit) - 4.0).abs() < 1e-6);
        assert_eq!(out[2..], [5., 0.], "3 is within, and nothing is rounded");
    }

    #[test]
    fn rows_that_come_in_pieces_take_their_own_replacements() {
        let mut act = vec![0.0; 8];
        let spec = Arc::new(whole(Change::Replace));
        let mut one = Edit::new(spec, vec![1, 4, 6], vec![3], vec![1., 2., 3., 4., 5., 6.]);
        edit(&mut one, &mut act[..4], 2, &[(0, 1)], Rounding::Exact);
        edit(
            &mut one,
            &mut act[4..],
            2,
            &[(1, 0), (2, 1)],
            Rounding::Exact,
        );
        assert_eq!(act, [0., 0., 1., 2., 3., 4., 5., 6.]);
    }
}
