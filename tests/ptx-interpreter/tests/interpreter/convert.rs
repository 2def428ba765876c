use crate::snippet::{one16, one32, one64, rows16, rows32};

fn f(value: f32) -> u32 {
    value.to_bits()
}

#[test]
fn f32_to_bf16_rounds_as_told() {
    // Halfway, just below and just above halfway, and the halfway point of an odd number.
    let inputs = [
        0x3f80_8000u64,
        0x3f80_7fff,
        0x3f80_8001,
        0x3f81_8000,
        0xbf80_8001,
    ];
    let rows: Vec<[u64; 4]> = inputs.iter().map(|&x| [x, 0, 0, 0]).collect();
    assert_eq!(
        rows16("cvt.rn.bf16.f32 %hd, %a;", &rows),
        [0x3f80, 0x3f80, 0x3f81, 0x3f82, 0xbf81]
    );
    assert_eq!(
        rows16("cvt.rz.bf16.f32 %hd, %a;", &rows),
        [0x3f80, 0x3f80, 0x3f80, 0x3f81, 0xbf80]
    );
    assert_eq!(one16("cvt.rn.bf16.f32 %hd, %ha;", 0, 0, 0), 0);
}

#[test]
fn f32_to_bf16_knows_the_ends_of_its_range() {
    let convert = |x: u32| rows16("cvt.rn.bf16.f32 %hd, %a;", &[[x.into(), 0, 0, 0]])[0];
    assert_eq!(convert(f(f32::MAX)), 0x7f80);
    assert_eq!(convert(f(f32::NEG_INFINITY)), 0xff80);
    assert_eq!(convert(0xffc0_0001), 0x7fff);
    // A bf16 subnormal, and a tie among them.
    assert_eq!(convert(0x0001_8000), 0x0002);
    let (relu, big) = ("cvt.rn.relu.bf16.f32 %hd, %a;", [[f(-1.0).into(), 0, 0, 0]]);
    assert_eq!(rows16(relu, &big)[0], 0);
    assert_eq!(
        rows16("cvt.rz.bf16.f32 %hd, %a;", &[[f(f32::MAX).into(), 0, 0, 0]])[0],
        0x7f7f
    );
}

#[test]
fn f32_to_f16_rounds_overflows_and_keeps_subnormals() {
    let convert = |x: f32| rows16("cvt.rn.f16.f32 %hd, %a;", &[[f(x).into(), 0, 0, 0]])[0];
    assert_eq!(convert(1.0), 0x3c00);
    assert_eq!(convert(65504.0), 0x7bff);
    assert_eq!(convert(65519.0), 0x7bff);
    assert_eq!(convert(65520.0), 0x7c00);
    assert_eq!(convert(2f32.powi(-24)), 0x0001);
    assert_eq!(convert(2f32.powi(-25)), 0x0000);
    assert_eq!(convert(1.5 * 2f32.powi(-24)), 0x0002);
    assert_eq!(convert(-2f32.powi(-25) * 1.01), 0x8001);
    assert_eq!(convert(2049.0), 0x6800);
    assert_eq!(convert(2051.0), 0x6802);
    assert_eq!(convert(f32::NAN), 0x7fff);
    assert_eq!(
        rows16("cvt.rz.f16.f32 %hd, %a;", &[[f(1e6).into(), 0, 0, 0]])[0],
        0x7bff
    );
    assert_eq!(
        rows16("cvt.rn.sat.f16.f32 %hd, %a;", &[[f(7.0).into(), 0, 0, 0]])[0],
        0x3c00
    );
}

#[test]
fn every_f16_and_bf16_survives_the_way_to_f32_and_back() {
    for first in (0..=u16::MAX).step_by(32 * 61) {
        let rows: Vec<[u64; 4]> = (0..32)
            .map(|i| [u64::from(first.wrapping_add(i * 61)), 0, 0, 0])
            .collect();
        for (ty, infinity) in [("f16", 0x7c00), ("bf16", 0x7f80)] {
            let body = format!("cvt.f32.{ty} %d, %ha; cvt.rn.{ty}.f32 %hd, %d;");
            for (row, back) in rows.iter().zip(rows16(&body, &rows)) {
                let nan = row[0] & 0x7fff > infinity;
                assert_eq!(
                    back,
                    if nan { 0x7fff } else { row[0] as u16 },
                    "{ty} {:04x}",
                    row[0]
                );
            }
        }
    }
}

#[test]
fn packing_puts_the_first_operand_into_the_upper_half() {
    assert_eq!(
        one32("cvt.rn.bf16x2.f32 %d, %a, %b;", f(2.0), f(1.0), 0),
        0x4000_3f80
    );
    assert_eq!(
        one32("cvt.rn.f16x2.f32 %d, %a, %b;", f(2.0), f(1.0), 0),
        0x4000_3c00
    );
    assert_eq!(
        one32("cvt.rn.relu.f16x2.f32 %d, %a, %b;", f(-2.0), f(1.0), 0),
        0x0000_3c00
    );
    assert_eq!(
        one32("cvt.rz.bf16x2.f32 %d, %a, %b;", 0x3f80_ffff, 0xbf80_ffff, 0),
        0x3f80_bf80
    );
}

#[test]
fn tf32_keeps_ten_bits_of_fraction() {
    assert_eq!(
        one32("cvt.rna.tf32.f32 %d, %a;", 0x3f80_1000, 0, 0),
        0x3f80_2000
    );
    assert_eq!(
        one32("cvt.rna.tf32.f32 %d, %a;", 0x3f80_0fff, 0, 0),
        0x3f80_0000
    );
}

