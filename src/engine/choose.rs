//! The next token from a row of logits: greedy, or drawn by temperature and top-p, as Hugging Face's logits processors do it.

use serde::{Deserialize, Serialize};

use crate::hooks::SplitMix64;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choosing {
    /// 0: the likeliest token (of equals, the lowest id). Else logits are divided by it and a token is drawn.
    pub temperature: f32,
    /// Draw among the fewest likeliest tokens that have this much probability together.
    pub top_p: f32,
    /// Logits of tokens that are there already, prompt included, are divided by it if above 0 and multiplied if below
    /// (Keskar et al. 2019). 1: none.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Default for Choosing {
    fn default() -> Self {
        Choosing {
            temperature: 0.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Choosing {
    /// The random numbers of one sample: they depend on the seed and on its place in the dataset alone.
    pub(super) fn random(&self, sample: u64) -> SplitMix64 {
        SplitMix64::of_sample(self.seed, sample)
    }

    /// The next token after `tokens`.
    pub(super) fn next(&self, logits: &[f32], tokens: &[u32], random: &mut SplitMix64) -> u32 {
        let penalised;
        let scores = if self.repetition_penalty == 1.0 {
            logits
        } else {
            penalised = self.penalise(logits, tokens);
            &penalised
        };
        if self.temperature == 0.0 {
            return argmax(scores);
        }
        self.draw(scores, random)
    }

    fn penalise(&self, logits: &[f32], tokens: &[u32]) -> Vec<f32> {
        let mut scores = logits.to_vec();
        for &token in tokens {
            let (old, new) = (logits[token as usize], &mut scores[token as usize]);
            *new = if old < 0.0 {
                old * self.repetition_penalty
            } else {
                old / self.repetition_penalty
            };
        }
        scores
    }

    fn draw(&self, scores: &[f32], random: &mut SplitMix64) -> u32 {
        let temperature = f64::from(self.temperature);
        let largest = f64::from(scores[argmax(scores) as usize]);
        let weight = |s: f32| ((f64::from(s) - largest) / temperature).exp();
        let mut likeliest: Vec<(u32, f64)> = (0..).zip(scores.iter().map(|&s| weight(s))).collect();
        likeliest.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = likeliest.iter().map(|(_, w)| w).sum();
        let mut kept = 0.0;
        let enough = f64::from(self.top_p) * total;
        let n = likeliest.iter().take_while(|(_, w)| {
            let below = kept < enough;
            kept += if below { w } else { &0.0 };
            below
        });
        let n = n.count().max(1);
        let mut left = random.unit() * likeliest[..n].iter().map(|(_, w)| w).sum::<f64>();
        for &(token, weight) in &likeliest[..n] {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        likeliest[n - 1].0
    }
}

/// The index of the largest; of equals, the lowest.
pub fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(choosing: Choosing, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for sample in 0..draws {
            let mut random = choosing.random(sample);
            counts[choosing.next(logits, &[], &mut random) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let choosing = Choosing::default();
        let next = |logits: &[f32]| choosing.next(logits, &[], &mut choosing.random(0));
        assert_eq!(next(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [0.0_f32, 1.0, 2.0, -1.0];
        let choosing = Choosing {
            temperature: 0.5,
            ..Choosing::default()
        };
        let total: f64 = logits.iter().map(|&l| (2.0 * f64::from(l)).exp()).sum();
        for (share, l) in counts(choosing, &logits, 20_000).iter().zip(logits) {
            assert!((share - (2.0 * f64::from(l)).exp() / total).abs() < 0.012);
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_have_enough_together() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let choosing = |top_p| Choosing {
            temperature: 1.0,
            top_p,
            ..Choosing::default()
        };
        let kept = |top_p| {
            counts(choosing(top_p), &logits, 500)
                .iter()
                .filter(|&&c| c > 0.0)
                .count()
        };
        assert_eq!((kept(0.4), kept(0.6), kept(0.9), kept(1.0)), (1, 2, 3, 3));
    }

    #[test]
    fn the_penalty_is_once_per_token_and_always_lowers() {
        let choosing = Choosing {
            repetition_penalty: 2.0,
            ..Choosing::default()
        };
        assert_eq!(
            choosing.penalise(&[4.0, -4.0, 1.0], &[0, 0, 1]),
            [2.0, -8.0, 1.0]
        );
    }
}
