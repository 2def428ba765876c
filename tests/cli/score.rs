//! `score`: teacher-forced scores of given texts, with and without edits.

use serde_json::Value;

use super::{Bench, done, refused, streamgauge};

/// As many as the vocabulary: the whole distribution.
const ALL: &str = "160";

fn score(bench: &Bench, flags: &[&str]) -> assert_cmd::Command {
    let mut command = streamgauge();
    command.args(["score", "--quiet", "--model"]);
    command.arg(super::model()).arg("--data");
    command.arg(bench.path("data.jsonl")).args(flags);
    command
}

fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect()
}

/// The log-probabilities of a position, by token.
fn distribution(top: &Value) -> Vec<f64> {
    let mut found = vec![f64::NAN; 160];
    for entry in top.as_array().unwrap() {
        found[entry[0].as_u64().unwrap() as usize] = entry[1].as_f64().unwrap();
    }
    found
}

const EDIT: &str = "scale at=blocks.1.hook_mlp_out c=3";

#[test]
fn every_score_follows_from_the_distribution_that_is_told_beside_it() {
    let bench = Bench::new(5);
    let edited = objects(&done(&mut score(
        &bench,
        &["--json", "--top", ALL, "--edit", EDIT, "--beside-plain"],
    )));
    let plain = objects(&done(&mut score(&bench, &["--json", "--top", ALL])));
    assert_eq!((edited.len(), plain.len()), (5, 5));
    for (edited, plain) in edited.iter().zip(&plain) {
        let n = edited["positions"].as_array().unwrap().len();
        assert!(edited["logprobs"][n - 1].is_null() && edited["next"][n - 1].is_null());
        for i in 0..n {
            let (p, q) = (
                distribution(&edited["top"][i]),
                distribution(&plain["top"][i]),
            );
            let near = |found: &Value, expected: f64| {
                let found = found.as_f64().unwrap();
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            };
            assert!((p.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-5);
            near(&edited["entropy"][i], p.iter().map(|l| -l * l.exp()).sum());
            let kl = p
                .iter()
                .zip(&q)
                .map(|(p, q)| p.exp() * (p - q))
                .sum::<f64>();
            assert!(kl > 0.0);
            near(&edited["kl"][i], kl);
            if let Some(next) = edited["next"][i].as_u64() {
                near(&edited["logprobs"][i], p[next as usize]);
                near(&edited["plain_logprobs"][i], q[next as usize]);
            }
        }
    }
}

#[test]
fn a_text_scores_the_same_in_any_batch_and_only_where_it_is_asked() {
    let bench = Bench::new(7);
    let whole = objects(&done(&mut score(&bench, &["--json"])));
    let cut = objects(&done(&mut score(
        &bench,
        &["--json", "--batch-tokens", "1"],
    )));
    assert_eq!(whole, cut);
    let some = objects(&done(&mut score(&bench, &["--json", "--select", "-2"])));
    for (whole, some) in whole.iter().zip(&some) {
        let logprobs = floats(&whole["logprobs"]);
        if let [last] = floats(&some["logprobs"])[..] {
            assert_eq!(logprobs.last(), Some(&last));
        }
    }
}

#[test]
fn the_summary_is_the_mean_of_the_table() {
    let bench = Bench::new(4);
    let out = bench.path("scores");
    let text = done(score(&bench, &[]).arg("--out").arg(&out));
    let table = std::fs::read_to_string(out.join("scores.csv")).unwrap();
    let header: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    let column = header.iter().position(|h| *h == "logprob").unwrap();
    let values: Vec<f64> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split(',').nth(column)?.parse().ok())
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let perplexity = (-mean).exp();
    let said = format!("mean log-probability {mean:.4} nat, perplexity {perplexity:.4}");
    assert!(text.contains(&said), "{text} {said}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let bench = Bench::new(2);
    for (flags, status, why) in [
        (&["--beside-plain"][..], 2, "--beside-plain needs --edit"),
        (
            &["--batch-tokens", "0"],
            2,
            "--batch-tokens must be at least 1",
        ),
        (&["--select", "40..41"], 1, "picks no position"),
        (
            &["--edit", "zero at=hook_embed select=40..41"],
            1,
            "touched no row",
        ),
        (&["--select", "generated"], 1, "generated"),
        (
            &["--edit", "scale at=blocks.2.hook_resid_post c=3e38"],
            1,
            "a logit after position",
        ),
        (
            &["--edit", "scale at=logits c=3e38"],
            1,
            "a logit after position",
        ),
        (&["--max-length", "1"], 1, "--on-long truncate"),
    ] {
        let said = refused(&mut score(&bench, flags), status);
        assert!(said.contains(why), "{flags:?}: {said}");
    }
}

#[test]
fn long_texts_are_cut_and_bad_ones_passed_over_where_that_is_asked() {
    let bench = Bench::new(3);
    let data = bench.path("data.jsonl");
    let good = std::fs::read_to_string(&data).unwrap();
    let bad = "{\"tokens\": []}\n{\"tokens\": \"no\"}\n{\"tokens\": [900]}\n";
    std::fs::write(&data, format!("{good}{bad}")).unwrap();
    let flags = [
        "--json",
        "--on-long",
        "truncate",
        "--max-length",
        "2",
        "--skip-bad",
    ];
    let output = score(&bench, &flags)
        .assert()
        .success()
        .get_output()
        .clone();
    let told = String::from_utf8(output.stderr).unwrap();
    let skipped = told.lines().filter(|l| l.starts_with("skipped: ")).count();
    assert_eq!(skipped, 3, "{told}");
    let texts = objects(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(texts.len(), 3);
    for text in texts {
        assert!(text["positions"].as_array().unwrap().len() <= 2, "{text}");
    }
}

#[test]
fn what_a_table_was_made_from_lies_beside_it() {
    let bench = Bench::new(3);
    let out = bench.path("scores");
    let edits = ["--edit", EDIT, "--edit", "scale at=logits c=2"];
    done(score(&bench, &edits).arg("--out").arg(&out));
    let record = std::fs::read_to_string(out.join("score.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let rows: u64 = std::fs::read_to_string(out.join("scores.csv"))
        .unwrap()
        .lines()
        .count() as u64
        - 1;
    assert_eq!(record["edits"][0]["rows"], rows);
    assert_eq!(record["edits"][1]["rows"], rows);
    // Logits are edited only when they are read: their norms are not known.
    assert!(record["edits"][0]["mean_norm_before"].as_f64().is_some());
    assert!(record["edits"][1]["mean_norm_before"].is_null());
}
