//! The CUDA backend: the model on the device, and memory that is used again from batch to batch. [`Cuda`] owns it all and
//! begins a [`Pass`] per batch. Nothing is allocated after [`Cuda::open`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::arena::{Cutter, Ring};
use super::cache::Cache;
use super::driver::Driver;
use super::flight::{DEPTH, Flight};
use super::gemm::{GemmRecord, GemmShape, Gemms, OWN};
use super::kernels::attention::{Attention, AttentionTile, HEAD_DIMS};
use super::kernels::rms_norm::WIDTH_MAX;
use super::launch::{Boxes, DevicePtr, Dtype, LaunchError};
use super::moments::MomentSums;
use super::pass::{Continued, Pass};
use super::timeline::Timed;
use super::weights::{DeviceWeights, padded_vocab};
use crate::backend::cpu::{Shape, StoredWeights};
use crate::backend::{Act, Batch, Edit, Error, Reduce, Result, Sink};

/// Rows of logits or per-head results that are computed at a time; the engine asks for no more.
pub const WIDE_ROWS: usize = crate::backend::HEAD_ROWS;

/// Rows of a chunk of matrix products where each sequence has one token.
pub const DECODE_CHUNK: u32 = 64;

/// Rows of a chunk of a library's matrix products. The same whatever a batch holds, since it decides bits; few enough that a
/// batch's last chunk, which is multiplied whole, wastes little, and enough to fill a large GPU three times over.
pub const GEMM_CHUNK: usize = 2048;

/// The tap ring takes what is free, up to this.
const RING_MOST: usize = 4 << 30;
/// Memory left alone, for the driver's own needs and for the next kernel's stack.
const LEFT_FREE: usize = 256 << 20;

/// How the device is used.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// What is computed in.
    pub dtype: Dtype,
    /// Keep the residual stream in f32 beside a 16-bit `dtype`.
    pub f32_resid: bool,
    /// Most rows of a batch.
    pub rows: usize,
    /// Tokens of the longest sample.
    pub positions: usize,
    /// Sequences whose keys and values are kept from batch to batch; 0: none, and nothing can be generated.
    pub sequences: usize,
    /// Sinks of a batch that take means.
    pub means: usize,
    /// Bytes that taps pass through on their way out; `None`: what is left, at most 4 GiB.
    pub ring_bytes: Option<usize>,
    /// Rows of a chunk of a library's matrix products at most.
    pub gemm_chunk: usize,
    /// The matrix products of the job that goes on.
    pub gemm: Option<GemmRecord>,
    /// Gate, up and their activation by one kernel, in 16 bits on compute capability 9.0: then neither gate nor up can be tapped or
    /// edited.
    pub fused_swiglu: bool,
}

/// Rows of an activation on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub at: DevicePtr,
    /// Elements from row to row.
    pub stride: usize,
    pub width: usize,
    pub dtype: Dtype,
}

/// The model on a device.
pub struct Cuda<D: Driver> {
    pub(super) driver: D,
    pub(super) shape: Shape,
    pub(super) options: CudaOptions,
    pub(super) weights: DeviceWeights,
    pub(super) gemms: Gemms,
    pub(super) places: Places,
    pub(super) ring: Ring,
    /// Batches whose rows are on their way, oldest first.
    pub(super) flights: VecDeque<Flight>,
    /// Most of them at a time.
    pub(super) depth: usize,
    /// Whether ops and copies are timed, and what was.
    pub(super) tracing: bool,
    pub(super) timeline: Vec<Timed>,
    /// Sums of rows, for statistics.
    pub(super) moments: MomentSums,
    /// Tokens that the cache of each sequence has seen.
    seen: Vec<u32>,
    allocation: DevicePtr,
    /// Bytes of the allocation.
    bytes: usize,
    /// Bytes of weights, and how long they took to go over.
    uploaded: (u64, Duration),
}

