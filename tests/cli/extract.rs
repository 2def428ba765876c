//! `extract`: what shards hold, and what it refuses.

use std::path::Path;

use super::{Bench, done, done_json, refused, streamgauge};

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
fn what_this_version_cannot_do_is_refused_by_name() {
    let bench = Bench::new(4);
    let out = bench.path("store");
    for flags in [
        &["--device", "tpu"],
        &["--dtype", "f8"],
        &["--sample-fraction", "1.5"],
        &["--chunk-overlap", "4"],
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
        let nowhere = bench.path("nowhere");
        assert!(
            refused(streamgauge().args(command).arg(nowhere), 1)
                .contains("nowhere: no such directory; check the path")
        );
    }
}

#[test]
fn flags_that_the_input_field_leaves_without_effect_are_refused() {
    let bench = Bench::new(4);
    for flags in [
        &["--chat", "user", "--tokens-field", "tokens"][..],
        &["--chat", "user", "--messages-field", "chat"],
        &["--add-generation-prompt", "--tokens-field", "tokens"],
        &["--add-generation-prompt", "--text-field", "label"],
    ] {
        let message = refused(bench.job("plan", &["hook_embed"]).args(flags), 2);
        assert!(
            message.contains(flags[0]) && message.contains("only"),
            "{flags:?}: {message}"
        );
    }
}

#[test]
fn a_selection_that_a_record_cannot_have_names_the_record_and_can_be_skipped() {
    let bench = Bench::new(3);
    let job = || bench.job("plan", &["hook_embed@role:user"]);
    let message = refused(&mut job(), 1);
    assert!(
        message.contains("data.jsonl:1: selection `role:user` needs chat turns"),
        "{message}"
    );
    let message = refused(job().arg("--skip-bad"), 1);
    assert!(message.contains("all 3 records are bad"), "{message}");
}

#[test]
fn a_model_without_a_tokenizer_takes_the_tokens_of_a_line_that_has_text_too() {
    let bench = Bench::new(1);
    let line = "{\"text\": \"what they say\", \"tokens\": [3, 4, 5]}\n";
    std::fs::write(bench.path("data.jsonl"), line).unwrap();
    let store = bench.extract(&["hook_embed"], &[]);
    let held = done_json(streamgauge().arg("inspect").arg(&store).arg("--json"));
    assert_eq!(held["tokens"], 3);
    done(
        streamgauge()
            .arg("verify")
            .arg(&store)
            .args(["--recompute", "1"]),
    );
}

#[test]
fn a_store_is_not_made_where_a_file_is() {
    let bench = Bench::new(2);
    let message = refused(
        bench
            .job("extract", &["hook_embed"])
            .arg("--out")
            .arg(bench.path("data.jsonl")),
        1,
    );
    assert!(
        message.contains("is not a directory; give another path"),
        "{message}"
    );
}

#[test]
fn a_projection_says_which_directions_there_are_and_refuses_those_that_are_not_finite() {
    let bench = Bench::new(2);
    let file = bench.path("directions.safetensors");
    let numbers = |v: f32| -> Vec<u8> { (0..64).flat_map(|_| v.to_le_bytes()).collect() };
    let (good, bad) = (numbers(1.0), numbers(f32::NAN));
    let view = |bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64], bytes).unwrap()
    };
    let named = [("c", view(&good)), ("a", view(&good)), ("b", view(&bad))];
    safetensors::serialize_to_file(named, None, &file).unwrap();
    let tap = |key: &str| format!("hook_embed|dot:{}#{key}", file.display());
    done(bench.job("plan", &[&tap("a")]).arg("--json"));
    let message = refused(&mut bench.job("plan", &[&tap("d")]), 1);
    assert!(
        message.contains("no tensor 'd'; it has a, b, c"),
        "{message}"
    );
    let message = refused(&mut bench.job("plan", &[&tap("b")]), 1);
    assert!(
        message.contains("'b' holds NaN at component 0"),
        "{message}"
    );
}

#[test]
fn more_taps_than_the_soft_limit_on_open_files_are_written_and_a_hard_limit_is_told() {
    let bench = Bench::new(20);
    let under = |limit: &str, out: &str| {
        let mut shell = assert_cmd::Command::new("sh");
        shell.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "sh"]);
        shell
            .arg(env!("CARGO_BIN_EXE_streamgauge"))
            .args(["extract", "--quiet", "--shard-size", "20kB", "--model"])
            .arg(super::model())
            .arg("--data")
            .arg(bench.path("data.jsonl"))
            .arg("--out")
            .arg(bench.path(out));
        for point in ["q", "k", "v", "rot_q", "rot_k", "z", "result", "pattern"] {
            shell.args(["--tap", &format!("blocks.*.attn.hook_{point}")]);
        }
        shell
    };
    done(&mut under("-S -n 24", "soft"));
    let message = refused(&mut under("-n 24", "hard"), 1);
    assert!(
        message.contains("Too many open files") && message.contains("ulimit -n"),
        "{message}"
    );
}

#[test]
fn a_compressed_dataset_shuffled_and_packed_goes_through_every_command() {
    let bench = Bench::new(40);
    let text = std::fs::read(bench.path("data.jsonl")).unwrap();
    let packed = zstd::encode_all(&text[..], 0).unwrap();
    let data = bench.path("data.jsonl.zst");
    std::fs::write(&data, &packed).unwrap();
    let job = |command: &str, out: &Path| {
        let mut c = streamgauge();
        c.arg(command).arg("--model").arg(super::model());
        c.arg("--data").arg(&data).arg("--out").arg(out);
        c.args(["--tap", "blocks.1.hook_resid_post", "--quiet"]);
        c.args([
            "--sample-fraction",
            "0.8#2",
            "--shuffle",
            "5",
            "--pack-context",
            "16",
        ]);
        c
    };
    let whole = bench.path("whole");
    let plan = done_json(job("plan", &whole).arg("--json"));
    let made = done_json(job("extract", &whole).arg("--json"));
    assert_eq!(
        (&plan["samples"], &plan["tokens"]),
        (&made["samples"], &made["tokens"])
    );
    let shown = done_json(streamgauge().arg("inspect").arg(&whole).arg("--json"));
    assert!(
        shown["taps"][0]["mean_norm"].as_f64().unwrap() > 0.0,
        "{shown}"
    );
    let parts = [0, 1].map(|i| bench.path(&format!("slice-{i}")));
    for (i, part) in parts.iter().enumerate() {
        done(job("extract", part).args(["--shard", &format!("{i}/2")]));
    }
    let merged = bench.path("merged");
    done(streamgauge().arg("merge").arg(&merged).args(&parts));
    for store in [&whole, &merged] {
        done(
            streamgauge()
                .arg("verify")
                .arg(store)
                .args(["--recompute", "5"]),
        );
    }
    let again = done_json(streamgauge().arg("inspect").arg(&merged).arg("--json"));
    assert_eq!(again["taps"][0]["rows"], shown["taps"][0]["rows"]);
    std::fs::write(&data, &packed[..packed.len() - 5]).unwrap();
    let message = refused(&mut job("extract", &bench.path("cut")), 1);
    assert!(
        message.contains("data.jsonl.zst") && message.contains("cut short"),
        "{message}"
    );
}
