//! An exhibit in the page: a figure with its caption and its files.

use super::super::chart;
use super::super::finding::{Body, Exhibit};
use super::escape::text;
use super::{EXHIBITS, tables, tokens};

pub(super) fn html(exhibit: &Exhibit) -> String {
    let name = text(&exhibit.name);
    let (kind, body) = match &exhibit.body {
        Body::Tokens { value, texts } => ("tokens", tokens::html(value, texts)),
        Body::Table { columns, rows } => ("table", tables::html(columns, rows)),
        Body::Lines { .. } | Body::Scatter { .. } | Body::Bars { .. } | Body::Heatmap { .. } => {
            let drawing = chart::draw(exhibit).map(|canvas| canvas.inline(&exhibit.caption));
            ("plot", drawing.unwrap_or_default())
        }
    };
    let mut files = format!("<a href=\"./{EXHIBITS}/{name}.csv\">CSV</a>");
    if kind == "plot" {
        for extension in ["svg", "png"] {
            let shown = extension.to_uppercase();
            files.push_str(&format!(
                " · <a href=\"./{EXHIBITS}/{name}.{extension}\">{shown}</a>"
            ));
        }
    }
    format!(
        "<figure id=\"{name}\" class=\"{kind}\">\n<div class=\"scroll\">{body}</div>\n<figcaption>{} <span class=\"files\">{files}</span></figcaption>\n</figure>\n",
        text(&exhibit.caption)
    )
}
