//! A linear probe in closed form: ridge regression on the label, which needs no more of the rows than their means and second moments.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::bootstrap::{Bootstrap, IntervalMethod};
use super::from_sums::Sums;
use super::principal::{Moments, PIECE};
use super::rows::LayerRows;
use super::scored::HeldOut;
use super::split::{Split, Statements};
use super::{Error, Result};

/// Weights and intercept, for rows as they are: positive where true is the likelier label.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    pub weights: Vec<f64>,
    pub intercept: f64,
}

impl Linear {
    pub fn score(&self, row: &[f32]) -> f64 {
        let sum: f64 = row
            .iter()
            .zip(&self.weights)
            .map(|(&x, w)| f64::from(x) * w)
            .sum();
        sum + self.intercept
    }

    /// Where the score changes its sign, along the weights at unit length.
    pub fn threshold(&self) -> f64 {
        let norm = self.weights.iter().map(|w| w * w).sum::<f64>().sqrt();
        if norm > 0.0 {
            -self.intercept / norm
        } else {
            0.0
        }
    }
}

/// Minimises the mean of (w·z + b − y)² plus `penalty`·‖w‖² over the rows summed, where y is −1 for false and +1 for true and z are the
/// features at mean 0 and deviation 1 (over n); features that never change get no weight. With scikit-learn: Ridge(alpha = penalty · n) on
/// standardised rows.
///
/// # Errors
/// Sums without second moments or of several widths; a penalty so small that the equations cannot be solved.
pub fn ridge([no, yes]: [&Sums; 2], penalty: f64, hook: &str) -> Result<Linear> {
    let width = yes.sum.len();
    let (Some(no_outer), Some(yes_outer)) = (&no.outer, &yes.outer) else {
        return Err(Error::Sums { hook: hook.into() });
    };
    if no.sum.len() != width
        || [no_outer, yes_outer]
            .iter()
            .any(|o| o.len() != width * width)
    {
        return Err(Error::Sums { hook: hook.into() });
    }
    let n = (no.n + yes.n) as f64;
    let mean: Vec<f64> = (no.sum.iter().zip(&yes.sum))
        .map(|(a, b)| (a + b) / n)
        .collect();
    let of_y = (yes.n as f64 - no.n as f64) / n;
    let covariance = |i: usize, j: usize| {
        let at = i * width + j;
        (no_outer[at] + yes_outer[at]) / n - mean[i] * mean[j]
    };
    let scale: Vec<f64> = (0..width)
        .map(|i| {
            // What rounding leaves of a feature that never changes is not its spread.
            let rounding = 1e-12 * (covariance(i, i).abs() + mean[i] * mean[i]);
            let variance = covariance(i, i);
            if variance > rounding {
                1.0 / variance.sqrt()
            } else {
                0.0
            }
        })
        .collect();
    let normal = Mat::from_fn(width, width, |i, j| {
        let own = if i == j { penalty } else { 0.0 };
        covariance(i, j) * scale[i] * scale[j] + own
    });
    let with_y = Mat::from_fn(width, 1, |i, _| {
        ((yes.sum[i] - no.sum[i]) / n - mean[i] * of_y) * scale[i]
    });
    let factor = normal
        .llt(Side::Lower)
        .map_err(|_| Error::Penalty { hook: hook.into() })?;
    let solved = factor.solve(&with_y);
    let weights: Vec<f64> = (0..width).map(|i| solved[(i, 0)] * scale[i]).collect();
    let at_mean: f64 = weights.iter().zip(&mean).map(|(w, m)| w * m).sum();
    Ok(Linear {
        intercept: of_y - at_mean,
        weights,
    })
}

/// One layer's ridge probe.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RidgeResult {
    pub layer: usize,
    pub hook: String,
    pub n_train: usize,
    pub n_test: usize,
    /// Share of held-out statements called right.
    pub accuracy: f64,
    pub ci_low: f64,
    pub ci_high: f64,
    pub ci_method: IntervalMethod,
    pub auc: f64,
    pub penalty: f64,
    /// Along the direction, where the score is zero.
    pub threshold: f64,
    /// Length of the weights: change of the score per unit along the direction.
    pub norm: f64,
    /// Unit norm, `[width]`.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

