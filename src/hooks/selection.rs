//! Row selection as it is written: `last`, `-5..-1`, `role:assistant & last`, … What it picks is in `rows.rs`.

use std::fmt;
use std::str::FromStr;

use super::nearest::{edit_distance, nearest};
use super::number::{int, range, surely_backwards};
use super::{Error, Result};

/// Which tokens of a sample are kept. Displayed in canonical spelling, which parses back to the same selection.
///
/// Indices are 0-based; negative ones count from the end; ranges are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selection {
    /// `all`: every token.
    All,
    /// `first`: the first token; as `0`.
    First,
    /// `last`: the last token; as `-1`.
    Last,
    /// `7`, `-1`, `3..7`, `-5..-1`, `3..-1`: positions.
    Positions { first: i32, last: i32 },
    /// `no-bos`: every token but a leading BOS.
    NoBos,
    /// `role:assistant`: content tokens of the turns of that role; with `+` their header and end-of-turn tokens too.
    Role { role: String, whole: bool },
    /// `turn:-1`: content tokens of one chat turn; with `+` its header and end-of-turn tokens too.
    Turn { index: i32, whole: bool },
    /// `span:NAME`: tokens of the sample's spans of that name.
    Span(String),
    /// `every:8`: rows 0, 8, 16, …; the number is at least 1.
    Every(u32),
    /// `sample:32#7`: that many random rows, the same ones whenever seed and sample are; fewer where there are fewer.
    Sample { count: u32, seed: u64 },
    /// `prompt`: the tokens that generation started from.
    Prompt,
    /// `generated`: the tokens after the prompt.
    Generated,
    /// `step:0..3`: generated tokens by their number; step 0 is the first token after the prompt.
    Steps { first: i32, last: i32 },
    /// `A & B`: each picks among the rows that the one before has left, as though those were the sample.
    And(Vec<Selection>),
}

/// The words a selection may start with, as errors list them.
const FORMS: [&str; 13] = [
    "all",
    "first",
    "last",
    "no-bos",
    "-5..-1",
    "role:assistant",
    "turn:-1",
    "span:NAME",
    "every:8",
    "sample:32#0",
    "prompt",
    "generated",
    "step:0..3",
];

impl Selection {
    /// `self & other`, flat however the two were made.
    pub fn and(self, other: Selection) -> Selection {
        let mut picks = Vec::new();
        for selection in [self, other] {
            match selection {
                Selection::And(inner) => picks.extend(inner),
                single => picks.push(single),
            }
        }
        Selection::And(picks)
    }

    /// Whether it draws at random.
    pub fn draws(&self) -> bool {
        self.any(&|s| matches!(s, Selection::Sample { .. }))
    }

    /// Whether it picks by chat turn, so that the input must be messages.
    pub fn needs_messages(&self) -> bool {
        self.any(&|s| matches!(s, Selection::Role { .. } | Selection::Turn { .. }))
    }

    /// Whether it picks by generation step, so that the rows must come from generation.
    pub fn needs_generation(&self) -> bool {
        self.any(&|s| {
            matches!(
                s,
                Selection::Prompt | Selection::Generated | Selection::Steps { .. }
            )
        })
    }

    /// The spans it names, which the dataset must give.
    pub fn needs_spans(&self) -> Vec<&str> {
        match self {
            Selection::Span(name) => vec![name],
            Selection::And(picks) => picks.iter().flat_map(Selection::needs_spans).collect(),
            _ => Vec::new(),
        }
    }

    fn any(&self, test: &dyn Fn(&Selection) -> bool) -> bool {
        match self {
            Selection::And(picks) => picks.iter().any(|pick| pick.any(test)),
            single => test(single),
        }
    }
}

impl FromStr for Selection {
    type Err = Error;

    fn from_str(text: &str) -> Result<Selection> {
        let picks = text
            .split('&')
            .map(|pick| single(pick.trim()))
            .collect::<Result<Vec<_>>>();
        let mut picks = picks.map_err(|error| match error {
            // An empty part says nothing by itself: show the whole.
            Error::Selection { selection, reason } if selection.is_empty() => {
                Error::selection(text, reason)
            }
            other => other,
        })?;
        Ok(match picks.len() {
            1 => picks.remove(0),
            _ => Selection::And(picks),
        })
    }
}

