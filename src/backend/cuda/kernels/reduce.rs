//! `kernels/reduce.cu`: reductions of selected rows before the copy. Outputs are f32.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

/// What all reductions need of their input.
fn check_source(
    dtype: Dtype,
    source: DevicePtr,
    rows: DevicePtr,
    stride: u64,
    width: u32,
) -> Result<(), String> {
    require::positive("width", width)?;
    require::aligned("source", source, dtype.bytes() as u64)?;
    if !rows.is_null() {
        require::aligned("rows", rows, 4)?;
    }
    if stride < u64::from(width) {
        return Err(format!(
            "source's row stride is {stride}, less than its width {width}"
        ));
    }
    Ok(())
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct MeanArgs {
    /// `[.., source_stride]`
    pub source: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub rows: DevicePtr,
    /// `[samples + 1]` u32: where each sample's rows begin among the selected ones of this launch. No sample is empty.
    pub cu_rows: DevicePtr,
    /// `[samples]` u32: rows of each sample in all launches.
    pub counts: DevicePtr,
    /// `[8, width]` f64: what the launch before left in `carry_out`, if `earlier` is not 0.
    pub carry_in: DevicePtr,
    /// `[8, width]` f64: sums of the last sample, if it goes on in the next launch. Null if none does.
    pub carry_out: DevicePtr,
    /// `[samples, width]` f32; the row of a sample that goes on in the next launch is not written.
    pub out: DevicePtr,
    /// Elements.
    pub source_stride: u64,
    pub samples: u32,
    pub width: u32,
    /// Rows of sample 0 that earlier launches took.
    pub earlier: u32,
    pub _pad: u32,
}

/// The mean of each sample's selected rows.
#[derive(Debug, Clone, Copy)]
pub struct Mean {
    pub dtype: Dtype,
}

impl Kernel for Mean {
    type Args = MeanArgs;

    fn name(&self) -> String {
        format!("reduce_mean_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "reduce"
    }

    fn dims(&self, args: &MeanArgs) -> Dims {
        let columns = 32 * (16 / self.dtype.bytes() as u32);
        Dims {
            grid: [args.width.div_ceil(columns), args.samples, 1],
            ..Dims::linear(1, 256)
        }
    }

    fn check(&self, args: &MeanArgs) -> Result<(), String> {
        require::positive("samples", args.samples)?;
        require::at_most("samples", args.samples, 65535)?;
        require::aligned("cu_rows", args.cu_rows, 4)?;
        require::aligned("counts", args.counts, 4)?;
        require::aligned("out", args.out, 4)?;
        if args.earlier > 0 {
            require::aligned("carry_in", args.carry_in, 8)?;
        }
        if !args.carry_out.is_null() {
            require::aligned("carry_out", args.carry_out, 8)?;
            if args.carry_out == args.carry_in {
                return Err("carry_in and carry_out are one buffer".into());
            }
        }
        check_source(
            self.dtype,
            args.source,
            args.rows,
            args.source_stride,
            args.width,
        )
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct DotArgs {
    /// `[.., source_stride]`
    pub source: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub rows: DevicePtr,
    /// `[direction_count, width]` f32
    pub directions: DevicePtr,
    /// `[selected, direction_count]` f32
    pub out: DevicePtr,
    /// Elements.
    pub source_stride: u64,
    pub selected: u32,
    pub width: u32,
    pub direction_count: u32,
    pub _pad: u32,
}

/// Projection of each row on each direction.
#[derive(Debug, Clone, Copy)]
pub struct Dot {
    pub dtype: Dtype,
}

impl Kernel for Dot {
    type Args = DotArgs;

    fn name(&self) -> String {
        format!("reduce_dot_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "reduce"
    }

    fn dims(&self, args: &DotArgs) -> Dims {
        Dims {
            grid: [args.selected.div_ceil(16), args.direction_count, 1],
            ..Dims::linear(1, 128)
        }
    }

    fn check(&self, args: &DotArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("direction_count", args.direction_count)?;
        require::at_most("direction_count", args.direction_count, 65535)?;
        require::aligned("directions", args.directions, 4)?;
        require::aligned("out", args.out, 4)?;
        check_source(
            self.dtype,
            args.source,
            args.rows,
            args.source_stride,
            args.width,
        )
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct NormArgs {
    /// `[.., source_stride]`
    pub source: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub rows: DevicePtr,
    /// `[selected]` f32
    pub out: DevicePtr,
    /// Elements.
    pub source_stride: u64,
    pub selected: u32,
    pub width: u32,
}

/// The L2 norm of each row.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    pub dtype: Dtype,
}

impl Kernel for Norm {
    type Args = NormArgs;

    fn name(&self) -> String {
        format!("reduce_norm_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "reduce"
    }

    fn dims(&self, args: &NormArgs) -> Dims {
        Dims::linear(args.selected, 128)
    }

    fn check(&self, args: &NormArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::aligned("out", args.out, 4)?;
        check_source(
            self.dtype,
            args.source,
            args.rows,
            args.source_stride,
            args.width,
        )
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct TopKArgs {
    /// `[.., source_stride]`
    pub source: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub rows: DevicePtr,
    /// `[selected, k]` f32
    pub values: DevicePtr,
    /// `[selected, k]` u32
    pub indices: DevicePtr,
    /// Elements.
    pub source_stride: u64,
    pub selected: u32,
    pub width: u32,
    /// At most [`K_MAX`] and `width`.
    pub k: u32,
    pub _pad: u32,
}

/// The most components that [`TopK`] finds.
pub const K_MAX: u32 = 1024;

/// The largest k components of each row, largest first, ties by the lower index.
#[derive(Debug, Clone, Copy)]
pub struct TopK {
    pub dtype: Dtype,
    /// Values are log-probabilities: the row's log-softmax.
    pub log_prob: bool,
}

impl Kernel for TopK {
    type Args = TopKArgs;

    fn name(&self) -> String {
        if self.log_prob {
            format!("reduce_log_prob_top_k_{}", self.dtype)
        } else {
            format!("reduce_top_k_{}", self.dtype)
        }
    }

    fn source(&self) -> &'static str {
        "reduce"
    }

    fn dims(&self, args: &TopKArgs) -> Dims {
        Dims::linear(args.selected, 512)
    }

    fn check(&self, args: &TopKArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("k", args.k)?;
        require::at_most("k", args.k, K_MAX.min(args.width))?;
        require::aligned("values", args.values, 4)?;
        require::aligned("indices", args.indices, 4)?;
        check_source(
            self.dtype,
            args.source,
            args.rows,
            args.source_stride,
            args.width,
        )
    }
}
