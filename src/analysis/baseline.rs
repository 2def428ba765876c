//! Simpler explanations of what a direction tells apart: the words that a statement has ([`bag_of_words`]), any one number that is known
//! of it, its length or its probability for instance ([`read_off`]); and what a statement says the other way round ([`negated`]).

use std::collections::BTreeMap;

use super::bootstrap::{Bootstrap, Interval};
use super::roc::auc;
use super::scored::{HeldOut, grouped};
use super::split::{Split, Statements};
use super::{Error, Result};

/// The words of a text: runs of at least two letters, digits or underscores, in lower case (scikit-learn's `CountVectorizer`).
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.chars().nth(1).is_some())
        .map(str::to_lowercase)
}

/// How often each word of the training texts, in alphabetical order, stands in each text: row-major `[texts, words]`, and the number of words.
/// A word that no training text has is not counted.
pub fn bag_of_words(texts: &[&str], train: &[usize]) -> (Vec<f32>, usize) {
    let mut columns: BTreeMap<String, usize> = BTreeMap::new();
    for &i in train {
        columns.extend(words(texts[i]).map(|word| (word, 0)));
    }
    columns
        .values_mut()
        .enumerate()
        .for_each(|(at, column)| *column = at);
    let width = columns.len();
    let mut counts = vec![0.0; texts.len() * width];
    for (row, text) in texts.iter().enumerate() {
        for column in words(text).filter_map(|word| columns.get(&word)) {
            counts[row * width + column] += 1.0;
        }
    }
    (counts, width)
}

/// How well one number per statement tells true from false.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Reading {
    pub n_train: usize,
    pub n_test: usize,
    /// Held out, by the midpoint of the two training means.
    pub accuracy: f64,
    pub ci_low: f64,
    pub ci_high: f64,
    /// Held out, with the side that true statements are on in training.
    pub auc: f64,
    pub auc_low: f64,
    pub auc_high: f64,
    pub threshold: f64,
    /// Whether true statements have the higher numbers in training.
    pub rising: bool,
}

/// Reads truth off `scores`, one per statement: the side and the threshold come of the training statements, intervals of groups of held-out ones.
///
/// # Errors
/// Scores that are not as many as the labels or not finite, a side that lacks a label.
pub fn read_off(
    scores: &[f64],
    statements: &Statements,
    split: &Split,
    bootstrap: &Bootstrap,
) -> Result<Reading> {
    statements.check()?;
    check(scores, statements)?;
    let mean = |label: bool| {
        let of = split
            .train
            .iter()
            .filter(|&&i| statements.labels[i] == label);
        let (n, sum) = of.fold((0, 0.0), |(n, sum), &i| (n + 1, sum + scores[i]));
        let none = Error::OneLabel {
            side: "training",
            label,
        };
        if n == 0 {
            Err(none)
        } else {
            Ok(sum / f64::from(n))
        }
    };
    let (yes, no) = (mean(true)?, mean(false)?);
    let (rising, threshold) = (yes >= no, (yes + no) / 2.0);
    let side = if rising { 1.0 } else { -1.0 };
    let held_out: Vec<f64> = split.test.iter().map(|&i| side * scores[i]).collect();
    let labels: Vec<bool> = split.test.iter().map(|&i| statements.labels[i]).collect();
    let HeldOut { accuracy, auc } =
        HeldOut::of(&held_out, side * threshold, statements, split, bootstrap)?;
    let groups = statements.group_numbers(&split.test);
    let around = auc_interval(&held_out, &labels, &groups, bootstrap);
    Ok(Reading {
        n_train: split.train.len(),
        n_test: split.test.len(),
        accuracy: accuracy.share,
        ci_low: accuracy.low,
        ci_high: accuracy.high,
        auc,
        auc_low: around.low,
        auc_high: around.high,
        threshold,
        rising,
    })
}

fn check(scores: &[f64], statements: &Statements) -> Result<()> {
    if scores.len() != statements.labels.len() {
        return Err(Error::Mismatch {
            what: "scores".into(),
            found: scores.len(),
            expected: statements.labels.len(),
        });
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(row) => Err(Error::NotFinite {
            hook: "scores".into(),
            row,
        }),
        None => Ok(()),
    }
}

/// The interval of an AUC over groups; a resample without one of the labels counts as one half.
///
/// # Panics
/// When there is no item, or lists differ in length.
pub fn auc_interval(
    scores: &[f64],
    labels: &[bool],
    groups: &[usize],
    bootstrap: &Bootstrap,
) -> Interval {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    grouped(groups, bootstrap, |items| {
        let scores: Vec<f64> = items.iter().map(|&i| scores[i]).collect();
        let labels: Vec<bool> = items.iter().map(|&i| labels[i]).collect();
        auc(&scores, &labels).unwrap_or(0.5)
    })
}

/// Verbs that take a "not" behind them.
const VERBS: [&str; 12] = [
    "is", "are", "was", "were", "can", "could", "will", "would", "should", "must", "may", "cannot",
];

