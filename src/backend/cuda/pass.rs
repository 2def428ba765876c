//! One batch under way on the device: the ops of [`Ops`] as launches.
//!
//! A residual add is not launched when it is asked for but with the norm that follows, which then reads the residual once; what is
//! to be done with the sum before (its taps) waits with it. q, k and v are one product, made when q is asked for; so are
//! gate and up.
//!
//! Ops cannot fail; the first launch that does ends the pass, and [`Pass::complete`] tells.

use super::arena::{Full, PieceId};
use super::backend::{Cuda, View, WIDE_ROWS};
use super::driver::{Driver, Fence, Pitched};
use super::edits::{Norms, receipts};
use super::gemm::{GemmCall, GemmShape};
use super::kernels::add::{Add, AddArgs};
use super::kernels::attention::AttentionArgs;
use super::kernels::embed::{Embed, EmbedArgs};
use super::kernels::gather::{Gather, GatherArgs};
use super::kernels::gemm::{Gemm, GemmArgs};
use super::kernels::rms_norm::{RmsNorm, RmsNormArgs};
use super::kernels::rope::{Rope, RopeArgs};
use super::kernels::segments;
use super::kernels::swiglu::{Swiglu, SwigluArgs};
use super::launch::{DevicePtr, Dtype, LaunchError, launch};
use crate::backend::{
    Act, AttentionHooks, Batch, Edit, EditId, Error, Ops, Receipt, Reduce, Result, Sink, SinkId,
    Weight,
};

type Launched<T = ()> = Result<T, LaunchError>;

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
    n_tiles: u32,
    error: Option<LaunchError>,
    finished: bool,
}

/// A residual add that waits for its norm.
struct PendingAdd {
    a: View,
    b: View,
    out: Act,
    /// Taps of the sum.
    taps: Vec<SinkId>,
}

