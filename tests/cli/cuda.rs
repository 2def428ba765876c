//! The CUDA path from the command line, on the interpreter's device: what the GPU would run, without one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use serde_json::{Value, json};

use super::{Bench, common, done, done_json, streamgauge};

/// 2 layers each, d 64 or 80, heads of 64 and of 80.
const BF16: &str = "mistral-bf16-h64";
const F16: &str = "llama-f16-h80";

const TAPS: [&str; 6] = [
    "blocks.*.hook_resid_post",
    "blocks.1.attn.hook_z[1]@-3..-1",
    "blocks.1.hook_mlp_out|mean",
    "blocks.0.attn.hook_pattern@last",
    "logits@last|logprob:4",
    "blocks.0.ln1.hook_scale@last",
];

fn job(bench: &Bench, command: &str, model: &str) -> Command {
    job_on("interpreter", bench, command, model)
}

fn job_on(device: &str, bench: &Bench, command: &str, model: &str) -> Command {
    let mut c = streamgauge();
    c.arg(command)
        .arg("--model")
        .arg(common::fixtures().join("models").join(model))
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .args(["--quiet", "--device", device]);
    for tap in TAPS {
        c.args(["--tap", tap]);
    }
    c
}

fn extract(bench: &Bench, model: &str, flags: &[&str]) -> PathBuf {
    let store = bench.path("store");
    done(
        job(bench, "extract", model)
            .arg("--out")
            .arg(&store)
            .args(flags),
    );
    store
}

fn verify(store: &Path, flags: &[&str]) -> Value {
    done_json(
        streamgauge()
            .arg("verify")
            .arg(store)
            .args(["--recompute", "3", "--json"])
            .args(flags),
    )
}

