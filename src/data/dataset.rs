//! The dataset: its files one after another, a record at a time.

use super::csv::TableReader;
use super::error::{Error, Result};
use super::fields::{Wanted, interpret};
use super::files::{self, Form, Packing, Source};
use super::json::JsonReader;
use super::jsonl::JsonlReader;
use super::lines::text_input;
use super::order::{Fraction, Shuffle};
use super::parquet::ParquetReader;
use super::source::{MAX_RECORD_BYTES, RecordReader};
use super::spool::{Entry, Filling, Spool};
use super::txt::TxtReader;
use super::unpack::unpacked;
use super::{ReadOptions, Record};
use crate::permutation::Permutation;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use xxhash_rust::xxh3::Xxh3;

/// Of the bad records that were skipped, the first few reasons are kept for the report.
const REASONS_KEPT: usize = 5;

/// A dataset, read in order: an iterator of records that ends after its first error.
///
/// It holds about one record at a time, whatever the size of the files, and may be moved to a thread of
/// its own. With [`ReadOptions::skip_bad`] bad records are counted and passed over; they keep their index.
pub struct Dataset {
    sources: Vec<Source>,
    paths: Vec<PathBuf>,
    wanted: Wanted,
    skip_bad: bool,
    limit: Option<u64>,
    fraction: Option<Fraction>,
    /// How the records are to be shuffled, until they are.
    shuffle: Option<Shuffle>,
    /// The records in their order, where that is not the files'.
    spool: Option<Spool>,
    /// Which part of the order is wanted; records before it are passed over.
    part: Range<u64>,
    /// Records taken in all, where they were counted.
    counted: Option<u64>,
    current: Option<Box<dyn RecordReader>>,
    /// Sources begun.
    opened: usize,
    /// Bytes of each source; `None` where standard input is among them.
    lengths: Option<Vec<u64>>,
    /// Bytes read of the current source.
    read: Arc<AtomicU64>,
    /// Records seen in the files, bad ones counted.
    seen: u64,
    /// Places of the order that were passed.
    passed: u64,
    skipped: u64,
    skip_reasons: Vec<String>,
    done: bool,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("paths", &self.paths)
            .field("seen", &self.seen)
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

impl Dataset {
    /// The files that `patterns` stand for: files, globs, directories, or `-` for JSONL on stdin.
    ///
    /// Fails on a missing or unreadable file, a glob or directory without data files, an extension that
    /// names no form, a file named twice, and fields asked of `.txt` files, which have none. What the
    /// files hold is looked at only as they are read.
    pub fn open(patterns: &[String], options: ReadOptions) -> Result<Dataset> {
        let wanted = Wanted::new(&options)?;
        let sources = files::find(patterns)?;
        for source in sources.iter().filter(|s| s.form == Form::Txt) {
            refuse_fields(source, &wanted)?;
        }
        Ok(Dataset {
            paths: sources.iter().map(|s| s.path.clone()).collect(),
            lengths: lengths(&sources),
            sources,
            wanted,
            skip_bad: options.skip_bad,
            limit: options.limit,
            fraction: options.fraction,
            shuffle: options.shuffle,
            spool: None,
            part: 0..u64::MAX,
            counted: None,
            current: None,
            opened: 0,
            read: Arc::default(),
            seen: 0,
            passed: 0,
            skipped: 0,
            skip_reasons: Vec::new(),
            done: false,
        })
    }

    /// Only the records at these places of the order, which was counted to have `of`. Those before are read, since only that tells
    /// where they end, and whether they are good does not count.
    pub fn only(mut self, part: Range<u64>, of: u64) -> Dataset {
        self.part = part;
        self.counted = Some(of);
        self
    }

    /// The first of the files that can be read only once: standard input, a named pipe.
    pub fn stream(&self) -> Option<&std::path::Path> {
        let source = self.sources.iter().find(|s| s.is_stream())?;
        Some(&source.path)
    }