/// The statement with "not" behind its first such verb: true where it was false. `None` where it has none, or has a "not" already.
pub fn negated(statement: &str) -> Option<String> {
    let spaced: Vec<&str> = statement.split(' ').collect();
    if spaced
        .iter()
        .any(|word| matches!(*word, "not" | "cannot" | "never" | "no"))
    {
        return None;
    }
    let verb = spaced.iter().position(|word| VERBS.contains(word))?;
    let (before, after) = spaced.split_at(verb + 1);
    (!after.is_empty()).then(|| format!("{} not {}", before.join(" "), after.join(" ")))
}

/// The first two words of a statement, in lower case: statements of one opening are often made alike.
pub fn opening(statement: &str) -> String {
    let first: Vec<String> = statement
        .split_whitespace()
        .take(2)
        .map(str::to_lowercase)
        .collect();
    first.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] = [
        "The moon's far side isn't dark, is it?",
        "A moon is a MOON.",
        "Water boils at 100 degrees.",
        "Zürich is a city of Peru.",
    ];

    #[test]
    fn words_are_counted_as_scikit_learn_counts_them() {
        // sklearn 1.9.1: CountVectorizer().fit(texts[:3]).transform(texts), get_feature_names_out
        let (counts, width) = bag_of_words(&TEXTS, &[0, 1, 2]);
        let of = |i: usize| words(TEXTS[i]).collect::<Vec<_>>();
        assert_eq!(
            of(0),
            ["the", "moon", "far", "side", "isn", "dark", "is", "it"]
        );
        assert_eq!(of(3), ["zürich", "is", "city", "of", "peru"]);
        // 100, at, boils, dark, degrees, far, is, isn, it, moon, side, the, water
        let rows: Vec<&[f32]> = counts.chunks_exact(width).collect();
        assert_eq!(
            rows[0],
            [0., 0., 0., 1., 0., 1., 1., 1., 1., 1., 1., 1., 0.]
        );
        assert_eq!(
            rows[1],
            [0., 0., 0., 0., 0., 0., 1., 0., 0., 2., 0., 0., 0.]
        );
        assert_eq!(
            rows[2],
            [1., 1., 1., 0., 1., 0., 0., 0., 0., 0., 0., 0., 1.]
        );
        assert_eq!(
            rows[3],
            [0., 0., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0.]
        );
    }

    fn statements() -> (Vec<f64>, Statements, Split) {
        let labels: Vec<bool> = (0..40).map(|i| i % 2 == 0).collect();
        let scores = (0..40)
            .map(|i| if i % 2 == 0 { -1.0 } else { 1.0 } + f64::from(i % 5))
            .collect();
        let statements = Statements {
            labels,
            groups: Some((0..40).map(|i| (i / 4).to_string()).collect()),
            topics: None,
        };
        let split = Split {
            train: (0..20).collect(),
            test: (20..40).collect(),
        };
        (scores, statements, split)
    }

    #[test]
    fn the_side_and_the_threshold_come_of_training_alone() {
        let (mut scores, statements, split) = statements();
        let bootstrap = Bootstrap {
            resamples: 500,
            ..Default::default()
        };
        let found = read_off(&scores, &statements, &split, &bootstrap).unwrap();
        // sklearn 1.9.1: roc_auc_score(labels[20:], -scores[20:])
        assert!((found.auc - 0.82).abs() < 1e-12, "{found:?}");
        assert_eq!((found.rising, found.threshold), (false, 2.0));
        assert!(found.auc_low < 0.82 && 0.82 < found.auc_high, "{found:?}");
        // Held-out statements the other way round: called wrong, and not turned.
        scores[20..]
            .iter_mut()
            .for_each(|score| *score = 4.0 - *score);
        let turned = read_off(&scores, &statements, &split, &bootstrap).unwrap();
        assert!((turned.auc - 0.18).abs() < 1e-12, "{turned:?}");
        assert!(turned.accuracy < 0.5);
    }

    #[test]
    fn a_score_that_is_not_there_is_named() {
        let (mut scores, statements, split) = statements();
        scores[7] = f64::NAN;
        let message = |scores: &[f64]| {
            read_off(scores, &statements, &split, &Bootstrap::default())
                .unwrap_err()
                .to_string()
        };
        assert!(
            message(&scores).contains("statement 7"),
            "{}",
            message(&scores)
        );
        assert!(message(&scores[..3]).starts_with("scores: 3 where"));
    }

    #[test]
    fn a_statement_is_negated_behind_its_first_verb_or_left() {
        let negated = |text| negated(text).unwrap_or_default();
        assert_eq!(
            negated("The capital of Peru is Lima."),
            "The capital of Peru is not Lima."
        );
        assert_eq!(
            negated("Cats can see at night."),
            "Cats can not see at night."
        );
        assert_eq!(negated("Water boils."), "");
        assert_eq!(negated("Peru is not a city."), "");
        assert_eq!(opening("The  Human heart beats."), "the human");
    }
}
