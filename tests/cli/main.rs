//! The commands as a user runs them, on the fixtures' tiny models: what they print, write and refuse, and how they exit.

#[path = "../common/mod.rs"]
mod common;

mod analyze;
mod bench;
#[cfg(feature = "interpreter")]
mod cuda;
mod device;
mod devices;
mod doctor;
mod extract;
mod inspect;
mod lens;
mod mean_diff;
mod merge;
mod model_info;
#[cfg(feature = "interpreter")]
mod no_io_uring;
mod plan;
mod resume;
mod score;
#[cfg(feature = "interpreter")]
mod stand_in_cublaslt;
#[cfg(feature = "interpreter")]
mod stand_in_cuda;
mod statistics;
mod statistics_directions;
mod statistics_resume;
mod usage;
mod verify;

use std::fmt::Write as _;
use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

/// 3 layers, d 64, 4 query and 2 key/value heads of 16, MLP 112, vocabulary 160, window 4, 512 positions.
const MODEL: &str = "models/mistral-window4";

fn streamgauge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
}

fn model() -> PathBuf {
    common::fixtures().join(MODEL)
}

/// Runs the command; it must exit 0. Its standard output.
fn done(command: &mut Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

fn done_json(command: &mut Command) -> Value {
    let text = done(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Runs the command; it must exit with `status` and say why in one line, which is given.
fn refused(command: &mut Command, status: i32) -> String {
    let output = command.assert().code(status).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.starts_with("error: ") && message.trim_end().lines().count() == 1,
        "{message}"
    );
    message
}

/// A folder with a dataset of token ids: samples of 1 to 23 tokens, with labels, groups and topics that a direction can find.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(samples: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for i in 0..samples {
            let label = i % 2;
            let mut tokens: Vec<usize> = (0..i * 7 % 23)
                .map(|j| 3 + (i * 31 + j * 17) % 150)
                .collect();
            tokens.push(if label == 1 { 10 } else { 20 + i % 3 });
            let line = json!({ "tokens": tokens, "label": label, "group": format!("g{}", i / 4), "topic": format!("t{}", i % 3) });
            writeln!(lines, "{line}").unwrap();
        }
        std::fs::write(dir.path().join("data.jsonl"), lines).unwrap();
        Bench { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job(&self, command: &str, taps: &[&str]) -> Command {
        let mut c = streamgauge();
        c.arg(command)
            .arg("--model")
            .arg(model())
            .arg("--data")
            .arg(self.path("data.jsonl"))
            .arg("--quiet");
        for tap in taps {
            c.args(["--tap", tap]);
        }
        c
    }

    /// Extracts into `store`.
    fn extract(&self, taps: &[&str], flags: &[&str]) -> PathBuf {
        let store = self.path("store");
        done(
            self.job("extract", taps)
                .arg("--out")
                .arg(&store)
                .args(flags),
        );
        store
    }
}

/// Everything that a tap can be: every selection of plain tokens, reductions, heads, ragged points, a point tapped twice.
const MANY: [&str; 12] = [
    "blocks.*.hook_resid_post",
    "blocks.0.hook_resid_post@last",
    "blocks.1.attn.hook_z[1,3]@-5..-1",
    "blocks.2.attn.hook_k@first",
    "blocks.1.attn.hook_pattern",
    "blocks.2.attn.hook_attn_scores[0-1]@every:3",
    "blocks.1.mlp.hook_post@sample:3#7|top:5",
    "blocks.1.hook_mlp_out|mean",
    "blocks.0.ln1.hook_scale@no-bos & last",
    "hook_embed@2..4|norm",
    "ln_final.hook_out@last",
    "logits@last|logprob:10",
];
