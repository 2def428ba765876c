//! Adds up the statistics of a dataset's slices.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::error::{Error, Result};
use super::super::merge::{Described, JoinReceipts, check_job, check_whole, whole_provenance};
use super::folder::StatisticsWriter;
use super::manifest::{Counted, StatisticsManifest};
use super::moments::TapSets;
use super::reader::Statistics;

/// Adds up the statistics in `dirs`, in whatever order they are named, into a new folder `out`. Counts are exact; sums are f64 sums of the
/// slices' sums in the slices' order, and since chunks begin anew at each slice their last bits may differ from those of one run.
///
/// # Errors
/// They are not the slices of one dataset under one job, each once and none missing; a damaged file; a tap without rows in any; and the
/// disk's. Nothing is left behind then.
pub fn merge_statistics(
    out: &Path,
    dirs: &[PathBuf],
    receipts: JoinReceipts<'_>,
) -> Result<StatisticsManifest> {
    let mut slices = Vec::new();
    for dir in dirs {
        let slice = Statistics::open(dir)?;
        if slice.manifest().provenance.slice.is_none() {
            return Err(Error::Merge(format!(
                "{} is no slice of a dataset: it was made without --shard",
                dir.display()
            )));
        }
        slices.push((dir, slice));
    }
    slices.sort_by_key(|(_, s)| s.manifest().provenance.slice.map_or(0, |slice| slice.index));
    let described: Vec<Described<'_>> = slices
        .iter()
        .map(|(dir, slice)| Described {
            dir,
            provenance: &slice.manifest().provenance,
            taps: json!(slice.infos()),
            kept: json!([slice.manifest().statistics, slice.manifest().arithmetic]),
        })
        .collect();
    check_job(&described)?;
    check_whole(&described)?;
    let manifest = whole(&slices, receipts);
    let infos = slices[0].1.infos();
    let writer = StatisticsWriter::create(out)?;
    let mut sets = |tap: usize| added(&slices, tap);
    writer
        .publish(manifest, &infos, &mut sets)
        .inspect_err(|_| {
            for info in &infos {
                let _ = std::fs::remove_file(out.join(super::manifest::file_of(info)));
            }
            let _ = std::fs::remove_dir_all(out.join(super::super::manifest::PARTIAL));
            let _ = std::fs::remove_dir(out);
        })
}

/// The manifest of the whole, without its taps.
fn whole(slices: &[(&PathBuf, Statistics)], receipts: JoinReceipts<'_>) -> StatisticsManifest {
    let each = || slices.iter().map(|(_, s)| s.manifest());
    let of_each: Vec<_> = each().map(|m| &m.provenance).collect();
    StatisticsManifest {
        provenance: whole_provenance(&of_each, receipts),
        counted: Counted {
            samples: each().map(|m| m.counted.samples).sum(),
            tokens: each().map(|m| m.counted.tokens).sum(),
        },
        slices: each().map(|m| m.slices).sum(),
        timing: json!({ "slices": each().map(|m| m.timing.clone()).collect::<Vec<_>>() }),
        attempts: each().map(|m| m.attempts).sum(),
        taps: Vec::new(),
        ..slices[0].1.manifest().clone()
    }
}

/// A tap's sums over all slices. A class that a slice has not counts as one without rows.
fn added(slices: &[(&PathBuf, Statistics)], tap: usize) -> Result<TapSets> {
    let mut whole = TapSets::new();
    for (dir, slice) in slices {
        for (set, moments) in slice.sets(tap)? {
            let fits = match whole.get_mut(&set) {
                Some(sum) => sum.add(&moments).is_some(),
                None => whole.insert(set, moments).is_none(),
            };
            if !fits {
                let folder = &slice.taps()[tap].info.folder;
                let what = format!("{}: sums of {folder} that do not add up", dir.display());
                return Err(Error::Merge(what));
            }
        }
    }
    if whole.values().all(|moments| moments.count == 0) {
        let info = &slices[0].1.taps()[tap].info;
        return Err(Error::Merge(format!(
            "tap {}@{} has no row in any of the slices: its selection picked nothing in the whole dataset",
            info.hook, info.selection
        )));
    }
    Ok(whole)
}
