//! The study's folder: `study.json` says what it is a study of, `findings/ID.json` is what an experiment found, `choice.json` the edit.
//! Each file is there whole or not at all, so a study that was stopped goes on with what is missing.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Choice, Error, Result, Study, hash, read};
use crate::report::finding::Finding;

/// Names the study; every finding's manifest.
pub(super) const STUDY: &str = "study.json";
const CHOICE: &str = "choice.json";

/// Begins the folder, or checks that what it holds is of these inputs.
pub(super) fn begin(study: &Study<'_>) -> Result<()> {
    let out = &study.options().out;
    let wanted = record(study);
    let file = study.path(STUDY);
    if file.is_file() {
        let there: Value = load(&file)?;
        return match differs(&there["inputs"], &wanted["inputs"]) {
            None => Ok(()),
            Some(what) => Err(Error::AnotherStudy {
                out: out.clone(),
                what,
            }
            .into()),
        };
    }
    let is_empty = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => true,
    };
    if !is_empty {
        return Err(Error::NotAStudy(out.clone()).into());
    }
    make_folder(&study.path("findings"))?;
    save(&file, &wanted)
}

/// What the study is of. `inputs` decide what it finds.
fn record(study: &Study<'_>) -> Value {
    let prepared = study.prepared();
    let identity = study.machine().identity();
    let (inputs, options) = (&study.inputs, study.options());
    let tokenizer = prepared.tokenising.tokenizer.as_ref();
    json!({
        "inputs": {
            "model": prepared.model.fingerprint,
            "tokenizer": tokenizer.map(|t| t.fingerprint()),
            "behaviour": hash(inputs.behaviour.text.as_bytes()),
            "facts": inputs.facts.hash,
            "prompts": inputs.prompts.hash,
            "quick": options.quick,
            "all prompts": options.all_prompts,
            "keep duplicates": options.keep_duplicates,
            "seed": options.seed,
            "backend": identity.backend,
            "compute dtype": identity.compute_dtype,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "model": prepared.job.model,
        "model_dir": prepared.model.dir.display().to_string(),
        "behaviour": inputs.behaviour.name,
        "facts": { "file": inputs.facts.file, "statements": inputs.facts.facts.len(), "duplicates": inputs.facts.duplicates },
        "prompts": { "file": inputs.prompts.file, "n": inputs.prompts.prompts.len() },
        "device": identity.device,
        "kernel_build": identity.kernel_build,
        "numeric_record": identity.numeric_record,
    })
}

/// What of the inputs is not the same, in words.
fn differs(there: &Value, wanted: &Value) -> Option<String> {
    let empty = Map::new();
    let (there, wanted) = (
        there.as_object().unwrap_or(&empty),
        wanted.as_object().unwrap_or(&empty),
    );
    let (key, wanted) = wanted
        .iter()
        .find(|(key, value)| there.get(*key) != Some(value))?;
    let was = there.get(key).unwrap_or(&Value::Null);
    Some(match (was, wanted) {
        (Value::String(was), Value::String(now)) if was.len() == 32 && now.len() == 32 => {
            format!("another {key} (its hash was {was}, now it is {now})")
        }
        _ => format!("another setting of '{key}' (it was {was}, now it is {wanted})"),
    })
}

/// The finding, if it is there.
pub(super) fn finding(study: &Study<'_>, id: &str) -> Result<Option<Finding>> {
    let file = finding_file(study, id);
    file.is_file().then(|| load(&file)).transpose()
}

/// Whether the folder has that experiment's finding.
pub(super) fn has(study: &Study<'_>, id: &str) -> bool {
    finding_file(study, id).is_file()
}

/// Keeps a finding.
pub(super) fn keep(study: &Study<'_>, finding: &Finding) -> Result<()> {
    save(&finding_file(study, &finding.id), finding)
}

fn finding_file(study: &Study<'_>, id: &str) -> PathBuf {
    study.path("findings").join(format!("{id}.json"))
}

/// The study's edit, if it was chosen before.
pub(super) fn kept_choice(study: &Study<'_>) -> Result<Option<Choice>> {
    let file = study.path(CHOICE);
    file.is_file().then(|| load(&file)).transpose()
}

/// The study's edit, as it was kept, or chosen now.
pub(super) fn choice(study: &Study<'_>) -> Result<Choice> {
    if let Some(choice) = kept_choice(study)? {
        return Ok(choice);
    }
    let choice = Choice::make(study)?;
    save(&study.path(CHOICE), &choice)?;
    Ok(choice)
}

/// The command that makes one experiment again.
/// Names the files of the folder that an experiment's numbers hang on.
pub(super) fn name_sources(study: &Study<'_>, finding: &mut Finding) {
    let mut sources = vec![STUDY.to_owned()];
    if let Some(directions) = study.directions.get() {
        let name = directions.file.file_name().unwrap_or_default();
        sources.push(name.to_string_lossy().into_owned());
    }
    if study.choice.get().is_some() {
        sources.push(CHOICE.into());
    }
    finding.manifests.splice(..0, sources);
}

pub(super) fn command(study: &Study<'_>, id: &str) -> String {
    let mut words = vec!["streamgauge".to_owned()];
    let mut given = study.options().command.iter().skip(1);
    while let Some(word) = given.next() {
        if word == "--experiments" {
            given.next();
        } else if !word.starts_with("--experiments=") {
            words.push(quoted(word));
        }
    }
    words.extend(["--experiments".into(), id.into()]);
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@+%#".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Makes a folder and those above it.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| write_error(path, source))
}

/// Removes a folder with all that is in it, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(write_error(path, source))
        }
        _ => Ok(()),
    }
}

/// The path from the root on.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn load<T: DeserializeOwned>(file: &Path) -> Result<T> {
    serde_json::from_slice(&read(file)?).map_err(|error| {
        Error::Damaged {
            path: file.to_owned(),
            why: error.to_string(),
        }
        .into()
    })
}

/// Writes JSON, whole or not at all.
fn save(file: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::Damaged {
        path: file.to_owned(),
        why: error.to_string(),
    })?;
    text.push(b'\n');
    write(file, &text)
}

/// Writes a file, whole or not at all.
pub(super) fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let part = file.with_extension("part");
    std::fs::write(&part, bytes)
        .and_then(|()| std::fs::rename(&part, file))
        .map_err(|source| write_error(file, source))
}

fn write_error(path: &Path, source: std::io::Error) -> crate::Error {
    Error::Write {
        path: path.to_owned(),
        source,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_two_studies_is_said_by_name() {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let there = json!({ "facts": a, "quick": false });
        assert_eq!(differs(&there, &there), None);
        let other = differs(&there, &json!({ "facts": b, "quick": false })).unwrap();
        assert!(
            other.starts_with("another facts (its hash was aaa"),
            "{other}"
        );
        let quick = differs(&there, &json!({ "facts": a, "quick": true })).unwrap();
        assert_eq!(
            quick,
            "another setting of 'quick' (it was false, now it is true)"
        );
    }

    #[test]
    fn words_are_quoted_for_the_shell_where_they_need_it() {
        assert_eq!(quoted("--out=a/b_c"), "--out=a/b_c");
        assert_eq!(quoted("it's here"), "'it'\\''s here'");
        assert_eq!(quoted(""), "''");
    }
}
