//! Opens a store and gives its taps as mapped, typed views, shard by shard. Whatever a store says about itself is checked before it
//! is believed: the manifest and the listed files' lengths when it is opened, a file's header when it is mapped.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};

use super::error::{Error, Result};
use super::manifest::{MANIFEST, Manifest, ShardEntry, State, TapInfo, Xxh3, listed_file};
use super::samples::{KeptType, SampleRow, Selections};
use super::samples_read::{ReadTable, read_table};
use super::view::{RaggedView, ShardView};
use crate::compact::e4m3_to_f32;
use crate::sys::map::MappedFile;

/// A store opened for reading.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    manifest: Manifest,
}

impl Store {
    /// Opens the complete store at `dir`.
    ///
    /// # Errors
    /// No store, one that is partial, of another format version, or whose manifest and files do not agree.
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Self::open_any(dir)?;
        match store.manifest.state {
            State::Complete => Ok(store),
            State::Partial => Err(Error::Partial {
                path: dir.to_owned(),
            }),
        }
    }

    /// Opens a store in whatever state; of a partial one, what was committed. The manifest says which it is.
    ///
    /// # Errors
    /// As [`Store::open`], but for partial stores.
    pub fn open_any(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
        for shard in &manifest.shards {
            listed_file(&root, &shard.samples_file.file, shard.samples_file.bytes)?;
            for file in &shard.taps {
                listed_file(&root, &file.file, file.bytes)?;
            }
        }
        Ok(Self { root, manifest })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn taps(&self) -> &[TapInfo] {
        &self.manifest.taps
    }

    /// The tap with this folder, or the first one at this hook point.
    ///
    /// # Errors
    /// There is none; the message lists those there are.
    pub fn tap(&self, name: &str) -> Result<TapReader<'_>> {
        let at = |p: &dyn Fn(&TapInfo) -> bool| self.manifest.taps.iter().position(p);
        let found = at(&|t| t.folder == name).or_else(|| at(&|t| t.hook == name));
        let tap = found.ok_or_else(|| Error::NoTap {
            name: name.into(),
            known: self
                .manifest
                .taps
                .iter()
                .map(|t| t.folder.clone())
                .collect(),
        })?;
        Ok(self.tap_at(tap))
    }

    /// The tap at a place in [`Store::taps`].
    ///
    /// # Panics
    /// There is no such place.
    pub fn tap_at(&self, tap: usize) -> TapReader<'_> {
        let mut row_starts = vec![0];
        for shard in &self.manifest.shards {
            let rows = row_starts[row_starts.len() - 1] + shard.taps[tap].rows as usize;
            row_starts.push(rows);
        }
        let shards = self
            .manifest
            .shards
            .iter()
            .map(|_| OnceLock::new())
            .collect();
        TapReader {
            store: self,
            tap,
            info: Arc::new(self.manifest.taps[tap].clone()),
            row_starts,
            shards,
            runs: OnceLock::new(),
        }
    }

    /// All samples in the order written, with their tokens and kept fields; one shard's in memory at a time.
    pub fn samples(&self) -> impl Iterator<Item = Result<SampleRow>> + '_ {
        (0..self.manifest.shards.len()).flat_map(|shard| match self.read_table(shard) {
            Ok(table) => table.samples.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        })
    }

    /// The samples of one shard.
    ///
    /// # Errors
    /// Their table is damaged.
    ///
    /// # Panics
    /// There is no such shard.
    pub fn shard_samples(&self, shard: usize) -> Result<Vec<SampleRow>> {
        Ok(self.read_table(shard)?.samples)
    }

    /// Per sample of one shard: each tap's folder and where the sample's rows lie in that tap's file.
    ///
    /// # Errors
    /// Their table is damaged.
    ///
    /// # Panics
    /// There is no such shard.
    pub fn shard_selections(&self, shard: usize) -> Result<Vec<Selections>> {
        Ok(self.read_table(shard)?.selections)
    }

    fn read_table(&self, shard: usize) -> Result<ReadTable> {
        read_samples(&self.root, &self.manifest, &self.manifest.shards[shard])
    }
}

