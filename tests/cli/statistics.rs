//! `extract --stats`: the folder it leaves, what the analyses find in it beside what they find in the rows, and what is refused.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Bench, done, done_json, refused, streamgauge};

const RESIDUALS: &str = "blocks.*.hook_resid_post";

/// Extracts statistics into `out`.
pub(super) fn summed(bench: &Bench, out: &str, taps: &[&str], flags: &[&str]) -> PathBuf {
    let dir = bench.path(out);
    let mut command = bench.job("extract", taps);
    done(command.arg("--out").arg(&dir).args(flags));
    dir
}

pub(super) fn analyze(method: &str, from: &Path, out: &Path, flags: &[&str]) -> Value {
    let mut c = streamgauge();
    c.args(["analyze", method]).arg(from).arg("--out").arg(out);
    done_json(c.args(flags).arg("--json"))
}

/// A tensor as numbers, whatever its dtype.
pub(super) fn tensor(file: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let data = tensor.data();
    match tensor.dtype() {
        safetensors::Dtype::F64 => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        safetensors::Dtype::F32 => data
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        safetensors::Dtype::U64 => data
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap()) as f64)
            .collect(),
        other => panic!("{name} is {other:?}"),
    }
}

pub(super) fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Rows of a tap of a store, in f64, with the numbers of their samples.
pub(super) fn rows(store: &Path, tap: &str) -> (Vec<i64>, Vec<Vec<f64>>) {
    let store = streamgauge::store::Store::open(store).unwrap();
    let at = store.taps().iter().position(|t| t.folder == tap).unwrap();
    let reader = store.tap_at(at);
    let width: usize = reader.info().row_shape.iter().product();
    let (mut samples, mut rows) = (Vec::new(), Vec::new());
    for shard in reader.shards() {
        let shard = shard.unwrap();
        samples.extend(shard.sample());
        let of_shard = shard.to_f32();
        rows.extend(
            of_shard
                .chunks_exact(width)
                .map(|row| row.iter().map(|&x| f64::from(x)).collect()),
        );
    }
    (samples, rows)
}

#[test]
fn sums_are_those_of_the_rows_that_a_store_has() {
    let bench = Bench::new(120);
    let taps = [
        RESIDUALS,
        "blocks.1.attn.hook_z[1,3]@-5..-1",
        "blocks.1.hook_mlp_out|mean",
    ];
    let store = bench.extract(&taps, &[]);
    let stats = summed(&bench, "stats", &taps, &["--stats", "mean,cov"]);
    let manifest = std::fs::read_to_string(stats.join("statistics.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["samples"], 120);
    assert_eq!(manifest["taps"].as_array().unwrap().len(), 5);
    assert!(!stats.join(".partial").exists());
    for tap in manifest["taps"].as_array().unwrap() {
        let folder = tap["folder"].as_str().unwrap();
        let file = stats.join(tap["file"].as_str().unwrap());
        let (_, rows) = rows(&store, folder);
        let width = rows[0].len();
        assert_eq!(tensor(&file, "rows.count"), [rows.len() as f64]);
        assert_eq!(tap["sets"][0]["count"], rows.len());
        let sum = tensor(&file, "rows.sum");
        for (j, got) in sum.iter().enumerate() {
            let want: f64 = rows.iter().map(|row| row[j]).sum();
            assert!(
                (got - want).abs() <= 1e-9 * (1.0 + want.abs()),
                "{folder} {j}"
            );
        }
        let outer = tensor(&file, "rows.outer");
        let scale = rows.iter().flatten().map(|x| x * x).sum::<f64>() / width as f64;
        for i in 0..width {
            for j in 0..width {
                let want: f64 = rows.iter().map(|row| row[i] * row[j]).sum();
                let got = outer[i * width + j];
                assert!(
                    (got - want).abs() <= 1e-5 * scale,
                    "{folder} ({i}, {j}): {got}, not {want}"
                );
                assert_eq!(got, outer[j * width + i], "symmetric");
            }
        }
    }
}

#[test]
fn components_of_the_statistics_are_those_of_the_rows() {
    let bench = Bench::new(150);
    let taps = ["blocks.*.hook_resid_post@no-bos"];
    let store = bench.extract(&taps, &[]);
    let stats = summed(&bench, "stats", &taps, &["--stats", "cov"]);
    let (of_rows, of_stats) = (bench.path("rows"), bench.path("sums"));
    let a = analyze("pca", &store, &of_rows, &["--components", "4"]);
    let b = analyze("pca", &stats, &of_stats, &["--components", "4"]);
    let (a, b) = (
        a["components"].as_array().unwrap(),
        b["components"].as_array().unwrap(),
    );
    assert_eq!((a.len(), b.len()), (12, 12));
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a["tap"], &a["rows"]), (&b["tap"], &b["rows"]));
        let of = |v: &Value| v["variance"].as_f64().unwrap();
        assert!((of(a) - of(b)).abs() <= 1e-5 * of(a), "{a} {b}");
    }
    for layer in 0..3 {
        let name = format!("components.blocks.{layer}.hook_resid_post");
        let [a, b] =
            [&of_rows, &of_stats].map(|dir| tensor(&dir.join("components.safetensors"), &name));
        for (a, b) in a.chunks_exact(64).zip(b.chunks_exact(64)) {
            assert!(cosine(a, b).abs() >= 0.999_999, "{layer}: {}", cosine(a, b));
        }
    }
}

