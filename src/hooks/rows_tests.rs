//! What selections pick, case by case and against a naive oracle.

use proptest::prelude::*;

use super::*;
use crate::hooks::selection::tests::any_selection;

/// `<s> [INST] a b [/INST] c d </s> [INST] e [/INST] f </s>`: 13 tokens, four turns, one span of two pieces.
#[derive(Debug)]
struct Chat {
    turns: Vec<TokenTurn>,
    spans: Vec<TokenSpan>,
}

fn chat() -> Chat {
    let turn = |role: &str, content: Range<u32>, whole: Range<u32>| TokenTurn {
        role: role.to_owned(),
        content,
        whole,
    };
    let span = |tokens: Range<u32>| TokenSpan {
        name: "a".to_owned(),
        tokens,
    };
    Chat {
        turns: vec![
            turn("user", 2..4, 1..5),
            turn("assistant", 5..7, 5..8),
            turn("user", 9..10, 8..11),
            turn("assistant", 11..12, 11..13),
        ],
        spans: vec![span(3..4), span(9..10)],
    }
}

impl Chat {
    fn view(&self) -> SampleView<'_> {
        SampleView {
            index: 0,
            n_tokens: 13,
            has_bos: true,
            turns: &self.turns,
            spans: &self.spans,
            prompt_len: Some(8),
        }
    }
}

fn text(n_tokens: usize) -> SampleView<'static> {
    SampleView {
        index: 0,
        n_tokens,
        has_bos: true,
        turns: &[],
        spans: &[],
        prompt_len: None,
    }
}

fn select(selection: &str, sample: &SampleView) -> SelectedRows {
    selection
        .parse::<Selection>()
        .unwrap()
        .rows(sample)
        .unwrap()
}

fn positions(selection: &str, sample: &SampleView) -> Vec<u32> {
    let rows = select(selection, sample);
    assert_eq!(rows.clipped, 0, "{selection}");
    rows.positions
}

#[test]
fn positions_are_inclusive_and_may_count_from_the_end() {
    let sample = text(10);
    assert_eq!(positions("all", &sample), (0..10).collect::<Vec<_>>());
    assert_eq!(positions("first", &sample), [0]);
    assert_eq!(positions("last", &sample), [9]);
    assert_eq!(positions("7", &sample), [7]);
    assert_eq!(positions("-2", &sample), [8]);
    assert_eq!(positions("3..7", &sample), [3, 4, 5, 6, 7]);
    assert_eq!(positions("-5..-1", &sample), [5, 6, 7, 8, 9]);
    assert_eq!(positions("7..-1", &sample), [7, 8, 9]);
    assert_eq!(positions("-9..2", &sample), [1, 2]);
}

#[test]
fn rows_asked_for_outside_the_sample_are_counted() {
    let clipped = |selection: &str, n: usize| {
        let rows = select(selection, &text(n));
        (rows.positions.len(), rows.clipped)
    };
    assert_eq!(clipped("3..7", 5), (2, 3));
    assert_eq!(clipped("-5..-1", 3), (3, 2));
    assert_eq!(clipped("7", 5), (0, 1));
    assert_eq!(clipped("-6", 5), (0, 1));
    assert_eq!(clipped("3..7", 2), (0, 5));
    assert_eq!(clipped("0..2000000000", 2), (2, 1_999_999_999));
    // Turned around by a short sample: it asks for nothing, so nothing is missing.
    assert_eq!(clipped("3..-1", 2), (0, 0));
}

#[test]
fn a_leading_bos_is_left_out_only_where_there_is_one() {
    assert_eq!(positions("no-bos", &text(3)), [1, 2]);
    assert_eq!(
        positions(
            "no-bos",
            &SampleView {
                has_bos: false,
                ..text(3)
            }
        ),
        [0, 1, 2]
    );
    assert_eq!(positions("no-bos", &text(1)), [0u32; 0]);
}

#[test]
fn roles_and_turns_pick_content_and_with_a_plus_the_whole_turn() {
    let chat = chat();
    let sample = chat.view();
    assert_eq!(positions("role:assistant", &sample), [5, 6, 11]);
    assert_eq!(positions("role:assistant+", &sample), [5, 6, 7, 11, 12]);
    assert_eq!(positions("turn:0", &sample), [2, 3]);
    assert_eq!(positions("turn:-1+", &sample), [11, 12]);
}

