//! Rows that an edit puts in the place of a run's own: of a store, matched by sample and position, or listed in a file.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Sample;
use super::memory::KeptRows;
use crate::hooks::Source;
use crate::store::{ShardView, Store, Xxh3};

/// Where replacements come from.
pub struct Replacement {
    source: String,
    rows: Rows,
}

enum Rows {
    /// Row i for the i-th selected row of each sample; a single row for all of them.
    Listed {
        values: Vec<f32>,
        n: usize,
        width: usize,
    },
    Stored(Stored),
    /// Of an earlier run, by sample and position.
    Kept(Arc<KeptRows>),
}

/// Rows of a store's tap, by sample.
struct Stored {
    shards: Vec<Arc<ShardView>>,
    samples: HashMap<u64, StoredSample>,
    /// Columns of a stored row to take; empty: all. At the pattern: a column is a head.
    columns: Vec<Range<usize>>,
    checksums: Xxh3,
}

/// The rows of one sample: consecutive, in one shard.
struct StoredSample {
    shard: usize,
    first: usize,
    /// Position of each row, rising.
    positions: Vec<i32>,
}

impl Replacement {
    /// `n` rows of `width`, one after the other.
    pub(super) fn listed(source: &Source, values: Vec<f32>, n: usize, width: usize) -> Self {
        Replacement {
            source: source.to_string(),
            rows: Rows::Listed { values, n, width },
        }
    }

    /// Rows of an earlier run; one for all where they are of no sample.
    pub(super) fn kept(source: &Source, rows: Arc<KeptRows>) -> Self {
        if rows.samples.is_empty() {
            let n = rows.values.len() / rows.width;
            return Self::listed(source, rows.values.clone(), n, rows.width);
        }
        Replacement {
            source: source.to_string(),
            rows: Rows::Kept(rows),
        }
    }

    /// The rows of a tap of a store.
    ///
    /// # Errors
    /// A file is damaged, or the samples were cut into chunks, so that a position does not say which row is meant.
    pub(super) fn of_store(
        source: &Source,
        store: &Store,
        tap: usize,
        columns: Vec<Range<usize>>,
    ) -> Result<Self, String> {
        let reader = store.tap_at(tap);
        let mut samples: HashMap<u64, StoredSample> = HashMap::new();
        let mut shards = Vec::new();
        for shard in reader.shards() {
            let shard = shard.map_err(|e| e.to_string())?;
            for (row, (sample, position)) in
                shard.sample().into_iter().zip(shard.position()).enumerate()
            {
                let here = samples.entry(sample as u64).or_insert(StoredSample {
                    shard: shards.len(),
                    first: row,
                    positions: Vec::new(),
                });
                if here.positions.last().is_some_and(|&last| last >= position) {
                    return Err(format!(
                        "{source}: sample {sample} was cut into chunks, so its positions do not say which row is meant; extract it whole"
                    ));
                }
                here.positions.push(position);
            }
            shards.push(shard);
        }
        let checksums: Vec<Xxh3> = store
            .manifest()
            .shards
            .iter()
            .flat_map(|s| s.taps[tap].checksums.iter().map(|c| c.xxh3))
            .collect();
        Ok(Replacement {
            source: source.to_string(),
            rows: Rows::Stored(Stored {
                shards,
                samples,
                columns,
                checksums: Xxh3::of_batches(&checksums),
            }),
        })
    }

    /// A checksum of all that may be taken from here.
    pub(super) fn hash(&self) -> Xxh3 {
        match &self.rows {
            Rows::Listed { values, .. } => Xxh3::of(bytemuck::cast_slice(values)),
            Rows::Stored(stored) => stored.checksums,
            Rows::Kept(kept) => Xxh3::of(bytemuck::cast_slice(&kept.values)),
        }
    }

