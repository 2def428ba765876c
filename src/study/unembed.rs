//! E3: what the LM head makes of the direction itself, beside random directions and rows of the residual stream.

use serde_json::{Value, json};

use super::statistics::mean;
use super::tell::{self, draws, exhibit, number, table};
use super::{Result, Study};
use crate::analysis::null;
use crate::backend::cpu::StoredWeights;
use crate::backend::{HEAD_ROWS, HeadRows, Scores, Weight};
use crate::engine::Steering;
use crate::report::finding::{At, Axis, Bar, Body, Exhibit, Finding, Number, Reference, Series};

/// Random directions, and rows of the residual stream, that stand beside the direction.
const DRAWS: usize = 100;
const QUICK_DRAWS: usize = 20;
/// Likeliest tokens that are shown.
const TOP: usize = 10;

/// With the final norm's gain, and without.
const GAINS: [(bool, &str); 2] = [(true, "with gain"), (false, "without gain")];
const SIGNS: [(f64, &str); 2] = [(1.0, "+d"), (-1.0, "−d")];

/// Readings of the direction and of its controls under one gain.
struct Read {
    gain: &'static str,
    /// d and −d.
    ours: Vec<Scores>,
    random: Vec<f64>,
    sampled: Vec<f64>,
    /// Of ±d, by layer.
    layers: Vec<[f64; 2]>,
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let layer = study.choice()?.layer;
    let head = Head::new(study);
    let n = if study.options().quick {
        QUICK_DRAWS
    } else {
        DRAWS
    };
    let random = null::random(n, head.d, study.options().seed);
    let sampled = null::sampled(&stream(study, layer)?, head.d, n, study.options().seed)?;
    let directions = study.directions()?;
    let read = GAINS.map(|(with, gain)| {
        let ours = |layer: usize| {
            let both = SIGNS.map(|(sign, _)| (directions.layer(layer), sign));
            head.read(study, &both, with, TOP)
        };
        let entropies = |of: &[Vec<f32>]| -> Result<Vec<f64>> {
            let of: Vec<_> = of.iter().map(|d| (&d[..], 1.0)).collect();
            Ok(head
                .read(study, &of, with, 0)?
                .iter()
                .map(|s| s.entropy)
                .collect())
        };
        let layers = (0..study.n_layers()).map(|layer| {
            let both = ours(layer)?;
            Ok([both[0].entropy, both[1].entropy])
        });
        Ok(Read {
            gain,
            ours: ours(layer)?,
            random: entropies(&random)?,
            sampled: entropies(&sampled)?,
            layers: layers.collect::<Result<_>>()?,
        })
    });
    let read = read.into_iter().collect::<Result<Vec<Read>>>()?;
    let most = (study.vocab() as f64).ln();
    let words = |token: u32| word(study, token);
    Ok(Finding {
        answer: answer(&read, layer, most, &words),
        numbers: read.iter().flat_map(Read::numbers).collect(),
        exhibits: vec![
            tokens(&read, layer, &words),
            bars(&read, layer, most),
            layers(&read, most),
        ],
        ..super::finding("Does the LM head, read off the direction itself, say what it stands for?")
    })
}

/// The rows of the residual stream behind the layer in all prompts. A first token's row is left out: it is alike in all, and the same few components make up its length.
fn stream(study: &Study<'_>, layer: usize) -> Result<Vec<f32>> {
    let prompts = study.prompts(None);
    let tokens: Vec<&[u32]> = prompts.iter().map(|asked| asked.tokens()).collect();
    let mut machine = study.machine();
    let steering = Steering::at_the_end(study.prepared(), &mut **machine, layer, &tokens)?;
    let d = study.dims().d_model;
    let of = |i: usize| steering.stream(i)[d..].iter().copied();
    Ok((0..tokens.len()).flat_map(of).collect())
}

