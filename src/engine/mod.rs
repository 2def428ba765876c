//! The engine: the transformer over any backend (`forward`), tokenised samples, the extraction of a dataset
//! into a store (`extract`), its dry run (`estimate`) and its re-check (`recompute`); the edits of a run (`edits`);
//! generation (`generate`), scoring (`score`), the logit lens (`lens`), injections along many directions at one block
//! (`steer`) and patching sweeps (`sweep`).

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
mod lay_out;
mod lens;
mod lent;
mod live;
mod machine;
mod memory;
mod place;
mod plan;
mod provenance;
mod ranges;
mod read_ahead;
mod recompute;
mod replacement;
mod resume;
mod route;
mod run;
mod sample;
mod score;
mod selected;
mod slice;
mod steer;
pub mod sweep;
mod trace;
mod weights;

pub use crate::backend::Scores;
pub use choose::{Choosing, argmax};
pub use directions::of_layer as direction_of_layer;
pub use edits::EditReceipt;
pub use error::{Error, Result};
pub use estimate::{Estimate, Flops, TapEstimate, estimate};
pub use extract::{Extracted, Progress, extract, extract_live, extract_on, extract_with};
pub use forward::{forward, replay};
pub use generate::{Generated, Generator, Stop, Stops};
pub use generate_store::{GenerationBeginning, GenerationStore, PromptSource};
pub use job::{InputKind, Job, Prepared};
pub use lens::{LensRow, lens};
pub use live::{Consumer, LiveBatch, LiveTap};
pub use machine::{Decoder, Identity, Machine, Reader, SavedResidual, numeric_record};
pub use memory::Memory;
#[cfg(feature = "interpreter")]
pub use place::interpreter;
pub use place::{Compute, Device, Engine, Opened, Place, Room, Upload};
pub use plan::Plan;
pub use read_ahead::{PlannedShard, ReadState};
pub use recompute::{Recomputed, recompute, recompute_on};
pub use resume::{Ending, Options, merge_receipts, stopped};
pub use sample::{OnLong, Sample, Tokenising};
pub use score::{Hidden, Scorer, kl, log_sum_exp};
pub use selected::{BatchRows, Part, SelectedSample};
pub use steer::{Injection, Said, Steering};
pub use trace::{Stage, Trace};
pub use weights::{dims, shape};
