//! Matrix products of the engine: x · Wᵀ in chunks of a fixed number of rows, so that a row's bits depend neither on how many
//! rows share its batch nor on which algorithm a library would pick for that number.
//!
//! A library's algorithm is chosen once per job and shape, and is part of the job's numeric record. `gemm.cu`'s own kernel gives a row
//! the same bits in any company, and takes all rows at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::driver::{Driver, Pitched};
use super::kernels::gemm::{Gemm, GemmArgs};
use super::launch::{DevicePtr, Dtype, LaunchError, Launcher, launch};

/// What a library's choice hangs on. Elements of x and W have one dtype; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GemmShape {
    /// Rows of x and out.
    pub m: u32,
    /// Rows of W, columns of out.
    pub n: u32,
    /// Columns of x and W.
    pub k: u32,
    /// Of x and W.
    pub input: Dtype,
    /// Of out.
    pub output: Dtype,
}

/// Where the operands of one product lie. Strides are in elements, from row to row.
#[derive(Debug, Clone, Copy)]
pub struct GemmCall {
    pub x: DevicePtr,
    pub weight: DevicePtr,
    pub out: DevicePtr,
    pub x_stride: u32,
    pub weight_stride: u32,
    pub out_stride: u32,
}

/// An algorithm of the library, in the library's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GemmAlgorithm(pub String);

/// The word for `gemm.cu` as a library and as its one algorithm.
pub const OWN: &str = "own";

/// Multiplies by `gemm.cu`.
pub fn own_gemm(
    on: &mut (impl Launcher + ?Sized),
    shape: &GemmShape,
    call: &GemmCall,
) -> Result<(), LaunchError> {
    launch(
        on,
        &Gemm::new(shape.input, shape.output, shape.m, shape.n),
        &GemmArgs {
            x: call.x,
            weight: call.weight,
            out: call.out,
            x_batch_stride: 0,
            weight_batch_stride: 0,
            out_batch_stride: 0,
            m: shape.m,
            n: shape.n,
            k: shape.k,
            batch: 1,
            x_stride: call.x_stride,
            weight_stride: call.weight_stride,
            out_stride: call.out_stride,
            _pad: 0,
        },
    )
}

/// The algorithms of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GemmRecord {
    /// Library and version.
    pub library: String,
    /// Rows of a chunk.
    pub chunk: u32,
    pub algorithms: Vec<(GemmShape, GemmAlgorithm)>,
}

/// A job's products.
pub(super) struct Gemms {
    library: String,
    chunk: u32,
    algorithms: BTreeMap<GemmShape, GemmAlgorithm>,
    /// For a chunk that is not full: x `[chunk, k]` and out `[chunk, n]`.
    scratch_x: DevicePtr,
    scratch_out: DevicePtr,
}

impl Gemms {
    /// `record`: the algorithms of the job that goes on.
    ///
    /// # Errors
    /// The record is of another library, or of other chunks.
    pub fn new(
        driver: &dyn Driver,
        chunk: u32,
        scratch: (DevicePtr, DevicePtr),
        record: Option<&GemmRecord>,
    ) -> Result<Gemms, LaunchError> {
        let library = driver.gemm_library();
        if let Some(record) = record
            && (record.library != library || record.chunk != chunk)
        {
            return Err(LaunchError::Device {
                what: "taking up the job's matrix products".into(),
                reason: format!(
                    "the job was begun with {} in chunks of {} rows, and here there is {library} in chunks of {chunk}: \
                     other bits would come out; go on where it was begun, or begin anew",
                    record.library, record.chunk
                ),
            });
        }
        Ok(Gemms {
            library,
            chunk,
            algorithms: record
                .map(|r| r.algorithms.iter().cloned().collect())
                .unwrap_or_default(),
            scratch_x: scratch.0,
            scratch_out: scratch.1,
        })
    }

    /// What a job that goes on must be given.
    pub fn record(&self) -> GemmRecord {
        GemmRecord {
            library: self.library.clone(),
            chunk: self.chunk,
            algorithms: self
                .algorithms
                .iter()
                .map(|(shape, algorithm)| (*shape, algorithm.clone()))
                .collect(),
        }
    }

    /// Chooses the algorithm for products of this shape now, so that the record is whole before the first of them.
    pub fn choose(
        &mut self,
        driver: &mut dyn Driver,
        shape: GemmShape,
    ) -> Result<GemmAlgorithm, LaunchError> {
        if let Some(known) = self.algorithms.get(&shape) {
            return Ok(known.clone());
        }
        let chosen = driver.choose_gemm(&shape)?;
        self.algorithms.insert(shape, chosen.clone());
        Ok(chosen)
    }

    /// Rows of a chunk where nothing else is said.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// out = x · Wᵀ for `shape.m` rows, whatever their number, `chunk` at a time.
    pub fn linear(
        &mut self,
        driver: &mut dyn Driver,
        chunk_rows: u32,
        shape: GemmShape,
        call: GemmCall,
    ) -> Result<(), LaunchError> {
        if self.library == OWN {
            return own_gemm(driver, &shape, &call);
        }
        let chunk = GemmShape {
            m: chunk_rows,
            ..shape
        };
        let algorithm = self.choose(driver, chunk)?;
        let (x_row, out_row) = (
            call.x_stride as usize * shape.input.bytes(),
            call.out_stride as usize * shape.output.bytes(),
        );
        let full = shape.m / chunk_rows;
        for i in 0..full as usize {
            let rows = i * chunk_rows as usize;
            let part = GemmCall {
                x: call.x.offset(rows * x_row),
                out: call.out.offset(rows * out_row),
                ..call
            };
            driver.multiply(&algorithm, &chunk, &part)?;
        }
        let rest = shape.m - full * chunk_rows;
        if rest == 0 {
            return Ok(());
        }
        // The rows behind the last real one multiply whatever lies in the scratch; theirs is a row of the scratch too.
        let done = (full * chunk_rows) as usize;
        let (x, out) = (call.x.offset(done * x_row), call.out.offset(done * out_row));
        let pitched = |at, pitch| Pitched { at, pitch };
        let (k_bytes, n_bytes) = (
            shape.k as usize * shape.input.bytes(),
            shape.n as usize * shape.output.bytes(),
        );
        driver.copy_rows(
            pitched(x, x_row),
            pitched(self.scratch_x, k_bytes),
            k_bytes,
            rest as usize,
        )?;
        let padded = GemmCall {
            x: self.scratch_x,
            out: self.scratch_out,
            x_stride: shape.k,
            out_stride: shape.n,
            ..call
        };
        driver.multiply(&algorithm, &chunk, &padded)?;
        driver.copy_rows(
            pitched(self.scratch_out, n_bytes),
            pitched(out, out_row),
            n_bytes,
            rest as usize,
        )
    }
}
