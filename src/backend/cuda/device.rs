//! A [`Launcher`] on a GPU, through the driver alone: `libcuda` is opened when the first device is, and a machine without it
//! is told so. One stream; what is called runs in order.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys;

use super::images::{self, Image};
use super::launch::{Boxes, DevicePtr, Dims, Dtype, LaunchError, Launcher, TensorMap};
use super::workloads::Rates;

/// The driver must know the release of CUDA that compiled the kernels, 13.0: driver 580 is the first.
const DRIVER: i32 = 13_000;

/// Dynamic shared memory that a kernel gets without asking the driver for more, bytes.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// What code for sm_90a runs on, and nothing later does.
const SM_90A: &str = "9.0";

/// What a GPU is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeviceInfo {
    pub name: String,
    /// As `9.0`.
    pub compute_capability: String,
    pub memory_bytes: u64,
    /// What can be allocated now; `None` where it was not asked.
    pub free_bytes: Option<u64>,
    pub multiprocessors: u32,
}

/// The GPUs that can run these kernels, in the driver's order; or why there is none.
pub fn devices() -> Result<Vec<DeviceInfo>, LaunchError> {
    open_driver()?;
    let count = cu::device::get_count().map_err(|e| failed("counting GPUs", e))?;
    (0..count)
        .map(|ordinal| {
            let device = cu::device::get(ordinal).map_err(|e| failed("opening a GPU", e))?;
            info(device).map_err(|e| failed("asking a GPU what it is", e))
        })
        .collect()
}

fn open_driver() -> Result<(), LaunchError> {
    let none = |why: String| Err(LaunchError::NoDevice(why));
    // SAFETY: opens libcuda by its system name, whose initialisers may run in any process. Every other driver call
    // would panic if it were absent.
    if !unsafe { sys::is_culib_present() } {
        return none(
            "libcuda is not on this machine: install the NVIDIA driver, 580 or newer".into(),
        );
    }
    if !has_symbols() {
        return none(
            "the libcuda on this machine is no NVIDIA driver's of release 580 or newer: install that, or take the other off the library path"
                .into(),
        );
    }
    let mut version = 0;
    // SAFETY: writes one int; needs no cuInit.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) };
    if known.result().is_ok() && version < DRIVER {
        return none(format!(
            "the NVIDIA driver knows CUDA up to {}.{}, and these kernels need 13.0: install driver 580 or newer",
            version / 1000,
            version % 1000 / 10
        ));
    }
    match cu::init() {
        Ok(()) => Ok(()),
        Err(e) => none(format!(
            "the NVIDIA driver finds no usable GPU ({}): see nvidia-smi, and CUDA_VISIBLE_DEVICES; a container must be given its GPUs",
            reason(e)
        )),
    }
}

/// Whether the library has what a driver has: the driver crate would panic over each that is missing. (Releases before 580
/// lack the newest of these, and are told apart by their version where they can say it.)
fn has_symbols() -> bool {
    // SAFETY: the library is present; a symbol is only looked up.
    let has = |name: &[u8]| unsafe { sys::culib().get::<*const c_void>(name).is_ok() };
    has(b"cuInit\0")
        && has(b"cuDriverGetVersion\0")
        && has(b"cuGetErrorName\0")
        && has(b"cuGetErrorString\0")
}

fn info(device: sys::CUdevice) -> Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute as A;
    // SAFETY: `device` came from cuDeviceGet; attributes are queries.
    let attribute = |a| unsafe { cu::device::get_attribute(device, a) };
    Ok(DeviceInfo {
        name: cu::device::get_name(device)?,
        compute_capability: format!(
            "{}.{}",
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { cu::device::total_mem(device)? } as u64,
        free_bytes: None,
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
    })
}

/// An open GPU: its primary context, one stream, and the kernels loaded so far.
pub struct CudaDevice {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<String, sys::CUmodule>,
    functions: HashMap<(String, String), Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Size of its one argument.
    argument_bytes: usize,
    /// Dynamic shared memory that it was allowed so far.
    dynamic_shared: u32,
}