    /// The files, in the order they are read; `-` for standard input.
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Places of the order that were passed: those of the records given out, of the bad ones that were skipped, and of those before the
    /// part that is read.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Up to `n` further records, each with its place in the order. Places are counted from 0 over all records that are taken, bad ones
    /// among them: they are the records' indices, but for [`ReadOptions::fraction`] and [`ReadOptions::shuffle`].
    ///
    /// # Errors
    /// The first one's.
    pub fn next_placed(&mut self, n: usize) -> Result<Vec<(u64, Record)>> {
        let mut placed = Vec::new();
        while placed.len() < n
            && let Some(record) = self.next()
        {
            // An error passes no place.
            let record = record?;
            placed.push((self.passed - 1, record));
        }
        Ok(placed)
    }

    /// Bad records passed over so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Why the first few of them were bad, each with its file and place.
    pub fn skip_reasons(&self) -> &[String] {
        &self.skip_reasons
    }

    /// The share of the dataset that was read so far, in 0..=1; `None` where standard input hides how much there is.
    /// By bytes, and by records where there is a limit; readers buffer some 256 KiB, so small files are read at once.
    pub fn fraction_read(&self) -> Option<f64> {
        if self.done {
            return Some(1.0);
        }
        let by_bytes = self.lengths.as_ref().map(|lengths| {
            let (begun, ahead) = lengths.split_at(self.opened);
            let current = if self.current.is_some() {
                begun.last().copied().unwrap_or(0)
            } else {
                0
            };
            let begun: u64 = begun.iter().sum();
            let total = begun + ahead.iter().sum::<u64>();
            let read = begun - current + self.read.load(Relaxed).min(current);
            read as f64 / total.max(1) as f64
        });
        if let Some(spool) = &self.spool {
            let end = self.part.end.min(spool.len());
            let (passed, all) = (
                self.passed - self.part.start.min(self.passed),
                end - self.part.start.min(end),
            );
            return Some(passed as f64 / all.max(1) as f64);
        }
        let by_records = self.limit.map(|n| self.seen as f64 / n.max(1) as f64);
        let end = self.part.end.max(1);
        let by_part = self.counted.map(|_| self.passed as f64 / end as f64);
        by_bytes
            .into_iter()
            .chain(by_records)
            .chain(by_part)
            .reduce(f64::max)
    }

    /// xxh3-128, in hex, over each file's extension, its length and its contents, in order; `None` where
    /// standard input or a pipe is among them, which cannot be read twice. Reads the files whole, in pieces.
    pub fn fingerprint(&self) -> Result<Option<String>> {
        if self.sources.iter().any(Source::is_stream) {
            return Ok(None);
        }
        let mut hash = Xxh3::new();
        let mut piece = vec![0; 1 << 20];
        for source in &self.sources {
            // Not the name: a dataset that was moved is the same one. The extension says how it is read.
            let name = source.extension();
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(&name);
            let length =
                hash_file(source, &mut hash, &mut piece).map_err(|e| io_error(source, e))?;
            hash.update(&length.to_le_bytes());
        }
        Ok(Some(format!("{:032x}", hash.digest128())))
    }

    /// The next record, bad or good.
    fn read_one(&mut self) -> Option<Result<Record>> {
        loop {
            let reader = match &mut self.current {
                Some(reader) => reader,
                None => {
                    let source = self.sources.get(self.opened)?;
                    self.opened += 1;
                    self.read.store(0, Relaxed);
                    match open_reader(source, &self.wanted, &self.read) {
                        Ok(reader) => self.current.insert(reader),
                        Err(error) => return Some(Err(error)),
                    }
                }
            };
            let raw = match reader.next_record(&self.wanted) {
                None => {
                    self.current = None;
                    if let Some(error) = self.shortened() {
                        return Some(Err(error));
                    }
                    continue;
                }
                Some(Err(error)) => {
                    self.seen += u64::from(matches!(error, Error::Record { .. }));
                    return Some(Err(error));
                }
                Some(Ok(raw)) => raw,
            };
            let index = self.seen;
            self.seen += 1;
            let file = self.sources[self.opened - 1].file.clone();
            return Some(match interpret(raw.body, &self.wanted) {
                Ok((input, spans, kept)) => Ok(Record {
                    index,
                    file,
                    line: raw.place.number(),
                    input,
                    spans,
                    kept,
                }),
                Err((what, remedy)) => Err(Error::Record {
                    file,
                    place: raw.place,
                    what,
                    remedy,
                }),
            });
        }
    }

