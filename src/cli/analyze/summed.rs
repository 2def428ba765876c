//! What the methods make of a folder of statistics (`extract --stats`): directions of all rows, without held-out scores.

use serde_json::json;

use super::super::{CliResult, Failure, Usage, out, store_taps};
use super::labelled::{LabelledArgs, Method, layers, make_out, source_of, write_cosines};
use super::pictures;
use crate::analysis::directions::{self, Direction};
use crate::analysis::from_sums::Layer;
use crate::analysis::{Moments, SummedDirection, Sums};
use crate::report::table;
use crate::store::Kept;
use crate::store::statistics::{self, Set, Statistics, TapStatistics};

/// The taps asked for; all, where none is.
///
/// # Errors
/// A name that no tap has.
pub fn taps(statistics: &Statistics, wanted: &[String]) -> Result<Vec<usize>, Failure> {
    if wanted.is_empty() {
        return Ok((0..statistics.taps().len()).collect());
    }
    let model = &statistics.manifest().provenance.model;
    store_taps::named_among(&statistics.infos(), model, wanted)
}

/// The moments of all rows of a tap.
///
/// # Errors
/// There is no second moment of them; a file is damaged.
pub fn all_rows(statistics: &Statistics, tap: usize) -> Result<Moments, Failure> {
    let folder = &statistics.taps()[tap].info.folder;
    let of_rows = |set: &Set| matches!(set, Set::Rows | Set::Class(_));
    let all = added(statistics, tap, &of_rows)?;
    let all = all.and_then(|all| Some(Moments::of_sums(all.n, all.sum, &all.outer?)));
    all.ok_or_else(|| {
        Failure::Refused(format!(
            "{folder}: the statistics have no covariance of its rows; extract them with --stats cov"
        ))
    })
}

/// The sums of the rows labelled false and of those labelled true.
///
/// # Errors
/// Rows were not summed by a label, or by one with other values; one value is missing; a file is damaged.
pub fn classes(statistics: &Statistics, tap: usize) -> Result<[Sums; 2], Failure> {
    let TapStatistics { info, sets, .. } = &statistics.taps()[tap];
    let refuse = |why: String| Err(Failure::Refused(format!("{}: {why}", info.folder)));
    let label = statistics.manifest().statistics.label.as_deref();
    let mut named = Vec::new();
    for set in sets {
        if let Some(Set::Class(value)) = Set::named(&set.name) {
            let Some(truth) = Kept::Text(value.clone()).truth() else {
                return refuse(format!(
                    "'{value}' is a value of '{}', where 0, 1, true or false is wanted",
                    label.unwrap_or_default()
                ));
            };
            named.push((Set::Class(value), truth));
        }
    }
    if named.is_empty() {
        return refuse(
            "its rows were not summed by label; extract with --stats mean,cov --label FIELD".into(),
        );
    }
    let mut found = Vec::new();
    for label in [false, true] {
        let of_label = |set: &Set| named.iter().any(|(s, truth)| s == set && *truth == label);
        match added(statistics, tap, &of_label)? {
            Some(sums) if sums.n > 0 => found.push(sums),
            _ => {
                return refuse(format!(
                    "none of its rows is labelled {label}, and a direction needs both; give more data"
                ));
            }
        }
    }
    let both = <[Sums; 2]>::try_from(found);
    both.or_else(|_| refuse("its classes do not add up".into()))
}

/// The sums of pairs' differences and of their two rows.
///
/// # Errors
/// There are none; a file is damaged.
pub fn pairs(statistics: &Statistics, tap: usize) -> Result<[Sums; 2], Failure> {
    let folder = &statistics.taps()[tap].info.folder;
    let set = |set: Set| -> Result<Sums, Failure> {
        let found = added(statistics, tap, &|s| *s == set)?;
        found.ok_or_else(|| {
            Failure::Refused(format!(
                "{folder}: the statistics have no differences of pairs; extract them with --stats pairdiff --label FIELD --pair FIELD"
            ))
        })
    };
    Ok([set(Set::PairDifference)?, set(Set::PairSum)?])
}

/// The sets that are `wanted`, added up; `None` where there is none.
fn added(
    statistics: &Statistics,
    tap: usize,
    wanted: &dyn Fn(&Set) -> bool,
) -> Result<Option<Sums>, Failure> {
    let TapStatistics { info, sets, .. } = &statistics.taps()[tap];
    let mut all: Option<statistics::Moments> = None;
    for set in sets.iter().filter_map(|set| Set::named(&set.name)) {
        let Some(moments) = wanted(&set)
            .then(|| statistics.set(tap, &set))
            .transpose()?
            .flatten()
        else {
            continue;
        };
        let fits = match &mut all {
            Some(all) => all.add(&moments).is_some(),
            None => {
                all = Some(moments);
                true
            }
        };
        if !fits {
            let message = format!("{}: its sets do not add up", info.folder);
            return Err(Failure::Refused(message));
        }
    }
    Ok(all.and_then(|all| {
        Some(Sums {
            n: usize::try_from(all.count).ok()?,
            sum: all.sum,
            outer: all.outer,
        })
    }))
}

