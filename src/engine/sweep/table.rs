//! A sweep's results on disk: `sweep.parquet` and `sweep.csv`, a row for each prompt and patch; `means.csv`, a row for each
//! patch; and `manifest.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::site::PatchSite;
use super::{Swept, Way, journal};
use crate::engine::{Error, Result};

/// One patched run.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// One place, or several in the order of the pass.
    pub sites: Vec<PatchSite>,
    /// The prompt's place in the pairs file, from 0.
    pub prompt: u64,
    pub metric: &'static str,
    /// The metric of the clean, the corrupt and the patched run.
    pub clean: f64,
    pub corrupt: f64,
    pub patched: f64,
    /// 1: as the clean run, 0: as the corrupt one; of a noising patch less 1. Not finite where the two don't differ.
    pub recovery: f64,
    pub way: Way,
}

/// The columns, in order. Optional are those of a head that is not chosen, of a second place, and a recovery that is no number.
const SCHEMA: &str = "
    required binary site (STRING); required int64 layer; optional int64 head; required binary position (STRING);
    required int64 prompt; required binary metric (STRING);
    required double clean; required double corrupt; required double patched; optional double recovery;
    required binary way (STRING);
    optional binary site2 (STRING); optional int64 layer2; optional int64 head2; optional binary position2 (STRING);
";

/// One more, where a patch has more than two places: all of them, joined by ` + `.
const SET: &str = "optional binary set (STRING);";

const PLACE: [&str; 4] = ["site", "layer", "head", "position"];

/// A cell.
enum Cell {
    Text(String),
    Int(u64),
    Float(f64),
    Empty,
}

/// What a table has beyond the columns that every one has.
#[derive(Debug, Clone, Copy)]
struct More {
    /// The places of patches of more than two.
    set: bool,
    /// In the means: which metric.
    metric: bool,
}

impl More {
    fn of(rows: &[Row]) -> Self {
        More {
            set: rows.iter().any(|row| row.sites.len() > 2),
            metric: rows.iter().any(|row| row.metric != rows[0].metric),
        }
    }

    fn schema(self) -> String {
        format!(
            "message sweep {{ {SCHEMA} {} }}",
            if self.set { SET } else { "" }
        )
    }
}

impl Row {
    fn set(&self) -> Cell {
        if self.sites.len() < 3 {
            return Cell::Empty;
        }
        let sites: Vec<String> = self.sites.iter().map(ToString::to_string).collect();
        Cell::Text(sites.join(" + "))
    }

    fn cells(&self, more: More) -> Vec<Cell> {
        let [site, layer, head, position] = place(self.sites.first());
        let [site2, layer2, head2, position2] = place(self.sites.get(1));
        let recovery = Some(self.recovery).filter(|r| r.is_finite());
        let mut cells = vec![
            site,
            layer,
            head,
            position,
            Cell::Int(self.prompt),
            Cell::Text(self.metric.into()),
            Cell::Float(self.clean),
            Cell::Float(self.corrupt),
            Cell::Float(self.patched),
            recovery.map_or(Cell::Empty, Cell::Float),
            Cell::Text(self.way.name().into()),
            site2,
            layer2,
            head2,
            position2,
        ];
        cells.extend(more.set.then(|| self.set()));
        cells
    }
}

fn place(site: Option<&PatchSite>) -> [Cell; 4] {
    let Some(site) = site else {
        return [Cell::Empty, Cell::Empty, Cell::Empty, Cell::Empty];
    };
    [
        Cell::Text(site.kind().into()),
        Cell::Int(site.point.layer as u64),
        site.head.map_or(Cell::Empty, |h| Cell::Int(h as u64)),
        Cell::Text(site.positions.to_string()),
    ]
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Int(n) => n.to_string(),
            Cell::Float(v) => v.to_string(),
            Cell::Empty => String::new(),
        }
    }
}

/// The mean recovery of each patch, by each metric, over the prompts that have one, and how many these are; in the rows' order.
pub fn means(rows: &[Row]) -> Vec<(&Row, f64, usize)> {
    let mut order: Vec<(&Row, Vec<f64>)> = Vec::new();
    let mut known: BTreeMap<(Way, &[PatchSite], &str), usize> = BTreeMap::new();
    for row in rows {
        let next = order.len();
        let at = *known
            .entry((row.way, &row.sites, row.metric))
            .or_insert(next);
        if at == next {
            order.push((row, Vec::new()));
        }
        order[at]
            .1
            .extend(Some(row.recovery).filter(|r| r.is_finite()));
    }
    let mean = |(row, of): (_, Vec<f64>)| (row, of.iter().sum::<f64>() / of.len() as f64, of.len());
    order.into_iter().map(mean).collect()
}