impl CudaDevice {
    /// Opens GPU number `ordinal`, from 0.
    pub fn open(ordinal: u32) -> Result<CudaDevice, LaunchError> {
        open_driver()?;
        let count = cu::device::get_count().map_err(|e| failed("counting GPUs", e))?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(LaunchError::NoDevice(format!(
                "there is no cuda:{ordinal}: this machine has {count} GPU(s)"
            )));
        }
        let opened = || {
            let device = cu::device::get(ordinal as i32)?;
            // SAFETY: a valid device; released in drop.
            let context = unsafe { cu::primary_ctx::retain(device)? };
            // SAFETY: the context just retained.
            unsafe { cu::ctx::set_current(context)? };
            let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)?;
            Ok((device, context, stream))
        };
        let (device, context, stream) = opened().map_err(|e| failed("opening the GPU", e))?;
        Ok(CudaDevice {
            device,
            context,
            stream,
            modules: HashMap::new(),
            functions: HashMap::new(),
        })
    }

    pub fn info(&self) -> Result<DeviceInfo, LaunchError> {
        info(self.device).map_err(|e| failed("asking the GPU what it is", e))
    }

    /// The time that `work` takes on the GPU, in seconds: between an event before its first call and one after its last.
    pub fn timed(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), LaunchError>,
    ) -> Result<f64, LaunchError> {
        self.bind()?;
        let event = || {
            cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .map_err(|e| failed("making an event", e))
        };
        let (start, end) = (event()?, event()?);
        // SAFETY: events and stream are this device's and live.
        let record = |event, stream| unsafe { cu::event::record(event, stream) };
        record(start, self.stream).map_err(|e| failed("recording an event", e))?;
        let worked = work(self);
        record(end, self.stream).map_err(|e| failed("recording an event", e))?;
        // SAFETY: both events were recorded; each is destroyed once, after the last use.
        let elapsed = unsafe {
            let elapsed = cu::event::synchronize(end).and_then(|()| cu::event::elapsed(start, end));
            let _ = cu::event::destroy(start);
            let _ = cu::event::destroy(end);
            elapsed
        };
        worked?;
        elapsed
            .map(|milliseconds| f64::from(milliseconds) / 1e3)
            .map_err(|e| failed("timing kernels", e))
    }

    /// What this GPU does at most in a second: copies as measured now (both buffers count), arithmetic as specified at
    /// its boost clock.
    pub fn rates(&mut self) -> Result<Rates, LaunchError> {
        use sys::CUdevice_attribute as A;
        const BYTES: usize = 512 << 20;
        let (from, to) = (self.alloc(BYTES)?, self.alloc(BYTES)?);
        self.fill(from, 1, BYTES)?;
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            best = best.min(self.timed(|on| {
                // SAFETY: both are allocations of this size.
                unsafe { cu::memcpy_dtod_async(to.0, from.0, BYTES, on.stream) }
                    .map_err(|e| failed("copying on the GPU", e))
            })?);
        }
        self.free(from)?;
        self.free(to)?;
        let attribute = |a| {
            // SAFETY: a query of a valid device.
            unsafe { cu::device::get_attribute(self.device, a) }
                .map(f64::from)
                .map_err(|e| failed("asking the GPU what it is", e))
        };
        let cycles = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
            * attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?
            * 1e3;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
        let (tensor, fp32) = flops_per_cycle(major, minor);
        Ok(Rates {
            bytes: 2.0 * BYTES as f64 / best,
            tensor_flops: tensor * cycles,
            fp32_flops: fp32 * cycles,
        })
    }

    /// Bytes of the second-level cache.
    pub fn cache_bytes(&self) -> Result<usize, LaunchError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        // SAFETY: a query of a valid device.
        unsafe { cu::device::get_attribute(self.device, attribute) }
            .map(|bytes| bytes as usize)
            .map_err(|e| failed("asking the GPU what it is", e))
    }

    /// The stream that everything is called on.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// The device and its context, retained once more: the caller releases it.
    pub(super) fn retain(&self) -> Result<(sys::CUdevice, sys::CUcontext), LaunchError> {
        // SAFETY: a valid device, whose primary context is retained already.
        unsafe { cu::primary_ctx::retain(self.device) }
            .map(|context| (self.device, context))
            .map_err(|e| failed("using the GPU", e))
    }

    /// Driver calls act on the calling thread's context.
    pub(super) fn bind(&self) -> Result<(), LaunchError> {
        // SAFETY: retained in `open`, released in drop.
        unsafe { cu::ctx::set_current(self.context) }
            .map_err(|e| failed("using the GPU from this thread", e))
    }

    fn function(&mut self, source: &str, name: &str) -> Result<&mut Function, LaunchError> {
        let key = (source.to_owned(), name.to_owned());
        if !self.functions.contains_key(&key) {
            let module = self.module(source)?;
            let found = find_function(module, source, name)?;
            self.functions.insert(key.clone(), found);
        }
        Ok(self.functions.get_mut(&key).expect("inserted above"))
    }

    fn module(&mut self, source: &str) -> Result<sys::CUmodule, LaunchError> {
        if let Some(&module) = self.modules.get(source) {
            return Ok(module);
        }
        let image = Image::of(source).ok_or_else(|| match images::NVCC {
            Ok(_) => LaunchError::UnknownSource {
                origin: source.to_owned(),
            },
            Err(why) => LaunchError::NoDevice(format!("this build has no CUDA kernels: {why}")),
        })?;
        // SAFETY: a whole fatbin, which knows its own length.
        let module = unsafe { cu::module::load_data(image.fatbin.as_ptr().cast()) }
            .map_err(|e| failed(&format!("loading the kernels of {source}.cu"), e))?;
        self.modules.insert(source.to_owned(), module);
        Ok(module)
    }
}

