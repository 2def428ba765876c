//! The engine: the transformer over any backend (`forward`), tokenised samples, the extraction of a dataset
//! into a store (`extract`), its dry run (`estimate`) and its re-check (`recompute`).

mod directions;
mod error;
mod estimate;
mod extract;
mod forward;
mod job;
mod plan;
mod read_ahead;
mod recompute;
mod sample;
mod weights;

pub use error::{Error, Result};
pub use estimate::{Estimate, Flops, TapEstimate, estimate};
pub use extract::{Extracted, Progress, extract, numeric_record};
pub use forward::forward;
pub use job::{InputKind, Job, Prepared, SelectedSample};
pub use plan::Plan;
pub use read_ahead::PlannedShard;
pub use recompute::{Recomputed, recompute};
pub use sample::{OnLong, Sample, Tokenising};
pub use weights::{dims, shape};
