//! What one experiment found, as data: the numbers with their intervals, the exhibits that show them, and where all of it
//! came from. A study writes one [`Finding`] per experiment as JSON; the HTML page, the CSVs and the pictures are made from
//! that file alone, so a number in the report is a number in a file.

use serde::{Deserialize, Serialize};

/// One experiment's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The experiment, e.g. `E7`: names its files and its anchor in the page.
    pub id: String,
    pub title: String,
    /// What was asked, in a sentence.
    pub question: String,
    /// What the numbers say, controls included: one paragraph each, plain words.
    pub answer: Vec<String>,
    pub numbers: Vec<Number>,
    pub exhibits: Vec<Exhibit>,
    /// The command that makes this experiment again.
    pub command: String,
    /// Manifests of the stores that were read, by path from the study's folder.
    pub manifests: Vec<String>,
    /// Wall time of the experiment, in seconds.
    pub seconds: f64,
}

/// One number of the table: ours, and the published one where the model is the published one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    pub name: String,
    /// `None` where it could not be computed; `note` says why.
    pub value: Option<f64>,
    /// Its unit, e.g. `nat`; empty for a ratio.
    #[serde(default)]
    pub unit: String,
    /// 95 %, over prompts or groups, unless `note` says otherwise.
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
    /// How many prompts or groups it is over.
    #[serde(default)]
    pub n: Option<usize>,
    #[serde(default)]
    pub published: Option<Published>,
    /// The number this one is to be read beside: a control or a baseline, by name and value.
    #[serde(default)]
    pub controls: Vec<Control>,
    #[serde(default)]
    pub note: String,
}

impl Number {
    /// A value by itself; the rest is added by the methods below.
    pub fn new(name: impl Into<String>, value: impl Into<Option<f64>>) -> Self {
        Number {
            name: name.into(),
            value: value.into(),
            unit: String::new(),
            interval: None,
            n: None,
            published: None,
            controls: Vec::new(),
            note: String::new(),
        }
    }

    /// Its unit.
    pub fn unit(mut self, unit: &str) -> Self {
        self.unit = unit.into();
        self
    }

    /// Its 95 % interval.
    pub fn interval(mut self, interval: impl Into<Option<[f64; 2]>>) -> Self {
        self.interval = interval.into();
        self
    }

    /// How many prompts or groups it is over.
    pub fn over(mut self, n: usize) -> Self {
        self.n = Some(n);
        self
    }

    /// What was published for it, if anything.
    pub fn published(mut self, published: Option<Published>) -> Self {
        self.published = published;
        self
    }

    /// A number that it is to be read beside.
    pub fn beside(mut self, name: impl Into<String>, value: f64) -> Self {
        self.controls.push(Control {
            name: name.into(),
            value,
            interval: None,
        });
        self
    }

    /// What is to be said of it.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

impl Axis {
    /// An axis; `unit` is empty for none.
    pub fn new(name: &str, unit: &str) -> Self {
        Axis {
            name: name.into(),
            unit: unit.into(),
        }
    }
}

impl At {
    /// A point without interval or label.
    pub fn new(x: f64, y: impl Into<Option<f64>>) -> Self {
        At {
            x,
            y: y.into(),
            low: None,
            high: None,
            label: String::new(),
        }
    }
}

/// A value printed in the paper, or recomputed from the authors' files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    pub value: f64,
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
    /// Recomputed from the authors' saved results rather than printed by them.
    #[serde(default)]
    pub recomputed: bool,
}

/// What the same measure gives for something that should not matter, or for a simpler explanation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub name: String,
    pub value: f64,
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
}

/// A figure or a table of the page. Each is also a CSV beside the page, and each that can be drawn an SVG and a PNG.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exhibit {
    /// Names its files: `E7-heads.csv`, `.svg`, `.png`. Letters, digits, `-`.
    pub name: String,
    /// What is seen, and how to read it.
    pub caption: String,
    pub body: Body,
}

/// The forms that an exhibit takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Body {
    /// Curves over a common axis; a series may carry an interval per point.
    Lines {
        x: Axis,
        y: Axis,
        series: Vec<Series>,
        /// Horizontal reference lines: chance, zero, a published value.
        #[serde(default)]
        references: Vec<Reference>,
    },
    /// Named values side by side, each with an optional interval and its own points.
    Bars { y: Axis, bars: Vec<Bar> },
    /// Points in a plane.
    Scatter {
        x: Axis,
        y: Axis,
        series: Vec<Series>,
        /// The line y = x, by what it means.
        #[serde(default)]
        diagonal: Option<String>,
    },
    /// `values[row][column]`, missing where there is none; rows and columns by label.
    Heatmap {
        rows: Labels,
        columns: Labels,
        values: Vec<Vec<Option<f64>>>,
        /// What a value is, with its unit.
        value: Axis,
    },
    /// Texts token by token, coloured by a value.
    Tokens { value: Axis, texts: Vec<Text> },
    Table {
        columns: Vec<String>,
        rows: Vec<Vec<serde_json::Value>>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    pub name: String,
    /// Empty for none.
    #[serde(default)]
    pub unit: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    pub name: String,
    pub labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    pub name: String,
    /// A control or a baseline: drawn behind, muted.
    #[serde(default)]
    pub control: bool,
    pub points: Vec<At>,
}

/// A point; `low` and `high` are the ends of its interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    pub x: f64,
    /// `None` leaves a gap in the curve.
    pub y: Option<f64>,
    #[serde(default)]
    pub low: Option<f64>,
    #[serde(default)]
    pub high: Option<f64>,
    /// Shown on hover.
    #[serde(default)]
    pub label: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    pub name: String,
    pub value: Option<f64>,
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
    #[serde(default)]
    pub control: bool,
    /// The prompts' own values, where there are few enough to show.
    #[serde(default)]
    pub points: Vec<f64>,
    #[serde(default)]
    pub published: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub name: String,
    pub at: f64,
}

/// One text; `values` has one entry per token, `None` for a token without a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    pub name: String,
    pub tokens: Vec<String>,
    pub values: Vec<Option<f64>>,
}
