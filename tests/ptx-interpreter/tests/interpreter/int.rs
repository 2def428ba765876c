use crate::snippet::{one16, one32, one64, rows32};

#[test]
fn addition_subtraction_and_products_wrap() {
    assert_eq!(one32("add.s32 %d, %a, %b;", u32::MAX, 2, 0), 1);
    assert_eq!(one32("sub.u32 %d, %a, %b;", 1, 2, 0), u32::MAX);
    assert_eq!(
        one32("mul.lo.s32 %d, %a, %b;", 0x10001, 0x10001, 0),
        0x20001
    );
    assert_eq!(
        one32("mul.hi.u32 %d, %a, %b;", u32::MAX, u32::MAX, 0),
        0xffff_fffe
    );
    assert_eq!(one32("mul.hi.s32 %d, %a, %b;", u32::MAX, u32::MAX, 0), 0);
    assert_eq!(
        one64("mul.hi.u64 %D, %A, %B;", u64::MAX, u64::MAX, 0),
        u64::MAX - 1
    );
    assert_eq!(
        one64("mul.wide.s32 %D, %a, %b;", u32::MAX as u64, 3, 0),
        (-3i64) as u64
    );
    assert_eq!(
        one64("mad.wide.u32 %D, %a, %b, %C;", u32::MAX as u64, 2, 5),
        0x1_ffff_fffe + 5
    );
    assert_eq!(one32("mad.lo.s32 %d, %a, %b, %c;", 7, 6, 5), 47);
    assert_eq!(one32("mad.hi.s32 %d, %a, %b, %c;", 1 << 30, 8, 5), 7);
    assert_eq!(
        one32("add.sat.s32 %d, %a, %b;", i32::MAX as u32, 1, 0),
        i32::MAX as u32
    );
    assert_eq!(
        one32("sub.sat.s32 %d, %a, %b;", i32::MIN as u32, 1, 0),
        i32::MIN as u32
    );
    assert_eq!(one16("add.s16 %hd, %ha, %hb;", 0xffff, 2, 0), 1);
    assert_eq!(
        one16("mul.lo.s16 %hd, %ha, %hb;", 300, 300, 0),
        (300u32 * 300) as u16
    );
    assert_eq!(one32("mul.wide.u16 %d, %ha, %hb;", 300, 300, 0), 90_000);
    assert_eq!(one32("sad.u32 %d, %a, %b, %c;", 3, 10, 100), 107);
}

#[test]
fn a_carry_runs_through_a_chain() {
    let sum = "add.cc.u32 %d, %a, %b; addc.u32 %t0, %c, 0; cvt.u64.u32 %T0, %t0; shl.b64 %T0, %T0, 32; cvt.u64.u32 %T1, %d; or.b64 %D, %T0, %T1;";
    assert_eq!(one64(sum, 0xffff_ffff, 1, 7), 8 << 32);
    let difference = "sub.cc.u32 %d, %a, %b; subc.u32 %t0, %c, 0; cvt.u64.u32 %D, %t0;";
    assert_eq!(one64(difference, 0, 1, 7), 6);
}

#[test]
fn division_by_zero_gives_all_ones() {
    assert_eq!(one32("div.u32 %d, %a, %b;", 7, 0, 0), u32::MAX);
    assert_eq!(
        one32("div.s32 %d, %a, %b;", -7i32 as u32, 2, 0),
        -3i32 as u32
    );
    assert_eq!(
        one32("rem.s32 %d, %a, %b;", -7i32 as u32, 2, 0),
        -1i32 as u32
    );
    assert_eq!(
        one32("div.s32 %d, %a, %b;", i32::MIN as u32, u32::MAX, 0),
        i32::MIN as u32
    );
    assert_eq!(
        one64("rem.u64 %D, %A, %B;", 1 << 40, 1000, 0),
        (1 << 40) % 1000
    );
}

#[test]
fn shifts_beyond_the_width_clamp() {
    assert_eq!(one32("shl.b32 %d, %a, %b;", 1, 31, 0), 1 << 31);
    assert_eq!(one32("shl.b32 %d, %a, %b;", 1, 32, 0), 0);
    assert_eq!(one32("shr.u32 %d, %a, %b;", 1 << 31, 40, 0), 0);
    assert_eq!(one32("shr.s32 %d, %a, %b;", 1 << 31, 40, 0), u32::MAX);
    assert_eq!(one64("shr.s64 %D, %A, %b;", 1 << 63, 63, 0), u64::MAX);
    assert_eq!(one64("shr.s64 %D, %A, %b;", 1 << 62, 64, 0), 0);
    assert_eq!(one16("shr.s16 %hd, %ha, %b;", 0x8000, 15, 0), 0xffff);
}

