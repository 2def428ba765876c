//! From values to places: a linear axis with its ticks at round numbers.

/// A linear axis: `ticks` lie within `low..=high`.
pub(super) struct Scale {
    pub low: f64,
    pub high: f64,
    pub step: f64,
    pub ticks: Vec<f64>,
    from: f64,
    to: f64,
}

impl Scale {
    /// An axis over all finite values, drawn from `from` to `to`, with about `wanted` ticks. `whole`: ticks at whole numbers only.
    pub fn over(
        values: impl Iterator<Item = f64>,
        [from, to]: [f64; 2],
        wanted: usize,
        whole: bool,
    ) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-12 * high.abs().max(low.abs()).max(1e-12) {
            let half = if low.abs() < 1e-200 {
                0.5
            } else {
                low.abs() * 0.1
            };
            (low, high) = (low - half, high + half);
        }
        let margin = (high - low) * 0.04;
        (low, high) = (low - margin, high + margin);
        let step = step(high - low, wanted, whole);
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        let ticks = (first..=last).map(|tick| tick as f64 * step).collect();
        Scale {
            low,
            high,
            step,
            ticks,
            from,
            to,
        }
    }

    pub fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    pub fn has(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The least of 1, 2, 2.5 and 5 times a power of ten that gives at most `wanted` ticks.
fn step(span: f64, wanted: usize, whole: bool) -> f64 {
    let least = span / wanted.max(1) as f64;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= least * (1.0 - 1e-9) && !(whole && step.fract() != 0.0))
        .unwrap_or(10.0 * power);
    if whole { step.max(1.0).ceil() } else { step }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::over([0.0, 29.0].into_iter(), [0.0, 100.0], 10, true);
        assert_eq!(scale.ticks, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
        let scale = Scale::over([0.13, 0.91].into_iter(), [0.0, 100.0], 5, false);
        assert!(scale.ticks.len() >= 3 && scale.ticks.iter().all(|&tick| scale.has(tick)));
    }

    #[test]
    fn no_value_one_value_and_values_without_end_have_an_axis_too() {
        for values in [
            vec![],
            vec![3.0],
            vec![0.0],
            vec![f64::NAN, f64::INFINITY],
            vec![1e300, -1e300],
            vec![5e-324],
        ] {
            let scale = Scale::over(values.clone().into_iter(), [0.0, 100.0], 6, false);
            assert!(scale.low < scale.high, "{values:?}");
            assert!(
                scale.ticks.len() < 20 && scale.at(scale.low).abs() < 1e-9,
                "{values:?}"
            );
        }
    }

    #[test]
    fn values_lie_between_the_ends() {
        let scale = Scale::over([2.0, 4.0].into_iter(), [300.0, 20.0], 6, false);
        assert!((scale.at(3.0) - 160.0).abs() < 1e-9);
        assert!(
            scale.at(4.0) < scale.at(2.0),
            "a vertical axis runs upwards"
        );
    }
}