/// Has `find` treat layer after layer, writes and prints what it found.
pub fn run(
    args: &LabelledArgs,
    method: &Method<'_>,
    find: impl Fn(&Statistics, usize, Layer<'_>) -> Result<SummedDirection, Failure>,
) -> CliResult {
    let statistics = Statistics::open(&args.store)?;
    refuse_what_would_be_ignored(args, method, &statistics)?;
    let model = &statistics.manifest().provenance.model;
    let infos = statistics.infos();
    let taps = layers(&infos, model, &args.tap)?;
    let mut results = Vec::with_capacity(taps.len());
    for &tap in &taps {
        let hook = &infos[tap].hook;
        let layer = Layer {
            number: store_taps::layer(hook).unwrap_or_default(),
            hook,
        };
        results.push(find(&statistics, tap, layer)?);
    }
    write(args, method, &statistics, &results)?;
    if args.json {
        let site = taps.first().map(|&tap| store_taps::site(&infos[tap].hook));
        let value = json!({ "out": args.out, "site": site, "layers": results });
        out(format_args!("{value}\n"));
    } else {
        out(text(args, &results));
    }
    Ok(())
}

/// Flags that only rows have a use for, or that name other fields than were summed by.
fn refuse_what_would_be_ignored(
    args: &LabelledArgs,
    method: &Method<'_>,
    statistics: &Statistics,
) -> Result<(), Usage> {
    let kinds = &statistics.manifest().statistics;
    let other = |asked: &str, usual: &str, summed: &Option<String>| {
        let differs = summed.as_deref().is_some_and(|summed| summed != asked);
        asked != usual && differs
    };
    let refused = [
        (args.topic.is_some(), "--topic"),
        (args.group.is_some(), "--group"),
        (args.test_share != 0.5, "--test-share"),
        (args.seed != 0, "--seed"),
        (other(&args.label, "label", &kinds.label), "--label"),
        (
            method
                .pair
                .is_some_and(|pair| other(pair, "pair", &kinds.pair)),
            "--pair",
        ),
    ];
    match refused.into_iter().find(|(asked, _)| *asked) {
        None => Ok(()),
        Some((_, flag @ ("--label" | "--pair"))) => Err(Usage(format!(
            "{flag}: {} was summed by another field ({}); leave the flag out, or extract again",
            args.store.display(),
            [&kinds.label, &kinds.pair]
                .into_iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        ))),
        Some((_, flag)) => Err(Usage(format!(
            "{flag}: {} holds sums of all rows, and nothing is held out; leave the flag out, or extract without --stats",
            args.store.display()
        ))),
    }
}

fn direction(result: &SummedDirection) -> Direction<'_> {
    let mut about = json!(result);
    if let Some(about) = about.as_object_mut() {
        about.retain(|key, value| key != "layer" && key != "hook" && !value.is_null());
    }
    Direction {
        layer: result.layer,
        hook: &result.hook,
        values: &result.direction,
        about,
    }
}

fn write(
    args: &LabelledArgs,
    method: &Method<'_>,
    statistics: &Statistics,
    results: &[SummedDirection],
) -> CliResult {
    make_out(&args.out)?;
    table::write_csv(&args.out.join("separation_by_layer.csv"), results)?;
    let points = results
        .iter()
        .filter_map(|r| Some((r.layer as f64, r.separation?)));
    let points: Vec<(f64, f64)> = points.collect();
    if !points.is_empty() {
        let body = pictures::curves(
            pictures::axis("layer", ""),
            pictures::axis("separation", "deviations"),
            vec![(method.heading.to_owned(), points)],
            true,
        );
        let caption = args
            .title
            .clone()
            .unwrap_or_else(|| format!("{}: how far apart the means lie along it", method.heading));
        pictures::save(&args.out, "separation_by_layer", caption, body)?;
    }
    let directions: Vec<Direction<'_>> = results.iter().map(direction).collect();
    write_cosines(&args.out, &directions)?;
    let mut source = source_of(&statistics.manifest().provenance, &args.store);
    source["label"] = json!(statistics.manifest().statistics.label);
    directions::save(
        &args.out.join("directions.safetensors"),
        method.name,
        &directions,
        &source,
    )?;
    Ok(())
}

fn text(args: &LabelledArgs, results: &[SummedDirection]) -> String {
    let mut lines = vec![
        "all rows, nothing held out".to_owned(),
        "layer  false    true     separation  norm".into(),
    ];
    lines.extend(results.iter().map(|r| {
        let separation = r
            .separation
            .map_or("not known".into(), |s| format!("{s:.3}"));
        format!(
            "{:>5}  {:<7}  {:<7}  {separation:<10}  {:.4}",
            r.layer, r.n_false, r.n_true, r.norm
        )
    }));
    for file in ["separation_by_layer.csv", "directions.safetensors"] {
        lines.push(args.out.join(file).display().to_string());
    }
    lines.push(String::new());
    lines.join("\n")
}
