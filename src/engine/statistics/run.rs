//! A run that leaves statistics.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::super::extract::{Passing, pass};
use super::super::provenance::{dataset_info, provenance};
use super::super::resume::{Carry, changes, stopped};
use super::super::slice::{Share, refuse_streams};
use super::super::{Error, Extracted, Machine, Options, Prepared, Progress, Result};
use super::keep::{Begun, Keeper, Place, take_up};
use super::sums::{Sums, finish};
use crate::backend::cpu::{GEMM, MOMENT_ROWS};
use crate::store::statistics::{
    Counted, FoundStatistics, Kinds, StatisticsManifest, StatisticsWriter, find_statistics,
};
use crate::store::{Provenance, TapInfo};

/// How a run ended well.
#[derive(Debug)]
pub enum StatisticsEnding {
    Done(Box<(Extracted, StatisticsManifest)>),
    /// The folder was complete before: nothing was run.
    Already(Box<StatisticsManifest>),
}

/// What statistics cost beside the forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StatisticsPlan {
    /// Bytes of the folder's tensors; where there is a label, for two classes.
    pub bytes: u64,
    /// Bytes of memory that the sums take while they are made. Samples that wait for the other one of their pair come on top.
    pub memory: u64,
    /// Floating-point operations of Σ x·xᵀ.
    pub flops: f64,
}

/// What sums of these kinds take, of so many rows of each tap. Half as many pairs.
pub fn plan_statistics(prepared: &Prepared, kinds: &Kinds, rows: &[u64]) -> StatisticsPlan {
    let mut plan = StatisticsPlan::default();
    let classes = match (kinds.of_rows(), &kinds.label) {
        (false, _) => 0,
        (true, None) => 1,
        (true, Some(_)) => 2,
    };
    for (width, &rows) in widths(prepared).into_iter().zip(rows) {
        let width = width as u64;
        let set = |outer: bool| 8 * (1 + width + if outer { width * width } else { 0 });
        let chunk = 4 * width * MOMENT_ROWS as u64;
        let triangle = (width * (width + 1)) as f64;
        plan.bytes += classes * set(kinds.cov);
        plan.memory += classes * chunk;
        if kinds.cov {
            plan.flops += rows as f64 * triangle;
        }
        if kinds.pairdiff {
            plan.bytes += set(true) + set(false);
            plan.memory += 2 * chunk;
            plan.flops += (rows / 2) as f64 * triangle;
        }
    }
    plan.memory += plan.bytes;
    plan
}

/// Components of each tap's rows.
fn widths(prepared: &Prepared) -> Vec<usize> {
    let width = |info: &TapInfo| info.row_shape.iter().product();
    prepared.infos.iter().map(width).collect()
}

/// Refuses taps whose rows have no sums, and sums for which there is no memory.
fn check(prepared: &Prepared, kinds: &Kinds) -> Result<()> {
    for info in &prepared.infos {
        let why = if info.ragged {
            "its rows differ in length"
        } else if info.top_k.is_some() {
            "each of its rows holds other components"
        } else {
            continue;
        };
        return Err(Error::Statistics {
            place: format!("--stats of {}", info.folder),
            why: format!("{why}: leave the tap out, or extract its rows without --stats"),
        }
        .into());
    }
    let needed = plan_statistics(prepared, kinds, &vec![0; prepared.infos.len()]).memory;
    let free = crate::sys::free_memory();
    if free > 0 && needed > free {
        return Err(Error::Statistics {
            place: "--stats".into(),
            why: format!(
                "the sums take {needed} bytes of memory, and {free} are free: tap fewer or narrower hook points at a time, or leave cov out"
            ),
        }
        .into());
    }
    Ok(())
}

/// Runs the job and leaves in `out`, which must be empty or not there, the sums of its rows instead of these; with `options.resume` it goes
/// on with what a stopped run left there. The fields of the label and of the pair must be among the job's kept ones.
///
/// # Errors
/// As extraction's; a tap whose rows have no sums, samples without their label or pair; a command that is not the one that began the
/// folder; [`Error::Stopped`] when it was asked to stop.
pub fn statistics(
    prepared: &Prepared,
    kinds: &Kinds,
    machine: &mut dyn Machine,
    out: &Path,
    options: &Options<'_>,
    report: &mut dyn FnMut(&Progress),
) -> Result<StatisticsEnding> {
    check(prepared, kinds)?;
    let share = Share::of(prepared)?;
    let manifest = StatisticsManifest {
        statistics_version: StatisticsManifest::VERSION,
        provenance: Provenance {
            slice: share.slice,
            write_path: json!({ "path": "statistics" }),
            ..provenance(prepared, machine.identity())
        },
        statistics: kinds.clone(),
        arithmetic: arithmetic(),
        counted: Counted::default(),
        slices: 1,
        timing: Value::Null,
        attempts: 1,
        taps: Vec::new(),
    };
    let started = match begin(prepared, manifest, &share, out, options.resume)? {
        Beginning::Already(manifest) => return Ok(StatisticsEnding::Already(manifest)),
        Beginning::Started(started) => *started,
    };
    let writer = started.writer;
    let begun = Begun::default();
    // Of the first shard alone samples are left out.
    let left_out = Cell::new(started.place.done);
    let mut keeper = Keeper {
        sums: started.sums,
        prepared,
        writer: &writer,
        begun: &begun,
        place: started.place,
        manifest: started.manifest,
        account: json!(started.carry),
        every: options.commit_every.unwrap_or(Duration::from_secs(5)),
        last: Instant::now(),
        took: Duration::ZERO,
    };
    let passing = Passing {
        share: &share,
        carry: started.carry,
        options,
        shard: &|planned| begun.note(planned, left_out.take()),
    };
    let passed = pass(prepared, machine, passing, &mut keeper, report);
    let made = match passed {
        Err(crate::Error::Engine(Error::Stopped { samples, .. })) => {
            let kept = samples > 0 && keeper.checkpoint(machine).map(|()| true)?;
            Err(stopped(samples, kept, &prepared.job).into())
        }
        Err(error) => Err(error),
        Ok((extracted, read)) => match keeper.sums.read(machine) {
            Ok(()) => finished(keeper, extracted, read),
            Err(error) => Err(error),
        },
    };
    let (sums, extracted, manifest) = match made {
        Ok(made) => made,
        Err(error) => {
            writer.abandon();
            return Err(error);
        }
    };
    let mut taps = sums.taps.into_iter();
    let mut sets = |_| Ok(taps.next().map(finish).unwrap_or_default());
    let manifest = writer.publish(manifest, &prepared.infos, &mut sets)?;
    Ok(StatisticsEnding::Done(Box::new((extracted, manifest))))
}

