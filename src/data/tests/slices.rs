//! A part of a dataset, and a dataset that changes while it is read.

use super::*;

/// Lines of `{"text": "<number>"}`; those in `bad` are no JSON.
fn lines(n: u64, bad: &[u64]) -> String {
    let line = |i: u64| match bad.contains(&i) {
        true => "no json\n".to_owned(),
        false => format!("{{\"text\": \"{i}\"}}\n"),
    };
    (0..n).map(line).collect()
}

#[test]
fn slices_that_follow_one_another_hold_every_record_once_with_its_number() {
    let folder = Folder::with("a.jsonl", lines(7, &[]));
    folder.write("b.jsonl", lines(5, &[]));
    let whole = || {
        folder
            .open(&["a.jsonl", "b.jsonl"], ReadOptions::default())
            .unwrap()
    };
    let all: Vec<_> = whole().map(Result::unwrap).collect();
    let parts = [0..3, 3..7, 7..8, 8..12];
    let joined: Vec<_> = parts
        .into_iter()
        .flat_map(|part| whole().only(part).map(Result::unwrap))
        .collect();
    assert_eq!(joined, all);
}

#[test]
fn a_slice_counts_its_own_bad_records_only() {
    let folder = Folder::with("a.jsonl", lines(10, &[1, 4, 5, 8]));
    let skipping = ReadOptions {
        skip_bad: true,
        ..ReadOptions::default()
    };
    let mut part = folder.open(&["a.jsonl"], skipping).unwrap().only(3..8);
    let numbers: Vec<_> = part.by_ref().map(|r| r.unwrap().index).collect();
    assert_eq!((numbers, part.skipped()), (vec![3, 6, 7], 2));
    let strict = folder.open(&["a.jsonl"], ReadOptions::default()).unwrap();
    let ends: Vec<_> = strict.only(2..5).map(|r| r.is_ok()).collect();
    assert_eq!(ends, [true, true, false], "those before it do not matter");
}

#[test]
fn a_file_cut_short_at_a_line_end_while_it_is_read_is_no_dataset_that_ended() {
    let text = lines(100_000, &[]);
    let folder = Folder::with("a.jsonl", &text);
    let mut dataset = folder.open(&["a.jsonl"], ReadOptions::default()).unwrap();
    dataset.next().unwrap().unwrap();
    let kept = text[..text.len() / 2].rfind('\n').unwrap() + 1;
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("a.jsonl"))
        .unwrap();
    file.set_len(kept as u64).unwrap();
    let error = dataset.find_map(Result::err).unwrap().to_string();
    let said = format!(
        "was cut short while it was read, from {} bytes to {kept}",
        text.len()
    );
    assert!(error.contains(&said), "{error}");
}
