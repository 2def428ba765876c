//! A kept field may turn out, in a later shard, to be of a wider type than the first shard had it: a fraction among what were
//! integers. The column is then widened in the earlier shards too, so that it has one type in the whole store. A committed file
//! never changes: each earlier table is written once more beside the old one, under a name of its own, and the manifest that lists
//! the new ones is the same that commits the later shard.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::manifest::{KeptColumn, Manifest, PARTIAL, SAMPLES, SamplesFile, ShardEntry, sync_dir};
use super::reader::read_samples;
use super::samples::{KeptType, RowRange, SamplesTable, kept_columns};
use super::writer::write_table;

/// Gives the manifest the columns `keep`, and new tables to all its shards if that is a change of type. The files that it then does not
/// list any more, to be removed once it is published.
pub(super) fn widen_tables(
    root: &Path,
    manifest: &mut Manifest,
    keep: &[KeptColumn],
) -> Result<Vec<PathBuf>> {
    let mut old = Vec::new();
    if manifest.keep != keep && !manifest.shards.is_empty() {
        let mut tables = Vec::new();
        for shard in &manifest.shards {
            let to = next_name(&shard.samples_file.file);
            tables.push(rewrite_table(root, manifest, shard, keep, root, to)?);
        }
        sync_dir(&root.join(SAMPLES))?;
        for (shard, table) in manifest.shards.iter_mut().zip(tables) {
            old.push(root.join(&shard.samples_file.file));
            shard.samples_file = table;
        }
    }
    manifest.keep = keep.to_vec();
    Ok(old)
}

/// `samples/00003.parquet`, `samples/00003.1.parquet`, `samples/00003.2.parquet`, …
fn next_name(file: &str) -> String {
    let stem = file.strip_suffix(".parquet").unwrap_or(file);
    let (shard, times) = match stem.rsplit_once('.') {
        Some((shard, times)) => (shard, times.parse().unwrap_or(0u32)),
        None => (stem, 0),
    };
    format!("{shard}.{}.parquet", times.saturating_add(1))
}

/// Writes the table of a shard of the store at `root` with the kept columns `keep`, as `file` of the store at `to`, by way of that
/// one's `.partial/`.
pub(super) fn rewrite_table(
    root: &Path,
    manifest: &Manifest,
    shard: &ShardEntry,
    keep: &[KeptColumn],
    to: &Path,
    file: String,
) -> Result<SamplesFile> {
    let read = read_samples(root, manifest, shard)?;
    // A column without a type has no value yet.
    let keep: Vec<(String, KeptType)> = keep
        .iter()
        .map(|c| (c.name.clone(), c.kind.unwrap_or(KeptType::Text)))
        .collect();
    let kept = kept_columns(&keep, &read.samples)?;
    let taps: Vec<_> = manifest.taps.iter().map(|t| t.folder.as_str()).collect();
    if read.selections.iter().any(|s| s.len() != taps.len()) {
        let path = root.join(&shard.samples_file.file);
        return Err(Error::damaged(&path, "its selections are not one per tap"));
    }
    let rows = |t: usize, i: usize| -> RowRange { read.selections[i][t].1 };
    let table = SamplesTable {
        keep: &keep,
        samples: &read.samples,
        kept: &kept,
        taps: &taps,
        rows: &rows,
    };
    let temp = to.join(PARTIAL).join("table.parquet");
    let (bytes, xxh3) = write_table(&temp, &table, 0)?;
    let path = to.join(&file);
    std::fs::rename(&temp, &path).map_err(|e| Error::write(&path, 0, 0, e))?;
    Ok(SamplesFile {
        file,
        rows: shard.samples_file.rows,
        bytes,
        xxh3,
    })
}

/// The narrowest type that holds columns of both.
pub(super) fn join(a: Option<KeptType>, b: Option<KeptType>) -> Option<KeptType> {
    use KeptType::{Float, Int, Text};
    match (a, b) {
        (None, other) | (other, None) => other,
        (Some(a), Some(b)) if a == b => Some(a),
        (Some(Int), Some(Float)) | (Some(Float), Some(Int)) => Some(Float),
        _ => Some(Text),
    }
}
