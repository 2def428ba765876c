//! What the ops compute in: f32, or bf16 with its rounding points.
//!
//! Activations lie in f32 memory either way. In bf16 every op rounds what it writes where Hugging Face does, so that each number in
//! that memory is one that bf16 holds; products multiply pairs of them (`pairs.rs`) and sum in f32.

use super::pairs;
use super::tile::Tile;

/// What an op's numbers are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    F32,
    /// Weights and activations in bf16; sums, softmax and the norms' scale in f32.
    Bf16 {
        /// The residual stream is not rounded.
        f32_resid: bool,
    },
}

impl Precision {
    /// Whether what an op makes is rounded to bf16.
    pub(super) fn rounding(self) -> Rounding {
        match self {
            Precision::F32 => Rounding::Exact,
            Precision::Bf16 { .. } => Rounding::Bf16,
        }
    }

    /// The same for the residual stream.
    pub(super) fn resid_rounding(self) -> Rounding {
        match self {
            Precision::F32 | Precision::Bf16 { f32_resid: true } => Rounding::Exact,
            Precision::Bf16 { f32_resid: false } => Rounding::Bf16,
        }
    }

    /// The fastest loop of its products here.
    pub(super) fn tile(self) -> &'static Tile {
        match self {
            Precision::F32 => Tile::best(),
            Precision::Bf16 { .. } => Tile::best_of_pairs(),
        }
    }

    /// The matrix product, for the numeric record.
    pub fn gemm(self) -> &'static str {
        match self {
            Precision::F32 => super::matmul::GEMM,
            Precision::Bf16 { .. } => super::matmul::GEMM_BF16,
        }
    }

    /// The instruction set that its products and loops use on this processor, for the numeric record.
    pub fn instruction_set(self) -> &'static str {
        let level = super::simd::instruction_set();
        match self {
            Precision::F32 => level,
            Precision::Bf16 { .. } if pairs::has_avx512_bf16() => "x86-64-v4, avx512bf16",
            Precision::Bf16 { .. } => level,
        }
    }
}

/// Whether results are rounded to bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    Exact,
    Bf16,
}

/// [`Rounding`], known when a loop is compiled.
pub(super) trait Round {
    fn round(x: f32) -> f32;
}

pub(super) struct Exact;

pub(super) struct ToBf16;

impl Round for Exact {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
}

impl Round for ToBf16 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        to_bf16(x)
    }
}

/// The nearest number that bf16 holds, ties to even.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // The carry would make another number of some that are none.
    f32::from_bits(if x.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    })
}

/// `rounded! { fn name(arg: Type, …) = body; }` makes `name`, which takes a [`Rounding`] before the arguments and runs the function
/// `body<R: Round>` that it stands for, vectorised.
macro_rules! rounded {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident;) => {
        $(#[$attribute])*
        $visibility fn $name(rounding: $crate::backend::cpu::precision::Rounding, $($arg: $type),*) {
            use $crate::backend::cpu::precision::{Exact, Rounding, ToBf16};
            $crate::backend::cpu::simd::vectorised! { fn exact($($arg: $type),*) = $body::<Exact>; }
            $crate::backend::cpu::simd::vectorised! { fn to_bf16($($arg: $type),*) = $body::<ToBf16>; }
            match rounding {
                Rounding::Exact => exact($($arg),*),
                Rounding::Bf16 => to_bf16($($arg),*),
            }
        }
    };
}

pub(super) use rounded;

rounded! {
    /// Rounds every number where it is.
    pub(super) fn round_all(x: &mut [f32]) = round_loop;
}

#[inline(always)]
fn round_loop<R: Round>(x: &mut [f32]) {
    for x in x {
        *x = R::round(*x);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_rounded_as_half_rounds_it(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (to_bf16(x), bf16::from_f32(x).to_f32());
            prop_assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{x:e}: {ours:e}, {theirs:e}");
            let mut row = [x; 19];
            round_all(Rounding::Bf16, &mut row);
            prop_assert!(row.iter().all(|r| r.to_bits() == ours.to_bits()));
            round_all(Rounding::Exact, &mut [x]);
        }
    }
}
