//! Products of a warpgroup: their values by every layout that a descriptor can name, and what is found where a piece of the
//! synchronisation is missing.

use ptx_interpreter::{Device, Finding, FindingKind, Launch, Module, Schedule, Swizzle, TensorMap};

use crate::snippet::HEADER;

const SCHEDULES: [Schedule; 4] = [
    Schedule::Forward,
    Schedule::Reverse,
    Schedule::Seeded(1),
    Schedule::Seeded(2),
];

const STORE: &str = "
    and.b32 %a, %t, 31; shr.u32 %b, %a, 2; and.b32 %a, %a, 3; shr.u32 %i, %t, 5; shl.b32 %i, %i, 4; add.u32 %b, %b, %i;
    shl.b32 %b, %b, 6; shl.b32 %a, %a, 3; add.u32 %b, %b, %a; cvt.u64.u32 %o, %b; add.u64 %out, %out, %o;
    st.global.v2.f32 [%out], {%s0, %s1}; st.global.v2.f32 [%out+512], {%s2, %s3};
    st.global.v2.f32 [%out+32], {%s4, %s5}; st.global.v2.f32 [%out+544], {%s6, %s7};";

/// out [64, 16] = A [64, 16] · B [16, 16]ᵀ. Ordinary stores put `image` into shared memory; descriptors count from there.
const LAID: &str = "
.visible .entry k(.param .u64 image, .param .u64 a_desc, .param .u64 b_desc, .param .u64 out) {
    .shared .align 1024 .b8 tile[8192];
    .reg .pred %p; .reg .b64 %image, %out, %da, %db, %o; .reg .b32 %t, %a, %b, %i, %tile; .reg .f32 %s<8>;
    mov.u32 %t, %tid.x; ld.param.u64 %image, [image]; ld.param.u64 %out, [out]; mov.u32 %tile, tile;
    ld.param.u64 %da, [a_desc]; ld.param.u64 %db, [b_desc];
    shl.b32 %a, %t, 2; cvt.u64.u32 %o, %a; add.u64 %image, %image, %o; add.u32 %a, %a, %tile; mov.u32 %i, 0;
FILL:
    ld.global.u32 %b, [%image]; st.shared.u32 [%a], %b; add.u64 %image, %image, 512; add.u32 %a, %a, 512;
    add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 16; @%p bra FILL;
    fence.proxy.async;
    bar.sync 0;
    shr.u32 %a, %tile, 4; cvt.u64.u32 %o, %a; add.u64 %da, %da, %o; add.u64 %db, %db, %o;
    setp.ne.u32 %p, %t, %t;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %p, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    STORE
    ret;
}";

/// out [64, 16] = A [64, 128] · B [16, 128]ᵀ. A thread of the fifth warp brings two stages of 64 columns through one place.
const RING: &str = "
.visible .entry k(.param .align 64 .b8 a_map[128], .param .align 64 .b8 b_map[128], .param .u64 out) {
    .shared .align 1024 .b8 tile[10240];
    .shared .align 8 .b8 barriers[16];
    .reg .pred %p, %q; .reg .b64 %am, %bm, %out, %da, %db, %o; .reg .b32 %t, %a, %b, %i, %tile, %full, %empty, %x, %lane;
    .reg .f32 %s<8>;
    mov.u32 %t, %tid.x; ld.param.u64 %out, [out]; mov.u32 %tile, tile; mov.u32 %full, barriers; add.u32 %empty, %full, 8;
    mov.u32 %i, 0; and.b32 %lane, %t, 31;
    setp.ne.u32 %p, %t, 0; @%p bra READY;
    mbarrier.init.shared::cta.b64 [%full], 1;
    mbarrier.init.shared::cta.b64 [%empty], 4;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
    setp.lt.u32 %p, %t, 128; @%p bra MULTIPLY;
    setp.ne.u32 %p, %t, 128; @%p bra END;
    mov.b64 %am, a_map; mov.b64 %bm, b_map; cvta.param.u64 %am, %am; cvta.param.u64 %bm, %bm;
COPY:
    xor.b32 %a, %i, 1;
WAIT_EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%empty], %a;
    @!%p bra WAIT_EMPTY;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], 10240;
    shl.b32 %x, %i, 6; mov.u32 %b, 0; add.u32 %a, %tile, 8192;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%tile], [%am, {%x, %b}], [%full];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%a], [%bm, {%x, %b}], [%full];
    add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 2; @%p bra COPY;
    bra END;
