//! From the raw fields of a record to its input, spans and kept values.

use super::error::one_line;
use super::source::{Body, Cell};
use super::spans;
use super::{CharSpan, Error, Fields, Input, Kept, ReadOptions};
use serde_json::Value;
use std::borrow::Cow;

/// The kinds of input a field may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Tokens,
    Messages,
}

/// The fields that are read, each once, and what each is for. A slot is an index into the names.
#[derive(Debug)]
pub(super) struct Wanted {
    names: Vec<String>,
    /// Where the input may be, first choice first.
    inputs: Vec<(Kind, usize)>,
    spans: Option<usize>,
    keep: Vec<usize>,
}

impl Wanted {
    /// Refuses an empty or repeated name among those to keep.
    pub fn new(options: &ReadOptions) -> Result<Self, Error> {
        let mut names: Vec<String> = Vec::new();
        let mut slot = |name: &str| {
            names.iter().position(|n| n == name).unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        };
        let inputs = match &options.fields {
            Some(Fields::Text(name)) => vec![(Kind::Text, slot(name))],
            Some(Fields::Tokens(name)) => vec![(Kind::Tokens, slot(name))],
            Some(Fields::Messages(name)) => vec![(Kind::Messages, slot(name))],
            None => {
                let mut kinds = vec![
                    (Kind::Text, slot("text")),
                    (Kind::Tokens, slot("tokens")),
                    (Kind::Messages, slot("messages")),
                ];
                if options.tokens_first {
                    kinds.swap(0, 1);
                }
                kinds
            }
        };
        let spans = (!options.spans_field.is_empty()).then(|| slot(&options.spans_field));
        let mut keep = Vec::new();
        for name in &options.keep {
            let kept = slot(name);
            let problem = match () {
                () if name.is_empty() => "its name is empty",
                () if keep.contains(&kept) => "it is listed twice",
                () => {
                    keep.push(kept);
                    continue;
                }
            };
            return Err(Error::BadKeep(name.clone(), problem));
        }
        Ok(Wanted {
            names,
            inputs,
            spans,
            keep,
        })
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn slot(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Whether plain text, which has no fields, can be the input.
    pub fn takes_text(&self) -> bool {
        self.inputs.iter().any(|(kind, _)| *kind == Kind::Text)
    }

    /// The fields to keep, in order.
    pub fn kept_names(&self) -> impl Iterator<Item = &str> {
        self.keep.iter().map(|&slot| self.names[slot].as_str())
    }

    /// What a table with these columns lacks, if anything: one of the inputs, or a field to keep.
    pub fn missing_column(&self, columns: &[String]) -> Option<(String, Cow<'static, str>)> {
        let has = |slot: usize| columns.contains(&self.names[slot]);
        if !self.inputs.iter().any(|&(_, slot)| has(slot)) {
            return Some(self.missing_input("column", columns));
        }
        let lacking = self.keep.iter().find(|&&slot| !has(slot))?;
        Some(missing_kept("column", &self.names[*lacking], columns))
    }

    fn missing_input(&self, noun: &str, there: &[String]) -> (String, Cow<'static, str>) {
        let names: Vec<String> = self
            .inputs
            .iter()
            .map(|&(_, slot)| format!("`{}`", self.names[slot]))
            .collect();
        (
            format!("no {noun} {}{}", names.join(" or "), listing(noun, there)),
            "name the right one with --text-field, --tokens-field or --messages-field".into(),
        )
    }
}

fn missing_kept(noun: &str, name: &str, there: &[String]) -> (String, Cow<'static, str>) {
    (
        format!("no {noun} `{name}` to keep{}", listing(noun, there)),
        "add it, or leave it out of --keep (of --label or --pair, with --stats)".into(),
    )
}

fn listing(noun: &str, there: &[String]) -> String {
    if there.is_empty() {
        return format!(" (there are no {noun}s at all)");
    }
    let names: Vec<String> = there.iter().take(20).map(|n| one_line(n, 40)).collect();
    let more = if there.len() > 20 { ", …" } else { "" };
    format!(" (there are: {}{more})", names.join(", "))
}

/// Why a record is bad: what is wrong with it, and the remedy.
type Flaw = (String, Cow<'static, str>);

/// A record's input, spans and kept values.
pub(super) type Parts = (Input, Vec<CharSpan>, Vec<Option<Kept>>);

/// Interprets what a reader read.
pub(super) fn interpret(body: Body, wanted: &Wanted) -> Result<Parts, Flaw> {
    let (mut cells, names) = match body {
        Body::Line(text) => return Ok((Input::Text(text), Vec::new(), Vec::new())),
        Body::Fields { cells, names } => (cells, names),
    };
    let kept = wanted
        .keep
        .iter()
        .map(|&slot| match &cells[slot] {
            Some(cell) => Ok(keep(cell)),
            None => Err(missing_kept("field", &wanted.names[slot], &names)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    // A slot may serve both as input and as something else, so the input is taken last.
    let spans_cell = wanted.spans.and_then(|slot| cells[slot].clone());
    let filled = |slot: usize| cells[slot].as_ref().is_some_and(|cell| !cell.is_null());
    let Some(&(kind, slot)) = wanted.inputs.iter().find(|(_, slot)| filled(*slot)) else {
        let there = wanted
            .inputs
            .iter()
            .find(|(_, slot)| cells[*slot].is_some());
        return Err(match there {
            Some(&(_, slot)) => {
                let nothing = match cells[slot] {
                    Some(Cell::Plain(_)) => "empty",
                    _ => "null",
                };
                (
                    format!("field `{}` is {nothing}", wanted.names[slot]),
                    FILL.into(),
                )
            }
            None => wanted.missing_input("field", &names),
        });
    };
    let name = &wanted.names[slot];
    let cell = cells[slot].take().unwrap_or(Cell::Json(Value::Null));
    let input = match kind {
        Kind::Text => text(name, cell)?,
        Kind::Tokens => tokens(name, &structured(name, cell)?)?,
        Kind::Messages => messages(name, structured(name, cell)?)?,
    };
    let spans = match (spans_cell, wanted.spans) {
        // Token ids have no characters to count; spans beside them belong to another reading.
        (Some(cell), Some(slot)) if kind != Kind::Tokens && !cell.is_null() => {
            let name = &wanted.names[slot];
            let value = structured(name, cell)?;
            spans::read(&value, &input)
                .map_err(|what| (format!("field `{name}`: {what}"), spans::REMEDY.into()))?
        }
        _ => Vec::new(),
    };
    Ok((input, spans, kept))
}

const FILL: &str = "give the sample an input or remove it";

/// What JSON calls this kind of value.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value of a field that must be structured; in a CSV cell it is written as JSON.
fn structured(name: &str, cell: Cell) -> Result<Value, Flaw> {
    match cell {
        Cell::Json(value) => Ok(value),
        // Refused by every caller, and only for being a number.
        Cell::NonFinite(_) => Ok(Value::from(0)),
        Cell::Plain(text) => serde_json::from_str(&text).map_err(|error| {
            (
                format!("column `{name}` does not hold JSON: {error}"),
                "write such cells as JSON, e.g. [1, 2, 3], or use .jsonl".into(),
            )
        }),
    }
}

fn text(name: &str, cell: Cell) -> Result<Input, Flaw> {
    let text = match cell {
        Cell::Plain(text) | Cell::Json(Value::String(text)) => text,
        other => {
            let value = structured(name, other)?;
            return Err((
                format!(
                    "field `{name}` must be a string, and is {}",
                    kind_of(&value)
                ),
                "correct it, or name the right field with --text-field".into(),
            ));
        }
    };
    if text.is_empty() {
        return Err((format!("field `{name}` is an empty text"), FILL.into()));
    }
    Ok(Input::Text(text))
}

fn tokens(name: &str, value: &Value) -> Result<Input, Flaw> {
    const REMEDY: &str = "token ids are whole numbers from 0 to 4294967295";
    let Value::Array(items) = value else {
        return Err((
            format!(
                "field `{name}` must be an array of token ids, and is {}",
                kind_of(value)
            ),
            "correct it, or name the right field with --tokens-field".into(),
        ));
    };
    if items.is_empty() {
        return Err((format!("field `{name}` holds no tokens"), FILL.into()));
    }
    let ids = items
        .iter()
        .enumerate()
        .map(|(n, item)| {
            item.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| {
                    let found = one_line(&item.to_string(), 40);
                    (
                        format!("field `{name}`: item {n} (from 0) is {found}"),
                        REMEDY.into(),
                    )
                })
        })
        .collect::<Result<Vec<u32>, Flaw>>()?;
    Ok(Input::Tokens(ids))
}

fn messages(name: &str, value: Value) -> Result<Input, Flaw> {
    let shape = |what: String| -> Flaw {
        (
            format!("field `{name}`{what}"),
            "messages are [{\"role\": \"user\", \"content\": \"…\"}, …] with plain strings".into(),
        )
    };
    let Value::Array(items) = value else {
        return Err(shape(format!(
            " must be an array of messages, and is {}",
            kind_of(&value)
        )));
    };
    if items.is_empty() {
        return Err((format!("field `{name}` holds no messages"), FILL.into()));
    }
    let mut messages = Vec::with_capacity(items.len());
    for (n, item) in items.into_iter().enumerate() {
        let Value::Object(mut message) = item else {
            return Err(shape(format!(
                ": message {n} (from 0) must be an object, and is {}",
                kind_of(&item)
            )));
        };
        // A template would render these; dropping them would change the text without a word.
        if message
            .get("tool_calls")
            .is_some_and(|calls| !calls.is_null())
        {
            return Err(shape(format!(
                ": message {n} (from 0) has `tool_calls`, which we cannot render"
            )));
        }
        let mut part = |key: &str| match message.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(shape(format!(
                ": message {n} (from 0): `{key}` must be a string, and is {}",
                kind_of(&other)
            ))),
            None => Err(shape(format!(": message {n} (from 0) has no `{key}`"))),
        };
        messages.push((part("role")?, part("content")?));
    }
    Ok(Input::Messages(messages))
}

fn keep(cell: &Cell) -> Option<Kept> {
    Some(match cell {
        cell if cell.is_null() => return None,
        Cell::NonFinite(number) => Kept::Float(*number),
        Cell::Plain(text) => typed(text),
        Cell::Json(Value::Bool(yes)) => Kept::Bool(*yes),
        Cell::Json(Value::String(text)) => Kept::Text(text.clone()),
        Cell::Json(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => Kept::Int(int),
            (None, Some(float)) if number.is_f64() => Kept::Float(float),
            _ => Kept::Text(number.to_string()),
        },
        Cell::Json(nested) => Kept::Text(nested.to_string()),
    })
}

/// The type that a bare cell seems to have, without losing what it says: see [`Kept`].
fn typed(text: &str) -> Kept {
    if let Ok(int) = text.parse::<i64>()
        && int.to_string() == text
    {
        return Kept::Int(int);
    }
    let decimal = || {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.')?;
        let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let plain =
            all_digits(whole) && all_digits(fraction) && (whole == "0" || !whole.starts_with('0'));
        plain.then(|| text.parse::<f64>().ok())?
    };
    match decimal() {
        Some(float) if float.is_finite() => Kept::Float(float),
        _ => Kept::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_without_a_type_are_numbers_only_where_nothing_is_lost() {
        let text = |s: &str| Kept::Text(s.to_owned());
        assert_eq!(typed("1"), Kept::Int(1));
        assert_eq!(typed("-3"), Kept::Int(-3));
        assert_eq!(typed("0.50"), Kept::Float(0.5));
        assert_eq!(typed("-12.25"), Kept::Float(-12.25));
        for other in [
            "007",
            "+1",
            "-0",
            "1e5",
            "1.",
            ".5",
            "01.5",
            "nan",
            "inf",
            "true",
            " 1",
            "1.2.3",
            "9223372036854775808",
        ] {
            assert_eq!(typed(other), text(other));
        }
    }

    #[test]
    fn a_field_may_be_both_input_and_kept() {
        let options = ReadOptions {
            keep: vec!["text".to_owned()],
            ..ReadOptions::default()
        };
        let wanted = Wanted::new(&options).unwrap();
        let mut cells = vec![None; wanted.names().len()];
        cells[0] = Some(Cell::Json("hi".into()));
        let names: Vec<String> = vec!["text".to_owned()];
        let body = Body::Fields {
            cells,
            names: names.into(),
        };
        let (input, _, kept) = interpret(body, &wanted).unwrap();
        assert_eq!(input, Input::Text("hi".to_owned()));
        assert_eq!(kept, [Some(Kept::Text("hi".to_owned()))]);
    }

    #[test]
    fn a_field_kept_twice_or_without_a_name_is_refused() {
        for keep in [vec!["a", "b", "a"], vec![""]] {
            let keep = keep.into_iter().map(str::to_owned).collect();
            let options = ReadOptions {
                keep,
                ..ReadOptions::default()
            };
            assert!(matches!(Wanted::new(&options), Err(Error::BadKeep(..))));
        }
    }
}
