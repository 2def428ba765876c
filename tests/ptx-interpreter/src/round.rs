//! Rounding to binary floating-point formats in every mode, and the sums whose rounding error is kept, so that a result
//! in a directed mode (or in a narrow format) is rounded once.

use crate::program::Rounding;

/// A binary format: stored fraction bits, and the exponent of its smallest normal number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub fraction: i32,
    pub min_exponent: i32,
    pub max_exponent: i32,
}

pub(crate) const F16: Format = Format {
    fraction: 10,
    min_exponent: -14,
    max_exponent: 15,
};
pub(crate) const BF16: Format = Format {
    fraction: 7,
    min_exponent: -126,
    max_exponent: 127,
};
pub(crate) const F32: Format = Format {
    fraction: 23,
    min_exponent: -126,
    max_exponent: 127,
};
/// tf32 keeps 10 of f32's 23 fraction bits; the caller shifts the result into place.
pub(crate) const TF32: Format = Format {
    fraction: 10,
    min_exponent: -126,
    max_exponent: 127,
};

impl Format {
    fn bias(self) -> i32 {
        self.max_exponent
    }

    pub fn infinity(self) -> u32 {
        ((2 * self.bias() + 1) as u32) << self.fraction
    }

    pub fn max_finite(self) -> u32 {
        self.infinity() - 1
    }

    /// The NaN that hardware produces: every bit but the sign.
    pub fn nan(self) -> u32 {
        self.infinity() | ((1 << self.fraction) - 1)
    }

    pub fn sign(self) -> u32 {
        (self.infinity() + (1 << self.fraction)) & !self.infinity()
    }
}

/// `value + error` rounded to `format`, as its bits; `error` is far below `value`'s last place and only its sign counts.
pub(crate) fn round(value: f64, error: f64, format: Format, mode: Rounding) -> u32 {
    let bits = value.to_bits();
    let negative = bits >> 63 != 0;
    let sign = if negative { format.sign() } else { 0 };
    if value.is_nan() {
        return format.nan();
    }
    if value.is_infinite() {
        return sign | format.infinity();
    }
    if value == 0.0 {
        return sign;
    }
    let field = (bits >> 52 & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (significand, exponent) = if field == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, field - 1075)
    };
    // Three more bits below, the last of them sticky.
    let mut m = significand << 3;
    if error != 0.0 {
        m = if (error < 0.0) == negative {
            m | 1
        } else {
            m - 1
        };
    }
    let exponent = exponent - 3;
    let top = 63 - m.leading_zeros() as i32 + exponent;
    let quantum = top.max(format.min_exponent) - format.fraction;
    let shift = quantum - exponent;
    let mut kept = if shift >= 64 {
        0
    } else if shift <= 0 {
        m << -shift
    } else {
        m >> shift
    };
    if shift > 0 {
        let rest = if shift >= 64 {
            m
        } else {
            m & ((1 << shift) - 1)
        };
        // A shift beyond 63 leaves less than half a unit.
        let half = if shift >= 64 {
            u64::MAX
        } else {
            1 << (shift - 1)
        };
        let up = match mode {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        kept += u64::from(up);
    }
    let field = quantum + format.fraction + format.bias();
    let magnitude = (i64::from(field) << format.fraction) + kept as i64 - (1 << format.fraction);
    let magnitude = u32::try_from(magnitude).unwrap_or(u32::MAX);
    if magnitude >= format.infinity() {
        let towards_zero = match mode {
            Rounding::Nearest | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        return sign
            | if towards_zero {
                format.max_finite()
            } else {
                format.infinity()
            };
    }
    sign | magnitude
}

/// `a + b` and the error of that sum (Knuth).
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    if !sum.is_finite() {
        return (sum, 0.0);
    }
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// `a·b + c` of f32 values, before its only rounding.
pub(crate) fn exact_fma(a: f32, b: f32, c: f32) -> (f64, f64) {
    two_sum(f64::from(a) * f64::from(b), f64::from(c))
}

/// The sign that an exact zero sum has: minus only when rounding down, or when both parts are minus zero.
pub(crate) fn zero_sum(a: f64, b: f64, mode: Rounding) -> f64 {
    let negative = if a == 0.0 && b == 0.0 && a.is_sign_negative() == b.is_sign_negative() {
        a.is_sign_negative()
    } else {
        mode == Rounding::Down
    };
    if negative { -0.0 } else { 0.0 }
}

#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Exact: scaling by 2^112 moves f16's exponents into f32's, subnormals included.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let value = if magnitude >= 0x7c00 << 13 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)
    };
    f32::from_bits(value.to_bits() | sign)
}

#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() {
        0x7fff
    } else {
        rounded as u16
    }
}

/// To nearest, ties to even, by the adder's own rounding where the result is subnormal.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    let rounded = if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // The last place of one half is f16's smallest subnormal.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13
    };
    (sign | rounded) as u16
}

/// Subnormals become zeros of the same sign.
#[inline(always)]
pub(crate) fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE {
        f32::from_bits(value.to_bits() & 0x8000_0000)
    } else {
        value
    }
}

#[inline(always)]
pub(crate) fn flush_f16(bits: u16) -> u16 {
    if bits & 0x7c00 == 0 {
        bits & 0x8000
    } else {
        bits
    }
}

/// The NaN of f32 arithmetic is always this one.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> f32 {
    if value.is_nan() {
        f32::from_bits(0x7fff_ffff)
    } else {
        value
    }
}
