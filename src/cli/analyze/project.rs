//! `streamgauge analyze project`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::progress::StepMeter;
use super::super::{CliResult, Failure, out};
use super::labelled::make_out;
use super::pictures;
use super::rows::{self, RowKey, width};
use crate::analysis::project::{dot, mean_and_deviation};
use crate::report::table;
use crate::store::Store;

/// Project every row of each tap on a direction.
///
/// Written to --out: projections.csv, a line per row: tap, sample, position, token, projection (x · d, d as the file holds it) and z, the projection less
/// its mean over the tap's rows, in standard deviations.
#[derive(Debug, Args)]
pub struct ProjectArgs {
    /// The store.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The direction: FILE.safetensors#KEY, or FILE alone, which then holds direction.LAYER for each tap's layer, or a single tensor.
    #[arg(long, value_name = "FILE#KEY")]
    direction: String,
    /// Where the results go; files of the same names are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these taps: a folder, a hook point, or a pattern such as 'blocks.*.hook_resid_post'.
    #[arg(long, value_name = "P", num_args = 1..)]
    tap: Vec<String>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, serde::Serialize)]
struct Row<'a> {
    tap: &'a str,
    sample: i64,
    position: i32,
    token: i32,
    projection: f64,
    z: f64,
}

#[derive(Debug, serde::Serialize)]
struct Summary {
    tap: String,
    rows: usize,
    mean: f64,
    deviation: f64,
    min: f64,
    max: f64,
}

/// The projections of a tap's rows, and who they are.
pub fn projections(
    store: &Store,
    tap: usize,
    named: &str,
    meter: &StepMeter,
) -> Result<(Vec<RowKey>, Vec<f64>), Failure> {
    let reader = store.tap_at(tap);
    let direction = rows::direction(named, store, reader.info())?;
    let mut values = Vec::with_capacity(reader.rows());
    rows::pieces(&reader, meter, |_, rows| {
        values.extend(
            rows.chunks_exact(width(reader.info()))
                .map(|row| dot(row, &direction)),
        );
        Ok(())
    })?;
    Ok((rows::keys(&reader)?, values))
}

pub fn run(args: &ProjectArgs) -> CliResult {
    let store = Store::open(&args.store)?;
    let taps = rows::taps(&store, &args.tap, "projected")?;
    make_out(&args.out)?;
    let path = args.out.join("projections.csv");
    let mut csv = table::Lines::create(&path)?;
    let mut summaries = Vec::new();
    let meter = rows::meter(&store, taps.iter().copied(), args.quiet);
    for &tap in &taps {
        let (keys, values) = projections(&store, tap, &args.direction, &meter)?;
        let (mean, deviation) = mean_and_deviation(&values);
        let folder = &store.taps()[tap].folder;
        for (key, &projection) in keys.iter().zip(&values) {
            let z = if deviation > 0.0 {
                (projection - mean) / deviation
            } else {
                0.0
            };
            csv.write(&Row {
                tap: folder,
                sample: key.sample,
                position: key.position,
                token: key.token,
                projection,
                z,
            })?;
        }
        summaries.push(Summary {
            tap: folder.clone(),
            rows: values.len(),
            mean,
            deviation,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        });
    }
    meter.done();
    csv.finish()?;
    let spread = |s: &Summary| [s.mean - s.deviation, s.mean + s.deviation];
    let taps: Vec<_> = summaries
        .iter()
        .map(|s| (&s.tap[..], s.mean, spread(s)))
        .collect();
    let body = pictures::by_tap(pictures::axis("projection", ""), &taps);
    let caption = "Mean projection of each tap's rows, and one standard deviation to either side";
    pictures::save(&args.out, "projections", caption, body)?;
    if args.json {
        out(format_args!(
            "{}\n",
            json!({ "out": path, "taps": summaries })
        ));
        return Ok(());
    }
    out("    rows       mean  deviation        min        max  tap\n");
    for s in &summaries {
        out(format_args!(
            "{:>8} {:>10.4} {:>10.4} {:>10.4} {:>10.4}  {}\n",
            s.rows, s.mean, s.deviation, s.min, s.max, s.tap
        ));
    }
    out(format_args!("{}\n", path.display()));
    Ok(())
}