    /// Says so if the file that was read to its end is shorter than it was when the dataset was opened: its end is not the dataset's.
    fn shortened(&self) -> Option<Error> {
        let at = self.opened.checked_sub(1)?;
        let source = &self.sources[at];
        let before = *self.lengths.as_ref()?.get(at)?;
        // One that was removed was read to its end all the same.
        let now = std::fs::metadata(&source.path).ok()?.len();
        (now < before).then(|| Error::File {
            file: source.file.clone(),
            place: None,
            what: format!("was cut short while it was read, from {before} bytes to {now}"),
            remedy: "put it back and run again".into(),
        })
    }

    /// What is wrong with a dataset that ended without one good record, if that is so.
    fn nothing_read(&self) -> Option<Error> {
        if self.passed > self.skipped + self.part.start || self.limit == Some(0) {
            return None;
        }
        let file = match self.sources.as_slice() {
            [only] => only.file.to_string(),
            all => format!("{} and {} more", all.first()?.file, all.len() - 1),
        };
        Some(match self.skip_reasons.first() {
            None if self.seen > 0 && self.passed == 0 => Error::NoneTaken {
                file,
                records: self.seen,
            },
            None => Error::NoRecords(file),
            Some(first) => Error::AllBad {
                file,
                skipped: self.skipped,
                first: first.clone(),
            },
        })
    }
}

impl Dataset {
    /// The next record of the files that is taken, bad or good.
    fn read_taken(&mut self) -> Option<Result<Record>> {
        loop {
            if self.limit.is_some_and(|limit| self.seen >= limit) {
                return None;
            }
            let index = self.seen;
            let read = self.read_one()?;
            if let Err(Error::Record { .. }) | Ok(_) = read
                && self.fraction.is_some_and(|f| !f.takes(index))
            {
                continue;
            }
            return Some(read);
        }
    }

    /// Reads the files to their end, so that records can be given out in the order that `shuffle` says.
    fn spool(&mut self, shuffle: &Shuffle) -> Result<Spool> {
        let known = self.counted.map(|n| Permutation::new(n, shuffle.seed));
        let mut filling = Filling::new(&shuffle.scratch)?;
        while let Some(read) = self.read_taken() {
            let number = filling.len();
            let wanted = match known {
                Some(_) if self.counted.is_some_and(|n| number >= n) => return Err(self.changed()),
                Some(order) => self.part.contains(&order.place_of(number)),
                None => true,
            };
            let entry = match read {
                Ok(record) => Entry::Good(self.opened - 1, record),
                Err(error @ Error::Record { .. }) if !wanted || self.skip_bad => {
                    Entry::Bad(error.to_string())
                }
                Err(error) => return Err(error),
            };
            filling.push(wanted.then_some(&entry))?;
        }
        let n = filling.len();
        if self.counted.is_some_and(|counted| counted != n) {
            return Err(self.changed());
        }
        let files = self.sources.iter().map(|s| s.file.clone()).collect();
        filling.done(Permutation::new(n, shuffle.seed), files)
    }

    /// There are not as many records as there were.
    fn changed(&self) -> Error {
        Error::File {
            file: self
                .sources
                .first()
                .map_or_else(|| "the dataset".into(), |s| s.file.clone()),
            place: None,
            what: "the dataset changed between being counted and being read".to_owned(),
            remedy: "let nobody write to it, and run again".into(),
        }
    }

    /// The record at the next place of the order, or why it is passed over.
    fn step(&mut self) -> Option<Result<Result<Record, String>>> {
        if let Some(shuffle) = self.shuffle.take() {
            match self.spool(&shuffle) {
                Ok(spool) => self.spool = Some(spool),
                Err(error) => return Some(Err(error)),
            }
        }
        let before = self.passed < self.part.start;
        if let Some(spool) = &self.spool {
            return match (self.passed < spool.len(), before) {
                (false, _) => None,
                (true, true) => Some(Ok(Err(String::new()))),
                (true, false) => Some(spool.at(self.passed)),
            };
        }
        Some(match self.read_taken()? {
            Ok(record) => Ok(Ok(record)),
            Err(error @ Error::Record { .. }) if before || self.skip_bad => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error),
        })
    }
}

