//! The command line as such: help, and nonsense.

use super::{Bench, done, refused, streamgauge};

/// Every command, by the manual pages: `streamgauge-analyze-lat.1` is `analyze lat`.
fn commands() -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    done(streamgauge().arg("man").arg("--out").arg(dir.path()));
    let pages = std::fs::read_dir(dir.path()).unwrap();
    let name = |page: std::io::Result<std::fs::DirEntry>| {
        let name = page.unwrap().file_name().into_string().unwrap();
        let words = name.strip_prefix("streamgauge").unwrap();
        let words = words.strip_suffix(".1").unwrap().trim_start_matches('-');
        // This one has a hyphen in its name.
        words.replace('-', " ").replace("mean diff", "mean-diff")
    };
    pages.map(name).collect()
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(streamgauge().args(["completions", shell]));
        for command in commands() {
            let last = command.split(' ').next_back().unwrap();
            assert!(script.contains(last), "{shell}: {command}");
        }
    }
}

#[test]
fn every_command_has_help_and_nonsense_is_a_usage_error() {
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let help = done(streamgauge().args(&words).arg("--help"));
        assert!(
            help.contains("Usage: streamgauge") && !help.starts_with("Usage"),
            "{command}: {help}"
        );
        streamgauge()
            .args(&words)
            .arg("--no-such-flag")
            .assert()
            .code(2);
    }
    streamgauge().arg("nonsense").assert().code(2);
    streamgauge().assert().code(2);
    assert!(
        refused(
            Bench::new(4)
                .job("extract", &["hook_embed"])
                .args(["--batch-tokens", "4"]),
            2
        )
        .contains("--out")
    );
}

#[test]
fn a_usage_error_is_one_line_with_the_remedy() {
    let bench = Bench::new(4);
    for (flags, says) in [
        (
            &["--batch-token", "3"][..],
            &[
                "--batch-token",
                "a similar argument exists: '--batch-tokens'",
            ][..],
        ),
        (
            &["--on-long", "trunc"],
            &["trunc", "error, truncate, chunk"],
        ),
        (&["--max-length", "0"], &["--max-length", "at least 1"]),
        (&["--batch-tokens", "0"], &["--batch-tokens", "at least 1"]),
        (&["--limit", "0"], &["--limit", "at least 1"]),
        (&["--limit", "some"], &["some", "at least 1"]),
        (
            &["--limit", "99999999999999999999"],
            &["--limit", "a smaller number"],
        ),
        (
            &["--pack-context", "8", "--max-length", "8"],
            &["--max-length with --pack-context"],
        ),
        (&["--shard-size", "2XB"], &["XB", "2GiB"]),
        (
            &["--text-field", "a", "--tokens-field", "b"],
            &["--text-field", "--tokens-field"],
        ),
    ] {
        let message = refused(bench.job("plan", &["hook_embed"]).args(flags), 2);
        for word in says {
            assert!(message.contains(word), "'{word}' in {message}");
        }
        assert!(!message.contains("Usage:"), "{message}");
    }
    let message = refused(streamgauge().arg("extract"), 2);
    assert!(
        message.contains("--model <M> --data <F>... --tap <P>..."),
        "{message}"
    );
    assert!(refused(streamgauge().arg("nonsense"), 2).contains("'nonsense'"));
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_streamgauge"))
        .args(["model", "info", "--model"])
        .arg(super::model())
        .stdout(full)
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.starts_with("error: cannot write to standard output: No space left"),
        "{message}"
    );
}
