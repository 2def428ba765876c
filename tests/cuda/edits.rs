//! Edits.

use crate::jobs::{Bench, assert_alike, tensor};

#[test]
fn edits_do_what_they_do_on_the_cpu_backend() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let (whole, head) = (
        tensor(bench.dir.path(), "whole", 64),
        tensor(bench.dir.path(), "head", 64),
    );
    let edits = [
        format!("add at=blocks.0.hook_resid_post v={whole} c=1.5"),
        "scale at=blocks.0.attn.hook_v c=0.5 select=first".to_owned(),
        format!("project-out at=blocks.0.attn.hook_z v={head}"),
        format!("clamp at=blocks.1.hook_resid_mid v={whole} lo=-0.1 hi=0.2 select=-3..-1"),
        format!("mean at=blocks.1.attn.hook_q[1] v={head} select=last"),
        "zero at=blocks.1.hook_mlp_out select=every:4".to_owned(),
        "scale at=blocks.1.hook_resid_post c=2".to_owned(),
        "scale at=logits c=0.25 select=last".to_owned(),
    ];
    let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
    let taps = [
        "blocks.*.hook_resid_post",
        "blocks.0.attn.hook_z",
        "blocks.1.attn.hook_q",
        "blocks.1.hook_resid_mid@last",
        "logits@last",
    ];
    let edited = bench.job(&taps, &edits);
    assert_alike(&bench.stores(&edited));
}
