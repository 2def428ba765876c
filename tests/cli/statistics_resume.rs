//! `extract --stats` stopped, killed and gone on with, in slices that are added up, and as `plan` tells it beforehand.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Child;

use super::resume::{begun_until, signal};
use super::statistics::{summed, tensor};
use super::{Bench, done, done_json, refused, streamgauge};

const TAP: &str = "blocks.*.hook_resid_post@last";
/// Two classes and pairs of samples 2k and 2k + 1; a checkpoint after every batch.
const FLAGS: [&str; 10] = [
    "--stats",
    "cov,pairdiff",
    "--label",
    "label",
    "--pair",
    "pair",
    "--batch-tokens",
    "128",
    "--commit-every",
    "0",
];

fn bench(samples: usize) -> Bench {
    let bench = Bench::new(samples);
    let path = bench.path("data.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file = std::fs::File::create(&path).unwrap();
    for (i, line) in text.lines().enumerate() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        // The two of a pair lie up to some batches apart.
        line["pair"] = (i / 32 * 16 + i % 16).into();
        line["label"] = (i / 16 % 2).into();
        writeln!(file, "{line}").unwrap();
    }
    bench
}

/// Starts the run and waits for its first checkpoint.
fn begun(bench: &Bench, out: &Path) -> Child {
    begun_until(bench, out, TAP, &FLAGS, |name| {
        name.starts_with("checkpoint")
    })
}

/// Has a signal end the run in its middle; what it said. On a busy machine the run may be over before the signal comes: then it is begun
/// anew.
fn ended_by(bench: &Bench, out: &Path, name: &str, status: Option<i32>) -> String {
    for _ in 0..50 {
        let child = begun(bench, out);
        signal(&child, name);
        let ended = child.wait_with_output().unwrap();
        if out.join("statistics.json").exists() {
            std::fs::remove_dir_all(out).unwrap();
            continue;
        }
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), status, "{said}");
        return said;
    }
    panic!("{name} came too late to stop anything, 50 times");
}

/// The bytes of every tap's file.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let file = |layer| dir.join(format!("blocks.{layer}.hook_resid_post.safetensors"));
    (0..3)
        .map(|layer| std::fs::read(file(layer)).unwrap())
        .collect()
}

fn again(bench: &Bench, out: &Path) -> assert_cmd::Command {
    let mut job = bench.job("extract", &[TAP]);
    job.arg("--out").arg(out).args(FLAGS).arg("--resume");
    job
}

#[test]
fn a_run_that_was_stopped_or_killed_goes_on_to_the_same_bytes() {
    let bench = bench(960);
    let whole = summed(&bench, "whole", &[TAP], &FLAGS);
    for (name, status) in [("INT", Some(130)), ("TERM", Some(143)), ("KILL", None)] {
        let out = bench.path(name);
        let said = ended_by(&bench, &out, name, status);
        if status.is_some() {
            assert!(
                said.contains("which are kept") && said.contains("--resume"),
                "{said}"
            );
        }
        let mut fresh = bench.job("extract", &[TAP]);
        let message = refused(fresh.arg("--out").arg(&out).args(FLAGS), 1);
        assert!(message.contains("pass --resume"), "{message}");
        let summary = done_json(again(&bench, &out).arg("--json"));
        let resumed = summary["resumed_samples"].as_u64().unwrap();
        assert!(resumed > 0 && resumed < 960, "{summary}");
        assert_eq!(summary["samples"], 960);
        assert!(files(&whole) == files(&out), "{name}: the sums differ");
        assert!(!out.join(".partial").exists());
        let summary = done_json(again(&bench, &out).arg("--json"));
        assert_eq!(summary["already_complete"], true);
    }
}

#[test]
fn only_the_command_that_began_the_sums_goes_on_with_them() {
    let bench = bench(960);
    let out = bench.path("out");
    ended_by(&bench, &out, "INT", Some(130));
    let refuse = |flags: &[&str]| {
        let mut job = bench.job("extract", &[TAP]);
        refused(job.arg("--out").arg(&out).args(flags).arg("--resume"), 1)
    };
    let message = refuse(&["--stats", "cov", "--batch-tokens", "128"]);
    assert!(
        message.contains("was begun by another command"),
        "{message}"
    );
    let message = refuse(&[&FLAGS[..], &["--limit", "700"]].concat());
    assert!(message.contains("--limit"), "{message}");
    let data = bench.path("data.jsonl");
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("\"label\":0", "\"label\":1", 1)).unwrap();
    let message = refused(&mut again(&bench, &out), 1);
    assert!(message.contains("the dataset"), "{message}");
    std::fs::write(&data, text).unwrap();
    // A damaged checkpoint is not gone on from.
    let partial = out.join(".partial");
    let mut entries = std::fs::read_dir(&partial).unwrap().flatten();
    let checkpoint = entries.find(|e| e.file_name().to_string_lossy().starts_with("checkpoint"));
    let file = checkpoint
        .unwrap()
        .path()
        .join("blocks.1.hook_resid_post.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let mut wrong = bytes.clone();
    *wrong.last_mut().unwrap() ^= 1;
    std::fs::write(&file, wrong).unwrap();
    let message = refused(&mut again(&bench, &out), 1);
    assert!(
        message.contains("blocks.1.hook_resid_post.safetensors"),
        "{message}"
    );
    std::fs::write(&file, bytes).unwrap();
    done(&mut again(&bench, &out));
}

