//! Numbers and exhibits as rows of a CSV, a line of names first; numbers in full.

use serde_json::Value;

use super::super::finding::{Bar, Body, Number, Series, Text};

type Rows = Vec<Vec<String>>;

fn line<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

fn ends(interval: Option<[f64; 2]>) -> [String; 2] {
    [0, 1].map(|end| number(interval.map(|ends| ends[end])))
}

pub(super) fn of_numbers(numbers: &[Number]) -> Rows {
    let mut rows = vec![line([
        "number",
        "value",
        "unit",
        "low",
        "high",
        "n",
        "published",
        "published_low",
        "published_high",
        "recomputed",
        "control",
        "control_value",
        "control_low",
        "control_high",
        "note",
    ])];
    for one in numbers {
        let [low, high] = ends(one.interval);
        let published = one.published.as_ref();
        let [published_low, published_high] =
            ends(published.and_then(|published| published.interval));
        let own = [
            one.name.clone(),
            number(one.value),
            one.unit.clone(),
            low,
            high,
            one.n.map_or(String::new(), |n| n.to_string()),
            number(published.map(|published| published.value)),
            published_low,
            published_high,
            published.map_or(String::new(), |published| published.recomputed.to_string()),
        ];
        // A number has a row for each of its controls, and one where it has none.
        let controls: Vec<[String; 4]> = match one.controls.as_slice() {
            [] => vec![Default::default()],
            controls => controls
                .iter()
                .map(|control| {
                    let [low, high] = ends(control.interval);
                    [control.name.clone(), control.value.to_string(), low, high]
                })
                .collect(),
        };
        for control in controls {
            rows.push(
                own.iter()
                    .cloned()
                    .chain(control)
                    .chain([one.note.clone()])
                    .collect(),
            );
        }
    }
    rows
}

pub(super) fn of_body(body: &Body) -> Rows {
    match body {
        Body::Lines {
            x,
            y,
            series,
            references,
        } => {
            let mut rows = of_series(&x.name, &y.name, series);
            for reference in references {
                rows.push(vec![
                    reference.name.clone(),
                    "reference".into(),
                    String::new(),
                    reference.at.to_string(),
                    String::new(),
                    String::new(),
                    String::new(),
                ]);
            }
            rows
        }
        Body::Scatter { x, y, series, .. } => of_series(&x.name, &y.name, series),
        Body::Bars { y, bars } => of_bars(&y.name, bars),
        Body::Heatmap {
            rows,
            columns,
            values,
            value,
        } => {
            let mut lines = vec![line([&rows.name, &columns.name, &value.name])];
            for (i, row) in rows.labels.iter().enumerate() {
                for (j, column) in columns.labels.iter().enumerate() {
                    let found = values.get(i).and_then(|row| row.get(j)).copied().flatten();
                    lines.push(vec![row.clone(), column.clone(), number(found)]);
                }
            }
            lines
        }
        Body::Tokens { value, texts } => of_texts(&value.name, texts),
        Body::Table { columns, rows } => {
            let mut lines = vec![columns.clone()];
            lines.extend(rows.iter().map(|row| {
                (0..columns.len())
                    .map(|j| row.get(j).map_or(String::new(), plain))
                    .collect()
            }));
            lines
        }
    }
}

fn of_series(x: &str, y: &str, series: &[Series]) -> Rows {
    let mut rows = vec![line(["series", "role", x, y, "low", "high", "label"])];
    for one in series {
        let role = if one.control { "control" } else { "measured" };
        for at in &one.points {
            rows.push(vec![
                one.name.clone(),
                role.into(),
                at.x.to_string(),
                number(at.y),
                number(at.low),
                number(at.high),
                at.label.clone(),
            ]);
        }
    }
    rows
}

/// A row a bar, and one for each of its prompts.
fn of_bars(y: &str, bars: &[Bar]) -> Rows {
    let mut rows = vec![line(["bar", "role", y, "low", "high", "published"])];
    for bar in bars {
        let role = if bar.control { "control" } else { "measured" };
        let [low, high] = ends(bar.interval);
        rows.push(vec![
            bar.name.clone(),
            role.into(),
            number(bar.value),
            low,
            high,
            number(bar.published),
        ]);
        for point in &bar.points {
            rows.push(vec![
                bar.name.clone(),
                "prompt".into(),
                point.to_string(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    rows
}

fn of_texts(value: &str, texts: &[Text]) -> Rows {
    let mut rows = vec![line(["text", "place", "token", value])];
    for text in texts {
        for (i, token) in text.tokens.iter().enumerate() {
            let found = text.values.get(i).copied().flatten();
            rows.push(vec![
                text.name.clone(),
                i.to_string(),
                token.clone(),
                number(found),
            ]);
        }
    }
    rows
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(words) => words.clone(),
        other => other.to_string(),
    }
}
