//! Read a store: what it holds, and the rows of one tap, without a copy.
//!
//!     cargo run --release --example 02_read_store -- STORE

use std::path::Path;

use streamgauge::store::Store;

/// The mean norm of each tap's rows, for a store of f32 rows.
pub fn run(store: &Path) -> streamgauge::Result<Vec<(String, f64)>> {
    let store = Store::open(store)?;
    // The manifest says what the rows are of: model and dataset with their fingerprints, every flag, versions.
    println!("made from {}", store.manifest().provenance.model.id);
    let mut norms = Vec::new();
    for (tap, info) in store.taps().iter().enumerate() {
        let reader = store.tap_at(tap);
        let width: usize = info.row_shape.iter().product();
        let mut sum = 0.0;
        for shard in reader.shards() {
            // `as_f32` borrows the mapped file: `[rows, width]`.
            for row in shard?.as_f32()?.chunks(width) {
                sum += row
                    .iter()
                    .map(|&x| f64::from(x).powi(2))
                    .sum::<f64>()
                    .sqrt();
            }
        }
        let mean = sum / reader.rows() as f64;
        println!(
            "{}: {} rows of {width}, mean norm {mean:.3}",
            info.folder,
            reader.rows()
        );
        norms.push((info.folder.clone(), mean));
    }
    Ok(norms)
}

#[allow(dead_code)]
fn main() -> streamgauge::Result<()> {
    let store = std::env::args().nth(1).expect("usage: 02_read_store STORE");
    run(Path::new(&store)).map(|_| ())
}