    /// Whether there is a row for each of these positions of the sample; what is missing, if not.
    pub(super) fn check(&self, sample: &Sample, positions: &[u32]) -> Result<(), String> {
        let (number, source) = (sample.row.sample, &self.source);
        match &self.rows {
            Rows::Listed { n, .. } if *n == 1 || positions.len() == *n || positions.is_empty() => {
                Ok(())
            }
            Rows::Listed { n, .. } => Err(format!(
                "{source} has {n} rows, and of sample {number} ({}:{}) {} are selected: give one row, or as many",
                sample.row.file,
                sample.row.line,
                positions.len()
            )),
            Rows::Kept(kept) => match positions.iter().find(|&&p| kept.row(number, p).is_none()) {
                None => Ok(()),
                Some(position) => Err(format!(
                    "{source} has no row of sample {number} ({}:{}) at position {position}: replace rows that were kept",
                    sample.row.file, sample.row.line
                )),
            },
            Rows::Stored(_) if sample.row.chunk > 0 => Err(format!(
                "sample {number} is cut into chunks, so its positions do not say which stored row is meant"
            )),
            Rows::Stored(stored) => match positions
                .iter()
                .find(|&&p| stored.find(number, p).is_none())
            {
                None => stored
                    .check_pattern(sample)
                    .and_then(|()| stored.check_finite(number, positions))
                    .map_err(|why| format!("{source}: {why}")),
                Some(position) => Err(format!(
                    "{source} has no row of sample {number} ({}:{}) at position {position}: replace rows that were stored",
                    sample.row.file, sample.row.line
                )),
            },
        }
    }

    /// Appends the rows for these positions of a sample, which were checked; at the pattern `[heads, rows, tokens]`.
    pub(super) fn gather(&self, sample: u64, positions: &[u32], out: &mut Vec<f32>) {
        match &self.rows {
            Rows::Listed { values, n, width } => {
                for i in 0..positions.len() {
                    let row = if *n == 1 { 0 } else { i };
                    out.extend_from_slice(&values[row * width..(row + 1) * width]);
                }
            }
            Rows::Stored(stored) => stored.gather(sample, positions, out),
            Rows::Kept(kept) => {
                let rows = positions.iter().filter_map(|&p| kept.row(sample, p));
                rows.for_each(|row| out.extend_from_slice(row));
            }
        }
    }
}

impl Stored {
    /// The stored sample, and the place of a position among its rows.
    fn find(&self, sample: u64, position: u32) -> Option<(&StoredSample, usize)> {
        let here = self.samples.get(&sample)?;
        let place = here.positions.binary_search(&i32::try_from(position).ok()?);
        Some((here, place.ok()?))
    }

    fn is_ragged(&self) -> bool {
        self.shards.first().is_some_and(|s| s.info().ragged)
    }

    /// At the pattern a row is as long as its sample: both must be of one length.
    fn check_pattern(&self, sample: &Sample) -> Result<(), String> {
        let number = sample.row.sample;
        let Some(here) = self.samples.get(&number).filter(|_| self.is_ragged()) else {
            return Ok(());
        };
        let tokens = sample.row.tokens.len();
        match self.shards[here.shard].ragged_of(number) {
            Some(stored) if stored.shape().get(2) == Some(&tokens) => Ok(()),
            _ => Err(format!(
                "its sample {number} has not {tokens} tokens, as this run's has"
            )),
        }
    }

    /// Rows with numbers that would be lost on every row after them.
    fn check_finite(&self, sample: u64, positions: &[u32]) -> Result<(), String> {
        if self.is_ragged() {
            return Ok(());
        }
        for &position in positions {
            let Some((here, place)) = self.find(sample, position) else {
                continue;
            };
            let row = columns_of(&self.shards[here.shard], here.first + place, &self.columns);
            if let Some(bad) = row.iter().find(|v| !v.is_finite()) {
                return Err(format!(
                    "its row of sample {sample} at position {position} holds {bad}: extract it again in f32"
                ));
            }
        }
        Ok(())
    }

    fn gather(&self, sample: u64, positions: &[u32], out: &mut Vec<f32>) {
        let places = positions.iter().filter_map(|&p| self.find(sample, p));
        if !self.is_ragged() {
            for (here, place) in places {
                let shard = &self.shards[here.shard];
                out.extend(columns_of(shard, here.first + place, &self.columns));
            }
            return;
        }
        let places: Vec<usize> = places.map(|(_, place)| place).collect();
        let stored = self
            .samples
            .get(&sample)
            .and_then(|here| self.shards[here.shard].ragged_of(sample));
        let Some(stored) = stored else { return };
        let (rows, n) = (stored.shape()[1], stored.shape()[2]);
        let values = stored.to_f32();
        for head in self.columns.iter().flat_map(Clone::clone) {
            for place in &places {
                out.extend_from_slice(&values[(head * rows + place) * n..][..n]);
            }
        }
    }
}

/// The chosen columns (all, when none are) of a stored row, widened.
pub(super) fn columns_of(shard: &ShardView, row: usize, columns: &[Range<usize>]) -> Vec<f32> {
    let row = shard.rows_f32(row..row + 1);
    if columns.is_empty() {
        return row;
    }
    columns
        .iter()
        .flat_map(|c| row[c.clone()].iter().copied())
        .collect()
}
