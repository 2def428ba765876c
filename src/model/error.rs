//! What can go wrong between a model's name and its tensors.

use std::path::{Path, PathBuf};

/// An error of the `model` module: one line that says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("{path}: can't read it: {source}", path = path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },

    /// `--model` is neither a directory nor something the hub could know.
    #[error("no such model: {model}: {why}")]
    NoSuchModel { model: String, why: String },

    /// A directory without `config.json`.
    #[error("{dir}: no config.json here; give the directory that holds config.json and *.safetensors", dir = dir.display())]
    NoConfig { dir: PathBuf },

    /// A JSON file that isn't what it should be.
    #[error("{path}: {why}", path = path.display())]
    Json { path: PathBuf, why: String },

    /// `config.json` lacks a key that the computation needs.
    #[error("{path}: key `{key}` is missing; the model can't be computed without it", path = path.display())]
    MissingKey { path: PathBuf, key: String },

    /// A key of `config.json` has a value of the wrong type or size.
    #[error("{path}: `{key}` is {found}, expected {expected}", path = path.display())]
    BadValue {
        path: PathBuf,
        key: String,
        found: String,
        expected: String,
    },

    /// A key of `config.json` asks for a computation that streamgauge doesn't do.
    #[error("{path}: `{key}` = {value} is not supported: {why}", path = path.display())]
    Unsupported {
        path: PathBuf,
        key: String,
        value: String,
        why: String,
    },

    /// A safetensors file whose bytes break the format.
    #[error("{path}: not a valid safetensors file: {why}; fetch it again", path = path.display())]
    Safetensors { path: PathBuf, why: String },

    /// The files of a checkpoint don't fit together: no weights, an index that names absent files, …
    #[error("{path}: {why}", path = path.display())]
    Checkpoint { path: PathBuf, why: String },

    /// Tensors that are missing, extra, mis-shaped or mis-typed for the config.
    #[error("{dir}: the checkpoint doesn't fit its config.json: {first}{more}", dir = dir.display(), more = more(*count, *shown))]
    Tensors {
        dir: PathBuf,
        /// The first few problems, joined by `; `.
        first: String,
        shown: usize,
        count: usize,
    },

    /// A tokenizer that is absent, can't be read or can't encode.
    #[error("{path}: {why}", path = path.display())]
    Tokenizer { path: PathBuf, why: String },

    /// A chat template that can't be compiled or rendered.
    #[error("{template}: chat template: {why}")]
    Template { template: String, why: String },

    /// A chat template whose turns can't be found exactly in what it renders.
    #[error(
        "{template}: chat template: can't tell exactly where message {message} ({role}) lies in the rendered text: {why}; give `text` or `tokens` with `spans` instead"
    )]
    Turns {
        template: String,
        message: usize,
        role: String,
        why: String,
    },

    /// Hub access is switched off and the cache has not what is needed.
    #[error("{model}: {missing} not in the cache ({cache}) and HF_HUB_OFFLINE is set; unset it, or give a local directory", cache = cache.display())]
    Offline {
        model: String,
        missing: String,
        cache: PathBuf,
    },

    /// The hub answered with an error, or not at all.
    #[error("{model}: {what} from {endpoint} failed: {why}")]
    Hub {
        model: String,
        what: String,
        endpoint: String,
        why: String,
    },
}

/// A result of the `model` module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn more(count: usize, shown: usize) -> String {
    match count - shown {
        0 => String::new(),
        rest => format!("; and {rest} more ({count} problems in all)"),
    }
}

/// Reads a file whole, naming it in the error.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        source,
    })
}

/// Reads a file whole if it exists.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Parses a JSON file that must hold an object.
pub(super) fn json_object(
    bytes: &[u8],
    path: &Path,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let bad = |why: String| Error::Json {
        path: path.to_path_buf(),
        why,
    };
    match serde_json::from_slice(bytes) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(bad("not a JSON object".into())),
        Err(e) => Err(bad(format!("not valid JSON: {e}"))),
    }
}
