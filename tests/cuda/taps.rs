//! Taps that are less than a whole activation.

use crate::jobs::{Bench, assert_alike, tensor};

#[test]
fn selections_heads_and_reductions_store_what_the_cpu_backend_stores() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let direction = tensor(bench.dir.path(), "direction", 64);
    let dot = format!("blocks.0.hook_mlp_out|dot:{direction}");
    let prepared = bench.job(
        &[
            "blocks.*.hook_resid_post@last",
            "blocks.1.hook_resid_pre@-5..-2",
            "blocks.0.attn.hook_z[1]@every:3",
            "blocks.1.attn.hook_q[0,1]@first",
            "blocks.1.hook_resid_post|mean",
            "blocks.0.attn.hook_z[0]|mean",
            "blocks.1.mlp.hook_post|norm",
            "blocks.1.hook_attn_out|top:3",
            "logits@last|logprob:4",
            "logits|mean",
            "blocks.1.attn.hook_result[1]@-2..-1",
            "blocks.0.attn.hook_pattern[1]@last",
            "blocks.1.attn.hook_attn_scores@every:7",
            &dot,
        ],
        &[],
    );
    assert_alike(&bench.stores(&prepared));
}
