//! What runs a job's batches: the CPU backend, or the model on a device.

use serde_json::{Value, json};

use super::{Plan, Result, forward, replay};
use crate::backend::cpu::{ATTENTION_TILE, Cpu, GEMM, instruction_set};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::{Cuda, images};
use crate::backend::{Act, Batch, Change, Edit, EditSpec, Receipt, Sink};
use crate::hooks::{HookPoint, Site};
use std::sync::Arc;

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

    /// As [`Machine::run`], from block `from` on, where `stream` enters it, `[rows, d]`: taps and edits before it are passed over.
    ///
    /// # Errors
    /// As there.
    fn replay(
        &mut self,
        batch: &Batch,
        start: Start<'_>,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>>;

    /// What the manifest says of it.
    fn identity(&self) -> Identity;
}

/// Where a replay begins.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The first block that runs.
    pub layer: usize,
    /// The residual stream that enters it, `[rows, d]`.
    pub stream: &'a [f32],
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
        let mut pass = self.begin(batch, sinks)?.with_edits(edits);
        forward(&mut pass, n_layers, plan);
        Ok(pass.receipts())
    }

    fn replay(
        &mut self,
        batch: &Batch,
        start: Start<'_>,
        sinks: Vec<Sink<'_>>,
        edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        let mut pass = self.begin(batch, sinks)?.with_edits(edits);
        pass.fill(Act::ResidPre, start.stream);
        replay(&mut pass, start.layer, n_layers, plan);
        Ok(pass.receipts())
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
        let mut pass = self.begin(batch, sinks, edits)?;
        forward(&mut pass, n_layers, plan);
        Ok(pass.complete()?)
    }

    /// The stream is put there by an edit that comes before all others: it is rounded to the compute dtype, which changes nothing
    /// of rows that were read out of a pass.
    fn replay(
        &mut self,
        batch: &Batch,
        start: Start<'_>,
        sinks: Vec<Sink<'_>>,
        mut edits: Vec<Edit>,
        n_layers: usize,
        plan: &Plan,
    ) -> Result<Vec<Receipt>> {
        let asked = edits.len();
        let entry = HookPoint {
            site: Site::ResidPre,
            layer: start.layer,
        };
        let plan = plan.clone().with_first_edit(entry, asked);
        let whole = EditSpec {
            columns: Vec::new(),
            heads: Vec::new(),
            change: Change::Replace,
        };
        edits.push(Edit::new(
            Arc::new(whole),
            (0..batch.rows() as u32).collect(),
            batch.samples().map(|rows| rows.len() as u32).collect(),
            start.stream.to_vec(),
        ));
        let mut pass = self.begin(batch, sinks, edits)?;
        replay(&mut pass, start.layer, n_layers, &plan);
        let mut receipts = pass.complete()?;
        receipts.truncate(asked);
        Ok(receipts)
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
