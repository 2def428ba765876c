//! `--shard` and `merge`: slices extracted one by one make the store that one run makes.

use std::path::PathBuf;

use serde_json::Value;
use streamgauge::store::{Store, verify};

use super::{Bench, done, done_json, refused, streamgauge};

const TAPS: [&str; 4] = [
    "blocks.*.hook_resid_post",
    "blocks.1.attn.hook_pattern",
    "blocks.2.hook_mlp_out@last|top:5",
    "logits@-1|mean",
];
const EDIT: [&str; 2] = ["--edit", "scale at=blocks.0.hook_resid_post c=1.5"];

/// Extracts slice `i` of `n`.
fn slice(bench: &Bench, i: usize, n: usize, flags: &[&str]) -> PathBuf {
    let store = bench.path(&format!("slice-{i}-of-{n}"));
    let mut job = bench.job("extract", &TAPS);
    job.arg("--out")
        .arg(&store)
        .args(["--shard", &format!("{i}/{n}")]);
    done(job.args(flags));
    store
}

fn merge(out: &std::path::Path, stores: &[PathBuf]) -> assert_cmd::Command {
    let mut c = streamgauge();
    c.arg("merge").arg(out).args(stores);
    c
}

/// Per tap and sample: the rows' bytes, positions and tokens, or the ragged tensor's bytes.
fn per_sample(store: &Store) -> Vec<Vec<u8>> {
    let samples: Vec<_> = store.samples().map(Result::unwrap).collect();
    let mut all = Vec::new();
    for t in 0..store.taps().len() {
        let tap = store.tap_at(t);
        for sample in &samples {
            let mut bytes = Vec::new();
            if tap.info().ragged {
                let view = tap.ragged(sample.sample, sample.chunk).unwrap().unwrap();
                bytes.extend_from_slice(view.bytes());
            } else {
                for row in tap.for_sample(sample.sample).unwrap() {
                    bytes.extend_from_slice(row.bytes());
                    for n in row.index().unwrap_or_default() {
                        bytes.extend(n.to_le_bytes());
                    }
                    bytes.extend(row.position().to_le_bytes());
                    bytes.extend(row.token().to_le_bytes());
                }
            }
            all.push(bytes);
        }
    }
    all
}

#[test]
fn eight_slices_merged_are_one_run_bit_for_bit() {
    let bench = Bench::new(101);
    let flags = [
        &["--keep", "label,group", "--shard-size", "100kB"][..],
        &EDIT,
    ]
    .concat();
    let one = bench.extract(&TAPS, &flags);
    // In any order.
    let slices: Vec<_> = (0..8)
        .map(|i| slice(&bench, (i * 3) % 8, 8, &flags))
        .collect();
    let out = bench.path("merged");
    let said = done_json(merge(&out, &slices).arg("--json"));
    assert_eq!(
        (said["stores"].as_u64(), said["samples"].as_u64()),
        (Some(8), Some(101))
    );
    let report = verify(&out, &|_| ()).unwrap();
    assert!(report.ok() && report.warnings.is_empty(), "{report:?}");
    let (one, merged) = (Store::open(&one).unwrap(), Store::open(&out).unwrap());
    let samples = |s: &Store| s.samples().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(samples(&one), samples(&merged));
    assert!(per_sample(&one) == per_sample(&merged));
    let facts = |s: &Store| {
        let p = &s.manifest().provenance;
        (
            p.dataset.clone(),
            p.job.clone(),
            p.slice,
            s.manifest().keep.clone(),
        )
    };
    assert_eq!(facts(&one), facts(&merged));
    let receipt = |s: &Store, key: &str| s.manifest().provenance.receipts[0][key].as_f64().unwrap();
    assert_eq!(receipt(&one, "rows"), receipt(&merged, "rows"));
    let norms =
        ["mean_norm_before", "mean_norm_after"].map(|k| (receipt(&one, k), receipt(&merged, k)));
    assert!(
        norms.iter().all(|(a, b)| (a - b).abs() < 1e-9 * a),
        "{norms:?}"
    );
    // The slices may go, and the whole is still all there, and what the model gives.
    for slice in &slices {
        std::fs::remove_dir_all(slice).unwrap();
    }
    done(
        streamgauge()
            .arg("verify")
            .arg(&out)
            .args(["--recompute", "5"]),
    );
}

