//! Kernels with a planted fault. Each must be caught, under every schedule, and the sound kernel beside it must not be.

use ptx_interpreter::{Device, Finding, FindingKind, Launch, Module, Schedule, Stats};

use crate::snippet::{HEADER, args};

const SCHEDULES: [Schedule; 4] = [
    Schedule::Forward,
    Schedule::Reverse,
    Schedule::Seeded(1),
    Schedule::Seeded(2),
];

struct Case {
    declarations: &'static str,
    body: &'static str,
    grid: u32,
    block: u32,
}

/// Runs `body` in a kernel k(p, q) of two buffers of 4096 bytes; %p and %q hold them, %t is the thread, %x its offset in
/// bytes (4 a thread), %s that offset in shared memory at `tile` where there is one.
fn run(case: &Case, schedule: Schedule) -> Result<Stats, Finding> {
    let tile = if case.declarations.contains("tile") {
        "mov.u32 %s, tile; add.u32 %s, %s, %y;"
    } else {
        ""
    };
    let text = format!(
        "{HEADER}{}\n.visible .entry k(.param .u64 pp, .param .u64 pq) {{
            .reg .b32 %r<16>, %t, %s, %y; .reg .b64 %p, %q, %x, %g, %rd<8>; .reg .pred %c, %e;
            ld.param.u64 %p, [pp]; ld.param.u64 %q, [pq];
            mov.u32 %t, %tid.x; shl.b32 %y, %t, 2; cvt.u64.u32 %x, %y; {tile}
            mov.u32 %r15, %ctaid.x; mad.lo.u32 %r15, %r15, {}, %t; mul.wide.u32 %g, %r15, 4;
            {}
            ret; }}",
        case.declarations, case.block, case.body
    );
    let module = Module::parse(&text, "fault").unwrap_or_else(|error| panic!("{error}"));
    let mut device = Device::new();
    let (p, q) = (device.alloc(4096), device.alloc(4096));
    device.write(p, &[1; 4096]).expect("fits");
    let launch = Launch {
        grid: [case.grid, 1, 1],
        block: [case.block, 1, 1],
        dynamic_shared: 0,
        schedule,
    };
    device.launch(&module, "k", &launch, &args(&[p, q]))
}

fn caught(case: &Case, kind: FindingKind) -> Finding {
    let mut last = None;
    for schedule in SCHEDULES {
        let finding = run(case, schedule).expect_err("the fault is caught");
        assert_eq!(finding.kind, kind, "{schedule:?}: {finding}");
        // The same schedule finds the same thing again.
        assert_eq!(run(case, schedule).unwrap_err(), finding);
        last = Some(finding);
    }
    last.expect("there are schedules")
}

fn sound(case: &Case) {
    for schedule in SCHEDULES {
        run(case, schedule).unwrap_or_else(|finding| panic!("{schedule:?}: {finding}"));
    }
}

const TILE: &str = ".shared .align 16 .b8 tile[4096];";
const NONE: &str = "";

fn block(declarations: &'static str, body: &'static str) -> Case {
    Case {
        declarations,
        body,
        grid: 1,
        block: 128,
    }
}

#[test]
fn a_missing_barrier_between_write_and_read() {
    // Thread t reads what thread t + 32 wrote, which is of another warp.
    let read = "st.shared.u32 [%s], %t; bar.sync 0; xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];";
    sound(&block(TILE, read));
    // Both reading and writing warps are caught; in forward order the first warp reads what no one has written yet.
    let missing = "st.shared.u32 [%s], %t; xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];";
    for schedule in SCHEDULES {
        let finding = run(&block(TILE, missing), schedule).unwrap_err();
        assert!(
            matches!(
                finding.kind,
                FindingKind::SharedRace | FindingKind::UninitialisedMemory
            ),
            "{finding}"
        );
    }
    // With the tile filled beforehand it is a race whoever comes first.
    let filled = "st.shared.u32 [%s], 0; bar.sync 0; st.shared.u32 [%s], %t; xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];";
    let finding = caught(&block(TILE, filled), FindingKind::SharedRace);
    assert!(finding.to_string().contains("tile"), "{finding}");
}