#[test]
fn a_store_says_what_computed_it_and_is_verified_bit_by_bit_there() {
    for (model, flags, compute, residual, stored) in [
        (BF16, &[][..], "bf16", "bf16", "bf16"),
        (F16, &[], "f16", "f16", "f16"),
        (BF16, &["--residual", "f32"], "bf16", "f32", "bf16"),
        (BF16, &["--store-dtype", "f32"], "bf16", "bf16", "f32"),
        (
            F16,
            &["--dtype", "f32", "--gemm", "own"],
            "f32",
            "f32",
            "f32",
        ),
    ] {
        let bench = Bench::new(8);
        let store = extract(&bench, model, flags);
        let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
        for (field, value) in [
            ("backend", "cuda"),
            ("device", "PTX interpreter"),
            ("compute_dtype", compute),
            ("store_dtype", stored),
        ] {
            assert_eq!(held[field], value, "{field} of {model} with {flags:?}");
        }
        assert_eq!(held["taps"][0]["dtype"], stored);
        let manifest = std::fs::read(store.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let record = &manifest["numeric_record"];
        assert_eq!(
            (&record["compute"], &record["residual"]),
            (&json!(compute), &json!(residual))
        );
        assert_eq!(record["gemm"]["library"], "own");
        assert!(record["kernels"].as_str().unwrap().contains("nvcc"));
        let checked = verify(&store, &[]);
        let again = &checked["recomputed"];
        assert_eq!(
            (&checked["ok"], &again["exact"], &again["device"]),
            (&json!(true), &json!(true), &json!("PTX interpreter")),
            "{model} with {flags:?}"
        );
    }
}

#[test]
fn verify_elsewhere_says_what_differs_and_which_gate_it_uses() {
    let bench = Bench::new(6);
    let store = extract(&bench, BF16, &[]);
    let again = &verify(&store, &["--device", "cpu"])["recomputed"];
    assert_eq!(again["exact"], false);
    let (why, gate) = (&again["why_not_exact"], &again["gate"]);
    assert!(
        why.as_str()
            .unwrap()
            .contains("backend cuda there and cpu here"),
        "{why}"
    );
    assert!(gate.as_str().unwrap().contains("5.0e-2"), "{gate}");
    // It computed something else indeed, and not by much.
    let worst = again["worst"].as_f64().unwrap();
    assert!(worst > 1e-4 && worst < 5e-2, "{worst}");
    let said =
        done(
            streamgauge()
                .arg("verify")
                .arg(&store)
                .args(["--recompute", "2", "--device", "cpu"]),
        );
    assert!(said.contains("the gate instead: relative L2"), "{said}");
}

#[test]
fn a_store_of_the_cpu_can_be_computed_again_on_a_device() {
    let bench = Bench::new(6);
    let store = bench.path("store");
    done(
        job_on("cpu", &bench, "extract", F16)
            .arg("--out")
            .arg(&store),
    );
    assert_eq!(verify(&store, &[])["recomputed"]["exact"], true);
    let again = &verify(&store, &["--device", "interpreter"])["recomputed"];
    assert_eq!(again["exact"], false);
    assert!(again["worst"].as_f64().unwrap() < 1e-5, "{again}");
}

#[test]
fn what_runs_where_is_told() {
    let bench = Bench::new(3);
    let mut c = streamgauge();
    c.args([
        "extract",
        "--tap",
        "hook_embed",
        "--device",
        "interpreter",
        "--model",
    ])
    .arg(common::fixtures().join("models").join(BF16))
    .arg("--data")
    .arg(bench.path("data.jsonl"))
    .arg("--out")
    .arg(bench.path("told"));
    let output = c.assert().success().get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    for word in [
        "PTX interpreter in bf16",
        "products by own",
        "of weights uploaded",
        "/s)",
    ] {
        assert!(said.contains(word), "'{word}' in {said}");
    }
}

#[test]
fn a_plan_for_a_device_names_its_dtype() {
    let bench = Bench::new(3);
    let cache = bench.path("cache");
    let plan = done_json(
        job(&bench, "plan", BF16)
            .arg("--json")
            .env("XDG_CACHE_HOME", &cache),
    );
    assert_eq!(
        (&plan["taps"][0]["dtype"], &plan["ceilings"]),
        (&json!("bf16"), &json!("measured now"))
    );
    // What was measured once is not measured again.
    let kept = done_json(
        streamgauge()
            .args([
                "bench",
                "ceilings",
                "--json",
                "--device",
                "interpreter",
                "--dir",
            ])
            .arg(bench.path(""))
            .env("XDG_CACHE_HOME", &cache),
    );
    assert_eq!(kept["device"]["device"], "PTX interpreter");
    let plan = done_json(
        job(&bench, "plan", BF16)
            .arg("--json")
            .env("XDG_CACHE_HOME", &cache),
    );
    assert!(
        plan["ceilings"]
            .as_str()
            .unwrap()
            .ends_with("streamgauge/ceilings.json")
    );
    let rate = kept["device"]["gemm_flops"]["bf16"].as_f64().unwrap();
    assert_eq!(plan["gemm_gflops"].as_f64().unwrap(), rate / 1e9);
}

#[test]
fn what_a_run_waited_for_is_told_by_its_cause_and_kept() {
    let bench = Bench::new(8);
    let store = bench.path("store");
    let done = done_json(
        job(&bench, "extract", BF16)
            .args(["--json", "--out"])
            .arg(&store),
    );
    let manifest = std::fs::read(store.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let wall = done["wall_s"].as_f64().unwrap();
    for cause in ["gpu", "pcie", "disk", "tokeniser"] {
        let field = format!("waited_for_{cause}_s");
        let (told, kept) = (&done[&field], &manifest["stalls"][&field]);
        let (told, kept) = (told.as_f64().unwrap(), kept.as_f64().unwrap());
        // Nothing is computed or copied before somebody waits for it; the first shard is waited for, and then its files.
        assert!(told > 0.0 && told < wall, "{cause}: {told} of {wall}");
        assert!((told - kept).abs() < 1e-3, "{cause}: {told} {kept}");
    }
    // The interpreter takes its time over kernels; copies are quick.
    assert!(done["waited_for_gpu_s"].as_f64() > done["waited_for_pcie_s"].as_f64());
    let mut c = streamgauge();
    c.args([
        "extract",
        "--device",
        "interpreter",
        "--tap",
        "hook_embed",
        "--model",
    ])
    .arg(common::fixtures().join("models").join(BF16))
    .arg("--data")
    .arg(bench.path("data.jsonl"))
    .arg("--out")
    .arg(bench.path("told"));
    let said = self::done(&mut c);
    for word in [
        "waiting for the GPU",
        "for PCIe",
        "waiting for the tokeniser",
        "waiting for the disk",
    ] {
        assert!(said.contains(word), "'{word}' in {said}");
    }
}

/// A line of JSON for each prompt.
fn generate(bench: &Bench, device: &str, flags: &[&str]) -> Vec<Value> {
    let mut c = streamgauge();
    c.args(["generate", "--json", "--quiet", "--max-new-tokens", "6"])
        .args(["--device", device, "--model"])
        .arg(common::fixtures().join("models").join(BF16))
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .args(flags)
        // A pipe that is read twice never ends.
        .timeout(Duration::from_secs(120));
    let lines = done(&mut c);
    let read = lines.lines().map(serde_json::from_str);
    read.collect::<Result<_, _>>().unwrap()
}

#[test]
fn text_is_generated_on_a_device_as_on_the_cpu() {
    let bench = Bench::new(5);
    let edit = ["--edit", "scale at=blocks.0.hook_resid_post c=1.5"];
    let on_cpu = generate(&bench, "cpu", &edit);
    // Fewer at a time than there are, and more.
    for batch in ["2", "16"] {
        let flags = [&edit[..], &["--dtype", "f32", "--batch", batch]].concat();
        let on_device = generate(&bench, "interpreter", &flags);
        assert_eq!(on_device.len(), 5);
        for (a, b) in on_device.iter().zip(&on_cpu) {
            assert_eq!((&a["tokens"], &a["stop"]), (&b["tokens"], &b["stop"]));
            let of = |v: &Value| v["logprobs"][0].as_f64().unwrap();
            assert!((of(a) - of(b)).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn prompts_from_a_pipe_are_read_once() {
    let bench = Bench::new(3);
    let expected = generate(&bench, "interpreter", &[]);
    let data = bench.path("data.jsonl");
    let lines = std::fs::read(&data).unwrap();
    std::fs::remove_file(&data).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &data, mode).unwrap();
    let writer = std::thread::spawn(move || std::fs::write(data, lines).unwrap());
    assert_eq!(generate(&bench, "interpreter", &[]), expected);
    writer.join().unwrap();
}

#[test]
fn what_is_tapped_while_generating_on_a_device_says_what_computed_it() {
    let bench = Bench::new(3);
    let store = bench.path("generated");
    let out = store.display().to_string();
    let tap = ["--tap", "blocks.1.hook_resid_post@generated", "--out", &out];
    generate(&bench, "interpreter", &tap);
    let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
    for (field, value) in [
        ("backend", "cuda"),
        ("device", "PTX interpreter"),
        ("compute_dtype", "bf16"),
        ("store_dtype", "bf16"),
    ] {
        assert_eq!(held[field], value, "{field}");
    }
    assert_eq!(held["taps"][0]["rows"], 3 * 5);
}

#[test]
fn a_sweep_on_a_device_recovers_as_on_the_cpu() {
    let bench = Bench::new(1);
    let pairs = bench.path("pairs.jsonl");
    let line = r#"{"clean": [5, 61, 12, 77, 17], "corrupt": [5, 90, 33, 41, 17]}"#;
    std::fs::write(&pairs, line).unwrap();
    let sweep = |device: &str| {
        let out = bench.path(device);
        let mut c = streamgauge();
        c.args(["patch", "--quiet", "--min-kl", "0", "--dtype", "f32"])
            .args([
                "--sites",
                "blocks.*.hook_mlp_out",
                "blocks.1.attn.hook_z[0--1]",
            ])
            .args(["--device", device, "--model"])
            .arg(common::fixtures().join("models").join(BF16))
            .arg("--data")
            .arg(&pairs)
            .arg("--out")
            .arg(&out);
        done(&mut c);
        let manifest = std::fs::read(out.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let means = std::fs::read_to_string(out.join("means.csv")).unwrap();
        let rows = means.lines().skip(1).map(|line| {
            let numbers = line
                .split(',')
                .filter_map(|field| field.parse::<f64>().ok());
            numbers.collect::<Vec<_>>()
        });
        (manifest.to_string(), rows.collect::<Vec<_>>())
    };
    let ((cpu, expected), (device, found)) = (sweep("cpu"), sweep("interpreter"));
    assert!(!cpu.contains("PTX interpreter") && device.contains("PTX interpreter"));
    assert!(!expected.is_empty() && expected.len() == found.len());
    for (a, b) in expected.iter().flatten().zip(found.iter().flatten()) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

#[test]
fn a_trace_names_hook_points_and_copies_of_the_device() {
    let bench = Bench::new(4);
    let trace = bench.path("trace.json");
    extract(&bench, BF16, &["--trace", trace.to_str().unwrap()]);
    let written: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let events = written["traceEvents"].as_array().unwrap();
    let named = |category: &str, name: &str| -> &Value {
        let found = events
            .iter()
            .find(|e| e["cat"] == category && e["name"] == name);
        found.unwrap_or_else(|| panic!("{name} in {category}: {written}"))
    };
    let end = |e: &Value| e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap();
    let mut before = 0.0;
    for name in [
        "hook_embed",
        "blocks.0.ln1.hook_out",
        "blocks.0.mlp.hook_post",
        "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_resid_post",
    ] {
        let op = named("device: launches", name);
        // In µs: an end is a sum, which may round up past the next beginning.
        assert!(
            op["ts"].as_f64().unwrap() >= before - 1e-3,
            "{name} is in its place"
        );
        before = end(op);
    }
    let copy = events
        .iter()
        .find(|e| e["cat"] == "device: copies out")
        .unwrap();
    assert!(end(copy) >= end(named("device: launches", "hook_embed")));
    assert!(events.iter().any(|e| e["cat"] == "commit shards"));
}
