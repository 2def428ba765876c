//! `kernels/add.cu`: the residual add where no norm follows.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AddArgs {
    /// `[rows, width]`, in the residual's dtype.
    pub a: DevicePtr,
    /// `[rows, width]`, in the compute dtype.
    pub b: DevicePtr,
    /// `[rows, width]`, in the residual's dtype; may be a.
    pub out: DevicePtr,
    pub a_stride: u64,
    pub b_stride: u64,
    pub out_stride: u64,
    pub rows: u32,
    /// A multiple of 8.
    pub width: u32,
}

/// out = a + b
#[derive(Debug, Clone, Copy)]
pub struct Add {
    pub dtype: Dtype,
    /// The residual stream (a, out) is f32 beside a 16-bit `dtype`.
    pub f32_resid: bool,
}

const THREADS: u32 = 256;

impl Add {
    fn resid_bytes(&self) -> usize {
        if self.f32_resid {
            4
        } else {
            self.dtype.bytes()
        }
    }
}

impl Kernel for Add {
    type Args = AddArgs;

    fn name(&self) -> String {
        match self.dtype {
            Dtype::F32 => "add_f32".into(),
            dtype if self.f32_resid => format!("add_{dtype}_f32resid"),
            dtype => format!("add_{dtype}"),
        }
    }

    fn source(&self) -> &'static str {
        "add"
    }

    fn dims(&self, args: &AddArgs) -> Dims {
        let vectors = args.width / (16 / self.resid_bytes() as u32);
        Dims {
            grid: [args.rows, vectors.div_ceil(THREADS), 1],
            ..Dims::linear(1, THREADS)
        }
    }

    fn check(&self, args: &AddArgs) -> Result<(), String> {
        require::positive("rows", args.rows)?;
        require::positive("width", args.width)?;
        require::multiple("width", args.width.into(), 8)?;
        let (resid, compute) = (self.resid_bytes(), self.dtype.bytes());
        require::vector_rows("a", args.a, args.a_stride, args.width, resid)?;
        require::vector_rows("b", args.b, args.b_stride, args.width, compute)?;
        require::vector_rows("out", args.out, args.out_stride, args.width, resid)
    }
}
