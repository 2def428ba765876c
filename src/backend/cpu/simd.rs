//! Loops compiled several times: for the baseline processor, for one with AVX2 and FMA, and for one with AVX-512,
//! chosen at run time. All of them round alike, operation by operation, so the choice does not change a bit.

/// `vectorised! { fn name(arg: Type, …) = body; }` makes `name`, which runs the `#[inline(always)]` function `body` with
/// the same arguments, compiled for the best instruction set that is there. (Closures would not do: called through
/// `FnOnce` they are a function of their own, compiled for the baseline.)
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:path;) => {
        $(#[$attribute])*
        $visibility fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn with_avx512($($arg: $type),*) {
                    $body($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2_and_fma($($arg: $type),*) {
                    $body($($arg),*);
                }
                if $crate::backend::cpu::simd::has_avx512() {
                    // SAFETY: the processor has all of them.
                    return unsafe { with_avx512($($arg),*) };
                }
                if $crate::backend::cpu::simd::has_avx2_and_fma() {
                    // SAFETY: the processor has both.
                    return unsafe { with_avx2_and_fma($($arg),*) };
                }
            }
            $body($($arg),*);
        }
    };
}

pub(super) use vectorised;

/// What a processor can do, from the least to the most.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Level {
    Baseline,
    Avx2AndFma,
    Avx512,
}

/// This processor's level, asked once: the answer is wanted for every few dozen elements.
#[cfg(target_arch = "x86_64")]
#[inline]
fn level() -> Level {
    static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
    *LEVEL.get_or_init(|| {
        if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
            Level::Baseline
        } else if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            Level::Avx512
        } else {
            Level::Avx2AndFma
        }
    })
}

/// Whether the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn has_avx2_and_fma() -> bool {
    level() >= Level::Avx2AndFma
}

/// Whether the processor also has the AVX-512 of every server since 2017 (x86-64-v4).
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn has_avx512() -> bool {
    level() >= Level::Avx512
}

/// The instruction set that the products and loops use on this processor, for the numeric record.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            "x86-64-v4"
        } else if has_avx2_and_fma() {
            "x86-64-v3"
        } else {
            "x86-64"
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}
