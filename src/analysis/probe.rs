//! A linear probe: logistic regression with an L2 penalty, its strength chosen by cross-validation over groups of the training side,
//! scored on statements held out.

use std::borrow::Cow;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use rayon::prelude::*;

use super::bootstrap::{Bootstrap, IntervalMethod};
use super::principal::eigen;
use super::random::Rng;
use super::rows::LayerRows;
use super::scored::HeldOut;
use super::split::{Split, Statements};
use super::{Error, Result};

/// How a probe is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Probing {
    /// Candidates for C, the inverse of the penalty (as scikit-learn's): Σ log-loss · C + ½‖w‖² is minimised, the intercept is free.
    pub strengths: Vec<f64>,
    /// Folds that a candidate is tried on.
    pub folds: usize,
    /// Of the dealing of groups into folds.
    pub seed: u64,
}

impl Default for Probing {
    fn default() -> Self {
        Probing {
            strengths: vec![1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
            folds: 5,
            seed: 0,
        }
    }
}

/// One layer's probe.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ProbeResult {
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
    /// Mean held-out log-loss, in nats.
    pub log_loss: f64,
    /// The C that was chosen, and its mean log-loss over the folds.
    pub strength: f64,
    pub cv_log_loss: f64,
    /// Along the direction, where both labels are equally likely.
    pub threshold: f64,
    /// Length of the weights, in the activations' own units: log-odds per unit along the direction.
    pub norm: f64,
    /// Unit norm, `[width]`.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

/// Weights and intercept, for rows as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    pub weights: Vec<f64>,
    pub intercept: f64,
}

impl Logistic {
    /// Fits on rows with labels; each feature is first brought to mean 0 and deviation 1 (over n) of these rows, so that the penalty
    /// weighs all alike. Features that never change get no weight.
    ///
    /// # Errors
    /// Newton's method does not converge, or a label does not occur.
    pub fn fit(rows: &[&[f32]], labels: &[bool], strength: f64, hook: &str) -> Result<Self> {
        for label in [true, false] {
            if !labels.contains(&label) {
                return Err(Error::OneLabel {
                    side: "training",
                    label,
                });
            }
        }
        let scaled = Scaled::new(rows);
        let (z, back) = scaled.narrowed(hook)?;
        let (w, intercept) = newton(&z, labels, strength, hook)?;
        let w: Vec<f64> = match back {
            None => w,
            Some(back) => (&back * column(&w)).col(0).iter().copied().collect(),
        };
        Ok(scaled.unscaled(&w, intercept))
    }

    /// Log-odds that the row's statement is true.
    pub fn log_odds(&self, row: &[f32]) -> f64 {
        let sum: f64 = row
            .iter()
            .zip(&self.weights)
            .map(|(&x, w)| f64::from(x) * w)
            .sum();
        sum + self.intercept
    }
}

/// Rows with every feature at mean 0 and deviation 1.
struct Scaled {
    x: Mat<f64>,
    mean: Vec<f64>,
    /// 1 / deviation; 0 of a feature that never changes.
    scale: Vec<f64>,
}

impl Scaled {
    fn new(rows: &[&[f32]]) -> Self {
        let (n, width) = (rows.len(), rows[0].len());
        let mean: Vec<f64> = (0..width)
            .map(|j| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / n as f64)
            .collect();
        let scale: Vec<f64> = (0..width)
            .map(|j| {
                let squares: f64 = rows
                    .iter()
                    .map(|row| (f64::from(row[j]) - mean[j]).powi(2))
                    .sum();
                let deviation = (squares / n as f64).sqrt();
                if deviation > 0.0 {
                    1.0 / deviation
                } else {
                    0.0
                }
            })
            .collect();
        let x = Mat::from_fn(n, width, |i, j| {
            (f64::from(rows[i][j]) - mean[j]) * scale[j]
        });
        Scaled { x, mean, scale }
    }

    /// The rows in fewer coordinates, where there are fewer rows than features, and the way back: the penalty is the same in any
    /// orthonormal basis of what the rows span, and outside of it the best weight is zero.
    fn narrowed(&self, hook: &str) -> Result<(Mat<f64>, Option<Mat<f64>>)> {
        let (n, width) = (self.x.nrows(), self.x.ncols());
        if n >= width {
            return Ok((self.x.clone(), None));
        }
        let (values, vectors) = eigen((&self.x * self.x.transpose()).as_ref(), hook)?;
        let kept = values
            .iter()
            .take_while(|&&v| v > 1e-12 * values[0])
            .count();
        let root: Vec<f64> = values[..kept].iter().map(|v| v.sqrt()).collect();
        let z = Mat::from_fn(n, kept, |i, j| vectors[(i, j)] * root[j]);
        let to = Mat::from_fn(n, kept, |i, j| vectors[(i, j)] / root[j]);
        Ok((z, Some(self.x.transpose() * to)))
    }