/// One selection without `&`.
fn single(text: &str) -> Result<Selection> {
    let wrong = |reason: &str| Err(Error::selection(text, reason));
    match text {
        "" => return wrong("a selection is missing; write `all` for every row"),
        "all" => return Ok(Selection::All),
        "first" => return Ok(Selection::First),
        "last" => return Ok(Selection::Last),
        "no-bos" => return Ok(Selection::NoBos),
        "prompt" => return Ok(Selection::Prompt),
        "generated" => return Ok(Selection::Generated),
        _ => {}
    }
    if text.starts_with(|c: char| c == '-' || c == '.' || c.is_ascii_digit()) {
        let (first, last) = inclusive(text, text)?;
        return Ok(Selection::Positions { first, last });
    }
    let Some((word, value)) = text.split_once(':') else {
        return Err(unknown(text));
    };
    match word {
        "role" => {
            let (role, whole) = plus(value);
            if role.is_empty() || role.contains(['+', '|']) {
                return wrong(
                    "write a role's name, such as role:assistant (or role:assistant+ with its header and end-of-turn tokens)",
                );
            }
            let role = role.to_owned();
            Ok(Selection::Role { role, whole })
        }
        "turn" => {
            let (index, whole) = plus(value);
            match int(index) {
                Some(index) => Ok(Selection::Turn { index, whole }),
                None => wrong(
                    "write a turn's number from 0, or from the end: turn:-1 (or turn:-1+ with its header and end-of-turn tokens)",
                ),
            }
        }
        "span" if value.trim().is_empty() || value.contains('|') => wrong(
            "write the name of a span of the dataset, such as span:subject; it cannot contain & or |",
        ),
        "span" => Ok(Selection::Span(value.trim().to_owned())),
        "every" => match int(value).and_then(|n| u32::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Selection::Every(n)),
            _ => wrong("write a step of at least 1, such as every:8"),
        },
        "sample" => {
            let (count, seed) = value.split_once('#').unwrap_or((value, "0"));
            let count = int(count).and_then(|n| u32::try_from(n).ok());
            let digits = !seed.is_empty() && seed.bytes().all(|b| b.is_ascii_digit());
            match (count, seed.parse::<u64>()) {
                (Some(count), Ok(seed)) if count > 0 && digits => {
                    Ok(Selection::Sample { count, seed })
                }
                _ => wrong("write how many rows and a seed, such as sample:32#7"),
            }
        }
        "step" => {
            let (first, last) = inclusive(value, text)?;
            Ok(Selection::Steps { first, last })
        }
        _ => Err(unknown(text)),
    }
}

/// `value` without a final `+`, and whether there was one.
fn plus(value: &str) -> (&str, bool) {
    let value = value.trim();
    match value.strip_suffix('+') {
        Some(rest) => (rest, true),
        None => (value, false),
    }
}

fn inclusive(value: &str, selection: &str) -> Result<(i32, i32)> {
    match range(value, "..") {
        Some((first, last)) if surely_backwards(first, last) => Err(Error::selection(
            selection,
            format!("range {first}..{last} runs backwards; swap its ends"),
        )),
        Some(ends) => Ok(ends),
        None => Err(Error::selection(
            selection,
            "write one number or both ends of a range, inclusive and negative from the end: 7, 3..7, -5..-1, 3..-1",
        )),
    }
}

