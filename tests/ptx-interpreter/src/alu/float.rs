//! Floating-point operations. f32 results are rounded once in every mode; NaN results are hardware's canonical NaN.
//!
//! The approximate operations (`ex2.approx` and its kin) give the correctly rounded result of the exact function (computed
//! in f64, which is right but for a tie in some 2^29), with subnormals flushed where the instruction says so.

use crate::program::{Float1, Float2, FloatMode, FloatTy, Rounding, Slot};
use crate::registers::{Registers, map1, map2, map3};
use crate::round::{
    BF16, F16, F32, Format, bf16_to_f32, canonical, exact_fma, f16_to_f32, f32_to_bf16, f32_to_f16,
    flush, flush_f16, round, two_sum, zero_sum,
};

#[inline(always)]
fn finish(value: f32, mode: FloatMode) -> f32 {
    let value = if mode.ftz { flush(value) } else { value };
    if mode.sat {
        return if value > 0.0 { value.min(1.0) } else { 0.0 };
    }
    canonical(value)
}

#[inline(always)]
fn input(value: f32, mode: FloatMode) -> f32 {
    if mode.ftz { flush(value) } else { value }
}

fn round_f32((value, error): (f64, f64), mode: Rounding) -> f32 {
    f32::from_bits(round(value, error, F32, mode))
}

fn add_directed(a: f32, b: f32, mode: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let (sum, error) = two_sum(a, b);
    if sum == 0.0 {
        zero_sum(a, b, mode) as f32
    } else {
        round_f32((sum, error), mode)
    }
}

fn fma_directed(a: f32, b: f32, c: f32, mode: Rounding) -> f32 {
    let (sum, error) = exact_fma(a, b, c);
    if sum == 0.0 {
        zero_sum(f64::from(a) * f64::from(b), f64::from(c), mode) as f32
    } else {
        round_f32((sum, error), mode)
    }
}

/// A quotient in a directed mode: the sign of the remainder tells which way the f64 quotient was rounded.
fn div_directed(a: f32, b: f32, mode: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    let error = if quotient.is_finite() {
        quotient.mul_add(-b, a) / b
    } else {
        0.0
    };
    round_f32((quotient, error), mode)
}

fn sqrt_directed(a: f32, mode: Rounding) -> f32 {
    let root = f64::from(a).sqrt();
    let error = if root.is_finite() {
        root.mul_add(-root, f64::from(a))
    } else {
        0.0
    };
    round_f32((root, error), mode)
}

#[inline(always)]
fn min_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if a < b || b.is_nan() || a == b && a.is_sign_negative() {
        a
    } else {
        b
    }
}

#[inline(always)]
fn max_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if a > b || b.is_nan() || a == b && a.is_sign_positive() {
        a
    } else {
        b
    }
}

fn div_approx(a: f32, b: f32) -> f32 {
    // Documented: beyond 2^126 the reciprocal is flushed.
    if b.abs() > f32::from_bits(0x7e80_0000) && b.is_finite() {
        return if a.is_infinite() {
            f32::NAN
        } else {
            0.0f32.copysign(a) * 1.0f32.copysign(b)
        };
    }
    a / b
}

#[inline(always)]
pub(crate) fn binary32(op: Float2, mode: FloatMode, a: f32, b: f32) -> f32 {
    let (a, b) = (input(a, mode), input(b, mode));
    let nearest = mode.rounding == Rounding::Nearest;
    let result = match op {
        Float2::Add if nearest => a + b,
        Float2::Sub if nearest => a - b,
        Float2::Mul if nearest => a * b,
        Float2::Div if nearest => a / b,
        Float2::Add => add_directed(a, b, mode.rounding),
        Float2::Sub => add_directed(a, -b, mode.rounding),
        Float2::Mul => round_f32((f64::from(a) * f64::from(b), 0.0), mode.rounding),
        Float2::Div => div_directed(a, b, mode.rounding),
        Float2::DivApprox => div_approx(a, b),
        Float2::Min => min_f32(a, b),
        Float2::Max => max_f32(a, b),
        Float2::MinNan if a.is_nan() || b.is_nan() => f32::NAN,
        Float2::MinNan => min_f32(a, b),
        Float2::MaxNan if a.is_nan() || b.is_nan() => f32::NAN,
        Float2::MaxNan => max_f32(a, b),
        // The sign comes from the first operand.
        Float2::Copysign => b.copysign(a),
    };
    finish(result, mode)
}

fn binary64(op: Float2, a: f64, b: f64) -> f64 {
    match op {
        Float2::Add => a + b,
        Float2::Sub => a - b,
        Float2::Mul => a * b,
        Float2::Div | Float2::DivApprox => a / b,
        Float2::Min | Float2::MinNan => a.min(b),
        Float2::Max | Float2::MaxNan => a.max(b),
        Float2::Copysign => b.copysign(a),
    }
}

