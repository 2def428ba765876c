//! The study's forward passes: rows of hook points at chosen positions, logits after the last token, and the same for runs that are
//! steered at one layer. Samples are packed into batches; rows land where they stay, without a copy between.

use std::sync::Arc;

use super::{Result, Study};
use crate::backend::{Batch, Change, Edit, EditSpec, Sink, SinkSpec};
use crate::engine::Plan;
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// A direction that is added to the residual stream at every position.
#[derive(Debug, Clone, Copy)]
pub struct Steer<'a> {
    /// Added to `blocks.{layer}.hook_resid_post`.
    pub layer: usize,
    /// `[d]`
    pub direction: &'a [f32],
    pub c: f32,
}

/// Rows at the last position of some token sequences.
#[derive(Debug)]
pub struct LastRows {
    /// Of each hook point, the width of its rows.
    widths: Vec<usize>,
    /// Of each hook point, `[runs' positions, width]`.
    rows: Vec<Vec<f32>>,
    /// Of each sequence, which of these is its.
    place: Vec<usize>,
}

impl LastRows {
    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.place.len()
    }

    /// The row of hook point `point`, counted as asked for, of a sequence.
    pub fn row(&self, point: usize, sequence: usize) -> &[f32] {
        let width = self.widths[point];
        &self.rows[point][self.place[sequence] * width..][..width]
    }

    /// A hook point's rows of these sequences, `[n, width]`.
    pub fn gather(&self, point: usize, sequences: impl Iterator<Item = usize>) -> Vec<f32> {
        sequences
            .flat_map(|sequence| self.row(point, sequence).iter().copied())
            .collect()
    }
}

impl Study<'_> {
    /// Rows of hook points (not ragged ones) at the last position of each sequence. A sequence that another one begins with is not run
    /// by itself: what a position holds does not depend on what follows.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn last_rows(&self, points: &[HookPoint], sequences: &[&[u32]]) -> Result<LastRows> {
        let (runs, ends) = share_beginnings(sequences);
        let tokens: Vec<&[u32]> = runs.iter().map(|run| sequences[run.longest]).collect();
        let positions: Vec<Vec<u32>> = runs
            .iter()
            .map(|run| run.ends.iter().map(|&end| end - 1).collect())
            .collect();
        let mut first = 0;
        let firsts: Vec<usize> = positions
            .iter()
            .map(|positions| {
                first += positions.len();
                first - positions.len()
            })
            .collect();
        Ok(LastRows {
            widths: points.iter().map(|&point| self.width(point)).collect(),
            rows: self.rows(points, &tokens, &positions, None)?,
            place: ends.iter().map(|&(run, end)| firsts[run] + end).collect(),
        })
    }

    /// Rows of hook points (not ragged ones) at these positions, rising, of each sequence: per point `[positions of all, width]`.
    /// With `steer`, of the run that is steered: at the layer itself, after the addition.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn rows(
        &self,
        points: &[HookPoint],
        sequences: &[&[u32]],
        positions: &[Vec<u32>],
        steer: Option<Steer<'_>>,
    ) -> Result<Vec<Vec<f32>>> {
        let taps: Vec<Tap> = points.iter().map(|&point| tap(point)).collect();
        let steered = steer.map(|steer| HookPoint {
            site: Site::ResidPost,
            layer: steer.layer,
        });
        let plan = Plan::new(&taps).with_edits(steered, false);
        let spec = steer.map(add);
        let all: usize = positions.iter().map(Vec::len).sum();
        let widths: Vec<usize> = points.iter().map(|&point| self.width(point)).collect();
        let mut memory: Vec<Vec<f32>> = widths.iter().map(|w| vec![0.0; all * w]).collect();
        let mut rest: Vec<&mut [f32]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
        for range in self.batches(sequences) {
            let batch = Batch::pack(sequences[range.clone()].iter().copied());
            let edits = spec.as_ref().map(|spec| everywhere(spec, &batch));
            let (rows, per_sample) = rows_of(&batch, &positions[range]);
            let sinks = rest.iter_mut().zip(&widths).map(|(rest, width)| {
                let (here, after) = std::mem::take(rest).split_at_mut(rows.len() * width);
                *rest = after;
                sink(rows.clone(), per_sample.clone(), here)
            });
            let sinks: Vec<Sink<'_>> = sinks.collect();
            let edits: Vec<Edit> = edits.into_iter().collect();
            let n_layers = self.prepared().dims.n_layers;
            self.machine().run(&batch, sinks, edits, n_layers, &plan)?;
        }
        Ok(memory)
    }

    /// Logits after the last token of each sequence, `[sequences, V]`.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn logits(&self, sequences: &[&[u32]], steer: Option<Steer<'_>>) -> Result<Vec<f32>> {
        let last: Vec<Vec<u32>> = sequences.iter().map(|s| vec![s.len() as u32 - 1]).collect();
        let mut rows = self.rows(&[point(Site::Logits, 0)], sequences, &last, steer)?;
        Ok(rows.swap_remove(0))
    }

    /// The width of a hook point's rows.
    pub fn width(&self, point: HookPoint) -> usize {
        tap(point).row_shape(&self.prepared().dims).iter().product()
    }

    /// Which sequences go together.
    pub(super) fn batches(&self, sequences: &[&[u32]]) -> Vec<std::ops::Range<usize>> {
        let most = self.prepared().job.batch_tokens;
        let (mut ranges, mut first, mut tokens) = (Vec::new(), 0, 0);
        for (i, sequence) in sequences.iter().enumerate() {
            if tokens + sequence.len() > most && i > first {
                ranges.push(first..i);
                (first, tokens) = (i, 0);
            }
            tokens += sequence.len();
        }
        if first < sequences.len() {
            ranges.push(first..sequences.len());
        }
        ranges
    }
}

