//! `atom` and `red`: lane after lane, in ascending order.

use crate::access::{check_aligned, parts, resolve, settle};
use crate::alu::apply_int;
use crate::finding::{FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::program::{Atom, AtomOp, AtomTy, FloatTy, Int2, IntTy, Space};
use crate::race::Actor;
use crate::registers::{LANES, Registers, write};
use crate::round::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, flush};
use crate::warp::lanes;

impl AtomTy {
    fn bytes(self) -> usize {
        match self {
            AtomTy::Int(IntTy::U64 | IntTy::S64) | AtomTy::Float(FloatTy::F64) => 8,
            AtomTy::Int(IntTy::U16 | IntTy::S16) | AtomTy::Float(FloatTy::F16 | FloatTy::Bf16) => 2,
            _ => 4,
        }
    }
}

fn read(registers: &Registers, slot: u16, wide: bool, lane: usize) -> u64 {
    if wide {
        registers.row64(slot)[lane]
    } else {
        registers.row32(slot)[lane].into()
    }
}

impl Machine<'_> {
    pub fn atom(&mut self, w: usize, pc: u32, m: u32, atom: &Atom) -> Outcome<()> {
        let addresses = resolve(&self.warps[w].registers, atom.address);
        let bytes = atom.ty.bytes();
        let wide = bytes == 8;
        let mut old = [0u64; LANES];
        for lane in lanes(m) {
            check_aligned(addresses[lane], bytes).in_lane(lane)?;
            let (space, address) = settle(atom.space, addresses[lane]);
            if matches!(space, Space::Local | Space::Param | Space::Const) {
                let what = "an atomic operation outside global and shared memory";
                return Err(fault(FindingKind::ReadOnly, what)).in_lane(lane);
            }
            let outcome = {
                parts!(self, w, pc, true => warp, view, actor);
                let actor = Actor {
                    lane: lane as u16,
                    ..actor
                };
                let (b, c) = (
                    read(&warp.registers, atom.b, wide, lane),
                    read(&warp.registers, atom.c, wide, lane),
                );
                view.modify(space, address, bytes, &actor, |old| {
                    u128::from(combine(atom, old as u64, b, c))
                })
            };
            match outcome {
                Ok(value) => old[lane] = value as u64,
                Err(failure) => return Err(self.explain(failure, lane, bytes, true)),
            }
        }
        self.stats.atomics += u64::from(m.count_ones());
        if let Some(d) = atom.d {
            let registers = &mut self.warps[w].registers;
            if wide {
                write(registers, m, d, &old);
            } else {
                write(registers, m, d, &old.map(|value| value as u32));
            }
        }
        Ok(())
    }
}

fn combine(atom: &Atom, old: u64, b: u64, c: u64) -> u64 {
    let ty = match atom.ty {
        AtomTy::Float(ty) => return combine_float(atom.op, ty, old, b),
        AtomTy::Int(ty) => ty,
    };
    let int = |op| apply_int(op, ty, old, b);
    match atom.op {
        AtomOp::Add => int(Int2::Add),
        AtomOp::And => int(Int2::And),
        AtomOp::Or => int(Int2::Or),
        AtomOp::Xor => int(Int2::Xor),
        AtomOp::Min => int(Int2::Min),
        AtomOp::Max => int(Int2::Max),
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

fn combine_float(op: AtomOp, ty: FloatTy, old: u64, b: u64) -> u64 {
    let pick = |x: f64, y: f64| match op {
        AtomOp::Min => x.min(y),
        AtomOp::Max => x.max(y),
        _ => x + y,
    };
    // In f64 the sum of two f32 is rounded twice, harmlessly: 53 > 2·24 + 2.
    let single = |x: f32, y: f32| pick(x.into(), y.into()) as f32;
    let half = |x: u16, y: u16| f32_to_f16(single(f16_to_f32(x), f16_to_f32(y)));
    let brain = |x: u16, y: u16| f32_to_bf16(single(bf16_to_f32(x), bf16_to_f32(y)));
    let both = |f: &dyn Fn(u16, u16) -> u16| {
        u64::from(f(old as u16, b as u16))
            | u64::from(f((old >> 16) as u16, (b >> 16) as u16)) << 16
    };
    match ty {
        FloatTy::F64 => pick(f64::from_bits(old), f64::from_bits(b)).to_bits(),
        // Atomic addition in f32 flushes subnormals on global memory.
        FloatTy::F32 => flush(single(f32::from_bits(old as u32), f32::from_bits(b as u32)))
            .to_bits()
            .into(),
        FloatTy::F16 => half(old as u16, b as u16).into(),
        FloatTy::Bf16 => brain(old as u16, b as u16).into(),
        FloatTy::F16x2 => both(&half),
        FloatTy::Bf16x2 => both(&brain),
    }
}
