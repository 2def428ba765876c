//! Edits of the command line and of files.

use super::*;

#[test]
fn the_command_takes_edits_from_the_line_and_from_a_file() {
    let bench = Bench::new();
    let data = bench.data(0, &[9, 4]);
    bench.tensor("my dir.safetensors", &[64], &[0.5; 64]);
    let file = bench.path("edits.toml");
    let toml = "[[edit]]\nkind = \"add\"\nat = \"hook_embed\"\nv = \"my dir.safetensors#v\"\nc = 2\n\n\
                [[edit]]\nkind = \"scale\"\nat = \"blocks.0.attn.hook_v[1]\"\nc = -0.5\nselect = \"last\"\n";
    std::fs::write(&file, toml).unwrap();
    let command = |edits: &Path, out: &str| {
        let mut c = assert_cmd::Command::new(env!("CARGO_BIN_EXE_streamgauge"));
        c.args([
            "extract",
            "--quiet",
            "--json",
            "--tap",
            "hook_embed",
            "logits@last",
            "--model",
        ])
        .arg(Bench::model())
        .args([
            "--data",
            &data,
            "--edit",
            "scale at=hook_embed c=3",
            "--edits",
        ])
        .arg(edits)
        .arg("--out")
        .arg(bench.path(out));
        c
    };
    let output = command(&file, "out")
        .assert()
        .success()
        .get_output()
        .clone();
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let edits = summary["edits"].as_array().unwrap();
    assert_eq!(edits.len(), 3);
    assert_eq!(
        (&edits[0]["rows"], &edits[1]["rows"], &edits[2]["rows"]),
        (&13.into(), &2.into(), &13.into())
    );
    let path = bench.path("my dir.safetensors");
    assert_eq!(
        edits[0]["edit"],
        format!("add at=hook_embed 'v={}#v' c=2 select=all", path.display())
    );
    // The file's first, then the line's: 3 · (x + 2 · 0.5).
    let clean = bench.run(Bench::job(&data, &["hook_embed"], &[]));
    let edited = read(&bench.path("out"));
    for ((.., new), (.., old)) in edited["hook_embed"].iter().zip(&clean["hook_embed"]) {
        assert_eq!(
            *new,
            old.iter().map(|x| 3.0 * (x + 1.0)).collect::<Vec<f32>>()
        );
    }
    assert!(
        recompute(&bench.path("out"), 2, 0, None, None)
            .unwrap()
            .differences
            .is_empty()
    );
    let mut inspect = assert_cmd::Command::new(env!("CARGO_BIN_EXE_streamgauge"));
    inspect.arg("inspect").arg(bench.path("out"));
    let shown = inspect.assert().success().get_output().clone();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("edited    scale at=hook_embed c=3 select=all: 13 rows at hook_embed"));
    for (text, says) in [
        ("kind = \"zero\"", "'kind' is not known here"),
        ("", "it has no edits"),
        ("[[edit]]\nat = \"hook_embed\"", "edit 1 has no kind"),
        (
            "[[edit]]\nkind = \"zero\"\nat = [1]",
            "'at' is no string, number or boolean",
        ),
        ("[[edit]]\nkind = \"zero\"", "`at=` is missing"),
        ("[[edit", "not TOML"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = command(&file, "refused")
            .assert()
            .code(1)
            .get_output()
            .clone();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains("edits.toml") && message.contains(says),
            "{text}: {message}"
        );
        assert_eq!(message.lines().count(), 1);
    }
    let output = command(&bench.path("none.toml"), "refused")
        .assert()
        .code(1)
        .get_output()
        .clone();
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("none.toml")
    );
    assert!(!bench.path("refused").exists());
}
