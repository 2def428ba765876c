//! The mass-mean direction (Marks and Tegmark 2023, "The Geometry of Truth"): mean of the true statements' rows
//! minus mean of the false ones', with the threshold midway between the two; scored on statements held out.

use super::bootstrap::{Bootstrap, IntervalMethod};
use super::project::dot;
use super::rows::LayerRows;
use super::scored::HeldOut;
use super::split::{Split, Statements};
use super::{Error, Result};

/// A fitted direction and its threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct MassMean {
    /// Unit norm, f32; all zero where the two means are equal.
    pub direction: Vec<f32>,
    /// Euclidean distance of the two means, in the activations' own units.
    pub norm: f64,
    /// The projection of the point midway between the means; rows above it are called true.
    pub threshold: f64,
}

impl MassMean {
    /// Fit on rows with their labels. Sums are f64, in the order given.
    ///
    /// # Errors
    /// When one of the labels does not occur.
    ///
    /// # Panics
    /// When rows differ in length.
    pub fn fit<R: AsRef<[f32]>>(train: impl IntoIterator<Item = (R, bool)>) -> Result<Self> {
        let mut sums: [Vec<f64>; 2] = Default::default();
        let mut counts = [0usize; 2];
        for (row, label) in train {
            let row = row.as_ref();
            let sum = &mut sums[usize::from(label)];
            if sum.is_empty() {
                sum.resize(row.len(), 0.0);
            }
            assert_eq!(sum.len(), row.len(), "rows of one width");
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
            counts[usize::from(label)] += 1;
        }
        for label in [true, false] {
            if counts[usize::from(label)] == 0 {
                return Err(Error::OneLabel {
                    side: "training",
                    label,
                });
            }
        }
        assert_eq!(sums[0].len(), sums[1].len(), "rows of one width");

        let means = |of: usize| sums[of].iter().map(move |sum| sum / counts[of] as f64);
        let difference: Vec<f64> = means(1).zip(means(0)).map(|(yes, no)| yes - no).collect();
        let norm = difference
            .iter()
            .map(|value| value * value)
            .sum::<f64>()
            .sqrt();
        let unit = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        // What is scored is the f32 direction that is saved, not a more exact one that nobody will have.
        let direction: Vec<f32> = difference
            .iter()
            .map(|value| (value * unit) as f32)
            .collect();
        let midway = means(1).zip(means(0)).map(|(yes, no)| (yes + no) / 2.0);
        let threshold = midway
            .zip(&direction)
            .map(|(value, &d)| value * f64::from(d))
            .sum();
        Ok(MassMean {
            direction,
            norm,
            threshold,
        })
    }

    /// The row's component along the direction, in f64.
    pub fn project(&self, row: &[f32]) -> f64 {
        dot(row, &self.direction)
    }
}

/// One layer's direction and how well it tells true from false on held-out statements.
///
/// Serialises as a row of a table; the direction is left out of it and saved by [`super::directions::save`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MassMeanResult {
    pub layer: usize,
    pub hook: String,
    pub n_train: usize,
    pub n_test: usize,
    /// Share of held-out statements on the right side of the threshold.
    pub accuracy: f64,
    /// Interval of the accuracy, drawn over groups of held-out statements (over statements where there are none).
    pub ci_low: f64,
    pub ci_high: f64,
    pub ci_method: IntervalMethod,
    /// Area under the ROC of the held-out projections, ties half.
    pub auc: f64,
    pub threshold: f64,
    /// Distance of the two training means.
    pub norm: f64,
    /// Unit norm, `[width]`.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

/// Fit on the training side, score on the held-out side.
///
/// A held-out row whose projection equals the threshold counts as false: where all rows are equal (the embedding of a
/// full stop, say) the accuracy is the share of false statements.
///
/// # Errors
/// When rows and labels do not go together, a value is not finite, or a side lacks one of the labels.
pub fn mass_mean(
    layer: &LayerRows<'_>,
    statements: &Statements,
    split: &Split,
    bootstrap: &Bootstrap,
) -> Result<MassMeanResult> {
    statements.check()?;
    layer.check(statements.labels.len())?;
    let fitted = MassMean::fit(
        split
            .train
            .iter()
            .map(|&i| (layer.row(i), statements.labels[i])),
    )?;

    let held_out = split.test.iter();
    let projections: Vec<f64> = held_out.map(|&i| fitted.project(&layer.row(i))).collect();
    let HeldOut { accuracy, auc } =
        HeldOut::of(&projections, fitted.threshold, statements, split, bootstrap)?;
    Ok(MassMeanResult {
        layer: layer.layer,
        hook: layer.hook.clone(),
        n_train: split.train.len(),
        n_test: split.test.len(),
        accuracy: accuracy.share,
        ci_low: accuracy.low,
        ci_high: accuracy.high,
        ci_method: accuracy.method,
        auc,
        threshold: fitted.threshold,
        norm: fitted.norm,
        direction: fitted.direction,
    })
}

