//! The samples table, `samples/NNNNN.parquet`: one row per sample of a shard, written with it. Plain Parquet with lists, through the
//! column writer; what reads it back is in `samples_read`.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{Type, TypePtr};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// A dataset field's value, kept beside the sample by `--keep`.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kept::Bool(b) => b.fmt(f),
            Kept::Int(i) => i.fmt(f),
            Kept::Float(x) => x.fmt(f),
            Kept::Text(t) => t.fmt(f),
        }
    }
}

impl Kept {
    /// What it says as a label: 0, 1, true or false, as a number, a boolean or a word.
    pub fn truth(&self) -> Option<bool> {
        match self {
            Kept::Bool(b) => Some(*b),
            Kept::Int(i) => [false, true].get(usize::try_from(*i).ok()?).copied(),
            Kept::Float(x) => (*x == 0.0 || *x == 1.0).then_some(*x == 1.0),
            Kept::Text(t) => match t.trim().to_ascii_lowercase().as_str() {
                "0" | "false" => Some(false),
                "1" | "true" => Some(true),
                _ => None,
            },
        }
    }
}

/// Type of a kept field's column, the same in every shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeptType {
    #[serde(rename = "bool")]
    Bool,
    #[serde(rename = "int64")]
    Int,
    #[serde(rename = "double")]
    Float,
    #[serde(rename = "utf8")]
    Text,
}

impl KeptType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int64",
            Self::Float => "double",
            Self::Text => "utf8",
        }
    }
}

/// One sample, as written to a store: what it was, and all of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRow {
    /// Its 0-based place in the dataset.
    pub sample: u64,
    /// Which piece of it, where long samples are chunked; else 0.
    pub chunk: u32,
    pub file: Arc<str>,
    /// 1-based line (row, for tables) in `file`.
    pub line: u64,
    pub tokens: Vec<u32>,
    /// Chat turns: role, first and last token, both inclusive.
    pub turns: Vec<(String, u32, u32)>,
    /// Where its tokens are from, in order; tokens that no piece holds were not in the dataset (they were generated).
    pub pieces: Vec<Piece>,
    /// One entry per kept field.
    pub kept: Vec<Option<Kept>>,
}

/// Tokens of a sample that follow one another in a record of the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The record's 0-based place in the dataset.
    pub document: u64,
    pub file: Arc<str>,
    pub line: u64,
    /// Position in the sample of the first of them, and how many they are.
    pub first: u32,
    pub tokens: u32,
    /// Which of the record's tokens the first of them is.
    pub offset: u64,
    /// The first of the record's characters that they stand for, and one past the last; where the record is plain text and they stand
    /// for any of it.
    pub chars: Option<(u64, u64)>,
}

/// Where one sample's rows lie in one tap's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    pub start: u64,
    pub rows: u64,
}

/// Where one sample's rows lie, tap by tap; each tap by its folder.
pub type Selections = Vec<(Arc<str>, RowRange)>;

/// Names that `--keep` cannot take: the table has columns of these names.
const OWN_COLUMNS: [&str; 8] = [
    "sample",
    "file",
    "line",
    "chunk",
    "tokens",
    "turns",
    "selections",
    "pieces",
];

/// A row group closes at this many samples …
const GROUP_SAMPLES: usize = 4096;
/// … or list elements, which bounds what writer and reader hold in memory.
const GROUP_ELEMENTS: usize = 1 << 20;

const FIXED: &str = "message samples {
    required int64 sample;
    required binary file (STRING);
    required int64 line;
    required int32 chunk;
    required group tokens (LIST) { repeated group list { required int32 element; } }
    required group turns (LIST) { repeated group list { required group element {
        required binary role (STRING); required int32 first; required int32 last; } } }
    required group selections (LIST) { repeated group list { required group element {
        required binary tap (STRING); required int64 row_start; required int64 rows; } } }
    required group pieces (LIST) { repeated group list { required group element {
        required int64 document; required binary file (STRING); required int64 line;
        required int32 first; required int32 tokens; required int64 offset;
        optional int64 char_start; optional int64 char_end; } } }
}";
/// The column that tables of earlier versions do not have.
const PIECES: &str = "pieces";

pub(crate) fn check_keep(keep: &[String]) -> Result<()> {
    for (i, name) in keep.iter().enumerate() {
        if OWN_COLUMNS.contains(&name.as_str()) {
            return Err(Error::Plan(format!(
                "--keep {name}: the samples table has a column of its own by that name; rename the field in the data, or leave it out"
            )));
        }
        if keep[..i].contains(name) {
            return Err(Error::Plan(format!("--keep names {name} twice")));
        }
    }
    Ok(())
}

