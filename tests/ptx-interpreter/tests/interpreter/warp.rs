use ptx_interpreter::FindingKind;

use crate::snippet::{rows32, try_rows};

fn lanes() -> Vec<[u64; 4]> {
    (0..32)
        .map(|lane| [lane * 10, lane, 31 - lane, 0])
        .collect()
}

#[test]
fn shuffles_follow_the_manual() {
    let run = |body: &str| rows32(body, &lanes());
    let up = run(
        "shfl.sync.up.b32 %d|%p, %a, 3, 0, -1; selp.u32 %t0, 1000, 0, %p; add.u32 %d, %d, %t0;",
    );
    let want: Vec<u32> = (0..32)
        .map(|l: u32| if l >= 3 { (l - 3) * 10 + 1000 } else { l * 10 })
        .collect();
    assert_eq!(up, want);
    let down = run("shfl.sync.down.b32 %d, %a, 30, 31, -1;");
    assert_eq!(
        down,
        (0..32)
            .map(|l: u32| if l < 2 { (l + 30) * 10 } else { l * 10 })
            .collect::<Vec<_>>()
    );
    assert_eq!(
        run("shfl.sync.bfly.b32 %d, %a, 5, 31, -1;"),
        (0..32).map(|l: u32| (l ^ 5) * 10).collect::<Vec<_>>()
    );
    assert_eq!(
        run("shfl.sync.idx.b32 %d, %a, %c, 31, -1;"),
        (0..32).map(|l: u32| (31 - l) * 10).collect::<Vec<_>>()
    );
    // Segments of 8 lanes: the mask 0x18 in bits 8 to 12.
    let segments = run("shfl.sync.idx.b32 %d, %a, 2, 0x181f, -1;");
    assert_eq!(
        segments,
        (0..32)
            .map(|l: u32| (l / 8 * 8 + 2) * 10)
            .collect::<Vec<_>>()
    );
    let segmented_down = run("shfl.sync.down.b32 %d, %a, 4, 0x181f, -1;");
    assert_eq!(
        segmented_down,
        (0..32)
            .map(|l: u32| if l % 8 < 4 { (l + 4) * 10 } else { l * 10 })
            .collect::<Vec<_>>()
    );
}

#[test]
fn half_warps_shuffle_by_themselves() {
    // Both halves execute the same instruction, each with its own mask.
    let together = "setp.lt.u32 %p, %b, 16; selp.b32 %t0, 0x0000ffff, 0xffff0000, %p; shfl.sync.bfly.b32 %d, %a, 1, 31, %t0;";
    assert_eq!(
        rows32(together, &lanes()),
        (0..32).map(|l: u32| (l ^ 1) * 10).collect::<Vec<_>>()
    );
    // One half only, in a branch of its own.
    let apart = "mov.u32 %d, 7; setp.ge.u32 %p, %b, 16; @%p bra DONE; shfl.sync.bfly.b32 %d, %a, 8, 31, 0xffff; DONE:";
    assert_eq!(
        rows32(apart, &lanes()),
        (0..32)
            .map(|l: u32| if l < 16 { (l ^ 8) * 10 } else { 7 })
            .collect::<Vec<_>>()
    );
}

#[test]
fn lanes_that_parted_wait_for_each_other_at_a_shuffle() {
    let body = "setp.lt.u32 %p, %b, 5; mov.u32 %d, %a; @%p bra FEW; add.u32 %d, %d, 1; bra MEET; FEW: add.u32 %d, %d, 2; MEET: shfl.sync.idx.b32 %d, %d, 4, 31, -1;";
    assert_eq!(rows32(body, &lanes()), [42; 32]);
}

#[test]
fn a_loop_ends_for_each_lane_in_its_own_time() {
    let body = "mov.u32 %d, 0; mov.u32 %t0, 0; LOOP: setp.ge.u32 %p, %t0, %b; @%p bra END; add.u32 %d, %d, %t0; add.u32 %t0, %t0, 1; bra LOOP; END:";
    assert_eq!(
        rows32(body, &lanes()),
        (0..32)
            .map(|l: u32| l * l.saturating_sub(1) / 2)
            .collect::<Vec<_>>()
    );
}

