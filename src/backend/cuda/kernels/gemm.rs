//! `kernels/gemm.cu`: out\[M, N\] = x\[M, K\] · weight\[N, K\]ᵀ, batched.

use bytemuck::{Pod, Zeroable};

use super::require;
use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// Arguments of every gemm entry. Strides are in elements of their own tensor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemmArgs {
    /// `[batch, m, k]`
    pub x: DevicePtr,
    /// `[batch, n, k]`
    pub weight: DevicePtr,
    /// `[batch, m, n]`
    pub out: DevicePtr,
    /// From one product's `x` to the next's; 0 shares it. Likewise below (but `out` is never shared).
    pub x_batch_stride: u64,
    pub weight_batch_stride: u64,
    pub out_batch_stride: u64,
    /// Rows of `x` and of `out`; at least 1.
    pub m: u32,
    /// Rows of `weight`, columns of `out`; a multiple of 8.
    pub n: u32,
    /// Columns of `x` and of `weight`; a multiple of 8.
    pub k: u32,
    /// Number of products, 1 to 65,535.
    pub batch: u32,
    /// From row to row, at least `k`.
    pub x_stride: u32,
    /// From row to row, at least `k`.
    pub weight_stride: u32,
    /// From row to row, at least `n`.
    pub out_stride: u32,
    pub _pad: u32,
}

/// The grid's third dimension counts the batch.
const MAX_BATCH: u32 = 65_535;

/// A block's tile of `out` and what it takes; as in `gemm.cu`.
struct Tile {
    m: u32,
    n: u32,
    threads: u32,
    shared: u32,
}

const TILE: Tile = Tile {
    m: 128,
    n: 128,
    threads: 128,
    shared: 3 * (128 + 128) * 32 * 2,
};
const SMALL_TILE: Tile = Tile {
    m: 64,
    n: 32,
    threads: 128,
    shared: 8 * (64 + 32) * 64 * 2,
};
const TILE_F32: Tile = Tile {
    m: 64,
    n: 128,
    threads: 128,
    shared: 3 * (64 + 128) * 16 * 4,
};

/// Which instance of a 16-bit product. A row's bits are the same from each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TileSize {
    /// 128 × 128; 64 × 128 for f32, which has no other.
    Large,
    /// 64 × 32: for rows so few that the weight's bytes are the bound, or large tiles too few to go round.
    Small,
}

/// x, weight and out of one type (f32, f16, bf16), or out f32 from 16-bit operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gemm {
    pub input: Dtype,
    pub output: Dtype,
    pub tile: TileSize,
}

/// Up to so many large tiles leave half of an H100's 132 SMs without one.
const FEW_TILES: u32 = 64;

impl Gemm {
    /// The faster instance for `m` rows of x and `n` of weight.
    pub fn new(input: Dtype, output: Dtype, m: u32, n: u32) -> Gemm {
        let few = m <= SMALL_TILE.m || m.div_ceil(TILE.m) * n.div_ceil(TILE.n) <= FEW_TILES;
        let tile = match input {
            Dtype::F16 | Dtype::BF16 if few => TileSize::Small,
            _ => TileSize::Large,
        };
        Gemm {
            input,
            output,
            tile,
        }
    }

    fn shape(&self) -> Tile {
        match (self.input, self.tile) {
            (Dtype::F32, _) => TILE_F32,
            (_, TileSize::Large) => TILE,
            (_, TileSize::Small) => SMALL_TILE,
        }
    }
}

impl Kernel for Gemm {
    type Args = GemmArgs;

    fn name(&self) -> String {
        let out = if self.input == self.output {
            ""
        } else {
            "_f32out"
        };
        let small = match self.tile {
            TileSize::Large => "",
            TileSize::Small => "_small",
        };
        format!("gemm_{}{out}{small}", self.input)
    }

