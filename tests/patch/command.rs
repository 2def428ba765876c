//! `streamgauge patch` as it is run: what it writes, prints and refuses.

use super::*;

fn patch(bench: &Bench, data: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgauge"));
    command
        .arg("patch")
        .arg("--model")
        .arg(model())
        .arg("--data")
        .arg(data);
    command.arg("--out").arg(bench.path("out")).args(flags);
    command
}

#[test]
fn the_command_writes_tables_and_a_manifest() {
    let bench = Bench::new();
    let pairs = bench.pairs(&[(9, 9), (12, 12)]);
    let flags = [
        "--sites",
        "blocks.*.hook_mlp_out",
        "blocks.{1,2}.attn.hook_z[0--1]@-1",
        "--pairs",
        "blocks.*.hook_mlp_out",
        "--way",
        "both",
        "--min-kl",
        "0",
        "--json",
    ];
    let output = patch(&bench, &pairs, &flags)
        .assert()
        .success()
        .get_output()
        .clone();
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["rows"], 2 * 2 * (3 + 8 + 3));
    let mut csv = csv::Reader::from_path(bench.path("out/sweep.csv")).unwrap();
    let header: Vec<String> = csv.headers().unwrap().iter().map(String::from).collect();
    assert_eq!(
        header.join(","),
        "site,layer,head,position,prompt,metric,clean,corrupt,patched,recovery,way,site2,layer2,head2,position2"
    );
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 56);
    let single = rows
        .iter()
        .find(|r| &r[0] == "attn.hook_z" && r[11].is_empty())
        .unwrap();
    assert_eq!(
        (&single[1], &single[2], &single[3], &single[5]),
        ("1", "0", "-1", "kl-recovery")
    );
    assert!(
        rows.iter()
            .any(|r| &r[11] == "hook_mlp_out" && &r[12] == "2")
    );
    let table = parquet::file::reader::SerializedFileReader::new(
        std::fs::File::open(bench.path("out/sweep.parquet")).unwrap(),
    );
    let stored: Vec<_> = table.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(stored.len(), 56);
    use parquet::record::RowAccessor;
    for (stored, row) in stored.iter().zip(&rows) {
        assert_eq!(stored.get_string(0).unwrap(), &row[0]);
        assert_eq!(
            stored.get_double(9).unwrap(),
            row[9].parse::<f64>().unwrap()
        );
    }
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bench.path("out/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["job"]["numeric_record"]["backend"], "cpu");
    assert!(manifest["layer_runs"]["done"].as_u64() < manifest["layer_runs"]["naive"].as_u64());
    assert_eq!(manifest["receipts"][0]["rows"], 2 * 21);
    assert!(bench.path("out/means.csv").exists());
    let again = patch(&bench, &pairs, &flags)
        .assert()
        .code(1)
        .get_output()
        .clone();
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}

#[test]
fn the_command_patches_a_set_and_names_all_its_places() {
    let bench = Bench::new();
    let pairs = bench.pairs(&[(9, 9)]);
    let set = "blocks.{0-1}.hook_mlp_out blocks.2.attn.hook_z[1]@-1";
    let flags = ["--set", set, "--metric", "prob-diff", "--quiet"];
    patch(&bench, &pairs, &flags).assert().success();
    let mut csv = csv::Reader::from_path(bench.path("out/sweep.csv")).unwrap();
    assert_eq!(csv.headers().unwrap().iter().next_back(), Some("set"));
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(&rows[0][5], "prob-diff");
    assert_eq!(
        rows[0].iter().next_back().unwrap(),
        "blocks.0.hook_mlp_out@all + blocks.1.hook_mlp_out@all + blocks.2.attn.hook_z[1]@-1"
    );
    let empty = Bench::new();
    let output = patch(&empty, &pairs, &["--set", " "]).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("names no place"), "{message}");
}

#[test]
fn prompts_whose_runs_hardly_differ_are_named_and_left_out() {
    let bench = Bench::new();
    let path = bench.path("pairs.jsonl");
    std::fs::write(&path, "{\"clean\": [5, 6, 7], \"corrupt\": [5, 6, 7]}\n{\"clean\": [5, 6, 7], \"corrupt\": [5, 6, 90]}\n").unwrap();
    let flags = ["--sites", "blocks.1.hook_mlp_out", "--min-kl", "1e-9"];
    let output = patch(&bench, &path, &flags)
        .assert()
        .success()
        .get_output()
        .clone();
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out"));
    let text = std::fs::read_to_string(bench.path("out/sweep.csv")).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(
        text.lines()
            .nth(1)
            .unwrap()
            .starts_with("hook_mlp_out,1,,all,1,kl-recovery,")
    );
}

#[test]
fn the_command_refuses_in_one_line() {
    let bench = Bench::new();
    let pairs = bench.pairs(&[(9, 9)]);
    let mlp = ["--sites", "blocks.1.hook_mlp_out"];
    for (flags, status, says) in [
        (&["--metric", "direction"][..], 2, "--direction"),
        (&["--direction", "a#b"], 2, "--metric direction"),
        (&["--way", "up"], 2, "denoising"),
        (
            &["--edit", "zero at=blocks.1.hook_mlp_out"],
            1,
            "pairs.jsonl:1",
        ),
        (
            &["--metric", "direction", "--direction", "none.safetensors#v"],
            1,
            "none.safetensors",
        ),
        (&["--tap-before-edits"], 2, "--tap-before-edits"),
    ] {
        let all = [&mlp[..], flags].concat();
        let output = patch(&bench, &pairs, &all)
            .assert()
            .code(status)
            .get_output()
            .clone();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.starts_with("error: ") && message.contains(says),
            "{message}"
        );
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
    assert!(!bench.path("out").exists());
}
