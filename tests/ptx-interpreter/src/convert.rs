//! `cvt`: between integers, between formats, and both ways, with every rounding mode and saturation.

use crate::program::{Cvt, CvtTy, FloatMode, MmaTy, Rounding};
use crate::registers::{LANES, Registers, write};
use crate::round::{
    BF16, F16, F32, Format, TF32, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, flush,
    flush_f16, round,
};

/// A value between reading the source and writing the destination. Every integer fits i128, every float f64.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

impl CvtTy {
    fn int_range(self) -> Option<(i128, i128)> {
        Some(match self {
            CvtTy::U8 => (0, u8::MAX.into()),
            CvtTy::S8 => (i8::MIN.into(), i8::MAX.into()),
            CvtTy::U16 => (0, u16::MAX.into()),
            CvtTy::S16 => (i16::MIN.into(), i16::MAX.into()),
            CvtTy::U32 => (0, u32::MAX.into()),
            CvtTy::S32 => (i32::MIN.into(), i32::MAX.into()),
            CvtTy::U64 => (0, u64::MAX.into()),
            CvtTy::S64 => (i64::MIN.into(), i64::MAX.into()),
            _ => return None,
        })
    }
}

fn read(ty: CvtTy, bits: u64, ftz: bool) -> Value {
    let float = |value: f32| Value::Float(if ftz { flush(value) } else { value }.into());
    match ty {
        CvtTy::U8 => Value::Int((bits as u8).into()),
        CvtTy::S8 => Value::Int((bits as i8).into()),
        CvtTy::U16 => Value::Int((bits as u16).into()),
        CvtTy::S16 => Value::Int((bits as i16).into()),
        CvtTy::U32 => Value::Int((bits as u32).into()),
        CvtTy::S32 => Value::Int((bits as i32).into()),
        CvtTy::U64 => Value::Int(bits.into()),
        CvtTy::S64 => Value::Int((bits as i64).into()),
        // .ftz speaks of f32; an f16 subnormal is a normal f32.
        CvtTy::F16 => Value::Float(f16_to_f32(bits as u16).into()),
        CvtTy::Bf16 => Value::Float(bf16_to_f32(bits as u16).into()),
        CvtTy::F32 | CvtTy::Tf32 => float(f32::from_bits(bits as u32)),
        CvtTy::F64 => Value::Float(f64::from_bits(bits)),
    }
}

fn to_whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
        Rounding::NearestAway => value.round(),
    }
}

fn float_to_int(value: f64, to: CvtTy, from: CvtTy, rounding: Rounding) -> u64 {
    let (min, max) = to.int_range().unwrap_or((0, 0));
    if value.is_nan() {
        let wide = from == CvtTy::F64 || matches!(to, CvtTy::U64 | CvtTy::S64);
        return match to {
            _ if !wide => 0,
            CvtTy::U64 | CvtTy::S64 => 1 << 63,
            CvtTy::U32 | CvtTy::S32 => 1 << 31,
            CvtTy::U16 | CvtTy::S16 => 1 << 15,
            _ => 1 << 7,
        };
    }
    // `as` saturates, and i128 holds every f64 that matters.
    (to_whole(value, rounding) as i128).clamp(min, max) as u64
}

/// Rounds an integer that f64 cannot hold without losing which side of a tie it was on.
fn int_parts(value: i128) -> (f64, f64) {
    let rounded = value as f64;
    (rounded, (value - rounded as i128) as f64)
}

fn to_format(value: f64, error: f64, format: Format, cvt: &Cvt) -> u32 {
    let (value, error) = if cvt.mode.sat {
        if value.is_nan() {
            (0.0, 0.0)
        } else {
            (
                value.clamp(0.0, 1.0),
                if (0.0..=1.0).contains(&value) {
                    error
                } else {
                    0.0
                },
            )
        }
    } else {
        (value, error)
    };
    let value = if cvt.mode.relu && value < 0.0 {
        0.0
    } else {
        value
    };
    let mut bits = round(value, error, format, cvt.mode.rounding);
    if cvt.satfinite && bits & format.infinity() == format.infinity() && !value.is_nan() {
        bits = bits & format.sign() | format.max_finite();
    }
    if value.is_nan() && cvt.mode.relu {
        bits = format.nan();
    }
    bits
}

