//! Rows by columns, a value a cell: blue above the middle of the scale, orange below it, the stronger the further off.

use super::axes::{LABEL, NAME};
use super::canvas::{Anchor, Canvas, fitted, width};
use super::{WIDTH, named, show, with_unit};
use crate::report::finding::{Axis, Labels};

/// Where a scale of colours has its middle, and how far from it the full colour is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) struct Shades {
    pub middle: f64,
    pub span: f64,
    pub low: f64,
    pub high: f64,
}

impl Shades {
    /// Zero in the middle, and as far to both sides as the largest value; a scale from the least value on where all are far
    /// from zero, since they would look alike.
    pub fn over(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 0.0);
        }
        let span = low.abs().max(high.abs());
        let positive = |span: f64| if span > 0.0 { span } else { 1.0 };
        if low > 0.4 * high && low > 0.0 {
            let span = positive(high - low);
            return Shades {
                middle: low,
                span,
                low,
                high,
            };
        }
        let low = if low < 0.0 { -span } else { 0.0 };
        let high = if high > 0.0 || low == 0.0 {
            positive(span)
        } else {
            0.0
        };
        Shades {
            middle: 0.0,
            span: positive(span),
            low,
            high,
        }
    }

    /// The class and the strength, 0 to 1, of a value.
    pub fn of(self, value: f64) -> (&'static str, f64) {
        let off = (value - self.middle) / self.span;
        (if off < 0.0 { "neg" } else { "pos" }, off.abs().min(1.0))
    }
}

/// Places of the cells.
struct Grid {
    left: f64,
    top: f64,
    cell: [f64; 2],
}

pub(super) fn draw(
    rows: &Labels,
    columns: &Labels,
    values: &[Vec<Option<f64>>],
    value: &Axis,
) -> Canvas {
    let (n_rows, n_columns) = (rows.labels.len().max(1), columns.labels.len().max(1));
    let row_names = rows.labels.iter().map(|label| width(label, LABEL));
    let left = row_names.fold(14.0, f64::max).min(180.0) + 34.0;
    let across = ((WIDTH - left - 12.0) / n_columns as f64).clamp(5.0, 44.0);
    let down = (620.0 / n_rows as f64).clamp(5.0, 24.0);
    let mut canvas = Canvas::new(WIDTH.max(left + across * n_columns as f64 + 12.0));
    let shades = Shades::over(values.iter().flatten().flatten().copied());
    let missing = values
        .iter()
        .take(n_rows)
        .flat_map(|row| row.iter().take(n_columns))
        .any(|value| finite(*value).is_none());
    draw_key(&mut canvas, shades, value, missing);
    let grid = Grid {
        left,
        top: 52.0,
        cell: [across, down],
    };
    let size = [across * n_columns as f64, down * n_rows as f64];
    canvas.rect("bg", [grid.left, grid.top], size, "", "");
    for (i, row) in rows.labels.iter().enumerate() {
        for (j, column) in columns.labels.iter().enumerate() {
            let found = values.get(i).and_then(|row| row.get(j)).copied().flatten();
            let place = format!("{} {row}\n{} {column}", rows.name, columns.name);
            draw_cell(
                &mut canvas,
                &grid,
                [i, j],
                finite(found),
                shades,
                value,
                &place,
            );
        }
    }
    draw_names(&mut canvas, &grid, rows, columns, size);
    canvas
}

fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