    /// The same probe for rows as they came.
    fn unscaled(&self, w: &[f64], intercept: f64) -> Logistic {
        let weights: Vec<f64> = w.iter().zip(&self.scale).map(|(w, s)| w * s).collect();
        let shift: f64 = weights.iter().zip(&self.mean).map(|(w, m)| w * m).sum();
        Logistic {
            weights,
            intercept: intercept - shift,
        }
    }
}

fn column(values: &[f64]) -> Mat<f64> {
    Mat::from_fn(values.len(), 1, |i, _| values[i])
}

/// log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Minimises C·Σ log(1 + exp(∓(z·w + b))) + ½‖w‖² by Newton's method with step halving.
fn newton(z: &Mat<f64>, labels: &[bool], strength: f64, hook: &str) -> Result<(Vec<f64>, f64)> {
    const STEPS: usize = 200;
    let (n, r) = (z.nrows(), z.ncols());
    // The intercept is one more feature, always 1, that the penalty leaves out.
    let augmented = Mat::from_fn(n, r + 1, |i, j| if j < r { z[(i, j)] } else { 1.0 });
    let objective = |margins: &Mat<f64>, w: &Mat<f64>| {
        let loss: f64 = (0..n)
            .map(|i| {
                softplus(if labels[i] {
                    -margins[(i, 0)]
                } else {
                    margins[(i, 0)]
                })
            })
            .sum();
        strength * loss + (0..r).map(|j| w[(j, 0)].powi(2)).sum::<f64>() / 2.0
    };
    let mut w = Mat::<f64>::zeros(r + 1, 1);
    let mut margins = &augmented * &w;
    let mut value = objective(&margins, &w);
    for _ in 0..STEPS {
        let p: Vec<f64> = (0..n)
            .map(|i| 1.0 / (1.0 + (-margins[(i, 0)]).exp()))
            .collect();
        let residual: Vec<f64> = (0..n)
            .map(|i| strength * (p[i] - f64::from(u8::from(labels[i]))))
            .collect();
        let mut gradient = augmented.transpose() * column(&residual);
        (0..r).for_each(|j| gradient[(j, 0)] += w[(j, 0)]);
        let root: Vec<f64> = p
            .iter()
            .map(|p| (strength * p * (1.0 - p)).sqrt())
            .collect();
        let weighted = Mat::from_fn(n, r + 1, |i, j| augmented[(i, j)] * root[i]);
        let mut hessian = weighted.transpose() * &weighted;
        (0..r).for_each(|j| hessian[(j, j)] += 1.0);
        hessian[(r, r)] += 1e-10;
        let step = match hessian.llt(Side::Lower) {
            Ok(factor) => factor.solve(&gradient),
            Err(_) => break,
        };
        // Newton's decrement: twice what is still to be gained, were the objective a parabola.
        let decrement: f64 = (0..=r).map(|j| step[(j, 0)] * gradient[(j, 0)]).sum();
        if decrement <= 1e-10 * value.max(1e-12) {
            // So near, a step squares the error: this last one leaves nothing that f64 would show.
            let last = |j: usize| w[(j, 0)] - step[(j, 0)];
            return Ok(((0..r).map(last).collect(), last(r)));
        }
        let mut share = 1.0;
        loop {
            let next = Mat::from_fn(r + 1, 1, |j, _| w[(j, 0)] - share * step[(j, 0)]);
            let next_margins = &augmented * &next;
            let next_value = objective(&next_margins, &next);
            if next_value <= value - 1e-4 * share * decrement {
                (w, margins, value) = (next, next_margins, next_value);
                break;
            }
            share /= 2.0;
            if share < 1e-10 {
                // No step helps any more: rounding is all that is left.
                return Ok(((0..r).map(|j| w[(j, 0)]).collect(), w[(r, 0)]));
            }
        }
    }
    Err(Error::NotConverged { hook: hook.into() })
}

