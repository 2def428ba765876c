//! Statements that are true or false, from a CSV file: `statement`, `label`, and perhaps `topic` and `group`.

use std::collections::HashMap;
use std::path::Path;

use super::{Error, Result};

/// The project's own, for where no file is given.
const OWN: &[u8] = include_bytes!("../../data/facts.csv");
const OWN_NAME: &str = "data/facts.csv";

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub statement: String,
    pub label: bool,
    pub topic: Option<String>,
    /// Statements that share words, and must not be parted by a split.
    pub group: Option<String>,
    /// Of its file, from 1.
    pub line: u64,
}

/// A file's statements, in its order.
#[derive(Debug, Clone)]
pub struct Facts {
    pub file: String,
    pub facts: Vec<Fact>,
    /// Lines that say again what an earlier line says: (line, the earlier). Empty unless they were let in.
    pub duplicates: Vec<(u64, u64)>,
    /// xxh3-128 of the file.
    pub hash: String,
}

/// What becomes of a statement that is there twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates<'a> {
    Refuse,
    Keep,
    /// Kept in the file of this hash, as a published study has it; refused elsewhere.
    KeepIn(&'a str),
}

impl Facts {
    /// The project's own.
    ///
    /// # Errors
    /// None, unless the program was built from a bad file.
    pub fn own() -> Result<Self> {
        Self::parse(OWN, OWN_NAME, Duplicates::Refuse)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, a missing column, a line that is not UTF-8 or lacks a cell, a label that is none, one label
    /// alone, statements that are there twice: each with its line.
    pub fn open(file: &Path, duplicates: Duplicates<'_>) -> Result<Self> {
        Self::parse(&super::read(file)?, &file.display().to_string(), duplicates)
    }

    fn parse(bytes: &[u8], file: &str, duplicates: Duplicates<'_>) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let hash = super::hash(bytes);
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes);
        let mut lines = Lines {
            bytes,
            counted: 0,
            line: 1,
        };
        let bad = |error: &csv::Error, lines: &mut Lines<'_>| {
            let line = error.position().map_or(1, |position| lines.at(position));
            let (what, remedy) = match error.kind() {
                csv::ErrorKind::Utf8 { .. } => ("not UTF-8".into(), "save it as UTF-8"),
                csv::ErrorKind::UnequalLengths { .. } if lines.leave_a_quote_open() => (
                    "a double quote is opened and not closed on its line".into(),
                    "close it, and write a double quote within a quoted statement twice",
                ),
                csv::ErrorKind::UnequalLengths {
                    expected_len, len, ..
                } => (
                    format!(
                        "{len} cell{} where the header has {expected_len}",
                        if *len == 1 { "" } else { "s" }
                    ),
                    if len > expected_len {
                        "put a statement with commas in double quotes"
                    } else {
                        "write a cell for each of the header's, with commas between them"
                    },
                ),
                _ => (error.to_string(), "write it as CSV"),
            };
            Error::line(file, line, what, remedy)
        };
        let header = reader.headers().map_err(|e| bad(&e, &mut lines))?;
        let columns = Columns::find(header, file)?;
        let mut facts = Vec::new();
        let mut row = csv::StringRecord::new();
        while reader
            .read_record(&mut row)
            .map_err(|e| bad(&e, &mut lines))?
        {
            let line = row.position().map_or(0, |position| lines.at(position));
            facts.push(columns.fact(&row, file, line)?);
        }
        both_labels(&facts, file)?;
        let found = twice(&facts);
        let kept = match duplicates {
            Duplicates::Refuse => false,
            Duplicates::Keep => true,
            Duplicates::KeepIn(known) => known == hash,
        };
        if let Some(&(line, earlier)) = found.first().filter(|_| !kept) {
            let what = format!(
                "the statement of line {earlier} again ({} such lines in all)",
                found.len()
            );
            let remedy = "delete one, or pass --keep-duplicates to have each count";
            return Err(Error::line(file, line, what, remedy).into());
        }
        Ok(Facts {
            file: file.to_owned(),
            facts,
            duplicates: found,
            hash,
        })
    }
}

/// Tells which line a record begins on. The reader's own count is one short where lines end in CR LF: it leaves the LF to the next record.
struct Lines<'b> {
    bytes: &'b [u8],
    /// What was counted before, and the line there.
    counted: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line, from 1; positions may only rise.
    fn at(&mut self, position: &csv::Position) -> u64 {
        let at = usize::try_from(position.byte())
            .map_or(self.bytes.len(), |at| at.min(self.bytes.len()));
        let between = self.bytes[at..].iter().take_while(|b| b"\r\n".contains(b));
        let end = at + between.count();
        let new = self.bytes.get(self.counted..end).unwrap_or_default();
        self.line += new.iter().filter(|&&b| b == b'\n').count() as u64;
        self.counted = self.counted.max(end);
        self.line
    }

    /// Whether the line that was asked for last has a double quote without its other one.
    fn leave_a_quote_open(&self) -> bool {
        let rest = self.bytes.get(self.counted..).unwrap_or_default();
        let line = rest.split(|&b| b == b'\n').next().unwrap_or_default();
        line.iter().filter(|&&b| b == b'"').count() % 2 == 1
    }
}

