//! `streamgauge analyze dla`

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::super::inspect::one_sample::tokenizer;
use super::super::progress::StepMeter;
use super::super::{CliResult, Failure, out, store_taps};
use super::labelled::make_out;
use super::pictures;
use super::rows::{self, width};
use crate::analysis::Bootstrap;
use crate::backend::cpu::StoredWeights;
use crate::model::Model;
use crate::report::table;
use crate::store::{Store, TapReader};

/// Attribute the difference of two tokens' logits to what each block wrote: direct logit attribution.
///
/// The logits are linear in the residual stream once the final norm's scale is taken as it was in that run: each component c (hook_embed, every hook_attn_out and
/// hook_mlp_out in the store) adds (W_U[for] − W_U[against]) · (gain ⊙ c / scale). The store needs ln_final.hook_scale, or the last block's hook_resid_post, at the
/// same rows. With the latter the whole difference is known, and 'rest' is what no component in the store explains: blocks that were not tapped, or an edit.
///
/// Means over all rows, with a 95 % BCa interval over rows: select one row per sample, @last for instance. Written to --out: dla.csv, .svg and .png.
#[derive(Debug, Args)]
pub struct DlaArgs {
    /// The store.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Token whose logit counts: an id, or text that is one token.
    #[arg(long = "for", value_name = "TOKEN")]
    wanted: String,
    /// Token whose logit is subtracted.
    #[arg(long, value_name = "TOKEN")]
    against: Option<String>,
    /// Where the table goes; a file of the same name is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Directory of the model, if it is no longer where it was.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Of the bootstrap.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    component: String,
    layer: Option<usize>,
    rows: usize,
    mean: f64,
    ci_low: f64,
    ci_high: f64,
}

pub fn run(args: &DlaArgs) -> CliResult {
    let store = Store::open(&args.store)?;
    let model = model(&store, args.model.as_deref())?;
    let wanted = token(&store, &args.wanted, "--for", &model)?;
    let against = match &args.against {
        Some(text) => Some(token(&store, text, "--against", &model)?),
        None => None,
    };
    let readout = readout(&model, wanted, against);
    let taps = Taps::find(&store, model.config.n_layers, model.config.hidden_size)?;
    let of_scale = taps.scale.or(taps.last);
    let read = taps.components.iter().chain(&of_scale).chain(&taps.last);
    let meter = rows::meter(&store, read.copied(), args.quiet);
    let scales = taps.scales(&store, model.config.rms_norm_eps, &meter)?;

    let bootstrap = Bootstrap {
        seed: args.seed,
        ..Bootstrap::default()
    };
    let mut rest = match taps.last {
        Some(tap) => Some(shares(&store.tap_at(tap), &readout, &scales, &meter)?),
        None => None,
    };
    let mut table = Vec::new();
    if let Some(whole) = &rest {
        table.push(Row::of("logit difference", None, whole, &bootstrap));
    }
    for &tap in &taps.components {
        let reader = store.tap_at(tap);
        let found = shares(&reader, &readout, &scales, &meter)?;
        if let Some(rest) = &mut rest {
            rest.iter_mut().zip(&found).for_each(|(rest, x)| *rest -= x);
        }
        let hook = &reader.info().hook;
        table.push(Row::of(hook, store_taps::layer(hook), &found, &bootstrap));
    }
    if let Some(rest) = &rest {
        table.push(Row::of("rest", None, rest, &bootstrap));
    }
    meter.done();
    make_out(&args.out)?;
    let path = args.out.join("dla.csv");
    table::write_csv(&path, &table)?;
    draw(args, &table)?;
    if args.json {
        let value = json!({ "out": path, "for": wanted, "against": against, "components": table });
        out(format_args!("{value}\n"));
        return Ok(());
    }
    out("      mean  interval              component\n");
    for row in &table {
        out(format_args!(
            "{:>10.4}  {:>8.4} to {:>8.4}  {}\n",
            row.mean, row.ci_low, row.ci_high, row.component
        ));
    }
    out(format_args!("{}\n", path.display()));
    Ok(())
}

/// The components that add most, by size.
fn draw(args: &DlaArgs, table: &[Row]) -> CliResult {
    /// More bars than these are not told apart.
    const MOST: usize = 24;
    let mut rows: Vec<&Row> = table.iter().collect();
    rows.sort_by(|a, b| b.mean.abs().total_cmp(&a.mean.abs()));
    let bars = rows.iter().take(MOST);
    let bars = bars.map(|row| pictures::bar(&row.component, row.mean, [row.ci_low, row.ci_high]));
    let body = crate::report::finding::Body::Bars {
        y: pictures::axis("logit difference", "nat"),
        bars: bars.collect(),
    };
    let caption = "What the components of largest size add to the logit difference, with 95 % intervals over rows";
    pictures::save(&args.out, "dla", caption, body)
}

impl Row {
    fn of(component: &str, layer: Option<usize>, values: &[f64], bootstrap: &Bootstrap) -> Self {
        let mean = |drawn: &[u32]| {
            drawn.iter().map(|&i| values[i as usize]).sum::<f64>() / drawn.len() as f64
        };
        let interval = bootstrap.interval(values.len(), mean);
        Row {
            component: component.to_owned(),
            layer,
            rows: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            ci_low: interval.low,
            ci_high: interval.high,
        }
    }
}

