//! E12: directions of truth by mass mean, at the last token of a statement and at the one before it: two directions, never pooled.

use rayon::prelude::*;
use serde_json::json;

use super::passes::point;
use super::simpler::{Baseline, Held, Negated};
use super::statements::Stated;
use super::statistics::mean;
use super::tell::{self, draws, exhibit, number, table, with_interval, with_width};
use super::{Result, Study};
use crate::analysis::project::dot;
use crate::analysis::{
    Bootstrap, LayerRows, MassMean, MassMeanResult, Split, Statements, baseline, mass_mean, null,
    split,
};
use crate::hooks::Site;
use crate::report::finding::{At, Axis, Body, Exhibit, Finding, Number, Reference, Series, Text};

/// Statements shown token by token: so many true ones and as many false ones.
const SHOWN: usize = 4;
/// Fits on shuffled labels.
const SHUFFLES: usize = 100;
const QUICK_SHUFFLES: usize = 20;

/// One of the two directions, of every layer.
struct Place {
    name: &'static str,
    /// For the names of exhibits.
    key: &'static str,
    layers: Vec<MassMeanResult>,
    /// By layer, in the training half alone.
    within_training: Vec<f64>,
    chosen: usize,
    /// Of the held-out AUC at the chosen layer, over groups of statements, and how many these are.
    auc_interval: Option<[f64; 2]>,
    groups: usize,
    /// Held-out accuracies at the chosen layer, fitted on shuffled labels.
    shuffled: Vec<f64>,
    topics: Vec<Topic>,
    negated: Option<Negated>,
}

/// One topic, read by what the others give.
struct Topic {
    name: String,
    /// Statements.
    n: usize,
    /// Chosen on the others.
    layer: usize,
    accuracy: f64,
}

/// The place of the highest; of equals the first.
fn highest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The statements that count: each different one once.
struct Data<'s, 'p> {
    study: &'s Study<'p>,
    stated: &'s Stated,
    known: Statements,
    split: Split,
    bootstrap: Bootstrap,
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let stated = Stated::run(study)?;
    let known = stated.of(&stated.unique);
    let data = Data {
        split: split(&known, 0.5, study.options().seed)?,
        bootstrap: study.bootstrap(),
        known,
        study,
        stated: &stated,
    };
    let places = [
        data.place("last token", "last", 1)?,
        data.place("token before the last", "before-last", 2)?,
    ];
    let cosines: Vec<f64> = places[0]
        .layers
        .iter()
        .zip(&places[1].layers)
        .map(|(a, b)| dot(&a.direction, &b.direction))
        .collect();
    let with_ours = |place: &Place| -> Result<Vec<f64>> {
        let directions = study.directions()?.layers();
        let pairs = place.layers.iter().zip(directions);
        Ok(pairs.map(|(a, b)| dot(&a.direction, b)).collect())
    };
    let with_ours = [with_ours(&places[0])?, with_ours(&places[1])?];
    let simpler = data.held().baselines(study)?;
    Ok(Finding {
        answer: answer(&places, &cosines, &with_ours, &simpler),
        numbers: numbers(study, &places, &cosines, &with_ours, &simpler),
        exhibits: vec![
            lines(&places, &simpler),
            data.texts(&places[0])?,
            by_layer(&places, &cosines, &with_ours),
            by_topic(&places),
        ],
        ..super::finding(
            "Is there a direction of truth in plain statements, found by mass mean, and is it the same at a statement's last token and at the one before?",
        )
    })
}

