//! Live consumer: use a batch's rows while they are in memory, and keep nothing of them: here, the mean of the residual stream
//! at every layer over a whole dataset.
//!
//!     cargo run --release --example 06_live_consumer -- MODEL DATA.jsonl

use std::sync::Arc;

use streamgauge::backend::{Batch, Sink, SinkSpec};
use streamgauge::engine::{Job, Machine, Prepared};

/// `[layers][d]`
pub fn run(model: &str, data: &str) -> streamgauge::Result<Vec<Vec<f64>>> {
    let taps = vec!["blocks.*.hook_resid_post".to_owned()];
    let prepared = Prepared::open(Job::new(model, vec![data.to_owned()], taps))?;
    let (d, n_layers) = (prepared.dims.d_model, prepared.dims.n_layers);
    let mut cpu = prepared.cpu();
    let (mut sums, mut rows) = (vec![vec![0.0; d]; n_layers], 0);
    for record in prepared.job.dataset(false)? {
        let samples = prepared.tokenising.samples(record?)?;
        let batch = Batch::pack(samples.iter().map(|s| &s.row.tokens[..]));
        let lengths: Vec<u32> = batch.samples().map(|s| s.len() as u32).collect();
        // A sink is where one tap's rows go: memory of ours, `[rows, d]`, which the last op of the block writes itself.
        let mut memory = vec![vec![0.0_f32; batch.rows() * d]; n_layers];
        let sinks = memory.iter_mut().map(|memory| {
            let all = (0..batch.rows() as u32).collect();
            let bytes = bytemuck::cast_slice_mut(memory);
            Sink::new(
                Arc::new(SinkSpec::plain()),
                all,
                lengths.clone(),
                bytes,
                None,
            )
        });
        cpu.run(
            &batch,
            sinks.collect(),
            Vec::new(),
            n_layers,
            &prepared.plan,
        )?;
        for (sum, memory) in sums.iter_mut().zip(&memory) {
            for row in memory.chunks(d) {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(s, &x)| *s += f64::from(x));
            }
        }
        rows += batch.rows();
    }
    sums.iter_mut().flatten().for_each(|s| *s /= rows as f64);
    println!("the mean of {rows} rows, layer by layer");
    Ok(sums)
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, data] = &args[..] else {
        panic!("usage: 06_live_consumer MODEL DATA")
    };
    run(model, data).map(|_| ())
}
