//! The thread between reading ahead and computing: it lays a shard out, and registers its files with the device, while the one
//! before is computed.

use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::read_ahead::PlannedShard;
use super::trace::{Stage, since};
use super::{Prepared, Result};
use crate::backend::cuda::Pinner;
use crate::store::{ShardWriter, StoreWriter};

/// A shard that rows can be computed into.
pub struct LaidOut {
    pub planned: PlannedShard,
    /// `None` where nothing is stored.
    pub shard: Option<ShardWriter>,
    /// When it was known what is in it.
    planned_at: Instant,
}

impl LaidOut {
    /// One that is not stored.
    pub fn unstored(planned: PlannedShard) -> Self {
        LaidOut {
            planned,
            shard: None,
            planned_at: Instant::now(),
        }
    }

    /// Of the time that its taker has waited since then: what reading took, and what laying it out took.
    pub fn waited(&self, since: Instant) -> (Duration, Duration) {
        let reading = self.planned_at.saturating_duration_since(since);
        (reading, since.elapsed().saturating_sub(reading))
    }
}

/// Lays shards out in order, until the last or until nobody takes them any more.
///
/// # Errors
/// As [`StoreWriter::begin_shard`]'s.
pub fn lay_out(
    prepared: &Prepared,
    writer: &mut StoreWriter,
    pinner: Option<&Pinner>,
    planned: &Receiver<PlannedShard>,
    laid_out: &SyncSender<LaidOut>,
) -> Result<()> {
    while let Ok(planned) = planned.recv() {
        let planned_at = Instant::now();
        let shard = begin(prepared, writer, &planned)?;
        if let Some(pinner) = pinner {
            // What cannot be registered after all is copied to all the same, and waited for.
            let _ = shard.memories().try_for_each(|memory| pinner.pin(memory));
        }
        let (trace, n) = (prepared.trace.as_ref(), planned.samples.len());
        since(trace, Stage::LayOut, planned_at, || format!("{n} samples"));
        let shard = LaidOut {
            planned,
            shard: Some(shard),
            planned_at,
        };
        if laid_out.send(shard).is_err() {
            break;
        }
    }
    Ok(())
}

fn begin(
    prepared: &Prepared,
    writer: &mut StoreWriter,
    planned: &PlannedShard,
) -> Result<ShardWriter> {
    let rows: Vec<_> = planned
        .samples
        .iter()
        .map(|(sample, selected)| prepared.tap_rows(sample, selected))
        .collect();
    let table: Vec<_> = planned
        .samples
        .iter()
        .map(|(sample, _)| sample.row.clone())
        .collect();
    Ok(writer.begin_shard(&table, &rows)?)
}
