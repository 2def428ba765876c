//! Sweep: which blocks carry what an edit does? Every attention and MLP block, alone and in pairs, both ways.
//!
//!     cargo run --release --example 05_sweep -- MODEL PROMPTS.jsonl 'add at=blocks.15.hook_resid_post v=dir.safetensors#d c=-8'

use std::path::Path;

use streamgauge::engine::sweep::{Sweep, SweepSpec, Way, means, read_pairs};
use streamgauge::engine::{Job, Prepared};

/// Runs the sweep and prints the ten largest mean recoveries; returns how many times fewer layers ran than in whole passes.
pub fn run(model: &str, prompts: &Path, edit: &str) -> streamgauge::Result<f64> {
    // With edits, a prompt's two runs are the edited ("clean") and the plain one: a line of the file needs `clean` alone.
    let job = Job {
        edits: vec![edit.to_owned()],
        ..Job::new(model, Vec::new(), Vec::new())
    };
    let prepared = Prepared::for_generation(job)?;
    let blocks = ["blocks.*.hook_attn_out", "blocks.*.hook_mlp_out"].map(String::from);
    let spec = SweepSpec {
        pairs: blocks.to_vec(),
        ways: vec![Way::Denoising, Way::Noising],
        ..SweepSpec::new(blocks.to_vec())
    };
    let sweep = Sweep::new(&prepared, spec, read_pairs(prompts, &prepared)?)?;
    let swept = sweep.run(&mut prepared.cpu(), &mut |p| {
        eprintln!("{} of {}", p.done, p.total)
    })?;
    let mut means = means(&swept.rows);
    means.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    for (row, mean, prompts) in means.iter().take(10) {
        let places: Vec<String> = row.sites.iter().map(ToString::to_string).collect();
        println!(
            "{mean:7.3} {} {} (n = {prompts})",
            row.way.name(),
            places.join(" + ")
        );
    }
    Ok(swept.naive_layer_runs as f64 / swept.layer_runs as f64)
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, prompts, edit] = &args[..] else {
        panic!("usage: 05_sweep MODEL PROMPTS.jsonl EDIT")
    };
    println!(
        "{:.1} times fewer layer-runs",
        run(model, Path::new(prompts), edit)?
    );
    Ok(())
}
