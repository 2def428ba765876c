//! `analyze lat`, `probe`, `pca`, `project`, `compare` and `top`: what they find in stores of the tiny model, write, and refuse.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{Bench, done, done_json, refused, streamgauge};

const RESIDUALS: &str = "blocks.*.hook_resid_post@last";

/// Pairs of samples that differ in their last token alone.
fn pairs() -> Bench {
    let bench = Bench::new(1);
    let mut lines = String::new();
    for pair in 0..60 {
        for label in [0, 1] {
            let mut tokens: Vec<usize> = (0..1 + pair * 5 % 11)
                .map(|j| 3 + (pair * 31 + j * 17) % 150)
                .collect();
            tokens.push(if label == 1 { 10 } else { 20 });
            writeln!(
                lines,
                "{}",
                json!({ "tokens": tokens, "label": label, "pair": pair })
            )
            .unwrap();
        }
    }
    std::fs::write(bench.path("data.jsonl"), lines).unwrap();
    bench
}

fn analyze(method: &str, store: &Path, out: &Path, flags: &[&str]) -> assert_cmd::Command {
    let mut c = streamgauge();
    c.args(["analyze", method])
        .arg(store)
        .arg("--out")
        .arg(out)
        .args(flags);
    c
}

fn numbers(value: &Value, list: &str, field: &str) -> Vec<f64> {
    value[list]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row[field].as_f64().unwrap())
        .collect()
}

#[test]
fn lat_finds_what_pairs_differ_in_and_its_directions_serve_as_projections() {
    let bench = pairs();
    let store = bench.extract(&[RESIDUALS], &["--keep", "label,pair"]);
    let out = bench.path("lat");
    let found = done_json(
        analyze("lat", &store, &out, &["--json"])
            .arg("--seed")
            .arg("3"),
    );
    assert!(
        numbers(&found, "layers", "matched_accuracy")
            .iter()
            .all(|&a| a == 1.0),
        "{found}"
    );
    assert!(
        numbers(&found, "layers", "cos_mean_difference")
            .iter()
            .all(|&c| c > 0.9),
        "{found}"
    );
    assert_eq!(found["layers"][0]["n_train"], 30);

    // The file without a key: each layer's own direction is taken.
    let file = out.join("directions.safetensors");
    let file = file.to_str().unwrap();
    let projected = bench.path("projected");
    let summary = done_json(&mut analyze(
        "project",
        &store,
        &projected,
        &["--direction", file, "--json"],
    ));
    assert_eq!(summary["taps"].as_array().unwrap().len(), 3);
    let csv = std::fs::read_to_string(projected.join("projections.csv")).unwrap();
    assert!(csv.starts_with("tap,sample,position,token,projection,z\n"));
    assert_eq!(csv.lines().count(), 1 + 3 * 120);
    // The true sample of a pair lies further along: they follow each other in the file, false first.
    let of_layer: Vec<f64> = csv
        .lines()
        .filter(|line| line.starts_with("blocks.2."))
        .map(|line| line.split(',').nth(4).unwrap().parse().unwrap())
        .collect();
    assert!(of_layer.chunks_exact(2).all(|pair| pair[0] < pair[1]));

    let top = done(&mut analyze(
        "top",
        &store,
        &bench.path("top"),
        &[
            "--direction",
            file,
            "--tap",
            "blocks.2.hook_resid_post",
            "--k",
            "4",
            "--quantiles",
            "0.5",
        ],
    ));
    let high: Vec<&str> = top
        .lines()
        .filter(|line| line.contains("highest"))
        .collect();
    let low: Vec<&str> = top.lines().filter(|line| line.contains("lowest")).collect();
    assert_eq!((high.len(), low.len()), (4, 4), "{top}");
    // The tiny model has no tokenizer: ids are shown, and it is said why.
    assert!(top.contains("token ids instead of text"), "{top}");
    assert!(high.iter().all(|line| line.contains("⟦10⟧")), "{top}");
    assert!(low.iter().all(|line| line.contains("⟦20⟧")), "{top}");
}

#[test]
fn lat_refuses_samples_that_make_no_pairs_and_a_field_that_was_not_kept() {
    let bench = Bench::new(40);
    let store = bench.extract(&[RESIDUALS], &["--keep", "label,group"]);
    let message = refused(
        &mut analyze("lat", &store, &bench.path("o"), &["--pair", "group"]),
        1,
    );
    assert!(
        message.contains("'g0' has 2 true and 2 false statements"),
        "{message}"
    );
    let message = refused(&mut analyze("lat", &store, &bench.path("o"), &[]), 1);
    assert!(
        message.contains("--pair pair: the store did not keep that field"),
        "{message}"
    );
}

