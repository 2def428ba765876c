//! Loops compiled twice: for the baseline processor, and for one with AVX2 and FMA, chosen at run time.

/// `vectorised! { fn name(arg: Type, …) = body; }` makes `name`, which runs the `#[inline(always)]` function `body` with
/// the same arguments, compiled for the best instruction set that is there. (Closures would not do: called through
/// `FnOnce` they are a function of their own, compiled for the baseline.)
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:path;) => {
        $(#[$attribute])*
        $visibility fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2_and_fma($($arg: $type),*) {
                    $body($($arg),*);
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

/// Whether the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx2_and_fma() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}
