//! Curves over an axis, and points in a plane.

use std::fmt::Write as _;

use super::axes::{self, Plot};
use super::canvas::Canvas;
use super::legend::{self, Key};
use super::marker::{Mark, outline};
use super::scale::Scale;
use super::{WIDTH, named, with_unit};
use crate::report::finding::{At, Axis, Reference, Series};

const HEIGHT: f64 = 300.0;
/// More points than these have no mark of their own, a curve being enough.
const MARKED: usize = 64;

/// How points stand, and the lines they are seen against.
pub(super) enum Lines<'a> {
    /// Points of a series are joined, and have their intervals as a band; horizontal lines.
    Joined(&'a [Reference]),
    /// Each stands alone, with a whisker; the line y = x, by what it means.
    Points(Option<&'a str>),
}

pub(super) fn draw(x: &Axis, y: &Axis, series: &[Series], lines: &Lines<'_>) -> Canvas {
    let (joined, references, diagonal) = match *lines {
        Lines::Joined(references) => (true, references, None),
        Lines::Points(diagonal) => (false, &[][..], diagonal),
    };
    let mut canvas = Canvas::new(WIDTH);
    let marks = Mark::all(series.iter().map(|series| series.control));
    let top = legend::draw(&mut canvas, &keys(series, &marks, lines));
    let shape = |scale: Scale, left: f64| {
        let plot = Plot {
            left,
            top,
            right: WIDTH - 16.0,
            bottom: top + HEIGHT,
        };
        (plot, scale)
    };
    let heights = Scale::over(y_values(series, references), [top + HEIGHT, top], 7, false);
    let name = axes::wrapped(&named(y), HEIGHT);
    let left = axes::left_of(&heights, &name);
    let (plot, heights) = shape(heights, left);
    let whole = places(series).all(|x| x.fract() == 0.0);
    let across = Scale::over(places(series), [plot.left, plot.right], 12, whole);
    axes::vertical(&mut canvas, plot, &heights, &name);
    axes::horizontal(&mut canvas, plot, &across, &named(x), !joined);
    for reference in references
        .iter()
        .filter(|reference| heights.has(reference.at))
    {
        let y = heights.at(reference.at);
        canvas.line("reference", [plot.left, y], [plot.right, y]);
    }
    if diagonal.is_some() {
        let ends = [across.low.max(heights.low), across.high.min(heights.high)];
        let [from, to] = ends.map(|end| [across.at(end), heights.at(end)]);
        if ends[0] < ends[1] {
            canvas.line("reference", from, to);
        }
    }
    let frame = Frame {
        across: &across,
        heights: &heights,
        x,
        y,
    };
    // Controls first: they lie behind.
    let mut order: Vec<_> = series.iter().zip(&marks).collect();
    order.sort_by_key(|(series, _)| !series.control);
    for &(series, mark) in &order {
        frame.draw(&mut canvas, series, *mark, joined);
    }
    canvas.height = plot.bottom + axes::BELOW;
    canvas
}

fn keys<'a>(series: &'a [Series], marks: &[Mark], lines: &Lines<'a>) -> Vec<Key<'a>> {
    let joined = matches!(lines, Lines::Joined(_));
    let mut keys: Vec<Key<'a>> = series
        .iter()
        .zip(marks)
        .map(|(series, &mark)| match joined {
            true => Key::Series(mark, &series.name),
            false => Key::Points(mark, &series.name),
        })
        .collect();
    let intervals = series
        .iter()
        .flat_map(|series| &series.points)
        .any(|at| interval(at).is_some());
    if intervals {
        keys.push(if joined { Key::Interval } else { Key::Whisker });
    }
    match *lines {
        Lines::Joined(references) => {
            keys.extend(references.iter().map(|r| Key::Reference(&r.name)));
        }
        Lines::Points(diagonal) => keys.extend(diagonal.map(Key::Reference)),
    }
    keys
}

fn interval(at: &At) -> Option<[f64; 2]> {
    let ends = [at.low?, at.high?];
    ends.iter().all(|end| end.is_finite()).then_some(ends)
}

/// The point's value where it can be placed.
fn placed(at: &At) -> Option<f64> {
    at.y.filter(|y| y.is_finite() && at.x.is_finite())
}

fn places(series: &[Series]) -> impl Iterator<Item = f64> {
    let points = series.iter().flat_map(|series| &series.points);
    points.filter(|at| placed(at).is_some()).map(|at| at.x)
}

fn y_values(series: &[Series], references: &[Reference]) -> impl Iterator<Item = f64> {
    let points = series.iter().flat_map(|series| &series.points);
    points
        .flat_map(|at| [placed(at), at.low, at.high])
        .flatten()
        .chain(references.iter().map(|reference| reference.at))
}

struct Frame<'a> {
    across: &'a Scale,
    heights: &'a Scale,
    x: &'a Axis,
    y: &'a Axis,
}