#[test]
fn floats_to_integers_round_and_saturate() {
    let rows: Vec<[u64; 4]> = [2.5f32, 3.5, -2.5, -0.75, 3e9, -3e9, f32::NAN]
        .iter()
        .map(|x| [f(*x).into(), 0, 0, 0])
        .collect();
    let signed = |body: &str| {
        rows32(body, &rows)
            .into_iter()
            .map(|x| x as i32)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        signed("cvt.rni.s32.f32 %d, %a;"),
        [2, 4, -2, -1, i32::MAX, i32::MIN, 0]
    );
    assert_eq!(
        signed("cvt.rzi.s32.f32 %d, %a;"),
        [2, 3, -2, 0, i32::MAX, i32::MIN, 0]
    );
    assert_eq!(
        signed("cvt.rmi.s32.f32 %d, %a;"),
        [2, 3, -3, -1, i32::MAX, i32::MIN, 0]
    );
    assert_eq!(
        signed("cvt.rpi.s32.f32 %d, %a;"),
        [3, 4, -2, 0, i32::MAX, i32::MIN, 0]
    );
    assert_eq!(
        rows32("cvt.rzi.u32.f32 %d, %a;", &rows),
        [2, 3, 0, 0, 3_000_000_000, 0, 0]
    );
    assert_eq!(
        one64("cvt.rzi.s64.f32 %D, %a;", f(f32::NAN).into(), 0, 0),
        1 << 63
    );
    assert_eq!(
        one64("cvt.rzi.u64.f64 %D, %A;", 1e30f64.to_bits(), 0, 0),
        u64::MAX
    );
}

#[test]
fn integers_to_floats_round_once() {
    assert_eq!(
        one32("cvt.rn.f32.u32 %d, %a;", 0x0100_0001, 0, 0),
        f(16_777_216.0)
    );
    assert_eq!(
        one32("cvt.rp.f32.u32 %d, %a;", 0x0100_0001, 0, 0),
        f(16_777_218.0)
    );
    assert_eq!(
        one32("cvt.rz.f32.s32 %d, %a;", -0x0100_0001i32 as u32, 0, 0),
        f(-16_777_216.0)
    );
    // 2^60 + 2^36 + 1 is just above a tie in f32, which f64 no longer sees.
    let body = "cvt.rn.f32.u64 %d, %A; cvt.u64.u32 %D, %d;";
    assert_eq!(
        one64(body, (1 << 60) + (1 << 36) + 1, 0, 0) as u32,
        f(2f32.powi(60)) + 1
    );
    assert_eq!(
        one64("cvt.rn.f64.u64 %D, %A;", u64::MAX, 0, 0),
        (u64::MAX as f64).to_bits()
    );
    assert_eq!(
        one64("cvt.rz.f64.u64 %D, %A;", u64::MAX, 0, 0),
        (u64::MAX as f64).to_bits() - 1
    );
    assert_eq!(one16("cvt.rn.f16.u16 %hd, %ha;", 2049, 0, 0), 0x6800);
    assert_eq!(one16("cvt.rn.bf16.s16 %hd, %ha;", 0xffff, 0, 0), 0xbf80);
}

#[test]
fn floats_round_to_whole_floats() {
    assert_eq!(one32("cvt.rni.f32.f32 %d, %a;", f(2.5), 0, 0), f(2.0));
    assert_eq!(one32("cvt.rmi.f32.f32 %d, %a;", f(-0.25), 0, 0), f(-1.0));
    assert_eq!(one32("cvt.rpi.f32.f32 %d, %a;", f(-0.25), 0, 0), f(-0.0));
    assert_eq!(one32("cvt.sat.f32.f32 %d, %a;", f(1.5), 0, 0), f(1.0));
    assert_eq!(one32("cvt.ftz.f32.f32 %d, %a;", 5, 0, 0), 0);
    assert_eq!(one32("cvt.rn.f32.f64 %d, %A;", 0, 0, 0), 0);
    assert_eq!(
        one64(
            "cvt.rn.f32.f64 %d, %A; cvt.u64.u32 %D, %d;",
            (1.0 + 2f64.powi(-24)).to_bits(),
            0,
            0
        ) as u32,
        f(1.0)
    );
    assert_eq!(
        one64(
            "cvt.rp.f32.f64 %d, %A; cvt.u64.u32 %D, %d;",
            (1.0 + 2f64.powi(-60) * 256.0).to_bits(),
            0,
            0
        ) as u32,
        f(1.0) + 1
    );
    assert_eq!(
        one64("cvt.f64.f32 %D, %a;", f(0.1).into(), 0, 0),
        f64::from(0.1f32).to_bits()
    );
}

#[test]
fn integers_widen_by_their_sign_and_saturate_where_told() {
    assert_eq!(one64("cvt.s64.s32 %D, %a;", 0xffff_ffff, 0, 0), u64::MAX);
    assert_eq!(one64("cvt.u64.u32 %D, %a;", 0xffff_ffff, 0, 0), 0xffff_ffff);
    assert_eq!(one32("cvt.s32.s8 %d, %a;", 0x80, 0, 0), -128i32 as u32);
    assert_eq!(one32("cvt.u32.u8 %d, %a;", 0x1ff, 0, 0), 0xff);
    assert_eq!(one32("cvt.sat.u8.s32 %d, %a;", 300, 0, 0), 255);
    assert_eq!(
        one32("cvt.sat.s8.s32 %d, %a;", -300i32 as u32, 0, 0),
        -128i32 as u32
    );
    assert_eq!(one16("cvt.u16.u32 %hd, %a;", 0xffff, 0, 0), 0xffff);
}
