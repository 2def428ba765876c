//! E11: whether the direction tells true from false statements that nobody pretends to make, and what simpler things tell.

mod outcome;

use rayon::prelude::*;

use self::outcome::Outcome;
use super::simpler::{Baseline, Held, Negated};
use super::statements::Stated;
use super::statistics::mean as average;
use super::tell::{self, number, with_width};
use super::{Result, Study};
use crate::analysis::project::{dot, mean_and_deviation};
use crate::analysis::roc::auc;
use crate::analysis::scored::share_right;
use crate::analysis::{Bootstrap, Split, Statements, baseline, null, split};
use crate::report::finding::{Finding, Number};

/// Random directions that stand beside the direction.
const DRAWS: usize = 100;

/// What z-scored projections say, called true where they are above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
struct AtZero {
    accuracy: f64,
    auc: f64,
    share_positive: f64,
}

/// A layer's projections, and what they say of all statements and of each different one.
struct Layer {
    projections: Vec<f64>,
    /// Of all statements: above the mean of the different ones.
    positive: Vec<bool>,
    all: AtZero,
    unique: AtZero,
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let stated = Stated::run(study)?;
    let layers = (0..stated.last.len())
        .map(|layer| read_layer(study, &stated, layer))
        .collect::<Result<Vec<_>>>()?;
    let bootstrap = study.bootstrap();
    let unique = &stated.unique;
    let known = stated.of(unique);
    let split = split(&known, 0.5, study.options().seed)?;
    let chosen = best(&layers, unique, &known.labels, &split.train);
    let found = HeldOut::of(&layers[chosen], unique, &known, &split, &bootstrap);
    let held = Held {
        stated: &stated,
        known: &known,
        split: &split,
        bootstrap: &bootstrap,
    };
    let baselines = held.baselines(study)?;
    let direction = study.directions()?.layer(chosen);
    let negated = Negated::read(study, held, chosen, direction, 1)?;
    let topics = topics(&layers, unique, &known, &bootstrap);
    let drawn = drawn(study, &stated, &known, &split)?;

    let mut numbers = Vec::new();
    let mut accuracy = found.accuracy.clone();
    accuracy.controls = baselines.iter().map(Baseline::control).collect();
    let mut area = found.auc.clone();
    area.controls = baselines
        .iter()
        .filter_map(|b| tell::control(b.name, b.auc))
        .collect();
    area.controls.extend(tell::draws(
        "random directions, each at its best layer and side in training",
        &drawn,
    ));
    let area_found = area.value.unwrap_or(0.0);
    let p = null::rank_p(area_found, &drawn);
    numbers.extend([
        accuracy,
        area,
        number("p by rank among random directions", p, "").note(
            "each at the layer and on the side that training says; the direction itself counted",
        ),
    ]);
    let both = |n: &Negated| [n.negated.clone(), n.plain.clone()];
    numbers.extend(negated.iter().flat_map(both));
    numbers.extend(topics.iter().map(|t| t.number()));
    numbers.extend(by_layer(study, &layers, &stated));
    let outcome = Outcome {
        stated,
        layers,
        chosen,
        found,
        baselines,
        negated,
        topics,
        rank: tell::rank(area_found, &drawn),
    };
    Ok(Finding {
        answer: outcome.answer(),
        numbers,
        exhibits: outcome.exhibits(),
        ..super::finding(
            "Does the direction, found where a persona speaks, tell true from false statements that stand by themselves?",
        )
    })
}

fn read_layer(study: &Study<'_>, stated: &Stated, layer: usize) -> Result<Layer> {
    let direction = study.directions()?.layer(layer);
    let rows = stated.last[layer].chunks_exact(direction.len());
    let projections: Vec<f64> = rows.map(|row| dot(row, direction)).collect();
    let labels = &stated.known.labels;
    let all: Vec<usize> = (0..labels.len()).collect();
    let standard: Vec<f64> = stated.unique.iter().map(|&i| projections[i]).collect();
    let (mean, deviation) = mean_and_deviation(&standard);
    let positive = projections.iter().map(|p| (p - mean) / deviation > 0.0);
    Ok(Layer {
        positive: positive.collect(),
        all: at_zero(&projections, labels, &all, &stated.unique),
        unique: at_zero(&projections, labels, &stated.unique, &stated.unique),
        projections,
    })
}

