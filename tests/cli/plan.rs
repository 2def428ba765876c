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
