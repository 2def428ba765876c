//! `kernels/moments.cu`: sums over a chunk of rows, with the bits of the CPU's.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Kernel};
use super::require;
use crate::backend::cpu::MOMENT_ROWS;

/// Columns that a block of the spread takes.
const COLUMNS: u32 = 64;
/// A tile of the outer product, on either side.
const TILE: u32 = 64;
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SpreadArgs {
    /// f32 `[n, width]`
    pub rows: DevicePtr,
    /// f32 `[n, width]`: the rows less their mean.
    pub spread: DevicePtr,
    /// f32 `[width]`
    pub mean: DevicePtr,
    /// f64 `[width]`, added to.
    pub sum: DevicePtr,
    /// f64 `[width]`: what n times the mean leaves of the sum.
    pub rest: DevicePtr,
    /// 1 / n
    pub share: f64,
    /// At most [`MOMENT_ROWS`].
    pub n: u32,
    pub width: u32,
}

/// Adds a chunk's rows to their sum, and takes their mean off them.
#[derive(Debug, Clone, Copy)]
pub struct Spread;

impl Kernel for Spread {
    type Args = SpreadArgs;

    fn name(&self) -> String {
        "moments_spread".into()
    }

    fn source(&self) -> &'static str {
        "moments"
    }

    fn dims(&self, args: &SpreadArgs) -> Dims {
        Dims::linear(args.width.div_ceil(COLUMNS), COLUMNS)
    }

    fn check(&self, args: &SpreadArgs) -> Result<(), String> {
        check_sizes(args.n, args.width)?;
        for (name, ptr, bytes) in [
            ("rows", args.rows, 4),
            ("spread", args.spread, 4),
            ("mean", args.mean, 4),
            ("sum", args.sum, 8),
            ("rest", args.rest, 8),
        ] {
            require::aligned(name, ptr, bytes)?;
        }
        if args.share != 1.0 / f64::from(args.n) {
            return Err(format!("share is {}, not 1 / {}", args.share, args.n));
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct OuterArgs {
    /// f32 `[n, width]`, as [`Spread`] makes it, and below.
    pub spread: DevicePtr,
    pub mean: DevicePtr,
    pub rest: DevicePtr,
    /// f64 `[width, width]`, whose lower triangle is added to.
    pub outer: DevicePtr,
    pub n: u32,
    pub width: u32,
}

/// Adds the lower triangle of a chunk's Σ x·xᵀ.
#[derive(Debug, Clone, Copy)]
pub struct Outer;

impl Kernel for Outer {
    type Args = OuterArgs;

    fn name(&self) -> String {
        "moments_outer".into()
    }

    fn source(&self) -> &'static str {
        "moments"
    }

    fn dims(&self, args: &OuterArgs) -> Dims {
        let tiles = args.width.div_ceil(TILE);
        Dims {
            grid: [tiles, tiles, 1],
            ..Dims::linear(1, THREADS)
        }
    }

    fn check(&self, args: &OuterArgs) -> Result<(), String> {
        check_sizes(args.n, args.width)?;
        for (name, ptr, bytes) in [
            ("spread", args.spread, 4),
            ("mean", args.mean, 4),
            ("rest", args.rest, 8),
            ("outer", args.outer, 8),
        ] {
            require::aligned(name, ptr, bytes)?;
        }
        Ok(())
    }
}

fn check_sizes(n: u32, width: u32) -> Result<(), String> {
    require::positive("n", n)?;
    require::at_most("n", n, MOMENT_ROWS as u32)?;
    require::positive("width", width)?;
    // The grid's second side.
    require::at_most("width", width, 65_535 * TILE)
}
