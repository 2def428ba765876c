//! Bad input at the command line: one clear line that says what, where and what to do; a non-zero exit; and never a store
//! that looks finished.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use streamgauge::store::Store;

fn streamgauge() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("streamgauge"))
}

fn tiny() -> PathBuf {
    common::fixtures().join("models/mistral-window4")
}

/// A copy of the tiny model that a test may spoil.
fn copy_of_tiny(dir: &Path) -> PathBuf {
    let to = dir.join("model");
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(tiny()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    to
}

fn data(dir: &Path, content: &[u8]) -> PathBuf {
    let path = dir.join("data.jsonl");
    fs::write(&path, content).unwrap();
    path
}

/// Extracts, expects failure with `code`, and checks that the one line on stderr holds every one of `says`.
fn refused(model: &Path, data: &Path, out: &Path, more: &[&str], code: i32, says: &[&str]) {
    let mut command = streamgauge();
    command
        .arg("extract")
        .arg("--model")
        .arg(model)
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(out)
        .args(more);
    if !more.contains(&"--tap") {
        command.args(["--tap", "blocks.*.hook_resid_post"]);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in says {
        assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
    assert!(
        !stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"),
        "{stderr}"
    );
    if code == 1 {
        // Where it runs is told before anything can go wrong.
        let told = |line: &&str| !line.starts_with("running on the CPU: ");
        let lines = stderr.trim_end().lines().filter(told);
        assert_eq!(lines.count(), 1, "one line: {stderr}");
    }
    assert!(Store::open(out).is_err(), "no store looks finished");
}

const GOOD: &[u8] = b"{\"tokens\": [1, 2, 3]}\n";

#[test]
fn a_truncated_or_corrupt_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = (
        copy_of_tiny(dir.path()),
        data(dir.path(), GOOD),
        dir.path().join("out"),
    );
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        refused(&model, &data, &out, &[], 1, &["model.safetensors"]);
    }
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&weights, &lying).unwrap();
    refused(&model, &data, &out, &[], 1, &["model.safetensors"]);
    let mut garbled = whole;
    garbled[20..60].fill(0xFF);
    fs::write(&weights, &garbled).unwrap();
    refused(&model, &data, &out, &[], 1, &["model.safetensors"]);
}

/// Rewrites the header of the tiny model's weights.
fn with_header(model: &Path, change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<_, _> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&bytes[8 + n..]);
    fs::write(path, out).unwrap();
}

#[test]
fn missing_extra_misshaped_and_mistyped_tensors_are_named() {
    const Q: &str = "model.layers.1.self_attn.q_proj.weight";
    type Change = fn(&mut serde_json::Map<String, serde_json::Value>);
    let cases: [(&str, Change); 4] = [
        ("missing", |h| {
            let tensor = h.remove(Q).unwrap();
            h.insert("model.layers.1.self_attn.renamed.weight".into(), tensor);
        }),
        ("shape", |h| h[Q]["shape"] = serde_json::json!([32, 128])),
        ("dtype", |h| h[Q]["dtype"] = serde_json::json!("I16")),
        ("lies", |h| {
            h[Q]["data_offsets"] = serde_json::json!([0, 1_u64 << 60])
        }),
    ];
    for (case, change) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = copy_of_tiny(dir.path());
        with_header(&model, change);
        let says = if case == "lies" {
            "model.safetensors"
        } else {
            Q
        };
        refused(
            &model,
            &data(dir.path(), GOOD),
            &dir.path().join("out"),
            &[],
            1,
            &[says],
        );
    }
}

#[test]
fn a_config_that_lacks_a_key_or_would_change_the_computation_is_refused_by_name() {
    let cases: [(&str, &str, serde_json::Value); 8] = [
        ("hidden_size", "remove", serde_json::Value::Null),
        ("num_hidden_layers", "remove", serde_json::Value::Null),
        ("hidden_act", "set", serde_json::json!("gelu")),
        ("attention_bias", "set", serde_json::json!(true)),
        (
            "rope_parameters",
            "set",
            serde_json::json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        ),
        (
            "quantization_config",
            "set",
            serde_json::json!({"quant_method": "gptq"}),
        ),
        ("model_type", "set", serde_json::json!("gpt2")),
        ("num_local_experts", "set", serde_json::json!(8)),
    ];
    for (key, action, value) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = copy_of_tiny(dir.path());
        let path = model.join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if action == "remove" {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        let says = if key == "rope_parameters" {
            "yarn"
        } else {
            key
        };
        refused(
            &model,
            &data(dir.path(), GOOD),
            &dir.path().join("out"),
            &[],
            1,
            &["config.json", says],
        );
    }
}

#[test]
fn bad_samples_are_named_by_file_and_line() {
    let cases: [(&[u8], &[&str]); 7] = [
        (
            b"{\"tokens\": [1]}\n{\"tokens\": [1, 160]}\n",
            &["data.jsonl:2", "160", "vocabulary"],
        ),
        (
            b"{\"tokens\": [1]}\n{\"tokens\": []}\n",
            &["data.jsonl:2", "no tokens"],
        ),
        (
            b"{\"tokens\": [1]}\n{\"tokens\": [-4]}\n",
            &["data.jsonl:2", "-4"],
        ),
        (b"{\"tokens\": [1]}\n{\"tokens\": [1]\n", &["data.jsonl:2"]),
        (
            b"{\"tokens\": [1]}\n{\"text\": \"caf\xe9\"}\n",
            &["data.jsonl:2", "UTF-8"],
        ),
        (
            b"{\"tokens\": [1]}\n{\"other\": 1}\n",
            &["data.jsonl:2", "text"],
        ),
        (
            b"{\"text\": \"no tokenizer for this\"}\n",
            &["data.jsonl:1", "tokenizer.json"],
        ),
    ];
    for (content, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        refused(
            &tiny(),
            &data(dir.path(), content),
            &dir.path().join("out"),
            &[],
            1,
            says,
        );
    }
}

