//! The blank sheet on which a human reader rates answers, plain and edited ones mixed, and its key.

use serde::Serialize;

use super::Answered;
use crate::analysis::random::Rng;
use crate::study::{Result, Study, folder};

/// A row of the sheet for a human reader.
#[derive(Serialize)]
struct Rating<'a> {
    row: usize,
    prompt: &'a str,
    answer: &'a str,
    /// honest, dishonest, evasive or nonsense; for the reader to fill in.
    rating: &'static str,
    remark: &'static str,
}

#[derive(Serialize)]
struct Key<'a> {
    row: usize,
    id: &'a str,
    run: &'static str,
}

pub(super) fn sheets(study: &Study<'_>, answered: &[Answered<'_>]) -> Result<()> {
    let mut all: Vec<(&Answered<'_>, &str, &'static str)> = answered
        .iter()
        .flat_map(|a| {
            [
                (a, a.plain.text.as_str(), "plain"),
                (a, a.edited.text.as_str(), "edited"),
            ]
        })
        .collect();
    Rng::new(study.options().seed).shuffle(&mut all);
    let numbered = || (1..).zip(&all);
    let ratings: Vec<Rating<'_>> = numbered()
        .map(|(row, (a, answer, _))| Rating {
            row,
            prompt: &a.asked.prompt.text,
            answer,
            rating: "",
            remark: "",
        })
        .collect();
    let keys: Vec<Key<'_>> = numbered()
        .map(|(row, &(a, _, run))| Key {
            row,
            id: &a.asked.prompt.id,
            run,
        })
        .collect();
    let folder = study.path("E2");
    folder::make_folder(&folder)?;
    crate::report::table::write_csv(&folder.join("ratings-key.csv"), &keys)?;
    crate::report::table::write_csv(&folder.join("ratings.csv"), &ratings)?;
    Ok(())
}
