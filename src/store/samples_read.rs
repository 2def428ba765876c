//! Reads a samples table back. Only tables of exactly the schema that the writer makes are taken, and every list is rebuilt with
//! its bounds checked, so a damaged table is an error.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::samples::{Kept, KeptType, Piece, RowRange, SampleRow, Selections, schema};

type Fallible<T> = Result<T, ParquetError>;

/// Values that a column of a row group may have. The writer ends a group after a million; a forged page of some bytes may claim two
/// thousand million of them, all equal.
const MOST_VALUES: u64 = 1 << 25;

/// A samples table in memory.
#[derive(Debug, Default)]
pub(crate) struct ReadTable {
    pub samples: Vec<SampleRow>,
    /// Per sample: each tap's folder and the sample's rows in its file.
    pub selections: Vec<Selections>,
}

/// Reads the table at `path`, whose kept columns are `keep` and which has `rows` rows.
pub(crate) fn read_table(
    path: &Path,
    keep: &[(String, KeptType)],
    rows: u64,
) -> Fallible<ReadTable> {
    // The crate's decoder panics on some forged pages (a dictionary encoding without a dictionary, for one). Nothing outlives
    // the call but its result, so a panic in there is an error here.
    std::panic::catch_unwind(|| decode(path, keep, rows))
        .unwrap_or_else(|_| wrong("its pages contradict each other"))
}

fn decode(path: &Path, keep: &[(String, KeptType)], rows: u64) -> Fallible<ReadTable> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let file = reader.metadata().file_metadata();
    let pieces = file.schema() == &*schema(keep, true)?;
    if !pieces && file.schema() != &*schema(keep, false)? {
        return wrong(
            "its columns are not those of a samples table with the manifest's kept fields",
        );
    }
    if u64::try_from(file.num_rows()) != Ok(rows) {
        return wrong(format!(
            "it has {} rows where the manifest says {rows}",
            file.num_rows()
        ));
    }
    let groups = reader.metadata().row_groups().iter();
    let held = groups.map(|g| u64::try_from(g.num_rows()).unwrap_or(0));
    if held.fold(0, u64::saturating_add) != rows {
        return wrong("its row groups do not hold all its rows");
    }
    let mut table = ReadTable::default();
    for g in 0..reader.num_row_groups() {
        read_group(&*reader.get_row_group(g)?, keep, pieces, &mut table)?;
    }
    Ok(table)
}

fn read_group(
    group: &dyn RowGroupReader,
    keep: &[(String, KeptType)],
    pieces: bool,
    table: &mut ReadTable,
) -> Fallible<()> {
    let Ok(rows) = usize::try_from(group.metadata().num_rows()) else {
        return wrong("a row group of negative length");
    };
    let mut names = Names::default();
    let sample = plain::<Int64Type>(group, 0, rows)?;
    let file = plain::<ByteArrayType>(group, 1, rows)?;
    let line = plain::<Int64Type>(group, 2, rows)?;
    let chunk = plain::<Int32Type>(group, 3, rows)?;
    let tokens = lists::<Int32Type>(group, 4, rows)?;
    let roles = lists::<ByteArrayType>(group, 5, rows)?;
    let firsts = lists::<Int32Type>(group, 6, rows)?;
    let lasts = lists::<Int32Type>(group, 7, rows)?;
    let taps = lists::<ByteArrayType>(group, 8, rows)?;
    let starts = lists::<Int64Type>(group, 9, rows)?;
    let counts = lists::<Int64Type>(group, 10, rows)?;
    let pieces = match pieces {
        true => Some(Pieces::read(group, 11, rows)?),
        false => None,
    };
    let first_kept = if pieces.is_some() { 19 } else { 11 };
    let mut kept = keep
        .iter()
        .enumerate()
        .map(|(k, (_, kind))| {
            let column = first_kept + k;
            Ok(match kind {
                KeptType::Bool => optional::<BoolType>(group, column, rows, |v| Ok(Kept::Bool(v)))?,
                KeptType::Int => optional::<Int64Type>(group, column, rows, |v| Ok(Kept::Int(v)))?,
                KeptType::Float => {
                    optional::<DoubleType>(group, column, rows, |v| Ok(Kept::Float(v)))?
                }
                KeptType::Text => optional::<ByteArrayType>(group, column, rows, |v| {
                    Ok(Kept::Text(v.as_utf8()?.to_owned()))
                })?,
            }
            .into_iter())
        })
        .collect::<Fallible<Vec<_>>>()?;

    for i in 0..rows {
        let (role, first, last) = (roles.row(i)?, firsts.row(i)?, lasts.row(i)?);
        let (tap, start, count) = (taps.row(i)?, starts.row(i)?, counts.row(i)?);
        if role.len() != first.len()
            || role.len() != last.len()
            || tap.len() != start.len()
            || tap.len() != count.len()
        {
            return wrong("the fields of a list differ in length");
        }
        let turn = |((role, first), last): ((&ByteArray, &i32), &i32)| {
            Ok((
                role.as_utf8()?.to_owned(),
                natural(*first)?,
                natural(*last)?,
            ))
        };
        let turns = role
            .iter()
            .zip(first)
            .zip(last)
            .map(turn)
            .collect::<Fallible<_>>()?;
        let selection = |((tap, start), count): ((&ByteArray, &i64), &i64)| {
            Ok((
                names.get(tap)?,
                RowRange {
                    start: natural(*start)?,
                    rows: natural(*count)?,
                },
            ))
        };
        let selections = tap
            .iter()
            .zip(start)
            .zip(count)
            .map(selection)
            .collect::<Fallible<_>>()?;
        table.samples.push(SampleRow {
            sample: natural(sample[i])?,
            chunk: natural(chunk[i])?,
            file: names.get(&file[i])?,
            line: natural(line[i])?,
            tokens: tokens
                .row(i)?
                .iter()
                .map(|&t| natural(t))
                .collect::<Fallible<_>>()?,
            turns,
            pieces: match &pieces {
                Some(pieces) => pieces.row(i, &mut names)?,
                None => Vec::new(),
            },
            kept: kept
                .iter_mut()
                .map(|column| column.next().flatten())
                .collect(),
        });
        table.selections.push(selections);
    }
    Ok(())
}

