//! A shard being written: slabs of mapped files for a batch's rows to land in, checksums as batches finish, then the commit.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::Value;

use super::error::{Error, Result};
use super::journal::{Found, Journal, Line, TapLine, sync_all};
use super::layout::{ShardLayout, TapLayout};
use super::lend::Lent;
use super::manifest::{
    Checksum, KeptColumn, SAMPLES, SamplesFile, ShardEntry, TapFile, TapInfo, Xxh3, sync_dir,
};
use super::widen::widen_tables;
use super::writer::Shared;
use crate::compact::{COSINE, LossSums, RELATIVE_ERROR};
use crate::sys::writable::{WritableMap, Writeback};

/// Bytes of rows, all taps together, after which the journal is to vouch for them and their memory is given back.
pub(super) const RELEASE_BYTES: usize = 64 << 20;

/// One tap's share of a batch: where its rows are to be written. Slabs of different taps never overlap.
#[derive(Debug)]
pub struct TapSlab<'a> {
    /// The batch's rows among the tap's rows in this shard.
    pub rows: Range<usize>,
    /// Bytes of the rows, in order, each of the tap's row shape; for a ragged tap the samples' [heads, rows, tokens] tensors end to end.
    pub activations: &'a mut [u8],
    /// Bytes of the I32 [rows, K] component numbers of a top-K tap. (Rows in 8 bits have several tensors beside them, which
    /// [`ShardWriter::put_side_rows`] writes.)
    pub index: Option<&'a mut [u8]>,
}

/// Checksums of the batches finished so far, for one tap.
#[derive(Debug, Default)]
struct BatchSums {
    rows: Vec<u64>,
    activations: Vec<Xxh3>,
    /// Of each side tensor.
    sides: Vec<Vec<Xxh3>>,
}

/// A shard whose files are reserved, mapped and laid out, and wait for their rows. Independent of the [`StoreWriter`](super::StoreWriter)
/// that began it: it may be committed on another thread while the next shard is begun. Dropped uncommitted, it leaves the store
/// as it was, and its files in `.partial/`.
#[derive(Debug)]
pub struct ShardWriter {
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) taps: Arc<[TapInfo]>,
    pub(super) index: usize,
    /// Place of the first sample among the samples written.
    pub(super) first: u64,
    pub(super) n_samples: usize,
    pub(super) layout: ShardLayout,
    /// One per tap.
    pub(super) maps: Vec<WritableMap>,
    /// Where the taps' files and the samples table lie until the commit.
    pub(super) tap_paths: Vec<PathBuf>,
    pub(super) table_path: PathBuf,
    pub(super) table: SamplesFile,
    pub(super) keep: Vec<KeptColumn>,
    pub(super) writeback: Writeback,
    /// Where finished batches are noted; none before the shard is wholly begun.
    pub(super) journal: Option<Journal>,
    pub(super) commit_every: Duration,
    pub(super) committed_at: Instant,
    sums: Vec<BatchSums>,
    pub(super) batches: Vec<u64>,
    /// What the engine gave with the last finished batch.
    pub(super) carry: Value,
    pub(super) lent: Lent,
    /// Samples in finished batches, and of these the ones whose pages were given back.
    pub(super) finished: usize,
    released: usize,
}

/// What [`ShardWriter`] is made of, gathered by `StoreWriter::begin_shard`.
pub(super) struct Begun {
    pub shared: Arc<Mutex<Shared>>,
    pub taps: Arc<[TapInfo]>,
    pub index: usize,
    pub first: u64,
    pub n_samples: usize,
    pub layout: ShardLayout,
    pub maps: Vec<WritableMap>,
    pub writeback: Writeback,
    pub tap_paths: Vec<PathBuf>,
    pub table_path: PathBuf,
    pub table: SamplesFile,
    pub keep: Vec<KeptColumn>,
    pub commit_every: Duration,
}

impl ShardWriter {
    pub(super) fn new(begun: Begun) -> Self {
        let Begun {
            shared,
            taps,
            index,
            first,
            n_samples,
            layout,
            maps,
            writeback,
            tap_paths,
            table_path,
            table,
            keep,
            commit_every,
        } = begun;
        let of_tap = |layout: &TapLayout| BatchSums {
            sides: vec![Vec::new(); layout.sides.len()],
            ..BatchSums::default()
        };
        let sums = layout.taps.iter().map(of_tap).collect();
        Self {
            shared,
            taps,
            index,
            first,
            n_samples,
            layout,
            maps,
            tap_paths,
            table_path,
            table,
            keep,
            writeback,
            journal: None,
            commit_every,
            committed_at: Instant::now(),
            sums,
            batches: Vec::new(),
            carry: Value::Null,
            lent: Lent::default(),
            finished: 0,
            released: 0,
        }
    }

