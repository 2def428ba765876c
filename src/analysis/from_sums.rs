//! Directions from sums alone, where the rows are gone: what `mass_mean`, `lat` and `ridge` find in rows follows from their counts, sums
//! and second moments. What needs single rows, accuracy on held-out ones first of all, does not.

use faer::Mat;

use super::principal::{eigen, signed};
use super::ridge::ridge;
use super::{Error, Result};

/// Count and sums of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    pub n: usize,
    /// Σ x, `[width]`.
    pub sum: Vec<f64>,
    /// Σ x·xᵀ, row-major `[width, width]`, where it is known.
    pub outer: Option<Vec<f64>>,
}

impl Sums {
    /// The mean row; zeros of no rows.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.n.max(1) as f64;
        self.sum.iter().map(|sum| sum / n).collect()
    }

    /// Σ ((x − mean)·v)² over the rows; `None` without a second moment.
    fn scatter_along(&self, v: &[f64]) -> Option<f64> {
        let outer = self.outer.as_ref()?;
        let along: f64 = outer
            .chunks_exact(v.len())
            .zip(v)
            .map(|(row, v_i)| v_i * dot(row, v))
            .sum();
        Some((along - self.n as f64 * dot(&self.mean(), v).powi(2)).max(0.0))
    }

    /// An error unless there are rows, of this width and finite.
    fn check(&self, width: usize, what: &str, hook: &str) -> Result<()> {
        if self.n == 0 {
            return Err(Error::TooFew {
                what: format!("{what} of {hook}"),
                found: 0,
                needed: 1,
            });
        }
        let squares = self.outer.iter().flatten();
        if self.sum.len() != width || !self.sum.iter().chain(squares).all(|x| x.is_finite()) {
            return Err(Error::Sums { hook: hook.into() });
        }
        Ok(())
    }
}

/// One layer's direction, made from sums.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SummedDirection {
    pub layer: usize,
    pub hook: String,
    /// Rows labelled false and true that were summed.
    pub n_false: usize,
    pub n_true: usize,
    /// As the method says that reads rows.
    pub norm: f64,
    pub threshold: f64,
    /// How far apart the means lie along the direction, in deviations of the rows about the mean of their kind (of the differences about
    /// theirs, for pairs); none where that is not known.
    pub separation: Option<f64>,
    /// Of pairs: the second eigenvalue over the first.
    pub eigenvalue_ratio: Option<f64>,
    /// Of pairs: |cosine| with the mean difference.
    pub cos_mean_difference: Option<f64>,
    /// Unit norm, `[width]`; all zero where there is none.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

/// A layer, by its number and its hook point.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    pub number: usize,
    pub hook: &'a str,
}

/// The direction from the mean of the false rows to that of the true ones.
///
/// # Errors
/// A kind without rows, sums that are not finite or of another width.
pub fn mean_difference(layer: Layer<'_>, [no, yes]: [&Sums; 2]) -> Result<SummedDirection> {
    check_both(layer, [no, yes])?;
    let difference = less(&yes.mean(), &no.mean());
    let found = Found::along(&difference);
    Ok(found.told(layer, [no, yes], |direction| {
        let middle = dot(&yes.mean(), direction) + dot(&no.mean(), direction);
        (length(&difference), middle / 2.0)
    }))
}

/// The weights of a ridge regression on the label ([`ridge`](super::ridge::ridge())), at unit length.
///
/// # Errors
/// As [`mean_difference`]'s, and sums without second moments.
pub fn ridge_direction(
    layer: Layer<'_>,
    [no, yes]: [&Sums; 2],
    penalty: f64,
) -> Result<SummedDirection> {
    check_both(layer, [no, yes])?;
    let fitted = ridge([no, yes], penalty, layer.hook)?;
    let norm = length(&fitted.weights);
    let found = Found::along(&fitted.weights);
    Ok(found.told(layer, [no, yes], |_| (norm, fitted.threshold())))
}

