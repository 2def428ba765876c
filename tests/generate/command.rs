//! `streamgauge generate` as it is run: what it prints, writes and refuses.

use super::*;

fn streamgauge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
}

#[test]
fn the_command_prints_text_as_it_comes_or_an_object_a_line() {
    let model = common::smollm2();
    let command = || {
        let mut c = streamgauge();
        c.args(["generate", "--max-new-tokens", "8", "--model"])
            .arg(&model);
        c
    };
    let capital = [
        "--prompt",
        "What is the capital of France?",
        "--chat",
        "user",
    ];
    let json = command()
        .args(capital)
        .arg("--json")
        .assert()
        .success()
        .get_output()
        .clone();
    let line: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(line["prompt"], "What is the capital of France?");
    assert!(line["text"].as_str().unwrap().contains("Paris"), "{line}");
    assert_eq!(line["stop"], "eos");
    let n = line["tokens"].as_array().unwrap().len();
    assert_eq!(line["logprobs"].as_array().unwrap().len(), n);
    assert_eq!(line["tokens"][n - 1], 2);
    let text = command()
        .args(capital)
        .assert()
        .success()
        .get_output()
        .clone();
    assert_eq!(
        String::from_utf8(text.stdout).unwrap(),
        format!("{}\n", line["text"].as_str().unwrap())
    );
    // A character that ends before all of its bytes came is shown as what there is of it.
    let half = ["--prompt", "Repeat: \u{1F642}\u{1F642}\u{1F642}\u{1F642}"];
    let shown = |flags: &[&str]| {
        let mut c = streamgauge();
        c.args(["generate", "--max-new-tokens", "2", "--model"]);
        let output = c.arg(&model).args(half).args(flags).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let object: Value = serde_json::from_str(&shown(&["--json"])).unwrap();
    assert_eq!(
        shown(&[]),
        format!("{}\n", object["text"].as_str().unwrap())
    );
    // Several prompts, an edit and a tap.
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("prompts.jsonl");
    std::fs::write(&data, "{\"text\": \"One, two, three,\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n").unwrap();
    let out = dir.path().join("store");
    let done = command()
        .args([
            "--json",
            "--edit",
            "scale at=blocks.-1.hook_mlp_out c=0.9 select=generated",
            "--tap",
            "blocks.0.hook_resid_post@generated",
            "--data",
        ])
        .arg(&data)
        .arg("--out")
        .arg(&out)
        .assert()
        .success()
        .get_output()
        .clone();
    let lines: Vec<Value> = String::from_utf8(done.stdout)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines[0]["prompt"], "One, two, three,");
    assert!(
        lines[1]["prompt"]
            .as_str()
            .unwrap()
            .contains("<|im_start|>user")
    );
    let new: usize = lines
        .iter()
        .map(|l| l["tokens"].as_array().unwrap().len())
        .sum();
    assert_eq!(rows(&out, "blocks.0.hook_resid_post").len(), new - 2);
    assert!(String::from_utf8(done.stderr).unwrap().contains(
        "edit scale at=blocks.-1.hook_mlp_out c=0.9 select=generated: at blocks.29.hook_mlp_out"
    ));
    let receipts = Store::open(&out)
        .unwrap()
        .manifest()
        .provenance
        .receipts
        .clone();
    assert_eq!(receipts[0]["rows"], new - 2);
}

#[test]
fn what_generation_cannot_do_is_refused_in_one_line() {
    let model = tiny("mistral-window4");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("prompts.jsonl");
    std::fs::write(&data, format!("{{\"tokens\": {:?}}}\n", ids(1, 9))).unwrap();
    let long = dir.path().join("long.jsonl");
    std::fs::write(&long, format!("{{\"tokens\": {:?}}}\n", ids(1, 512))).unwrap();
    let out = dir.path().join("store");
    let out = out.to_str().unwrap();
    for (flags, status, says) in [
        (&[][..], 2, "--prompt"),
        (&["--data", "D", "--prompt", "x"], 2, "--prompt"),
        (&["--prompt", "x"], 1, "tokenizer"),
        (&["--data", "L"], 1, "fill all of the model's positions"),
        (
            &["--data", "D", "--max-new-tokens", "0"],
            2,
            "--max-new-tokens must be at least 1",
        ),
        (
            &["--data", "D", "--temperature=-1"],
            2,
            "--temperature must be 0",
        ),
        (
            &["--data", "D", "--top-p", "0"],
            2,
            "--top-p must be above 0",
        ),
        (
            &["--data", "D", "--repetition-penalty", "0"],
            2,
            "--repetition-penalty must be above 0",
        ),
        (
            &["--data", "D", "--batch", "0"],
            2,
            "--batch must be at least 1",
        ),
        (
            &["--data", "D", "--device", "cpu", "--dtype", "f16"],
            1,
            "--dtype f16",
        ),
        (&["--data", "D", "--tap", "hook_embed"], 2, "--out"),
        (
            &[
                "--data",
                "D",
                "--out",
                out,
                "--tap",
                "blocks.0.attn.hook_pattern",
            ],
            1,
            "its rows grow with every token",
        ),
        (
            &["--data", "D", "--out", out, "--tap", "hook_embed|mean"],
            1,
            "take their mean",
        ),
        (
            &["--data", "D", "--out", out, "--tap", "hook_embed@sample:3"],
            1,
            "changes as the text grows",
        ),
        (
            &[
                "--data",
                "D",
                "--out",
                out,
                "--tap",
                "hook_embed@step:7",
                "--max-new-tokens",
                "3",
            ],
            1,
            "picked nothing",
        ),
        (
            &[
                "--data",
                "D",
                "--edit",
                "zero at=hook_embed select=step:7",
                "--max-new-tokens",
                "3",
            ],
            1,
            "touched no row",
        ),
        (
            &["--data", "D", "--edit", "scale at=ln_final.hook_out c=3e38"],
            1,
            "a logit after position",
        ),
        (
            &["--prompt", "x", "--text-field", "text"],
            2,
            "'--prompt <T>...' cannot be used with '--text-field <FIELD>'",
        ),
        (&["--data", "D", "--keep", "label"], 2, "--out"),
    ] {
        let mut command = streamgauge();
        command.arg("generate").arg("--model").arg(&model);
        for flag in flags {
            match *flag {
                "D" => command.arg(&data),
                "L" => command.arg(&long),
                flag => command.arg(flag),
            };
        }
        let output = command.assert().code(status).get_output().clone();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(says), "{flags:?}: {message}");
        // Whether a tap's selection picks anything is known with the last prompt; the text is right all the same.
        let is_printed = says == "picked nothing";
        assert_eq!(output.stdout.is_empty(), !is_printed, "{flags:?}");
        if status == 1 {
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        assert!(Store::open(Path::new(out)).is_err());
        let _ = std::fs::remove_dir_all(out);
    }
}