fn unknown(text: &str) -> Error {
    // What follows the colon is the user's own; only the word before it can be misspelt.
    let word = |form: &str| form.split(':').next().unwrap_or(form).to_owned();
    let typed = word(text);
    Error::UnknownSelection {
        selection: text.to_owned(),
        nearest: nearest(FORMS, 3, |form| edit_distance(&typed, &word(form)))
            .into_iter()
            .map(str::to_owned)
            .collect(),
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plus = |whole: &bool| if *whole { "+" } else { "" };
        match self {
            Selection::All => f.write_str("all"),
            Selection::First => f.write_str("first"),
            Selection::Last => f.write_str("last"),
            Selection::NoBos => f.write_str("no-bos"),
            Selection::Prompt => f.write_str("prompt"),
            Selection::Generated => f.write_str("generated"),
            Selection::Positions { first, last } if first == last => write!(f, "{first}"),
            Selection::Positions { first, last } => write!(f, "{first}..{last}"),
            Selection::Role { role, whole } => write!(f, "role:{role}{}", plus(whole)),
            Selection::Turn { index, whole } => write!(f, "turn:{index}{}", plus(whole)),
            Selection::Span(name) => write!(f, "span:{name}"),
            Selection::Every(n) => write!(f, "every:{n}"),
            Selection::Sample { count, seed } => write!(f, "sample:{count}#{seed}"),
            Selection::Steps { first, last } if first == last => write!(f, "step:{first}"),
            Selection::Steps { first, last } => write!(f, "step:{first}..{last}"),
            Selection::And(picks) => {
                for (i, pick) in picks.iter().enumerate() {
                    write!(f, "{}{pick}", if i == 0 { "" } else { " & " })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Selection>().unwrap_err().to_string()
    }

    #[test]
    fn every_documented_form_reads_and_writes_the_same() {
        for text in [
            "all",
            "first",
            "last",
            "-1",
            "7",
            "-5..-1",
            "3..7",
            "3..-1",
            "no-bos",
            "role:assistant",
            "role:assistant+",
            "turn:-1",
            "turn:0+",
            "span:subject",
            "every:8",
            "sample:32#7",
            "prompt",
            "generated",
            "step:0..3",
            "step:2",
            "role:assistant & last",
            "no-bos & every:2 & -3..-1",
        ] {
            assert_eq!(text.parse::<Selection>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_spellings_become_canonical() {
        for (text, canonical) in [
            ("7..7", "7"),
            ("  role:user&last ", "role:user & last"),
            ("sample:4", "sample:4#0"),
        ] {
            assert_eq!(text.parse::<Selection>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn joining_selections_stays_flat() {
        let joined = Selection::NoBos
            .and("all & first".parse().unwrap())
            .and(Selection::Last);
        assert_eq!(joined, "no-bos & all & first & last".parse().unwrap());
    }

    #[test]
    fn a_selection_says_what_it_needs() {
        let needs = |text: &str| {
            let s: Selection = text.parse().unwrap();
            let spans: Vec<String> = s.needs_spans().iter().map(|s| s.to_string()).collect();
            (s.needs_messages(), s.needs_generation(), spans)
        };
        assert_eq!(needs("no-bos & last"), (false, false, vec![]));
        assert_eq!(needs("all & turn:-1+"), (true, false, vec![]));
        assert_eq!(needs("step:0..3"), (false, true, vec![]));
        let spans = vec!["a".to_owned(), "b c".to_owned()];
        assert_eq!(needs("span:a & span:b c"), (false, false, spans));
    }

    #[test]
    fn an_unknown_selection_lists_the_nearest() {
        assert!(error("lst").starts_with("unknown selection `lst`; nearest: `last`, "));
        assert!(error("rol:user").contains("nearest: `role:assistant`"));
    }

    #[test]
    fn a_badly_written_selection_says_how_it_is_written() {
        assert!(error("").contains("write `all`"));
        assert!(error("last &").contains("selection `last &`: a selection is missing"));
        assert!(error("3..").contains("both ends of a range"));
        assert!(error("..3").contains("both ends of a range"));
        assert!(error("7..3").contains("runs backwards"));
        assert!(error("-1..-5").contains("runs backwards"));
        assert!(error("every:0").contains("at least 1"));
        assert!(error("sample:0#1").contains("sample:32#7"));
        assert!(error("sample:3#x").contains("sample:32#7"));
        assert!(error("role:").contains("role:assistant"));
        assert!(error("turn:last").contains("turn:-1"));
        assert!(error("span: ").contains("span:subject"));
        assert!(error("step:x").contains("both ends of a range"));
    }

    pub(in crate::hooks) fn any_single() -> impl Strategy<Value = Selection> {
        let ends = || {
            (-9..9i32, -9..9i32).prop_map(|(a, b)| match surely_backwards(a, b) {
                true => (b, a),
                false => (a, b),
            })
        };
        prop_oneof![
            Just(Selection::All),
            Just(Selection::First),
            Just(Selection::Last),
            Just(Selection::NoBos),
            Just(Selection::Prompt),
            Just(Selection::Generated),
            ends().prop_map(|(first, last)| Selection::Positions { first, last }),
            ends().prop_map(|(first, last)| Selection::Steps { first, last }),
            ("user|tool", any::<bool>()).prop_map(|(role, whole)| Selection::Role { role, whole }),
            (-4..4i32, any::<bool>()).prop_map(|(index, whole)| Selection::Turn { index, whole }),
            "[ab]|[a-z@#+:]{1,4}".prop_map(Selection::Span),
            (1..5u32).prop_map(Selection::Every),
            (1..9u32, any::<u64>()).prop_map(|(count, seed)| Selection::Sample { count, seed }),
        ]
    }

    pub(in crate::hooks) fn any_selection() -> impl Strategy<Value = Selection> {
        prop_oneof![
            any_single(),
            proptest::collection::vec(any_single(), 2..4).prop_map(Selection::And),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_selection_reads_back_what_it_writes(selection in any_selection()) {
            prop_assert_eq!(selection.to_string().parse::<Selection>(), Ok(selection));
        }

        #[test]
        fn no_string_makes_the_selection_parser_panic(text in any::<String>()) {
            let _ = text.parse::<Selection>();
        }

        #[test]
        fn no_near_miss_makes_the_selection_parser_panic(text in r"(role|turn|span|every|sample|step)?:?[-0-9.#&+a ]{0,12}") {
            let _ = text.parse::<Selection>();
        }
    }
}
