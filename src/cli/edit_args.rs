//! The flags that say what is edited.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::hooks::EditSpec;

/// What to change on the way.
#[derive(Debug, Clone, Default, Args)]
pub struct EditArgs {
    /// Write at a hook point: KIND key=value …, as in 'add at=blocks.15.hook_resid_post v=dir.safetensors#direction c=-8.25 select=all'.
    /// Kinds: add (v, c, unit=true to scale v to norm 1), scale (c), zero, mean (v), replace (from), project-out (v), clamp (v, lo, hi).
    /// `at` is a hook point or a pattern of them, with heads in brackets; `select` is a selection of rows [default: all]; `v` is
    /// FILE.safetensors#TENSOR or STORE#TAP (the mean of its rows); `from` is STORE#TAP, matched by sample and position. May be
    /// given several times; where edits meet they apply in the order given.
    #[arg(long, value_name = "E")]
    pub edit: Vec<String>,
    /// Edits from a TOML file: an [[edit]] table each, with `kind` and the same keys. They come before those of --edit; relative
    /// paths count from the file's folder.
    #[arg(long, value_name = "FILE")]
    pub edits: Option<PathBuf>,
    /// At an edited hook point, taps take the value before its edits, instead of what the edits make of it.
    #[arg(long)]
    pub tap_before_edits: bool,
}

impl EditArgs {
    /// The edits in order, in full, their paths absolute, so that a store's job runs from anywhere.
    ///
    /// # Errors
    /// A file that cannot be read, and edits that are badly written.
    pub fn read(&self) -> Result<Vec<String>, Failure> {
        let mut specs = Vec::new();
        if let Some(file) = &self.edits {
            let folder = file.parent().unwrap_or(Path::new(""));
            for spec in of_file(file)? {
                specs.push(absolute(spec, folder));
            }
        }
        for text in &self.edit {
            specs.push(absolute(text.parse()?, Path::new("")));
        }
        Ok(specs.iter().map(EditSpec::to_string).collect())
    }
}

fn absolute(mut spec: EditSpec, folder: &Path) -> EditSpec {
    if let Some(source) = spec.change.source_mut() {
        let path = folder.join(&source.path);
        source.path = std::path::absolute(&path).unwrap_or(path);
    }
    spec
}

fn of_file(file: &Path) -> Result<Vec<EditSpec>, Failure> {
    let name = file.display();
    let refuse = |why: String| Failure::Refused(format!("--edits {name}: {why}"));
    let text = std::fs::read_to_string(file).map_err(|e| refuse(format!("{e}; check the path")))?;
    let form = "write an [[edit]] table for each, with kind, at and its other keys";
    let tables: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| refuse(format!("not TOML: {}", e.message())))?;
    if let Some(other) = tables.keys().find(|key| *key != "edit") {
        return Err(refuse(format!("'{other}' is not known here; {form}")));
    }
    let edits = tables.get("edit").and_then(toml::Value::as_array);
    let edits = edits.ok_or_else(|| refuse(format!("it has no edits; {form}")))?;
    edits
        .iter()
        .enumerate()
        .map(|(i, edit)| {
            let table = edit.as_table().ok_or_else(|| refuse(form.into()))?;
            let mut pairs = table
                .iter()
                .map(|(key, value)| Ok((key.clone(), plain(value).ok_or(key)?)))
                .collect::<Result<Vec<_>, &String>>()
                .map_err(|key| {
                    refuse(format!(
                        "edit {}: '{key}' is no string, number or boolean",
                        i + 1
                    ))
                })?;
            let kind = pairs.iter().position(|(key, _)| key == "kind");
            let kind = kind.ok_or_else(|| refuse(format!("edit {} has no kind; {form}", i + 1)))?;
            let (_, kind) = pairs.remove(kind);
            let text = pairs.iter().map(|(key, value)| format!(" {key}={value}"));
            let text = kind.clone() + &text.collect::<String>();
            EditSpec::from_pairs(&text, &kind, &pairs).map_err(|e| refuse(e.to_string()))
        })
        .collect()
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Float(n) => Some(n.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    }
}