#[test]
fn probe_tells_held_out_samples_apart_and_names_its_penalty() {
    let bench = Bench::new(120);
    let store = bench.extract(&[RESIDUALS], &["--keep", "label,group,topic"]);
    let out = bench.path("probe");
    let found = done_json(&mut analyze(
        "probe",
        &store,
        &out,
        &["--json", "--strength", "0.01,0.1"],
    ));
    assert!(
        numbers(&found, "layers", "accuracy")
            .iter()
            .all(|&a| a > 0.9),
        "{found}"
    );
    assert!(
        numbers(&found, "layers", "strength")
            .iter()
            .all(|&c| c == 0.01 || c == 0.1),
        "{found}"
    );
    for file in [
        "accuracy_by_layer.svg",
        "accuracy_by_layer.png",
        "accuracy_by_layer.csv",
        "direction_cosines.svg",
        "direction_cosines.png",
        "directions.safetensors",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let cosines = std::fs::read_to_string(out.join("direction_cosines.csv")).unwrap();
    let of = |row: &str| -> f64 { row.rsplit(',').next().unwrap().parse().unwrap() };
    let rows: Vec<&str> = cosines.lines().skip(1).collect();
    assert_eq!(rows.len(), 9, "{cosines}");
    for row in rows {
        let is_own = row.starts_with("0,0") || row.starts_with("1,1") || row.starts_with("2,2");
        assert!((-1.0 - 1e-9..=1.0 + 1e-9).contains(&of(row)), "{row}");
        assert_eq!((of(row) - 1.0).abs() < 1e-6, is_own, "{row}");
    }
    let message = refused(&mut analyze("probe", &store, &out, &["--strength", "0"]), 2);
    assert!(message.contains("C is a positive number"), "{message}");
}

/// A picture was drawn, and says what it shows.
fn assert_drawn(out: &Path, name: &str, says: &str) {
    let svg = std::fs::read_to_string(out.join(name).with_extension("svg")).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains(says),
        "{name}: {svg}"
    );
    let png = std::fs::read(out.join(name).with_extension("png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"), "{name}");
}

#[test]
fn components_are_those_of_the_rows_and_their_shares_add_up() {
    let bench = Bench::new(80);
    let store = bench.extract(
        &["blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"],
        &["--shard-size", "20kB"],
    );
    let out = bench.path("pca");
    let flags = [
        "--tap",
        "blocks.1.hook_resid_post",
        "--components",
        "64",
        "--json",
    ];
    let found = done_json(&mut analyze("pca", &store, &out, &flags));
    let variances = numbers(&found, "components", "variance");
    assert_eq!(variances.len(), 64);
    assert!(variances.is_sorted_by(|a, b| a >= b));
    let last = numbers(&found, "components", "cumulative")[63];
    assert!((last - 1.0).abs() < 1e-9, "{last}");
    assert_drawn(&out, "variance", "share of the variance");

    // Projected on the first component, the rows have its variance.
    let file = out.join("components.safetensors");
    let key = format!("{}#components.blocks.1.hook_resid_post", file.display());
    let message = refused(
        &mut analyze(
            "project",
            &store,
            &out,
            &["--direction", &key, "--tap", "blocks.1.hook_resid_post"],
        ),
        1,
    );
    assert!(
        message.contains("64 directions, where one is wanted"),
        "{message}"
    );
    let flags = [
        "--tap",
        "blocks.1.hook_resid_post",
        "--components",
        "1",
        "--json",
    ];
    done(&mut analyze("pca", &store, &out, &flags));
    let flags = [
        "--direction",
        &key,
        "--tap",
        "blocks.1.hook_resid_post",
        "--json",
    ];
    let summary = done_json(&mut analyze("project", &store, &out, &flags));
    let deviation = summary["taps"][0]["deviation"].as_f64().unwrap();
    assert!(
        (deviation.powi(2) / variances[0] - 1.0).abs() < 1e-4,
        "{deviation} {}",
        variances[0]
    );
    assert_drawn(&out, "projections", "projection");

    let message = refused(&mut analyze("pca", &store, &out, &[]), 1);
    assert!(
        message.contains("hook_pattern cannot be analysed by components"),
        "{message}"
    );
}

