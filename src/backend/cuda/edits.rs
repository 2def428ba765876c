//! Edits on the device, in place, and the norms that their receipts are made of.

use std::ops::Range;

use super::backend::View;
use super::driver::Driver;
use super::kernels::edit::{Edit as EditKernel, EditArgs, EditKind};
use super::kernels::segments;
use super::launch::{DevicePtr, LaunchError, launch};
use super::pass::Pass;
use crate::backend::{Act, Change, EditId, Receipt};

type Launched<T = ()> = Result<T, LaunchError>;

/// Squares of one launch's edited rows, before and after, written by a copy that the pass waits for.
pub(super) struct Norms {
    edit: EditId,
    /// Rows; each has `parts` squares, part by part.
    rows: usize,
    before: Vec<f64>,
    after: Vec<f64>,
}

/// What one launch does to a run of edited columns.
struct Part {
    kind: EditKind,
    columns: Vec<Range<usize>>,
    /// f32, as the kernel takes it; a row of it is for every edited row, or there is one for each.
    v: Vec<f32>,
    per_row: bool,
    c: f32,
    lo: f32,
    hi: f32,
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
            let mut norms = Norms {
                edit: id,
                rows: which.len(),
                before: vec![0.0; parts.len() * which.len()],
                after: vec![0.0; parts.len() * which.len()],
            };
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
            kind,
            columns: columns.to_vec(),
            v,
            per_row: false,
            c: 0.0,
            lo: 0.0,
            hi: 0.0,
        };
        let tiled = |v: &[f32]| v.iter().copied().cycle().take(width).collect::<Vec<f32>>();
        let along = |unit: &[f64], lo, hi| {
            let v: Vec<f32> = unit.iter().map(|&x| x as f32).collect();
            (0..width)
                .step_by(v.len())
                .map(|first| Part {
                    columns: part_of(columns, first..first + v.len()),
                    lo,
                    hi,
                    ..whole(EditKind::Clamp, v.clone())
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
                let v = which.iter().flat_map(|&(place, _)| row(place)).copied();
                vec![Part {
                    per_row: true,
                    ..whole(EditKind::Replace, v.collect())
                }]
            }
            Change::ProjectOut(unit) => along(unit, 0.0, 0.0),
            Change::Clamp { unit, lo, hi } => along(unit, *lo, *hi),
        }
    }

    fn edit_part(
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
            v => Some(self.upload(bytemuck::cast_slice(v))?),
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

/// What every edit of `edits` has done, once all norms are here.
pub(super) fn receipts(norms: &[Norms], edits: usize) -> Vec<Receipt> {
    let mut receipts = vec![Receipt::default(); edits];
    for norms in norms {
        let length = |squares: &[f64], row: usize| {
            let parts = squares.iter().skip(row).step_by(norms.rows);
            parts.sum::<f64>().sqrt()
        };
        for row in 0..norms.rows {
            receipts[norms.edit].row(length(&norms.before, row), length(&norms.after, row));
        }
    }
    receipts
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
