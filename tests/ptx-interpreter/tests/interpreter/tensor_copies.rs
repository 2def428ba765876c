//! A ring of one stage, filled by tensor copies and emptied by ordinary loads: what the copies bring, and what is found where a piece
//! of the synchronisation is missing.

use ptx_interpreter::{
    Device, Finding, FindingKind, Launch, Module, Schedule, Stats, Swizzle, TensorMap,
};

use crate::snippet::HEADER;

const SCHEDULES: [Schedule; 4] = [
    Schedule::Forward,
    Schedule::Reverse,
    Schedule::Seeded(1),
    Schedule::Seeded(2),
];

/// Warp 0's first thread copies three boxes of 4 × 64 twice each, one above the other, to `tile`; threads 32 to 159 write what lies
/// there, 8 bytes each, to `out`.
const RING: &str = "
.visible .entry k(.param .align 64 .b8 map[128], .param .u64 out, .param .u32 column, .param .u32 row) {
    .shared .align 1024 .b8 tile[1024];
    .shared .align 8 .b8 barriers[16];
    .reg .pred %p, %done; .reg .b64 %map, %out, %v, %o; .reg .b32 %t, %i, %full, %empty, %tile, %parity, %x, %y, %a, %n;
    mov.u32 %t, %tid.x; mov.u32 %tile, tile; mov.u32 %full, barriers; add.u32 %empty, %full, 8;
    ld.param.u32 %x, [column]; ld.param.u32 %y, [row]; mov.b64 %map, map; cvta.param.u64 %map, %map;
    mov.u32 %i, 0; mov.u32 %parity, 0;
    setp.ne.u32 %p, %t, 0; @%p bra READY;
    mbarrier.init.shared::cta.b64 [%full], 1;
    mbarrier.init.shared::cta.b64 [%empty], 128;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
    setp.lt.u32 %p, %t, 32; @!%p bra READ;
    setp.ne.u32 %p, %t, 0; @%p bra END;
COPY:
    xor.b32 %a, %parity, 1;
WAIT_EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%empty], %a;
    @!%p bra WAIT_EMPTY;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], 1024;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%tile], [%map, {%x, %y}], [%full];
    add.u32 %a, %tile, 512; add.u32 %y, %y, 4;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%a], [%map, {%x, %y}], [%full];
    add.u32 %y, %y, 4;
    xor.b32 %parity, %parity, 1; add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 3; @%p bra COPY;
    bra END;
READ:
    ld.param.u64 %out, [out]; sub.u32 %t, %t, 32; shl.b32 %t, %t, 3;
    cvt.u64.u32 %o, %t; add.u64 %out, %out, %o; add.u32 %tile, %tile, %t;
NEXT:
WAIT_FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %parity;
    @!%p bra WAIT_FULL;
    ld.shared.u64 %v, [%tile];
    mbarrier.arrive.shared::cta.b64 _, [%empty];
    st.global.u64 [%out], %v; add.u64 %out, %out, 1024;
    xor.b32 %parity, %parity, 1; add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 3; @%p bra NEXT;
END:
    ret;
}";

const COLUMNS: usize = 80;
const ROWS: usize = 28;

fn element(column: i64, row: i64) -> u16 {
    let inside = (0..COLUMNS as i64).contains(&column) && (0..ROWS as i64).contains(&row);
    if inside {
        (1 + row * COLUMNS as i64 + column) as u16
    } else {
        0
    }
}

fn map_of(address: u64, swizzle: Swizzle) -> TensorMap {
    TensorMap {
        address,
        element_bytes: 2,
        extent: [COLUMNS as u64, ROWS as u64],
        row_bytes: 2 * COLUMNS as u64,
        box_extent: [64, 4],
        swizzle,
    }
}

/// Runs the ring from (column, row) on; the three stages as they lay in shared memory.
fn run(
    body: &str,
    swizzle: Swizzle,
    at: (i32, i32),
    schedule: Schedule,
) -> Result<(Vec<u16>, Stats), Finding> {
    let module = Module::parse(&format!("{HEADER}{body}"), "ring").expect("it is PTX");
    let unknown: Vec<_> = module.kernels().flat_map(|info| &info.unknown).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let mut device = Device::new();
    let matrix = device.alloc(2 * COLUMNS * ROWS);
    let values: Vec<u8> = (0..ROWS * COLUMNS)
        .flat_map(|i| element((i % COLUMNS) as i64, (i / COLUMNS) as i64).to_le_bytes())
        .collect();
    device.write(matrix, &values).expect("it fits");
    let out = device.alloc(3 * 1024);
    let mut args = map_of(matrix, swizzle)
        .encode()
        .expect("a sound map")
        .to_vec();
    args.extend(out.to_le_bytes());
    args.extend(at.0.to_le_bytes());
    args.extend(at.1.to_le_bytes());
    let launch = Launch {
        grid: [1, 1, 1],
        block: [160, 1, 1],
        dynamic_shared: 0,
        schedule,
    };
    let stats = device.launch(&module, "k", &launch, &args)?;
    let bytes = device.read(out, 3 * 1024).expect("all of it was written");
    let words = bytes.chunks_exact(2);
    Ok((
        words.map(|w| u16::from_le_bytes([w[0], w[1]])).collect(),
        stats,
    ))
}