MULTIPLY:
    shr.u32 %a, %tile, 4; cvt.u64.u32 %da, %a; or.b64 %da, %da, 4611686293305294848; add.u64 %db, %da, 512;
NEXT:
WAIT_FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %i;
    @!%p bra WAIT_FULL;
    setp.ne.u32 %p, %i, 0; setp.eq.u32 %q, %i, %i;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %p, 1, 1, 0, 0;
    add.u64 %da, %da, 2; add.u64 %db, %db, 2;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %q, 1, 1, 0, 0;
    add.u64 %da, %da, 2; add.u64 %db, %db, 2;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %q, 1, 1, 0, 0;
    add.u64 %da, %da, 2; add.u64 %db, %db, 2;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %q, 1, 1, 0, 0;
    sub.u64 %da, %da, 6; sub.u64 %db, %db, 6;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    setp.ne.u32 %p, %lane, 0; @%p bra FREED;
    mbarrier.arrive.shared::cta.b64 _, [%empty];
FREED:
    add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 2; @%p bra NEXT;
    STORE
END:
    ret;
}";

fn bf16(value: i32) -> u16 {
    ((value as f32).to_bits() >> 16) as u16
}

/// Small whole numbers, so that every sum is exact.
fn a(row: usize, k: usize) -> i32 {
    (row * 7 + k * 3) as i32 % 13 - 6
}

fn b(row: usize, k: usize) -> i32 {
    (row * 5 + k * 11) as i32 % 9 - 4
}

fn wanted(columns: usize) -> Vec<f32> {
    let sum = |i: usize| {
        (0..columns)
            .map(|k| a(i / 16, k) * b(i % 16, k))
            .sum::<i32>() as f32
    };
    (0..64 * 16).map(sum).collect()
}

