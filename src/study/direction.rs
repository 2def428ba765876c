//! E1: a direction per layer, by LAT, from the same beginnings of statements said by an honest and by an untruthful persona.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::cuts::Cuts;
use super::statistics::mean;
use super::tell::with_width;
use super::{Result, Study, finding, folder, point};
use crate::analysis::baseline::auc_interval;
use crate::analysis::directions::{Direction, save};
use crate::analysis::project::dot;
use crate::analysis::scored::share_right;
use crate::analysis::{LatResult, LayerRows, Pair, Split, Statements, lat};
use crate::engine::direction_of_layer;
use crate::hooks::{HookPoint, Site};
use crate::report::finding::{At, Axis, Body, Exhibit, Finding, Number, Reference, Series};

const FILE: &str = "directions.safetensors";

/// A unit direction per layer, of `hook_resid_post`, from the negative to the positive persona.
#[derive(Debug, Clone)]
pub struct Directions {
    /// Where they are kept, tensor `direction.{layer}` each.
    pub file: PathBuf,
    layers: Vec<Vec<f32>>,
}

impl Directions {
    /// The direction of a layer's `hook_resid_post`, `[d]`.
    ///
    /// # Panics
    /// The model has no such layer.
    pub fn layer(&self, layer: usize) -> &[f32] {
        &self.layers[layer]
    }

    /// All of them, by layer.
    pub fn layers(&self) -> &[Vec<f32>] {
        &self.layers
    }

    /// Those that the folder has, or made now.
    pub(super) fn of(study: &Study<'_>) -> Result<Self> {
        let file = study.path(FILE);
        if !file.is_file() {
            Fitted::new(study)?.save(study)?;
        }
        let width = study.dims().d_model;
        let model = &study.prepared().model.fingerprint;
        let layers = (0..study.n_layers())
            .map(|layer| direction_of_layer(&file, None, Some(layer), width, model))
            .collect::<Result<_>>()?;
        Ok(Directions { file, layers })
    }
}

/// What is fitted at one hook point.
pub(super) struct AtPoint {
    pub lat: LatResult,
    /// The authors' accuracy: of a training pair's positive string against the next pair's negative one.
    pub authors: f64,
    /// Of each such string, whether it was right.
    authors_right: Vec<bool>,
    /// Projections of the held-out strings, positive and negative in turn.
    held_out: Vec<f64>,
}

/// The directions of all layers, and of the normed stream behind the last.
pub(super) struct Fitted {
    pub cuts: Cuts,
    /// By layer; the last one is `ln_final.hook_out`'s.
    pub points: Vec<AtPoint>,
}

impl Fitted {
    /// Runs the prompts and fits.
    pub fn new(study: &Study<'_>) -> Result<Self> {
        let template = &study.behaviour().template;
        let cuts = Cuts::new(study, &template.positive, &template.negative)?;
        let points = (0..study.n_layers()).map(|layer| point(Site::ResidPost, layer));
        let points: Vec<HookPoint> = points.chain([point(Site::LnFinalOut, 0)]).collect();
        let points = fit(study, &cuts, &points)?;
        Ok(Fitted { cuts, points })
    }

    /// The layers' points.
    fn layers(&self) -> &[AtPoint] {
        &self.points[..self.points.len() - 1]
    }

    /// The point of the normed stream.
    fn normed(&self) -> &AtPoint {
        &self.points[self.points.len() - 1]
    }

    /// Cosine of each layer's direction with the next one's.
    fn adjacent_cosines(&self) -> Vec<f64> {
        let pairs = self.layers().windows(2);
        pairs
            .map(|pair| dot(&pair[0].lat.direction, &pair[1].lat.direction))
            .collect()
    }

