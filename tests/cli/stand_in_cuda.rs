//! What a machine's driver may say, from a stand-in of it (`tests/stand_in_cuda/libcuda.c`), which a child process finds before the
//! machine's own: one line each, exit 1, and a store that is whole or says that it is not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use assert_cmd::Command;
use ptx_interpreter::Module;
use streamgauge::backend::cuda::images::IMAGES;
use tempfile::TempDir;

use super::{Bench, common, done, done_json, refused, streamgauge};

/// A folder with the stand-in, compiled once.
pub fn stand_in() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kernels.h"), kernels()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in_cuda/libcuda.c");
        let compiled = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-I"])
            .arg(dir.path())
            .arg("-o")
            .arg(dir.path().join("libcuda.so.1"))
            .arg(source)
            .status()
            .unwrap();
        assert!(compiled.success());
        // The bare name is what is looked for first.
        std::os::unix::fs::symlink("libcuda.so.1", dir.path().join("libcuda.so")).unwrap();
        dir
    })
    .path()
}

/// Every kernel's name and the bytes of its argument, as C.
fn kernels() -> String {
    let mut text =
        "static const struct kernel { const char *name; size_t bytes; } KERNELS[] = {\n".to_owned();
    for image in IMAGES {
        let (arch, ptx) = image.ptx[0];
        for kernel in Module::parse(ptx, arch).unwrap().kernels() {
            writeln!(text, "    {{\"{}\", {}}},", kernel.name, kernel.param_bytes).unwrap();
        }
    }
    text + "};\n"
}

/// A command on a machine with that driver.
pub fn on(setting: &[(&str, &str)], mut command: Command) -> Command {
    command.env("LD_LIBRARY_PATH", stand_in());
    for (name, value) in setting {
        command.env(name, value);
    }
    command
}

/// An extraction into `store` in several shards, on the stand-in's GPU.
fn extract(bench: &Bench, store: &Path) -> Command {
    extract_in(bench, store, "32")
}

fn extract_in(bench: &Bench, store: &Path, batch_tokens: &str) -> Command {
    let mut c = streamgauge();
    c.args(["extract", "--quiet", "--device", "cuda", "--gemm", "own"])
        .args([
            "--tap",
            "blocks.*.hook_resid_post",
            "--batch-tokens",
            batch_tokens,
            "--shard-size",
            "8kB",
        ])
        .arg("--model")
        .arg(common::fixtures().join("models/mistral-bf16-h64"))
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(store);
    c
}

fn bench() -> (Bench, PathBuf) {
    let bench = Bench::new(30);
    let store = bench.path("store");
    (bench, store)
}

#[test]
fn a_driver_that_works_runs_a_job_and_doctor_tells_of_it() {
    let (bench, store) = bench();
    done(&mut on(&[], extract(&bench, &store)));
    let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
    assert_eq!(
        (&held["device"], &held["state"]),
        (&"Stand-in GPU".into(), &"complete".into())
    );
    assert!(held["shards"].as_u64().unwrap() > 3);
    let mut again = streamgauge();
    again
        .arg("verify")
        .arg(&store)
        .args(["--recompute", "4", "--json"]);
    assert_eq!(done_json(&mut on(&[], again))["recomputed"]["exact"], true);
    let mut doctor = streamgauge();
    doctor.args(["doctor", "--json"]);
    let found = done_json(&mut on(&[], doctor));
    assert_eq!(found["backends"]["cuda"], true);
    assert_eq!(found["cuda"]["gpus"][0]["name"], "Stand-in GPU");
}

#[test]
fn a_driver_without_a_gpu_and_one_that_is_too_old_are_told_in_a_line() {
    let (bench, store) = bench();
    for (mode, says) in [
        (
            "no-gpu",
            &["finds no usable GPU", "CUDA_ERROR_NO_DEVICE", "nvidia-smi"][..],
        ),
        ("none-listed", &["no cuda:0"]),
        ("old", &["up to 12.4", "install driver 580"]),
    ] {
        let setting = [("STAND_IN_CUDA", mode)];
        let message = refused(&mut on(&setting, extract(&bench, &store)), 1);
        for word in says {
            assert!(message.contains(word), "{mode}: '{word}' in {message}");
        }
        assert!(!store.exists(), "{mode}");
        let mut doctor = streamgauge();
        doctor.args(["doctor", "--json"]);
        let found = done_json(&mut on(&setting, doctor));
        assert_eq!(found["backends"]["cuda"], false, "{mode}");
        let missing = found["missing"].as_array().unwrap();
        assert!(
            missing.iter().any(|m| m["what"] == "CUDA backend"),
            "{mode}"
        );
        // `auto` goes on without it, and says so.
        let mut auto = streamgauge();
        auto.args(["extract", "--tap", "hook_embed", "--model"])
            .arg(common::fixtures().join("models/mistral-bf16-h64"))
            .arg("--data")
            .arg(bench.path("data.jsonl"))
            .arg("--out")
            .arg(bench.path(mode));
        let output = on(&setting, auto).assert().success().get_output().clone();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("running on the CPU: "), "{mode}: {said}");
    }
}

