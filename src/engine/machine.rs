//! What runs a job's batches: the CPU backend, or the model on a device.

use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Plan, Result, forward, ranges, replay};
use crate::backend::cpu::{ATTENTION_TILE, Cpu, KvCache, Precision};
use crate::backend::cuda::driver::{Driver, Waited};
use crate::backend::cuda::{Cuda, Pinner, Timed, images};
use crate::backend::{Act, Batch, Edit, HeadRows, Landed, Ops, Receipt, Scores, Sink, Weight};

/// A backend with a model, as a job uses it.
pub trait Machine {
    /// Runs a batch: every sink is written when it returns. What each edit did.
    ///
    /// # Errors
    /// A token that the model does not have, and what a device can fail at.
    fn run(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>>;

    /// Takes up a batch, whose sinks own their memory. Returns the oldest batch under way once it may be waited for: this one where
    /// batches run when they are taken up; an earlier one, or none yet, where several are under way at a time.
    ///
    /// # Errors
    /// As [`run`](Self::run)'s, of this batch or an earlier one.
    fn submit(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'static>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Option<Landed>>;

    /// Waits for the oldest batch under way; `None` when there is none.
    ///
    /// # Errors
    /// What a device can fail at; every batch under way is then given up.
    fn land(&mut self) -> Result<Option<Landed>> {
        Ok(None)
    }

    /// Gives up every batch under way.
    fn give_up(&mut self) {}

    /// How long it has waited for its device so far: for launches, and for copies out after them.
    fn waited(&self) -> Waited {
        Waited::default()
    }

    /// Has it time its ops, if they run on a device.
    fn set_tracing(&mut self, _on: bool) {}

    /// What its device has run in the batches that landed since it was last asked.
    fn timeline(&mut self) -> Vec<Timed> {
        Vec::new()
    }

    /// What registers memory with its device, if it has one that copies.
    ///
    /// # Errors
    /// The device's.
    fn pinner(&self) -> Result<Option<Pinner>> {
        Ok(None)
    }

    /// As [`run`](Machine::run), from block `from.layer` on: what stands before it is passed over.
    ///
    /// # Errors
    /// As there.
    fn run_from(
        &mut self,
        from: SavedResidual<'_>,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>>;

    /// Makes room on its device for a sum of rows `[width]` and their outer product `[width, width]`, which begin as given. Their number;
    /// `None` where it has no device, or no room there.
    ///
    /// # Errors
    /// The device's.
    fn begin_moments(&mut self, _sum: &[f64], _outer: &[f64]) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Adds a chunk of rows to those sums; the bits are those of [`add_moments`](crate::backend::cpu::add_moments).
    ///
    /// # Errors
    /// The device's.
    fn add_moments(&mut self, _number: usize, _rows: &[f32]) -> Result<()> {
        Ok(())
    }

    /// Reads those sums, of the outer product the lower triangle.
    ///
    /// # Errors
    /// The device's.
    fn read_moments(&mut self, _number: usize, _sum: &mut [f64], _outer: &mut [f64]) -> Result<()> {
        Ok(())
    }

    /// What the manifest says of it.
    fn identity(&self) -> Identity;
}

/// The residual stream that enters a block.
#[derive(Debug, Clone, Copy)]
pub struct SavedResidual<'a> {
    pub layer: usize,
    /// `[rows, d]`: `blocks.{layer}.hook_resid_pre` of every row of the batch.
    pub rows: &'a [f32],
}

/// A machine that goes on where a batch ended: it keeps keys and values of sequences, which go by numbers from 0.
pub trait Decoder: Machine {
    /// Sequences that it keeps at a time; `None`: any number.
    fn most_sequences(&self) -> Option<usize>;

    /// Forgets what it keeps, and is ready for that many sequences.
    fn start(&mut self, sequences: usize);

    /// As [`Machine::run`]: sample i of the batch is what comes next of sequence `sequences[i]` (rising). Either the sequences have
    /// nothing yet, or each sample is one token.
    ///
    /// # Errors
    /// As there, and more sequences than are kept.
    fn advance(
        &mut self,
        sequences: &[usize],
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>>;
}

/// A machine that reads scores off the LM head without handing out logits.
pub trait Reader: Machine {
    /// Of each row, with the token that comes next there, and the `top` likeliest.
    ///
    /// # Errors
    /// What a device can fail at.
    fn scores(
        &mut self,
        rows: HeadRows<'_>,
        next: &[Option<u32>],
        top: usize,
    ) -> Result<Vec<Scores>>;

    /// KL(p‖q) in nats, row by row: as many rows of q as of p, at most half of [`HEAD_ROWS`](crate::backend::HEAD_ROWS).
    ///
    /// # Errors
    /// As of [`scores`](Reader::scores).
    fn divergences(&mut self, p: HeadRows<'_>, q: HeadRows<'_>) -> Result<Vec<f64>>;
}

/// A backend as a manifest names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub backend: String,
    pub device: String,
    pub kernel_build: String,
    pub compute_dtype: String,
    /// What the bits of a row hang on besides the model and the sample.
    pub numeric_record: Value,
}

impl Machine for Cpu<'_> {
    fn run(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        let _range = ranges::range("batch");
        let mut pass = self.begin(batch, sinks)?.with_edits(edits);
        forward(&mut pass, n_layers, plan);
        Ok(pass.receipts())
    }

    fn submit(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'static>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Option<Landed>> {
        let _range = ranges::range("batch");
        let mut pass = self.begin(batch, sinks)?.with_edits(edits);
        forward(&mut pass, n_layers, plan);
        Ok(Some(pass.landed()))
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
        let mut pass = self.begin(batch, sinks)?.with_edits(edits);
        pass.fill(Act::ResidPre, from.rows);
        replay(&mut pass, from.layer, n_layers, plan);
        Ok(pass.receipts())
    }

    fn identity(&self) -> Identity {
        Identity::cpu(self.precision())
    }
}

impl Decoder for Cpu<'_> {
    fn most_sequences(&self) -> Option<usize> {
        None
    }

