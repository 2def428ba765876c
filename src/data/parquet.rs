//! Parquet: a row a record, a row group at a time and only the wanted columns.
//!
//! Lists of integers are tokens; lists of structs are messages or spans; structs and maps are objects.
//! Pages are decompressed as rows are asked for, so memory is a page per column, not a row group.

use super::error::{Error, Place, Result, not_utf8};
use super::fields::Wanted;
use super::source::{Body, Cell, RawRecord, RecordReader};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Number, Value};
use std::any::Any;
use std::cell::Cell as Flag;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};

/// Values decoded ahead per column; small, because a value may be a long text.
const VALUES_AHEAD: usize = 256;

const DAMAGED: &str = "the file seems damaged or truncated: write or fetch it again";

/// What to do about a file that the reader gave up on.
fn remedy(what: &str) -> &'static str {
    // As the crate words a codec that this build leaves out.
    if what.contains("Disabled feature at compile time") {
        "its compression is not read here: write it with snappy, gzip, lz4, zstd or none"
    } else {
        DAMAGED
    }
}

pub(super) struct ParquetReader {
    file: Arc<str>,
    groups: SerializedFileReader<File>,
    /// The wanted columns.
    projection: SchemaDescPtr,
    columns: Arc<[String]>,
    rows: Option<ReaderIter>,
    next_group: usize,
    /// Rows begun.
    row: u64,
    /// Where the bytes of the row groups begun so far are told.
    read: Arc<AtomicU64>,
}

impl ParquetReader {
    /// Reads the footer. Fails where no column can be the input, or a field to keep has no column.
    /// `read` hears of the bytes of each row group as it is begun.
    pub fn new(file: Arc<str>, input: File, wanted: &Wanted, read: Arc<AtomicU64>) -> Result<Self> {
        let fail = |what: String, remedy: String| Error::File {
            file: file.clone(),
            place: None,
            what,
            remedy: remedy.into(),
        };
        let groups = sheltered(|| SerializedFileReader::new(input))
            .map_err(|what| fail(what, DAMAGED.to_owned()))?;
        let schema = groups.metadata().file_metadata().schema();
        let fields = schema.get_fields();
        let columns: Vec<String> = fields.iter().map(|f| f.name().to_owned()).collect();
        if let Some((what, remedy)) = wanted.missing_column(&columns) {
            return Err(fail(what, remedy.into_owned()));
        }
        let chosen = fields.iter().filter(|f| wanted.slot(f.name()).is_some());
        let chosen: Vec<_> = chosen.cloned().collect();
        for (n, field) in chosen.iter().enumerate() {
            if chosen[..n].iter().any(|other| other.name() == field.name()) {
                let what = format!("two columns are named `{}`", field.name());
                return Err(fail(what, "rename one of them".to_owned()));
            }
        }
        let projection = sheltered(|| {
            let projected = Type::group_type_builder(schema.name()).with_fields(chosen);
            Ok(SchemaDescriptor::new(Arc::new(projected.build()?)))
        })
        .map_err(|what| fail(what, DAMAGED.to_owned()))?;
        Ok(ParquetReader {
            file,
            groups,
            projection: Arc::new(projection),
            columns: columns.into(),
            rows: None,
            next_group: 0,
            row: 0,
            read,
        })
    }

    /// The next row, going on to the next row group when one is done.
    fn next_row(&mut self) -> Result<Option<Row>, String> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(row) = sheltered(|| rows.next().transpose())?
            {
                return Ok(Some(row));
            }
            if self.next_group == self.groups.num_row_groups() {
                return Ok(None);
            }
            let (groups, number) = (&self.groups, self.next_group);
            let projection = self.projection.clone();
            self.rows = Some(sheltered(|| {
                let group = groups.get_row_group(number)?;
                TreeBuilder::new()
                    .with_batch_size(VALUES_AHEAD)
                    .as_iter(projection, &*group)
            })?);
            let bytes = groups.metadata().row_group(number).compressed_size();
            self.read.fetch_add(bytes.max(0) as u64, Relaxed);
            self.next_group += 1;
        }
    }

    fn read_row(&mut self, wanted: &Wanted) -> Result<Option<RawRecord>> {
        let place = Place::Row(self.row + 1);
        let row = match self.next_row() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            // After this the columns may be out of step, so the rest of the file is not read.
            Err(what) => {
                return Err(Error::File {
                    file: self.file.clone(),
                    place: Some(place),
                    remedy: remedy(&what).into(),
                    what,
                });
            }
        };
        self.row += 1;
        let mut cells = vec![None; wanted.names().len()];
        for (name, field) in row.into_columns() {
            let Some(slot) = wanted.slot(&name) else {
                continue;
            };
            let cell = sheltered(|| Ok(cell(field))).and_then(|cell| cell);
            cells[slot] = Some(cell.map_err(|what| Error::Record {
                file: self.file.clone(),
                place,
                what: format!("column `{name}`: {what}"),
                remedy: "store text as UTF-8 strings".into(),
            })?);
        }
        let names = self.columns.clone();
        let body = Body::Fields { cells, names };
        Ok(Some(RawRecord { place, body }))
    }
}

impl RecordReader for ParquetReader {
    fn next_record(&mut self, wanted: &Wanted) -> Option<Result<RawRecord>> {
        self.read_row(wanted).transpose()
    }
}

fn cell(field: Field) -> Result<Cell, String> {
    match field {
        Field::Float16(x) if !x.is_finite() => Ok(Cell::NonFinite(x.to_f64())),
        Field::Float(x) if !x.is_finite() => Ok(Cell::NonFinite(f64::from(x))),
        Field::Double(x) if !x.is_finite() => Ok(Cell::NonFinite(x)),
        other => value(other).map(Cell::Json),
    }
}

/// A field as the JSON it stands for. Dates, times and decimals become their text; so does a nested
/// NaN or infinity.
fn value(field: Field) -> Result<Value, String> {
    let float = |x: f64| match Number::from_f64(x) {
        Some(number) => Value::Number(number),
        None => Value::String(x.to_string()),
    };
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => float(x.to_f64()),
        Field::Float(x) => float(f64::from(x)),
        Field::Double(x) => float(x),
        Field::Str(text) => Value::String(text),
        // Some writers leave out that a string column holds strings.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(error) => return Err(not_utf8(error)),
        },
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::String(field.to_string()),
        Field::Group(row) => row
            .into_columns()
            .into_iter()
            .map(|(name, field)| Ok((name, value(field)?)))
            .collect::<Result<Map<_, _>, String>>()?
            .into(),
        Field::ListInternal(list) => list
            .elements()
            .iter()
            .map(|element| value(element.clone()))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, field) in map.entries() {
                let key = match value(key.clone())? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, value(field.clone())?);
            }
            object.into()
        }
    })
}

thread_local! {
    static SHELTERED: Flag<bool> = const { Flag::new(false) };
}

/// Runs a call into the parquet crate, which asserts in places what a damaged file may break: its
/// panic becomes an error, and says nothing on stderr.
fn sheltered<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    static QUIET_HOOK: Once = Once::new();
    QUIET_HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SHELTERED.get() {
                others(info);
            }
        }));
    });
    // Whatever the panic left half done is dropped with the reader, which is not used after an error.
    let before = SHELTERED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    SHELTERED.set(before);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("not readable as Parquet: {error}")),
        Err(panic) => Err(format!("not readable as Parquet: {}", said(&*panic))),
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it contradicts itself")
}
