//! The frame of a plot: gridlines, ticks, and the axes' names.

use super::canvas::{Anchor, Canvas, width};
use super::number::tick;
use super::scale::Scale;

pub(super) const LABEL: f64 = 12.0;
pub(super) const NAME: f64 = 13.0;

/// The rectangle that data is drawn in.
#[derive(Clone, Copy)]
pub(super) struct Plot {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

/// Distance of the lines of a vertical axis's name.
const LINE: f64 = 15.0;

/// An axis's name in lines of at most this length, between words.
pub(super) fn wrapped(name: &str, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in name.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), NAME) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// Room that the labels of a vertical axis and the lines of its name take at its left.
pub(super) fn left_of(scale: &Scale, name: &[String]) -> f64 {
    let labels = scale
        .ticks
        .iter()
        .map(|&at| width(&tick(at, scale.step), LABEL));
    labels.fold(16.0, f64::max) + 34.0 + LINE * name.len().saturating_sub(1) as f64
}

/// Room below a plot for ticks and name.
pub(super) const BELOW: f64 = 46.0;

pub(super) fn horizontal(canvas: &mut Canvas, plot: Plot, scale: &Scale, name: &str, grid: bool) {
    for &at in &scale.ticks {
        let x = scale.at(at);
        if grid {
            canvas.line("grid", [x, plot.top], [x, plot.bottom]);
        }
        canvas.line("axis", [x, plot.bottom], [x, plot.bottom + 4.0]);
        canvas.text(
            "muted",
            [x, plot.bottom + 18.0],
            Anchor::Middle,
            LABEL,
            &tick(at, scale.step),
        );
    }
    canvas.line("axis", [plot.left, plot.bottom], [plot.right, plot.bottom]);
    let middle = (plot.left + plot.right) / 2.0;
    canvas.text(
        "ink",
        [middle, plot.bottom + 38.0],
        Anchor::Middle,
        NAME,
        name,
    );
}

pub(super) fn vertical(canvas: &mut Canvas, plot: Plot, scale: &Scale, name: &[String]) {
    for &at in &scale.ticks {
        let y = scale.at(at);
        canvas.line("grid", [plot.left, y], [plot.right, y]);
        canvas.text(
            "muted",
            [plot.left - 8.0, y + 4.0],
            Anchor::End,
            LABEL,
            &tick(at, scale.step),
        );
    }
    if scale.has(0.0) && scale.low < 0.0 {
        let y = scale.at(0.0);
        canvas.line("axis", [plot.left, y], [plot.right, y]);
    }
    let middle = (plot.top + plot.bottom) / 2.0;
    for (i, line) in name.iter().enumerate() {
        let x = 14.0 + LINE * i as f64;
        canvas.turned("ink", [x, middle], Anchor::Middle, NAME, -90.0, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_longer_than_its_axis_goes_over_several_lines_and_loses_nothing() {
        let name = "shift of the log-odds towards the answer that is not honest (nat)";
        let lines = wrapped(name, 300.0);
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line, NAME) <= 300.0));
        assert_eq!(lines.join(" "), name);
        assert_eq!(wrapped("accuracy", 300.0), ["accuracy"]);
    }
}
