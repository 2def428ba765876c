//! Integer and bit operations.

use crate::program::{Int1, Int2, Int3, IntTy, Slot};
use crate::registers::{Bank, LANES, Lane, Registers, map1, map2, map3, write};

/// What the operations need of an integer type.
pub(crate) trait Int: Lane + Ord + Into<i128> {
    const BITS: u32;
    const SIGNED: bool;
    /// The low bits.
    fn wrap(value: i128) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn not(self) -> Self;
    fn add_sat(self, other: Self) -> Self;
    fn sub_sat(self, other: Self) -> Self;
    /// Division by zero gives all ones, as hardware does.
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
    fn shl(self, by: u32) -> Self;
    fn shr(self, by: u32) -> Self;
    fn mul_hi(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn popc(self) -> u32;
    fn clz(self) -> u32;
    fn reverse(self) -> Self;
    /// Zero-extended.
    fn bits(self) -> u64;
}

macro_rules! int {
    ($ty:ty, $wide:ty, $unsigned:ty, $signed:literal, $abs:expr) => {
        impl Int for $ty {
            const BITS: u32 = <$ty>::BITS;
            const SIGNED: bool = $signed;
            #[inline(always)]
            fn wrap(value: i128) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn and(self, other: Self) -> Self {
                self & other
            }
            #[inline(always)]
            fn or(self, other: Self) -> Self {
                self | other
            }
            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                self ^ other
            }
            #[inline(always)]
            fn not(self) -> Self {
                !self
            }
            #[inline(always)]
            fn add_sat(self, other: Self) -> Self {
                self.saturating_add(other)
            }
            #[inline(always)]
            fn sub_sat(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                if other == 0 {
                    !0
                } else {
                    self.wrapping_div(other)
                }
            }
            #[inline(always)]
            fn rem(self, other: Self) -> Self {
                if other == 0 {
                    self
                } else {
                    self.wrapping_rem(other)
                }
            }
            #[inline(always)]
            fn shl(self, by: u32) -> Self {
                if by >= Self::BITS { 0 } else { self << by }
            }
            #[inline(always)]
            fn shr(self, by: u32) -> Self {
                // A shift beyond the width leaves the sign.
                if by >= Self::BITS {
                    (self >> (Self::BITS - 1)) * ($signed as $ty)
                } else {
                    self >> by
                }
            }
            #[inline(always)]
            fn mul_hi(self, other: Self) -> Self {
                ((self as $wide).wrapping_mul(other as $wide) >> Self::BITS) as $ty
            }
            #[inline(always)]
            fn abs(self) -> Self {
                let abs: fn($ty) -> $ty = $abs;
                abs(self)
            }
            #[inline(always)]
            fn popc(self) -> u32 {
                self.count_ones()
            }
            #[inline(always)]
            fn clz(self) -> u32 {
                self.leading_zeros()
            }
            #[inline(always)]
            fn reverse(self) -> Self {
                self.reverse_bits()
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                self as $unsigned as u64
            }
        }
    };
}
int!(u16, u32, u16, false, |value| value);
int!(i16, i32, u16, true, i16::wrapping_abs);
int!(u32, u64, u32, false, |value| value);
int!(i32, i64, u32, true, i32::wrapping_abs);
int!(u64, u128, u64, false, |value| value);
int!(i64, i128, u64, true, i64::wrapping_abs);

/// Calls `$f::<T>($args)` with the type that `$ty` names.
macro_rules! with_int {
    ($ty:expr, $f:ident($($arg:expr),*)) => {
        match $ty {
            $crate::program::IntTy::U16 => $f::<u16>($($arg),*),
            $crate::program::IntTy::S16 => $f::<i16>($($arg),*),
            $crate::program::IntTy::U32 => $f::<u32>($($arg),*),
            $crate::program::IntTy::S32 => $f::<i32>($($arg),*),
            $crate::program::IntTy::U64 => $f::<u64>($($arg),*),
            $crate::program::IntTy::S64 => $f::<i64>($($arg),*),
        }
    };
}
pub(crate) use with_int;

#[inline(always)]
pub(crate) fn unary<T: Int>(registers: &mut Registers, m: u32, op: Int1, d: Slot, a: Slot) {
    let zero = T::wrap(0);
    match op {
        Int1::Neg => map1(registers, m, d, a, |a: T| zero.sub(a)),
        Int1::Abs => map1(registers, m, d, a, T::abs),
        Int1::Not => map1(registers, m, d, a, T::not),
        Int1::Cnot => map1(registers, m, d, a, |a: T| T::wrap((a == zero).into())),
        Int1::Popc => map1(registers, m, d, a, T::popc),
        Int1::Clz => map1(registers, m, d, a, T::clz),
        Int1::Brev => map1(registers, m, d, a, T::reverse),
        Int1::Bfind => map1(registers, m, d, a, |a: T| bfind(a, false)),
        Int1::BfindShift => map1(registers, m, d, a, |a: T| bfind(a, true)),
    }
}

