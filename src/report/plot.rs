//! Pictures: drawn as SVG by plotters, rasterised to PNG from that same SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use resvg::{tiny_skia, usvg};

use super::fonts;
use super::{Error, Result};

/// One layer's accuracy with the ends of its 95 % interval, all in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub layer: usize,
    pub accuracy: f64,
    pub low: f64,
    pub high: f64,
}

const SIZE: (u32, u32) = (1600, 960);
const LEFT: i32 = 56;
const RIGHT: i32 = 48;
/// Height taken by title, subtitle and legend.
const HEAD: u32 = 208;

// Okabe and Ito's blue: apart from the greys for every kind of colour vision, and in print.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const INK: RGBColor = RGBColor(34, 34, 34);
const MUTED: RGBColor = RGBColor(92, 92, 92);
const GRID: RGBColor = RGBColor(228, 228, 228);
const BAND: f64 = 0.2;

/// Draw held-out accuracy by layer, with the 95 % interval as a band and chance (0.5) as a dashed line, to
/// `path_stem` + `.svg` and `.png`. Points may come in any order; the file is the same.
///
/// # Errors
/// When there is no point, a value is outside 0..=1, or a file cannot be written.
pub fn accuracy_by_layer(
    points: &[Point],
    title: &str,
    subtitle: &str,
    path_stem: &Path,
) -> Result<()> {
    let path = with_extension(path_stem, "svg");
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.layer);
    if points.is_empty() {
        return Err(Error::Points {
            path,
            what: "no layer to plot".into(),
        });
    }
    for point in &points {
        if ![point.accuracy, point.low, point.high]
            .iter()
            .all(|value| (0.0..=1.0).contains(value))
        {
            let what = format!(
                "layer {} has an accuracy or an interval outside 0 to 1",
                point.layer
            );
            return Err(Error::Points { path, what });
        }
    }

    let mut svg = String::new();
    draw(&points, title, subtitle, &mut svg).map_err(|error| Error::Draw {
        path: path.clone(),
        what: error.to_string(),
    })?;
    write(&path, svg.as_bytes())?;
    let png = with_extension(path_stem, "png");
    write(&png, &rasterise(&svg, &png)?)
}

/// `run/truth.v2` becomes `run/truth.v2.svg`: what follows a dot in the stem is part of the name.
pub(super) fn with_extension(stem: &Path, extension: &str) -> std::path::PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// An SVG as PNG, a pixel per unit of its `width` and `height`, with the crate's own fonts.
pub(super) fn rasterise(svg: &str, path: &Path) -> Result<Vec<u8>> {
    let refused = |what: String| Error::Draw {
        path: path.to_owned(),
        what,
    };
    let options = usvg::Options {
        fontdb: fonts::database(),
        ..Default::default()
    };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| refused(error.to_string()))?;
    let size = tree.size().to_int_size();
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height())
        .ok_or_else(|| refused("the picture has no size".into()))?;
    resvg::render(
        &tree,
        tiny_skia::Transform::identity(),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| refused(error.to_string()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(points: &[Point], title: &str, subtitle: &str, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (head, body) = area.split_vertically(HEAD);
    draw_head(&head, title, subtitle)?;
    draw_chart(&body, points)?;
    area.present()
}

/// Text of a given size in pixels (the SVG backend divides a font's size by 1.24).
fn text<'a>(pixels: f64, colour: &'a RGBColor, style: FontStyle) -> TextStyle<'a> {
    (fonts::FAMILY, pixels * 1.24, style)
        .into_text_style(&SIZE)
        .color(colour)
}

/// The size at which a line fits between the margins, Inter being about 0.56 em a character.
fn fitting(line: &str, pixels: f64) -> f64 {
    let room = f64::from(SIZE.0 as i32 - LEFT - RIGHT);
    pixels.min(room / (0.56 * line.chars().count().max(1) as f64))
}

