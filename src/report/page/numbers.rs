//! The table of an experiment's numbers: ours, published, the difference, and the controls each is to be read beside.

use super::super::chart::show;
use super::super::finding::{Number, Published};
use super::escape::text;

pub(super) fn html(numbers: &[Number]) -> String {
    let intervals = numbers.iter().any(|number| number.interval.is_some());
    let counts = numbers.iter().any(|number| number.n.is_some());
    let published = numbers.iter().any(|number| number.published.is_some());
    let controls = numbers.iter().any(|number| !number.controls.is_empty());

    let mut table = String::from(
        "<div class=\"scroll\"><table class=\"numbers\">\n<thead><tr><th>Number</th><th class=\"num\">Ours</th>",
    );
    let mut column = |there: bool, class: &str, name: &str| {
        if there {
            table.push_str(&format!("<th{class}>{name}</th>"));
        }
    };
    let right = " class=\"num\"";
    column(intervals, right, "95 % interval");
    column(published, right, "Published");
    column(published, right, "Difference");
    column(counts, right, "n");
    column(controls, "", "To be read beside");
    table.push_str("</tr></thead>\n<tbody>\n");
    for number in numbers {
        let mut row = format!(
            "<tr><th scope=\"row\">{}</th><td class=\"num ours\">{}</td>",
            name(number),
            value(number)
        );
        let mut cell = |there: bool, class: &str, html: String| {
            if there {
                row.push_str(&format!("<td{class}>{html}</td>"));
            }
        };
        cell(
            intervals,
            right,
            number.interval.map_or(String::new(), interval),
        );
        cell(
            published,
            right,
            number.published.as_ref().map_or(String::new(), printed),
        );
        cell(published, right, difference(number));
        cell(
            counts,
            right,
            number.n.map_or(String::new(), |n| n.to_string()),
        );
        cell(controls, "", controls_html(number));
        table.push_str(&row);
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody></table></div>\n");
    if numbers
        .iter()
        .filter_map(|number| number.published.as_ref())
        .any(|published| published.recomputed)
    {
        table.push_str("<p class=\"files\">° recomputed from the authors' saved results, not printed by them.</p>\n");
    }
    table
}

/// The name, and below it what is to be known of the number.
fn name(number: &Number) -> String {
    match number.note.as_str() {
        "" => text(&number.name),
        note => format!(
            "{}<div class=\"note\">{}</div>",
            text(&number.name),
            text(note)
        ),
    }
}

fn value(number: &Number) -> String {
    let Some(value) = number.value.filter(|value| value.is_finite()) else {
        return "–".into();
    };
    match number.unit.as_str() {
        "" => show(value),
        unit => format!("{} <small>{}</small>", show(value), text(unit)),
    }
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("[{}, {}]", show(low), show(high))
}

fn printed(published: &Published) -> String {
    let mark = if published.recomputed { "°" } else { "" };
    let ends = published.interval.map_or(String::new(), |ends| {
        format!("<br><small>{}</small>", interval(ends))
    });
    format!("{}{mark}{ends}", show(published.value))
}

fn difference(number: &Number) -> String {
    match (number.value, &number.published) {
        (Some(ours), Some(published)) if ours.is_finite() => {
            let difference = ours - published.value;
            let sign = if difference > 0.0 { "+" } else { "" };
            format!("{sign}{}", show(difference))
        }
        _ => String::new(),
    }
}

fn controls_html(number: &Number) -> String {
    let control = |control: &super::super::finding::Control| {
        let ends = control.interval.map_or(String::new(), |ends| {
            format!(" <small>{}</small>", interval(ends))
        });
        format!(
            "<div class=\"control\"><span>{}</span> <b>{}</b>{ends}</div>",
            text(&control.name),
            show(control.value)
        )
    };
    number.controls.iter().map(control).collect()
}
