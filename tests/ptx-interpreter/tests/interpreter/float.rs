use crate::snippet::{one16, one32, one64, rows16, rows32};

const SMALLEST: u32 = 1;

fn f(value: f32) -> u32 {
    value.to_bits()
}

#[test]
fn sums_and_products_round_as_told() {
    // 1 + 2^-24 lies between 1 and the next number.
    let (one, tiny) = (f(1.0), f(2f32.powi(-24)));
    let next = one + 1;
    assert_eq!(one32("add.rn.f32 %d, %a, %b;", one, tiny, 0), one);
    assert_eq!(one32("add.rz.f32 %d, %a, %b;", one, tiny, 0), one);
    assert_eq!(one32("add.rm.f32 %d, %a, %b;", one, tiny, 0), one);
    assert_eq!(one32("add.rp.f32 %d, %a, %b;", one, tiny, 0), next);
    // And one that f64 cannot hold either: 1 + 2^-100.
    let speck = f(2f32.powi(-100));
    assert_eq!(one32("add.rp.f32 %d, %a, %b;", one, speck, 0), next);
    assert_eq!(one32("sub.rz.f32 %d, %a, %b;", one, speck, 0), one - 1);
    assert_eq!(one32("fma.rp.f32 %d, %a, %b, %c;", speck, one, one), next);
    assert_eq!(
        one32("fma.rm.f32 %d, %a, %b, %c;", speck, one, f(-1.0)),
        f(-1.0)
    );
    assert_eq!(one32("mul.rp.f32 %d, %a, %b;", next, next, 0), one + 3);
    assert_eq!(one32("mul.rn.f32 %d, %a, %b;", next, next, 0), one + 2);
    assert_eq!(
        one32("div.rp.f32 %d, %a, %b;", one, f(3.0), 0),
        f(1.0 / 3.0)
    );
    assert_eq!(
        one32("div.rz.f32 %d, %a, %b;", one, f(3.0), 0),
        f(1.0 / 3.0) - 1
    );
    assert_eq!(one32("sqrt.rz.f32 %d, %a;", f(2.0), 0, 0), f(2f32.sqrt()));
    assert_eq!(
        one32("sqrt.rp.f32 %d, %a;", f(2.0), 0, 0),
        f(2f32.sqrt()) + 1
    );
    // An exact zero is negative only when rounding down.
    assert_eq!(one32("sub.rm.f32 %d, %a, %b;", one, one, 0), f(-0.0));
    assert_eq!(one32("sub.rz.f32 %d, %a, %b;", one, one, 0), f(0.0));
}

#[test]
fn an_fma_rounds_once() {
    let next = f(1.0) + 1;
    let (x, c) = (f64::from(f32::from_bits(next)), -1.0 - 2f64.powi(-22));
    assert_eq!(
        one32("fma.rn.f32 %d, %a, %b, %c;", next, next, f(c as f32)),
        f((x * x + c) as f32)
    );
}

#[test]
fn subnormals_flush_only_where_the_instruction_says_so() {
    assert_eq!(one32("add.f32 %d, %a, %b;", SMALLEST, SMALLEST, 0), 2);
    assert_eq!(one32("add.ftz.f32 %d, %a, %b;", SMALLEST, SMALLEST, 0), 0);
    assert_eq!(
        one32("mul.ftz.f32 %d, %a, %b;", SMALLEST | 1 << 31, f(1.0), 0),
        1 << 31
    );
    assert_eq!(
        one32("fma.rn.ftz.f32 %d, %a, %b, %c;", f(1e-30), f(1e-10), 0),
        0
    );
    assert_eq!(
        one32("ex2.approx.f32 %d, %a;", f(-140.0), 0, 0),
        f(2f32.powi(-140))
    );
    assert_eq!(one32("ex2.approx.ftz.f32 %d, %a;", f(-140.0), 0, 0), 0);
    assert_eq!(
        one32(
            "setp.gt.f32 %p, %a, 0f00000000; selp.u32 %d, 1, 0, %p;",
            SMALLEST,
            0,
            0
        ),
        1
    );
    assert_eq!(
        one32(
            "setp.gt.ftz.f32 %p, %a, 0f00000000; selp.u32 %d, 1, 0, %p;",
            SMALLEST,
            0,
            0
        ),
        0
    );
}

#[test]
fn saturation_clamps_to_one_and_turns_nan_to_zero() {
    assert_eq!(
        one32("add.sat.f32 %d, %a, %b;", f(0.75), f(0.75), 0),
        f(1.0)
    );
    assert_eq!(one32("add.sat.f32 %d, %a, %b;", f(-2.0), f(0.75), 0), 0);
    assert_eq!(
        one32(
            "fma.rn.sat.f32 %d, %a, %b, %c;",
            f(f32::NAN),
            f(1.0),
            f(1.0)
        ),
        0
    );
}

