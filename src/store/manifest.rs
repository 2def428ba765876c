//! The manifest: what the store holds, from what and how it was made. A file that it does not list does not exist.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::format::StoreDtype;
use super::samples::KeptType;
use crate::compact::{Compact, Loss, LossSums, WIDEST};
use crate::sys::writable::create_anew;

/// The version of the on-disk format, written to every manifest and tap file.
pub const FORMAT_VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PARTIAL: &str = ".partial";
pub(crate) const SAMPLES: &str = "samples";
/// A manifest longer than this is refused rather than read into memory.
const MAX_MANIFEST: u64 = 2 << 30;

/// Whether the run that writes the store has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Partial,
    Complete,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Complete => "complete",
        }
    }
}

/// An xxh3-64 checksum; 16 hexadecimal digits in JSON, which has no 64-bit integers that every reader keeps exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xxh3(pub u64);

impl Xxh3 {
    /// The checksum of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(bytes))
    }

    /// The checksum of a tensor from its batches': over their concatenation, 8 little-endian bytes each.
    pub fn of_batches(batches: &[Xxh3]) -> Self {
        Self::of(
            &batches
                .iter()
                .flat_map(|h| h.0.to_le_bytes())
                .collect::<Vec<u8>>(),
        )
    }
}

impl fmt::Display for Xxh3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Xxh3 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Xxh3 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match u64::from_str_radix(&text, 16) {
            Ok(h) if text.len() == 16 => Ok(Self(h)),
            _ => Err(de::Error::custom(format!(
                "{text:?} is no xxh3-64 checksum"
            ))),
        }
    }
}

/// One tap: what it reads, and how its rows are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapInfo {
    /// Canonical name of the hook point.
    pub hook: String,
    /// Folder of its files in the store: the hook point's name, `…~2` for the second tap there.
    pub folder: String,
    pub selection: String,
    /// Empty when there is none.
    #[serde(default)]
    pub reduction: String,
    /// The heads taken, where the tap chose some.
    #[serde(default)]
    pub heads: Option<Vec<usize>>,
    pub dtype: StoreDtype,
    /// Shape of one row of `activations`, after heads and reduction; `[heads]` for a ragged tap, whose samples are [heads, rows, tokens] each.
    pub row_shape: Vec<usize>,
    #[serde(default)]
    pub ragged: bool,
    /// `|top:K` and `|logprob:K`: a second tensor `index`, I32 [rows, K], holds which components the K values are.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// The seed that a random order of each shard's rows is drawn by: `order`, I32 `[rows]`, then names them in it. The rows themselves lie
    /// in the order of samples all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_seed: Option<u64>,
}

impl TapInfo {
    /// The 8-bit form of its rows, if they have one.
    pub fn compact(&self) -> Option<Compact> {
        self.dtype.code().map(|code| Compact {
            code,
            width: self.row_shape.iter().product(),
        })
    }
}

/// The model that ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What the user asked for: a hub id or a path.
    pub id: String,
    pub path: String,
    /// Hash of its config and of its weight files' headers and sizes.
    pub fingerprint: String,
}

/// The dataset it ran over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    pub paths: Vec<String>,
    /// Which field held the input, and what else was read from the records.
    #[serde(default)]
    pub fields: Value,
    /// Hash of the files' contents; none for standard input.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Samples in it, once counted.
    #[serde(default)]
    pub samples: Option<u64>,
    #[serde(default)]
    pub skipped: u64,
}

/// What a run is made from and how, known before its first row. The sections of type `Value` are the engine's own: the store
/// keeps them and does not look inside.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub engine_version: String,
    pub model: ModelInfo,
    #[serde(default)]
    pub tokenizer_fingerprint: Option<String>,
    pub dataset: DatasetInfo,
    /// Source of the chat template, where one was used.
    #[serde(default)]
    pub chat_template: Option<String>,
    pub compute_dtype: String,
    pub store_dtype: String,
    pub backend: String,
    pub device: String,
    pub kernel_build: String,
    /// Most tokens in a batch.
    pub batch_tokens: u64,
    /// The resolved job, field by field: what a resumed run must equal.
    #[serde(default)]
    pub job: Value,
    /// The part of the dataset that the run reads, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<Slice>,
    /// What taps project on: xxh3-64 of each tap's directions, none for a tap without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directions: Vec<Option<Xxh3>>,
    #[serde(default)]
    pub edits: Vec<Value>,
    #[serde(default)]
    pub receipts: Vec<Value>,
    /// What bit-exactness hangs on: instruction set, matrix product, its chunking.
    #[serde(default)]
    pub numeric_record: Value,
    /// How rows got from the backend to the files.
    #[serde(default)]
    pub write_path: Value,
}