#[test]
fn a_missing_barrier_before_a_buffer_is_used_again() {
    let body = |barrier: &str| {
        format!(
            "st.shared.u32 [%s], %t; bar.sync 0; xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1]; {barrier} add.u32 %t, %t, 1; st.shared.u32 [%s], %t;"
        )
    };
    sound(&block(
        TILE,
        Box::leak(body("bar.sync 0;").into_boxed_str()),
    ));
    caught(
        &block(TILE, Box::leak(body("").into_boxed_str())),
        FindingKind::SharedRace,
    );
}

#[test]
fn a_barrier_of_another_name_does_not_order() {
    let body = "setp.lt.u32 %c, %t, 64; @%c bra LOW; bar.sync 2, 64; bra MEET; LOW: bar.sync 1, 64; MEET:
        st.shared.u32 [%s], 0; bar.sync 0; st.shared.u32 [%s], %t; shr.u32 %r4, %t, 6; add.u32 %r4, %r4, 1; bar.sync %r4, 64;";
    // Within the half that synchronised.
    let near = Box::leak(format!("{body} xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];").into_boxed_str());
    sound(&block(TILE, near));
    // Across the halves.
    let far = Box::leak(format!("{body} xor.b32 %r1, %y, 256; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];").into_boxed_str());
    caught(&block(TILE, far), FindingKind::SharedRace);
}

#[test]
fn a_missing_warp_synchronisation_between_lanes() {
    let body = |sync: &str| {
        let text = format!(
            "st.shared.u32 [%s], 0; bar.sync 0; st.shared.u32 [%s], %t; {sync} xor.b32 %r1, %y, 4; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];"
        );
        &*Box::leak(text.into_boxed_str())
    };
    sound(&block(TILE, body("bar.warp.sync -1;")));
    sound(&block(TILE, body("shfl.sync.bfly.b32 %r5, %t, 1, 31, -1;")));
    let finding = caught(&block(TILE, body("")), FindingKind::SharedRace);
    assert!(finding.what.contains("lane"), "{finding}");
}

#[test]
fn two_lanes_that_store_different_values_to_one_word() {
    caught(
        &block(TILE, "st.shared.u32 [tile], %t;"),
        FindingKind::SharedRace,
    );
    // The same value from all is no harm.
    sound(&block(TILE, "st.shared.u32 [tile], 5;"));
}

#[test]
fn neighbouring_halves_of_a_word_are_no_race() {
    let body = "shr.u32 %r1, %y, 1; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; cvt.u16.u32 %h, %t; st.shared.u16 [%r1], %h; ld.shared.u16 %h, [%r1];";
    sound(&Case {
        declarations: TILE,
        body: Box::leak(format!(".reg .b16 %h; {body}").into_boxed_str()),
        grid: 1,
        block: 64,
    });
}

const COPY: &str =
    "add.s64 %rd1, %p, %x; cp.async.ca.shared.global [%s], [%rd1], 4; cp.async.commit_group;";

#[test]
fn a_missing_wait_for_an_asynchronous_copy() {
    let with = |rest: &str| &*Box::leak(format!("{COPY} {rest}").into_boxed_str());
    sound(&block(
        TILE,
        with("cp.async.wait_group 0; ld.shared.u32 %r1, [%s];"),
    ));
    sound(&block(
        TILE,
        with("cp.async.wait_all; ld.shared.u32 %r1, [%s];"),
    ));
    caught(
        &block(TILE, with("ld.shared.u32 %r1, [%s];")),
        FindingKind::MissingAsyncWait,
    );
    caught(
        &block(TILE, with("bar.sync 0; ld.shared.u32 %r1, [%s];")),
        FindingKind::MissingAsyncWait,
    );
    // One group may stay open, and it is the one that is read.
    caught(
        &block(
            TILE,
            with("cp.async.wait_group 1; ld.shared.u32 %r1, [%s];"),
        ),
        FindingKind::MissingAsyncWait,
    );
    // A copy that was never committed is no part of a group.
    let open = "add.s64 %rd1, %p, %x; cp.async.ca.shared.global [%s], [%rd1], 4; cp.async.wait_group 0; ld.shared.u32 %r1, [%s];";
    caught(&block(TILE, open), FindingKind::MissingAsyncWait);
    caught(
        &block(TILE, with("st.shared.u32 [%s], 1;")),
        FindingKind::MissingAsyncWait,
    );
}

