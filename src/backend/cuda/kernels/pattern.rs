//! `kernels/pattern.cu`: attention by way of its pattern, for rows and heads whose pattern is edited.

use bytemuck::{Pod, Zeroable};

use super::attention::{MAX_WINDOW, check_heads};
use super::require;
use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// Rows that a block of [`PatternValues`] takes.
const ROWS: u32 = 8;

/// Strides are in elements, from row to row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PatternValuesArgs {
    /// f32 `[heads_kept, selected, n]`
    pub pattern: DevicePtr,
    /// `[capacity, n_kv_heads, h]`: the value at position p lies in slot p mod capacity.
    pub v: DevicePtr,
    /// `[.., n_heads, h]`, written at the selected rows and heads.
    pub z: DevicePtr,
    /// [`PatternRow`]s `[selected]`.
    pub rows: DevicePtr,
    /// u32 `[heads_kept]`: query heads.
    pub heads: DevicePtr,
    pub v_stride: u32,
    pub z_stride: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub selected: u32,
    pub heads_kept: u32,
    /// Tokens of the sample.
    pub n: u32,
    /// Slots of v.
    pub capacity: u32,
    /// Keys that a query sees at most, its own included; 0: all.
    pub window: u32,
    pub _pad: u32,
}

/// A selected query row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct PatternRow {
    /// In its sample; below n.
    pub position: u32,
    /// Row of z.
    pub z_row: u32,
}

/// z = P·V for chosen query rows and heads of one sample.
#[derive(Debug, Clone, Copy)]
pub struct PatternValues {
    pub dtype: Dtype,
    /// One of [`HEAD_DIMS`](super::attention::HEAD_DIMS).
    pub head_dim: u32,
}

impl Kernel for PatternValues {
    type Args = PatternValuesArgs;

    fn name(&self) -> String {
        format!("pattern_values_{}_h{}", self.dtype, self.head_dim)
    }

    fn source(&self) -> &'static str {
        "pattern"
    }

    fn dims(&self, args: &PatternValuesArgs) -> Dims {
        Dims::linear(args.heads_kept * args.selected.div_ceil(ROWS), 128)
    }

    fn check(&self, args: &PatternValuesArgs) -> Result<(), String> {
        check_heads(self.head_dim, args.n_heads, args.n_kv_heads)?;
        for (name, size) in [
            ("selected", args.selected),
            ("heads_kept", args.heads_kept),
            ("n", args.n),
            ("capacity", args.capacity),
        ] {
            require::positive(name, size)?;
        }
        require::at_most("window", args.window, MAX_WINDOW)?;
        require::aligned("pattern", args.pattern, 4)?;
        require::aligned("v", args.v, self.dtype.bytes() as u64)?;
        require::aligned("z", args.z, self.dtype.bytes() as u64)?;
        require::aligned("rows", args.rows, 8)?;
        require::aligned("heads", args.heads, 4)
    }
}

/// Strides are in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PatternOfLastArgs {
    /// `[n_heads, h]`, after RoPE.
    pub q: DevicePtr,
    /// `[capacity, n_kv_heads, h]`: the key at position p lies in slot p mod capacity.
    pub k: DevicePtr,
    /// f32 `[heads_kept, n]`
    pub pattern: DevicePtr,
    /// u32 `[heads_kept]`: query heads.
    pub heads: DevicePtr,
    /// From slot to slot.
    pub k_stride: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub heads_kept: u32,
    /// Tokens so far, the query's own included.
    pub n: u32,
    /// Slots of k.
    pub capacity: u32,
    /// Keys that the query sees at most, its own included; 0: all.
    pub window: u32,
    /// Of the scores: 1/√h.
    pub scale: f32,
}

/// The pattern of the newest query of a sequence against its cache.
#[derive(Debug, Clone, Copy)]
pub struct PatternOfLast {
    pub dtype: Dtype,
    /// As [`PatternValues::head_dim`].
    pub head_dim: u32,
}

impl Kernel for PatternOfLast {
    type Args = PatternOfLastArgs;

    fn name(&self) -> String {
        format!("pattern_of_last_{}_h{}", self.dtype, self.head_dim)
    }

    fn source(&self) -> &'static str {
        "pattern"
    }

    fn dims(&self, args: &PatternOfLastArgs) -> Dims {
        Dims::linear(args.heads_kept, 256)
    }

    fn check(&self, args: &PatternOfLastArgs) -> Result<(), String> {
        check_heads(self.head_dim, args.n_heads, args.n_kv_heads)?;
        for (name, size) in [
            ("heads_kept", args.heads_kept),
            ("n", args.n),
            ("capacity", args.capacity),
        ] {
            require::positive(name, size)?;
        }
        let kv_width = args.n_kv_heads * self.head_dim;
        let bytes = self.dtype.bytes();
        require::vector_rows("k", args.k, args.k_stride.into(), kv_width, bytes)?;
        require::aligned("q", args.q, bytes as u64)?;
        require::aligned("pattern", args.pattern, 4)?;
        require::aligned("heads", args.heads, 4)
    }
}
