//! The kernels of `kernels/*.cu` from Rust. [`launch`] has the typed handles' vocabulary and the [`Launcher`] trait: memory,
//! copies and launches, and no more. A GPU ([`device`]) and the PTX interpreter (`interpreted`) both stand behind it, so that
//! what runs on one runs on the other. [`images`] are the compiled kernels; [`kernels`] holds one handle module per `.cu`.

pub mod device;
pub mod images;
#[cfg(feature = "interpreter")]
pub mod interpreted;
pub mod kernels;
pub mod launch;
pub mod workloads;

pub use launch::{DevicePtr, Dims, Dtype, Kernel, LaunchError, Launcher, launch};
