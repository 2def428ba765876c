//! The project's own statements (`data/facts.csv`): balanced, each once, and nothing but the facts gives the label away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use streamgauge::analysis::roc::auc;

#[derive(serde::Deserialize, Clone)]
struct Fact {
    id: String,
    statement: String,
    label: u8,
    topic: String,
    template: String,
    group: String,
}

impl Fact {
    fn is_true(&self) -> bool {
        self.label == 1
    }

    fn words(&self) -> Vec<String> {
        self.statement
            .trim_end_matches('.')
            .to_lowercase()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn facts() -> Vec<Fact> {
    let mut reader = csv::Reader::from_path(root().join("data/facts.csv")).unwrap();
    reader.deserialize().collect::<Result<_, _>>().unwrap()
}

/// (true, false) statements by the value of a key.
fn counts(key: impl Fn(&Fact) -> String) -> BTreeMap<String, (usize, usize)> {
    let mut counts = BTreeMap::<_, (usize, usize)>::new();
    for fact in facts() {
        let count = counts.entry(key(&fact)).or_default();
        if fact.is_true() {
            count.0 += 1
        } else {
            count.1 += 1
        }
    }
    counts
}

fn assert_balanced(what: &str, counts: &BTreeMap<String, (usize, usize)>) {
    let uneven: Vec<_> = counts.iter().filter(|(_, (yes, no))| yes != no).collect();
    assert!(uneven.is_empty(), "{what}: {uneven:?}");
}

#[test]
fn there_are_at_least_600_statements_in_at_least_6_topics_and_labels_are_0_and_1() {
    assert!(facts().len() >= 600);
    assert!(facts().iter().all(|fact| fact.label <= 1));
    let topics = counts(|fact| fact.topic.clone());
    assert!(
        topics.len() >= 6 && topics.values().all(|(yes, no)| yes + no >= 60),
        "{topics:?}"
    );
}

#[test]
fn true_and_false_are_balanced_overall_and_in_every_topic_template_and_group() {
    assert_balanced("all", &counts(|_| String::new()));
    assert_balanced("topic", &counts(|fact| fact.topic.clone()));
    assert_balanced("template", &counts(|fact| fact.template.clone()));
    let groups = counts(|fact| fact.group.clone());
    assert!(groups.values().all(|&count| count == (2, 2)), "{groups:?}");
}

#[test]
fn every_word_is_in_as_many_true_as_false_statements() {
    let mut words = BTreeMap::<String, (usize, usize)>::new();
    for fact in facts() {
        for word in fact.words() {
            let count = words.entry(word).or_default();
            if fact.is_true() {
                count.0 += 1
            } else {
                count.1 += 1
            }
        }
    }
    assert_balanced("word", &words);
}

#[test]
fn first_and_last_words_are_balanced_where_they_stand() {
    assert_balanced("first word", &counts(|fact| fact.words().swap_remove(0)));
    assert_balanced("last word", &counts(|fact| fact.words().pop().unwrap()));
}

#[test]
fn each_statement_and_each_id_is_there_once_whatever_its_case_and_punctuation() {
    let plain = |text: &str| -> String {
        let kept = text.chars().map(|c| {
            if c.is_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                ' '
            }
        });
        kept.collect::<String>()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let distinct: BTreeSet<_> = facts().iter().map(|fact| plain(&fact.statement)).collect();
    assert_eq!(distinct.len(), facts().len());
    let ids: BTreeSet<_> = facts().into_iter().map(|fact| fact.id).collect();
    assert_eq!(ids.len(), facts().len());
}

#[test]
fn statements_are_one_sentence_of_plain_text() {
    for Fact { statement, .. } in facts() {
        let tidy = statement == statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let sentence =
            statement.starts_with(|c: char| c.is_ascii_uppercase()) && statement.ends_with('.');
        assert!(tidy && sentence && statement.is_ascii(), "{statement:?}");
    }
}

#[test]
fn length_does_not_tell_true_from_false() {
    let facts = facts();
    let labels: Vec<bool> = facts.iter().map(Fact::is_true).collect();
    for (unit, length) in [
        (
            "characters",
            (|fact: &Fact| fact.statement.len()) as fn(&Fact) -> usize,
        ),
        ("words", |fact| fact.words().len()),
    ] {
        let lengths: Vec<f64> = facts.iter().map(|fact| length(fact) as f64).collect();
        let area = auc(&lengths, &labels).unwrap();
        assert!((area - 0.5).abs() <= 0.03, "AUC {area} by {unit}");
    }
}

#[test]
fn the_order_of_the_file_mixes_labels_and_topics() {
    let facts = facts();
    let labels: Vec<bool> = facts.iter().map(Fact::is_true).collect();
    let places: Vec<f64> = (0..facts.len()).map(|place| place as f64).collect();
    let area = auc(&places, &labels).unwrap();
    assert!(
        (area - 0.5).abs() <= 0.05,
        "AUC {area} by place in the file"
    );
    let topics: BTreeSet<_> = facts[..60].iter().map(|fact| &fact.topic).collect();
    assert_eq!(topics.len(), counts(|fact| fact.topic.clone()).len());
}

/// Accuracy of naive Bayes on bags of words (Laplace smoothing), folds by `fold`; each fold is held out in turn.
/// A tie counts half.
fn naive_bayes_accuracy<Fold: Ord>(fold: impl Fn(&Fact) -> Fold) -> f64 {
    let facts = facts();
    let folds: BTreeSet<_> = facts.iter().map(&fold).collect();
    let mut right = 0.0;
    for held_out in folds {
        let (test, train): (Vec<_>, Vec<_>) = facts.iter().partition(|fact| fold(fact) == held_out);
        let mut counts = HashMap::<String, [f64; 2]>::new();
        let mut totals = [0.0; 2];
        for fact in train {
            for word in fact.words() {
                counts.entry(word).or_default()[usize::from(fact.label)] += 1.0;
                totals[usize::from(fact.label)] += 1.0;
            }
        }
        let vocabulary = counts.len() as f64;
        for fact in test {
            let log_odds: f64 = fact
                .words()
                .iter()
                .filter_map(|word| counts.get(word))
                .map(|[no, yes]| {
                    ((yes + 1.0) / (totals[1] + vocabulary)).ln()
                        - ((no + 1.0) / (totals[0] + vocabulary)).ln()
                })
                .sum();
            right += match (log_odds.abs() < 1e-9, (log_odds > 0.0) == fact.is_true()) {
                (true, _) => 0.5,
                (false, right) => f64::from(u8::from(right)),
            };
        }
    }
    right / facts.len() as f64
}

/// A fold of a name, the same everywhere (FNV-1a).
fn hashed_fold(name: &str, folds: u64) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    }) % folds
}

#[test]
fn words_learned_from_other_groups_or_topics_leave_the_label_at_chance() {
    // Exactly one half: in a group every word is in two true and two false statements or in one and one, so no
    // training set of whole groups or topics can favour a side, whatever the weights it learns.
    let by_group = naive_bayes_accuracy(|fact| hashed_fold(&fact.group, 5));
    assert!((by_group - 0.5).abs() < 1e-9, "{by_group} by group");
    let by_topic = naive_bayes_accuracy(|fact| fact.topic.clone());
    assert!((by_topic - 0.5).abs() < 1e-9, "{by_topic} by topic");
}

#[test]
fn words_learned_from_single_statements_do_worse_than_chance_which_is_why_groups_are_split_whole() {
    // A held-out statement's subject and object were seen in training with the other label (see make_facts.py):
    // measured 0.07, which is no knowledge of facts either. Whoever splits this set must keep groups together.
    let by_statement = naive_bayes_accuracy(|fact| hashed_fold(&fact.id, 5));
    assert!(by_statement <= 0.5, "{by_statement} by statement");
}

#[test]
fn the_script_makes_the_committed_file() {
    let script = root().join("scripts/make_facts.py");
    let output = std::process::Command::new("python3")
        .arg(script)
        .arg("--check")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
