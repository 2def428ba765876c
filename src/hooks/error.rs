//! What can be wrong with a hook point, a selection, a reduction, a tap or an edit: one line each, with the remedy.

use std::fmt;

/// An error of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is neither canonical nor an alias.
    #[error(
        "unknown hook point {}; nearest: {} (`streamgauge model info` lists all)",
        Quoted(name),
        List(nearest)
    )]
    UnknownHook { name: String, nearest: Vec<String> },

    /// The name is known, but layers or heads are badly written, or not wanted here.
    #[error("hook point {}: {reason}", Quoted(pattern))]
    Pattern { pattern: String, reason: String },

    /// The model has no such layer.
    #[error("hook point {}: there is no layer {layer}; this model has layers 0 to {} (or -{n_layers} to -1), nearest: {nearest}", Quoted(pattern), n_layers.saturating_sub(1))]
    Layer {
        pattern: String,
        layer: i32,
        n_layers: usize,
        nearest: usize,
    },

    /// The hook point has no such head.
    #[error("hook point {}: there is no {kind} head {head}; there are {kind} heads 0 to {} (or -{n_heads} to -1), nearest: {nearest}", Quoted(pattern), n_heads.saturating_sub(1))]
    Head {
        pattern: String,
        /// `query` or `key/value`.
        kind: &'static str,
        head: i32,
        n_heads: usize,
        nearest: usize,
    },

    /// Heads were chosen where rows have none.
    #[error(
        "hook point {}: there are no heads at {point}; leave the brackets out, or use {}",
        Quoted(pattern),
        List(with_heads)
    )]
    NoHeads {
        pattern: String,
        point: String,
        with_heads: Vec<String>,
    },

    /// The selection's first word is not one of ours.
    #[error("unknown selection {}; nearest: {}", Quoted(selection), List(nearest))]
    UnknownSelection {
        selection: String,
        nearest: Vec<String>,
    },

    /// The selection is known, but badly written.
    #[error("selection {}: {reason}", Quoted(selection))]
    Selection { selection: String, reason: String },

    /// A selection by chat turn met a sample without turns.
    #[error(
        "selection `{selection}` needs chat turns, and sample {sample} has none: give the dataset as messages, or wrap its text with --chat"
    )]
    NeedsMessages { selection: String, sample: u64 },

    /// A selection by generation step met a sample that was not generated from.
    #[error(
        "selection `{selection}` needs generation, and sample {sample} was only read: use it with `streamgauge generate`"
    )]
    NeedsGeneration { selection: String, sample: u64 },

    /// The reduction's name is not one of ours.
    #[error("unknown reduction {}; nearest: {}", Quoted(reduction), List(nearest))]
    UnknownReduction {
        reduction: String,
        nearest: Vec<String>,
    },

    /// The reduction is known, but badly written, or cannot be had at this point.
    #[error("reduction {}: {reason}", Quoted(reduction))]
    Reduction { reduction: String, reason: String },

    /// The edit's first word is not one of ours.
    #[error("unknown edit {}; nearest: {}", Quoted(kind), List(nearest))]
    UnknownEdit { kind: String, nearest: Vec<String> },

    /// The edit is known, but badly written, or cannot be had at this point.
    #[error("edit {}: {reason}", Quoted(edit))]
    Edit { edit: String, reason: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn pattern(pattern: &str, reason: impl Into<String>) -> Error {
        Error::Pattern {
            pattern: pattern.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn selection(selection: &str, reason: impl Into<String>) -> Error {
        Error::Selection {
            selection: selection.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn edit(edit: &str, reason: impl Into<String>) -> Error {
        Error::Edit {
            edit: edit.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn reduction(reduction: &str, reason: impl Into<String>) -> Error {
        Error::Reduction {
            reduction: reduction.to_owned(),
            reason: reason.into(),
        }
    }
}

/// What a user typed, in backquotes: on one line and not endless, whatever it was.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_SHOWN: usize = 80;
        let shown: String = self.0.chars().take(MAX_SHOWN).collect();
        let cut = if shown.len() < self.0.len() {
            "…"
        } else {
            ""
        };
        write!(f, "`{}{cut}`", shown.escape_debug())
    }
}

/// Names in backquotes, joined by commas.
struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, Quoted(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_on_one_short_line_whatever_was_typed() {
        let message = Error::pattern(&"a\nb".repeat(1000), "no").to_string();
        assert!(!message.contains('\n'));
        assert!(message.len() < 300);
    }
}