/// Of the statements `of`, with mean and deviation (over n − 1) of those in `standard`.
fn at_zero(projections: &[f64], labels: &[bool], of: &[usize], standard: &[usize]) -> AtZero {
    let standard: Vec<f64> = standard.iter().map(|&i| projections[i]).collect();
    let (mean, deviation) = mean_and_deviation(&standard);
    let z: Vec<f64> = of
        .iter()
        .map(|&i| (projections[i] - mean) / deviation)
        .collect();
    let labels: Vec<bool> = of.iter().map(|&i| labels[i]).collect();
    let share = |holds: &dyn Fn(usize) -> bool| {
        (0..z.len()).filter(|&i| holds(i)).count() as f64 / z.len().max(1) as f64
    };
    AtZero {
        accuracy: share(&|i| (z[i] > 0.0) == labels[i]),
        auc: auc(&z, &labels).unwrap_or(f64::NAN),
        share_positive: share(&|i| z[i] > 0.0),
    }
}

/// The layer of the highest AUC over some of the unique statements; of equals the first.
fn best(layers: &[Layer], unique: &[usize], labels: &[bool], of: &[usize]) -> usize {
    let labels: Vec<bool> = of.iter().map(|&i| labels[i]).collect();
    let area = |layer: &Layer| {
        let scores: Vec<f64> = of.iter().map(|&i| layer.projections[unique[i]]).collect();
        auc(&scores, &labels).unwrap_or(0.5)
    };
    let areas: Vec<f64> = layers.iter().map(area).collect();
    (0..areas.len()).fold(0, |best, layer| {
        if areas[layer] > areas[best] {
            layer
        } else {
            best
        }
    })
}

/// Held-out statements, by the training statements' mean.
struct HeldOut {
    accuracy: Number,
    auc: Number,
}

impl HeldOut {
    fn of(
        layer: &Layer,
        unique: &[usize],
        known: &Statements,
        split: &Split,
        bootstrap: &Bootstrap,
    ) -> Self {
        let score = |&i: &usize| layer.projections[unique[i]];
        let middle = average(&split.train.iter().map(score).collect::<Vec<_>>());
        let scores: Vec<f64> = split.test.iter().map(score).collect();
        let labels: Vec<bool> = split.test.iter().map(|&i| known.labels[i]).collect();
        let groups = known.group_numbers(&split.test);
        let n_groups = groups.iter().max().map(|last| last + 1);
        let right: Vec<bool> = scores
            .iter()
            .zip(&labels)
            .map(|(&s, &l)| (s > middle) == l)
            .collect();
        let share = share_right(&groups, &right, bootstrap);
        let mut accuracy = number(
            "held-out accuracy at the layer chosen in training",
            share.share,
            "",
        );
        (accuracy.interval, accuracy.n) = (with_width([share.low, share.high]), n_groups);
        accuracy.note = "interval over groups of statements; above the training statements' mean counts as true".into();
        let mut area = number(
            "held-out AUC at the layer chosen in training",
            auc(&scores, &labels).unwrap_or(f64::NAN),
            "",
        );
        let interval = baseline::auc_interval(&scores, &labels, &groups, bootstrap);
        (area.interval, area.n) = (interval.bca(), n_groups);
        HeldOut {
            accuracy,
            auc: area,
        }
    }
}

/// One topic, at the layer that the others chose.
struct Topic {
    name: String,
    n: usize,
    layer: usize,
    auc: f64,
    /// Over its groups.
    interval: Option<[f64; 2]>,
    groups: usize,
    accuracy: f64,
}

impl Topic {
    fn number(&self) -> Number {
        let mut told = number(
            format!("AUC on the topic '{}', left out", self.name),
            self.auc,
            "",
        );
        (told.interval, told.n) = (self.interval, Some(self.groups));
        told.note = format!(
            "{} statements, n groups of them; layer {} was chosen on the other topics",
            self.n, self.layer
        );
        told
    }
}

