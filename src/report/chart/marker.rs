//! The marks of a series: a colour, a shape and a dash of its own, so that they are told apart without colour too.

use super::canvas::Canvas;

/// Colours for all kinds of colour vision (Okabe and Ito's, darkened where they are faint on white); `l` strokes, `f` fills.
const COLOURS: usize = 6;

/// How one series is drawn.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    index: usize,
    control: bool,
}

impl Mark {
    /// The marks of several series: controls are counted apart, and muted.
    pub fn all(controls: impl Iterator<Item = bool>) -> Vec<Mark> {
        let mut counts = [0, 0];
        controls
            .map(|control| {
                let index = counts[usize::from(control)];
                counts[usize::from(control)] += 1;
                Mark { index, control }
            })
            .collect()
    }

    pub fn stroke(self) -> String {
        match (self.control, self.index / COLOURS) {
            (true, _) => format!("lc dash{}", self.index % 4),
            (false, 0) => format!("l{}", self.index),
            (false, round) => format!("l{} dash{}", self.index % COLOURS, round % 4),
        }
    }

    pub fn fill(self) -> String {
        match self.control {
            true => "fc".into(),
            false => format!("f{}", self.index % COLOURS),
        }
    }

    /// Draws the mark about a place.
    pub fn put(self, canvas: &mut Canvas, at: [f64; 2], radius: f64, title: &str) {
        canvas.path(&self.fill(), &outline(self.index % 5, at, radius), title);
    }
}

/// A circle, square, triangle, diamond or cross of about the same area.
pub(super) fn outline(shape: usize, [x, y]: [f64; 2], r: f64) -> String {
    let s = r * 0.88;
    match shape {
        1 => format!(
            "M{:.1} {:.1}h{:.1}v{:.1}h{:.1}z",
            x - s,
            y - s,
            2.0 * s,
            2.0 * s,
            -2.0 * s
        ),
        2 => format!(
            "M{x:.1} {:.1}l{:.1} {:.1}h{:.1}z",
            y - 1.25 * r,
            1.2 * r,
            2.0 * r,
            -2.4 * r
        ),
        3 => format!(
            "M{x:.1} {:.1}l{:.1} {:.1}l{:.1} {:.1}l{:.1} {:.1}z",
            y - 1.3 * r,
            1.3 * r,
            1.3 * r,
            -1.3 * r,
            1.3 * r,
            -1.3 * r,
            -1.3 * r
        ),
        4 => {
            let (a, b) = (0.45 * r, 0.8 * r);
            format!(
                "M{:.1} {:.1}h{:.1}v{b:.1}h{b:.1}v{:.1}h{:.1}v{b:.1}h{:.1}v{:.1}h{:.1}v{:.1}h{b:.1}z",
                x - a,
                y - a - b,
                2.0 * a,
                2.0 * a,
                -b,
                -2.0 * a,
                -b,
                -b,
                -2.0 * a
            )
        }
        _ => format!(
            "M{:.1} {y:.1}a{r:.1} {r:.1} 0 1 0 {:.1} 0a{r:.1} {r:.1} 0 1 0 {:.1} 0z",
            x - r,
            2.0 * r,
            -2.0 * r
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_differ_in_colour_or_dash_and_in_shape_and_controls_are_muted() {
        let marks = Mark::all([false, true, false, true].into_iter());
        let strokes: Vec<String> = marks.iter().map(|mark| mark.stroke()).collect();
        assert_eq!(strokes, ["l0", "lc dash0", "l1", "lc dash1"]);
        let many = Mark::all(std::iter::repeat_n(false, 18));
        let mut strokes: Vec<String> = many.iter().map(|mark| mark.stroke()).collect();
        strokes.sort();
        strokes.dedup();
        assert_eq!(strokes.len(), 18);
    }
}
