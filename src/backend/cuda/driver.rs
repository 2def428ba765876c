//! What the engine asks of a GPU beyond launching kernels one after another: memory that is told to be scarce, uploads and copies
//! out that nobody waits for, and matrix products.
//!
//! Launches, uploads and copies within the device run in the order they are called. Copies out run beside them: each begins once
//! everything called before it is done, and what is called after it does not wait. A [`Fence`] is how their end is told.

use super::gemm::{GemmAlgorithm, GemmCall, GemmShape};
use super::launch::{DevicePtr, LaunchError, Launcher};

/// A point in the order of calls, reached when everything called before it is done, copies out included. Later fences are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// Rows on the device, `pitch` bytes from one to the next.
#[derive(Debug, Clone, Copy)]
pub struct Pitched {
    pub at: DevicePtr,
    pub pitch: usize,
}

/// A GPU, or what stands in for one.
pub trait Driver: Launcher {
    /// The device's name, for the manifest.
    fn name(&self) -> String;

    /// Bytes that can still be allocated.
    fn free_bytes(&mut self) -> Result<usize, LaunchError>;

    /// Host to device, in order with the launches; the bytes are taken before this returns, and nothing is waited for.
    fn upload_in_order(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError>;

    /// Device to device, in order with the launches: `rows` rows of `row_bytes` bytes. The two places do not overlap.
    fn copy_rows(
        &mut self,
        from: Pitched,
        to: Pitched,
        row_bytes: usize,
        rows: usize,
    ) -> Result<(), LaunchError>;

    /// Device to host: begins when everything called so far is done, and runs beside what is called later.
    ///
    /// # Safety
    /// `to` is good for `bytes` bytes, and nothing else touches them until a fence set after this call was waited for.
    unsafe fn copy_out(
        &mut self,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LaunchError>;

    /// Sets a fence here.
    fn fence(&mut self) -> Result<Fence, LaunchError>;

    /// Returns when the fence is reached; fails if anything before it did.
    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError>;

    /// Returns when nothing is under way, after a failure too: copies out write no more.
    fn drain(&mut self);

    /// The matrix-product library and its version; `own` where products are kernels of `gemm.cu`.
    fn gemm_library(&self) -> String;

    /// The library's first choice for products of this shape, without a split over K.
    fn choose_gemm(&mut self, shape: &GemmShape) -> Result<GemmAlgorithm, LaunchError>;

    /// Multiplies, in order with the launches, by that algorithm.
    fn multiply(
        &mut self,
        algorithm: &GemmAlgorithm,
        shape: &GemmShape,
        call: &GemmCall,
    ) -> Result<(), LaunchError>;
}