/// A run of the dataset's records: one of several that follow one another and together are the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Which one, from 0, of how many.
    pub index: u64,
    pub of: u64,
    /// Its first record's number in the dataset, and one past its last one's.
    pub first: u64,
    pub end: u64,
    /// Records in the dataset.
    pub records: u64,
}

/// A column of the samples table that `--keep` asked for. Its type is settled by the first shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Option<KeptType>,
}

/// One committed shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardEntry {
    pub index: usize,
    /// Place of its first sample among the samples written (not in the dataset: some may have been skipped or chunked).
    pub first: u64,
    /// Number of samples (a chunked sample counts once per chunk).
    pub count: u64,
    /// Samples per batch, in order; they add up to `count`.
    pub batches: Vec<u64>,
    pub samples_file: SamplesFile,
    /// One per tap, in the order of the manifest's `taps`.
    pub taps: Vec<TapFile>,
}

/// A committed `samples/NNNNN.parquet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplesFile {
    /// Path from the store's directory.
    pub file: String,
    pub rows: u64,
    pub bytes: u64,
    pub xxh3: Xxh3,
}

/// A committed file of one tap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TapFile {
    /// Its tap's folder, as in `taps`.
    pub tap: String,
    /// Path from the store's directory.
    pub file: String,
    pub rows: u64,
    pub bytes: u64,
    /// Rows per batch.
    pub batch_rows: Vec<u64>,
    /// Checksums that together cover every byte of the file, in the order of the bytes.
    pub checksums: Vec<Checksum>,
    /// Of rows in 8 bits: what was lost, added up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossSums>,
}

/// The checksum of one part of a tap file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checksum {
    /// A tensor's name; `header` for everything before the data; `activations` stands for all samples' tensors of a ragged tap.
    pub part: String,
    /// Of the part's bytes; of its batches' checksums where it has `batches`.
    pub xxh3: Xxh3,
    /// Of the rows of each batch, for what is written batch by batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batches: Option<Vec<Xxh3>>,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format_version: u32,
    pub state: State,
    #[serde(flatten)]
    pub provenance: Provenance,
    pub taps: Vec<TapInfo>,
    pub keep: Vec<KeptColumn>,
    /// Samples in the committed shards.
    pub samples: u64,
    /// The mean Euclidean norm of each tap's rows, by its folder; null where it has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub mean_norms: Value,
    /// What rounding to 8 bits lost, by the tap's folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, Loss>,
    #[serde(default)]
    pub timing: Value,
    #[serde(default)]
    pub stalls: Value,
    /// Processes that worked on the store: 1, and 1 more for each resumption.
    #[serde(default = "one")]
    pub attempts: u64,
    /// The engine's account of the run up to the last listed shard, while there is more to come.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub carry: Value,
    pub shards: Vec<ShardEntry>,
}

fn one() -> u64 {
    1
}