    /// Believes the batches that an earlier process's journal vouches for, up to the first whose rows are not what it says; how much of
    /// the journal is kept.
    pub(super) fn take_up(&mut self, found: Found) -> u64 {
        let mut keep = if found.lines.is_empty() {
            0
        } else {
            found.head
        };
        for (line, end) in found.lines {
            let samples = self.finished..self.finished.saturating_add(line.samples as usize);
            if samples.is_empty() || samples.end > self.n_samples {
                break;
            }
            if self.sum(samples.clone()) != line.taps {
                break;
            }
            self.add(samples, line.taps);
            self.carry = line.carry;
            keep = end;
        }
        keep
    }

    /// Samples whose rows are there already, because an earlier process wrote them; of finished batches, in general.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// What came with the last finished batch ([`finish_batch_with`](Self::finish_batch_with)); null before the first.
    pub fn carry(&self) -> &Value {
        &self.carry
    }

    /// The taps' files, for those who make them durable.
    pub(super) fn files(&self) -> Vec<(Arc<File>, PathBuf)> {
        let files = self.maps.iter().map(WritableMap::file);
        files.zip(self.tap_paths.iter().cloned()).collect()
    }

    /// Each tap's checksums of the rows of some samples, none of which is lent.
    fn sum(&self, samples: Range<usize>) -> Vec<TapLine> {
        let taps = self.maps.par_iter().zip(&self.layout.taps);
        taps.map(|(map, layout)| TapLine {
            rows: (layout.row_starts[samples.end] - layout.row_starts[samples.start]) as u64,
            activations: Xxh3::of(map.part(layout.activations(samples.clone()))),
            sides: self::sides(map, layout, samples.clone()),
        })
        .collect()
    }

    /// Adds a batch to those finished.
    pub(super) fn add(&mut self, samples: Range<usize>, taps: Vec<TapLine>) {
        for (sums, tap) in self.sums.iter_mut().zip(taps) {
            sums.rows.push(tap.rows);
            sums.activations.push(tap.activations);
            for (sums, sum) in sums.sides.iter_mut().zip(tap.sides) {
                sums.push(sum);
            }
        }
        self.batches.push(samples.len() as u64);
        self.finished = samples.end;
    }

    /// The shard's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Samples in the shard.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Rows of a tap in this shard.
    pub fn rows(&self, tap: usize) -> usize {
        self.layout.rows(tap)
    }

    /// Rows of a tap that lie before those of the shard's `sample`-th sample.
    pub fn rows_before(&self, tap: usize, sample: usize) -> usize {
        self.layout.taps[tap].row_starts[sample]
    }

    /// The bytes of some rows of a tap's `activations`, in the mapped file.
    ///
    /// # Panics
    /// The rows are not in the shard, or the tap is ragged.
    pub fn slab(&mut self, tap: usize, rows: Range<usize>) -> &mut [u8] {
        assert!(
            !self.taps[tap].ragged,
            "tap {} is ragged: it has a slab per sample",
            self.taps[tap].folder
        );
        let layout = &self.layout.taps[tap];
        assert!(
            rows.end <= layout.rows(),
            "rows {rows:?} of {}",
            layout.rows()
        );
        let at = |row: usize| layout.header.len() + row * layout.row_bytes;
        &mut self.maps[tap].bytes_mut()[at(rows.start)..at(rows.end)]
    }

    /// The bytes of some rows of a top-K tap's `index`; empty for any other tap.
    ///
    /// # Panics
    /// The rows are not in the shard.
    pub fn index_slab(&mut self, tap: usize, rows: Range<usize>) -> &mut [u8] {
        let layout = &self.layout.taps[tap];
        assert!(
            rows.end <= layout.rows(),
            "rows {rows:?} of {}",
            layout.rows()
        );
        let bytes = match &layout.sides[..] {
            [side] => side.rows(rows),
            _ => 0..0,
        };
        &mut self.maps[tap].bytes_mut()[bytes]
    }

    /// Writes what some rows of a tap have in its side tensors: their side rows, one after the other.
    ///
    /// # Panics
    /// The rows are not in the shard, or have side rows of another length.
    pub fn put_side_rows(&mut self, tap: usize, rows: Range<usize>, side_rows: &[u8]) {
        let layout = &self.layout.taps[tap];
        let stride = layout.side_row_bytes();
        assert!(
            rows.end <= layout.rows() && side_rows.len() == rows.len() * stride,
            "{} bytes beside rows {rows:?} of {}",
            side_rows.len(),
            layout.rows()
        );
        let mut at = 0;
        for side in &layout.sides {
            let to = self.maps[tap].part_mut(side.rows(rows.clone()));
            let parts = side_rows.chunks_exact(stride).map(|row| &row[at..]);
            for (to, part) in to.chunks_exact_mut(side.row_bytes).zip(parts) {
                to.copy_from_slice(&part[..side.row_bytes]);
            }
            at += side.row_bytes;
        }
    }

