//! Extract: run a dataset through a model and keep the residual stream of every layer at each sample's last token.
//!
//!     cargo run --release --example 01_extract -- MODEL DATA.jsonl STORE

use std::path::Path;

use streamgauge::engine::{Job, Prepared, extract};

/// `data`: JSONL with `text`, `tokens` or `messages` (or .csv, .parquet, …); `store`: a directory that is not there yet.
pub fn run(model: &str, data: &str, store: &Path) -> streamgauge::Result<()> {
    // A tap is PATTERN[@SELECTION][|REDUCTION]; rows that are not selected are never copied anywhere.
    let taps = vec!["blocks.*.hook_resid_post@last".to_owned()];
    let prepared = Prepared::open(Job::new(model, vec![data.to_owned()], taps))?;
    let done = extract(&prepared, store, &mut |progress| {
        eprintln!("{} samples, {} tokens", progress.samples, progress.tokens);
    })?;
    println!(
        "{} rows in {} taps",
        done.rows.iter().sum::<u64>(),
        done.rows.len()
    );
    Ok(())
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, data, store] = &args[..] else {
        panic!("usage: 01_extract MODEL DATA STORE")
    };
    run(model, data, Path::new(store))
}
