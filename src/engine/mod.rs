//! The engine: the transformer over any backend (`forward`), tokenised samples, the extraction of a dataset
//! into a store (`extract`), its dry run (`estimate`) and its re-check (`recompute`); the edits of a run (`edits`);
//! generation (`generate`), scoring (`score`) and patching sweeps (`sweep`).

mod choose;
mod directions;
mod edits;
mod error;
mod estimate;
mod extract;
mod forward;
mod generate;
mod generate_store;
mod job;
mod machine;
mod plan;
mod read_ahead;
mod recompute;
mod replacement;
mod sample;
mod score;
mod selected;
pub mod sweep;
mod weights;

pub use choose::Choosing;
pub use edits::EditReceipt;
pub use error::{Error, Result};
pub use estimate::{Estimate, Flops, TapEstimate, estimate};
pub use extract::{Extracted, Progress, extract, extract_on};
pub use forward::{forward, replay};
pub use generate::{Generated, Generator, Stop, Stops};
pub use generate_store::GenerationStore;
pub use job::{InputKind, Job, Prepared};
pub use machine::{Identity, Machine, Start, numeric_record};
pub use plan::Plan;
pub use read_ahead::PlannedShard;
pub use recompute::{Recomputed, recompute};
pub use sample::{OnLong, Sample, Tokenising};
pub use score::{Hidden, Scorer, Scores, kl_divergence};
pub use selected::{BatchRows, Part, SelectedSample};
pub use weights::{dims, shape};
