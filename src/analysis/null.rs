//! Directions that should not matter, and how far a direction's effect stands out from theirs: drawn at random, drawn with the
//! rows' own covariance, taken of the rows themselves, and found by LAT on pairs that do not belong together.

use faer::Mat;
use rayon::prelude::*;

use super::principal::{principal, unit};
use super::random::Rng;
use super::{Error, Result};

/// `n` unit vectors, each direction of space equally likely.
pub fn random(n: usize, width: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut rng = Rng::new(seed);
    (0..n)
        .map(|_| narrow(unit((0..width).map(|_| rng.normal()).collect())))
        .collect()
}

/// `n` unit vectors along draws from the normal distribution of mean 0 that has the covariance of these rows (row-major
/// `[rows, width]`): each is a sum of the rows less their mean, with random normal weights.
///
/// # Errors
/// Fewer than two rows.
///
/// # Panics
/// When the values don't divide into rows.
pub fn covariance_matched(
    rows: &[f32],
    width: usize,
    n: usize,
    seed: u64,
) -> Result<Vec<Vec<f32>>> {
    let count = whole_rows(rows, width, 2)?;
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x) / count as f64;
        }
    }
    let mut rng = Rng::new(seed);
    let weights: Vec<Vec<f64>> = (0..n)
        .map(|_| (0..count).map(|_| rng.normal()).collect())
        .collect();
    let drawn = weights.into_par_iter().map(|weights| {
        let mut sum = vec![0.0; width];
        for (row, weight) in rows.chunks_exact(width).zip(weights) {
            for ((sum, &x), mean) in sum.iter_mut().zip(row).zip(&mean) {
                *sum += weight * (f64::from(x) - mean);
            }
        }
        narrow(unit(sum))
    });
    Ok(drawn.collect())
}

/// `n` of these rows at unit length, drawn without returning one while there are others left.
///
/// # Errors
/// No rows.
///
/// # Panics
/// When the values don't divide into rows.
pub fn sampled(rows: &[f32], width: usize, n: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
    let count = whole_rows(rows, width, 1)?;
    let mut rng = Rng::new(seed);
    let mut order: Vec<usize> = (0..count).collect();
    rng.shuffle(&mut order);
    let drawn = order.iter().cycle().take(n).map(|&row| {
        let row = &rows[row * width..][..width];
        narrow(unit(row.iter().map(|&x| f64::from(x)).collect()))
    });
    Ok(drawn.collect())
}

/// `n` directions of LAT on shuffled labels. To swap the two labels of a pair changes nothing, since LAT takes differences about zero;
/// so all rows are shuffled, and the differences are of rows that come to stand beside each other. The sign of each is random.
///
/// # Errors
/// Fewer than two rows, or numbers that have no eigenvectors.
///
/// # Panics
/// When the values don't divide into rows.
pub fn shuffled_lat(rows: &[f32], width: usize, n: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
    let count = whole_rows(rows, width, 2)?;
    let mut rng = Rng::new(seed);
    let mut order: Vec<usize> = (0..count).collect();
    let mut found = Vec::with_capacity(n);
    for _ in 0..n {
        rng.shuffle(&mut order);
        let at = |row: usize, j: usize| f64::from(rows[row * width + j]);
        let differences = Mat::from_fn(count / 2, width, |i, j| {
            at(order[2 * i], j) - at(order[2 * i + 1], j)
        });
        let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
        let of = principal(differences.as_ref(), 1, "rows of shuffled pairs")?;
        found.push(narrow(of.directions[0].iter().map(|x| sign * x).collect()));
    }
    Ok(found)
}

/// `n` shuffles of the labels.
pub fn shuffles(labels: &[bool], n: usize, seed: u64) -> Vec<Vec<bool>> {
    let mut rng = Rng::new(seed);
    let mut shuffled = labels.to_vec();
    (0..n)
        .map(|_| {
            rng.shuffle(&mut shuffled);
            shuffled.clone()
        })
        .collect()
}

/// The share of draws that are at least as extreme as what was found, itself counted as one of them, so that it is never 0 (Phipson and
/// Smyth 2010): a one-sided p-value of the hypothesis that what was found is one more draw.
pub fn rank_p(found: f64, draws: &[f64]) -> f64 {
    let above = draws.iter().filter(|&&draw| draw >= found).count();
    (1 + above) as f64 / (1 + draws.len()) as f64
}

fn whole_rows(rows: &[f32], width: usize, needed: usize) -> Result<usize> {
    assert!(rows.len().is_multiple_of(width), "whole rows of {width}");
    let found = rows.len() / width;
    if found < needed {
        let what = "rows to draw directions from".into();
        return Err(Error::TooFew {
            what,
            found,
            needed,
        });
    }
    Ok(found)
}