/// FLOPs of a multiprocessor in a cycle: 16-bit products summed in f32 on tensor cores, and f32. The architectures'
/// white papers; consumer cards of 8.6, 8.9 and 12.0 reach half of the first.
fn flops_per_cycle(major: u32, minor: u32) -> (f64, f64) {
    match (major, minor) {
        (8, 0) => (2048.0, 128.0),
        (8, _) | (12, _) => (1024.0, 256.0),
        (9, _) => (4096.0, 256.0),
        _ => (8192.0, 256.0),
    }
}

fn find_function(module: sys::CUmodule, source: &str, name: &str) -> Result<Function, LaunchError> {
    let unknown = || LaunchError::UnknownKernel {
        kernel: name.to_owned(),
        origin: source.to_owned(),
    };
    let symbol = CString::new(name).map_err(|_| unknown())?;
    // SAFETY: a loaded module, unloaded only in drop.
    let handle = unsafe { cu::module::get_function(module, symbol) }.map_err(|_| unknown())?;
    let (mut offset, mut bytes) = (0, 0);
    // SAFETY: a valid function; two sizes are written.
    unsafe { sys::cuFuncGetParamInfo(handle, 0, &mut offset, &mut bytes) }
        .result()
        .map_err(|e| failed(&format!("asking what {name} takes"), e))?;
    Ok(Function {
        handle,
        argument_bytes: bytes,
        dynamic_shared: SHARED_BY_DEFAULT,
    })
}

