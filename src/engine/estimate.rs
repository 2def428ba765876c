//! The dry run: reads and tokenises the dataset, lays every shard out without writing it, and counts what a run would do.

use std::sync::mpsc::sync_channel;

use serde::Serialize;

use super::read_ahead::{PlannedShard, ReadState, read_ahead};
use super::slice::Share;
use super::{Error, Prepared, Result};
use crate::hooks::Site;
use crate::store::ShardLayout;

/// What a run would do. Rows, bytes and shards are exact.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Estimate {
    pub samples: u64,
    pub tokens: u64,
    pub longest_sample: u64,
    pub shards: u64,
    pub taps: Vec<TapEstimate>,
    /// Bytes of all tap files together, headers and index tensors included; the samples table and the manifest come on top.
    pub bytes: u64,
    /// Of these, activations.
    pub activation_bytes: u64,
    /// Blocks that run, of how many.
    pub layers_run: usize,
    pub layers: usize,
    pub flops: Flops,
    pub skipped: u64,
    pub skip_reasons: Vec<String>,
    pub clipped_rows: u64,
}

/// One tap's share.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TapEstimate {
    pub folder: String,
    pub selection: String,
    pub reduction: String,
    pub row_shape: Vec<usize>,
    pub dtype: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Floating-point operations, a multiplication and an addition counted as two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flops {
    /// Matrix products with weights in the blocks.
    pub linear: f64,
    /// q·kᵀ and pattern·v over the keys that are visible.
    pub attention: f64,
    /// The LM head, on the rows that logits are asked for.
    pub lm_head: f64,
}

impl Flops {
    pub fn total(&self) -> f64 {
        self.linear + self.attention + self.lm_head
    }
}

/// Counts the run of a job.
///
/// # Errors
/// As extraction, but for the disk's.
pub fn estimate(prepared: &Prepared, report: &mut (dyn FnMut(u64) + Send)) -> Result<Estimate> {
    let share = Share::of(prepared)?;
    let dataset = share.dataset(prepared, prepared.needs_spans())?;
    let (state, end) = (ReadState::new(prepared, &share), share.contexts.end);
    let (to, from) = sync_channel(1);
    let mut estimate = Estimate {
        taps: prepared
            .infos
            .iter()
            .map(|info| TapEstimate {
                folder: info.folder.clone(),
                selection: info.selection.clone(),
                reduction: info.reduction.clone(),
                row_shape: info.row_shape.clone(),
                dtype: info.dtype.to_string(),
                ..TapEstimate::default()
            })
            .collect(),
        layers_run: prepared.plan.layers_run(prepared.dims.n_layers),
        layers: prepared.dims.n_layers,
        ..Estimate::default()
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read_ahead(prepared, dataset, state, end, false, &to));
        let counted = from.into_iter().try_for_each(|shard| {
            count(&mut estimate, prepared, &shard)?;
            report(estimate.samples);
            Ok::<_, crate::Error>(())
        });
        let read = reader
            .join()
            .map_err(|_| Error::Thread("the thread that reads the dataset"))?;
        counted?;
        let read = read?;
        (estimate.skipped, estimate.skip_reasons) = (read.skipped, read.skip_reasons);
        Ok(())
    })
    .map(|()| estimate)
}

fn count(estimate: &mut Estimate, prepared: &Prepared, shard: &PlannedShard) -> Result<()> {
    let rows: Vec<_> = shard
        .samples
        .iter()
        .map(|(sample, selected)| prepared.tap_rows(sample, selected))
        .collect();
    let table: Vec<_> = shard
        .samples
        .iter()
        .map(|(sample, _)| sample.row.clone())
        .collect();
    let layout = ShardLayout::plan(&prepared.infos, &table, &rows, &prepared.model.fingerprint)?;
    estimate.shards += 1;
    estimate.samples += shard.samples.len() as u64;
    estimate.bytes += layout.bytes();
    for (tap, info) in prepared.infos.iter().enumerate() {
        estimate.taps[tap].rows += layout.rows(tap) as u64;
        estimate.taps[tap].bytes += layout.tap_bytes(tap);
        let (row, side_row) = prepared.row_bytes(tap);
        estimate.activation_bytes += (layout.rows(tap) * side_row) as u64;
        estimate.activation_bytes += shard
            .samples
            .iter()
            .map(|(sample, selected)| {
                let wide = if info.ragged {
                    sample.row.tokens.len() as u64
                } else {
                    1
                };
                prepared.stored_rows(selected, tap) * row as u64 * wide
            })
            .sum::<u64>();
    }
    for (sample, selected) in &shard.samples {
        let n = sample.row.tokens.len() as u64;
        estimate.tokens += n;
        estimate.longest_sample = estimate.longest_sample.max(n);
        estimate.clipped_rows += selected.clipped;
        add_flops(&mut estimate.flops, prepared, n as f64, selected);
    }
    Ok(())
}

fn add_flops(flops: &mut Flops, prepared: &Prepared, n: f64, selected: &super::SelectedSample) {
    let dims = &prepared.dims;
    let (d, qz, kv) = (
        dims.d_model as f64,
        (dims.n_heads * dims.d_head) as f64,
        (dims.n_kv_heads * dims.d_head) as f64,
    );
    let f = dims.d_mlp as f64;
    // Parts of a block, and the first hook point that needs each.
    let parts = [
        (Site::Q, d * (qz + 2.0 * kv)),
        (Site::AttnOut, qz * d),
        (Site::MlpPre, 2.0 * d * f),
        (Site::MlpOut, f * d),
    ];
    let visible = match prepared.model.config.sliding_window {
        Some(w) if (w as f64) < n => w as f64 * (n - w as f64) + w as f64 * (w as f64 + 1.0) / 2.0,
        _ => n * (n + 1.0) / 2.0,
    };
    let Some(last) = prepared.plan.last() else {
        return;
    };
    for layer in 0..prepared.plan.layers_run(dims.n_layers) {
        let reaches =
            |site: Site| !last.site.is_per_layer() || layer < last.layer || last.site >= site;
        flops.linear += parts
            .iter()
            .filter(|(site, _)| reaches(*site))
            .map(|(_, c)| 2.0 * c * n)
            .sum::<f64>();
        if reaches(Site::AttnScores) {
            flops.attention += 4.0 * qz * visible;
        }
    }
    let logits = (0..prepared.taps.len()).filter(|&t| prepared.taps[t].point.site == Site::Logits);
    let rows = logits
        .map(|t| prepared.positions(selected, t).len())
        .max()
        .unwrap_or(0);
    flops.lm_head += 2.0 * d * dims.vocab as f64 * rows as f64;
}
