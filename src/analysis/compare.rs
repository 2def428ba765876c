//! How alike two sets of rows are, row by row and as a whole, over rows that come piece by piece.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::principal::matrix;

/// What [`Comparing`] finds. `None` where it is not defined: rows of different widths have no distance, and fewer than two rows no CKA.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Compared {
    pub rows: usize,
    /// Rows whose bits are all equal.
    pub equal_rows: Option<usize>,
    /// Mean and least cosine of a row with its partner. A cosine hides scale: read it beside the distance.
    pub cosine_mean: Option<f64>,
    pub cosine_min: Option<f64>,
    /// ‖A − B‖ / ‖A‖ over all rows, and the largest of one row. One row with massive components can be most of the first.
    pub relative_l2: Option<f64>,
    pub relative_l2_max: Option<f64>,
    /// Linear centred kernel alignment (Kornblith et al. 2019), in feature space: ‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖) of the centred rows.
    pub cka: Option<f64>,
}

/// Sums over pairs of rows.
pub struct Comparing {
    n: usize,
    equal: usize,
    cosine_sum: f64,
    cosine_min: f64,
    off: f64,
    size: f64,
    off_max: f64,
    sums: [Vec<f64>; 2],
    /// XᵀX, YᵀY and XᵀY, not centred yet.
    seconds: [Mat<f64>; 3],
}

impl Comparing {
    /// For rows of `a` and of `b` components.
    pub fn new(a: usize, b: usize) -> Self {
        Comparing {
            n: 0,
            equal: 0,
            cosine_sum: 0.0,
            cosine_min: f64::INFINITY,
            off: 0.0,
            size: 0.0,
            off_max: 0.0,
            sums: [vec![0.0; a], vec![0.0; b]],
            seconds: [Mat::zeros(a, a), Mat::zeros(b, b), Mat::zeros(a, b)],
        }
    }

    /// Adds row-major rows, partners at the same place.
    ///
    /// # Panics
    /// When they don't divide into equally many rows.
    pub fn add(&mut self, a: &[f32], b: &[f32]) {
        let [wide_a, wide_b] = [self.sums[0].len(), self.sums[1].len()];
        assert!(
            a.len().is_multiple_of(wide_a) && a.len() / wide_a * wide_b == b.len(),
            "as many rows of {wide_a} as of {wide_b}"
        );
        if wide_a == wide_b {
            let rows = a.chunks_exact(wide_a).zip(b.chunks_exact(wide_b));
            rows.for_each(|(a, b)| self.pair(a, b));
        }
        self.n += a.len() / wide_a;
        let (x, y) = (matrix(a, wide_a), matrix(b, wide_b));
        for (sum, x) in self.sums.iter_mut().zip([&x, &y]) {
            for (j, sum) in sum.iter_mut().enumerate() {
                *sum += x.col(j).iter().sum::<f64>();
            }
        }
        for (second, (l, r)) in self.seconds.iter_mut().zip([(&x, &x), (&y, &y), (&x, &y)]) {
            matmul(second, Accum::Add, l.transpose(), r, 1.0, Par::rayon(0));
        }
    }

    fn pair(&mut self, a: &[f32], b: &[f32]) {
        let [mut aa, mut bb, mut ab, mut off] = [0.0; 4];
        for (&x, &y) in a.iter().zip(b) {
            let (x, y) = (f64::from(x), f64::from(y));
            aa += x * x;
            bb += y * y;
            ab += x * y;
            off += (x - y) * (x - y);
        }
        self.equal += usize::from(a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits()));
        // Two rows of zeros are alike; one of zeros is like no other.
        let cosine = if aa == 0.0 && bb == 0.0 {
            1.0
        } else if aa == 0.0 || bb == 0.0 {
            0.0
        } else {
            ab / (aa * bb).sqrt()
        };
        self.cosine_sum += cosine;
        self.cosine_min = self.cosine_min.min(cosine);
        self.off += off;
        self.size += aa;
        self.off_max = self.off_max.max(relative(off, aa));
    }

    pub fn finish(&self) -> Compared {
        let paired = self.n > 0 && self.sums[0].len() == self.sums[1].len();
        let some = |value: f64| paired.then_some(value);
        Compared {
            rows: self.n,
            equal_rows: paired.then_some(self.equal),
            cosine_mean: some(self.cosine_sum / self.n as f64),
            cosine_min: some(self.cosine_min),
            relative_l2: some(relative(self.off, self.size)),
            relative_l2_max: some(self.off_max),
            cka: self.cka(),
        }
    }

    fn cka(&self) -> Option<f64> {
        let n = self.n as f64;
        let squares = |second: &Mat<f64>, l: &[f64], r: &[f64]| -> f64 {
            let centred = |i: usize, j: usize| second[(i, j)] - l[i] * r[j] / n;
            (0..l.len())
                .map(|i| (0..r.len()).map(|j| centred(i, j).powi(2)).sum::<f64>())
                .sum()
        };
        let [a, b] = &self.sums;
        let [xx, yy, xy] = &self.seconds;
        let whole = (squares(xx, a, a) * squares(yy, b, b)).sqrt();
        (self.n >= 2 && whole > 0.0).then(|| squares(xy, a, b) / whole)
    }
}