    /// Keeps the layers' directions, with where they are from.
    pub fn save(&self, study: &Study<'_>) -> Result<()> {
        let template = &study.behaviour().template;
        let source = json!({
            "model": { "name": study.prepared().job.model, "fingerprint": study.prepared().model.fingerprint },
            "facts": { "file": study.facts().file, "xxh3": study.facts().hash },
            "template": template.user,
            "positive": template.positive,
            "negative": template.negative,
            "train_pairs": self.cuts.train.len(),
            "test_pairs": self.cuts.test.len(),
        });
        let directions: Vec<Direction<'_>> = self
            .layers()
            .iter()
            .map(|at| Direction {
                layer: at.lat.layer,
                hook: &at.lat.hook,
                values: &at.lat.direction,
                about: json!({
                    "norm": at.lat.norm,
                    "threshold": at.lat.threshold,
                    "eigenvalue_ratio": at.lat.eigenvalue_ratio,
                    "cos_mean_difference": at.lat.cos_mean_difference,
                }),
            })
            .collect();
        let file = study.path(FILE);
        let part = file.with_extension("part");
        folder::make_folder(&study.options().out)?;
        save(&part, "lat", &directions, &source)?;
        let whole = std::fs::read(&part);
        let whole = whole.map_err(|source| super::Error::Read {
            path: part.clone(),
            source,
        })?;
        folder::write(&file, &whole)
    }
}

/// Fits a direction at each of these points; pairs of one statement go together in the intervals.
pub(super) fn fit(study: &Study<'_>, cuts: &Cuts, points: &[HookPoint]) -> Result<Vec<AtPoint>> {
    let rows = study.last_rows(points, &cuts.sequences())?;
    let used: Vec<usize> = cuts.train.clone().chain(cuts.test.clone()).collect();
    let n_train = cuts.train.len();
    let group = |&cut: &usize| cuts.cuts[cut].fact.to_string();
    let statements = Statements {
        labels: used.iter().flat_map(|_| [true, false]).collect(),
        groups: Some(
            used.iter()
                .flat_map(|cut| [group(cut), group(cut)])
                .collect(),
        ),
        topics: None,
    };
    let pairs: Vec<Pair> = (0..used.len())
        .map(|i| Pair {
            yes: 2 * i,
            no: 2 * i + 1,
        })
        .collect();
    let split = Split {
        train: (0..2 * n_train).collect(),
        test: (2 * n_train..2 * used.len()).collect(),
    };
    let bootstrap = study.bootstrap();
    let at = |(number, at): (usize, &HookPoint)| {
        let sequences = used.iter().flat_map(|cut| [2 * cut, 2 * cut + 1]);
        let layer = LayerRows {
            hook: at.to_string(),
            layer: match at.site {
                Site::LnFinalOut => study.n_layers(),
                _ => at.layer,
            },
            width: study.width(*at),
            rows: rows.gather(number, sequences).into(),
        };
        let lat = lat(&layer, &statements, &pairs, &split, &bootstrap)?;
        // The published test: strings n/2 … n − 1, which were trained on, each against the next one's other persona.
        let along = |sequence: usize| dot(rows.row(number, sequence), &lat.direction);
        let tested = cuts.authors();
        let right = tested.map(|i| along(2 * i) > along(2 * (i + 1) + 1));
        let authors_right: Vec<bool> = right.collect();
        let right = authors_right.iter().filter(|&&right| right).count();
        Ok(AtPoint {
            authors: right as f64 / authors_right.len() as f64,
            authors_right,
            held_out: (2 * cuts.test.start..2 * cuts.test.end)
                .map(along)
                .collect(),
            lat,
        })
    };
    points.iter().enumerate().map(at).collect()
}

/// The experiment.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let fitted = Fitted::new(study)?;
    fitted.save(study)?;
    let template = &study.behaviour().template;
    let mut found = finding(format!(
        "Is there, at each layer, a direction that tells a model told to be {} person from one told to be {} person?",
        template.positive, template.negative
    ));
    let cosines = fitted.adjacent_cosines();
    found.answer = answer(study, &fitted, &cosines)?;
    found.numbers = numbers(study, &fitted, &cosines);
    found.exhibits = vec![
        accuracies(study, &fitted),
        geometry(&fitted, &cosines),
        table(&fitted, &cosines),
        rendered(study, &fitted.cuts)?,
    ];
    Ok(found)
}