fn caught(from: &str, to: &str, kinds: &[FindingKind]) -> Finding {
    assert_eq!(RING.matches(from).count(), 1, "{from}");
    let body = RING.replace(from, to);
    let mut last = None;
    for schedule in SCHEDULES {
        let finding = run(&body, Swizzle::B128, (0, 0), schedule)
            .map(drop)
            .expect_err(to);
        assert!(
            kinds.contains(&finding.kind),
            "{schedule:?}: {:?} {finding}",
            finding.kind
        );
        last = Some(finding);
    }
    last.expect("there are schedules")
}

#[test]
fn boxes_come_in_rows_and_their_chunks_change_places_as_the_swizzle_says() {
    // Row r, 16-byte chunk c: of a row of 128 bytes the swizzle of 128 flips the chunk by the row, from a multiple of 1024 on.
    for (swizzle, turns) in [(Swizzle::None, 0), (Swizzle::B128, 7)] {
        for schedule in SCHEDULES {
            let (stages, _) = run(RING, swizzle, (8, 0), schedule).expect("sound");
            for row in 0..24 {
                for column in 0..64 {
                    let chunk = (column / 8) ^ (row & turns);
                    let got = stages[row * 64 + chunk * 8 + column % 8];
                    assert_eq!(
                        got,
                        element(column as i64 + 8, row as i64),
                        "{row} {column}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_a_box_takes_from_outside_the_matrix_is_zero() {
    // Past the right and the lower edge, and before the left and the upper one; off 16 bytes, too.
    for at in [(40, 8), (-3, -5), (31, -30)] {
        let (stages, _) = run(RING, Swizzle::None, at, Schedule::Forward).expect("sound");
        for (i, &got) in stages.iter().enumerate() {
            let (column, row) = ((i % 64) as i64 + i64::from(at.0), (i / 64) as i64);
            assert_eq!(got, element(column, row + i64::from(at.1)), "{at:?} {i}");
        }
    }
}

#[test]
fn only_bytes_inside_the_matrix_count_as_read() {
    let read = |at| {
        run(RING, Swizzle::None, at, Schedule::Forward)
            .expect("sound")
            .1
    };
    assert_eq!(read((0, 0)).global_read, 24 * 64 * 2);
    assert_eq!(read((0, 16)).global_read, 12 * 64 * 2);
    assert_eq!(read((48, 0)).global_read, 24 * 32 * 2);
}

#[test]
fn a_stage_read_without_waiting_for_its_copies() {
    let kinds = [
        FindingKind::MissingAsyncWait,
        FindingKind::UninitialisedMemory,
        FindingKind::SharedRace,
        // Who reads the stage before last a second time is one phase ahead for good.
        FindingKind::Deadlock,
    ];
    let wait =
        "mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %parity;\n    @!%p bra WAIT_FULL;";
    caught(wait, "", &kinds);
    // A wait that is tried once, and may be in vain.
    caught("@!%p bra WAIT_FULL;", "", &kinds);
}

#[test]
fn a_wait_for_the_wrong_parity() {
    caught(
        "mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %parity;",
        "xor.b32 %a, %parity, 1; mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %a;",
        &[
            FindingKind::MissingAsyncWait,
            FindingKind::UninitialisedMemory,
            FindingKind::Deadlock,
        ],
    );
}

#[test]
fn more_bytes_expected_than_come() {
    let finding = caught("[%full], 1024;", "[%full], 1040;", &[FindingKind::Deadlock]);
    assert!(
        finding
            .what
            .contains("0 of 1 arrivals and 16 bytes are missing"),
        "{finding}"
    );
}

#[test]
fn fewer_bytes_expected_than_come() {
    // The phase ends with the first copy; the second is of the next.
    caught(
        "[%full], 1024;",
        "[%full], 512;",
        &[FindingKind::MissingAsyncWait],
    );
}

#[test]
fn a_stage_written_again_without_waiting_for_its_readers() {
    caught(
        "@!%p bra WAIT_EMPTY;",
        "",
        &[FindingKind::SharedRace, FindingKind::MissingAsyncWait],
    );
    let wrong = "mbarrier.try_wait.parity.shared::cta.b64 %p, [%empty], %parity;";
    let right = "mbarrier.try_wait.parity.shared::cta.b64 %p, [%empty], %a;";
    // With the other parity the first wait is one too many.
    caught(right, wrong, &[FindingKind::Deadlock]);
}

#[test]
fn a_stage_freed_before_it_is_read() {
    caught(
        "    ld.shared.u64 %v, [%tile];
    mbarrier.arrive.shared::cta.b64 _, [%empty];",
        "    mbarrier.arrive.shared::cta.b64 _, [%empty];
    ld.shared.u64 %v, [%tile];",
        &[FindingKind::SharedRace, FindingKind::MissingAsyncWait],
    );
}

#[test]
fn a_barrier_used_before_the_block_knows_it() {
    caught(
        "bar.sync 0;",
        "",
        &[FindingKind::SharedRace, FindingKind::Mbarrier],
    );
}

#[test]
fn a_barrier_that_no_fence_has_shown_to_copies() {
    caught(
        "fence.mbarrier_init.release.cluster;",
        "",
        &[FindingKind::MissingFence],
    );
    let other = RING.replace("fence.mbarrier_init.release.cluster;", "fence.proxy.async;");
    for schedule in SCHEDULES {
        run(&other, Swizzle::B128, (0, 0), schedule).expect("that fence will do, too");
    }
}

#[test]
fn a_copy_over_what_a_store_wrote_wants_a_proxy_fence() {
    let store = |fence: &str| {
        let filled = format!("bar.sync 0; st.shared.u32 [%tile], %t; {fence} bar.sync 0;");
        RING.replace("bar.sync 0;", &filled.replace("st.", "@!%p st."))
    };
    for schedule in SCHEDULES {
        run(
            &store("fence.proxy.async.shared::cta;"),
            Swizzle::B128,
            (0, 0),
            schedule,
        )
        .unwrap_or_else(|finding| panic!("{finding}"));
        let finding = run(&store(""), Swizzle::B128, (0, 0), schedule).unwrap_err();
        assert_eq!(finding.kind, FindingKind::MissingFence, "{finding}");
    }
}

#[test]
fn more_arrivals_than_a_barrier_counts() {
    caught(
        "mbarrier.init.shared::cta.b64 [%empty], 128;",
        "mbarrier.init.shared::cta.b64 [%empty], 96;",
        &[
            FindingKind::SharedRace,
            FindingKind::MissingAsyncWait,
            FindingKind::Deadlock,
        ],
    );
    let finding = caught(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], 1024;",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], 1024; mbarrier.arrive.shared::cta.b64 _, [%full];",
        &[FindingKind::Mbarrier],
    );
    assert!(finding.what.contains("0 arrivals are missing"), "{finding}");
}

#[test]
fn a_load_or_a_store_where_an_mbarrier_is() {
    for access in ["ld.shared.u32 %a, [%full];", "st.shared.u32 [%full+4], %t;"] {
        let with = format!("bar.sync 0; {access}");
        caught("bar.sync 0;", &with, &[FindingKind::Mbarrier]);
    }
}

#[test]
fn one_thread_may_wait_for_others_that_it_meets_at_a_barrier() {
    // Thread 32 alone waits; bar.sync tells the readers.
    let body = RING
        .replace("READ:\n", "READ: setp.ne.u32 %done, %t, 32;\n")
        .replace("NEXT:\n", "NEXT: @%done bra MEET;\n")
        .replace(
            "    ld.shared.u64 %v",
            "MEET: bar.sync 1, 128;\n    ld.shared.u64 %v",
        );
    for schedule in SCHEDULES {
        run(&body, Swizzle::B128, (0, 0), schedule).unwrap_or_else(|finding| panic!("{finding}"));
    }
    let without = body.replace("bar.sync 1, 128;", "");
    for schedule in SCHEDULES {
        let finding = run(&without, Swizzle::B128, (0, 0), schedule).unwrap_err();
        assert!(
            matches!(
                finding.kind,
                FindingKind::MissingAsyncWait
                    | FindingKind::UninitialisedMemory
                    | FindingKind::SharedRace
            ),
            "{finding}"
        );
    }
}

#[test]
fn maps_and_places_that_hardware_would_refuse() {
    let finding = caught(
        "[%map, {%x, %y}], [%full];\n    add.u32 %a",
        "[%out, {%x, %y}], [%full];\n    add.u32 %a",
        &[FindingKind::UninitialisedRegister],
    );
    assert!(finding.what.contains("%out"), "{finding}");
    caught(
        "add.u32 %a, %tile, 512;",
        "add.u32 %a, %tile, 448;",
        &[FindingKind::Misaligned],
    );
    caught(
        "cvta.param.u64 %map, %map;",
        "cvta.param.u64 %map, %map; add.u64 %map, %map, 64;",
        &[FindingKind::OutOfBounds],
    );
    let sound = map_of(0x1000, Swizzle::B128);
    let refused = |change: fn(&mut TensorMap)| {
        let mut map = sound;
        change(&mut map);
        map.encode().unwrap_err()
    };
    assert!(sound.encode().is_ok());
    assert!(refused(|map| map.address = 0x1008).contains("0x1008, not a multiple of 16"));
    assert!(refused(|map| map.row_bytes = 168).contains("168 bytes apart"));
    assert!(refused(|map| map.box_extent[0] = 72).contains("144 bytes, more than the 128"));
    assert!(refused(|map| map.box_extent[1] = 257).contains("a box of 257 elements"));
    assert!(refused(|map| map.extent[1] = 0).contains("an extent of 0 elements"));
}
