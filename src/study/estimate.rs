//! Means over prompts with their intervals.

use crate::analysis::Bootstrap;
use crate::report::finding::{Number, Published};

/// Why a number over several prompts or groups stands without an interval.
pub(super) const NO_INTERVAL: &str =
    "no interval: BCa is not defined, as where all are alike; resampling cannot tell";

/// A mean over prompts with its 95 % BCa interval; no interval for fewer than three, or where BCa is not defined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub value: f64,
    pub interval: Option<[f64; 2]>,
    pub n: usize,
}

impl Estimate {
    /// Of the mean.
    pub fn mean(values: &[f64], bootstrap: &Bootstrap) -> Self {
        Self::of(values.len(), bootstrap, |drawn| {
            drawn.iter().map(|&i| values[i as usize]).sum::<f64>() / drawn.len() as f64
        })
    }

    /// Of a mean's share in another: mean(part) / mean(whole).
    pub fn share(parts: &[[f64; 2]], bootstrap: &Bootstrap) -> Self {
        Self::of(parts.len(), bootstrap, |drawn| {
            let sum = |at: usize| drawn.iter().map(|&i| parts[i as usize][at]).sum::<f64>();
            sum(0) / sum(1)
        })
    }

    /// Of any statistic of `n` prompts; NaN of none.
    pub fn of(n: usize, bootstrap: &Bootstrap, statistic: impl Fn(&[u32]) -> f64) -> Self {
        if n == 0 {
            return Estimate {
                value: f64::NAN,
                interval: None,
                n,
            };
        }
        let all: Vec<u32> = (0..n as u32).collect();
        let value = statistic(&all);
        let is_enough = n > 2 && value.is_finite();
        let interval = is_enough.then(|| bootstrap.interval(n, &statistic).bca());
        let interval = interval.flatten();
        Estimate { value, interval, n }
    }

    /// As a number of the table.
    pub fn number(&self, name: impl Into<String>, published: Option<Published>) -> Number {
        let value = Some(self.value).filter(|v| v.is_finite());
        let note = match (value, self.n) {
            (None, 0) => "no prompt has it",
            (None, _) => "not finite",
            (Some(_), 1 | 2) => "too few prompts for an interval",
            (Some(_), _) if self.interval.is_none() => NO_INTERVAL,
            _ => "",
        };
        Number::new(name, value)
            .interval(
                self.interval
                    .filter(|i| i.iter().all(|end| end.is_finite())),
            )
            .over(self.n)
            .published(published)
            .note(note)
    }

    /// `0.336 (0.26 to 0.42)`
    pub fn text(&self) -> String {
        match self.interval {
            _ if !self.value.is_finite() => "unknown".into(),
            Some([low, high]) => format!("{:.3} ({low:.3} to {high:.3})", self.value),
            None => format!("{:.3}", self.value),
        }
    }

    /// Whether the interval holds 0 or there is none.
    pub fn may_be_zero(&self) -> bool {
        self.interval
            .is_none_or(|[low, high]| low <= 0.0 && high >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_of_few_prompts_has_no_interval_and_one_of_none_no_value() {
        let bootstrap = Bootstrap::default();
        assert_eq!(Estimate::mean(&[1.0, 2.0], &bootstrap).interval, None);
        let none = Estimate::mean(&[], &bootstrap).number("x", None);
        assert_eq!((none.value, &none.note[..]), (None, "no prompt has it"));
        let share = Estimate::share(&[[1.0, 4.0], [3.0, 4.0]], &bootstrap);
        assert_eq!(share.value, 0.5);
    }

    #[test]
    fn a_share_of_none_has_no_interval_instead_of_one_without_width() {
        let none = Estimate::mean(&[0.0; 4], &Bootstrap::default());
        assert_eq!((none.value, none.interval), (0.0, None));
        assert_eq!(none.number("x", None).note, NO_INTERVAL);
        let some = Estimate::mean(&[0.0, 1.0, 0.0, 1.0], &Bootstrap::default());
        assert!(some.interval.is_some() && some.number("x", None).note.is_empty());
    }
}