/// Where everything but the weights lies.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Each activation's own memory.
    pub acts: [View; Act::COUNT],
    /// `[H, rows]` f32.
    pub log_sum_exp: DevicePtr,
    /// Rows that a wide product reads, `[WIDE_ROWS, max(d, H·h)]`.
    pub wide_input: DevicePtr,
    /// Sums of means that straddle launches, for each sink that takes means two of `[8, widest]` f64, read and written in turn.
    mean_carries: DevicePtr,
    mean_carry_bytes: usize,
    /// `[positions, h / 2]` f32
    pub cos: DevicePtr,
    pub sin: DevicePtr,
    /// Of the batch: u32 `[rows]`, `[rows]`, `[samples + 1]`, and attention's work list.
    pub tokens: DevicePtr,
    pub positions: DevicePtr,
    pub cu_seqlens: DevicePtr,
    pub tiles: DevicePtr,
    pub cache: Option<Cache>,
    /// x and out of a library's product in a chunk that is not full.
    gemm_scratch: (DevicePtr, DevicePtr),
    gemm_scratch_bytes: (usize, usize),
}

impl<D: Driver> Cuda<D> {
    /// Uploads the model.
    ///
    /// # Errors
    /// A shape that the kernels are not compiled for, a device that is too small (told with what would fit), and whatever the
    /// driver says.
    pub fn open(
        mut driver: D,
        shape: Shape,
        weights: &dyn StoredWeights,
        mut options: CudaOptions,
    ) -> Result<Cuda<D>> {
        supports(&shape)?;
        if options.fused_swiglu {
            fused_swiglu_runs_on(&mut driver, options.dtype)?;
        }
        let free = driver.free_bytes()?;
        let library = driver.gemm_library() != OWN;
        let needed = |rows: usize, options: &CudaOptions| {
            let options = CudaOptions {
                rows,
                positions: options.positions.min(rows),
                ..options.clone()
            };
            let mut cutter = Cutter::measure();
            DeviceWeights::place(&mut cutter, &shape, options.dtype, weights);
            let weights = cutter.used();
            Places::cut(&mut cutter, &shape, &options, library);
            let ring = options.ring_bytes.unwrap_or(ring_least(&shape, &options));
            (weights, cutter.used(), ring)
        };
        let most = free - LEFT_FREE.min(free / 16);
        let fit = |rows: usize, options: &CudaOptions| {
            let (_, without_ring, ring) = needed(rows, options);
            without_ring + ring <= most
        };
        while options.sequences > 1 && !fit(options.rows, &options) {
            options.sequences = options.sequences.div_ceil(2);
        }
        let (weight_bytes, without_ring, ring_bytes) = needed(options.rows, &options);
        if without_ring + ring_bytes > most {
            // A library's chunk is whole, however few rows a batch has.
            let fewest = if library { options.gemm_chunk } else { 1 };
            let mut fewer = (fewest..options.rows).rev().step_by(128);
            let fits = fewer.find(|&rows| fit(rows, &options));
            return Err(Error::DeviceMemory {
                device: driver.name(),
                free,
                needed: without_ring + ring_bytes,
                weights: weight_bytes,
                rows: options.rows,
                fits,
            });
        }
        let ring_bytes = options
            .ring_bytes
            .unwrap_or((most - without_ring).min(RING_MOST));
        let allocation = driver.alloc(without_ring + ring_bytes)?;
        let mut cutter = Cutter::cut_from(allocation);
        let device_weights = DeviceWeights::place(&mut cutter, &shape, options.dtype, weights);
        let places = Places::cut(&mut cutter, &shape, &options, library);
        let ring = Ring::new(cutter.take(0), ring_bytes);
        let (uploading, mut uploaded) = (Instant::now(), (0, Duration::ZERO));
        let opened = device_weights
            .upload(&mut driver, &shape, options.dtype, weights)
            .map(|bytes| uploaded = (bytes, uploading.elapsed()))
            .and_then(|()| places.upload_rope(&mut driver, &shape, &options))
            .and_then(|()| places.clear_gemm_scratch(&mut driver))
            .and_then(|()| {
                let chunk = gemm_chunk(&options);
                let record = options.gemm.as_ref();
                let mut gemms = Gemms::new(&driver, chunk, places.gemm_scratch, record)?;
                let decode = (options.sequences > 0).then_some(DECODE_CHUNK);
                for chunk in std::iter::once(chunk).chain(decode).filter(|_| library) {
                    for shape in products(&shape, options.dtype, chunk) {
                        gemms.choose(&mut driver, shape)?;
                    }
                }
                Ok(gemms)
            });
        let options_sequences = options.sequences;
        let gemms = opened.inspect_err(|_| {
            let _ = driver.free(allocation);
        })?;
        Ok(Cuda {
            driver,
            shape,
            options,
            weights: device_weights,
            gemms,
            places,
            ring,
            flights: VecDeque::new(),
            depth: DEPTH,
            tracing: false,
            timeline: Vec::new(),
            moments: MomentSums::default(),
            seen: vec![0; options_sequences],
            allocation,
            bytes: without_ring + ring_bytes,
            uploaded,
        })
    }

