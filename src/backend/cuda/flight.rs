//! Batches that are computed, or will be soon, and whose rows are on their way to the host. While they are, the next batch's launches
//! run: what keeps the two apart is the order of the copies, and the fences of the ring's pieces.

use super::backend::Cuda;
use super::driver::{Driver, Fence, Waited};
use super::edits::{Norms, receipts};
use super::pass::Pass;
use super::pinned::Pinner;
use super::timeline::Marks;
use crate::backend::{Landed, Result, Sink};

/// Batches under way at a time, unless set otherwise: one that is copied out, one that is computed, one whose launches are called.
pub(super) const DEPTH: usize = 3;

/// A batch under way. Its sinks own their memory, so nothing borrowed waits for it.
pub(super) struct Flight {
    /// Reached when all its rows are in its sinks.
    fence: Fence,
    sinks: Vec<Sink<'static>>,
    norms: Vec<Norms>,
    edits: usize,
    marks: Marks,
}

impl<D: Driver> Pass<'_, 'static, D> {
    /// Ends the pass without waiting for its launches and copies: [`Cuda::land`] does.
    ///
    /// # Errors
    /// The first launch or copy that could not be called; the batch is then given up.
    pub fn leave(mut self) -> Result<()> {
        self.end()?;
        let marks = std::mem::take(&mut self.marks);
        let fence = self.cuda.driver.fence()?;
        let flight = Flight {
            fence,
            sinks: std::mem::take(&mut self.sinks)
                .into_iter()
                .flatten()
                .collect(),
            norms: std::mem::take(&mut self.norms),
            edits: self.edits.len(),
            marks,
        };
        self.cuda.flights.push_back(flight);
        self.left();
        Ok(())
    }
}

impl<D: Driver> Cuda<D> {
    /// Has at most `batches` batches under way at a time, at least one.
    pub fn set_depth(&mut self, batches: usize) {
        self.depth = batches.max(1);
    }

    /// Most batches under way at a time.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Batches under way.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Waits for the oldest batch under way; `None` if there is none.
    ///
    /// # Errors
    /// The first launch or copy that failed; every batch under way is then given up.
    pub fn land(&mut self) -> Result<Option<Landed>> {
        let Some(flight) = self.flights.pop_front() else {
            return Ok(None);
        };
        if let Err(error) = self.driver.wait(flight.fence) {
            self.give_up();
            return Err(error.into());
        }
        self.ring.pop(flight.fence);
        if let Err(error) = self.read_marks(flight.marks) {
            self.give_up();
            return Err(error.into());
        }
        let done = receipts(&flight.norms, flight.edits);
        Ok(Some(Landed::new(flight.sinks, done)))
    }

    /// Stops everything that is under way; the sinks' memory is nobody's any more.
    pub fn give_up(&mut self) {
        self.driver.drain();
        self.flights.clear();
        self.ring.clear();
    }

    /// How long the host has waited for launches, and for copies after them.
    pub fn waited(&self) -> Waited {
        self.driver.waited()
    }

    /// What registers host memory with the device.
    ///
    /// # Errors
    /// The driver's.
    pub fn pinner(&self) -> Result<Pinner> {
        Ok(Pinner::new(self.driver.registrar()?))
    }
}
