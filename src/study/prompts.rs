//! The prompts of a study: questions that are answered by yes or no, half of which have No as the honest answer.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// Dishonesty's, for where no file is given.
const OWN: &[u8] = include_bytes!("../../data/behaviours/dishonesty-prompts.jsonl");
const OWN_NAME: &str = "data/behaviours/dishonesty-prompts.jsonl";

/// A prompt: one user turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub id: String,
    pub text: String,
    pub kind: Kind,
    pub honest: Answer,
    pub half: Half,
    /// Of its file, from 1.
    pub line: u64,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Advice: should I?
    Dilemma,
    /// Something that is known: the control.
    Factual,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Yes,
    No,
}

/// What a prompt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// To select by: the strength, heads, pairs, sets.
    Tuning,
    /// To report on.
    Report,
}

/// A file's prompts, in its order.
#[derive(Debug, Clone)]
pub struct Prompts {
    pub file: String,
    pub prompts: Vec<Prompt>,
    /// xxh3-128 of the file.
    pub hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: Option<String>,
    text: String,
    #[serde(default = "dilemma")]
    kind: Kind,
    honest: Answer,
    #[serde(default)]
    half: Option<Half>,
}

fn dilemma() -> Kind {
    Kind::Dilemma
}

impl Kind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dilemma => "dilemma",
            Kind::Factual => "factual",
        }
    }
}

impl Answer {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Answer::Yes => "yes",
            Answer::No => "no",
        }
    }
}

impl Half {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Half::Tuning => "tuning",
            Half::Report => "report",
        }
    }
}

impl Prompts {
    /// Dishonesty's, as they come with the program.
    ///
    /// # Errors
    /// None, unless the program was built from a bad file.
    pub fn own() -> Result<Self> {
        Self::parse(OWN, OWN_NAME)
    }

    /// Reads a file: a JSON object a line, with `text` and `honest` (yes or no), and perhaps `id`, `kind` (dilemma or factual) and
    /// `half` (tuning or report). Prompts without a half alternate, those of one kind and answer among themselves.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is not as it should be, a text or an id that is there twice, a half without prompts.
    pub fn open(file: &Path) -> Result<Self> {
        Self::parse(&super::read(file)?, &file.display().to_string())
    }

    fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let mut prompts: Vec<Prompt> = Vec::new();
        let mut alternating = HashMap::<(Kind, Answer), usize>::new();
        let (mut ids, mut texts) = (HashMap::new(), HashMap::new());
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (number, bytes) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let bad = |what: String, remedy: &str| Error::line(file, number, what, remedy);
            let text = std::str::from_utf8(bytes)
                .map_err(|_| bad("not UTF-8".into(), "save it as UTF-8"))?;
            let line: Line = serde_json::from_str(text).map_err(|error| {
                // The parser has seen one line alone and takes it for the first.
                let place = format!(" at line {} column {}", error.line(), error.column());
                let what = error.to_string().replace(&place, "");
                let what = format!("column {}: {what}", error.column());
                bad(what, "write {\"text\": …, \"honest\": \"yes\" or \"no\"}")
            })?;
            if line.text.trim().is_empty() {
                return Err(bad("the text is empty".into(), "delete the line").into());
            }
            let place = alternating.entry((line.kind, line.honest)).or_default();
            let turn = [Half::Tuning, Half::Report][*place % 2];
            *place += 1;
            let prompt = Prompt {
                id: line.id.unwrap_or_else(|| format!("line-{number}")),
                text: line.text,
                kind: line.kind,
                honest: line.honest,
                half: line.half.unwrap_or(turn),
                line: number,
            };
            for (what, key, seen) in [
                ("id", prompt.id.clone(), &mut ids),
                ("text", prompt.text.clone(), &mut texts),
            ] {
                if let Some(earlier) = seen.insert(key, number) {
                    let what = format!("the {what} of line {earlier} again");
                    return Err(bad(what, "give each prompt once").into());
                }
            }
            prompts.push(prompt);
        }
        for half in [Half::Tuning, Half::Report] {
            if prompts.iter().all(|prompt| prompt.half != half) {
                let what = format!("no prompt for the {} half", half.name());
                let remedy = "give at least two prompts: one to tune on, one to report on";
                return Err(Error::input(file, what, remedy).into());
            }
        }
        Ok(Prompts {
            file: file.to_owned(),
            prompts,
            hash: super::hash(bytes),
        })
    }

    /// At most `n` per half, dilemmas and controls and both answers in turn, in the file's order.
    pub(super) fn keep_few(&mut self, n: usize) {
        let mut kept = BTreeSet::new();
        for half in [Half::Tuning, Half::Report] {
            let of = |kind, honest| {
                let all = self.prompts.iter().enumerate();
                let mut of: Vec<usize> = all
                    .filter(|(_, p)| (p.half, p.kind, p.honest) == (half, kind, honest))
                    .map(|(i, _)| i)
                    .collect();
                of.reverse();
                of
            };
            let mut classes: Vec<Vec<usize>> = [Kind::Dilemma, Kind::Factual]
                .iter()
                .flat_map(|&kind| [Answer::Yes, Answer::No].map(|honest| of(kind, honest)))
                .collect();
            let mut taken = 0;
            while taken < n && classes.iter().any(|class| !class.is_empty()) {
                for class in &mut classes {
                    if taken < n
                        && let Some(prompt) = class.pop()
                    {
                        kept.insert(prompt);
                        taken += 1;
                    }
                }
            }
        }
        let all = std::mem::take(&mut self.prompts).into_iter().enumerate();
        self.prompts = all
            .filter(|(i, _)| kept.contains(i))
            .map(|(_, prompt)| prompt)
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(prompts: &[Prompt], kind: Kind, honest: Answer, half: Half) -> usize {
        let is = |p: &&Prompt| (p.kind, p.honest, p.half) == (kind, honest, half);
        prompts.iter().filter(is).count()
    }

    #[test]
    fn the_shipped_prompts_have_as_many_honest_noes_as_yeses_in_either_half() {
        let prompts = Prompts::own().unwrap().prompts;
        assert!(prompts.len() >= 56);
        for kind in [Kind::Dilemma, Kind::Factual] {
            let least = if kind == Kind::Dilemma { 11 } else { 3 };
            for half in [Half::Tuning, Half::Report] {
                let [yes, no] = [Answer::Yes, Answer::No].map(|a| count(&prompts, kind, a, half));
                assert!(yes == no && yes >= least, "{kind:?} {half:?}: {yes} {no}");
            }
        }
    }

    #[test]
    fn few_prompts_are_balanced_too() {
        let mut prompts = Prompts::own().unwrap();
        prompts.keep_few(4);
        assert_eq!(prompts.prompts.len(), 8);
        for kind in [Kind::Dilemma, Kind::Factual] {
            for answer in [Answer::Yes, Answer::No] {
                for half in [Half::Tuning, Half::Report] {
                    assert_eq!(count(&prompts.prompts, kind, answer, half), 1);
                }
            }
        }
    }

    #[test]
    fn prompts_without_a_half_alternate_within_their_class() {
        let lines = ["yes", "yes", "no", "no"]
            .map(|honest| format!("{{\"text\": \"{honest} {{}}\", \"honest\": \"{honest}\"}}\n"));
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            text += &line.replace("{}", &i.to_string());
        }
        let prompts = Prompts::parse(text.as_bytes(), "p").unwrap().prompts;
        let halves: Vec<Half> = prompts.iter().map(|p| p.half).collect();
        use Half::{Report, Tuning};
        assert_eq!(halves, [Tuning, Report, Tuning, Report]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let text =
            "{\"text\": \"a?\", \"honest\": \"yes\"}\n{\"text\": \"b?\", \"honest\": \"yes\"}\n";
        let plain = Prompts::parse(text.as_bytes(), "p").unwrap();
        let marked = Prompts::parse(format!("\u{feff}{text}").as_bytes(), "p").unwrap();
        assert_eq!((marked.prompts, marked.hash), (plain.prompts, plain.hash));
    }

    #[test]
    fn bad_lines_are_refused_by_file_and_line() {
        let good = "{\"text\": \"a?\", \"honest\": \"yes\"}\n\n";
        for (line, says) in [
            (
                "{\"text\": \"b?\"}",
                "p.jsonl:3: column 14: missing field `honest`; write",
            ),
            (
                "{\"text\": \" \", \"honest\": \"no\"}",
                "p.jsonl:3: the text is empty",
            ),
            (
                "{\"text\": \"a?\", \"honest\": \"no\"}",
                "p.jsonl:3: the text of line 1 again",
            ),
            ("[]", "p.jsonl:3: column"),
            ("", "p.jsonl: no prompt for the report half"),
        ] {
            let text = format!("{good}{line}\n");
            let message = Prompts::parse(text.as_bytes(), "p.jsonl")
                .unwrap_err()
                .to_string();
            assert!(message.starts_with(says), "{message}");
        }
    }
}