fn to_float(value: Value, cvt: &Cvt) -> u64 {
    let (mut value, error) = match value {
        Value::Int(value) => int_parts(value),
        Value::Float(value) => (value, 0.0),
    };
    if cvt.integral {
        value = to_whole(value, cvt.mode.rounding);
    }
    match cvt.to {
        CvtTy::F16 => {
            let bits = to_format(value, error, F16, cvt) as u16;
            if cvt.mode.ftz && cvt.from == CvtTy::F16 {
                flush_f16(bits).into()
            } else {
                bits.into()
            }
        }
        CvtTy::Bf16 => to_format(value, error, BF16, cvt).into(),
        CvtTy::Tf32 => (u64::from(to_format(value, error, TF32, cvt))) << 13,
        CvtTy::F32 => {
            let bits = to_format(value, error, F32, cvt);
            if cvt.mode.ftz {
                flush(f32::from_bits(bits)).to_bits().into()
            } else {
                bits.into()
            }
        }
        _ => {
            let value = match cvt.mode.sat {
                true if value > 0.0 => value.min(1.0),
                true => 0.0,
                false => value,
            };
            let nearest = cvt.mode.rounding == Rounding::Nearest || error == 0.0;
            let up = error > 0.0 && cvt.mode.rounding == Rounding::Up
                || error > 0.0 && cvt.mode.rounding == Rounding::Zero && value < 0.0;
            let down = error < 0.0 && cvt.mode.rounding == Rounding::Down
                || error < 0.0 && cvt.mode.rounding == Rounding::Zero && value > 0.0;
            match () {
                () if !nearest && up => value.next_up(),
                () if !nearest && down => value.next_down(),
                () => value,
            }
            .to_bits()
        }
    }
}

pub(crate) fn convert(bits: u64, cvt: &Cvt) -> u64 {
    let value = read(cvt.from, bits, cvt.mode.ftz);
    match (value, cvt.to.int_range()) {
        (Value::Int(value), Some((min, max))) => {
            let value = if cvt.mode.sat {
                value.clamp(min, max)
            } else {
                value
            };
            narrow_int(value as u64, cvt.to)
        }
        (Value::Float(value), Some(_)) => narrow_int(
            float_to_int(value, cvt.to, cvt.from, cvt.mode.rounding),
            cvt.to,
        ),
        _ => to_float(value, cvt),
    }
}

/// An integer as its destination holds it: extended to the register by its own sign.
fn narrow_int(bits: u64, to: CvtTy) -> u64 {
    match to {
        CvtTy::U8 => (bits as u8).into(),
        CvtTy::S8 => bits as i8 as u64,
        CvtTy::U16 => (bits as u16).into(),
        CvtTy::S16 => bits as i16 as u64,
        CvtTy::U32 => (bits as u32).into(),
        CvtTy::S32 => bits as i32 as u64,
        _ => bits,
    }
}

/// The lanes of `mask`, whatever the widths.
#[inline(always)]
pub(crate) fn run(registers: &mut Registers, mask: u32, cvt: &Cvt) {
    if fast(registers, mask, cvt) {
        return;
    }
    let mut out = [0u64; LANES];
    for (lane, out) in out.iter_mut().enumerate() {
        if mask >> lane & 1 != 0 {
            let bits = if cvt.wide_a {
                registers.row64(cvt.a)[lane]
            } else {
                registers.row32(cvt.a)[lane].into()
            };
            *out = convert(bits, cvt);
        }
    }
    store(registers, mask, cvt, &out);
}

#[inline(always)]
fn store(registers: &mut Registers, mask: u32, cvt: &Cvt, out: &[u64; LANES]) {
    if cvt.wide_d {
        write(registers, mask, cvt.d, out);
    } else {
        write(
            registers,
            mask,
            cvt.d,
            &out.map(|value| (value as u32) & cvt.narrow_mask()),
        );
    }
}

