//! The vocabulary of the transformer, op by op.

use super::Pass;
use super::rows::PendingAdd;
use crate::backend::cuda::driver::Driver;
use crate::backend::{Act, AttentionHooks, EditId, Ops, SinkId, Weight};

impl<D: Driver> Ops for Pass<'_, '_, D> {
    fn bind(&mut self, act: Act, sink: SinkId) -> bool {
        self.bind_to(act, sink)
    }

    fn unbind(&mut self, act: Act) {
        self.attempt(|p| p.settle_if(act));
        self.let_go(act);
    }

    fn own(&mut self, act: Act) {
        self.attempt(|p| p.move_home(act));
    }

    fn sink_rows(&self, sink: SinkId) -> &[u32] {
        self.sinks[sink].as_ref().map_or(&[], |s| &s.rows)
    }

    fn swap(&mut self, a: Act, b: Act) {
        self.exchange(a, b);
    }

    fn embed(&mut self, out: Act) {
        self.attempt(|p| p.look_up(out));
    }

    fn rms_norm(&mut self, x: Act, gain: Weight, normalized: bool, out: Act) {
        self.attempt(|p| {
            let gain = p.gain(gain)?;
            p.norm(x, gain, normalized, out)
        });
    }

    fn linear(&mut self, x: Act, w: Weight, out: Act) {
        self.attempt(|p| p.linear_of(x, w, out));
    }

    fn linear_rows(&mut self, x: Act, rows: &[u32], w: Weight, out: Act) {
        self.attempt(|p| p.linear_of_rows(x, rows, w, out));
    }

    fn rope(&mut self, x: Act, out: Act) {
        self.attempt(|p| p.rotate(x, out));
    }

    fn attention(&mut self, layer: usize, z: Act, hooks: AttentionHooks<'_>) {
        self.attempt(|p| p.attend(layer, z, hooks));
    }

    fn head_results(&mut self, rows: &[u32], layer: usize, out: Act) {
        self.attempt(|p| p.head_products(rows, layer, out));
    }

    fn swiglu(&mut self, out: Act) {
        self.attempt(|p| p.gated(out));
    }

    fn add(&mut self, a: Act, b: Act, out: Act) {
        self.attempt(|p| {
            p.settle()?;
            p.pending = Some(PendingAdd {
                a: p.view(a),
                b: p.view(b),
                out,
                taps: Vec::new(),
            });
            Ok(())
        });
    }

    fn emit(&mut self, act: Act, sink: SinkId) {
        self.attempt(|p| p.is_in_memory(act));
        self.attempt(|p| match &mut p.pending {
            Some(add) if add.out == act => {
                add.taps.push(sink);
                Ok(())
            }
            _ => p.emit_some(act, None, sink),
        });
    }

    fn emit_rows(&mut self, act: Act, rows: &[u32], sink: SinkId) {
        self.attempt(|p| p.is_in_memory(act));
        self.attempt(|p| p.emit_some(act, Some(rows), sink));
    }

    fn label(&mut self, point: &dyn std::fmt::Display) {
        if self.cuda.tracing {
            self.mark(point.to_string());
        }
    }

    fn finish(&mut self) {
        self.attempt(Self::settle);
        for act in Act::ALL {
            self.let_go(act);
        }
    }

    fn edit(&mut self, act: Act, edit: EditId) {
        self.attempt(|p| p.is_in_memory(act));
        self.attempt(|p| {
            p.settle_if(act)?;
            p.edit_some(act, None, edit)
        });
    }

    fn edit_rows(&mut self, act: Act, rows: &[u32], edit: EditId) {
        self.attempt(|p| p.is_in_memory(act));
        self.attempt(|p| p.edit_some(act, Some(rows), edit));
    }
}
