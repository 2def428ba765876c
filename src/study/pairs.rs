//! E9: do blocks add up? Every pair of blocks above the edit, both ways, against the sum of the two alone; and a greedy search for the
//! set of blocks that recovers most (`sets`).

use rayon::prelude::*;

use super::effect::{Effect, axis, said_of_no};
use super::estimate::Estimate;
use super::patched::Patched;
use super::prompts::Half;
use super::sets::{self, Sets};
use super::statistics::median;
use super::sweeping::{Patches, sweep};
use super::{Asked, Result, Study, finding};
use crate::analysis::Bootstrap;
use crate::engine::sweep::{PatchSite, Way};
use crate::report::finding::{At, Body, Exhibit, Finding, Number, Series};

pub(super) const WAYS: [Way; 2] = [Way::Denoising, Way::Noising];
/// Prompts of the report half over which a quick run patches all pairs: there are many pairs.
const QUICK_PROMPTS: usize = 2;
/// A pair whose two effects alone, without signs, are less than this together says nothing of additivity.
const TRIVIAL: f64 = 0.05;
/// Blocks of the tuning half among which pairs are selected, and how many pairs.
const CANDIDATES: usize = 8;
const NAMED: usize = 5;

/// The experiment.
///
/// # Errors
/// What a sweep can fail at.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let mut found = finding(
        "Do the effects of blocks add up, or do blocks work only together; and how few blocks does it take?",
    );
    let above = study.choice()?.layer + 1;
    if above >= study.n_layers() {
        found
            .answer
            .push("No block stands above the edit: there is nothing to pair.".into());
        return Ok(found);
    }
    let blocks: Vec<String> = (above..study.n_layers())
        .flat_map(|l| ["hook_attn_out", "hook_mlp_out"].map(|site| format!("blocks.{l}.{site}")))
        .collect();
    let mut prompts = study.prompts(Some(Half::Report));
    if study.options().quick {
        prompts = spread(&prompts, QUICK_PROMPTS);
    }
    let patches = Patches {
        sites: blocks.clone(),
        pairs: blocks.clone(),
        ways: WAYS.to_vec(),
        ..Patches::default()
    };
    let patched = sweep(study, "E9", &prompts, patches)?;
    let sets = sets::search(study, &blocks)?;
    let bootstrap = study.bootstrap();
    let additivity = WAYS.map(|way| Additivity::of(&patched, way, &bootstrap));
    let (selected, tuning) = selected(study, &sets)?;
    let named = named(study, &patched, &selected);
    found.answer = additivity.iter().map(Additivity::said).collect();
    found.answer.extend(said_of_pairs(&named[..selected.len()]));
    found.answer.extend(sets.said());
    let all = Effect::all(&patched, &bootstrap);
    let denoising = all.iter().filter(|e| e.way == Way::Denoising);
    found
        .answer
        .extend(said_of_no(&patched, denoising, &bootstrap));
    found.answer.extend(patched.said_of_left_out());
    found.answer.push(patched.said_of_replay());
    found.numbers = additivity.iter().flat_map(|a| a.numbers(study)).collect();
    found.numbers.extend(
        named
            .iter()
            .map(|e| e.number(format!("{}, denoising", e.name()), study.published(&key(e)))),
    );
    found.numbers.extend(sets.numbers());
    found.exhibits = vec![
        scatter(&additivity),
        sets.exhibit(),
        pairs_table(&additivity),
        sets.table(),
    ];
    found.manifests.extend(patched.manifest.clone());
    found.manifests.extend(tuning);
    found.manifests.extend(sets.manifests());
    Ok(found)
}

/// At most `n` of the prompts, evenly spread over their order.
fn spread<'s>(prompts: &[Asked<'s>], n: usize) -> Vec<Asked<'s>> {
    let n = n.min(prompts.len());
    (0..n).map(|i| prompts[i * prompts.len() / n]).collect()
}

fn key(effect: &Effect) -> String {
    format!("E9.denoising.{}", effect.name())
}

/// The pairs that recovered most on the tuning half, among its best blocks; and the manifest of the sweep that they were selected by.
fn selected(study: &Study<'_>, sets: &Sets) -> Result<(Vec<Vec<PatchSite>>, Option<String>)> {
    let candidates = sets.best_single(CANDIDATES);
    if candidates.len() < 2 {
        return Ok((Vec::new(), None));
    }
    let patches = Patches {
        pairs: candidates
            .iter()
            .map(|site| site.point.to_string())
            .collect(),
        ..Patches::default()
    };
    let prompts = study.prompts(Some(Half::Tuning));
    let tuning = sweep(study, "E9-tuning", &prompts, patches)?;
    Ok((tuning.largest(Way::Denoising, NAMED), tuning.manifest))
}