pub(crate) fn unary32(op: Float1, mode: FloatMode, a: f32) -> f32 {
    let a = input(a, mode);
    let wide = f64::from(a);
    let nearest = mode.rounding == Rounding::Nearest;
    let result = match op {
        Float1::Neg => return if a.is_nan() { a } else { -a },
        Float1::Abs => return a.abs(),
        Float1::Sqrt if nearest => a.sqrt(),
        Float1::Sqrt => sqrt_directed(a, mode.rounding),
        Float1::Rcp if nearest => 1.0 / a,
        Float1::Rcp => div_directed(1.0, a, mode.rounding),
        Float1::Rsqrt => (1.0 / wide.sqrt()) as f32,
        Float1::Ex2 => wide.exp2() as f32,
        Float1::Lg2 => wide.log2() as f32,
        Float1::Sin => wide.sin() as f32,
        Float1::Cos => wide.cos() as f32,
        Float1::Tanh => wide.tanh() as f32,
    };
    finish(result, mode)
}

fn unary64(op: Float1, a: f64) -> f64 {
    match op {
        Float1::Neg => -a,
        Float1::Abs => a.abs(),
        Float1::Sqrt => a.sqrt(),
        Float1::Rcp => 1.0 / a,
        Float1::Rsqrt => 1.0 / a.sqrt(),
        Float1::Ex2 => a.exp2(),
        Float1::Lg2 => a.log2(),
        Float1::Sin => a.sin(),
        Float1::Cos => a.cos(),
        Float1::Tanh => a.tanh(),
    }
}

/// f16 or bf16.
#[derive(Clone, Copy)]
struct Narrow {
    format: Format,
    widen: fn(u16) -> f32,
    narrow: fn(f32) -> u16,
}

const HALF: Narrow = Narrow {
    format: F16,
    widen: f16_to_f32,
    narrow: f32_to_f16,
};
const BRAIN: Narrow = Narrow {
    format: BF16,
    widen: bf16_to_f32,
    narrow: f32_to_bf16,
};

impl Narrow {
    #[inline(always)]
    fn input(self, bits: u16, mode: FloatMode) -> f32 {
        (self.widen)(if mode.ftz && self.format.fraction == 10 {
            flush_f16(bits)
        } else {
            bits
        })
    }

    #[inline(always)]
    fn finish(self, bits: u16, mode: FloatMode) -> u16 {
        let mut bits = bits;
        if mode.ftz && self.format.fraction == 10 {
            bits = flush_f16(bits);
        }
        let value = (self.widen)(bits);
        if mode.sat && !(0.0..=1.0).contains(&value) {
            bits = if value > 1.0 { (self.narrow)(1.0) } else { 0 };
        }
        if mode.relu && value < 0.0 {
            bits = 0;
        }
        bits
    }

    /// f32 has more than twice the bits of either format, so rounding its sum, product or quotient again is harmless.
    fn binary(self, op: Float2, mode: FloatMode, a: u16, b: u16) -> u16 {
        let (a, b) = (self.input(a, mode), self.input(b, mode));
        let plain = FloatMode {
            ftz: false,
            sat: false,
            relu: false,
            ..mode
        };
        let result = binary32(op, plain, a, b);
        self.finish((self.narrow)(result), mode)
    }

    fn unary(self, op: Float1, mode: FloatMode, a: u16) -> u16 {
        match op {
            Float1::Neg => return a ^ 0x8000,
            Float1::Abs => return a & 0x7fff,
            _ => {}
        }
        let value = unary64(op, f64::from(self.input(a, mode)));
        self.finish(
            round(value, 0.0, self.format, Rounding::Nearest) as u16,
            mode,
        )
    }

    fn fma(self, mode: FloatMode, a: u16, b: u16, c: u16) -> u16 {
        let (a, b, c) = (
            self.input(a, mode),
            self.input(b, mode),
            self.input(c, mode),
        );
        let (value, error) = exact_fma(a, b, c);
        self.finish(
            round(value, error, self.format, Rounding::Nearest) as u16,
            mode,
        )
    }
}

#[inline(always)]
fn both1(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(a as u16)) | u32::from(f((a >> 16) as u16)) << 16
}

#[inline(always)]
fn both2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[inline(always)]
fn both3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(f(a as u16, b as u16, c as u16)) | u32::from(high) << 16
}