/// Leaves one topic out at a time: the layer and the middle come of the others.
fn topics(
    layers: &[Layer],
    unique: &[usize],
    known: &Statements,
    bootstrap: &Bootstrap,
) -> Vec<Topic> {
    let Some(topics) = &known.topics else {
        return Vec::new();
    };
    let names: std::collections::BTreeSet<&String> =
        topics.iter().filter(|t| !t.is_empty()).collect();
    let one = |name: &String| {
        let (here, rest): (Vec<usize>, Vec<usize>) =
            (0..topics.len()).partition(|&i| topics[i] == *name);
        let layer = best(layers, unique, &known.labels, &rest);
        let score = |&i: &usize| layers[layer].projections[unique[i]];
        let middle = average(&rest.iter().map(score).collect::<Vec<_>>());
        let scores: Vec<f64> = here.iter().map(score).collect();
        let labels: Vec<bool> = here.iter().map(|&i| known.labels[i]).collect();
        let right = scores
            .iter()
            .zip(&labels)
            .filter(|&(&s, &l)| (s > middle) == l)
            .count();
        let groups = known.group_numbers(&here);
        Some(Topic {
            name: name.clone(),
            n: here.len(),
            layer,
            auc: auc(&scores, &labels)?,
            interval: baseline::auc_interval(&scores, &labels, &groups, bootstrap).bca(),
            groups: groups.iter().max().map_or(0, |last| last + 1),
            accuracy: right as f64 / here.len() as f64,
        })
    };
    names.into_iter().filter_map(one).collect()
}

/// What of a random direction is read where: AUC in training, on the better side, and held out on that side.
#[derive(Clone, Copy)]
struct Random {
    training: f64,
    held_out: f64,
}

/// Held-out AUCs of random directions, half of them with the rows' covariance. Each is one direction per layer, as ours is, and is read
/// at the layer and on the side that training says.
fn drawn(
    study: &Study<'_>,
    stated: &Stated,
    known: &Statements,
    split: &Split,
) -> Result<Vec<f64>> {
    let layers = (0..stated.last.len())
        .map(|layer| drawn_at(study, stated, layer, known, split))
        .collect::<Result<Vec<_>>>()?;
    Ok((0..DRAWS).map(|draw| at_its_best(&layers, draw)).collect())
}

/// What a draw has held out at the layer that was best for it in training.
fn at_its_best(layers: &[Vec<Random>], draw: usize) -> f64 {
    let of_layers = layers.iter().map(|draws| draws[draw]);
    let best = of_layers.max_by(|a, b| a.training.total_cmp(&b.training));
    best.map_or(0.5, |best| best.held_out)
}

fn drawn_at(
    study: &Study<'_>,
    stated: &Stated,
    layer: usize,
    known: &Statements,
    split: &Split,
) -> Result<Vec<Random>> {
    let (d, rows) = (study.dims().d_model, &stated.last[layer]);
    let seed = study.options().seed + layer as u64;
    let mut directions = null::random(DRAWS / 2, d, seed);
    directions.extend(null::covariance_matched(rows, d, DRAWS - DRAWS / 2, seed)?);
    let area = |direction: &[f32], of: &[usize]| {
        let row = |&i: &usize| &rows[stated.unique[i] * d..][..d];
        let scores: Vec<f64> = of.iter().map(|i| dot(row(i), direction)).collect();
        let labels: Vec<bool> = of.iter().map(|&i| known.labels[i]).collect();
        auc(&scores, &labels).unwrap_or(0.5)
    };
    let read = |direction: &Vec<f32>| {
        let (train, test) = (area(direction, &split.train), area(direction, &split.test));
        if train >= 0.5 {
            Random {
                training: train,
                held_out: test,
            }
        } else {
            Random {
                training: 1.0 - train,
                held_out: 1.0 - test,
            }
        }
    };
    Ok(directions.par_iter().map(read).collect())
}