    fn start(&mut self, sequences: usize) {
        let n_layers = self.shape().n_layers;
        self.kept = (0..sequences).map(|_| KvCache::new(n_layers)).collect();
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
        // Out of the backend while its pass has them.
        let mut kept = std::mem::take(&mut self.kept);
        let mut caches: Vec<&mut KvCache> = Vec::with_capacity(sequences.len());
        let mut next = sequences.iter().peekable();
        for (i, cache) in kept.iter_mut().enumerate() {
            if next.next_if_eq(&&i).is_some() {
                caches.push(cache);
            }
        }
        let pass = self.begin(batch, sinks)?;
        let mut pass = pass.with_edits(edits).with_caches(caches);
        forward(&mut pass, n_layers, plan);
        let receipts = pass.receipts();
        drop(pass);
        self.kept = kept;
        Ok(receipts)
    }
}

impl Reader for Cpu<'_> {
    fn scores(
        &mut self,
        rows: HeadRows<'_>,
        next: &[Option<u32>],
        top: usize,
    ) -> Result<Vec<Scores>> {
        let vocab = self.shape().vocab;
        let logits = logits(self, rows)?;
        let rows = logits.par_chunks(vocab).zip(next);
        Ok(rows
            .map(|(row, &next)| super::score::scores(row, next, top))
            .collect())
    }

    fn divergences(&mut self, p: HeadRows<'_>, q: HeadRows<'_>) -> Result<Vec<f64>> {
        let vocab = self.shape().vocab;
        let (p, q) = (logits(self, p)?, logits(self, q)?);
        let pairs = p.par_chunks(vocab).zip(q.par_chunks(vocab));
        Ok(pairs.map(|(p, q)| super::score::kl(p, q)).collect())
    }
}

/// The logits of a few rows, edited.
fn logits(cpu: &mut Cpu<'_>, rows: HeadRows<'_>) -> Result<Vec<f32>> {
    // The LM head needs no tokens, only as many rows.
    let n = rows.normed.len() / cpu.shape().d_model;
    let batch = Batch::pack([&vec![0; n][..]]);
    let n_edits = rows.edits.len();
    let mut pass = cpu.begin(&batch, Vec::new())?.with_edits(rows.edits);
    pass.fill(Act::Normed, rows.normed);
    pass.linear(Act::Normed, Weight::LmHead, Act::Logits);
    for edit in 0..n_edits {
        pass.edit(Act::Logits, edit);
    }
    Ok(pass.values(Act::Logits).to_vec())
}

impl Identity {
    /// The CPU backend on this machine.
    pub fn cpu(precision: Precision) -> Self {
        Identity {
            backend: "cpu".into(),
            device: crate::sys::cpu_name(),
            kernel_build: concat!("cpu ", env!("CARGO_PKG_VERSION")).into(),
            compute_dtype: compute_dtype(precision).into(),
            numeric_record: numeric_record(precision),
        }
    }
}