/// Fits on the training side, scores on the held-out side.
///
/// # Errors
/// Rows and labels that do not go together, values that are not finite, a side that lacks a label.
pub fn ridge_probe(
    layer: &LayerRows<'_>,
    statements: &Statements,
    split: &Split,
    penalty: f64,
    bootstrap: &Bootstrap,
) -> Result<RidgeResult> {
    statements.check()?;
    layer.check(statements.labels.len())?;
    let of = |label: bool| -> Result<Sums> {
        let train = split.train.iter();
        let of_label = train.copied().filter(|&i| statements.labels[i] == label);
        let of_label: Vec<usize> = of_label.collect();
        if of_label.is_empty() {
            let side = "training";
            return Err(Error::OneLabel { side, label });
        }
        let mut moments = Moments::new(layer.width);
        for piece in of_label.chunks(PIECE) {
            let rows: Vec<f32> = piece
                .iter()
                .flat_map(|&i| layer.row(i).into_owned())
                .collect();
            moments.add(&rows);
        }
        Ok(moments.sums())
    };
    let fitted = ridge([&of(false)?, &of(true)?], penalty, &layer.hook)?;
    let held_out = split.test.iter();
    let scores: Vec<f64> = held_out.map(|&i| fitted.score(&layer.row(i))).collect();
    let HeldOut { accuracy, auc } = HeldOut::of(&scores, 0.0, statements, split, bootstrap)?;
    let norm = fitted.weights.iter().map(|w| w * w).sum::<f64>().sqrt();
    let unit = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    Ok(RidgeResult {
        layer: layer.layer,
        hook: layer.hook.clone(),
        n_train: split.train.len(),
        n_test: split.test.len(),
        accuracy: accuracy.share,
        ci_low: accuracy.low,
        ci_high: accuracy.high,
        ci_method: accuracy.method,
        auc,
        penalty,
        threshold: fitted.threshold(),
        norm,
        direction: fitted.weights.iter().map(|w| (w * unit) as f32).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 4;

    fn is_true(i: usize) -> bool {
        i.is_multiple_of(3)
    }

    fn row(i: usize) -> [f32; WIDTH] {
        let noise = |k: usize| ((i * k + 3) % 17) as f32 / 4.0;
        let raised = if is_true(i) { 1.5 } else { 0.0 };
        [noise(5), 100.0 + noise(7) + raised, 2.5, noise(11)]
    }

    fn sums(of: impl Fn(usize) -> bool) -> Sums {
        let mut moments = Moments::new(WIDTH);
        (0..60)
            .filter(|&i| of(i))
            .for_each(|i| moments.add(&row(i)));
        moments.sums()
    }

    fn fitted(penalty: f64) -> Linear {
        ridge([&sums(|i| !is_true(i)), &sums(is_true)], penalty, "x").unwrap()
    }

    #[test]
    fn nothing_near_the_solution_is_better_and_a_constant_feature_has_no_weight() {
        let penalty = 0.05;
        let found = fitted(penalty);
        assert_eq!(found.weights[2], 0.0);
        // The objective by its definition, rows at hand.
        let n = 60.0;
        let mean = |j: usize| (0..60).map(|i| f64::from(row(i)[j])).sum::<f64>() / n;
        let deviation = |j: usize| {
            let squares = (0..60).map(|i| (f64::from(row(i)[j]) - mean(j)).powi(2));
            (squares.sum::<f64>() / n).sqrt()
        };
        let objective = |linear: &Linear| {
            let loss: f64 = (0..60)
                .map(|i| (linear.score(&row(i)) - if is_true(i) { 1.0 } else { -1.0 }).powi(2))
                .sum();
            let squares: f64 = (0..WIDTH)
                .map(|j| (linear.weights[j] * deviation(j)).powi(2))
                .sum();
            loss / n + penalty * squares
        };
        let best = objective(&found);
        for j in [0, 1, 3, WIDTH] {
            for step in [1e-3, -1e-3] {
                let mut other = found.clone();
                match other.weights.get_mut(j) {
                    Some(weight) => {
                        *weight += step;
                        other.intercept -= step * mean(j);
                    }
                    None => other.intercept += step,
                }
                assert!(objective(&other) > best, "{j} {step}");
            }
        }
    }

    #[test]
    fn a_stronger_penalty_makes_shorter_weights() {
        let length = |penalty| {
            let weights = fitted(penalty).weights;
            weights.iter().map(|w| w * w).sum::<f64>()
        };
        assert!(length(10.0) < length(0.1) && length(0.1) < length(1e-4));
    }
}