/// The table's columns: the fixed ones, then the kept fields. Without `pieces`: as earlier versions wrote them.
pub(crate) fn schema(keep: &[(String, KeptType)], pieces: bool) -> Result<TypePtr, ParquetError> {
    let mut fields = parse_message_type(FIXED)?.get_fields().to_vec();
    fields.retain(|field| pieces || field.name() != PIECES);
    for (name, kind) in keep {
        let physical = match kind {
            KeptType::Bool => Physical::BOOLEAN,
            KeptType::Int => Physical::INT64,
            KeptType::Float => Physical::DOUBLE,
            KeptType::Text => Physical::BYTE_ARRAY,
        };
        let mut column =
            Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
        if *kind == KeptType::Text {
            column = column
                .with_logical_type(Some(LogicalType::String))
                .with_converted_type(ConvertedType::UTF8);
        }
        fields.push(Arc::new(column.build()?));
    }
    Ok(Arc::new(
        Type::group_type_builder("samples")
            .with_fields(fields)
            .build()?,
    ))
}

/// Settles the types of the kept columns from the first shard's samples: bool, int64, double or utf8 where all values are of that
/// type; double for integers mixed with fractions; utf8 for any other mixture, and where no sample has the field.
pub(crate) fn settle_types(n_kept: usize, samples: &[SampleRow]) -> Vec<KeptType> {
    (0..n_kept)
        .map(|k| {
            let values = || samples.iter().filter_map(|s| s.kept.get(k)?.as_ref());
            [KeptType::Bool, KeptType::Int, KeptType::Float]
                .into_iter()
                .find(|&kind| {
                    values().next().is_some() && values().all(|v| convert(v, kind).is_some())
                })
                .unwrap_or(KeptType::Text)
        })
        .collect()
}

/// The types that columns must have for these samples too, which came after their types were settled: the same where the values fit,
/// else double for integers that meet fractions, else utf8.
pub(crate) fn widened(kinds: &[KeptType], samples: &[SampleRow]) -> Vec<KeptType> {
    let widen = |(k, &kind): (usize, &KeptType)| {
        let fits = |kind: KeptType| {
            let mut values = samples.iter().filter_map(|s| s.kept.get(k)?.as_ref());
            values.all(|v| convert(v, kind).is_some())
        };
        match kind {
            kind if fits(kind) => kind,
            KeptType::Int if fits(KeptType::Float) => KeptType::Float,
            _ => KeptType::Text,
        }
    };
    kinds.iter().enumerate().map(widen).collect()
}

/// The value in a column of type `kind`, if that loses nothing. Text takes anything.
fn convert(value: &Kept, kind: KeptType) -> Option<Kept> {
    /// Every integer up to here is a double.
    const EXACT: i64 = 1 << 53;
    match (value, kind) {
        (Kept::Bool(_), KeptType::Bool)
        | (Kept::Int(_), KeptType::Int)
        | (Kept::Float(_), KeptType::Float)
        | (Kept::Text(_), KeptType::Text) => Some(value.clone()),
        (&Kept::Int(i), KeptType::Float) if (-EXACT..=EXACT).contains(&i) => {
            Some(Kept::Float(i as f64))
        }
        (Kept::Bool(_) | Kept::Int(_) | Kept::Float(_), KeptType::Text) => {
            Some(Kept::Text(text(value)))
        }
        _ => None,
    }
}

fn text(value: &Kept) -> String {
    match value {
        Kept::Bool(b) => b.to_string(),
        Kept::Int(i) => i.to_string(),
        // `{:?}` keeps the point of 3.0 and round-trips.
        Kept::Float(f) => format!("{f:?}"),
        Kept::Text(s) => s.clone(),
    }
}

/// The kept values of all samples, column by column, each of its column's type.
pub(crate) fn kept_columns(
    keep: &[(String, KeptType)],
    samples: &[SampleRow],
) -> Result<Vec<Vec<Option<Kept>>>> {
    let column = |(k, (name, kind)): (usize, &(String, KeptType))| {
        let cell = |s: &SampleRow| match s.kept.get(k) {
            None | Some(None) => Ok(None),
            Some(Some(value)) => convert(value, *kind).map(Some).ok_or_else(|| Error::Kept {
                file: s.file.to_string(),
                line: s.line,
                field: name.clone(),
                value: text(value),
                column: kind.name(),
            }),
        };
        samples.iter().map(cell).collect::<Result<Vec<_>>>()
    };
    keep.iter().enumerate().map(column).collect()
}

