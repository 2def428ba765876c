//! The page: findings as one HTML file that needs nothing else, and every exhibit beside it as CSV, SVG and PNG.
//!
//! ```text
//! OUT/report.html                  opens from the file, without a network
//! OUT/exhibits/E7-numbers.csv      an experiment's numbers
//! OUT/exhibits/E7-heads.csv        an exhibit's values, in full; `.svg` and `.png` where it can be drawn
//! ```

mod document;
pub(super) mod escape;
mod exhibit;
mod numbers;
mod rows;
mod section;
mod tables;
mod tokens;

use std::collections::HashSet;
use std::path::Path;

use super::finding::Finding;
use super::{Error, Result, chart, table};

/// What stands above the findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heading {
    pub title: String,
    /// Paragraphs below the title: what was studied, and what a reader should know first, e.g. that the run was a quick one.
    pub lead: Vec<String>,
    /// Name and value of what holds for all findings: the model and its fingerprint, layer and strength of the edit, the date.
    pub facts: Vec<(String, String)>,
}

/// The page's file in the study's folder.
pub const PAGE: &str = "report.html";
/// The folder of the exhibits' files, in the study's folder.
pub const EXHIBITS: &str = "exhibits";

/// Writes [`PAGE`] and the files of [`EXHIBITS`] into `out`, which must be there. Equal findings give equal bytes.
///
/// # Errors
/// When an experiment's or an exhibit's name is no file name or is taken twice, a picture cannot be drawn, or a file cannot be written.
pub fn write(out: &Path, heading: &Heading, findings: &[Finding]) -> Result<()> {
    check_names(out, findings)?;
    let folder = out.join(EXHIBITS);
    std::fs::create_dir_all(&folder).map_err(|source| Error::Write {
        path: folder.clone(),
        source,
    })?;
    for finding in findings {
        let path = folder.join(format!("{}-numbers.csv", finding.id));
        table::write_records(&path, &rows::of_numbers(&finding.numbers))?;
        for exhibit in &finding.exhibits {
            let path = folder.join(format!("{}.csv", exhibit.name));
            table::write_records(&path, &rows::of_body(&exhibit.body))?;
            if let Some(drawing) = chart::draw(exhibit) {
                drawing.save(&exhibit.caption, &folder.join(&exhibit.name))?;
            }
        }
    }
    let path = out.join(PAGE);
    std::fs::write(&path, document::html(heading, findings))
        .map_err(|source| Error::Write { path, source })
}

/// Names become files: letters, digits and `-`, each once, whatever the case.
fn check_names(out: &Path, findings: &[Finding]) -> Result<()> {
    let mut taken = HashSet::new();
    for finding in findings {
        let own = format!("{}-numbers", finding.id);
        let exhibits = finding.exhibits.iter().map(|exhibit| exhibit.name.as_str());
        for (name, file) in [(finding.id.as_str(), own.as_str())]
            .into_iter()
            .chain(exhibits.map(|name| (name, name)))
        {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if name.is_empty() || !name.chars().all(plain) {
                return Err(Error::Name {
                    path: out.to_owned(),
                    what: format!(
                        "{name:?} (of finding {:?}) is not letters, digits and '-'",
                        finding.id
                    ),
                });
            }
            if !taken.insert(file.to_ascii_lowercase()) {
                return Err(Error::Name {
                    path: out.to_owned(),
                    what: format!("{name:?} (of finding {:?}) is there twice", finding.id),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
