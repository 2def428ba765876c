//! What a sweep refuses, and what it says.

use super::*;

#[test]
fn what_does_nothing_or_is_lost_is_refused_in_a_sweep() {
    let bench = Bench::new();
    let (pairs, prompts) = (bench.pairs(&[(9, 9)]), bench.prompts(&[9]));
    let direction = bench.path("d.safetensors");
    let ones = [1.0_f32; 64].map(f32::to_le_bytes).concat();
    let ones = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64], &ones);
    safetensors::serialize_to_file([("d", ones.unwrap())], None, &direction).unwrap();
    let at = |point: &str| Metric::Direction {
        file: direction.clone(),
        key: "d".into(),
        at: point.into(),
    };
    let refused = |edits: &[&str], site: &str, metric: Metric| {
        let prepared = prepared(edits);
        let file = if edits.is_empty() { &pairs } else { &prompts };
        let prompts = read_pairs(file, &prepared).unwrap();
        let spec = SweepSpec {
            metrics: vec![metric],
            ..spec(&[site], &[])
        };
        let swept = Sweep::new(&prepared, spec, prompts)
            .and_then(|sweep| sweep.run(&mut prepared.cpu(), &mut |_| ()));
        swept.unwrap_err().to_string()
    };
    for (edits, site, metric, says) in [
        // The patch comes after what is read of the same layer.
        (
            &[][..],
            "blocks.0.hook_mlp_out",
            at("blocks.0.ln1.hook_out"),
            "is patched behind it",
        ),
        (
            &["scale at=blocks.2.hook_mlp_out c=2"],
            "blocks.0.hook_mlp_out",
            at("blocks.1.hook_resid_post"),
            "changes nothing",
        ),
        (
            &["zero at=logits select=first"],
            "blocks.0.hook_mlp_out",
            Metric::KlRecovery,
            "touched no row",
        ),
        (
            &["scale at=blocks.2.hook_resid_post c=3e38"],
            "blocks.1.hook_mlp_out",
            Metric::KlRecovery,
            "out of range",
        ),
    ] {
        let said = refused(edits, site, metric);
        assert!(said.contains(says), "{edits:?} {site}: {said}");
    }
}

#[test]
fn what_cannot_be_patched_is_refused_before_anything_runs() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9)]);
    for (site, says) in [
        ("blocks.1.hook_mlp_ouf", "hook_mlp_out"),
        ("blocks.3.hook_mlp_out", "3"),
        ("blocks.1.attn.hook_z[4]", "4"),
        ("blocks.1.hook_mlp_out[0]", "head"),
        ("blocks.1.attn.hook_pattern", "cannot be patched"),
        ("blocks.1.attn.hook_result[0]", "cannot be patched"),
        ("hook_embed", "cannot be patched"),
        ("logits", "cannot be patched"),
        ("blocks.1.hook_mlp_out@3", "from the end"),
        ("blocks.1.hook_mlp_out@-1..-5", "backwards"),
        ("blocks.1.hook_mlp_out@-10", "no prompt has"),
        ("blocks.1.hook_mlp_out@nobody", "no position named 'nobody'"),
        ("blocks.1.hook_mlp_out@", "positions are"),
    ] {
        let message = swept(&prepared, &pairs, spec(&[site], &[])).unwrap_err();
        assert!(
            message.contains(says) && !message.contains('\n'),
            "{site}: {message}"
        );
    }
    assert!(
        swept(&prepared, &pairs, spec(&[], &[]))
            .unwrap_err()
            .contains("nothing to patch")
    );
}

#[test]
fn hostile_pairs_files_are_refused_with_file_and_line() {
    let (bench, plain) = (Bench::new(), prepared(&[]));
    let good = r#"{"clean": [1, 2], "corrupt": [1, 3]}"#;
    for (line, says) in [
        ("{\"clean\": [1, 2", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        (r#"{"corrupt": [1]}"#, "no `clean`"),
        (r#"{"clean": [1]}"#, "no `corrupt`"),
        (r#"{"clean": [1], "corrupt": []}"#, "`corrupt` is empty"),
        (r#"{"clean": "", "corrupt": "a"}"#, "`clean` is empty"),
        (r#"{"clean": 5, "corrupt": [1]}"#, "`clean` is no text"),
        (
            r#"{"clean": [1, -2], "corrupt": [1]}"#,
            "`clean` is no text",
        ),
        (
            r#"{"clean": [99999999999], "corrupt": [1]}"#,
            "no vocabulary",
        ),
        (r#"{"clean": [160], "corrupt": [1]}"#, "160"),
        (r#"{"clean": [1], "corrupt": [2], "answer": 160}"#, "160"),
        (
            r#"{"clean": [1], "corrupt": [2], "answer": [1]}"#,
            "`answer`",
        ),
        (
            r#"{"clean": [1], "corrupt": [2], "positions": 3}"#,
            "`positions`",
        ),
        (
            r#"{"clean": [1], "corrupt": [2], "positions": {"a": 1}}"#,
            "'a' is no index into 1",
        ),
        (
            r#"{"clean": [1], "corrupt": [2], "positions": {"a": [0]}}"#,
            "'a' is no index",
        ),
    ] {
        let path = bench.path("bad.jsonl");
        std::fs::write(&path, format!("{good}\n\n{line}\n")).unwrap();
        let message = read_pairs(&path, &plain).unwrap_err().to_string();
        assert!(
            message.contains("bad.jsonl:3") && message.contains(says),
            "{line}: {message}"
        );
        assert!(!message.contains('\n'));
    }
    std::fs::write(bench.path("bad.jsonl"), b"{\"clean\": \"\xff\"}\n").unwrap();
    let message = read_pairs(&bench.path("bad.jsonl"), &plain)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("bad.jsonl:1: not valid UTF-8"),
        "{message}"
    );
    std::fs::write(bench.path("bad.jsonl"), "\n").unwrap();
    let message = read_pairs(&bench.path("bad.jsonl"), &plain)
        .unwrap_err()
        .to_string();
    assert!(message.contains("no prompts"), "{message}");
    let edited = prepared(&["zero at=blocks.1.hook_mlp_out"]);
    std::fs::write(bench.path("bad.jsonl"), good).unwrap();
    let message = read_pairs(&bench.path("bad.jsonl"), &edited)
        .unwrap_err()
        .to_string();
    assert!(message.contains("edits are given"), "{message}");
}
