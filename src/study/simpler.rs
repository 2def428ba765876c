//! What a direction of truth is to be read beside: simpler readings of the same statements, and the statements with a "not" put in.

use super::passes::point;
use super::statements::{self, Stated};
use super::tell::{self, number};
use super::{Result, Study};
use crate::analysis::project::dot;
use crate::analysis::roc::auc;
use crate::analysis::{Bootstrap, LayerRows, Probing, Split, Statements, baseline, probe};
use crate::hooks::Site;
use crate::report::finding::{Control, Number};

/// Each different statement once, and which of them train.
#[derive(Clone, Copy)]
pub(super) struct Held<'s> {
    pub stated: &'s Stated,
    /// What is known of `stated.unique`.
    pub known: &'s Statements,
    /// Of these, by their place.
    pub split: &'s Split,
    pub bootstrap: &'s Bootstrap,
}

/// What a simpler reading tells of the held-out statements.
#[derive(Debug, Clone)]
pub(super) struct Baseline {
    pub name: &'static str,
    pub accuracy: f64,
    pub ends: [f64; 2],
    pub auc: f64,
}

impl Baseline {
    /// Its accuracy, to stand beside a direction's.
    pub fn control(&self) -> Control {
        Control {
            name: self.name.into(),
            value: self.accuracy,
            interval: tell::with_width(self.ends),
        }
    }
}

impl Held<'_> {
    /// Length, the statement's own probability, its words, and the first layer.
    ///
    /// # Errors
    /// A side without one of the labels.
    pub fn baselines(&self, study: &Study<'_>) -> Result<Vec<Baseline>> {
        let Stated {
            unique,
            tokens,
            last,
            ..
        } = self.stated;
        let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let logprob: Vec<f64> = statements::log_probabilities(study, &sequences)?
            .iter()
            .map(|of_tokens| of_tokens.iter().sum())
            .collect();
        let d = study.dims().d_model;
        let first = unique
            .iter()
            .flat_map(|&i| last[0][i * d..(i + 1) * d].iter().copied());
        let per_token = |i: usize| logprob[i] / tokens[i].len().saturating_sub(1).max(1) as f64;
        Ok(vec![
            self.of_one_number("length in tokens", |i| tokens[i].len() as f64)?,
            self.of_one_number("log-probability of the statement", |i| logprob[i])?,
            self.of_one_number("log-probability per token", per_token)?,
            self.bag_of_words()?,
            self.of_rows("probe of layer 0", first.collect(), d)?,
        ])
    }

    /// A probe on which words stand there.
    ///
    /// # Errors
    /// As there.
    pub fn bag_of_words(&self) -> Result<Baseline> {
        let texts = self
            .stated
            .unique
            .iter()
            .map(|&i| &self.stated.texts[i][..]);
        let texts: Vec<&str> = texts.collect();
        let (counts, width) = baseline::bag_of_words(&texts, &self.split.train);
        self.of_rows("bag of words", counts, width)
    }

    fn of_one_number(&self, name: &'static str, score: impl Fn(usize) -> f64) -> Result<Baseline> {
        let scores: Vec<f64> = self.stated.unique.iter().map(|&i| score(i)).collect();
        let read = baseline::read_off(&scores, self.known, self.split, self.bootstrap)?;
        Ok(Baseline {
            name,
            accuracy: read.accuracy,
            ends: [read.ci_low, read.ci_high],
            auc: read.auc,
        })
    }

    fn of_rows(&self, name: &'static str, rows: Vec<f32>, width: usize) -> Result<Baseline> {
        let layer = LayerRows {
            hook: name.into(),
            layer: 0,
            width,
            rows: rows.into(),
        };
        let probing = Probing::default();
        let read = probe(&layer, self.known, self.split, &probing, self.bootstrap)?;
        Ok(Baseline {
            name,
            accuracy: read.accuracy,
            ends: [read.ci_low, read.ci_high],
            auc: read.auc,
        })
    }
}

/// How a direction of a layer reads held-out statements whose truth a "not" has turned.
#[derive(Debug, Clone)]
pub(super) struct Negated {
    /// Statements that a "not" could be put in.
    pub n: usize,
    /// AUC by the negated statements' own truth, and without the "not".
    pub negated: Number,
    pub plain: Number,
}

impl Negated {
    /// `back`: which token is read, 1 for the last. `None` where no held-out statement can be negated.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn read(
        study: &Study<'_>,
        held: Held<'_>,
        layer: usize,
        direction: &[f32],
        back: usize,
    ) -> Result<Option<Self>> {
        let stated = held.stated;
        let pairs: Vec<(usize, String)> = held
            .split
            .test
            .iter()
            .filter_map(|&i| {
                let statement = stated.unique[i];
                Some((statement, baseline::negated(&stated.texts[statement])?))
            })
            .collect();
        if pairs.is_empty() {
            return Ok(None);
        }
        let tokens = pairs
            .iter()
            .map(|(_, text)| statements::tokens(study.prepared(), text))
            .collect::<Result<Vec<_>>>()?;
        let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let at = |t: &Vec<u32>| vec![t.len().saturating_sub(back) as u32];
        let at: Vec<Vec<u32>> = tokens.iter().map(at).collect();
        let rows = study.rows(&[point(Site::ResidPost, layer)], &sequences, &at, None)?;
        let d = direction.len();
        let said: Vec<f64> = rows[0]
            .chunks_exact(d)
            .map(|row| dot(row, direction))
            .collect();
        let held_rows = [&stated.last, &stated.before_last][back - 1];
        let plain: Vec<f64> = pairs
            .iter()
            .map(|&(i, _)| dot(&held_rows[layer][i * d..][..d], direction))
            .collect();

        let which: Vec<usize> = pairs.iter().map(|&(i, _)| i).collect();
        let labels: Vec<bool> = which.iter().map(|&i| stated.known.labels[i]).collect();
        let turned: Vec<bool> = labels.iter().map(|label| !label).collect();
        let groups = stated.known.group_numbers(&which);
        let area = |name: &str, scores: &[f64], labels: &[bool]| {
            let ends = baseline::auc_interval(scores, labels, &groups, held.bootstrap);
            number(name, auc(scores, labels).unwrap_or(f64::NAN), "")
                .interval(ends.bca())
                .over(groups.iter().max().map_or(0, |last| last + 1))
        };
        Ok(Some(Negated {
            n: pairs.len(),
            negated: area(
                "AUC of negated held-out statements, by their own truth",
                &said,
                &turned,
            )
            .note("below one half: what is read goes with the words and not with what they say"),
            plain: area(
                "AUC of the same statements without the 'not'",
                &plain,
                &labels,
            ),
        }))
    }

    /// What that says.
    pub fn told(&self) -> String {
        let [low, high] = self.negated.interval.unwrap_or([f64::NAN; 2]);
        format!(
            "Of {} held-out statements with a 'not' put behind their verb, the AUC is {} by the new truth, and {} without it. {}",
            self.n,
            tell::with_interval(&self.negated),
            tell::with_interval(&self.plain),
            if high < 0.5 {
                "It goes the wrong way round: what is read here are the words, not whether they hold."
            } else if low > 0.5 {
                "So what is read follows the negation."
            } else {
                "So there is no sign that what is read follows a negation."
            }
        )
    }
}
