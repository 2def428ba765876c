//! `kernels/embed.cu`: rows of the embedding.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct EmbedArgs {
    /// E `[vocab, width]`, in the weights' dtype, contiguous.
    pub table: DevicePtr,
    /// `[rows]` u32, each below vocab (the kernel does not check).
    pub tokens: DevicePtr,
    /// `[rows, width]`, in the residual's dtype.
    pub out: DevicePtr,
    /// Elements.
    pub out_stride: u64,
    pub rows: u32,
    /// A multiple of 8.
    pub width: u32,
}

/// out\[r\] = E\[tokens\[r\]\]
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// Of the weights.
    pub dtype: Dtype,
    /// The residual stream is f32, whatever the weights.
    pub f32_resid: bool,
}

const THREADS: u32 = 128;

impl Kernel for Embed {
    type Args = EmbedArgs;

    fn name(&self) -> String {
        match self.dtype {
            Dtype::F32 => "embed_f32".into(),
            dtype if self.f32_resid => format!("embed_{dtype}_f32"),
            dtype => format!("embed_{dtype}"),
        }
    }

    fn source(&self) -> &'static str {
        "embed"
    }

    fn dims(&self, args: &EmbedArgs) -> Dims {
        Dims::linear(args.rows, THREADS)
    }

    fn check(&self, args: &EmbedArgs) -> Result<(), String> {
        let resid = if self.f32_resid {
            Dtype::F32
        } else {
            self.dtype
        };
        require::positive("rows", args.rows)?;
        require::positive("width", args.width)?;
        require::multiple("width", args.width.into(), 8)?;
        require::aligned("tokens", args.tokens, 4)?;
        require::aligned("table", args.table, require::VECTOR_BYTES)?;
        require::vector_rows("out", args.out, args.out_stride, args.width, resid.bytes())
    }
}
