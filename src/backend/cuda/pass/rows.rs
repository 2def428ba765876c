//! Ops on rows: embedding, residual add, norm, RoPE, SwiGLU.
//!
//! A residual add is not launched when it is asked for but with the norm that follows, which then reads the residual once; what is
//! to be done with the sum before (its taps) waits with it.

use super::{Launched, Pass};
use crate::backend::cuda::backend::View;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::add::{Add, AddArgs};
use crate::backend::cuda::kernels::embed::{Embed, EmbedArgs};
use crate::backend::cuda::kernels::rms_norm::{RmsNorm, RmsNormArgs};
use crate::backend::cuda::kernels::rope::{Rope, RopeArgs};
use crate::backend::cuda::kernels::swiglu::{Swiglu, SwigluArgs};
use crate::backend::cuda::launch::{DevicePtr, launch};
use crate::backend::{Act, SinkId, Weight};

/// A residual add that waits for its norm.
pub(super) struct PendingAdd {
    pub a: View,
    pub b: View,
    pub out: Act,
    /// Taps of the sum.
    pub taps: Vec<SinkId>,
}

impl<D: Driver> Pass<'_, '_, D> {
    pub(super) fn look_up(&mut self, out: Act) -> Launched {
        let to = self.view(out);
        let args = EmbedArgs {
            table: self.cuda.weights.embed,
            tokens: self.cuda.places.tokens,
            out: to.at,
            out_stride: to.stride as u64,
            rows: self.rows(),
            width: to.width as u32,
        };
        let kernel = Embed {
            dtype: self.dtype(),
            f32_resid: self.f32_resid(),
        };
        launch(&mut self.cuda.driver, &kernel, &args)
    }

    /// Launches the add that waits, and what waits with it.
    pub(super) fn settle(&mut self) -> Launched {
        let Some(add) = self.pending.take() else {
            return Ok(());
        };
        let out = self.view(add.out);
        launch(
            &mut self.cuda.driver,
            &Add {
                dtype: self.cuda.options.dtype,
                f32_resid: self.cuda.options.f32_resid,
            },
            &AddArgs {
                a: add.a.at,
                b: add.b.at,
                out: out.at,
                a_stride: add.a.stride as u64,
                b_stride: add.b.stride as u64,
                out_stride: out.stride as u64,
                rows: self.batch.rows() as u32,
                width: out.width as u32,
            },
        )?;
        self.tap_sum(add)
    }

    fn tap_sum(&mut self, add: PendingAdd) -> Launched {
        add.taps
            .into_iter()
            .try_for_each(|sink| self.emit_some(add.out, None, sink))
    }

    /// Launches a waiting add that makes `act`.
    pub(super) fn settle_if(&mut self, act: Act) -> Launched {
        match &self.pending {
            Some(add) if add.out == act => self.settle(),
            _ => Ok(()),
        }
    }

    pub(super) fn norm(&mut self, x: Act, gain: DevicePtr, normalized: bool, out: Act) -> Launched {
        let rows = self.rows();
        let fused = self.pending.take_if(|add| add.out == x);
        self.settle()?;
        let sum = self.view(x);
        let (read, y) = match &fused {
            Some(add) => (add.a, Some(add.b)),
            None => (sum, None),
        };
        let (scale, before_gain, to) = (
            self.view(Act::NormScale),
            self.view(Act::Normalized),
            self.view(out),
        );
        launch(
            &mut self.cuda.driver,
            &RmsNorm {
                dtype: self.cuda.options.dtype,
                f32_resid: self.cuda.options.f32_resid,
            },
            &RmsNormArgs {
                x: read.at,
                y: y.map_or(DevicePtr::NULL, |y| y.at),
                gain,
                resid_out: if y.is_some() { sum.at } else { DevicePtr::NULL },
                scale: scale.at,
                normalized: if normalized {
                    before_gain.at
                } else {
                    DevicePtr::NULL
                },
                out: to.at,
                x_stride: read.stride as u64,
                y_stride: y.map_or(0, |y| y.stride as u64),
                resid_stride: sum.stride as u64,
                normalized_stride: before_gain.stride as u64,
                out_stride: to.stride as u64,
                rows,
                width: sum.width as u32,
                eps: self.cuda.shape.rms_norm_eps,
                _pad: 0,
            },
        )?;
        fused.map_or(Ok(()), |add| self.tap_sum(add))
    }

    pub(super) fn gain(&self, w: Weight) -> Launched<DevicePtr> {
        let weights = &self.cuda.weights;
        Ok(match w {
            Weight::Ln1(l) => weights.layers[l].ln1,
            Weight::Ln2(l) => weights.layers[l].ln2,
            Weight::LnFinal => weights.ln_final,
            _ => return Err(super::products::not_a_matrix(w)),
        })
    }

    pub(super) fn rotate(&mut self, x: Act, out: Act) -> Launched {
        let (from, to) = (self.view(x), self.view(out));
        let head_dim = self.cuda.shape.head_dim;
        let heads = (from.width / head_dim) as u32;
        launch(
            &mut self.cuda.driver,
            &Rope {
                dtype: self.cuda.options.dtype,
            },
            &RopeArgs {
                q: from.at,
                k: DevicePtr::NULL,
                q_out: to.at,
                k_out: DevicePtr::NULL,
                positions: self.cuda.places.positions,
                cos: self.cuda.places.cos,
                sin: self.cuda.places.sin,
                q_stride: from.stride as u64,
                k_stride: 0,
                q_out_stride: to.stride as u64,
                k_out_stride: 0,
                rows: self.batch.rows() as u32,
                q_heads: heads,
                k_heads: 0,
                head_dim: head_dim as u32,
            },
        )
    }

    pub(super) fn gated(&mut self, out: Act) -> Launched {
        if let Some((x, layer)) = self.gate_of.take() {
            return self.gate_up(x, layer, out);
        }
        let [gate, up, to] = [Act::Gate, Act::Up, out].map(|act| self.view(act));
        let args = SwigluArgs {
            gate: gate.at,
            up: up.at,
            out: to.at,
            gate_stride: gate.stride as u64,
            up_stride: up.stride as u64,
            out_stride: to.stride as u64,
            rows: self.rows(),
            width: to.width as u32,
        };
        let kernel = Swiglu {
            dtype: self.dtype(),
        };
        launch(&mut self.cuda.driver, &kernel, &args)
    }
}
