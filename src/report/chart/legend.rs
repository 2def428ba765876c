//! The legend: rows of keys above the plot.

use super::canvas::{Anchor, Canvas, fitted, width};
use super::marker::{Mark, outline};

const SIZE: f64 = 13.0;
const KEY: f64 = 34.0;
const ROW: f64 = 22.0;

/// What a legend explains.
pub(super) enum Key<'a> {
    Series(Mark, &'a str),
    Points(Mark, &'a str),
    Bar(Mark, &'a str),
    Reference(&'a str),
    Interval,
    Whisker,
    Prompts,
    Published,
}

impl Key<'_> {
    fn name(&self) -> &str {
        match self {
            Key::Series(_, name)
            | Key::Points(_, name)
            | Key::Bar(_, name)
            | Key::Reference(name) => name,
            Key::Interval | Key::Whisker => "95 % interval",
            Key::Prompts => "single values",
            Key::Published => "published",
        }
    }

    fn draw(&self, canvas: &mut Canvas, [x, y]: [f64; 2]) {
        let middle = [x + 12.0, y];
        match self {
            Key::Series(mark, _) => {
                canvas.line(&mark.stroke(), [x, y], [x + 24.0, y]);
                mark.put(canvas, middle, 3.6, "");
            }
            Key::Points(mark, _) => mark.put(canvas, middle, 4.2, ""),
            Key::Bar(mark, _) => {
                canvas.rect(
                    &format!("bar {}", mark.fill()),
                    [x, y - 5.0],
                    [24.0, 10.0],
                    "",
                    "",
                );
            }
            Key::Reference(_) => canvas.line("reference", [x, y], [x + 24.0, y]),
            Key::Interval => canvas.rect("band f0", [x, y - 6.0], [24.0, 12.0], "", ""),
            Key::Whisker => canvas.line("whisker", [x, y], [x + 24.0, y]),
            Key::Prompts => canvas.path("point", &outline(0, middle, 2.6), ""),
            Key::Published => canvas.path("published", &outline(3, middle, 4.2), ""),
        }
    }
}

/// Draws the keys from the top of the canvas; returns where the plot may start.
pub(super) fn draw(canvas: &mut Canvas, keys: &[Key<'_>]) -> f64 {
    let (mut x, mut y) = (4.0, 14.0);
    let room = canvas.width - KEY - 8.0;
    for key in keys {
        let name = fitted(key.name(), SIZE, room);
        let wide = KEY + width(&name, SIZE) + 18.0;
        if x > 4.0 && x + wide > canvas.width {
            (x, y) = (4.0, y + ROW);
        }
        key.draw(canvas, [x, y]);
        canvas.text("ink", [x + KEY - 4.0, y + 4.5], Anchor::Start, SIZE, &name);
        x += wide;
    }
    if keys.is_empty() { 12.0 } else { y + ROW - 2.0 }
}
