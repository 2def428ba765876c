//! Edits as they are written: `KIND key=value …`, with a shell's quoting inside.
//!
//! ```text
//! add at=blocks.15.hook_resid_post v=dir.safetensors#direction c=-8.25 select=all
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::nearest::{edit_distance, nearest};
use super::words::{quote, split};
use super::{Dims, Error, HookPattern, HookPoint, Result, Selection, Site};

/// An edit as the user writes it; it may name many hook points. Displayed in a spelling that parses back to it.
#[derive(Debug, Clone, PartialEq)]
pub struct EditSpec {
    pub at: HookPattern,
    pub selection: Selection,
    pub change: ChangeSpec,
}

/// What becomes of a selected row x (where heads are chosen, of their part of it).
#[derive(Debug, Clone, PartialEq)]
pub enum ChangeSpec {
    /// `add v c`: x + c·v, rounded once; `unit` takes v / ‖v‖ for v.
    Add { v: Source, c: f32, unit: bool },
    /// `scale c`: c·x.
    Scale { c: f32 },
    /// `zero`: 0.
    Zero,
    /// `mean v`: v in every row.
    Mean { v: Source },
    /// `replace from`: the rows of another run, matched by sample and position.
    Replace { from: Source },
    /// `project-out v`: x − (x·v̂)v̂.
    ProjectOut { v: Source },
    /// `clamp v lo hi`: the component along v̂ held within lo and hi; an end that is left out is infinite.
    Clamp { v: Source, lo: f32, hi: f32 },
}

/// Where numbers come from: `FILE#TENSOR`, or `STORE#TAP`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    pub path: PathBuf,
    /// The tensor or the tap's folder; `None`: the only tensor, or the tap at the hook point that is edited.
    pub key: Option<String>,
}

/// An edit at one hook point of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    pub point: HookPoint,
    /// The heads edited, ascending; `None` for the whole row.
    pub heads: Option<Vec<usize>>,
    pub selection: Selection,
    pub change: ChangeSpec,
}

/// Kinds with the keys that each must and may have besides `at` and `select`.
const KINDS: [(&str, &[&str], &[&str]); 7] = [
    ("add", &["v", "c"], &["unit"]),
    ("scale", &["c"], &[]),
    ("zero", &[], &[]),
    ("mean", &["v"], &[]),
    ("replace", &["from"], &[]),
    ("project-out", &["v"], &[]),
    ("clamp", &["v"], &["lo", "hi"]),
];

impl EditSpec {
    /// The edit of that kind with these keys and values, as the words of a line or a table of a file give them.
    ///
    /// # Errors
    /// An unknown kind or key, a key that is missing or given twice, a bad value; `text` is the edit as the error shows it.
    pub fn from_pairs(text: &str, kind: &str, pairs: &[(String, String)]) -> Result<EditSpec> {
        let Some(&(kind, must, may)) = KINDS.iter().find(|(name, ..)| *name == kind) else {
            let names = KINDS.iter().map(|(name, ..)| *name);
            return Err(Error::UnknownEdit {
                kind: kind.to_owned(),
                nearest: nearest(names, KINDS.len(), |name| edit_distance(kind, name))
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
            });
        };
        let keys = || ["at"].iter().chain(must).chain(may).chain(&["select"]);
        for (i, (key, _)) in pairs.iter().enumerate() {
            if !keys().any(|k| k == key) {
                let known: Vec<&str> = keys().copied().collect();
                let reason = format!("{kind} has no `{key}`; it has {}", known.join(", "));
                return Err(Error::edit(text, reason));
            }
            if pairs[..i].iter().any(|(k, _)| k == key) {
                return Err(Error::edit(text, format!("`{key}` is given twice")));
            }
        }
        let values = Values { text, pairs };
        for key in ["at"].iter().chain(must) {
            values.must(key)?;
        }
        Ok(EditSpec {
            at: values.must("at")?.parse()?,
            selection: values.get("select").unwrap_or("all").parse()?,
            change: values.change(kind)?,
        })
    }