fn compute_dtype(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 { .. } => "bf16",
    }
}

/// The numeric record of the CPU backend.
fn numeric_record(precision: Precision) -> Value {
    let mut record = json!({
        "backend": "cpu",
        "engine": env!("CARGO_PKG_VERSION"),
        "isa": precision.instruction_set(),
        "compute": compute_dtype(precision),
        "gemm": precision.gemm(),
        "attention_tile": ATTENTION_TILE,
        "batch_invariant": true,
    });
    if let Precision::Bf16 { f32_resid } = precision {
        record["residual"] = if f32_resid { "f32" } else { "bf16" }.into();
    }
    record
}

impl<D: Driver> Machine for Cuda<D> {
    fn run(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        let _range = ranges::range("batch");
        let mut pass = self.begin(batch, sinks, edits)?;
        forward(&mut pass, n_layers, plan);
        Ok(pass.complete()?)
    }

    fn submit(
        &mut self,
        batch: &Batch,
        sinks: Vec<Sink<'static>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Option<Landed>> {
        let _range = ranges::range("batch");
        let mut pass = self.begin(batch, sinks, edits)?;
        forward(&mut pass, n_layers, plan);
        pass.leave()?;
        if self.in_flight() < self.depth() {
            return Ok(None);
        }
        Machine::land(self)
    }

    fn land(&mut self) -> Result<Option<Landed>> {
        Ok(Cuda::land(self)?)
    }

    fn give_up(&mut self) {
        Cuda::give_up(self);
    }

    fn waited(&self) -> Waited {
        Cuda::waited(self)
    }

    fn set_tracing(&mut self, on: bool) {
        Cuda::set_tracing(self, on);
    }

    fn timeline(&mut self) -> Vec<Timed> {
        Cuda::timeline(self)
    }

    fn pinner(&self) -> Result<Option<Pinner>> {
        Ok(Some(Cuda::pinner(self)?))
    }

    fn begin_moments(&mut self, sum: &[f64], outer: &[f64]) -> Result<Option<usize>> {
        Ok(Cuda::begin_moments(self, sum, outer)?)
    }

    fn add_moments(&mut self, number: usize, rows: &[f32]) -> Result<()> {
        Ok(Cuda::add_moments(self, number, rows)?)
    }

    fn read_moments(&mut self, number: usize, sum: &mut [f64], outer: &mut [f64]) -> Result<()> {
        Ok(Cuda::read_moments(self, number, sum, outer)?)
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
        let mut pass = self.begin(batch, sinks, edits)?;
        pass.fill(Act::ResidPre, from.rows);
        replay(&mut pass, from.layer, n_layers, plan);
        Ok(pass.complete()?)
    }

    fn identity(&self) -> Identity {
        let build = images::NVCC.map_or_else(
            |why| format!("no kernels: {why}"),
            |nvcc| format!("cuda {}, nvcc {nvcc}", env!("CARGO_PKG_VERSION")),
        );
        let mut numeric_record = json!({
            "backend": "cuda",
            "engine": env!("CARGO_PKG_VERSION"),
            "device": self.device_name(),
            "kernels": build.clone(),
            "compute": self.dtype(),
            "residual": self.residual_dtype(),
            "gemm": self.gemm_record(),
            "batch_invariant": true,
        });
        if self.fused_swiglu() {
            numeric_record["fused_swiglu"] = true.into();
        }
        Identity {
            backend: "cuda".into(),
            device: self.device_name(),
            compute_dtype: self.dtype().to_string(),
            numeric_record,
            kernel_build: build,
        }
    }
}

impl<D: Driver> Decoder for Cuda<D> {
    fn most_sequences(&self) -> Option<usize> {
        Some(self.sequences())
    }

    fn start(&mut self, _sequences: usize) {
        self.forget();
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
        let mut pass = self.begin_continuing(batch, sinks, edits, sequences)?;
        forward(&mut pass, n_layers, plan);
        Ok(pass.complete()?)
    }
}

impl<D: Driver> Reader for Cuda<D> {
    fn scores(
        &mut self,
        rows: HeadRows<'_>,
        next: &[Option<u32>],
        top: usize,
    ) -> Result<Vec<Scores>> {
        Ok(Cuda::scores(self, rows, next, top)?)
    }

    fn divergences(&mut self, p: HeadRows<'_>, q: HeadRows<'_>) -> Result<Vec<f64>> {
        Ok(Cuda::divergences(self, p, q)?)
    }
}
