//! The commands as a user runs them, on the fixtures' tiny models: what they print, write and refuse, and how they exit.

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

/// 3 layers, d 64, 4 query and 2 key/value heads of 16, MLP 112, vocabulary 160, window 4, 512 positions.
const MODEL: &str = "models/mistral-window4";

fn streamgauge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
}

fn model() -> PathBuf {
    common::fixtures().join(MODEL)
}

/// Runs the command; it must exit 0. Its standard output.
fn done(command: &mut Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

fn done_json(command: &mut Command) -> Value {
    let text = done(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Runs the command; it must exit with `status` and say why in one line, which is given.
fn refused(command: &mut Command, status: i32) -> String {
    let output = command.assert().code(status).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.starts_with("error: ") && message.trim_end().lines().count() == 1,
        "{message}"
    );
    message
}

/// A folder with a dataset of token ids: samples of 1 to 23 tokens, with labels, groups and topics that a direction can find.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(samples: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for i in 0..samples {
            let label = i % 2;
            let mut tokens: Vec<usize> = (0..i * 7 % 23)
                .map(|j| 3 + (i * 31 + j * 17) % 150)
                .collect();
            tokens.push(if label == 1 { 10 } else { 20 + i % 3 });
            let line = json!({ "tokens": tokens, "label": label, "group": format!("g{}", i / 4), "topic": format!("t{}", i % 3) });
            writeln!(lines, "{line}").unwrap();
        }
        std::fs::write(dir.path().join("data.jsonl"), lines).unwrap();
        Bench { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job(&self, command: &str, taps: &[&str]) -> Command {
        let mut c = streamgauge();
        c.arg(command)
            .arg("--model")
            .arg(model())
            .arg("--data")
            .arg(self.path("data.jsonl"))
            .arg("--quiet");
        for tap in taps {
            c.args(["--tap", tap]);
        }
        c
    }

    /// Extracts into `store`.
    fn extract(&self, taps: &[&str], flags: &[&str]) -> PathBuf {
        let store = self.path("store");
        done(
            self.job("extract", taps)
                .arg("--out")
                .arg(&store)
                .args(flags),
        );
        store
    }
}

/// Bytes of all files under `folder` of a store.
fn bytes_in(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum()
}

/// Everything that a tap can be: every selection of plain tokens, reductions, heads, ragged points, a point tapped twice.
const MANY: [&str; 12] = [
    "blocks.*.hook_resid_post",
    "blocks.0.hook_resid_post@last",
    "blocks.1.attn.hook_z[1,3]@-5..-1",
    "blocks.2.attn.hook_k@first",
    "blocks.1.attn.hook_pattern",
    "blocks.2.attn.hook_attn_scores[0-1]@every:3",
    "blocks.1.mlp.hook_post@sample:3#7|top:5",
    "blocks.1.hook_mlp_out|mean",
    "blocks.0.ln1.hook_scale@no-bos & last",
    "hook_embed@2..4|norm",
    "ln_final.hook_out@last",
    "logits@last|logprob:10",
];

#[test]
fn a_plan_gives_the_rows_and_bytes_that_extraction_then_writes() {
    let bench = Bench::new(60);
    for flags in [
        &[][..],
        &["--shard-size", "100kB", "--batch-tokens", "64"],
        &["--store-dtype", "bf16", "--limit", "17"],
    ] {
        let plan = done_json(bench.job("plan", &MANY).arg("--json").args(flags));
        let store = bench.path("planned");
        done(
            bench
                .job("extract", &MANY)
                .arg("--out")
                .arg(&store)
                .args(flags),
        );
        let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
        let (planned, written) = (
            plan["taps"].as_array().unwrap(),
            held["taps"].as_array().unwrap(),
        );
        assert_eq!((planned.len(), written.len()), (14, 14));
        let mut total = 0;
        for (planned, written) in planned.iter().zip(written) {
            let folder = planned["folder"].as_str().unwrap();
            for field in [
                "folder",
                "selection",
                "reduction",
                "row_shape",
                "dtype",
                "rows",
                "bytes",
            ] {
                assert_eq!(
                    planned[field], written[field],
                    "{field} of {folder} with {flags:?}"
                );
            }
            let on_disk = bytes_in(&store.join(folder));
            assert_eq!(planned["bytes"], on_disk, "{folder} with {flags:?}");
            total += on_disk;
        }
        assert_eq!(plan["bytes"], total);
        for field in ["samples", "tokens", "shards"] {
            assert_eq!(plan[field], held[field], "{field} with {flags:?}");
        }
        done(
            streamgauge()
                .arg("verify")
                .arg(&store)
                .args(["--recompute", "9"]),
        );
        std::fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn small_shards_hold_what_one_shard_holds() {
    let bench = Bench::new(40);
    let one = bench.extract(&["blocks.2.hook_resid_post"], &[]);
    let many = bench.path("many");
    let flags = ["--shard-size", "20kB", "--batch-tokens", "16"];
    done(
        bench
            .job("extract", &["blocks.2.hook_resid_post"])
            .arg("--out")
            .arg(&many)
            .args(flags),
    );
    let rows = |dir: &Path| -> Vec<u8> {
        let store = streamgauge::store::Store::open(dir).unwrap();
        let tap = store.tap("blocks.2.hook_resid_post").unwrap();
        tap.shards()
            .flat_map(|s| s.unwrap().activations().to_vec())
            .collect()
    };
    assert!(
        done_json(streamgauge().arg("inspect").arg(&many).arg("--json"))["shards"]
            .as_u64()
            .unwrap()
            > 3
    );
    assert_eq!(rows(&one), rows(&many));
}

#[test]
fn a_store_is_verified_and_recomputed_bit_by_bit() {
    let bench = Bench::new(12);
    let store = bench.extract(&MANY, &["--keep", "label,group"]);
    let said = done(
        streamgauge()
            .arg("verify")
            .arg(&store)
            .args(["--recompute", "100"]),
    );
    assert!(
        said.contains("every checksum agrees") && said.contains("12 samples run again"),
        "{said}"
    );
    assert!(said.contains("every bit is the same"), "{said}");
    let report = done_json(streamgauge().arg("verify").arg(&store).args([
        "--recompute",
        "3",
        "--seed",
        "5",
        "--json",
    ]));
    assert_eq!(
        (&report["ok"], &report["recomputed"]["samples"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(report["recomputed"]["exact"], true);
}

#[test]
fn verify_finds_the_model_and_the_dataset_where_they_were_moved() {
    let bench = Bench::new(12);
    let store = bench.extract(&["blocks.1.hook_resid_post@last"], &[]);
    std::fs::create_dir(bench.path("moved")).unwrap();
    std::fs::rename(bench.path("data.jsonl"), bench.path("moved/data.jsonl")).unwrap();
    let verify = || {
        let mut c = streamgauge();
        c.arg("verify").arg(&store).args(["--recompute", "4"]);
        c
    };
    assert!(refused(&mut verify(), 1).contains("data.jsonl"));
    done(
        verify()
            .arg("--data")
            .arg(bench.path("moved/data.jsonl"))
            .arg("--model")
            .arg(model()),
    );
    let other = common::fixtures().join("models/linear-rope");
    let message = refused(
        verify()
            .arg("--data")
            .arg(bench.path("moved/data.jsonl"))
            .arg("--model")
            .arg(other),
        1,
    );
    assert!(
        message.contains("the model is not what the store was made from"),
        "{message}"
    );
}

#[test]
fn a_flipped_byte_makes_verify_fail_and_name_the_file() {
    let bench = Bench::new(12);
    let store = bench.extract(&["blocks.*.hook_resid_post"], &[]);
    let file = store.join("blocks.1.hook_resid_post/00000.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    let verify = || {
        let mut c = streamgauge();
        c.arg("verify").arg(&store).args(["--recompute", "1"]);
        c
    };
    let output = verify().assert().code(1).get_output().clone();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("blocks.1.hook_resid_post/00000.safetensors: `activations`"),
        "{said}"
    );
    assert!(said.contains("1 problem\n"), "{said}");
    assert!(said.contains("nothing was recomputed"), "{said}");
    let output = verify().arg("--json").assert().code(1).get_output().clone();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["ok"], report["problems"].as_array().unwrap().len()),
        (&json!(false), 1)
    );
}

#[test]
fn inspect_tells_what_a_store_holds_and_statistics_of_its_taps() {
    let bench = Bench::new(20);
    let store = bench.extract(&MANY, &["--keep", "label,topic"]);
    let inspect = || {
        let mut c = streamgauge();
        c.arg("inspect").arg(&store);
        c
    };
    let text = done(&mut inspect());
    for said in [
        "complete",
        "mistral-window4",
        "data.jsonl",
        "label (int64), topic (utf8)",
        "blocks.0.hook_resid_post~2      @last  f32 [64]  20 rows",
    ] {
        assert!(text.contains(said), "'{said}' in {text}");
    }
    assert!(!text.contains("mean row norm"));
    assert_eq!(
        done(inspect().arg("--stats"))
            .matches("NaN 0, infinite 0")
            .count(),
        14
    );

    let one = done_json(inspect().args(["--tap", "blocks.1.hook_mlp_out", "--json"]));
    let statistics = &one["taps"][0]["statistics"];
    assert_eq!(
        (one["taps"].as_array().unwrap().len(), &statistics["values"]),
        (1, &json!(20 * 64))
    );
    let opened = streamgauge::store::Store::open(&store).unwrap();
    let tap = opened.tap("blocks.1.hook_mlp_out").unwrap();
    let rows: Vec<Vec<f64>> = (0..20)
        .map(|i| {
            tap.row(i)
                .unwrap()
                .to_f32()
                .into_iter()
                .map(f64::from)
                .collect()
        })
        .collect();
    let mean = rows.iter().flatten().sum::<f64>() / 1280.0;
    let std = (rows
        .iter()
        .flatten()
        .map(|v| (v - mean).powi(2))
        .sum::<f64>()
        / 1280.0)
        .sqrt();
    let norm = rows
        .iter()
        .map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt())
        .sum::<f64>()
        / 20.0;
    for (field, expected) in [("mean", mean), ("std", std), ("mean_row_norm", norm)] {
        let found = statistics[field].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-12,
            "{field}: {found}, {expected}"
        );
    }

    let scores = done_json(inspect().args(["--tap", "blocks.2.attn.hook_attn_scores", "--json"]));
    let statistics = &scores["taps"][0]["statistics"];
    assert!(
        statistics["masked"].as_u64().unwrap() > 0
            && statistics["infinite"] == 0
            && statistics["max"].is_f64()
    );
}

#[test]
fn taps_of_a_store_are_named_by_folder_hook_point_pattern_and_alias() {
    let bench = Bench::new(4);
    let store = bench.extract(
        &[
            "blocks.*.hook_resid_post@last",
            "blocks.2.hook_resid_post@first",
        ],
        &[],
    );
    let folders = |names: &[&str]| -> Vec<String> {
        let shown = done_json(
            streamgauge()
                .arg("inspect")
                .arg(&store)
                .arg("--json")
                .arg("--tap")
                .args(names),
        );
        shown["taps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["folder"].as_str().unwrap().to_owned())
            .collect()
    };
    let name = |layer: &str| format!("blocks.{layer}.hook_resid_post");
    assert_eq!(folders(&["blocks.2.hook_resid_post~2"]), [name("2") + "~2"]);
    assert_eq!(folders(&["blocks.2.hook_resid_post"]), [name("2")]);
    assert_eq!(
        folders(&["blocks.{-1,0}.hook_resid_post"]),
        [name("0"), name("2"), name("2") + "~2"]
    );
    assert_eq!(
        folders(&["model.layers.1", "blocks.0.hook_resid_post"]),
        [name("0"), name("1")]
    );
    let message = refused(
        streamgauge()
            .arg("inspect")
            .arg(&store)
            .args(["--tap", "blocks.1.hook_mlp_out"]),
        1,
    );
    assert!(
        message.contains("no tap \"blocks.1.hook_mlp_out\"") && message.contains(&name("1")),
        "{message}"
    );
    refused(
        streamgauge()
            .arg("inspect")
            .arg(&store)
            .args(["--tap", "blocks.0.hook_resid_post@last"]),
        2,
    );
}

#[test]
fn inspect_shows_a_sample_with_its_tokens_fields_and_rows() {
    let bench = Bench::new(20);
    let store = bench.extract(&MANY, &["--keep", "label,topic"]);
    let inspect = || {
        let mut c = streamgauge();
        c.arg("inspect").arg(&store).args(["--sample", "5"]);
        c
    };
    let shown = done_json(inspect().arg("--json"));
    let tokens: Vec<usize> = (0..12)
        .map(|j| 3 + (155 + j * 17) % 150)
        .chain([10])
        .collect();
    assert_eq!(shown["chunks"][0]["tokens"], json!(tokens));
    assert_eq!(
        (&shown["line"], &shown["kept"]),
        (&json!(6), &json!({ "label": 1, "topic": "t2" }))
    );
    let tap = |folder: &str| {
        shown["taps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|t| t["folder"] == folder)
            .unwrap()
            .clone()
    };
    assert_eq!(
        tap("blocks.1.hook_resid_post")["rows"]
            .as_array()
            .unwrap()
            .len(),
        13
    );
    assert_eq!(tap("blocks.0.hook_resid_post~2")["rows"][0]["position"], 12);
    assert_eq!(tap("blocks.1.hook_mlp_out")["rows"][0]["token"], -1);
    assert_eq!(
        tap("blocks.1.attn.hook_pattern")["ragged"],
        json!([[4, 13, 13]])
    );
    assert_eq!(
        tap("logits")["rows"][0]["index"].as_array().unwrap().len(),
        4
    );
    let text = done(inspect().args(["--tap", "blocks.*.hook_resid_post"]));
    assert!(
        text.contains("token ids only")
            && text.contains("and 5 more rows")
            && text.contains("topic: \"t2\""),
        "{text}"
    );
    let message = refused(
        streamgauge()
            .arg("inspect")
            .arg(&store)
            .args(["--sample", "20"]),
        1,
    );
    assert!(message.contains("no sample 20"), "{message}");
}

#[test]
fn a_partial_store_is_shown_as_partial_and_analysed_by_nobody() {
    let bench = Bench::new(40);
    // The last record is bad, and by then some shards are committed.
    let data = std::fs::read_to_string(bench.path("data.jsonl")).unwrap()
        + "{\"tokens\": [160], \"label\": 1}\n";
    std::fs::write(bench.path("data.jsonl"), data).unwrap();
    let store = bench.path("store");
    let flags = ["--shard-size", "20kB", "--keep", "label"];
    let message = refused(
        bench
            .job("extract", &["blocks.*.hook_resid_post@last"])
            .arg("--out")
            .arg(&store)
            .args(flags),
        1,
    );
    assert!(
        message.contains("data.jsonl:41") && message.contains("160"),
        "{message}"
    );
    assert!(done(streamgauge().arg("inspect").arg(&store)).contains("PARTIAL"));
    assert_eq!(
        done_json(streamgauge().arg("inspect").arg(&store).arg("--json"))["state"],
        "partial"
    );
    assert!(done(streamgauge().arg("verify").arg(&store)).contains("partial"));
    let message = refused(
        streamgauge()
            .args(["analyze", "mean-diff"])
            .arg(&store)
            .arg("--out")
            .arg(bench.path("out")),
        1,
    );
    assert!(message.contains("is partial"), "{message}");
    assert!(!bench.path("out").exists());
}

#[test]
fn mean_diff_writes_picture_table_and_directions() {
    let bench = Bench::new(120);
    let store = bench.extract(
        &["blocks.*.hook_resid_post@last"],
        &["--keep", "label,group,topic", "--shard-size", "30kB"],
    );
    let analyze = |out: &Path| {
        let mut c = streamgauge();
        c.args(["analyze", "mean-diff"])
            .arg(&store)
            .arg("--out")
            .arg(out);
        c
    };
    let (a, b) = (bench.path("results/a"), bench.path("b"));
    let said = done(&mut analyze(&a));
    assert!(
        said.contains("60 train, 60 test, split by group; 95 % BCa or percentile interval"),
        "{said}"
    );
    let value = done_json(analyze(&b).arg("--json"));
    let layers = value["layers"].as_array().unwrap();
    assert_eq!(
        (layers.len(), &value["groups"], &value["topics"]),
        (3, &json!("group"), &json!("topic"))
    );
    // The last token is the label's own in half of the samples: every layer must see that.
    assert!(
        layers.iter().all(|l| l["accuracy"].as_f64().unwrap() > 0.9),
        "{layers:?}"
    );
    for file in [
        "accuracy_by_layer.svg",
        "accuracy_by_layer.png",
        "accuracy_by_layer.csv",
    ] {
        assert_eq!(
            std::fs::read(a.join(file)).unwrap(),
            std::fs::read(b.join(file)).unwrap(),
            "{file}"
        );
    }
    let csv = std::fs::read_to_string(a.join("accuracy_by_layer.csv")).unwrap();
    assert_eq!(csv.lines().count(), 4);
    assert!(
        csv.starts_with("layer,hook,n_train,n_test,accuracy,ci_low,ci_high,"),
        "{csv}"
    );
    let svg = std::fs::read_to_string(a.join("accuracy_by_layer.svg")).unwrap();
    assert!(
        svg.contains("mistral-window4, blocks.L.hook_resid_post@last"),
        "{svg}"
    );
    let bytes = std::fs::read(a.join("directions.safetensors")).unwrap();
    let directions = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(directions.tensor("direction.2").unwrap().shape(), [64]);
    // What was found is what `|dot` then reads.
    let tap = format!(
        "blocks.2.hook_resid_post@last|dot:{}#direction.2",
        a.join("directions.safetensors").display()
    );
    done(bench.job("plan", &[&tap]).arg("--json"));
}

#[test]
fn mean_diff_refuses_what_it_cannot_compare_and_says_what_to_do() {
    let bench = Bench::new(40);
    let taps = [
        "blocks.*.hook_resid_post",
        "blocks.*.hook_mlp_out@last",
        "hook_embed@last",
        "blocks.1.attn.hook_pattern@last",
    ];
    let store = bench.extract(&taps, &["--keep", "label,topic"]);
    let refused = |flags: &[&str]| {
        let out = bench.path("out");
        let message = refused(
            streamgauge()
                .args(["analyze", "mean-diff"])
                .arg(&store)
                .arg("--out")
                .arg(&out)
                .args(flags),
            1,
        );
        assert!(!out.exists(), "{flags:?} left something");
        message
    };
    let several = refused(&[]);
    assert!(
        several.contains("several sites") && several.contains("--tap 'blocks.*.hook_resid_post'"),
        "{several}"
    );
    let all_rows = refused(&["--tap", "blocks.*.hook_resid_post"]);
    assert!(
        all_rows.contains("rows for 40 samples")
            && all_rows.contains("'blocks.0.hook_resid_post@last'"),
        "{all_rows}"
    );
    assert!(refused(&["--tap", "hook_embed"]).contains("is in no layer"));
    assert!(refused(&["--tap", "blocks.1.attn.hook_pattern"]).contains("rows differ in length"));
    let mlp = ["--tap", "blocks.*.hook_mlp_out"];
    assert!(
        refused(&[&mlp[..], &["--label", "truth"]].concat()).contains("extract with --keep truth")
    );
    assert!(
        refused(&[&mlp[..], &["--label", "topic"]].concat())
            .contains("data.jsonl:1: the label 'topic' is 't0'")
    );
    assert!(refused(&[&mlp[..], &["--group", "square"]].concat()).contains("--keep square"));
    assert!(refused(&[&mlp[..], &["--test-share", "1.5"]].concat()).contains("between 0 and 1"));
    let said = done(
        streamgauge()
            .args(["analyze", "mean-diff"])
            .arg(&store)
            .arg("--out")
            .arg(bench.path("ok"))
            .args(mlp),
    );
    assert!(said.contains("split by sample"), "{said}");
}

#[test]
fn doctor_names_what_is_missing_with_the_remedy() {
    let said = done(
        streamgauge()
            .arg("doctor")
            .env("HF_HUB_CACHE", "/nowhere/hub")
            .env("HF_HUB_OFFLINE", "1"),
    );
    for word in [
        "GFLOP/s",
        "/nowhere/hub",
        "offline",
        "CUDA backend: this build computes on the CPU only: pass --device cpu",
    ] {
        assert!(said.contains(word), "'{word}' in {said}");
    }
    let found = done_json(streamgauge().args(["doctor", "--json"]));
    assert!(found["gemm_gflops"].as_f64().unwrap() > 0.0 && found["threads"].as_u64().unwrap() > 0);
    assert_eq!(found["backends"], json!({ "cpu": true, "cuda": false }));
    assert!(
        found["missing"]
            .as_array()
            .unwrap()
            .iter()
            .all(|m| m["what"].is_string() && m["remedy"].is_string())
    );
}

#[test]
fn model_info_gives_sizes_files_fingerprint_and_every_hook_point() {
    let info = |name: &str, flags: &[&str]| {
        done(
            streamgauge()
                .args(["model", "info", "--model"])
                .arg(common::fixtures().join("models").join(name))
                .args(flags),
        )
    };
    let text = info("mistral-window4", &[]);
    for said in [
        "mistral",
        "sliding window 4 keys",
        "blocks.{0-2}.attn.hook_k",
        "[2, 16]",
        "[4, rows, tokens] a sample",
        "logits",
    ] {
        assert!(text.contains(said), "'{said}' in {text}");
    }
    let value: Value = serde_json::from_str(&info("mistral-gqa41", &["--json"])).unwrap();
    assert_eq!(
        (
            value["files"].as_array().unwrap().len(),
            value["hook_points"].as_array().unwrap().len()
        ),
        (3, 28)
    );
    let opened =
        streamgauge::model::Model::open(&common::fixtures().join("models/mistral-gqa41")).unwrap();
    assert_eq!(value["fingerprint"], opened.fingerprint);
    assert_eq!(value["parameters"], opened.weights.n_params());
    assert!(value["tokenizer"].is_null() && value["chat_template"].is_null());
    let value: Value = serde_json::from_str(&info("llama3-rope", &["--json"])).unwrap();
    assert_eq!(value["config"]["rope"]["type"], "llama3");
    let message = refused(
        streamgauge().args(["model", "info", "--model", "/nowhere/model"]),
        1,
    );
    assert!(message.contains("/nowhere/model"), "{message}");
}

#[test]
fn bench_gemm_weighs_the_shapes_it_was_given() {
    let rates =
        done_json(streamgauge().args(["bench", "gemm", "--json", "--m", "32", "--repeats", "1"]));
    assert_eq!(rates["shapes"].as_array().unwrap().len(), 4);
    assert!(rates["gflops"].as_f64().unwrap() > 0.0);
    let one = done_json(
        streamgauge().args("bench gemm --json --m 8 --n 16 --k 32 --repeats 1".split(' ')),
    );
    assert_eq!(
        (&one["shapes"][0]["n"], &one["shapes"][0]["k"]),
        (&json!(16), &json!(32))
    );
    streamgauge()
        .args(["bench", "gemm", "--n", "16"])
        .assert()
        .code(2);
}

#[test]
fn every_command_has_help_and_nonsense_is_a_usage_error() {
    let commands = [
        "",
        "doctor",
        "model",
        "model info",
        "plan",
        "extract",
        "inspect",
        "verify",
        "analyze",
        "analyze mean-diff",
        "bench",
        "bench gemm",
    ];
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let help = done(streamgauge().args(&words).arg("--help"));
        assert!(
            help.contains("Usage: streamgauge") && !help.starts_with("Usage"),
            "{command}: {help}"
        );
        streamgauge()
            .args(&words)
            .arg("--no-such-flag")
            .assert()
            .code(2);
    }
    streamgauge().arg("nonsense").assert().code(2);
    streamgauge().assert().code(2);
    assert!(
        refused(
            Bench::new(4)
                .job("extract", &["hook_embed"])
                .args(["--batch-tokens", "4"]),
            2
        )
        .contains("--out")
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_by_name() {
    let bench = Bench::new(4);
    let out = bench.path("store");
    for flags in [
        &["--resume"][..],
        &["--device", "cuda"],
        &["--device", "cuda:1"],
        &["--device", "tpu"],
        &["--dtype", "bf16"],
        &["--shuffle", "1"],
        &["--pack-context", "128"],
        &["--shard", "0/2"],
    ] {
        for command in ["extract", "plan"] {
            let message = refused(
                bench
                    .job(command, &["hook_embed"])
                    .arg("--out")
                    .arg(&out)
                    .args(flags),
                2,
            );
            let flag = flags[0].trim_end_matches('s');
            assert!(message.contains(flag), "{flags:?}: {message}");
        }
    }
    assert!(!out.exists());
}

#[test]
fn bad_input_to_a_job_is_one_line_and_leaves_nothing_that_looks_finished() {
    let bench = Bench::new(6);
    for (taps, flags, said) in [
        (
            &["blocks.3.hook_resid_post"][..],
            &[][..],
            "blocks.3.hook_resid_post",
        ),
        (&["blocks.1.hook_resid_pots"], &[], "hook_resid_post"),
        (&["blocks.1.attn.hook_z[4]"], &[], "head"),
        (&["blocks.1.attn.hook_pattern|mean"], &[], "mean"),
        (&["hook_embed@role:user"], &[], "user"),
        (&["hook_embed@span:subject"], &[], "subject"),
        (&["hook_embed"], &["--max-length", "5"], "--on-long"),
        (&["hook_embed"], &["--max-length", "513"], "512"),
        (&["hook_embed"], &["--text-field", "label"], "data.jsonl:1"),
        (&["hook_embed"], &["--keep", "tokens"], "tokens"),
        (&["hook_embed@40..50"], &[], "picked nothing"),
    ] {
        let store = bench.path("bad");
        let message = refused(
            bench
                .job("extract", taps)
                .arg("--out")
                .arg(&store)
                .args(flags),
            1,
        );
        assert!(message.contains(said), "{taps:?} {flags:?}: {message}");
        assert!(
            streamgauge::store::Store::open(&store).is_err(),
            "{taps:?} {flags:?}"
        );
        let _ = std::fs::remove_dir_all(&store);
    }
    std::fs::create_dir(bench.path("full")).unwrap();
    std::fs::write(bench.path("full/notes.txt"), "mine").unwrap();
    assert!(
        refused(
            bench
                .job("extract", &["hook_embed"])
                .arg("--out")
                .arg(bench.path("full")),
            1
        )
        .contains("is not empty")
    );
    for command in [["inspect"], ["verify"]] {
        assert!(
            refused(streamgauge().args(command).arg(bench.path("full")), 1).contains("not a store")
        );
    }
}