#[test]
fn an_indexed_branch_sends_each_lane_to_its_target() {
    let body = "and.b32 %t0, %b, 1; TARGETS: .branchtargets EVEN, ODD; brx.idx %t0, TARGETS; EVEN: mov.u32 %d, 2; bra END; ODD: mov.u32 %d, 3; END:";
    assert_eq!(
        rows32(body, &lanes()),
        (0..32).map(|l: u32| 2 + l % 2).collect::<Vec<_>>()
    );
}

#[test]
fn votes_matches_and_reductions_see_the_members() {
    let run = |body: &str| rows32(body, &lanes());
    assert_eq!(
        run("setp.lt.u32 %p, %b, 4; vote.sync.ballot.b32 %d, %p, -1;"),
        [0xf; 32]
    );
    assert_eq!(
        run("setp.lt.u32 %p, %b, 4; vote.sync.any.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;"),
        [1; 32]
    );
    assert_eq!(
        run("setp.lt.u32 %p, %b, 4; vote.sync.all.pred %q, !%p, -1; selp.u32 %d, 1, 0, %q;"),
        [0; 32]
    );
    assert_eq!(
        run("setp.lt.u32 %p, %b, 40; vote.sync.uni.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;"),
        [1; 32]
    );
    let any = run("and.b32 %t0, %b, 3; match.any.sync.b32 %d, %t0, -1;");
    assert_eq!(
        any,
        (0..32)
            .map(|l: u32| 0x1111_1111 << (l % 4))
            .collect::<Vec<_>>()
    );
    assert_eq!(run("match.all.sync.b32 %d|%p, %b, -1;"), [0; 32]);
    assert_eq!(run("redux.sync.add.s32 %d, %b, -1;"), [496; 32]);
    assert_eq!(
        run("sub.s32 %t0, %b, 16; redux.sync.min.s32 %d, %t0, -1;"),
        [-16i32 as u32; 32]
    );
    assert_eq!(
        run("sub.s32 %t0, %b, 16; redux.sync.min.u32 %d, %t0, -1;"),
        [0; 32]
    );
    assert_eq!(run("activemask.b32 %d;"), [u32::MAX; 32]);
    assert_eq!(
        run("mov.u32 %d, %lanemask_lt;"),
        (0..32).map(|l: u32| (1 << l) - 1).collect::<Vec<_>>()
    );
}

#[test]
fn a_shuffle_from_a_lane_outside_the_mask_is_a_finding() {
    let body = "mov.u32 %d, 0; setp.ge.u32 %p, %b, 16; @%p bra DONE; shfl.sync.idx.b32 %d, %a, 20, 31, 0xffff; DONE: cvt.u64.u32 %D, %d;";
    let finding = try_rows(body, &lanes()).unwrap_err();
    assert_eq!(finding.kind, FindingKind::InactiveLane);
    assert!(finding.what.contains("lane 20"), "{finding}");
}

#[test]
fn a_shuffle_from_a_lane_that_has_ended_is_a_finding() {
    let body = "setp.ge.u32 %p, %b, 16; @%p exit; shfl.sync.idx.b32 %d, %a, 20, 31, -1; cvt.u64.u32 %D, %d;";
    let finding = try_rows(body, &lanes()).unwrap_err();
    assert_eq!(finding.kind, FindingKind::InactiveLane);
}

#[test]
fn a_lane_outside_its_own_mask_is_a_finding() {
    let finding = try_rows(
        "shfl.sync.idx.b32 %d, %a, 0, 31, 1; cvt.u64.u32 %D, %d;",
        &lanes(),
    )
    .unwrap_err();
    assert_eq!(finding.kind, FindingKind::InactiveLane);
}

#[test]
fn lanes_that_wait_for_others_at_different_places_are_a_deadlock() {
    let body = "setp.lt.u32 %p, %b, 16; @%p bra LOW; bar.warp.sync -1; bra END; LOW: shfl.sync.idx.b32 %d, %a, 0, 31, -1; END: mov.u64 %D, 0;";
    let finding = try_rows(body, &lanes()).unwrap_err();
    assert_eq!(finding.kind, FindingKind::Deadlock);
}