impl<'c, 's, D: Driver> Pass<'c, 's, D> {
    pub(super) fn new(
        cuda: &'c mut Cuda<D>,
        batch: &'c Batch,
        sinks: Vec<Sink<'s>>,
        edits: Vec<Edit>,
        n_tiles: u32,
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
            n_tiles,
            error: None,
            finished: false,
        }
    }

    /// Waits until every sink is written; returns what each edit has done.
    ///
    /// # Errors
    /// The first launch or copy that failed.
    pub fn complete(mut self) -> Result<Vec<Receipt>> {
        self.end()?;
        self.wait()?;
        Ok(receipts(&self.norms, self.edits.len()))
    }

    /// Calls what was put off; nothing is bound any more.
    ///
    /// # Errors
    /// The first launch or copy that could not be called.
    pub(super) fn end(&mut self) -> Launched {
        Ops::finish(self);
        self.error.take().map_or(Ok(()), Err)
    }

    /// The sinks are another's to wait for.
    pub(super) fn left(&mut self) {
        self.finished = true;
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

    fn attempt(&mut self, op: impl FnOnce(&mut Self) -> Launched) {
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
        self.cuda.driver.copies_follow()?;
        // SAFETY: the caller's.
        unsafe { self.cuda.driver.copy_out(from, to, bytes)? };
        let fence = self.cuda.driver.fence()?;
        self.cuda.ring.until(piece, fence);
        self.release(piece);
        Ok(())
    }

    /// Ends an activation's binding; what it holds is not wanted any more.
    fn let_go(&mut self, act: Act) {
        if let Some((_, piece)) = self.bound[act as usize].take() {
            self.release(piece);
        }
        self.views[act as usize] = self.own[act as usize];
    }

    /// Moves a bound activation to its own memory, where it stays: what reads it while pieces are taken calls this first, since
    /// taking a piece may move what is bound.
    pub(super) fn move_home(&mut self, act: Act) -> Launched {
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

    /// Launches the add that waits, and what waits with it.
    fn settle(&mut self) -> Launched {
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
    fn settle_if(&mut self, act: Act) -> Launched {
        match &self.pending {
            Some(add) if add.out == act => self.settle(),
            _ => Ok(()),
        }
    }

    fn norm(&mut self, x: Act, gain: DevicePtr, normalized: bool, out: Act) -> Launched {
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

    fn linear_of(&mut self, x: Act, w: Weight, out: Act) -> Launched {
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
            Weight::Gate(l) => (weights.layers[l].gate_up, 2 * shape.d_mlp, Act::Gate),
            Weight::K(_) | Weight::V(_) | Weight::Up(_) => return Ok(()),
            Weight::O(l) => (weights.layers[l].o, shape.d_model, out),
            Weight::Down(l) => (weights.layers[l].down, shape.d_model, out),
            Weight::Ln1(_) | Weight::Ln2(_) | Weight::LnFinal | Weight::LmHead => {
                return Err(not_a_matrix(w));
            }
        };
        let chunk = self.cuda.gemms.chunk();
        self.product(chunk, self.rows(), n, self.view(x), weight, self.view(out))
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

    fn head_products(&mut self, rows: &[u32], layer: usize, out: Act) -> Launched {
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

    fn rotate(&mut self, x: Act, out: Act) -> Launched {
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

    fn attend(&mut self, z: Act, hooks: AttentionHooks<'_>) -> Launched {
        if !hooks.edits.is_empty() {
            return Err(LaunchError::Device {
                what: "editing attn.hook_pattern".into(),
                reason: "the CUDA backend cannot do that yet: use --device cpu".into(),
            });
        }
        if !(hooks.scores.is_empty() && hooks.patterns.is_empty()) {
            // Scores and patterns are computed from them piece by piece, while the ring goes round.
            self.move_home(Act::RotQ)?;
            self.move_home(Act::RotK)?;
        }
        let [q, k, v, to] = [Act::RotQ, Act::RotK, Act::V, z].map(|act| self.view(act));
        let (shape, places) = (&self.cuda.shape, &self.cuda.places);
        let args = AttentionArgs {
            q: q.at,
            k: k.at,
            v: v.at,
            z: to.at,
            lse: if hooks.patterns.is_empty() {
                DevicePtr::NULL
            } else {
                places.log_sum_exp
            },
            cu_seqlens: places.cu_seqlens,
            tiles: places.tiles,
            q_stride: q.stride as u32,
            k_stride: k.stride as u32,
            v_stride: v.stride as u32,
            z_stride: to.stride as u32,
            n_heads: shape.n_heads as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            rows: self.rows(),
            n_tiles: self.n_tiles,
            window: self.cuda.window(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let kernel = self.cuda.attention();
        launch(&mut self.cuda.driver, &kernel, &args)?;
        for &sink in hooks.scores {
            self.emit_ragged(sink, DevicePtr::NULL, &args)?;
        }
        for &sink in hooks.patterns {
            self.emit_ragged(sink, args.lse, &args)?;
        }
        Ok(())
    }

    fn gain(&self, w: Weight) -> Launched<DevicePtr> {
        let weights = &self.cuda.weights;
        Ok(match w {
            Weight::Ln1(l) => weights.layers[l].ln1,
            Weight::Ln2(l) => weights.layers[l].ln2,
            Weight::LnFinal => weights.ln_final,
            _ => return Err(not_a_matrix(w)),
        })
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

fn too_small(bytes: usize, ring: usize) -> LaunchError {
    LaunchError::Device {
        what: "copying taps out".into(),
        reason: format!(
            "a piece of {bytes} bytes finds no place in the {ring} bytes set aside for it"
        ),
    }
}

fn not_a_matrix(w: Weight) -> LaunchError {
    LaunchError::Device {
        what: "a matrix product".into(),
        reason: format!("{w:?} has no place in it"),
    }
}

impl<D: Driver> Ops for Pass<'_, '_, D> {
    fn bind(&mut self, act: Act, id: SinkId) -> bool {
        let view = self.own[act as usize];
        let direct = Self::can_be_bound(act)
            && self.error.is_none()
            && self.sinks[id].as_ref().is_some_and(|sink| {
                sink.rows.len() == self.batch.rows()
                    && sink.spec.columns.is_empty()
                    && matches!(sink.spec.reduce, Reduce::None)
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

    fn embed(&mut self, out: Act) {
        self.attempt(|p| {
            let to = p.view(out);
            let args = EmbedArgs {
                table: p.cuda.weights.embed,
                tokens: p.cuda.places.tokens,
                out: to.at,
                out_stride: to.stride as u64,
                rows: p.rows(),
                width: to.width as u32,
            };
            let kernel = Embed {
                dtype: p.dtype(),
                f32_resid: p.f32_resid(),
            };
            launch(&mut p.cuda.driver, &kernel, &args)
        });
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
        self.attempt(|p| {
            let Weight::LmHead = w else {
                return Err(not_a_matrix(w));
            };
            let from = p.gather_wide(x, rows)?;
            let to = p.view(out);
            let head = p.cuda.weights.lm_head;
            p.product(
                WIDE_ROWS as u32,
                rows.len() as u32,
                to.stride,
                from,
                head,
                to,
            )
        });
    }

    fn rope(&mut self, x: Act, out: Act) {
        self.attempt(|p| p.rotate(x, out));
    }

    fn attention(&mut self, _layer: usize, z: Act, hooks: AttentionHooks<'_>) {
        self.attempt(|p| p.attend(z, hooks));
    }

    fn head_results(&mut self, rows: &[u32], layer: usize, out: Act) {
        self.attempt(|p| p.head_products(rows, layer, out));
    }

    fn swiglu(&mut self, out: Act) {
        self.attempt(|p| {
            let [gate, up, to] = [Act::Gate, Act::Up, out].map(|act| p.view(act));
            let args = SwigluArgs {
                gate: gate.at,
                up: up.at,
                out: to.at,
                gate_stride: gate.stride as u64,
                up_stride: up.stride as u64,
                out_stride: to.stride as u64,
                rows: p.rows(),
                width: to.width as u32,
            };
            let kernel = Swiglu { dtype: p.dtype() };
            launch(&mut p.cuda.driver, &kernel, &args)
        });
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
        self.attempt(|p| match &mut p.pending {
            Some(add) if add.out == act => {
                add.taps.push(sink);
                Ok(())
            }
            _ => p.emit_some(act, None, sink),
        });
    }

    fn emit_rows(&mut self, act: Act, rows: &[u32], sink: SinkId) {
        self.attempt(|p| p.emit_some(act, Some(rows), sink));
    }

    fn finish(&mut self) {
        self.attempt(Self::settle);
        for act in Act::ALL {
            self.let_go(act);
        }
    }

    fn edit(&mut self, act: Act, edit: EditId) {
        self.attempt(|p| {
            p.settle_if(act)?;
            p.edit_some(act, None, edit)
        });
    }

    fn edit_rows(&mut self, act: Act, rows: &[u32], edit: EditId) {
        self.attempt(|p| p.edit_some(act, Some(rows), edit));
    }
}

impl<D: Driver> Pass<'_, '_, D> {
    /// The piece that a sink's rows already lie in.
    pub(super) fn bound_to(&self, act: Act, sink: SinkId) -> Option<PieceId> {
        self.bound[act as usize]
            .filter(|&(id, _)| id == sink)
            .map(|(_, piece)| piece)
    }

    /// Sends a bound activation to its sink; the piece stays in use until the activation is let go.
    ///
    /// # Safety
    /// As [`Driver::copy_out`]'s.
    pub(super) unsafe fn send_bound(
        &mut self,
        act: Act,
        piece: PieceId,
        to: *mut u8,
        bytes: usize,
    ) -> Launched {
        let from = self.view(act).at;
        self.cuda.driver.copies_follow()?;
        // SAFETY: the caller's.
        unsafe { self.cuda.driver.copy_out(from, to, bytes)? };
        let fence: Fence = self.cuda.driver.fence()?;
        self.cuda.ring.until(piece, fence);
        Ok(())
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