/// Chooses the strength on the training side, fits there, scores on the held-out side.
///
/// # Errors
/// Rows and labels that do not go together, values that are not finite, a side or a fold that lacks a label.
pub fn probe(
    layer: &LayerRows<'_>,
    statements: &Statements,
    split: &Split,
    probing: &Probing,
    bootstrap: &Bootstrap,
) -> Result<ProbeResult> {
    statements.check()?;
    layer.check(statements.labels.len())?;
    let (strength, cv_log_loss) = choose(layer, statements, &split.train, probing)?;
    let (rows, labels) = of(layer, statements, &split.train);
    let fitted = Logistic::fit(&borrowed(&rows), &labels, strength, &layer.hook)?;

    let (rows, labels) = of(layer, statements, &split.test);
    let odds: Vec<f64> = rows.iter().map(|row| fitted.log_odds(row)).collect();
    let HeldOut { accuracy, auc } = HeldOut::of(&odds, 0.0, statements, split, bootstrap)?;
    let norm = fitted.weights.iter().map(|w| w * w).sum::<f64>().sqrt();
    let unit = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    Ok(ProbeResult {
        layer: layer.layer,
        hook: layer.hook.clone(),
        n_train: split.train.len(),
        n_test: split.test.len(),
        accuracy: accuracy.share,
        ci_low: accuracy.low,
        ci_high: accuracy.high,
        ci_method: accuracy.method,
        auc,
        log_loss: log_loss(&odds, &labels),
        strength,
        cv_log_loss,
        threshold: -fitted.intercept * unit,
        norm,
        direction: fitted.weights.iter().map(|w| (w * unit) as f32).collect(),
    })
}

fn of<'l>(
    layer: &'l LayerRows<'_>,
    statements: &Statements,
    which: &[usize],
) -> (Vec<Cow<'l, [f32]>>, Vec<bool>) {
    which
        .iter()
        .map(|&i| (layer.row(i), statements.labels[i]))
        .unzip()
}

