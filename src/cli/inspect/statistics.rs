//! Statistics of one tap, over all its shards, a piece in memory at a time.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use crate::store::{Error, StoreDtype, TapReader};

/// Bytes of a piece, about.
const PIECE: usize = 1 << 20;

/// Of the finite numbers of a tap; none of the moments if it has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    pub rows: u64,
    pub values: u64,
    pub mean: Option<f64>,
    /// Of the population: the squares' sum divided by their number.
    pub std: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// Mean of the rows' Euclidean norms; `None` for a ragged tap, whose rows differ in length.
    pub mean_row_norm: Option<f64>,
    pub nan: u64,
    /// Infinities that no mask put there.
    pub infinite: u64,
    /// −∞ at `hook_attn_scores`: keys that the query must not see.
    pub masked: u64,
}

/// The statistics of a tap. The same store gives the same bits: pieces are added up in order.
///
/// # Errors
/// A file is damaged.
pub fn of(tap: &TapReader<'_>) -> Result<Statistics, Error> {
    let info = tap.info();
    let masks = info.hook.ends_with("hook_attn_scores");
    let row = if info.ragged {
        PIECE
    } else {
        info.row_shape.iter().product::<usize>() * info.dtype.size()
    }
    .max(1);
    let piece = row * (PIECE / row).max(1);
    let mut all = Moments::default();
    for shard in 0..tap.n_shards() {
        let view = tap.shard(shard)?;
        let pieces: Vec<Moments> = match info.compact() {
            None => view
                .activations()
                .par_chunks(piece)
                .map(|bytes| Moments::of(bytes, row, info.dtype, masks))
                .collect(),
            Some(compact) => (0..view.rows())
                .into_par_iter()
                .step_by(piece / row)
                .map(|first| {
                    let rows = first..(first + piece / row).min(view.rows());
                    let numbers = view.rows_f32(rows);
                    let bytes = bytemuck::cast_slice(&numbers);
                    Moments::of(bytes, 4 * compact.width, StoreDtype::F32, masks)
                })
                .collect(),
        };
        pieces.iter().for_each(|piece| all.add(piece));
    }
    let known = |value: f64| (all.n > 0).then_some(value);
    let rows = tap.rows() as u64;
    Ok(Statistics {
        rows,
        values: all.n + all.nan + all.infinite + all.masked,
        mean: known(all.mean),
        std: known((all.squares / all.n as f64).sqrt()),
        min: known(all.min),
        max: known(all.max),
        mean_row_norm: (!info.ragged && all.n > 0).then(|| all.norms / rows as f64),
        nan: all.nan,
        infinite: all.infinite,
        masked: all.masked,
    })
}

/// Sums that pieces are combined by (Chan, Golub and LeVeque 1979): no large sums are subtracted from each other.
#[derive(Debug, Clone)]
struct Moments {
    n: u64,
    mean: f64,
    /// Of the deviations from the mean.
    squares: f64,
    min: f64,
    max: f64,
    /// Of the rows.
    norms: f64,
    nan: u64,
    infinite: u64,
    masked: u64,
}

impl Default for Moments {
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Moments {
            n: 0,
            mean: 0.0,
            squares: 0.0,
            min,
            max,
            norms: 0.0,
            nan: 0,
            infinite: 0,
            masked: 0,
        }
    }
}

impl Moments {
    /// Of whole rows of `row` bytes each (the last may be shorter).
    fn of(bytes: &[u8], row: usize, dtype: StoreDtype, masks: bool) -> Self {
        let mut all = Moments::default();
        let mut finite = Vec::new();
        for row in bytes.chunks(row) {
            let mut one = Moments::default();
            finite.clear();
            each(row, dtype, |value| {
                if value.is_finite() {
                    finite.push(value);
                } else if value.is_nan() {
                    one.nan += 1;
                } else if masks && value < 0.0 {
                    one.masked += 1;
                } else {
                    one.infinite += 1;
                }
            });
            one.n = finite.len() as u64;
            one.mean = if finite.is_empty() {
                0.0
            } else {
                finite.iter().sum::<f64>() / finite.len() as f64
            };
            one.squares = finite.iter().map(|v| (v - one.mean).powi(2)).sum();
            one.min = finite.iter().copied().fold(f64::INFINITY, f64::min);
            one.max = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            one.norms = finite.iter().map(|v| v * v).sum::<f64>().sqrt();
            all.add(&one);
        }
        all
    }

    fn add(&mut self, other: &Moments) {
        let n = self.n + other.n;
        if n > 0 {
            let apart = other.mean - self.mean;
            let share = other.n as f64 / n as f64;
            self.squares += other.squares + apart * apart * self.n as f64 * share;
            self.mean += apart * share;
        }
        self.n = n;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.norms += other.norms;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.masked += other.masked;
    }
}

/// Each number of `bytes`, widened.
fn each(bytes: &[u8], dtype: StoreDtype, mut see: impl FnMut(f64)) {
    match dtype {
        StoreDtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .for_each(|&b| see(f32::from_le_bytes(b).into())),
        StoreDtype::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .for_each(|&b| see(half::f16::from_le_bytes(b).to_f64())),
        StoreDtype::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .for_each(|&b| see(half::bf16::from_le_bytes(b).to_f64())),
        // Read back to f32 before they come here.
        StoreDtype::F8E4M3 | StoreDtype::Int8 => {}
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mean, self.std, self.min, self.max) {
            (Some(mean), Some(std), Some(min), Some(max)) => {
                write!(
                    f,
                    "mean {mean:.6e}, std {std:.6e}, min {min:.6e}, max {max:.6e}"
                )?;
            }
            _ => f.write_str("no finite number")?,
        }
        if let Some(norm) = self.mean_row_norm {
            write!(f, ", mean row norm {norm:.6e}")?;
        }
        write!(f, ", NaN {}, infinite {}", self.nan, self.infinite)?;
        if self.masked > 0 {
            write!(f, ", masked {}", self.masked)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32], row: usize, masks: bool) -> Moments {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Moments::of(&bytes, 4 * row, StoreDtype::F32, masks)
    }

    #[test]
    fn pieces_add_up_to_the_whole_however_far_the_mean_is_from_zero() {
        let values: Vec<f32> = (0..120).map(|i| 25_000.0 + (i % 7) as f32).collect();
        let mut all = Moments::default();
        values
            .chunks(24)
            .for_each(|piece| all.add(&moments(piece, 8, false)));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 120.0;
        let variance = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / 120.0;
        assert!(
            (all.mean - mean).abs() < 1e-9 && (all.squares / 120.0 - variance).abs() < 1e-9,
            "{all:?}"
        );
        assert_eq!((all.n, all.min, all.max), (120, 25_000.0, 25_006.0));
    }

    #[test]
    fn what_is_not_finite_is_counted_by_its_cause_and_left_out() {
        let values = [
            3.0,
            f32::NAN,
            f32::NEG_INFINITY,
            4.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let scores = moments(&values, 6, true);
        assert_eq!(
            (scores.n, scores.nan, scores.infinite, scores.masked),
            (2, 1, 1, 2)
        );
        assert_eq!((scores.mean, scores.norms), (3.5, 5.0));
        let others = moments(&values, 6, false);
        assert_eq!((others.infinite, others.masked), (3, 0));
        assert_eq!(moments(&values[1..2], 1, false).n, 0);
    }
}
