//! The kernels of `kernels/*.cu` from Rust. [`launch`] has the typed handles' vocabulary and the [`Launcher`] trait: memory,
//! copies and launches, and no more; a GPU and the PTX interpreter both stand behind it, so that what runs on one runs on the
//! other. `kernels` holds one handle module per `.cu`.

pub mod kernels;
pub mod launch;

pub use launch::{DevicePtr, Dims, Dtype, Kernel, LaunchError, Launcher, launch};
