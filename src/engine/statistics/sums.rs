//! The sums of a run in the making.

use std::collections::BTreeMap;

use super::super::live::{LiveBatch, LiveTap};
use super::super::{Error, Machine, Result};
use super::pairs::Pairs;
use crate::backend::cpu::{MOMENT_ROWS, add_moments};
use crate::store::statistics::{Counted, Kinds, Moments, Set, TapSets, UnderWay};
use crate::store::{Kept, SampleRow};

/// Most values of a label: each costs as much memory as all rows do without one.
const MOST_CLASSES: usize = 16;

/// One set of one tap.
#[derive(Debug)]
pub(super) struct Summing {
    pub moments: Moments,
    /// Rows that do not make a whole chunk yet.
    pub chunk: Vec<f32>,
    place: Where,
}

/// Where whole chunks are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Not settled yet.
    Nowhere,
    Here,
    /// On the machine's device, by that number.
    Device(usize),
}

impl Summing {
    pub fn new(width: usize, outer: bool) -> Self {
        Summing {
            moments: Moments::new(width, outer),
            chunk: Vec::new(),
            place: Where::Nowhere,
        }
    }

    /// Takes up rows `[n, width]`; whole chunks are summed on the machine's device, if it has one with room.
    ///
    /// # Errors
    /// The device's.
    pub fn push(&mut self, mut rows: &[f32], machine: &mut dyn Machine) -> Result<()> {
        let whole = MOMENT_ROWS * self.moments.width();
        self.moments.count += (rows.len() / self.moments.width()) as u64;
        while !rows.is_empty() {
            let (now, later) = rows.split_at(rows.len().min(whole - self.chunk.len()));
            rows = later;
            if now.len() == whole {
                self.add(now, machine)?;
                continue;
            }
            self.chunk.extend_from_slice(now);
            if self.chunk.len() == whole {
                let mut chunk = std::mem::take(&mut self.chunk);
                self.add(&chunk, machine)?;
                chunk.clear();
                self.chunk = chunk;
            }
        }
        Ok(())
    }

    /// Adds a whole chunk.
    fn add(&mut self, rows: &[f32], machine: &mut dyn Machine) -> Result<()> {
        if self.place == Where::Nowhere {
            let Moments { sum, outer, .. } = &self.moments;
            let outer = outer.as_ref();
            let number = outer.map(|outer| machine.begin_moments(sum, outer));
            self.place = match number.transpose()?.flatten() {
                Some(number) => Where::Device(number),
                None => Where::Here,
            };
        }
        match self.place {
            Where::Device(number) => machine.add_moments(number, rows),
            _ => {
                add(&mut self.moments, rows);
                Ok(())
            }
        }
    }

    /// Brings what a device has summed here.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&mut self, machine: &mut dyn Machine) -> Result<()> {
        match (self.place, &mut self.moments.outer) {
            (Where::Device(number), Some(outer)) => {
                machine.read_moments(number, &mut self.moments.sum, outer)
            }
            _ => Ok(()),
        }
    }

    /// The sums, the last rows included; what a device has summed was read.
    pub fn finish(mut self) -> Moments {
        add(&mut self.moments, &self.chunk);
        self.moments
    }
}

fn add(moments: &mut Moments, rows: &[f32]) {
    add_moments(rows, &mut moments.sum, moments.outer.as_deref_mut());
}

/// All sums of a run.
#[derive(Debug)]
pub(super) struct Sums {
    pub kinds: Kinds,
    /// Of each tap, in order.
    pub taps: Vec<BTreeMap<Set, Summing>>,
    pub pairs: Option<Pairs>,
    pub counted: Counted,
    widths: Vec<usize>,
    /// Places of the label and the pair's name among a sample's kept values.
    label: Option<usize>,
    pair: Option<usize>,
}

