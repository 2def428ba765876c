//! Which files a dataset is made of, and the form of each.
//!
//! Arguments keep the order they are given in. A directory stands for the data files right inside it,
//! sorted by name (hidden ones and those of other extensions are left out); a glob for the files it
//! matches, sorted by path. A path that exists is taken literally even if it reads as a glob. One file
//! reached twice is an error: its samples would silently weigh double.

use super::error::{Error, Result};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The forms of data we read, told apart by extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Jsonl,
    Json,
    Csv,
    Tsv,
    Txt,
    Parquet,
}

impl Form {
    /// The form that a file's extension names, in either case: the last one, or of a compressed file the one before.
    pub fn of(path: &Path) -> Option<Form> {
        let packing = Packing::of(path);
        let inner = match packing {
            Packing::None => path.extension(),
            _ => Path::new(path.file_stem()?).extension(),
        };
        let form = Self::named(inner?)?;
        // Parquet is read from its end, and compresses its own pages.
        (packing == Packing::None || form != Form::Parquet).then_some(form)
    }

    fn named(extension: &OsStr) -> Option<Form> {
        Some(match extension.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" => Form::Jsonl,
            "json" => Form::Json,
            "csv" => Form::Csv,
            "tsv" => Form::Tsv,
            "txt" => Form::Txt,
            "parquet" => Form::Parquet,
            _ => return None,
        })
    }
}

/// What a file of text is compressed by, told by its last extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    pub fn of(path: &Path) -> Packing {
        let extension = path.extension().and_then(OsStr::to_str);
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("gz") => Packing::Gzip,
            Some("zst") => Packing::Zstd,
            _ => Packing::None,
        }
    }
}

/// One file of a dataset; the path `-` is standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub path: PathBuf,
    pub form: Form,
    /// As records and messages name it.
    pub file: Arc<str>,
}

impl Source {
    fn new(path: PathBuf) -> Result<Source> {
        if path == Path::new("-") {
            return Ok(Source {
                path,
                form: Form::Jsonl,
                file: "<stdin>".into(),
            });
        }
        let form = Form::of(&path).ok_or_else(|| Error::UnknownForm(path.clone()))?;
        let file = path.to_string_lossy().into();
        Ok(Source { path, form, file })
    }

    /// Its extension, of a compressed file both of them: how it is read.
    pub fn extension(&self) -> Vec<u8> {
        let last = self.path.extension().unwrap_or_default();
        let before = match Packing::of(&self.path) {
            Packing::None => None,
            _ => self
                .path
                .file_stem()
                .and_then(|stem| Path::new(stem).extension()),
        };
        let joined = before
            .into_iter()
            .chain([last])
            .map(OsStr::as_encoded_bytes);
        joined.collect::<Vec<_>>().join(&b'.')
    }

    pub fn is_stdin(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Whether it can be read only once, and its length is not known: standard input, a named pipe, a device.
    pub fn is_stream(&self) -> bool {
        self.is_stdin() || std::fs::metadata(&self.path).is_ok_and(|m| !m.is_file())
    }
}

/// The files that `patterns` stand for, in order, each checked to be readable.
pub(super) fn find(patterns: &[String]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        if pattern == "-" {
            sources.push(Source::new(path.to_owned())?);
        } else if path.is_dir() {
            sources.extend(directory(path)?);
        } else if path.exists() || !pattern.contains(['*', '?', '[']) {
            sources.push(Source::new(existing(path)?)?);
        } else {
            sources.extend(matching(pattern)?);
        }
    }
    if sources.is_empty() {
        return Err(Error::NothingNamed);
    }
    let mut seen = HashSet::new();
    for source in &sources {
        let real = if source.is_stdin() {
            source.path.clone()
        } else {
            check_readable(&source.path)?;
            std::fs::canonicalize(&source.path).map_err(|e| unreadable(&source.path, e))?
        };
        if !seen.insert(real) {
            return Err(Error::NamedTwice(source.path.clone()));
        }
    }
    Ok(sources)
}

fn existing(path: &Path) -> Result<PathBuf> {
    match path.try_exists() {
        Ok(true) => Ok(path.to_owned()),
        Ok(false) => Err(Error::NotFound(path.to_owned())),
        Err(source) => Err(unreadable(path, source)),
    }
}

/// A file that cannot be opened should stop a run now, not when the run reaches it hours later. Pipes
/// are left alone: opening one has effects.
fn check_readable(path: &Path) -> Result<()> {
    let open = || -> std::io::Result<()> {
        if std::fs::metadata(path)?.is_file() {
            File::open(path)?;
        }
        Ok(())
    };
    open().map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        file: path.display().to_string(),
        line: None,
        source,
    }
}

fn directory(path: &Path) -> Result<Vec<Source>> {
    let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|source| unreadable(path, source))? {
        let entry = entry.map_err(|source| unreadable(path, source))?;
        let inside = entry.path();
        if !hidden(&entry.file_name()) && Form::of(&inside).is_some() && !inside.is_dir() {
            paths.push(inside);
        }
    }
    if paths.is_empty() {
        return Err(Error::EmptyDirectory(path.to_owned()));
    }
    paths.sort();
    paths.into_iter().map(Source::new).collect()
}

fn matching(pattern: &str) -> Result<Vec<Source>> {
    let found = glob::glob(pattern).map_err(|error| Error::BadGlob {
        pattern: pattern.to_owned(),
        reason: error.msg,
        at: error.pos + 1,
    })?;
    let mut paths = Vec::new();
    for path in found {
        let path = path.map_err(|error| {
            let at = error.path().to_owned();
            unreadable(&at, error.into())
        })?;
        if !path.is_dir() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Error::EmptyGlob(pattern.to_owned()));
    }
    paths.sort();
    paths.into_iter().map(Source::new).collect()
}
