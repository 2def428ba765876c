//! A [`Driver`] without a GPU: kernels run in the interpreter, and nothing runs before somebody waits for it. Launches and copies
//! out then run in the worst order that the events between them allow ([`StreamOrder`]), so that a copy of what is not there yet, and memory that
//! is used again too early, give wrong rows as they would on a device, only every time. Calls can be made to fail, memory to be
//! short, events to be forgotten, and matrix products to come from a library whose every algorithm sums in another order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::{bf16, f16};

use super::driver::{Driver, Fence, Pitched, Registrar, Stamp, Track, Waited};
use super::gemm::{GemmAlgorithm, GemmCall, GemmShape, OWN, own_gemm};
use super::interpreted::{Interpretation, Interpreted};
use super::launch::{Boxes, DevicePtr, Dims, Dtype, LaunchError, Launcher, TensorMap};
pub use super::virtual_streams::StreamOrder;
use super::virtual_streams::{Copy, Step, Streams, Task};

/// Its name, for manifests.
pub const NAME: &str = "PTX interpreter";

/// What kind of device it is.
#[derive(Debug, Clone, Copy)]
pub struct VirtualGpuOptions {
    pub how: Interpretation,
    /// Bytes that can be allocated.
    pub memory: usize,
    /// The call that fails, counted from 0 over every call of the driver; `None`: none does.
    pub fail_at: Option<u64>,
    /// A fickle library: each choice of an algorithm is another one, drawn from this seed. `None`: the kernels of `gemm.cu`.
    pub fickle_gemm: Option<u64>,
    /// How launches and copies out interleave.
    pub order: StreamOrder,
    /// A mistake that the driver makes, to show that it would be seen.
    pub mistake: Option<Mistake>,
    /// Whether host memory can be registered.
    pub registers: bool,
}

/// A synchronisation that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Copies out do not wait for the launches before them.
    CopiesDoNotFollow,
    /// Whoever waits for a fence goes on at once.
    FencesAreNotWaitedFor,
    /// So does whoever waits for one that others were set after, as whoever uses memory again does.
    PiecesAreNotWaitedFor,
}

/// A device that is none.
pub struct VirtualGpu {
    interpreted: Interpreted,
    options: VirtualGpuOptions,
    allocated: usize,
    allocations: u64,
    sizes: Vec<(DevicePtr, usize)>,
    streams: Streams,
    /// What the fences not waited for yet stand for, in order.
    fences: HashMap<u64, (u64, u64)>,
    last_fence: u64,
    calls: Arc<AtomicU64>,
    choices: u64,
    registered: Arc<Mutex<HashMap<usize, usize>>>,
    most_registered: Arc<AtomicU64>,
    unregistered_copies: u64,
    copied_out: u64,
    opened: Instant,
    stamps: Stamps,
    waited: Waited,
}

/// When stamps were reached, by their numbers.
#[derive(Default)]
struct Stamps {
    last: u64,
    read: u64,
    reached: HashMap<u64, Duration>,
}

impl VirtualGpu {
    pub fn new(options: VirtualGpuOptions) -> VirtualGpu {
        VirtualGpu {
            interpreted: Interpreted::new(options.how),
            options,
            allocated: 0,
            allocations: 0,
            sizes: Vec::new(),
            streams: Streams::new(options.order),
            fences: HashMap::new(),
            last_fence: 0,
            calls: Arc::new(AtomicU64::new(0)),
            choices: options.fickle_gemm.unwrap_or(0),
            registered: Arc::default(),
            most_registered: Arc::default(),
            unregistered_copies: 0,
            copied_out: 0,
            opened: Instant::now(),
            stamps: Stamps::default(),
            waited: Waited::default(),
        }
    }

    /// Calls so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Bytes allocated now.
    pub fn allocated(&self) -> usize {
        self.allocated
    }

    /// Allocations so far, whether they were given back or not.
    pub fn allocations(&self) -> u64 {
        self.allocations
    }

    /// Registrations of host memory that are in force.
    pub fn registrations(&self) -> usize {
        lock(&self.registered).len()
    }

    /// The most that were in force at a time.
    pub fn most_registrations(&self) -> u64 {
        self.most_registered.load(Ordering::Relaxed)
    }

    /// Bytes that were copied to the host by way of the copies out.
    pub fn copied_out(&self) -> u64 {
        self.copied_out
    }