fn draw_head(head: &Area<'_>, title: &str, subtitle: &str) -> Drawn {
    let middle_left = Pos::new(HPos::Left, VPos::Center);
    let title_style = text(fitting(title, 40.0), &INK, FontStyle::Bold).pos(middle_left);
    head.draw_text(title, &title_style, (LEFT, 58))?;
    let subtitle_style = text(fitting(subtitle, 27.0), &MUTED, FontStyle::Normal).pos(middle_left);
    head.draw_text(subtitle, &subtitle_style, (LEFT, 108))?;

    // The legend stands off the data, in one row over the chart.
    let (y, label) = (172, text(25.0, &INK, FontStyle::Normal).pos(middle_left));
    let mut x = LEFT;
    head.draw(&PathElement::new(
        [(x, y), (x + 52, y)],
        BLUE.stroke_width(4),
    ))?;
    head.draw(&Circle::new((x + 26, y), 7, BLUE.filled()))?;
    head.draw_text("accuracy on held-out statements", &label, (x + 66, y))?;
    x += 510;
    head.draw(&Rectangle::new(
        [(x, y - 14), (x + 52, y + 14)],
        BLUE.mix(BAND).filled(),
    ))?;
    head.draw_text("95 % interval", &label, (x + 66, y))?;
    x += 272;
    for dash in 0..3 {
        let start = x + dash * 20;
        head.draw(&PathElement::new(
            [(start, y), (start + 12, y)],
            MUTED.stroke_width(3),
        ))?;
    }
    head.draw_text("chance", &label, (x + 66, y))
}

