//! Where io_uring is barred, as many container runtimes do: rows go to the disk by other ways, and it is told why.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

use super::{Bench, common, done, done_json, streamgauge};

/// A program that runs another one without io_uring.
fn barring(bench: &Bench) -> PathBuf {
    let program = bench.path("no_io_uring");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/no_io_uring.c");
    let compiled = std::process::Command::new("cc")
        .arg("-o")
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(compiled.success());
    program
}

fn barred(bench: &Bench) -> Command {
    let mut c = Command::new(bench.path("no_io_uring"));
    c.arg(streamgauge().get_program());
    c
}

fn extract(mut c: Command, bench: &Bench, device: &str, out: &Path) {
    c.args([
        "extract",
        "--quiet",
        "--tap",
        "blocks.*.hook_resid_post",
        "--shard-size",
        "20kB",
    ])
    .args(["--device", device, "--model"])
    .arg(common::fixtures().join("models/mistral-bf16-h64"))
    .arg("--data")
    .arg(bench.path("data.jsonl"))
    .arg("--out")
    .arg(out);
    done(&mut c);
}

/// How rows were written, and every tap's bytes.
fn written(store: &Path) -> (Value, Vec<Vec<u8>>) {
    let manifest = std::fs::read(store.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let shards = manifest["shards"].as_array().unwrap().iter();
    let taps = shards.flat_map(|shard| shard["taps"].as_array().unwrap());
    let bytes = taps
        .map(|tap| std::fs::read(store.join(tap["file"].as_str().unwrap())).unwrap())
        .collect();
    (manifest["write_path"].clone(), bytes)
}

#[test]
fn where_io_uring_is_barred_the_same_bytes_are_written_otherwise_and_doctor_says_what_to_do() {
    let bench = Bench::new(12);
    barring(&bench);
    // On a disk: a tmpfs is written through its mapping anyway.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (device, otherwise) in [("cpu", "mapped"), ("interpreter", "pwrite")] {
        let [free, bars] =
            ["free", "barred"].map(|name| disk.path().join(format!("{name}-{device}")));
        extract(streamgauge(), &bench, device, &free);
        extract(barred(&bench), &bench, device, &bars);
        let ((_, expected), (path, found)) = (written(&free), written(&bars));
        assert!(expected.len() > 2 && found == expected, "{device}");
        assert_eq!(path["path"], otherwise, "{path}");
        let why = path["why_not_better"].as_str().unwrap();
        assert!(why.contains("not permitted"), "{why}");
    }
    let found = done_json(barred(&bench).args(["doctor", "--json"]));
    let missing = found["missing"].as_array().unwrap().iter();
    let told: Vec<&Value> = missing.filter(|m| m["what"] == "io_uring").collect();
    assert!(
        told.len() == 1
            && told[0]["remedy"]
                .as_str()
                .unwrap()
                .contains("kernel.io_uring_disabled"),
        "{told:?}"
    );
}
