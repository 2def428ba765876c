//! One batch under way on the device. [`Pass`] holds what its ops share: where each activation is now, the ring's pieces, the first error.
//! The ops themselves are in the modules below it, and [`ops`] says which op of [`Ops`] is which.
//!
//! Ops cannot fail; the first launch that does ends the pass, and [`Pass::complete`] tells.

mod attention;
mod binding;
mod decode;
mod ops;
mod products;
mod rows;

pub(super) use self::attention::Within;
pub(super) use self::decode::Continued;
use self::rows::PendingAdd;
use super::arena::{Full, PieceId};
use super::backend::{Cuda, View};
use super::driver::{Driver, Track};
use super::edits::{Norms, receipts};
use super::launch::{DevicePtr, Dtype, LaunchError};
use super::timeline::Marks;
use super::weights::narrowed;
use crate::backend::{Act, Batch, Edit, Error, Ops, Receipt, Reduce, Result, Sink, SinkId};

pub(super) type Launched<T = ()> = Result<T, LaunchError>;

/// One batch under way. Dropped unfinished, it waits until nothing writes to its sinks any more.
pub struct Pass<'c, 's, D: Driver> {
    pub(super) cuda: &'c mut Cuda<D>,
    batch: &'c Batch,
    pub(super) sinks: Vec<Option<Sink<'s>>>,
    pub(super) edits: Vec<Edit>,
    /// Norms of edited rows, on their way from the device.
    pub(super) norms: Vec<Norms>,
    /// Where each activation is now, and where its own memory is.
    views: [View; Act::COUNT],
    own: [View; Act::COUNT],
    bound: [Option<(SinkId, PieceId)>; Act::COUNT],
    /// Per sink that takes means: its carries' slot, and whose turn it is.
    pub(super) means: Vec<(usize, bool)>,
    pending: Option<PendingAdd>,
    /// What gate and up are made of, where the activation makes them: their input and their layer.
    gate_of: Option<(Act, usize)>,
    n_tiles: u32,
    /// The sequences that the batch goes on with.
    continued: Option<Continued>,
    error: Option<LaunchError>,
    finished: bool,
    pub(super) marks: Marks,
}

impl<'c, 's, D: Driver> Pass<'c, 's, D> {
    pub(super) fn new(
        cuda: &'c mut Cuda<D>,
        batch: &'c Batch,
        sinks: Vec<Sink<'s>>,
        edits: Vec<Edit>,
        n_tiles: u32,
        continued: Option<Continued>,
    ) -> Self {
        let acts = cuda.places.acts;
        let mut slots = 0;
        let means = sinks
            .iter()
            .map(|sink| {
                slots += usize::from(matches!(sink.spec.reduce, Reduce::Mean));
                (slots.saturating_sub(1), false)
            })
            .collect();
        Pass {
            cuda,
            batch,
            sinks: sinks.into_iter().map(Some).collect(),
            edits,
            norms: Vec::new(),
            views: acts,
            own: acts,
            bound: [None; Act::COUNT],
            means,
            pending: None,
            gate_of: None,
            n_tiles,
            continued,
            error: None,
            finished: false,
            marks: Marks::default(),
        }
    }

    /// Waits until every sink is written; returns what each edit has done.
    ///
    /// # Errors
    /// The first launch or copy that failed.
    pub fn complete(mut self) -> Result<Vec<Receipt>> {
        self.end()?;
        self.wait()?;
        let marks = std::mem::take(&mut self.marks);
        self.cuda.read_marks(marks)?;
        Ok(receipts(&self.norms, self.edits.len()))
    }

    /// Calls what was put off; nothing is bound any more.
    ///
    /// # Errors
    /// The first launch or copy that could not be called.
    pub(super) fn end(&mut self) -> Launched {
        Ops::finish(self);
        self.mark(String::new());
        self.error.take().map_or(Ok(()), Err)
    }

    /// The sinks are another's to wait for.
    pub(super) fn left(&mut self) {
        self.finished = true;
    }

    /// Puts every row of an activation into its own memory, rounded to its dtype.
    ///
    /// # Panics
    /// They are not as many numbers as the batch's rows have.
    pub fn fill(&mut self, act: Act, values: &[f32]) {
        let to = self.own[act as usize];
        assert_eq!(values.len(), self.batch.rows() * to.width, "{act:?}");
        assert_eq!(to.stride, to.width, "{act:?} lies among others");
        self.attempt(|p| {
            p.settle()?;
            p.let_go(act);
            let bytes = narrowed(values, to.dtype);
            p.cuda.driver.upload_in_order(to.at, &bytes)
        });
    }

