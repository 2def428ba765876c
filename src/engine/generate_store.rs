//! What was tapped while generating, as a store. Its length is known only when the text has ended, so a group of prompts is a shard,
//! laid out when they are done.

use std::path::Path;

use serde_json::json;

use super::generate::{Generated, Generator};
use super::provenance::{dataset_info, provenance};
use super::{EditReceipt, Error, Prepared, Result, Sample};
use crate::store::{SampleRow, StoreWriter, Summary, TapRows};

/// The store of a generation run.
pub struct GenerationStore<'p> {
    prepared: &'p Prepared,
    writer: StoreWriter,
    rows: Vec<u64>,
    samples: u64,
}

impl<'p> GenerationStore<'p> {
    /// Begins it in `out`, which must be empty or not there, for what this generator taps.
    ///
    /// # Errors
    /// As [`StoreWriter::create`].
    pub fn create(generator: &Generator<'p>, out: &Path) -> Result<Self> {
        let (prepared, stops) = (generator.prepared, &generator.stops);
        let mut provenance = provenance(prepared, generator.machine.identity());
        provenance.job = json!({
            "command": "generate",
            "prompts": prepared.job,
            "choosing": generator.choosing,
            "max_new_tokens": stops.max_new_tokens,
            "stop_tokens": stops.tokens,
            "end_of_turn": stops.end_of_turn,
        });
        let keep = &prepared.job.keep;
        Ok(GenerationStore {
            writer: StoreWriter::create(out, provenance, prepared.infos.clone(), keep)?,
            rows: vec![0; prepared.taps.len()],
            samples: 0,
            prepared,
        })
    }

    /// Writes what was tapped for these prompts, as a shard.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self, prompts: &[Sample], generated: &[Generated]) -> Result<()> {
        let table: Vec<SampleRow> = prompts
            .iter()
            .zip(generated)
            .map(|(prompt, done)| SampleRow {
                tokens: done.tokens.clone(),
                ..prompt.row.clone()
            })
            .collect();
        let rows: Vec<Vec<TapRows>> = generated.iter().map(tap_rows).collect();
        let mut shard = self.writer.begin_shard(&table, &rows)?;
        let slabs = shard.batch_slabs(0..prompts.len());
        for (tap, slab) in slabs.into_iter().enumerate() {
            self.rows[tap] += slab.rows.len() as u64;
            let taps = || generated.iter().map(|done| &done.taps[tap]);
            fill(slab.activations, taps().map(|t| &t.activations[..]));
            fill(slab.index.unwrap_or_default(), taps().map(|t| &t.index[..]));
        }
        shard.finish_batch(0..prompts.len())?;
        shard.commit()?;
        self.samples += prompts.len() as u64;
        Ok(())
    }

    /// Gives up a run that failed.
    pub fn abandon(self) {
        self.writer.abandon();
    }

    /// Ends it; `records` were read from the dataset.
    ///
    /// # Errors
    /// A tap without any row, and the disk's.
    pub fn finish(self, records: u64, receipts: &[EditReceipt]) -> Result<()> {
        if let Some(tap) = self.rows.iter().position(|&rows| rows == 0) {
            self.writer.abandon();
            return Err(Error::NothingSelected {
                tap: self.prepared.taps[tap].to_string(),
                samples: self.samples,
            }
            .into());
        }
        self.writer.finish(Summary {
            receipts: receipts.iter().map(|r| json!(r)).collect(),
            dataset: Some(dataset_info(self.prepared, None, Some(records), 0)),
            ..Summary::default()
        })?;
        Ok(())
    }
}

fn tap_rows(done: &Generated) -> Vec<TapRows> {
    let of = |positions: &[u32]| TapRows {
        tokens: positions
            .iter()
            .map(|&p| done.tokens[p as usize] as i32)
            .collect(),
        positions: positions.iter().map(|&p| p as i32).collect(),
    };
    done.taps.iter().map(|t| of(&t.positions)).collect()
}

fn fill<'b>(mut out: &mut [u8], parts: impl Iterator<Item = &'b [u8]>) {
    for part in parts {
        let (here, rest) = out.split_at_mut(part.len());
        here.copy_from_slice(part);
        out = rest;
    }
}