#[test]
fn memory_that_is_short_or_taken_meanwhile_leaves_no_store() {
    let (bench, store) = bench();
    let short = [("STAND_IN_CUDA_MEMORY", "64000000")];
    let message = refused(&mut on(&short, extract_in(&bench, &store, "65536")), 1);
    for word in [
        "Stand-in GPU has 64000000 bytes free",
        "are needed",
        "--batch-tokens",
    ] {
        assert!(message.contains(word), "'{word}' in {message}");
    }
    let taken = [("STAND_IN_CUDA", "out-of-memory")];
    let message = refused(&mut on(&taken, extract(&bench, &store)), 1);
    for word in ["CUDA_ERROR_OUT_OF_MEMORY", "nvidia-smi"] {
        assert!(message.contains(word), "'{word}' in {message}");
    }
    assert!(!store.exists());
}

#[test]
fn a_launch_that_fails_ends_the_run_and_the_shards_before_it_stay() {
    for late in ["0", "1"] {
        let (bench, store) = bench();
        let fails = [
            ("STAND_IN_CUDA_LAUNCH", "200"),
            ("STAND_IN_CUDA_LATE", late),
        ];
        let message = refused(&mut on(&fails, extract(&bench, &store)), 1);
        assert!(message.contains("CUDA_ERROR_LAUNCH_FAILED"), "{message}");
        let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
        assert_eq!(held["state"], "partial");
        assert!(held["shards"].as_u64().unwrap() > 0);
        let verified = streamgauge().arg("verify").arg(&store).assert().code(1);
        let said = String::from_utf8_lossy(&verified.get_output().stdout).into_owned();
        assert!(
            said.contains("of a partial store: every checksum agrees"),
            "{said}"
        );
        // Another run does not take it for an empty directory, and --resume goes on with it.
        refused(&mut on(&[], extract(&bench, &store)), 1);
        let mut again = on(&[], extract(&bench, &store));
        done(again.arg("--resume"));
        let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
        assert_eq!(held["state"], "complete");
        done(streamgauge().arg("verify").arg(&store));
    }
}

#[test]
fn memory_that_cannot_be_registered_slows_a_job_and_is_told_with_the_remedy() {
    let (bench, store) = bench();
    let none = [("STAND_IN_CUDA", "no-register")];
    done(&mut on(&none, extract(&bench, &store)));
    let manifest = std::fs::read(store.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let why = &manifest["write_path"]["why_not_better"];
    assert!(why.as_str().unwrap().contains("NOT_PERMITTED"), "{why}");
    let found = doctor(&none);
    let registers = found["cuda"]["registers"].as_array().unwrap();
    assert_eq!(registers.len(), 5);
    assert!(registers.iter().all(|r| r["why_not"].is_string()));
    assert!(remedy(&found, "registration of memory").contains("ulimit -l"));
    let well = doctor(&[]);
    let registers = well["cuda"]["registers"].as_array().unwrap();
    assert!(
        registers.iter().all(|r| r["why_not"].is_null()),
        "{registers:?}"
    );
    assert_eq!(remedy(&well, "registration of memory"), "");
}

#[test]
fn a_gpu_that_others_have_is_told_with_the_remedy() {
    let alone = doctor(&[("STAND_IN_CUDA", "in-use")]);
    let told = remedy(&alone, "use of cuda:0");
    for word in ["CUDA_ERROR_DEVICE_UNAVAILABLE", "nvidia-smi"] {
        assert!(told.contains(word), "'{word}' in {told}");
    }
    let full = doctor(&[("STAND_IN_CUDA_TAKEN", "3000000000")]);
    assert!(remedy(&full, "GPU memory").contains("nvidia-smi"));
    assert_eq!(remedy(&doctor(&[]), "GPU memory"), "");
}

fn doctor(setting: &[(&str, &str)]) -> serde_json::Value {
    let mut doctor = streamgauge();
    doctor.args(["doctor", "--json"]);
    done_json(&mut on(setting, doctor))
}

/// What doctor says to do about something that is missing; nothing if it is there.
fn remedy(found: &serde_json::Value, what: &str) -> String {
    let missing = found["missing"].as_array().unwrap();
    let about = missing.iter().find(|m| m["what"] == what);
    about.map_or(String::new(), |m| m["remedy"].as_str().unwrap().to_owned())
}
