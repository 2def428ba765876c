//! What a reader of results sees: tables as CSV ([`table`]) and pictures as SVG and PNG ([`plot`]). A picture is
//! drawn once, as SVG, and the PNG is that SVG rasterised with the [`fonts`] that the crate carries, so both look the
//! same on every machine and equal input gives equal bytes. An experiment's result is a [`finding`], of which the
//! [`page`] is made.
//! Knows rows and points, not the analyses they come from.

pub mod chart;
pub mod finding;
pub mod fonts;
pub mod page;
pub mod plot;
pub mod table;

use std::path::PathBuf;

/// What can go wrong in a report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plot of nothing, or of what cannot be placed on its axes.
    #[error("{path}: {what}; nothing was drawn")]
    Points { path: PathBuf, what: String },
    /// A name that cannot be a file's, or that is another's.
    #[error("{path}: no page was written: {what}; name findings and exhibits apart")]
    Name { path: PathBuf, what: String },
    /// The drawing library's own refusal.
    #[error("{path}: the plot could not be drawn: {what}")]
    Draw { path: PathBuf, what: String },
    /// A row that has no form as a line of a table.
    #[error("{path}: {source}")]
    Table { path: PathBuf, source: csv::Error },
    /// A file that could not be written.
    #[error("{path}: {source}; check that the folder exists and can be written")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