/// The position of the most significant bit that is not a sign bit; all ones where there is none.
fn bfind<T: Int>(a: T, shift: bool) -> u32 {
    let a = if a < T::wrap(0) { a.not() } else { a };
    match a.clz() {
        clz if clz == T::BITS => u32::MAX,
        clz if shift => clz,
        clz => T::BITS - 1 - clz,
    }
}

#[inline(always)]
pub(crate) fn apply<T: Int>(op: Int2, a: T, b: T) -> T {
    match op {
        Int2::Add => a.add(b),
        Int2::AddSat => a.add_sat(b),
        Int2::Sub => a.sub(b),
        Int2::SubSat => a.sub_sat(b),
        Int2::MulLo => a.mul(b),
        Int2::MulHi => a.mul_hi(b),
        Int2::Div => a.div(b),
        Int2::Rem => a.rem(b),
        Int2::Min => a.min(b),
        Int2::Max => a.max(b),
        Int2::And => a.and(b),
        Int2::Or => a.or(b),
        Int2::Xor => a.xor(b),
        // Shifts take their amount from a 32-bit register and are done apart.
        Int2::Shl | Int2::Shr => a,
    }
}

#[inline(always)]
pub(crate) fn binary<T: Int>(
    registers: &mut Registers,
    m: u32,
    op: Int2,
    d: Slot,
    a: Slot,
    b: Slot,
) {
    macro_rules! each {
        ($($name:ident),*) => {
            match op {
                $(Int2::$name => map2(registers, m, d, (a, b), |a: T, b: T| apply(Int2::$name, a, b)),)*
                Int2::Shl => map2(registers, m, d, (a, b), |a: T, b: u32| a.shl(b)),
                Int2::Shr => map2(registers, m, d, (a, b), |a: T, b: u32| a.shr(b)),
            }
        };
    }
    each!(
        Add, AddSat, Sub, SubSat, MulLo, MulHi, Div, Rem, Min, Max, And, Or, Xor
    )
}

#[inline(always)]
pub(crate) fn ternary<T: Int>(
    registers: &mut Registers,
    m: u32,
    op: Int3,
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    match op {
        Int3::MadLo => map3(registers, m, d, (a, b, c), |a: T, b: T, c: T| {
            a.mul(b).add(c)
        }),
        Int3::MadHi => map3(registers, m, d, (a, b, c), |a: T, b: T, c: T| {
            a.mul_hi(b).add(c)
        }),
        Int3::Sad => map3(registers, m, d, (a, b, c), |a: T, b: T, c: T| {
            c.add(if a < b { b.sub(a) } else { a.sub(b) })
        }),
        Int3::Bfe => map3(registers, m, d, (a, b, c), |a: T, b: u32, c: u32| {
            bfe(a, b, c)
        }),
    }
}

/// `len` bits of `a` from `pos` up, extended by the sign bit of the field (or the top bit of `a`) where signed.
fn bfe<T: Int>(a: T, pos: u32, len: u32) -> T {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 {
        return T::wrap(0);
    }
    let top = (pos + len - 1).min(T::BITS - 1);
    let sign = T::SIGNED && a.bits() >> top & 1 != 0;
    let field = if pos >= T::BITS { 0 } else { a.bits() >> pos };
    let width = if pos >= T::BITS {
        0
    } else {
        len.min(T::BITS - pos)
    };
    let mask = if width >= 64 {
        u64::MAX
    } else {
        (1 << width) - 1
    };
    T::wrap(
        (if sign {
            field & mask | !mask
        } else {
            field & mask
        })
        .into(),
    )
}

#[inline(always)]
pub(crate) fn bfi<T: Int>(registers: &mut Registers, m: u32, d: Slot, [a, b, c, len]: [Slot; 4]) {
    let (a, b) = (*T::Bank::row(registers, a), *T::Bank::row(registers, b));
    let (c, len) = (*registers.row32(c), *registers.row32(len));
    let mut out = [T::Bank::default(); LANES];
    for lane in 0..LANES {
        let (a, b) = (T::get(a[lane]).bits(), T::get(b[lane]).bits());
        let (pos, len) = (c[lane] & 0xff, len[lane] & 0xff);
        let width = len.min(T::BITS.saturating_sub(pos));
        let mask = if width == 0 {
            0
        } else {
            u64::MAX >> (64 - width) << (pos & 63)
        };
        out[lane] = T::wrap((b & !mask | (a << (pos & 63)) & mask).into()).put();
    }
    write(registers, m, d, &out);
}

