//! `kernels/gate_up.cu`: out\[M, F\] = silu(x\[M, K\] · gate\[F, K\]ᵀ) · (x · up\[F, K\]ᵀ), on GPUs of compute capability 9.0.

use bytemuck::{Pod, Zeroable};

use super::require;
use crate::backend::cuda::launch::{
    Boxes, DevicePtr, Dims, Dtype, Kernel, LaunchError, Launcher, TensorMap,
};

/// Arguments of every entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GateUpArgs {
    /// `[m, k]`
    pub x: TensorMap,
    /// `[2·f, k]`: gate, then up.
    pub weight: TensorMap,
    /// `[m, f]`
    pub out: DevicePtr,
    /// Elements from row to row, at least `f`.
    pub out_stride: u64,
    /// Rows of `x` and of `out`; at least 1.
    pub m: u32,
    /// Rows of gate and of up, columns of `out`; a multiple of 8.
    pub f: u32,
    /// Columns of `x` and of `weight`; a multiple of 8.
    pub k: u32,
    pub _pad: [u32; 25],
}

/// Where the operands lie. Strides are in elements, from row to row; gate and up are the halves of one weight, rows end to end.
#[derive(Clone, Copy, Debug)]
pub struct GateUpCall {
    pub x: DevicePtr,
    pub weight: DevicePtr,
    pub out: DevicePtr,
    pub x_stride: u32,
    pub out_stride: u32,
    pub m: u32,
    pub f: u32,
    pub k: u32,
}

/// f16 or bf16.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GateUp {
    pub dtype: Dtype,
    /// Blocks that go through the tiles, if there are as many; the bits do not hang on it.
    pub blocks: u32,
}

/// As in `gate_up.cu`: a block's tile of `out`, and the rows and columns of a box.
const TILE: u32 = 128;
const BOX_COLUMNS: u32 = 64;
const THREADS: u32 = 384;
/// Four stages of 48 KiB, eight warps' corners of 16 rows of 136 elements, eight mbarriers.
const SHARED: u32 = 4 * (48 << 10) + 8 * 16 * 136 * 2 + 8 * 8;

/// Multiprocessors of an H100 SXM.
const H100_MULTIPROCESSORS: u32 = 132;

impl GateUp {
    /// A block per multiprocessor of an H100. With fewer of them, blocks wait for each other, and nothing else changes.
    pub fn new(dtype: Dtype) -> GateUp {
        GateUp {
            dtype,
            blocks: H100_MULTIPROCESSORS,
        }
    }

    /// The arguments, with the tensor maps that `on` makes.
    ///
    /// # Errors
    /// A GPU without tensor copies, and operands that they cannot reach.
    pub fn args(
        &self,
        on: &mut (impl Launcher + ?Sized),
        call: &GateUpCall,
    ) -> Result<GateUpArgs, LaunchError> {
        let boxes = |at, rows, row_stride| Boxes {
            at,
            rows,
            columns: call.k,
            row_stride,
            dtype: self.dtype,
            box_rows: TILE,
            box_columns: BOX_COLUMNS,
        };
        Ok(GateUpArgs {
            x: on.tensor_map(&boxes(call.x, call.m, call.x_stride))?,
            weight: on.tensor_map(&boxes(call.weight, 2 * call.f, call.k))?,
            out: call.out,
            out_stride: call.out_stride.into(),
            m: call.m,
            f: call.f,
            k: call.k,
            _pad: [0; 25],
        })
    }
}

impl Kernel for GateUp {
    type Args = GateUpArgs;

    fn name(&self) -> String {
        format!("gate_up_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "gate_up"
    }

    fn dims(&self, args: &GateUpArgs) -> Dims {
        let tiles = args.m.div_ceil(TILE) * args.f.div_ceil(TILE);
        Dims {
            grid: [tiles.min(self.blocks), 1, 1],
            block: [THREADS, 1, 1],
            dynamic_shared: SHARED,
        }
    }

    fn check(&self, args: &GateUpArgs) -> Result<(), String> {
        if self.dtype == Dtype::F32 {
            return Err("no instance for f32".into());
        }
        for (name, size) in [("m", args.m), ("f", args.f), ("k", args.k)] {
            require::positive(name, size)?;
        }
        require::positive("the number of blocks", self.blocks)?;
        require::multiple("f", args.f.into(), 8)?;
        require::multiple("k", args.k.into(), 8)?;
        require::vector_rows("out", args.out, args.out_stride, args.f, self.dtype.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> GateUpArgs {
        GateUpArgs {
            out: DevicePtr(768),
            out_stride: 144,
            m: 129,
            f: 136,
            k: 40,
            ..GateUpArgs::zeroed()
        }
    }

    #[test]
    fn the_grid_has_no_more_blocks_than_tiles() {
        let blocks = |blocks| {
            let kernel = GateUp {
                dtype: Dtype::BF16,
                blocks,
            };
            kernel.dims(&args()).grid[0]
        };
        assert_eq!(blocks(132), 4);
        assert_eq!(blocks(3), 3);
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused_by_name() {
        let kernel = GateUp::new(Dtype::BF16);
        let refused = |change: fn(&mut GateUpArgs)| {
            let mut args = args();
            change(&mut args);
            kernel.check(&args).unwrap_err()
        };
        assert!(kernel.check(&args()).is_ok());
        assert_eq!(refused(|a| a.m = 0), "m is 0: there is nothing to launch");
        assert_eq!(refused(|a| a.f = 132), "f is 132, not a multiple of 8");
        assert_eq!(
            refused(|a| a.out_stride = 128),
            "out's row stride is 128, less than its width 136"
        );
        assert_eq!(
            GateUp::new(Dtype::F32).check(&args()).unwrap_err(),
            "no instance for f32"
        );
    }
}
