//! The study's controls and its experiments without patches, on a tiny model that can chat: that each number is what it says it is,
//! computed anew by another way.

mod common;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use assert_cmd::Command;
use serde_json::Value;

use common::tiny_chat::tiny_chat_model;
use streamgauge::backend::Weight;
use streamgauge::backend::cpu::StoredWeights;
use streamgauge::data::{Input, Record};
use streamgauge::engine::{Prepared, Sample, Scorer};
use streamgauge::report::finding::{Body, Finding, Number};
use streamgauge::study::Inputs;

const IDS: &str = "E1,E3,E4,E11,E12,C1,C2";

/// One quick study for all tests.
fn study() -> &'static (PathBuf, PathBuf) {
    static STUDY: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    STUDY.get_or_init(|| {
        // What is static is never dropped: a folder of this test's own, made anew.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("study-controls");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let (model, out) = (tiny_chat_model(&dir), dir.join("out"));
        Command::new(env!("CARGO_BIN_EXE_streamgauge"))
            .args(["study", "dishonesty", "--quick", "--device", "cpu"])
            .args(["--experiments", IDS])
            .arg("--model")
            .arg(&model)
            .arg("--out")
            .arg(&out)
            .assert()
            .success();
        (model, out)
    })
}

fn finding(id: &str) -> Finding {
    let file = study().1.join("findings").join(format!("{id}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn number<'f>(finding: &'f Finding, name: &str) -> &'f Number {
    let found = finding.numbers.iter().find(|n| n.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<&str> = finding.numbers.iter().map(|n| &n.name[..]).collect();
        panic!("no '{name}' in {names:?}")
    })
}

fn value(finding: &Finding, name: &str) -> f64 {
    number(finding, name).value.unwrap()
}

/// The rows of a table as column name → cell.
fn table(finding: &Finding, name: &str) -> Vec<std::collections::HashMap<String, Value>> {
    let exhibit = finding.exhibits.iter().find(|e| e.name == name).unwrap();
    let Body::Table { columns, rows } = &exhibit.body else {
        panic!("{name} is no table")
    };
    let row = |row: &Vec<Value>| columns.iter().cloned().zip(row.iter().cloned()).collect();
    rows.iter().map(row).collect()
}

/// (layer, c) of the study's edit.
fn choice() -> (usize, f64) {
    let choice = std::fs::read(study().1.join("choice.json")).unwrap();
    let choice: Value = serde_json::from_slice(&choice).unwrap();
    let choice = choice.get("choice").unwrap_or(&choice);
    (
        choice["layer"].as_u64().unwrap() as usize,
        choice["c"].as_f64().unwrap(),
    )
}

fn direction(layer: usize) -> Vec<f32> {
    let file = study().1.join("directions.safetensors");
    let model = &prepared(false).model.fingerprint;
    streamgauge::engine::direction_of_layer(&file, None, Some(layer), 64, model).unwrap()
}

fn prepared(edited: bool) -> Prepared {
    let (model, out) = study();
    let mut job = Inputs::job(&model.display().to_string());
    if edited {
        let (layer, c) = choice();
        let file = out.join("directions.safetensors");
        job.edits = vec![format!(
            "add at=blocks.{layer}.hook_resid_post v={}#direction.{layer} c={}",
            file.display(),
            c as f32
        )];
    }
    Prepared::for_generation(job).unwrap()
}

fn sample(prepared: &Prepared, text: &str) -> Sample {
    let record = Record {
        index: 0,
        file: Path::new("test").display().to_string().as_str().into(),
        line: 1,
        input: Input::Text(text.into()),
        spans: Vec::new(),
        kept: Vec::new(),
    };
    prepared.tokenising.samples(record).unwrap().remove(0)
}

/// The text of a shipped prompt.
fn prompt(id: &str) -> String {
    let file = include_str!("../data/behaviours/dishonesty-prompts.jsonl");
    let lines = file
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    let found = lines.into_iter().find(|l| l["id"] == id).unwrap();
    found["text"].as_str().unwrap().to_owned()
}

#[test]
fn every_finding_answers_its_question_and_has_numbers_with_what_to_read_them_beside() {
    for id in IDS.split(',') {
        let finding = finding(id);
        assert!(
            !finding.question.is_empty() && finding.answer.len() >= 2,
            "{id}"
        );
        assert!(
            !finding.exhibits.is_empty() && finding.numbers.len() >= 3,
            "{id}"
        );
        for told in &finding.answer {
            assert!(
                !told.contains("NaN") && !told.contains("not known"),
                "{id}: {told}"
            );
        }
        let beside = finding
            .numbers
            .iter()
            .filter(|n| !n.controls.is_empty())
            .count();
        assert!(beside > 0 || id == "E4", "{id}");
        for number in &finding.numbers {
            if let (Some(value), Some([low, high])) = (number.value, number.interval) {
                assert!(low <= high && value.is_finite(), "{id}: {number:?}");
            }
        }
    }
}

/// A share or an area has an interval over what was drawn, unless it is 0 or 1 of all of these or stands for the best of many layers.
#[test]
fn accuracies_and_areas_have_intervals_that_hold_them() {
    let mut with = 0;
    for id in ["E1", "E11", "E12", "C2"] {
        for number in &finding(id).numbers {
            let is_one = ["AUC", "accuracy", "share projected"]
                .iter()
                .any(|name| number.name.contains(name));
            let is_of_many_layers = number.name.contains(" of layers ");
            let Some(value) = number.value.filter(|_| is_one && !is_of_many_layers) else {
                continue;
            };
            match number.interval {
                Some([low, high]) => {
                    with += 1;
                    assert!(low <= value && value <= high, "{id}: {number:?}");
                    assert!(number.n.is_some(), "{id}: {number:?}");
                }
                None => assert!(value == 0.0 || value == 1.0, "{id}: {number:?}"),
            }
        }
    }
    assert!(with > 12, "{with}");
}

#[test]
fn the_entropies_of_the_unembedded_direction_are_those_of_the_product_with_the_head() {
    let prepared = prepared(false);
    let (d, vocab) = (64, prepared.dims.vocab);
    let weights = |weight: Weight, n: usize| {
        let mut values = vec![0.0_f32; n];
        prepared.model.tensor(weight).widen(0, &mut values);
        values
    };
    let (head, gain) = (
        weights(Weight::LmHead, vocab * d),
        weights(Weight::LnFinal, d),
    );
    let v = direction(choice().0);
    let entropy = |sign: f64, with_gain: bool| {
        let x = v
            .iter()
            .zip(&gain)
            .map(|(&v, &g)| sign * 8.0 * f64::from(v) * if with_gain { f64::from(g) } else { 1.0 });
        let x: Vec<f64> = x.collect();
        let logits = head.chunks_exact(d).map(|row| {
            let products = row.iter().zip(&x).map(|(&w, x)| f64::from(w) * x);
            products.sum::<f64>()
        });
        let logits: Vec<f64> = logits.collect();
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        let p = logits.iter().map(|l| l.exp() / sum);
        p.map(|p| -p * p.ln()).sum::<f64>()
    };
    let finding = finding("E3");
    for (sign, sign_name) in [(1.0, "+d"), (-1.0, "−d")] {
        for (with, gain_name) in [(true, "with gain"), (false, "without gain")] {
            let name = format!("entropy of {sign_name}, {gain_name}");
            let found = number(&finding, &name);
            let expected = entropy(sign, with);
            assert!(
                (found.value.unwrap() - expected).abs() < 1e-4,
                "{name}: {expected}"
            );
            assert_eq!(found.controls.len(), 2);
        }
    }
}

#[test]
fn the_first_tokens_difference_is_that_of_two_whole_passes_with_and_without_the_edit() {
    let (plain, edited) = (prepared(false), prepared(true));
    let rows = table(&finding("E4"), "E4-prompts");
    assert!(!rows.is_empty());
    for row in rows {
        let id = row["prompt"].as_str().unwrap();
        let text = prompt(id);
        let said = |prepared: &Prepared| {
            let sample = sample(prepared, &text);
            let last = vec![sample.row.tokens.len() as u32 - 1];
            let mut scorer = Scorer::new(prepared);
            let hidden = scorer.run(&[sample], &[last]).unwrap();
            scorer
                .score(&hidden, prepared.dims.vocab)
                .unwrap()
                .remove(0)
        };
        let (ours, theirs) = (said(&edited), said(&plain));
        let of = |token: u32| theirs.top.iter().find(|t| t.0 == token).unwrap().1;
        let expected = ours.top[0].1 - of(ours.argmax);
        let found = row["first_difference"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9, "{id}: {found}, {expected}");
        assert_eq!(
            row["first_differs"].as_bool().unwrap(),
            ours.argmax != theirs.argmax
        );
    }
}

#[test]
fn pushes_are_compared_at_the_studys_length_and_where_the_kl_is_the_studys() {
    let finding = finding("C1");
    let (_, c) = choice();
    let kl = value(&finding, "KL(edited ‖ plain) of the first token");
    let rows = table(&finding, "C1-directions");
    let number =
        |row: &std::collections::HashMap<String, Value>, name: &str| row[name].as_f64().unwrap();
    let (mut random, mut met) = (0, 0);
    for row in &rows {
        if row["strength"] == "at equal norm" {
            assert!((number(row, "c") - c.abs()).abs() < 1e-9 * c.abs());
            random += usize::from(row["directions"] == "random");
        } else if (number(row, "kl") / kl).ln().abs() < 0.051 {
            met += 1;
        }
    }
    assert_eq!(random, 20);
    // All of them would do where the measure grows with the strength; it may level off below.
    assert!(met > rows.len() / 4, "{met} of {}", rows.len() / 2);
    assert!(kl > 0.0);
}

#[test]
fn a_random_push_at_no_strength_would_leave_the_odds_alone_and_the_studys_own_recovers_all() {
    let finding = finding("C1");
    let recovery = value(&finding, "recovery of the edited run's distribution");
    assert!((recovery - 1.0).abs() < 1e-9, "{recovery}");
    for kind in table(&finding, "C1-summary").iter().skip(1) {
        assert!(kind["recovery"].as_f64().unwrap() < 1.0);
    }
}

#[test]
fn truth_is_counted_per_layer_and_the_chosen_layer_does_best_in_training_only() {
    let finding = finding("E11");
    let layers = table(&finding, "E11-table");
    assert_eq!(layers.len(), 3);
    for row in &layers {
        let n = 120.0;
        let right = row["accuracy_all"].as_f64().unwrap() * n;
        assert!(
            (right - right.round()).abs() < 1e-9,
            "a share of 120: {right}"
        );
        assert!((0.0..=1.0).contains(&row["auc_all"].as_f64().unwrap()));
    }
    let held_out = number(
        &finding,
        "held-out accuracy at the layer chosen in training",
    );
    let names: Vec<&str> = held_out.controls.iter().map(|c| &c.name[..]).collect();
    assert_eq!(
        names,
        [
            "length in tokens",
            "log-probability of the statement",
            "log-probability per token",
            "bag of words",
            "probe of layer 0"
        ]
    );
    assert!(table(&finding, "E11-topics").len() == 10);
}

#[test]
fn the_two_mass_mean_directions_are_told_apart_and_the_likelihood_of_text_is_a_scorers() {
    let finding12 = finding("E12");
    let rows = table(&finding12, "E12-table");
    assert_eq!(rows.iter().filter(|r| r["token"] == "last").count(), 3);
    assert_eq!(
        rows.iter().filter(|r| r["token"] == "before-last").count(),
        3
    );

    let finding = finding("C2");
    let passage = include_str!("../data/plain-text.txt")
        .lines()
        .next()
        .unwrap();
    let row = &table(&finding, "C2-passages")[0];
    for (edited, name) in [(false, "plain"), (true, "edited")] {
        let prepared = prepared(edited);
        let tokenizer = prepared.tokenising.tokenizer.as_ref().unwrap();
        let mut tokens = tokenizer.encode(passage, true).unwrap().ids;
        if tokens[0] != prepared.tokenising.bos.unwrap() {
            tokens.insert(0, prepared.tokenising.bos.unwrap());
        }
        let mut of = sample(&prepared, "a");
        of.row.tokens = tokens.clone();
        let at = (0..tokens.len() as u32 - 1).collect();
        let mut scorer = Scorer::new(&prepared);
        let hidden = scorer.run(&[of], &[at]).unwrap();
        let scores = scorer.score(&hidden, 0).unwrap();
        let nll: f64 = scores.iter().map(|s| -s.logprob.unwrap()).sum();
        let found = row[name].as_f64().unwrap();
        assert!(
            (found - nll / scores.len() as f64).abs() < 1e-9,
            "{name}: {found}"
        );
    }
}
