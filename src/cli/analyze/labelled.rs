//! What the methods share that tell two kinds of samples apart layer by layer: their flags, the labels, one layer's rows, and what is
//! written of the results.

use std::path::{Path, PathBuf};

use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::super::progress::StepMeter;
use super::super::{CliResult, Failure, store_taps};
use super::pictures;
use super::stored_rows::StoredRows;
use crate::analysis::directions::{self, Direction};
use crate::analysis::{
    Bootstrap, IntervalMethod, LatResult, LayerRows, MassMeanResult, ProbeResult, RidgeResult,
    Split, Statements, split,
};
use crate::report::{plot, table};
use crate::store::{Kept, Manifest, ModelInfo, Provenance, SampleRow, Store, TapInfo};

/// Flags of the methods that tell two kinds of samples apart.
#[derive(Debug, Args)]
pub struct LabelledArgs {
    /// The store, or the folder that `extract --stats` left.
    #[arg(value_name = "STORE")]
    pub store: PathBuf,
    /// Where the results go; files of the same names are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Kept field that tells the two kinds apart: 0 or 1, true or false.
    #[arg(long, value_name = "FIELD", default_value = "label")]
    pub label: String,
    /// Kept field whose values are spread over both sides of the split [default: topic, where it was kept].
    #[arg(long, value_name = "FIELD")]
    pub topic: Option<String>,
    /// Kept field whose values are never parted by the split [default: group, where it was kept].
    #[arg(long, value_name = "FIELD")]
    pub group: Option<String>,
    /// Only these taps: a folder, a hook point, or a pattern such as 'blocks.*.hook_resid_post'.
    #[arg(long, value_name = "P", num_args = 1..)]
    pub tap: Vec<String>,
    /// Share of the samples that is held out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share, allow_negative_numbers = true)]
    pub test_share: f64,
    /// Of the split and of the bootstrap.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Title of the picture.
    #[arg(long, value_name = "TITLE")]
    pub title: Option<String>,
    /// Print the table as JSON.
    #[arg(long)]
    pub json: bool,
    /// No progress.
    #[arg(long)]
    pub quiet: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("write a number between 0 and 1, both left out".into()),
    }
}

/// Held-out accuracy of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Score {
    pub layer: usize,
    pub accuracy: f64,
    pub low: f64,
    pub high: f64,
    pub method: IntervalMethod,
}

/// What a method finds in one layer: a row of the table, a point of the picture, a direction.
pub trait LayerResult: Scored + serde::Serialize {
    /// Of the printed table.
    const COLUMNS: &'static str;

    fn direction(&self) -> Direction<'_>;
    fn line(&self) -> String;
}

/// A layer's held-out accuracy, which every method's results name alike.
pub trait Scored {
    fn score(&self) -> Score;
}

macro_rules! scored {
    ($($result:ty),+) => {$(
        impl Scored for $result {
            fn score(&self) -> Score {
                Score {
                    layer: self.layer,
                    accuracy: self.accuracy,
                    low: self.ci_low,
                    high: self.ci_high,
                    method: self.ci_method,
                }
            }
        }
    )+};
}
scored!(LatResult, MassMeanResult, ProbeResult, RidgeResult);

/// A method by name.
pub struct Method<'a> {
    /// As the directions' file names it.
    pub name: &'a str,
    /// Of the picture.
    pub heading: &'a str,
    /// Kept field that the two samples of a pair share, for a method of pairs.
    pub pair: Option<&'a str>,
    /// Bytes that it holds of one layer, from the width of rows and the number of samples.
    pub memory: fn(usize, usize) -> usize,
}

/// Bytes that all layers under way may hold together.
const MEMORY: usize = 4 << 30;

/// Layers that are treated at once, of so many bytes each.
fn at_once(bytes: usize) -> usize {
    (MEMORY / bytes.max(1)).clamp(1, rayon::current_num_threads())
}