#[test]
fn nan_results_are_the_canonical_one() {
    assert_eq!(
        one32("sub.f32 %d, %a, %b;", f(f32::INFINITY), f(f32::INFINITY), 0),
        0x7fff_ffff
    );
    assert_eq!(
        one32("add.f32 %d, %a, %b;", 0xffc1_2345, f(1.0), 0),
        0x7fff_ffff
    );
    assert_eq!(one32("sqrt.rn.f32 %d, %a;", f(-1.0), 0, 0), 0x7fff_ffff);
}

#[test]
fn minima_skip_nan_unless_told_otherwise() {
    let nan = f(f32::NAN);
    assert_eq!(one32("min.f32 %d, %a, %b;", nan, f(3.0), 0), f(3.0));
    assert_eq!(one32("max.f32 %d, %a, %b;", f(3.0), nan, 0), f(3.0));
    assert_eq!(
        one32("max.NaN.f32 %d, %a, %b;", f(3.0), nan, 0),
        0x7fff_ffff
    );
    assert_eq!(one32("min.f32 %d, %a, %b;", f(0.0), f(-0.0), 0), f(-0.0));
    assert_eq!(one32("max.f32 %d, %a, %b;", f(-0.0), f(0.0), 0), f(0.0));
}

#[test]
fn comparisons_say_what_they_make_of_nan() {
    let nan = f(f32::NAN);
    let holds = |cmp: &str, a, b| {
        one32(
            &format!("setp.{cmp}.f32 %p, %a, %b; selp.u32 %d, 1, 0, %p;"),
            a,
            b,
            0,
        ) == 1
    };
    for cmp in ["eq", "ne", "lt", "le", "gt", "ge", "num"] {
        assert!(!holds(cmp, nan, f(1.0)), "{cmp}");
    }
    for cmp in ["equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
        assert!(holds(cmp, nan, f(1.0)), "{cmp}");
    }
    assert!(
        holds("num", f(1.0), f(2.0))
            && holds("ltu", f(1.0), f(2.0))
            && !holds("gtu", f(1.0), f(2.0))
    );
    assert_eq!(
        one32(
            "testp.subnormal.f32 %p, %a; selp.u32 %d, 1, 0, %p;",
            SMALLEST,
            0,
            0
        ),
        1
    );
}