/// √(off / size), where nothing is off 0, and off nothing infinite.
fn relative(off: f64, size: f64) -> f64 {
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::super::random::Rng;
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..n)
            .map(|_| (rng.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    fn compared(a: &[f32], b: &[f32], widths: (usize, usize), pieces: usize) -> Compared {
        let mut comparing = Comparing::new(widths.0, widths.1);
        let rows = a.len() / widths.0 / pieces;
        for (a, b) in a.chunks(rows * widths.0).zip(b.chunks(rows * widths.1)) {
            comparing.add(a, b);
        }
        comparing.finish()
    }

    #[test]
    fn equal_rows_are_equal_in_every_way() {
        let a = noise(60, 1);
        let found = compared(&a, &a, (6, 6), 2);
        assert_eq!((found.rows, found.equal_rows), (10, Some(10)));
        assert_eq!(
            (found.relative_l2, found.relative_l2_max),
            (Some(0.0), Some(0.0))
        );
        assert!((found.cosine_min.unwrap() - 1.0).abs() < 1e-12);
        assert!((found.cka.unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn scale_shows_in_the_distance_and_not_in_cosine_or_cka() {
        let a = noise(60, 1);
        let b: Vec<f32> = a.iter().map(|x| 3.0 * x).collect();
        let found = compared(&a, &b, (6, 6), 1);
        assert!((found.relative_l2.unwrap() - 2.0).abs() < 1e-6);
        assert!((found.cosine_min.unwrap() - 1.0).abs() < 1e-6);
        assert!((found.cka.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(found.equal_rows, Some(0));
    }

    #[test]
    fn cka_is_the_same_by_centred_grams_of_rows() {
        // ⟨K, L⟩ / (‖K‖ ‖L‖) of the centred Gram matrices of rows: the definition, computed the long way.
        let (n, p, q) = (9, 4, 3);
        let (a, b) = (noise(n * p, 1), noise(n * q, 2));
        let gram = |rows: &[f32], width: usize| {
            let x = matrix(rows, width);
            let mean: Vec<f64> = (0..width)
                .map(|j| x.col(j).iter().sum::<f64>() / n as f64)
                .collect();
            let x = Mat::from_fn(n, width, |i, j| x[(i, j)] - mean[j]);
            &x * x.transpose()
        };
        let dot = |k: &Mat<f64>, l: &Mat<f64>| -> f64 {
            (0..n)
                .map(|i| (0..n).map(|j| k[(i, j)] * l[(i, j)]).sum::<f64>())
                .sum()
        };
        let (k, l) = (gram(&a, p), gram(&b, q));
        let want = dot(&k, &l) / (dot(&k, &k) * dot(&l, &l)).sqrt();
        let found = compared(&a, &b, (p, q), 3);
        assert!(
            (found.cka.unwrap() - want).abs() < 1e-12,
            "{:?}, not {want}",
            found.cka
        );
        assert_eq!(
            found.relative_l2, None,
            "rows of 4 and of 3 have no distance"
        );
    }

    #[test]
    fn nothing_compared_has_no_numbers() {
        let found = Comparing::new(2, 2).finish();
        assert_eq!((found.rows, found.cosine_mean, found.cka), (0, None, None));
    }
}