impl Data<'_, '_> {
    fn held(&self) -> Held<'_> {
        Held {
            stated: self.stated,
            known: &self.known,
            split: &self.split,
            bootstrap: &self.bootstrap,
        }
    }

    fn rows(&self, layer: usize, rows: &[f32]) -> LayerRows<'static> {
        let d = self.study.dims().d_model;
        let of = self.stated.unique.iter();
        LayerRows {
            hook: point(Site::ResidPost, layer).to_string(),
            layer,
            width: d,
            rows: of
                .flat_map(|&i| rows[i * d..(i + 1) * d].iter().copied())
                .collect::<Vec<_>>()
                .into(),
        }
    }

    /// The direction at the token that is `back` from the end.
    fn place(&self, name: &'static str, key: &'static str, back: usize) -> Result<Place> {
        let rows = [&self.stated.last, &self.stated.before_last][back - 1];
        let rows: Vec<LayerRows<'_>> = rows
            .iter()
            .enumerate()
            .map(|(layer, rows)| self.rows(layer, rows))
            .collect();
        let layers = rows
            .iter()
            .map(|rows| mass_mean(rows, &self.known, &self.split, &self.bootstrap))
            .collect::<Result<Vec<_>, _>>()?;
        let within_training = self.within(&rows, &self.split.train)?;
        let chosen = highest(&within_training);
        let groups = self.known.group_numbers(&self.split.test);
        Ok(Place {
            auc_interval: self.auc_interval(&rows[chosen], &layers[chosen], &groups),
            groups: groups.iter().max().map_or(0, |last| last + 1),
            shuffled: self.shuffled(&rows[chosen])?,
            topics: self.topics(&rows)?,
            negated: Negated::read(
                self.study,
                self.held(),
                chosen,
                &layers[chosen].direction,
                back,
            )?,
            name,
            key,
            layers,
            within_training,
            chosen,
        })
    }

    /// Of the held-out statements, by a layer's direction.
    fn auc_interval(
        &self,
        rows: &LayerRows<'_>,
        fitted: &MassMeanResult,
        groups: &[usize],
    ) -> Option<[f64; 2]> {
        let row = |i: usize| rows.row(i);
        let test = &self.split.test;
        let scores: Vec<f64> = test
            .iter()
            .map(|&i| dot(&row(i), &fitted.direction))
            .collect();
        let labels: Vec<bool> = test.iter().map(|&i| self.known.labels[i]).collect();
        baseline::auc_interval(&scores, &labels, groups, &self.bootstrap).bca()
    }

    /// Of each layer the accuracy within these statements alone, split once more: by it a layer is chosen.
    fn within(&self, layers: &[LayerRows<'_>], statements: &[usize]) -> Result<Vec<f64>> {
        let of: Vec<usize> = statements.iter().map(|&i| self.stated.unique[i]).collect();
        let inner = split(&self.stated.of(&of), 0.5, self.study.options().seed + 1)?;
        let inner = Split {
            train: inner.train.iter().map(|&i| statements[i]).collect(),
            test: inner.test.iter().map(|&i| statements[i]).collect(),
        };
        let (known, none) = (&self.known, self.no_interval());
        let accuracy = |rows: &LayerRows<'_>| Ok(mass_mean(rows, known, &inner, &none)?.accuracy);
        layers.par_iter().map(accuracy).collect()
    }

    /// For fits of which only the value is wanted.
    fn no_interval(&self) -> Bootstrap {
        Bootstrap {
            resamples: 1,
            ..self.bootstrap
        }
    }

    /// Held-out accuracies of directions fitted on the training statements with their labels shuffled.
    fn shuffled(&self, rows: &LayerRows<'_>) -> Result<Vec<f64>> {
        let n = if self.study.options().quick {
            QUICK_SHUFFLES
        } else {
            SHUFFLES
        };
        let row = |i: usize| rows.row(i);
        let labels: Vec<bool> = self
            .split
            .train
            .iter()
            .map(|&i| self.known.labels[i])
            .collect();
        null::shuffles(&labels, n, self.study.options().seed)
            .into_iter()
            .map(|labels| {
                let train = self.split.train.iter().map(|&i| row(i)).zip(labels);
                let fitted = MassMean::fit(train)?;
                let right = self.split.test.iter().filter(|&&i| {
                    (fitted.project(&row(i)) > fitted.threshold) == self.known.labels[i]
                });
                Ok(right.count() as f64 / self.split.test.len() as f64)
            })
            .collect()
    }

    /// Each topic's accuracy, with all of it left out of the fit and of the choice of the layer.
    fn topics(&self, layers: &[LayerRows<'_>]) -> Result<Vec<Topic>> {
        let Some(topics) = &self.known.topics else {
            return Ok(Vec::new());
        };
        let names: std::collections::BTreeSet<&String> =
            topics.iter().filter(|t| !t.is_empty()).collect();
        let mut found = Vec::new();
        for name in names {
            let (test, train): (Vec<usize>, Vec<usize>) =
                (0..topics.len()).partition(|&i| topics[i] == *name);
            let n = test.len();
            let has_both = |of: &[usize]| {
                [true, false]
                    .iter()
                    .all(|l| of.iter().any(|&i| self.known.labels[i] == *l))
            };
            if has_both(&test) && has_both(&train) {
                let layer = highest(&self.within(layers, &train)?);
                let split = Split { train, test };
                let left_out = mass_mean(&layers[layer], &self.known, &split, &self.no_interval())?;
                found.push(Topic {
                    name: name.clone(),
                    n,
                    layer,
                    accuracy: left_out.accuracy,
                });
            }
        }
        Ok(found)
    }

    /// Held-out statements token by token, by their projection less the threshold.
    fn texts(&self, place: &Place) -> Result<Exhibit> {
        let fitted = &place.layers[place.chosen];
        let of = |label: bool| {
            let held_out = self.split.test.iter().copied();
            held_out
                .filter(move |&i| self.known.labels[i] == label)
                .take(SHOWN)
        };
        let shown: Vec<usize> = of(true).chain(of(false)).collect();
        let tokens: Vec<&[u32]> = shown
            .iter()
            .map(|&i| &self.stated.tokens[self.stated.unique[i]][..])
            .collect();
        let all: Vec<Vec<u32>> = tokens
            .iter()
            .map(|t| (0..t.len() as u32).collect())
            .collect();
        let rows = self
            .study
            .rows(&[point(Site::ResidPost, fitted.layer)], &tokens, &all, None)?;
        let mut rows = rows[0].chunks_exact(fitted.direction.len());
        let tokenizer = self.study.tokenizer()?;
        let mut texts = Vec::new();
        for (&i, tokens) in shown.iter().zip(&tokens) {
            let words = tokens.iter().map(|&t| tokenizer.decode(&[t], false));
            let mut values: Vec<Option<f64>> = rows
                .by_ref()
                .take(tokens.len())
                .map(|row| Some(dot(row, &fitted.direction) - fitted.threshold))
                .collect();
            // A first token holds the same massive components in every text: its projection would be the whole scale.
            values[0] = None;
            texts.push(Text {
                name: if self.known.labels[i] {
                    "true"
                } else {
                    "false"
                }
                .into(),
                tokens: words.collect::<Result<_, _>>()?,
                values,
            });
        }
        Ok(exhibit(
            "E12-tokens",
            format!(
                "Held-out statements token by token, by the projection on the last token's direction at layer {}, less the threshold: above 0 reads as true. The direction was made for the last token; what it says of earlier ones is not known to mean anything.",
                fitted.layer
            ),
            Body::Tokens {
                value: Axis::new("projection less threshold", ""),
                texts,
            },
        ))
    }
}

impl Place {
    fn best(&self) -> &MassMeanResult {
        &self.layers[self.chosen]
    }

    fn accuracy(&self) -> Number {
        let best = self.best();
        let name = format!(
            "held-out accuracy, {}, layer {} (chosen in training)",
            self.name, self.chosen
        );
        let mut told = number(name, best.accuracy, "");
        told.interval = with_width([best.ci_low, best.ci_high]);
        told.n = Some(best.n_test);
        told.note = "n statements; the interval is over their groups".into();
        told
    }

    fn p(&self) -> f64 {
        null::rank_p(self.best().accuracy, &self.shuffled)
    }
}

fn numbers(
    study: &Study<'_>,
    places: &[Place],
    cosines: &[f64],
    with_ours: &[Vec<f64>; 2],
    simpler: &[Baseline],
) -> Vec<Number> {
    let mut told = Vec::new();
    for (place, with_ours) in places.iter().zip(with_ours) {
        let mut accuracy = place.accuracy();
        accuracy
            .controls
            .extend(simpler.iter().map(Baseline::control));
        accuracy
            .controls
            .extend(draws("fitted on shuffled labels", &place.shuffled));
        told.push(accuracy);
        let mut area = number(
            format!("held-out AUC, {}", place.name),
            place.best().auc,
            "",
        );
        (area.interval, area.n) = (place.auc_interval, Some(place.groups));
        area.note = "n groups of statements".into();
        area.controls = simpler
            .iter()
            .filter_map(|b| tell::control(b.name, b.auc))
            .collect();
        told.push(area);
        let left_out: Vec<f64> = place.topics.iter().map(|t| t.accuracy).collect();
        if !left_out.is_empty() {
            let name = format!(
                "mean accuracy on a topic left out of the fit, {}",
                place.name
            );
            let mut mean = tell::mean(study, name, &left_out, "");
            mean.note =
                "n topics, which the interval is over; the layer is chosen on the others".into();
            told.push(mean);
        }
        if let Some(negated) = &place.negated {
            for number in [&negated.negated, &negated.plain] {
                told.push(Number {
                    name: format!("{}, {}", number.name, place.name),
                    ..number.clone()
                });
            }
        }
        let name = format!(
            "cosine with the study's direction, {}, layer {}",
            place.name, place.chosen
        );
        told.push(number(name, with_ours[place.chosen], "").note(by_chance(place)));
    }
    let at = places[0].chosen;
    told.push(
        number(
            format!("cosine of the two directions, layer {at}"),
            cosines[at],
            "",
        )
        .note(by_chance(&places[0])),
    );
    told
}

/// Between what two values 95 % of the cosines of random directions lie: the components of a random unit vector have variance 1/d.
fn chance(place: &Place) -> f64 {
    1.96 / (place.best().direction.len() as f64).sqrt()
}

fn by_chance(place: &Place) -> String {
    format!(
        "95 % of pairs of random directions have a |cosine| below {:.2}",
        chance(place)
    )
}

fn answer(
    places: &[Place],
    cosines: &[f64],
    with_ours: &[Vec<f64>; 2],
    simpler: &[Baseline],
) -> Vec<String> {
    let of = |place: &Place| {
        format!(
            "{} at the {} (layer {}, chosen within the training half; {:.2} on average where labels were shuffled, p = {:.2})",
            with_interval(&place.accuracy()),
            place.name,
            place.chosen,
            mean(&place.shuffled),
            place.p()
        )
    };
    let mut told = vec![
        format!(
            "Mean of the true statements less mean of the false ones, fitted on one half of the groups, with the midpoint as threshold. In the other half it is right on {} and {}.",
            of(&places[0]),
            of(&places[1])
        ),
        beside(&places[0], simpler),
    ];
    told.extend(places[0].negated.as_ref().map(Negated::told));
    let (at, chance) = (places[0].chosen, chance(&places[0]));
    let ours = [with_ours[0][at], with_ours[1][at]];
    let beyond = ours.iter().filter(|cos| cos.abs() > chance).count();
    told.push(format!(
        "At layer {at} the two directions have a cosine of {:.2} with each other, and of {:.2} and {:.2} with the direction that the personas gave, where 95 % of random directions stay \
         within ±{chance:.2}: {}. They are never pooled.",
        cosines[at],
        ours[0],
        ours[1],
        match beyond {
            0 => "that either shares anything with it is not shown",
            1 => "one of them shares more with it than chance would have it, the other does not show that",
            _ if ours[0] * ours[1] > 0.0 => "both share more with it than chance would have it, and neither is the same direction",
            _ => "both have more to do with it than chance would have it, one of them with the opposite sign",
        }
    ));
    told
}

/// What the simplest readings of the same statements get.
fn beside(place: &Place, simpler: &[Baseline]) -> String {
    let each: Vec<String> = simpler
        .iter()
        .map(|b| format!("{} {:.2}", b.name, b.accuracy))
        .collect();
    let best = simpler.iter().map(|b| b.accuracy).fold(0.5, f64::max);
    format!(
        "Simpler readings of the same statements, by accuracy: {}. {}",
        each.join(", "),
        if place.best().ci_low > best {
            "The last token's direction is above all of them by its whole interval."
        } else if place.best().accuracy > best {
            "The last token's direction is above them, but its interval reaches down to the best of them: that it holds more is not shown."
        } else {
            "The last token's direction is not above the best of them."
        }
    )
}

fn lines(places: &[Place], simpler: &[Baseline]) -> Exhibit {
    let series = places.iter().map(|place| Series {
        name: place.name.into(),
        control: false,
        points: place
            .layers
            .iter()
            .map(|layer| At {
                x: layer.layer as f64,
                y: Some(layer.accuracy),
                low: Some(layer.ci_low),
                high: Some(layer.ci_high),
                label: String::new(),
            })
            .collect(),
    });
    let reference = |name: &str, at: f64| Reference {
        name: name.into(),
        at,
    };
    let best = simpler
        .iter()
        .max_by(|a, b| a.accuracy.total_cmp(&b.accuracy));
    exhibit(
        "E12-layers",
        "Accuracy on the held-out half by layer, with intervals over groups of statements, beside chance and the best of the simpler readings.",
        Body::Lines {
            x: Axis::new("layer", ""),
            y: Axis::new("accuracy", ""),
            series: series.collect(),
            references: std::iter::once(reference("chance", 0.5))
                .chain(best.map(|b| reference(b.name, b.accuracy)))
                .collect(),
        },
    )
}

fn by_layer(places: &[Place], cosines: &[f64], with_ours: &[Vec<f64>; 2]) -> Exhibit {
    let mut rows = Vec::new();
    for (place, with_ours) in places.iter().zip(with_ours) {
        for (layer, read) in place.layers.iter().enumerate() {
            rows.push(vec![
                json!(place.key),
                json!(layer),
                json!(read.accuracy),
                json!(read.ci_low),
                json!(read.ci_high),
                json!(read.auc),
                json!(read.threshold),
                json!(read.norm),
                json!(place.within_training[layer]),
                json!(with_ours[layer]),
                json!(cosines[layer]),
            ]);
        }
    }
    let columns = [
        "token",
        "layer",
        "accuracy",
        "low",
        "high",
        "auc",
        "threshold",
        "distance_of_means",
        "accuracy_within_training",
        "cosine_with_the_direction",
        "cosine_of_the_two",
    ];
    exhibit(
        "E12-table",
        "By token and layer, held out.",
        table(&columns, rows),
    )
}

fn by_topic(places: &[Place]) -> Exhibit {
    let rows = places.iter().flat_map(|place| {
        let row = |topic: &Topic| {
            vec![
                json!(place.key),
                json!(topic.layer),
                json!(topic.name),
                json!(topic.n),
                json!(topic.accuracy),
            ]
        };
        place.topics.iter().map(row)
    });
    exhibit(
        "E12-topics",
        "Accuracy on each topic, with all of it left out of the fit and of the choice of the layer.",
        table(
            &["token", "layer", "topic", "statements", "accuracy"],
            rows.collect(),
        ),
    )
}