fn answer(study: &Study<'_>, fitted: &Fitted, cosines: &[f64]) -> Result<Vec<String>> {
    let layer = super::strength::steered_layer_of(study);
    let at = &fitted.layers()[layer];
    let (last, normed) = (&fitted.layers()[fitted.layers().len() - 1], fitted.normed());
    let at_every_layer = fitted.layers().iter();
    let sizes: Vec<f64> = cosines.iter().map(|c| c.abs()).collect();
    let negative = cosines.iter().enumerate().filter(|(_, c)| **c < 0.0);
    let turned: Vec<String> = negative
        .map(|(l, _)| format!("{l} and {}", l + 1))
        .collect();
    let leaking = at_every_layer
        .filter(|at| at.lat.matched_accuracy >= 0.99)
        .count();
    Ok(vec![
        format!(
            "At layer {layer}, the one that is steered, the direction puts the {} string of a held-out pair above its twin in {:.3} of pairs, and a held-out string by \
             itself on the right side of the threshold in {:.3}. The published test, of training strings against the next pair's, gives {:.3}.",
            study
                .behaviour()
                .template
                .positive
                .trim_start_matches("an ")
                .trim_start_matches("a "),
            at.lat.matched_accuracy,
            at.lat.accuracy,
            at.authors
        ),
        format!(
            "Matched-pair accuracy is no evidence of a concept. The two strings of a pair differ in one instruction word, which leaks into every later token, so that any pair of words can \
             be told apart: it is 0.99 or more at {leaking} of {} layers. The unpaired accuracy is the one to read; the published test is on strings that the direction was trained on.",
            study.n_layers()
        ),
        format!(
            "At layer {layer} the second eigenvalue is {:.2} of the first and the direction's |cosine| with the mean difference is {:.2}. Where the first is near 1, or the second near 0 \
             (early layers), the direction is one of many and not what the pairs differ in on average.",
            at.lat.eigenvalue_ratio, at.lat.cos_mean_difference
        ),
        format!(
            "The directions of neighbouring layers have a |cosine| of {:.2} on average, {:.2} at least. {}",
            mean(&sizes),
            sizes.iter().copied().fold(f64::INFINITY, f64::min),
            match turned.len() {
                0 => "All point the same way.".into(),
                _ => format!(
                    "Between layers {} the sign turns over (a negative cosine): the vote of the training pairs, which sets it, is nearly even there or differs from layer to layer, \
                     so do not compare the signs of projections across them.",
                    turned.join(", ")
                ),
            }
        ),
        format!(
            "The published index −1 is a direction of the stream after the final norm, not of the last block's output: unpaired accuracy {:.3} there, {:.3} before the norm, \
             and the two directions have a cosine of {:.2}.",
            normed.lat.accuracy,
            last.lat.accuracy,
            dot(&last.lat.direction, &normed.lat.direction)
        ),
        format!(
            "{} pairs of {} train, {} later ones test; intervals are over statements, not over their cuts.",
            fitted.cuts.train.len(),
            study.facts().file,
            fitted.cuts.test.len()
        ),
    ])
}