    /// Copies out to memory that was not registered: on a GPU each would have made the host wait.
    pub fn unregistered_copies(&self) -> u64 {
        self.unregistered_copies
    }

    /// Fences and stamps that nobody has waited for or read: events that cannot be used again.
    pub fn open_events(&self) -> usize {
        self.fences.len() + (self.stamps.last - self.stamps.read) as usize
    }

    fn call(&mut self, what: &str) -> Result<(), LaunchError> {
        called(&self.calls, self.options.fail_at, what)
    }

    /// Runs what was called until so many tasks and copies are done; the first failure of what ran.
    fn run(&mut self, until: (u64, u64)) -> Result<(), LaunchError> {
        let mut failed = Ok(());
        while let Some(step) = self.streams.next(until) {
            let done = match step {
                Step::Task(task) => self.run_task(task),
                Step::Copy(copy) => self.run_copy(copy),
            };
            failed = failed.and(done);
        }
        failed
    }

    fn run_launches(&mut self) -> Result<(), LaunchError> {
        self.run((self.streams.called().0, 0))
    }

    fn run_task(&mut self, task: Task) -> Result<(), LaunchError> {
        match task {
            Task::Upload { to, bytes } => self.interpreted.upload(to, &bytes),
            Task::Fill { at, value, bytes } => self.interpreted.fill(at, value, bytes),
            Task::Launch {
                source,
                name,
                dims,
                args,
            } => self.interpreted.launch_raw(&source, &name, dims, &args),
            Task::Multiply { step, shape, call } => self.multiply_by_steps(step, &shape, &call),
            Task::Stamp(stamp) => self.reached(stamp),
            Task::CopyRows {
                from,
                to,
                row_bytes,
                rows,
            } => {
                let mut row = vec![0; row_bytes];
                (0..rows).try_for_each(|r| {
                    let (from, to) = (from.at.offset(r * from.pitch), to.at.offset(r * to.pitch));
                    self.interpreted.download(from, &mut row)?;
                    self.interpreted.upload(to, &row)
                })
            }
        }
    }

    fn run_copy(&mut self, copy: Copy) -> Result<(), LaunchError> {
        match copy {
            Copy::Out { from, to, bytes } => {
                // SAFETY: `copy_out`'s caller keeps the memory good and to us alone until a fence after it was waited for, or
                // `drain` has thrown the copy away.
                let into = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                self.interpreted.download(from, into)
            }
            Copy::Follow(_) => Ok(()),
            Copy::Stamp(stamp) => self.reached(stamp),
        }
    }

