//! Tables of any columns. A long one shows its first rows, and the others on demand.

use serde_json::Value;

use super::super::chart::show;
use super::escape::text;

/// A column with a longer text than this, in characters, has its texts below the rows.
const LONG: usize = 60;
/// Rows that are always seen; on paper it is said where the others are.
const SHOWN: usize = 16;

pub(super) fn html(columns: &[String], rows: &[Vec<Value>]) -> String {
    // A few rows more are shown rather than hidden.
    let cut = if rows.len() <= SHOWN + 4 {
        rows.len()
    } else {
        SHOWN
    };
    let (first, others) = rows.split_at(cut);
    let mut html = table(columns, first);
    if !others.is_empty() {
        html.push_str(&format!(
            "<p class=\"on-paper\">The first {cut} of {} rows; the CSV has all.</p><details><summary>{} more rows</summary>{}</details>",
            rows.len(),
            others.len(),
            table(columns, others)
        ));
    }
    html
}

fn table(columns: &[String], rows: &[Vec<Value>]) -> String {
    let of = |j: usize| rows.iter().filter_map(move |row| row.get(j));
    let numeric = |j: usize| of(j).all(|value| value.is_number() || value.is_null());
    let is_long = |value: &Value| {
        value
            .as_str()
            .is_some_and(|words| words.chars().count() > LONG)
    };
    let (long, short): (Vec<usize>, Vec<usize>) =
        (0..columns.len()).partition(|&j| of(j).any(is_long));
    let class = |j: usize| if numeric(j) { " class=\"num\"" } else { "" };
    let mut html = String::from("<table>\n<thead><tr>");
    for &j in &short {
        html.push_str(&format!("<th{}>{}</th>", class(j), name(&columns[j])));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let shown = |row: &[Value], j: usize| row.get(j).map_or("–".into(), cell);
    for row in rows {
        let said = if long.is_empty() {
            ""
        } else {
            " class=\"said\""
        };
        html.push_str(&format!("<tr{said}>"));
        for &j in &short {
            html.push_str(&format!("<td{}>{}</td>", class(j), shown(row, j)));
        }
        html.push_str("</tr>\n");
        if !long.is_empty() {
            // Texts have the table's whole width, below what is said of them.
            html.push_str(&format!(
                "<tr><td colspan=\"{}\"><dl class=\"words\">",
                short.len().max(1)
            ));
            for &j in &long {
                html.push_str(&format!(
                    "<dt>{}</dt><dd>{}</dd>",
                    name(&columns[j]),
                    shown(row, j)
                ));
            }
            html.push_str("</dl></td></tr>\n");
        }
    }
    html.push_str("</tbody></table>");
    html
}

/// A column's name, which may be one that programs read.
fn name(column: &str) -> String {
    text(&column.replace('_', " "))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() => show(value),
            _ => text(&number.to_string()).replace('-', "−"),
        },
        Value::String(words) => text(words),
        other => text(&other.to_string()),
    }
}
