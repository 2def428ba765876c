//! `streamgauge inspect`

pub mod one_sample;
mod statistics;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use self::statistics::Statistics;
use super::{CliResult, Failure, format, out, store_taps};
use crate::compact::Loss;
use crate::store::{Manifest, State, Store, TapInfo};

/// Tell what a store holds: model, dataset, samples, and every tap with its rows and bytes.
///
/// --tap looks at some taps only and gives their statistics, --stats those of all; they are taken over finite numbers, in
/// float64, a piece at a time, so a store may be larger than memory. --sample shows one sample: its tokens, turns, kept
/// fields, and its rows in every tap. The store of a run that did not finish is shown too, and called partial.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The store.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only these taps: a folder, a hook point, or a pattern such as 'blocks.*.hook_resid_post'.
    #[arg(long, value_name = "P", num_args = 1..)]
    tap: Vec<String>,
    /// Statistics of every tap shown.
    #[arg(long, conflicts_with = "sample")]
    stats: bool,
    /// The sample with this number in the dataset.
    #[arg(long, value_name = "N")]
    sample: Option<u64>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InspectArgs) -> CliResult {
    let store = Store::open_any(&args.dir)?;
    let taps: Vec<usize> = if args.tap.is_empty() {
        (0..store.taps().len()).collect()
    } else {
        store_taps::named(&store, &args.tap)?
    };
    if let Some(number) = args.sample {
        let shown = one_sample::show(&store, &taps, number)?;
        out(if args.json {
            format!("{}\n", json!(shown))
        } else {
            shown.text()
        });
        return Ok(());
    }
    let wants_statistics = args.stats || !args.tap.is_empty();
    let taps = taps
        .into_iter()
        .map(|tap| {
            let statistics = wants_statistics
                .then(|| statistics::of(&store.tap_at(tap)))
                .transpose()?;
            Ok(ShownTap::new(store.manifest(), tap, statistics))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let tokens = tokens(&store)?;
    if args.json {
        out(format_args!(
            "{}\n",
            as_json(args, store.manifest(), tokens, &taps)
        ));
    } else {
        out(text(args, store.manifest(), tokens, &taps));
    }
    Ok(())
}

/// One tap, and what the manifest's shards add up to.
struct ShownTap {
    info: TapInfo,
    rows: u64,
    mean_norm: Option<f64>,
    /// Of its files, headers and index tensors included.
    bytes: u64,
    /// Of rows in 8 bits.
    loss: Option<Loss>,
    statistics: Option<Statistics>,
}

impl ShownTap {
    fn new(manifest: &Manifest, tap: usize, statistics: Option<Statistics>) -> Self {
        let files = || manifest.shards.iter().map(|shard| &shard.taps[tap]);
        ShownTap {
            info: manifest.taps[tap].clone(),
            mean_norm: manifest.mean_norms[&manifest.taps[tap].folder].as_f64(),
            rows: files().map(|file| file.rows).sum(),
            bytes: files().map(|file| file.bytes).sum(),
            loss: manifest.sum_losses().remove(&manifest.taps[tap].folder),
            statistics,
        }
    }
}

/// Tokens of all samples, from the run's own count where it finished.
fn tokens(store: &Store) -> Result<u64, Failure> {
    let counted = store
        .manifest()
        .timing
        .get("tokens")
        .and_then(Value::as_u64);
    counted.map_or_else(
        || {
            store
                .samples()
                .try_fold(0, |sum, s| Ok(sum + s?.tokens.len() as u64))
        },
        Ok,
    )
}

fn as_json(args: &InspectArgs, manifest: &Manifest, tokens: u64, taps: &[ShownTap]) -> Value {
    let p = &manifest.provenance;
    let taps: Vec<Value> = taps
        .iter()
        .map(|tap| {
            let mut value = json!(tap.info);
            value["rows"] = tap.rows.into();
            value["bytes"] = tap.bytes.into();
            value["mean_norm"] = tap.mean_norm.into();
            if let Some(loss) = &tap.loss {
                value["loss"] = json!(loss);
            }
            if let Some(statistics) = &tap.statistics {
                value["statistics"] = json!(statistics);
            }
            value
        })
        .collect();
    json!({
        "dir": args.dir,
        "state": manifest.state,
        "format_version": manifest.format_version,
        "engine_version": p.engine_version,
        "model": p.model,
        "dataset": p.dataset,
        "samples": manifest.samples,
        "tokens": tokens,
        "shards": manifest.shards.len(),
        "keep": manifest.keep,
        "compute_dtype": p.compute_dtype,
        "store_dtype": p.store_dtype,
        "backend": p.backend,
        "device": p.device,
        "edits": p.edits,
        "receipts": p.receipts,
        "taps": taps,
    })
}

/// What an edit of the run did: its rows are not the model's own.
fn edited(receipt: &Value) -> String {
    let text = |key: &str| receipt[key].as_str().unwrap_or_default().to_owned();
    let rows = format::counted(receipt["rows"].as_u64().unwrap_or(0), "row");
    format!("edited    {}: {rows} at {}", text("edit"), text("at"))
}

fn text(args: &InspectArgs, manifest: &Manifest, tokens: u64, taps: &[ShownTap]) -> String {
    let p = &manifest.provenance;
    let state = match manifest.state {
        State::Complete => "complete",
        State::Partial => {
            "PARTIAL: the run that wrote it did not finish; this is what it committed"
        }
    };
    let kept: Vec<String> = manifest
        .keep
        .iter()
        .map(|c| {
            format!(
                "{} ({})",
                c.name,
                c.kind.map_or("no type yet", |k| k.name())
            )
        })
        .collect();
    let mut lines = vec![
        format!("{}: {state}", args.dir.display()),
        format!(
            "model     {}, fingerprint {}",
            p.model.id, p.model.fingerprint
        ),
        format!("dataset   {}", p.dataset.paths.join(", ")),
        format!(
            "samples   {} in {}, {}{}",
            format::count(manifest.samples),
            format::counted(manifest.shards.len() as u64, "shard"),
            format::counted(tokens, "token"),
            if p.dataset.skipped > 0 {
                format!(
                    ", {} skipped",
                    format::counted(p.dataset.skipped, "bad record")
                )
            } else {
                String::new()
            },
        ),
        format!(
            "kept      {}",
            if kept.is_empty() {
                "no fields".into()
            } else {
                kept.join(", ")
            }
        ),
        format!(
            "computed  in {} on {} ({}), by streamgauge {}",
            p.compute_dtype, p.backend, p.device, p.engine_version
        ),
    ];
    lines.extend(p.receipts.iter().map(edited));
    let width = taps.iter().map(|t| t.info.folder.len()).max().unwrap_or(0);
    for tap in taps {
        let info = &tap.info;
        let reduction = if info.reduction.is_empty() {
            String::new()
        } else {
            format!("|{}", info.reduction)
        };
        let heads = info
            .heads
            .as_ref()
            .map_or(String::new(), |heads| format!(" heads {heads:?}"));
        let shape = if info.ragged {
            format!("{:?} ragged", info.row_shape)
        } else {
            format!("{:?}", info.row_shape)
        };
        let norm = tap
            .mean_norm
            .map_or_else(String::new, |norm| format!(", mean norm {norm:.4}"));
        lines.push(format!(
            "  {:width$}  @{}{reduction}{heads}  {} {shape}  {}  {} bytes{norm}",
            info.folder,
            info.selection,
            info.dtype,
            format::counted(tap.rows, "row"),
            format::count(tap.bytes),
        ));
        if let Some(loss) = &tap.loss {
            lines.push(format!("  {:width$}  {loss}", ""));
        }
        if let Some(s) = &tap.statistics {
            lines.push(format!("  {:width$}  {s}", ""));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
