//! The logit lens (nostalgebraist 2020): what the LM head makes of the residual stream of every layer, through the final norm with its gain.

use std::sync::Arc;

use rayon::prelude::*;

use super::prepared::check_seen;
use super::score::{kl, scores};
use super::selected::Part;
use super::{Machine, Plan, Prepared, Result, Sample, SavedResidual};
use crate::backend::{Batch, Sink, SinkSpec};
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// Rows whose logits exist at a time.
const WIDE_ROWS: usize = 64;

/// What one layer's residual stream says at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct LensRow {
    /// Blocks behind it: 0 is the embedding, n_layers what the model itself says.
    pub blocks: usize,
    pub position: u32,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f64)>,
    /// Place of the model's likeliest token among this layer's, 0 for the likeliest; a token that is as likely counts as before it if its id is lower.
    pub rank: usize,
    /// Log-probability of the token that comes next in the text; none at the last.
    pub logprob: Option<f64>,
    /// In nats.
    pub entropy: f64,
    /// KL(p_model ‖ p_layer) in nats.
    pub kl: f64,
}

/// Reads `sample` on a machine that holds the job's model, with the job's edits, at these positions (rising); rows come by position, then by layer.
///
/// # Errors
/// A selection that the sample cannot answer, edits that touch nothing or lie behind the last block (the final norm and the logits are
/// each layer's own here), and what a device can fail at.
pub fn lens(
    machine: &mut dyn Machine,
    prepared: &Prepared,
    sample: &Sample,
    positions: &[u32],
    top: usize,
) -> Result<Vec<LensRow>> {
    let stream = residuals(machine, prepared, sample, positions)?;
    let (d, vocab) = (prepared.dims.d_model, prepared.dims.vocab);
    let mut found = Vec::new();
    for first in (0..positions.len()).step_by(WIDE_ROWS) {
        let rows = first..(first + WIDE_ROWS).min(positions.len());
        let logits = stream
            .iter()
            .map(|layer| head(machine, prepared, &layer[rows.start * d..rows.end * d]))
            .collect::<Result<Vec<_>>>()?;
        let Some(model) = logits.last() else { continue };
        for (i, &position) in positions[rows].iter().enumerate() {
            let of = |logits: &Vec<f32>| logits[i * vocab..(i + 1) * vocab].to_vec();
            let (model, next) = (
                of(model),
                sample.row.tokens.get(position as usize + 1).copied(),
            );
            let layers = logits.par_iter().map(of).enumerate();
            found.par_extend(
                layers.map(|(blocks, logits)| {
                    LensRow::of(blocks, position, &logits, &model, next, top)
                }),
            );
        }
    }
    Ok(found)
}

impl LensRow {
    fn of(
        blocks: usize,
        position: u32,
        logits: &[f32],
        model: &[f32],
        next: Option<u32>,
        top: usize,
    ) -> Self {
        let scores = scores(logits, next, top);
        let chosen = super::choose::argmax(model) as usize;
        let before =
            |(id, &x): (usize, &f32)| x > logits[chosen] || (x == logits[chosen] && id < chosen);
        LensRow {
            blocks,
            position,
            rank: logits.iter().enumerate().filter(|&l| before(l)).count(),
            top: scores.top,
            logprob: scores.logprob,
            entropy: scores.entropy,
            kl: kl(model, logits),
        }
    }
}

/// `[n, d]` of what enters the first block, and of what each block puts out.
fn residuals(
    machine: &mut dyn Machine,
    prepared: &Prepared,
    sample: &Sample,
    positions: &[u32],
) -> Result<Vec<Vec<f32>>> {
    let n_layers = prepared.dims.n_layers;
    let taps: Vec<Tap> = std::iter::once((Site::ResidPre, 0))
        .chain((0..n_layers).map(|layer| (Site::ResidPost, layer)))
        .map(|(site, layer)| tap(site, layer))
        .collect();
    let edits = prepared.edits.iter().map(|e| e.edit.point);
    let plan = Plan::new(&taps).with_edits(edits, false);
    check_seen(&prepared.edits, &plan)?;
    let selected = prepared.select(sample)?;
    let part = Part {
        sample: sample.row.sample,
        selected: &selected,
        positions: 0..sample.row.tokens.len() as u32,
    };
    let batch = Batch::pack([&sample.row.tokens[..]]);
    let mut stream = vec![vec![0.0_f32; positions.len() * prepared.dims.d_model]; taps.len()];
    let sinks = stream
        .iter_mut()
        .map(|rows| sink(positions.to_vec(), rows))
        .collect();
    let edits = prepared.batch_edits(&[part]);
    let receipts = machine.run(&batch, sinks, edits, n_layers, &plan)?;
    prepared.check_touched(&receipts, 1)?;
    Ok(stream)
}

/// `[n, vocabulary]` of some rows of the residual stream.
fn head(machine: &mut dyn Machine, prepared: &Prepared, rows: &[f32]) -> Result<Vec<f32>> {
    let (n, n_layers) = (rows.len() / prepared.dims.d_model, prepared.dims.n_layers);
    // Behind the last block tokens matter no more, only how many rows there are.
    let batch = Batch::pack([&vec![0; n][..]]);
    let mut logits = vec![0.0_f32; n * prepared.dims.vocab];
    let sinks = vec![sink((0..n as u32).collect(), &mut logits)];
    let from = SavedResidual {
        layer: n_layers,
        rows,
    };
    let plan = Plan::new(&[tap(Site::Logits, 0)]);
    machine.run_from(from, &batch, sinks, Vec::new(), n_layers, &plan)?;
    Ok(logits)
}

fn tap(site: Site, layer: usize) -> Tap {
    Tap {
        point: HookPoint { site, layer },
        heads: None,
        selection: Selection::All,
        reduction: Reduction::None,
    }
}

fn sink(rows: Vec<u32>, memory: &mut [f32]) -> Sink<'_> {
    let n = rows.len() as u32;
    Sink::new(
        Arc::new(SinkSpec::plain()),
        rows,
        vec![n],
        bytemuck::cast_slice_mut(memory),
        None,
    )
}
