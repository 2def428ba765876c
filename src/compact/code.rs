//! One number in 8 bits: the two codes, their scales, and rounding.

use safetensors::Dtype;

/// What a number of a compact row is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// FP8 E4M3 (Micikevicius et al. 2022, the variant without infinities): sign, 4 bits of exponent, 3 of mantissa; largest 448.
    F8E4M3,
    /// A signed byte from −127 to 127.
    I8,
}

/// Scales are normal numbers, so that a division by one is as exact as any other.
const LEAST_SCALE: f32 = f32::MIN_POSITIVE;
/// The largest E4M3 number.
const E4M3_MAX: f32 = 448.0;
/// From here up E4M3 numbers are normal: 2⁻⁶. Below they are multiples of 2⁻⁹.
const E4M3_LEAST_NORMAL: f32 = 1.0 / 64.0;
const E4M3_NAN: u8 = 0x7f;

impl Code {
    pub(super) fn scale_dtype(self) -> Dtype {
        match self {
            Code::F8E4M3 => Dtype::F32,
            Code::I8 => Dtype::BF16,
        }
    }

    pub(super) fn scale_bytes(self) -> usize {
        match self {
            Code::F8E4M3 => 4,
            Code::I8 => 2,
        }
    }

    /// The scale of some numbers: the largest magnitude over the largest code, never less than 2⁻¹²⁶. NaN where one of them is not finite:
    /// all of them then read as NaN, which is seen, where a large number in the place of an infinity would not be.
    #[inline(always)]
    pub(super) fn scale(self, numbers: &[f32]) -> f32 {
        let magnitudes = numbers.iter().map(|x| x.to_bits() & 0x7fff_ffff);
        let largest = f32::from_bits(magnitudes.fold(0, u32::max));
        if !largest.is_finite() {
            return f32::NAN;
        }
        match self {
            Code::F8E4M3 => (largest / E4M3_MAX).max(LEAST_SCALE),
            // To bf16, rounded up, so that no code is past 127.
            Code::I8 => {
                let bits = (largest / 127.0).to_bits();
                f32::from_bits((bits + 0xffff) & 0xffff_0000).max(LEAST_SCALE)
            }
        }
    }

    /// Writes a scale that [`scale`](Self::scale) gave.
    #[inline(always)]
    pub(super) fn put_scale(self, scale: f32, to: &mut [u8]) {
        match self {
            Code::F8E4M3 => to.copy_from_slice(&scale.to_le_bytes()),
            Code::I8 => to.copy_from_slice(&scale.to_le_bytes()[2..]),
        }
    }

    #[inline(always)]
    pub(super) fn read_scale(self, bytes: &[u8]) -> f32 {
        match self {
            Code::F8E4M3 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Code::I8 => f32::from_le_bytes([0, 0, bytes[0], bytes[1]]),
        }
    }

    /// The codes of some numbers: number / scale, rounded to the nearest code, ties to even; past the largest, the largest.
    #[inline(always)]
    pub(super) fn encode(self, numbers: &[f32], scale: f32, codes: &mut [u8]) {
        match self {
            Code::F8E4M3 => {
                for (code, x) in codes.iter_mut().zip(numbers) {
                    *code = e4m3_of(x / scale);
                }
            }
            Code::I8 => {
                for (code, x) in codes.iter_mut().zip(numbers) {
                    // `as` makes 0 of a NaN.
                    let y = (x / scale).round_ties_even().clamp(-127.0, 127.0);
                    *code = (y as i8).cast_unsigned();
                }
            }
        }
    }

    #[inline(always)]
    pub(super) fn decode(self, codes: &[u8], scale: f32, out: &mut [f32]) {
        match self {
            Code::F8E4M3 => {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = E4M3[usize::from(code)] * scale;
                }
            }
            Code::I8 => {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = f32::from(code.cast_signed()) * scale;
                }
            }
        }
    }
}

/// The E4M3 code nearest to `y`, ties to even; of what is larger than 448, 448's. NaN keeps its sign. Free of branches, so that it becomes
/// vector code.
#[inline(always)]
pub fn e4m3_of(y: f32) -> u8 {
    let sign = ((y.to_bits() >> 24) & 0x80) as u8;
    // `min` would drop a NaN, which is dealt with below.
    let magnitude = y.abs().min(E4M3_MAX);
    // Adding 2¹⁴ leaves multiples of 2⁻⁹ to a 24-bit mantissa: the sum is rounded to the codes below 2⁻⁶.
    const SHIFT: f32 = 16_384.0;
    let below = ((magnitude + SHIFT).to_bits() & 0xff) as u8;
    // Above, 20 of 23 bits of mantissa go; a carry goes into the exponent, whose bias changes from 127 to 7.
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
    let normal = (rounded >> 20).wrapping_sub((127 - 7) << 3) as u8;
    let code = if magnitude < E4M3_LEAST_NORMAL {
        below
    } else {
        normal
    };
    sign | if y.is_nan() { E4M3_NAN } else { code }
}

/// The number that an E4M3 code stands for.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

static E4M3: [f32; 256] = e4m3_numbers();

const fn e4m3_numbers() -> [f32; 256] {
    let mut numbers = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        let magnitude = if exponent == 15 && mantissa == 7 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            (8 + mantissa) as f32 * (1u32 << exponent) as f32 / 1024.0
        };
        // Turning the sign of a NaN round is sure to; multiplying it is not.
        numbers[code] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    numbers
}
