//! What a kernel launch is made of, and who can make one.
//!
//! A kernel takes one struct by value. Its handle implements [`Kernel`]: name, argument struct, grid rule and what the
//! arguments must satisfy. [`launch`] checks them and hands the struct's bytes to a [`Launcher`], which compares their number
//! with what the compiled kernel takes.

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

/// An address in device memory. Null stands for "not wanted" where a kernel's output is optional.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }

    pub fn is_null(self) -> bool {
        self == DevicePtr::NULL
    }

    /// Whether the address is a multiple of `bytes`; null is.
    pub fn is_aligned(self, bytes: u64) -> bool {
        self.0.is_multiple_of(bytes)
    }
}

/// Element type of a tensor on the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// The word for it in kernel names: `f32`, `f16`, `bf16`.
    pub fn word(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// What tensor copies are told of a matrix: [`Launcher::tensor_map`] makes it, and a kernel is given it among its arguments. Only the
/// device that made it can read it.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TensorMap(pub [u64; 16]);

/// A matrix in device memory, and the boxes of it that tensor copies bring to shared memory, their rows swizzled over 128 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Boxes {
    pub at: DevicePtr,
    /// What a box takes from outside of them is zero.
    pub rows: u32,
    pub columns: u32,
    /// Elements from row to row.
    pub row_stride: u32,
    pub dtype: Dtype,
    /// At most 256.
    pub box_rows: u32,
    /// At most 128 bytes.
    pub box_columns: u32,
}

/// How many blocks of how many threads, and the dynamic shared memory of each block in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dims {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
}

impl Dims {
    /// `blocks` blocks of `threads` threads in one dimension, no dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Dims {
        Dims {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            dynamic_shared: 0,
        }
    }
}

/// A kernel's handle.
pub trait Kernel {
    /// The struct that the kernel takes, field by field: pointers, then 64-bit integers, then 32-bit ones; no holes.
    type Args: Pod;

    /// The entry point, as `rms_norm_bf16`.
    fn name(&self) -> String;
    /// The stem of the `.cu` that has it, as `rms_norm`.
    fn source(&self) -> &'static str;
    fn dims(&self, args: &Self::Args) -> Dims;
    /// What is wrong with the arguments, as a clause: `width is 12, not a multiple of 8`.
    fn check(&self, _args: &Self::Args) -> Result<(), String> {
        Ok(())
    }
}

/// What can go wrong from allocating to launching.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The handle refused the arguments.
    #[error("kernel {kernel}: {what}")]
    Arguments { kernel: String, what: String },
    /// Argument struct and compiled kernel do not agree: the Rust struct is not the mirror of the one in the `.cu`.
    #[error(
        "kernel {kernel} takes {expected} bytes of arguments and was given {given}: its argument struct in Rust does not mirror kernels/{origin}.cu"
    )]
    ArgumentSize {
        kernel: String,
        origin: String,
        expected: usize,
        given: usize,
    },
    /// No such `.cu` among the compiled ones.
    #[error("no kernels/{origin}.cu was compiled into this build")]
    UnknownSource { origin: String },
    /// No such entry point in the `.cu`.
    #[error("kernels/{origin}.cu has no kernel {kernel}")]
    UnknownKernel { kernel: String, origin: String },
    /// The kernel did something it must not, seen by the interpreter or the device.
    #[error("kernel {kernel}: {finding}")]
    Kernel { kernel: String, finding: String },
    /// Allocation, copy or another driver call.
    #[error("{what}: {reason}")]
    Device { what: String, reason: String },
    /// The GPU has no such thing.
    #[error("{what} needs a GPU of compute capability 9.0 (H100), and this is one of {capability}")]
    NotOnThisGpu { what: String, capability: String },
    /// There is no device to run on.
    #[error("{0}")]
    NoDevice(String),
}

/// Device memory, copies and launches, in the order they are called.
pub trait Launcher {
    /// `bytes` bytes of device memory, 256-byte aligned, contents undefined.
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError>;
    /// Gives back what [`alloc`](Self::alloc) returned.
    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError>;
    /// Host to device.
    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError>;
    /// Device to host, after all launches so far.
    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError>;
    /// Sets `bytes` bytes to `value`.
    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError>;
    /// Launches the kernel `name` of kernels/`source`.cu; `args` are the bytes of its argument struct.
    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError>;
    /// What tensor copies are told of a matrix that lies there when a kernel with the map runs.
    ///
    /// # Errors
    /// [`LaunchError::NotOnThisGpu`] where there are no tensor copies; boxes against the rules of `cuTensorMapEncodeTiled`.
    fn tensor_map(&mut self, of: &Boxes) -> Result<TensorMap, LaunchError>;
    /// Waits for all launches so far and tells whether one failed.
    fn synchronize(&mut self) -> Result<(), LaunchError>;
}

/// Checks the arguments and launches `kernel`.
pub fn launch<K: Kernel>(
    on: &mut (impl Launcher + ?Sized),
    kernel: &K,
    args: &K::Args,
) -> Result<(), LaunchError> {
    let name = kernel.name();
    kernel.check(args).map_err(|what| LaunchError::Arguments {
        kernel: name.clone(),
        what,
    })?;
    on.launch_raw(
        kernel.source(),
        &name,
        kernel.dims(args),
        bytemuck::bytes_of(args),
    )
}
