//! Texts token by token, coloured by a value: blue above, orange below, the stronger the further off.

use super::super::chart::{self, Shades};
use super::super::finding::{Axis, Text};
use super::escape::{seen, text};

pub(super) fn html(value: &Axis, texts: &[Text]) -> String {
    let shades = Shades::over(
        texts
            .iter()
            .flat_map(|text| &text.values)
            .flatten()
            .copied(),
    );
    let mut html = key(value, shades);
    for one in texts {
        html.push_str(&format!(
            "<div class=\"text\"><h4>{}</h4><p>",
            text(&one.name)
        ));
        for (i, token) in one.tokens.iter().enumerate() {
            let found = one
                .values
                .get(i)
                .copied()
                .flatten()
                .filter(|value| value.is_finite());
            html.push_str(&token_html(token, found, shades, value));
        }
        html.push_str("</p></div>\n");
    }
    html
}

fn token_html(token: &str, found: Option<f64>, shades: Shades, axis: &Axis) -> String {
    let words = text(&seen(token));
    // Where the text has a line end, so has the page.
    let end = if token.contains('\n') { "<br>" } else { "" };
    match found {
        None => format!("<span class=\"tk\">{words}</span>{end}"),
        Some(value) => {
            let (class, strength) = shades.of(value);
            let title = text(&format!(
                "{} {}",
                axis.name,
                chart::with_unit(value, &axis.unit)
            ));
            format!(
                "<span class=\"tk {class}\" style=\"--a:{strength:.2}\" title=\"{title}\">{words}</span>{end}"
            )
        }
    }
}

fn key(value: &Axis, shades: Shades) -> String {
    let sample = |at: f64| {
        let (class, strength) = shades.of(at);
        format!(
            "<span class=\"tk {class}\" style=\"--a:{strength:.2}\"> {} </span>",
            chart::show(at)
        )
    };
    let middle = (shades.low + shades.high) / 2.0;
    let samples: String = [shades.low, middle, shades.high].map(sample).concat();
    format!(
        "<p class=\"key\">{} {samples}</p>\n",
        text(&chart::named(value))
    )
}
