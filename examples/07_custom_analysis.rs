//! An analysis of your own over a store: how many directions a layer's rows spread over, as the participation ratio
//! (Σλ)² / Σλ² of their covariance's eigenvalues, which needs no eigenvalue: Σλ is the trace, Σλ² the sum of squares.
//!
//!     cargo run --release --example 07_custom_analysis -- STORE TAP

use std::path::Path;

use streamgauge::store::Store;

/// Between 1 (all rows on a line) and d (the same variance everywhere).
pub fn run(store: &Path, tap: &str) -> streamgauge::Result<f64> {
    let store = Store::open(store)?;
    let reader = store.tap(tap)?;
    let d: usize = reader.info().row_shape.iter().product();
    let n = reader.rows() as f64;
    let (mut mean, mut second) = (vec![0.0; d], vec![0.0; d * d]);
    for shard in reader.shards() {
        // Works for any stored dtype; `as_f32` would borrow instead.
        for row in shard?.to_f32().chunks(d) {
            for (i, &x) in row.iter().enumerate() {
                mean[i] += f64::from(x) / n;
                for (s, &y) in second[i * d..][..d].iter_mut().zip(row) {
                    *s += f64::from(x) * f64::from(y) / n;
                }
            }
        }
    }
    let covariance = |i: usize, j: usize| second[i * d + j] - mean[i] * mean[j];
    let trace: f64 = (0..d).map(|i| covariance(i, i)).sum();
    let each = (0..d).flat_map(|i| (0..d).map(move |j| (i, j)));
    let squares: f64 = each.map(|(i, j)| covariance(i, j).powi(2)).sum();
    let ratio = trace * trace / squares;
    println!("{tap}: rows of {d} spread over {ratio:.1} directions");
    Ok(ratio)
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, store, tap] = &args[..] else {
        panic!("usage: 07_custom_analysis STORE TAP")
    };
    run(Path::new(store), tap).map(|_| ())
}
