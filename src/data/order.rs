//! Which records of a dataset are taken, and in which order: both drawn by a seed, neither held in memory.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::permutation::mix;

/// A share of a dataset's records (`--sample-fraction F#SEED`). Each record is drawn for itself: whether it is taken hangs on the seed
/// and its index alone, so the same records are taken whatever else is read, and about `share` of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fraction {
    /// In 0..=1, more than 0.
    pub share: f64,
    pub seed: u64,
}

impl Fraction {
    /// Whether the record with this index is taken.
    pub fn takes(self, index: u64) -> bool {
        // The upper 53 bits, which a double holds exactly, as a number in 0..1.
        let drawn = (mix(mix(self.seed).wrapping_add(index)) >> 11) as f64 / (1u64 << 53) as f64;
        drawn < self.share
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (share, seed) = text.split_once('#').unwrap_or((text, "0"));
        let share = share.parse().ok().filter(|&f: &f64| f > 0.0 && f <= 1.0);
        let share =
            share.ok_or("write a share of more than 0 and at most 1, as in 0.1 or 0.1#SEED")?;
        let seed = seed
            .parse()
            .map_err(|_| "the seed after # is a whole number, as in 0.1#7")?;
        Ok(Fraction { share, seed })
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.share, self.seed)
    }
}

/// Reading in random order (`--shuffle SEED`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shuffle {
    pub seed: u64,
    /// The directory of the file that records wait in until it is their turn: it takes as much room as the fields that are read.
    pub scratch: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_takes_about_its_share_and_more_of_it_where_it_is_larger() {
        let taken = |share, seed| {
            (0..10_000)
                .filter(|&i| Fraction { share, seed }.takes(i))
                .collect::<Vec<_>>()
        };
        let (tenth, fifth) = (taken(0.1, 7), taken(0.2, 7));
        assert!((900..1100).contains(&tenth.len()), "{}", tenth.len());
        assert!(tenth.iter().all(|i| fifth.contains(i)));
        assert_ne!(tenth, taken(0.1, 8));
        assert_eq!(taken(1.0, 7).len(), 10_000);
    }

    #[test]
    fn a_fraction_is_read_with_and_without_its_seed() {
        let read = |text: &str| text.parse::<Fraction>();
        assert_eq!(
            read("0.25"),
            Ok(Fraction {
                share: 0.25,
                seed: 0
            })
        );
        assert_eq!(read("0.25#9").map(|f| f.to_string()), Ok("0.25#9".into()));
        for wrong in ["0", "-0.1", "1.01", "nan", "x", "0.1#", "0.1#-1", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
