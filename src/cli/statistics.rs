//! `streamgauge extract --stats`: sums instead of rows.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use super::extract::{ExtractArgs, receipts};
use super::job_args::JobArgs;
use super::model_args::told;
use super::progress::Meter;
use super::{CliResult, Failure, Usage, format, out};
use crate::engine::{Error, Extracted, Options, StatisticsEnding, statistics};
use crate::store::statistics::{Kinds, Statistics, StatisticsManifest};
use crate::sys::stop;

/// A statistic that `--stats` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatArg {
    Mean,
    Cov,
    Pairdiff,
}

impl JobArgs {
    /// What `--stats` asks for, if it was given.
    pub(super) fn kinds(&self) -> Option<Kinds> {
        let asked = |stat| self.stats.contains(&stat);
        (!self.stats.is_empty()).then(|| Kinds {
            mean: asked(StatArg::Mean) || asked(StatArg::Cov),
            cov: asked(StatArg::Cov),
            pairdiff: asked(StatArg::Pairdiff),
            label: self.label.clone(),
            pair: asked(StatArg::Pairdiff).then(|| self.pair.clone().unwrap_or("pair".into())),
        })
    }

    /// Fields that samples carry along.
    pub(super) fn kept(&self) -> Vec<String> {
        match self.kinds() {
            None => self.keep.clone(),
            Some(kinds) => {
                let mut fields: Vec<String> = kinds.label.into_iter().chain(kinds.pair).collect();
                fields.dedup();
                fields
            }
        }
    }

    /// Flags that make no sense with `--stats`, or without it.
    pub(super) fn refuse_with_stats(&self) -> Result<(), Usage> {
        let stats = !self.stats.is_empty();
        let pairs = self.stats.contains(&StatArg::Pairdiff);
        let refused = [
            (
                stats && !self.keep.is_empty(),
                "--keep with --stats: no table of the samples is written; leave it out",
            ),
            (
                stats && self.store_dtype != super::job_args::StoreDtypeArg::Same,
                "--store-dtype with --stats: no rows are stored, and sums are f64; leave it out",
            ),
            (
                self.label.is_some() && self.pack_context.is_some(),
                "--label with --pack-context: a context has several documents; leave one of them out",
            ),
            (
                pairs && self.pack_context.is_some(),
                "--stats pairdiff with --pack-context: a context has several documents; leave one of them out",
            ),
            (
                pairs && self.label.is_none(),
                "--stats pairdiff without --label FIELD: name the field that tells the true sample of a pair from the false one",
            ),
            (
                !pairs && self.pair.is_some(),
                "--pair without --stats pairdiff: no pairs are made",
            ),
            (
                pairs && self.label == Some(self.pair.clone().unwrap_or("pair".into())),
                "--label and --pair are one field: the two samples of a pair share the one and differ in the other",
            ),
            (
                pairs && self.shard.is_some(),
                "--stats pairdiff with --shard: the two samples of a pair may lie in two slices; run it in one",
            ),
        ];
        let asked = refused.into_iter().find(|(asked, _)| *asked);
        asked.map_or(Ok(()), |(_, what)| Err(Usage(what.into())))
    }
}

