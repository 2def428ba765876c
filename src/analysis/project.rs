//! Components of rows along directions.

/// x · d, summed in f64 in the order of the components.
pub fn dot(row: &[f32], direction: &[f32]) -> f64 {
    row.iter()
        .zip(direction)
        .map(|(&x, &d)| f64::from(x) * f64::from(d))
        .sum()
}

/// Mean and standard deviation (over n − 1; 0 of a single value), to make z-scores of.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// Places of the `k` highest and the `k` lowest values, and of those at `quantiles` (0 to 1) between; each in order of the value, ties by place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extremes {
    pub highest: Vec<usize>,
    pub lowest: Vec<usize>,
    pub quantiles: Vec<usize>,
}

/// Sorts the values; NaN counts as beyond the highest.
pub fn extremes(values: &[f64], k: usize, quantiles: &[f64]) -> Extremes {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
    let k = k.min(order.len());
    let last = order.len().saturating_sub(1) as f64;
    Extremes {
        highest: order[order.len() - k..].iter().rev().copied().collect(),
        lowest: order[..k].to_vec(),
        quantiles: if order.is_empty() {
            Vec::new()
        } else {
            quantiles
                .iter()
                .map(|q| order[(q * last).round() as usize])
                .collect()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_come_in_order_and_ties_by_place() {
        let values = [3.0, -1.0, 3.0, 0.5, 9.0];
        let found = extremes(&values, 2, &[0.0, 0.5, 1.0]);
        assert_eq!(found.highest, [4, 2]);
        assert_eq!(found.lowest, [1, 3]);
        assert_eq!(found.quantiles, [1, 0, 4]);
        assert!(extremes(&[], 2, &[0.5]).quantiles.is_empty());
        assert_eq!(extremes(&values, 99, &[]).highest.len(), 5);
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((deviation - (5.0_f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_deviation(&[7.0]), (7.0, 0.0));
    }
}
