//! Injections along many directions at one block, by replay: the blocks before it run once for all of them.
//!
//! Where a vector is added behind block L at every position, nothing before differs from the plain run. So the stream that leaves block
//! L is kept, and each injection is a pass from block L + 1 on, packed with others into batches. It has the bits of a whole pass with
//! the edit `add`.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::machine::SavedResidual;
use super::score::log_sum_exp;
use super::{Machine, Plan, Prepared, Result};
use crate::backend::{Batch, Sink, SinkSpec};
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// Rows of logits that exist at a time.
const ROWS_OF_A_BATCH: usize = 512;

/// c·v, added to the stream behind the block at every position.
#[derive(Debug, Clone, Copy)]
pub struct Injection<'a> {
    /// `[d]`
    pub v: &'a [f32],
    pub c: f32,
}

/// The plain runs of some samples, kept where injections begin.
pub struct Steering<'p> {
    prepared: &'p Prepared,
    layer: usize,
    samples: Vec<Kept>,
}

struct Kept {
    tokens: Vec<u32>,
    /// `[tokens, d]`: `blocks.{layer}.hook_resid_post`.
    stream: Vec<f32>,
    /// Where logits are read, rising.
    positions: Vec<u32>,
}

/// What the model says at one position of a sample under an injection.
#[derive(Debug)]
pub struct Said<'a> {
    pub injection: usize,
    pub sample: usize,
    pub position: u32,
    /// The token that comes next in the sample; none at its last.
    pub next: Option<u32>,
    /// `[vocabulary]`
    pub logits: &'a [f32],
}

impl Said<'_> {
    /// Natural logarithms of the probabilities, at temperature 1.
    pub fn log_probabilities(&self) -> Vec<f64> {
        let lse = log_sum_exp(self.logits);
        self.logits.iter().map(|&l| f64::from(l) - lse).collect()
    }

    /// That of one token.
    pub fn log_probability(&self, token: u32) -> f64 {
        f64::from(self.logits[token as usize]) - log_sum_exp(self.logits)
    }
}

impl<'p> Steering<'p> {
    /// Runs samples, given as tokens, as they are up to `layer`; `positions` (rising) of each are where logits will be read.
    ///
    /// # Errors
    /// A token that the model does not have, and what a device can fail at.
    ///
    /// # Panics
    /// The job has edits, or samples and lists of positions are not as many.
    pub fn open(
        prepared: &'p Prepared,
        machine: &mut dyn Machine,
        layer: usize,
        tokens: &[&[u32]],
        positions: Vec<Vec<u32>>,
    ) -> Result<Self> {
        assert!(
            prepared.edits.is_empty(),
            "injections start from plain runs"
        );
        assert_eq!(tokens.len(), positions.len(), "positions of every sample");
        let point = HookPoint {
            site: Site::ResidPost,
            layer,
        };
        let (d, n_layers) = (prepared.dims.d_model, prepared.dims.n_layers);
        let mut streams = Vec::with_capacity(tokens.len());
        for samples in together(tokens, prepared.job.batch_tokens, |_| 0) {
            let batch = Batch::pack(tokens[samples].iter().copied());
            let mut memory = vec![0.0_f32; batch.rows() * d];
            let rows = (0..batch.rows() as u32).collect();
            let per_sample = batch.samples().map(|rows| rows.len() as u32).collect();
            let sink = sink(rows, per_sample, &mut memory);
            machine.run(&batch, vec![sink], Vec::new(), n_layers, &plan(point))?;
            streams.extend(
                batch
                    .samples()
                    .map(|rows| memory[rows.start * d..rows.end * d].to_vec()),
            );
        }
        let kept = tokens.iter().zip(streams).zip(positions);
        Ok(Steering {
            samples: kept
                .map(|((tokens, stream), positions)| Kept {
                    tokens: tokens.to_vec(),
                    stream,
                    positions,
                })
                .collect(),
            prepared,
            layer,
        })
    }