impl Sums {
    /// Of no rows; `kept` are the fields that samples carry, `widths` those of the taps' rows.
    pub fn new(kinds: &Kinds, kept: &[String], widths: Vec<usize>) -> Self {
        let place = |field: &Option<String>| {
            let field = field.as_ref()?;
            kept.iter().position(|name| name == field)
        };
        let mut taps: Vec<BTreeMap<Set, Summing>> = Vec::new();
        for &width in &widths {
            let mut sets = BTreeMap::new();
            if kinds.of_rows() && kinds.label.is_none() {
                sets.insert(Set::Rows, Summing::new(width, kinds.cov));
            }
            if kinds.pairdiff {
                sets.insert(Set::PairDifference, Summing::new(width, true));
                sets.insert(Set::PairSum, Summing::new(width, false));
            }
            taps.push(sets);
        }
        Sums {
            label: place(&kinds.label),
            pair: place(&kinds.pair),
            pairs: kinds.pairdiff.then(Pairs::default),
            kinds: kinds.clone(),
            counted: Counted::default(),
            taps,
            widths,
        }
    }

    /// Takes up a batch's rows.
    ///
    /// # Errors
    /// A row that is not finite; a sample without its label, or whose pair or number of rows is not right.
    pub fn add(&mut self, batch: &LiveBatch<'_>, machine: &mut dyn Machine) -> Result<()> {
        let classes = self.classes(batch)?;
        let rows: Vec<Vec<f32>> = batch.taps.iter().map(LiveTap::to_f32).collect();
        for (tap, rows) in rows.iter().enumerate() {
            self.add_rows(tap, rows, batch, classes.as_deref(), machine)?;
        }
        if let Some(pairs) = &mut self.pairs {
            let label = (self.label, self.kinds.label.as_deref());
            let name = (self.pair, self.kinds.pair.as_deref());
            for (i, sample) in batch.samples.iter().enumerate() {
                let of_sample: Vec<&[f32]> = (batch.taps.iter().zip(&rows).zip(&self.widths))
                    .map(|((tap, rows), &width)| one_row(tap, rows, width, i, sample))
                    .collect::<Result<_>>()?;
                let truth = value(sample, label)?.truth().ok_or_else(|| {
                    let found =
                        value(sample, label).map_or_else(|_| String::new(), Kept::to_string);
                    wrong(
                        sample,
                        format!("the label is '{found}', where pairs want 0, 1, true or false"),
                    )
                })?;
                let name = value(sample, name)?.to_string();
                pairs.add(sample, name, truth, &of_sample, &mut self.taps, machine)?;
            }
        }
        self.counted.samples += batch.samples.len() as u64;
        self.counted.tokens += (batch.samples.iter())
            .map(|sample| sample.tokens.len() as u64)
            .sum::<u64>();
        Ok(())
    }

    /// Each sample's class, if rows are summed by class.
    fn classes(&mut self, batch: &LiveBatch<'_>) -> Result<Option<Vec<Set>>> {
        if self.label.is_none() || !self.kinds.of_rows() {
            return Ok(None);
        }
        let label = (self.label, self.kinds.label.as_deref());
        let class = |sample: &&SampleRow| -> Result<Set> {
            Ok(Set::Class(
                value(sample, label)?.to_string().trim().to_owned(),
            ))
        };
        let classes: Vec<Set> = batch.samples.iter().map(class).collect::<Result<_>>()?;
        let known = |sums: &Self| {
            let sets = sums.taps.iter().flat_map(|sets| sets.keys());
            let classes = sets.filter(|set| matches!(set, Set::Class(_)));
            classes.collect::<std::collections::BTreeSet<_>>().len()
        };
        for (class, sample) in classes.iter().zip(&batch.samples) {
            if self.taps.iter().all(|sets| sets.contains_key(class)) {
                continue;
            }
            if known(self) == MOST_CLASSES {
                let field = self.kinds.label.as_deref().unwrap_or_default();
                return Err(wrong(
                    sample,
                    format!(
                        "the label '{field}' has more than {MOST_CLASSES} values: give --label a field that names classes"
                    ),
                ));
            }
            for (sets, &width) in self.taps.iter_mut().zip(&self.widths) {
                sets.insert(class.clone(), Summing::new(width, self.kinds.cov));
            }
        }
        Ok(Some(classes))
    }