impl Manifest {
    /// Reads and checks the manifest of the store at `dir`: lists and totals agree, no path leads out of the store.
    ///
    /// # Errors
    /// There is none, it is of another format version, or it does not hold together.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let wrong = |what: String| Error::Manifest {
            path: path.clone(),
            what,
        };
        let meta = fs::metadata(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound if dir.is_dir() => Error::Manifest {
                path: dir.to_owned(),
                what: match super::statistics::StatisticsManifest::is_in(dir) {
                    true => "holds statistics and no rows: `analyze` pca, lat, mean-diff and probe --ridge read it".into(),
                    false => "not a store (it has no manifest.json); give the directory that extract wrote".into(),
                },
            },
            _ if !dir.is_dir() => Error::Manifest {
                path: dir.to_owned(),
                what: match dir.exists() {
                    true => "not a store, which is a directory; give the one that extract wrote".into(),
                    false => "no such directory; check the path".into(),
                },
            },
            _ => Error::io("read", &path, e),
        })?;
        if !meta.is_file() || meta.len() > MAX_MANIFEST {
            return Err(wrong(
                "no manifest (not a regular file, or larger than 2 GiB)".into(),
            ));
        }
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|f| f.take(MAX_MANIFEST).read_to_end(&mut text))
            .map_err(|e| Error::io("read", &path, e))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("no valid JSON ({e})")))?;
        match value.get("format_version") {
            Some(v) if v.as_u64() == Some(FORMAT_VERSION.into()) => {}
            Some(v) => {
                return Err(Error::FormatVersion {
                    path,
                    found: v.to_string(),
                });
            }
            None => {
                return Err(wrong(
                    "no format_version: not the manifest of a store".into(),
                ));
            }
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    /// Replaces the manifest of the store at `dir`: temporary file, `fsync`, rename, `fsync` of the directory. The rename is the commit.
    pub(crate) fn publish(&self, dir: &Path) -> Result<()> {
        let temp = dir.join(PARTIAL).join(MANIFEST);
        let text = self.to_json();
        let written = create_anew(&temp).and_then(|mut f| {
            f.write_all(text.as_bytes())?;
            f.sync_all()
        });
        written.map_err(|e| Error::write(&temp, text.len() as u64, 0, e))?;
        let path = dir.join(MANIFEST);
        fs::rename(&temp, &path).map_err(|e| Error::write(&path, 0, 0, e))?;
        sync_dir(dir)
    }

    /// The manifest as written: one line per entry, lists of numbers and short objects kept on theirs.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        // Plain data with string keys: it always serializes.
        render(&serde_json::to_value(self).unwrap_or_default(), 0, &mut out);
        out.push('\n');
        out
    }

    /// The loss of each tap with rows in 8 bits, over the committed shards.
    pub fn sum_losses(&self) -> BTreeMap<String, Loss> {
        let of_tap = |t: usize| {
            let mut sums = LossSums::default();
            let files = self.shards.iter().filter_map(|shard| shard.taps.get(t));
            files
                .filter_map(|f| f.loss.as_ref())
                .for_each(|l| sums.join(l));
            sums.loss()
        };
        let taps = self.taps.iter().enumerate();
        taps.filter_map(|(t, tap)| Some((tap.folder.clone(), of_tap(t)?)))
            .collect()
    }

    fn check(&self) -> Result<(), String> {
        check_taps(&self.taps)?;
        let mut files = HashSet::new();
        let mut first = 0u64;
        for (i, shard) in self.shards.iter().enumerate() {
            let lists = |what: &str| format!("shard {i}: {what}");
            if shard.index != i || shard.first != first {
                return Err(lists("not the one that follows those before it"));
            }
            first = first
                .checked_add(shard.count)
                .ok_or_else(|| lists("count overflows"))?;
            if sum(&shard.batches) != Some(shard.count) || shard.samples_file.rows != shard.count {
                return Err(lists(
                    "samples of batches, table and shard differ in number",
                ));
            }
            if shard.taps.len() != self.taps.len() {
                return Err(lists("not one file per tap"));
            }
            let paths = shard
                .taps
                .iter()
                .map(|t| &t.file)
                .chain([&shard.samples_file.file]);
            for file in paths {
                check_relative(file)?;
                if !files.insert(file) {
                    return Err(lists(&format!("{file} is listed twice")));
                }
            }
            for (tap, file) in self.taps.iter().zip(&shard.taps) {
                if file.tap != tap.folder {
                    return Err(lists(&format!(
                        "{} where the file of tap {} belongs",
                        file.file, tap.folder
                    )));
                }
                // Every row has 16 bytes of index tensors: a count that its file cannot hold is a lie.
                if file.rows > file.bytes / 16 {
                    return Err(lists(&format!(
                        "{}: {} rows do not fit {} bytes",
                        file.file, file.rows, file.bytes
                    )));
                }
                let n = shard.batches.len();
                if file.batch_rows.len() != n
                    || sum(&file.batch_rows) != Some(file.rows)
                    || file
                        .checksums
                        .iter()
                        .any(|c| c.batches.as_ref().is_some_and(|b| b.len() != n))
                {
                    return Err(lists(&format!(
                        "{}: batches and rows differ in number",
                        file.file
                    )));
                }
            }
        }
        if first != self.samples {
            return Err(format!(
                "the shards hold {first} samples, not {}",
                self.samples
            ));
        }
        Ok(())
    }
}

