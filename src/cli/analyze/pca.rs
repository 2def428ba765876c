//! `streamgauge analyze pca`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::job_args::at_least_one;
use super::super::progress::StepMeter;
use super::super::{CliResult, Failure, out, store_taps};
use super::labelled::{make_out, source, source_of};
use super::pictures;
use super::rows::{self, width};
use super::summed;
use crate::analysis::{Moments, principal};
use crate::report::table;
use crate::store::statistics::{Statistics, StatisticsManifest};
use crate::store::{Store, TapInfo};

/// Find the directions in which the rows of each tap vary most.
///
/// Components of the covariance of all rows, taken about their mean; rows are read a piece at a time, so the store may be larger than memory.
/// Token 0 of many models carries components a thousand times as large as any other: extract with '@no-bos' or another selection, or it is all that is found.
///
/// Written to --out: variance.csv, .svg and .png (per tap and component: variance and share), and components.safetensors with
/// `components.FOLDER` [K, width] of unit norm, the component of largest size positive, and `mean.FOLDER` [width].
#[derive(Debug, Args)]
pub struct PcaArgs {
    /// The store, or the folder that `extract --stats cov` left.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Where the results go; files of the same names are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these taps: a folder, a hook point, or a pattern such as 'blocks.*.hook_resid_post'.
    #[arg(long, value_name = "P", num_args = 1..)]
    tap: Vec<String>,
    /// How many components.
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = at_least_one::<usize>)]
    components: usize,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    tap: String,
    layer: Option<usize>,
    rows: usize,
    component: usize,
    variance: f64,
    share: f64,
    cumulative: f64,
}

/// One tap's moments.
struct OfTap {
    info: TapInfo,
    moments: Moments,
}

pub fn run(args: &PcaArgs) -> CliResult {
    if StatisticsManifest::is_in(&args.store) {
        let statistics = Statistics::open(&args.store)?;
        let taps = summed::taps(&statistics, &args.tap)?;
        let source = source_of(&statistics.manifest().provenance, &args.store);
        return analyse(args, &source, taps.len(), |i| {
            Ok(OfTap {
                info: statistics.taps()[taps[i]].info.clone(),
                moments: summed::all_rows(&statistics, taps[i])?,
            })
        });
    }
    let store = Store::open(&args.store)?;
    let taps = rows::taps(&store, &args.tap, "analysed by components")?;
    let meter = rows::meter(&store, taps.iter().copied(), args.quiet);
    analyse(args, &source(&store, &args.store), taps.len(), |i| {
        of_rows(&store, taps[i], &meter)
    })
}

fn of_rows(store: &Store, tap: usize, meter: &StepMeter) -> Result<OfTap, Failure> {
    let reader = store.tap_at(tap);
    let info = reader.info();
    let mut moments = Moments::new(width(info));
    rows::pieces(&reader, meter, |_, rows| {
        moments.add(rows);
        Ok(())
    })?;
    Ok(OfTap {
        info: info.clone(),
        moments,
    })
}

/// Finds the components of one tap after the other, writes and prints them.
fn analyse(
    args: &PcaArgs,
    source: &serde_json::Value,
    taps: usize,
    of_tap: impl Fn(usize) -> Result<OfTap, Failure>,
) -> CliResult {
    let mut table: Vec<Row> = Vec::new();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut folders = Vec::new();
    for tap in 0..taps {
        let OfTap { info, moments } = of_tap(tap)?;
        let found = moments.principal(args.components, &info.folder)?;
        let mut cumulative = 0.0;
        for (component, &variance) in found.values.iter().enumerate() {
            let share = principal::share(variance, found.total);
            cumulative += share;
            table.push(Row {
                tap: info.folder.clone(),
                layer: store_taps::layer(&info.hook),
                rows: moments.n(),
                component,
                variance,
                share,
                cumulative,
            });
        }
        let flat = |vectors: &[Vec<f64>]| vectors.iter().flatten().map(|&x| x as f32).collect();
        let shape = vec![found.directions.len(), width(&info)];
        tensors.push((
            format!("components.{}", info.folder),
            shape,
            flat(&found.directions),
        ));
        tensors.push((
            format!("mean.{}", info.folder),
            vec![width(&info)],
            flat(&[moments.mean()]),
        ));
        folders.push(info.folder);
    }
    make_out(&args.out)?;
    table::write_csv(&args.out.join("variance.csv"), &table)?;
    draw(args, &folders, &table)?;
    let provenance = json!({ "method": "pca", "source": source });
    crate::analysis::directions::save_tensors(
        &args.out.join("components.safetensors"),
        &tensors,
        &provenance,
    )?;
    tell(args, &table);
    Ok(())
}

fn tell(args: &PcaArgs, table: &[Row]) {
    if args.json {
        out(format_args!(
            "{}\n",
            json!({ "out": args.out, "components": table })
        ));
        return;
    }
    out("component  share  cumulative  tap\n");
    for row in table {
        out(format_args!(
            "{:>9}  {:.3}       {:.3}  {}\n",
            row.component, row.share, row.cumulative, row.tap
        ));
    }
    for file in ["variance.csv", "components.safetensors"] {
        out(format_args!("{}\n", args.out.join(file).display()));
    }
}

/// The shares, tap by component.
fn draw(args: &PcaArgs, taps: &[String], table: &[Row]) -> CliResult {
    let shares = |tap: &String| -> Vec<f64> {
        let rows = table.iter().filter(|row| row.tap == *tap);
        rows.map(|row| row.share).collect()
    };
    let values: Vec<Vec<f64>> = taps.iter().map(shares).collect();
    let components = values.iter().map(Vec::len).max().unwrap_or(0);
    if values.iter().any(|row| row.len() != components) {
        return Ok(()); // taps of other widths have other numbers of components
    }
    let numbers = (0..components).map(|i| i.to_string()).collect();
    let body = pictures::heatmap(
        ("tap", taps.to_vec()),
        ("component", numbers),
        values,
        pictures::axis("share of the variance", ""),
    );
    let caption = "Share of each tap's variance that lies along its leading components";
    pictures::save(&args.out, "variance", caption, body)
}
