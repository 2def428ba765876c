//! Sums over rows.

use std::collections::BTreeMap;
use std::fmt;

/// Count and sums of some rows of one width, in f64.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    pub count: u64,
    /// Σ x, `[width]`.
    pub sum: Vec<f64>,
    /// Σ x·xᵀ, `[width, width]`, where it was asked for. Of a matrix in the making only the lower triangle counts.
    pub outer: Option<Vec<f64>>,
}

impl Moments {
    /// Of no rows.
    pub fn new(width: usize, outer: bool) -> Self {
        Moments {
            count: 0,
            sum: vec![0.0; width],
            outer: outer.then(|| vec![0.0; width * width]),
        }
    }

    pub fn width(&self) -> usize {
        self.sum.len()
    }

    /// Adds the sums of other rows; `None`, and nothing is changed, where widths or what was summed differ, or counts overflow.
    #[must_use]
    pub fn add(&mut self, other: &Moments) -> Option<()> {
        let count = self.count.checked_add(other.count)?;
        let same = self.width() == other.width() && self.outer.is_some() == other.outer.is_some();
        if !same {
            return None;
        }
        self.count = count;
        let sums = self.sum.iter_mut().zip(&other.sum);
        sums.for_each(|(sum, x)| *sum += x);
        if let (Some(outer), Some(others)) = (&mut self.outer, &other.outer) {
            let sums = outer.iter_mut().zip(others);
            sums.for_each(|(sum, x)| *sum += x);
        }
        Some(())
    }

    /// The mean row; zeros of no rows.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.count.max(1) as f64;
        self.sum.iter().map(|sum| sum / n).collect()
    }
}

/// Which rows a set of sums is over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// All of them.
    Rows,
    /// Those of the samples of a class, by the value of their label.
    Class(String),
    /// The difference of the two rows of each pair, true less false.
    PairDifference,
    /// The sum of the two.
    PairSum,
}

impl fmt::Display for Set {
    /// As its tensors' names begin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Set::Rows => f.write_str("rows"),
            Set::Class(value) => write!(f, "class.{value}"),
            Set::PairDifference => f.write_str("pair_difference"),
            Set::PairSum => f.write_str("pair_sum"),
        }
    }
}

impl Set {
    /// The set of that name.
    pub fn named(name: &str) -> Option<Set> {
        match name {
            "rows" => Some(Set::Rows),
            "pair_difference" => Some(Set::PairDifference),
            "pair_sum" => Some(Set::PairSum),
            _ => Some(Set::Class(name.strip_prefix("class.")?.to_owned())),
        }
    }
}

/// The sums of one tap.
pub type TapSets = BTreeMap<Set, Moments>;
