//! Rechecks a whole store: its structure, every checksum, and what the manifest's, the tables' and the files' accounts of it have in common.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::error::{Error, Result};
use super::layout::side_parts;
use super::manifest::{Checksum, MANIFEST, Manifest, PARTIAL, ShardEntry, State, TapFile, Xxh3};
use super::reader::read_samples;
use super::view::ShardView;

/// What [`verify`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub state: State,
    /// Files checked, and their bytes.
    pub files: usize,
    pub bytes: u64,
    /// Damage: one line each, naming the file.
    pub problems: Vec<String>,
    /// What is odd but harms no reader, such as files that the manifest does not list.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether every listed file is as it was written.
    pub fn ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Rechecks the store at `dir`, on all threads. `progress` is told the bytes of each file when it is done; it may be called from several threads.
///
/// # Errors
/// There is no manifest to check the rest against, or it does not hold together. Everything else is in the report.
pub fn verify(dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Report> {
    let manifest = Manifest::read(dir)?;
    let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
    let shards = manifest.shards.iter();
    let tap_files: Vec<_> = shards
        .flat_map(|s| (0..manifest.taps.len()).map(move |t| (s, t)))
        .collect();
    let of_file = |&(shard, tap): &(&ShardEntry, usize)| {
        let problems =
            check_tap_file(&root, &manifest, shard, tap).unwrap_or_else(|e| vec![told(&root, e)]);
        progress(shard.taps[tap].bytes);
        problems
    };
    let of_table = |shard: &ShardEntry| {
        let problems =
            check_table(&root, &manifest, shard).unwrap_or_else(|e| vec![told(&root, e)]);
        progress(shard.samples_file.bytes);
        problems
    };
    let mut problems: Vec<String> = tap_files.par_iter().flat_map_iter(of_file).collect();
    problems.par_extend(manifest.shards.par_iter().flat_map_iter(of_table));

    let listed: HashSet<&str> = manifest
        .shards
        .iter()
        .flat_map(|s| {
            s.taps
                .iter()
                .map(|t| &*t.file)
                .chain([&*s.samples_file.file])
        })
        .collect();
    let bytes = manifest
        .shards
        .iter()
        .flat_map(|s| s.taps.iter().map(|t| t.bytes).chain([s.samples_file.bytes]));
    Ok(Report {
        state: manifest.state,
        files: listed.len(),
        bytes: bytes.fold(0, u64::saturating_add),
        problems,
        warnings: warnings(&root, &manifest, &listed),
    })
}

/// An error as a problem of the report: its file by its path in the store, as in every other problem.
fn told(root: &Path, error: Error) -> String {
    match error {
        Error::Damaged { path, what } => {
            format!(
                "{}: {what}",
                path.strip_prefix(root).unwrap_or(&path).display()
            )
        }
        other => other.to_string(),
    }
}

fn check_tap_file(
    root: &Path,
    manifest: &Manifest,
    shard: &ShardEntry,
    tap: usize,
) -> Result<Vec<String>> {
    let entry = &shard.taps[tap];
    let view = Arc::new(ShardView::open(
        root,
        &Arc::new(manifest.taps[tap].clone()),
        shard,
        tap,
        0,
    )?);
    let mut problems = Vec::new();
    let mut parts = vec!["header", "activations", "sample", "position", "token"];
    let sides = side_parts(&manifest.taps[tap]);
    parts.extend(sides.iter().map(|side| side.name));
    parts.extend(manifest.taps[tap].order_seed.map(|_| "order"));
    for part in parts {
        match entry.checksums.iter().find(|c| c.part == part) {
            Some(checksum) => problems.extend(check_part(&view, shard, entry, checksum)),
            None => problems.push(format!(
                "{}: the manifest has no checksum of `{part}`",
                entry.file
            )),
        }
    }
    problems.extend(view.order().err().map(|e| told(root, e)));
    if view.loss_sums() != entry.loss {
        problems.push(format!(
            "{}: the loss that the manifest tells is not that of its rows",
            entry.file
        ));
    }
    Ok(problems)
}

/// Recomputes one checksum of a tap's file.
fn check_part(
    view: &ShardView,
    shard: &ShardEntry,
    entry: &TapFile,
    checksum: &Checksum,
) -> Vec<String> {
    let file = &entry.file;
    let part = &checksum.part;
    let Some(range) = view.part(part) else {
        return vec![format!("{file}: no part `{part}`")];
    };
    let bytes = &view.bytes()[range.clone()];
    let Some(batches) = &checksum.batches else {
        let good = Xxh3::of(bytes) == checksum.xxh3;
        return if good {
            vec![]
        } else {
            vec![format!(
                "{file}: `{part}` is not what was written (its checksum differs)"
            )]
        };
    };
    let mut problems = Vec::new();
    if Xxh3::of_batches(batches) != checksum.xxh3 {
        problems.push(format!(
            "{file}: the manifest's checksums of `{part}` contradict each other"
        ));
    }
    let row = if entry.rows == 0 {
        0
    } else {
        bytes.len() / entry.rows as usize
    };
    let (mut row_start, mut sample_start) = (0usize, 0usize);
    for (b, ((&expected, &rows), &samples)) in batches
        .iter()
        .zip(&entry.batch_rows)
        .zip(&shard.batches)
        .enumerate()
    {
        // Both add up to the shard's, as was checked when the manifest was read.
        let (row_end, sample_end) = (row_start + rows as usize, sample_start + samples as usize);
        let batch = match view.info().ragged {
            true => view
                .ragged_bytes(sample_start..sample_end)
                .map(|r| &view.bytes()[r])
                .unwrap_or_default(),
            false => &bytes[row_start * row..row_end * row],
        };
        if Xxh3::of(batch) != expected {
            let last = sample_end.saturating_sub(1);
            problems.push(format!("{file}: `{part}` is not what was written in batch {b} (samples {sample_start} to {last} of the shard, its checksum differs)"));
        }
        (row_start, sample_start) = (row_end, sample_end);
    }
    problems
}

/// Reads a samples table and checks that it and the tap files speak of the same rows.
fn check_table(root: &Path, manifest: &Manifest, shard: &ShardEntry) -> Result<Vec<String>> {
    let file = &shard.samples_file.file;
    let table = read_samples(root, manifest, shard)?;
    let mut next = vec![0u64; manifest.taps.len()];
    for (i, selections) in table.selections.iter().enumerate() {
        let named = selections.len() == next.len()
            && selections
                .iter()
                .zip(&manifest.taps)
                .all(|((name, _), tap)| **name == tap.folder);
        if !named
            || !selections
                .iter()
                .zip(&next)
                .all(|((_, range), &next)| range.start == next)
        {
            return Ok(vec![format!(
                "{file}: the selections of its row {i} do not follow those before it"
            )]);
        }
        for (next, (_, range)) in next.iter_mut().zip(selections) {
            *next = next.saturating_add(range.rows);
        }
    }
    let wrong = shard
        .taps
        .iter()
        .zip(&next)
        .filter(|(tap, rows)| tap.rows != **rows);
    Ok(wrong
        .map(|(tap, rows)| {
            format!(
                "{file}: counts {rows} rows in {}, which has {}",
                tap.file, tap.rows
            )
        })
        .collect())
}

/// An unfinished run, and files that the manifest does not list. `.partial/` belongs to a run that has not ended.
fn warnings(root: &Path, manifest: &Manifest, listed: &HashSet<&str>) -> Vec<String> {
    let mut warnings = Vec::new();
    if manifest.state == State::Partial {
        warnings.push(
            "partial: the run that wrote this store did not finish (its command goes on with --resume); what it committed was checked"
                .to_string(),
        );
    }
    let mut unlisted = |path: &str| {
        if !listed.contains(path) && path != MANIFEST {
            warnings.push(format!(
                "{path}: not listed in the manifest, so not part of the store"
            ));
        }
    };
    let entries = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        names
    };
    for entry in entries(root) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link to a folder is not followed: what lies behind it is not the store's.
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            unlisted(&name);
        } else if name != PARTIAL {
            entries(&entry.path())
                .iter()
                .for_each(|e| unlisted(&format!("{name}/{}", e.file_name().to_string_lossy())));
        } else if manifest.state == State::Complete {
            unlisted(&name);
        }
    }
    warnings
}
