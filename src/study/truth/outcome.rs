//! What E11 found, told in words and pictures.

use serde_json::json;

use super::{HeldOut, Layer, Topic};
use crate::report::finding::{At, Axis, Bar, Body, Exhibit, Reference, Series};
use crate::study::simpler::{Baseline, Negated};
use crate::study::statements::Stated;
use crate::study::tell::{exhibit, table, with_interval, with_width};

/// All that is told.
pub(super) struct Outcome {
    pub stated: Stated,
    pub layers: Vec<Layer>,
    pub chosen: usize,
    pub found: HeldOut,
    pub baselines: Vec<Baseline>,
    pub negated: Option<Negated>,
    pub topics: Vec<Topic>,
    /// How many random directions do as well.
    pub rank: String,
}

impl Outcome {
    pub fn answer(&self) -> Vec<String> {
        let Outcome {
            stated,
            layers,
            chosen,
            found,
            ..
        } = self;
        let area = found.auc.value.unwrap_or(f64::NAN);
        let low = found.auc.interval.map_or(f64::NAN, |ends| ends[0]);
        let mut told = vec![format!(
            "{} statements ({} different ones) were read by themselves: no chat, no persona, the last token's residual stream. At layer {chosen}, chosen on one half of the groups, \
             the direction tells true from false in the other half with accuracy {} and AUC {}.{}",
            stated.texts.len(),
            stated.unique.len(),
            with_interval(&found.accuracy),
            with_interval(&found.auc),
            if low > 0.5 {
                ""
            } else {
                " The interval holds one half, which is chance."
            },
        )];
        let simpler: Vec<String> = self
            .baselines
            .iter()
            .map(|b| format!("{} {:.2}", b.name, b.auc))
            .collect();
        let best = self.baselines.iter().map(|b| b.auc).fold(0.0, f64::max);
        told.push(format!(
            "Simpler readings of the same held-out statements, by AUC: {}. {} At least as well do {} of random directions (half of them with the rows' covariance), each read at the layer and on the side that training says.",
            simpler.join(", "),
            match (low > best, area > best) {
                (true, _) => "The direction is above them all, by its whole interval.",
                (false, true) => "The direction is above them, but its interval reaches down to them: that it tells more than they do is not shown.",
                (false, false) => "The direction does not tell more than the best of them.",
            },
            self.rank,
        ));
        told.extend(self.negated.as_ref().map(Negated::told));
        if let (Some(worst), Some(top)) = (
            self.topics.iter().min_by(|a, b| a.auc.total_cmp(&b.auc)),
            self.topics.iter().max_by(|a, b| a.auc.total_cmp(&b.auc)),
        ) {
            told.push(format!(
                "It is not the same on every topic: left out one at a time, with the layer chosen on the others, the AUC goes from {:.2} ({}) to {:.2} ({}).",
                worst.auc, worst.name, top.auc, top.name
            ));
        }
        let steered = &layers[*chosen].unique;
        told.push(format!(
            "The share of statements projected above the mean, {:.2} at that layer, is not an accuracy: labels play no part in it.",
            steered.share_positive
        ));
        told
    }

    pub fn exhibits(&self) -> Vec<Exhibit> {
        vec![self.lines(), self.bars(), self.table(), self.topics_table()]
    }

    fn lines(&self) -> Exhibit {
        let series = |name: &str, of: &dyn Fn(&Layer) -> f64| Series {
            name: name.into(),
            control: false,
            points: self
                .layers
                .iter()
                .enumerate()
                .map(|(layer, read)| {
                    At::new(layer as f64, Some(of(read)).filter(|y| y.is_finite()))
                })
                .collect(),
        };
        exhibit(
            "E11-layers",
            format!(
                "Accuracy at z = 0 and AUC of the direction of each layer, over the different statements. Layer {} was chosen on the training half.",
                self.chosen
            ),
            Body::Lines {
                x: Axis::new("layer", ""),
                y: Axis::new("share, area", ""),
                series: vec![
                    series("accuracy", &|l| l.unique.accuracy),
                    series("AUC", &|l| l.unique.auc),
                    Series {
                        control: true,
                        ..series("share projected positive", &|l| l.unique.share_positive)
                    },
                ],
                references: vec![Reference {
                    name: "chance".into(),
                    at: 0.5,
                }],
            },
        )
    }

    fn bars(&self) -> Exhibit {
        let ours = Bar {
            name: "direction".into(),
            value: self.found.accuracy.value,
            interval: self.found.accuracy.interval,
            control: false,
            points: Vec::new(),
            published: None,
        };
        let simpler = self.baselines.iter().map(|b| Bar {
            name: b.name.into(),
            value: Some(b.accuracy),
            interval: with_width(b.ends),
            control: true,
            points: Vec::new(),
            published: None,
        });
        exhibit(
            "E11-baselines",
            "Accuracy on the held-out half: of the direction, and of what can be had more simply. Intervals are over groups of statements.",
            Body::Bars {
                y: Axis::new("accuracy", ""),
                bars: std::iter::once(ours).chain(simpler).collect(),
            },
        )
    }

    fn table(&self) -> Exhibit {
        let row = |(layer, read): (usize, &Layer)| {
            let cells = [read.all, read.unique].map(|s| [s.accuracy, s.auc, s.share_positive]);
            std::iter::once(json!(layer))
                .chain(cells.concat().into_iter().map(|v| json!(v)))
                .collect()
        };
        exhibit(
            "E11-table",
            format!(
                "By layer, over all {} statements of the file and over the {} different ones.",
                self.stated.texts.len(),
                self.stated.unique.len()
            ),
            table(
                &[
                    "layer",
                    "accuracy_all",
                    "auc_all",
                    "share_positive_all",
                    "accuracy_unique",
                    "auc_unique",
                    "share_positive_unique",
                ],
                self.layers.iter().enumerate().map(row).collect(),
            ),
        )
    }

    fn topics_table(&self) -> Exhibit {
        let row = |t: &Topic| {
            vec![
                json!(t.name),
                json!(t.n),
                json!(t.layer),
                json!(t.accuracy),
                json!(t.auc),
            ]
        };
        let of = if self.stated.of_the_file {
            "topic"
        } else {
            "opening"
        };
        exhibit(
            "E11-topics",
            format!("One {of} left out at a time; the layer and the mean are those of the others."),
            table(
                &[of, "statements", "layer", "accuracy", "auc"],
                self.topics.iter().map(row).collect(),
            ),
        )
    }
}
