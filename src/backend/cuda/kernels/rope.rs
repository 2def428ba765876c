//! `kernels/rope.cu`: rotary position embedding of queries and keys.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements. A side with 0 heads is left out, and its pointers may be null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RopeArgs {
    /// `[rows, q_heads, head_dim]`
    pub q: DevicePtr,
    /// `[rows, k_heads, head_dim]`
    pub k: DevicePtr,
    /// As q; may be q.
    pub q_out: DevicePtr,
    /// As k; may be k.
    pub k_out: DevicePtr,
    /// `[rows]` u32: the row of cos and sin.
    pub positions: DevicePtr,
    /// `[positions, head_dim / 2]` f32
    pub cos: DevicePtr,
    /// `[positions, head_dim / 2]` f32
    pub sin: DevicePtr,
    pub q_stride: u64,
    pub k_stride: u64,
    pub q_out_stride: u64,
    pub k_out_stride: u64,
    pub rows: u32,
    pub q_heads: u32,
    pub k_heads: u32,
    /// A multiple of 16.
    pub head_dim: u32,
}

/// out = x·cos + rotate_half(x)·sin per head, in Hugging Face's layout.
#[derive(Debug, Clone, Copy)]
pub struct Rope {
    pub dtype: Dtype,
}

const THREADS: u32 = 128;
/// Half a head's vectors must fit the block: 512 elements at f32.
const HEAD_DIM_MAX: u32 = 1024;

impl Kernel for Rope {
    type Args = RopeArgs;

    fn name(&self) -> String {
        format!("rope_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "rope"
    }

    fn dims(&self, args: &RopeArgs) -> Dims {
        Dims::linear(args.rows, THREADS)
    }

    fn check(&self, args: &RopeArgs) -> Result<(), String> {
        require::positive("rows", args.rows)?;
        require::positive("q_heads + k_heads", args.q_heads + args.k_heads)?;
        require::positive("head_dim", args.head_dim)?;
        require::multiple("head_dim", args.head_dim.into(), 16)?;
        require::at_most("head_dim", args.head_dim, HEAD_DIM_MAX)?;
        require::aligned("positions", args.positions, 4)?;
        require::aligned("cos", args.cos, require::VECTOR_BYTES)?;
        require::aligned("sin", args.sin, require::VECTOR_BYTES)?;
        for (name, ptr, stride, heads) in [
            ("q", args.q, args.q_stride, args.q_heads),
            ("q_out", args.q_out, args.q_out_stride, args.q_heads),
            ("k", args.k, args.k_stride, args.k_heads),
            ("k_out", args.k_out, args.k_out_stride, args.k_heads),
        ] {
            if heads > 0 {
                let width = heads * args.head_dim;
                require::vector_rows(name, ptr, stride, width, self.dtype.bytes())?;
            }
        }
        Ok(())
    }
}
