//! Elements of tensors, rounded straight from float64, and their distance in units in the last place.

use half::{bf16, f16};
use streamgauge::backend::cuda::Dtype;

pub trait Element: bytemuck::Pod + PartialEq + std::fmt::Debug {
    const DTYPE: Dtype;
    fn wide(self) -> f64;
    /// The nearest value, ties to even, by one rounding.
    fn round(x: f64) -> Self;
    /// The bits as a number that grows with the value, both zeros being 0.
    fn rank(self) -> i64;

    fn same_bits(self, other: Self) -> bool {
        bytemuck::bytes_of(&self) == bytemuck::bytes_of(&other)
    }
}

/// How many values lie between the two, one end included; `u64::MAX` if just one is NaN.
pub fn ulps<T: Element>(a: T, b: T) -> u64 {
    match (a.wide().is_nan(), b.wide().is_nan()) {
        (false, false) => a.rank().abs_diff(b.rank()),
        (true, true) => 0,
        _ => u64::MAX,
    }
}

/// The distance from |x| to the next larger value of T.
pub fn ulp<T: Element>(x: f64) -> f64 {
    let (mantissa_bits, smallest_exponent) = match T::DTYPE {
        Dtype::BF16 => (7, -126),
        Dtype::F16 => (10, -14),
        Dtype::F32 => (23, -126),
    };
    let exponent = x.abs().max(f64::MIN_POSITIVE).log2().floor() as i32;
    2f64.powi(exponent.max(smallest_exponent) - mantissa_bits)
}

/// The values of `x`, widened.
pub fn wide<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.wide()).collect()
}

/// The f32 next to `x` that has an odd last bit, unless f32 holds `x`: rounding it again to a shorter type is as
/// rounding `x` once.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    // The neighbour on the other side of x has the odd bit.
    let away = (f64::from(near).abs() < x.abs()) as u32;
    f32::from_bits(near.to_bits() - 1 + 2 * away)
}

fn rank(magnitude: u32, negative: bool) -> i64 {
    if negative {
        -i64::from(magnitude)
    } else {
        i64::from(magnitude)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn wide(self) -> f64 {
        self.into()
    }
    fn round(x: f64) -> f32 {
        x as f32
    }
    fn rank(self) -> i64 {
        rank(self.abs().to_bits(), self.is_sign_negative())
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn round(x: f64) -> f16 {
        f16::from_f32(to_odd(x))
    }
    fn rank(self) -> i64 {
        rank((self.to_bits() & 0x7fff).into(), self.is_sign_negative())
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn round(x: f64) -> bf16 {
        bf16::from_f32(to_odd(x))
    }
    fn rank(self) -> i64 {
        rank((self.to_bits() & 0x7fff).into(), self.is_sign_negative())
    }
}

#[test]
fn rounding_from_f64_is_done_once() {
    // Halfway between two bf16 values, and a hair above it that f32 cannot hold.
    let tie = 1.0 + 2f64.powi(-8);
    assert_eq!(bf16::round(tie).to_f64(), 1.0);
    assert_eq!(
        bf16::round(tie + 2f64.powi(-40)).to_f64(),
        1.0 + 2f64.powi(-7)
    );
    assert_eq!(
        bf16::round(-tie - 2f64.powi(-40)).to_f64(),
        -1.0 - 2f64.powi(-7)
    );
    let tie = 1.0 + 2f64.powi(-11);
    assert_eq!(f16::round(tie).to_f64(), 1.0);
    assert_eq!(
        f16::round(tie + 2f64.powi(-45)).to_f64(),
        1.0 + 2f64.powi(-10)
    );
    assert_eq!(f16::round(tie - 2f64.powi(-45)).to_f64(), 1.0);
}

#[test]
fn neighbours_are_one_ulp_apart_across_zero_too() {
    assert_eq!(ulps(0.0f32, -0.0), 0);
    assert_eq!(ulps(f32::from_bits(1), -f32::from_bits(1)), 2);
    assert_eq!(
        ulps(bf16::from_f32(1.0), bf16::from_f32(1.0 + 1.0 / 128.0)),
        1
    );
    assert_eq!(ulps(f16::NAN, f16::ONE), u64::MAX);
}