    fn reached(&mut self, stamp: u64) -> Result<(), LaunchError> {
        self.stamps.reached.insert(stamp, self.opened.elapsed());
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn called(calls: &AtomicU64, fail_at: Option<u64>, what: &str) -> Result<(), LaunchError> {
    let number = calls.fetch_add(1, Ordering::Relaxed);
    if fail_at == Some(number) {
        return Err(LaunchError::Device {
            what: what.to_owned(),
            reason: format!("call {number} was made to fail"),
        });
    }
    Ok(())
}

/// Registers memory with a virtual GPU, which only notes it.
struct VirtualRegistrar {
    calls: Arc<AtomicU64>,
    options: VirtualGpuOptions,
    registered: Arc<Mutex<HashMap<usize, usize>>>,
    most_registered: Arc<AtomicU64>,
}

impl Registrar for VirtualRegistrar {
    unsafe fn register(&self, at: *mut u8, bytes: usize) -> Result<(), LaunchError> {
        called(&self.calls, self.options.fail_at, "registering memory")?;
        let known = !self.options.registers || lock(&self.registered).contains_key(&at.addr());
        if known {
            return Err(LaunchError::Device {
                what: format!("registering {bytes} bytes"),
                reason: "the memory cannot be registered".into(),
            });
        }
        let mut registered = lock(&self.registered);
        registered.insert(at.addr(), bytes);
        let now = registered.len() as u64;
        self.most_registered.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    fn unregister(&self, at: *mut u8) {
        lock(&self.registered).remove(&at.addr());
    }
}

impl Launcher for VirtualGpu {
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError> {
        self.call("allocating device memory")?;
        if bytes > self.options.memory - self.allocated {
            return Err(LaunchError::Device {
                what: format!("allocating {bytes} bytes on the GPU"),
                reason: "out of memory".into(),
            });
        }
        let at = self.interpreted.alloc(bytes)?;
        self.allocated += bytes;
        self.allocations += 1;
        self.sizes.push((at, bytes));
        Ok(at)
    }

    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError> {
        self.run_launches()?;
        self.interpreted.free(ptr)?;
        if let Some(place) = self.sizes.iter().position(|&(at, _)| at == ptr) {
            self.allocated -= self.sizes.swap_remove(place).1;
        }
        Ok(())
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.call("copying to the device")?;
        let bytes = bytes.to_vec();
        self.streams.push_task(Task::Upload { to, bytes });
        Ok(())
    }

    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError> {
        self.call("copying from the device")?;
        self.run_launches()?;
        self.interpreted.download(from, into)
    }

    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError> {
        self.call("filling device memory")?;
        self.streams.push_task(Task::Fill { at, value, bytes });
        Ok(())
    }

    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError> {
        self.call("launching a kernel")?;
        self.streams.push_task(Task::Launch {
            source: source.into(),
            name: name.into(),
            dims,
            args: args.to_vec(),
        });
        Ok(())
    }

    fn tensor_map(&mut self, of: &Boxes) -> Result<TensorMap, LaunchError> {
        self.call("describing a matrix to tensor copies")?;
        self.interpreted.tensor_map(of)
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        self.call("waiting for the device")?;
        self.run_launches()
    }
}

impl Driver for VirtualGpu {
    fn name(&self) -> String {
        NAME.into()
    }

    fn free_bytes(&mut self) -> Result<usize, LaunchError> {
        self.call("asking for free memory")?;
        Ok(self.options.memory - self.allocated)
    }

    fn upload_in_order(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.upload(to, bytes)
    }

    fn copy_rows(
        &mut self,
        from: Pitched,
        to: Pitched,
        row_bytes: usize,
        rows: usize,
    ) -> Result<(), LaunchError> {
        self.call("copying within the device")?;
        self.streams.push_task(Task::CopyRows {
            from,
            to,
            row_bytes,
            rows,
        });
        Ok(())
    }

    unsafe fn copy_out(
        &mut self,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LaunchError> {
        self.call("copying from the device")?;
        let to = to.addr();
        let registered = lock(&self.registered);
        let inside = |(&at, &len): (&usize, &usize)| at <= to && to + bytes <= at + len;
        self.unregistered_copies += u64::from(!registered.iter().any(inside));
        drop(registered);
        self.copied_out += bytes as u64;
        self.streams.push_copy(Copy::Out { from, to, bytes });
        Ok(())
    }

    fn copies_follow(&mut self) -> Result<(), LaunchError> {
        self.call("ordering copies behind launches")?;
        if self.options.mistake != Some(Mistake::CopiesDoNotFollow) {
            let launched = self.streams.called().0;
            self.streams.push_copy(Copy::Follow(launched));
        }
        Ok(())
    }

    fn fence(&mut self) -> Result<Fence, LaunchError> {
        self.call("setting a fence")?;
        self.last_fence += 1;
        self.fences.insert(self.last_fence, self.streams.called());
        Ok(Fence(self.last_fence))
    }

    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError> {
        let called = self.call("waiting for a fence");
        let until = self.fences.get(&fence.0).copied().unwrap_or_default();
        self.fences.retain(|&number, _| number > fence.0);
        let goes_on = match self.options.mistake {
            Some(Mistake::FencesAreNotWaitedFor) => true,
            Some(Mistake::PiecesAreNotWaitedFor) => fence.0 < self.last_fence,
            Some(Mistake::CopiesDoNotFollow) | None => false,
        };
        if goes_on {
            return called;
        }
        let begun = Instant::now();
        let ran = self.run((until.0, 0));
        let launched = Instant::now();
        let copied = self.run(until);
        self.waited.launches += launched - begun;
        self.waited.copies += launched.elapsed();
        called.and(ran).and(copied)
    }

    fn waited(&self) -> Waited {
        self.waited
    }

    fn drain(&mut self) {
        // What was launched runs to its end, well or not; copies that are still under way then are lost.
        let _ = self.run_launches();
        self.streams.clear();
        self.fences.clear();
        self.stamps.reached.clear();
        self.stamps.read = self.stamps.last;
    }

    fn registrar(&self) -> Result<Arc<dyn Registrar>, LaunchError> {
        Ok(Arc::new(VirtualRegistrar {
            calls: Arc::clone(&self.calls),
            options: self.options,
            registered: Arc::clone(&self.registered),
            most_registered: Arc::clone(&self.most_registered),
        }))
    }

    fn stamp(&mut self, track: Track) -> Result<Stamp, LaunchError> {
        self.call("setting a stamp")?;
        self.stamps.last += 1;
        let number = self.stamps.last;
        match track {
            Track::Launches => self.streams.push_task(Task::Stamp(number)),
            Track::Copies => self.streams.push_copy(Copy::Stamp(number)),
        }
        Ok(Stamp(number))
    }

    fn read_stamp(&mut self, stamp: Stamp) -> Result<Duration, LaunchError> {
        self.call("reading a stamp")?;
        let reached = self.stamps.reached.remove(&stamp.0);
        self.stamps.read += u64::from(reached.is_some());
        reached.ok_or_else(|| LaunchError::Device {
            what: "reading a stamp".into(),
            reason: "it is not reached".into(),
        })
    }

    fn stamps_from(&self) -> Instant {
        self.opened
    }

    fn gemm_library(&self) -> String {
        match self.options.fickle_gemm {
            Some(_) => "fickle 1.0".into(),
            None => OWN.into(),
        }
    }

    fn choose_gemm(&mut self, _shape: &GemmShape) -> Result<GemmAlgorithm, LaunchError> {
        self.call("choosing a matrix product")?;
        self.choices = self
            .choices
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Ok(GemmAlgorithm(match self.options.fickle_gemm {
            // Steps that a sum over K is taken in.
            Some(_) => ["1", "3", "7", "16", "33"][(self.choices >> 33) as usize % 5].into(),
            None => OWN.into(),
        }))
    }

    fn multiply(
        &mut self,
        algorithm: &GemmAlgorithm,
        shape: &GemmShape,
        call: &GemmCall,
    ) -> Result<(), LaunchError> {
        if self.options.fickle_gemm.is_none() {
            return own_gemm(self, shape, call);
        }
        self.call("multiplying matrices")?;
        let step = algorithm.0.parse().map_err(|_| LaunchError::Device {
            what: "multiplying matrices".into(),
            reason: format!("there is no algorithm {}", algorithm.0),
        })?;
        self.streams.push_task(Task::Multiply {
            step,
            shape: *shape,
            call: *call,
        });
        Ok(())
    }
}

impl VirtualGpu {
    /// The sum over K as partial sums of every `step`-th product, then their sum: rounding differs from step to step, and with
    /// the number of rows.
    fn multiply_by_steps(
        &mut self,
        step: usize,
        shape: &GemmShape,
        call: &GemmCall,
    ) -> Result<(), LaunchError> {
        let (m, n, k) = (shape.m as usize, shape.n as usize, shape.k as usize);
        let x = self.rows(call.x, call.x_stride, m, k, shape.input)?;
        let weight = self.rows(call.weight, call.weight_stride, n, k, shape.input)?;
        let step = step + m / 64;
        let mut row = vec![0.0_f32; n];
        for r in 0..m {
            for (c, out) in row.iter_mut().enumerate() {
                let product = |i: usize| x[r * k + i] * weight[c * k + i];
                let partial = |first| (first..k).step_by(step).map(product).sum::<f32>();
                *out = (0..step.min(k)).map(partial).sum();
            }
            let at = call
                .out
                .offset(r * call.out_stride as usize * shape.output.bytes());
            self.interpreted.upload(at, &narrow(&row, shape.output))?;
        }
        Ok(())
    }

    fn rows(
        &self,
        at: DevicePtr,
        stride: u32,
        rows: usize,
        width: usize,
        dtype: Dtype,
    ) -> Result<Vec<f32>, LaunchError> {
        let mut wide = Vec::with_capacity(rows * width);
        for r in 0..rows {
            let row = at.offset(r * stride as usize * dtype.bytes());
            // What lies behind the real rows of a chunk may never have been written.
            let bytes = self.interpreted.read_raw(row, width * dtype.bytes())?;
            match dtype {
                Dtype::F32 => wide.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)),
                Dtype::F16 => wide.extend(
                    bytemuck::pod_collect_to_vec::<u8, f16>(&bytes)
                        .iter()
                        .map(|v| v.to_f32()),
                ),
                Dtype::BF16 => wide.extend(
                    bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes)
                        .iter()
                        .map(|v| v.to_f32()),
                ),
            }
        }
        Ok(wide)
    }
}

fn narrow(row: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(row).to_vec(),
        Dtype::F16 => row
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        Dtype::BF16 => row
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
    }
}
