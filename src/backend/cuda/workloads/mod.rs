//! What each kernel is asked to do in a forward pass: every entry point once, with arguments at a model's shapes and what
//! bounds it. The microbenchmark times these, its dry run runs them tiny, and the kernel report takes shared memory and bounds
//! from them.

mod attention;
mod linear;
mod moments;
mod readout;
mod rows;

use super::launch::{Boxes, DevicePtr, Dims, Dtype, Kernel, LaunchError, Launcher, TensorMap};

/// A model's and a batch's sizes.
#[derive(Debug, Clone, Copy)]
pub struct Shapes {
    /// Rows of the batch.
    pub tokens: u32,
    /// Tokens of each sample; divides `tokens`.
    pub sample: u32,
    /// Hidden size.
    pub d: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Width of the MLP.
    pub f: u32,
    pub vocab: u32,
    /// Rows of the batch that logits are wanted of.
    pub logit_rows: u32,
    /// Query rows of each sample that attention patterns are wanted of.
    pub pattern_rows: u32,
    /// Sequences that are decoded together.
    pub sequences: u32,
    /// Tokens in each one's cache.
    pub cached: u32,
}

/// Mistral-7B: a batch of 8,192 tokens, four samples of 2,048.
pub const MISTRAL_7B: Shapes = Shapes {
    tokens: 8192,
    sample: 2048,
    d: 4096,
    heads: 32,
    kv_heads: 8,
    f: 14336,
    vocab: 32000,
    logit_rows: 256,
    pattern_rows: 64,
    sequences: 32,
    cached: 2048,
};

/// Small enough for the interpreter.
pub const TINY: Shapes = Shapes {
    tokens: 20,
    sample: 10,
    d: 64,
    heads: 2,
    kv_heads: 1,
    f: 72,
    vocab: 104,
    logit_rows: 2,
    pattern_rows: 2,
    sequences: 2,
    cached: 10,
};

/// The units that do a kernel's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Units {
    TensorCores,
    Fp32,
}

/// What a launch cannot do without.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Cost {
    /// Every input read from memory once, every output written once.
    pub bytes: u64,
    pub flops: u64,
    pub units: Units,
}

impl Cost {
    /// A kernel whose arithmetic does not count.
    fn bytes(bytes: u64) -> Cost {
        Cost {
            bytes,
            flops: 0,
            units: Units::Fp32,
        }
    }

    /// The least time that a GPU of these rates (bytes and FLOPs a second) needs.
    pub fn seconds(&self, rates: &Rates) -> f64 {
        let flops = match self.units {
            Units::TensorCores => rates.tensor_flops,
            Units::Fp32 => rates.fp32_flops,
        };
        (self.bytes as f64 / rates.bytes).max(self.flops as f64 / flops)
    }
}

/// What a GPU does at most in a second.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Rates {
    /// Read and written, together.
    pub bytes: f64,
    /// 16-bit products, summed in f32.
    pub tensor_flops: f64,
    pub fp32_flops: f64,
}

/// H100 SXM: measured copies and 8192³ products in bf16; f32 as specified.
pub const H100: Rates = Rates {
    bytes: 3.0e12,
    tensor_flops: 798e12,
    fp32_flops: 66.9e12,
};

/// One kernel, ready to launch.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its part in the forward pass, with its size.
    pub what: String,
    pub source: &'static str,
    pub kernel: String,
    pub dims: Dims,
    pub args: Vec<u8>,
    pub cost: Cost,
}

impl Workload {
    fn new<K: Kernel>(
        what: impl Into<String>,
        kernel: &K,
        args: &K::Args,
        cost: Cost,
    ) -> Result<Workload, LaunchError> {
        let name = kernel.name();
        kernel.check(args).map_err(|what| LaunchError::Arguments {
            kernel: name.clone(),
            what,
        })?;
        Ok(Workload {
            what: what.into(),
            source: kernel.source(),
            kernel: name,
            dims: kernel.dims(args),
            args: bytemuck::bytes_of(args).to_vec(),
            cost,
        })
    }

    pub fn launch(&self, on: &mut impl Launcher) -> Result<(), LaunchError> {
        on.launch_raw(self.source, &self.kernel, self.dims, &self.args)
    }
}

type Build = Box<dyn Fn(&Shapes, &mut Memory) -> Result<Workload, LaunchError>>;

