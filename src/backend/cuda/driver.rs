//! What the engine asks of a GPU beyond launching kernels one after another: memory that is told to be scarce, uploads and copies
//! out that nobody waits for, and matrix products.
//!
//! There are two orders. Launches, uploads and copies within the device run in the order they are called. Copies out run in an order
//! of their own, beside them, and begin before a launch that was called earlier has run unless they are told to follow it
//! ([`Driver::copies_follow`]). A [`Fence`] is how the end of both is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gemm::{GemmAlgorithm, GemmCall, GemmShape};
use super::launch::{DevicePtr, LaunchError, Launcher};

/// A point in the order of calls, reached when everything called before it is done, copies out included. Later fences are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// How long the host has waited at fences so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// For launches to run.
    pub launches: Duration,
    /// For copies out, after the launches before the fence had run.
    pub copies: Duration,
}

/// One of the two orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    Launches,
    Copies,
}

/// A moment on a track that is being timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(pub u64);

/// Registers host memory with a device, from any thread: copies to registered memory run beside the launches, others make whoever
/// calls them wait.
pub trait Registrar: Send + Sync {
    /// Registers `bytes` bytes.
    ///
    /// # Safety
    /// They stay mapped until they are [`unregister`](Self::unregister)ed.
    unsafe fn register(&self, at: *mut u8, bytes: usize) -> Result<(), LaunchError>;

    /// Ends the registration of what was registered at this address.
    fn unregister(&self, at: *mut u8);
}

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

    /// Device to host, in the order of the copies out.
    ///
    /// # Safety
    /// `to` is good for `bytes` bytes, and nothing else touches them until a fence set after this call was waited for, or
    /// [`drain`](Self::drain) has returned.
    unsafe fn copy_out(
        &mut self,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LaunchError>;

    /// Copies out that are called from here on begin when everything launched so far has run.
    fn copies_follow(&mut self) -> Result<(), LaunchError>;

    /// Sets a fence here.
    fn fence(&mut self) -> Result<Fence, LaunchError>;

    /// Returns when the fence is reached; fails if anything before it did.
    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError>;

    /// How long [`wait`](Self::wait) has taken.
    fn waited(&self) -> Waited;

    /// Returns when nothing is under way, after a failure too: copies out write no more.
    fn drain(&mut self);

    /// What registers host memory with this device.
    fn registrar(&self) -> Result<Arc<dyn Registrar>, LaunchError>;

    /// Notes when the track comes to this point; free to be used again once it was read.
    fn stamp(&mut self, track: Track) -> Result<Stamp, LaunchError>;

    /// When that was, counted from [`stamps_from`](Self::stamps_from). A fence set after the stamp was waited for.
    fn read_stamp(&mut self, stamp: Stamp) -> Result<Duration, LaunchError>;

    /// The moment that stamps are counted from, as the host sees it.
    fn stamps_from(&self) -> Instant;

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
