//! What can go wrong while reading a dataset; each message is one line: where, what, what to do.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The extensions of the forms we read, as messages list them.
pub(super) const ACCEPTED: &str =
    ".jsonl, .json, .csv, .tsv, .txt (each also with .gz or .zst) or .parquet";

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while opening or reading a dataset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No path was given.
    #[error(
        "no data: name a file ({ACCEPTED}), a glob, a directory of such files, or - for JSONL on stdin"
    )]
    NothingNamed,
    /// A path that is neither there nor a glob.
    #[error("{}: no such file or directory; check the path", .0.display())]
    NotFound(PathBuf),
    /// A glob that matches no file.
    #[error(
        "`{0}` matches no file; check the pattern, and quote it so that the shell leaves it alone"
    )]
    EmptyGlob(String),
    /// A glob that cannot be parsed.
    #[error("`{pattern}` is not a valid glob: {reason} at character {at}; correct it")]
    BadGlob {
        pattern: String,
        reason: &'static str,
        at: usize,
    },
    /// A file whose extension names none of the forms.
    #[error("{}: cannot tell its form; a data file ends in {ACCEPTED} (- reads JSONL from stdin)", .0.display())]
    UnknownForm(PathBuf),
    /// A directory without a file of any of the forms.
    #[error("{}: the directory holds no {ACCEPTED} file (subdirectories are not searched); name the files or a glob", .0.display())]
    EmptyDirectory(PathBuf),
    /// One file reached through two arguments, or twice through links.
    #[error("{}: named twice, so its samples would count twice; name it once", .0.display())]
    NamedTwice(PathBuf),
    /// A field listed twice (or an empty name) among those to keep.
    #[error("cannot keep the field `{0}`: {1}; name each field once")]
    BadKeep(String, &'static str),
    /// The operating system refused to open or read.
    #[error("{file}: cannot read{}: {source}; {}", after(.line), io_remedy(.source))]
    Io {
        file: String,
        /// The line, element or row that was reached, if any.
        line: Option<u64>,
        source: io::Error,
    },
    /// One bad record; `skip_bad` skips these and only these.
    #[error(
        "{file}{place}: {what}; {remedy} (--skip-bad skips and counts such records)",
        what = one_line(.what, MESSAGE_CHARS)
    )]
    Record {
        file: Arc<str>,
        place: Place,
        what: String,
        remedy: Cow<'static, str>,
    },
    /// A file that cannot be read any further.
    #[error("{file}{}: {}; {remedy}", .place.map(|p| p.to_string()).unwrap_or_default(), one_line(.what, MESSAGE_CHARS))]
    File {
        file: Arc<str>,
        place: Option<Place>,
        what: String,
        remedy: Cow<'static, str>,
    },
    /// The file that shuffled records wait in cannot be made, written or read.
    #[error(
        "{}: cannot keep the records that --shuffle puts in order: {source}; make room there, or make it writable",
        .dir.display()
    )]
    Spool { dir: PathBuf, source: io::Error },
    /// A share of the records was asked for, and none was drawn.
    #[error(
        "{file}: --sample-fraction took none of its {records} records; raise it, or take another seed"
    )]
    NoneTaken { file: String, records: u64 },
    /// Nothing to read in all the files.
    #[error("{0}: no samples in it; check that this is the file you mean")]
    NoRecords(String),
    /// Bad records were skipped and nothing was left.
    #[error(
        "{file}: all {skipped} records are bad; the first: {}",
        one_line(.first, MESSAGE_CHARS)
    )]
    AllBad {
        file: String,
        skipped: u64,
        first: String,
    },
}

/// Where in a file something is; all counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line of a text file.
    Line(u64),
    /// An element of a JSON array, and the line in question.
    Element { element: u64, line: u64 },
    /// A row of a Parquet file.
    Row(u64),
}

impl Place {
    /// The number that [`super::Record::line`] carries.
    pub fn number(self) -> u64 {
        match self {
            Place::Line(n) | Place::Row(n) => n,
            Place::Element { element, .. } => element,
        }
    }
}

/// As it follows a file name: `:12`, `:17 (element 3)`, ` row 12`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, ":{line}"),
            Place::Element { element, line } => write!(f, ":{line} (element {element})"),
            Place::Row(row) => write!(f, " row {row}"),
        }
    }
}

/// What is to be done about bytes that could not be had.
fn io_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        // Only a decompressor takes offence at bytes that were read.
        io::ErrorKind::InvalidData => "fetch or write it again",
        _ => "check the file and its permissions",
    }
}

/// A message quotes at most this much of what was found.
const MESSAGE_CHARS: usize = 400;

fn after(line: &Option<u64>) -> String {
    line.map(|line| format!(" on from line {line}"))
        .unwrap_or_default()
}

/// `text` on one line (control characters escaped) and no longer than `chars`: what a file holds may be
/// a gigabyte, or steer the terminal.
pub(super) fn one_line(text: &str, chars: usize) -> String {
    let mut line = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == chars {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// What `text` is not valid UTF-8 for, in a message's words.
pub(super) fn not_utf8(error: std::str::Utf8Error) -> String {
    format!("not valid UTF-8 at byte {}", error.valid_up_to() + 1)
}

/// What to do about text that is not UTF-8.
pub(super) const SAVE_AS_UTF8: &str = "save the file as UTF-8";
