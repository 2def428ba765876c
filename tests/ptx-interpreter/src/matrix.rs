//! `mma.sync`, `ldmatrix` and their kin, by the lane mappings that the PTX manual draws.
//!
//! Accumulation order: hardware's is not specified. Here the products, which are exact, are summed in f64 in ascending k
//! with the accumulator added last, and the result is rounded once.

use crate::access::{check_aligned, parts, resolve, settle};
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::program::{MatrixAccess, Mma, MmaTy, Rounding, Slot, Space};
use crate::race::{Actor, MANY_LANES};
use crate::registers::{LANES, Registers};
use crate::round::{F16, bf16_to_f32, canonical, f16_to_f32, round};

/// The value of element `half` of a register.
#[inline(always)]
pub(crate) fn element(ty: MmaTy, bits: u32, half: usize) -> f64 {
    let narrow = (bits >> (16 * half)) as u16;
    match ty {
        MmaTy::F16 => f16_to_f32(narrow).into(),
        MmaTy::Bf16 => bf16_to_f32(narrow).into(),
        // The low 13 bits of a tf32 are not looked at.
        MmaTy::Tf32 => f32::from_bits(bits & 0xffff_e000).into(),
    }
}

/// One matrix instruction, compiled for the vector instructions that this machine has.
pub(crate) struct Product<'a> {
    pub registers: &'a mut Registers,
    pub mma: &'a Mma,
}

impl pulp::NullaryFnOnce for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        mma(self.registers, self.mma);
    }
}

#[inline(always)]
fn mma(registers: &mut Registers, mma: &Mma) {
    match mma.ty {
        MmaTy::F16 => mma_of(registers, mma, MmaTy::F16),
        MmaTy::Bf16 => mma_of(registers, mma, MmaTy::Bf16),
        MmaTy::Tf32 => mma_of(registers, mma, MmaTy::Tf32),
    }
}

#[inline(always)]
fn mma_of(registers: &mut Registers, mma: &Mma, ty: MmaTy) {
    let (mut a, mut b) = ([[0f64; 16]; 16], [[0f64; 8]; 16]);
    let k = usize::from(mma.k);
    // Values per register, and columns from one register pair to the next.
    let (per, step) = if ty == MmaTy::Tf32 { (1, 4) } else { (2, 8) };
    for r in 0..k / step {
        let (upper, lower) = (
            *registers.row32(mma.a[2 * r]),
            *registers.row32(mma.a[2 * r + 1]),
        );
        let column = *registers.row32(mma.b[r]);
        for lane in 0..LANES {
            let (group, t) = (lane >> 2, lane & 3);
            for half in 0..per {
                let at = t * per + half + r * step;
                a[group][at] = element(ty, upper[lane], half);
                a[group + 8][at] = element(ty, lower[lane], half);
                b[at][group] = element(ty, column[lane], half);
            }
        }
    }
    let mut sums = [[0f64; 8]; 16];
    for (row, sum) in a.iter().zip(&mut sums) {
        for (x, b) in row.iter().zip(&b).take(k) {
            for n in 0..8 {
                sum[n] += x * b[n];
            }
        }
    }
    if mma.half {
        finish_half(registers, mma, &sums)
    } else {
        finish_single(registers, mma, &sums)
    }
}

#[inline(always)]
fn finish_single(registers: &mut Registers, mma: &Mma, sums: &[[f64; 8]; 16]) {
    for i in 0..4 {
        let c = *registers.row32(mma.c[i]);
        let d = &mut registers.r32[usize::from(mma.d[i])];
        // A later register of c may be an earlier one of d only if the instruction itself is at fault; ptxas refuses it.
        for lane in 0..LANES {
            let sum = sums[(lane >> 2) + 8 * (i >> 1)][(lane & 3) * 2 + (i & 1)];
            d[lane] = canonical((sum + f64::from(f32::from_bits(c[lane]))) as f32).to_bits();
        }
    }
}

