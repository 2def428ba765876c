//! Matrix products. q, k and v are one, made when q is asked for; so are gate and up. Logits and per-head results are made of a few rows
//! at a time.

use super::{Launched, Pass};
use crate::backend::cuda::backend::{Cuda, View, WIDE_ROWS};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::gemm::{GemmCall, GemmShape};
use crate::backend::cuda::kernels::gate_up::{GateUp, GateUpCall};
use crate::backend::cuda::kernels::gather::{Gather, GatherArgs};
use crate::backend::cuda::kernels::gemm::{Gemm, GemmArgs};
use crate::backend::cuda::kernels::segments;
use crate::backend::cuda::launch::{DevicePtr, LaunchError, launch};
use crate::backend::cuda::weights::narrowed;
use crate::backend::{Act, Weight};

impl<D: Driver> Pass<'_, '_, D> {
    pub(super) fn linear_of(&mut self, x: Act, w: Weight, out: Act) -> Launched {
        self.settle_if(x)?;
        // What has the same memory of its own as is written now, and was read to the end, must not be moved there later.
        match w {
            Weight::Q(_) => {
                self.let_go(Act::RotQ);
                self.let_go(Act::RotK);
            }
            Weight::O(_) => self.let_go(Act::MlpOut),
            Weight::Down(_) => self.let_go(Act::AttnOut),
            _ => {}
        }
        let (weights, shape) = (&self.cuda.weights, &self.cuda.shape);
        let (weight, n, out) = match w {
            Weight::Q(l) => {
                let n = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
                (weights.layers[l].qkv, n, Act::Q)
            }
            // Made with its activation, when that is asked for.
            Weight::Gate(l) if self.cuda.options.fused_swiglu => {
                self.gate_of = Some((x, l));
                return Ok(());
            }
            Weight::Gate(l) => (weights.layers[l].gate_up, 2 * shape.d_mlp, Act::Gate),
            Weight::K(_) | Weight::V(_) | Weight::Up(_) => return Ok(()),
            Weight::O(l) => (weights.layers[l].o, shape.d_model, out),
            Weight::Down(l) => (weights.layers[l].down, shape.d_model, out),
            Weight::Ln1(_) | Weight::Ln2(_) | Weight::LnFinal | Weight::LmHead => {
                return Err(not_a_matrix(w));
            }
        };
        self.product(
            self.chunk(),
            self.rows(),
            n,
            self.view(x),
            weight,
            self.view(out),
        )
    }

    /// Gate and up of `x`, and their activation, by one kernel.
    pub(super) fn gate_up(&mut self, x: Act, layer: usize, out: Act) -> Launched {
        let (x, to) = (self.view(x), self.view(out));
        let call = GateUpCall {
            x: x.at,
            weight: self.cuda.weights.layers[layer].gate_up,
            out: to.at,
            x_stride: x.stride as u32,
            out_stride: to.stride as u32,
            m: self.rows(),
            f: to.width as u32,
            k: x.width as u32,
        };
        let kernel = GateUp::new(self.dtype());
        let args = kernel.args(&mut self.cuda.driver, &call)?;
        launch(&mut self.cuda.driver, &kernel, &args)
    }

    /// Refuses to look at gate or up where they only ever are in registers.
    pub(super) fn is_in_memory(&self, act: Act) -> Launched {
        if !self.cuda.options.fused_swiglu || !matches!(act, Act::Gate | Act::Up) {
            return Ok(());
        }
        Err(LaunchError::Device {
            what: "a tap or an edit of gate or up".into(),
            reason: "the fused SwiGLU does not write them".into(),
        })
    }

    /// The LM head on some rows.
    pub(super) fn linear_of_rows(&mut self, x: Act, rows: &[u32], w: Weight, out: Act) -> Launched {
        let Weight::LmHead = w else {
            return Err(not_a_matrix(w));
        };
        let from = self.gather_wide(x, rows)?;
        let to = self.view(out);
        let head = self.cuda.weights.lm_head;
        self.product(
            WIDE_ROWS as u32,
            rows.len() as u32,
            to.stride,
            from,
            head,
            to,
        )
    }