/// [`mass_mean`] of each layer in turn, on one split; layers are read one at a time, as the iterator gives them.
///
/// # Errors
/// The first that the iterator or a layer gives.
pub fn mean_diff<'a, E: From<Error>>(
    layers: impl IntoIterator<Item = Result<LayerRows<'a>, E>>,
    statements: &Statements,
    split: &Split,
    bootstrap: &Bootstrap,
) -> Result<Vec<MassMeanResult>, E> {
    layers
        .into_iter()
        .map(|layer| Ok(mass_mean(&layer?, statements, split, bootstrap)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::random::Rng;
    use super::super::rows::tests::Counted;
    use super::super::split::split;
    use super::*;

    const N: usize = 400;
    const WIDTH: usize = 16;

    fn statements() -> Statements {
        Statements {
            labels: (0..N).map(|i| i % 2 == 0).collect(),
            ..Default::default()
        }
    }

    /// Uniform noise in (−1, 1), `shift` added in feature 3 of the true statements, everything offset by 5.
    fn rows(labels: &[bool], shift: f32, seed: u64) -> LayerRows<'static> {
        let mut rng = Rng::new(seed);
        let mut rows = Vec::new();
        for &label in labels {
            for feature in 0..WIDTH {
                let noise = (rng.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0;
                rows.push(5.0 + noise + if label && feature == 3 { shift } else { 0.0 });
            }
        }
        LayerRows {
            hook: "blocks.4.hook_resid_post".into(),
            layer: 4,
            width: WIDTH,
            rows: rows.into(),
        }
    }

    fn result(layer: &LayerRows<'_>, statements: &Statements) -> MassMeanResult {
        let split = split(statements, 0.5, 0).unwrap();
        mass_mean(
            layer,
            statements,
            &split,
            &Bootstrap {
                resamples: 2000,
                ..Default::default()
            },
        )
        .unwrap()
    }

    #[test]
    fn separable_rows_are_told_apart_without_error() {
        let statements = statements();
        let found = result(&rows(&statements.labels, 10.0, 1), &statements);
        assert_eq!(
            (found.accuracy, found.auc, found.ci_low, found.ci_high),
            (1.0, 1.0, 1.0, 1.0)
        );
        assert_eq!((found.n_train, found.n_test), (200, 200));
        let norm: f64 = found.direction.iter().map(|&d| f64::from(d).powi(2)).sum();
        assert!(
            (norm - 1.0).abs() < 1e-6 && found.direction[3] > 0.99,
            "{:?}",
            found.direction
        );
        assert!((found.norm - 10.0).abs() < 0.5, "{}", found.norm);
    }

    #[test]
    fn rows_that_are_read_one_by_one_give_the_same_as_rows_in_memory() {
        let statements = statements();
        let held = rows(&statements.labels, 0.8, 2);
        let elsewhere = Counted::of(&held, N);
        assert_eq!(
            result(&elsewhere.layer(&held), &statements),
            result(&held, &statements)
        );
        // Each is looked at once for what is not finite, and once to fit or to score.
        assert_eq!(elsewhere.read.into_inner(), 2 * N);
    }

    #[test]
    fn shuffled_labels_stay_near_chance_and_inside_the_interval() {
        let mut statements = statements();
        let layer = rows(&statements.labels, 10.0, 1);
        Rng::new(9).shuffle(&mut statements.labels);
        let found = result(&layer, &statements);
        assert!(
            (found.accuracy - 0.5).abs() < 0.11 && (found.auc - 0.5).abs() < 0.12,
            "{found:?}"
        );
        assert!(found.ci_low < 0.5 && found.ci_high > 0.5, "{found:?}");
    }

    #[test]
    fn partly_separable_rows_give_an_interval_around_the_accuracy() {
        let statements = statements();
        let found = result(&rows(&statements.labels, 0.8, 2), &statements);
        assert!(found.accuracy > 0.6 && found.accuracy < 0.9, "{found:?}");
        assert!(
            found.ci_low < found.accuracy && found.accuracy < found.ci_high,
            "{found:?}"
        );
        assert_eq!(found.ci_method, IntervalMethod::Bca);
        // 200 statements: about ± 2·√(p(1−p)/200).
        assert!(
            (0.08..0.16).contains(&(found.ci_high - found.ci_low)),
            "{found:?}"
        );
    }

    #[test]
    fn the_threshold_lies_midway_between_unequal_classes() {
        // Nine true rows at 2, one false at 0: midway is 1, whatever the counts.
        let two = [2.0f32, 0.0];
        let train = (0..9)
            .map(|_| (&two[..], true))
            .chain([(&[0.0f32, 0.0][..], false)]);
        let fitted = MassMean::fit(train).unwrap();
        assert_eq!(
            fitted,
            MassMean {
                direction: vec![1.0, 0.0],
                norm: 2.0,
                threshold: 1.0
            }
        );
        assert_eq!(fitted.project(&[3.0, 7.0]), 3.0);
    }

    #[test]
    fn equal_rows_have_no_direction_and_are_all_called_false() {
        let statements = statements();
        let rows = vec![0.1f32; N * WIDTH];
        let layer = LayerRows {
            hook: "hook_embed".into(),
            layer: 0,
            width: WIDTH,
            rows: rows.into(),
        };
        let found = result(&layer, &statements);
        assert_eq!((found.accuracy, found.auc, found.norm), (0.5, 0.5, 0.0));
        assert!(found.direction.iter().all(|&d| d == 0.0));
    }

    #[test]
    fn groups_widen_the_interval_when_their_statements_stand_or_fall_together() {
        // Ten copies of each of 40 statements, as one group each.
        let labels: Vec<bool> = (0..40).map(|i| i % 2 == 0).collect();
        let once = rows(&labels, 0.8, 3);
        let copies: Vec<f32> = (0..400).flat_map(|i| once.row(i / 10).to_vec()).collect();
        let layer = LayerRows {
            rows: copies.into(),
            ..once
        };
        let grouped = Statements {
            labels: (0..400).map(|i| labels[i / 10]).collect(),
            groups: Some((0..400).map(|i| (i / 10).to_string()).collect()),
            topics: None,
        };
        let split = split(&grouped, 0.5, 0).unwrap();
        let width = |statements: &Statements| {
            let found = mass_mean(&layer, statements, &split, &Bootstrap::default()).unwrap();
            found.ci_high - found.ci_low
        };
        let alone = Statements {
            groups: None,
            ..grouped.clone()
        };
        assert!(
            width(&grouped) > 2.0 * width(&alone),
            "{} {}",
            width(&grouped),
            width(&alone)
        );
    }

    #[test]
    fn layers_are_scored_in_turn_and_the_first_error_stops() {
        let statements = statements();
        let split = split(&statements, 0.5, 0).unwrap();
        let layers = [
            rows(&statements.labels, 0.0, 1),
            rows(&statements.labels, 10.0, 1),
        ]
        .map(Ok::<_, Error>);
        let found = mean_diff(layers, &statements, &split, &Bootstrap::default()).unwrap();
        assert!(found[0].accuracy < 0.65 && found[1].accuracy == 1.0);

        let good = rows(&statements.labels, 0.0, 1);
        let mut values: Vec<f32> = (0..N).flat_map(|i| good.row(i).into_owned()).collect();
        values[5 * WIDTH + 2] = f32::NAN;
        let bad = LayerRows {
            rows: values.into(),
            ..good
        };
        let message = mean_diff(
            [Ok::<_, Error>(bad)],
            &statements,
            &split,
            &Bootstrap::default(),
        );
        let message = message.unwrap_err().to_string();
        assert!(
            message.starts_with("blocks.4.hook_resid_post: the row of statement 5"),
            "{message}"
        );
    }

    #[test]
    fn rows_that_do_not_go_with_the_labels_are_refused() {
        let statements = statements();
        let split = split(&statements, 0.5, 0).unwrap();
        let message = |layer: &LayerRows<'_>| {
            mass_mean(layer, &statements, &split, &Bootstrap::default())
                .unwrap_err()
                .to_string()
        };
        let few = rows(&statements.labels[1..], 0.0, 1);
        assert!(
            message(&few)
                .starts_with("rows of blocks.4.hook_resid_post: 399 where the labels of 400")
        );
        let ragged = LayerRows { width: 11, ..few };
        assert!(message(&ragged).contains("6384 values do not divide into rows of 11"));
    }
}
