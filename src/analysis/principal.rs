//! Principal directions: leading eigenvectors of a second moment, by `faer`.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

use super::from_sums::Sums;
use super::{Error, Result};

/// Rows that are widened at a time.
pub(super) const PIECE: usize = 1024;

/// Leading eigenvectors of Xᵀ·X / n, and all that is to be said of its eigenvalues.
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    /// Eigenvalues of the directions, in falling order.
    pub values: Vec<f64>,
    /// Unit vectors, `[width]` each; the component of largest size is positive.
    pub directions: Vec<Vec<f64>>,
    /// Sum of all eigenvalues, those of directions not asked for included.
    pub total: f64,
}

/// Sums over rows that come piece by piece: count, sum and second moment, in f64.
#[derive(Clone, Debug)]
pub struct Moments {
    n: usize,
    sum: Vec<f64>,
    /// Σ x·xᵀ, `[width, width]`.
    second: Mat<f64>,
}

impl Moments {
    pub fn new(width: usize) -> Self {
        Moments {
            n: 0,
            sum: vec![0.0; width],
            second: Mat::zeros(width, width),
        }
    }

    /// Adds row-major `[n, width]` rows.
    ///
    /// # Panics
    /// When they don't divide into rows.
    pub fn add(&mut self, rows: &[f32]) {
        let width = self.sum.len();
        assert!(rows.len().is_multiple_of(width), "whole rows of {width}");
        for piece in rows.chunks(PIECE * width) {
            for row in piece.chunks_exact(width) {
                for (sum, &x) in self.sum.iter_mut().zip(row) {
                    *sum += f64::from(x);
                }
            }
            let x = matrix(piece, width);
            matmul(
                &mut self.second,
                Accum::Add,
                x.transpose(),
                &x,
                1.0,
                Par::rayon(0),
            );
            self.n += piece.len() / width;
        }
    }

    /// Of sums made elsewhere: `outer` is the row-major Σ x·xᵀ, `[width, width]`.
    ///
    /// # Panics
    /// When it has not that shape.
    pub fn of_sums(n: usize, sum: Vec<f64>, outer: &[f64]) -> Self {
        let width = sum.len();
        assert_eq!(outer.len(), width * width, "a matrix of {width} by {width}");
        Moments {
            n,
            second: Mat::from_fn(width, width, |i, j| outer[i * width + j]),
            sum,
        }
    }

    /// The sums.
    pub fn sums(&self) -> Sums {
        let width = self.sum.len();
        let outer = (0..width * width).map(|at| self.second[(at / width, at % width)]);
        Sums {
            n: self.n,
            sum: self.sum.clone(),
            outer: Some(outer.collect()),
        }
    }

    /// Rows added so far.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Mean row, `[width]`; zero before the first.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.n.max(1) as f64;
        self.sum.iter().map(|sum| sum / n).collect()
    }

    /// The `k` leading directions of the covariance (of the rows less their mean), with variances over n − 1.
    ///
    /// # Errors
    /// Fewer than two rows, or numbers that have no eigenvectors.
    pub fn principal(&self, k: usize, hook: &str) -> Result<Principal> {
        if self.n < 2 {
            return Err(Error::TooFew {
                what: format!("rows of {hook}"),
                found: self.n,
                needed: 2,
            });
        }
        let (mean, n) = (self.mean(), self.n as f64);
        let covariance = Mat::from_fn(mean.len(), mean.len(), |i, j| {
            (self.second[(i, j)] - n * mean[i] * mean[j]) / (n - 1.0)
        });
        let (values, vectors) = eigen(covariance.as_ref(), hook)?;
        let directions = (0..k.min(mean.len()))
            .map(|i| signed(vectors.col(i).iter().copied().collect()))
            .collect();
        Ok(Principal {
            total: values.iter().sum(),
            values: values[..k.min(mean.len())].to_vec(),
            directions,
        })
    }
}

/// Rows as a matrix in f64.
pub(super) fn matrix(rows: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(rows.len() / width, width, |i, j| {
        f64::from(rows[i * width + j])
    })
}

/// As [`principal`], of `n` rows that are made a piece at a time: `piece` gives some of them, `[range, width]`. More than one piece is in
/// memory only where there are fewer rows than features.
///
/// # Errors
/// As there.
pub(super) fn principal_in_pieces(
    [n, width]: [usize; 2],
    piece: impl Fn(Range<usize>) -> Mat<f64>,
    k: usize,
    hook: &str,
) -> Result<Principal> {
    if n < width {
        return principal(piece(0..n).as_ref(), k, hook);
    }
    let mut second = Mat::zeros(width, width);
    for start in (0..n).step_by(PIECE) {
        let x = piece(start..(start + PIECE).min(n));
        let and = Accum::Add;
        matmul(&mut second, and, x.transpose(), &x, 1.0, Par::rayon(0));
    }
    of_second_moment(second.as_ref(), n, k, hook)
}

