//! Methods that read activations, one file per method: they take plain rows of f32 and labels, so that a stored
//! tap, a live slab and a test feed them alike. Directions: [`mass_mean()`] (the difference of two means), [`lat()`] (the first
//! component of paired differences), [`probe()`] (logistic regression), [`ridge`] (least squares), [`principal`] (PCA), scored on statements held out;
//! [`split`](split::split) holds them out, [`bootstrap`] gives the intervals, [`directions`] saves what was found for later use as
//! an edit or a reduction. [`from_sums`] finds directions where only sums of rows are left. [`project`] and [`compare`] look at rows along a direction and beside other rows; [`baseline`] has
//! simpler explanations, [`null`] makes directions that should not matter, and [`matching`] finds the strength at which two do as
//! much. All of it is a function of its input and a seed: same rows and as many threads, same bits.

pub mod baseline;
pub mod bootstrap;
pub mod compare;
pub mod directions;
pub mod from_sums;
pub mod lat;
pub mod mass_mean;
pub mod matching;
pub mod null;
pub mod principal;
pub mod probe;
pub mod project;
pub(crate) mod random;
pub mod ridge;
pub mod roc;
pub mod rows;
pub mod scored;
pub mod split;

pub use bootstrap::{Bootstrap, Interval, IntervalMethod};
pub use compare::{Compared, Comparing};
pub use from_sums::{SummedDirection, Sums};
pub use lat::{LatResult, Pair, lat};
pub use mass_mean::{MassMean, MassMeanResult, mass_mean, mean_diff};
pub use matching::Matching;
pub use principal::{Moments, Principal};
pub use probe::{ProbeResult, Probing, probe};
pub use ridge::{RidgeResult, ridge_probe};
pub use rows::{LayerRows, RowSource, Rows};
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
    /// Too little to compute anything of.
    #[error("{what}: {found} where {needed} are needed; give more data")]
    TooFew {
        what: String,
        found: usize,
        needed: usize,
    },
    /// Statements of one name that are not one true and one false.
    #[error(
        "'{name}' has {yes} true and {no} false statements, where a pair has one of each; name the field that two statements of a pair share"
    )]
    NotAPair { name: String, yes: usize, no: usize },
    /// A pair with a member on either side of a split.
    #[error(
        "pair {pair} (counted from 0) has its members on either side of the split; give groups that hold whole pairs"
    )]
    PartedPair { pair: usize },
    /// A symmetric matrix that the decomposition fails on: it holds numbers too large.
    #[error(
        "{hook}: the second moment of its rows has no eigenvectors that could be found; are its numbers beyond 1e150?"
    )]
    NoEigenvectors { hook: String },
    /// Sums that nothing can be found in.
    #[error(
        "{hook}: its sums are not finite, not of one width, or lack the second moments that are needed; extract them again with --stats cov"
    )]
    Sums { hook: String },
    /// A ridge regression whose equations are singular.
    #[error("{hook}: the ridge regression cannot be solved; give a larger penalty")]
    Penalty { hook: String },
    /// A fit that goes on and on.
    #[error(
        "{hook}: the logistic regression did not converge; give a stronger penalty, a smaller C"
    )]
    NotConverged { hook: String },
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
