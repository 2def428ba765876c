//! E12: directions of truth by mass mean, at the last token of a statement and at the one before it: two directions, never pooled.

use serde_json::json;

use super::passes::point;
use super::simpler::{Held, Negated};
use super::statements::Stated;
use super::statistics::mean;
use super::tell::{draws, exhibit, number, table, with_interval};
use super::{Result, Study};
use crate::analysis::project::dot;
use crate::analysis::{
    Bootstrap, LayerRows, MassMean, MassMeanResult, Split, Statements, mass_mean, null, split,
};
use crate::hooks::Site;
use crate::report::finding::{
    At, Axis, Body, Control, Exhibit, Finding, Number, Reference, Series, Text,
};

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
    /// Held-out accuracies at the chosen layer, fitted on shuffled labels.
    shuffled: Vec<f64>,
    /// Held-out accuracy of each topic at the chosen layer, fitted on the others.
    topics: Vec<(String, usize, f64)>,
    negated: Option<Negated>,
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
    let words = data.held().bag_of_words()?;
    let words = Control {
        name: words.name.into(),
        value: words.accuracy,
        interval: Some(words.ends),
    };
    Ok(Finding {
        answer: answer(&places, &cosines, &with_ours, &words),
        numbers: numbers(&places, &cosines, &with_ours, &words),
        exhibits: vec![
            lines(&places, &words),
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
        let inner = self.within_training()?;
        let few = Bootstrap {
            resamples: 1,
            ..self.bootstrap
        };
        let (mut layers, mut within_training) = (Vec::new(), Vec::new());
        for (layer, rows) in rows.iter().enumerate() {
            let rows = self.rows(layer, rows);
            layers.push(mass_mean(&rows, &self.known, &self.split, &self.bootstrap)?);
            within_training.push(mass_mean(&rows, &self.known, &inner, &few)?.accuracy);
        }
        let best = |best: usize, layer: usize| {
            if within_training[layer] > within_training[best] {
                layer
            } else {
                best
            }
        };
        let chosen = (0..layers.len()).fold(0, best);
        let here = self.rows(chosen, &rows[chosen]);
        Ok(Place {
            shuffled: self.shuffled(&here)?,
            topics: self.topics(&here, &few)?,
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

    /// The training half, split again: the layer is chosen there.
    fn within_training(&self) -> Result<Split> {
        let train = &self.split.train;
        let of: Vec<usize> = train.iter().map(|&i| self.stated.unique[i]).collect();
        let inner = split(&self.stated.of(&of), 0.5, self.study.options().seed + 1)?;
        Ok(Split {
            train: inner.train.iter().map(|&i| train[i]).collect(),
            test: inner.test.iter().map(|&i| train[i]).collect(),
        })
    }

    /// Held-out accuracies of directions fitted on the training statements with their labels shuffled.
    fn shuffled(&self, rows: &LayerRows<'_>) -> Result<Vec<f64>> {
        let n = if self.study.options().quick {
            QUICK_SHUFFLES
        } else {
            SHUFFLES
        };
        let row = |i: usize| &rows.rows[i * rows.width..][..rows.width];
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
                    (fitted.project(row(i)) > fitted.threshold) == self.known.labels[i]
                });
                Ok(right.count() as f64 / self.split.test.len() as f64)
            })
            .collect()
    }

    /// Each topic's accuracy, with all of it left out of the fit.
    fn topics(&self, rows: &LayerRows<'_>, few: &Bootstrap) -> Result<Vec<(String, usize, f64)>> {
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
                let left_out = mass_mean(rows, &self.known, &Split { train, test }, few)?;
                found.push((name.clone(), n, left_out.accuracy));
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
        told.interval = Some([best.ci_low, best.ci_high]);
        told.n = Some(best.n_test);
        told.note = "n statements; the interval is over their groups".into();
        told
    }

    fn p(&self) -> f64 {
        null::rank_p(self.best().accuracy, &self.shuffled)
    }
}

fn numbers(
    places: &[Place],
    cosines: &[f64],
    with_ours: &[Vec<f64>; 2],
    words: &Control,
) -> Vec<Number> {
    let mut told = Vec::new();
    for (place, with_ours) in places.iter().zip(with_ours) {
        let mut accuracy = place.accuracy();
        accuracy.controls.push(words.clone());
        accuracy
            .controls
            .extend(draws("fitted on shuffled labels", &place.shuffled));
        told.push(accuracy);
        told.push(number(
            format!("held-out AUC, {}", place.name),
            place.best().auc,
            "",
        ));
        let left_out: Vec<f64> = place.topics.iter().map(|t| t.2).collect();
        if !left_out.is_empty() {
            let mut mean = number(
                format!(
                    "mean accuracy on a topic left out of the fit, {}",
                    place.name
                ),
                mean(&left_out),
                "",
            );
            mean.n = Some(left_out.len());
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
        told.push(number(name, with_ours[place.chosen], ""));
    }
    let at = places[0].chosen;
    told.push(number(
        format!("cosine of the two directions, layer {at}"),
        cosines[at],
        "",
    ));
    told
}

fn answer(
    places: &[Place],
    cosines: &[f64],
    with_ours: &[Vec<f64>; 2],
    words: &Control,
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
    let lowest = places[0].best().ci_low;
    let mut told = vec![
        format!(
            "Mean of the true statements less mean of the false ones, fitted on one half of the groups, with the midpoint as threshold. In the other half it is right on {} and {}.",
            of(&places[0]),
            of(&places[1])
        ),
        format!(
            "The words alone, by a probe on a bag of words, get {:.2}. {}",
            words.value,
            if lowest > words.value {
                "The last token's direction is above that by its whole interval: it holds more than which words stand there."
            } else {
                "The last token's direction is not above that by its whole interval: that it holds more than the words is not shown."
            }
        ),
    ];
    told.extend(places[0].negated.as_ref().map(Negated::told));
    let at = places[0].chosen;
    told.push(format!(
        "At layer {at} the two directions have a cosine of {:.2} with each other, and of {:.2} and {:.2} with the direction that the personas gave: {}. They are never pooled.",
        cosines[at],
        with_ours[0][at],
        with_ours[1][at],
        if with_ours[0][at].abs() < 0.3 {
            "what a persona changes and whether a statement holds lie along different directions"
        } else {
            "they share a part with it"
        }
    ));
    told
}

fn lines(places: &[Place], words: &Control) -> Exhibit {
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
    exhibit(
        "E12-layers",
        "Accuracy on the held-out half by layer, with intervals over groups of statements.",
        Body::Lines {
            x: Axis::new("layer", ""),
            y: Axis::new("accuracy", ""),
            series: series.collect(),
            references: vec![
                reference("chance", 0.5),
                reference("bag of words", words.value),
            ],
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
        let row = |(name, n, accuracy): &(String, usize, f64)| {
            vec![
                json!(place.key),
                json!(place.chosen),
                json!(name),
                json!(n),
                json!(accuracy),
            ]
        };
        place.topics.iter().map(row)
    });
    exhibit(
        "E12-topics",
        "Accuracy on each topic, with all of it left out of the fit.",
        table(
            &["token", "layer", "topic", "statements", "accuracy"],
            rows.collect(),
        ),
    )
}