#[test]
fn samples_longer_than_the_limit_or_the_models_positions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = data(
        dir.path(),
        format!("{{\"tokens\": {:?}}}\n", vec![1; 5000]).as_bytes(),
    );
    let out = dir.path().join("out");
    refused(
        &tiny(),
        &data,
        &out,
        &[],
        1,
        &["data.jsonl:1", "5000 tokens", "--on-long"],
    );
    let out = dir.path().join("out2");
    refused(
        &tiny(),
        &data,
        &out,
        &["--max-length", "16"],
        1,
        &["5000 tokens", "16", "raise --max-length"],
    );
    refused(
        &tiny(),
        &data,
        &dir.path().join("out3"),
        &["--max-length", "100000000"],
        1,
        &["--max-length", "positions"],
    );
}

#[test]
fn unknown_hooks_layers_and_heads_list_the_nearest_valid_ones() {
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path(), GOOD);
    let cases: [(&str, &[&str]); 6] = [
        ("blocks.0.hook_resid_pots", &["blocks.0.hook_resid_post"]),
        ("blocks.3.hook_resid_post", &["3", "0", "2"]),
        ("blocks.0.attn.hook_z[4]", &["4"]),
        ("blocks.0.hook_resid_post@lats", &["lats", "last"]),
        ("blocks.0.hook_resid_post|maen", &["maen", "mean"]),
        ("hook_embed@generated", &["generated"]),
    ];
    for (i, (tap, says)) in cases.into_iter().enumerate() {
        refused(
            &tiny(),
            &data,
            &dir.path().join(format!("out{i}")),
            &["--tap", tap],
            1,
            says,
        );
    }
}

#[test]
fn an_output_directory_that_is_not_empty_or_not_writable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path(), GOOD);
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.tex"), "precious").unwrap();
    refused(&tiny(), &data, &full, &[], 1, &["full", "empty"]);
    assert_eq!(
        fs::read_to_string(full.join("thesis.tex")).unwrap(),
        "precious"
    );
    refused(
        &tiny(),
        &data,
        Path::new("/proc/streamgauge-out"),
        &[],
        1,
        &["/proc/streamgauge-out"],
    );
}

/// A file system in memory for one test; needs the right to mount, which CI's machine and most containers' root have.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(options: &str) -> Self {
        Self::mount("tmpfs", options)
    }

    fn mount(kind: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", kind, "-o", options, kind])
            .arg(dir.path())
            .status();
        assert!(
            mounted.is_ok_and(|s| s.success()),
            "cannot mount a {kind}: run this test as root (tests need it to fill a disk)"
        );
        Mounted(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_full_disk_is_found_before_any_compute() {
    let disk = Mounted::tmpfs("size=256k");
    let dir = tempfile::tempdir().unwrap();
    let data = data(
        dir.path(),
        format!("{{\"tokens\": {:?}}}\n", vec![1; 500]).as_bytes(),
    );
    refused(
        &tiny(),
        &data,
        &disk.0.path().join("out"),
        &[],
        1,
        &["out", "bytes", "free"],
    );
}

#[test]
fn a_read_only_disk_is_refused() {
    let disk = Mounted::tmpfs("size=1m,ro");
    let dir = tempfile::tempdir().unwrap();
    refused(
        &tiny(),
        &data(dir.path(), GOOD),
        &disk.0.path().join("out"),
        &[],
        1,
        &["out"],
    );
}

#[test]
fn a_file_system_that_only_maps_is_refused_with_one_that_does() {
    let disk = Mounted::mount("hugetlbfs", "rw");
    let dir = tempfile::tempdir().unwrap();
    let out = disk.0.path().join("out");
    refused(
        &tiny(),
        &data(dir.path(), GOOD),
        &out,
        &[],
        1,
        &["hugetlbfs", "huge=always"],
    );
    assert!(!out.exists());
}

#[test]
fn no_such_model_and_no_such_data_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (data(dir.path(), GOOD), dir.path().join("out"));
    refused(
        Path::new("/nonexistent/model"),
        &data,
        &out,
        &[],
        1,
        &["/nonexistent/model"],
    );
    refused(
        &tiny(),
        Path::new("/nonexistent/data.jsonl"),
        &out,
        &[],
        1,
        &["/nonexistent/data.jsonl"],
    );
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    refused(&empty, &data, &out, &[], 1, &["config.json"]);
}

#[test]
fn flags_that_say_nothing_beside_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (data(dir.path(), GOOD), dir.path().join("out"));
    for (flags, says) in [
        (&["--chunk-overlap", "3"][..], "--on-long chunk"),
        (
            &["--pack-context", "8", "--on-long", "chunk"],
            "--on-long with --pack-context",
        ),
    ] {
        refused(&tiny(), &data, &out, flags, 2, &[says]);
    }
    assert!(!out.exists());
}