/// The LM head behind the final norm: logits = W_U·(g ⊙ d̂·√d).
struct Head {
    d: usize,
    gain: Vec<f32>,
}

impl Head {
    fn new(study: &Study<'_>) -> Self {
        let d = study.dims().d_model;
        let mut gain = vec![0.0; d];
        study
            .prepared()
            .model
            .tensor(Weight::LnFinal)
            .widen(0, &mut gain);
        Head { d, gain }
    }

    /// Of unit vectors with their signs.
    fn read(
        &self,
        study: &Study<'_>,
        directions: &[(&[f32], f64)],
        with_gain: bool,
        top: usize,
    ) -> Result<Vec<Scores>> {
        let length = (self.d as f64).sqrt();
        let gain = |at: usize| {
            if with_gain {
                f64::from(self.gain[at])
            } else {
                1.0
            }
        };
        let normed = |&(direction, sign): &(&[f32], f64)| -> Vec<f32> {
            let scaled = direction.iter().enumerate();
            scaled
                .map(|(at, &x)| (sign * length * f64::from(x) * gain(at)) as f32)
                .collect()
        };
        let mut scores = Vec::with_capacity(directions.len());
        for directions in directions.chunks(HEAD_ROWS) {
            let normed: Vec<f32> = directions.iter().flat_map(normed).collect();
            let rows = HeadRows {
                normed: &normed,
                edits: Vec::new(),
            };
            scores.extend(
                study
                    .machine()
                    .scores(rows, &vec![None; directions.len()], top)?,
            );
        }
        Ok(scores)
    }
}

fn word(study: &Study<'_>, token: u32) -> String {
    let tokenizer = study.prepared().tokenising.tokenizer.as_ref();
    let text = tokenizer.and_then(|t| t.decode(&[token], false).ok());
    text.unwrap_or_else(|| token.to_string())
}

impl Read {
    fn numbers(&self) -> Vec<Number> {
        let of = |(scores, (_, sign)): (&Scores, (f64, &str))| {
            let mut told = number(
                format!("entropy of {sign}, {}", self.gain),
                scores.entropy,
                "nat",
            );
            let controls = [
                draws("random directions", &self.random),
                draws("rows of the residual stream", &self.sampled),
            ];
            told.controls.extend(controls.into_iter().flatten());
            told.note = format!(
                "of random directions {} are as low",
                self.rank(scores.entropy)
            );
            told
        };
        self.ours.iter().zip(SIGNS).map(of).collect()
    }

    /// Of the hypothesis that the entropy is a random direction's: how often one is at most that.
    fn p(&self, entropy: f64) -> f64 {
        let lower: Vec<f64> = self.random.iter().map(|e| -e).collect();
        null::rank_p(-entropy, &lower)
    }

    fn rank(&self, entropy: f64) -> String {
        let lower: Vec<f64> = self.random.iter().map(|e| -e).collect();
        tell::rank(-entropy, &lower)
    }
}

fn answer(read: &[Read], layer: usize, most: f64, words: &dyn Fn(u32) -> String) -> Vec<String> {
    let with = &read[0];
    let list = |scores: &Scores| {
        let shown = scores
            .top
            .iter()
            .take(5)
            .map(|&(t, _)| format!("{:?}", words(t)));
        shown.collect::<Vec<_>>().join(" ")
    };
    let entropies: Vec<f64> = with.ours.iter().map(|s| s.entropy).collect();
    let p = with
        .ours
        .iter()
        .map(|s| 2.0 * with.p(s.entropy))
        .fold(1.0, f64::min);
    vec![
        format!(
            "Read as if it were the normed residual stream, the direction of layer {layer} gives distributions of {:.2} (+d) and {:.2} nats (−d); uniform would be {most:.2}. \
             Random directions give {:.2} on average, rows of the residual stream at that layer {:.2}.",
            entropies[0],
            entropies[1],
            mean(&with.random),
            mean(&with.sampled),
        ),
        format!(
            "The likeliest tokens are {} of +d and {} of −d.",
            list(&with.ours[0]),
            list(&with.ours[1])
        ),
        if p <= 0.05 {
            format!(
                "One of the two is more peaked than random directions are (p = {p:.2} by rank, doubled because two were tried): the head reads something from it. Whether the tokens mean \
                 what the direction stands for is for a reader of the table to judge; the head is the last layer's, and the direction lies far below."
            )
        } else {
            format!(
                "That the head reads more from it than from random directions is not shown (p = {p:.2} by rank, of the more peaked one, doubled because two were tried), and neither is that \
                 it does not. The direction is written far below the head; what later blocks make of it is not seen here."
            )
        },
    ]
}

