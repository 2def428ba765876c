//! The Jinja environment of chat templates, as `transformers` sets it up: blocks trimmed, loop controls, `raise_exception`,
//! `strftime_now`, a `tojson` that doesn't escape HTML, Python's methods on strings and maps.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, escape_formatter};

/// The environment; `now` is what `strftime_now` tells, in UTC.
pub(super) fn environment(now: SystemTime) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    env.set_syntax(syntax);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Bool if value.is_true() => escape_formatter(out, state, &Value::from("True")),
        ValueKind::Bool => escape_formatter(out, state, &Value::from("False")),
        ValueKind::None => escape_formatter(out, state, &Value::from("None")),
        _ => escape_formatter(out, state, value),
    });
    env.add_filter("tojson", tojson);
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    env.add_function("strftime_now", move |format: String| strftime(&format, now));
    Ok(env)
}

/// Replaces `{% generation %}` (which only marks what a model wrote) by a block that does nothing but open a scope.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner = tag[2..].trim_start_matches(['-', '+']);
        let word = inner.trim_start();
        let replaced = [("generation", "with"), ("endgeneration", "endwith")]
            .into_iter()
            .find_map(|(name, plain)| {
                let after = word.strip_prefix(name)?;
                let close = after.trim_start().trim_start_matches(['-', '+']);
                close.starts_with("%}").then_some((plain, after))
            });
        match replaced {
            Some((plain, after)) => {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(plain);
                rest = after;
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out + rest
}

fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let mut writer = Json {
        out: String::new(),
        indent,
        // Python's defaults; with an indent, items are separated by the line's end alone.
        item: if indent.is_some() { "," } else { ", " }.to_string(),
        key: ": ".to_string(),
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    if let Some([item, key]) = separators.as_deref() {
        (writer.item, writer.key) = (item.clone(), key.clone());
    }
    kwargs.assert_all_used()?;
    writer.write(&value, 0)?;
    Ok(writer.out)
}

/// Writes values as Python's `json.dumps` does.
struct Json {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    sort: bool,
    ascii: bool,
}

impl Json {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self
                .out
                .push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list("[", "]", items, depth, |json, item, depth| {
                    json.write(&item, depth)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list("{", "}", keys, depth, |json, key, depth| {
                    json.string(&key.to_string());
                    json.out.push_str(&json.key.clone());
                    json.write(&value.get_item(&key)?, depth)
                })?;
            }
            other => {
                let why = format!("a value of type {other} has no JSON form");
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: &str,
        close: &str,
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item, depth + 1)?;
        }
        if !empty {
            self.line(depth);
        }
        self.out.push_str(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.push_str(&" ".repeat(width * depth));
        }
    }

    fn string(&mut self, text: &str) {
        // serde_json escapes exactly what Python does when it keeps non-ASCII characters.
        let quoted = Value::from(text).to_string();
        let quoted = serde_json::to_string(&quoted).unwrap_or_default();
        if !self.ascii {
            self.out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    self.out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// A float as Python's `repr` writes it.
fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// `datetime.strftime`, for the directives that chat templates use, in UTC.
fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let weekday = DAYS[(days % 7) as usize];
    let (year, month, day) = civil(days);
    let name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        let (plain, directive) = match directive {
            Some('-') => (true, chars.next()),
            other => (false, other),
        };
        let mut number = |n: u64| {
            out.push_str(&if plain {
                n.to_string()
            } else {
                format!("{n:02}")
            });
        };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('H') => number(of_day / 3600),
            Some('I') => number((of_day / 3600 + 11) % 12 + 1),
            Some('M') => number(of_day / 60 % 60),
            Some('S') => number(of_day % 60),
            Some('p') => out.push_str(if of_day < 43_200 { "AM" } else { "PM" }),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(&name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('%') => out.push('%'),
            other => {
                let why = format!(
                    "strftime_now: directive %{} is not known",
                    other.unwrap_or(' ')
                );
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
    }
    Ok(out)
}

/// Year, month (from 1) and day (from 1) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    loop {
        let length = match month {
            2 => 28 + u64::from(leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if days < length {
            return (year, month, days + 1);
        }
        days -= length;
        month += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_told_in_utc() {
        let leap_day = UNIX_EPOCH + Duration::from_secs(1_709_210_096); // 2024-02-29 12:34:56 UTC, a Thursday
        let said = |format| strftime(format, leap_day).unwrap();
        assert_eq!(said("%d %b %Y"), "29 Feb 2024");
        assert_eq!(
            said("%A, %B %-d, %y %H:%M:%S %I%p 100%%"),
            "Thursday, February 29, 24 12:34:56 12PM 100%"
        );
        assert_eq!(
            strftime("%Y-%m-%d %a", UNIX_EPOCH).unwrap(),
            "1970-01-01 Thu"
        );
        assert!(strftime("%Q", leap_day).is_err());
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (123456789.0, "123456789.0"),
            (-0.0, "-0.0"),
            (1e-4, "0.0001"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }

    #[test]
    fn generation_tags_become_scopes_and_keep_their_whitespace_control() {
        let source = "a{%- generation -%} b {% endgeneration %}{% if generation %}c{% endif %}{%";
        let plain = "a{%- with -%} b {% endwith %}{% if generation %}c{% endif %}{%";
        assert_eq!(without_generation_tags(source), plain);
    }
}