    /// The model's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The device's name.
    pub fn device_name(&self) -> String {
        self.driver.name()
    }

    /// What is computed in.
    pub fn dtype(&self) -> Dtype {
        self.options.dtype
    }

    /// What the residual stream is kept in.
    pub fn residual_dtype(&self) -> Dtype {
        if self.options.f32_resid {
            Dtype::F32
        } else {
            self.options.dtype
        }
    }

    /// Bytes of device memory taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of weights that were uploaded, and how long that took, their conversion included.
    pub fn uploaded(&self) -> (u64, Duration) {
        self.uploaded
    }

    /// Whether gate, up and their activation are one kernel.
    pub fn fused_swiglu(&self) -> bool {
        self.options.fused_swiglu
    }

    /// The matrix products so far, for the numeric record.
    pub fn gemm_record(&self) -> GemmRecord {
        self.gemms.record()
    }

    /// The driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Takes up a batch; sinks and edits are named by their index from here on.
    ///
    /// # Errors
    /// A token id that is not in the vocabulary, a batch or a sample longer than the memory was planned for, and the driver's.
    pub fn begin<'c, 's>(
        &'c mut self,
        batch: &'c Batch,
        sinks: Vec<Sink<'s>>,
        edits: Vec<Edit>,
    ) -> Result<Pass<'c, 's, D>> {
        let n_tiles = self.take_up(batch, &sinks)?;
        Ok(Pass::new(self, batch, sinks, edits, n_tiles, None))
    }

    /// Sequences whose keys and values are kept.
    pub fn sequences(&self) -> usize {
        self.options.sequences
    }

    /// Forgets the keys and values of every sequence.
    pub fn forget(&mut self) {
        self.seen.fill(0);
    }

