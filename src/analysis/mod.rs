//! Methods that read activations, one file per method: they take plain rows of f32 and labels, so that a stored
//! tap, a live slab and a test feed them alike. [`mean_diff`] is the truth direction per layer by mass mean,
//! scored on statements held out; [`split`](split::split) holds them out, [`bootstrap`] gives the intervals,
//! [`directions`] saves what was found for later use as an edit or a reduction. All of it is a function of its
//! input and a seed: same rows, same bits.

pub mod bootstrap;
pub mod directions;
pub mod mass_mean;
mod random;
pub mod roc;
pub mod split;

pub use bootstrap::{Bootstrap, Interval, IntervalMethod};
pub use mass_mean::{LayerRows, MassMean, MassMeanResult, mass_mean, mean_diff};
pub use split::{Split, Statements, split};

use std::path::PathBuf;

/// What can go wrong in an analysis.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A topic or group list, or a layer's rows, that does not go with the labels.
    #[error(
        "{what}: {found} where the labels of {expected} statements need {expected}; give one per statement"
    )]
    Mismatch {
        what: String,
        found: usize,
        expected: usize,
    },
    /// A row buffer that does not divide into rows.
    #[error("{hook}: {values} values do not divide into rows of {width}; check the tap's shape")]
    RaggedRows {
        hook: String,
        values: usize,
        width: usize,
    },
    /// NaN or infinity among the activations.
    #[error(
        "{hook}: the row of statement {row} (counted from 0) is not finite; extract again with --dtype f32"
    )]
    NotFinite { hook: String, row: usize },
    /// A side of the split in which one label does not occur.
    #[error(
        "the {side} side of the split has no {label} statement; give more statements or another share"
    )]
    OneLabel { side: &'static str, label: bool },
    /// A share of held-out statements outside (0, 1).
    #[error("test share {0}: it must lie between 0 and 1, both left out")]
    TestShare(f64),
    /// Two results for one layer, whose tensors would have one name.
    #[error(
        "two directions for layer {layer}, of {first} and of {second}; save one hook point per file"
    )]
    SameLayer {
        layer: usize,
        first: String,
        second: String,
    },
    /// A file that could not be written.
    #[error("{path}: {source}; check that the folder exists and can be written")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Tensors that the safetensors format refuses.
    #[error("{path}: {source}")]
    Safetensors {
        path: PathBuf,
        source: safetensors::SafeTensorError,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
