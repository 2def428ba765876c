//! Edits on the device, in place, and the norms that their receipts are made of.

use std::collections::BTreeMap;
use std::ops::Range;

use super::backend::View;
use super::driver::Driver;
use super::kernels::edit::{Edit as EditKernel, EditArgs, EditKind};
use super::kernels::segments;
use super::launch::{DevicePtr, LaunchError, launch};
use super::pass::Pass;
use crate::backend::{Act, Change, EditId, Receipt};

type Launched<T = ()> = Result<T, LaunchError>;

/// Squares of some edited rows, before and after, written by a copy that the pass waits for.
pub(super) struct Norms {
    pub edit: EditId,
    /// Each row's place among the edit's.
    pub places: Vec<usize>,
    /// `[parts, rows]`: a row's parts are its heads, where each is edited by itself.
    pub before: Vec<f64>,
    pub after: Vec<f64>,
}

impl Norms {
    pub fn new(edit: EditId, places: Vec<usize>, parts: usize) -> Self {
        Norms {
            edit,
            before: vec![0.0; parts * places.len()],
            after: vec![0.0; parts * places.len()],
            places,
        }
    }
}

/// What one launch does to a run of edited columns.
pub(super) struct Part {
    pub kind: EditKind,
    pub columns: Vec<Range<usize>>,
    /// In the bytes that the kernel takes; one row for every edited row, or one for each.
    pub v: Vec<u8>,
    pub per_row: bool,
    pub c: f32,
    pub lo: f32,
    pub hi: f32,
}

impl Part {
    /// Of those columns, without numbers.
    pub fn new(kind: EditKind, columns: Vec<Range<usize>>) -> Self {
        Part {
            kind,
            columns,
            v: Vec::new(),
            per_row: false,
            c: 0.0,
            lo: 0.0,
            hi: 0.0,
        }
    }
}

fn bytes(v: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(v).to_vec()
}

impl<D: Driver> Pass<'_, '_, D> {
    /// Edits the rows whose batch index is in `rows` (all where `None`), which are then all that `act` holds.
    pub(super) fn edit_some(&mut self, act: Act, rows: Option<&[u32]>, id: EditId) -> Launched {
        self.move_home(act)?;
        let edit = &self.edits[id];
        let which: Vec<(usize, u32)> = match rows {
            None => edit.rows.iter().copied().enumerate().collect(),
            Some(rows) => rows
                .iter()
                .enumerate()
                .filter_map(|(place, r)| Some((edit.rows.binary_search(r).ok()?, place as u32)))
                .collect(),
        };
        if which.is_empty() {
            return Ok(());
        }
        let view = self.view(act);
        let columns = match &edit.spec.columns[..] {
            [] => vec![0..view.width],
            some => some.to_vec(),
        };
        let width: usize = columns.iter().map(ExactSizeIterator::len).sum();
        // A piece of replacement rows is small beside the ring.
        let at_once = (self.cuda.ring.size() / 16 / (width * 4)).max(1);
        for which in which.chunks(at_once) {
            let parts = self.parts(id, &columns, width, which);
            let list: Vec<u32> = which.iter().map(|&(_, row)| row).collect();
            let (list_piece, list_at) = self.upload(bytemuck::cast_slice(&list))?;
            let places = which.iter().map(|&(place, _)| place).collect();
            let mut norms = Norms::new(id, places, parts.len());
            let edited = parts.iter().enumerate().try_for_each(|(i, part)| {
                let span = i * which.len()..(i + 1) * which.len();
                let (before, after) = (&mut norms.before[span.clone()], &mut norms.after[span]);
                self.edit_part(view, list_at, part, before, after)
            });
            // Kept even where a launch failed: copies that are under way write to the vectors, which do not move on the heap.
            self.norms.push(norms);
            edited?;
            self.release(list_piece);
        }
        Ok(())
    }

