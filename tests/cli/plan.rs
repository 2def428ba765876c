//! `plan`: what it foretells is what extraction writes.

use std::path::Path;

use super::{Bench, MANY, done, done_json, streamgauge};

/// Bytes of all files under `folder` of a store.
fn bytes_in(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum()
}

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
fn ceilings_that_were_measured_before_are_planned_by_and_the_limiter_is_named() {
    let bench = Bench::new(20);
    let file = bench.path("ceilings.json");
    let kept = done_json(
        streamgauge()
            .args(["bench", "ceilings", "--device", "cpu", "--json", "--out"])
            .arg(&file)
            .arg("--dir")
            .arg(bench.path("")),
    );
    assert!(kept["cpu"]["gemm_flops"].as_f64().unwrap() > 0.0 && kept["device"].is_null());
    let mut on_file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(on_file, kept);
    // Another machine, with a GPU that this one need not have.
    on_file["device"] = serde_json::json!({
        "device": "a GPU", "gemm_library": "cublasLt 13.0.2", "copy_bytes_per_s": 3e12, "upload_bytes_per_s": 5e10,
        "gemm_flops": { "bf16": 8e14, "f16": 8e14, "f32": 5e13 },
        "copy_out_bytes_per_s": 1e3, "copy_out_registered_bytes_per_s": 2e3,
    });
    on_file["disk"]["write_bytes_per_s"] = 1e9.into();
    let keep = |ceilings: &serde_json::Value| {
        std::fs::write(&file, ceilings.to_string()).unwrap();
    };
    keep(&on_file);
    let plan = |flags: &[&str]| {
        done_json(
            bench
                .job("plan", &["blocks.*.hook_resid_post"])
                .args(["--json", "--ceilings"])
                .arg(&file)
                .args(flags),
        )
    };
    let on_gpu = plan(&["--device", "cuda"]);
    assert_eq!(
        (&on_gpu["limiter"], &on_gpu["compute_dtype"]),
        (&"PCIe".into(), &"bf16".into())
    );
    // Rows go to registered memory, where some can be had.
    let bytes = on_gpu["activation_bytes"].as_f64().unwrap();
    assert_eq!(on_gpu["expected_s"].as_f64().unwrap(), bytes / 2e3);
    assert_eq!(on_gpu["gemm_gflops"], 8e5);
    on_file["device"]["copy_out_registered_bytes_per_s"] = serde_json::Value::Null;
    keep(&on_file);
    let unregistered = plan(&["--device", "cuda"]);
    assert_eq!(unregistered["expected_s"].as_f64().unwrap(), bytes / 1e3);
    // What takes longest is named, whichever it is.
    for (field, rate, limiter) in [
        ("copy_out_bytes_per_s", 1e12, "disk"),
        ("gemm_flops", 1e3, "compute"),
    ] {
        on_file["device"][field] = match field {
            "gemm_flops" => serde_json::json!({ "bf16": rate }),
            _ => rate.into(),
        };
        on_file["disk"]["write_bytes_per_s"] = 1e3.into();
        keep(&on_file);
        assert_eq!(plan(&["--device", "cuda"])["limiter"], limiter);
    }
    let on_cpu = plan(&["--device", "cpu"]);
    assert!(on_cpu["pcie_s"].is_null());
    assert_eq!(
        on_cpu["gemm_gflops"].as_f64().unwrap(),
        kept["cpu"]["gemm_flops"].as_f64().unwrap() / 1e9
    );
    // A file that is none is not passed over.
    std::fs::write(&file, "{}").unwrap();
    let mut job = bench.job("plan", &["hook_embed"]);
    let message = super::refused(job.arg("--ceilings").arg(&file), 1);
    assert!(message.contains("bench ceilings"), "{message}");
}
