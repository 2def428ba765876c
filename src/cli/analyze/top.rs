//! `streamgauge analyze top`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::inspect::one_sample::tokenizer;
use super::super::{CliResult, Failure, out};
use super::labelled::make_out;
use super::project::projections;
use super::rows;
use crate::analysis::project::extremes;
use crate::model::Tokenizer;
use crate::report::table;
use crate::store::{SampleRow, Store};

/// Show the tokens that lie furthest along a direction, in context: the highest, the lowest, and some in between.
///
/// Extremes alone mislead, because any direction has some; the quantiles show what most tokens are like. Written to --out: top.csv, one line per example.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The store.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The direction: FILE.safetensors#KEY, or FILE alone, which then holds direction.LAYER for each tap's layer, or a single tensor.
    #[arg(long, value_name = "FILE#KEY")]
    direction: String,
    /// Where the table goes; a file of the same name is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these taps: a folder, a hook point, or a pattern such as 'blocks.*.hook_resid_post'.
    #[arg(long, value_name = "P", num_args = 1..)]
    tap: Vec<String>,
    /// How many of the highest, and of the lowest.
    #[arg(long, value_name = "K", default_value_t = 10)]
    k: usize,
    /// Quantiles to show examples of.
    #[arg(long, value_name = "Q", value_delimiter = ',', default_values_t = [0.95, 0.75, 0.5, 0.25, 0.05])]
    quantiles: Vec<f64>,
    /// Tokens of context on either side.
    #[arg(long, value_name = "N", default_value_t = 10)]
    context: usize,
    /// Print the examples as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

/// An example; token and context are ids where the tokenizer is not there any more, and for a row made of several tokens there is the sample's text.
#[derive(Debug, serde::Serialize)]
struct Example {
    tap: String,
    kind: String,
    projection: f64,
    sample: i64,
    position: i32,
    file: String,
    line: u64,
    before: String,
    token: String,
    after: String,
}

pub fn run(args: &TopArgs) -> CliResult {
    if let Some(bad) = args.quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
        return Err(super::super::Usage(format!(
            "--quantiles {bad}: a quantile lies between 0 and 1"
        ))
        .into());
    }
    let store = Store::open(&args.store)?;
    let taps = rows::taps(&store, &args.tap, "projected")?;
    let tokenizer = tokenizer(store.manifest());
    let mut examples = Vec::new();
    let meter = rows::meter(&store, taps.iter().copied(), args.quiet);
    for &tap in &taps {
        let (keys, values) = projections(&store, tap, &args.direction, &meter)?;
        let found = extremes(&values, args.k, &args.quantiles);
        let quantiles = args.quantiles.iter().map(|q| format!("quantile {q}"));
        let chosen = (found.highest.iter().map(|&row| ("highest".to_owned(), row)))
            .chain(quantiles.zip(found.quantiles.iter().copied()))
            .chain(
                found
                    .lowest
                    .iter()
                    .rev()
                    .map(|&row| ("lowest".to_owned(), row)),
            );
        for (kind, row) in chosen {
            let sample = sample_of(&store, tap, row)?;
            let (before, token, after) = in_context(
                &sample,
                keys[row].position,
                args.context,
                tokenizer.as_ref().ok(),
            );
            examples.push(Example {
                tap: store.taps()[tap].folder.clone(),
                kind,
                projection: values[row],
                sample: keys[row].sample,
                position: keys[row].position,
                file: sample.file.to_string(),
                line: sample.line,
                before,
                token,
                after,
            });
        }
    }
    meter.done();
    make_out(&args.out)?;
    let path = args.out.join("top.csv");
    table::write_csv(&path, &examples)?;
    if args.json {
        out(format_args!(
            "{}\n",
            json!({ "out": path, "examples": examples })
        ));
        return Ok(());
    }
    if let Err(why) = &tokenizer {
        out(format_args!("token ids instead of text: {why}\n"));
    }
    for example in &examples {
        let line = format!("{}⟦{}⟧{}", example.before, example.token, example.after);
        out(format_args!(
            "{:>13} {:>10.4}  {} {}  {}\n",
            example.kind,
            example.projection,
            example.tap,
            example.sample,
            line.replace('\n', "↵")
        ));
    }
    out(format_args!("{}\n", path.display()));
    Ok(())
}

/// The sample, or the chunk of one, that a tap's row comes from.
fn sample_of(store: &Store, tap: usize, row: usize) -> Result<SampleRow, Failure> {
    let reader = store.tap_at(tap);
    let folder = &reader.info().folder;
    let mut first = 0;
    for shard in 0..reader.n_shards() {
        let rows = store.manifest().shards[shard].taps[tap].rows as usize;
        if row < first + rows {
            let local = (row - first) as u64;
            let holds = |selections: &crate::store::Selections| {
                selections.iter().any(|(name, range)| {
                    **name == **folder && (range.start..range.start + range.rows).contains(&local)
                })
            };
            let place = store.shard_selections(shard)?.iter().position(holds);
            let sample = place.and_then(|place| {
                store
                    .shard_samples(shard)
                    .ok()
                    .and_then(|samples| samples.into_iter().nth(place))
            });
            return sample.ok_or_else(|| {
                Failure::Refused(format!(
                    "{folder}: row {row} is of no sample; run streamgauge verify"
                ))
            });
        }
        first += rows;
    }
    Err(Failure::Refused(format!("{folder} has no row {row}")))
}

/// The text before a token, its own, and what follows.
fn in_context(
    sample: &SampleRow,
    position: i32,
    context: usize,
    tokenizer: Option<&Tokenizer>,
) -> (String, String, String) {
    let text = |tokens: &[u32]| match tokenizer.and_then(|t| t.decode(tokens, false).ok()) {
        Some(text) => text,
        None => tokens
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    };
    let tokens = &sample.tokens;
    let Some(at) = usize::try_from(position)
        .ok()
        .filter(|&at| at < tokens.len())
    else {
        let shown = &tokens[..tokens.len().min(2 * context + 1)];
        return (String::new(), text(shown), String::new());
    };
    let end = (at + 1 + context).min(tokens.len());
    (
        text(&tokens[at.saturating_sub(context)..at]),
        text(&tokens[at..=at]),
        text(&tokens[at + 1..end]),
    )
}