/// The `k` leading directions of `n` rows with this Xᵀ·X.
fn of_second_moment(second: MatRef<'_, f64>, n: usize, k: usize, hook: &str) -> Result<Principal> {
    let (values, vectors) = eigen(second, hook)?;
    let directions = (0..k.min(values.len()))
        .map(|i| signed(unit(vectors.col(i).iter().copied().collect())))
        .collect();
    Ok(of_mean(&values, n, k, directions))
}

/// With the eigenvalues of the sum over `n` rows brought to those of its mean.
fn of_mean(values: &[f64], n: usize, k: usize, directions: Vec<Vec<f64>>) -> Principal {
    let values: Vec<f64> = values.iter().map(|v| v.max(0.0) / n as f64).collect();
    Principal {
        total: values.iter().sum(),
        values: values[..k.min(values.len())].to_vec(),
        directions,
    }
}

/// The `k` leading directions of the uncentred second moment Xᵀ·X / n of the rows of `x`, by the smaller of Xᵀ·X and X·Xᵀ.
///
/// # Errors
/// No rows, or numbers that have no eigenvectors.
pub fn principal(x: MatRef<'_, f64>, k: usize, hook: &str) -> Result<Principal> {
    let (n, width) = (x.nrows(), x.ncols());
    if n == 0 {
        return Err(Error::TooFew {
            what: format!("rows of {hook}"),
            found: 0,
            needed: 1,
        });
    }
    if n >= width {
        return of_second_moment((x.transpose() * x).as_ref(), n, k, hook);
    }
    let (values, vectors) = eigen((x * x.transpose()).as_ref(), hook)?;
    let directions = (0..k.min(values.len()))
        .map(|i| {
            let direction = x.transpose() * vectors.col(i);
            signed(unit(direction.iter().copied().collect()))
        })
        .collect();
    Ok(of_mean(&values, n, k, directions))
}

/// Eigenvalues of a symmetric matrix in falling order, and their vectors as columns.
pub(super) fn eigen(symmetric: MatRef<'_, f64>, hook: &str) -> Result<(Vec<f64>, Mat<f64>)> {
    let decomposed = symmetric
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| Error::NoEigenvectors { hook: hook.into() })?;
    let n = symmetric.nrows();
    let values = (0..n).rev().map(|i| decomposed.S()[i]).collect();
    let vectors = Mat::from_fn(n, n, |i, j| decomposed.U()[(i, n - 1 - j)]);
    Ok((values, vectors))
}

/// What share `part` is of `whole`; 0 of nothing.
pub fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// The vector at unit length; as it is if it has none.
pub(super) fn unit(mut vector: Vec<f64>) -> Vec<f64> {
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
    vector
}

/// An eigenvector's sign is free: this is the one with the component of largest size (the first, of equal ones) positive.
pub(super) fn signed(mut vector: Vec<f64>) -> Vec<f64> {
    let largest = vector.iter().fold(
        0.0_f64,
        |best, &x| if x.abs() > best.abs() { x } else { best },
    );
    if largest < 0.0 {
        vector.iter_mut().for_each(|x| *x = -*x);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<f32> {
        (0..12)
            .map(|i| ((f64::from(i)).powf(1.5) % 7.0) as f32)
            .collect()
    }

    #[test]
    fn covariance_agrees_with_its_definition() {
        let rows = rows();
        let mut moments = Moments::new(3);
        moments.add(&rows[..6]);
        moments.add(&rows[6..]);
        let found = moments.principal(3, "x").unwrap();
        // Σ = V·diag(λ)·Vᵀ gives the covariance back.
        let mean = moments.mean();
        for i in 0..3 {
            for j in 0..3 {
                let want: f64 = (0..4)
                    .map(|r| {
                        (f64::from(rows[r * 3 + i]) - mean[i])
                            * (f64::from(rows[r * 3 + j]) - mean[j])
                    })
                    .sum::<f64>()
                    / 3.0;
                let got: f64 = (0..3)
                    .map(|c| found.values[c] * found.directions[c][i] * found.directions[c][j])
                    .sum();
                assert!((want - got).abs() < 1e-9, "({i}, {j}): {got}, not {want}");
            }
        }
        assert!(found.values.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn few_wide_rows_and_many_narrow_ones_have_the_same_directions() {
        let x = matrix(&rows(), 3);
        let many = principal(x.as_ref(), 2, "x").unwrap();
        // Padded with zeros to eight columns the other Gram matrix is the smaller.
        let wide = Mat::from_fn(4, 8, |i, j| if j < 3 { x[(i, j)] } else { 0.0 });
        let few = principal(wide.as_ref(), 2, "x").unwrap();
        for (a, b) in many.directions.iter().zip(&few.directions) {
            assert!(
                a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-7),
                "{a:?} {b:?}"
            );
            assert!(b[3..].iter().all(|x| x.abs() < 1e-12));
        }
        for (a, b) in many.values.iter().zip(&few.values) {
            assert!((a - b).abs() < 1e-9 * a.abs());
        }
        assert!((many.total - few.total).abs() < 1e-9);
    }

    #[test]
    fn too_few_rows_are_refused_by_name() {
        let message = Moments::new(3)
            .principal(1, "blocks.2.hook_z")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("rows of blocks.2.hook_z: 0 where 2 are needed"),
            "{message}"
        );
    }
}