#[test]
fn a_copy_waited_for_by_one_thread_needs_a_barrier_for_the_others() {
    let read =
        "xor.b32 %r1, %y, 128; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2; ld.shared.u32 %r3, [%r1];";
    let after = |sync: &str| &*Box::leak(format!("{COPY} {sync} {read}").into_boxed_str());
    sound(&block(TILE, after("cp.async.wait_group 0; bar.sync 0;")));
    for schedule in SCHEDULES {
        // In forward order the other warp's copy has not even begun.
        let finding = run(&block(TILE, after("cp.async.wait_group 0;")), schedule).unwrap_err();
        let kinds = [
            FindingKind::SharedRace,
            FindingKind::UninitialisedMemory,
            FindingKind::MissingAsyncWait,
        ];
        assert!(kinds.contains(&finding.kind), "{finding}");
    }
    // The barrier before the wait orders nothing.
    for schedule in SCHEDULES {
        let finding = run(
            &block(TILE, after("bar.sync 0; cp.async.wait_group 0;")),
            schedule,
        )
        .unwrap_err();
        assert!(
            matches!(
                finding.kind,
                FindingKind::SharedRace | FindingKind::MissingAsyncWait
            ),
            "{finding}"
        );
    }
}

#[test]
fn a_store_past_the_end() {
    let finding = caught(
        &block(NONE, "add.s64 %rd1, %q, %x; st.global.u32 [%rd1+4096], %t;"),
        FindingKind::OutOfBounds,
    );
    assert!(
        finding.what.contains("of an allocation of 4096 bytes"),
        "{finding}"
    );
    caught(
        &block(NONE, "st.global.u32 [%q+-4], %t;"),
        FindingKind::OutOfBounds,
    );
    caught(
        &block(NONE, "st.global.u32 [8], %t;"),
        FindingKind::OutOfBounds,
    );
    let finding = caught(
        &block(TILE, "st.shared.u32 [tile+4096], 1;"),
        FindingKind::OutOfBounds,
    );
    assert!(finding.what.contains("`tile`"), "{finding}");
    // From one shared array into the next.
    let two = ".shared .align 4 .b8 first[16]; .shared .align 4 .b8 second[16];";
    caught(
        &block(two, "st.shared.u32 [first+16], 1;"),
        FindingKind::OutOfBounds,
    );
    caught(
        &block(NONE, "ld.param.u32 %r1, [pq+8];"),
        FindingKind::OutOfBounds,
    );
}

#[test]
fn a_barrier_that_a_part_of_the_block_skips() {
    sound(&block(NONE, "bar.sync 0;"));
    // One warp ends early, or some lanes skip it.
    let finding = caught(
        &block(NONE, "setp.lt.u32 %c, %t, 32; @%c exit; bar.sync 0;"),
        FindingKind::DivergentBarrier,
    );
    assert!(
        finding.what.contains("96 threads wait here") && finding.what.contains("32 have ended"),
        "{finding}"
    );
    caught(
        &block(NONE, "setp.lt.u32 %c, %t, 16; @%c exit; bar.sync 0;"),
        FindingKind::DivergentBarrier,
    );
    caught(
        &block(NONE, "setp.lt.u32 %c, %t, 16; @%c bar.sync 0;"),
        FindingKind::DivergentBarrier,
    );
    caught(
        &block(
            NONE,
            "setp.lt.u32 %c, %t, 16; @%c bra A; bar.sync 0; bra B; A: bar.sync 0; B:",
        ),
        FindingKind::DivergentBarrier,
    );
    caught(
        &block(
            NONE,
            "setp.lt.u32 %c, %t, 32; @%c bar.sync 0, 64; @!%c bar.sync 0, 128;",
        ),
        FindingKind::DivergentBarrier,
    );
}

#[test]
fn barriers_in_opposite_orders() {
    let body = "setp.lt.u32 %c, %t, 64; @%c bra A; bar.sync 1, 128; bar.sync 2, 128; bra B; A: bar.sync 2, 128; bar.sync 1, 128; B:";
    caught(&block(NONE, body), FindingKind::Deadlock);
}