/// A hook point.
pub fn point(site: Site, layer: usize) -> HookPoint {
    HookPoint { site, layer }
}

fn tap(point: HookPoint) -> Tap {
    Tap {
        point,
        heads: None,
        selection: Selection::All,
        reduction: Reduction::None,
    }
}

fn add(steer: Steer<'_>) -> Arc<EditSpec> {
    Arc::new(EditSpec {
        columns: Vec::new(),
        heads: Vec::new(),
        change: Change::Add {
            v: steer.direction.into(),
            c: steer.c,
        },
    })
}

/// The edit on every row of a batch.
fn everywhere(spec: &Arc<EditSpec>, batch: &Batch) -> Edit {
    let rows = (0..batch.rows() as u32).collect();
    let per_sample = batch.samples().map(|rows| rows.len() as u32).collect();
    Edit::new(Arc::clone(spec), rows, per_sample, Vec::new())
}

/// The batch's rows at these positions of its samples.
fn rows_of(batch: &Batch, positions: &[Vec<u32>]) -> (Vec<u32>, Vec<u32>) {
    let rows = batch
        .samples()
        .zip(positions)
        .flat_map(|(rows, positions)| {
            let first = rows.start as u32;
            positions.iter().map(move |position| first + position)
        });
    let per_sample = positions.iter().map(|p| p.len() as u32).collect();
    (rows.collect(), per_sample)
}

fn sink(rows: Vec<u32>, per_sample: Vec<u32>, memory: &mut [f32]) -> Sink<'_> {
    let bytes = bytemuck::cast_slice_mut(memory);
    Sink::new(Arc::new(SinkSpec::plain()), rows, per_sample, bytes, None)
}

/// A sequence that is run, and where those end that it begins with.
#[derive(Debug, PartialEq, Eq)]
struct SharedRun {
    longest: usize,
    /// Lengths, rising.
    ends: Vec<u32>,
}

/// Which sequences are to be run so that each is the beginning of one of them; and of each sequence, in which run it is and which of its
/// ends.
fn share_beginnings(sequences: &[&[u32]]) -> (Vec<SharedRun>, Vec<(usize, usize)>) {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    // Sorted, a sequence stands right before one that begins with it, if there is any.
    order.sort_by_key(|&i| sequences[i]);
    let mut runs: Vec<SharedRun> = Vec::new();
    let mut ends = vec![(0, 0); sequences.len()];
    for &i in order.iter().rev() {
        let sequence = sequences[i];
        let run = runs.last_mut();
        match run.filter(|run| sequences[run.longest].starts_with(sequence)) {
            Some(run) => {
                let length = sequence.len() as u32;
                if run.ends.last() != Some(&length) {
                    run.ends.push(length);
                }
            }
            None => runs.push(SharedRun {
                longest: i,
                ends: vec![sequence.len() as u32],
            }),
        }
        ends[i] = (runs.len() - 1, runs[runs.len() - 1].ends.len() - 1);
    }
    for run in &mut runs {
        run.ends.reverse();
    }
    for (run, end) in &mut ends {
        *end = runs[*run].ends.len() - 1 - *end;
    }
    (runs, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_another_begins_with_is_not_run_by_itself() {
        let sequences: [&[u32]; 6] = [&[1, 2], &[1, 2, 3, 4], &[1], &[1, 2, 9], &[5], &[1, 2]];
        let (runs, ends) = share_beginnings(&sequences);
        assert_eq!(runs.len(), 3);
        for (sequence, &(run, end)) in sequences.iter().zip(&ends) {
            let run = &runs[run];
            assert!(sequences[run.longest].starts_with(sequence));
            assert_eq!(run.ends[end] as usize, sequence.len());
            assert!(run.ends.is_sorted_by(|a, b| a < b));
        }
        let positions: usize = runs.iter().map(|run| run.ends.len()).sum();
        assert_eq!(positions, 5, "{runs:?}");
    }
}