fn finish_half(registers: &mut Registers, mma: &Mma, sums: &[[f64; 8]; 16]) {
    for i in 0..2 {
        let c = *registers.row32(mma.c[i]);
        let d = &mut registers.r32[usize::from(mma.d[i])];
        for lane in 0..LANES {
            let value = |half: usize| {
                let sum = sums[(lane >> 2) + 8 * i][(lane & 3) * 2 + half];
                let c = f64::from(f16_to_f32((c[lane] >> (16 * half)) as u16));
                round(sum + c, 0.0, F16, Rounding::Nearest)
            };
            d[lane] = value(0) | value(1) << 16;
        }
    }
}

/// Lane l holds elements 2·(l mod 4) and the next of row l / 4 of an 8×8 matrix; afterwards of its transpose.
pub(crate) fn movmatrix(registers: &mut Registers, d: Slot, a: Slot) {
    let row = *registers.row32(a);
    registers.r32[usize::from(d)] = std::array::from_fn(|lane| {
        let value = |half: usize| {
            let (r, c) = ((lane & 3) * 2 + half, lane >> 2);
            row[r * 4 + c / 2] >> (16 * (c & 1)) & 0xffff
        };
        value(0) | value(1) << 16
    });
}

impl Machine<'_> {
    pub fn ldmatrix(&mut self, w: usize, pc: u32, access: &MatrixAccess) -> Outcome<()> {
        let addresses = resolve(&self.warps[w].registers, access.address);
        let mut rows = [0u128; LANES];
        let used = 8 * usize::from(access.count);
        for lane in 0..used {
            let address = shared_row(access, addresses[lane]).in_lane(lane)?;
            let outcome = {
                parts!(self, w, pc, false => _warp, view, actor);
                // The row goes to other lanes than the one that names it.
                let actor = Actor {
                    lane: MANY_LANES,
                    ..actor
                };
                view.load_shared(address, 16, &actor)
            };
            match outcome {
                Ok(row) => rows[lane] = row,
                Err(failure) => return Err(self.explain(failure, lane, 16, false)),
            }
        }
        let registers = &mut self.warps[w].registers;
        for (matrix, &slot) in access.regs[..usize::from(access.count)].iter().enumerate() {
            let rows = &rows[8 * matrix..8 * matrix + 8];
            registers.r32[usize::from(slot)] = std::array::from_fn(|lane| {
                let (line, pair) = (lane >> 2, lane & 3);
                if access.trans {
                    let value = |row: usize| (rows[row] >> (16 * line)) as u32 & 0xffff;
                    value(2 * pair) | value(2 * pair + 1) << 16
                } else {
                    (rows[line] >> (32 * pair)) as u32
                }
            });
        }
        Ok(())
    }

    pub fn stmatrix(&mut self, w: usize, pc: u32, access: &MatrixAccess) -> Outcome<()> {
        let addresses = resolve(&self.warps[w].registers, access.address);
        let mut rows = [0u128; LANES];
        for (matrix, &slot) in access.regs[..usize::from(access.count)].iter().enumerate() {
            let values = self.warps[w].registers.row32(slot);
            for (lane, &value) in values.iter().enumerate() {
                let (line, pair) = (lane >> 2, lane & 3);
                if access.trans {
                    for half in 0..2 {
                        rows[8 * matrix + 2 * pair + half] |=
                            u128::from(value >> (16 * half) & 0xffff) << (16 * line);
                    }
                } else {
                    rows[8 * matrix + line] |= u128::from(value) << (32 * pair);
                }
            }
        }
        for lane in 0..8 * usize::from(access.count) {
            let address = shared_row(access, addresses[lane]).in_lane(lane)?;
            let outcome = {
                parts!(self, w, pc, false => _warp, view, actor);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                view.store_shared(address, 16, rows[lane], &actor)
            };
            if let Err(failure) = outcome {
                return Err(self.explain(failure, lane, 16, true));
            }
        }
        Ok(())
    }
}

fn shared_row(access: &MatrixAccess, address: u64) -> Outcome<u64> {
    check_aligned(address, 16)?;
    match settle(access.space, address) {
        (Space::Shared, address) => Ok(address),
        _ => Err(fault(
            FindingKind::OutOfBounds,
            format!("a matrix row at 0x{address:x}, which is not in shared memory"),
        )),
    }
}
