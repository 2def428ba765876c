//! A machine that is lent does what it does, so that a model on a device can serve one user after the other.

use super::{Decoder, Identity, Machine, Plan, Reader, Result, SavedResidual};
use crate::backend::cuda::driver::Waited;
use crate::backend::cuda::{Pinner, Timed};
use crate::backend::{Batch, Edit, HeadRows, Landed, Receipt, Scores, Sink};

impl<M: Machine + ?Sized> Machine for &mut M {
    fn run(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        (**self).run(batch, sinks, edits, n_layers, plan)
    }

    fn run_from(
        &mut self,
        from: SavedResidual<'_>,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        (**self).run_from(from, batch, sinks, edits, n_layers, plan)
    }

    fn submit(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'static>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Option<Landed>> {
        (**self).submit(batch, sinks, edits, n_layers, plan)
    }

    fn land(&mut self) -> Result<Option<Landed>> {
        (**self).land()
    }

    fn give_up(&mut self) {
        (**self).give_up();
    }

    fn waited(&self) -> Waited {
        (**self).waited()
    }

    fn set_tracing(&mut self, on: bool) {
        (**self).set_tracing(on);
    }

    fn timeline(&mut self) -> Vec<Timed> {
        (**self).timeline()
    }

    fn pinner(&self) -> Result<Option<Pinner>> {
        (**self).pinner()
    }

    fn identity(&self) -> Identity {
        (**self).identity()
    }
}

impl<M: Decoder + ?Sized> Decoder for &mut M {
    fn most_sequences(&self) -> Option<usize> {
        (**self).most_sequences()
    }

    fn start(&mut self, sequences: usize) {
        (**self).start(sequences);
    }

    fn advance(
        &mut self,
        sequences: &[usize],
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        (**self).advance(sequences, batch, sinks, edits, n_layers, plan)
    }
}

impl<M: Reader + ?Sized> Reader for &mut M {
    fn scores(
        &mut self,
        rows: HeadRows<'_>,
        next: &[Option<u32>],
        top: usize,
    ) -> Result<Vec<Scores>> {
        (**self).scores(rows, next, top)
    }

    fn divergences(&mut self, p: HeadRows<'_>, q: HeadRows<'_>) -> Result<Vec<f64>> {
        (**self).divergences(p, q)
    }
}
