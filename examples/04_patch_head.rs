//! Patch one head: put a head's output of the clean prompt into the corrupt one, and see how far the answer comes back.
//!
//!     cargo run --release --example 04_patch_head -- MODEL PAIRS.jsonl LAYER HEAD

use std::path::Path;

use streamgauge::engine::sweep::{Metric, Sweep, SweepSpec, read_pairs};
use streamgauge::engine::{Job, Prepared};

/// Recovery of the logit difference between `answer` and `wrong`, per prompt.
pub fn run(model: &str, pairs: &Path, layer: usize, head: usize) -> streamgauge::Result<Vec<f64>> {
    let prepared = Prepared::for_generation(Job::new(model, Vec::new(), Vec::new()))?;
    let prompts = read_pairs(pairs, &prepared)?;
    // z is what W_O reads of a head; patching it patches the head's share of attn_out.
    let spec = SweepSpec {
        metrics: vec![Metric::LogitDiff],
        ..SweepSpec::new(vec![format!("blocks.{layer}.attn.hook_z[{head}]")])
    };
    let sweep = Sweep::new(&prepared, spec, prompts)?;
    let swept = sweep.run(&mut prepared.cpu(), &mut |_| ())?;
    for row in &swept.rows {
        println!(
            "prompt {}: {:.3} clean, {:.3} corrupt, {:.3} patched: recovery {:.3}",
            row.prompt, row.clean, row.corrupt, row.patched, row.recovery
        );
    }
    Ok(swept.rows.iter().map(|row| row.recovery).collect())
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, pairs, layer, head] = &args[..] else {
        panic!("usage: 04_patch_head MODEL PAIRS.jsonl LAYER HEAD")
    };
    let number = |text: &String| text.parse().expect("a number");
    run(model, Path::new(pairs), number(layer), number(head)).map(|_| ())
}
