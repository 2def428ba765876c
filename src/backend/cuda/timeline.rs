//! When each op and each copy of a batch ran on the device, by stamps between them.

use std::time::Instant;

use super::backend::Cuda;
use super::driver::{Driver, Stamp, Track};
use super::launch::LaunchError;

/// Something that ran on the device.
#[derive(Debug, Clone)]
pub struct Timed {
    pub track: Track,
    /// The hook point that was being computed.
    pub name: String,
    pub begin: Instant,
    pub end: Instant,
}

/// The stamps of a batch.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Where each op begins; the next one is where it ends.
    ops: Vec<(String, Stamp)>,
    copies: Vec<(String, Stamp, Stamp)>,
}

impl Marks {
    /// An op begins here; an unnamed one is the end.
    pub fn op(&mut self, driver: &mut impl Driver, name: String) -> Result<(), LaunchError> {
        self.ops.push((name, driver.stamp(Track::Launches)?));
        Ok(())
    }

    /// A copy out ran between the two.
    pub fn copy(&mut self, begin: Stamp, end: Stamp) {
        let name = self.ops.last().map_or("copy", |(name, _)| name);
        self.copies.push((name.to_owned(), begin, end));
    }
}

impl<D: Driver> Cuda<D> {
    /// Has stamps set between ops, from the next batch on.
    pub fn set_tracing(&mut self, on: bool) {
        self.tracing = on;
    }

    /// What ran in the batches that landed since it was last asked.
    pub fn timeline(&mut self) -> Vec<Timed> {
        std::mem::take(&mut self.timeline)
    }

    /// Reads the stamps of a batch that was waited for.
    pub(super) fn read_marks(&mut self, marks: Marks) -> Result<(), LaunchError> {
        if marks.ops.is_empty() {
            return Ok(());
        }
        let zero = self.driver.stamps_from();
        let mut ops = Vec::with_capacity(marks.ops.len());
        for (name, stamp) in marks.ops {
            ops.push((name, zero + self.driver.read_stamp(stamp)?));
        }
        for pair in ops.windows(2) {
            let (name, begin) = pair[0].clone();
            self.timeline.push(Timed {
                track: Track::Launches,
                name,
                begin,
                end: pair[1].1,
            });
        }
        for (name, begin, end) in marks.copies {
            let begin = zero + self.driver.read_stamp(begin)?;
            let end = zero + self.driver.read_stamp(end)?;
            self.timeline.push(Timed {
                track: Track::Copies,
                name,
                begin,
                end,
            });
        }
        Ok(())
    }
}