/// Reads a shard's samples table. Its checksum comes first: the Parquet decoder is then never shown bytes damaged on the disk.
pub(crate) fn read_samples(
    root: &Path,
    manifest: &Manifest,
    shard: &ShardEntry,
) -> Result<ReadTable> {
    let file = &shard.samples_file;
    let path = listed_file(root, &file.file, file.bytes)?;
    let map = MappedFile::open(&path).map_err(|e| Error::io("map", &path, e))?;
    if Xxh3::of(&map) != file.xxh3 {
        return Err(Error::damaged(&path, "its checksum is not the manifest's"));
    }
    let kind = |k: Option<KeptType>| {
        k.ok_or_else(|| Error::Manifest {
            path: root.join(MANIFEST),
            what: "a kept field without a type".into(),
        })
    };
    let keep = manifest
        .keep
        .iter()
        .map(|c| Ok((c.name.clone(), kind(c.kind)?)))
        .collect::<Result<Vec<_>>>()?;
    read_table(&path, &keep, file.rows)
        .map_err(|e| Error::damaged(&path, format!("no samples table ({e})")))
}

/// One tap of a store: a set of shards. Shards are mapped when first asked for, and stay mapped as long as the reader lives.
#[derive(Debug)]
pub struct TapReader<'s> {
    store: &'s Store,
    tap: usize,
    info: Arc<TapInfo>,
    /// First row of each shard, and the number of rows at the end.
    row_starts: Vec<usize>,
    shards: Vec<OnceLock<Arc<ShardView>>>,
    /// Runs of rows of one sample, by sample; built when a sample is first asked for.
    runs: OnceLock<Vec<Run>>,
}

/// Consecutive rows of one sample in one shard.
#[derive(Debug)]
struct Run {
    sample: i64,
    shard: usize,
    start: usize,
    end: usize,
}

impl TapReader<'_> {
    pub fn info(&self) -> &TapInfo {
        &self.info
    }

    /// Rows in all shards.
    pub fn rows(&self) -> usize {
        self.row_starts[self.row_starts.len() - 1]
    }

    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// One shard, mapped.
    ///
    /// # Errors
    /// Its file is damaged.
    ///
    /// # Panics
    /// There is no such shard.
    pub fn shard(&self, shard: usize) -> Result<Arc<ShardView>> {
        if let Some(view) = self.shards[shard].get() {
            return Ok(view.clone());
        }
        let entry = &self.store.manifest.shards[shard];
        let view = Arc::new(ShardView::open(
            &self.store.root,
            &self.info,
            entry,
            self.tap,
            self.row_starts[shard],
        )?);
        Ok(self.shards[shard].get_or_init(|| view).clone())
    }

    /// The shards in order.
    pub fn shards(&self) -> impl Iterator<Item = Result<Arc<ShardView>>> + '_ {
        (0..self.n_shards()).map(|i| self.shard(i))
    }

    /// Row `i` of the tap, counted over all shards.
    ///
    /// # Errors
    /// There is no such row, its file is damaged, or the tap is ragged.
    pub fn row(&self, i: usize) -> Result<RowView> {
        if i >= self.rows() {
            return Err(self.no(format!("has {} rows; there is no row {i}", self.rows())));
        }
        if self.info.ragged {
            return Err(
                self.no("is ragged: it has a tensor per sample, not rows; use `ragged`".into())
            );
        }
        let shard = self.row_starts.partition_point(|&start| start <= i) - 1;
        Ok(RowView {
            shard: self.shard(shard)?,
            row: i - self.row_starts[shard],
        })
    }

    /// The rows of the sample with this number in the dataset (of all its chunks), in order; none if the tap has none of it. The first call reads the `sample`
    /// tensors of all shards and keeps where each sample's rows are (32 bytes per sample).
    ///
    /// # Errors
    /// A file is damaged, or the tap is ragged.
    pub fn for_sample(&self, sample: u64) -> Result<Vec<RowView>> {
        if self.info.ragged {
            return Err(
                self.no("is ragged: it has a tensor per sample, not rows; use `ragged`".into())
            );
        }
        let runs = match self.runs.get() {
            Some(runs) => runs,
            None => {
                let found = self.find_runs()?;
                self.runs.get_or_init(|| found)
            }
        };
        let Ok(sample) = i64::try_from(sample) else {
            return Ok(Vec::new());
        };
        let mut rows = Vec::new();
        for run in &runs[runs.partition_point(|r| r.sample < sample)..] {
            if run.sample != sample {
                break;
            }
            let shard = self.shard(run.shard)?;
            rows.extend((run.start..run.end).map(|row| RowView {
                shard: shard.clone(),
                row,
            }));
        }
        Ok(rows)
    }

    /// A ragged tap's tensor of one sample (and chunk, 0 if it is whole); none if the store does not hold the sample.
    ///
    /// # Errors
    /// A file is damaged, or the tap is not ragged.
    pub fn ragged(&self, sample: u64, chunk: u32) -> Result<Option<RaggedView>> {
        if !self.info.ragged {
            return Err(self.no("is not ragged: it has rows; use `row` or `for_sample`".into()));
        }
        for shard in self.shards() {
            if let Some(view) = RaggedView::of(&shard?, sample, chunk) {
                return Ok(Some(view));
            }
        }
        Ok(None)
    }

    fn find_runs(&self) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        for shard in 0..self.n_shards() {
            for (row, sample) in self.shard(shard)?.sample().into_iter().enumerate() {
                match runs.last_mut() {
                    Some(run) if run.sample == sample && run.shard == shard => run.end = row + 1,
                    _ => runs.push(Run {
                        sample,
                        shard,
                        start: row,
                        end: row + 1,
                    }),
                }
            }
        }
        runs.sort_by_key(|r| (r.sample, r.shard, r.start));
        Ok(runs)
    }

    fn no(&self, what: String) -> Error {
        Error::Access {
            tap: self.info.folder.clone(),
            what,
        }
    }
}

