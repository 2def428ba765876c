//! `analyze mean-diff`: its files, and what it cannot compare.

use std::path::Path;

use serde_json::json;

use super::{Bench, done, done_json, refused, streamgauge};

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
    let refused_with = |flags: &[&str], status: i32| {
        let out = bench.path("out");
        let message = refused(
            streamgauge()
                .args(["analyze", "mean-diff"])
                .arg(&store)
                .arg("--out")
                .arg(&out)
                .args(flags),
            status,
        );
        assert!(!out.exists(), "{flags:?} left something");
        message
    };
    let refused = |flags: &[&str]| refused_with(flags, 1);
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
    assert!(
        refused_with(&[&mlp[..], &["--test-share", "1.5"]].concat(), 2).contains("between 0 and 1")
    );
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