/// Writes the results of a sweep into its folder; the journal is not needed any more then. `record` and `command` go into the
/// manifest.
///
/// # Errors
/// A file that cannot be written.
pub fn write(dir: &Path, swept: &Swept, record: &Value, command: &[String]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    let more = More::of(&swept.rows);
    whole(dir, "sweep.parquet", |path| {
        parquet_table(path, &swept.rows, more).map_err(|e| failed(path, &e))
    })?;
    whole(dir, "sweep.csv", |path| {
        let cells = |row: &Row| row.cells(more).iter().map(Cell::text).collect();
        csv_table(path, &names(more), swept.rows.iter().map(cells))
    })?;
    whole(dir, "means.csv", |path| {
        let names: Vec<String> = PLACE
            .iter()
            .map(|n| n.to_string())
            .chain(["way", "recovery", "prompts"].map(String::from))
            .chain(PLACE.iter().map(|n| format!("{n}2")))
            .chain(more.set.then(|| "set".into()))
            .chain(more.metric.then(|| "metric".into()))
            .collect();
        let cells = |mean| mean_cells(mean, more);
        csv_table(path, &names, means(&swept.rows).into_iter().map(cells))
    })?;
    let manifest = manifest(swept, record, command);
    whole(dir, "manifest.json", |path| {
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| failed(path, &e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(path, &e))
    })?;
    match std::fs::remove_file(dir.join(journal::NAME)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(dir, &e)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> crate::Error {
    Error::SweepFile {
        path: path.display().to_string(),
        why: why.to_string(),
    }
    .into()
}

/// Writes a file under another name, and gives it its own when it is whole.
fn whole(dir: &Path, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (part, path): (PathBuf, PathBuf) = (dir.join(format!("{name}.part")), dir.join(name));
    write(&part)?;
    let durable = File::open(&part).and_then(|file| file.sync_all());
    durable
        .and_then(|()| std::fs::rename(&part, &path))
        .map_err(|e| failed(&path, &e))
}

fn names(more: More) -> Vec<String> {
    let schema = parse_message_type(&more.schema());
    let fields = schema.iter().flat_map(|s| s.get_fields());
    fields.map(|f| f.name().to_owned()).collect()
}

fn mean_cells((row, mean, prompts): (&Row, f64, usize), more: More) -> Vec<String> {
    let mut cells: Vec<Cell> = place(row.sites.first()).into();
    cells.push(Cell::Text(row.way.name().into()));
    cells.push(if prompts == 0 {
        Cell::Empty
    } else {
        Cell::Float(mean)
    });
    cells.push(Cell::Int(prompts as u64));
    cells.extend(place(row.sites.get(1)));
    cells.extend(more.set.then(|| row.set()));
    cells.extend(more.metric.then(|| Cell::Text(row.metric.into())));
    cells.iter().map(Cell::text).collect()
}

fn csv_table(path: &Path, names: &[String], rows: impl Iterator<Item = Vec<String>>) -> Result<()> {
    let fail = |e: csv::Error| failed(path, &e);
    let mut table = csv::Writer::from_path(path).map_err(fail)?;
    table.write_record(names).map_err(fail)?;
    for row in rows {
        table.write_record(row).map_err(fail)?;
    }
    table.flush().map_err(|e| failed(path, &e))
}

/// Rows of a group: it bounds what is held as columns.
const GROUP: usize = 1 << 16;

fn parquet_table(path: &Path, rows: &[Row], more: More) -> Result<(), ParquetError> {
    let schema = Arc::new(parse_message_type(&more.schema())?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let file = File::create(path)?;
    let mut writer =
        SerializedFileWriter::new(file, Arc::clone(&schema), Arc::new(properties.build()))?;
    for rows in rows.chunks(GROUP) {
        let cells: Vec<Vec<Cell>> = rows.iter().map(|row| row.cells(more)).collect();
        let mut group = writer.next_row_group()?;
        for (i, field) in schema.get_fields().iter().enumerate() {
            let column = cells.iter().map(|row| &row[i]);
            let levels: Option<Vec<i16>> = field.is_optional().then(|| {
                let there = |cell| i16::from(!matches!(cell, &Cell::Empty));
                column.clone().map(there).collect()
            });
            let levels = levels.as_deref();
            match field.get_physical_type() {
                parquet::basic::Type::INT64 => {
                    let values = column.filter_map(|c| match c {
                        Cell::Int(n) => Some(*n as i64),
                        _ => None,
                    });
                    write_column::<Int64Type>(&mut group, &values.collect::<Vec<_>>(), levels)?;
                }
                parquet::basic::Type::DOUBLE => {
                    let values = column.filter_map(|c| match c {
                        Cell::Float(v) => Some(*v),
                        _ => None,
                    });
                    write_column::<DoubleType>(&mut group, &values.collect::<Vec<_>>(), levels)?;
                }
                _ => {
                    let values = column.filter_map(|c| match c {
                        Cell::Text(text) => Some(ByteArray::from(text.as_str())),
                        _ => None,
                    });
                    write_column::<ByteArrayType>(&mut group, &values.collect::<Vec<_>>(), levels)?;
                }
            }
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("a column too many".into()));
    };
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}

fn manifest(swept: &Swept, record: &Value, command: &[String]) -> Value {
    json!({
        "format": "streamgauge sweep",
        "format_version": 1,
        "status": "complete",
        "engine_version": env!("CARGO_PKG_VERSION"),
        "command": command,
        "job": record,
        "rows": swept.rows.len(),
        "left_out": swept.left_out.iter().map(|(prompt, kl)| json!({"prompt": prompt, "kl": kl})).collect::<Vec<_>>(),
        "layer_runs": { "done": swept.layer_runs, "naive": swept.naive_layer_runs },
        "receipts": swept.receipts,
        "edits": swept.edits,
        "timing": { "wall_s": swept.elapsed.as_secs_f64() },
    })
}