#[inline(always)]
pub(crate) fn carry<T: Int>(
    registers: &mut Registers,
    m: u32,
    (sub, read, set): (bool, bool, bool),
    d: Slot,
    (a, b): (Slot, Slot),
) {
    let (a, b) = (*T::Bank::row(registers, a), *T::Bank::row(registers, b));
    let (flags, mut carries) = (registers.carry, 0u32);
    let mut out = [T::Bank::default(); LANES];
    for lane in 0..LANES {
        let (a, b) = (
            u128::from(T::get(a[lane]).bits()),
            u128::from(T::get(b[lane]).bits()),
        );
        let carry = u128::from(read && flags >> lane & 1 != 0);
        let result = if sub {
            a.wrapping_sub(b).wrapping_sub(carry)
        } else {
            a + b + carry
        };
        carries |= ((result >> T::BITS & 1) as u32) << lane;
        out[lane] = T::wrap(result as i128).put();
    }
    write(registers, m, d, &out);
    if set {
        registers.carry = flags & !m | carries & m;
    }
}

#[inline(always)]
pub(crate) fn mul_wide(registers: &mut Registers, m: u32, ty: IntTy, d: Slot, a: Slot, b: Slot) {
    match ty {
        IntTy::U16 => map2(registers, m, d, (a, b), |a: u16, b: u16| {
            u32::from(a) * u32::from(b)
        }),
        IntTy::S16 => map2(registers, m, d, (a, b), |a: i16, b: i16| {
            i32::from(a) * i32::from(b)
        }),
        IntTy::S32 => map2(registers, m, d, (a, b), |a: i32, b: i32| {
            i64::from(a) * i64::from(b)
        }),
        _ => map2(registers, m, d, (a, b), |a: u32, b: u32| {
            u64::from(a) * u64::from(b)
        }),
    }
}

#[inline(always)]
pub(crate) fn mad_wide(
    registers: &mut Registers,
    m: u32,
    ty: IntTy,
    d: Slot,
    abc: (Slot, Slot, Slot),
) {
    match ty {
        IntTy::U16 => map3(registers, m, d, abc, |a: u16, b: u16, c: u32| {
            (u32::from(a) * u32::from(b)).wrapping_add(c)
        }),
        IntTy::S16 => map3(registers, m, d, abc, |a: i16, b: i16, c: i32| {
            (i32::from(a) * i32::from(b)).wrapping_add(c)
        }),
        IntTy::S32 => map3(registers, m, d, abc, |a: i32, b: i32, c: i64| {
            (i64::from(a) * i64::from(b)).wrapping_add(c)
        }),
        _ => map3(registers, m, d, abc, |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }),
    }
}

#[inline(always)]
pub(crate) fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut result = 0;
    for minterm in 0..8 {
        if table >> minterm & 1 != 0 {
            let a = if minterm & 4 != 0 { a } else { !a };
            let b = if minterm & 2 != 0 { b } else { !b };
            let c = if minterm & 1 != 0 { c } else { !c };
            result |= a & b & c;
        }
    }
    result
}

/// The byte permutation; see [`crate::program::Op::Prmt`] for the modes.
pub(crate) fn prmt(mode: u8, a: u32, b: u32, control: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let byte = |index: u32| (bytes >> (8 * (index & 7)) & 0xff) as u32;
    let n = control & 3;
    let selectors: [u32; 4] = match mode {
        0 => std::array::from_fn(|i| control >> (4 * i) & 0xf),
        1 => std::array::from_fn(|i| (n + i as u32) & 7),
        2 => std::array::from_fn(|i| n.wrapping_sub(i as u32) & 7),
        3 => [n; 4],
        4 => std::array::from_fn(|i| n.max(i as u32)),
        5 => std::array::from_fn(|i| n.min(i as u32)),
        _ => std::array::from_fn(|i| (n & 1) * 2 + (i as u32 & 1)),
    };
    let mut result = 0;
    for (i, selector) in selectors.into_iter().enumerate() {
        let mut value = byte(selector);
        // In the generic mode the selector's top bit replicates the byte's sign.
        if mode == 0 && selector & 8 != 0 {
            value = if value & 0x80 != 0 { 0xff } else { 0 };
        }
        result |= value << (8 * i);
    }
    result
}

#[inline(always)]
pub(crate) fn shf(left: bool, wrap: bool, a: u32, b: u32, c: u32) -> u32 {
    let by = if wrap { c & 31 } else { c.min(32) };
    let both = u64::from(b) << 32 | u64::from(a);
    if left {
        (both << by >> 32) as u32
    } else {
        (both >> by) as u32
    }
}

pub(crate) fn dp4a(signed: (bool, bool), a: u32, b: u32, c: u32) -> u32 {
    let byte = |value: u32, i: usize, signed: bool| {
        let byte = value.to_le_bytes()[i];
        if signed {
            i32::from(byte as i8)
        } else {
            i32::from(byte)
        }
    };
    (0..4).fold(c, |sum, i| {
        sum.wrapping_add((byte(a, i, signed.0) * byte(b, i, signed.1)) as u32)
    })
}
