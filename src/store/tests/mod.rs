//! Whole stores: written, read back, damaged. The fixtures here make runs of any shape; the files beside this one use them.

mod damage;
mod direct;
mod disk;
mod recovery;
mod round_trip;

use std::path::Path;

use super::*;

/// A run to be written: samples with their rows, cut into shards and batches.
#[derive(Debug, Clone)]
struct Run {
    taps: Vec<TapInfo>,
    keep: Vec<String>,
    samples: Vec<SampleRow>,
    /// [sample][tap]
    rows: Vec<Vec<TapRows>>,
    /// Batch sizes per shard; they add up to the samples.
    shards: Vec<Vec<usize>>,
}

fn tap(folder: &str, dtype: StoreDtype, row_shape: &[usize]) -> TapInfo {
    TapInfo {
        hook: folder.trim_end_matches("~2").into(),
        folder: folder.into(),
        selection: "all".into(),
        reduction: String::new(),
        heads: None,
        dtype,
        row_shape: row_shape.to_vec(),
        ragged: false,
        top_k: None,
        order_seed: None,
    }
}

fn ragged(folder: &str, heads: usize) -> TapInfo {
    TapInfo {
        ragged: true,
        ..tap(folder, StoreDtype::F32, &[heads])
    }
}

fn top(folder: &str, k: usize) -> TapInfo {
    TapInfo {
        reduction: format!("top:{k}"),
        top_k: Some(k),
        ..tap(folder, StoreDtype::F32, &[k])
    }
}

fn sample(number: u64, tokens: Vec<u32>) -> SampleRow {
    SampleRow {
        sample: number,
        chunk: 0,
        file: "facts.jsonl".into(),
        line: number + 1,
        tokens,
        turns: Vec::new(),
        pieces: Vec::new(),
        kept: Vec::new(),
    }
}

fn rows_of(sample: &SampleRow, positions: impl IntoIterator<Item = usize>) -> TapRows {
    let positions: Vec<usize> = positions.into_iter().collect();
    TapRows {
        tokens: positions.iter().map(|&p| sample.tokens[p] as i32).collect(),
        positions: positions.iter().map(|&p| p as i32).collect(),
    }
}

fn provenance() -> Provenance {
    let model = ModelInfo {
        id: "org/model".into(),
        path: "models/model".into(),
        fingerprint: "abc".into(),
    };
    Provenance {
        model,
        engine_version: "0.1.0".into(),
        job: serde_json::json!({"tap": ["x"]}),
        ..Provenance::default()
    }
}

/// Three samples of 3, 1 and 4 tokens in two shards, under a plain, a ragged and a top-K tap.
fn small_run() -> Run {
    let samples = vec![
        sample(0, vec![5, 6, 7]),
        sample(2, vec![8]),
        sample(3, vec![9, 10, 11, 12]),
    ];
    let taps = vec![
        tap("blocks.0.hook_resid_post", StoreDtype::BF16, &[3]),
        ragged("blocks.0.attn.hook_pattern", 2),
        top("logits", 2),
    ];
    let rows = samples
        .iter()
        .map(|s| taps.iter().map(|_| rows_of(s, 0..s.tokens.len())).collect())
        .collect();
    Run {
        taps,
        keep: Vec::new(),
        samples,
        rows,
        shards: vec![vec![1, 1], vec![1]],
    }
}

/// Some bytes for what `salt` names, always the same.
fn content(salt: (usize, usize, bool), len: usize) -> Vec<u8> {
    let seed = (salt.0 * 1000 + salt.1 * 2 + usize::from(salt.2)) as u64;
    (0..len as u64)
        .map(|i| xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed) as u8)
        .collect()
}

/// The bytes that sample `s` has in tap `t`: activations, and index.
fn bytes_of(run: &Run, t: usize, s: usize) -> (Vec<u8>, Vec<u8>) {
    let (tap, rows) = (&run.taps[t], run.rows[s][t].positions.len());
    let wide = if tap.ragged {
        run.samples[s].tokens.len()
    } else {
        1
    };
    let n = rows * wide * tap.row_shape.iter().product::<usize>() * tap.dtype.size();
    (
        content((t, s, false), n),
        content((t, s, true), rows * 4 * tap.top_k.unwrap_or(0)),
    )
}

/// Writes the first `n_shards` shards.
fn write_shards(dir: &Path, run: &Run, n_shards: usize) -> Result<StoreWriter> {
    let mut writer = StoreWriter::create(dir, provenance(), run.taps.clone(), &run.keep)?;
    let mut start = 0;
    for batches in &run.shards[..n_shards] {
        let n: usize = batches.iter().sum();
        let mut shard =
            writer.begin_shard(&run.samples[start..start + n], &run.rows[start..start + n])?;
        let mut done = 0;
        for &batch in batches {
            for (t, slab) in shard
                .batch_slabs(done..done + batch)
                .into_iter()
                .enumerate()
            {
                let parts: Vec<_> = (start + done..start + done + batch)
                    .map(|s| bytes_of(run, t, s))
                    .collect();
                slab.activations
                    .copy_from_slice(&parts.iter().flat_map(|p| p.0.clone()).collect::<Vec<_>>());
                if let Some(index) = slab.index {
                    index.copy_from_slice(
                        &parts.iter().flat_map(|p| p.1.clone()).collect::<Vec<_>>(),
                    );
                }
            }
            shard.finish_batch(done..done + batch)?;
            done += batch;
        }
        shard.commit()?;
        start += n;
    }
    Ok(writer)
}

fn write(dir: &Path, run: &Run) -> Result<()> {
    write_shards(dir, run, run.shards.len())?.finish(Summary::default())
}

/// A temporary directory with the small run's store in it, at `run`.
fn small_store() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    write(&path, &small_run()).unwrap();
    (dir, path)
}

fn check(dir: &Path) -> Report {
    verify(dir, &|_| ()).unwrap()
}
