//! Differences within pairs: the first sample's rows wait for the second's.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use super::super::{Error, Machine, Result};
use super::sums::{Summing, wrong};
use crate::store::statistics::{PairRows, Set};
use crate::store::{SampleRow, Xxh3};

/// A sample whose partner has not come yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub truth: bool,
    pub place: String,
    /// Its row of every tap, end to end.
    pub rows: Vec<f32>,
}

/// The pairs of a run.
#[derive(Debug)]
pub(super) struct Pairs {
    pub waiting: HashMap<String, Waiting>,
    /// Hashes of the names of whole pairs.
    pub whole: HashSet<u64>,
    /// Bytes that may wait.
    room: usize,
}

impl Default for Pairs {
    /// None yet. A quarter of the free memory may wait.
    fn default() -> Self {
        Pairs {
            waiting: HashMap::new(),
            whole: HashSet::new(),
            room: (crate::sys::free_memory() / 4).max(64 << 20) as usize,
        }
    }
}

impl Pairs {
    /// Takes up a sample: its row of each tap, and what it is labelled.
    ///
    /// # Errors
    /// The third sample of a name, or a second one of the same label; too many that wait.
    pub fn add(
        &mut self,
        sample: &SampleRow,
        name: String,
        truth: bool,
        rows: &[&[f32]],
        taps: &mut [BTreeMap<Set, Summing>],
        machine: &mut dyn Machine,
    ) -> Result<()> {
        let hash = Xxh3::of(name.as_bytes()).0;
        if self.whole.contains(&hash) {
            let why = format!(
                "a third sample of the pair '{name}': a pair has two, one true and one false"
            );
            return Err(wrong(sample, why));
        }
        let Some(first) = self.waiting.remove(&name) else {
            let bytes = 4 * rows.iter().map(|row| row.len()).sum::<usize>();
            if (self.waiting.len() + 1) * bytes > self.room {
                let why = format!(
                    "{} samples wait for the other one of their pair, which is all that fits into memory: put the two samples of a pair next to each other in the dataset",
                    self.waiting.len()
                );
                return Err(wrong(sample, why));
            }
            let waiting = Waiting {
                truth,
                place: format!("{}:{}", sample.file, sample.line),
                rows: rows.concat(),
            };
            self.waiting.insert(name, waiting);
            return Ok(());
        };
        if first.truth == truth {
            let why = format!(
                "the pair '{name}' has two samples labelled {truth} (the other: {}), where a pair has one true and one false",
                first.place
            );
            return Err(wrong(sample, why));
        }
        self.whole.insert(hash);
        if first.rows.len() != rows.iter().map(|row| row.len()).sum::<usize>() {
            return Err(wrong(
                sample,
                format!("the rows of {} are of other taps", first.place),
            ));
        }
        let mut of_first = &first.rows[..];
        for (row, sets) in rows.iter().zip(taps) {
            let (other, rest) = of_first.split_at(row.len());
            of_first = rest;
            let (yes, no) = if truth { (*row, other) } else { (other, *row) };
            let of = |f: fn(f32, f32) -> f32| -> Vec<f32> {
                yes.iter().zip(no).map(|(&yes, &no)| f(yes, no)).collect()
            };
            if let Some(differences) = sets.get_mut(&Set::PairDifference) {
                differences.push(&of(|yes, no| yes - no), machine)?;
            }
            if let Some(both) = sets.get_mut(&Set::PairSum) {
                both.push(&of(|yes, no| yes + no), machine)?;
            }
        }
        Ok(())
    }

    /// What is kept of them: the waiting samples in the order of their names, and their rows.
    pub fn kept(&self) -> (Value, PairRows) {
        let mut waiting: Vec<(&String, &Waiting)> = self.waiting.iter().collect();
        waiting.sort_by_key(|(name, _)| *name);
        let named = waiting
            .iter()
            .map(|(name, w)| json!({ "name": name, "truth": w.truth, "place": w.place }));
        let mut whole: Vec<u64> = self.whole.iter().copied().collect();
        whole.sort_unstable();
        let rows = waiting.iter().flat_map(|(_, w)| &w.rows).copied();
        (
            named.collect(),
            PairRows {
                rows: rows.collect(),
                whole,
            },
        )
    }

    /// Goes on from what was kept; whether names and rows go together.
    pub fn take_up(&mut self, named: &Value, kept: &PairRows) -> bool {
        let named = named.as_array().map_or(&[][..], Vec::as_slice);
        let each = kept.rows.len() / named.len().max(1);
        if each * named.len() != kept.rows.len() {
            return false;
        }
        for (i, one) in named.iter().enumerate() {
            let name = one["name"].as_str();
            let (Some(name), Some(truth)) = (name, one["truth"].as_bool()) else {
                return false;
            };
            let waiting = Waiting {
                truth,
                place: one["place"].as_str().unwrap_or_default().to_owned(),
                rows: kept.rows[i * each..(i + 1) * each].to_vec(),
            };
            self.waiting.insert(name.to_owned(), waiting);
        }
        self.whole.extend(&kept.whole);
        true
    }

    /// # Errors
    /// A sample still waits.
    pub fn check_whole(&self, field: &str) -> Result<()> {
        // The first in the order of names, so that the message is always the same.
        match self.waiting.iter().min_by_key(|(name, _)| *name) {
            None => Ok(()),
            Some((name, waiting)) => Err(Error::Statistics {
                place: waiting.place.clone(),
                why: format!(
                    "{} without the other one of their pair, '{name}' for one: name with --pair the field that two samples share ('{field}' is used)",
                    match self.waiting.len() {
                        1 => "1 sample is left".into(),
                        n => format!("{n} samples are left"),
                    }
                ),
            }
            .into()),
        }
    }
}