    /// As [`begin`](Self::begin): sample i is what comes next of sequence `sequences[i]`, whose keys and values are kept.
    ///
    /// # Errors
    /// As there, and more sequences than planned for.
    ///
    /// # Panics
    /// A sample begins elsewhere than its sequence has come to, or some but not all are one token that sees others.
    pub fn begin_continuing<'c, 's>(
        &'c mut self,
        batch: &'c Batch,
        sinks: Vec<Sink<'s>>,
        edits: Vec<Edit>,
        sequences: &[usize],
    ) -> Result<Pass<'c, 's, D>> {
        let asked = sequences.iter().max().map_or(0, |&s| s + 1);
        let (Some(cache), true) = (&self.places.cache, asked <= self.options.sequences) else {
            return Err(Error::BeyondPlan {
                what: "sequences at a time",
                asked,
                planned: self.options.sequences,
            });
        };
        assert_eq!(
            sequences.len(),
            batch.samples().len(),
            "one for each sample"
        );
        let slots = cache.slots(batch, sequences);
        let mut lengths = Vec::with_capacity(sequences.len());
        let mut decoding = false;
        for (rows, &sequence) in batch.samples().zip(sequences) {
            let (first, seen) = (batch.positions[rows.start], self.seen[sequence]);
            assert_eq!(first, seen, "sequence {sequence} goes on elsewhere");
            decoding |= seen > 0;
            lengths.push(batch.positions[rows.end - 1] + 1);
        }
        assert!(
            !decoding
                || batch
                    .samples()
                    .zip(sequences)
                    .all(|(r, &s)| r.len() == 1 && self.seen[s] > 0),
            "one new token of each sequence"
        );
        let n_tiles = self.take_up(batch, &sinks)?;
        if let Some(cache) = &self.places.cache {
            let caches: Vec<u32> = sequences.iter().map(|&s| s as u32).collect();
            for (to, list) in [
                (cache.slots, &slots),
                (cache.lengths, &lengths),
                (cache.caches, &caches),
            ] {
                self.driver
                    .upload_in_order(to, bytemuck::cast_slice(list))?;
            }
        }
        for (&sequence, &length) in sequences.iter().zip(&lengths) {
            self.seen[sequence] = length;
        }
        let continued = Continued {
            sequences: sequences.to_vec(),
            lengths,
            decoding,
        };
        Ok(Pass::new(
            self,
            batch,
            sinks,
            edits,
            n_tiles,
            Some(continued),
        ))
    }

