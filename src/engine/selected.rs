//! Which rows of a sample the taps and edits of a job take, and which rows of a batch these are.

use std::ops::Range;

/// One sample's rows: per distinct selection of the taps and edits the positions, and how many asked-for rows lie outside the
/// sample.
#[derive(Debug, Clone)]
pub struct SelectedSample {
    pub(super) positions: Vec<Vec<u32>>,
    pub clipped: u64,
}

/// What a batch holds of one sample.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// The sample's number in the dataset.
    pub sample: u64,
    pub selected: &'a SelectedSample,
    /// Positions of its rows in the batch.
    pub positions: Range<u32>,
}

/// Rows of a batch under one selection, in the form that sinks and edits want.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchRows {
    /// Rising.
    pub rows: Vec<u32>,
    /// How many of them belong to each part.
    pub per_sample: Vec<u32>,
}

impl Part<'_> {
    /// The positions under a selection (by number) that the batch holds.
    pub(super) fn selected(&self, selection: usize) -> &[u32] {
        let all = &self.selected.positions[selection];
        let first = all.partition_point(|&p| p < self.positions.start);
        let end = all.partition_point(|&p| p < self.positions.end);
        &all[first..end]
    }
}

impl BatchRows {
    /// The rows under a selection of a batch that packs these parts in order.
    pub(super) fn of(parts: &[Part<'_>], selection: usize) -> Self {
        let mut batch = BatchRows::default();
        let mut begins = 0;
        for part in parts {
            let positions = part.selected(selection);
            let start = part.positions.start;
            batch
                .rows
                .extend(positions.iter().map(|p| begins + p - start));
            batch.per_sample.push(positions.len() as u32);
            begins += part.positions.len() as u32;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_those_of_the_samples_rows_that_are_in_the_batch() {
        let selected = |positions: &[u32]| SelectedSample {
            positions: vec![positions.to_vec()],
            clipped: 0,
        };
        let (whole, later) = (selected(&[0, 2]), selected(&[0, 1, 7, 8]));
        let parts = [
            Part {
                sample: 0,
                selected: &whole,
                positions: 0..3,
            },
            Part {
                sample: 1,
                selected: &later,
                positions: 7..8,
            },
        ];
        let rows = BatchRows::of(&parts, 0);
        assert_eq!(rows.rows, [0, 2, 3]);
        assert_eq!(rows.per_sample, [2, 1]);
    }
}