/// The layers that were published, and the one that is steered at, all statements counted; the others are in the table.
fn by_layer(study: &Study<'_>, layers: &[Layer], stated: &Stated) -> Vec<Number> {
    let mut told = Vec::new();
    let bootstrap = study.bootstrap();
    let (n, labels) = (stated.texts.len(), &stated.known.labels);
    let groups = stated.known.group_numbers(&(0..n).collect::<Vec<_>>());
    let interval = |right: Vec<bool>| {
        let share = share_right(&groups, &right, &bootstrap);
        with_width([share.low, share.high])
    };
    let steered = super::strength::steered_layer_of(study);
    for (layer, read) in layers.iter().enumerate() {
        let is_published = study.published(&format!("E11.auc.{layer}")).is_some();
        if layer != steered && !is_published {
            continue;
        }
        let named = |what: &str, value: f64, interval, key: String| {
            let mut told = number(format!("{what}, layer {layer}, all statements"), value, "");
            (told.interval, told.n) = (interval, Some(n));
            told.published = study.published(&key);
            told.note = "n statements, the interval is over their groups; z-scored over the different statements; above 0 counts as true".into();
            told
        };
        let positive = read.positive.iter().zip(labels);
        let right = positive.map(|(positive, label)| positive == label);
        told.push(named(
            "accuracy",
            read.all.accuracy,
            interval(right.collect()),
            format!("E11.accuracy.{layer}"),
        ));
        let area = baseline::auc_interval(&read.projections, labels, &groups, &bootstrap);
        let key = format!("E11.auc.{layer}");
        told.push(named("AUC", read.all.auc, area.bca(), key));
    }
    // The published share is of the layer that is steered at, and was taken for an accuracy there.
    if let Some(read) = layers.get(steered) {
        let name = format!("share projected positive, layer {steered}, all statements");
        let mut share = number(name, read.all.share_positive, "");
        share.published = study.published("E11.share-positive");
        (share.interval, share.n) = (interval(read.positive.clone()), Some(n));
        share.note = "labels play no part in it".into();
        told.push(share);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_standardised_over_different_statements_and_counted_over_those_asked_for() {
        // Two equal statements at 10 count once for the mean (4, deviation over n − 1 √(52/3)) and twice for the shares.
        let projections = [10.0, 10.0, 2.0, 4.0, 0.0];
        let labels = [true, true, true, false, false];
        let unique = [0, 2, 3, 4];
        let all = at_zero(&projections, &labels, &[0, 1, 2, 3, 4], &unique);
        assert_eq!((all.accuracy, all.share_positive), (0.8, 0.4));
        // sklearn 1.9.1: roc_auc_score([1, 1, 1, 0, 0], [10, 10, 2, 4, 0])
        assert!((all.auc - 5.0 / 6.0).abs() < 1e-12);
        let different = at_zero(&projections, &labels, &unique, &unique);
        assert_eq!((different.accuracy, different.auc), (0.75, 0.75));
    }

    #[test]
    fn the_layer_is_chosen_by_the_statements_given_alone() {
        let layer = |projections: [f64; 4]| {
            let none = AtZero {
                accuracy: 0.0,
                auc: 0.0,
                share_positive: 0.0,
            };
            Layer {
                projections: projections.to_vec(),
                positive: Vec::new(),
                all: none,
                unique: none,
            }
        };
        let layers = [
            layer([0.0, 1.0, 5.0, 0.0]),
            layer([1.0, 0.0, 0.0, 5.0]),
            layer([2.0, 0.0, 0.0, 9.0]),
        ];
        let labels = [true, false, true, false];
        assert_eq!(best(&layers, &[0, 1, 2, 3], &labels, &[0, 1]), 1);
        assert_eq!(best(&layers, &[0, 1, 2, 3], &labels, &[2, 3]), 0);
    }

    #[test]
    fn a_random_direction_is_read_at_the_layer_that_training_says_not_at_the_best_held_out() {
        let at = |training: f64, held_out: f64| vec![Random { training, held_out }];
        let layers = [at(0.6, 0.9), at(0.8, 0.55), at(0.7, 0.99)];
        assert_eq!(at_its_best(&layers, 0), 0.55);
    }
}
