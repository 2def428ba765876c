//! Tables as CSV.

use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Write the rows as CSV, a header line of their field names first; numbers in full, so that nothing is lost.
///
/// # Errors
/// When a row is not flat, or the file cannot be written.
pub fn write_csv<Row: serde::Serialize>(path: &Path, rows: &[Row]) -> Result<()> {
    write(path, |writer| {
        rows.iter().try_for_each(|row| writer.serialize(row))
    })
}

/// Write lines of cells as CSV, the first being the columns' names; all must be as long as it.
///
/// # Errors
/// When a line has another length, or the file cannot be written.
pub fn write_records(path: &Path, lines: &[Vec<String>]) -> Result<()> {
    write(path, |writer| {
        lines.iter().try_for_each(|line| writer.write_record(line))
    })
}

fn write(
    path: &Path,
    lines: impl FnOnce(&mut csv::Writer<Vec<u8>>) -> Result<(), csv::Error>,
) -> Result<()> {
    let refused = |source| Error::Table {
        path: path.to_owned(),
        source,
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    lines(&mut writer).map_err(refused)?;
    let written = writer
        .into_inner()
        .map_err(|error| refused(error.into_error().into()))?;
    std::fs::write(path, written).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// A CSV file that is written line by line, for tables that memory should not hold.
pub struct Lines {
    path: PathBuf,
    writer: csv::Writer<std::fs::File>,
}

impl Lines {
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = std::fs::File::create(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(Lines {
            path: path.to_owned(),
            writer: csv::Writer::from_writer(file),
        })
    }

    /// Writes a row; before the first, a line of its field names.
    ///
    /// # Errors
    /// When the row is not flat, or the file cannot be written.
    pub fn write<Row: serde::Serialize>(&mut self, row: &Row) -> Result<()> {
        self.writer.serialize(row).map_err(|source| Error::Table {
            path: self.path.clone(),
            source,
        })
    }

    /// # Errors
    /// When the rest cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(|source| Error::Write {
            path: self.path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Row {
        layer: usize,
        hook: &'static str,
        accuracy: f64,
    }

    #[test]
    fn a_table_has_its_field_names_and_numbers_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.csv");
        write_csv(
            &path,
            &[Row {
                layer: 3,
                hook: "a,b",
                accuracy: 1.0 / 3.0,
            }],
        )
        .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "layer,hook,accuracy\n3,\"a,b\",0.3333333333333333\n");
    }

    #[test]
    fn a_table_that_cannot_be_written_is_an_error_that_names_it() {
        let path = Path::new("/nonexistent/table.csv");
        let message = write_csv(path, &[(1, 2)]).unwrap_err().to_string();
        assert!(
            message.starts_with("/nonexistent/table.csv: No such file"),
            "{message}"
        );
    }
}