    /// Checks a batch against the plan and sends its lists; returns the tiles of its attention.
    fn take_up(&mut self, batch: &Batch, sinks: &[Sink<'_>]) -> Result<u32> {
        batch.check_tokens(self.shape.vocab)?;
        let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        for (what, asked, planned) in [
            ("rows of a batch", batch.rows(), self.options.rows),
            ("tokens of a sample", longest, self.options.positions),
            (
                "samples of a batch",
                batch.samples().len(),
                self.options.rows,
            ),
        ] {
            if asked > planned {
                return Err(Error::BeyondPlan {
                    what,
                    asked,
                    planned,
                });
            }
        }
        let means = sinks
            .iter()
            .filter(|sink| matches!(sink.spec.reduce, Reduce::Mean))
            .count();
        if means > self.options.means {
            return Err(Error::BeyondPlan {
                what: "taps of means",
                asked: means,
                planned: self.options.means,
            });
        }
        let tiles = self.attention().tiles(&batch.cu_seqlens, self.window());
        let places = &self.places;
        for (to, list) in [
            (places.tokens, &batch.tokens),
            (places.positions, &batch.positions),
            (places.cu_seqlens, &batch.cu_seqlens),
        ] {
            self.driver
                .upload_in_order(to, bytemuck::cast_slice(list))?;
        }
        self.driver
            .upload_in_order(places.tiles, bytemuck::cast_slice(&tiles))?;
        Ok(tiles.len() as u32)
    }

    pub(super) fn attention(&self) -> Attention {
        Attention {
            dtype: self.options.dtype,
            head_dim: self.shape.head_dim as u32,
        }
    }

    /// Keys that a query sees, in the kernels' terms.
    pub(super) fn window(&self) -> u32 {
        // 0 is no window to the kernels, and one longer than any sample is none.
        self.shape
            .window
            .map_or(0, |w| u32::try_from(w).unwrap_or(0))
    }
}

impl<D: Driver> Drop for Cuda<D> {
    fn drop(&mut self) {
        if !self.flights.is_empty() {
            self.give_up();
        }
        self.moments.free(&mut self.driver);
        // What cannot be freed is the driver's to clear away with the process; there is no one left to tell.
        let _ = self.driver.free(self.allocation);
    }
}

/// Refuses what the kernels cannot do, by name.
///
/// # Errors
/// A head dimension, a width or a hidden size that no kernel was compiled for.
pub fn supports(shape: &Shape) -> Result<()> {
    let refuse = |what: String| Err(Error::Unsupported { what });
    if !HEAD_DIMS.contains(&(shape.head_dim as u32)) {
        return refuse(format!(
            "head_dim {} (the attention kernels are compiled for {HEAD_DIMS:?})",
            shape.head_dim
        ));
    }
    for (name, size) in [
        ("hidden_size", shape.d_model),
        ("intermediate_size", shape.d_mlp),
    ] {
        if !size.is_multiple_of(8) {
            return refuse(format!("{name} {size}, which is not a multiple of 8"));
        }
    }
    if shape.d_model > WIDTH_MAX as usize {
        return refuse(format!("hidden_size {} above {WIDTH_MAX}", shape.d_model));
    }
    Ok(())
}

/// The shapes that a library multiplies: q, k and v; o; gate and up; down; the LM head.
fn products(shape: &Shape, dtype: Dtype, chunk: u32) -> [GemmShape; 5] {
    let (d, f, qz, kv) = (
        shape.d_model,
        shape.d_mlp,
        shape.n_heads * shape.head_dim,
        shape.n_kv_heads * shape.head_dim,
    );
    [
        (chunk, qz + 2 * kv, d),
        (chunk, d, qz),
        (chunk, 2 * f, d),
        (chunk, d, f),
        (WIDE_ROWS as u32, padded_vocab(shape), d),
    ]
    .map(|(m, n, k)| GemmShape {
        m,
        n: n as u32,
        k: k as u32,
        input: dtype,
        output: dtype,
    })
}

/// Refuses a GPU without tensor copies, and a dtype that the kernel is not compiled for.
fn fused_swiglu_runs_on(driver: &mut impl Driver, dtype: Dtype) -> Result<(), LaunchError> {
    if dtype == Dtype::F32 {
        return Err(LaunchError::Arguments {
            kernel: "gate_up".into(),
            what: "no instance for f32".into(),
        });
    }
    let any = Boxes {
        at: DevicePtr(1 << 20),
        rows: 8,
        columns: 64,
        row_stride: 64,
        dtype,
        box_rows: 8,
        box_columns: 64,
    };
    driver.tensor_map(&any).map(|_| ())
}

fn gemm_chunk(options: &CudaOptions) -> u32 {
    options.rows.next_multiple_of(128).min(options.gemm_chunk) as u32
}

/// A ring this large takes one piece of every kind there is.
fn ring_least(shape: &Shape, options: &CudaOptions) -> usize {
    let row = 4 * (shape.n_heads * shape.d_model).max(padded_vocab(shape));
    (8 * row).max(4 * options.rows * shape.d_model).max(1 << 20) + (options.rows * 16)
}

impl Places {
    fn cut(cutter: &mut Cutter, shape: &Shape, options: &CudaOptions, library: bool) -> Places {
        let CudaOptions {
            dtype,
            f32_resid,
            rows,
            positions,
            ..
        } = *options;
        let (d, f, qz, kv) = (
            shape.d_model,
            shape.d_mlp,
            shape.n_heads * shape.head_dim,
            shape.n_kv_heads * shape.head_dim,
        );
        let resid = if f32_resid { Dtype::F32 } else { dtype };
        let mut whole = |rows: usize, width: usize, dtype: Dtype| View {
            at: cutter.take(rows * width * dtype.bytes()),
            stride: width,
            width,
            dtype,
        };
        let part = |of: View, first: usize, width: usize| View {
            at: of.at.offset(first * of.dtype.bytes()),
            width,
            ..of
        };
        let [resid_pre, resid_mid, resid_post] = [(); 3].map(|()| whole(rows, d, resid));
        let norm_scale = whole(rows, 1, Dtype::F32);
        let [normalized, normed, branch] = [(); 3].map(|()| whole(rows, d, dtype));
        let qkv = whole(rows, qz + 2 * kv, dtype);
        let z = whole(rows, qz, dtype);
        let gate_up = whole(rows, 2 * f, dtype);
        let post = whole(rows, f, dtype);
        let vocab = padded_vocab(shape);
        let wide = whole(WIDE_ROWS, (shape.n_heads * d).max(vocab), dtype);
        let narrowed = |width, stride| View {
            width,
            stride,
            ..wide
        };
        let of = |act: Act| match act {
            Act::ResidPre => resid_pre,
            Act::ResidMid => resid_mid,
            Act::ResidPost => resid_post,
            Act::NormScale => norm_scale,
            Act::Normalized => normalized,
            Act::Normed => normed,
            // RoPE turns q and k where they are.
            Act::Q | Act::RotQ => part(qkv, 0, qz),
            Act::K | Act::RotK => part(qkv, qz, kv),
            Act::V => part(qkv, qz + kv, kv),
            Act::Z => z,
            Act::HeadOut => narrowed(shape.n_heads * d, shape.n_heads * d),
            Act::AttnOut | Act::MlpOut => branch,
            Act::Gate => part(gate_up, 0, f),
            Act::Up => part(gate_up, f, f),
            Act::Post => post,
            Act::Logits => narrowed(shape.vocab, vocab),
        };
        let acts = Act::ALL.map(of);
        let widest = acts.iter().map(|view| view.width).max().unwrap_or(0);
        // Every sample has at least one token and one tile.
        let half = shape.head_dim / 2;
        // A chunk of a library's that is not full is multiplied there.
        let least = if options.sequences > 0 {
            DECODE_CHUNK
        } else {
            0
        };
        let chunk = if library {
            gemm_chunk(options).max(least) as usize
        } else {
            0
        };
        let scratch_x = (chunk * d.max(qz).max(f)) * dtype.bytes();
        let scratch_out = (chunk * (qz + 2 * kv).max(2 * f).max(d))
            .max(usize::from(library) * WIDE_ROWS * vocab)
            * dtype.bytes();
        Places {
            acts,
            log_sum_exp: cutter.take(shape.n_heads * rows * 4),
            wide_input: cutter.take(WIDE_ROWS * d.max(qz) * dtype.bytes()),
            mean_carries: cutter.take(2 * options.means * 8 * widest * 8),
            mean_carry_bytes: 8 * widest * 8,
            cos: cutter.take(positions * half * 4),
            sin: cutter.take(positions * half * 4),
            tokens: cutter.take(rows * 4),
            positions: cutter.take(rows * 4),
            cu_seqlens: cutter.take((rows + 1) * 4),
            tiles: cutter.take(rows * size_of::<AttentionTile>()),
            cache: Cache::cut(cutter, shape, options),
            gemm_scratch: (cutter.take(scratch_x), cutter.take(scratch_out)),
            gemm_scratch_bytes: (scratch_x, scratch_out),
        }
    }

