//! Teacher-forced scoring: what a model says of each next token of texts that are given. Logits exist for a few rows at a
//! time; what is kept between is what the LM head reads, `[rows, d]`.

use std::sync::Arc;

use super::choose::argmax;
use super::selected::Part;
use super::{EditReceipt, Error, Plan, Prepared, Reader, Result, Sample};
use crate::backend::{Batch, Edit, HEAD_ROWS, HeadRows, Receipt, Scores, Sink, SinkSpec};
use crate::hooks::{HookPoint, Reduction, Selection, Site, Tap};

/// Scores the samples of a job that was opened for generation, with its edits. Its taps play no part.
pub struct Scorer<'p> {
    prepared: &'p Prepared,
    machine: Box<dyn Reader + 'p>,
    plan: Plan,
    receipts: Vec<Receipt>,
}

/// What the LM head reads at chosen positions of some samples.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    /// `[rows, d]`: `ln_final.hook_out`, edited.
    rows: Vec<f32>,
    /// Which sample, by its place among those given, and which position each row is of.
    pub at: Vec<(usize, u32)>,
    /// The numbers of those samples.
    samples: Vec<u64>,
    /// The token that comes next there; none at a sample's last.
    next: Vec<Option<u32>>,
    /// What is still to be done to the logits.
    edits: Vec<LogitEdit>,
}

/// An edit of the logits: of which rows of `Hidden`, and by what they are replaced.
#[derive(Debug, Clone)]
struct LogitEdit {
    spec: Arc<crate::backend::EditSpec>,
    rows: Vec<u32>,
    replacement: Vec<f32>,
}

impl<'p> Scorer<'p> {
    /// On the CPU.
    pub fn new(prepared: &'p Prepared) -> Self {
        Self::on(Box::new(prepared.cpu()), prepared)
    }

    /// On a machine that holds the job's model. (A machine may be lent, to be had back.)
    pub fn on(machine: Box<dyn Reader + 'p>, prepared: &'p Prepared) -> Self {
        let last = Tap {
            point: HookPoint {
                site: Site::LnFinalOut,
                layer: 0,
            },
            heads: None,
            selection: Selection::All,
            reduction: Reduction::None,
        };
        let edits = prepared.edits.iter().map(|e| e.edit.point);
        Scorer {
            machine,
            plan: Plan::new(&[last]).with_edits(edits, false),
            receipts: vec![Receipt::default(); prepared.edits.len()],
            prepared,
        }
    }

    /// A scorer of another job of the same model, on this one's machine for as long as it is lent.
    pub fn lend<'s>(&'s mut self, prepared: &'s Prepared) -> Scorer<'s> {
        Scorer::on(Box::new(&mut *self.machine), prepared)
    }

    /// Runs the samples, in one batch; keeps what the LM head reads at these positions (rising) of each.
    ///
    /// # Errors
    /// A selection that a sample cannot answer, a replacement that is not there, numbers that are not finite before the LM head.
    pub fn run(&mut self, samples: &[Sample], positions: &[Vec<u32>]) -> Result<Hidden> {
        let prepared = self.prepared;
        let selected = samples
            .iter()
            .map(|s| prepared.select(s))
            .collect::<Result<Vec<_>>>()?;
        let parts: Vec<Part<'_>> = samples
            .iter()
            .zip(&selected)
            .map(|(sample, selected)| Part {
                sample: sample.row.sample,
                selected,
                positions: 0..sample.row.tokens.len() as u32,
            })
            .collect();
        let batch = Batch::pack(samples.iter().map(|s| &s.row.tokens[..]));
        let mut hidden = Hidden {
            samples: samples.iter().map(|s| s.row.sample).collect(),
            ..Hidden::default()
        };
        let (mut rows, mut per_sample) = (Vec::new(), Vec::new());
        for (i, (sample, positions)) in samples.iter().zip(positions).enumerate() {
            let tokens = &sample.row.tokens;
            for &p in positions {
                rows.push(batch.cu_seqlens[i] + p);
                hidden.at.push((i, p));
                hidden.next.push(tokens.get(p as usize + 1).copied());
            }
            per_sample.push(positions.len() as u32);
        }
        let edits = prepared.batch_edits(&parts);
        hidden.edits = self.edits_of_logits(&edits, &rows);
        hidden.rows = vec![0.0; rows.len() * prepared.dims.d_model];
        let bytes = bytemuck::cast_slice_mut(&mut hidden.rows);
        let sink = Sink::new(Arc::new(SinkSpec::plain()), rows, per_sample, bytes, None);
        let n_layers = prepared.dims.n_layers;
        let mut receipts = self
            .machine
            .run(&batch, vec![sink], edits, n_layers, &self.plan)?;
        let d = prepared.dims.d_model;
        if let Some(bad) = hidden.rows.iter().position(|x| !x.is_finite()) {
            let (sample, position) = hidden.at[bad / d];
            return Err(Error::NotFinite {
                sample: hidden.samples[sample],
                position: position as usize,
                value: hidden.rows[bad],
            }
            .into());
        }
        for (edit, of_logits) in self.logit_edits().zip(&hidden.edits) {
            receipts[edit] = Receipt {
                rows: of_logits.rows.len() as u64,
                norm_before: f64::NAN,
                norm_after: f64::NAN,
            };
        }
        for (sum, receipt) in self.receipts.iter_mut().zip(&receipts) {
            sum.add(receipt);
        }
        Ok(hidden)
    }