#[test]
fn a_loop_that_waits_for_what_never_comes() {
    let text = format!("{HEADER}.visible .entry k() {{ L: bra L; }}");
    let module = Module::parse(&text, "loop").expect("well-formed");
    let mut device = Device::new();
    device.set_step_limit(100_000);
    let launch = Launch {
        grid: [1, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 0,
        schedule: Schedule::Forward,
    };
    assert_eq!(
        device.launch(&module, "k", &launch, &[]).unwrap_err().kind,
        FindingKind::StepLimit
    );
}

#[test]
fn reads_of_what_no_one_wrote() {
    caught(
        &block(TILE, "ld.shared.u32 %r1, [%s];"),
        FindingKind::UninitialisedMemory,
    );
    caught(
        &block(NONE, "add.s64 %rd1, %q, %x; ld.global.u32 %r1, [%rd1];"),
        FindingKind::UninitialisedMemory,
    );
    caught(
        &block(NONE, ".local .align 4 .b8 box[8]; ld.local.u32 %r1, [box];"),
        FindingKind::UninitialisedMemory,
    );
    // What the block before wrote to shared memory is gone.
    let body = "setp.eq.u32 %c, %t, %r15; @%c st.shared.u32 [%s], 1; @!%c ld.shared.u32 %r1, [%s];";
    let case = Case {
        declarations: TILE,
        body,
        grid: 2,
        block: 32,
    };
    assert_eq!(
        run(&case, Schedule::Forward).unwrap_err().kind,
        FindingKind::UninitialisedMemory
    );
}

#[test]
fn registers_that_no_one_wrote() {
    let finding = caught(
        &block(
            NONE,
            "add.s64 %rd1, %q, %x; add.u32 %r2, %r1, 1; st.global.u32 [%rd1], %r2;",
        ),
        FindingKind::UninitialisedRegister,
    );
    assert!(finding.what.contains("%r2"), "{finding}");
    caught(
        &block(NONE, "setp.eq.u32 %c, %r1, 1; @%c bra A; A:"),
        FindingKind::UninitialisedRegister,
    );
    caught(
        &block(NONE, "st.global.u32 [%rd3], %t;"),
        FindingKind::UninitialisedRegister,
    );
    // Written in one lane only.
    caught(
        &block(
            NONE,
            "setp.eq.u32 %c, %t, 3; @%c mov.u32 %r1, 4; add.s64 %rd1, %q, %x; st.global.u32 [%rd1], %r1;",
        ),
        FindingKind::UninitialisedRegister,
    );
    // A copy is no use, and of a selection only the selected counts.
    sound(&block(
        NONE,
        "mov.u32 %r2, %r1; setp.lt.u32 %c, %t, 999; selp.u32 %r3, %t, %r2, %c; add.s64 %rd1, %q, %x; st.global.u32 [%rd1], %r3;",
    ));
}

#[test]
fn accesses_that_are_not_aligned() {
    caught(
        &block(NONE, "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%p+8];"),
        FindingKind::Misaligned,
    );
    caught(
        &block(NONE, "ld.global.u32 %r1, [%p+2];"),
        FindingKind::Misaligned,
    );
    caught(
        &block(TILE, "st.shared.v2.u32 [tile+4], {%t, %t};"),
        FindingKind::Misaligned,
    );
    caught(
        &block(TILE, "cp.async.cg.shared.global [tile+8], [%p], 16;"),
        FindingKind::Misaligned,
    );
}

#[test]
fn blocks_that_touch_the_same_memory() {
    let apart = "add.s64 %rd1, %q, %g; st.global.u32 [%rd1], %t;";
    sound(&Case {
        declarations: NONE,
        body: apart,
        grid: 4,
        block: 64,
    });
    let together = "add.s64 %rd1, %q, %x; st.global.u32 [%rd1], %r15;";
    let finding = caught(
        &Case {
            declarations: NONE,
            body: together,
            grid: 4,
            block: 64,
        },
        FindingKind::GlobalRace,
    );
    assert!(finding.what.contains("block ("), "{finding}");
    // One writes what all read.
    let read = "add.s64 %rd1, %p, %x; ld.global.u32 %r1, [%rd1]; mov.u32 %r2, %ctaid.x; setp.eq.u32 %c, %r2, 2; @%c st.global.u32 [%rd1], %r15;";
    caught(
        &Case {
            declarations: NONE,
            body: read,
            grid: 4,
            block: 64,
        },
        FindingKind::GlobalRace,
    );
    // Atomics may meet, but not with plain accesses.
    let atomics = "red.global.add.u32 [%p], 1;";
    sound(&Case {
        declarations: NONE,
        body: atomics,
        grid: 4,
        block: 64,
    });
    let mixed = "red.global.add.u32 [%p], 1; ld.global.u32 %r1, [%p];";
    caught(
        &Case {
            declarations: NONE,
            body: mixed,
            grid: 4,
            block: 64,
        },
        FindingKind::GlobalRace,
    );
}

#[test]
fn warps_that_exchange_through_global_memory() {
    let body = |sync: &str| {
        let text = format!(
            "add.s64 %rd1, %p, %x; st.global.u32 [%rd1], %t; {sync} xor.b64 %rd2, %x, 128; add.s64 %rd2, %p, %rd2; ld.global.u32 %r1, [%rd2];"
        );
        &*Box::leak(text.into_boxed_str())
    };
    sound(&block(NONE, body("bar.sync 0;")));
    caught(&block(NONE, body("")), FindingKind::GlobalRace);
}

#[test]
fn instructions_and_modifiers_that_are_not_known() {
    let finding = caught(
        &block(NONE, "tcgen05.wait::ld.sync.aligned;"),
        FindingKind::UnknownInstruction,
    );
    assert!(finding.what.contains("tcgen05"), "{finding}");
    let finding = caught(
        &block(NONE, "add.strange.u32 %r1, %t, %t;"),
        FindingKind::UnknownInstruction,
    );
    assert!(finding.what.contains(".strange"), "{finding}");
    caught(
        &block(NONE, "mov.u32 %r1, %a_new_register;"),
        FindingKind::UnknownInstruction,
    );
    // It is told before anything is run, and it harms no one who does not come there.
    let text = format!("{HEADER}.visible .entry k() {{ ret; tcgen05.wait::ld.sync.aligned; }}");
    let module = Module::parse(&text, "unknown").expect("well-formed");
    assert_eq!(module.kernels().next().expect("one").unknown.len(), 1);
}

#[test]
fn memory_that_was_freed() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 p) {{ .reg .b64 %p; .reg .b32 %r; ld.param.u64 %p, [p]; ld.global.u32 %r, [%p]; ret; }}"
    );
    let module = Module::parse(&text, "freed").expect("well-formed");
    let mut device = Device::new();
    let p = device.alloc(64);
    device.write(p, &[0; 64]).expect("fits");
    let launch = Launch {
        grid: [1, 1, 1],
        block: [32, 1, 1],
        dynamic_shared: 0,
        schedule: Schedule::Forward,
    };
    device
        .launch(&module, "k", &launch, &args(&[p]))
        .unwrap_or_else(|finding| panic!("{finding}"));
    device.free(p).expect("lives");
    let finding = device
        .launch(&module, "k", &launch, &args(&[p]))
        .unwrap_err();
    assert_eq!(finding.kind, FindingKind::UseAfterFree);
}

