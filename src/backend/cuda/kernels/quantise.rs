//! `kernels/quantise.cu`: selected rows in 8 bits, with the bytes of [`Compact::quantise`].

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;
use crate::compact::{Code, Compact, WIDEST};

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct QuantiseArgs {
    /// `[.., source_stride]` of `dtype`.
    pub source: DevicePtr,
    /// `[selected]` u32: the source row of each row. Null: row i is row i.
    pub rows: DevicePtr,
    /// u8 `[selected, width]`
    pub codes: DevicePtr,
    /// u8 `[selected, side_bytes]`, as [`Compact::side_bytes`] counts them.
    pub side: DevicePtr,
    /// In elements.
    pub source_stride: u64,
    pub selected: u32,
    pub width: u32,
}

/// Codes and side rows of some rows.
#[derive(Debug, Clone, Copy)]
pub struct Quantise {
    /// Of the rows.
    pub dtype: Dtype,
    pub code: Code,
}

impl Quantise {
    /// The form that it brings rows of `width` numbers into.
    pub fn compact(&self, width: usize) -> Compact {
        Compact {
            code: self.code,
            width,
        }
    }
}

const THREADS: u32 = 256;
const WARPS: u32 = 8;

impl Kernel for Quantise {
    type Args = QuantiseArgs;

    fn name(&self) -> String {
        let code = match self.code {
            Code::F8E4M3 => "e4m3",
            Code::I8 => "int8",
        };
        format!("quantise_{}_{code}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "quantise"
    }

    fn dims(&self, args: &QuantiseArgs) -> Dims {
        Dims::linear(args.selected.div_ceil(WARPS), THREADS)
    }

    fn check(&self, args: &QuantiseArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("width", args.width)?;
        require::at_most("width", args.width, WIDEST as u32)?;
        require::aligned("source", args.source, self.dtype.bytes() as u64)?;
        require::given("codes", args.codes)?;
        require::aligned("side", args.side, 2)?;
        if !args.rows.is_null() {
            require::aligned("rows", args.rows, 4)?;
        }
        Ok(())
    }
}
