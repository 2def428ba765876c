//! Which statements a direction is fitted on, and which are held out to score it.

use std::collections::{BTreeMap, HashMap};

use super::random::Rng;
use super::{Error, Result};

/// What is known of each statement besides its activations; one entry per statement, in the order of the rows.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    /// True or false.
    pub labels: Vec<bool>,
    /// Topics, to spread each over both sides of a split.
    pub topics: Option<Vec<String>>,
    /// Groups of statements that share words or an opening and must not be parted by a split; they are also what
    /// the bootstrap draws. Without groups each statement is one of its own.
    pub groups: Option<Vec<String>>,
}

/// Indices of statements, ascending, on either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<usize>,
    pub test: Vec<usize>,
}

impl Statements {
    /// An error unless topics and groups, where given, are as many as the labels.
    pub fn check(&self) -> Result<()> {
        for (what, list) in [("topics", &self.topics), ("groups", &self.groups)] {
            if let Some(list) = list
                && list.len() != self.labels.len()
            {
                let expected = self.labels.len();
                return Err(Error::Mismatch {
                    what: what.into(),
                    found: list.len(),
                    expected,
                });
            }
        }
        Ok(())
    }

    /// The group of each of the statements `indices`, as numbers from 0 in order of first appearance.
    pub(crate) fn group_numbers(&self, indices: &[usize]) -> Vec<usize> {
        let Some(groups) = &self.groups else {
            return (0..indices.len()).collect();
        };
        let mut numbers = HashMap::new();
        indices
            .iter()
            .map(|&i| {
                let next = numbers.len();
                *numbers.entry(groups[i].as_str()).or_insert(next)
            })
            .collect()
    }
}

/// Hold out about `test_share` of the statements, whole groups at a time, the same share of every stratum.
///
/// A stratum is the groups of one topic (that of the group's first statement) with the same numbers of true and
/// false statements; without groups that is topic × label. Groups are shuffled within their stratum by `seed`
/// alone, so the split depends on labels, topics and groups, never on activations.
///
/// # Errors
/// When lists and labels differ in length, the share is not inside (0, 1), or a side lacks one of the labels.
pub fn split(statements: &Statements, test_share: f64, seed: u64) -> Result<Split> {
    statements.check()?;
    if !(test_share > 0.0 && test_share < 1.0) {
        return Err(Error::TestShare(test_share));
    }
    let all: Vec<usize> = (0..statements.labels.len()).collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (&i, group) in all.iter().zip(statements.group_numbers(&all)) {
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(i);
    }

    let mut strata: BTreeMap<(&str, usize, usize), Vec<Vec<usize>>> = BTreeMap::new();
    for group in groups {
        let topic = statements
            .topics
            .as_ref()
            .map_or("", |topics| &topics[group[0]]);
        let n_true = group.iter().filter(|&&i| statements.labels[i]).count();
        strata
            .entry((topic, n_true, group.len() - n_true))
            .or_default()
            .push(group);
    }

    let mut rng = Rng::new(seed);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    // What rounding takes from one stratum the next makes good, so that the total is right too.
    let (mut seen, mut held_out) = (0, 0);
    for mut stratum in strata.into_values() {
        rng.shuffle(&mut stratum);
        seen += stratum.len();
        let wanted = (test_share * seen as f64).round() as usize - held_out;
        held_out += wanted;
        test.extend(stratum.drain(..wanted).flatten());
        train.extend(stratum.into_iter().flatten());
    }
    train.sort_unstable();
    test.sort_unstable();
    for (side, indices) in [("training", &train), ("held-out", &test)] {
        for label in [true, false] {
            if !indices.iter().any(|&i| statements.labels[i] == label) {
                return Err(Error::OneLabel { side, label });
            }
        }
    }
    Ok(Split { train, test })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 topics of 40 statements, squares of four.
    fn facts() -> Statements {
        Statements {
            labels: (0..120).map(|i| i % 4 < 2).collect(),
            topics: Some((0..120).map(|i| format!("topic {}", i % 3)).collect()),
            groups: Some((0..120).map(|i| format!("{}-{}", i % 3, i / 12)).collect()),
        }
    }

    #[test]
    fn every_statement_is_on_one_side_and_no_group_on_both() {
        let facts = facts();
        let Split { train, test } = split(&facts, 0.5, 7).unwrap();
        let mut all = [train.clone(), test.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..120).collect::<Vec<_>>());
        let groups = facts.groups.unwrap();
        assert!(
            train
                .iter()
                .all(|&a| test.iter().all(|&b| groups[a] != groups[b]))
        );
    }

    #[test]
    fn topics_and_labels_have_the_same_share_on_both_sides() {
        for groups in [facts().groups, None] {
            let facts = Statements { groups, ..facts() };
            let test = split(&facts, 0.5, 7).unwrap().test;
            let topics = facts.topics.as_ref().unwrap();
            for topic in 0..3 {
                let of_topic = |label| {
                    let name = format!("topic {topic}");
                    test.iter()
                        .filter(|&&i| topics[i] == name && facts.labels[i] == label)
                        .count()
                };
                assert_eq!((of_topic(true), of_topic(false)), (10, 10));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_split_and_another_seed_another() {
        assert_eq!(
            split(&facts(), 0.5, 7).unwrap(),
            split(&facts(), 0.5, 7).unwrap()
        );
        assert_ne!(
            split(&facts(), 0.5, 7).unwrap(),
            split(&facts(), 0.5, 8).unwrap()
        );
    }

    #[test]
    fn rounding_in_small_strata_does_not_move_the_total() {
        let labels: Vec<bool> = (0..100).map(|i| i % 2 == 0).collect();
        let topics = Some((0..100).map(|i| (i / 2).to_string()).collect());
        let split = split(
            &Statements {
                labels,
                topics,
                groups: None,
            },
            0.3,
            1,
        )
        .unwrap();
        assert_eq!((split.train.len(), split.test.len()), (70, 30));
    }

    #[test]
    fn what_cannot_be_split_is_refused_with_the_reason() {
        let message =
            |statements: &Statements, share| split(statements, share, 0).unwrap_err().to_string();
        assert!(message(&facts(), 1.0).starts_with("test share 1: it must lie between"));
        let one_label = Statements {
            labels: vec![true; 20],
            ..Default::default()
        };
        assert!(
            message(&one_label, 0.5)
                .starts_with("the training side of the split has no false statement")
        );
        let short = Statements {
            topics: Some(vec!["a".into()]),
            ..facts()
        };
        assert!(
            message(&short, 0.5)
                .starts_with("topics: 1 where the labels of 120 statements need 120")
        );
    }
}
