//! Everything that reads and writes only registers. One call runs one instruction in all lanes of a warp.

mod float;
mod int;

pub(crate) use int::{Int, apply, with_int};

use crate::convert;
use crate::program::{BoolOp, Cmp, FloatTy, IntTy, Op, Pred, Slot, TestClass};
use crate::registers::{LANES, Lane, Registers, compare, map2, map3, write};
use crate::round::{bf16_to_f32, f16_to_f32, flush};
use int::{bfi, binary, carry, dp4a, lop3, mad_wide, mul_wide, prmt, shf, ternary, unary};

/// Runs `op` in the lanes of `m`; false where it is no operation on registers.
#[inline(always)]
pub(crate) fn run(registers: &mut Registers, m: u32, op: &Op) -> bool {
    match *op {
        Op::Mov32 { d, a } => {
            let row = *registers.row32(a);
            write(registers, m, d, &row);
        }
        Op::Mov64 { d, a } => {
            let row = *registers.row64(a);
            write(registers, m, d, &row);
        }
        Op::MovPred { d, a } => {
            let bits = registers.pred(a);
            registers.set_pred(d, m, bits);
        }
        Op::Int1 { op, ty, d, a } => with_int!(ty, unary(registers, m, op, d, a)),
        Op::Int2 { op, ty, d, a, b } => with_int!(ty, binary(registers, m, op, d, a, b)),
        Op::Int3 { op, ty, d, a, b, c } => with_int!(ty, ternary(registers, m, op, d, (a, b, c))),
        Op::MulWide { ty, d, a, b } => mul_wide(registers, m, ty, d, a, b),
        Op::MadWide { ty, d, a, b, c } => mad_wide(registers, m, ty, d, (a, b, c)),
        Op::Carry {
            sub,
            ty,
            read,
            set,
            d,
            a,
            b,
        } => with_int!(ty, carry(registers, m, (sub, read, set), d, (a, b))),
        Op::Bfi {
            ty,
            d,
            a,
            b,
            c,
            len,
        } => with_int!(ty, bfi(registers, m, d, [a, b, c, len])),
        Op::Lop3 { table, d, a, b, c } => {
            map3(registers, m, d, (a, b, c), |a, b, c| lop3(table, a, b, c))
        }
        Op::Prmt { mode, d, a, b, c } => {
            map3(registers, m, d, (a, b, c), |a, b, c| prmt(mode, a, b, c))
        }
        Op::Shf {
            left,
            wrap,
            d,
            a,
            b,
            c,
        } => map3(registers, m, d, (a, b, c), |a, b, c| {
            shf(left, wrap, a, b, c)
        }),
        Op::Dp4a {
            signed_a,
            signed_b,
            d,
            a,
            b,
            c,
        } => {
            map3(registers, m, d, (a, b, c), |a, b, c| {
                dp4a((signed_a, signed_b), a, b, c)
            });
        }
        Op::Float1 { op, ty, mode, d, a } => float::unary(registers, m, op, ty, mode, d, a),
        Op::Float2 {
            op,
            ty,
            mode,
            d,
            a,
            b,
        } => float::binary(registers, m, op, ty, mode, d, (a, b)),
        Op::Fma {
            ty,
            mode,
            d,
            a,
            b,
            c,
        } => float::fma(registers, m, ty, mode, d, (a, b, c)),
        Op::Testp { class, ty, d, a } => {
            let bits = testp(registers, class, ty, a);
            registers.set_pred(d, m, bits);
        }
        Op::SetpInt {
            cmp,
            ty,
            p,
            q,
            a,
            b,
            with,
        } => {
            let bits = with_int!(ty, compare_int(registers, cmp, a, b));
            set_predicates(registers, m, bits, p, q, with);
        }
        Op::SetpFloat {
            cmp,
            ty,
            ftz,
            p,
            q,
            a,
            b,
            with,
        } => {
            let bits = compare_float(registers, cmp, ty, ftz, a, b);
            set_predicates(registers, m, bits, p, q, with);
        }
        Op::SetValue { float, d, p } => set_value(registers, m, float, d, p),
        Op::PredLogic { op, d, a, b } => {
            let bits = combine(op, registers.pred(a), registers.pred(b));
            registers.set_pred(d, m, bits);
        }
        Op::Selp32 { d, a, b, p } => select::<u32>(registers, m, d, (a, b), p),
        Op::Selp64 { d, a, b, p } => select::<u64>(registers, m, d, (a, b), p),
        Op::Slct {
            wide,
            float,
            d,
            a,
            b,
            c,
        } => slct(registers, m, (wide, float), d, (a, b, c)),
        Op::Pack16 { d, lo, hi } => map2(registers, m, d, (lo, hi), |lo: u32, hi: u32| {
            lo & 0xffff | hi << 16
        }),
        Op::Unpack16 { lo, hi, a } => {
            let row = *registers.row32(a);
            write(registers, m, lo, &row.map(|a| a & 0xffff));
            write(registers, m, hi, &row.map(|a| a >> 16));
        }
        Op::Pack32 { d, lo, hi } => {
            map2(registers, m, d, (lo, hi), |lo: u32, hi: u32| {
                u64::from(hi) << 32 | u64::from(lo)
            });
        }
        Op::Unpack32 { lo, hi, a } => {
            let row = *registers.row64(a);
            write(registers, m, lo, &row.map(|a| a as u32));
            write(registers, m, hi, &row.map(|a| (a >> 32) as u32));
        }
        Op::Pack64 { d, parts } => {
            let rows = parts.map(|part| *registers.row32(part));
            let out: [u64; LANES] = std::array::from_fn(|lane| {
                (0..4).fold(0, |value, i| {
                    value | u64::from(rows[i][lane] & 0xffff) << (16 * i)
                })
            });
            write(registers, m, d, &out);
        }
        Op::Unpack64 { parts, a } => {
            let row = *registers.row64(a);
            for (i, part) in parts.into_iter().enumerate() {
                write(
                    registers,
                    m,
                    part,
                    &row.map(|a| (a >> (16 * i)) as u32 & 0xffff),
                );
            }
        }
        Op::Cvt(ref cvt) => convert::run(registers, m, cvt),
        Op::CvtPack {
            to,
            mode,
            satfinite,
            d,
            a,
            b,
        } => {
            map2(registers, m, d, (a, b), |a: u32, b: u32| {
                convert::pack(to, mode, satfinite, a, b)
            });
        }
        _ => return false,
    }
    true
}

