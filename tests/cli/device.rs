//! `--device` and its kin where there is no GPU to run on.

use super::{Bench, done, done_json, refused, streamgauge};

#[test]
fn what_the_cpu_does_not_do_is_refused_by_name_with_the_remedy() {
    let bench = Bench::new(3);
    let out = bench.path("store");
    for (flags, says) in [
        (
            &["--dtype", "f16"][..],
            &["--dtype f16", "f32 or bf16", "--store-dtype f16"][..],
        ),
        (&["--gemm", "own"], &["--gemm own", "leave the flag out"]),
    ] {
        for command in ["extract", "plan"] {
            let message = refused(
                bench
                    .job(command, &["hook_embed"])
                    .arg("--out")
                    .arg(&out)
                    .args(["--device", "cpu"])
                    .args(flags),
                1,
            );
            for word in says {
                assert!(message.contains(word), "'{word}' in {message}");
            }
        }
    }
    assert!(!out.exists());
}

#[test]
fn the_cpu_computes_in_bf16_and_says_so_and_makes_the_same_bits_again() {
    let bench = Bench::new(6);
    let taps = ["blocks.*.hook_resid_post", "blocks.1.attn.hook_pattern"];
    for (name, flags, residual, stored) in [
        ("plain", &[][..], "bf16", "bf16"),
        ("wide", &["--residual", "f32"], "f32", "bf16"),
        ("stored", &["--store-dtype", "f32"], "bf16", "f32"),
    ] {
        let store = bench.path(name);
        done(
            bench
                .job("extract", &taps)
                .arg("--out")
                .arg(&store)
                .args(["--device", "cpu", "--dtype", "bf16"])
                .args(flags),
        );
        let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
        for (field, value) in [
            ("backend", "cpu"),
            ("compute_dtype", "bf16"),
            ("store_dtype", stored),
        ] {
            assert_eq!(held[field], value, "{field} with {flags:?}");
        }
        let manifest = std::fs::read(store.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["numeric_record"]["compute"], "bf16");
        assert_eq!(manifest["numeric_record"]["residual"], residual);
        let checked =
            done_json(
                streamgauge()
                    .arg("verify")
                    .arg(&store)
                    .args(["--recompute", "3", "--json"]),
            );
        assert_eq!(checked["recomputed"]["exact"], true, "{flags:?}");
    }
    // Rows that f32 would have made are not these.
    let f32_store = bench.path("f32");
    done(
        bench
            .job("extract", &taps)
            .arg("--out")
            .arg(&f32_store)
            .args(["--device", "cpu", "--store-dtype", "f32"]),
    );
    let first = |store: &str| {
        let folder = bench.path(store).join("blocks.0.hook_resid_post");
        let shard = std::fs::read_dir(folder).unwrap().next().unwrap();
        std::fs::read(shard.unwrap().path()).unwrap()
    };
    assert_ne!(first("f32"), first("stored"));
}

#[test]
fn a_device_that_is_not_there_is_an_error_that_leaves_no_store() {
    let bench = Bench::new(3);
    let out = bench.path("store");
    let message = refused(
        bench
            .job("extract", &["hook_embed"])
            .arg("--out")
            .arg(&out)
            .args(["--device", "cuda:63"]),
        1,
    );
    assert!(
        [
            "head_dim 16",
            "cuda:63",
            "install the NVIDIA driver",
            "no CUDA kernels"
        ]
        .iter()
        .any(|why| message.contains(why)),
        "{message}"
    );
    assert!(!out.exists());
}

#[test]
fn auto_says_why_it_runs_on_the_cpu() {
    // No kernel is compiled for this model's heads of 16, so that it is the CPU whatever the machine has.
    let bench = Bench::new(3);
    let output = streamgauge()
        .args(["extract", "--tap", "hook_embed", "--model"])
        .arg(super::model())
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(bench.path("store"))
        .assert()
        .success()
        .get_output()
        .clone();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("running on the CPU: "), "{said}");
}