/// A linear axis with its ticks where we say: plotters' own choice puts some between two layers.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn draw_chart(body: &Area<'_>, points: &[Point]) -> Drawn {
    let first = points.first().map_or(0, |point| point.layer);
    let last = points.last().map_or(0, |point| point.layer);
    let lowest = points.iter().map(|point| point.low).fold(0.45, f64::min);
    let bottom = (lowest * 10.0).floor() / 10.0;

    // Whole layers only, at most about sixteen of them named.
    let step = [1, 2, 4, 5, 10, 20, 50]
        .into_iter()
        .find(|step| (last - first) / step <= 16)
        .unwrap_or(100);
    let layers: Vec<f64> = (0..=last)
        .step_by(step)
        .filter(|&layer| layer >= first)
        .map(|layer| layer as f64)
        .collect();
    let tenths: Vec<f64> = ((bottom * 10.0).round() as u32..=10)
        .map(|tenth| f64::from(tenth) / 10.0)
        .collect();
    let (left, right) = (first as f64 - 0.6, last as f64 + 0.6);

    let mut chart = ChartBuilder::on(body)
        .margin_left(LEFT - 12)
        .margin_right(RIGHT)
        .margin_bottom(24)
        .margin_top(8)
        .x_label_area_size(92)
        .y_label_area_size(104)
        .build_cartesian_2d(
            Axis {
                range: left..right,
                ticks: layers,
            },
            Axis {
                range: bottom..1.012,
                ticks: tenths,
            },
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(MUTED.stroke_width(2))
        .x_label_formatter(&|layer| format!("{layer:.0}"))
        .y_label_formatter(&|accuracy| format!("{accuracy:.1}"))
        .label_style(text(25.0, &INK, FontStyle::Normal))
        .axis_desc_style(text(27.0, &INK, FontStyle::Normal))
        .x_desc("layer")
        .y_desc("held-out accuracy")
        .draw()?;

    // A single layer has its interval as a bar: a polygon without width would not show.
    let half = if points.len() == 1 { 0.02 } else { 0.0 };
    let lows = points
        .iter()
        .map(|point| (point.layer as f64 - half, point.low));
    let highs = points
        .iter()
        .rev()
        .map(|point| (point.layer as f64 - half, point.high));
    let mut band: Vec<_> = lows.chain(highs).collect();
    if let [point] = points {
        band.extend([point.high, point.low].map(|end| (point.layer as f64 + half, end)));
    }
    chart.draw_series([Polygon::new(band, BLUE.mix(BAND).filled())])?;
    let chance = [(left, 0.5), (right, 0.5)];
    chart.draw_series(DashedLineSeries::new(chance, 12, 8, MUTED.stroke_width(3)))?;
    let accuracies = || {
        points
            .iter()
            .map(|point| (point.layer as f64, point.accuracy))
    };
    chart.draw_series(LineSeries::new(accuracies(), BLUE.stroke_width(4)))?;
    chart.draw_series(accuracies().map(|place| Circle::new(place, 7, BLUE.filled())))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty layers that rise from chance.
    fn points() -> Vec<Point> {
        (0..30)
            .map(|layer| {
                let accuracy = 0.5 + 0.33 / (1.0 + (-(f64::from(layer) - 13.0) / 2.0).exp());
                let accuracy = accuracy + 0.015 * f64::from(layer * 7 % 5 - 2);
                Point {
                    layer: layer as usize,
                    accuracy,
                    low: accuracy - 0.05,
                    high: accuracy + 0.045,
                }
            })
            .collect()
    }

    fn drawn(points: &[Point], title: &str) -> (String, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("truth.by-layer");
        accuracy_by_layer(
            points,
            title,
            "SmolLM2 <135M> & facts, last token of each statement",
            &stem,
        )
        .unwrap();
        let svg = std::fs::read_to_string(dir.path().join("truth.by-layer.svg")).unwrap();
        (
            svg,
            std::fs::read(dir.path().join("truth.by-layer.png")).unwrap(),
        )
    }

    /// Pixels of a PNG, as (red, green, blue).
    fn pixels(png: &[u8]) -> Vec<(u8, u8, u8)> {
        let picture = tiny_skia::Pixmap::decode_png(png).unwrap();
        assert_eq!((picture.width(), picture.height()), SIZE);
        picture
            .pixels()
            .iter()
            .map(|pixel| (pixel.red(), pixel.green(), pixel.blue()))
            .collect()
    }

    #[test]
    fn the_picture_names_its_axes_its_font_and_every_curve() {
        let (svg, _) = drawn(&points(), "Truth is readable from the middle layers on");
        let said = [
            ">\nlayer\n<",
            ">\nheld-out accuracy\n<",
            "95 % interval",
            "chance",
            "Truth is readable",
        ];
        assert!(said.iter().all(|text| svg.contains(text)), "{svg}");
        assert!(svg.contains("SmolLM2 &lt;135M&gt; &amp; facts"));
        assert!(svg.contains(r#"font-family="Inter, sans-serif""#));
    }

    #[test]
    fn the_png_shows_line_band_and_text() {
        let (_, png) = drawn(&points(), "Truth");
        let pixels = pixels(&png);
        let count = |colour| pixels.iter().filter(|&&pixel| pixel == colour).count();
        assert!(count((0, 114, 178)) > 4_000, "line and markers");
        assert!(count((204, 227, 240)) > 20_000, "band");
        assert!(
            count((34, 34, 34)) > 2_000,
            "text, drawn with the font of the crate"
        );
    }

    #[test]
    fn equal_input_gives_equal_bytes_in_any_order() {
        let mut turned = points();
        turned.reverse();
        assert_eq!(drawn(&points(), "Truth"), drawn(&turned, "Truth"));
    }

    #[test]
    fn one_layer_many_layers_and_long_titles_are_drawn_too() {
        drawn(&points()[3..4], "one layer");
        let deep: Vec<_> = (0..80)
            .map(|layer| Point {
                layer,
                accuracy: 0.3,
                low: 0.0,
                high: 1.0,
            })
            .collect();
        drawn(&deep, &"many layers and a long title ".repeat(6));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_by_name() {
        let message = |points: &[Point], stem: &str| {
            accuracy_by_layer(points, "", "", Path::new(stem))
                .unwrap_err()
                .to_string()
        };
        assert!(message(&[], "truth").starts_with("truth.svg: no layer to plot"));
        let bad = Point {
            layer: 4,
            accuracy: f64::NAN,
            low: 0.4,
            high: 0.6,
        };
        assert!(message(&[bad], "truth").starts_with("truth.svg: layer 4 has an accuracy"));
        assert!(
            message(&points(), "/nonexistent/truth")
                .starts_with("/nonexistent/truth.svg: No such file")
        );
    }
}