/// The columns of the pieces.
struct Pieces {
    document: Lists<i64>,
    file: Lists<ByteArray>,
    line: Lists<i64>,
    first: Lists<i32>,
    tokens: Lists<i32>,
    offset: Lists<i64>,
    char_start: Lists<Option<i64>>,
    char_end: Lists<Option<i64>>,
}

impl Pieces {
    /// From column `at` of the group on.
    fn read(group: &dyn RowGroupReader, at: usize, rows: usize) -> Fallible<Self> {
        Ok(Pieces {
            document: lists::<Int64Type>(group, at, rows)?,
            file: lists::<ByteArrayType>(group, at + 1, rows)?,
            line: lists::<Int64Type>(group, at + 2, rows)?,
            first: lists::<Int32Type>(group, at + 3, rows)?,
            tokens: lists::<Int32Type>(group, at + 4, rows)?,
            offset: lists::<Int64Type>(group, at + 5, rows)?,
            char_start: lists_of_optional::<Int64Type>(group, at + 6, rows)?,
            char_end: lists_of_optional::<Int64Type>(group, at + 7, rows)?,
        })
    }

    fn row(&self, row: usize, names: &mut Names) -> Fallible<Vec<Piece>> {
        let (document, file, line) = (
            self.document.row(row)?,
            self.file.row(row)?,
            self.line.row(row)?,
        );
        let (first, tokens, offset) = (
            self.first.row(row)?,
            self.tokens.row(row)?,
            self.offset.row(row)?,
        );
        let (start, end) = (self.char_start.row(row)?, self.char_end.row(row)?);
        let n = document.len();
        if [
            file.len(),
            line.len(),
            first.len(),
            tokens.len(),
            offset.len(),
            start.len(),
            end.len(),
        ] != [n; 7]
        {
            return wrong("the fields of a list differ in length");
        }
        let piece = |i: usize| {
            Ok(Piece {
                document: natural(document[i])?,
                file: names.get(&file[i])?,
                line: natural(line[i])?,
                first: natural(first[i])?,
                tokens: natural(tokens[i])?,
                offset: natural(offset[i])?,
                chars: match (start[i], end[i]) {
                    (Some(start), Some(end)) => Some((natural(start)?, natural(end)?)),
                    (None, None) => None,
                    _ => {
                        return wrong(
                            "a piece's characters begin and do not end, or the other way round",
                        );
                    }
                },
            })
        };
        (0..n).map(piece).collect()
    }
}

/// Shares equal strings: a file's name and the taps' recur in every row.
#[derive(Default)]
struct Names(HashMap<Vec<u8>, Arc<str>>);

impl Names {
    fn get(&mut self, bytes: &ByteArray) -> Fallible<Arc<str>> {
        if let Some(name) = self.0.get(bytes.data()) {
            return Ok(name.clone());
        }
        let name: Arc<str> = bytes.as_utf8()?.into();
        self.0.insert(bytes.data().to_vec(), name.clone());
        Ok(name)
    }
}

