//! Rows that one run left in memory, for the edits of another.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Error, LiveBatch, Result};

/// Rows by name. An edit takes them as `v=@NAME` (the mean of all of them) or `from=@NAME` (matched by sample and position).
#[derive(Debug, Clone, Default)]
pub struct Memory {
    kept: BTreeMap<String, Arc<KeptRows>>,
}

/// Rows of one hook point.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct KeptRows {
    /// Numbers of a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: Vec<f32>,
    /// Of each sample: where its rows begin, and the position of each, rising.
    pub samples: HashMap<u64, (usize, Vec<i32>)>,
}

impl Memory {
    /// Keeps one vector.
    ///
    /// # Errors
    /// No numbers, or one that is not finite.
    pub fn keep_vector(&mut self, name: &str, values: Vec<f32>) -> Result<()> {
        let width = values.len();
        self.keep(name, width, &values, std::iter::empty())
    }

    /// Keeps the rows of some samples, `[rows, width]`, end to end in the order of `samples`: each sample's number, and the position of each
    /// of its rows, rising. May be called again with further samples.
    ///
    /// # Errors
    /// Rows of another width than before, other counts, a sample a second time, a number that is not finite.
    pub fn keep_rows(
        &mut self,
        name: &str,
        width: usize,
        values: &[f32],
        samples: impl IntoIterator<Item = (u64, Vec<i32>)>,
    ) -> Result<()> {
        self.keep(name, width, values, samples.into_iter())
    }

    /// Keeps what a live batch has of one tap.
    ///
    /// # Errors
    /// As [`keep_rows`](Self::keep_rows); a tap whose rows are reduced or differ in length.
    pub fn keep_batch(&mut self, name: &str, batch: &LiveBatch<'_>, tap: usize) -> Result<()> {
        let live = &batch.taps[tap];
        if live.info.ragged || !live.info.reduction.is_empty() {
            let why = format!("rows of {} are reduced or ragged", live.info.folder);
            return Err(refused(name, why));
        }
        let values = live.to_f32();
        let width = live.info.row_shape.iter().product();
        let samples = batch.samples.iter().zip(&live.rows);
        let samples = samples.map(|(sample, rows)| (sample.sample, rows.positions.to_vec()));
        self.keep(name, width, &values, samples)
    }

    fn keep(
        &mut self,
        name: &str,
        width: usize,
        values: &[f32],
        samples: impl Iterator<Item = (u64, Vec<i32>)>,
    ) -> Result<()> {
        if width == 0 || values.is_empty() || !values.len().is_multiple_of(width) {
            let why = format!(
                "{} numbers do not divide into rows of {width}",
                values.len()
            );
            return Err(refused(name, why));
        }
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            return Err(refused(name, format!("a row holds {bad}")));
        }
        let kept = Arc::make_mut(self.kept.entry(name.to_owned()).or_default());
        if !kept.values.is_empty() && (kept.width != width || kept.samples.is_empty()) {
            return Err(refused(name, "other rows are kept under this name".into()));
        }
        kept.width = width;
        let mut row = kept.values.len() / width;
        let end = row + values.len() / width;
        kept.values.extend_from_slice(values);
        let mut any = false;
        for (sample, positions) in samples {
            any = true;
            if !positions.is_sorted_by(|a, b| a < b) {
                return Err(refused(
                    name,
                    format!("positions of sample {sample} do not rise"),
                ));
            }
            let n = positions.len();
            if kept.samples.insert(sample, (row, positions)).is_some() {
                return Err(refused(name, format!("sample {sample} is kept already")));
            }
            row += n;
        }
        if any && row != end {
            let why = format!("its samples have {row} rows, and {end} are there");
            return Err(refused(name, why));
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<KeptRows>> {
        self.kept.get(name)
    }
}

impl KeptRows {
    /// The mean over all rows.
    pub fn mean(&self) -> Vec<f32> {
        let mut sum = vec![0.0_f64; self.width];
        for row in self.values.chunks_exact(self.width) {
            for (sum, &x) in sum.iter_mut().zip(row) {
                *sum += f64::from(x);
            }
        }
        let n = (self.values.len() / self.width.max(1)) as f64;
        sum.into_iter().map(|s| (s / n) as f32).collect()
    }

    /// The row of a sample's position.
    pub fn row(&self, sample: u64, position: u32) -> Option<&[f32]> {
        let (first, positions) = self.samples.get(&sample)?;
        let place = positions
            .binary_search(&i32::try_from(position).ok()?)
            .ok()?;
        let at = (first + place) * self.width;
        Some(&self.values[at..at + self.width])
    }
}

fn refused(name: &str, why: String) -> crate::Error {
    Error::Memory {
        name: name.into(),
        why,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_sample_and_position_and_averaged() {
        let mut memory = Memory::default();
        let first = [1.0, 2.0, 3.0, 4.0];
        memory.keep_rows("x", 2, &first, [(7, vec![0, 5])]).unwrap();
        memory
            .keep_rows("x", 2, &[5.0, 9.0], [(8, vec![3])])
            .unwrap();
        let kept = memory.get("x").unwrap();
        assert_eq!(kept.row(7, 5), Some(&[3.0, 4.0][..]));
        assert_eq!(kept.row(8, 3), Some(&[5.0, 9.0][..]));
        assert_eq!((kept.row(7, 1), kept.row(9, 0)), (None, None));
        assert_eq!(kept.mean(), [3.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut memory = Memory::default();
        let says = |error: Result<()>| error.unwrap_err().to_string();
        let rows = [0.0; 4];
        memory.keep_rows("x", 2, &rows, [(0, vec![0, 1])]).unwrap();
        for (error, what) in [
            (
                memory.keep_rows("x", 4, &rows, [(1, vec![0])]),
                "other rows",
            ),
            (
                memory.keep_rows("x", 2, &rows, [(0, vec![0, 1])]),
                "kept already",
            ),
            (
                memory.keep_rows("y", 2, &rows, [(1, vec![0])]),
                "1 rows, and 2",
            ),
            (
                memory.keep_rows("z", 3, &rows, [(1, vec![0])]),
                "do not divide",
            ),
            (
                memory.keep_rows("w", 2, &rows, [(1, vec![3, 3])]),
                "do not rise",
            ),
            (memory.keep_vector("v", vec![f32::NAN]), "holds NaN"),
        ] {
            let said = says(error);
            assert!(said.contains(what), "{what}: {said}");
        }
    }
}