    fn parts(
        &self,
        id: EditId,
        columns: &[Range<usize>],
        width: usize,
        which: &[(usize, u32)],
    ) -> Vec<Part> {
        let edit = &self.edits[id];
        let whole = |kind, v| Part {
            v,
            ..Part::new(kind, columns.to_vec())
        };
        let tiled = |v: &[f32]| bytes(&v.iter().copied().cycle().take(width).collect::<Vec<f32>>());
        let along = |unit: &[f64], lo, hi| {
            (0..width)
                .step_by(unit.len())
                .map(|first| Part {
                    columns: part_of(columns, first..first + unit.len()),
                    lo,
                    hi,
                    ..whole(EditKind::Clamp, bytemuck::cast_slice(unit).to_vec())
                })
                .collect()
        };
        match &edit.spec.change {
            Change::Add { v, c } => vec![Part {
                c: *c,
                ..whole(EditKind::Add, tiled(v))
            }],
            Change::Scale(c) => vec![Part {
                c: *c,
                ..whole(EditKind::Scale, Vec::new())
            }],
            Change::Zero => vec![whole(EditKind::Replace, Vec::new())],
            Change::Set(v) => vec![whole(EditKind::Replace, tiled(v))],
            Change::Replace => {
                let row = |place: usize| &edit.replacement[place * width..(place + 1) * width];
                let v: Vec<f32> = which
                    .iter()
                    .flat_map(|&(place, _)| row(place))
                    .copied()
                    .collect();
                vec![Part {
                    per_row: true,
                    ..whole(EditKind::Replace, bytes(&v))
                }]
            }
            Change::ProjectOut(unit) => along(unit, 0.0, 0.0),
            Change::Clamp { unit, lo, hi } => along(unit, *lo, *hi),
        }
    }

    /// Edits the listed rows of `view`; their squares go to `before` and `after`, which must stay where they are until the
    /// pass has waited.
    pub(super) fn edit_part(
        &mut self,
        view: View,
        list: DevicePtr,
        part: &Part,
        before: &mut [f64],
        after: &mut [f64],
    ) -> Launched {
        let n = before.len();
        let table = segments(&part.columns);
        let width: usize = part.columns.iter().map(ExactSizeIterator::len).sum();
        let (table_piece, segments) = self.upload(bytemuck::cast_slice(&table))?;
        let vector = match &part.v[..] {
            [] => None,
            v => Some(self.upload(v)?),
        };
        let (before_piece, before_at) = self.take(n * 8)?;
        let (after_piece, after_at) = self.take(n * 8)?;
        let args = EditArgs {
            x: view.at,
            rows: list,
            segments,
            v: vector.map_or(DevicePtr::NULL, |(_, at)| at),
            before: before_at,
            after: after_at,
            x_stride: view.stride as u64,
            v_stride: if part.per_row { width as u64 } else { 0 },
            selected: n as u32,
            segment_count: table.len() as u32,
            c: part.c,
            lo: part.lo,
            hi: part.hi,
            _pad: 0,
        };
        let kernel = EditKernel {
            kind: part.kind,
            dtype: view.dtype,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        self.release(table_piece);
        if let Some((piece, _)) = vector {
            self.release(piece);
        }
        for (piece, at, to) in [
            (before_piece, before_at, before),
            (after_piece, after_at, after),
        ] {
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            // SAFETY: the memory is `Norms`', whose vectors the pass keeps, unmoved on the heap, until the copy is done.
            unsafe { self.send(piece, at, to.as_mut_ptr(), to.len())? };
        }
        Ok(())
    }
}

/// What every edit of `edits` has done, once all norms are here. The parts of a row may have come in several pieces.
pub(super) fn receipts(norms: &[Norms], edits: usize) -> Vec<Receipt> {
    let mut squares: Vec<BTreeMap<usize, (f64, f64)>> = vec![BTreeMap::new(); edits];
    for norms in norms {
        let both = norms.before.iter().zip(&norms.after);
        for (&place, (before, after)) in norms.places.iter().cycle().zip(both) {
            let sum = squares[norms.edit].entry(place).or_default();
            *sum = (sum.0 + before, sum.1 + after);
        }
    }
    let of = |squares: BTreeMap<usize, (f64, f64)>| {
        let mut receipt = Receipt::default();
        for (before, after) in squares.into_values() {
            receipt.row(before.sqrt(), after.sqrt());
        }
        receipt
    };
    squares.into_iter().map(of).collect()
}

/// Columns `[part.start, part.end)` of the edited ones, as ranges of the row's.
fn part_of(columns: &[Range<usize>], part: Range<usize>) -> Vec<Range<usize>> {
    let mut before = 0;
    let mut found = Vec::new();
    for range in columns {
        let (first, end) = (part.start.max(before), part.end.min(before + range.len()));
        if first < end {
            found.push(range.start + first - before..range.start + end - before);
        }
        before += range.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_edited_columns_may_lie_in_several_ranges() {
        let columns = [4..8, 20..22, 30..40];
        assert_eq!(part_of(&columns, 0..4), [4..8]);
        assert_eq!(part_of(&columns, 2..8), [6..8, 20..22, 30..32]);
        assert_eq!(part_of(&columns, 12..16), [36..40]);
    }
}