    /// The bytes of one sample's [heads, rows, tokens] tensor in a ragged tap.
    ///
    /// # Panics
    /// The sample is not in the shard, or the tap is not ragged.
    pub fn ragged_slab(&mut self, tap: usize, sample: usize) -> &mut [u8] {
        assert!(
            self.taps[tap].ragged,
            "tap {} is not ragged",
            self.taps[tap].folder
        );
        let bytes = self.layout.taps[tap].activations(sample..sample + 1);
        &mut self.maps[tap].bytes_mut()[bytes]
    }

    /// Where all taps' rows of a range of the shard's samples are to be written: one slab per tap, in the order of the taps, all usable at once.
    ///
    /// # Panics
    /// The samples are not in the shard.
    pub fn batch_slabs(&mut self, samples: Range<usize>) -> Vec<TapSlab<'_>> {
        // Each slab borrows from a mapping of its own, so none can overlap another.
        let mut slabs = Vec::with_capacity(self.maps.len());
        for (map, layout) in self.maps.iter_mut().zip(&self.layout.taps) {
            let begin = layout
                .sides
                .first()
                .map_or(layout.sample_start, |s| s.start);
            let (data, rest) = map.bytes_mut().split_at_mut(begin);
            let index = layout.only_side(samples.clone());
            let index = index.map(|at| &mut rest[at.start - begin..at.end - begin]);
            slabs.push(TapSlab {
                rows: layout.rows_of(samples.clone()),
                activations: &mut data[layout.activations(samples.clone())],
                index,
            });
        }
        slabs
    }

    /// Says that all rows of a batch, the samples that follow the last finished batch's, are written: takes their checksums, starts
    /// them on their way to disk, notes them in the journal, and gives their memory back from time to time.
    ///
    /// # Errors
    /// The samples are not the ones that follow, the kernel refuses, or an earlier batch could not be made durable.
    pub fn finish_batch(&mut self, samples: Range<usize>) -> Result<()> {
        self.finish_batch_with(samples, Value::Null)
    }

    /// As [`finish_batch`](Self::finish_batch), with the caller's account of the run so far, which a resumed run is given back.
    ///
    /// # Errors
    /// As there.
    pub fn finish_batch_with(&mut self, samples: Range<usize>, carry: Value) -> Result<()> {
        if samples.start != self.finished
            || samples.end <= samples.start
            || samples.end > self.n_samples
        {
            return Err(Error::Plan(format!(
                "batch of samples {samples:?} finished out of turn: {} of {} are finished",
                self.finished, self.n_samples
            )));
        }
        let taps = self.sum(samples.clone());
        if let Some(journal) = &mut self.journal {
            journal.note(&Line {
                batch: self.batches.len(),
                samples: samples.len() as u64,
                taps: taps.clone(),
                carry: carry.clone(),
            })?;
        }
        self.carry = carry;
        self.add(samples, taps);

        let done = self.released..self.finished;
        let bytes = |l: &TapLayout| {
            let rows = l.rows_of(done.clone()).len();
            l.activations(done.clone()).len() + rows * l.side_row_bytes()
        };
        let many = self.layout.taps.iter().map(bytes).sum::<usize>() >= RELEASE_BYTES;
        if (many || self.committed_at.elapsed() >= self.commit_every)
            && self.finished < self.n_samples
            && let Some(journal) = &mut self.journal
        {
            journal.commit()?;
            self.committed_at = Instant::now();
        }
        if many {
            let taps = self.maps.par_iter_mut().zip(&self.layout.taps);
            taps.zip(&self.tap_paths)
                .try_for_each(|((map, layout), path)| {
                    let ranges = layout.side_ranges(done.clone());
                    for range in ranges.chain([layout.activations(done.clone())]) {
                        self.writeback.ask(map, range.clone());
                        map.drop_pages(range)
                            .map_err(|e| Error::io("release pages of", path, e))?;
                    }
                    Ok(())
                })?;
            self.released = self.finished;
        }
        Ok(())
    }

    /// Makes all finished batches durable, and returns when they are.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> Result<()> {
        self.finish_sent()?;
        self.journal.as_mut().map_or(Ok(()), Journal::flush)
    }

    /// Makes the shard part of the store: its files are made durable, renamed into their folders, the folders made durable, then
    /// the manifest that lists them takes the old one's place, which is the commit.
    ///
    /// # Errors
    /// A batch is unfinished, an earlier shard is not committed, or the disk fails; the store is then as it was before.
    pub fn commit(mut self) -> Result<()> {
        self.finish_written(true)?;
        if self.finished != self.n_samples {
            return Err(Error::Plan(format!(
                "shard {} has {} of its {} samples finished",
                self.index, self.finished, self.n_samples
            )));
        }
        let checksums = self.checksums();
        let losses = self.losses();
        let journal = self.journal.take().map(Journal::end);
        let maps: Vec<_> = self.maps.iter().zip(self.tap_paths.clone()).collect();
        sync_all(&maps, &|map: &&WritableMap| map.sync())?;
        drop(maps);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.manifest.shards.len() != self.index {
            return Err(Error::Plan(format!(
                "shard {} cannot be committed after {} shards",
                self.index,
                shared.manifest.shards.len()
            )));
        }
        let root = shared.root.clone();
        let mut files = Vec::with_capacity(self.taps.len());
        let parts = self
            .taps
            .iter()
            .zip(&self.layout.taps)
            .zip(self.sums)
            .zip(checksums)
            .zip(losses)
            .zip(&self.tap_paths);
        for (((((tap, layout), sums), checksums), loss), path) in parts {
            let file = format!("{}/{:05}.safetensors", tap.folder, self.index);
            let to = root.join(&file);
            fs::rename(path, &to).map_err(|e| Error::write(&to, 0, 0, e))?;
            files.push(TapFile {
                tap: tap.folder.clone(),
                file,
                rows: layout.rows() as u64,
                bytes: layout.file_bytes as u64,
                batch_rows: sums.rows,
                checksums,
                loss,
            });
        }
        let to = root.join(&self.table.file);
        fs::rename(&self.table_path, &to).map_err(|e| Error::write(&to, 0, 0, e))?;
        for folder in self.taps.iter().map(|t| t.folder.as_str()).chain([SAMPLES]) {
            sync_dir(&root.join(folder))?;
        }

        let mut manifest = shared.manifest.clone();
        let narrower = widen_tables(&root, &mut manifest, &self.keep)?;
        manifest.samples += self.n_samples as u64;
        manifest.carry = self.carry;
        manifest.shards.push(ShardEntry {
            index: self.index,
            first: self.first,
            count: self.n_samples as u64,
            batches: self.batches,
            samples_file: self.table,
            taps: files,
        });
        manifest.publish(&root)?;
        shared.manifest = manifest;
        // What is left of these is in nobody's way.
        for path in narrower.iter().chain(&journal) {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// What rounding to 8 bits lost of each tap.
    fn losses(&self) -> Vec<Option<LossSums>> {
        let taps = self.maps.iter().zip(&self.layout.taps);
        taps.map(|(map, layout)| {
            let of = |name: &str| {
                let side = layout.sides.iter().find(|side| side.name == name)?;
                Some(map.part(side.rows(0..layout.rows())))
            };
            Some(LossSums::of(of(RELATIVE_ERROR)?, of(COSINE)?))
        })
        .collect()
    }

    /// The checksums of each tap's file, part by part.
    fn checksums(&self) -> Vec<Vec<Checksum>> {
        let of_tap = |((map, layout), sums): ((&WritableMap, &TapLayout), &BatchSums)| {
            let plain = |part: &str, bytes: Range<usize>| Checksum {
                part: part.into(),
                xxh3: Xxh3::of(map.part(bytes)),
                batches: None,
            };
            let batched = |part: &str, batches: &[Xxh3]| Checksum {
                part: part.into(),
                xxh3: Xxh3::of_batches(batches),
                batches: Some(batches.to_vec()),
            };
            let mut parts = vec![
                plain("header", 0..layout.header.len()),
                batched("activations", &sums.activations),
            ];
            for (side, sums) in layout.sides.iter().zip(&sums.sides) {
                parts.push(batched(side.name, sums));
            }
            parts.extend(
                layout
                    .index_tensors()
                    .map(|(name, bytes)| plain(name, bytes)),
            );
            parts
        };
        self.maps
            .iter()
            .zip(&self.layout.taps)
            .zip(&self.sums)
            .map(of_tap)
            .collect()
    }
}

/// The checksums of what some samples' rows have in the side tensors.
pub(super) fn sides(map: &WritableMap, layout: &TapLayout, samples: Range<usize>) -> Vec<Xxh3> {
    let ranges = layout.side_ranges(samples);
    ranges.map(|range| Xxh3::of(map.part(range))).collect()
}
