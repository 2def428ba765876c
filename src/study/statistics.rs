//! Means and medians over prompts, with their intervals.

use crate::analysis::Bootstrap;

/// Mean; NaN of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Median, of an even number the mean of the two in the middle; NaN of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The BCa interval of the mean, each value a unit; `None` of fewer than three, or where it is not defined.
pub(super) fn mean_interval(bootstrap: &Bootstrap, values: &[f64]) -> Option<[f64; 2]> {
    if values.len() < 3 {
        return None;
    }
    let interval = bootstrap.interval(values.len(), |drawn| {
        let sum: f64 = drawn.iter().map(|&i| values[i as usize]).sum();
        sum / drawn.len() as f64
    });
    interval.bca()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_of_a_mean_holds_it_and_one_value_has_none() {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        let [low, high] = mean_interval(&Bootstrap::default(), &values).unwrap();
        assert!(low < 9.5 && 9.5 < high && low > 6.0 && high < 13.0);
        assert_eq!(mean_interval(&Bootstrap::default(), &[1.0, 2.0]), None);
        assert_eq!(mean_interval(&Bootstrap::default(), &[1.0; 9]), None);
    }
}
