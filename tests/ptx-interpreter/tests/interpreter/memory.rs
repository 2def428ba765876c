use ptx_interpreter::{Device, DeviceError, FindingKind, Launch, Module, Schedule};

use crate::snippet::{HEADER, args, one_block, rows32, rows64};

#[test]
fn narrow_loads_extend_by_their_sign() {
    let body = |ty: &str| {
        format!(".local .align 8 .b8 box[8]; st.local.u32 [box], %a; ld.local.{ty} %d, [box];")
    };
    assert_eq!(rows32(&body("u8"), &[[0x80, 0, 0, 0]]), [0x80]);
    assert_eq!(rows32(&body("s8"), &[[0x80, 0, 0, 0]]), [0xffff_ff80]);
    assert_eq!(rows32(&body("s16"), &[[0x1_8000, 0, 0, 0]]), [0xffff_8000]);
    assert_eq!(rows32(&body("b16"), &[[0x1_8000, 0, 0, 0]]), [0x8000]);
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = ".local .align 8 .b8 box[8]; .shared .align 8 .b8 bin[8];
        mov.u64 %T0, box; cvta.local.u64 %T0, %T0; st.u32 [%T0], %a;
        mov.u64 %T1, bin; cvta.shared.u64 %T1, %T1; st.u32 [%T1], %b;
        ld.u32 %d, [%T0]; ld.u32 %t0, [%T1]; add.u32 %d, %d, %t0;
        isspacep.shared %p, %T1; isspacep.shared %q, %T0;
        selp.u32 %t1, 100, 0, %p; selp.u32 %t2, 1000, 0, %q; add.u32 %d, %d, %t1; add.u32 %d, %d, %t2;
        cvta.to.shared.u64 %T1, %T1; cvt.u32.u64 %t3, %T1; ld.shared.u32 %t3, [%t3]; add.u32 %d, %d, %t3;";
    assert_eq!(rows32(body, &[[1, 2, 0, 0]]), [1 + 2 + 100 + 2]);
}

#[test]
fn device_functions_take_and_give_parameters() {
    let text = format!(
        "{HEADER}.func (.param .b32 out) square_plus(.param .b32 x, .param .align 8 .b8 pair[8])
        {{ .reg .b32 %r<6>; .reg .pred %p;
           ld.param.b32 %r1, [x]; ld.param.v2.b32 {{%r2, %r3}}, [pair];
           setp.eq.u32 %p, %r1, 0; @%p bra ZERO;
           mad.lo.u32 %r4, %r1, %r1, %r2; st.param.b32 [out+0], %r4; ret;
           ZERO: st.param.b32 [out+0], %r3; ret; }}
        .visible .entry k(.param .u64 pout)
        {{ .reg .b32 %r<6>; .reg .b64 %rd<4>;
           ld.param.u64 %rd1, [pout]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
           {{ .param .b32 param0; st.param.b32 [param0+0], %r1;
              .param .align 8 .b8 param1[8]; st.param.v2.b32 [param1+0], {{5, 77}};
              .param .b32 retval0;
              call.uni (retval0), square_plus, (param0, param1);
              ld.param.b32 %r2, [retval0+0]; }}
           st.global.u32 [%rd1], %r2; ret; }}"
    );
    let module = Module::parse(&text, "call").expect("well-formed");
    let mut device = Device::new();
    let out = device.alloc(16);
    device
        .launch(&module, "k", &one_block(4), &args(&[out]))
        .unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<u8> = [77u32, 6, 9, 14]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert_eq!(device.read(out, 16).expect("stored"), want);
}

