//! One row per sample of a store's tap, read where it lies.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::{Failure, format, store_taps};
use super::rows::width;
use crate::analysis::{LayerRows, RowSource, Rows};
use crate::store::{ShardView, Store, TapInfo};

/// All rows of one tap, mapped, one per sample in the samples' order.
#[derive(Debug)]
pub struct StoredRows {
    info: TapInfo,
    /// In order, none of them empty.
    shards: Vec<Arc<ShardView>>,
    rows: usize,
    /// Not in 16 bits, nor at an odd address in another program's file: rows can be borrowed.
    in_f32: bool,
}

impl StoredRows {
    /// Maps a tap; `samples` are the numbers of the store's samples.
    ///
    /// # Errors
    /// A sample with several rows or none; a damaged file.
    pub fn open(store: &Store, tap: usize, samples: &[u64]) -> Result<Self, Failure> {
        let reader = store.tap_at(tap);
        let info = reader.info();
        let one_each = |found: String| {
            let TapInfo { hook, folder, .. } = info;
            Failure::Refused(format!(
                "{folder} {found}; one row per sample is wanted: extract with '{hook}@last', or another selection of one token"
            ))
        };
        if reader.rows() != samples.len() {
            let (rows, n) = (
                format::counted(reader.rows() as u64, "row"),
                format::counted(samples.len() as u64, "sample"),
            );
            return Err(one_each(format!("has {rows} for {n}")));
        }
        let mut expected = samples.iter();
        let mut shards = Vec::new();
        for shard in reader.shards() {
            let shard = shard?;
            for sample in shard.sample() {
                if expected.next().copied() != u64::try_from(sample).ok() {
                    return Err(one_each(format!(
                        "has several rows, or none, of sample {sample} or one before it"
                    )));
                }
            }
            if shard.rows() > 0 {
                shards.push(shard);
            }
        }
        Ok(StoredRows {
            info: info.clone(),
            in_f32: shards.iter().all(|shard| shard.as_f32().is_ok()),
            shards,
            rows: reader.rows(),
        })
    }

    /// As an analysis takes them.
    pub fn layer(&self) -> LayerRows<'_> {
        LayerRows {
            layer: store_taps::layer(&self.info.hook).unwrap_or_default(),
            hook: self.info.hook.clone(),
            width: width(&self.info),
            rows: Rows::Elsewhere(self),
        }
    }
}

impl RowSource for StoredRows {
    fn len(&self) -> usize {
        self.rows
    }

    fn row(&self, row: usize) -> Cow<'_, [f32]> {
        let after = self
            .shards
            .partition_point(|shard| shard.first_row() <= row);
        let shard = &self.shards[after - 1];
        let (row, width) = (row - shard.first_row(), width(&self.info));
        if self.in_f32
            && let Ok(rows) = shard.as_f32()
        {
            return Cow::Borrowed(&rows[row * width..][..width]);
        }
        Cow::Owned(shard.rows_f32(row..row + 1))
    }
}