/// Checks what any store's taps must be: distinct folders of one plain name each, shapes that multiply.
pub(crate) fn check_taps(taps: &[TapInfo]) -> Result<(), String> {
    let mut folders = HashSet::new();
    for tap in taps {
        let folder = &tap.folder;
        let plain = matches!(Path::new(folder).components().collect::<Vec<_>>()[..], [Component::Normal(c)] if c == folder.as_str());
        if !plain
            || folder.contains('\\')
            || [MANIFEST, PARTIAL, SAMPLES].contains(&folder.as_str())
        {
            return Err(format!("{folder:?} cannot be a tap's folder"));
        }
        if !folders.insert(folder) {
            return Err(format!("two taps have the folder {folder}"));
        }
        if tap.ragged && (tap.row_shape.len() != 1 || tap.top_k.is_some()) {
            return Err(format!(
                "tap {folder}: a ragged tap has the row shape [heads] and no reduction"
            ));
        }
        if tap.ragged && tap.order_seed.is_some() {
            return Err(format!(
                "tap {folder}: a ragged tap has a tensor per sample and no order of rows"
            ));
        }
        if tap.top_k.is_some_and(|k| tap.row_shape != [k]) {
            return Err(format!("tap {folder}: the row shape of a top-K tap is [K]"));
        }
        if tap
            .row_shape
            .iter()
            .try_fold(tap.dtype.size(), |n, &d| n.checked_mul(d))
            .is_none()
        {
            return Err(format!(
                "tap {folder}: the row shape {:?} overflows",
                tap.row_shape
            ));
        }
        if let Some(compact) = tap.compact()
            && (tap.ragged || tap.top_k.is_some() || !(1..=WIDEST).contains(&compact.width))
        {
            return Err(format!(
                "tap {folder}: {} is for rows of 1 to {WIDEST} numbers, not for patterns, scores or the largest of a row",
                tap.dtype
            ));
        }
    }
    Ok(())
}

/// Refuses a listed path that is not a plain descent from the store's directory.
fn check_relative(file: &str) -> Result<(), String> {
    let plain = !file.is_empty()
        && Path::new(file)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
    if plain {
        Ok(())
    } else {
        Err(format!(
            "lists {file:?}, a path that leads out of the store"
        ))
    }
}

/// The file that the manifest of the store at `root` (canonical) lists as `file`, provided it is one: regular, of this length,
/// and inside the store when every link is followed.
pub(crate) fn listed_file(root: &Path, file: &str, bytes: u64) -> Result<PathBuf> {
    let listed = root.join(file);
    let path = listed.canonicalize().map_err(|e| {
        Error::damaged(
            &listed,
            format!("listed in the manifest, but cannot be found ({e})"),
        )
    })?;
    if !path.starts_with(root) {
        return Err(Error::damaged(
            &listed,
            "is a link that leads out of the store",
        ));
    }
    let meta = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?;
    if !meta.is_file() {
        return Err(Error::damaged(&listed, "is not a regular file"));
    }
    if meta.len() != bytes {
        return Err(Error::damaged(
            &listed,
            format!("has {} bytes where the manifest says {bytes}", meta.len()),
        ));
    }
    Ok(path)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io("sync", dir, e))
}

fn sum(counts: &[u64]) -> Option<u64> {
    counts.iter().try_fold(0u64, |n, &c| n.checked_add(c))
}

/// Pretty JSON whose innermost lists and objects stay on one line: thousands of batch checksums are not thousands of lines.
fn render(value: &Value, depth: usize, out: &mut String) {
    let is_scalar = |v: &Value| !v.is_array() && !v.is_object();
    let short =
        |map: &Map<String, Value>| map.is_empty() || depth > 1 && map.values().all(is_scalar);
    let indent = |out: &mut String, n: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', n));
    };
    match value {
        Value::Object(map) if !short(map) => {
            out.push('{');
            for (i, (key, v)) in map.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                indent(out, depth + 1);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                render(v, depth + 1, out);
            }
            indent(out, depth);
            out.push('}');
        }
        Value::Array(list) if !list.iter().all(is_scalar) => {
            out.push('[');
            for (i, v) in list.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                indent(out, depth + 1);
                render(v, depth + 1, out);
            }
            indent(out, depth);
            out.push(']');
        }
        flat => out.push_str(&flat.to_string()),
    }
}
