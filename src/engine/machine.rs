//! What runs a job's batches: the CPU backend, or the model on a device.

use serde_json::{Value, json};

use super::{Plan, Result, forward, ranges};
use crate::backend::cpu::{ATTENTION_TILE, Cpu, GEMM, instruction_set};
use crate::backend::cuda::driver::{Driver, Waited};
use crate::backend::cuda::{Cuda, Pinner, Timed, images};
use crate::backend::{Batch, Edit, Landed, Receipt, Sink};

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

    /// What the manifest says of it.
    fn identity(&self) -> Identity;
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

    fn identity(&self) -> Identity {
        Identity::cpu()
    }
}

impl Identity {
    /// The CPU backend on this machine.
    pub fn cpu() -> Self {
        Identity {
            backend: "cpu".into(),
            device: crate::sys::cpu_name(),
            kernel_build: concat!("cpu ", env!("CARGO_PKG_VERSION")).into(),
            compute_dtype: "f32".into(),
            numeric_record: numeric_record(),
        }
    }
}

/// The numeric record of the CPU backend.
pub fn numeric_record() -> Value {
    json!({
        "backend": "cpu",
        "engine": env!("CARGO_PKG_VERSION"),
        "isa": instruction_set(),
        "compute": "f32",
        "gemm": GEMM,
        "attention_tile": ATTENTION_TILE,
        "batch_invariant": true,
    })
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

    fn identity(&self) -> Identity {
        let build = images::NVCC.map_or_else(
            |why| format!("no kernels: {why}"),
            |nvcc| format!("cuda {}, nvcc {nvcc}", env!("CARGO_PKG_VERSION")),
        );
        Identity {
            backend: "cuda".into(),
            device: self.device_name(),
            compute_dtype: self.dtype().to_string(),
            numeric_record: json!({
                "backend": "cuda",
                "engine": env!("CARGO_PKG_VERSION"),
                "device": self.device_name(),
                "kernels": build.clone(),
                "compute": self.dtype(),
                "residual": self.residual_dtype(),
                "gemm": self.gemm_record(),
                "batch_invariant": true,
            }),
            kernel_build: build,
        }
    }
}