/// Splits the samples, has `analyse` treat as many layers at once as there are cores and memory for, writes and prints what it found. Rows are
/// read where they are stored.
pub fn run<R: LayerResult + Send>(
    args: &LabelledArgs,
    method: &Method<'_>,
    analyse: impl Fn(&LayerRows<'_>, &Samples, &Split, &Bootstrap) -> crate::analysis::Result<R> + Sync,
) -> CliResult {
    let store = Store::open(&args.store)?;
    let model = &store.manifest().provenance.model;
    let taps = layers(store.taps(), model, &args.tap)?;
    let samples = Samples::read(&store, args, method.pair)?;
    let split = split(&samples.statements, args.test_share, args.seed)?;
    let bootstrap = Bootstrap {
        seed: args.seed,
        ..Bootstrap::default()
    };
    let meter = StepMeter::new(taps.len() as u64, "layer", args.quiet);
    let layer = |&tap: &usize| -> Result<R, Failure> {
        let stored = StoredRows::open(&store, tap, &samples.numbers)?;
        let result = analyse(&stored.layer(), &samples, &split, &bootstrap)?;
        meter.step(1);
        Ok(result)
    };
    let width = store.taps()[taps[0]].row_shape.iter().product();
    let at_once = at_once((method.memory)(width, samples.numbers.len()));
    let mut results = Vec::with_capacity(taps.len());
    for taps in taps.chunks(at_once) {
        results.extend(taps.par_iter().map(layer).collect::<Result<Vec<R>, _>>()?);
    }
    meter.done();
    let scores: Vec<Score> = results.iter().map(Scored::score).collect();
    let described = Described::new(
        &store,
        taps[0],
        &samples,
        &split,
        &scores,
        (method.heading, args),
    );
    write(args, method, &store, &results, &described)?;
    if args.json {
        let value = json!({
            "out": args.out,
            "site": described.site,
            "groups": samples.group_field,
            "topics": samples.topic_field,
            "layers": results,
        });
        super::super::out(format_args!("{value}\n"));
    } else {
        super::super::out(text(args, &results, &described));
    }
    Ok(())
}

/// The taps to analyse, by layer: of one site, one per layer, rows that can be stacked.
pub fn layers(
    infos: &[TapInfo],
    model: &ModelInfo,
    wanted: &[String],
) -> Result<Vec<usize>, Failure> {
    let mut taps = if wanted.is_empty() {
        (0..infos.len()).collect()
    } else {
        store_taps::named_among(infos, model, wanted)?
    };
    let info = |tap: usize| &infos[tap];
    let refuse = |message: String| Err(Failure::Refused(message));
    let Some(&first) = taps.first() else {
        return refuse("the store has no taps".into());
    };
    let site = store_taps::site(&info(first).hook);
    for &tap in &taps {
        let TapInfo {
            hook,
            folder,
            ragged,
            top_k,
            ..
        } = info(tap);
        if store_taps::site(hook) != site {
            let other = store_taps::site(hook);
            return refuse(format!(
                "the taps are of several sites ({site} and {other}): name one with --tap '{}'",
                site.replacen(".L.", ".*.", 1)
            ));
        }
        if store_taps::layer(hook).is_none() {
            return refuse(format!(
                "{folder} is in no layer: this compares layers; name others with --tap"
            ));
        }
        if *ragged || top_k.is_some() {
            let why = if *ragged {
                "its rows differ in length"
            } else {
                "each of its rows holds other components"
            };
            return refuse(format!(
                "{folder} has no mean, because {why}: name other taps with --tap"
            ));
        }
    }
    taps.sort_by_key(|&tap| store_taps::layer(&info(tap).hook));
    if let Some(pair) = taps
        .windows(2)
        .find(|pair| info(pair[0]).hook == info(pair[1]).hook)
    {
        let [a, b] = [pair[0], pair[1]].map(|tap| &info(tap).folder);
        return refuse(format!(
            "{a} and {b} are of one layer: name one tap per layer with --tap FOLDER"
        ));
    }
    Ok(taps)
}

/// What is known of the samples, in the store's order.
pub struct Samples {
    /// In the dataset.
    pub numbers: Vec<u64>,
    pub statements: Statements,
    /// Names of the kept fields that say so.
    pub topic_field: Option<String>,
    pub group_field: Option<String>,
    /// The pair of each, where pairs were asked for.
    pub pairs: Vec<String>,
}

impl Samples {
    /// `pair` names the field that the two samples of a pair share.
    fn read(store: &Store, args: &LabelledArgs, pair: Option<&str>) -> Result<Self, Failure> {
        let manifest = store.manifest();
        let label = column(manifest, &args.label, "--label")?;
        let optional = |asked: &Option<String>, usual: &str, flag: &str| match asked {
            Some(name) => column(manifest, name, flag).map(|at| Some((at, name.clone()))),
            None => Ok(manifest
                .keep
                .iter()
                .position(|c| c.name == usual)
                .map(|at| (at, usual.to_owned()))),
        };
        let topic = optional(&args.topic, "topic", "--topic")?;
        let group = optional(&args.group, "group", "--group")?;
        let pair = pair
            .map(|name| column(manifest, name, "--pair"))
            .transpose()?;
        let (mut numbers, mut labels) = (Vec::new(), Vec::new());
        let (mut topics, mut groups, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        for sample in store.samples() {
            let sample = sample?;
            if numbers.last() == Some(&sample.sample) {
                let message = format!(
                    "{}:{} was cut into chunks, so it has no one row: extract with --on-long truncate, or drop it",
                    sample.file, sample.line
                );
                return Err(Failure::Refused(message));
            }
            numbers.push(sample.sample);
            labels.push(truth(&sample, label, &args.label)?);
            topics.extend(topic.as_ref().map(|(at, _)| word(&sample, *at)));
            groups.extend(group.as_ref().map(|(at, _)| word(&sample, *at)));
            pairs.extend(pair.map(|at| word(&sample, at)));
        }
        Ok(Samples {
            numbers,
            statements: Statements {
                labels,
                topics: topic.is_some().then_some(topics),
                // A pair is a group where no other is known.
                groups: match (group.is_some(), pair.is_some()) {
                    (true, _) => Some(groups),
                    (false, true) => Some(pairs.clone()),
                    (false, false) => None,
                },
            },
            pairs,
            topic_field: topic.map(|(_, name)| name),
            group_field: group.map(|(_, name)| name),
        })
    }
}

/// Place of a kept field.
fn column(manifest: &Manifest, name: &str, flag: &str) -> Result<usize, Failure> {
    manifest.keep.iter().position(|c| c.name == name).ok_or_else(|| {
        let kept: Vec<&str> = manifest.keep.iter().map(|c| c.name.as_str()).collect();
        let kept = if kept.is_empty() { "none".into() } else { kept.join(", ") };
        Failure::Refused(format!("{flag} {name}: the store did not keep that field (kept: {kept}); extract with --keep {name}, or name another with {flag}"))
    })
}

/// The sample's label.
fn truth(sample: &SampleRow, at: usize, field: &str) -> Result<bool, Failure> {
    let label = sample.kept[at].as_ref().and_then(Kept::truth);
    label.ok_or_else(|| {
        let found = if sample.kept[at].is_none() {
            "empty".into()
        } else {
            format!("'{}'", word(sample, at))
        };
        Failure::Refused(format!(
            "{}:{}: the label '{field}' is {found}, where 0, 1, true or false is wanted",
            sample.file, sample.line
        ))
    })
}

/// A kept value as text; samples without one have the empty text in common.
fn word(sample: &SampleRow, at: usize) -> String {
    sample.kept[at]
        .as_ref()
        .map_or_else(String::new, Kept::to_string)
}

/// What the picture and the table say above themselves.
struct Described {
    site: String,
    title: String,
    subtitle: String,
}

impl Described {
    fn new(
        store: &Store,
        tap: usize,
        samples: &Samples,
        split: &Split,
        scores: &[Score],
        (heading, args): (&str, &LabelledArgs),
    ) -> Self {
        let TapInfo {
            hook,
            selection,
            reduction,
            ..
        } = &store.taps()[tap];
        let site = store_taps::site(hook);
        let id = &store.manifest().provenance.model.id;
        let model = Path::new(id)
            .file_name()
            .map_or(id.clone(), |name| name.to_string_lossy().into_owned());
        let by = samples
            .group_field
            .as_ref()
            .map_or("split by sample".into(), |field| {
                format!("split by {field}")
            });
        // Where all held-out samples are right, say, BCa is not defined.
        let interval = if scores.iter().all(|s| s.method == IntervalMethod::Bca) {
            "95 % BCa interval"
        } else {
            "95 % BCa or percentile interval"
        };
        let reduction = if reduction.is_empty() {
            String::new()
        } else {
            format!("|{reduction}")
        };
        Described {
            title: args
                .title
                .clone()
                .unwrap_or_else(|| format!("{heading} of '{}' by layer", args.label)),
            subtitle: format!(
                "{model}, {site}@{selection}{reduction}; {} train, {} test, {by}; {interval}",
                split.train.len(),
                split.test.len()
            ),
            site,
        }
    }
}

fn write<R: LayerResult>(
    args: &LabelledArgs,
    method: &Method<'_>,
    store: &Store,
    results: &[R],
    described: &Described,
) -> CliResult {
    make_out(&args.out)?;
    let points: Vec<plot::Point> = results
        .iter()
        .map(Scored::score)
        .map(|s| plot::Point {
            layer: s.layer,
            accuracy: s.accuracy,
            low: s.low,
            high: s.high,
        })
        .collect();
    plot::accuracy_by_layer(
        &points,
        &described.title,
        &described.subtitle,
        &args.out.join("accuracy_by_layer"),
    )?;
    table::write_csv(&args.out.join("accuracy_by_layer.csv"), results)?;
    let directions: Vec<_> = results.iter().map(LayerResult::direction).collect();
    write_cosines(&args.out, &directions)?;
    let mut source = source(store, &args.store);
    source["label"] = json!(args.label);
    source["test_share"] = json!(args.test_share);
    source["seed"] = json!(args.seed);
    directions::save(
        &args.out.join("directions.safetensors"),
        method.name,
        &directions,
        &source,
    )?;
    Ok(())
}

/// The cosine between every two layers' directions.
pub fn write_cosines(out: &Path, directions: &[Direction<'_>]) -> CliResult {
    #[derive(serde::Serialize)]
    struct Cosine {
        layer: usize,
        other: usize,
        cosine: f64,
    }
    let width = |d: &Direction<'_>| d.values.len();
    if directions.iter().any(|d| width(d) != width(&directions[0])) {
        return Ok(());
    }
    let row = |a: &Direction<'_>| -> Vec<f64> {
        let cosine = |b: &Direction<'_>| directions::cosine(a.values, b.values);
        directions.iter().map(cosine).collect()
    };
    let cosines: Vec<Vec<f64>> = directions.iter().map(row).collect();
    let lines: Vec<Cosine> = directions
        .iter()
        .zip(&cosines)
        .flat_map(|(a, row)| {
            let others = directions.iter().zip(row);
            others.map(|(b, &cosine)| Cosine {
                layer: a.layer,
                other: b.layer,
                cosine,
            })
        })
        .collect();
    table::write_csv(&out.join("direction_cosines.csv"), &lines)?;
    let layers = || directions.iter().map(|d| d.layer.to_string()).collect();
    let body = pictures::heatmap(
        ("layer", layers()),
        ("layer", layers()),
        cosines,
        pictures::axis("cosine", ""),
    );
    let caption = "Cosine between the directions of every two layers";
    pictures::save(out, "direction_cosines", caption, body)
}

/// Makes the folder of the results.
pub fn make_out(out: &Path) -> CliResult {
    std::fs::create_dir_all(out).map_err(|e| {
        Failure::Refused(format!(
            "cannot make {}: {e}; give --out a directory that you can write to",
            out.display()
        ))
    })
}

/// Where results come from, for the files that hold them.
pub fn source(store: &Store, path: &Path) -> Value {
    source_of(&store.manifest().provenance, path)
}

/// As [`source`], of whatever was made from that.
pub fn source_of(made_from: &Provenance, path: &Path) -> Value {
    json!({
        "store": std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        "model": made_from.model,
        "dataset_fingerprint": made_from.dataset.fingerprint,
    })
}

fn text<R: LayerResult>(args: &LabelledArgs, results: &[R], described: &Described) -> String {
    let mut lines = vec![described.subtitle.clone(), R::COLUMNS.into()];
    lines.extend(results.iter().map(LayerResult::line));
    for file in [
        "accuracy_by_layer.svg",
        "accuracy_by_layer.png",
        "accuracy_by_layer.csv",
        "direction_cosines.svg",
        "directions.safetensors",
    ] {
        lines.push(args.out.join(file).display().to_string());
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(kept: Option<Kept>) -> Option<bool> {
        let sample = SampleRow {
            sample: 0,
            chunk: 0,
            file: "f".into(),
            line: 1,
            tokens: vec![1],
            turns: Vec::new(),
            pieces: Vec::new(),
            kept: vec![kept],
        };
        truth(&sample, 0, "label").ok()
    }

    #[test]
    fn labels_are_read_from_numbers_booleans_and_words() {
        for yes in [
            Kept::Bool(true),
            Kept::Int(1),
            Kept::Float(1.0),
            Kept::Text("True".into()),
            Kept::Text("1".into()),
        ] {
            assert_eq!(labelled(Some(yes)), Some(true));
        }
        for no in [
            Kept::Bool(false),
            Kept::Int(0),
            Kept::Float(0.0),
            Kept::Text("false".into()),
        ] {
            assert_eq!(labelled(Some(no)), Some(false));
        }
        for neither in [
            Kept::Int(2),
            Kept::Int(-1),
            Kept::Float(0.5),
            Kept::Float(f64::NAN),
            Kept::Text("maybe".into()),
        ] {
            assert_eq!(labelled(Some(neither)), None);
        }
        assert_eq!(labelled(None), None);
    }
}