#[test]
fn a_role_turn_or_span_that_the_sample_lacks_selects_nothing() {
    let chat = chat();
    for selection in ["role:system", "turn:4", "turn:-5", "span:b"] {
        assert_eq!(positions(selection, &chat.view()), [0u32; 0], "{selection}");
    }
}

#[test]
fn turns_are_refused_in_a_sample_without_any() {
    let selection: Selection = "last & role:user".parse().unwrap();
    let error = selection
        .rows(&SampleView {
            index: 17,
            ..text(4)
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "selection `role:user` needs chat turns, and sample 17 has none: give the dataset as messages, or wrap its text with --chat"
    );
}

#[test]
fn spans_of_one_name_are_taken_together() {
    let chat = chat();
    assert_eq!(positions("span:a", &chat.view()), [3, 9]);
}

#[test]
fn turns_and_spans_that_pass_the_end_stop_there() {
    let mut chat = chat();
    chat.spans[1].tokens = 12..99;
    assert_eq!(positions("span:a", &chat.view()), [3, 12]);
}

#[test]
fn and_picks_among_the_rows_before_it() {
    let chat = chat();
    let sample = chat.view();
    assert_eq!(positions("role:assistant & last", &sample), [11]);
    assert_eq!(positions("role:assistant & -2..-1", &sample), [6, 11]);
    assert_eq!(positions("no-bos & every:5", &sample), [1, 6, 11]);
    // By meaning, the order does not matter; by number, it does.
    assert_eq!(positions("-4..-1 & role:assistant", &sample), [11]);
    assert_eq!(positions("all & role:user & no-bos & first", &sample), [2]);
    assert_eq!(
        select("role:user & 1..5", &sample),
        SelectedRows {
            positions: vec![3, 9],
            clipped: 3
        }
    );
    assert_eq!(
        select("role:system & last", &sample),
        SelectedRows {
            positions: vec![],
            clipped: 1
        }
    );
}

#[test]
fn every_takes_the_first_of_each_stride() {
    assert_eq!(positions("every:4", &text(10)), [0, 4, 8]);
    assert_eq!(positions("every:100", &text(10)), [0]);
}

#[test]
fn generation_splits_at_the_prompts_end() {
    let chat = chat();
    let sample = chat.view();
    assert_eq!(positions("prompt & last", &sample), [7]);
    assert_eq!(positions("generated", &sample), [8, 9, 10, 11, 12]);
    assert_eq!(positions("step:0..1", &sample), [8, 9]);
    assert_eq!(positions("step:-1", &sample), [12]);
    assert_eq!(
        select("step:3..9", &sample),
        SelectedRows {
            positions: vec![11, 12],
            clipped: 5
        }
    );
    let error = Selection::Generated.rows(&text(4)).unwrap_err().to_string();
    assert!(
        error.contains("needs generation, and sample 0 was only read"),
        "{error}"
    );
}

#[test]
fn splitmix64_gives_its_published_numbers() {
    let mut random = SplitMix64(1234567);
    assert_eq!(random.next(), 6457827717110365317);
    assert_eq!(random.next(), 3203168211198807973);
}

#[test]
fn a_random_choice_never_changes_between_versions() {
    let drawn = |index| positions("sample:4#7", &SampleView { index, ..text(32) });
    // Computed apart, from the description in docs/hooks.md.
    assert_eq!([drawn(0), drawn(1)], [[3, 19, 27, 29], [7, 11, 20, 23]]);
}

#[test]
fn a_random_choice_is_fair() {
    // 20,000 draws of 3 among 10: each row is expected 6,000 times, with a standard deviation of 65.
    let mut counts = [0i64; 10];
    for index in 0..20_000 {
        for position in positions("sample:3#1", &SampleView { index, ..text(10) }) {
            counts[position as usize] += 1;
        }
    }
    assert!(
        counts.iter().all(|count| (count - 6000).abs() < 400),
        "{counts:?}"
    );
}

#[test]
fn a_sample_shorter_than_the_random_choice_is_taken_whole() {
    assert_eq!(positions("sample:32#7", &text(3)), [0, 1, 2]);
}

#[test]
fn an_empty_sample_has_no_rows() {
    assert_eq!(
        positions("all & every:2 & sample:3#1 & no-bos", &text(0)),
        [0u32; 0]
    );
}

/// The same by brute force: for each row of the list, ask whether this pick wants it.
fn oracle(selection: &Selection, sample: &SampleView, rows: &[u32]) -> Vec<u32> {
    if let Selection::And(picks) = selection {
        return picks
            .iter()
            .fold(rows.to_vec(), |rows, pick| oracle(pick, sample, &rows));
    }
    let prompt = sample.prompt_len.unwrap();
    let in_range = |place: usize, len: usize, first: i32, last: i32| {
        let (place, len) = (place as i64, len as i64);
        let resolve = |i: i32| {
            if i < 0 {
                len + i64::from(i)
            } else {
                i64::from(i)
            }
        };
        resolve(first) <= place && place <= resolve(last)
    };
    let wants = |place: usize, position: u32| match selection {
        Selection::First => place == 0,
        Selection::Last => place + 1 == rows.len(),
        Selection::Positions { first, last } => in_range(place, rows.len(), *first, *last),
        Selection::NoBos => position != 0 || !sample.has_bos,
        Selection::Role { role, whole } => sample.turns.iter().any(|turn| {
            turn.role == *role
                && (if *whole { &turn.whole } else { &turn.content }).contains(&position)
        }),
        Selection::Turn { index, whole } => sample.turns.iter().enumerate().any(|(i, turn)| {
            in_range(i, sample.turns.len(), *index, *index)
                && (if *whole { &turn.whole } else { &turn.content }).contains(&position)
        }),
        Selection::Span(name) => sample
            .spans
            .iter()
            .any(|span| span.name == *name && span.tokens.contains(&position)),
        Selection::Every(n) => place.is_multiple_of(*n as usize),
        Selection::Prompt => (position as usize) < prompt,
        Selection::Generated => position as usize >= prompt,
        Selection::Steps { first, last } => {
            let generated = sample.n_tokens.saturating_sub(prompt);
            position as usize >= prompt
                && in_range(position as usize - prompt, generated, *first, *last)
        }
        Selection::All | Selection::Sample { .. } | Selection::And(_) => true,
    };
    let wanted = rows
        .iter()
        .enumerate()
        .filter(|&(place, &position)| wants(place, position));
    wanted.map(|(_, &position)| position).collect()
}

fn has_random(selection: &Selection) -> bool {
    match selection {
        Selection::And(picks) => picks.iter().any(has_random),
        single => matches!(single, Selection::Sample { .. }),
    }
}

fn any_chat() -> impl Strategy<Value = (usize, Chat)> {
    let turn =
        ("user|tool", 0..20u32, 0..5u32, 0..2u32).prop_map(|(role, start, len, extra)| TokenTurn {
            role,
            content: start + extra..start + extra + len,
            whole: start..start + len + 2 * extra,
        });
    let span = ("[ab]", 0..20u32, 0..5u32).prop_map(|(name, start, len)| TokenSpan {
        name,
        tokens: start..start + len,
    });
    let turns = proptest::collection::vec(turn, 1..5);
    let spans = proptest::collection::vec(span, 0..4);
    (0..16usize, turns, spans).prop_map(|(n, turns, spans)| (n, Chat { turns, spans }))
}

proptest! {
    #[test]
    fn rows_are_what_the_oracle_picks(
        selection in any_selection(),
        (n_tokens, chat) in any_chat(),
        has_bos: bool,
        prompt in 0..20usize,
        index: u64,
    ) {
        let sample = SampleView { index, n_tokens, has_bos, prompt_len: Some(prompt), ..chat.view() };
        let rows = selection.rows(&sample).unwrap();
        prop_assert!(rows.positions.is_sorted_by(|a, b| a < b));
        prop_assert!(rows.positions.iter().all(|&p| (p as usize) < n_tokens));
        if !has_random(&selection) {
            let all: Vec<u32> = (0..n_tokens as u32).collect();
            prop_assert_eq!(rows.positions, oracle(&selection, &sample, &all));
        }
    }

    #[test]
    fn a_random_choice_has_the_size_asked_for(n in 0..40usize, count in 1..40u32, seed: u64, index: u64) {
        let rows = Selection::Sample { count, seed }.rows(&SampleView { index, ..text(n) }).unwrap();
        prop_assert_eq!(rows.positions.len(), n.min(count as usize));
    }

    #[test]
    fn rows_kept_and_clipped_add_up_to_the_rows_asked_for(n in 0..20usize, first in 0..20i32, more in 0..20i32) {
        for (first, last) in [(first, first + more), (-1 - first - more, -1 - first)] {
            let rows = Selection::Positions { first, last }.rows(&text(n)).unwrap();
            prop_assert_eq!(rows.positions.len() as u64 + rows.clipped, more as u64 + 1);
        }
    }
}