    /// The edits it means in one model, in forward order.
    ///
    /// # Errors
    /// A layer or head that is not there, a point that cannot be edited, or not so.
    pub fn resolve(&self, dims: &Dims) -> Result<Vec<Edit>> {
        let site = self.at.site();
        let text = self.to_string();
        if !site.is_editable() {
            let template = site.template();
            let instead = site.edit_instead();
            let reason = format!("{template} cannot be edited; {instead}");
            return Err(Error::edit(&text, reason));
        }
        let long_as_sample = matches!(
            self.change,
            ChangeSpec::Scale { .. } | ChangeSpec::Zero | ChangeSpec::Replace { .. }
        );
        if site.is_ragged() && !long_as_sample {
            let reason = "a row of a pattern is as long as its sample, so no vector fits it; scale, zero and replace can be had there";
            return Err(Error::edit(&text, reason));
        }
        let points = self.at.resolve(dims)?;
        Ok(points
            .into_iter()
            .map(|(point, heads)| Edit {
                point,
                heads,
                selection: self.selection.clone(),
                change: self.change.clone(),
            })
            .collect())
    }
}

impl Edit {
    /// As [`EditSpec::from_str`] reads it, for this one point.
    pub fn place(&self) -> String {
        match &self.heads {
            None => self.point.to_string(),
            Some(heads) => {
                let heads: Vec<String> = heads.iter().map(usize::to_string).collect();
                format!("{}[{}]", self.point, heads.join(","))
            }
        }
    }

    /// Width of what is edited of a row: all of it, or the chosen heads.
    pub fn width(&self, dims: &Dims) -> usize {
        let mut shape = self.point.site.row_shape(dims);
        if let Some(heads) = &self.heads {
            shape[0] = heads.len();
        }
        shape.iter().product()
    }
}

impl ChangeSpec {
    /// The kind, as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            ChangeSpec::Add { .. } => "add",
            ChangeSpec::Scale { .. } => "scale",
            ChangeSpec::Zero => "zero",
            ChangeSpec::Mean { .. } => "mean",
            ChangeSpec::Replace { .. } => "replace",
            ChangeSpec::ProjectOut { .. } => "project-out",
            ChangeSpec::Clamp { .. } => "clamp",
        }
    }

    /// Where its numbers come from.
    pub fn source(&self) -> Option<&Source> {
        match self {
            ChangeSpec::Scale { .. } | ChangeSpec::Zero => None,
            ChangeSpec::Replace { from: source }
            | ChangeSpec::Add { v: source, .. }
            | ChangeSpec::Mean { v: source }
            | ChangeSpec::ProjectOut { v: source }
            | ChangeSpec::Clamp { v: source, .. } => Some(source),
        }
    }

    /// As [`ChangeSpec::source`], to change.
    pub fn source_mut(&mut self) -> Option<&mut Source> {
        match self {
            ChangeSpec::Scale { .. } | ChangeSpec::Zero => None,
            ChangeSpec::Replace { from: source }
            | ChangeSpec::Add { v: source, .. }
            | ChangeSpec::Mean { v: source }
            | ChangeSpec::ProjectOut { v: source }
            | ChangeSpec::Clamp { v: source, .. } => Some(source),
        }
    }
}

impl Site {
    /// Whether edits can be made here.
    pub fn is_editable(self) -> bool {
        !matches!(
            self,
            Site::AttnScores
                | Site::Result
                | Site::Ln1Scale
                | Site::Ln1Normalized
                | Site::Ln2Scale
                | Site::Ln2Normalized
                | Site::LnFinalScale
                | Site::LnFinalNormalized
        )
    }

    fn edit_instead(self) -> &'static str {
        match self {
            Site::AttnScores => "edit blocks.L.attn.hook_pattern",
            Site::Result => "edit blocks.L.attn.hook_z, which has the same heads",
            _ => "edit the norm's hook_out, or the stream before it",
        }
    }
}

/// The values of one edit, by key.
struct Values<'a> {
    text: &'a str,
    pairs: &'a [(String, String)],
}