impl Frame<'_> {
    fn draw(&self, canvas: &mut Canvas, series: &Series, mark: Mark, joined: bool) {
        // Runs of points without a gap.
        for run in series
            .points
            .split(|at| placed(at).is_none())
            .filter(|run| !run.is_empty())
        {
            if joined {
                self.band(canvas, run, mark);
                canvas.path(
                    &mark.stroke(),
                    &self.curve(run.iter().filter_map(|at| Some([at.x, at.y?]))),
                    "",
                );
            } else {
                self.whiskers(canvas, run);
            }
        }
        let bare = joined && series.points.len() > MARKED;
        for at in &series.points {
            let Some(value) = placed(at) else { continue };
            let place = [self.across.at(at.x), self.heights.at(value)];
            let title = self.title(series, at, value);
            match (bare, joined) {
                (true, _) => canvas.path("hit", &outline(0, place, 5.0), &title),
                (false, true) => mark.put(canvas, place, 3.6, &title),
                (false, false) => mark.put(canvas, place, 4.2, &title),
            }
        }
    }

    fn curve(&self, points: impl Iterator<Item = [f64; 2]>) -> String {
        let mut d = String::new();
        for (i, [x, y]) in points.enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ = write!(
                d,
                "{letter}{:.1} {:.1}",
                self.across.at(x),
                self.heights.at(y)
            );
        }
        d
    }

    fn band(&self, canvas: &mut Canvas, run: &[At], mark: Mark) {
        for run in run
            .split(|at| interval(at).is_none())
            .filter(|run| !run.is_empty())
        {
            let ends = |end: usize| {
                run.iter()
                    .filter_map(move |at| Some([at.x, interval(at)?[end]]))
            };
            let d = match run {
                [at] => {
                    let x = self.across.at(at.x);
                    let [low, high] = interval(at)
                        .unwrap_or_default()
                        .map(|end| self.heights.at(end));
                    format!(
                        "M{:.1} {low:.1}H{:.1}V{high:.1}H{:.1}z",
                        x - 3.0,
                        x + 3.0,
                        x - 3.0
                    )
                }
                _ => self.curve(ends(0).chain(ends(1).collect::<Vec<_>>().into_iter().rev())) + "z",
            };
            canvas.path(&format!("band {}", mark.fill()), &d, "");
        }
    }

    fn whiskers(&self, canvas: &mut Canvas, run: &[At]) {
        for at in run {
            let Some(ends) = interval(at) else { continue };
            let x = self.across.at(at.x);
            let [low, high] = ends.map(|end| self.heights.at(end));
            canvas.line("whisker", [x, low], [x, high]);
        }
    }

    fn title(&self, series: &Series, at: &At, value: f64) -> String {
        let mut title = format!(
            "{}\n{} {}\n{} {}",
            series.name,
            self.x.name,
            with_unit(at.x, &self.x.unit),
            self.y.name,
            with_unit(value, &self.y.unit)
        );
        if let Some([low, high]) = interval(at) {
            let _ = write!(title, " [{}, {}]", super::show(low), super::show(high));
        }
        if !at.label.is_empty() {
            let _ = write!(title, "\n{}", at.label);
        }
        title
    }
}