    /// As [`open`](Self::open), to read what follows the last token of each sample.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn at_the_end(
        prepared: &'p Prepared,
        machine: &mut dyn Machine,
        layer: usize,
        tokens: &[&[u32]],
    ) -> Result<Self> {
        let positions = tokens.iter().map(|t| vec![t.len() as u32 - 1]).collect();
        Self::open(prepared, machine, layer, tokens, positions)
    }

    /// What leaves the block in the plain run of a sample, `[tokens, d]`.
    pub fn stream(&self, sample: usize) -> &[f32] {
        &self.samples[sample].stream
    }

    /// Mean length of what leaves the block at the samples' last tokens.
    pub fn mean_norm(&self) -> f64 {
        let d = self.prepared.dims.d_model;
        let norm = |kept: &Kept| {
            let last = &kept.stream[kept.stream.len() - d..];
            last.iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        self.samples.iter().map(norm).sum::<f64>() / self.samples.len().max(1) as f64
    }

    /// Runs every sample under every injection, and gives what `read` makes of each position: injection by injection, sample by sample.
    ///
    /// # Errors
    /// What a device can fail at.
    ///
    /// # Panics
    /// A vector that is not as wide as the stream.
    pub fn run<T: Send>(
        &self,
        machine: &mut dyn Machine,
        injections: &[Injection<'_>],
        read: impl Fn(&Said<'_>) -> T + Sync,
    ) -> Result<Vec<T>> {
        let n = self.samples.len();
        let runs: Vec<(usize, usize)> = (0..injections.len())
            .flat_map(|injection| (0..n).map(move |sample| (injection, sample)))
            .collect();
        let tokens: Vec<&[u32]> = runs.iter().map(|r| &self.samples[r.1].tokens[..]).collect();
        let rows = |run: usize| self.samples[runs[run].1].positions.len();
        let mut found = Vec::new();
        for batch in together(&tokens, self.prepared.job.batch_tokens, rows) {
            self.batch(machine, injections, &runs[batch], &read, &mut found)?;
        }
        Ok(found)
    }

    fn batch<T: Send>(
        &self,
        machine: &mut dyn Machine,
        injections: &[Injection<'_>],
        runs: &[(usize, usize)],
        read: &(impl Fn(&Said<'_>) -> T + Sync),
        found: &mut Vec<T>,
    ) -> Result<()> {
        let (d, vocab) = (self.prepared.dims.d_model, self.prepared.dims.vocab);
        let batch = Batch::pack(runs.iter().map(|r| &self.samples[r.1].tokens[..]));
        let mut stream = Vec::with_capacity(batch.rows() * d);
        for &(injection, sample) in runs {
            let Injection { v, c } = injections[injection];
            assert_eq!(v.len(), d, "a vector as wide as the stream");
            for row in self.samples[sample].stream.chunks_exact(d) {
                stream.extend(row.iter().zip(v).map(|(&x, &v)| c.mul_add(v, x)));
            }
        }
        let (mut rows, mut per_sample, mut at) = (Vec::new(), Vec::new(), Vec::new());
        for (&(injection, sample), of) in runs.iter().zip(batch.samples()) {
            let positions = &self.samples[sample].positions;
            per_sample.push(positions.len() as u32);
            rows.extend(positions.iter().map(|p| of.start as u32 + p));
            at.extend(
                positions
                    .iter()
                    .map(|&position| (injection, sample, position)),
            );
        }
        let mut logits = vec![0.0_f32; rows.len() * vocab];
        let point = HookPoint {
            site: Site::Logits,
            layer: 0,
        };
        let from = SavedResidual {
            layer: self.layer + 1,
            rows: &stream,
        };
        let sink = sink(rows, per_sample, &mut logits);
        let n_layers = self.prepared.dims.n_layers;
        machine.run_from(from, &batch, vec![sink], Vec::new(), n_layers, &plan(point))?;
        let said = logits.par_chunks(vocab).zip(&at);
        found.par_extend(said.map(|(logits, &(injection, sample, position))| {
            read(&Said {
                injection,
                sample,
                position,
                next: self.samples[sample]
                    .tokens
                    .get(position as usize + 1)
                    .copied(),
                logits,
            })
        }));
        Ok(())
    }
}

/// Cuts runs into batches of at most so many tokens and rows of logits; a longer run is a batch of its own.
fn together(
    tokens: &[&[u32]],
    batch_tokens: usize,
    rows: impl Fn(usize) -> usize,
) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut first, mut held) = (0, (0, 0));
    for (run, of) in tokens.iter().enumerate() {
        let with = (held.0 + of.len(), held.1 + rows(run));
        let is_full = with.0 > batch_tokens || with.1 > ROWS_OF_A_BATCH;
        if run > first && is_full {
            batches.push(first..run);
            (first, held) = (run, (0, 0));
        }
        held = (held.0 + of.len(), held.1 + rows(run));
    }
    if first < tokens.len() {
        batches.push(first..tokens.len());
    }
    batches
}

fn plan(point: HookPoint) -> Plan {
    Plan::new(&[Tap {
        point,
        heads: None,
        selection: Selection::All,
        reduction: Reduction::None,
    }])
}

fn sink(rows: Vec<u32>, per_sample: Vec<u32>, memory: &mut [f32]) -> Sink<'_> {
    let bytes = bytemuck::cast_slice_mut(memory);
    Sink::new(Arc::new(SinkSpec::plain()), rows, per_sample, bytes, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_into_batches_by_tokens_and_by_rows_of_logits() {
        let tokens = [&[0_u32; 5][..], &[0; 5], &[0; 9], &[0; 30], &[0; 1]];
        assert_eq!(together(&tokens, 20, |_| 1), [0..3, 3..4, 4..5]);
        assert_eq!(
            together(&tokens, 100, |_| ROWS_OF_A_BATCH / 2),
            [0..2, 2..4, 4..5]
        );
        assert!(together(&[], 20, |_| 1).is_empty());
    }
}
