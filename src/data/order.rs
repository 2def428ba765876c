//! Which records of a dataset are taken, and in which order: both drawn by a seed, neither held in memory.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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

const ROUNDS: usize = 6;

/// A permutation of 0..n: a Feistel network over the next power of four, walked along until it is back inside. Any of its values is
/// found without the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    n: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    pub fn new(n: u64, seed: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Permutation {
            n,
            half: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|round| mix(mix(seed).wrapping_add(round as u64))),
        }
    }

    /// The number at a place.
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.n);
        let mut value = place;
        loop {
            value = self.forward(value);
            if value < self.n {
                return value;
            }
        }
    }

    /// The place of a number.
    pub fn place_of(&self, number: u64) -> u64 {
        debug_assert!(number < self.n);
        let mut value = number;
        loop {
            value = self.backward(value);
            if value < self.n {
                return value;
            }
        }
    }

    fn forward(&self, value: u64) -> u64 {
        let (mut left, mut right) = self.halves(value);
        for key in self.keys {
            (left, right) = (right, left ^ self.round(right, key));
        }
        (left << self.half) | right
    }

    fn backward(&self, value: u64) -> u64 {
        let (mut left, mut right) = self.halves(value);
        for &key in self.keys.iter().rev() {
            (left, right) = (right ^ self.round(left, key), left);
        }
        (left << self.half) | right
    }

    fn halves(&self, value: u64) -> (u64, u64) {
        (value >> self.half, value & ((1 << self.half) - 1))
    }

    fn round(&self, half: u64, key: u64) -> u64 {
        mix(half.wrapping_add(key)) & ((1 << self.half) - 1)
    }
}

/// splitmix64's step and finaliser (Steele, Lea and Flood 2014).
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_has_one_place(n in 1u64..2000, seed: u64) {
            let order = Permutation::new(n, seed);
            let mut seen = vec![false; n as usize];
            for place in 0..n {
                let number = order.at(place);
                prop_assert!(!std::mem::replace(&mut seen[number as usize], true));
                prop_assert_eq!(order.place_of(number), place);
            }
        }

        #[test]
        fn a_very_long_dataset_has_an_order_too(n in 1u64 << 60..u64::MAX, seed: u64, at: u64) {
            let order = Permutation::new(n, seed);
            prop_assert_eq!(order.place_of(order.at(at % n)), at % n);
        }
    }

    #[test]
    fn orders_of_two_seeds_differ_and_neither_is_the_datasets() {
        let order = |seed| {
            let order = Permutation::new(100, seed);
            (0..100).map(|place| order.at(place)).collect::<Vec<_>>()
        };
        assert_ne!(order(1), order(2));
        let in_place = |o: &[u64]| {
            o.iter()
                .enumerate()
                .filter(|(i, n)| *i as u64 == **n)
                .count()
        };
        assert!(in_place(&order(1)) < 10 && in_place(&order(2)) < 10);
    }

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
