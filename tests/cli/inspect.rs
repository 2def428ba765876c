//! `inspect`: what a store holds, its taps, one sample, and a store that is partial.

use serde_json::json;

use super::{Bench, MANY, done, done_json, refused, streamgauge};

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
    let verified = streamgauge().arg("verify").arg(&store).assert().code(1);
    let said = String::from_utf8_lossy(&verified.get_output().stdout).into_owned();
    assert!(said.contains("partial"), "{said}");
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
