//! The kernels of `kernels/*.cu` from Rust. [`mod@launch`] has the typed handles' vocabulary and the [`Launcher`] trait: memory,
//! copies and launches, and no more. A GPU ([`device`]) and the PTX interpreter (`interpreted`) both stand behind it, so that
//! what runs on one runs on the other. [`images`] are the compiled kernels; [`kernels`] holds one handle module per `.cu`.
//!
//! [`Cuda`] is the backend made of them: a model on a [`Driver`](driver::Driver), which is a [`Gpu`] or, in tests, a `VirtualGpu`
//! that runs the kernels in the interpreter.

mod arena;
mod backend;
mod cache;
pub mod ceilings;
mod cublaslt;
pub mod device;
pub mod driver;
mod edits;
mod flight;
mod gemm;
mod gpu;
mod head;
pub mod images;
#[cfg(feature = "interpreter")]
pub mod interpreted;
pub mod kernels;
pub mod launch;
mod moments;
mod pass;
mod pinned;
pub mod probe;
mod taps;
mod timeline;
#[cfg(feature = "interpreter")]
pub mod virtual_gpu;
#[cfg(feature = "interpreter")]
mod virtual_streams;
mod weights;
pub mod workloads;

pub use backend::{Cuda, CudaOptions, GEMM_CHUNK, supports};
pub use cublaslt::find as find_cublaslt;
pub use gemm::{GemmAlgorithm, GemmCall, GemmRecord, GemmShape, OWN};
pub use gpu::{GemmChoice, Gpu};
pub use images::has_kernels;
pub use launch::{Boxes, DevicePtr, Dims, Dtype, Kernel, LaunchError, Launcher, TensorMap, launch};
pub use pinned::Pinner;
pub use timeline::Timed;