/// What a samples table is written from.
pub(crate) struct SamplesTable<'a> {
    pub keep: &'a [(String, KeptType)],
    pub samples: &'a [SampleRow],
    /// As `kept_columns` gives them.
    pub kept: &'a [Vec<Option<Kept>>],
    /// The taps' folders.
    pub taps: &'a [&'a str],
    /// Where sample `i`'s rows of tap `t` lie: `rows(t, i)`.
    pub rows: &'a dyn Fn(usize, usize) -> RowRange,
}

impl SamplesTable<'_> {
    /// Writes the table as one Parquet file.
    pub fn write(&self, sink: impl Write + Send) -> Result<(), ParquetError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by("streamgauge".into())
            .build();
        let mut writer =
            SerializedFileWriter::new(sink, schema(self.keep, true)?, Arc::new(properties))?;
        let most = (GROUP_ELEMENTS / self.taps.len().max(1)).clamp(1, GROUP_SAMPLES);
        let mut start = 0;
        while start < self.samples.len() {
            let mut tokens = 0;
            let fits = |s: &&SampleRow| {
                tokens += s.tokens.len();
                tokens <= GROUP_ELEMENTS
            };
            let n = self.samples[start..]
                .iter()
                .take(most)
                .take_while(fits)
                .count()
                .max(1);
            self.write_group(writer.next_row_group()?, start, n)?;
            start += n;
        }
        writer.close()?;
        Ok(())
    }

    fn write_group<W: Write + Send>(
        &self,
        group: SerializedRowGroupWriter<'_, W>,
        start: usize,
        n: usize,
    ) -> Result<(), ParquetError> {
        let samples = &self.samples[start..start + n];
        let mut columns = Columns { group };
        let int64 =
            |f: &dyn Fn(&SampleRow) -> u64| samples.iter().map(|s| f(s) as i64).collect::<Vec<_>>();
        columns.put::<Int64Type>(&int64(&|s| s.sample), None)?;
        columns.put::<ByteArrayType>(
            &samples.iter().map(|s| bytes(&s.file)).collect::<Vec<_>>(),
            None,
        )?;
        columns.put::<Int64Type>(&int64(&|s| s.line), None)?;
        columns.put::<Int32Type>(
            &samples.iter().map(|s| s.chunk as i32).collect::<Vec<_>>(),
            None,
        )?;

        let tokens: Vec<i32> = samples
            .iter()
            .flat_map(|s| s.tokens.iter().map(|&t| t as i32))
            .collect();
        columns.put::<Int32Type>(
            &tokens,
            Some(&Levels::of_lists(samples.iter().map(|s| s.tokens.len()))),
        )?;

        let turns = || samples.iter().flat_map(|s| &s.turns);
        let levels = Levels::of_lists(samples.iter().map(|s| s.turns.len()));
        columns.put::<ByteArrayType>(
            &turns().map(|t| bytes(&t.0)).collect::<Vec<_>>(),
            Some(&levels),
        )?;
        columns.put::<Int32Type>(
            &turns().map(|t| t.1 as i32).collect::<Vec<_>>(),
            Some(&levels),
        )?;
        columns.put::<Int32Type>(
            &turns().map(|t| t.2 as i32).collect::<Vec<_>>(),
            Some(&levels),
        )?;

        let taps = self.taps.len();
        let ranges: Vec<RowRange> = (start..start + n)
            .flat_map(|i| (0..taps).map(move |t| (t, i)))
            .map(|(t, i)| (self.rows)(t, i))
            .collect();
        let names: Vec<ByteArray> = self.taps.iter().map(|t| bytes(t)).collect();
        let levels = Levels::of_lists(samples.iter().map(|_| taps));
        columns.put::<ByteArrayType>(
            &samples
                .iter()
                .flat_map(|_| names.iter().cloned())
                .collect::<Vec<_>>(),
            Some(&levels),
        )?;
        columns.put::<Int64Type>(
            &ranges.iter().map(|r| r.start as i64).collect::<Vec<_>>(),
            Some(&levels),
        )?;
        columns.put::<Int64Type>(
            &ranges.iter().map(|r| r.rows as i64).collect::<Vec<_>>(),
            Some(&levels),
        )?;

        columns.put_pieces(samples)?;

        for ((_, kind), column) in self.keep.iter().zip(self.kept) {
            let column = &column[start..start + n];
            let levels = Levels {
                definition: column.iter().map(|v| v.is_some().into()).collect(),
                repetition: None,
            };
            macro_rules! put {
                ($parquet:ty, $variant:ident, $v:ident => $value:expr) => {{
                    let pick = |v: &Option<Kept>| {
                        if let Some(Kept::$variant($v)) = v {
                            Some($value)
                        } else {
                            None
                        }
                    };
                    columns.put::<$parquet>(
                        &column.iter().filter_map(pick).collect::<Vec<_>>(),
                        Some(&levels),
                    )?;
                }};
            }
            match kind {
                KeptType::Bool => put!(BoolType, Bool, v => *v),
                KeptType::Int => put!(Int64Type, Int, v => *v),
                KeptType::Float => put!(DoubleType, Float, v => *v),
                KeptType::Text => put!(ByteArrayType, Text, v => bytes(v)),
            }
        }
        columns.group.close()?;
        Ok(())
    }
}