fn numbers(study: &Study<'_>, fitted: &Fitted, cosines: &[f64]) -> Vec<Number> {
    let layer = super::strength::steered_layer_of(study);
    let at = &fitted.layers()[layer];
    let bootstrap = study.bootstrap();
    let (tested, groups) = fitted.cuts.statements(fitted.cuts.test.clone());
    let (of_authors, _) = fitted.cuts.statements(fitted.cuts.authors());
    let authors = share_right(&of_authors, &at.authors_right, &bootstrap);
    // A pair's two strings belong to one statement.
    let twice: Vec<usize> = tested.iter().flat_map(|&group| [group, group]).collect();
    let labels: Vec<bool> = tested.iter().flat_map(|_| [true, false]).collect();
    let area = auc_interval(&at.held_out, &labels, &twice, &bootstrap);
    let mut numbers = vec![
        Number::new(format!("unpaired accuracy, layer {layer}"), at.lat.accuracy)
            .interval(with_width([at.lat.ci_low, at.lat.ci_high]))
            .over(groups)
            .beside("chance", 0.5),
        Number::new(
            format!("matched-pair accuracy, layer {layer}"),
            at.lat.matched_accuracy,
        )
        .interval(with_width([at.lat.matched_low, at.lat.matched_high]))
        .over(groups)
        .beside("unpaired accuracy", at.lat.accuracy)
        .note("leaks from the instruction word"),
        Number::new(format!("published accuracy, layer {layer}"), at.authors)
            .interval(with_width([authors.low, authors.high]))
            .over(fitted.cuts.statements(fitted.cuts.authors()).1)
            .beside("unpaired accuracy", at.lat.accuracy)
            .note("training strings, each against the next pair's"),
        Number::new(format!("AUC, layer {layer}"), at.lat.auc)
            .interval(area.bca())
            .over(groups),
        Number::new(
            format!("second eigenvalue over first, layer {layer}"),
            at.lat.eigenvalue_ratio,
        ),
        Number::new(
            format!("|cosine| with the mean difference, layer {layer}"),
            at.lat.cos_mean_difference,
        ),
    ];
    let authors: Vec<f64> = fitted.layers().iter().map(|at| at.authors).collect();
    let n_layers = fitted.layers().len();
    // The published bands of 32 layers, as deep in this model.
    let scaled = |layer: usize| (layer as f64 / 31.0 * (n_layers - 1) as f64).round() as usize;
    let bands = [(
        "E1.authors-accuracy.5-",
        "published accuracy",
        &authors,
        4,
        31,
    )];
    for (key, name, values, from, to) in bands {
        push_band(
            study,
            &mut numbers,
            key,
            name,
            values,
            scaled(from)..=scaled(to),
        );
    }
    let cosines = cosines.to_vec();
    for (key, from, to) in [
        ("E1.adjacent-cosine.1-9", 1, 8),
        ("E1.adjacent-cosine.9-16", 9, 15),
        ("E1.adjacent-cosine.16-", 16, 30),
    ] {
        let band = scaled(from)..=scaled(to);
        push_band(
            study,
            &mut numbers,
            key,
            "cosine with the next layer's",
            &cosines,
            band,
        );
    }
    numbers
}

/// The lowest and the highest of some layers' values.
fn push_band(
    study: &Study<'_>,
    numbers: &mut Vec<Number>,
    key: &str,
    name: &str,
    values: &[f64],
    layers: std::ops::RangeInclusive<usize>,
) {
    let (first, last) = (
        *layers.start(),
        (*layers.end()).min(values.len().saturating_sub(1)),
    );
    let Some(values) = values.get(first..=last).filter(|v| !v.is_empty()) else {
        return;
    };
    for (end, value) in [
        (
            "lowest",
            values.iter().copied().fold(f64::INFINITY, f64::min),
        ),
        (
            "highest",
            values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ),
    ] {
        let published = study.published(&format!("{key}.{end}"));
        numbers.push(
            Number::new(format!("{name}, {end} of layers {first} to {last}"), value)
                .published(published),
        );
    }
}

fn accuracies(study: &Study<'_>, fitted: &Fitted) -> Exhibit {
    let series = |name: &str, control: bool, y: &dyn Fn(&AtPoint) -> [f64; 3]| Series {
        name: name.into(),
        control,
        points: fitted
            .layers()
            .iter()
            .map(|at| {
                let [y, low, high] = y(at);
                At {
                    x: at.lat.layer as f64,
                    y: Some(y),
                    low: low.is_finite().then_some(low),
                    high: high.is_finite().then_some(high),
                    label: String::new(),
                }
            })
            .collect(),
    };
    Exhibit {
        name: "E1-accuracy".into(),
        caption: format!(
            "Three accuracies of each layer's direction. Read the unpaired one: held-out strings, each by itself, with its 95 % interval over statements. Matched pairs leak from the \
             instruction word; the published test reuses training strings. The edit is at layer {}.",
            super::strength::steered_layer_of(study)
        ),
        body: Body::Lines {
            x: Axis::new("layer", ""),
            y: Axis::new("accuracy", ""),
            series: vec![
                series("held out, unpaired", false, &|at| {
                    [at.lat.accuracy, at.lat.ci_low, at.lat.ci_high]
                }),
                series("held out, matched pairs", true, &|at| {
                    [
                        at.lat.matched_accuracy,
                        at.lat.matched_low,
                        at.lat.matched_high,
                    ]
                }),
                series("published test", true, &|at| {
                    [at.authors, f64::NAN, f64::NAN]
                }),
            ],
            references: vec![Reference {
                name: "chance".into(),
                at: 0.5,
            }],
        },
    }
}