/// Where each column stands.
struct Columns {
    statement: usize,
    label: usize,
    topic: Option<usize>,
    group: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord, file: &str) -> Result<Self> {
        let place = |name: &str| header.iter().position(|h| h.trim() == name);
        let must = |name: &str| {
            place(name).ok_or_else(|| {
                let there: Vec<&str> = header.iter().map(str::trim).collect();
                let what = format!("no column `{name}` (there are {})", there.join(", "));
                Error::line(file, 1, what, "name the columns statement,label[,topic]")
            })
        };
        Ok(Columns {
            statement: must("statement")?,
            label: must("label")?,
            topic: place("topic"),
            group: place("group"),
        })
    }

    fn fact(&self, row: &csv::StringRecord, file: &str, line: u64) -> Result<Fact> {
        let cell = |at: usize| row.get(at).unwrap_or("").trim();
        let named = |at: Option<usize>| {
            let text = cell(at?);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let statement = cell(self.statement);
        if statement.is_empty() {
            return Err(
                Error::line(file, line, "the statement is empty", "delete the line").into(),
            );
        }
        let label = match cell(self.label) {
            "1" | "1.0" | "true" | "True" | "TRUE" => true,
            "0" | "0.0" | "false" | "False" | "FALSE" => false,
            other => {
                let what = format!("the label is `{other}`");
                return Err(Error::line(file, line, what, "write 1 for true, 0 for false").into());
            }
        };
        Ok(Fact {
            statement: statement.to_owned(),
            label,
            topic: named(self.topic),
            group: named(self.group),
            line,
        })
    }
}

fn both_labels(facts: &[Fact], file: &str) -> Result<()> {
    let Some(first) = facts.first() else {
        let remedy = "write a statement a line, with its label";
        return Err(Error::line(file, 1, "no statements after the header", remedy).into());
    };
    if facts.iter().any(|fact| fact.label != first.label) {
        return Ok(());
    }
    let last = facts.last().map_or(first.line, |fact| fact.line);
    let (there, missing) = if first.label {
        ("true", "false")
    } else {
        ("false", "true")
    };
    let what = format!(
        "all {} statements (lines {} to {last}) are {there}",
        facts.len(),
        first.line
    );
    let remedy = format!("add {missing} ones: directions of truth need both");
    Err(Error::line(file, first.line, what, remedy).into())
}

/// Lines that say again what an earlier one says, whatever the case and the spaces.
fn twice(facts: &[Fact]) -> Vec<(u64, u64)> {
    let mut seen = HashMap::new();
    let plain = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        words.join(" ")
    };
    let again = |fact: &Fact| match seen.entry(plain(&fact.statement)) {
        std::collections::hash_map::Entry::Occupied(earlier) => Some((fact.line, *earlier.get())),
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(fact.line);
            None
        }
    };
    facts.iter().filter_map(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        Facts::parse(bytes, "f.csv", Duplicates::Refuse)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_projects_own_facts_read_in_order_with_topic_and_group() {
        let facts = Facts::own().unwrap();
        assert_eq!(facts.facts.len(), 800);
        let first = &facts.facts[0];
        assert_eq!((first.line, first.label), (2, true));
        assert_eq!(first.topic.as_deref(), Some("body"));
        assert_eq!(first.group.as_deref(), Some("body-09"));
    }

    #[test]
    fn bad_files_are_refused_by_file_and_line() {
        for (bytes, says) in [
            (
                &b"statement,truth\nA b.,1\n"[..],
                "f.csv:1: no column `label` (there are statement, truth)",
            ),
            (
                b"statement,label\nA b.,1\nC d.,1\n",
                "f.csv:2: all 2 statements (lines 2 to 3) are true; add false ones",
            ),
            (
                b"statement,label\nA b.,1\nC d.,0\na  B.,1\n",
                "f.csv:4: the statement of line 2 again (1 such lines in all)",
            ),
            (b"statement,label\nA b.,1\n\xff.,0\n", "f.csv:3: not UTF-8"),
            (
                b"statement,label\nA b.,1\nC, d.,0\n",
                "f.csv:3: 3 cells where the header has 2; put a statement with commas in double quotes",
            ),
            (
                b"statement,label\nA b.,1\nC d.\n",
                "f.csv:3: 1 cell where the header has 2; write a cell",
            ),
            (
                b"statement,label\nA b.,1\n\"C d.,0\nE f.,1\n",
                "f.csv:3: a double quote is opened and not closed on its line; close it",
            ),
            (
                b"statement,label\nA b.,yes\n",
                "f.csv:2: the label is `yes`",
            ),
            (
                b"statement,label\n\"\",0\n",
                "f.csv:2: the statement is empty",
            ),
            (b"statement,label\n", "f.csv:1: no statements"),
            (
                b"statement,label\r\n\r\nA b.,1\r\nC d.,maybe\r\n",
                "f.csv:4: the label is `maybe`",
            ),
            (
                b"statement,label\r\n\"A\r\nb.\",1\r\n\xff,0\r\n",
                "f.csv:4: not UTF-8",
            ),
        ] {
            assert!(message(bytes).starts_with(says), "{}", message(bytes));
        }
    }

    #[test]
    fn duplicates_count_each_where_they_are_asked_for() {
        let bytes = b"statement,label\nA b.,1\nC d.,0\nA b.,1\n";
        let kept = Facts::parse(bytes, "f.csv", Duplicates::Keep).unwrap();
        assert_eq!(kept.facts.len(), 3);
        assert_eq!(kept.duplicates, [(4, 2)]);
        let known = Duplicates::KeepIn(&kept.hash);
        assert!(Facts::parse(bytes, "f.csv", known).is_ok());
        assert!(Facts::parse(bytes, "f.csv", Duplicates::KeepIn("0")).is_err());
    }
}
