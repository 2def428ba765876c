//! Sums over rows kept on the device: chunks of rows go over, and the sums come back when they are asked for.

use super::backend::Cuda;
use super::driver::Driver;
use super::kernels::moments::{Outer, OuterArgs, Spread, SpreadArgs};
use super::launch::{DevicePtr, Launcher, launch};
use crate::backend::Result;
use crate::backend::cpu::MOMENT_ROWS;

/// Device memory that sums leave free.
const LEFT_FREE: usize = 256 << 20;

/// Sums of rows of one width.
#[derive(Debug)]
struct Sums {
    width: usize,
    /// f64 `[width]`, and behind it `[width, width]`.
    at: DevicePtr,
}

impl Sums {
    fn outer(&self) -> DevicePtr {
        self.at.offset(8 * self.width)
    }
}

/// What a chunk passes through.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    width: usize,
    rows: DevicePtr,
    spread: DevicePtr,
    mean: DevicePtr,
    rest: DevicePtr,
}

/// The sums that a device keeps, by their number.
#[derive(Debug, Default)]
pub(super) struct MomentSums {
    sums: Vec<Sums>,
    scratch: Option<Scratch>,
}

impl MomentSums {
    /// Gives the memory back.
    pub fn free(&mut self, on: &mut impl Launcher) {
        let scratch = self.scratch.take().map(|scratch| scratch.rows);
        for ptr in self.sums.drain(..).map(|sums| sums.at).chain(scratch) {
            // What cannot be freed is the driver's to clear away.
            let _ = on.free(ptr);
        }
    }
}

impl<D: Driver> Cuda<D> {
    /// Makes room for the sum and the outer product of rows of that width, and sets them: `sum` `[width]`, the lower triangle of `outer`
    /// `[width, width]`. Their number; `None` where there is no room.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin_moments(&mut self, sum: &[f64], outer: &[f64]) -> Result<Option<usize>> {
        let width = sum.len();
        let bytes = 8 * (width + width * width);
        let widest = self.moments.scratch.map_or(0, |scratch| scratch.width);
        let scratch = if width > widest {
            scratch_bytes(width)
        } else {
            0
        };
        let free = self.driver.free_bytes()?;
        if bytes + scratch + LEFT_FREE.min(free / 16) > free {
            return Ok(None);
        }
        if scratch > 0 {
            self.widen_scratch(width)?;
        }
        let at = self.driver.alloc(bytes)?;
        let sums = Sums { width, at };
        self.driver.upload(at, bytemuck::cast_slice(sum))?;
        self.driver
            .upload(sums.outer(), bytemuck::cast_slice(outer))?;
        self.moments.sums.push(sums);
        Ok(Some(self.moments.sums.len() - 1))
    }

    fn widen_scratch(&mut self, width: usize) -> Result<()> {
        // Launches that use the old memory come first.
        self.driver.synchronize()?;
        if let Some(old) = self.moments.scratch.take() {
            self.driver.free(old.rows)?;
        }
        let rows = self.driver.alloc(scratch_bytes(width))?;
        let spread = rows.offset(4 * MOMENT_ROWS * width);
        let rest = spread.offset(4 * MOMENT_ROWS * width);
        self.moments.scratch = Some(Scratch {
            width,
            rows,
            spread,
            rest,
            mean: rest.offset(8 * width),
        });
        Ok(())
    }

    /// Adds a chunk of at most [`MOMENT_ROWS`] rows to those sums, after all launches so far; nothing is waited for.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// There are no such sums, or more rows.
    pub fn add_moments(&mut self, number: usize, rows: &[f32]) -> Result<()> {
        let sums = &self.moments.sums[number];
        let n = rows.len() / sums.width;
        assert!(n <= MOMENT_ROWS, "at most {MOMENT_ROWS} rows");
        let Some(scratch) = self.moments.scratch.filter(|_| n > 0) else {
            return Ok(());
        };
        let bytes = bytemuck::cast_slice(rows);
        self.driver.upload_in_order(scratch.rows, bytes)?;
        let (n, width) = (n as u32, sums.width as u32);
        launch(
            &mut self.driver,
            &Spread,
            &SpreadArgs {
                rows: scratch.rows,
                spread: scratch.spread,
                mean: scratch.mean,
                sum: sums.at,
                rest: scratch.rest,
                share: 1.0 / f64::from(n),
                n,
                width,
            },
        )?;
        launch(
            &mut self.driver,
            &Outer,
            &OuterArgs {
                spread: scratch.spread,
                mean: scratch.mean,
                rest: scratch.rest,
                outer: sums.outer(),
                n,
                width,
            },
        )?;
        Ok(())
    }

    /// Reads those sums, everything added so far included; of `outer` only the lower triangle means something.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_moments(
        &mut self,
        number: usize,
        sum: &mut [f64],
        outer: &mut [f64],
    ) -> Result<()> {
        let sums = &self.moments.sums[number];
        let (at, outer_at) = (sums.at, sums.outer());
        self.driver.download(at, bytemuck::cast_slice_mut(sum))?;
        self.driver
            .download(outer_at, bytemuck::cast_slice_mut(outer))?;
        Ok(())
    }
}

/// Rows, spread, rest and mean.
fn scratch_bytes(width: usize) -> usize {
    2 * 4 * MOMENT_ROWS * width + 8 * width + 4 * width
}