#[test]
fn module_variables_start_with_their_values_and_keep_them() {
    let text = format!(
        "{HEADER}.const .align 4 .f32 table[2] = {{0f3F800000, 0f40000000}};
        .global .align 4 .u32 counter = 7;
        .global .align 8 .u64 pointer = generic(counter);
        .global .align 8 .b8 zeros[16];
        .visible .entry k(.param .u64 pout)
        {{ .reg .b32 %r<6>; .reg .b64 %rd<4>; .reg .f32 %f<3>;
           ld.param.u64 %rd1, [pout]; ld.const.f32 %f1, [table+4]; st.global.f32 [%rd1], %f1;
           ld.global.u64 %rd2, [pointer]; atom.add.u32 %r1, [%rd2], 3; st.global.u32 [%rd1+4], %r1;
           ld.global.u32 %r2, [zeros+8]; st.global.u32 [%rd1+8], %r2; ret; }}"
    );
    let module = Module::parse(&text, "variables").expect("well-formed");
    let mut device = Device::new();
    let out = device.alloc(12);
    for before in [7u32, 10] {
        device
            .launch(&module, "k", &one_block(1), &args(&[out]))
            .unwrap_or_else(|f| panic!("{f}"));
        let want: Vec<u8> = [2f32.to_bits(), before, 0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(device.read(out, 12).expect("stored"), want);
    }
    let counter = device.variable(&module, "counter").expect("it is there");
    assert_eq!(
        device.read(counter, 4).expect("initialised"),
        13u32.to_le_bytes()
    );
}

#[test]
fn atomics_of_all_threads_add_up() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 pout)
        {{ .shared .align 4 .u32 total; .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .pred %p; .reg .f32 %f<3>;
           ld.param.u64 %rd1, [pout]; mov.u32 %r1, %tid.x; setp.ne.u32 %p, %r1, 0;
           @!%p st.shared.u32 [total], 0; bar.sync 0;
           atom.shared.add.u32 %r2, [total], %r1; bar.sync 0;
           @%p bra END; ld.shared.u32 %r3, [total]; red.global.add.u32 [%rd1], %r3;
           END: red.global.max.s32 [%rd1+4], %r1; red.global.add.f32 [%rd1+8], 0f3F800000;
           atom.global.inc.u32 %r4, [%rd1+12], 9; atom.global.cas.b32 %r5, [%rd1+16], 0, 5; ret; }}"
    );
    let module = Module::parse(&text, "atomics").expect("well-formed");
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Seeded(7)] {
        let mut device = Device::new();
        let out = device.alloc(20);
        device.write(out, &[0; 20]).expect("fits");
        let launch = Launch {
            grid: [3, 1, 1],
            block: [100, 1, 1],
            dynamic_shared: 0,
            schedule,
        };
        device
            .launch(&module, "k", &launch, &args(&[out]))
            .unwrap_or_else(|f| panic!("{f}"));
        let want: Vec<u8> = [3 * 4950u32, 99, 300f32.to_bits(), 0, 5]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(device.read(out, 20).expect("stored"), want);
    }
}

#[test]
fn barriers_reduce_and_named_barriers_part_the_block() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 pout)
        {{ .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .pred %p, %q;
           ld.param.u64 %rd1, [pout]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
           setp.lt.u32 %p, %r1, 37; bar.red.popc.u32 %r2, 0, %p;
           bar.red.and.pred %q, 0, !%p; selp.u32 %r3, 1000, 0, %q; add.u32 %r2, %r2, %r3;
           bar.red.or.pred %q, 0, %p; selp.u32 %r3, 2000, 0, %q; add.u32 %r2, %r2, %r3;
           shr.u32 %r4, %r1, 6; add.u32 %r4, %r4, 1; bar.sync %r4, 64;
           st.global.u32 [%rd1], %r2; ret; }}"
    );
    let module = Module::parse(&text, "barriers").expect("well-formed");
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Seeded(3)] {
        let mut device = Device::new();
        let out = device.alloc(512);
        device
            .launch(
                &module,
                "k",
                &Launch {
                    schedule,
                    ..one_block(128)
                },
                &args(&[out]),
            )
            .unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(
            device.read(out, 512).expect("stored"),
            2037u32.to_le_bytes().repeat(128)
        );
    }
}

