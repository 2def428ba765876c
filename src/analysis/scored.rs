//! How often held-out items were called right, with an interval over their groups.

use super::bootstrap::{Bootstrap, Interval, IntervalMethod};
use super::roc::auc;
use super::split::{Split, Statements};
use super::{Error, Result};

/// How well scores tell the held-out statements apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// Share of them on the right side of the threshold: above it is true.
    pub accuracy: Share,
    /// Area under the ROC, ties half.
    pub auc: f64,
}

impl HeldOut {
    /// `scores`: one for each of the split's held-out statements, in its order.
    ///
    /// # Errors
    /// They are all of one label.
    ///
    /// # Panics
    /// There are none, or not as many scores.
    pub fn of(
        scores: &[f64],
        threshold: f64,
        statements: &Statements,
        split: &Split,
        bootstrap: &Bootstrap,
    ) -> Result<Self> {
        let labels: Vec<bool> = split.test.iter().map(|&i| statements.labels[i]).collect();
        let called = scores.iter().zip(&labels);
        let right: Vec<bool> = called
            .map(|(&s, &label)| (s > threshold) == label)
            .collect();
        let one_label = Error::OneLabel {
            side: "held-out",
            label: !labels.first().copied().unwrap_or_default(),
        };
        Ok(HeldOut {
            auc: auc(scores, &labels).ok_or(one_label)?,
            accuracy: share_right(&statements.group_numbers(&split.test), &right, bootstrap),
        })
    }
}

/// A share with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub share: f64,
    pub low: f64,
    pub high: f64,
    pub method: IntervalMethod,
}

/// The share of `right` items; `groups` gives each item's group, numbered from 0 in order of first appearance, and groups are what
/// the bootstrap draws.
///
/// # Panics
/// When there is no item, or groups and items differ in number.
pub fn share_right(groups: &[usize], right: &[bool], bootstrap: &Bootstrap) -> Share {
    assert_eq!(groups.len(), right.len(), "one group per item");
    // (right, all) per group.
    let mut units: Vec<(u32, u32)> = Vec::new();
    for (&group, &right) in groups.iter().zip(right) {
        if group == units.len() {
            units.push((0, 0));
        }
        units[group].0 += u32::from(right);
        units[group].1 += 1;
    }
    let share = |drawn: &mut dyn Iterator<Item = (u32, u32)>| {
        let (right, all) = drawn.fold((0, 0), |sum, unit| (sum.0 + unit.0, sum.1 + unit.1));
        f64::from(right) / f64::from(all)
    };
    let interval = bootstrap.interval(units.len(), |drawn| {
        share(&mut drawn.iter().map(|&unit| units[unit as usize]))
    });
    Share {
        share: share(&mut units.iter().copied()),
        low: interval.low,
        high: interval.high,
        method: interval.method,
    }
}

/// The interval of `statistic`, a function of which items (by place, repeats allowed) make up the data, over groups of items: `groups` gives
/// each item's, numbered from 0 in order of first appearance.
///
/// # Panics
/// When there is no item.
pub fn grouped(
    groups: &[usize],
    bootstrap: &Bootstrap,
    statistic: impl Fn(&[usize]) -> f64,
) -> Interval {
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (item, &group) in groups.iter().enumerate() {
        units.resize(units.len().max(group + 1), Vec::new());
        units[group].push(item);
    }
    bootstrap.interval(units.len(), |drawn| {
        let items: Vec<usize> = drawn
            .iter()
            .flat_map(|&unit| units[unit as usize].iter().copied())
            .collect();
        statistic(&items)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_over_groups_is_that_of_the_groups_own_values() {
        // Items of a group are equal, so drawing groups of two is drawing values.
        let values = [0.125, 0.5, 0.375, 0.75, 0.625, 0.875, 1.25];
        let bootstrap = Bootstrap::default();
        let mean = |drawn: &mut dyn Iterator<Item = usize>| {
            let (n, sum) = drawn.fold((0, 0.0), |(n, sum), i| (n + 1, sum + values[i]));
            sum / f64::from(n)
        };
        let alone = bootstrap.interval(7, |drawn| mean(&mut drawn.iter().map(|&i| i as usize)));
        let groups: Vec<usize> = (0..14).map(|item| item / 2).collect();
        let doubled = grouped(&groups, &bootstrap, |items| {
            mean(&mut items.iter().map(|i| i / 2))
        });
        assert!(
            (alone.low - doubled.low).abs() < 1e-12 && (alone.high - doubled.high).abs() < 1e-12
        );
        assert!(alone.low < 0.55 && 0.7 < alone.high);
    }
}