fn narrow(vector: Vec<f64>) -> Vec<f32> {
    vector.into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        super::super::project::dot(a, b)
    }

    /// Rows whose first component varies ten times as much as the others, around a mean far away.
    fn stretched(n: usize) -> Vec<f32> {
        let mut rng = Rng::new(3);
        (0..n)
            .flat_map(|_| {
                let row: [f64; 4] = std::array::from_fn(|_| rng.normal());
                [10.0 * row[0] + 500.0, row[1] - 300.0, row[2], row[3]].map(|x| x as f32)
            })
            .collect()
    }

    #[test]
    fn random_directions_have_unit_length_and_no_common_side() {
        let found = random(2000, 8, 0);
        let mut mean = [0.0; 8];
        for direction in &found {
            assert!((dot(direction, direction) - 1.0).abs() < 1e-6);
            (0..8).for_each(|j| mean[j] += f64::from(direction[j]) / 2000.0);
        }
        // A component has variance 1/8: five standard errors.
        assert!(
            mean.iter().all(|m| m.abs() < 5.0 / f64::sqrt(8.0 * 2000.0)),
            "{mean:?}"
        );
        assert_eq!(found, random(2000, 8, 0));
        assert_ne!(found[0], random(1, 8, 1)[0]);
    }

    #[test]
    fn covariance_matched_directions_lie_where_rows_vary_and_not_where_their_mean_is() {
        let found = covariance_matched(&stretched(500), 4, 400, 0).unwrap();
        // A normal number ten times as large as the length of three more has that share of the length in 74 % of draws; along the mean, the second
        // component would be half of the first.
        let along = found.iter().filter(|d| d[0].abs() > 0.9).count();
        assert!((260..330).contains(&along), "{along}");
        let positive = found.iter().filter(|d| d[0] > 0.0).count();
        assert!((150..250).contains(&positive), "{positive}");
        let second = found.iter().map(|d| f64::from(d[1]).powi(2)).sum::<f64>() / 400.0;
        assert!((0.02..0.12).contains(&second), "{second}");
    }

    #[test]
    fn sampled_directions_are_rows_at_unit_length_each_once_while_there_are_others() {
        let rows = [3.0, 4.0, 0.0, 2.0];
        let found = sampled(&rows, 2, 3, 0).unwrap();
        let mut firsts = found[..2].to_vec();
        firsts.sort_by(|a, b| b[0].total_cmp(&a[0]));
        assert_eq!(firsts, [[0.6, 0.8], [0.0, 1.0]]);
        assert_eq!(found[2], found[0]);
    }

    #[test]
    fn lat_on_shuffled_pairs_finds_what_rows_vary_in_and_not_what_pairs_differ_in() {
        // Members of a pair differ by 1 in the last component; rows differ far more in the first.
        let mut rows = stretched(400);
        for (i, row) in rows.chunks_exact_mut(4).enumerate() {
            row[3] = if i % 2 == 0 { 0.5 } else { -0.5 };
        }
        let found = shuffled_lat(&rows, 4, 40, 0).unwrap();
        assert!(
            found.iter().all(|d| d[0].abs() > 0.99 && d[3].abs() < 0.1),
            "{found:?}"
        );
        let positive = found.iter().filter(|d| d[0] > 0.0).count();
        assert!((5..35).contains(&positive), "{positive}");
    }

    #[test]
    fn too_few_rows_are_refused() {
        let message = covariance_matched(&[1.0, 2.0], 2, 1, 0)
            .unwrap_err()
            .to_string();
        assert!(message.contains("1 where 2 are needed"), "{message}");
        assert!(shuffled_lat(&[1.0, 2.0], 2, 1, 0).is_err() && sampled(&[], 2, 1, 0).is_err());
    }

    #[test]
    fn shuffles_keep_how_many_labels_there_are_of_each_kind() {
        let labels: Vec<bool> = (0..30).map(|i| i < 10).collect();
        let found = shuffles(&labels, 20, 0);
        let trues = |labels: &Vec<bool>| labels.iter().filter(|&&label| label).count();
        assert!(
            found
                .iter()
                .all(|shuffled| trues(shuffled) == 10 && *shuffled != labels)
        );
    }

    #[test]
    fn a_p_value_by_rank_counts_what_was_found_among_the_draws() {
        let draws: Vec<f64> = (1..=99).map(f64::from).collect();
        assert_eq!(rank_p(1000.0, &draws), 0.01);
        assert_eq!(rank_p(99.0, &draws), 0.02);
        assert_eq!(rank_p(-5.0, &draws), 1.0);
        assert_eq!(rank_p(0.0, &[]), 1.0);
    }
}
