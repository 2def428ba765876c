//! The [`Driver`] that is a GPU: [`CudaDevice`]'s stream for launches, a second one for copies out, and events between them; matrix
//! products by cuBLASLt where it is found.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::result as cu;
use cudarc::driver::sys;

use super::cublaslt::{self, CublasLt};
use super::device::{CudaDevice, failed};
use super::driver::{Driver, Fence, Pitched, Registrar, Stamp, Track, Waited};
use super::gemm::{GemmAlgorithm, GemmCall, GemmShape, OWN, own_gemm};
use super::launch::{Boxes, DevicePtr, Dims, LaunchError, Launcher, TensorMap};

/// Which matrix products to use (`--gemm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GemmChoice {
    /// cuBLASLt where it is found.
    #[default]
    Auto,
    CublasLt,
    Own,
}

impl std::fmt::Display for GemmChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GemmChoice::Auto => "auto",
            GemmChoice::CublasLt => "cublaslt",
            GemmChoice::Own => OWN,
        })
    }
}

/// A GPU as the engine uses it.
pub struct Gpu {
    device: CudaDevice,
    copies: sys::CUstream,
    /// Fences that may not be reached yet, with an event on each stream: launches, copies.
    fences: VecDeque<(Fence, [sys::CUevent; 2])>,
    /// Events to use again.
    spare: Vec<sys::CUevent>,
    last_fence: u64,
    waited: Waited,
    timing: Timing,
    /// Taken before `device` goes.
    gemm: Option<(CublasLt, DevicePtr)>,
}

/// Events that tell the time, made when the first is asked for.
#[derive(Default)]
struct Timing {
    /// What times are counted from, and when the host saw it reached.
    zero: Option<sys::CUevent>,
    zero_at: Option<Instant>,
    last: u64,
    /// By their stamps' numbers.
    set: HashMap<u64, sys::CUevent>,
    spare: Vec<sys::CUevent>,
}

impl Gpu {
    /// Opens GPU number `ordinal`, from 0.
    ///
    /// # Errors
    /// No such GPU or no driver for it; cuBLASLt asked for by name and not found.
    pub fn open(ordinal: u32, gemm: GemmChoice) -> Result<Gpu, LaunchError> {
        let mut device = CudaDevice::open(ordinal)?;
        let found = match gemm {
            GemmChoice::Own => None,
            GemmChoice::Auto | GemmChoice::CublasLt => cublaslt::find(),
        };
        if found.is_none() && gemm == GemmChoice::CublasLt {
            return Err(LaunchError::NoDevice(
                "cuBLASLt for CUDA 13 is neither on the library path nor beside PyTorch: install it, or use --gemm own".into(),
            ));
        }
        let gemm = match found {
            None => None,
            Some(_) => {
                let workspace = device.alloc(cublaslt::WORKSPACE)?;
                Some((CublasLt::open(workspace)?, workspace))
            }
        };
        let copies = cu::stream::create(cu::stream::StreamKind::NonBlocking)
            .map_err(|e| failed("making a stream", e))?;
        Ok(Gpu {
            device,
            copies,
            fences: VecDeque::new(),
            spare: Vec::new(),
            last_fence: 0,
            waited: Waited::default(),
            timing: Timing::default(),
            gemm,
        })
    }

    fn event(&mut self) -> Result<sys::CUevent, LaunchError> {
        match self.spare.pop() {
            Some(event) => Ok(event),
            None => cu::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(|e| failed("making an event", e)),
        }
    }

    fn record(&mut self, track: Track) -> Result<sys::CUevent, LaunchError> {
        let event = self.event()?;
        // SAFETY: event and stream are this device's and live.
        let recorded = unsafe { cu::event::record(event, self.stream(track)) };
        match recorded {
            Ok(()) => Ok(event),
            Err(e) => {
                self.spare.push(event);
                Err(failed("recording an event", e))
            }
        }
    }

    fn stream(&self, track: Track) -> sys::CUstream {
        match track {
            Track::Launches => self.device.stream(),
            Track::Copies => self.copies,
        }
    }

    fn timed_event(&mut self, track: Track) -> Result<sys::CUevent, LaunchError> {
        let event = match self.timing.spare.pop() {
            Some(event) => event,
            None => cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .map_err(|e| failed("making an event", e))?,
        };
        // SAFETY: event and stream are this device's and live.
        match unsafe { cu::event::record(event, self.stream(track)) } {
            Ok(()) => Ok(event),
            Err(e) => {
                self.timing.spare.push(event);
                Err(failed("recording an event", e))
            }
        }
    }
}

