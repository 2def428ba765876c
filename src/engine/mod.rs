//! The engine: the transformer over any backend (`forward`), tokenised samples, the extraction of a dataset
//! into a store (`extract`), its dry run (`estimate`) and its re-check (`recompute`); the edits of a run (`edits`);
//! generation (`generate`), scoring (`score`) and the logit lens (`lens`).

mod choose;
mod directions;
mod edits;
mod error;
mod estimate;
mod extract;
mod forward;
mod gate;
mod generate;
mod generate_store;
mod job;
mod lens;
mod machine;
mod place;
mod plan;
mod read_ahead;
mod recompute;
mod replacement;
mod resume;
mod sample;
mod score;
mod selected;
mod slice;
pub mod trace;
mod weights;

pub use choose::Choosing;
pub use directions::of_layer as direction_of_layer;
pub use edits::EditReceipt;
pub use error::{Error, Result};
pub use estimate::{Estimate, Flops, TapEstimate, estimate};
pub use extract::{Extracted, Progress, extract, extract_on, extract_with};
pub use forward::{forward, replay};
pub use generate::{Generated, Generator, Stop, Stops};
pub use generate_store::GenerationStore;
pub use job::{InputKind, Job, Prepared};
pub use lens::{LensRow, lens};
pub use machine::{Identity, Machine, numeric_record};
#[cfg(feature = "interpreter")]
pub use place::interpreter;
pub use place::{Compute, Device, Opened, Place, Upload};
pub use plan::Plan;
pub use read_ahead::{PlannedShard, ReadState};
pub use recompute::{Recomputed, recompute, recompute_on};
pub use resume::{Ending, Options, merge_receipts};
pub use sample::{OnLong, Sample, Tokenising};
pub use score::{Hidden, Scorer, Scores, kl_divergence};
pub use selected::{BatchRows, Part, SelectedSample};
pub use weights::{dims, shape};