    /// The two carries of the `slot`-th sink that takes means: what the launch before wrote if `turn` is its, and the other.
    pub fn mean_carry(&self, slot: usize, turn: bool) -> (DevicePtr, DevicePtr) {
        let first = self.mean_carries.offset(2 * slot * self.mean_carry_bytes);
        let second = first.offset(self.mean_carry_bytes);
        if turn {
            (first, second)
        } else {
            (second, first)
        }
    }

    /// What lies behind the real rows of a chunk is multiplied too, and may as well be zero.
    fn clear_gemm_scratch(&self, driver: &mut dyn Driver) -> Result<(), LaunchError> {
        let (x, out) = self.gemm_scratch;
        for (at, bytes) in [
            (x, self.gemm_scratch_bytes.0),
            (out, self.gemm_scratch_bytes.1),
        ] {
            if bytes > 0 {
                driver.fill(at, 0, bytes)?;
            }
        }
        Ok(())
    }

    /// cos and sin of position × inverse frequency, in f32 as Hugging Face computes them.
    fn upload_rope(
        &self,
        driver: &mut dyn Driver,
        shape: &Shape,
        options: &CudaOptions,
    ) -> Result<(), LaunchError> {
        let angles = (0..options.positions)
            .flat_map(|position| shape.inv_freq.iter().map(move |&f| position as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        driver.upload_in_order(self.cos, bytemuck::cast_slice(&cos))?;
        driver.upload_in_order(self.sin, bytemuck::cast_slice(&sin))
    }
}