pub(crate) fn combine(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

#[inline(always)]
fn set_predicates(
    registers: &mut Registers,
    m: u32,
    bits: u32,
    p: Slot,
    q: Option<Slot>,
    with: Option<(BoolOp, Pred)>,
) {
    let (mut first, mut second) = (bits, !bits);
    if let Some((op, pred)) = with {
        let other = registers.pred(pred);
        (first, second) = (combine(op, first, other), combine(op, second, other));
    }
    registers.set_pred(p, m, first);
    if let Some(q) = q {
        registers.set_pred(q, m, second);
    }
}

#[inline(always)]
fn compare_int<T: Int>(registers: &Registers, cmp: Cmp, a: Slot, b: Slot) -> u32 {
    match cmp {
        Cmp::Eq | Cmp::Equ => compare(registers, a, b, |a: T, b: T| a == b),
        Cmp::Ne | Cmp::Neu => compare(registers, a, b, |a: T, b: T| a != b),
        Cmp::Lt | Cmp::Ltu => compare(registers, a, b, |a: T, b: T| a < b),
        Cmp::Le | Cmp::Leu => compare(registers, a, b, |a: T, b: T| a <= b),
        Cmp::Gt | Cmp::Gtu => compare(registers, a, b, |a: T, b: T| a > b),
        Cmp::Ge | Cmp::Geu => compare(registers, a, b, |a: T, b: T| a >= b),
        Cmp::Num => u32::MAX,
        Cmp::Nan => 0,
    }
}

#[inline(always)]
fn float_cmp(cmp: Cmp, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => !unordered && a != b,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => unordered || a == b,
        Cmp::Neu => unordered || a != b,
        Cmp::Ltu => unordered || a < b,
        Cmp::Leu => unordered || a <= b,
        Cmp::Gtu => unordered || a > b,
        Cmp::Geu => unordered || a >= b,
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}

/// Lanes where the comparison holds; in the packed types, where it holds in the lower half.
#[inline(always)]
fn compare_float(registers: &Registers, cmp: Cmp, ty: FloatTy, ftz: bool, a: Slot, b: Slot) -> u32 {
    match ty {
        FloatTy::F32 if ftz => compare(registers, a, b, |a: f32, b: f32| {
            float_cmp(cmp, flush(a).into(), flush(b).into())
        }),
        FloatTy::F32 => compare(registers, a, b, |a: f32, b: f32| {
            float_cmp(cmp, a.into(), b.into())
        }),
        FloatTy::F64 => compare(registers, a, b, |a: f64, b: f64| float_cmp(cmp, a, b)),
        FloatTy::F16 | FloatTy::F16x2 => compare(registers, a, b, |a: u16, b: u16| {
            float_cmp(cmp, f16_to_f32(a).into(), f16_to_f32(b).into())
        }),
        FloatTy::Bf16 | FloatTy::Bf16x2 => compare(registers, a, b, |a: u16, b: u16| {
            float_cmp(cmp, bf16_to_f32(a).into(), bf16_to_f32(b).into())
        }),
    }
}

#[inline(always)]
fn select<T: Lane<Bank = T> + crate::registers::Bank>(
    registers: &mut Registers,
    m: u32,
    d: Slot,
    (a, b): (Slot, Slot),
    p: Pred,
) {
    let bits = registers.pred(p);
    let (a, b) = (*T::row(registers, a), *T::row(registers, b));
    let mut out = b;
    for lane in 0..LANES {
        if bits >> lane & 1 != 0 {
            out[lane] = a[lane];
        }
    }
    write(registers, m, d, &out);
}

fn slct(
    registers: &mut Registers,
    m: u32,
    (wide, float): (bool, bool),
    d: Slot,
    (a, b, c): (Slot, Slot, Slot),
) {
    let picks = |c: u32| {
        if float {
            f32::from_bits(c) >= 0.0
        } else {
            c as i32 >= 0
        }
    };
    if wide {
        map3(
            registers,
            m,
            d,
            (a, b, c),
            |a: u64, b: u64, c: u32| if picks(c) { a } else { b },
        );
    } else {
        map3(
            registers,
            m,
            d,
            (a, b, c),
            |a: u32, b: u32, c: u32| if picks(c) { a } else { b },
        );
    }
}

fn set_value(registers: &mut Registers, m: u32, float: Option<FloatTy>, d: Slot, p: Slot) {
    let bits = registers.p[usize::from(p)];
    let value = match float {
        None => u32::MAX,
        Some(FloatTy::F16 | FloatTy::F16x2) => 0x3c00,
        Some(FloatTy::Bf16 | FloatTy::Bf16x2) => 0x3f80,
        Some(_) => 1.0f32.to_bits(),
    };
    let out = std::array::from_fn(|lane| if bits >> lane & 1 != 0 { value } else { 0 });
    write::<u32>(registers, m, d, &out);
}

fn testp(registers: &Registers, class: TestClass, ty: FloatTy, a: Slot) -> u32 {
    if ty == FloatTy::F64 {
        return compare(registers, a, a, |a: f64, _| {
            is_class(
                class,
                a.is_finite(),
                a.is_nan(),
                a.is_normal(),
                a.is_subnormal(),
            )
        });
    }
    compare(registers, a, a, |a: f32, _| {
        is_class(
            class,
            a.is_finite(),
            a.is_nan(),
            a.is_normal(),
            a.is_subnormal(),
        )
    })
}

fn is_class(class: TestClass, finite: bool, nan: bool, normal: bool, subnormal: bool) -> bool {
    match class {
        TestClass::Finite => finite,
        TestClass::Infinite => !finite && !nan,
        TestClass::Number => !nan,
        TestClass::NotANumber => nan,
        TestClass::Normal => normal,
        TestClass::Subnormal => subnormal,
    }
}

/// The reduction that `redux.sync` and the integer atomics share.
pub(crate) fn apply_int(op: crate::program::Int2, ty: IntTy, a: u64, b: u64) -> u64 {
    fn by<T: Int>(op: crate::program::Int2, a: u64, b: u64) -> u64 {
        apply(op, T::wrap(a.into()), T::wrap(b.into())).bits()
    }
    with_int!(ty, by(op, a, b))
}