/// Checks what a run that came to its end has summed, and completes the manifest.
fn finished(
    keeper: Keeper<'_>,
    extracted: Extracted,
    (records, skipped): (u64, u64),
) -> Result<(Sums, Extracted, StatisticsManifest)> {
    let Keeper {
        sums,
        prepared,
        mut manifest,
        ..
    } = keeper;
    sums.check_whole()?;
    let fingerprint = prepared.dataset_fingerprint()?;
    manifest.counted = sums.counted;
    manifest.provenance.dataset = dataset_info(prepared, fingerprint, Some(records), skipped);
    manifest.provenance.receipts = extracted.receipts.iter().map(|r| json!(r)).collect();
    manifest.timing = json!({
        "wall_s": extracted.progress.elapsed.as_secs_f64(),
        "compute_s": extracted.computing.as_secs_f64(),
    });
    Ok((sums, extracted, manifest))
}

/// How sums are made, for the manifest: two that say the same have the same bits.
fn arithmetic() -> Value {
    json!({
        "chunk_rows": MOMENT_ROWS,
        "products": GEMM,
        "order": "rows of a set in the order of the dataset, in chunks; f32 within a chunk, about its mean; f64 between chunks",
        "same_for_any_batches": true,
    })
}

/// A run that begins or goes on, or one that has ended before.
enum Beginning {
    Started(Box<Started>),
    Already(Box<StatisticsManifest>),
}

struct Started {
    writer: StatisticsWriter,
    manifest: StatisticsManifest,
    sums: Sums,
    carry: Carry,
    place: Place,
}

fn begin(
    prepared: &Prepared,
    manifest: StatisticsManifest,
    share: &Share,
    out: &Path,
    resume: bool,
) -> Result<Beginning> {
    let sums = Sums::new(&manifest.statistics, &prepared.job.keep, widths(prepared));
    let new = |writer, manifest, sums| {
        let carry = Carry::new(prepared, share);
        let place = Place {
            start: carry.read.clone(),
            done: 0,
        };
        Beginning::Started(Box::new(Started {
            writer,
            manifest,
            sums,
            carry,
            place,
        }))
    };
    if !resume {
        return Ok(new(StatisticsWriter::create(out)?, manifest, sums));
    }
    refuse_streams(&prepared.job.dataset_in_order(false)?, "--resume")?;
    let (writer, checkpoint) = match find_statistics(out)? {
        FoundStatistics::Nothing => {
            return Ok(new(StatisticsWriter::create(out)?, manifest, sums));
        }
        FoundStatistics::Complete(then) => {
            refuse_other(&then, &manifest, prepared, out)?;
            return Ok(Beginning::Already(then));
        }
        FoundStatistics::Unfinished(writer, None) => return Ok(new(writer, manifest, sums)),
        FoundStatistics::Unfinished(writer, Some(checkpoint)) => (writer, *checkpoint),
    };
    refuse_other(&checkpoint.manifest, &manifest, prepared, out)?;
    let manifest = StatisticsManifest {
        attempts: checkpoint.manifest.attempts.saturating_add(1),
        ..manifest
    };
    let (carry, place, sums) = take_up(checkpoint, sums, prepared, out)?;
    Ok(Beginning::Started(Box::new(Started {
        writer,
        manifest,
        sums,
        carry,
        place,
    })))
}

/// Refuses to go on with statistics that this command did not begin.
fn refuse_other(
    then: &StatisticsManifest,
    now: &StatisticsManifest,
    prepared: &Prepared,
    out: &Path,
) -> Result<()> {
    let fingerprint = prepared.dataset_fingerprint()?;
    let infos: Vec<TapInfo> = then.taps.iter().map(|tap| tap.info.clone()).collect();
    let mut what = changes(
        (&then.provenance, &infos),
        &now.provenance,
        prepared,
        fingerprint.as_deref(),
    );
    if then.statistics != now.statistics {
        what.push(format!(
            "--stats was {} and is {}",
            json!(then.statistics),
            json!(now.statistics)
        ));
    }
    if then.arithmetic != now.arithmetic {
        what.push("its sums were made in another way".into());
    }
    if what.is_empty() {
        return Ok(());
    }
    Err(Error::Changed {
        dir: out.display().to_string(),
        what: what.join("; "),
    }
    .into())
}
