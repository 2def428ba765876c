//! The analyses' random numbers: xoshiro256++ (Blackman and Vigna 2019), its state filled by splitmix64 from one
//! 64-bit seed. Written out here, because a published interval must not move when a dependency is updated.

/// xoshiro256++ with a period of 2^256 − 1.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of `seed`; any seed will do, 0 included.
    pub(crate) fn new(seed: u64) -> Self {
        let mut x = seed;
        Rng {
            state: std::array::from_fn(|_| splitmix64(&mut x)),
        }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A whole number in `0..bound`, each equally likely (Lemire 2019: multiply, and draw again in the short range
    /// that would favour some). `bound` must not be 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from((self.next_u64() >> 32) as u32) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// Uniform in (0, 1], in steps of 2⁻⁵³.
    fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958, the cosine's half).
    pub(crate) fn normal(&mut self) -> f64 {
        let (length, turn) = (self.uniform(), self.uniform());
        (-2.0 * length.ln()).sqrt() * (2.0 * std::f64::consts::PI * turn).cos()
    }

    /// Fisher–Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

fn splitmix64(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*x ^ (*x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_sequence_of_seed_1234567() {
        let mut x = 1_234_567;
        let drawn: Vec<u64> = (0..3).map(|_| splitmix64(&mut x)).collect();
        assert_eq!(
            drawn,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423
            ]
        );
    }

    #[test]
    fn xoshiro_gives_the_reference_implementations_sequence_of_state_1_2_3_4() {
        let mut rng = Rng {
            state: [1, 2, 3, 4],
        };
        let drawn: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(
            drawn,
            [41943041, 58720359, 3588806011781223, 3591011842654386]
        );
    }

    #[test]
    fn numbers_below_a_bound_are_all_drawn_and_about_equally_often() {
        let mut rng = Rng::new(0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        // Five standard deviations of a binomial(70000, 1/7) are 463.
        assert!(
            counts.iter().all(|&n| n.abs_diff(10_000) < 463),
            "{counts:?}"
        );
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut rng = Rng::new(5);
        let n = 100_000;
        let mut sums = [0.0; 4];
        for _ in 0..n {
            let x = rng.normal();
            (0..4).for_each(|k| sums[k] += x.powi(k as i32 + 1));
        }
        // Five standard errors of each: of x, x², x³ and x⁴ these are √(1, 2, 15, 96) / √n.
        for ((sum, expected), variance) in sums
            .iter()
            .zip([0.0, 1.0, 0.0, 3.0])
            .zip([1.0, 2.0, 15.0, 96.0])
        {
            let mean = sum / f64::from(n);
            let error = 5.0 * f64::sqrt(variance / f64::from(n));
            assert!((mean - expected).abs() < error, "{sums:?}");
        }
    }
}
