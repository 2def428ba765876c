//! The register file of one warp: a row of 32 lanes per register, so that an instruction is one loop over a row.
//!
//! There are three banks: 32 bits (which also holds 16-bit registers, zero-extended), 64 bits, and predicates (one bit
//! per lane). Immediates and special registers are rows too, filled once.

use crate::program::{Pred, Slot};

pub(crate) const LANES: usize = 32;
pub(crate) const ALL: u32 = u32::MAX;

pub(crate) type Row32 = [u32; LANES];
pub(crate) type Row64 = [u64; LANES];

/// Banks in register ids: `id = bank << 16 | slot`.
pub(crate) const BANK32: u32 = 0;
pub(crate) const BANK64: u32 = 1;
pub(crate) const BANK_PRED: u32 = 2;

pub(crate) fn register_id(bank: u32, slot: Slot) -> u32 {
    bank << 16 | u32::from(slot)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    pub r32: Vec<Row32>,
    pub r64: Vec<Row64>,
    pub p: Vec<u32>,
    /// Per register and lane: whether it holds a defined value.
    pub defined: [Vec<u32>; 3],
    /// The carry flag.
    pub carry: u32,
}

impl Registers {
    pub fn new(slots32: usize, slots64: usize, slots_pred: usize) -> Self {
        Registers {
            r32: vec![[0; LANES]; slots32],
            r64: vec![[0; LANES]; slots64],
            p: vec![0; slots_pred],
            defined: [vec![0; slots32], vec![0; slots64], vec![0; slots_pred]],
            carry: 0,
        }
    }

    pub fn pred(&self, pred: Pred) -> u32 {
        let bits = self.p[usize::from(pred.slot)];
        if pred.negated { !bits } else { bits }
    }

    pub fn set_pred(&mut self, slot: Slot, mask: u32, bits: u32) {
        let row = &mut self.p[usize::from(slot)];
        *row = *row & !mask | bits & mask;
    }

    pub fn row32(&self, slot: Slot) -> &Row32 {
        &self.r32[usize::from(slot)]
    }

    pub fn row64(&self, slot: Slot) -> &Row64 {
        &self.r64[usize::from(slot)]
    }

    pub fn defined(&self, id: u32) -> u32 {
        self.defined[(id >> 16) as usize][(id & 0xffff) as usize]
    }

    pub fn set_defined(&mut self, id: u32, mask: u32, bits: u32) {
        let row = &mut self.defined[(id >> 16) as usize][(id & 0xffff) as usize];
        *row = *row & !mask | bits & mask;
    }
}

/// What a row of a bank holds.
pub(crate) trait Bank: Copy + Default {
    fn row(registers: &Registers, slot: Slot) -> &[Self; LANES];
    fn row_mut(registers: &mut Registers, slot: Slot) -> &mut [Self; LANES];
}

impl Bank for u32 {
    #[inline(always)]
    fn row(registers: &Registers, slot: Slot) -> &Row32 {
        &registers.r32[usize::from(slot)]
    }
    #[inline(always)]
    fn row_mut(registers: &mut Registers, slot: Slot) -> &mut Row32 {
        &mut registers.r32[usize::from(slot)]
    }
}

impl Bank for u64 {
    #[inline(always)]
    fn row(registers: &Registers, slot: Slot) -> &Row64 {
        &registers.r64[usize::from(slot)]
    }
    #[inline(always)]
    fn row_mut(registers: &mut Registers, slot: Slot) -> &mut Row64 {
        &mut registers.r64[usize::from(slot)]
    }
}

/// A type that a register can be read as.
pub(crate) trait Lane: Copy {
    type Bank: Bank;
    fn get(bits: Self::Bank) -> Self;
    fn put(self) -> Self::Bank;
}

macro_rules! lane {
    ($ty:ty, $bank:ty, $get:expr, $put:expr) => {
        impl Lane for $ty {
            type Bank = $bank;
            #[inline(always)]
            fn get(bits: $bank) -> Self {
                let get: fn($bank) -> $ty = $get;
                get(bits)
            }
            #[inline(always)]
            fn put(self) -> $bank {
                let put: fn($ty) -> $bank = $put;
                put(self)
            }
        }
    };
}
lane!(u16, u32, |bits| bits as u16, |value| value.into());
lane!(i16, u32, |bits| bits as i16, |value| (value as u16).into());
lane!(u32, u32, |bits| bits, |value| value);
lane!(i32, u32, |bits| bits as i32, |value| value as u32);
lane!(f32, u32, f32::from_bits, f32::to_bits);
lane!(u64, u64, |bits| bits, |value| value);
lane!(i64, u64, |bits| bits as i64, |value| value as u64);
lane!(f64, u64, f64::from_bits, f64::to_bits);

#[inline(always)]
pub(crate) fn write<B: Bank>(
    registers: &mut Registers,
    mask: u32,
    slot: Slot,
    values: &[B; LANES],
) {
    let row = B::row_mut(registers, slot);
    if mask == ALL {
        *row = *values;
    } else {
        for lane in 0..LANES {
            if mask >> lane & 1 != 0 {
                row[lane] = values[lane];
            }
        }
    }
}

/// `d = f(a)` in the lanes of `mask`; `f` is evaluated in every lane, so it must not panic.
#[inline(always)]
pub(crate) fn map1<A: Lane, D: Lane>(
    registers: &mut Registers,
    mask: u32,
    d: Slot,
    a: Slot,
    f: impl Fn(A) -> D,
) {
    let a = A::Bank::row(registers, a);
    let mut out = [D::Bank::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(A::get(a[lane])).put();
    }
    write(registers, mask, d, &out);
}

#[inline(always)]
pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
    registers: &mut Registers,
    mask: u32,
    d: Slot,
    (a, b): (Slot, Slot),
    f: impl Fn(A, B) -> D,
) {
    let (a, b) = (A::Bank::row(registers, a), B::Bank::row(registers, b));
    let mut out = [D::Bank::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(A::get(a[lane]), B::get(b[lane])).put();
    }
    write(registers, mask, d, &out);
}

#[inline(always)]
pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    registers: &mut Registers,
    mask: u32,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
    f: impl Fn(A, B, C) -> D,
) {
    let (a, b, c) = (
        A::Bank::row(registers, a),
        B::Bank::row(registers, b),
        C::Bank::row(registers, c),
    );
    let mut out = [D::Bank::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(A::get(a[lane]), B::get(b[lane]), C::get(c[lane])).put();
    }
    write(registers, mask, d, &out);
}

/// The lanes where `f(a, b)` holds.
#[inline(always)]
pub(crate) fn compare<A: Lane>(
    registers: &Registers,
    a: Slot,
    b: Slot,
    f: impl Fn(A, A) -> bool,
) -> u32 {
    let (a, b) = (A::Bank::row(registers, a), A::Bank::row(registers, b));
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(f(A::get(a[lane]), A::get(b[lane]))) << lane;
    }
    bits
}