impl Launcher for CudaDevice {
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError> {
        self.bind()?;
        // SAFETY: the context is current. The driver refuses to allocate nothing.
        unsafe { cu::malloc_sync(bytes.max(1)) }
            .map(DevicePtr)
            .map_err(|e| LaunchError::Device {
                what: format!("allocating {bytes} bytes on the GPU"),
                reason: if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                    format!(
                        "{}: another process may have taken it meanwhile; see nvidia-smi, free it, or lower --batch-tokens",
                        reason(e)
                    )
                } else {
                    reason(e)
                },
            })
    }

    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError> {
        self.synchronize()?;
        // SAFETY: nothing runs that could use it. The driver refuses what it did not allocate.
        unsafe { cu::free_sync(ptr.0) }.map_err(|e| failed("freeing GPU memory", e))
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.bind()?;
        // SAFETY: the driver refuses addresses outside its allocations; pageable memory is staged before this returns.
        unsafe { cu::memcpy_htod_async(to.0, bytes, self.stream) }
            .map_err(|e| failed("copying to the GPU", e))?;
        self.synchronize()
    }

    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError> {
        self.bind()?;
        // SAFETY: as above; `into` is borrowed until the copy is done.
        unsafe { cu::memcpy_dtoh_async(into, from.0, self.stream) }
            .map_err(|e| failed("copying from the GPU", e))?;
        self.synchronize()
    }

    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError> {
        self.bind()?;
        // SAFETY: the driver refuses addresses outside its allocations.
        unsafe { cu::memset_d8_async(at.0, value, bytes, self.stream) }
            .map_err(|e| failed("filling GPU memory", e))
    }

    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError> {
        self.bind()?;
        let function = self.function(source, name)?;
        if function.argument_bytes != args.len() {
            return Err(LaunchError::ArgumentSize {
                kernel: name.to_owned(),
                origin: source.to_owned(),
                expected: function.argument_bytes,
                given: args.len(),
            });
        }
        let failed = |e| LaunchError::Kernel {
            kernel: name.to_owned(),
            finding: reason(e),
        };
        if dims.dynamic_shared > function.dynamic_shared {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a valid function; the driver refuses more than the GPU has.
            unsafe {
                cu::function::set_function_attribute(
                    function.handle,
                    limit,
                    dims.dynamic_shared as i32,
                )
            }
            .map_err(failed)?;
            function.dynamic_shared = dims.dynamic_shared;
        }
        let handle = function.handle;
        let [grid, block] = [dims.grid, dims.block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the kernel takes one argument of just this size, which the driver copies before it returns. That the
        // addresses in it are good is what the handle's check and the caller answer for, as with any kernel.
        unsafe {
            cu::launch_kernel(
                handle,
                grid,
                block,
                dims.dynamic_shared,
                self.stream,
                &mut [args.as_ptr().cast_mut().cast::<c_void>()],
            )
        }
        .map_err(failed)
    }

    fn tensor_map(&mut self, of: &Boxes) -> Result<TensorMap, LaunchError> {
        self.bind()?;
        let capability = self.info()?.compute_capability;
        if capability != SM_90A {
            return Err(LaunchError::NotOnThisGpu {
                what: "a tensor copy".into(),
                capability,
            });
        }
        encode_tiled(of)
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        self.bind()?;
        // SAFETY: this device's stream, destroyed only in drop.
        unsafe { cu::stream::synchronize(self.stream) }
            .map_err(|e| failed("waiting for the GPU", e))
    }
}

/// `cuTensorMapEncodeTiled` for rows of a matrix: a computation on the host that touches no device memory.
fn encode_tiled(of: &Boxes) -> Result<TensorMap, LaunchError> {
    use sys::CUtensorMapDataType_enum as T;
    let dtype = match of.dtype {
        Dtype::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        Dtype::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Dtype::BF16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    // Innermost first; of the strides the innermost, one element, is left out.
    let extent = [u64::from(of.columns), u64::from(of.rows)];
    let strides = [u64::from(of.row_stride) * of.dtype.bytes() as u64];
    let (boxes, steps) = ([of.box_columns, of.box_rows], [1, 1]);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the driver reads two extents, one stride, two box extents and two steps, and writes the map; the address goes into it
    // unread.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            2,
            of.at.0 as *mut c_void,
            extent.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(|e| failed(&format!("describing {of:?} to tensor copies"), e))?;
    Ok(TensorMap(map.opaque))
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // After a kernel has failed every call here does too; there is no one left to tell.
        if self.synchronize().is_ok() {
            for &module in self.modules.values() {
                // SAFETY: nothing runs; the functions go with the struct.
                let _ = unsafe { cu::module::unload(module) };
            }
        }
        // SAFETY: made or retained in `open`, and used nowhere after this.
        unsafe {
            let _ = cu::stream::destroy(self.stream);
            let _ = cu::primary_ctx::release(self.device);
        }
    }
}

pub(super) fn failed(what: &str, e: DriverError) -> LaunchError {
    LaunchError::Device {
        what: what.to_owned(),
        reason: reason(e),
    }
}

/// As `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
fn reason(e: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or("?".into(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(e.error_name()), text(e.error_string()))
}