/// One row of a tap.
#[derive(Debug, Clone)]
pub struct RowView {
    shard: Arc<ShardView>,
    row: usize,
}

impl RowView {
    /// Its bytes in the mapped file, in the tap's dtype and row shape.
    pub fn bytes(&self) -> &[u8] {
        self.shard.row(self.row)
    }

    /// Its numbers, widened to f32 (exactly), or read back from 8 bits.
    pub fn to_f32(&self) -> Vec<f32> {
        self.shard.rows_f32(self.row..self.row + 1)
    }

    /// What it has beside `activations`; see [`ShardView::side_row`].
    pub fn side_row(&self) -> Vec<u8> {
        self.shard.side_row(self.row)
    }

    /// Number of its sample in the dataset.
    pub fn sample(&self) -> i64 {
        self.shard.sample_of(self.row)
    }

    /// Its token's position in the sample; −1 for a row made of several.
    pub fn position(&self) -> i32 {
        self.shard.position_of(self.row)
    }

    /// Its token's id; −1 for a row made of several.
    pub fn token(&self) -> i32 {
        self.shard.token_of(self.row)
    }

    /// Which components the values of a top-K row are; none for other taps.
    pub fn index(&self) -> Option<Vec<i32>> {
        self.shard.index_of(self.row)
    }
}

/// A tap's rows as f32: widened, or read back from their codes and side rows.
pub(crate) fn to_f32(info: &TapInfo, bytes: &[u8], side_rows: Option<&[u8]>) -> Vec<f32> {
    let Some((compact, side)) = info.compact().zip(side_rows) else {
        return widen(info.dtype, bytes);
    };
    let mut numbers = vec![0.0; bytes.len()];
    let rows = bytes.chunks_exact(compact.width);
    let sides = side.chunks_exact(compact.side_bytes());
    let out = numbers.chunks_exact_mut(compact.width);
    for ((row, side), out) in rows.zip(sides).zip(out) {
        compact.dequantise(row, side, out);
    }
    numbers
}

/// Numbers of any dtype but 8 bits as f32, exactly; of 8 bits, the codes.
pub(crate) fn widen(dtype: super::StoreDtype, bytes: &[u8]) -> Vec<f32> {
    use super::StoreDtype::{BF16, F8E4M3, F16, F32, Int8};
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        F8E4M3 => bytes.iter().map(|&b| e4m3_to_f32(b)).collect(),
        Int8 => bytes.iter().map(|&b| f32::from(b.cast_signed())).collect(),
    }
}
