//! Scalar functions that LLVM turns into vector code.

/// e^x for x ≤ 88, to about 1 ulp; 0 below −87.3 (and for −∞), where f32 would be subnormal.
///
/// Cody–Waite reduction x = n·ln 2 + r, |r| ≤ ln 2 / 2, then the degree-6 polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer in the low bits
    const LN2_HI: f32 = 355.0 / 512.0; // ln 2 to 9 bits, so that n·LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.0);
    let biased = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = biased - ROUND;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.987_569_2e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    let scale =
        f32::from_bits(((biased.to_bits() as i32 - ROUND.to_bits() as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { e * scale }
}

/// x·σ(x)
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    // For x below −88 e^−x is held at its largest finite value, and x/e^88 is 0 to f32 precision of the result's use.
    x / (1.0 + exp((-x).min(88.0)))
}

/// Lanes of a sum.
const LANES: usize = 16;

/// Sum in 16 fixed lanes, then pairwise: the order depends on the length alone.
#[inline(always)]
pub fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane += f(v);
    }
    sum_of_lanes(lanes)
}

/// Σ aᵢ·bᵢ, summed as [`sum_by`] does.
#[inline(always)]
pub fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tails = (a.remainder(), b.remainder());
    for (a, b) in a.zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(b, *lane);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(tails.0).zip(tails.1) {
        *lane = a.mul_add(b, *lane);
    }
    sum_of_lanes(lanes)
}

#[inline(always)]
fn sum_of_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Largest element; −∞ for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    tail.iter()
        .chain(&lanes)
        .fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_true_value_and_zero_far_below() {
        let mut worst = 0.0_f64;
        for i in 0..400_000 {
            let x = -87.0 + i as f32 * (174.0 / 400_000.0);
            let truth = (x as f64).exp();
            worst = worst.max(((exp(x) as f64 - truth) / truth).abs());
        }
        assert!(
            worst < 2.0 * f32::EPSILON as f64,
            "worst relative error {worst:e}"
        );
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn silu_agrees_with_its_formula_in_f64() {
        for i in -2_000..2_000 {
            let x = i as f32 * 0.05;
            let truth = x as f64 / (1.0 + (-x as f64).exp());
            assert!(
                (silu(x) as f64 - truth).abs() <= 3e-7 * truth.abs() + 1e-30,
                "silu({x})"
            );
        }
    }

    #[test]
    fn the_order_of_a_sum_depends_on_its_length_alone() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin()).collect();
        let shifted: Vec<f32> = std::iter::once(9.0).chain(x.iter().copied()).collect();
        assert_eq!(
            sum_by(&x, |v| v * v).to_bits(),
            sum_by(&shifted[1..], |v| v * v).to_bits()
        );
        assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
}