/// Calls `each` with every workload that this GPU can run in turn, its memory allocated and filled, and given back afterwards.
pub fn for_each<L: Launcher>(
    shapes: &Shapes,
    on: &mut L,
    mut each: impl FnMut(&Workload, &mut L) -> Result<(), LaunchError>,
) -> Result<(), LaunchError> {
    let mut builds: Vec<Build> = Vec::new();
    linear::add(&mut builds);
    attention::add(&mut builds);
    rows::add(&mut builds);
    readout::add(&mut builds);
    moments::add(&mut builds);
    for build in builds {
        let mut memory = Memory {
            on: &mut *on,
            allocated: Vec::new(),
        };
        let built = build(shapes, &mut memory);
        let allocated = memory.allocated;
        match built {
            // Another GPU's kernel.
            Err(LaunchError::NotOnThisGpu { .. }) => {}
            built => each(&built?, on)?,
        }
        for ptr in allocated {
            on.free(ptr)?;
        }
    }
    Ok(())
}

/// Device memory of one workload.
struct Memory<'a> {
    on: &'a mut dyn Launcher,
    allocated: Vec<DevicePtr>,
}

impl Memory<'_> {
    fn output(&mut self, bytes: u64) -> Result<DevicePtr, LaunchError> {
        let ptr = self.on.alloc(bytes as usize)?;
        self.allocated.push(ptr);
        Ok(ptr)
    }

    /// Numbers between −1 and 1 that do not repeat within a tile: on equal ones a GPU draws less power and runs faster
    /// than it will on real activations.
    fn noise(&mut self, dtype: Dtype, elements: u64) -> Result<DevicePtr, LaunchError> {
        const PIECE: u64 = 1 << 19;
        let bytes = elements * dtype.bytes() as u64;
        let ptr = self.output(bytes)?;
        let piece = noise(dtype, elements.min(PIECE));
        let mut at = 0;
        while at < bytes {
            let len = piece.len().min((bytes - at) as usize);
            self.on.upload(ptr.offset(at as usize), &piece[..len])?;
            at += len as u64;
        }
        Ok(ptr)
    }

    fn table<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<DevicePtr, LaunchError> {
        let bytes = bytemuck::cast_slice(values);
        let ptr = self.output(bytes.len() as u64)?;
        self.on.upload(ptr, bytes)?;
        Ok(ptr)
    }
}

fn noise(dtype: Dtype, elements: u64) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        ((state >> 40) as f32) / (1 << 23) as f32 - 1.0
    };
    (0..elements)
        .flat_map(|_| {
            let (x, bytes) = (next(), dtype.bytes());
            // The upper half of an f32 is a bf16.
            let bits = match dtype {
                Dtype::F32 => x.to_bits(),
                Dtype::BF16 => x.to_bits() >> 16,
                Dtype::F16 => half::f16::from_f32(x).to_bits().into(),
            };
            bits.to_le_bytes().into_iter().take(bytes)
        })
        .collect()
}

/// A launcher that does nothing, for when only dims and costs are wanted.
#[derive(Debug, Default)]
pub struct Nowhere {
    allocated: u64,
}

impl Launcher for Nowhere {
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError> {
        self.allocated += 256;
        let ptr = DevicePtr(self.allocated);
        self.allocated += (bytes as u64).next_multiple_of(256);
        Ok(ptr)
    }

    fn free(&mut self, _: DevicePtr) -> Result<(), LaunchError> {
        Ok(())
    }

    fn upload(&mut self, _: DevicePtr, _: &[u8]) -> Result<(), LaunchError> {
        Ok(())
    }

    fn download(&mut self, _: DevicePtr, _: &mut [u8]) -> Result<(), LaunchError> {
        Ok(())
    }

    fn fill(&mut self, _: DevicePtr, _: u8, _: usize) -> Result<(), LaunchError> {
        Ok(())
    }

    fn launch_raw(&mut self, _: &str, _: &str, _: Dims, _: &[u8]) -> Result<(), LaunchError> {
        Ok(())
    }

    fn tensor_map(&mut self, _: &Boxes) -> Result<TensorMap, LaunchError> {
        Ok(bytemuck::Zeroable::zeroed())
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        Ok(())
    }
}

/// Sizes as text: `8192×4096`.
fn by(rows: u32, width: u32) -> String {
    format!("{rows}×{width}")
}

fn product(rows: u32, width: u32) -> u64 {
    u64::from(rows) * u64::from(width)
}