    /// What each edit has done so far. Of logits, the rows alone: their norms are not known (NaN), since they are edited only when they
    /// are read.
    pub fn receipts(&self) -> Vec<EditReceipt> {
        self.prepared.receipts(&self.receipts)
    }

    /// An edit that touched nothing is a mistake.
    ///
    /// # Errors
    /// There is one; `samples` were run.
    pub fn check_edits(&self, samples: u64) -> Result<()> {
        self.prepared.check_touched(&self.receipts, samples)
    }

    /// The edits of the logits, by their number.
    fn logit_edits(&self) -> impl Iterator<Item = usize> + use<'p> {
        let edits = self.prepared.edits.iter().enumerate();
        let at_logits = edits.filter(|(_, e)| e.edit.point.site == Site::Logits);
        at_logits.map(|(i, _)| i)
    }

    /// Scores each row, with the `top` likeliest tokens.
    ///
    /// # Errors
    /// Logits that are not finite, and what a device can fail at.
    pub fn score(&mut self, hidden: &Hidden, top: usize) -> Result<Vec<Scores>> {
        let n = hidden.at.len();
        let mut scores = Vec::with_capacity(n);
        for first in (0..n).step_by(HEAD_ROWS) {
            let rows = first..(first + HEAD_ROWS).min(n);
            let next = &hidden.next[rows.clone()];
            scores.extend(self.machine.scores(self.read(hidden, rows), next, top)?);
        }
        // Of logits that are not finite the entropy is not a number.
        if let Some(bad) = scores.iter().position(|s: &Scores| !s.entropy.is_finite()) {
            return Err(Error::NotFinite {
                sample: hidden.samples[hidden.at[bad].0],
                position: hidden.at[bad].1 as usize,
                value: f32::NAN,
            }
            .into());
        }
        Ok(scores)
    }

    /// KL(p‖q) in nats at each row: p of one run, q of another (other edits, other tokens), row by row.
    ///
    /// # Errors
    /// Runs with other numbers of rows, and what a device can fail at.
    pub fn kl_divergence(&mut self, p: &Hidden, q: &Hidden) -> Result<Vec<f64>> {
        let n = p.at.len();
        if q.at.len() != n {
            return Err(Error::RowsDiffer {
                p: n,
                q: q.at.len(),
            }
            .into());
        }
        let mut found = Vec::with_capacity(n);
        for first in (0..n).step_by(HEAD_ROWS / 2) {
            let rows = first..(first + HEAD_ROWS / 2).min(n);
            let (p, q) = (self.read(p, rows.clone()), self.read(q, rows));
            found.extend(self.machine.divergences(p, q)?);
        }
        Ok(found)
    }

    /// What the LM head reads in some rows.
    fn read<'h>(&self, hidden: &'h Hidden, rows: std::ops::Range<usize>) -> HeadRows<'h> {
        let (d, vocab) = (self.prepared.dims.d_model, self.prepared.dims.vocab);
        let edits = hidden.edits.iter();
        HeadRows {
            normed: &hidden.rows[rows.start * d..rows.end * d],
            edits: edits.map(|edit| edit.of(rows.clone(), vocab)).collect(),
        }
    }

    /// The edits of the logits, in terms of the rows that are kept.
    fn edits_of_logits(&self, edits: &[Edit], kept: &[u32]) -> Vec<LogitEdit> {
        let vocab = self.prepared.dims.vocab;
        let of = |edit: &Edit| {
            let both = kept.iter().enumerate();
            let both: Vec<(usize, usize)> = both
                .filter_map(|(row, r)| Some((row, edit.rows.binary_search(r).ok()?)))
                .collect();
            let replacement = edit.replacement.chunks(vocab);
            let replacement: Vec<&[f32]> = replacement.collect();
            LogitEdit {
                spec: edit.spec.clone(),
                rows: both.iter().map(|&(row, _)| row as u32).collect(),
                replacement: both
                    .iter()
                    .filter_map(|&(_, of)| replacement.get(of))
                    .flat_map(|row| row.iter().copied())
                    .collect(),
            }
        };
        self.logit_edits().map(|i| of(&edits[i])).collect()
    }
}