/// What the selected pairs do on the report half, and after them those that were published and are not among them.
fn named(study: &Study<'_>, patched: &Patched, selected: &[Vec<PatchSite>]) -> Vec<Effect> {
    let is_published = |patch: &&[PatchSite]| {
        let key = format!("E9.denoising.{}", super::patched::name(patch));
        study.published(&key).is_some()
    };
    let pairs = patched
        .patches(Way::Denoising)
        .filter(|patch| patch.len() == 2);
    let published = pairs
        .filter(is_published)
        .filter(|patch| selected.iter().all(|pair| pair != patch));
    let bootstrap = study.bootstrap();
    selected
        .iter()
        .map(Vec::as_slice)
        .chain(published)
        .map(|pair| Effect::of(patched, Way::Denoising, pair, &bootstrap))
        .collect()
}

fn said_of_pairs(selected: &[Effect]) -> Option<String> {
    let texts: Vec<String> = selected.iter().map(Effect::text).collect();
    (!texts.is_empty()).then(|| format!(
        "The pairs that recovered most on the tuning half, as the report half has them (means over prompts, 95 % BCa intervals): {}.",
        texts.join(", ")
    ))
}

/// How pairs compare with the sums of their two, one way.
struct Additivity {
    way: Way,
    /// Per pair: name, and over prompts the mean of the sum of the two alone and of the pair.
    pairs: Vec<(String, f64, f64)>,
    /// How many are not trivial.
    n: usize,
    slope: Estimate,
    r2: Estimate,
    deviation: Estimate,
}

impl Additivity {
    fn of(patched: &Patched, way: Way, bootstrap: &Bootstrap) -> Self {
        let of = |patch: &[PatchSite]| patched.recoveries(way, patch, Some(Half::Report));
        let pairs: Vec<&[PatchSite]> = patched.patches(way).filter(|p| p.len() == 2).collect();
        let each: Vec<Pair> = pairs
            .iter()
            .map(|pair| {
                let (first, second) = (of(&pair[..1]), of(&pair[1..]));
                Pair {
                    name: super::patched::name(pair),
                    size: super::statistics::mean(&first).abs()
                        + super::statistics::mean(&second).abs(),
                    sums: first.iter().zip(&second).map(|(a, b)| a + b).collect(),
                    together: of(pair),
                }
            })
            .collect();
        let telling: Vec<&Pair> = each.iter().filter(|pair| pair.size >= TRIVIAL).collect();
        let n = telling.first().map_or(0, |pair| pair.sums.len());
        let statistic = |of: fn(&[(f64, f64)]) -> f64| {
            Estimate::of(n, bootstrap, |drawn| of(&means(&telling, drawn)))
        };
        let statistics: Vec<Estimate> = [slope, r2, deviation]
            .into_par_iter()
            .map(statistic)
            .collect();
        let everyone: Vec<u32> =
            (0..each.first().map_or(0, |pair| pair.sums.len()) as u32).collect();
        let all: Vec<&Pair> = each.iter().collect();
        Additivity {
            way,
            n: telling.len(),
            slope: statistics[0],
            r2: statistics[1],
            deviation: statistics[2],
            pairs: each
                .iter()
                .zip(means(&all, &everyone))
                .map(|(pair, (sum, together))| (pair.name.clone(), sum, together))
                .collect(),
        }
    }

    fn said(&self) -> String {
        let all = self.pairs.len();
        let way = match self.way {
            Way::Denoising => "Denoising",
            Way::Noising => "Noising",
        };
        if self.n < 3 {
            return format!(
                "{way}: {} of {all} pairs have effects large enough (0.05 for the two together, without signs) to ask whether they add up.",
                self.n
            );
        }
        let near = (self.slope.value - 1.0).abs() <= 0.1 && self.r2.value >= 0.9;
        let verdict = if near {
            "so pairs do what their two blocks do alone, added"
        } else {
            "so pairs do not simply do what their two blocks do alone"
        };
        format!(
            "{way}: over {} of {all} pairs with effects large enough to tell, the pair against the sum of its two has slope {} \
                through 0, R² {}, and a median deviation of {:.0} % of the sum: {verdict}.",
            self.n,
            self.slope.text(),
            self.r2.text(),
            100.0 * self.deviation.value,
        )
    }

    fn numbers(&self, study: &Study<'_>) -> Vec<Number> {
        let way = self.way.name();
        let of = |estimate: &Estimate, what: &str, key: &str| Number {
            note: format!("{} of {} pairs; n counts prompts", self.n, self.pairs.len()),
            ..estimate.number(
                format!("{what}, {way}"),
                study.published(&format!("E9.{way}.{key}")),
            )
        };
        vec![
            of(&self.slope, "slope of pair against sum, through 0", "slope"),
            of(&self.r2, "R² of that line", "r2"),
            of(&self.deviation, "median |pair − sum| / |sum|", "deviation"),
        ]
    }
}

