//! `kernels/gather.cu`: selected rows and columns in another dtype.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements. Any alignment of source and destination will do; 16 bytes is fast.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct GatherArgs {
    /// `[.., source_stride]` of `from`.
    pub source: DevicePtr,
    /// `[selected]` u32: the source row of each destination row. Null: row i is row i.
    pub rows: DevicePtr,
    /// The columns: `[segment_count]` of [`Segment`](super::Segment), as [`segments`](super::segments) makes them.
    pub segments: DevicePtr,
    /// `[selected, out_stride]` of `to`.
    pub out: DevicePtr,
    pub source_stride: u64,
    pub out_stride: u64,
    pub selected: u32,
    pub segment_count: u32,
}

/// out\[i, at..\] = source\[rows\[i\], first..\], rounded to nearest even.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    pub from: Dtype,
    pub to: Dtype,
}

const THREADS: u32 = 256;
const WARPS: u64 = 8;

impl Kernel for Gather {
    type Args = GatherArgs;

    fn name(&self) -> String {
        format!("gather_{}_{}", self.from, self.to)
    }

    fn source(&self) -> &'static str {
        "gather"
    }

    fn dims(&self, args: &GatherArgs) -> Dims {
        let items = u64::from(args.selected) * u64::from(args.segment_count);
        Dims::linear(items.div_ceil(WARPS) as u32, THREADS)
    }

    fn check(&self, args: &GatherArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("segment_count", args.segment_count)?;
        let items = u64::from(args.selected) * u64::from(args.segment_count);
        if items > i32::MAX as u64 {
            return Err(format!(
                "{} rows of {} segments are more than one launch takes",
                args.selected, args.segment_count
            ));
        }
        require::aligned("source", args.source, self.from.bytes() as u64)?;
        require::aligned("segments", args.segments, 16)?;
        require::aligned("out", args.out, self.to.bytes() as u64)?;
        if !args.rows.is_null() {
            require::aligned("rows", args.rows, 4)?;
        }
        Ok(())
    }
}