/// Registers memory with one GPU, whose context it keeps.
struct GpuRegistrar {
    context: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: contexts may be made current on any thread, and registering is thread-safe in the driver.
unsafe impl Send for GpuRegistrar {}
// SAFETY: as above.
unsafe impl Sync for GpuRegistrar {}

impl Registrar for GpuRegistrar {
    unsafe fn register(&self, at: *mut u8, bytes: usize) -> Result<(), LaunchError> {
        // SAFETY: retained by this struct.
        unsafe { cu::ctx::set_current(self.context) }
            .map_err(|e| failed("using the GPU from this thread", e))?;
        // SAFETY: the caller keeps the memory mapped; the driver refuses what it cannot pin.
        unsafe {
            sys::cuMemHostRegister_v2(at.cast::<c_void>(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE)
        }
        .result()
        .map_err(|e| failed(&format!("registering {bytes} bytes of memory"), e))
    }

    fn unregister(&self, at: *mut u8) {
        // SAFETY: as above. What is not registered is refused; there is no one to tell.
        unsafe {
            let _ = cu::ctx::set_current(self.context);
            let _ = sys::cuMemHostUnregister(at.cast::<c_void>());
        }
    }
}

impl Drop for GpuRegistrar {
    fn drop(&mut self) {
        // SAFETY: retained where this was made.
        let _ = unsafe { cu::primary_ctx::release(self.device) };
    }
}

impl Launcher for Gpu {
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError> {
        self.device.alloc(bytes)
    }

    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError> {
        self.device.free(ptr)
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.device.upload(to, bytes)
    }

    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError> {
        self.device.download(from, into)
    }

    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError> {
        self.device.fill(at, value, bytes)
    }

    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError> {
        self.device.launch_raw(source, name, dims, args)
    }

    fn tensor_map(&mut self, of: &Boxes) -> Result<TensorMap, LaunchError> {
        self.device.tensor_map(of)
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        self.device.synchronize()
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        self.device.info().map_or("GPU".into(), |info| info.name)
    }

    fn free_bytes(&mut self) -> Result<usize, LaunchError> {
        self.device.bind()?;
        cu::mem_get_info()
            .map(|(free, _)| free)
            .map_err(|e| failed("asking for free GPU memory", e))
    }

    fn upload_in_order(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.device.bind()?;
        // SAFETY: the driver refuses addresses outside its allocations; pageable memory is staged before this returns.
        unsafe { cu::memcpy_htod_async(to.0, bytes, self.device.stream()) }
            .map_err(|e| failed("copying to the GPU", e))
    }

