//! The [`Driver`] that is a GPU: [`CudaDevice`]'s stream for launches, a second one for copies out, and events between them; matrix
//! products by cuBLASLt where it is found.

use std::collections::VecDeque;
use std::ffi::c_void;

use cudarc::driver::result as cu;
use cudarc::driver::sys;

use super::cublaslt::{self, CublasLt};
use super::device::{CudaDevice, failed};
use super::driver::{Driver, Fence, Pitched};
use super::gemm::{GemmAlgorithm, GemmCall, GemmShape, OWN, own_gemm};
use super::launch::{DevicePtr, Dims, LaunchError, Launcher};

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
    /// Fences that may not be reached yet, with their events.
    fences: VecDeque<(Fence, sys::CUevent)>,
    /// Events to use again.
    spare: Vec<sys::CUevent>,
    last_fence: u64,
    /// Taken before `device` goes.
    gemm: Option<(CublasLt, DevicePtr)>,
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

    /// The copies' stream goes on when the launches so far are done.
    fn copies_follow_launches(&mut self) -> Result<(), LaunchError> {
        let event = self.event()?;
        // SAFETY: event and streams are this device's and live. The wait takes the event's state now, so it can be used again.
        let ordered = unsafe {
            cu::event::record(event, self.device.stream()).and_then(|()| {
                cu::stream::wait_event(
                    self.copies,
                    event,
                    sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
                )
            })
        };
        self.spare.push(event);
        ordered.map_err(|e| failed("ordering a copy behind kernels", e))
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
        self.copies_follow_launches()?;
        // SAFETY: the caller keeps `to` good, and to the copy alone, until a fence set later was waited for.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from.0, bytes, self.copies) }
            .result()
            .map_err(|e| failed("copying from the GPU", e))
    }

    fn fence(&mut self) -> Result<Fence, LaunchError> {
        self.device.bind()?;
        self.copies_follow_launches()?;
        let event = self.event()?;
        // SAFETY: event and stream are this device's and live.
        unsafe { cu::event::record(event, self.copies) }
            .map_err(|e| failed("recording an event", e))?;
        self.last_fence += 1;
        let fence = Fence(self.last_fence);
        self.fences.push_back((fence, event));
        Ok(fence)
    }

    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError> {
        self.device.bind()?;
        while let Some(&(first, event)) = self.fences.front()
            && first <= fence
        {
            // SAFETY: recorded in `fence`.
            unsafe { cu::event::synchronize(event) }
                .map_err(|e| failed("waiting for the GPU", e))?;
            self.spare.push(event);
            self.fences.pop_front();
        }
        Ok(())
    }

    fn drain(&mut self) {
        let _ = self.device.bind();
        let _ = self.device.synchronize();
        // SAFETY: this device's stream. Where it fails the device is lost, and writes nothing either.
        let _ = unsafe { cu::stream::synchronize(self.copies) };
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
        let events = self.fences.drain(..).map(|(_, event)| event);
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
