//! What was tapped while generating, as a store. Its length is known only when the text has ended, so a group of prompts is a shard,
//! laid out when they are done.

use std::path::Path;

use serde_json::json;

use super::generate::{Generated, Generator};
use super::provenance::{dataset_info, provenance};
use super::resume::{Beginning, Carry, GENERATE, begin};
use super::slice::Share;
use super::{Error, Prepared, Result, Sample};
use crate::store::{Manifest, SampleRow, StoreWriter, Summary, TapRows};

/// The store of a generation run.
pub struct GenerationStore<'p> {
    prepared: &'p Prepared,
    writer: StoreWriter,
    /// Of the dataset, where it can be read again.
    fingerprint: Option<String>,
    carry: Carry,
}

/// What a store of generated text is of, beside the job of its generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromptSource<'a> {
    /// The prompts, where they are not a dataset's.
    pub given: &'a [String],
    /// How many run together, and make a shard.
    pub together: usize,
}

/// How a generation run begins.
pub enum GenerationBeginning<'p> {
    Store(Box<GenerationStore<'p>>),
    /// The store was complete before: nothing is to be run.
    Already(Box<Manifest>),
}

impl<'p> GenerationStore<'p> {
    /// Begins it in `out`, which must be empty or not there, for what this generator taps; with `resume` goes on with the one there, and
    /// has the generator's receipts go on too.
    ///
    /// # Errors
    /// As [`StoreWriter::create`]; with `resume`, a store that another command began, a dataset that can be read only once.
    pub fn begin(
        generator: &mut Generator<'p>,
        source: PromptSource<'_>,
        out: &Path,
        resume: bool,
    ) -> Result<GenerationBeginning<'p>> {
        let (prepared, stops) = (generator.prepared, &generator.stops);
        let mut provenance = provenance(prepared, generator.machine.identity());
        provenance.job = json!({
            "command": GENERATE,
            "prompts": prepared.job,
            "given": source.given,
            "batch": source.together,
            "choosing": generator.choosing,
            "max_new_tokens": stops.max_new_tokens,
            "stop_tokens": stops.tokens,
            "end_of_turn": stops.end_of_turn,
        });
        let (writer, carry) = match begin(prepared, provenance, &Share::whole(), out, resume)? {
            Beginning::Already(manifest) => return Ok(GenerationBeginning::Already(manifest)),
            Beginning::Writer(writer, carry) => (*writer, *carry),
        };
        generator.receipts = carry.receipts();
        let fingerprint = prepared.dataset_fingerprint()?;
        let dataset = dataset_info(prepared, fingerprint.clone(), None, 0);
        writer.dataset_record().set(dataset)?;
        Ok(GenerationBeginning::Store(Box::new(GenerationStore {
            prepared,
            writer,
            fingerprint,
            carry,
        })))
    }

    /// Prompts that are in it: where a resumed run goes on.
    pub fn prompts(&self) -> u64 {
        self.carry.samples
    }

    /// Writes what the generator tapped for these prompts, as a shard.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(
        &mut self,
        generator: &Generator<'p>,
        prompts: &[Sample],
        generated: &[Generated],
    ) -> Result<()> {
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
        let carry = &mut self.carry;
        carry.samples += prompts.len() as u64;
        carry.tokens += table.iter().map(|s| s.tokens.len() as u64).sum::<u64>();
        carry.set_receipts(&generator.receipts);
        for (tap, rows) in carry.rows.iter_mut().enumerate() {
            *rows += shard.rows(tap) as u64;
        }
        // A process that died between the rows and the commit left them whole.
        if shard.finished() < prompts.len() {
            let slabs = shard.batch_slabs(0..prompts.len());
            for (tap, slab) in slabs.into_iter().enumerate() {
                let taps = || generated.iter().map(|done| &done.taps[tap]);
                fill(slab.activations, taps().map(|t| &t.activations[..]));
            }
            for tap in 0..self.prepared.infos.len() {
                let side_rows: Vec<&[u8]> =
                    generated.iter().map(|d| &d.taps[tap].index[..]).collect();
                let rows = 0..shard.rows(tap);
                shard.put_side_rows(tap, rows, &side_rows.concat());
            }
            shard.finish_batch_with(0..prompts.len(), json!(carry))?;
        }
        shard.commit()?;
        Ok(())
    }

    /// Gives up a run that failed or was stopped. Whether anything stays to go on with.
    pub fn abandon(self) -> bool {
        self.writer.abandon()
    }

    /// Ends it: all prompts are in it.
    ///
    /// # Errors
    /// A tap without any row, and the disk's.
    pub fn finish(self, generator: &Generator<'p>) -> Result<()> {
        let samples = self.carry.samples;
        if let Some(tap) = self.carry.rows.iter().position(|&rows| rows == 0) {
            self.writer.abandon();
            let tap = self.prepared.taps[tap].to_string();
            return Err(Error::NothingSelected { tap, samples }.into());
        }
        let receipts = generator.receipts();
        let dataset = dataset_info(self.prepared, self.fingerprint, Some(samples), 0);
        self.writer.finish(Summary {
            receipts: receipts.iter().map(|r| json!(r)).collect(),
            dataset: Some(dataset),
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
