//! Sums of rows, for statistics.

use super::{Build, Cost, Memory, Shapes, Units, Workload, by, product};
use crate::backend::cpu::MOMENT_ROWS;
use crate::backend::cuda::kernels::moments::{Outer, OuterArgs, Spread, SpreadArgs};
use crate::backend::cuda::launch::{DevicePtr, Dtype, LaunchError};

pub(super) fn add(builds: &mut Vec<Build>) {
    builds.push(Box::new(spread));
    builds.push(Box::new(outer));
}

fn rows(s: &Shapes) -> u32 {
    s.tokens.min(MOMENT_ROWS as u32)
}

/// f64 zeros.
fn zeros(memory: &mut Memory, n: u64) -> Result<DevicePtr, LaunchError> {
    memory.table(&vec![0; 2 * n as usize])
}

fn spread(s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let (n, width) = (rows(s), s.d);
    let elements = product(n, width);
    let args = SpreadArgs {
        rows: memory.noise(Dtype::F32, elements)?,
        spread: memory.output(4 * elements)?,
        mean: memory.output(4 * u64::from(width))?,
        sum: zeros(memory, width.into())?,
        rest: memory.output(8 * u64::from(width))?,
        share: 1.0 / f64::from(n),
        n,
        width,
    };
    let cost = Cost::bytes(8 * elements + 28 * u64::from(width));
    Workload::new(format!("a chunk, {}", by(n, width)), &Spread, &args, cost)
}

fn outer(s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let (n, width) = (rows(s), s.d);
    let triangle = u64::from(width) * u64::from(width + 1) / 2;
    let args = OuterArgs {
        spread: memory.noise(Dtype::F32, product(n, width))?,
        mean: memory.noise(Dtype::F32, width.into())?,
        rest: zeros(memory, width.into())?,
        outer: zeros(memory, product(width, width))?,
        n,
        width,
    };
    let cost = Cost {
        bytes: 4 * product(n, width) + 12 * u64::from(width) + 16 * triangle,
        flops: 2 * u64::from(n) * triangle,
        units: Units::Fp32,
    };
    let what = format!("second moment of a chunk, {}", by(n, width));
    Workload::new(what, &Outer, &args, cost)
}
