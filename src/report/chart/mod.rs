//! Exhibits as SVG: curves, bars, points in a plane, heatmaps. One drawing serves the page, where CSS gives it the page's
//! colours, light or dark, and the file beside it, which carries its own. Legends stand above the plot, never on it; every
//! value has a `<title>`, which a browser shows on hover.

mod axes;
mod bars;
mod canvas;
mod curves;
mod heatmap;
mod legend;
mod marker;
mod number;
mod scale;

pub use canvas::Canvas;
pub(super) use heatmap::Shades;
pub use number::show;

use super::finding::{Axis, Body, Exhibit};
use curves::Lines;

/// Width that a chart is laid out for, in CSS pixels; a heatmap of many columns is wider.
const WIDTH: f64 = 720.0;

/// The exhibit's drawing; `None` for texts and tables, which are not drawn.
pub fn draw(exhibit: &Exhibit) -> Option<Canvas> {
    let canvas = match &exhibit.body {
        Body::Lines {
            x,
            y,
            series,
            references,
        } => curves::draw(x, y, series, &Lines::Joined(references)),
        Body::Scatter {
            x,
            y,
            series,
            diagonal,
        } => curves::draw(x, y, series, &Lines::Points(diagonal.as_deref())),
        Body::Bars { y, bars } => bars::draw(y, bars),
        Body::Heatmap {
            rows,
            columns,
            values,
            value,
        } => heatmap::draw(rows, columns, values, value),
        Body::Tokens { .. } | Body::Table { .. } => return None,
    };
    Some(canvas)
}

/// `recovery`, or `KL (nat)`.
pub(super) fn named(axis: &Axis) -> String {
    match axis.unit.as_str() {
        "" => axis.name.clone(),
        unit => format!("{} ({unit})", axis.name),
    }
}

/// A value with its unit, as it is shown on hover.
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "" => show(value),
        unit => format!("{} {unit}", show(value)),
    }
}