    /// Takes up one tap's rows of the batch.
    fn add_rows(
        &mut self,
        tap: usize,
        rows: &[f32],
        batch: &LiveBatch<'_>,
        classes: Option<&[Set]>,
        machine: &mut dyn Machine,
    ) -> Result<()> {
        let (width, live) = (self.widths[tap], &batch.taps[tap]);
        if let Some(bad) = rows.iter().position(|x| !x.is_finite()) {
            let of_sample = |i: &usize| live.rows_of(*i).contains(&(bad / width));
            let sample = (0..batch.samples.len()).find(of_sample).unwrap_or(0);
            return Err(wrong(
                batch.samples[sample],
                format!(
                    "a row of {} is not finite: compute in f32 (--dtype f32), or select other rows",
                    live.info.folder
                ),
            ));
        }
        let sets = &mut self.taps[tap];
        match classes {
            None => {
                if let Some(all) = sets.get_mut(&Set::Rows) {
                    all.push(rows, machine)?;
                }
            }
            Some(classes) => {
                let mut rest = rows;
                for (class, of_sample) in classes.iter().zip(&live.rows) {
                    let (now, later) = rest.split_at(of_sample.positions.len() * width);
                    rest = later;
                    if let Some(of_class) = sets.get_mut(class) {
                        of_class.push(now, machine)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings what a device has summed here.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&mut self, machine: &mut dyn Machine) -> Result<()> {
        let all = self.taps.iter_mut().flat_map(BTreeMap::values_mut);
        all.into_iter()
            .try_for_each(|summing| summing.read(machine))
    }

    /// # Errors
    /// A pair of which one sample is missing.
    pub fn check_whole(&self) -> Result<()> {
        match &self.pairs {
            Some(pairs) => pairs.check_whole(self.kinds.pair.as_deref().unwrap_or_default()),
            None => Ok(()),
        }
    }

    /// Goes on from sums under way, of each tap; whether they are of these taps.
    pub fn take_up(&mut self, taps: Vec<Vec<UnderWay>>) -> bool {
        if taps.len() != self.taps.len() {
            return false;
        }
        for ((sets, kept), &width) in self.taps.iter_mut().zip(taps).zip(&self.widths) {
            for (set, moments, chunk) in kept {
                let is_class = matches!(set, Set::Class(_)) && self.label.is_some();
                let known = is_class || sets.contains_key(&set);
                if !known || moments.width() != width || chunk.len() >= width * MOMENT_ROWS {
                    return false;
                }
                let place = Where::Nowhere;
                let summing = Summing {
                    moments,
                    chunk,
                    place,
                };
                sets.insert(set, summing);
            }
        }
        true
    }
}

/// A tap's sums, the last rows included.
pub(super) fn finish(sets: BTreeMap<Set, Summing>) -> TapSets {
    let sets = sets.into_iter();
    sets.map(|(set, summing)| (set, summing.finish())).collect()
}

/// What is wrong with a sample.
pub(super) fn wrong(sample: &SampleRow, why: String) -> crate::Error {
    let place = format!("{}:{}", sample.file, sample.line);
    Error::Statistics { place, why }.into()
}

/// A sample's value of a field.
fn value<'s>(
    sample: &'s SampleRow,
    (place, field): (Option<usize>, Option<&str>),
) -> Result<&'s Kept> {
    let kept = place.and_then(|at| sample.kept.get(at)?.as_ref());
    kept.ok_or_else(|| {
        wrong(
            sample,
            format!(
                "the field '{}' is empty or not there: every sample needs it for --stats",
                field.unwrap_or_default()
            ),
        )
    })
}

/// The one row of a sample.
fn one_row<'r>(
    tap: &LiveTap<'_>,
    rows: &'r [f32],
    width: usize,
    i: usize,
    sample: &SampleRow,
) -> Result<&'r [f32]> {
    let of_sample = tap.rows_of(i);
    if of_sample.len() != 1 {
        return Err(wrong(
            sample,
            format!(
                "{} has {} rows of this sample, where a pair's difference wants one: tap '{}@last', or another selection of one token",
                tap.info.folder,
                of_sample.len(),
                tap.info.hook
            ),
        ));
    }
    Ok(&rows[of_sample.start * width..of_sample.end * width])
}
