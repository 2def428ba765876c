//! The command line as such: help, and nonsense.

use super::{Bench, done, refused, streamgauge};

#[test]
fn every_command_has_help_and_nonsense_is_a_usage_error() {
    let commands = [
        "",
        "doctor",
        "model",
        "model info",
        "plan",
        "extract",
        "inspect",
        "verify",
        "analyze",
        "analyze mean-diff",
        "bench",
        "bench gemm",
    ];
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
