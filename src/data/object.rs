//! One JSON object, of which the wanted fields are kept and the others passed over.

use super::error::{SAVE_AS_UTF8, not_utf8};
use super::fields::Wanted;
use super::source::Cell;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A message lists at most this many of a record's fields.
const NAMES_LISTED: usize = 20;

/// Why an object could not be read.
pub(super) struct Flaw {
    pub what: String,
    pub remedy: Cow<'static, str>,
    /// Line within the object's text, from 1.
    pub line: u64,
}

/// The wanted cells of an object and the names of its fields.
type Object = (Vec<Option<Cell>>, Arc<[String]>);

/// Reads `json`, an object and nothing after it. Nesting deeper than serde_json's 128 levels is an error.
pub(super) fn parse(json: &[u8], wanted: &Wanted) -> Result<Object, Flaw> {
    let text = std::str::from_utf8(json).map_err(|error| Flaw {
        what: not_utf8(error),
        remedy: SAVE_AS_UTF8.into(),
        line: 1 + json[..error.valid_up_to()]
            .iter()
            .filter(|&&b| b == b'\n')
            .count() as u64,
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    ObjectSeed(wanted)
        .deserialize(&mut deserializer)
        .and_then(|object| deserializer.end().map(|()| object))
        .map_err(|error| {
            let message = error.to_string();
            let at = format!(" at line {} column {}", error.line(), error.column());
            Flaw {
                what: format!(
                    "not a JSON object we can read: {} at column {}",
                    message.strip_suffix(&at).unwrap_or(&message),
                    error.column()
                ),
                remedy: "correct the JSON".into(),
                line: error.line() as u64,
            }
        })
}

/// What is wrong with a record of more than `limit` bytes.
pub(super) fn too_long(limit: usize) -> Flaw {
    Flaw {
        what: format!("a record longer than {limit} bytes"),
        remedy: "split it, or check that the file is what its extension says".into(),
        line: 1,
    }
}

struct ObjectSeed<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = Object;

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Object, D::Error> {
        // `any`, so that a string or a number is reported as what it is.
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut cells = vec![None; self.0.names().len()];
        let mut names = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match self.0.slot(&name) {
                // Which of the two is meant? Parsers differ, so we do not choose.
                Some(slot) if cells[slot].is_some() => {
                    return Err(A::Error::custom(format!("field `{name}` appears twice")));
                }
                Some(slot) => cells[slot] = Some(Cell::Json(map.next_value::<Value>()?)),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            if names.len() < NAMES_LISTED {
                names.push(name);
            }
        }
        Ok((cells, names.into()))
    }
}
