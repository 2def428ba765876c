//! Tests of the module as a whole; what concerns one file only is tested in it.

mod compressed;
mod dataset;
mod forms;
mod hostile;
mod parquet;
mod slices;

use super::{Dataset, Error, Input, ReadOptions, Record};
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder of data files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn with(name: &str, contents: impl AsRef<[u8]>) -> Self {
        let folder = Folder::new();
        folder.write(name, contents);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As it is given on the command line.
    fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), contents).unwrap();
        self.arg(name)
    }

    fn open(&self, names: &[&str], options: ReadOptions) -> Result<Dataset, Error> {
        let args: Vec<String> = names.iter().map(|name| self.arg(name)).collect();
        Dataset::open(&args, options)
    }
}

/// All records of one file, or the first error.
fn read(
    name: &str,
    contents: impl AsRef<[u8]>,
    options: ReadOptions,
) -> Result<Vec<Record>, Error> {
    Folder::with(name, contents)
        .open(&[name], options)?
        .collect()
}

/// The texts of one file's records.
fn texts(name: &str, contents: impl AsRef<[u8]>) -> Vec<String> {
    let records = read(name, contents, ReadOptions::default()).unwrap();
    records.into_iter().map(|record| text_of(&record)).collect()
}

fn text_of(record: &Record) -> String {
    match &record.input {
        Input::Text(text) => text.clone(),
        other => panic!("not a text: {other:?}"),
    }
}

/// The message of the error that reading one file ends with, which must be a single line.
fn message(name: &str, contents: impl AsRef<[u8]>, options: ReadOptions) -> String {
    let message = read(name, contents, options).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn keep(fields: &[&str]) -> ReadOptions {
    ReadOptions {
        keep: fields.iter().map(|&field| field.to_owned()).collect(),
        ..ReadOptions::default()
    }
}

fn skipping() -> ReadOptions {
    ReadOptions {
        skip_bad: true,
        ..ReadOptions::default()
    }
}
