//! A random order that is drawn by a seed and never held in memory.

const ROUNDS: usize = 6;

/// A permutation of 0..n: a Feistel network over the next power of four, walked along until it is back inside. Any of its values is
/// found without the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
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
pub(crate) fn mix(state: u64) -> u64 {
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
}
