//! `kernels/swiglu.cu`: the MLP's activation.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SwigluArgs {
    /// `[rows, width]`
    pub gate: DevicePtr,
    /// `[rows, width]`
    pub up: DevicePtr,
    /// `[rows, width]`
    pub out: DevicePtr,
    pub gate_stride: u64,
    pub up_stride: u64,
    pub out_stride: u64,
    pub rows: u32,
    /// A multiple of 8.
    pub width: u32,
}

/// out = silu(gate) · up
#[derive(Debug, Clone, Copy)]
pub struct Swiglu {
    pub dtype: Dtype,
}

const THREADS: u32 = 256;

impl Kernel for Swiglu {
    type Args = SwigluArgs;

    fn name(&self) -> String {
        format!("swiglu_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "swiglu"
    }

    fn dims(&self, args: &SwigluArgs) -> Dims {
        let vectors = args.width / (16 / self.dtype.bytes() as u32);
        Dims {
            grid: [args.rows, vectors.div_ceil(THREADS), 1],
            ..Dims::linear(1, THREADS)
        }
    }

    fn check(&self, args: &SwigluArgs) -> Result<(), String> {
        require::positive("rows", args.rows)?;
        require::positive("width", args.width)?;
        require::multiple("width", args.width.into(), 8)?;
        for (name, ptr, stride) in [
            ("gate", args.gate, args.gate_stride),
            ("up", args.up, args.up_stride),
            ("out", args.out, args.out_stride),
        ] {
            require::vector_rows(name, ptr, stride, args.width, self.dtype.bytes())?;
        }
        Ok(())
    }
}