fn geometry(fitted: &Fitted, cosines: &[f64]) -> Exhibit {
    let by_layer = |name: &str, y: &dyn Fn(&AtPoint) -> f64| Series {
        name: name.into(),
        control: false,
        points: fitted
            .layers()
            .iter()
            .map(|at| At::new(at.lat.layer as f64, y(at)))
            .collect(),
    };
    let next = (0..)
        .zip(cosines)
        .map(|(layer, &cos)| At::new(f64::from(layer), cos));
    Exhibit {
        name: "E1-geometry".into(),
        caption: "How well each direction is determined: the second eigenvalue over the first (near 1: one of many), its |cosine| with the mean difference, and its cosine with the next \
                  layer's direction."
            .into(),
        body: Body::Lines {
            x: Axis::new("layer", ""),
            y: Axis::new("ratio or cosine", ""),
            series: vec![
                Series {
                    name: "cosine with the next layer's".into(),
                    control: false,
                    points: next.collect(),
                },
                by_layer("|cosine| with the mean difference", &|at| at.lat.cos_mean_difference),
                by_layer("second eigenvalue over first", &|at| at.lat.eigenvalue_ratio),
            ],
            references: Vec::new(),
        },
    }
}

fn table(fitted: &Fitted, cosines: &[f64]) -> Exhibit {
    let columns = [
        "layer",
        "hook",
        "published_accuracy",
        "matched_accuracy",
        "matched_low",
        "matched_high",
        "unpaired_accuracy",
        "unpaired_low",
        "unpaired_high",
        "auc",
        "eigenvalue_ratio",
        "cos_mean_difference",
        "cos_next",
        "sign_votes",
        "norm",
        "threshold",
    ];
    let last = &fitted.layers()[fitted.layers().len() - 1].lat.direction;
    let row = |(i, at): (usize, &AtPoint)| -> Vec<Value> {
        let lat = &at.lat;
        let next = match cosines.get(i) {
            Some(&cos) => json!(cos),
            // The last layer's beside the normed stream's.
            None if i + 1 == fitted.points.len() => json!(dot(last, &lat.direction)),
            None => Value::Null,
        };
        vec![
            json!(lat.layer),
            json!(lat.hook),
            json!(at.authors),
            json!(lat.matched_accuracy),
            json!(lat.matched_low),
            json!(lat.matched_high),
            json!(lat.accuracy),
            json!(lat.ci_low),
            json!(lat.ci_high),
            json!(lat.auc),
            json!(lat.eigenvalue_ratio),
            json!(lat.cos_mean_difference),
            next,
            json!(lat.sign_votes),
            json!(lat.norm),
            json!(lat.threshold),
        ]
    };
    Exhibit {
        name: "E1-layers".into(),
        caption: "Every layer. The last row is the stream after the final norm (what HF's hidden_states[-1] holds): its cos_next is with the last layer's direction."
            .into(),
        body: Body::Table {
            columns: columns.map(String::from).to_vec(),
            rows: fitted.points.iter().enumerate().map(row).collect(),
        },
    }
}

/// What the model is given, as it is rendered.
fn rendered(study: &Study<'_>, cuts: &Cuts) -> Result<Exhibit> {
    let tokenizer = study.tokenizer()?;
    let first = cuts.cuts[0].fact;
    let longest = cuts.cuts.iter().take_while(|cut| cut.fact == first).last();
    let mut rows = Vec::new();
    if let Some(cut) = longest {
        let template = &study.behaviour().template;
        for (persona, ids) in [
            (&template.positive, &cut.positive),
            (&template.negative, &cut.negative),
        ] {
            rows.push(vec![
                json!(format!("direction, {persona}")),
                json!(ids.len()),
                json!(tokenizer.decode(ids, false)?),
            ]);
        }
    }
    for asked in study.prompts(None) {
        rows.push(vec![
            json!(asked.prompt.id),
            json!(asked.tokens().len()),
            json!(tokenizer.decode(asked.tokens(), false)?),
        ]);
    }
    Ok(Exhibit {
        name: "E1-rendered".into(),
        caption: "What the model is given, special tokens included: one pair of the direction's strings, and every prompt of the study."
            .into(),
        body: Body::Table {
            columns: ["prompt", "tokens", "text"].map(String::from).to_vec(),
            rows,
        },
    })
}
