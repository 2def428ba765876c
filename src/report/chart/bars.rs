//! Named values, one below the other: names of any length can be read.

use super::axes::{self, LABEL, Plot};
use super::canvas::{Anchor, Canvas, fitted, width};
use super::legend::{self, Key};
use super::marker::{Mark, outline};
use super::scale::Scale;
use super::{WIDTH, named, show, with_unit};
use crate::report::finding::{Axis, Bar};

/// More bars than these are drawn narrower.
const ROOMY: usize = 36;

pub(super) fn draw(y: &Axis, bars: &[Bar]) -> Canvas {
    let mut canvas = Canvas::new(WIDTH);
    // One colour for what is measured, one for controls: a bar's name tells which it is.
    let marks = Mark::all([false, true].into_iter());
    let top = legend::draw(&mut canvas, &keys(bars, &marks));
    let row = if bars.len() > ROOMY { 15.0 } else { 24.0 };
    let names = bars.iter().map(|bar| width(&bar.name, LABEL));
    let left = names.fold(40.0, f64::max).min(260.0) + 16.0;
    let plot = Plot {
        left,
        top,
        right: WIDTH - 70.0,
        bottom: top + row * bars.len().max(1) as f64,
    };
    let across = Scale::over(extent(bars), [plot.left, plot.right], 7, false);
    axes::horizontal(&mut canvas, plot, &across, &named(y), true);
    let zero = across.at(0.0);
    for (i, bar) in bars.iter().enumerate() {
        let middle = top + row * (i as f64 + 0.5);
        let mark = marks[usize::from(bar.control)];
        draw_bar(&mut canvas, &across, y, bar, mark, [middle, row]);
        let name = fitted(&bar.name, LABEL, left - 14.0);
        canvas.text(
            "ink",
            [left - 10.0, middle + 4.0],
            Anchor::End,
            LABEL,
            &name,
        );
        let value = bar.value.map_or("–".into(), show);
        canvas.text(
            "ink",
            [WIDTH - 4.0, middle + 4.0],
            Anchor::End,
            LABEL,
            &value,
        );
    }
    canvas.line("axis", [zero, plot.top], [zero, plot.bottom]);
    canvas.height = plot.bottom + axes::BELOW;
    canvas
}

fn keys<'a>(bars: &'a [Bar], marks: &[Mark]) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    if bars.iter().any(|bar| bar.control) {
        keys.push(Key::Bar(marks[0], "measured"));
        keys.push(Key::Bar(marks[1], "control"));
    }
    if bars.iter().any(|bar| interval(bar).is_some()) {
        keys.push(Key::Whisker);
    }
    if bars.iter().any(|bar| !bar.points.is_empty()) {
        keys.push(Key::Prompts);
    }
    if bars.iter().any(|bar| bar.published.is_some()) {
        keys.push(Key::Published);
    }
    keys
}

fn interval(bar: &Bar) -> Option<[f64; 2]> {
    bar.interval
        .filter(|ends| ends.iter().all(|end| end.is_finite()))
}

fn extent(bars: &[Bar]) -> impl Iterator<Item = f64> {
    let all = bars.iter().flat_map(|bar| {
        let ends = bar.interval.into_iter().flatten();
        let single = [bar.value, bar.published].into_iter().flatten();
        ends.chain(single).chain(bar.points.iter().copied())
    });
    all.chain([0.0])
}

fn draw_bar(
    canvas: &mut Canvas,
    across: &Scale,
    y: &Axis,
    bar: &Bar,
    mark: Mark,
    [middle, row]: [f64; 2],
) {
    let thick = row * 0.62;
    let title = title(bar, y);
    // The whole row tells its value, but for what is drawn on it.
    let (left, right) = (across.at(across.low), across.at(across.high));
    canvas.rect(
        "hit",
        [left, middle - row / 2.0],
        [0.0f64.max(right - left), row],
        "",
        &title,
    );
    if let Some(value) = bar.value.filter(|value| value.is_finite()) {
        let (zero, end) = (across.at(0.0), across.at(value));
        let size = [(end - zero).abs().max(1.0), thick];
        canvas.rect(
            &format!("bar {}", mark.fill()),
            [zero.min(end), middle - thick / 2.0],
            size,
            "",
            &title,
        );
    }
    for (i, &point) in bar
        .points
        .iter()
        .enumerate()
        .filter(|(_, point)| point.is_finite())
    {
        // Spread over the bar's thickness, so that equal values show as several.
        let offset = ((i * 7 + 3) % 11) as f64 / 10.0 - 0.5;
        let place = [across.at(point), middle + offset * thick * 0.7];
        canvas.path(
            "point",
            &outline(0, place, 2.2),
            &format!("{}\none prompt: {}", bar.name, with_unit(point, &y.unit)),
        );
    }
    if let Some(ends) = interval(bar) {
        let [low, high] = ends.map(|end| across.at(end));
        canvas.line("whisker", [low, middle], [high, middle]);
        for end in [low, high] {
            canvas.line("whisker", [end, middle - 4.0], [end, middle + 4.0]);
        }
    }
    if let Some(published) = bar.published.filter(|value| value.is_finite()) {
        canvas.path(
            "published",
            &outline(3, [across.at(published), middle], 4.2),
            &title,
        );
    }
}

fn title(bar: &Bar, y: &Axis) -> String {
    let mut lines = vec![bar.name.clone()];
    match bar.value {
        Some(value) => lines.push(format!("{} {}", y.name, with_unit(value, &y.unit))),
        None => lines.push("no value".into()),
    }
    if let Some([low, high]) = interval(bar) {
        lines.push(format!("95 % interval [{}, {}]", show(low), show(high)));
    }
    if let Some(published) = bar.published {
        lines.push(format!("published {}", show(published)));
    }
    lines.join("\n")
}
