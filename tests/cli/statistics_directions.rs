//! Directions from `extract --stats`: the same as from the rows that a store of the same job has.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;
use streamgauge::analysis::principal::principal;
use streamgauge::analysis::ridge::ridge;
use streamgauge::analysis::{MassMean, Moments};

use super::statistics::{analyze, cosine, rows, summed, tensor};
use super::{Bench, refused, streamgauge};

const LAST: &str = "blocks.*.hook_resid_post@last";

/// Pairs of samples that differ in their last tokens, the two of a pair some lines apart, the true one first in every other.
fn pairs(n: usize) -> Bench {
    let bench = Bench::new(1);
    let mut lines = Vec::new();
    for pair in 0..n {
        for label in [0, 1] {
            let mut tokens: Vec<usize> = (0..1 + pair * 5 % 11)
                .map(|j| 3 + (pair * 31 + j * 17) % 150)
                .collect();
            tokens.push(if label == 1 { 10 + pair % 2 } else { 20 });
            let line = json!({ "tokens": tokens, "label": label, "pair": format!("p{pair}"), "topic": pair });
            lines.push((pair * 2 + if (label + pair) % 2 == 0 { 0 } else { 7 }, line));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (_, line) in lines {
        writeln!(text, "{line}").unwrap();
    }
    std::fs::write(bench.path("data.jsonl"), text).unwrap();
    bench
}

/// Label and pair of every sample, in the dataset's order.
fn labels(bench: &Bench) -> Vec<(bool, String)> {
    let text = std::fs::read_to_string(bench.path("data.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (
                line["label"] == 1,
                line["pair"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn to_f32(row: &[f64]) -> Vec<f32> {
    row.iter().map(|&x| x as f32).collect()
}

/// The saved direction of a layer.
fn direction(dir: &Path, layer: usize) -> Vec<f64> {
    tensor(
        &dir.join("directions.safetensors"),
        &format!("direction.{layer}"),
    )
}

#[test]
fn mean_difference_and_ridge_probe_of_the_sums_are_those_of_the_rows() {
    let bench = pairs(70);
    // Several rows of each sample: the class of a row is its sample's.
    let taps = ["blocks.*.hook_resid_post@-2..-1"];
    let store = bench.extract(&taps, &[]);
    let stats = summed(
        &bench,
        "stats",
        &taps,
        &["--stats", "cov", "--label", "label"],
    );
    let (mean_diff, probe) = (bench.path("mean-diff"), bench.path("probe"));
    let said = analyze("mean-diff", &stats, &mean_diff, &[]);
    analyze("probe", &stats, &probe, &["--ridge", "0.02"]);
    let labels = labels(&bench);
    for layer in 0..3 {
        let (samples, rows) = rows(&store, &format!("blocks.{layer}.hook_resid_post"));
        let rows: Vec<(Vec<f32>, bool)> = (rows.iter().zip(&samples))
            .map(|(row, &sample)| (to_f32(row), labels[sample as usize].0))
            .collect();
        let fitted = MassMean::fit(rows.iter().map(|(row, label)| (&row[..], *label))).unwrap();
        let of_rows: Vec<f64> = fitted.direction.iter().map(|&x| f64::from(x)).collect();
        assert!(cosine(&direction(&mean_diff, layer), &of_rows) >= 0.999_999);
        let told = &said["layers"][layer];
        let close = |field: &str, want: f64| {
            let got = told[field].as_f64().unwrap();
            assert!(
                (got - want).abs() <= 1e-6 * want.abs(),
                "{field}: {got}, not {want}"
            );
        };
        close("norm", fitted.norm);
        close("threshold", fitted.threshold);
        assert_eq!(told["n_true"], rows.iter().filter(|r| r.1).count());

        let sums = [false, true].map(|label| {
            let mut moments = Moments::new(64);
            rows.iter()
                .filter(|r| r.1 == label)
                .for_each(|r| moments.add(&r.0));
            moments.sums()
        });
        let of_rows = ridge([&sums[0], &sums[1]], 0.02, "x").unwrap().weights;
        let found = cosine(&direction(&probe, layer), &of_rows);
        assert!(found >= 0.999_999, "{layer}: {found}");
    }
}

#[test]
fn the_direction_of_pairs_is_that_of_the_rows_differences() {
    let bench = pairs(70);
    let store = bench.extract(&[LAST], &[]);
    let flags = [
        "--stats",
        "pairdiff",
        "--label",
        "label",
        "--batch-tokens",
        "40",
    ];
    let stats = summed(&bench, "stats", &[LAST], &flags);
    let lat = bench.path("lat");
    let said = analyze("lat", &stats, &lat, &[]);
    let labels = labels(&bench);
    for layer in 0..3 {
        let (_, rows) = rows(&store, &format!("blocks.{layer}.hook_resid_post"));
        let row = |pair: usize, label: bool| {
            let name = format!("p{pair}");
            &rows[labels
                .iter()
                .position(|l| l.0 == label && l.1 == name)
                .unwrap()]
        };
        let differences = faer::Mat::from_fn(70, 64, |p, j| row(p, true)[j] - row(p, false)[j]);
        let of_rows = principal(differences.as_ref(), 2, "x").unwrap();
        let found = direction(&lat, layer);
        assert!(
            cosine(&found, &of_rows.directions[0]).abs() >= 0.999_999,
            "{layer}"
        );
        let told = &said["layers"][layer];
        let ratio = told["eigenvalue_ratio"].as_f64().unwrap();
        assert!(
            (ratio - of_rows.values[1] / of_rows.values[0]).abs() < 1e-5,
            "{ratio}"
        );
        let along = |row: &[f64]| row.iter().zip(&found).map(|(a, b)| a * b).sum::<f64>();
        let mean = |f: &dyn Fn(usize) -> f64| (0..70).map(f).sum::<f64>() / 70.0;
        let norm = mean(&|p| along(row(p, true)) - along(row(p, false)));
        let threshold = mean(&|p| (along(row(p, true)) + along(row(p, false))) / 2.0);
        assert!(norm > 0.0, "true lies further along");
        for (field, want) in [("norm", norm), ("threshold", threshold)] {
            let got = told[field].as_f64().unwrap();
            assert!(
                (got - want).abs() <= 1e-5 * (1.0 + want.abs()),
                "{field}: {got}, not {want}"
            );
        }
    }
    // What is found serves as a projection.
    let file = lat.join("directions.safetensors");
    let tap = format!(
        "blocks.2.hook_resid_post@last|dot:{}#direction.2",
        file.display()
    );
    super::done(bench.job("plan", &[&tap]).arg("--json"));
}

#[test]
fn a_ridge_probe_of_rows_is_scored_on_held_out_ones() {
    let bench = pairs(60);
    let store = bench.extract(&[LAST], &["--keep", "label,pair"]);
    let out = bench.path("ridge");
    let said = analyze("probe", &store, &out, &["--ridge", "--group", "pair"]);
    for layer in said["layers"].as_array().unwrap() {
        assert!(layer["accuracy"].as_f64().unwrap() > 0.9, "{layer}");
        assert_eq!(layer["penalty"], 0.01);
    }
}

#[test]
fn pairs_that_are_none_are_refused_with_their_place() {
    let refuse = |bench: &Bench, flags: &[&str], status| {
        let out = bench.path("stats");
        let mut command = bench.job("extract", &[LAST]);
        let message = refused(command.arg("--out").arg(&out).args(flags), status);
        assert!(!out.exists(), "{flags:?} left something");
        message
    };
    let pairdiff = ["--stats", "pairdiff", "--label", "label"];
    let bench = pairs(6);
    for (flags, word) in [
        (&["--stats", "pairdiff"][..], "without --label"),
        (&["--stats", "pairdiff", "--label", "pair"], "one field"),
        (&[&pairdiff[..], &["--shard", "0/2"]].concat(), "--shard"),
        (
            &[&pairdiff[..], &["--pack-context", "16"]].concat(),
            "--pack-context",
        ),
    ] {
        let message = refuse(&bench, flags, 2);
        assert!(message.contains(word), "{message}");
    }
    // Every topic is a pair, every pair name of 2 samples: names that all share are no pairs.
    let message = refuse(
        &bench,
        &["--stats", "pairdiff", "--label", "topic", "--pair", "pair"],
        1,
    );
    assert!(message.contains("0, 1, true or false"), "{message}");
    let message = refuse(&bench, &["--stats", "mean", "--label", "nothing"], 1);
    assert!(
        message.contains("data.jsonl:1") && message.contains("`nothing`"),
        "{message}"
    );
    let message = refuse(
        &bench,
        &[
            "--stats", "pairdiff", "--label", "label", "--pair", "label2",
        ],
        1,
    );
    assert!(message.contains("`label2`"), "{message}");
    let all = bench.path("all");
    let mut command = bench.job("extract", &["blocks.1.hook_resid_post"]);
    let message = refused(command.arg("--out").arg(&all).args(pairdiff), 1);
    assert!(
        message.contains("@last") && message.contains("data.jsonl:"),
        "{message}"
    );

    let with = |lines: &str| {
        let bench = pairs(3);
        let path = bench.path("data.jsonl");
        let text = std::fs::read_to_string(&path).unwrap() + lines;
        std::fs::write(&path, text).unwrap();
        refuse(&bench, &pairdiff, 1)
    };
    let alone = with("{\"tokens\":[4],\"label\":1,\"pair\":\"alone\"}\n");
    assert!(
        alone.contains("'alone'") && alone.contains("data.jsonl:7"),
        "{alone}"
    );
    let third = with("{\"tokens\":[4],\"label\":1,\"pair\":\"p1\"}\n");
    assert!(third.contains("third sample of the pair 'p1'"), "{third}");
    let same = with(
        "{\"tokens\":[4],\"label\":1,\"pair\":\"q\"}\n{\"tokens\":[5],\"label\":1,\"pair\":\"q\"}\n",
    );
    assert!(same.contains("two samples labelled true"), "{same}");
}

#[test]
fn classes_that_tell_nothing_apart_are_refused() {
    let bench = pairs(40);
    let message = {
        let mut command = bench.job("extract", &[LAST]);
        let flags = ["--stats", "mean", "--label", "topic"];
        refused(
            command.arg("--out").arg(bench.path("topics")).args(flags),
            1,
        )
    };
    assert!(message.contains("more than 16 values"), "{message}");
    let one = summed(
        &bench,
        "one",
        &[LAST],
        &["--stats", "mean", "--label", "label", "--limit", "1"],
    );
    let plain = summed(&bench, "plain", &[LAST], &["--stats", "cov"]);
    let refuse = |method: &[&str], from: &Path, status| {
        let mut command = streamgauge();
        command
            .arg("analyze")
            .arg(method[0])
            .arg(from)
            .arg("--out")
            .arg(bench.path("out"));
        refused(command.args(&method[1..]), status)
    };
    let message = refuse(&["mean-diff"], &one, 1);
    assert!(message.contains("a direction needs both"), "{message}");
    let message = refuse(&["mean-diff"], &plain, 1);
    assert!(message.contains("--label FIELD"), "{message}");
    let message = refuse(&["lat"], &plain, 1);
    assert!(message.contains("--stats pairdiff"), "{message}");
    let message = refuse(&["probe"], &plain, 1);
    assert!(message.contains("pass --ridge"), "{message}");
    let message = refuse(&["mean-diff", "--test-share", "0.2"], &one, 2);
    assert!(message.contains("nothing is held out"), "{message}");
    let message = refuse(&["mean-diff", "--label", "truth"], &one, 2);
    assert!(message.contains("summed by another field"), "{message}");
}
