//! `kernels/rms_norm.cu`: residual add and RMSNorm.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RmsNormArgs {
    /// `[rows, width]`, in the residual's dtype.
    pub x: DevicePtr,
    /// `[rows, width]`, in the compute dtype: added to x first. Null: nothing is.
    pub y: DevicePtr,
    /// `[width]`, in the compute dtype.
    pub gain: DevicePtr,
    /// round(x + y) `[rows, width]`, in the residual's dtype; may be x. Null: not written.
    pub resid_out: DevicePtr,
    /// sqrt(mean(resid²) + eps) `[rows]` f32. Null: not written.
    pub scale: DevicePtr,
    /// round(resid / scale) `[rows, width]`, in the compute dtype. Null: not written.
    pub normalized: DevicePtr,
    /// round(normalized · gain) `[rows, width]`, in the compute dtype.
    pub out: DevicePtr,
    pub x_stride: u64,
    pub y_stride: u64,
    pub resid_stride: u64,
    pub normalized_stride: u64,
    pub out_stride: u64,
    pub rows: u32,
    /// A multiple of 8, at most [`WIDTH_MAX`].
    pub width: u32,
    pub eps: f32,
    pub _pad: u32,
}

/// resid = x + y, out = resid / sqrt(mean(resid²) + eps) · gain
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// What is computed in: y, gain, normalized and out.
    pub dtype: Dtype,
    /// The residual stream (x, resid_out) is f32 beside a 16-bit `dtype`.
    pub f32_resid: bool,
}

/// The widest row that a block keeps in registers.
pub const WIDTH_MAX: u32 = 16384;
const THREADS: u32 = 256;

impl Kernel for RmsNorm {
    type Args = RmsNormArgs;

    fn name(&self) -> String {
        match self.dtype {
            Dtype::F32 => "rms_norm_f32".into(),
            dtype if self.f32_resid => format!("rms_norm_{dtype}_f32resid"),
            dtype => format!("rms_norm_{dtype}"),
        }
    }

    fn source(&self) -> &'static str {
        "rms_norm"
    }

    fn dims(&self, args: &RmsNormArgs) -> Dims {
        Dims::linear(args.rows, THREADS)
    }

    fn check(&self, args: &RmsNormArgs) -> Result<(), String> {
        let compute = self.dtype.bytes();
        let resid = if self.f32_resid { 4 } else { compute };
        let rows = |name, ptr: DevicePtr, stride, bytes, optional| {
            if optional && ptr.is_null() {
                return Ok(());
            }
            require::vector_rows(name, ptr, stride, args.width, bytes)
        };
        require::positive("rows", args.rows)?;
        require::positive("width", args.width)?;
        require::multiple("width", args.width.into(), 8)?;
        require::at_most("width", args.width, WIDTH_MAX)?;
        require::aligned("gain", args.gain, require::VECTOR_BYTES)?;
        rows("x", args.x, args.x_stride, resid, false)?;
        rows("y", args.y, args.y_stride, compute, true)?;
        rows("resid_out", args.resid_out, args.resid_stride, resid, true)?;
        rows(
            "normalized",
            args.normalized,
            args.normalized_stride,
            compute,
            true,
        )?;
        rows("out", args.out, args.out_stride, compute, false)
    }
}
