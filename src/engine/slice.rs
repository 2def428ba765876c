//! `--shard i/n`: the i-th of n runs of the dataset's records that follow one another. Which records, only a count of all of them
//! tells, so the dataset is read once beforehand.

use super::{Error, Prepared, Result};
use crate::data::Dataset;
use crate::store::Slice;

/// The job's slice of its dataset, counted; `None` if it is all of it.
///
/// # Errors
/// The dataset cannot be read, or only once; it has fewer records than there are slices.
pub fn of(prepared: &Prepared) -> Result<Option<Slice>> {
    let Some((index, of)) = prepared.job.shard else {
        return Ok(None);
    };
    let mut dataset = prepared.job.dataset(false)?;
    refuse_streams(&dataset, "--shard")?;
    let mut records = 0;
    for record in dataset.by_ref() {
        record?;
        records += 1;
    }
    records += dataset.skipped();
    if records < of {
        return Err(Error::EmptySlice { index, of, records }.into());
    }
    let at = |i: u64| (u128::from(records) * u128::from(i) / u128::from(of)) as u64;
    Ok(Some(Slice {
        index,
        of,
        first: at(index),
        end: at(index + 1),
        records,
    }))
}

/// The records of the slice, or of the whole dataset, opened anew.
pub fn dataset(prepared: &Prepared, slice: Option<&Slice>, needs_spans: bool) -> Result<Dataset> {
    let dataset = prepared.job.dataset(needs_spans)?;
    Ok(match slice {
        Some(slice) => dataset.only(slice.first..slice.end),
        None => dataset,
    })
}

/// Refuses what can be read only once.
pub fn refuse_streams(dataset: &Dataset, what: &'static str) -> Result<(), Error> {
    match dataset.stream() {
        None => Ok(()),
        Some(path) => Err(Error::Stream {
            what,
            path: path.display().to_string(),
        }),
    }
}
