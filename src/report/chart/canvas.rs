//! An SVG under construction. Colours are classes, so that the page's style sheet can set them.

use std::fmt::Write as _;

use crate::report::page::escape::text as escaped;
use crate::report::{Error, Result, fonts, plot};

/// What the classes look like in a file of its own: dark on white, as it is printed.
const STYLE: &str = include_str!("chart.css");

/// A drawing, in CSS pixels.
pub struct Canvas {
    pub width: f64,
    pub height: f64,
    body: String,
}

/// Where a text's place is in it.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    pub(super) fn new(width: f64) -> Self {
        Canvas {
            width,
            height: 0.0,
            body: String::new(),
        }
    }

    pub(super) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.put(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    /// `extra`: further attributes; `title`: what a hover shows, none where empty.
    pub(super) fn rect(
        &mut self,
        class: &str,
        [x, y]: [f64; 2],
        [w, h]: [f64; 2],
        extra: &str,
        title: &str,
    ) {
        let (w, h) = (w.max(0.0), h.max(0.0));
        self.put(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"{extra}"#
        ));
        self.close("rect", title);
    }

    pub(super) fn path(&mut self, class: &str, d: &str, title: &str) {
        self.put(format_args!(r#"<path class="{class}" d="{d}""#));
        self.close("path", title);
    }

    pub(super) fn text(
        &mut self,
        class: &str,
        [x, y]: [f64; 2],
        anchor: Anchor,
        size: f64,
        words: &str,
    ) {
        self.turned(class, [x, y], anchor, size, 0.0, words);
    }

    /// A text turned by so many degrees about its place.
    pub(super) fn turned(
        &mut self,
        class: &str,
        [x, y]: [f64; 2],
        anchor: Anchor,
        size: f64,
        degrees: f64,
        words: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let turn = match degrees {
            0.0 => String::new(),
            _ => format!(r#" transform="rotate({degrees} {x:.1} {y:.1})""#),
        };
        self.put(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}"{turn}>{}</text>"#,
            escaped(words)
        ));
    }

    fn put(&mut self, what: std::fmt::Arguments<'_>) {
        self.body.write_fmt(what).expect("a string takes all");
    }

    fn close(&mut self, element: &str, title: &str) {
        match title {
            "" => self.put(format_args!("/>")),
            title => self.put(format_args!(
                "><title>{}</title></{element}>",
                escaped(title)
            )),
        }
    }

    /// As a part of the page, which brings the style; `label` is read out in its stead.
    pub fn inline(&self, label: &str) -> String {
        let (w, h) = (self.width, self.height);
        let least = w.min(520.0);
        format!(
            r#"<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {w:.0} {h:.0}" style="min-width:{least:.0}px;max-width:{w:.0}px">{}</svg>"#,
            escaped(label),
            self.body
        )
    }

    /// As a file: twice the size, on white.
    pub fn standalone(&self, label: &str) -> String {
        let (w, h) = (self.width.round(), self.height.round());
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="0 0 {} {}" font-family="{}">"#,
                "<title>{}</title><style>{}</style>",
                r#"<rect class="paper" width="{}" height="{}"/>{}</svg>"#
            ),
            w * 2.0,
            h * 2.0,
            w,
            h,
            fonts::FAMILY,
            escaped(label),
            STYLE,
            w,
            h,
            self.body
        )
    }

    /// Writes `stem` + `.svg` and `.png`.
    ///
    /// # Errors
    /// When it cannot be rasterised or written.
    pub fn save(&self, label: &str, stem: &std::path::Path) -> Result<()> {
        let svg = self.standalone(label);
        let path = plot::with_extension(stem, "svg");
        std::fs::write(&path, &svg).map_err(|source| Error::Write { path, source })?;
        let path = plot::with_extension(stem, "png");
        let png = plot::rasterise(&svg, &path)?;
        std::fs::write(&path, png).map_err(|source| Error::Write { path, source })
    }
}

/// How wide a text is about, Inter being 0.56 em a character.
pub(super) fn width(words: &str, size: f64) -> f64 {
    0.56 * size * words.chars().count() as f64
}

/// The text cut to a width, with an ellipsis where something is left out.
pub(super) fn fitted(words: &str, size: f64, room: f64) -> String {
    if width(words, size) <= room {
        return words.into();
    }
    let kept = (room / (0.56 * size)) as usize;
    let mut short: String = words.chars().take(kept.saturating_sub(1)).collect();
    short.push('…');
    short
}