#[test]
fn a_producer_that_arrives_and_consumers_that_wait_do_not_race() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 pout)
        {{ .shared .align 4 .b8 slot[4]; .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .pred %p, %q;
           ld.param.u64 %rd1, [pout]; mov.u32 %r1, %tid.x; setp.lt.u32 %p, %r1, 32; @%p bra PRODUCE;
           bar.sync 1, 64; ld.shared.u32 %r2, [slot]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
           st.global.u32 [%rd1+-128], %r2; ret;
           PRODUCE: setp.eq.u32 %q, %r1, 0; @%q st.shared.u32 [slot], 42; bar.arrive 1, 64; ret; }}"
    );
    let module = Module::parse(&text, "arrive").expect("well-formed");
    for schedule in [Schedule::Forward, Schedule::Reverse] {
        let mut device = Device::new();
        let out = device.alloc(128);
        device
            .launch(
                &module,
                "k",
                &Launch {
                    schedule,
                    ..one_block(64)
                },
                &args(&[out]),
            )
            .unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(
            device.read(out, 128).expect("stored"),
            42u32.to_le_bytes().repeat(32)
        );
    }
}

#[test]
fn an_asynchronous_copy_fills_up_with_zeros() {
    let body = ".shared .align 16 .b8 tile[1024];
        mov.u32 %t0, tile; shl.b32 %t1, %lane, 4; add.u32 %t0, %t0, %t1;
        cp.async.ca.shared.global [%t0], [%in], 16, %c;
        cp.async.commit_group; cp.async.wait_group 0;
        ld.shared.u64 %D, [%t0];";
    let rows = [
        [u64::MAX, 0, 16, 0],
        [u64::MAX, 0, 5, 0],
        [u64::MAX, 0, 0, 0],
    ];
    assert_eq!(rows64(body, &rows), [u64::MAX, 0xff_ffff_ffff, 0]);
    let ignored = body.replace(", %c;", ", %p;").replace(
        "mov.u32 %t0, tile;",
        "mov.u32 %t0, tile; setp.eq.u32 %p, %c, 0;",
    );
    assert_eq!(rows64(&ignored, &rows), [u64::MAX, u64::MAX, 0]);
}

#[test]
fn the_host_is_told_what_it_did_wrong() {
    let mut device = Device::new();
    let p = device.alloc(16);
    assert_eq!(p % 256, 0);
    assert!(matches!(
        device.read(p, 16),
        Err(DeviceError::Uninitialised {
            offset: 0,
            bytes: 16
        })
    ));
    device.write(p + 4, &[1; 4]).expect("fits");
    let (bytes, written) = device.read_raw(p, 16).expect("lives");
    assert_eq!(
        (bytes[4], written[3], written[4], written[8]),
        (1, false, true, false)
    );
    assert!(matches!(
        device.write(p + 8, &[0; 9]),
        Err(DeviceError::OutOfBounds { .. })
    ));
    assert!(matches!(
        device.free(p + 1),
        Err(DeviceError::NotAStart { .. })
    ));
    assert_eq!(device.live_bytes(), 16);
    device.free(p).expect("lives");
    assert_eq!(device.live_bytes(), 0);
    assert!(matches!(device.free(p), Err(DeviceError::Freed { .. })));
    assert!(matches!(
        device.write(p, &[0]),
        Err(DeviceError::Freed { .. })
    ));
    assert!(matches!(
        device.read(5, 1),
        Err(DeviceError::NoAllocation { address: 5 })
    ));
    assert!(device.alloc(16) > p);
}

#[test]
fn a_launch_that_cannot_be_is_refused() {
    let text = format!("{HEADER}.visible .entry k(.param .u64 p) .maxntid 64, 1, 1 {{ ret; }}");
    let module = Module::parse(&text, "k").expect("well-formed");
    let mut device = Device::new();
    let good = one_block(64);
    let eight = args(&[0]);
    assert!(device.launch(&module, "k", &good, &eight).is_ok());
    for (kernel, launch, bytes) in [
        ("other", good, &eight[..]),
        ("k", good, &eight[..7]),
        ("k", one_block(65), &eight[..]),
        ("k", one_block(0), &eight[..]),
        (
            "k",
            Launch {
                block: [u32::MAX, u32::MAX, u32::MAX],
                ..good
            },
            &eight[..],
        ),
        (
            "k",
            Launch {
                grid: [1, 70_000, 1],
                ..good
            },
            &eight[..],
        ),
        (
            "k",
            Launch {
                dynamic_shared: 1 << 20,
                ..good
            },
            &eight[..],
        ),
    ] {
        let finding = device.launch(&module, kernel, &launch, bytes).unwrap_err();
        assert_eq!(finding.kind, FindingKind::BadLaunch, "{finding}");
    }
}
