//! Steer: generate with a direction added to the residual stream, and without.
//!
//!     cargo run --release --example 03_steer -- MODEL DIRECTION.safetensors#KEY LAYER STRENGTH "PROMPT"

use std::sync::Arc;

use streamgauge::data::{Input, Record};
use streamgauge::engine::{Choosing, Generator, Job, Prepared, Stops};

/// The tokens that follow the prompt, greedily, with these edits.
pub fn run(
    model: &str,
    edits: Vec<String>,
    prompt: Input,
    n: usize,
) -> streamgauge::Result<Vec<u32>> {
    let job = Job {
        edits,
        ..Job::new(model, Vec::new(), Vec::new())
    };
    let prepared = Prepared::for_generation(job)?;
    let record = Record {
        index: 0,
        file: Arc::from("prompt"),
        line: 1,
        input: prompt,
        spans: Vec::new(),
        kept: Vec::new(),
    };
    let samples = prepared.tokenising.samples(record)?;
    let stops = Stops::of(&prepared, n);
    let mut generator = Generator::new(&prepared, Choosing::default(), stops)?;
    let generated = generator.generate(&samples, &mut |_| ())?;
    // Each edit says what it touched: rows, and their mean norm before and after.
    for receipt in generator.receipts() {
        println!("{}: {} rows", receipt.at, receipt.rows);
    }
    if let Some(tokenizer) = &prepared.tokenising.tokenizer {
        println!("{}", tokenizer.decode(generated[0].new_tokens(), true)?);
    }
    Ok(generated[0].new_tokens().to_vec())
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, direction, layer, strength, prompt] = &args[..] else {
        panic!("usage: 03_steer MODEL DIRECTION.safetensors#KEY LAYER STRENGTH PROMPT")
    };
    let edit = format!("add at=blocks.{layer}.hook_resid_post v={direction} c={strength}");
    run(model, Vec::new(), Input::Text(prompt.clone()), 48)?;
    run(model, vec![edit], Input::Text(prompt.clone()), 48)?;
    Ok(())
}