impl LogitEdit {
    /// Its share of some rows.
    fn of(&self, rows: std::ops::Range<usize>, width: usize) -> Edit {
        let first = self.rows.partition_point(|&r| (r as usize) < rows.start);
        let end = self.rows.partition_point(|&r| (r as usize) < rows.end);
        let replacement = self.replacement.get(first * width..end * width);
        let rows: Vec<u32> = self.rows[first..end]
            .iter()
            .map(|r| r - rows.start as u32)
            .collect();
        let n = rows.len() as u32;
        Edit::new(
            self.spec.clone(),
            rows,
            vec![n],
            replacement.unwrap_or_default().to_vec(),
        )
    }
}

/// What is read off one row of logits.
pub(super) fn scores(logits: &[f32], next: Option<u32>, top: usize) -> Scores {
    let lse = log_sum_exp(logits);
    let logprob = |token: u32| f64::from(logits[token as usize]) - lse;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top - 1, likelier);
    }
    order.truncate(top);
    order.sort_unstable_by(likelier);
    Scores {
        logprob: next.map(logprob),
        argmax: argmax(logits),
        entropy: entropy(logits, lse),
        top: order.into_iter().map(|t| (t, logprob(t))).collect(),
    }
}

/// ln Σ exp(x), in f64.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let largest = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = x.iter().map(|&v| (f64::from(v) - largest).exp()).sum();
    largest + sum.ln()
}

fn entropy(logits: &[f32], lse: f64) -> f64 {
    let each = |&l: &f32| {
        let logprob = f64::from(l) - lse;
        -logprob.exp() * logprob
    };
    logits.iter().map(each).sum()
}

/// KL(softmax p ‖ softmax q) of two rows of logits.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p_lse, q_lse) = (log_sum_exp(p), log_sum_exp(q));
    let each = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_lse, f64::from(q) - q_lse);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(each).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_agree_with_their_formulas() {
        let logits = [1.0_f32, 3.0, 3.0, -2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let p: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp() / total).collect();
        let scores = super::scores(&logits, Some(3), 2);
        assert!((scores.logprob.unwrap() - p[3].ln()).abs() < 1e-12);
        assert!((scores.entropy + p.iter().map(|p| p * p.ln()).sum::<f64>()).abs() < 1e-12);
        assert_eq!(scores.argmax, 1);
        let top: Vec<u32> = scores.top.iter().map(|t| t.0).collect();
        assert_eq!(top, [1, 2]);
        assert_eq!(super::scores(&logits, None, 0).logprob, None);
        assert!(kl(&logits, &logits).abs() < 1e-12);
        assert!(
            (kl(&[0.0, 0.0], &[0.0, 3.0_f32.ln()]) - (0.5 * (2.0_f64.ln() + (2.0 / 3.0_f64).ln())))
                .abs()
                < 1e-6
        );
    }
}