#[test]
fn resume_begins_where_there_is_nothing() {
    let bench = bench(32);
    let whole = summed(&bench, "whole", &[TAP], &FLAGS);
    let out = bench.path("out");
    done(&mut again(&bench, &out));
    assert!(files(&whole) == files(&out));
}

/// Statistics of slice `i` of `n`.
fn slice(bench: &Bench, i: usize, n: usize, flags: &[&str]) -> PathBuf {
    let shard = format!("{i}/{n}");
    let flags = [flags, &["--shard", &shard]].concat();
    summed(bench, &format!("slice-{i}-of-{n}"), &[TAP], &flags)
}

fn merge(out: &Path, dirs: &[PathBuf]) -> assert_cmd::Command {
    let mut c = streamgauge();
    c.arg("merge").arg(out).args(dirs);
    c
}

#[test]
fn slices_add_up_to_the_statistics_of_the_whole() {
    let bench = bench(160);
    let stats = ["--stats", "cov", "--label", "label"];
    let whole = summed(&bench, "whole", &[TAP], &stats);
    let slices: Vec<PathBuf> = (0..5).rev().map(|i| slice(&bench, i, 5, &stats)).collect();
    let out = bench.path("merged");
    let said = done_json(merge(&out, &slices).arg("--json"));
    assert_eq!(
        (&said["samples"], &said["folders"]),
        (&160.into(), &5.into())
    );
    for layer in 0..3 {
        let name = format!("blocks.{layer}.hook_resid_post.safetensors");
        let of = |what: &str| [&whole, &out].map(|dir| tensor(&dir.join(&name), what));
        for class in ["class.0", "class.1"] {
            let [a, b] = of(&format!("{class}.count"));
            assert_eq!((&a, a[0]), (&b, 80.0));
            for what in ["sum", "outer"] {
                let [a, b] = of(&format!("{class}.{what}"));
                let scale = a.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * scale;
                assert!(
                    a.iter().zip(&b).all(near),
                    "{class}.{what} of layer {layer}"
                );
            }
        }
    }
    let manifest = std::fs::read_to_string(out.join("statistics.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(
        (&manifest["slices"], &manifest["slice"]),
        (&5.into(), &serde_json::Value::Null)
    );
    // What was added up is analysed as any other.
    let mut pca = streamgauge();
    done(
        pca.args(["analyze", "pca"])
            .arg(&out)
            .arg("--out")
            .arg(bench.path("pca")),
    );
}

#[test]
fn what_is_no_whole_is_not_added_up() {
    let bench = bench(64);
    let stats = ["--stats", "mean"];
    let slices: Vec<PathBuf> = (0..3).map(|i| slice(&bench, i, 3, &stats)).collect();
    let other = slice(&bench, 0, 2, &["--stats", "cov"]);
    let whole = summed(&bench, "whole", &[TAP], &stats);
    let store = bench.extract(&[TAP], &[]);
    for (dirs, word) in [
        (&[&slices[0], &slices[2]][..], "slice 1/3 is missing"),
        (&[&slices[0], &slices[0], &slices[1]], "both slice 0/3"),
        (&[&slices[0], &other], "not of one job"),
        (&[&whole], "made without --shard"),
        (&[&slices[0], &store], "statistics.json"),
    ] {
        let out = bench.path("merged");
        let dirs: Vec<PathBuf> = dirs.iter().map(|dir| (*dir).clone()).collect();
        let message = refused(&mut merge(&out, &dirs), 1);
        assert!(message.contains(word), "{message}");
        assert!(!out.exists(), "{word}");
    }
    let message = refused(merge(&bench.path("m"), &slices).arg("--copy"), 2);
    assert!(message.contains("--copy"), "{message}");
}

#[test]
fn plan_tells_what_statistics_take() {
    let bench = bench(64);
    let stats = ["--stats", "cov,pairdiff", "--label", "label"];
    let plan = done_json(bench.job("plan", &[TAP]).args(stats).arg("--json"));
    let out = summed(&bench, "out", &[TAP], &stats);
    let bytes: u64 = (files(&out).iter().map(|file| file.len() as u64)).sum();
    let told = plan["statistics"]["bytes"].as_u64().unwrap();
    // Less the headers, a page each.
    assert_eq!(told, bytes - 3 * 4096, "{plan}");
    assert_eq!(plan["bytes"], told, "no rows are stored: {plan}");
    // Of a row: the lower triangle, a product and a sum each.
    assert_eq!(
        plan["statistics"]["flops"].as_f64(),
        Some(f64::from((64 + 32) * 3 * 64 * 65))
    );
    let text = done(bench.job("plan", &[TAP]).args(stats));
    assert!(text.contains("statistics instead of rows"), "{text}");
}