    /// The LM head on `n` rows of the host's, however few rows a batch may have.
    pub(in crate::backend::cuda) fn logits_of(&mut self, normed: &[f32], n: usize) -> Launched {
        let (own, to) = (self.view(Act::Normed), self.view(Act::Logits));
        let from = View {
            at: self.cuda.places.wide_input,
            stride: own.width,
            ..own
        };
        let bytes = narrowed(normed, from.dtype);
        self.cuda.driver.upload_in_order(from.at, &bytes)?;
        let head = self.cuda.weights.lm_head;
        self.product(WIDE_ROWS as u32, n as u32, to.stride, from, head, to)
    }

    pub(super) fn head_products(&mut self, rows: &[u32], layer: usize, out: Act) -> Launched {
        let z = self.gather_wide(Act::Z, rows)?;
        let (shape, to) = (&self.cuda.shape, self.view(out));
        let (h, d, qz) = (shape.head_dim, shape.d_model, z.width);
        let dtype = self.dtype();
        let args = GemmArgs {
            x: z.at,
            weight: self.cuda.weights.layers[layer].o,
            out: to.at,
            x_batch_stride: h as u64,
            weight_batch_stride: h as u64,
            out_batch_stride: d as u64,
            m: rows.len() as u32,
            n: d as u32,
            k: h as u32,
            batch: shape.n_heads as u32,
            x_stride: qz as u32,
            weight_stride: qz as u32,
            out_stride: to.stride as u32,
            _pad: 0,
        };
        let gemm = Gemm::new(dtype, dtype, args.m, args.n);
        launch(&mut self.cuda.driver, &gemm, &args)
    }

    /// out = x · Wᵀ for `m` rows; W `[n, k]`, rows end to end.
    fn product(
        &mut self,
        chunk: u32,
        m: u32,
        n: usize,
        x: View,
        weight: DevicePtr,
        out: View,
    ) -> Launched {
        let shape = GemmShape {
            m,
            n: n as u32,
            k: x.width as u32,
            input: x.dtype,
            output: out.dtype,
        };
        let call = GemmCall {
            x: x.at,
            weight,
            out: out.at,
            x_stride: x.stride as u32,
            weight_stride: x.width as u32,
            out_stride: out.stride as u32,
        };
        let Cuda { driver, gemms, .. } = &mut *self.cuda;
        gemms.linear(driver, chunk, shape, call)
    }

    /// Rows of an activation, one after another in `wide_input`.
    fn gather_wide(&mut self, x: Act, rows: &[u32]) -> Launched<View> {
        self.settle_if(x)?;
        self.move_home(x)?;
        let from = self.view(x);
        let to = View {
            at: self.cuda.places.wide_input,
            stride: from.width,
            ..from
        };
        debug_assert!(rows.len() <= WIDE_ROWS);
        let (list_piece, list) = self.upload(bytemuck::cast_slice(rows))?;
        let table = segments(&[0..from.width]);
        let (table_piece, table_at) = self.upload(bytemuck::cast_slice(&table))?;
        launch(
            &mut self.cuda.driver,
            &Gather {
                from: from.dtype,
                to: to.dtype,
            },
            &GatherArgs {
                source: from.at,
                rows: list,
                segments: table_at,
                out: to.at,
                source_stride: from.stride as u64,
                out_stride: to.stride as u64,
                selected: rows.len() as u32,
                segment_count: table.len() as u32,
            },
        )?;
        self.release(list_piece);
        self.release(table_piece);
        Ok(to)
    }
}

pub(super) fn not_a_matrix(w: Weight) -> LaunchError {
    LaunchError::Device {
        what: "a matrix product".into(),
        reason: format!("{w:?} has no place in it"),
    }
}