#[test]
fn files_have_the_same_bytes_however_samples_are_packed() {
    let bench = Bench::new(200);
    let flags = |batch| ["--stats", "cov", "--batch-tokens", batch];
    let a = summed(&bench, "a", &[RESIDUALS], &flags("4096"));
    let b = summed(&bench, "b", &[RESIDUALS], &flags("24"));
    for layer in 0..3 {
        let file = format!("blocks.{layer}.hook_resid_post.safetensors");
        let [a, b] = [&a, &b].map(|dir| std::fs::read(dir.join(&file)).unwrap());
        // More rows than a chunk, so that where a chunk ends matters.
        let header = SafeTensors::deserialize(&a).unwrap();
        let count = header.tensor("rows.count").unwrap().data();
        assert!(u64::from_le_bytes(count.try_into().unwrap()) > 1000);
        assert!(a == b, "{file}");
    }
}

#[test]
fn what_has_no_sums_is_refused_with_a_reason() {
    let bench = Bench::new(12);
    let out = bench.path("stats");
    let refuse = |taps: &[&str], flags: &[&str], status| {
        let mut command = bench.job("extract", taps);
        let message = refused(command.arg("--out").arg(&out).args(flags), status);
        assert!(!out.exists(), "{flags:?} left something");
        message
    };
    let cov = ["--stats", "cov"];
    let ragged = refuse(&["blocks.1.attn.hook_pattern"], &cov, 1);
    assert!(ragged.contains("rows differ in length"), "{ragged}");
    let top = refuse(&["blocks.1.mlp.hook_post|top:5"], &cov, 1);
    assert!(top.contains("holds other components"), "{top}");
    for (flags, word) in [
        (&["--keep", "label"][..], "--keep with --stats"),
        (&["--store-dtype", "bf16"], "--store-dtype with --stats"),
        (&["--devices", "2xcpu"], "--devices"),
        (&["--pair", "group"], "--pair without --stats pairdiff"),
    ] {
        let message = refuse(&[RESIDUALS], &[&cov, flags].concat(), 2);
        assert!(message.contains(word), "{message}");
    }
    let message = refuse(&[RESIDUALS], &["--stats", "median"], 2);
    assert!(message.contains("median"), "{message}");
    let message = refuse(&[RESIDUALS], &["--label", "label"], 2);
    assert!(message.contains("--stats"), "{message}");
}

#[test]
fn a_folder_of_statistics_is_not_written_over_and_is_no_store() {
    let bench = Bench::new(12);
    let stats = summed(&bench, "stats", &[RESIDUALS], &["--stats", "mean"]);
    let before = std::fs::read(stats.join("statistics.json")).unwrap();
    let mut again = bench.job("extract", &[RESIDUALS]);
    let message = refused(again.arg("--out").arg(&stats).args(["--stats", "mean"]), 1);
    assert!(
        message.contains("already holds statistics (complete)"),
        "{message}"
    );
    assert_eq!(
        std::fs::read(stats.join("statistics.json")).unwrap(),
        before
    );
    let out = bench.path("pca");
    let mut pca = streamgauge();
    let message = refused(
        pca.args(["analyze", "pca"])
            .arg(&stats)
            .arg("--out")
            .arg(&out),
        1,
    );
    assert!(message.contains("--stats cov"), "{message}");
    assert!(!out.exists());
    let message = refused(streamgauge().arg("inspect").arg(&stats), 1);
    assert!(
        message.contains("holds statistics and no rows"),
        "{message}"
    );
    let verified = done_json(streamgauge().arg("verify").arg(&stats).arg("--json"));
    assert_eq!(
        (&verified["ok"], &verified["files"]),
        (&json!(true), &json!(3))
    );
}

#[test]
fn a_damaged_file_is_refused_by_name() {
    let bench = Bench::new(12);
    let stats = summed(&bench, "stats", &[RESIDUALS], &["--stats", "cov"]);
    let file = stats.join("blocks.1.hook_resid_post.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 8]).unwrap();
    let mut pca = streamgauge();
    let message = refused(
        pca.args(["analyze", "pca"])
            .arg(&stats)
            .arg("--out")
            .arg(bench.path("pca")),
        1,
    );
    assert!(
        message.contains("blocks.1.hook_resid_post.safetensors"),
        "{message}"
    );
    let manifest = stats.join("statistics.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let lying = text.replace(
        "\"blocks.1.hook_resid_post.safetensors\"",
        "\"../../secret\"",
    );
    assert_ne!(text, lying);
    std::fs::write(&manifest, lying).unwrap();
    let message = refused(
        streamgauge()
            .args(["analyze", "pca"])
            .arg(&stats)
            .arg("--out")
            .arg(bench.path("pca")),
        1,
    );
    assert!(
        message.contains("is no file of blocks.1.hook_resid_post"),
        "{message}"
    );
}

#[test]
fn json_tells_what_was_summed() {
    let bench = Bench::new(12);
    let out = bench.path("stats");
    let mut command = bench.job("extract", &[RESIDUALS]);
    let said = done_json(
        command
            .arg("--out")
            .arg(&out)
            .args(["--stats", "mean", "--json"]),
    );
    assert_eq!(
        (&said["samples"], &said["statistics"]),
        (&json!(12), &json!(out))
    );
    assert_eq!(said["rows"].as_array().unwrap().len(), 3);
}
