//! How findings tell their numbers: means with their intervals, shares, and the controls that stand beside them.

use serde_json::Value;

use super::Study;
use super::estimate::NO_INTERVAL;
use super::statistics::mean as average;
use crate::analysis::null;
use crate::report::finding::{Body, Control, Exhibit, Labels, Number};

/// A number with nothing around it yet; none where it is not a finite one.
pub(super) fn number(name: impl Into<String>, value: f64, unit: &str) -> Number {
    Number::new(name, value.is_finite().then_some(value)).unit(unit)
}

/// The mean of one value per prompt (or group), with its interval over these; without any, no number.
pub(super) fn mean(
    study: &Study<'_>,
    name: impl Into<String>,
    values: &[f64],
    unit: &str,
) -> Number {
    let mut told = number(name, average(values), unit);
    told.n = Some(values.len());
    if values.iter().all(|v| v.is_finite()) {
        told.interval = study.mean_interval(values);
        if told.interval.is_none() && values.len() > 2 {
            told.note = NO_INTERVAL.into();
        }
    }
    told
}

/// Quantiles, linear between order statistics; NaN of nothing.
pub(super) fn quantiles<const N: usize>(values: &[f64], levels: [f64; N]) -> [f64; N] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    levels.map(|level| {
        let place = level * sorted.len().saturating_sub(1) as f64;
        let at = |i: f64| sorted.get(i as usize).copied().unwrap_or(f64::NAN);
        at(place.floor()) + (place - place.floor()) * (at(place.ceil()) - at(place.floor()))
    })
}

/// A control made of many draws: their mean, and between which two values 95 % of them lie.
/// `None` without draws, or where one is not a number.
pub(super) fn draws(name: impl Into<String>, values: &[f64]) -> Option<Control> {
    Some(Control {
        name: name.into(),
        value: average(values),
        interval: Some(spread(values)?),
    })
}

/// An interval of an analysis; none, where it has no width: there BCa is not defined, and it would pass for certainty.
pub(super) fn with_width([low, high]: [f64; 2]) -> Option<[f64; 2]> {
    (low < high).then_some([low, high])
}

/// How many of the draws come up to what was found, and the p value of that rank: `3 of 100 (p = 0.04)`.
pub(super) fn rank(found: f64, draws: &[f64]) -> String {
    let above = draws.iter().filter(|&&draw| draw >= found).count();
    let p = null::rank_p(found, draws);
    format!("{above} of {} (p = {p:.2})", draws.len())
}

/// Between which two values 95 % lie; `None` without any, or where one is not a number.
pub(super) fn spread(values: &[f64]) -> Option<[f64; 2]> {
    let are_numbers = !values.is_empty() && values.iter().all(|v| v.is_finite());
    are_numbers.then(|| quantiles(values, [0.025, 0.975]))
}

pub(super) fn control(name: impl Into<String>, value: f64) -> Option<Control> {
    value.is_finite().then(|| Control {
        name: name.into(),
        value,
        interval: None,
    })
}

pub(super) fn labels(name: &str, labels: impl IntoIterator<Item = String>) -> Labels {
    Labels {
        name: name.into(),
        labels: labels.into_iter().collect(),
    }
}

pub(super) fn exhibit(name: &str, caption: impl Into<String>, body: Body) -> Exhibit {
    Exhibit {
        name: name.into(),
        caption: caption.into(),
        body,
    }
}

pub(super) fn table(columns: &[&str], rows: Vec<Vec<Value>>) -> Body {
    Body::Table {
        columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        rows,
    }
}

/// `0.81 (0.75 to 0.86)`; the interval if there is one.
pub(super) fn with_interval(number: &Number) -> String {
    match (number.value, number.interval) {
        (Some(value), Some([low, high])) => format!("{value:.2} ({low:.2} to {high:.2})"),
        (Some(value), None) => format!("{value:.2}"),
        (None, _) => "not known".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        // numpy 2: quantile([3, 1, 4, 1.5], [.5, .025])
        let found = quantiles(&[3.0, 1.0, 4.0, 1.5], [0.5, 0.025]);
        assert!((found[0] - 2.25).abs() < 1e-12 && (found[1] - 1.0375).abs() < 1e-12);
        assert!(quantiles(&[], [0.5])[0].is_nan());
    }

    #[test]
    fn a_rank_tells_how_many_come_up_to_what_was_found_and_counts_it_itself_for_p() {
        assert_eq!(rank(2.0, &[1.0, 2.0, 3.0]), "2 of 3 (p = 0.75)");
        assert_eq!(rank(9.0, &[1.0, 2.0, 3.0]), "0 of 3 (p = 0.25)");
    }

    #[test]
    fn an_interval_without_width_is_none() {
        assert_eq!(with_width([1.0, 1.0]), None);
        assert_eq!(with_width([0.5, 1.0]), Some([0.5, 1.0]));
    }
}