impl Cvt {
    /// 16-bit registers hold nothing above their 16 bits.
    fn narrow_mask(&self) -> u32 {
        match self.to {
            CvtTy::F16 | CvtTy::Bf16 | CvtTy::U16 | CvtTy::S16 if self.narrow_d => 0xffff,
            CvtTy::U8 | CvtTy::S8 if self.narrow_d => 0xffff,
            _ => u32::MAX,
        }
    }
}

const PLAIN: FloatMode = FloatMode {
    rounding: Rounding::Nearest,
    ftz: false,
    sat: false,
    relu: false,
};

/// The conversions that address arithmetic and bf16 kernels are full of, as straight loops.
#[inline(always)]
fn fast(registers: &mut Registers, mask: u32, cvt: &Cvt) -> bool {
    if (cvt.from, cvt.to) == (CvtTy::F32, CvtTy::F32)
        && cvt.mode == (FloatMode { sat: true, ..PLAIN })
        && !cvt.integral
    {
        let clamp = |bits| {
            let value = f32::from_bits(bits);
            if value > 0.0 {
                value.min(1.0).to_bits()
            } else {
                0
            }
        };
        let out = registers.row32(cvt.a).map(clamp);
        write(registers, mask, cvt.d, &out);
        return true;
    }
    if cvt.mode.sat || cvt.mode.relu || cvt.satfinite {
        return false;
    }
    match (cvt.from, cvt.to, cvt.wide_a, cvt.wide_d) {
        (CvtTy::U32, CvtTy::U64 | CvtTy::S64, false, true) => {
            let out = registers.row32(cvt.a).map(u64::from);
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::S32, CvtTy::U64 | CvtTy::S64, false, true) => {
            let out = registers.row32(cvt.a).map(|a| a as i32 as u64);
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::U64 | CvtTy::S64, CvtTy::U32 | CvtTy::S32, true, false) => {
            let out = registers.row64(cvt.a).map(|a| a as u32);
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::Bf16, CvtTy::F32, false, false) if cvt.mode == PLAIN => {
            let out = registers.row32(cvt.a).map(|a| quiet(bf16_to_f32(a as u16)));
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::F16, CvtTy::F32, false, false) if cvt.mode == PLAIN => {
            let out = registers.row32(cvt.a).map(|a| quiet(f16_to_f32(a as u16)));
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::F32, CvtTy::Bf16, false, false) if cvt.mode == PLAIN => {
            let out = registers
                .row32(cvt.a)
                .map(|a| u32::from(f32_to_bf16(f32::from_bits(a))));
            write(registers, mask, cvt.d, &out);
        }
        (CvtTy::F32, CvtTy::F16, false, false) if cvt.mode == PLAIN => {
            let out = registers
                .row32(cvt.a)
                .map(|a| u32::from(f32_to_f16(f32::from_bits(a))));
            write(registers, mask, cvt.d, &out);
        }
        _ => return false,
    }
    true
}

#[inline(always)]
fn quiet(value: f32) -> u32 {
    if value.is_nan() {
        0x7fff_ffff
    } else {
        value.to_bits()
    }
}

/// Two f32 to one half each of a packed register.
#[inline(always)]
pub(crate) fn pack(to: MmaTy, mode: FloatMode, satfinite: bool, high: u32, low: u32) -> u32 {
    let half = |bits: u32| {
        let value = f32::from_bits(bits);
        match to {
            _ if mode != PLAIN || satfinite => pack_half(to, mode, satfinite, value),
            MmaTy::F16 => u32::from(f32_to_f16(value)),
            _ => u32::from(f32_to_bf16(value)),
        }
    };
    half(high) << 16 | half(low)
}

fn pack_half(to: MmaTy, mode: FloatMode, satfinite: bool, value: f32) -> u32 {
    let format = if to == MmaTy::F16 { F16 } else { BF16 };
    if mode.relu && value < 0.0 {
        return 0;
    }
    let result = round(value.into(), 0.0, format, mode.rounding);
    if satfinite && result & format.infinity() == format.infinity() && !value.is_nan() {
        return result & format.sign() | format.max_finite();
    }
    result
}
