//! What can go wrong in a study.

use std::path::PathBuf;

/// One line each: where, what, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("{}: cannot read: {source}; check the path and its permissions", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file or folder that cannot be written.
    #[error("{}: {source}; check that the folder exists and can be written", .path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A line of an input that is not as it should be.
    #[error("{file}:{line}: {what}; {remedy}")]
    Line {
        file: String,
        line: u64,
        what: String,
        remedy: String,
    },
    /// An input that as a whole will not do.
    #[error("{file}: {what}; {remedy}")]
    Input {
        file: String,
        what: String,
        remedy: String,
    },
    /// A name that is none of the experiments'.
    #[error("no experiment '{found}'; there are {there_are}")]
    NoSuchExperiment { found: String, there_are: String },
    /// A folder that holds something else.
    #[error(
        "{}: the folder is not empty and holds no study; give --out another", .0.display()
    )]
    NotAStudy(PathBuf),
    /// A study of other inputs.
    #[error(
        "{}: it holds a study of {what}: what is there would not go with what is new; give --out another folder", .out.display()
    )]
    AnotherStudy { out: PathBuf, what: String },
    /// A file of the study that is not as the study wrote it.
    #[error("{}: {why}; delete it, and the study makes it again", .path.display())]
    Damaged { path: PathBuf, why: String },
    /// A model without what the study speaks to it by.
    #[error("{model}: it has no {what}; the study needs one: take an instruction-tuned model")]
    Lacks { model: String, what: &'static str },
    /// Numbers that have come to nothing.
    #[error("{experiment}: {what}; {remedy}")]
    Degenerate {
        experiment: &'static str,
        what: String,
        remedy: String,
    },
}

pub type Result<T, E = crate::Error> = std::result::Result<T, E>;

impl Error {
    /// A bad line.
    pub(super) fn line(
        file: &str,
        line: u64,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Error::Line {
            file: file.into(),
            line,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// An input that will not do.
    pub(super) fn input(file: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::Input {
            file: file.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