/// The manual's bounds: absolute, relative or in ulp, over the ranges that it names.
#[test]
fn approximations_stay_within_the_documented_error() {
    type Case = (&'static str, fn(f64) -> f64, f64, f64, fn(f64, f64) -> f64);
    let relative = |got: f64, want: f64| ((got - want) / want).abs();
    let absolute = |got: f64, want: f64| (got - want).abs();
    let cases: [Case; 7] = [
        ("ex2.approx.ftz.f32", f64::exp2, -120.0, 120.0, relative),
        (
            "rsqrt.approx.ftz.f32",
            |x| 1.0 / x.sqrt(),
            1e-6,
            1e6,
            relative,
        ),
        ("rcp.approx.ftz.f32", |x| 1.0 / x, 1e-6, 1e6, relative),
        ("sqrt.approx.ftz.f32", f64::sqrt, 1e-6, 1e6, relative),
        ("lg2.approx.ftz.f32", f64::log2, 0.5, 2.0, absolute),
        ("sin.approx.ftz.f32", f64::sin, -3.2, 3.2, absolute),
        ("cos.approx.ftz.f32", f64::cos, -3.2, 3.2, absolute),
    ];
    for (op, exact, low, high, error) in cases {
        let inputs: Vec<f32> = (0..32)
            .map(|i| (low + (high - low) * (f64::from(i) + 0.3) / 32.0) as f32)
            .collect();
        let rows: Vec<[u64; 4]> = inputs
            .iter()
            .map(|x| [x.to_bits().into(), 0, 0, 0])
            .collect();
        for (x, got) in inputs.iter().zip(rows32(&format!("{op} %d, %a;"), &rows)) {
            let (got, want) = (f64::from(f32::from_bits(got)), exact(f64::from(*x)));
            // 2^-22 is the tightest bound that the manual gives for any of them.
            assert!(
                error(got, want) <= 2f64.powi(-22),
                "{op} of {x}: {got} for {want}"
            );
        }
    }
    assert_eq!(
        one32("tanh.approx.f32 %d, %a;", f(0.5), 0, 0),
        f(0.5f64.tanh() as f32)
    );
}

#[test]
fn approximations_have_their_special_values() {
    assert_eq!(
        one32("rsqrt.approx.f32 %d, %a;", f(0.0), 0, 0),
        f(f32::INFINITY)
    );
    assert_eq!(
        one32("rsqrt.approx.ftz.f32 %d, %a;", SMALLEST, 0, 0),
        f(f32::INFINITY)
    );
    assert_eq!(
        one32("rcp.approx.f32 %d, %a;", f(-0.0), 0, 0),
        f(f32::NEG_INFINITY)
    );
    assert_eq!(
        one32("ex2.approx.f32 %d, %a;", f(f32::NEG_INFINITY), 0, 0),
        0
    );
    assert_eq!(
        one32("lg2.approx.f32 %d, %a;", f(0.0), 0, 0),
        f(f32::NEG_INFINITY)
    );
    // Beyond 2^126 an approximate quotient is zero.
    assert_eq!(
        one32(
            "div.approx.f32 %d, %a, %b;",
            f(2f32.powi(127)),
            f(2f32.powi(127)),
            0
        ),
        0
    );
    // Only the upper half of the bits is looked at, and given.
    let gross = one64("rcp.approx.ftz.f64 %D, %A;", 3f64.to_bits(), 0, 0);
    assert_eq!(gross & 0xffff_ffff, 0);
    assert!((f64::from_bits(gross) * 3.0 - 1.0).abs() < 2f64.powi(-19));
}

#[test]
fn bf16_arithmetic_rounds_ties_to_even() {
    // 1 + 2^-8 is halfway between 1 and the next bf16.
    assert_eq!(
        one16("add.rn.bf16 %hd, %ha, %hb;", 0x3f80, 0x3b80, 0),
        0x3f80
    );
    assert_eq!(
        one16("add.rn.bf16 %hd, %ha, %hb;", 0x3f81, 0x3b80, 0),
        0x3f82
    );
    // In an fma the last bit of the product decides the tie: 1.0078125² = 1 + 2^-6 + 2^-14, minus 2^-6, plus ...
    assert_eq!(
        one16("fma.rn.bf16 %hd, %ha, %hb, %hc;", 0x3f81, 0x3b80, 0x3f80),
        0x3f81
    );
    assert_eq!(
        one16("mul.rn.bf16 %hd, %ha, %hb;", 0x4000, 0x4040, 0),
        0x40c0
    );
    assert_eq!(
        one16(
            "fma.rn.relu.bf16 %hd, %ha, %hb, %hc;",
            0xbf80,
            0x3f80,
            0x0000
        ),
        0
    );
    assert_eq!(
        one32(
            "fma.rn.bf16x2 %d, %a, %b, %c;",
            0x3f80_4000,
            0x4000_4000,
            0x3f80_0000
        ),
        0x4040_4080
    );
    assert_eq!(one16("neg.bf16 %hd, %ha;", 0x3f80, 0, 0), 0xbf80);
    assert_eq!(one16("max.bf16 %hd, %ha, %hb;", 0x3f80, 0x7fff, 0), 0x3f80);
    assert_eq!(one16("ex2.approx.ftz.bf16 %hd, %ha;", 0x4000, 0, 0), 0x4080);
}

#[test]
fn f16_arithmetic_keeps_subnormals_and_overflows_to_infinity() {
    assert_eq!(one16("add.f16 %hd, %ha, %hb;", 0x0001, 0x0001, 0), 0x0002);
    assert_eq!(one16("add.ftz.f16 %hd, %ha, %hb;", 0x0001, 0x0001, 0), 0);
    assert_eq!(one16("mul.f16 %hd, %ha, %hb;", 0x7bff, 0x4000, 0), 0x7c00);
    assert_eq!(
        one16("add.sat.f16 %hd, %ha, %hb;", 0x3c00, 0x3c00, 0),
        0x3c00
    );
    // 2049 = 2048 + 1 lies between two numbers and goes to the even one.
    assert_eq!(
        rows16(
            "add.f16 %hd, %ha, %hb;",
            &[[0x6800, 0x3c00, 0, 0], [0x6801, 0x3c00, 0, 0]]
        ),
        [0x6800, 0x6802]
    );
    assert_eq!(
        one32("mul.f16x2 %d, %a, %b;", 0x3c00_4000, 0x4000_4000, 0),
        0x4000_4400
    );
    assert_eq!(one16("tanh.approx.f16 %hd, %ha;", 0x0000, 0, 0), 0);
}

#[test]
fn f64_is_f64() {
    let (a, b) = (0.1f64, 0.2f64);
    assert_eq!(
        one64("add.rn.f64 %D, %A, %B;", a.to_bits(), b.to_bits(), 0),
        (a + b).to_bits()
    );
    assert_eq!(
        one64(
            "fma.rn.f64 %D, %A, %B, %C;",
            a.to_bits(),
            b.to_bits(),
            (-0.02f64).to_bits()
        ),
        a.mul_add(b, -0.02).to_bits()
    );
    assert_eq!(
        one64("sqrt.rn.f64 %D, %A;", 2f64.to_bits(), 0, 0),
        2f64.sqrt().to_bits()
    );
    assert_eq!(
        one64("add.f64 %D, %A, 0d3FF0000000000000;", a.to_bits(), 0, 0),
        1.1f64.to_bits()
    );
}