/// Parquet's levels of one column: which entries are there, and which begin a new sample.
struct Levels {
    definition: Vec<i16>,
    repetition: Option<Vec<i16>>,
}

impl Levels {
    /// Of a required list of required elements, from each sample's length: an empty list is one entry that is not there.
    fn of_lists(lengths: impl Iterator<Item = usize>) -> Self {
        let (mut definition, mut repetition) = (Vec::new(), Vec::new());
        for n in lengths {
            definition.push((n > 0).into());
            repetition.push(0);
            definition.extend(std::iter::repeat_n(1, n.saturating_sub(1)));
            repetition.extend(std::iter::repeat_n(1, n.saturating_sub(1)));
        }
        Self {
            definition,
            repetition: Some(repetition),
        }
    }

    /// These lists' levels where elements have an optional field, which some of them have.
    fn with_nulls(self, there: impl Iterator<Item = bool>) -> Self {
        let mut there = there.map(i16::from);
        let level = |d: i16| {
            if d == 0 {
                0
            } else {
                1 + there.next().unwrap_or(0)
            }
        };
        Self {
            definition: self.definition.into_iter().map(level).collect(),
            ..self
        }
    }
}

/// The columns of a row group, in the schema's order.
struct Columns<'w, W: Write> {
    group: SerializedRowGroupWriter<'w, W>,
}

impl<W: Write + Send> Columns<'_, W> {
    fn put_pieces(&mut self, samples: &[SampleRow]) -> Result<(), ParquetError> {
        let pieces = || samples.iter().flat_map(|s| &s.pieces);
        let levels = Levels::of_lists(samples.iter().map(|s| s.pieces.len()));
        let int64 = |f: &dyn Fn(&Piece) -> u64| pieces().map(|p| f(p) as i64).collect::<Vec<_>>();
        let int32 = |f: &dyn Fn(&Piece) -> u32| pieces().map(|p| f(p) as i32).collect::<Vec<_>>();
        let files: Vec<_> = pieces().map(|p| bytes(&p.file)).collect();
        self.put::<Int64Type>(&int64(&|p| p.document), Some(&levels))?;
        self.put::<ByteArrayType>(&files, Some(&levels))?;
        self.put::<Int64Type>(&int64(&|p| p.line), Some(&levels))?;
        self.put::<Int32Type>(&int32(&|p| p.first), Some(&levels))?;
        self.put::<Int32Type>(&int32(&|p| p.tokens), Some(&levels))?;
        self.put::<Int64Type>(&int64(&|p| p.offset), Some(&levels))?;
        let chars = || pieces().filter_map(|p| p.chars);
        let levels = levels.with_nulls(pieces().map(|p| p.chars.is_some()));
        let starts: Vec<_> = chars().map(|c| c.0 as i64).collect();
        let ends: Vec<_> = chars().map(|c| c.1 as i64).collect();
        self.put::<Int64Type>(&starts, Some(&levels))?;
        self.put::<Int64Type>(&ends, Some(&levels))
    }

    fn put<T: DataType>(
        &mut self,
        values: &[T::T],
        levels: Option<&Levels>,
    ) -> Result<(), ParquetError> {
        let mut column = self
            .group
            .next_column()?
            .ok_or_else(|| ParquetError::General("more columns than the schema has".into()))?;
        column.typed::<T>().write_batch(
            values,
            levels.map(|l| &l.definition[..]),
            levels.and_then(|l| l.repetition.as_deref()),
        )?;
        column.close()
    }
}

fn bytes(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}
