//! `kernels/edit.cu`: edits of an activation in place, with the receipt's norms.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// Strides are in elements. Any alignment of x and v will do; 16 bytes is fast.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct EditArgs {
    /// `[.., x_stride]`, edited in place.
    pub x: DevicePtr,
    /// `[selected]` u32: the rows to edit, none twice. Null: row i is row i.
    pub rows: DevicePtr,
    /// The columns: `[segment_count]` of [`Segment`](super::Segment), as [`segments`](super::segments) makes them, none twice.
    pub segments: DevicePtr,
    /// `[.., width of the edited part]` f32, for `Clamp` f64. Null for `Scale`, and for `Replace` with zeros.
    pub v: DevicePtr,
    /// Squares of the edited part before the edit, summed: `[selected]` f64.
    pub before: DevicePtr,
    /// The same after it.
    pub after: DevicePtr,
    pub x_stride: u64,
    /// 0: one v for all rows.
    pub v_stride: u64,
    pub selected: u32,
    pub segment_count: u32,
    /// Of `Add` and `Scale`.
    pub c: f32,
    /// Of `Clamp`: bounds of the component along v. `lo = hi = 0` projects v out.
    pub lo: f32,
    pub hi: f32,
    pub _pad: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditKind {
    /// x + c·v
    Add,
    /// c·x
    Scale,
    /// v, or 0 without one.
    Replace,
    /// x + (t − p)·v in f64, p = x·v, t = p limited to [lo, hi]. v has unit length.
    Clamp,
}

#[derive(Debug, Clone, Copy)]
pub struct Edit {
    pub kind: EditKind,
    pub dtype: Dtype,
}

const THREADS: u32 = 128;

impl Kernel for Edit {
    type Args = EditArgs;

    fn name(&self) -> String {
        let kind = match self.kind {
            EditKind::Add => "add",
            EditKind::Scale => "scale",
            EditKind::Replace => "replace",
            EditKind::Clamp => "clamp",
        };
        format!("edit_{kind}_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "edit"
    }

    fn dims(&self, args: &EditArgs) -> Dims {
        Dims::linear(args.selected, THREADS)
    }

    fn check(&self, args: &EditArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("segment_count", args.segment_count)?;
        require::aligned("x", args.x, self.dtype.bytes() as u64)?;
        require::aligned("segments", args.segments, 16)?;
        require::aligned("before", args.before, 8)?;
        require::aligned("after", args.after, 8)?;
        if !args.rows.is_null() {
            require::aligned("rows", args.rows, 4)?;
        }
        match self.kind {
            EditKind::Scale => Ok(()),
            EditKind::Replace if args.v.is_null() => Ok(()),
            EditKind::Clamp if args.lo.is_nan() || args.hi.is_nan() || args.lo > args.hi => {
                Err(format!("lo is {} and hi is {}", args.lo, args.hi))
            }
            EditKind::Clamp => require::aligned("v", args.v, 8),
            _ => require::aligned("v", args.v, 4),
        }
    }
}
