//! `lens` on a real model.

use serde_json::Value;

use super::{common, done, refused, streamgauge};

const PROMPT: &str = "The capital of France is the city of";

fn lens(flags: &[&str]) -> assert_cmd::Command {
    let mut c = streamgauge();
    c.arg("lens")
        .arg("--model")
        .arg(common::smollm2())
        .args(["--prompt", PROMPT])
        .args(flags);
    c
}

fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn behind_all_blocks_the_lens_says_what_the_model_says() {
    let rows = objects(&done(&mut lens(&["--json", "--top", "3"])));
    assert_eq!(rows.len(), 31, "the embedding and thirty blocks");
    let last = &rows[30];
    assert_eq!(
        (last["blocks"].as_u64(), last["rank"].as_u64()),
        (Some(30), Some(0))
    );
    assert!(last["kl"].as_f64().unwrap().abs() < 1e-9);
    assert_eq!(last["top"].as_array().unwrap().len(), 3);
    let mut generate = streamgauge();
    generate
        .arg("generate")
        .arg("--model")
        .arg(common::smollm2());
    generate.args(["--prompt", PROMPT, "--max-new-tokens", "1", "--json"]);
    let generated = &objects(&done(&mut generate))[0];
    assert_eq!(last["top"][0]["id"], generated["tokens"][0]);
    let off =
        last["top"][0]["logprob"].as_f64().unwrap() - generated["logprobs"][0].as_f64().unwrap();
    assert!(
        off.abs() < 1e-4,
        "decoding and a whole pass differ by {off}"
    );
    // The embedding of the last token says little of what comes next.
    assert!(rows[0]["kl"].as_f64().unwrap() > 1.0);
}

#[test]
fn a_layer_says_what_the_model_would_if_all_later_blocks_were_silent() {
    let plain = objects(&done(&mut lens(&["--json", "--select", "-2..-1"])));
    let silent = [
        "--json",
        "--select",
        "-2..-1",
        "--edit",
        "zero at=blocks.{16-29}.hook_attn_out",
        "--edit",
        "zero at=blocks.{16-29}.hook_mlp_out",
    ];
    let silenced = objects(&done(&mut lens(&silent)));
    for position in 0..2 {
        let (want, got) = (&plain[position * 31 + 16], &silenced[position * 31 + 30]);
        assert_eq!(
            (&want["top"], &want["entropy"]),
            (&got["top"], &got["entropy"]),
            "bit for bit"
        );
    }
}

#[test]
fn a_table_is_written_and_a_selection_of_nothing_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = done(lens(&["--select", "first", "--out"]).arg(dir.path()));
    assert!(
        said.contains("likeliest") && said.contains("lens.csv"),
        "{said}"
    );
    let csv = std::fs::read_to_string(dir.path().join("lens.csv")).unwrap();
    assert!(
        csv.starts_with("position,token,blocks,rank,logprob_next,entropy,kl,top,top_logprobs\n")
    );
    assert_eq!(csv.lines().count(), 32);
    // A curve for few positions, a heatmap for many.
    let svg = |dir: &std::path::Path| std::fs::read_to_string(dir.join("lens.svg")).unwrap();
    let curve = svg(dir.path());
    assert!(curve.contains("KL from the model (nat)"), "{curve}");
    let many = tempfile::tempdir().unwrap();
    done(lens(&["--select", "all", "--out"]).arg(many.path()));
    let cells = svg(many.path()).matches("<title>").count();
    assert!(cells >= 8 * 31, "{cells} cells");
    assert!(many.path().join("lens.png").is_file());
    for (edit, says) in [
        ("zero at=hook_embed select=99", "touched no row"),
        ("zero at=logits", "changes nothing that is tapped"),
    ] {
        let message = refused(&mut lens(&["--edit", edit]), 1);
        assert!(message.contains(says), "{message}");
    }
    let message = refused(&mut lens(&["--select", "99"]), 1);
    assert!(message.contains("picks none of the prompt's"), "{message}");
}