pub(crate) fn unary(
    registers: &mut Registers,
    m: u32,
    op: Float1,
    ty: FloatTy,
    mode: FloatMode,
    d: Slot,
    a: Slot,
) {
    match ty {
        FloatTy::F32 => map1(registers, m, d, a, |a: f32| unary32(op, mode, a)),
        FloatTy::F64 => map1(registers, m, d, a, |a: f64| unary64(op, a)),
        FloatTy::F16 => map1(registers, m, d, a, |a: u16| HALF.unary(op, mode, a)),
        FloatTy::Bf16 => map1(registers, m, d, a, |a: u16| BRAIN.unary(op, mode, a)),
        FloatTy::F16x2 => map1(registers, m, d, a, |a: u32| {
            both1(a, |a| HALF.unary(op, mode, a))
        }),
        FloatTy::Bf16x2 => map1(registers, m, d, a, |a: u32| {
            both1(a, |a| BRAIN.unary(op, mode, a))
        }),
    }
}

#[inline(always)]
pub(crate) fn binary(
    registers: &mut Registers,
    m: u32,
    op: Float2,
    ty: FloatTy,
    mode: FloatMode,
    d: Slot,
    ab: (Slot, Slot),
) {
    match ty {
        FloatTy::F32 => {
            // The common case as loops without a branch on the mode.
            const PLAIN: FloatMode = FloatMode {
                rounding: Rounding::Nearest,
                ftz: false,
                sat: false,
                relu: false,
            };
            const FTZ: FloatMode = FloatMode { ftz: true, ..PLAIN };
            macro_rules! each {
                ($($name:ident),*) => {
                    match op {
                        $(Float2::$name if mode == PLAIN => {
                            map2(registers, m, d, ab, |a: f32, b: f32| binary32(Float2::$name, PLAIN, a, b))
                        }
                        Float2::$name if mode == FTZ => {
                            map2(registers, m, d, ab, |a: f32, b: f32| binary32(Float2::$name, FTZ, a, b))
                        })*
                        _ => map2(registers, m, d, ab, |a: f32, b: f32| binary32(op, mode, a, b)),
                    }
                };
            }
            each!(Add, Sub, Mul, Div, Min, Max)
        }
        FloatTy::F64 => map2(registers, m, d, ab, |a: f64, b: f64| binary64(op, a, b)),
        FloatTy::F16 => map2(registers, m, d, ab, |a: u16, b: u16| {
            HALF.binary(op, mode, a, b)
        }),
        FloatTy::Bf16 => map2(registers, m, d, ab, |a: u16, b: u16| {
            BRAIN.binary(op, mode, a, b)
        }),
        FloatTy::F16x2 => map2(registers, m, d, ab, |a: u32, b: u32| {
            both2(a, b, |a, b| HALF.binary(op, mode, a, b))
        }),
        FloatTy::Bf16x2 => map2(registers, m, d, ab, |a: u32, b: u32| {
            both2(a, b, |a, b| BRAIN.binary(op, mode, a, b))
        }),
    }
}

#[inline(always)]
pub(crate) fn fma(
    registers: &mut Registers,
    m: u32,
    ty: FloatTy,
    mode: FloatMode,
    d: Slot,
    abc: (Slot, Slot, Slot),
) {
    let nearest = mode.rounding == Rounding::Nearest;
    match ty {
        FloatTy::F32 if nearest && !mode.ftz && !mode.sat => {
            map3(registers, m, d, abc, |a: f32, b: f32, c: f32| {
                canonical(a.mul_add(b, c))
            });
        }
        FloatTy::F32 => map3(registers, m, d, abc, |a: f32, b: f32, c: f32| {
            let (a, b, c) = (input(a, mode), input(b, mode), input(c, mode));
            finish(
                if nearest {
                    a.mul_add(b, c)
                } else {
                    fma_directed(a, b, c, mode.rounding)
                },
                mode,
            )
        }),
        FloatTy::F64 => map3(registers, m, d, abc, |a: f64, b: f64, c: f64| {
            a.mul_add(b, c)
        }),
        FloatTy::F16 => map3(registers, m, d, abc, |a: u16, b: u16, c: u16| {
            HALF.fma(mode, a, b, c)
        }),
        FloatTy::Bf16 => map3(registers, m, d, abc, |a: u16, b: u16, c: u16| {
            BRAIN.fma(mode, a, b, c)
        }),
        FloatTy::F16x2 => {
            map3(registers, m, d, abc, |a: u32, b: u32, c: u32| {
                both3(a, b, c, |a, b, c| HALF.fma(mode, a, b, c))
            });
        }
        FloatTy::Bf16x2 => {
            map3(registers, m, d, abc, |a: u32, b: u32, c: u32| {
                both3(a, b, c, |a, b, c| BRAIN.fma(mode, a, b, c))
            });
        }
    }
}