/// The first principal component about zero of the differences of pairs, true less false. `both` are the sums of the two rows of each.
/// Its sign is that of the mean difference.
///
/// # Errors
/// No pairs, sums that are not finite, of another width or without the differences' second moment.
pub fn lat_of_sums(layer: Layer<'_>, differences: &Sums, both: &Sums) -> Result<SummedDirection> {
    let width = differences.sum.len();
    differences.check(width, "pairs", layer.hook)?;
    both.check(width, "pairs", layer.hook)?;
    let no_sums = || Error::Sums {
        hook: layer.hook.into(),
    };
    let outer = differences.outer.as_ref().ok_or_else(no_sums)?;
    if outer.len() != width * width {
        return Err(no_sums());
    }
    let second = Mat::from_fn(width, width, |i, j| outer[i * width + j]);
    let (values, vectors) = eigen(second.as_ref(), layer.hook)?;
    let mut direction = signed(vectors.col(0).iter().copied().collect());
    let mean = differences.mean();
    if dot(&mean, &direction) < 0.0 {
        direction.iter_mut().for_each(|x| *x = -*x);
    }
    let norm = dot(&mean, &direction);
    let found = Found::along(&direction);
    let threshold = dot(&both.mean(), &found.saved()) / 2.0;
    let scatter = differences.scatter_along(&found.unit);
    let deviation = scatter.map(|s| (s / (differences.n as f64 - 1.0).max(1.0)).sqrt());
    Ok(SummedDirection {
        layer: layer.number,
        hook: layer.hook.into(),
        n_false: differences.n,
        n_true: differences.n,
        norm,
        threshold,
        separation: deviation.filter(|&d| d > 0.0).map(|d| norm / d),
        eigenvalue_ratio: Some(match values[..] {
            [first, second, ..] if first > 0.0 => second / first,
            _ => 0.0,
        }),
        cos_mean_difference: Some(match length(&mean) {
            0.0 => 0.0,
            of_mean => norm.abs() / of_mean,
        }),
        direction: found.direction,
    })
}

fn check_both(layer: Layer<'_>, [no, yes]: [&Sums; 2]) -> Result<()> {
    no.check(yes.sum.len(), "rows labelled false", layer.hook)?;
    yes.check(yes.sum.len(), "rows labelled true", layer.hook)
}

/// A direction in f64, and in f32 as it is saved.
struct Found {
    unit: Vec<f64>,
    direction: Vec<f32>,
}

impl Found {
    fn along(vector: &[f64]) -> Self {
        let norm = length(vector);
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        let unit: Vec<f64> = vector.iter().map(|x| x * scale).collect();
        let direction = unit.iter().map(|&x| x as f32).collect();
        Found { unit, direction }
    }

    /// The direction that is saved, which is what thresholds are along.
    fn saved(&self) -> Vec<f64> {
        self.direction.iter().map(|&x| f64::from(x)).collect()
    }

