//! What is read off the LM head without keeping logits.

use super::Edit;

/// Rows whose logits exist at a time: they are wide (V).
pub const HEAD_ROWS: usize = 128;

/// What the LM head reads in a few rows, and what is still to be done to their logits.
#[derive(Debug)]
pub struct HeadRows<'a> {
    /// `[rows, d]`: `ln_final.hook_out`; at most [`HEAD_ROWS`] rows.
    pub normed: &'a [f32],
    /// Of the logits, in order; their rows count among these.
    pub edits: Vec<Edit>,
}

/// What the model says after one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Natural log-probability of the token that does come next; none at a sample's last.
    pub logprob: Option<f64>,
    /// The likeliest token; of equals, the lowest id.
    pub argmax: u32,
    /// In nats.
    pub entropy: f64,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f64)>,
}
