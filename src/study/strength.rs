//! Where and how strongly the study steers: the layer, and the weakest strength that turns nearly all first tokens of the tuning prompts.

use serde::{Deserialize, Serialize};

use super::prompts::Half;
use super::{Result, Study};
use crate::engine::{Injection, Steering, argmax, kl};

/// Shares of the mean norm of the residual stream that are tried, weakest first.
const GRID: [f64; 10] = [0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.0];
/// The share of first tokens that has to turn.
const ENOUGH: f64 = 0.9;

/// The edit of the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The direction is added to `blocks.{layer}.hook_resid_post`.
    pub layer: usize,
    /// Below 0: the direction points to the positive persona.
    pub c: f64,
    /// Mean L2 norm of that residual stream at the last position, over the tuning prompts.
    pub mean_norm: f64,
    /// Whether ≥ 90 % of the tuning prompts' first tokens turned; where none of the strengths is enough, the largest is taken.
    pub reached: bool,
    /// Taken from the publication, not chosen.
    pub published: bool,
    /// Taken from the behaviour's file, not chosen.
    #[serde(default)]
    pub given: bool,
    /// Every strength that was tried.
    pub tried: Vec<Tried>,
}

/// What a strength does to the tuning prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// |c| over the mean norm.
    pub share: f64,
    pub c: f64,
    /// Share of prompts whose likeliest first token is another.
    pub flipped: f64,
    /// KL(p_edited ‖ p_plain) of the first token's distribution, in nats.
    pub median_kl: f64,
}

impl Choice {
    /// |c| over the mean norm of what it is added to.
    pub fn share(&self) -> f64 {
        self.c.abs() / self.mean_norm
    }

    /// The share of first tokens that it turned.
    pub fn flipped(&self) -> Option<f64> {
        let tried = self.tried.iter().find(|tried| tried.c == self.c);
        tried.map(|tried| tried.flipped)
    }

    /// Chooses.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub(super) fn make(study: &Study<'_>) -> Result<Self> {
        let published = study.published_study();
        let layer = steered_layer_of(study);
        let direction = study.directions()?.layer(layer);
        let prompts = study.prompts(Some(Half::Tuning));
        let sequences: Vec<&[u32]> = prompts.iter().map(|asked| asked.tokens()).collect();
        let mut machine = study.machine();
        let steering = Steering::at_the_end(study.prepared(), &mut **machine, layer, &sequences)?;
        let mean_norm = steering.mean_norm();
        let given = study.behaviour().edit.strength_beside(mean_norm);
        let mut logits = |c: f64| {
            let injection = Injection {
                v: direction,
                c: c as f32,
            };
            steering.run(&mut **machine, &[injection], |said| said.logits.to_vec())
        };
        let plain = logits(0.0)?;
        let mut choice = Choice {
            layer,
            c: -mean_norm,
            mean_norm,
            reached: false,
            published: published.is_some(),
            given: published.is_none() && given.is_some(),
            tried: Vec::new(),
        };
        let strengths = match published.map(|p| p.strength).or(given) {
            Some(strength) => vec![strength],
            None => GRID.map(|share| -share * mean_norm).to_vec(),
        };
        for c in strengths {
            // What the edit reads is c as it is written, in 32 bits.
            let c = f64::from(c as f32);
            let tried = tried(&plain, &logits(c)?, c, mean_norm);
            choice.tried.push(tried);
            choice.c = c;
            choice.reached = tried.flipped >= ENOUGH;
            if choice.reached {
                break;
            }
        }
        Ok(choice)
    }
}

/// The published layer of the published model; else the behaviour's, and without one a layer as deep as the published one.
pub(super) fn steered_layer_of(study: &Study<'_>) -> usize {
    let published = study.published_study().map(|published| published.layer);
    let given = || study.behaviour().edit.layer_of(study.n_layers());
    published
        .or_else(given)
        .unwrap_or_else(|| steered_layer(study.n_layers()))
}

/// 15 of 31 in the published model.
fn steered_layer(n_layers: usize) -> usize {
    (15.0 / 31.0 * (n_layers - 1) as f64).round() as usize
}

/// From the logits of the plain and the edited run, prompt by prompt.
fn tried(plain: &[Vec<f32>], edited: &[Vec<f32>], c: f64, mean_norm: f64) -> Tried {
    let pairs = || plain.iter().zip(edited);
    let flipped = pairs().filter(|(p, e)| argmax(p) != argmax(e)).count();
    let kls: Vec<f64> = pairs().map(|(p, e)| kl(e, p)).collect();
    Tried {
        share: c.abs() / mean_norm,
        c,
        flipped: flipped as f64 / kls.len() as f64,
        median_kl: super::median(&kls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_as_deep_as_the_published_one() {
        assert_eq!([32, 30, 2, 1].map(steered_layer), [15, 14, 0, 0]);
    }
}
