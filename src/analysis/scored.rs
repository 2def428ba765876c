//! How often held-out items were called right, with an interval over their groups.

use super::bootstrap::{Bootstrap, IntervalMethod};

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