    fn copy_rows(
        &mut self,
        from: Pitched,
        to: Pitched,
        row_bytes: usize,
        rows: usize,
    ) -> Result<(), LaunchError> {
        self.device.bind()?;
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from.at.0,
            srcPitch: from.pitch,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: to.at.0,
            dstPitch: to.pitch,
            WidthInBytes: row_bytes,
            Height: rows,
            srcXInBytes: 0,
            srcY: 0,
            srcHost: std::ptr::null(),
            srcArray: std::ptr::null_mut(),
            dstXInBytes: 0,
            dstY: 0,
            dstHost: std::ptr::null_mut(),
            dstArray: std::ptr::null_mut(),
        };
        // SAFETY: the driver reads the description before it returns, and refuses addresses outside its allocations.
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.device.stream()) }
            .result()
            .map_err(|e| failed("copying within the GPU", e))
    }

    unsafe fn copy_out(
        &mut self,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LaunchError> {
        self.device.bind()?;
        // SAFETY: the caller keeps `to` good, and to the copy alone, until a fence set later was waited for.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from.0, bytes, self.copies) }
            .result()
            .map_err(|e| failed("copying from the GPU", e))
    }

    fn copies_follow(&mut self) -> Result<(), LaunchError> {
        self.device.bind()?;
        let event = self.record(Track::Launches)?;
        // SAFETY: event and stream are this device's and live. The wait takes the event's state now, so it can be used again.
        let ordered = unsafe {
            cu::stream::wait_event(
                self.copies,
                event,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
        };
        self.spare.push(event);
        ordered.map_err(|e| failed("ordering a copy behind kernels", e))
    }

    fn fence(&mut self) -> Result<Fence, LaunchError> {
        self.device.bind()?;
        let launches = self.record(Track::Launches)?;
        let copies = self
            .record(Track::Copies)
            .inspect_err(|_| self.spare.push(launches))?;
        self.last_fence += 1;
        let fence = Fence(self.last_fence);
        self.fences.push_back((fence, [launches, copies]));
        Ok(fence)
    }

    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError> {
        self.device.bind()?;
        // The last of those to be reached stands for all before it.
        let until = self.fences.partition_point(|&(set, _)| set <= fence);
        if let Some(&(_, events)) = until.checked_sub(1).and_then(|last| self.fences.get(last)) {
            let begun = Instant::now();
            // SAFETY: recorded in `fence`.
            let wait = |event| unsafe { cu::event::synchronize(event) };
            let launched = wait(events[0]);
            let between = Instant::now();
            let copied = wait(events[1]);
            self.waited.launches += between - begun;
            self.waited.copies += between.elapsed();
            launched
                .and(copied)
                .map_err(|e| failed("waiting for the GPU", e))?;
        }
        let reached = self.fences.drain(..until).flat_map(|(_, events)| events);
        self.spare.extend(reached);
        Ok(())
    }

    fn waited(&self) -> Waited {
        self.waited
    }

    fn drain(&mut self) {
        let _ = self.device.bind();
        let _ = self.device.synchronize();
        // SAFETY: this device's stream. Where it fails the device is lost, and writes nothing either.
        let _ = unsafe { cu::stream::synchronize(self.copies) };
        let reached = self.fences.drain(..).flat_map(|(_, events)| events);
        self.spare.extend(reached);
        let lost = self.timing.set.drain().map(|(_, event)| event);
        self.timing.spare.extend(lost);
    }

    fn registrar(&self) -> Result<Arc<dyn Registrar>, LaunchError> {
        let (device, context) = self.device.retain()?;
        Ok(Arc::new(GpuRegistrar { context, device }))
    }

    fn stamp(&mut self, track: Track) -> Result<Stamp, LaunchError> {
        self.device.bind()?;
        if self.timing.zero.is_none() {
            let zero = self.timed_event(Track::Launches)?;
            self.timing.zero = Some(zero);
            // SAFETY: recorded just now.
            unsafe { cu::event::synchronize(zero) }
                .map_err(|e| failed("waiting for the GPU", e))?;
            self.timing.zero_at = Some(Instant::now());
        }
        let event = self.timed_event(track)?;
        self.timing.last += 1;
        self.timing.set.insert(self.timing.last, event);
        Ok(Stamp(self.timing.last))
    }

    fn read_stamp(&mut self, stamp: Stamp) -> Result<Duration, LaunchError> {
        self.device.bind()?;
        let known = self.timing.set.remove(&stamp.0).zip(self.timing.zero);
        let Some((event, zero)) = known else {
            return Err(LaunchError::Device {
                what: "reading a stamp".into(),
                reason: "there is no such stamp".into(),
            });
        };
        self.timing.spare.push(event);
        // SAFETY: both were recorded; the driver says so if one is not reached.
        unsafe { cu::event::elapsed(zero, event) }
            .map(|milliseconds| Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
            .map_err(|e| failed("timing kernels", e))
    }

    fn stamps_from(&self) -> Instant {
        self.timing.zero_at.unwrap_or_else(Instant::now)
    }

    fn gemm_library(&self) -> String {
        self.gemm
            .as_ref()
            .map_or(OWN.into(), |(library, _)| library.name())
    }

    fn choose_gemm(&mut self, shape: &GemmShape) -> Result<GemmAlgorithm, LaunchError> {
        self.device.bind()?;
        match &mut self.gemm {
            Some((library, _)) => library.choose(shape),
            None => Ok(GemmAlgorithm(OWN.into())),
        }
    }

    fn multiply(
        &mut self,
        algorithm: &GemmAlgorithm,
        shape: &GemmShape,
        call: &GemmCall,
    ) -> Result<(), LaunchError> {
        self.device.bind()?;
        match &mut self.gemm {
            Some((library, _)) => {
                library.multiply(algorithm, shape, call, self.device.stream().cast())
            }
            None => own_gemm(&mut self.device, shape, call),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // After a kernel has failed every call here fails too; there is no one left to tell.
        let _ = self.device.bind();
        if let Some((library, workspace)) = self.gemm.take() {
            drop(library);
            let _ = self.device.free(workspace);
        }
        let timing = std::mem::take(&mut self.timing);
        let events = self.fences.drain(..).flat_map(|(_, events)| events);
        let timed = timing.set.into_values().chain(timing.zero);
        let events = events.chain(timed).chain(timing.spare);
        // SAFETY: made here, destroyed once; the stream's work is waited for first.
        unsafe {
            let _ = cu::stream::synchronize(self.copies);
            for event in events.chain(self.spare.drain(..)) {
                let _ = cu::event::destroy(event);
            }
            let _ = cu::stream::destroy(self.copies);
        }
    }
}