#[test]
fn stores_are_compared_row_by_row_whatever_their_order_and_selection() {
    let bench = Bench::new(50);
    let tap = "blocks.2.hook_resid_post";
    let a = bench.extract(&[tap], &[]);
    std::fs::rename(&a, bench.path("a")).unwrap();
    let half = bench.extract(&[tap], &["--select", "last", "--store-dtype", "bf16"]);
    let a = bench.path("a");

    let same = done_json(analyze("compare", &a, &bench.path("o"), &["--json"]).arg(&a));
    let same = &same["taps"][0];
    assert_eq!(
        (&same["rows"], &same["only_a"]),
        (&same["equal_rows"], &json!(0))
    );
    assert_eq!(same["relative_l2"], 0.0);

    let found = done_json(analyze("compare", &a, &bench.path("o"), &["--json"]).arg(&half));
    let found = &found["taps"][0];
    assert_eq!((&found["rows"], &found["only_b"]), (&json!(50), &json!(0)));
    assert!(found["only_a"].as_u64().unwrap() > 100);
    let off = found["relative_l2"].as_f64().unwrap();
    assert!((1e-4..4e-3).contains(&off), "bf16 keeps 8 bits: {off}");
    assert!(found["cka"].as_f64().unwrap() > 0.999);
    assert_drawn(&bench.path("o"), "compare", "relative L2 error");

    let other = Bench::new(3);
    std::fs::write(other.path("data.jsonl"), "{\"tokens\":[5,6]}\n").unwrap();
    let other = other.extract(&["hook_embed"], &[]);
    let message = refused(analyze("compare", &a, &bench.path("o"), &[]).arg(&other), 1);
    assert!(
        message.contains("has no tap blocks.2.hook_resid_post"),
        "{message}"
    );
}

#[test]
fn attributions_add_up_to_the_logits_difference() {
    let bench = Bench::new(40);
    let taps = [
        "hook_embed",
        "blocks.*.hook_attn_out",
        "blocks.*.hook_mlp_out",
        "blocks.-1.hook_resid_post",
        "logits",
    ];
    let store = bench.extract(&taps, &["--select", "last"]);
    let flags = ["--for", "10", "--against", "20", "--json"];
    let found = done_json(&mut analyze("dla", &store, &bench.path("o"), &flags));
    assert_drawn(&bench.path("o"), "dla", "logit difference (nat)");
    let means = numbers(&found, "components", "mean");
    assert_eq!(
        means.len(),
        1 + 1 + 2 * 3 + 1,
        "the whole, the embedding, two of each block, the rest"
    );

    // The same from the logits themselves.
    let opened = streamgauge::store::Store::open(&store).unwrap();
    let logits = opened.tap("logits").unwrap();
    let difference = |row: usize| {
        let row = logits.row(row).unwrap().to_f32();
        f64::from(row[10]) - f64::from(row[20])
    };
    let want = (0..40).map(difference).sum::<f64>() / 40.0;
    assert!((means[0] - want).abs() < 1e-5, "{} {want}", means[0]);
    assert!(means[8].abs() < 1e-5, "nothing is left over: {}", means[8]);
    let sum: f64 = means[1..8].iter().sum();
    assert!((sum - want).abs() < 1e-5);

    // An edit is what the components do not explain.
    std::fs::rename(&store, bench.path("plain")).unwrap();
    let edit = "scale at=blocks.1.hook_resid_post c=2";
    let edited = bench.extract(&taps, &["--select", "last", "--edit", edit]);
    let found = done_json(&mut analyze("dla", &edited, &bench.path("o"), &flags));
    assert!(
        numbers(&found, "components", "mean")[8].abs() > 1e-3,
        "{found}"
    );

    let message = refused(
        &mut analyze("dla", &edited, &bench.path("o"), &["--for", "160"]),
        1,
    );
    assert!(
        message.contains("the vocabulary has 160 tokens"),
        "{message}"
    );
}

#[test]
fn a_row_that_is_not_finite_is_refused_instead_of_being_passed_over() {
    let bench = pairs();
    let store = bench.extract(&[RESIDUALS], &["--keep", "label,pair"]);
    let directions = bench.path("lat");
    done(&mut analyze("lat", &store, &directions, &["--seed", "1"]));
    let shard = store.join("blocks.0.hook_resid_post/00000.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let row = header + 3 * 64 * 4;
    bytes[row..row + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&shard, bytes).unwrap();
    let direction = directions.join("directions.safetensors");
    let direction = ["--direction", direction.to_str().unwrap()];
    let other = [store.to_str().unwrap()];
    for (method, flags) in [
        ("project", &direction[..]),
        ("top", &direction[..]),
        ("compare", &other[..]),
        ("pca", &[]),
    ] {
        let message = refused(&mut analyze(method, &store, &bench.path(method), flags), 1);
        assert!(
            message.contains("blocks.0.hook_resid_post: row 3 is not finite"),
            "{method}: {message}"
        );
    }
}
