//! Where activations are written: memory of their own, or a piece of the ring that is copied out to a sink as it is.

use super::{Launched, Pass};
use crate::backend::cuda::arena::{Full, PieceId};
use crate::backend::cuda::backend::View;
use crate::backend::cuda::driver::{Driver, Pitched};
use crate::backend::cuda::launch::Dtype;
use crate::backend::{Act, Reduce, SinkId};

impl<D: Driver> Pass<'_, '_, D> {
    /// Gives the activation a piece that goes to the sink as it is, if the sink takes every row whole and unconverted; says whether it does.
    pub(super) fn bind_to(&mut self, act: Act, id: SinkId) -> bool {
        let view = self.own[act as usize];
        let direct = Self::can_be_bound(act)
            && self.error.is_none()
            && self.sinks[id].as_ref().is_some_and(|sink| {
                sink.rows.len() == self.batch.rows()
                    && sink.spec.columns.is_empty()
                    && matches!(sink.spec.reduce, Reduce::None)
                    && sink.spec.dtype.code().is_none()
                    && Dtype::from(sink.spec.dtype) == view.dtype
            });
        if !direct {
            return false;
        }
        let bytes = self.batch.rows() * view.width * view.dtype.bytes();
        let sink_bytes = self.sinks[id].as_ref().map(|sink| sink.bytes.len());
        assert_eq!(sink_bytes, Some(bytes), "a direct sink takes every row");
        if bytes > self.cuda.ring.size() / 4 {
            return false;
        }
        let taken = loop {
            match self.cuda.ring.take(bytes) {
                Err(Full::Until(fence)) => {
                    self.attempt(|p| p.cuda.driver.wait(fence));
                    if self.error.is_some() {
                        return false;
                    }
                    self.cuda.ring.pop(fence);
                }
                taken => break taken,
            }
        };
        let Ok((piece, at)) = taken else {
            return false;
        };
        self.attempt(|p| p.settle_if(act));
        self.bound[act as usize] = Some((id, piece));
        self.views[act as usize] = View {
            at,
            stride: view.width,
            ..view
        };
        true
    }

    /// Exchanges what two activations are.
    pub(super) fn exchange(&mut self, a: Act, b: Act) {
        let (i, j) = (a as usize, b as usize);
        self.views.swap(i, j);
        self.own.swap(i, j);
        self.bound.swap(i, j);
        if let Some(add) = &mut self.pending {
            if add.out == a {
                add.out = b;
            } else if add.out == b {
                add.out = a;
            }
        }
    }

    /// Ends an activation's binding; what it holds is not wanted any more.
    pub(super) fn let_go(&mut self, act: Act) {
        if let Some((_, piece)) = self.bound[act as usize].take() {
            self.release(piece);
        }
        self.views[act as usize] = self.own[act as usize];
    }

    /// Moves a bound activation to its own memory, where it stays: what reads it while pieces are taken calls this first, since
    /// taking a piece may move what is bound.
    pub(in crate::backend::cuda) fn move_home(&mut self, act: Act) -> Launched {
        self.settle()?;
        if self.bound[act as usize].is_none() {
            return Ok(()); // or it was moved by what settling had to take
        }
        let (from, to) = (self.view(act), self.own[act as usize]);
        let pitched = |view: View| Pitched {
            at: view.at,
            pitch: view.stride * view.dtype.bytes(),
        };
        let row_bytes = from.width * from.dtype.bytes();
        self.cuda
            .driver
            .copy_rows(pitched(from), pitched(to), row_bytes, self.batch.rows())?;
        self.let_go(act);
        Ok(())
    }

    /// The piece that a sink's rows already lie in.
    pub(in crate::backend::cuda) fn bound_to(&self, act: Act, sink: SinkId) -> Option<PieceId> {
        self.bound[act as usize]
            .filter(|&(id, _)| id == sink)
            .map(|(_, piece)| piece)
    }

    /// Sends a bound activation to its sink; the piece stays in use until the activation is let go.
    ///
    /// # Safety
    /// As [`Driver::copy_out`]'s.
    pub(in crate::backend::cuda) unsafe fn send_bound(
        &mut self,
        act: Act,
        piece: PieceId,
        to: *mut u8,
        bytes: usize,
    ) -> Launched {
        let from = self.view(act).at;
        // SAFETY: the caller's.
        unsafe { self.copy_out(piece, from, to, bytes) }
    }

    /// Whether ops may write the activation anywhere: q, k, v, gate and up are parts of one product's rows, logits and
    /// per-head results never exist for all rows.
    fn can_be_bound(act: Act) -> bool {
        !matches!(
            act,
            Act::Q | Act::K | Act::V | Act::Gate | Act::Up | Act::HeadOut | Act::Logits
        )
    }
}
