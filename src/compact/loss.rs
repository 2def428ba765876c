//! What rounding to 8 bits costs: of each row, and of a tap as sums that do not depend on the order they are taken in.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Partial sums of a row: number i goes to sum i mod 32, and the sums are halved together. A warp of a GPU adds in this order too.
const LANES: usize = 32;
/// A unit of [`Exact`] sums.
const UNIT: f64 = 1.0 / (1u64 << 60) as f64;

/// The loss of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowLoss {
    /// ‖read − row‖ / ‖row‖.
    pub relative_error: f32,
    pub cosine: f32,
}

impl RowLoss {
    /// Of a row and what is read back for it. Products of f32 are exact in f64.
    #[inline(always)]
    pub fn of(row: &[f32], read: &[f32]) -> Self {
        let mut sums = [[0f64; LANES]; 4];
        for (row, read) in row.chunks(LANES).zip(read.chunks(LANES)) {
            for (lane, (&x, &y)) in row.iter().zip(read).enumerate() {
                let (d, x, y) = (f64::from(y - x), f64::from(x), f64::from(y));
                sums[0][lane] += d * d;
                sums[1][lane] += x * x;
                sums[2][lane] += y * y;
                sums[3][lane] += x * y;
            }
        }
        let [error, norm, read_norm, dot] = sums.map(together);
        let none = norm == 0.0 && error == 0.0;
        let ratio = (error / norm).sqrt();
        let cosine = dot / (norm.sqrt() * read_norm.sqrt());
        // Rows that are zero, or read as zero, have no direction.
        let blind = if read_norm == 0.0 { 0.0 } else { cosine };
        RowLoss {
            relative_error: if none { 0.0 } else { one_nan(ratio as f32) },
            cosine: if none { 1.0 } else { (blind as f32).min(1.0) },
        }
    }
}

/// Which of the NaNs an operation makes is the machine's affair; a stored one is always the same.
fn one_nan(x: f32) -> f32 {
    if x.is_nan() { f32::NAN } else { x }
}

fn together(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// A sum in units of 2⁻⁶⁰, exact, so that it is the same however its terms are grouped. Decimal digits in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exact(u128);

impl Exact {
    fn add(&mut self, term: f64) {
        // Terms are a few units at most; `as` cuts off what is less than one.
        self.0 = self.0.saturating_add((term / UNIT) as u128);
    }

    fn join(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }

    fn over(self, n: u64) -> f64 {
        self.0 as f64 * UNIT / n as f64
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let sum = text.parse().ok().filter(|_| digits);
        sum.map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is no sum of losses")))
    }
}

/// The losses of some rows, added up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossSums {
    /// Rows whose loss is known.
    pub rows: u64,
    /// Rows that hold a number that is not finite, left out of the rest.
    pub not_finite: u64,
    /// Sum of the squares of relative errors, in units of 2⁻⁶⁰.
    pub error_squares: Exact,
    pub worst_error: f32,
    /// Sum of 1 − cosine, in units of 2⁻⁶⁰.
    pub cosine_gaps: Exact,
    pub worst_cosine: f32,
}

impl Default for LossSums {
    fn default() -> Self {
        Self {
            rows: 0,
            not_finite: 0,
            error_squares: Exact::default(),
            worst_error: 0.0,
            cosine_gaps: Exact::default(),
            worst_cosine: 1.0,
        }
    }
}

impl LossSums {
    /// Of the rows whose relative errors and cosines these are: little-endian f32, one per row.
    pub fn of(relative_errors: &[u8], cosines: &[u8]) -> Self {
        let mut sums = Self::default();
        let (errors, cosines) = (relative_errors.as_chunks().0, cosines.as_chunks().0);
        for (&error, &cosine) in errors.iter().zip(cosines) {
            let (error, cosine) = (f32::from_le_bytes(error), f32::from_le_bytes(cosine));
            if !error.is_finite() || !cosine.is_finite() {
                sums.not_finite += 1;
                continue;
            }
            sums.rows += 1;
            sums.error_squares.add(f64::from(error) * f64::from(error));
            sums.worst_error = sums.worst_error.max(error);
            sums.cosine_gaps.add(1.0 - f64::from(cosine));
            sums.worst_cosine = sums.worst_cosine.min(cosine);
        }
        sums
    }

    /// Adds those of other rows.
    pub fn join(&mut self, other: &Self) {
        self.rows = self.rows.saturating_add(other.rows);
        self.not_finite = self.not_finite.saturating_add(other.not_finite);
        self.error_squares.join(other.error_squares);
        self.worst_error = self.worst_error.max(other.worst_error);
        self.cosine_gaps.join(other.cosine_gaps);
        self.worst_cosine = self.worst_cosine.min(other.worst_cosine);
    }

    /// What they come to; `None` without rows.
    pub fn loss(&self) -> Option<Loss> {
        (self.rows > 0).then(|| Loss {
            rows: self.rows,
            not_finite: self.not_finite,
            relative_error: RelativeError {
                rms: self.error_squares.over(self.rows).sqrt(),
                worst: self.worst_error,
            },
            cosine: Cosine {
                mean: 1.0 - self.cosine_gaps.over(self.rows),
                worst: self.worst_cosine,
            },
        })
    }
}

/// The loss of a tap, measured as its rows were written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    pub rows: u64,
    pub not_finite: u64,
    pub relative_error: RelativeError,
    pub cosine: Cosine,
}

/// ‖read − row‖ / ‖row‖ over rows: their root mean square, in which each row counts alike, however large; and the largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RelativeError {
    pub rms: f64,
    pub worst: f32,
}

/// Between a row and what is read for it, over rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cosine {
    pub mean: f64,
    pub worst: f32,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "relative error {:.3e} (worst row {:.3e}), cosine {:.6} (worst row {:.6})",
            self.relative_error.rms, self.relative_error.worst, self.cosine.mean, self.cosine.worst
        )
    }
}