    /// The result, with the norm and threshold that `of` gives along it.
    fn told(
        self,
        layer: Layer<'_>,
        [no, yes]: [&Sums; 2],
        of: impl FnOnce(&[f64]) -> (f64, f64),
    ) -> SummedDirection {
        let (norm, threshold) = of(&self.saved());
        let apart = dot(&yes.mean(), &self.unit) - dot(&no.mean(), &self.unit);
        let scatter = [no, yes].map(|sums| sums.scatter_along(&self.unit));
        let separation = match scatter {
            [Some(no_scatter), Some(yes_scatter)] => {
                let free = (no.n + yes.n) as f64 - 2.0;
                let deviation = ((no_scatter + yes_scatter) / free.max(1.0)).sqrt();
                (deviation > 0.0).then_some(apart / deviation)
            }
            _ => None,
        };
        SummedDirection {
            layer: layer.number,
            hook: layer.hook.into(),
            n_false: no.n,
            n_true: yes.n,
            norm,
            threshold,
            separation,
            eigenvalue_ratio: None,
            cos_mean_difference: None,
            direction: self.direction,
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use super::super::MassMean;
    use super::super::principal::{Moments, principal};
    use super::*;

    const LAYER: Layer<'static> = Layer {
        number: 4,
        hook: "blocks.4.hook_resid_post",
    };
    const WIDTH: usize = 5;

    fn rows(raised: f32, seed: usize) -> Vec<f32> {
        (0..40 * WIDTH)
            .map(|i| {
                let noise = ((i * 37 + seed * 101) % 23) as f32 / 7.0 - 1.5;
                let of = if i % WIDTH == 3 { raised } else { 0.0 };
                noise + of + (i % WIDTH) as f32 * 10.0
            })
            .collect()
    }

    fn sums(rows: &[f32]) -> Sums {
        let mut moments = Moments::new(WIDTH);
        moments.add(rows);
        moments.sums()
    }

    #[test]
    fn the_mean_difference_is_that_of_the_rows() {
        let (no, yes) = (rows(0.0, 1), rows(2.0, 2));
        let labelled =
            |rows: &'static [f32], label| rows.chunks_exact(WIDTH).map(move |r| (r, label));
        let (no, yes): (&'static [f32], &'static [f32]) = (no.leak(), yes.leak());
        let of_rows = MassMean::fit(labelled(no, false).chain(labelled(yes, true))).unwrap();
        let found = mean_difference(LAYER, [&sums(no), &sums(yes)]).unwrap();
        assert_eq!(found.direction, of_rows.direction);
        assert!((found.norm - of_rows.norm).abs() < 1e-12);
        assert!((found.threshold - of_rows.threshold).abs() < 1e-9);
        // By hand: the means' distance over the pooled deviation of the rows along the direction.
        let along = |rows: &[f32]| -> Vec<f64> {
            rows.chunks_exact(WIDTH)
                .map(|r| of_rows.project(r))
                .collect()
        };
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let squares = |x: &[f64]| x.iter().map(|v| (v - mean(x)).powi(2)).sum::<f64>();
        let (a, b) = (along(no), along(yes));
        let deviation = ((squares(&a) + squares(&b)) / 78.0).sqrt();
        let want = (mean(&b) - mean(&a)) / deviation;
        assert!(
            (found.separation.unwrap() - want).abs() < 1e-5 * want,
            "{found:?}"
        );
    }

    #[test]
    fn the_direction_of_pairs_is_that_of_their_differences_with_the_sign_of_the_mean() {
        for sign in [1.0_f32, -1.0] {
            let differences: Vec<f32> = rows(sign * 6.0, 3)
                .iter()
                .enumerate()
                .map(|(i, x)| x - (i % WIDTH) as f32 * 10.0)
                .collect();
            let x = Mat::from_fn(40, WIDTH, |i, j| f64::from(differences[i * WIDTH + j]));
            let of_rows = principal(x.as_ref(), 2, "x").unwrap();
            let both = sums(&rows(1.0, 4));
            let found = lat_of_sums(LAYER, &sums(&differences), &both).unwrap();
            let cosine: f64 = (found.direction.iter().zip(&of_rows.directions[0]))
                .map(|(&a, b)| f64::from(a) * b)
                .sum();
            assert!(cosine.abs() > 1.0 - 1e-6, "{cosine}");
            assert!(f64::from(found.direction[3] * sign) > 0.9, "{found:?}");
            let ratio = of_rows.values[1] / of_rows.values[0];
            assert!((found.eigenvalue_ratio.unwrap() - ratio).abs() < 1e-9);
            assert!(found.norm > 5.0 && found.cos_mean_difference.unwrap() > 0.9);
        }
    }

    #[test]
    fn nothing_is_found_in_no_rows_or_in_infinite_sums() {
        let (none, some) = (
            Sums {
                sum: vec![0.0; WIDTH],
                ..Sums::default()
            },
            sums(&rows(0.0, 1)),
        );
        let message = mean_difference(LAYER, [&none, &some])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("rows labelled false of blocks.4"),
            "{message}"
        );
        let mut infinite = some.clone();
        infinite.sum[2] = f64::INFINITY;
        assert!(mean_difference(LAYER, [&some, &infinite]).is_err());
        let means = Sums {
            outer: None,
            ..some.clone()
        };
        let found = mean_difference(LAYER, [&means, &some]).unwrap();
        assert_eq!(found.separation, None);
        assert!(ridge_direction(LAYER, [&means, &some], 0.1).is_err());
    }
}
