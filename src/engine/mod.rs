//! The engine: the transformer over any backend (`forward`), tokenised samples, the extraction of a dataset
//! into a store (`extract`), its dry run (`estimate`) and its re-check (`recompute`).

mod forward;
mod plan;
mod weights;

pub use forward::forward;
pub use plan::Plan;
pub use weights::{dims, shape};