    /// Waits for every launch and copy.
    fn wait(&mut self) -> Launched {
        let fence = self.cuda.driver.fence()?;
        self.cuda.driver.wait(fence)?;
        // Nothing is under way any more, whatever a launch that failed left held.
        self.cuda.ring.clear();
        self.finished = true;
        Ok(())
    }

    pub(super) fn attempt(&mut self, op: impl FnOnce(&mut Self) -> Launched) {
        if self.error.is_none()
            && let Err(error) = op(self)
        {
            self.error = Some(error);
        }
    }

    pub(super) fn rows(&self) -> u32 {
        self.batch.rows() as u32
    }

    pub(super) fn batch(&self) -> &'c Batch {
        self.batch
    }

    pub(super) fn view(&self, act: Act) -> View {
        self.views[act as usize]
    }

    fn dtype(&self) -> Dtype {
        self.cuda.options.dtype
    }

    fn f32_resid(&self) -> bool {
        self.cuda.options.f32_resid && self.dtype() != Dtype::F32
    }

    /// `bytes` bytes of the ring; waits for older pieces to leave, and moves bound activations out of the way.
    pub(super) fn take(&mut self, bytes: usize) -> Launched<(PieceId, DevicePtr)> {
        loop {
            match self.cuda.ring.take(bytes) {
                Ok(piece) => return Ok(piece),
                Err(Full::Until(fence)) => {
                    self.cuda.driver.wait(fence)?;
                    self.cuda.ring.pop(fence);
                }
                Err(Full::InUse) => {
                    let oldest = self.cuda.ring.oldest_held();
                    let holds = |act: &Act| {
                        self.bound[*act as usize].is_some_and(|(_, piece)| Some(piece) == oldest)
                    };
                    let act = Act::ALL.into_iter().find(holds);
                    self.move_home(act.ok_or_else(|| too_small(bytes, self.cuda.ring.size()))?)?;
                }
                Err(Full::TooSmall) => return Err(too_small(bytes, self.cuda.ring.size())),
            }
        }
    }

    /// A short list, in a piece: call `release` after the launch that reads it. What is uploaded later waits for that launch.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Launched<(PieceId, DevicePtr)> {
        let (piece, at) = self.take(bytes.len())?;
        self.cuda.driver.upload_in_order(at, bytes)?;
        Ok((piece, at))
    }

    pub(super) fn release(&mut self, piece: PieceId) {
        self.cuda.ring.release(piece);
    }

    /// Copies a piece to the host and lets it go.
    ///
    /// # Safety
    /// As [`Driver::copy_out`]'s; whoever ends the pass waits for the copy.
    pub(super) unsafe fn send(
        &mut self,
        piece: PieceId,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Launched {
        // SAFETY: the caller's.
        unsafe { self.copy_out(piece, from, to, bytes)? };
        self.release(piece);
        Ok(())
    }

    /// Copies a piece to the host, after what was launched so far and beside what comes.
    ///
    /// # Safety
    /// As [`send`](Self::send)'s.
    unsafe fn copy_out(
        &mut self,
        piece: PieceId,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Launched {
        let driver = &mut self.cuda.driver;
        driver.copies_follow()?;
        let begin = match self.cuda.tracing {
            true => Some(driver.stamp(Track::Copies)?),
            false => None,
        };
        // SAFETY: the caller's.
        unsafe { driver.copy_out(from, to, bytes)? };
        if let Some(begin) = begin {
            let end = driver.stamp(Track::Copies)?;
            self.marks.copy(begin, end);
        }
        let fence = driver.fence()?;
        self.cuda.ring.until(piece, fence);
        Ok(())
    }

    /// What is launched from here on is called so in the timeline, if there is to be one.
    fn mark(&mut self, name: String) {
        if self.cuda.tracing {
            self.attempt(|p| p.marks.op(&mut p.cuda.driver, name));
        }
    }
}

fn too_small(bytes: usize, ring: usize) -> LaunchError {
    LaunchError::Device {
        what: "copying taps out".into(),
        reason: format!(
            "a piece of {bytes} bytes finds no place in the {ring} bytes set aside for it"
        ),
    }
}

impl<D: Driver> Drop for Pass<'_, '_, D> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The sinks' memory is the caller's again after this, whatever failed; there is no one left to tell of more.
        for act in Act::ALL {
            self.let_go(act);
        }
        if self.wait().is_err() {
            self.cuda.give_up();
        }
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        Error::Device(Box::new(error))
    }
}
