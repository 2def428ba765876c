//! What the analyses draw of their tables: exhibits, as SVG and PNG beside the CSV.

use std::path::Path;

use super::super::{CliResult, store_taps};
use crate::report::chart;
use crate::report::finding::{At, Axis, Bar, Body, Exhibit, Labels, Reference, Series};

/// Draws `body` into `DIR/NAME.svg` and `.png`.
pub fn save(dir: &Path, name: &str, caption: impl Into<String>, body: Body) -> CliResult {
    let exhibit = Exhibit {
        name: name.into(),
        caption: caption.into(),
        body,
    };
    if let Some(drawing) = chart::draw(&exhibit) {
        drawing.save(&exhibit.caption, &dir.join(name))?;
    }
    Ok(())
}

/// An axis; no unit for a ratio.
pub fn axis(name: &str, unit: &str) -> Axis {
    Axis {
        name: name.into(),
        unit: unit.into(),
    }
}

/// A value for each tap, with the ends of what is told of its spread: curves over layers where every tap is of a layer of its own, else bars.
pub fn by_tap(value: Axis, taps: &[(&str, f64, [f64; 2])]) -> Body {
    let layers: Option<Vec<usize>> = taps.iter().map(|t| store_taps::layer(t.0)).collect();
    let site = |t: &(&str, f64, [f64; 2])| store_taps::site(t.0);
    match layers {
        Some(layers) if layers.is_sorted_by(|a, b| a < b) && layers.len() > 1 => Body::Lines {
            x: axis("layer", ""),
            y: value,
            series: vec![Series {
                name: taps.first().map(site).unwrap_or_default(),
                control: false,
                points: layers
                    .iter()
                    .zip(taps)
                    .map(|(&layer, &(tap, value, [low, high]))| At {
                        x: layer as f64,
                        y: Some(value),
                        low: Some(low),
                        high: Some(high),
                        label: tap.into(),
                    })
                    .collect(),
            }],
            references: Vec::new(),
        },
        _ => Body::Bars {
            y: value,
            bars: taps
                .iter()
                .map(|&(tap, value, interval)| bar(tap, value, interval))
                .collect(),
        },
    }
}

pub fn bar(name: &str, value: f64, interval: [f64; 2]) -> Bar {
    Bar {
        name: name.into(),
        value: Some(value),
        interval: Some(interval),
        control: false,
        points: Vec::new(),
        published: None,
    }
}

/// `[rows][columns]` with their names.
pub fn heatmap(
    rows: (&str, Vec<String>),
    columns: (&str, Vec<String>),
    values: Vec<Vec<f64>>,
    value: Axis,
) -> Body {
    let labels = |(name, labels): (&str, Vec<String>)| Labels {
        name: name.into(),
        labels,
    };
    Body::Heatmap {
        rows: labels(rows),
        columns: labels(columns),
        values: values
            .into_iter()
            .map(|row| row.into_iter().map(Some).collect())
            .collect(),
        value,
    }
}

/// A curve for each name.
pub fn curves(x: Axis, y: Axis, named: Vec<(String, Vec<(f64, f64)>)>, zero: bool) -> Body {
    let point = |(x, y): (f64, f64)| At {
        x,
        y: y.is_finite().then_some(y),
        low: None,
        high: None,
        label: String::new(),
    };
    let line = |(name, points): (String, Vec<(f64, f64)>)| Series {
        name,
        control: false,
        points: points.into_iter().map(point).collect(),
    };
    let zero = zero.then(|| Reference {
        name: "zero".into(),
        at: 0.0,
    });
    Body::Lines {
        x,
        y,
        series: named.into_iter().map(line).collect(),
        references: zero.into_iter().collect(),
    }
}