fn tokens(read: &[Read], layer: usize, words: &dyn Fn(u32) -> String) -> Exhibit {
    let rows = read.iter().flat_map(|read| {
        let of = |(scores, (_, sign)): (&Scores, (f64, &str))| {
            let of_one = |(rank, &(token, logprob)): (usize, &(u32, f64))| -> Vec<Value> {
                vec![
                    json!(sign),
                    json!(read.gain),
                    json!(rank + 1),
                    json!(token),
                    json!(words(token)),
                    json!(logprob.exp()),
                ]
            };
            scores
                .top
                .iter()
                .enumerate()
                .map(of_one)
                .collect::<Vec<_>>()
        };
        read.ours.iter().zip(SIGNS).flat_map(of).collect::<Vec<_>>()
    });
    exhibit(
        "E3-tokens",
        format!(
            "The likeliest tokens of the direction of layer {layer}, with the final norm's gain and without."
        ),
        table(
            &["direction", "gain", "rank", "id", "token", "probability"],
            rows.collect(),
        ),
    )
}

fn bars(read: &[Read], layer: usize, most: f64) -> Exhibit {
    let bar = |name: String, value: f64, interval, control, points: &[f64]| Bar {
        name,
        value: Some(value),
        interval,
        control,
        points: points.to_vec(),
        published: None,
    };
    let bars = read.iter().flat_map(|read| {
        let ours = read.ours.iter().zip(SIGNS);
        let ours = ours.map(|(s, (_, sign))| {
            bar(
                format!("{sign}, {}", read.gain),
                s.entropy,
                None,
                false,
                &[],
            )
        });
        let controls =
            [("random", &read.random), ("residual rows", &read.sampled)].map(|(name, values)| {
                let ends = tell::spread(values);
                bar(
                    format!("{name}, {}", read.gain),
                    mean(values),
                    ends,
                    true,
                    values,
                )
            });
        ours.chain(controls).collect::<Vec<_>>()
    });
    exhibit(
        "E3-entropy",
        format!(
            "Entropy of what the head makes of the direction of layer {layer}, and of its controls: each a point, 95 % of them within the bar's ends. Uniform would be {most:.2} nats."
        ),
        Body::Bars {
            y: Axis::new("entropy", "nat"),
            bars: bars.collect(),
        },
    )
}

fn layers(read: &[Read], most: f64) -> Exhibit {
    let series = read.iter().flat_map(|read| {
        SIGNS.iter().enumerate().map(|(which, (_, sign))| Series {
            name: format!("{sign}, {}", read.gain),
            control: read.gain != GAINS[0].1,
            points: read
                .layers
                .iter()
                .enumerate()
                .map(|(layer, entropies)| At::new(layer as f64, entropies[which]))
                .collect(),
        })
    });
    let reference = |name: &str, at: f64| Reference {
        name: name.into(),
        at,
    };
    exhibit(
        "E3-layers",
        "The same of every layer's direction.",
        Body::Lines {
            x: Axis::new("layer", ""),
            y: Axis::new("entropy", "nat"),
            series: series.collect(),
            references: vec![
                reference("uniform", most),
                reference("random directions, with gain", mean(&read[0].random)),
            ],
        },
    )
}
