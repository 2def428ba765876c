//! The compiled kernels that this binary carries: one fatbin per `.cu`, which the driver loads when the first kernel of it
//! is wanted. (`build.rs` compiles each `.cu` by itself, so that a change recompiles one of them, and all cores help.)

use super::launch::LaunchError;

/// What nvcc made of one `.cu`.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The stem of the `.cu`.
    pub source: &'static str,
    /// Machine code for [`ARCHES`], and PTX for GPUs that came later.
    pub fatbin: &'static [u8],
    /// The PTX that the machine code was made from, by virtual architecture.
    #[cfg(feature = "interpreter")]
    pub ptx: &'static [(&'static str, &'static str)],
    /// What `ptxas -v` reported: registers, spills and memory per kernel and architecture.
    #[cfg(feature = "interpreter")]
    pub ptxas: &'static str,
}

impl Image {
    /// The image of kernels/`source`.cu.
    pub fn of(source: &str) -> Option<&'static Image> {
        IMAGES.iter().find(|image| image.source == source)
    }
}

/// Refuses a build that has no kernels.
///
/// # Errors
/// Why it has none, with the remedy.
pub fn has_kernels() -> Result<(), LaunchError> {
    NVCC.map(|_| ()).map_err(|why| {
        LaunchError::NoDevice(format!(
            "this build has no CUDA kernels, since {why}: run scripts/fetch-cuda and build again"
        ))
    })
}

// pub const NVCC: Result<&str, &str>    version of the nvcc that compiled the kernels, or why none did
// pub const NVCC_PATH: &str             where that nvcc is, for tests that use the tools beside it
// pub const ARCHES: &[&str]             architectures with machine code in every fatbin, as sm_80
// pub const IMAGES: &[Image]            sorted by source; empty without nvcc
include!(concat!(env!("OUT_DIR"), "/images.rs"));
