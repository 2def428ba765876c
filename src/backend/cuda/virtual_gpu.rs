//! A [`Driver`] without a GPU: kernels run in the interpreter, and everything that a GPU may do late is done as late as it may.
//! Copies out happen when their fence is waited for, so memory that is used again too early gives wrong rows, as it would on
//! a device, only every time. Calls can be made to fail, memory to be short, and matrix products to come from a library whose
//! every algorithm sums in another order.

use std::collections::VecDeque;

use half::{bf16, f16};

use super::driver::{Driver, Fence, Pitched};
use super::gemm::{GemmAlgorithm, GemmCall, GemmShape, OWN, own_gemm};
use super::interpreted::{Interpretation, Interpreted};
use super::launch::{DevicePtr, Dims, Dtype, LaunchError, Launcher};

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
}

/// A device that is none.
pub struct VirtualGpu {
    interpreted: Interpreted,
    options: VirtualGpuOptions,
    allocated: usize,
    sizes: Vec<(DevicePtr, usize)>,
    copies: VecDeque<CopyOut>,
    fences: u64,
    calls: u64,
    choices: u64,
}

struct CopyOut {
    /// The first fence after it.
    until: Fence,
    from: DevicePtr,
    /// Address in this process.
    to: usize,
    bytes: usize,
}

impl VirtualGpu {
    pub fn new(options: VirtualGpuOptions) -> VirtualGpu {
        VirtualGpu {
            interpreted: Interpreted::new(options.how),
            options,
            allocated: 0,
            sizes: Vec::new(),
            copies: VecDeque::new(),
            fences: 0,
            calls: 0,
            choices: options.fickle_gemm.unwrap_or(0),
        }
    }

    /// Calls so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Bytes allocated now.
    pub fn allocated(&self) -> usize {
        self.allocated
    }

    fn call(&mut self, what: &str) -> Result<(), LaunchError> {
        let number = self.calls;
        self.calls += 1;
        if self.options.fail_at == Some(number) {
            return Err(LaunchError::Device {
                what: what.to_owned(),
                reason: format!("call {number} was made to fail"),
            });
        }
        Ok(())
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
        self.sizes.push((at, bytes));
        Ok(at)
    }

    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError> {
        self.interpreted.free(ptr)?;
        if let Some(place) = self.sizes.iter().position(|&(at, _)| at == ptr) {
            self.allocated -= self.sizes.swap_remove(place).1;
        }
        Ok(())
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.call("copying to the device")?;
        self.interpreted.upload(to, bytes)
    }

    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError> {
        self.call("copying from the device")?;
        self.interpreted.download(from, into)
    }

    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError> {
        self.call("filling device memory")?;
        self.interpreted.fill(at, value, bytes)
    }

    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError> {
        self.call("launching a kernel")?;
        self.interpreted.launch_raw(source, name, dims, args)
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        self.call("waiting for the device")
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
        let mut row = vec![0; row_bytes];
        for r in 0..rows {
            self.interpreted
                .download(from.at.offset(r * from.pitch), &mut row)?;
            self.interpreted.upload(to.at.offset(r * to.pitch), &row)?;
        }
        Ok(())
    }

    unsafe fn copy_out(
        &mut self,
        from: DevicePtr,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LaunchError> {
        self.call("copying from the device")?;
        self.copies.push_back(CopyOut {
            until: Fence(self.fences + 1),
            from,
            to: to as usize,
            bytes,
        });
        Ok(())
    }

    fn fence(&mut self) -> Result<Fence, LaunchError> {
        self.call("setting a fence")?;
        self.fences += 1;
        Ok(Fence(self.fences))
    }

    fn wait(&mut self, fence: Fence) -> Result<(), LaunchError> {
        let called = self.call("waiting for a fence");
        while let Some(copy) = self.copies.front()
            && copy.until <= fence
        {
            // SAFETY: `copy_out`'s caller keeps the memory good and to us alone until a fence after it was waited for.
            let into = unsafe { std::slice::from_raw_parts_mut(copy.to as *mut u8, copy.bytes) };
            let done = self.interpreted.download(copy.from, into);
            self.copies.pop_front();
            done?;
        }
        called
    }

    fn drain(&mut self) {
        self.copies.clear();
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
        self.multiply_by_steps(step, shape, call)
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