#[test]
fn constants_traps_and_matrices_of_half_a_warp() {
    caught(
        &block(
            ".const .align 4 .u32 c = 1;",
            "mov.u64 %rd1, c; st.u32 [%rd1], 1;",
        ),
        FindingKind::ReadOnly,
    );
    caught(&block(NONE, "trap;"), FindingKind::Trap);
    let half =
        "setp.lt.u32 %c, %t, 16; @%c exit; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [tile];";
    caught(
        &Case {
            declarations: TILE,
            body: half,
            grid: 1,
            block: 32,
        },
        FindingKind::InactiveLane,
    );
}

#[test]
fn a_finding_names_thread_block_and_instruction() {
    let body = "setp.ne.u32 %c, %t, 37; @%c bra END; mov.u32 %r1, %ctaid.x; setp.eq.u32 %e, %r1, 1; @%e st.global.u32 [%q+4096], %t; END:";
    let finding = run(
        &Case {
            declarations: NONE,
            body,
            grid: 3,
            block: 64,
        },
        Schedule::Forward,
    )
    .unwrap_err();
    let place = finding.place.as_ref().expect("an instruction is at fault");
    assert_eq!((place.block, place.thread), ([1, 0, 0], [37, 0, 0]));
    assert_eq!(place.instruction, "@%e st.global.u32 [%q+4096], %t");
    assert!(
        finding
            .to_string()
            .contains("by thread (37, 0, 0) of block (1, 0, 0)"),
        "{finding}"
    );
}
