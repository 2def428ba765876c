//! What is measured of a push, means over prompts.

use crate::study::Words;
use crate::study::prompts::Answer;
use crate::study::push::Summary;

/// One of a summary's numbers.
#[derive(Clone, Copy)]
pub(super) struct Measure {
    pub name: fn(&Words) -> String,
    pub unit: &'static str,
    pub of: fn(&Summary) -> f64,
}

pub(super) const KL: Measure = Measure {
    name: |_| "KL(edited ‖ plain) of the first token".into(),
    unit: "nat",
    of: |s| s.kl,
};
pub(super) const FLIPPED: Measure = Measure {
    name: |_| "share of first tokens that turn".into(),
    unit: "",
    of: |s| s.flipped,
};
pub(super) const NO: Measure = Measure {
    name: |words| {
        let no = words.answer(Answer::No);
        format!("shift of the log-odds towards '{no}'")
    },
    unit: "nat",
    of: |s| s.no,
};
pub(super) const NEGATIVE: Measure = Measure {
    name: |words| {
        let positive = &words.positive;
        format!("shift of the log-odds towards the answer that is not {positive}")
    },
    unit: "nat",
    of: |s| s.negative,
};
pub(super) const RECOVERY: Measure = Measure {
    name: |_| "recovery of the edited run's distribution".into(),
    unit: "",
    of: |s| s.recovery,
};
pub(super) const MEASURES: [Measure; 5] = [NEGATIVE, NO, KL, FLIPPED, RECOVERY];