/// One column of a row group as Parquet has it: present values, and the levels that place them.
struct Raw<T> {
    values: Vec<T>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// A column's pages, as long as they have no more than so many values in all.
struct Bounded {
    pages: Box<dyn PageReader>,
    left: u64,
}

impl PageReader for Bounded {
    fn get_next_page(&mut self) -> Fallible<Option<Page>> {
        let page = self.pages.get_next_page()?;
        let values = page.as_ref().map_or(0, |page| page.num_values().into());
        match self.left.checked_sub(values) {
            Some(left) => self.left = left,
            None => return wrong("a column has more values than any table's"),
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Fallible<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Fallible<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Fallible<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for Bounded {
    type Item = Fallible<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn raw<T: DataType>(group: &dyn RowGroupReader, column: usize, rows: usize) -> Fallible<Raw<T::T>> {
    if column >= group.num_columns() {
        return wrong("a row group lacks a column");
    }
    let description = group.metadata().schema_descr().column(column);
    let pages = Bounded {
        pages: group.get_column_page_reader(column)?,
        left: MOST_VALUES,
    };
    let mut reader = ColumnReaderImpl::<T>::new(description, Box::new(pages));
    let mut raw = Raw {
        values: Vec::new(),
        definition: Vec::new(),
        repetition: Vec::new(),
    };
    let (read, _, _) = reader.read_records(
        rows,
        Some(&mut raw.definition),
        Some(&mut raw.repetition),
        &mut raw.values,
    )?;
    if read != rows {
        return wrong(format!("column {column} ends after {read} of {rows} rows"));
    }
    Ok(raw)
}

fn plain<T: DataType>(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
) -> Fallible<Vec<T::T>> {
    let raw = raw::<T>(group, column, rows)?;
    if raw.values.len() == rows {
        Ok(raw.values)
    } else {
        wrong(format!("column {column} lacks values"))
    }
}

fn optional<T: DataType>(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
    wrap: impl Fn(T::T) -> Fallible<Kept>,
) -> Fallible<Vec<Option<Kept>>> {
    let raw = raw::<T>(group, column, rows)?;
    let mut values = raw.values.into_iter();
    let mut place = |d: &i16| match d {
        0 => Ok(None),
        _ => values.next().map(&wrap).transpose(),
    };
    let cells = raw
        .definition
        .iter()
        .map(&mut place)
        .collect::<Fallible<Vec<_>>>()?;
    if cells.len() == rows {
        Ok(cells)
    } else {
        wrong(format!("column {column} lacks rows"))
    }
}

/// A column of lists: all elements, and where each row's begin and end.
struct Lists<T> {
    values: Vec<T>,
    ends: Vec<usize>,
}

impl<T> Lists<T> {
    fn row(&self, row: usize) -> Fallible<&[T]> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        self.values
            .get(start..self.ends[row])
            .map_or_else(|| wrong("a list reaches beyond its column"), Ok)
    }
}

fn lists<T: DataType>(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
) -> Fallible<Lists<T::T>> {
    let raw = raw::<T>(group, column, rows)?;
    placed(raw, column, rows)
}

/// Lists whose elements may be null.
fn lists_of_optional<T: DataType>(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
) -> Fallible<Lists<Option<T::T>>> {
    let raw = raw::<T>(group, column, rows)?;
    let mut values = raw.values.into_iter();
    let elements = raw.definition.iter().filter(|&&d| d > 0);
    let place = |&d: &i16| if d > 1 { values.next() } else { None };
    let placed_values: Vec<_> = elements.map(place).collect();
    let raw = Raw {
        values: placed_values,
        definition: raw.definition,
        repetition: raw.repetition,
    };
    placed(raw, column, rows)
}

fn placed<T>(raw: Raw<T>, column: usize, rows: usize) -> Fallible<Lists<T>> {
    let mut ends = Vec::new();
    let mut end = 0;
    for (&definition, &repetition) in raw.definition.iter().zip(&raw.repetition) {
        if repetition == 0 {
            ends.push(end);
        }
        end += usize::from(definition > 0);
        match ends.last_mut() {
            Some(last) => *last = end,
            None => return wrong(format!("column {column} begins inside a list")),
        }
    }
    if ends.len() != rows || end != raw.values.len() {
        return wrong(format!(
            "column {column}: lists and values differ in number"
        ));
    }
    Ok(Lists {
        values: raw.values,
        ends,
    })
}

fn natural<A: Copy + std::fmt::Display, B: TryFrom<A>>(n: A) -> Fallible<B> {
    B::try_from(n).or_else(|_| wrong(format!("{n} where a count belongs")))
}

fn wrong<T>(what: impl Into<String>) -> Fallible<T> {
    Err(ParquetError::General(what.into()))
}

#[cfg(test)]
mod tests {
    use parquet::basic::Encoding;

    use super::*;

    /// Pages that claim so many values each.
    struct Claims(Vec<u32>);

    impl Iterator for Claims {
        type Item = Fallible<Page>;

        fn next(&mut self) -> Option<Self::Item> {
            self.get_next_page().transpose()
        }
    }

    impl PageReader for Claims {
        fn get_next_page(&mut self) -> Fallible<Option<Page>> {
            let page = |num_values| Page::DataPage {
                buf: Vec::new().into(),
                num_values,
                encoding: Encoding::PLAIN,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            Ok(self.0.pop().map(page))
        }

        fn peek_next_page(&mut self) -> Fallible<Option<PageMetadata>> {
            Ok(None)
        }

        fn skip_next_page(&mut self) -> Fallible<()> {
            Ok(())
        }
    }

    #[test]
    fn a_column_that_claims_more_values_than_any_table_has_is_refused_before_they_are_made() {
        let pages = |claims: &[u32]| Bounded {
            pages: Box::new(Claims(claims.to_vec())),
            left: MOST_VALUES,
        };
        let most = MOST_VALUES as u32;
        assert_eq!(pages(&[1, most - 1]).filter_map(Result::ok).count(), 2);
        assert!(pages(&[1, most]).any(|page| page.is_err()));
        assert!(pages(&[u32::MAX]).any(|page| page.is_err()));
    }
}