#[test]
fn bits_are_counted_found_and_reversed() {
    assert_eq!(one32("popc.b32 %d, %a;", 0xf0f0, 0, 0), 8);
    assert_eq!(one32("popc.b64 %d, %A;", u32::MAX, 0, 0), 32);
    assert_eq!(
        rows32(
            "clz.b32 %d, %a;",
            &[[0; 4], [1, 0, 0, 0], [1 << 31, 0, 0, 0]]
        ),
        [32, 31, 0]
    );
    assert_eq!(one32("clz.b64 %d, %A;", 1, 0, 0), 63);
    assert_eq!(one32("brev.b32 %d, %a;", 0b1011, 0, 0), 0b1101 << 28);
    assert_eq!(
        rows32("bfind.u32 %d, %a;", &[[0; 4], [0x8000, 0, 0, 0]]),
        [u32::MAX, 15]
    );
    assert_eq!(one32("bfind.s32 %d, %a;", -2i32 as u32, 0, 0), 0);
    assert_eq!(one32("bfind.shiftamt.u32 %d, %a;", 0x8000, 0, 0), 16);
    assert_eq!(one32("cnot.b32 %d, %a;", 0, 0, 0), 1);
}

#[test]
fn a_bit_field_is_extracted_with_its_sign() {
    assert_eq!(one32("bfe.u32 %d, %a, 4, 8;", 0xabcd, 0, 0), 0xbc);
    assert_eq!(one32("bfe.s32 %d, %a, 4, 8;", 0xabcd, 0, 0), 0xffff_ffbc);
    assert_eq!(one32("bfe.u32 %d, %a, 28, 8;", 0xf000_0000, 0, 0), 0xf);
    // Beyond the top the sign is bit 31.
    assert_eq!(one32("bfe.s32 %d, %a, 28, 8;", 0xf000_0000, 0, 0), u32::MAX);
    assert_eq!(one32("bfe.u32 %d, %a, 40, 8;", u32::MAX, 0, 0), 0);
    assert_eq!(one32("bfe.u32 %d, %a, 0, 0;", u32::MAX, 0, 0), 0);
    assert_eq!(
        one64("bfe.u64 %D, %A, 32, 16;", 0x1234_5678_9abc_def0, 0, 0),
        0x5678
    );
}

#[test]
fn a_bit_field_is_inserted() {
    assert_eq!(
        one32("bfi.b32 %d, %a, %b, 8, 8;", 0xab, 0x1111_1111, 0),
        0x1111_ab11
    );
    assert_eq!(one32("bfi.b32 %d, %a, %b, 28, 8;", 0xab, 0, 0), 0xb000_0000);
    assert_eq!(one32("bfi.b32 %d, %a, %b, 0, 0;", 0xab, 7, 0), 7);
    assert_eq!(one32("bfi.b32 %d, %a, %b, 40, 8;", 0xab, 7, 0), 7);
    assert_eq!(one64("bfi.b64 %D, %A, %B, 32, 32;", 5, 9, 0), 5 << 32 | 9);
}

#[test]
fn bytes_are_permuted() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    assert_eq!(one32("prmt.b32 %d, %a, %b, 0x7531;", a, b, 0), 0x7755_3311);
    // The fourth bit of a selector spreads the byte's sign.
    assert_eq!(
        one32("prmt.b32 %d, %a, %b, 0xB0;", 0x8000_0000, b, 0),
        0x0000_ff00
    );
    assert_eq!(one32("prmt.b32.f4e %d, %a, %b, 1;", a, b, 0), 0x4433_2211);
    assert_eq!(one32("prmt.b32.b4e %d, %a, %b, 1;", a, b, 0), 0x6677_0011);
    assert_eq!(one32("prmt.b32.rc8 %d, %a, %b, 2;", a, b, 0), 0x2222_2222);
    assert_eq!(one32("prmt.b32.ecl %d, %a, %b, 2;", a, b, 0), 0x3322_2222);
    assert_eq!(one32("prmt.b32.ecr %d, %a, %b, 1;", a, b, 0), 0x1111_1100);
    assert_eq!(one32("prmt.b32.rc16 %d, %a, %b, 1;", a, b, 0), 0x3322_3322);
}