impl Values<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }

    fn must(&self, key: &str) -> Result<&str> {
        self.get(key)
            .ok_or_else(|| Error::edit(self.text, format!("`{key}=` is missing")))
    }

    fn change(&self, kind: &str) -> Result<ChangeSpec> {
        let v = || self.source("v", "FILE.safetensors#TENSOR or STORE#TAP");
        Ok(match kind {
            "add" => ChangeSpec::Add {
                v: v()?,
                c: self.number("c")?.unwrap_or(1.0),
                unit: match self.get("unit") {
                    None | Some("false") => false,
                    Some("true") => true,
                    Some(_) => return Err(Error::edit(self.text, "`unit` is true or false")),
                },
            },
            "scale" => ChangeSpec::Scale {
                c: self.number("c")?.unwrap_or(1.0),
            },
            "zero" => ChangeSpec::Zero,
            "mean" => ChangeSpec::Mean { v: v()? },
            "replace" => ChangeSpec::Replace {
                from: self.source("from", "STORE#TAP or FILE.safetensors#TENSOR")?,
            },
            "project-out" => ChangeSpec::ProjectOut { v: v()? },
            _ => {
                let (lo, hi) = (self.number("lo")?, self.number("hi")?);
                if lo.is_none() && hi.is_none() {
                    return Err(Error::edit(self.text, "clamp needs `lo=`, `hi=` or both"));
                }
                let (lo, hi) = (lo.unwrap_or(f32::NEG_INFINITY), hi.unwrap_or(f32::INFINITY));
                if lo > hi {
                    return Err(Error::edit(self.text, "`lo` is above `hi`; swap them"));
                }
                ChangeSpec::Clamp { v: v()?, lo, hi }
            }
        })
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        match text.parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(Error::edit(
                self.text,
                format!("`{key}` is no finite f32 number; write it as in {key}=-8.25"),
            )),
        }
    }

    fn source(&self, key: &str, form: &str) -> Result<Source> {
        let text = self.must(key)?;
        // The last `#`: a file's name may have one.
        let (path, name) = match text.rsplit_once('#') {
            Some((path, name)) => (path, Some(name)),
            None => (text, None),
        };
        if path.is_empty() || name == Some("") {
            return Err(Error::edit(self.text, format!("`{key}` is {form}")));
        }
        Ok(Source {
            path: path.into(),
            key: name.map(str::to_owned),
        })
    }
}

impl FromStr for EditSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<EditSpec> {
        let words = split(text).map_err(|reason| Error::edit(text, reason))?;
        let Some((kind, pairs)) = words.split_first() else {
            let kinds: Vec<&str> = KINDS.iter().map(|(name, ..)| *name).collect();
            let reason = format!(
                "write a kind and key=value words; there are {}",
                kinds.join(", ")
            );
            return Err(Error::edit(text, reason));
        };
        let pairs = pairs
            .iter()
            .map(|word| match word.split_once('=') {
                Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
                None => Err(Error::edit(
                    text,
                    format!("`{word}` is no key=value word; quote a value that has spaces"),
                )),
            })
            .collect::<Result<Vec<_>>>()?;
        EditSpec::from_pairs(text, kind, &pairs)
    }
}

impl fmt::Display for EditSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.change.kind(), pair("at", &self.at))?;
        match &self.change {
            ChangeSpec::Zero => {}
            ChangeSpec::Scale { c } => write!(f, " c={c}")?,
            ChangeSpec::Add { v, c, unit } => {
                let unit = if *unit { " unit=true" } else { "" };
                write!(f, " {} c={c}{unit}", pair("v", v))?;
            }
            ChangeSpec::Replace { from } => write!(f, " {}", pair("from", from))?,
            ChangeSpec::Mean { v } | ChangeSpec::ProjectOut { v } => {
                write!(f, " {}", pair("v", v))?
            }
            ChangeSpec::Clamp { v, lo, hi } => {
                write!(f, " {}", pair("v", v))?;
                for (key, value) in [("lo", lo), ("hi", hi)] {
                    if value.is_finite() {
                        write!(f, " {key}={value}")?;
                    }
                }
            }
        }
        write!(f, " {}", pair("select", &self.selection))
    }
}

fn pair(key: &str, value: &dyn fmt::Display) -> String {
    quote(&format!("{key}={value}"))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.key {
            None => Ok(()),
            Some(key) => write!(f, "#{key}"),
        }
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
