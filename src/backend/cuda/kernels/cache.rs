//! `kernels/cache.cu`: keys and values of a batch's rows into the caches of their sequences.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Kernel};
use super::require;

/// In place of a slot: the row is not kept.
pub const NOWHERE: u32 = u32::MAX;

/// Strides and sizes are in vectors of 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CacheRowsArgs {
    /// `[rows, k_stride]`
    pub k: DevicePtr,
    /// `[rows, v_stride]`
    pub v: DevicePtr,
    /// `[.., vectors]`
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    /// u32 `[rows]`: rows of the caches, none twice, or [`NOWHERE`].
    pub slots: DevicePtr,
    pub k_stride: u64,
    pub v_stride: u64,
    pub rows: u32,
    pub vectors: u32,
}

/// Rows of any element type.
#[derive(Debug, Clone, Copy)]
pub struct CacheRows;

impl Kernel for CacheRows {
    type Args = CacheRowsArgs;

    fn name(&self) -> String {
        "cache_rows".into()
    }

    fn source(&self) -> &'static str {
        "cache"
    }

    fn dims(&self, args: &CacheRowsArgs) -> Dims {
        Dims::linear(args.rows, 128)
    }

    fn check(&self, args: &CacheRowsArgs) -> Result<(), String> {
        require::positive("rows", args.rows)?;
        require::positive("vectors", args.vectors)?;
        for (name, ptr) in [
            ("k", args.k),
            ("v", args.v),
            ("k_cache", args.k_cache),
            ("v_cache", args.v_cache),
        ] {
            require::aligned(name, ptr, require::VECTOR_BYTES)?;
        }
        require::aligned("slots", args.slots, 4)
    }
}
