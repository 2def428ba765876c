//! `verify`: checksums, recomputation, moved models and datasets.

use serde_json::{Value, json};

use super::{Bench, MANY, common, done, done_json, model, refused, streamgauge};

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
fn a_missing_file_is_named_by_its_path_in_the_store() {
    let bench = Bench::new(4);
    let store = bench.extract(&["hook_embed"], &[]);
    std::fs::remove_file(store.join("hook_embed/00000.safetensors")).unwrap();
    let output = streamgauge()
        .arg("verify")
        .arg(&store)
        .assert()
        .code(1)
        .get_output()
        .clone();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("hook_embed/00000.safetensors: listed in the manifest"),
        "{said}"
    );
    assert!(!said.contains("streamgauge verify"), "{said}");
}