fn launch(
    device: &mut Device,
    body: &str,
    threads: u32,
    args: &[u8],
    out: u64,
    schedule: Schedule,
) -> Result<Vec<f32>, Finding> {
    let text = format!("{HEADER}{}", body.replace("STORE", STORE));
    let module = Module::parse(&text, "product").expect("it is PTX");
    let unknown: Vec<_> = module.kernels().flat_map(|info| &info.unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let launch = Launch {
        grid: [1, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared: 0,
        schedule,
    };
    device.launch(&module, "k", &launch, args)?;
    let bytes = device
        .read(out, 4 * 64 * 16)
        .expect("all of it was written");
    let words = bytes.chunks_exact(4);
    Ok(words
        .map(|w| f32::from_le_bytes(w.try_into().expect("4 bytes")))
        .collect())
}

/// Where element (row, k) of a matrix with 16 columns lies, in bytes from its start: rows of `span` bytes in groups of eight, their chunks
/// swizzled; or, without a span, cores of eight rows of 16 bytes, `columns_apart` along K.
fn place(row: usize, k: usize, span: Option<usize>, columns_apart: usize) -> usize {
    match span {
        Some(span) => {
            let at = row * span + k * 2;
            at ^ (at >> 7 & (span / 16 - 1)) << 4
        }
        None => row / 8 * 128 + k / 8 * columns_apart + row % 8 * 16 + k % 8 * 2,
    }
}

fn laid(
    body: &str,
    span: Option<usize>,
    mode: u64,
    schedule: Schedule,
) -> Result<Vec<f32>, Finding> {
    // Without a swizzle the cores of the first eight columns come first, then the others.
    let (start, columns_apart) = (64 * span.unwrap_or(32), [1024, 256]);
    let mut image = vec![0u8; 8192];
    let mut put = |at: usize, value: i32| {
        image[at..at + 2].copy_from_slice(&bf16(value).to_le_bytes());
    };
    for k in 0..16 {
        for row in 0..64 {
            put(place(row, k, span, columns_apart[0]), a(row, k));
        }
        for row in 0..16 {
            put(start + place(row, k, span, columns_apart[1]), b(row, k));
        }
    }
    let group = 8 * span.unwrap_or(16) as u64;
    let descriptor = |start: usize, columns_apart: usize| {
        start as u64 >> 4 | (columns_apart as u64 >> 4) << 16 | (group >> 4) << 32 | mode << 62
    };
    let mut device = Device::new();
    let (from, out) = (device.alloc(8192), device.alloc(4 * 64 * 16));
    device.write(from, &image).expect("it fits");
    let args: Vec<u8> = [
        from,
        descriptor(0, columns_apart[0]),
        descriptor(start, columns_apart[1]),
        out,
    ]
    .iter()
    .flat_map(|word| word.to_le_bytes())
    .collect();
    launch(&mut device, body, 128, &args, out, schedule)
}

#[test]
fn matrices_are_read_as_every_swizzle_lays_them() {
    for (span, mode) in [(None, 0), (Some(32), 3), (Some(64), 2)] {
        for schedule in SCHEDULES {
            let got = laid(LAID, span, mode, schedule).unwrap_or_else(|e| panic!("{span:?} {e}"));
            assert_eq!(got, wanted(16), "{span:?}");
        }
    }
}

#[test]
fn operands_that_ordinary_stores_wrote_want_a_proxy_fence() {
    let body = LAID.replace("fence.proxy.async;", "");
    for schedule in SCHEDULES {
        let finding = laid(&body, Some(64), 2, schedule).unwrap_err();
        assert_eq!(finding.kind, FindingKind::MissingFence, "{finding}");
    }
}

#[test]
fn a_matrix_off_its_pattern_is_refused() {
    let body = LAID.replace(
        "add.u64 %db, %db, %o;",
        "add.u64 %db, %db, %o; add.u64 %db, %db, 8;",
    );
    let finding = laid(&body, Some(64), 2, Schedule::Forward).unwrap_err();
    assert_eq!(finding.kind, FindingKind::Misaligned, "{finding}");
}

#[test]
fn lanes_that_name_different_matrices_are_found() {
    let body = LAID.replace(
        "setp.ne.u32 %p, %t, %t;",
        "cvt.u64.u32 %o, %t; add.u64 %da, %da, %o;",
    );
    let body = body.replace("wgmma.fence", "setp.ne.u32 %p, %t, %t; wgmma.fence");
    let finding = laid(&body, Some(64), 2, Schedule::Forward).unwrap_err();
    assert_eq!(finding.kind, FindingKind::InactiveLane, "{finding}");
}

fn ring(body: &str, schedule: Schedule) -> Result<Vec<f32>, Finding> {
    let mut device = Device::new();
    let mut matrix = |rows: usize, value: fn(usize, usize) -> i32| {
        let bytes: Vec<u8> = (0..rows * 128)
            .flat_map(|i| bf16(value(i / 128, i % 128)).to_le_bytes())
            .collect();
        let address = device.alloc(bytes.len());
        device.write(address, &bytes).expect("it fits");
        let map = TensorMap {
            address,
            element_bytes: 2,
            extent: [128, rows as u64],
            row_bytes: 256,
            box_extent: [64, rows as u32],
            swizzle: Swizzle::B128,
        };
        map.encode().expect("a sound map")
    };
    let mut args = [matrix(64, a), matrix(16, b)].concat();
    let out = device.alloc(4 * 64 * 16);
    args.extend(out.to_le_bytes());
    launch(&mut device, body, 160, &args, out, schedule)
}

fn caught(from: &str, to: &str, kinds: &[FindingKind]) -> Finding {
    assert!(RING.contains(from), "{from}");
    let body = RING.replacen(from, to, 1);
    let mut last = None;
    for schedule in SCHEDULES {
        let finding = ring(&body, schedule).map(drop).expect_err(to);
        assert!(
            kinds.contains(&finding.kind),
            "{schedule:?}: {:?} {finding}",
            finding.kind
        );
        last = Some(finding);
    }
    last.expect("there are schedules")
}

const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";
const ARRIVE: &str = "    mbarrier.arrive.shared::cta.b64 _, [%empty];\n";

#[test]
fn stages_of_tensor_copies_are_multiplied_and_used_again() {
    for schedule in SCHEDULES {
        let got = ring(RING, schedule).unwrap_or_else(|finding| panic!("{finding}"));
        assert_eq!(got, wanted(128));
    }
}

#[test]
fn sums_read_before_the_wait() {
    // Waiting for all groups but one leaves the last under way.
    for instead in ["", "wgmma.wait_group.sync.aligned 1;"] {
        caught(
            WAIT,
            instead,
            &[FindingKind::MissingAsyncWait, FindingKind::SharedRace],
        );
    }
    let touched = format!("mov.f32 %s3, 0f00000000;\n    {WAIT}");
    let finding = caught(WAIT, &touched, &[FindingKind::MissingAsyncWait]);
    assert!(
        finding.what.contains("`%s3` is a sum of a wgmma under way"),
        "{finding}"
    );
}

#[test]
fn a_group_that_was_never_ended_is_not_waited_for() {
    caught(
        "wgmma.commit_group.sync.aligned;",
        "",
        &[FindingKind::MissingAsyncWait, FindingKind::SharedRace],
    );
}

#[test]
fn a_stage_freed_before_its_products_are_waited_for() {
    let freed = format!("setp.ne.u32 %p, %lane, 0; @%p bra EARLY;\n{ARRIVE}EARLY:\n    {WAIT}");
    let body = RING.replacen(ARRIVE, "", 1).replacen(WAIT, &freed, 1);
    for schedule in SCHEDULES {
        let finding = ring(&body, schedule).map(drop).expect_err("freed early");
        assert_eq!(
            finding.kind,
            FindingKind::SharedRace,
            "{schedule:?}: {finding}"
        );
    }
}

#[test]
fn products_of_a_stage_that_has_not_come() {
    caught(
        "    mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %i;
    @!%p bra WAIT_FULL;",
        "",
        &[
            FindingKind::MissingAsyncWait,
            FindingKind::UninitialisedMemory,
            FindingKind::SharedRace,
        ],
    );
}

#[test]
fn products_without_a_fence_for_their_registers() {
    caught(
        "wgmma.fence.sync.aligned;",
        "",
        &[FindingKind::MissingFence],
    );
    // The first stage has one, the second not: the sums were free to be touched in between.
    caught(
        "wgmma.fence.sync.aligned;",
        "setp.ne.u32 %q, %i, 0; @%q bra UNFENCED; wgmma.fence.sync.aligned; UNFENCED: setp.eq.u32 %q, %i, %i;",
        &[FindingKind::MissingFence],
    );
}

#[test]
fn sums_that_were_never_set() {
    let finding = caught(
        "setp.ne.u32 %p, %i, 0; setp.eq",
        "setp.eq.u32 %p, %i, %i; setp.eq",
        &[FindingKind::UninitialisedRegister],
    );
    assert!(finding.what.contains("adds to sums"), "{finding}");
}

#[test]
fn a_warp_that_leaves_its_group_alone() {
    // The fourth warp leaves one product out.
    caught(
        "    sub.u64 %da, %da, 6;",
        "    setp.lt.u32 %p, %t, 96; @!%p bra LESS;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3, %s4, %s5, %s6, %s7}, %da, %db, %q, 1, 1, 0, 0;
LESS:
    sub.u64 %da, %da, 6;",
        &[FindingKind::InactiveLane],
    );
}

#[test]
fn forms_that_are_not_known_are_errors() {
    for form in [
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3}, %da, %db, %p, 1, 1, 1, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%s0, %s1, %s2, %s3}, %da, %db, %p, -1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%s0, %s1, %s2, %s3}, %da, %db, %p, 1, 1;",
    ] {
        let text = format!(
            "{HEADER}.visible .entry k() {{ .reg .f32 %s<4>; .reg .b64 %da, %db; .reg .pred %p; {form} ret; }}"
        );
        let module = Module::parse(&text, "form").expect("it is PTX");
        let unknown: Vec<_> = module.kernels().flat_map(|info| &info.unknown).collect();
        assert_eq!(unknown.len(), 1, "{form}");
    }
}