#[test]
fn stores_that_are_not_the_slices_of_one_dataset_are_refused_by_what_is_wrong() {
    let bench = Bench::new(30);
    let slices: Vec<_> = (0..3).map(|i| slice(&bench, i, 3, &[])).collect();
    let half = slice(&bench, 1, 2, &[]);
    let whole = bench.extract(&TAPS, &[]);
    let other = bench.path("other");
    let mut job = bench.job("extract", &TAPS);
    done(
        job.args(["--shard", "1/3", "--store-dtype", "bf16", "--out"])
            .arg(&other),
    );
    let out = bench.path("merged");
    let with = |stores: &[&PathBuf]| stores.iter().map(|&s| s.clone()).collect::<Vec<_>>();
    for (stores, said) in [
        (with(&[&slices[0], &slices[2]]), "slice 1/3 is missing"),
        (with(&[&slices[0]]), "slices 1/3 to 2/3 are missing"),
        (
            with(&[&slices[0], &slices[1], &slices[2], &slices[1]]),
            "are both slice 1/3",
        ),
        (
            with(&[&slices[0], &half]),
            "their slices of their dataset differ",
        ),
        (
            with(&[&slices[0], &other, &slices[2]]),
            "differ: store_dtype",
        ),
        (with(&[&whole]), "made without --shard"),
        (with(&[&bench.path("none")]), "none"),
    ] {
        let message = refused(&mut merge(&out, &stores), 1);
        assert!(message.contains(said), "{said}: {message}");
        assert!(!out.exists(), "{said}");
    }
    let message = refused(&mut merge(&whole, &slices), 1);
    assert!(message.contains("already holds a store"), "{message}");
    done(&mut merge(&out, &slices));
    // A slice whose manifest lies about its part.
    let path = slices[1].join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["slice"]["first"] = 0.into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let message = refused(&mut merge(&bench.path("again"), &slices), 1);
    assert!(message.contains("are not slice 1/3"), "{message}");
}

#[test]
fn copies_share_no_file_with_the_slices() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new(12);
    let slices: Vec<_> = (0..2).map(|i| slice(&bench, i, 2, &[])).collect();
    let links = |dir: &std::path::Path| {
        let file = dir.join("blocks.0.hook_resid_post/00001.safetensors");
        std::fs::metadata(file).unwrap().nlink()
    };
    done(&mut merge(&bench.path("linked"), &slices));
    assert_eq!(links(&bench.path("linked")), 2);
    done(merge(&bench.path("copied"), &slices).arg("--copy"));
    assert_eq!(links(&bench.path("copied")), 1);
    assert!(verify(&bench.path("copied"), &|_| ()).unwrap().ok());
}

#[test]
fn stores_on_another_file_system_ask_for_copy() {
    let bench = Bench::new(12);
    let elsewhere = match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) => dir,
        Err(_) => return, // no second file system to try
    };
    use std::os::unix::fs::MetadataExt;
    let device = |p: &std::path::Path| std::fs::metadata(p).unwrap().dev();
    let here = match device(elsewhere.path()) == device(bench.dir.path()) {
        // Temporary files lie there already: the other one is the build's.
        true => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        false => elsewhere,
    };
    let slices: Vec<_> = (0..2).map(|i| slice(&bench, i, 2, &[])).collect();
    let out = here.path().join("merged");
    let message = refused(&mut merge(&out, &slices), 1);
    assert!(message.contains("pass --copy"), "{message}");
    assert!(!out.exists() || !out.join("manifest.json").exists());
    let _ = std::fs::remove_dir_all(&out);
    done(merge(&out, &slices).arg("--copy"));
}

#[test]
fn a_slice_of_too_few_records_is_refused_and_plan_counts_the_slice() {
    let bench = Bench::new(5);
    let mut job = bench.job("extract", &["hook_embed"]);
    job.args(["--shard", "6/7", "--out"])
        .arg(bench.path("store"));
    assert!(refused(&mut job, 1).contains("5 records"));
    let plan = done_json(
        bench
            .job("plan", &["hook_embed"])
            .args(["--shard", "1/2", "--json"]),
    );
    assert_eq!(plan["samples"], 3);
    let mut job = bench.job("extract", &["hook_embed"]);
    job.args(["--shard", "2/2", "--out"])
        .arg(bench.path("store"));
    assert!(refused(&mut job, 2).contains("counted from 0"));
    let mut job = bench.job("extract", &["hook_embed"]);
    job.env("SLURM_PROCID", "1").env("SLURM_NTASKS", "5");
    let store = bench.path("ranked");
    done(job.args(["--shard", "auto", "--out"]).arg(&store));
    let samples = Store::open(&store)
        .unwrap()
        .samples()
        .map(|s| s.unwrap().sample)
        .collect::<Vec<_>>();
    assert_eq!(samples, [1]);
}