/// The model that the store was made with.
fn model(store: &Store, moved: Option<&Path>) -> Result<Model, Failure> {
    let stored = &store.manifest().provenance.model;
    let model = Model::open(moved.unwrap_or(Path::new(&stored.path)))?;
    if model.fingerprint != stored.fingerprint {
        return Err(Failure::Refused(format!(
            "the model in {} is not the one that the store was made with; name it with --model",
            moved.unwrap_or(Path::new(&stored.path)).display()
        )));
    }
    Ok(model)
}

fn token(store: &Store, text: &str, flag: &str, model: &Model) -> Result<u32, Failure> {
    let refuse = |why: String| Err(Failure::Refused(format!("{flag} '{text}': {why}")));
    let vocab = model.config.vocab_size;
    if let Ok(id) = text.parse::<u32>() {
        return if (id as usize) < vocab {
            Ok(id)
        } else {
            refuse(format!("the vocabulary has {vocab} tokens"))
        };
    }
    let ids = match tokenizer(store.manifest()) {
        Ok(tokenizer) => tokenizer.encode(text, false)?.ids,
        Err(why) => return refuse(format!("{why}; give a token's id")),
    };
    match ids[..] {
        [id] => Ok(id),
        _ => refuse(format!(
            "that is {} tokens; give one, with its leading space if it has one",
            ids.len()
        )),
    }
}

/// gain ⊙ (W_U[wanted] − W_U[against]), `[d]`.
fn readout(model: &Model, wanted: u32, against: Option<u32>) -> Vec<f32> {
    use crate::backend::Weight;
    let d = model.config.hidden_size;
    let row = |weight: Weight, at: usize| {
        let mut row = vec![0.0_f32; d];
        model.tensor(weight).widen(at * d, &mut row);
        row
    };
    let mut readout = row(Weight::LmHead, wanted as usize);
    if let Some(against) = against {
        let other = row(Weight::LmHead, against as usize);
        readout.iter_mut().zip(other).for_each(|(x, y)| *x -= y);
    }
    let gain = row(Weight::LnFinal, 0);
    readout.iter_mut().zip(gain).for_each(|(x, g)| *x *= g);
    readout
}

/// The taps that an attribution reads.
struct Taps {
    components: Vec<usize>,
    /// The last block's residual stream.
    last: Option<usize>,
    scale: Option<usize>,
}

impl Taps {
    fn find(store: &Store, n_layers: usize, d: usize) -> Result<Self, Failure> {
        let at = |hook: &str| {
            store
                .taps()
                .iter()
                .position(|t| t.hook == hook && t.reduction.is_empty())
        };
        let blocks = (0..n_layers).flat_map(|l| {
            ["hook_attn_out", "hook_mlp_out"].map(|site| format!("blocks.{l}.{site}"))
        });
        let components: Vec<usize> = std::iter::once("hook_embed".to_owned())
            .chain(blocks)
            .filter_map(|hook| at(&hook))
            .collect();
        let taps = Taps {
            components,
            last: at(&format!("blocks.{}.hook_resid_post", n_layers - 1)),
            scale: at("ln_final.hook_scale"),
        };
        let missing = |what: &str| {
            Failure::Refused(format!(
                "the store has no {what}: extract 'hook_embed', 'blocks.*.hook_attn_out', 'blocks.*.hook_mlp_out' and 'blocks.-1.hook_resid_post', all with one selection"
            ))
        };
        let Some(&first) = taps.components.first() else {
            return Err(missing("hook_embed, hook_attn_out or hook_mlp_out"));
        };
        if taps.last.is_none() && taps.scale.is_none() {
            return Err(missing("ln_final.hook_scale or last hook_resid_post"));
        }
        let keys = rows::keys(&store.tap_at(first))?;
        for &tap in taps.components.iter().chain(&taps.last).chain(&taps.scale) {
            let info = &store.taps()[tap];
            if rows::keys(&store.tap_at(tap))? != keys {
                return Err(Failure::Refused(format!(
                    "{} and {} hold other rows: extract all with one selection",
                    store.taps()[first].folder,
                    info.folder
                )));
            }
            if ![1, d].contains(&width(info)) {
                return Err(Failure::Refused(format!(
                    "{}: rows of {}, not of {d}",
                    info.folder,
                    width(info)
                )));
            }
        }
        if keys.is_empty() {
            return Err(missing("row"));
        }
        Ok(taps)
    }

    /// The final norm's scale at each row.
    fn scales(&self, store: &Store, eps: f64, meter: &StepMeter) -> Result<Vec<f64>, Failure> {
        let mut scales = Vec::new();
        match (self.scale, self.last) {
            (Some(tap), _) => rows::pieces(&store.tap_at(tap), meter, |_, rows| {
                scales.extend(rows.iter().map(|&x| f64::from(x)));
                Ok(())
            })?,
            (None, Some(tap)) => {
                let reader = store.tap_at(tap);
                let d = width(reader.info());
                rows::pieces(&reader, meter, |_, rows| {
                    scales.extend(rows.chunks_exact(d).map(|row| {
                        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
                        (squares / d as f64 + eps).sqrt()
                    }));
                    Ok(())
                })?;
            }
            (None, None) => {}
        }
        Ok(scales)
    }
}

/// What a component adds to the difference, at each row.
fn shares(
    tap: &TapReader<'_>,
    readout: &[f32],
    scales: &[f64],
    meter: &StepMeter,
) -> Result<Vec<f64>, Failure> {
    let mut found = Vec::with_capacity(scales.len());
    rows::pieces(tap, meter, |at, rows| {
        let rows = at.zip(rows.chunks_exact(readout.len()));
        found.extend(rows.map(|(i, row)| crate::analysis::project::dot(row, readout) / scales[i]));
        Ok(())
    })?;
    Ok(found)
}