impl Iterator for Dataset {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        while !self.done {
            let within = self.passed < self.part.end;
            match within.then(|| self.step()).flatten() {
                None => {
                    self.done = true;
                    return self.nothing_read().map(Err);
                }
                Some(Err(error)) => {
                    self.done = true;
                    return Some(Err(error));
                }
                Some(Ok(read)) => {
                    self.passed += 1;
                    if self.passed <= self.part.start {
                        continue;
                    }
                    match read {
                        Ok(record) => return Some(Ok(record)),
                        Err(reason) => {
                            self.skipped += 1;
                            if self.skip_reasons.len() < REASONS_KEPT {
                                self.skip_reasons.push(reason);
                            }
                        }
                    }
                }
            }
        }
        None
    }
}

impl std::iter::FusedIterator for Dataset {}

fn io_error(source: &Source, error: io::Error) -> Error {
    Error::Io {
        file: source.file.to_string(),
        line: None,
        source: error,
    }
}

/// Bytes of each file; one that cannot be looked at counts as empty, and its own error comes when it is read.
fn lengths(sources: &[Source]) -> Option<Vec<u64>> {
    let length = |s: &Source| std::fs::metadata(&s.path).map_or(0, |m| m.len());
    let known = sources.iter().all(|s| !s.is_stream());
    known.then(|| sources.iter().map(length).collect())
}

/// Counts what is read through it.
struct Counted<R> {
    input: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.bytes.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

fn open_reader(
    source: &Source,
    wanted: &Wanted,
    read: &Arc<AtomicU64>,
) -> Result<Box<dyn RecordReader>> {
    let input: Box<dyn Read + Send> = if source.is_stdin() {
        Box::new(io::stdin())
    } else {
        let file = File::open(&source.path).map_err(|e| io_error(source, e))?;
        if source.form == Form::Parquet {
            return Ok(Box::new(ParquetReader::new(
                source.file.clone(),
                file,
                wanted,
                read.clone(),
            )?));
        }
        let counted = Box::new(Counted {
            input: file,
            bytes: read.clone(),
        });
        unpacked(Packing::of(&source.path), counted).map_err(|e| io_error(source, e))?
    };
    open_text(source.form, source.file.clone(), input, wanted)
}

/// The reader of a form that is text.
pub(super) fn open_text(
    form: Form,
    file: Arc<str>,
    input: Box<dyn Read + Send>,
    wanted: &Wanted,
) -> Result<Box<dyn RecordReader>> {
    let input = text_input(&file, input)?;
    let limit = MAX_RECORD_BYTES;
    Ok(match form {
        Form::Json => Box::new(JsonReader::new(file, input, limit)),
        Form::Csv => Box::new(TableReader::new(file, input, b',', limit, wanted)?),
        Form::Tsv => Box::new(TableReader::new(file, input, b'\t', limit, wanted)?),
        Form::Txt => Box::new(TxtReader::new(file, input, limit)),
        Form::Jsonl | Form::Parquet => Box::new(JsonlReader::new(file, input, limit)),
    })
}

/// A `.txt` file holds text and nothing else.
fn refuse_fields(source: &Source, wanted: &Wanted) -> Result<()> {
    let asked = match wanted.kept_names().next() {
        Some(kept) => format!("the field `{kept}` was asked for (--keep, --label or --pair)"),
        None if !wanted.takes_text() => "tokens or messages were asked for".to_owned(),
        None => return Ok(()),
    };
    Err(Error::File {
        file: source.file.clone(),
        place: None,
        what: format!("a .txt file has no fields, and {asked}"),
        remedy: "use .jsonl, .csv or .parquet for that".into(),
    })
}

fn hash_file(source: &Source, hash: &mut Xxh3, piece: &mut [u8]) -> io::Result<u64> {
    let mut file = File::open(&source.path)?;
    let mut length = 0;
    loop {
        match file.read(piece) {
            Ok(0) => return Ok(length),
            Ok(n) => {
                hash.update(&piece[..n]);
                length += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
