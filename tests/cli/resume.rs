//! Signals, `--resume` and what it refuses, as a user meets them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::{Bench, done, done_json, model, refused, streamgauge};

pub(super) const TAP: &str = "blocks.*.hook_resid_post";
pub(super) const FLAGS: [&str; 6] = [
    "--shard-size",
    "40kB",
    "--batch-tokens",
    "16",
    "--commit-every",
    "0",
];

/// Starts an extraction and waits for its first journal: from then on there is something to go on with.
fn begun(bench: &Bench, store: &Path) -> Child {
    begun_until(bench, store, TAP, &FLAGS, |name| name.ends_with(".journal"))
}

/// Starts an extraction and waits for a file or folder of such a name among what it has under way.
pub(super) fn begun_until(
    bench: &Bench,
    out: &Path,
    tap: &str,
    flags: &[&str],
    is_awaited: impl Fn(&str) -> bool,
) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgauge"));
    command
        .args(["extract", "--quiet", "--tap", tap, "--model"])
        .arg(model())
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(out)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let partial = out.join(".partial");
    while child.try_wait().unwrap().is_none() {
        let mut entries = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        if entries.any(|e| is_awaited(&e.file_name().to_string_lossy())) {
            break;
        }
        std::thread::yield_now();
    }
    child
}

pub(super) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// The bytes of a store's rows.
pub(super) fn rows(dir: &Path) -> Vec<u8> {
    let store = streamgauge::store::Store::open(dir).unwrap();
    let taps = (0..store.taps().len()).map(|t| store.tap_at(t));
    taps.flat_map(|tap| {
        let shards: Vec<_> = tap.shards().map(Result::unwrap).collect();
        shards
            .iter()
            .flat_map(|s| s.activations().to_vec())
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn a_run_ended_by_a_signal_says_so_and_goes_on_to_the_same_bits() {
    let bench = Bench::new(300);
    let whole = bench.extract(&[TAP], &FLAGS);
    for (name, status) in [("INT", 130), ("TERM", 143)] {
        let store = bench.path(name);
        let child = begun(&bench, &store);
        signal(&child, name);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(status), "{said}");
        assert!(
            said.starts_with("error: stopped after") && said.contains("--resume"),
            "{said}"
        );
        // What is there is checked, and is not called whole.
        let report = streamgauge()
            .arg("verify")
            .arg(&store)
            .arg("--json")
            .assert()
            .code(1)
            .get_output()
            .clone();
        let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(
            (&report["state"], &report["problems"], &report["ok"]),
            (&json!("partial"), &json!([]), &json!(false))
        );
        let message = refused(
            bench
                .job("extract", &[TAP])
                .arg("--out")
                .arg(&store)
                .args(FLAGS),
            1,
        );
        assert!(message.contains("pass --resume"), "{message}");
        let summary = done_json(
            bench
                .job("extract", &[TAP])
                .arg("--out")
                .arg(&store)
                .args(FLAGS)
                .args(["--resume", "--json"]),
        );
        assert_eq!(summary["samples"], 300);
        assert!(summary["resumed_samples"].as_u64().unwrap() > 0);
        assert_eq!(rows(&store), rows(&whole));
    }
}

#[test]
fn two_writers_are_refused_and_a_store_that_is_written_cannot_be_resumed() {
    let bench = Bench::new(300);
    let store = bench.path("store");
    let mut child = begun(&bench, &store);
    signal(&child, "STOP");
    let mut second = bench.job("extract", &[TAP]);
    second.arg("--out").arg(&store).args(FLAGS).arg("--resume");
    let message = refused(&mut second, 1);
    let pid = format!("(pid {})", child.id());
    assert!(
        message.contains("is being written by another process") && message.contains(&pid),
        "{message}"
    );
    signal(&child, "KILL");
    child.wait().unwrap();
    done(&mut second);
}

#[test]
fn resume_begins_a_store_and_rechecks_one_that_is_complete() {
    let bench = Bench::new(20);
    let store = bench.extract(&["hook_embed"], &["--resume"]);
    let again = |flags: &[&str]| {
        let mut c = bench.job("extract", &["hook_embed"]);
        c.arg("--out").arg(&store).arg("--resume").args(flags);
        c
    };
    let said = done_json(again(&[]).arg("--json"));
    assert_eq!(
        (&said["already_complete"], &said["samples"]),
        (&json!(true), &json!(20))
    );
    let mut loud = streamgauge();
    loud.args(["extract", "--tap", "hook_embed", "--resume", "--model"])
        .arg(model())
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(&store);
    assert!(done(&mut loud).contains("was complete already: 2 files"));
    let message = refused(&mut again(&["--select", "last"]), 1);
    assert!(message.contains("--select was"), "{message}");
    let file = store.join("hook_embed/00000.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let ended = again(&[]).assert().code(1).get_output().clone();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("complete and damaged"), "{said}");
}

#[test]
fn what_can_be_read_only_once_is_neither_resumed_nor_sliced() {
    let bench = Bench::new(3);
    let pipe = bench.path("pipe.jsonl");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for flags in [&["--resume"][..], &["--shard", "0/2"]] {
        let job = |data: &std::path::Path| {
            let mut c = streamgauge();
            c.args(["extract", "--quiet", "--tap", "hook_embed", "--model"])
                .arg(model())
                .arg("--data")
                .arg(data)
                .arg("--out")
                .arg(bench.path("store"))
                .args(flags);
            c
        };
        let message = refused(&mut job("-".as_ref()), 2);
        assert!(
            message.contains(flags[0]) && message.contains("standard input"),
            "{message}"
        );
        let message = refused(&mut job(&pipe), 1);
        assert!(
            message.contains(flags[0]) && message.contains("pipe.jsonl"),
            "{message}"
        );
    }
    assert!(!bench.path("store").exists());
}

/// The model's folder with a weight file of its own, to be cut short.
fn own_model(bench: &Bench) -> std::path::PathBuf {
    let dir = bench.path("model");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn weights_cut_short_while_they_are_used_end_the_run_with_the_files_name() {
    let bench = Bench::new(1);
    let dir = own_model(&bench);
    let mut child = Command::new(env!("CARGO_BIN_EXE_streamgauge"))
        .args(["extract", "--quiet", "--tap", TAP, "--data", "-", "--model"])
        .arg(&dir)
        .arg("--out")
        .arg(bench.path("store"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than pipe and reader hold: when it is taken, the model has long been mapped, and no batch can have begun.
    let mut stdin = child.stdin.take().unwrap();
    let line = format!("{}\n", json!({ "tokens": vec![5; 100] }));
    for _ in 0..2 * (1 << 20) / line.len() {
        stdin.write_all(line.as_bytes()).unwrap();
    }
    let weights = dir.join("model.safetensors");
    std::fs::File::options()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(4096)
        .unwrap();
    drop(stdin);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: ")
            && said.contains("model.safetensors: cannot be read any further")
            && said.lines().count() == 1,
        "{said}"
    );
}