/// One pair: over prompts, its two alone added, and both together.
struct Pair {
    name: String,
    /// What the two do alone on average, without signs, together.
    size: f64,
    sums: Vec<f64>,
    together: Vec<f64>,
}

/// Of each pair the mean sum and the mean of both together, over these prompts.
fn means(pairs: &[&Pair], prompts: &[u32]) -> Vec<(f64, f64)> {
    let mean = |values: &[f64]| {
        prompts.iter().map(|&p| values[p as usize]).sum::<f64>() / prompts.len() as f64
    };
    pairs
        .iter()
        .map(|pair| (mean(&pair.sums), mean(&pair.together)))
        .collect()
}

/// Of y = b·x, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|p| p.0 * p.1).sum::<f64>() / points.iter().map(|p| p.0 * p.0).sum::<f64>()
}

/// Of that line: 1 less its squared errors over those of the mean.
fn r2(points: &[(f64, f64)]) -> f64 {
    let b = slope(points);
    let mean = points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
    let errors: f64 = points.iter().map(|p| (p.1 - b * p.0).powi(2)).sum();
    1.0 - errors / points.iter().map(|p| (p.1 - mean).powi(2)).sum::<f64>()
}

/// Median |y − x| / |x|.
fn deviation(points: &[(f64, f64)]) -> f64 {
    let each: Vec<f64> = points
        .iter()
        .map(|p| (p.1 - p.0).abs() / p.0.abs())
        .collect();
    median(&each)
}

fn scatter(additivity: &[Additivity]) -> Exhibit {
    let point = |(name, sum, together): &(String, f64, f64)| At {
        label: name.clone(),
        ..At::new(*sum, Some(*together).filter(|y| y.is_finite()))
    };
    let series: Vec<Series> = additivity
        .iter()
        .map(|a| Series {
            name: a.way.name().into(),
            control: false,
            points: a
                .pairs
                .iter()
                .filter(|p| p.1.is_finite())
                .map(point)
                .collect(),
        })
        .collect();
    Exhibit {
        name: "E9-additivity".into(),
        caption: "Every pair of blocks above the edit: recovery of both patched together against the sum of the two patched alone \
            (noising: less 1). Means over the report half's prompts. On the line, effects add up.".into(),
        body: Body::Scatter { x: axis("sum of the two alone"), y: axis("both together"), series, diagonal: Some("pair = sum".into()) },
    }
}

fn pairs_table(additivity: &[Additivity]) -> Exhibit {
    let row = |way: Way, (name, sum, together): &(String, f64, f64)| {
        vec![
            serde_json::json!(name),
            serde_json::json!(way.name()),
            serde_json::json!(sum),
            serde_json::json!(together),
        ]
    };
    Exhibit {
        name: "E9-pairs".into(),
        caption: "Every pair, both ways: the sum of its two blocks' recoveries alone, and its own. Means over prompts.".into(),
        body: Body::Table {
            columns: ["pair", "way", "sum", "recovery"].map(String::from).into(),
            rows: additivity.iter().flat_map(|a| a.pairs.iter().map(|pair| row(a.way, pair))).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_zero_is_found_with_its_fit_and_its_deviation() {
        let exact: Vec<(f64, f64)> = [-1.0, 0.5, 2.0].map(|x| (x, 1.5 * x)).to_vec();
        assert!((slope(&exact) - 1.5).abs() < 1e-12 && (r2(&exact) - 1.0).abs() < 1e-12);
        assert!((deviation(&exact) - 0.5).abs() < 1e-12);
        // By hand: Σxy = 5, Σx² = 5; errors 1 + 1 … of (1, 2), (2, 1.5): b = 1, errors 1 + 0.25, around the mean 2·0.0625.
        let loose = [(1.0, 2.0), (2.0, 1.5)];
        assert!((slope(&loose) - 1.0).abs() < 1e-12);
        assert!((r2(&loose) - (1.0 - 1.25 / 0.125)).abs() < 1e-12);
    }

    #[test]
    fn trivial_pairs_have_no_say() {
        let pair = |sums: f64, together: f64| Pair {
            name: String::new(),
            size: sums,
            sums: vec![sums; 3],
            together: vec![together; 3],
        };
        let pairs = [pair(0.2, 0.2), pair(0.4, 0.4), pair(0.01, 0.3)];
        let telling: Vec<&Pair> = pairs.iter().filter(|p| p.size >= TRIVIAL).collect();
        assert!((slope(&means(&telling, &[0, 1, 2])) - 1.0).abs() < 1e-12);
    }
}