/// Runs the job and keeps its statistics.
pub(super) fn run(args: &ExtractArgs, kinds: &Kinds) -> CliResult {
    let Some(dir) = &args.job.out else {
        return Err(Usage("--out DIR is missing: say where the statistics go".into()).into());
    };
    if args.devices.is_some() {
        let what = "--stats with --devices: run the slices one by one with --shard i/n, and join them with merge";
        return Err(Usage(what.into()).into());
    }
    let (mut prepared, place) = args.job.open()?;
    prepared.trace = args.begin_trace()?;
    // What is gone on with is computed as it was begun: by the same library's algorithm, on a GPU.
    let begun = args
        .job
        .resume
        .then(|| StatisticsManifest::begun(dir))
        .flatten();
    let record = begun.map(|manifest| manifest.provenance.numeric_record);
    let mut opened = place.open(&prepared, record.as_ref())?;
    if let Some(line) = told(&place, &opened).filter(|_| !args.quiet) {
        eprintln!("{line}");
    }
    stop::on_signals().map_err(|e| Failure::Refused(format!("cannot take signals: {e}")))?;
    let mut meter = Meter::of(args.progress, args.quiet);
    let options = Options {
        commit_every: Some(Duration::from_secs_f64(args.commit_every)),
        stop: &|| stop::asked().is_some(),
        resume: args.job.resume,
    };
    let machine = &mut *opened.machine;
    let ending = statistics(&prepared, kinds, machine, dir, &options, &mut |progress| {
        meter.show(progress);
    });
    meter.done();
    args.write_trace(&prepared)?;
    let ending = ending.map_err(|error| match (error, stop::asked()) {
        (crate::Error::Engine(error @ Error::Stopped { .. }), Some(status)) => {
            Failure::Stopped(error.to_string(), status)
        }
        (error, _) => error.into(),
    })?;
    let (extracted, manifest) = match ending {
        StatisticsEnding::Done(done) => *done,
        StatisticsEnding::Already(manifest) => return recheck(dir, &manifest, args),
    };
    args.tell_of_skipped(&extracted);
    if args.json {
        out(format_args!(
            "{}\n",
            summary_json(&extracted, &manifest, dir)
        ));
    } else if !args.quiet {
        out(summary(&extracted, &manifest, dir));
    }
    Ok(())
}

/// `--resume` of statistics that are complete: there is nothing to run, and their files are rechecked.
fn recheck(dir: &Path, manifest: &StatisticsManifest, args: &ExtractArgs) -> CliResult {
    let bytes = Statistics::open(dir)?.check()?;
    if args.json {
        let value = serde_json::json!({
            "statistics": dir,
            "already_complete": true,
            "samples": manifest.counted.samples,
            "files": manifest.taps.len(),
            "bytes": bytes,
        });
        out(format_args!("{value}\n"));
    } else if !args.quiet {
        out(format_args!(
            "{} was complete already: {}, {} bytes, every checksum agrees\n",
            dir.display(),
            format::counted(manifest.taps.len() as u64, "file"),
            format::count(bytes)
        ));
    }
    Ok(())
}

fn summary(done: &Extracted, manifest: &StatisticsManifest, dir: &Path) -> String {
    let p = &done.progress;
    let seconds = p.elapsed.as_secs_f64();
    let taps = &manifest.taps;
    format!(
        "{}, {}, {} in {} ({} tokens/s)\nsums of {} ({}) in {}\n{}{}\n",
        format::counted(manifest.counted.samples, "sample"),
        format::counted(manifest.counted.tokens, "token"),
        format::counted(done.rows.iter().sum(), "row"),
        format::duration(seconds),
        format::count((p.tokens.saturating_sub(p.resumed.1) as f64 / seconds.max(1e-9)) as u64),
        format::counted(taps.len() as u64, "tap"),
        sets(manifest).join(", "),
        format::bytes(taps.iter().map(|tap| tap.bytes).sum()),
        receipts(&done.receipts),
        dir.display(),
    )
}

/// The sets of the first tap, which are every tap's, and how many rows each has there.
fn sets(manifest: &StatisticsManifest) -> Vec<String> {
    let first = manifest.taps.first();
    let sets = first.into_iter().flat_map(|tap| &tap.sets);
    sets.map(|set| format!("{} {}", set.name, format::count(set.count)))
        .collect()
}

fn summary_json(done: &Extracted, manifest: &StatisticsManifest, dir: &Path) -> serde_json::Value {
    let p = &done.progress;
    serde_json::json!({
        "statistics": dir,
        "samples": manifest.counted.samples,
        "resumed_samples": p.resumed.0,
        "tokens": manifest.counted.tokens,
        "rows": done.rows,
        "bytes": manifest.taps.iter().map(|tap| tap.bytes).sum::<u64>(),
        "wall_s": p.elapsed.as_secs_f64(),
        "compute_s": done.computing.as_secs_f64(),
        "skipped": done.skipped,
        "skip_reasons": done.skip_reasons,
        "clipped_rows": done.clipped,
        "edits": done.receipts,
    })
}