#[test]
fn lop3_is_any_function_of_three_bits() {
    let (a, b, c) = (0xf0f0_1234, 0xcccc_5678, 0xaaaa_9abc);
    assert_eq!(one32("lop3.b32 %d, %a, %b, %c, 0x80;", a, b, c), a & b & c);
    assert_eq!(one32("lop3.b32 %d, %a, %b, %c, 0xFE;", a, b, c), a | b | c);
    assert_eq!(one32("lop3.b32 %d, %a, %b, %c, 0x96;", a, b, c), a ^ b ^ c);
    assert_eq!(
        one32("lop3.b32 %d, %a, %b, %c, 0xCA;", a, b, c),
        a & b | !a & c
    );
}

#[test]
fn funnel_shifts_take_from_both() {
    let (a, b) = (0x89ab_cdef, 0x0123_4567);
    assert_eq!(one32("shf.l.wrap.b32 %d, %a, %b, 8;", a, b, 0), 0x2345_6789);
    assert_eq!(one32("shf.r.wrap.b32 %d, %a, %b, 8;", a, b, 0), 0x6789_abcd);
    assert_eq!(one32("shf.l.wrap.b32 %d, %a, %b, 32;", a, b, 0), b);
    assert_eq!(one32("shf.l.clamp.b32 %d, %a, %b, 40;", a, b, 0), a);
    assert_eq!(one32("shf.r.clamp.b32 %d, %a, %b, 40;", a, b, 0), b);
}

#[test]
fn dot_products_of_bytes_know_their_signs() {
    assert_eq!(
        one32("dp4a.u32.u32 %d, %a, %b, %c;", 0x0102_03ff, 0x0101_0102, 10),
        10 + 1 + 2 + 3 + 510
    );
    assert_eq!(
        one32("dp4a.s32.s32 %d, %a, %b, %c;", 0x0102_03ff, 0x0101_0102, 10),
        10 + 1 + 2 + 3 - 2
    );
}

#[test]
fn minima_comparisons_and_selections_know_their_signs() {
    assert_eq!(one32("min.s32 %d, %a, %b;", u32::MAX, 1, 0), u32::MAX);
    assert_eq!(one32("min.u32 %d, %a, %b;", u32::MAX, 1, 0), 1);
    assert_eq!(
        one32(
            "setp.lt.s32 %p, %a, %b; selp.u32 %d, 7, 8, %p;",
            u32::MAX,
            1,
            0
        ),
        7
    );
    assert_eq!(
        one32(
            "setp.lo.u32 %p, %a, %b; selp.u32 %d, 7, 8, %p;",
            u32::MAX,
            1,
            0
        ),
        8
    );
    // The second predicate is the comparison's opposite, combined in the same way.
    let both = "setp.eq.u32 %s, %c, 1; setp.lt.and.u32 %p|%q, %a, %b, %s; selp.u32 %d, 1, 0, %p; selp.u32 %t0, 2, 0, %q; add.u32 %d, %d, %t0;";
    assert_eq!(one32(both, 1, 2, 1), 1);
    assert_eq!(one32(both, 2, 1, 1), 2);
    assert_eq!(one32(both, 2, 1, 0), 0);
    assert_eq!(
        one32("set.lt.u32.s32 %d, %a, %b;", u32::MAX, 1, 0),
        u32::MAX
    );
    assert_eq!(
        one32("set.lt.f32.s32 %d, %a, %b;", u32::MAX, 1, 0),
        1.0f32.to_bits()
    );
    assert_eq!(one32("slct.b32.s32 %d, %a, %b, %c;", 5, 6, u32::MAX), 6);
}

#[test]
fn vectors_pack_and_unpack_low_half_first() {
    assert_eq!(
        one32("mov.b32 %d, {%ha, %hb};", 0x1111, 0x2222, 0),
        0x2222_1111
    );
    assert_eq!(one16("mov.b32 {%hc, %hd}, %a;", 0x1111, 0, 0), 0);
    assert_eq!(one64("mov.b64 %D, {%a, %b};", 1, 2, 0), 2 << 32 | 1);
    assert_eq!(one32("mov.b64 {_, %d}, %A;", 5, 0, 0), 0);
    assert_eq!(
        one64("mov.b64 %D, {%ha, %hb, %hc, %ha};", 1, 2, 3),
        0x0001_0003_0002_0001
    );
}
