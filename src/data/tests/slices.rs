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
        .flat_map(|part| whole().only(part, 12).map(Result::unwrap))
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
    let mut part = folder.open(&["a.jsonl"], skipping).unwrap().only(3..8, 10);
    let numbers: Vec<_> = part.by_ref().map(|r| r.unwrap().index).collect();
    assert_eq!((numbers, part.skipped()), (vec![3, 6, 7], 2));
    let strict = folder.open(&["a.jsonl"], ReadOptions::default()).unwrap();
    let ends: Vec<_> = strict.only(2..5, 10).map(|r| r.is_ok()).collect();
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

fn shuffled(seed: u64, folder: &Folder) -> ReadOptions {
    let scratch = folder.path("");
    ReadOptions {
        skip_bad: true,
        shuffle: Some(crate::data::Shuffle { seed, scratch }),
        ..ReadOptions::default()
    }
}

#[test]
fn a_shuffled_dataset_gives_every_record_once_whatever_its_form() {
    use crate::data::Kept;
    let folder = Folder::with(
        "a.jsonl",
        "{\"text\": \"a\", \"n\": 0.1}\n{\"text\": \"b\", \"n\": 1e300}\nx\n",
    );
    folder.write("b.csv", "text,n\nc,x y\nd,7\n");
    folder.write("c.json", "[{\"text\": \"e\", \"n\": null}]");
    let files = ["a.jsonl", "b.csv", "c.json"];
    let kept = |options| ReadOptions {
        keep: vec!["n".into()],
        ..options
    };
    let plain: Vec<_> = folder
        .open(&files, kept(skipping()))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(plain[1].kept, [Some(Kept::Float(1e300))]);
    let mut orders = std::collections::HashSet::new();
    for seed in 0..20 {
        let mut dataset = folder.open(&files, kept(shuffled(seed, &folder))).unwrap();
        let (places, mut found): (Vec<_>, Vec<_>) =
            dataset.next_placed(10).unwrap().into_iter().unzip();
        assert_eq!((dataset.skipped(), dataset.fraction_read()), (1, Some(1.0)));
        assert!(
            places.is_sorted() && places.len() == 5 && places[4] <= 5,
            "{places:?}"
        );
        orders.insert(found.iter().map(|r| r.index).collect::<Vec<_>>());
        found.sort_by_key(|r| r.index);
        assert_eq!(found, plain);
    }
    assert!(orders.len() > 10);
}

#[test]
fn shuffled_slices_follow_one_another_in_the_order_of_the_whole() {
    let folder = Folder::with("a.jsonl", lines(23, &[4, 17]));
    let open = || folder.open(&["a.jsonl"], shuffled(3, &folder)).unwrap();
    let whole: Vec<_> = open().map(Result::unwrap).collect();
    let parts = [0..9, 9..10, 10..23];
    let mut skipped = 0;
    let mut joined = Vec::new();
    for part in parts {
        let mut dataset = open().only(part, 23);
        joined.extend(dataset.by_ref().filter_map(Result::ok));
        skipped += dataset.skipped();
    }
    assert_eq!((joined, skipped), (whole, 2));
    let error = open()
        .only(0..9, 24)
        .next()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_says(
        &error,
        &["a.jsonl", "changed between being counted and being read"],
    );
}

#[test]
fn a_fraction_takes_the_same_records_shuffled_or_not_and_none_is_an_error() {
    let folder = Folder::with("a.jsonl", lines(60, &[]));
    let fraction = Some("0.5#1".parse().unwrap());
    let numbers = |options| -> Vec<u64> {
        let options = ReadOptions {
            fraction,
            ..options
        };
        folder
            .open(&["a.jsonl"], options)
            .unwrap()
            .map(|r| r.unwrap().index)
            .collect()
    };
    let plain = numbers(ReadOptions::default());
    assert!((20..40).contains(&plain.len()) && plain.is_sorted());
    let mut mixed = numbers(shuffled(1, &folder));
    assert_ne!(mixed, plain);
    mixed.sort();
    assert_eq!(mixed, plain);
    let none = ReadOptions {
        fraction: Some("0.000001".parse().unwrap()),
        ..ReadOptions::default()
    };
    let error = folder
        .open(&["a.jsonl"], none)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_says(
        &error,
        &["a.jsonl", "--sample-fraction took none of its 60 records"],
    );
}

#[test]
fn a_bad_record_ends_a_shuffled_dataset_before_the_first_is_given() {
    let folder = Folder::with("a.jsonl", lines(9, &[5]));
    let options = ReadOptions {
        skip_bad: false,
        ..shuffled(1, &folder)
    };
    let error = folder
        .open(&["a.jsonl"], options)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert_says(&error.to_string(), &["a.jsonl:6"]);
}

#[test]
fn a_directory_that_shuffled_records_cannot_wait_in_is_named() {
    let folder = Folder::with("a.jsonl", lines(9, &[]));
    let mut options = shuffled(1, &folder);
    options.shuffle.as_mut().unwrap().scratch = folder.path("not there");
    let error = folder
        .open(&["a.jsonl"], options)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert_says(&error.to_string(), &["not there", "--shuffle"]);
}
