//! Hook points of the forward pass, and what can be asked at them.
//!
//! [`HookPoint`] names one place (canonical, Hugging Face and TransformerLens-Bridge spellings),
//! [`HookPattern`] many; [`Selection`] picks rows of a sample, [`Reduction`] shrinks what is kept,
//! and a [`TapSpec`] (`PATTERN[@SELECTION][|REDUCTION]`) resolves to [`Tap`]s against a model's [`Dims`]; an [`EditSpec`] to [`Edit`]s.
//! Nothing here runs a model: names in, positions and shapes out. The table for users is `docs/hooks.md`.

mod alias;
mod dims;
mod edit;
mod error;
mod nearest;
mod number;
mod pattern;
mod point;
mod reduction;
mod rows;
mod selection;
mod tap;
mod words;

pub use dims::Dims;
pub use edit::{ChangeSpec, Edit, EditSpec, Source};
pub use error::{Error, Result};
pub use nearest::nearest_words;
pub use pattern::{HookPattern, Resolved};
pub use point::{HookPoint, Site};
pub use reduction::Reduction;
pub(crate) use rows::SplitMix64;
pub use rows::{SampleView, SelectedRows, TokenSpan, TokenTurn};
pub use selection::Selection;
pub use tap::{Tap, TapSpec};