fn borrowed<'r>(rows: &'r [Cow<'_, [f32]>]) -> Vec<&'r [f32]> {
    rows.iter().map(|row| &**row).collect()
}

fn log_loss(odds: &[f64], labels: &[bool]) -> f64 {
    let sum: f64 = odds
        .iter()
        .zip(labels)
        .map(|(&x, &l)| softplus(if l { -x } else { x }))
        .sum();
    sum / labels.len().max(1) as f64
}

/// The strength with the least log-loss over the folds (the smallest of equal ones), and that loss per statement.
fn choose(
    layer: &LayerRows<'_>,
    statements: &Statements,
    train: &[usize],
    probing: &Probing,
) -> Result<(f64, f64)> {
    let folds = folds(statements, train, probing);
    let losses = probing
        .strengths
        .par_iter()
        .map(|&strength| {
            let mut sum = 0.0;
            for fold in &folds {
                let held_out: std::collections::HashSet<usize> = fold.iter().copied().collect();
                let rest: Vec<usize> = train
                    .iter()
                    .copied()
                    .filter(|i| !held_out.contains(i))
                    .collect();
                let (rows, labels) = of(layer, statements, &rest);
                let fitted = Logistic::fit(&borrowed(&rows), &labels, strength, &layer.hook)?;
                let (rows, labels) = of(layer, statements, fold);
                let odds: Vec<f64> = rows.iter().map(|row| fitted.log_odds(row)).collect();
                sum += log_loss(&odds, &labels) * fold.len() as f64;
            }
            Ok((strength, sum / train.len() as f64))
        })
        .collect::<Result<Vec<_>>>()?;
    let best = losses
        .into_iter()
        .min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
    best.ok_or_else(|| Error::TooFew {
        what: "candidates for the penalty".into(),
        found: 0,
        needed: 1,
    })
}

/// The training statements in folds, whole groups at a time.
fn folds(statements: &Statements, train: &[usize], probing: &Probing) -> Vec<Vec<usize>> {
    let numbers = statements.group_numbers(train);
    let groups = numbers.iter().max().map_or(0, |last| last + 1);
    let mut order: Vec<usize> = (0..groups).collect();
    Rng::new(probing.seed).shuffle(&mut order);
    let mut fold_of = vec![0; groups];
    let n = probing.folds.clamp(2, groups.max(2));
    order
        .iter()
        .enumerate()
        .for_each(|(place, &group)| fold_of[group] = place % n);
    let mut folds = vec![Vec::new(); n];
    for (&i, group) in train.iter().zip(numbers) {
        folds[fold_of[group]].push(i);
    }
    folds.retain(|fold| !fold.is_empty());
    folds
}

#[cfg(test)]
mod tests {
    use super::super::split::split;
    use super::*;

    const N: usize = 24;

    /// A fixed pattern; feature 2 is raised where the label is true.
    fn pattern(width: usize) -> Vec<f32> {
        (0..N * width)
            .map(|at| {
                let (i, j) = (at / width, at % width);
                let raised = if i % 2 == 0 && j == 2 { 0.8 } else { 0.0 };
                (f64::from(((i * 7 + j * 13) % 11) as u32) / 3.0 - 1.5 + raised) as f32
            })
            .collect()
    }

    fn labels(n: usize) -> Vec<bool> {
        (0..n).map(|i| i % 2 == 0).collect()
    }

    fn fitted(width: usize, strength: f64) -> Logistic {
        let rows = pattern(width);
        let rows: Vec<&[f32]> = rows.chunks_exact(width).collect();
        Logistic::fit(&rows, &labels(N), strength, "x").unwrap()
    }

    #[test]
    fn weights_are_those_of_scikit_learn() {
        // sklearn 1.9.1: LogisticRegression(C, tol=1e-12) on the standardised rows, brought back to the rows as they are.
        let known = [
            (
                0.1,
                [
                    -0.013130650925635404,
                    -0.05007729443390816,
                    0.2614392536536017,
                    0.008799507939519849,
                    0.06196958374393671,
                ],
                -0.130636404422128,
            ),
            (
                10.0,
                [
                    0.47144979426873235,
                    0.10373403056247338,
                    1.1538830856183895,
                    0.1438509719777859,
                    0.6815474042900072,
                ],
                -0.8067960593946064,
            ),
        ];
        for (strength, weights, intercept) in known {
            let found = fitted(5, strength);
            for (got, want) in found.weights.iter().zip(weights) {
                assert!((got - want).abs() < 1e-6, "{got}, not {want}");
            }
            assert!((found.intercept - intercept).abs() < 1e-6);
        }
    }

    #[test]
    fn more_features_than_rows_give_scikit_learns_weights_too() {
        let found = fitted(40, 1.0);
        let known = [
            0.018975287773684055,
            0.048053800836247475,
            1.8712446847293165,
            0.050346160587934737,
        ];
        for (got, want) in found.weights.iter().zip(known) {
            assert!((got - want).abs() < 1e-6, "{got}, not {want}");
        }
        assert!(
            (found.intercept + 1.1091809341394117).abs() < 1e-6,
            "{}",
            found.intercept
        );
    }

    #[test]
    fn separable_rows_are_told_apart_and_a_constant_feature_has_no_weight() {
        let n = 200;
        let statements = Statements {
            labels: labels(n),
            ..Default::default()
        };
        let rows: Vec<f32> = (0..n)
            .flat_map(|i| {
                let side = if i % 2 == 0 { 4.0 } else { -4.0 };
                [side + (i * 7 % 11) as f32 / 11.0, 5.0, (i * 5 % 13) as f32]
            })
            .collect();
        let layer = LayerRows {
            hook: "blocks.1.hook_z".into(),
            layer: 1,
            width: 3,
            rows: rows.into(),
        };
        let split = split(&statements, 0.5, 0).unwrap();
        let bootstrap = Bootstrap {
            resamples: 100,
            ..Default::default()
        };
        let found = probe(&layer, &statements, &split, &Probing::default(), &bootstrap).unwrap();
        assert_eq!((found.accuracy, found.auc), (1.0, 1.0));
        assert!(found.direction[0] > 0.99, "{:?}", found.direction);
        assert_eq!(found.direction[1], 0.0);
        assert!(found.log_loss < 0.01, "{}", found.log_loss);
    }

    #[test]
    fn one_group_lies_in_one_fold_and_every_statement_in_one() {
        let statements = Statements {
            labels: labels(60),
            groups: Some((0..60).map(|i| (i / 4).to_string()).collect()),
            topics: None,
        };
        let train: Vec<usize> = (0..60).collect();
        let folds = folds(&statements, &train, &Probing::default());
        assert_eq!(folds.len(), 5);
        let mut all: Vec<usize> = folds.concat();
        all.sort_unstable();
        assert_eq!(all, train);
        for group in 0..15 {
            let holding = folds
                .iter()
                .filter(|fold| fold.iter().any(|i| i / 4 == group))
                .count();
            assert_eq!(holding, 1);
        }
    }

    #[test]
    fn one_label_alone_is_refused() {
        let rows = pattern(3);
        let rows: Vec<&[f32]> = rows.chunks_exact(3).collect();
        let message = Logistic::fit(&rows, &[true; N], 1.0, "x")
            .unwrap_err()
            .to_string();
        assert!(message.contains("no false statement"), "{message}");
    }
}
