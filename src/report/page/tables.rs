//! Tables of any columns. A long one shows its first rows, and the others on demand.

use serde_json::Value;

use super::super::chart::show;
use super::escape::text;

/// Rows that are always seen, on paper too.
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
            "<details><summary>{} more rows</summary>{}</details>",
            others.len(),
            table(columns, others)
        ));
    }
    html
}

fn table(columns: &[String], rows: &[Vec<Value>]) -> String {
    let numeric: Vec<bool> = (0..columns.len())
        .map(|j| {
            rows.iter()
                .filter_map(|row| row.get(j))
                .all(|value| value.is_number() || value.is_null())
        })
        .collect();
    let class = |j: usize| if numeric[j] { " class=\"num\"" } else { "" };
    let mut html = String::from("<table>\n<thead><tr>");
    for (j, column) in columns.iter().enumerate() {
        html.push_str(&format!("<th{}>{}</th>", class(j), text(column)));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for j in 0..columns.len() {
            html.push_str(&format!(
                "<td{}>{}</td>",
                class(j),
                row.get(j).map_or("–".into(), cell)
            ));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>");
    html
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
        Value::String(words) if words.chars().count() > 48 => {
            format!("<div class=\"long\">{}</div>", text(words))
        }
        Value::String(words) => text(words),
        other => text(&other.to_string()),
    }
}