fn draw_cell(
    canvas: &mut Canvas,
    grid: &Grid,
    [i, j]: [usize; 2],
    found: Option<f64>,
    shades: Shades,
    axis: &Axis,
    place: &str,
) {
    let [w, h] = grid.cell;
    let at = [grid.left + w * j as f64, grid.top + h * i as f64];
    // A gap of half a pixel between cells, where they are not tiny.
    let gap = if w.min(h) >= 8.0 { 0.6 } else { 0.0 };
    let size = [w - gap, h - gap];
    let Some(value) = found else {
        canvas.rect("none", at, size, "", &format!("{place}\nno value"));
        return;
    };
    let (class, strength) = shades.of(value);
    let title = format!("{place}\n{} {}", axis.name, with_unit(value, &axis.unit));
    canvas.rect(
        class,
        at,
        size,
        &format!(r#" fill-opacity="{strength:.3}""#),
        &title,
    );
    // On paper nothing is shown on hover.
    let words = match format!("{value:.2}").as_str() {
        _ if value == 0.0 => "0".into(),
        "-0.00" => "0.00".into(),
        words => words.replace('-', "−"),
    };
    if w >= 32.0 && h >= 14.0 && value.abs() < 1000.0 {
        let ink = if strength > 0.55 {
            "on pass"
        } else {
            "ink pass"
        };
        canvas.text(
            ink,
            [at[0] + w / 2.0, at[1] + h / 2.0 + 3.6],
            Anchor::Middle,
            10.0,
            &words,
        );
    }
}

/// The scale of colours, above the grid.
fn draw_key(canvas: &mut Canvas, shades: Shades, value: &Axis, missing: bool) {
    const STEPS: usize = 41;
    let (x, y, wide) = (4.0, 20.0, 220.0);
    let name = fitted(&named(value), NAME, canvas.width - 120.0);
    canvas.text("ink", [x, 11.0], Anchor::Start, NAME, &name);
    canvas.rect("bg", [x, y], [wide, 10.0], "", "");
    for step in 0..STEPS {
        let share = (step as f64 + 0.5) / STEPS as f64;
        let (class, strength) = shades.of(shades.low + share * (shades.high - shades.low));
        let at = [x + wide * step as f64 / STEPS as f64, y];
        canvas.rect(
            class,
            at,
            [wide / STEPS as f64 + 0.2, 10.0],
            &format!(r#" fill-opacity="{strength:.3}""#),
            "",
        );
    }
    canvas.text(
        "muted",
        [x, y + 23.0],
        Anchor::Start,
        11.0,
        &show(shades.low),
    );
    canvas.text(
        "muted",
        [x + wide, y + 23.0],
        Anchor::End,
        11.0,
        &show(shades.high),
    );
    if shades.low < 0.0 && shades.high > 0.0 {
        canvas.text(
            "muted",
            [x + wide / 2.0, y + 23.0],
            Anchor::Middle,
            11.0,
            "0",
        );
    }
    if missing {
        canvas.rect("none", [x + wide + 24.0, y], [24.0, 10.0], "", "");
        canvas.text(
            "ink",
            [x + wide + 54.0, y + 9.5],
            Anchor::Start,
            LABEL,
            "no value",
        );
    }
}

fn draw_names(
    canvas: &mut Canvas,
    grid: &Grid,
    rows: &Labels,
    columns: &Labels,
    [wide, high]: [f64; 2],
) {
    let [w, h] = grid.cell;
    // Every so many rows are named that the names do not touch.
    let step = (13.0 / h).ceil() as usize;
    for (i, label) in rows.labels.iter().enumerate().step_by(step.max(1)) {
        let y = grid.top + h * (i as f64 + 0.5) + 4.0;
        canvas.text(
            "muted",
            [grid.left - 6.0, y],
            Anchor::End,
            LABEL,
            &fitted(label, LABEL, grid.left - 34.0),
        );
    }
    let longest = columns
        .labels
        .iter()
        .map(|label| width(label, LABEL))
        .fold(0.0, f64::max);
    // Short names stand level, several cells to a name if need be; long ones are turned.
    let level = longest <= w.max(30.0);
    let need = if level { longest + 6.0 } else { 14.0 };
    let step = (need / w).ceil() as usize;
    let below = grid.top + high;
    // The last one is always named: of positions that are counted from the end it is the one that matters.
    let skipped = columns.labels.len().saturating_sub(1) % step.max(1);
    let named = columns.labels.iter().enumerate().skip(skipped);
    for (j, label) in named.step_by(step.max(1)) {
        let x = grid.left + w * (j as f64 + 0.5);
        match level {
            true => canvas.text("muted", [x, below + 16.0], Anchor::Middle, LABEL, label),
            false => canvas.turned(
                "muted",
                [x + 4.0, below + 8.0],
                Anchor::End,
                LABEL,
                -90.0,
                &fitted(label, LABEL, 150.0),
            ),
        }
    }
    let names = if level {
        18.0
    } else {
        longest.min(150.0) + 14.0
    };
    canvas.text(
        "ink",
        [grid.left + wide / 2.0, below + names + 18.0],
        Anchor::Middle,
        NAME,
        &columns.name,
    );
    canvas.turned(
        "ink",
        [14.0, grid.top + high / 2.0],
        Anchor::Middle,
        NAME,
        -90.0,
        &rows.name,
    );
    canvas.height = below + names + 28.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_in_the_middle_where_signs_mix_and_equal_sizes_look_equally_strong() {
        let shades = Shades::over([-0.5, 0.25, f64::NAN].into_iter());
        assert_eq!(shades.of(0.0).1, 0.0);
        assert_eq!(
            (shades.of(-0.25), shades.of(0.25)),
            (("neg", 0.5), ("pos", 0.5))
        );
        assert_eq!((shades.low, shades.high), (-0.5, 0.5));
    }

    #[test]
    fn values_far_from_zero_have_a_scale_of_their_own() {
        let shades = Shades::over([0.9, 0.95, 1.0].into_iter());
        assert_eq!((shades.low, shades.high), (0.9, 1.0));
        assert_eq!(shades.of(0.9).1, 0.0);
        assert!((shades.of(0.95).1 - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_scale_of_nothing_of_one_value_and_of_zeros_is_finite() {
        for values in [vec![], vec![0.0], vec![2.0], vec![-2.0, -1.9]] {
            let shades = Shades::over(values.clone().into_iter());
            assert!(shades.span > 0.0 && shades.low <= shades.high, "{values:?}");
            let strength = shades.of(values.first().copied().unwrap_or(0.0)).1;
            assert!((0.0..=1.0).contains(&strength));
        }
    }

    #[test]
    fn of_many_columns_the_last_one_is_named() {
        let columns = Labels {
            name: "position from the end".into(),
            labels: (1..=53).rev().map(|i| format!("p{i}")).collect(),
        };
        let rows = Labels {
            name: "layer".into(),
            labels: vec!["0".into()],
        };
        let drawn = draw(
            &rows,
            &columns,
            &[vec![Some(0.5); 53]],
            &Axis::new("recovery", ""),
        );
        let words = drawn.inline("");
        assert!(words.contains(">p1<") && !words.contains(">p2<"), "{words}");
    }
}