    fn source(&self) -> &'static str {
        "gemm"
    }

    fn dims(&self, args: &GemmArgs) -> Dims {
        let tile = self.shape();
        Dims {
            grid: [
                args.m.div_ceil(tile.m) * args.n.div_ceil(tile.n),
                1,
                args.batch,
            ],
            block: [tile.threads, 1, 1],
            dynamic_shared: tile.shared,
        }
    }

    fn check(&self, args: &GemmArgs) -> Result<(), String> {
        if self.output != self.input && self.output != Dtype::F32 {
            return Err(format!(
                "no instance from {} to {}",
                self.input, self.output
            ));
        }
        if self.input == Dtype::F32 && self.tile == TileSize::Small {
            return Err("f32 has no small tile".into());
        }
        for (name, size) in [
            ("m", args.m),
            ("n", args.n),
            ("k", args.k),
            ("batch", args.batch),
        ] {
            require::positive(name, size)?;
        }
        require::at_most("batch", args.batch, MAX_BATCH)?;
        require::multiple("n", args.n.into(), 8)?;
        require::multiple("k", args.k.into(), 8)?;
        for (name, at, dtype, stride, width, batch_stride) in [
            (
                "x",
                args.x,
                self.input,
                args.x_stride,
                args.k,
                args.x_batch_stride,
            ),
            (
                "weight",
                args.weight,
                self.input,
                args.weight_stride,
                args.k,
                args.weight_batch_stride,
            ),
            (
                "out",
                args.out,
                self.output,
                args.out_stride,
                args.n,
                args.out_batch_stride,
            ),
        ] {
            require::vector_rows(name, at, stride.into(), width, dtype.bytes())?;
            let vector = require::VECTOR_BYTES / dtype.bytes() as u64;
            require::multiple(&format!("{name}'s batch stride"), batch_stride, vector)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> GemmArgs {
        GemmArgs {
            x: DevicePtr(256),
            weight: DevicePtr(512),
            out: DevicePtr(768),
            m: 129,
            n: 136,
            k: 40,
            batch: 2,
            x_stride: 48,
            weight_stride: 40,
            out_stride: 136,
            ..GemmArgs::zeroed()
        }
    }

    #[test]
    fn the_grid_covers_partial_tiles_and_the_batch() {
        let grid = |input, tile| {
            let gemm = Gemm {
                input,
                output: Dtype::F32,
                tile,
            };
            gemm.dims(&args()).grid
        };
        assert_eq!(grid(Dtype::BF16, TileSize::Large), [4, 1, 2]);
        assert_eq!(grid(Dtype::F16, TileSize::Small), [15, 1, 2]);
        assert_eq!(grid(Dtype::F32, TileSize::Large), [6, 1, 2]);
    }

    #[test]
    fn few_rows_or_few_tiles_get_the_small_tile() {
        let name = |input, m, n| Gemm::new(input, Dtype::F32, m, n).name();
        assert_eq!(name(Dtype::BF16, 64, 28_672), "gemm_bf16_f32out_small");
        assert_eq!(name(Dtype::BF16, 65, 28_672), "gemm_bf16_f32out");
        assert_eq!(name(Dtype::F16, 256, 4096), "gemm_f16_f32out_small");
        assert_eq!(name(Dtype::F16, 257, 4096), "gemm_f16_f32out");
        assert_eq!(name(Dtype::F32, 1, 4096), "gemm_f32");
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused_by_name() {
        let gemm = Gemm::new(Dtype::BF16, Dtype::BF16, 129, 136);
        let refused = |change: fn(&mut GemmArgs)| {
            let mut args = args();
            change(&mut args);
            gemm.check(&args).unwrap_err()
        };
        assert!(gemm.check(&args()).is_ok());
        assert_eq!(refused(|a| a.m = 0), "m is 0: there is nothing to launch");
        assert_eq!(refused(|a| a.k = 36), "k is 36, not a multiple of 8");
        assert_eq!(
            refused(|a| a.batch = 65_536),
            "batch is 65536, more than 65535"
        );
        assert_eq!(
            refused(|a| a.x = DevicePtr(264)),
            "x is at 0x108, not a multiple of 16 bytes"
        );
        assert_eq!(
            refused(|a| a.out_stride = 128),
            "out's row stride is 128, less than its width 136"
        );
        assert_eq!(
            refused(|a| a.x_stride = 44),
            "x's row stride is 44, not a multiple of 8"
        );
        assert_eq!(
            refused(|a| a.weight_batch_stride = 4),
            "weight's batch stride is 4, not a multiple of 8"
        );
        assert_eq!(
            Gemm::new(Dtype::BF16, Dtype::F16, 129, 136)
                .check(&args())
                .unwrap_err(),
            "no instance from bf16 to f16"
        );
    }
}
