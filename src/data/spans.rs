//! Named character spans given beside a text or the messages of a chat.
//!
//! Either `{"name": [start, end], …}` or `[{"name": …, "start": …, "end": …}, …]`, where several spans may
//! share a name and a span of a chat may say in which message it counts (`"message": 1`).

use super::fields::kind_of;
use super::{CharSpan, Input};
use serde_json::Value;

pub(super) const REMEDY: &str = "spans are {\"name\": [start, end]} or [{\"name\": …, \"start\": …, \"end\": …}], \
     in characters from 0, `end` not included";

/// Reads the spans of `input`; the error says what is wrong with which.
pub(super) fn read(value: &Value, input: &Input) -> Result<Vec<CharSpan>, String> {
    let spans = match value {
        Value::Object(map) => map
            .iter()
            // Columnar files give every name to every row, null where there is no such span.
            .filter(|(_, range)| !range.is_null())
            .map(|(name, range)| pair(name, range))
            .collect::<Result<Vec<_>, _>>()?,
        Value::Array(items) => items.iter().map(item).collect::<Result<Vec<_>, _>>()?,
        other => {
            return Err(format!(
                "must be an object or an array, and is {}",
                kind_of(other)
            ));
        }
    };
    if spans.is_empty() {
        return Ok(spans);
    }
    let lengths: Vec<usize> = match input {
        Input::Text(text) => vec![text.chars().count()],
        Input::Messages(messages) => messages.iter().map(|(_, c)| c.chars().count()).collect(),
        Input::Tokens(_) => return Err("token ids have no characters to count".to_owned()),
    };
    for span in &spans {
        check(span, input, &lengths)?;
    }
    Ok(spans)
}

fn pair(name: &str, range: &Value) -> Result<CharSpan, String> {
    let ends = match range.as_array().map(Vec::as_slice) {
        Some([start, end]) => count(start).zip(count(end)),
        _ => None,
    };
    let (start, end) = ends.ok_or_else(|| format!("`{name}` is {range}, not [start, end]"))?;
    Ok(CharSpan {
        name: name.to_owned(),
        start,
        end,
        message: None,
    })
}

fn item(item: &Value) -> Result<CharSpan, String> {
    let name = item.get("name").and_then(Value::as_str);
    let start = item.get("start").and_then(count);
    let end = item.get("end").and_then(count);
    let message = match item.get("message") {
        None | Some(Value::Null) => Some(None),
        Some(value) => count(value).map(Some),
    };
    match (name, start, end, message) {
        (Some(name), Some(start), Some(end), Some(message)) => Ok(CharSpan {
            name: name.to_owned(),
            start,
            end,
            message,
        }),
        _ => Err(format!(
            "{item} lacks a `name`, or a whole number for `start`, `end` or `message`"
        )),
    }
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn check(span: &CharSpan, input: &Input, lengths: &[usize]) -> Result<(), String> {
    let CharSpan {
        name, start, end, ..
    } = span;
    if start >= end {
        return Err(format!("`{name}` [{start}, {end}] holds no character"));
    }
    let (what, length) = match (input, span.message) {
        (Input::Text(_), None) => ("the text", lengths.first()),
        (Input::Text(_), Some(n)) => {
            return Err(format!(
                "`{name}` counts in message {n}, but the input is a text"
            ));
        }
        // Over the whole chat: its length is known only once a template rendered it.
        (_, None) => return Ok(()),
        (_, Some(n)) => ("its message", lengths.get(n)),
    };
    match length {
        None => Err(format!(
            "`{name}` counts in message {} (from 0), and there are {}",
            span.message.unwrap_or_default(),
            lengths.len()
        )),
        Some(length) if end > length => Err(format!(
            "`{name}` ends at character {end}, and {what} has {length}"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(text: &str) -> Input {
        Input::Text(text.to_owned())
    }

    fn span(name: &str, start: usize, end: usize, message: Option<usize>) -> CharSpan {
        CharSpan {
            name: name.to_owned(),
            start,
            end,
            message,
        }
    }

    #[test]
    fn both_spellings_are_read_and_names_may_repeat() {
        let map = json!({"subject": [0, 5], "verb": [6, 8], "object": null});
        assert_eq!(
            read(&map, &text("Paris is big")).unwrap(),
            [span("subject", 0, 5, None), span("verb", 6, 8, None)]
        );
        let list = json!([{"name": "a", "start": 0, "end": 1}, {"name": "a", "start": 2, "end": 3, "message": null}]);
        assert_eq!(
            read(&list, &text("xyz")).unwrap(),
            [span("a", 0, 1, None), span("a", 2, 3, None)]
        );
    }

    #[test]
    fn characters_are_counted_not_bytes() {
        let all = json!({"all": [0, 3]});
        assert!(read(&all, &text("é🦀é")).is_ok());
        let beyond = json!({"all": [0, 4]});
        let error = read(&beyond, &text("é🦀é")).unwrap_err();
        assert!(
            error.contains("character 4") && error.contains("has 3"),
            "{error}"
        );
    }

    #[test]
    fn a_span_of_a_chat_counts_in_its_message() {
        let chat = Input::Messages(vec![
            ("user".to_owned(), "hello".to_owned()),
            ("assistant".to_owned(), "hi".to_owned()),
        ]);
        let spans = json!([{"name": "a", "start": 0, "end": 2, "message": 1}]);
        assert_eq!(read(&spans, &chat).unwrap(), [span("a", 0, 2, Some(1))]);
        for bad in [
            json!([{"name": "a", "start": 0, "end": 3, "message": 1}]),
            json!([{"name": "a", "start": 0, "end": 1, "message": 2}]),
            json!([{"name": "a", "start": 0, "end": 1, "message": -1}]),
        ] {
            assert!(read(&bad, &chat).is_err(), "{bad}");
        }
    }

    #[test]
    fn empty_reversed_and_malformed_spans_are_refused() {
        for bad in [
            json!({"a": [1, 1]}),
            json!({"a": [2, 1]}),
            json!({"a": [0]}),
            json!({"a": [0, 1, 2]}),
            json!({"a": [-1, 1]}),
            json!({"a": [0.5, 1]}),
            json!({"a": "0-1"}),
            json!("a"),
            json!(3),
            json!([[0, 1]]),
            json!([{"name": "a", "start": 0}]),
            json!([{"start": 0, "end": 1}]),
            json!([{"name": "a", "start": 0, "end": 1, "message": 0}]),
        ] {
            assert!(read(&bad, &text("abc")).is_err(), "{bad}");
        }
    }
}
