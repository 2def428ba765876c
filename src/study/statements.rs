//! The facts as plain text: a beginning-of-sequence token and the statement, without a chat's turns; what the model holds at the last
//! token of each and at the one before it, and how likely it finds each token.

use super::inputs::lacks;
use super::passes::point;
use super::{Facts, Result, Study};
use crate::analysis::{Statements, baseline};
use crate::backend::{HEAD_ROWS, HeadRows};
use crate::engine::Prepared;
use crate::hooks::Site;

/// In the quick form, so many statements.
const QUICK: usize = 120;

/// Statements of one opening make a group that splits don't part; as a topic to leave out they must be this many.
const TOPIC: usize = 10;

/// What is read of each statement.
pub(super) struct Stated {
    pub texts: Vec<String>,
    /// Labels; groups and topics are the file's, or, where it has none, those of one opening.
    pub known: Statements,
    /// The file has groups, or topics.
    pub of_the_file: bool,
    /// The first of equal statements, those that stand there with either label left out.
    pub unique: Vec<usize>,
    pub tokens: Vec<Vec<u32>>,
    /// By layer, `[statements, d]`: `hook_resid_post` at the last token.
    pub last: Vec<Vec<f32>>,
    /// The same at the token before it.
    pub before_last: Vec<Vec<f32>>,
}

impl Stated {
    /// Runs all statements, once.
    ///
    /// # Errors
    /// No tokenizer, and what a backend can fail at.
    pub fn run(study: &Study<'_>) -> Result<Self> {
        let facts = of(study.facts(), study.options().quick);
        let texts: Vec<String> = facts
            .iter()
            .map(|&i| study.facts().facts[i].statement.clone())
            .collect();
        let tokens = texts
            .iter()
            .map(|text| tokens(study.prepared(), text))
            .collect::<Result<Vec<_>>>()?;
        let mut layers = rows(study, &tokens)?;
        let d = study.prepared().dims.d_model;
        let every_second = |rows: &Vec<f32>, first: usize| -> Vec<f32> {
            let rows = rows.chunks_exact(d).skip(first).step_by(2);
            rows.flatten().copied().collect()
        };
        let before_last = layers.iter().map(|rows| every_second(rows, 0)).collect();
        layers
            .iter_mut()
            .for_each(|rows| *rows = every_second(rows, 1));
        let known = known(study.facts(), &facts);
        Ok(Stated {
            unique: unique(&texts, &known.labels),
            of_the_file: study
                .facts()
                .facts
                .iter()
                .any(|f| f.topic.is_some() || f.group.is_some()),
            texts,
            known,
            tokens,
            last: layers,
            before_last,
        })
    }

    /// What is known of some of the statements.
    pub fn of(&self, which: &[usize]) -> Statements {
        let pick = |list: &Option<Vec<String>>| {
            let list = list.as_ref()?;
            Some(which.iter().map(|&i| list[i].clone()).collect())
        };
        Statements {
            labels: which.iter().map(|&i| self.known.labels[i]).collect(),
            topics: pick(&self.known.topics),
            groups: pick(&self.known.groups),
        }
    }
}

/// Which of the facts are read: all, or, in the quick form, as many evenly over the file.
fn of(facts: &Facts, quick: bool) -> Vec<usize> {
    let n = facts.facts.len();
    let kept = if quick { QUICK.min(n) } else { n };
    (0..kept).map(|i| i * n / kept).collect()
}

/// A beginning-of-sequence token, where the model has one, and the text; the tokenizer may have put it there.
pub(super) fn tokens(prepared: &Prepared, text: &str) -> Result<Vec<u32>> {
    let tokenising = &prepared.tokenising;
    let tokenizer = tokenising.tokenizer.as_ref();
    let tokenizer = tokenizer.ok_or_else(|| lacks(prepared, "tokenizer"))?;
    let mut ids = tokenizer.encode(text, true)?.ids;
    if let Some(bos) = tokenising.bos.filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// By layer, the rows at the last two tokens of each statement.
fn rows(study: &Study<'_>, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
    let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let n_layers = study.prepared().dims.n_layers;
    let points: Vec<_> = (0..n_layers)
        .map(|layer| point(Site::ResidPost, layer))
        .collect();
    let ends: Vec<Vec<u32>> = tokens
        .iter()
        .map(|t| {
            let n = t.len() as u32;
            vec![n - 2, n - 1]
        })
        .collect();
    study.rows(&points, &sequences, &ends, None)
}

/// log p of each token of each sequence but its first, in nats.
pub(super) fn log_probabilities(study: &Study<'_>, sequences: &[&[u32]]) -> Result<Vec<Vec<f64>>> {
    let before: Vec<Vec<u32>> = sequences
        .iter()
        .map(|s| (0..s.len() as u32 - 1).collect())
        .collect();
    let next: Vec<Option<u32>> = sequences
        .iter()
        .flat_map(|s| s[1..].iter().map(|&t| Some(t)))
        .collect();
    let normed = study.rows(&[point(Site::LnFinalOut, 0)], sequences, &before, None)?;
    let d = study.prepared().dims.d_model;
    let mut found = Vec::with_capacity(next.len());
    for (normed, next) in normed[0].chunks(HEAD_ROWS * d).zip(next.chunks(HEAD_ROWS)) {
        let rows = HeadRows {
            normed,
            edits: Vec::new(),
        };
        let scores = study.machine().scores(rows, next, 0)?;
        found.extend(scores.into_iter().filter_map(|s| s.logprob));
    }
    let mut found = found.into_iter();
    Ok(before
        .iter()
        .map(|at| found.by_ref().take(at.len()).collect())
        .collect())
}

/// Labels, groups and topics of these facts.
fn known(facts: &Facts, which: &[usize]) -> Statements {
    let facts: Vec<_> = which.iter().map(|&i| &facts.facts[i]).collect();
    let openings: Vec<String> = facts
        .iter()
        .map(|f| baseline::opening(&f.statement))
        .collect();
    let many = |opening: &String| openings.iter().filter(|o| *o == opening).count() >= TOPIC;
    let topic = |(fact, opening): (&&super::Fact, &String)| match &fact.topic {
        Some(topic) => topic.clone(),
        None if many(opening) => opening.clone(),
        None => String::new(),
    };
    let group = |(fact, opening): (&&super::Fact, &String)| {
        let of_file = fact.group.as_ref().or(fact.topic.as_ref());
        of_file.unwrap_or(opening).clone()
    };
    Statements {
        labels: facts.iter().map(|f| f.label).collect(),
        topics: Some(facts.iter().zip(&openings).map(topic).collect()),
        groups: Some(facts.iter().zip(&openings).map(group).collect()),
    }
}

/// The first of equal texts, where all of these have one label.
fn unique(texts: &[String], labels: &[bool]) -> Vec<usize> {
    let mut seen: std::collections::HashMap<&str, (usize, bool)> = std::collections::HashMap::new();
    for (i, (text, &label)) in texts.iter().zip(labels).enumerate() {
        let known = seen.entry(text).or_insert((i, true));
        known.1 &= labels[known.0] == label;
    }
    let mut firsts: Vec<usize> = seen.into_values().filter(|k| k.1).map(|k| k.0).collect();
    firsts.sort_unstable();
    firsts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_statements_the_first_stays_and_contradictions_go() {
        let texts = ["a", "b", "a", "c", "b", "d"].map(str::to_owned);
        let labels = [true, false, true, true, true, false];
        assert_eq!(unique(&texts, &labels), [0, 3, 5]);
    }
}
