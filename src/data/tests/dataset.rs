//! Files, order, limits, skipping, the fingerprint, and how input is pulled.

use super::*;
use crate::data::dataset::open_text;
use crate::data::fields::Wanted;
use crate::data::files::Form;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn all_texts(dataset: Dataset) -> Vec<String> {
    dataset.map(|record| text_of(&record.unwrap())).collect()
}

#[test]
fn arguments_keep_their_order_and_directories_and_globs_are_sorted() {
    let folder = Folder::new();
    for name in ["b.txt", "a.txt", "z.txt", "10.jsonl"] {
        let text = format!("{{\"text\": \"{name}\"}}\n");
        folder.write(
            name,
            if name.ends_with("txt") {
                name
            } else {
                text.as_str()
            },
        );
    }
    folder.write("README.md", "not data");
    folder.write(".hidden.txt", "not data");
    let nested = folder.path("nested.txt");
    std::fs::create_dir(&nested).unwrap();
    let read = |names: &[&str]| all_texts(folder.open(names, ReadOptions::default()).unwrap());
    assert_eq!(read(&["."]), ["10.jsonl", "a.txt", "b.txt", "z.txt"]);
    assert_eq!(read(&["z.txt", "[ab].txt"]), ["z.txt", "a.txt", "b.txt"]);
    let dataset = folder.open(&["?.txt"], ReadOptions::default()).unwrap();
    assert_eq!(dataset.files().len(), 3);
}

#[test]
fn a_file_whose_name_reads_as_a_glob_is_taken_literally() {
    let folder = Folder::with("a[1].txt", "x");
    let dataset = folder.open(&["a[1].txt"], ReadOptions::default()).unwrap();
    assert_eq!(all_texts(dataset), ["x"]);
}

#[test]
fn indices_run_on_over_files_and_lines_begin_anew() {
    let folder = Folder::with("a.txt", "1\n2\n");
    folder.write("b.csv", "text\n3\n");
    let dataset = folder
        .open(&["a.txt", "b.csv"], ReadOptions::default())
        .unwrap();
    let records: Vec<Record> = dataset.map(Result::unwrap).collect();
    let places: Vec<(u64, u64)> = records.iter().map(|r| (r.index, r.line)).collect();
    assert_eq!(places, [(0, 1), (1, 2), (2, 2)]);
    assert!(records[2].place().ends_with("b.csv:2"));
}

#[test]
fn what_cannot_be_a_dataset_is_refused_when_opened_with_the_remedy() {
    let folder = Folder::with("a.md", "x");
    folder.write("a.txt", "x");
    std::fs::create_dir(folder.path("empty")).unwrap();
    let said = |names: &[&str]| {
        folder
            .open(names, ReadOptions::default())
            .unwrap_err()
            .to_string()
    };
    assert_says(&said(&["none.jsonl"]), &["none.jsonl", "no such file"]);
    assert_says(&said(&["*.parquet"]), &["*.parquet", "matches no file"]);
    assert_says(
        &said(&["a.md"]),
        &[
            "a.md",
            ".jsonl, .json, .csv, .tsv, .txt (each also with .gz or .zst) or .parquet",
        ],
    );
    assert_says(&said(&["empty"]), &["empty", "holds no", ".jsonl"]);
    assert_says(&said(&["a***.txt"]), &["a***.txt", "not a valid glob"]);
    assert_says(&said(&[]), &["no data", ".jsonl"]);
    assert_says(&said(&["*"]), &["a.md", "cannot tell its form"]);
}

#[test]
fn a_file_named_twice_is_refused_however_it_is_reached() {
    let folder = Folder::with("a.txt", "x");
    for names in [["a.txt", "a.txt"], ["*.txt", "./a.txt"], [".", "a.*"]] {
        let error = folder.open(&names, ReadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NamedTwice(_)), "{error}");
        assert_says(&error.to_string(), &["a.txt", "twice"]);
    }
    let twice = ["-".to_owned(), "-".to_owned()];
    assert!(matches!(
        Dataset::open(&twice, ReadOptions::default()),
        Err(Error::NamedTwice(_))
    ));
}

#[test]
fn standard_input_is_a_dataset_without_a_fingerprint() {
    let dataset = Dataset::open(&["-".to_owned()], ReadOptions::default()).unwrap();
    assert_eq!(dataset.files(), [PathBuf::from("-")]);
    assert_eq!(dataset.fingerprint().unwrap(), None);
}

#[test]
fn a_named_pipe_is_read_once_and_has_no_fingerprint() {
    let folder = Folder::new();
    let pipe = folder.path("a.jsonl");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    let writer = std::thread::spawn(move || {
        std::fs::write(pipe, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n").unwrap();
    });
    let dataset = folder.open(&["a.jsonl"], ReadOptions::default()).unwrap();
    assert_eq!(dataset.fingerprint().unwrap(), None);
    assert_eq!(dataset.fraction_read(), None);
    assert_eq!(all_texts(dataset), ["a", "b"]);
    writer.join().unwrap();
}

#[test]
fn bad_records_are_skipped_and_counted_and_keep_their_index() {
    let folder = Folder::with(
        "a.jsonl",
        "{\"text\":\"a\"}\nnonsense\n{\"text\":\"\"}\n{\"text\":\"b\"}\n",
    );
    let mut dataset = folder.open(&["a.jsonl"], skipping()).unwrap();
    let good: Vec<(u64, u64)> = dataset
        .by_ref()
        .map(|r| r.map(|r| (r.index, r.line)).unwrap())
        .collect();
    assert_eq!(good, [(0, 1), (3, 4)]);
    assert_eq!(dataset.skipped(), 2);
    assert_says(&dataset.skip_reasons()[0], &["a.jsonl:2:", "JSON"]);
    assert_says(&dataset.skip_reasons()[1], &["a.jsonl:3:", "empty"]);
}

#[test]
fn only_the_first_few_reasons_are_kept() {
    let folder = Folder::with("a.txt", "\n".repeat(100) + "x");
    let mut dataset = folder.open(&["a.txt"], skipping()).unwrap();
    assert_eq!(dataset.by_ref().count(), 1);
    assert_eq!((dataset.skipped(), dataset.skip_reasons().len()), (100, 5));
}

#[test]
fn a_limit_counts_bad_records_so_that_it_picks_the_same_ones() {
    let folder = Folder::with("a.txt", "a\n\nb\nc\n");
    let options = ReadOptions {
        limit: Some(3),
        ..skipping()
    };
    assert_eq!(
        all_texts(folder.open(&["a.txt"], options).unwrap()),
        ["a", "b"]
    );
    let none = ReadOptions {
        limit: Some(0),
        ..ReadOptions::default()
    };
    assert_eq!(folder.open(&["a.txt"], none).unwrap().count(), 0);
    let first = ReadOptions {
        limit: Some(1),
        ..ReadOptions::default()
    };
    assert_eq!(all_texts(folder.open(&["a.txt"], first).unwrap()), ["a"]);
}

#[test]
fn the_iterator_ends_after_its_first_error() {
    let folder = Folder::with("a.txt", "a\n\nb\n");
    let mut dataset = folder.open(&["a.txt"], ReadOptions::default()).unwrap();
    assert!(dataset.next().unwrap().is_ok());
    assert!(dataset.next().unwrap().is_err());
    assert!(dataset.next().is_none());
}

#[test]
fn a_dataset_without_a_single_good_record_is_an_error() {
    for (name, contents) in [
        ("a.txt", ""),
        ("a.jsonl", ""),
        ("a.csv", "text\n"),
        ("a.csv", ""),
        ("a.json", "[]"),
    ] {
        assert_says(
            &message(name, contents, ReadOptions::default()),
            &[name, "no samples"],
        );
    }
    let said = message("a.txt", "\n\n", skipping());
    assert_says(&said, &["a.txt", "all 2 records are bad", "a.txt:1:"]);
}

#[test]
fn the_fingerprint_follows_names_contents_and_order() {
    let folder = Folder::with("a.txt", "x\n");
    folder.write("b.txt", "y\n");
    let print = |folder: &Folder, names: &[&str]| {
        let dataset = folder.open(names, ReadOptions::default()).unwrap();
        dataset.fingerprint().unwrap().unwrap()
    };
    let both = print(&folder, &["a.txt", "b.txt"]);
    assert_eq!(both.len(), 32);
    assert_ne!(both, print(&folder, &["b.txt", "a.txt"]));
    assert_ne!(both, print(&folder, &["a.txt"]));
    let elsewhere = Folder::with("a.txt", "x\n");
    elsewhere.write("b.txt", "y\n");
    assert_eq!(both, print(&elsewhere, &["a.txt", "b.txt"]));
    elsewhere.write("b.txt", "z\n");
    assert_ne!(both, print(&elsewhere, &["a.txt", "b.txt"]));
}

#[test]
fn a_dataset_can_be_read_on_a_thread_of_its_own() {
    let folder = Folder::with("a.txt", "a\nb\n");
    let dataset = folder.open(&["a.txt"], ReadOptions::default()).unwrap();
    let texts = std::thread::spawn(move || all_texts(dataset))
        .join()
        .unwrap();
    assert_eq!(texts, ["a", "b"]);
}

/// Endless records of a form, counting the bytes pulled; fails after `fails_at` bytes.
struct Endless {
    head: &'static [u8],
    record: &'static [u8],
    pulled: Arc<AtomicU64>,
    fails_at: u64,
}

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let from = self.pulled.load(Ordering::Relaxed);
        if from >= self.fails_at {
            return Err(io::Error::other("the disk is gone"));
        }
        let (head, record) = (self.head, self.record);
        for (place, byte) in (from as usize..).zip(into.iter_mut()) {
            *byte = match place.checked_sub(head.len()) {
                None => head[place],
                Some(beyond) => record[beyond % record.len()],
            };
        }
        self.pulled.fetch_add(into.len() as u64, Ordering::Relaxed);
        Ok(into.len())
    }
}

const ENDLESS: [(Form, &[u8], &[u8]); 5] = [
    (Form::Jsonl, b"", b"{\"text\": \"sixteen characters\"}\n"),
    (Form::Json, b"[", b"{\"text\": \"sixteen characters\"},\n"),
    (Form::Csv, b"text\n", b"\"sixteen\n characters\"\n"),
    (Form::Tsv, b"text\n", b"sixteen characters\n"),
    (Form::Txt, b"", b"sixteen characters\n"),
];

#[test]
fn every_text_form_pulls_its_input_as_records_are_asked_for() {
    for (form, head, record) in ENDLESS {
        let wanted = Wanted::new(&ReadOptions::default()).unwrap();
        let pulled = Arc::new(AtomicU64::new(0));
        let input = Endless {
            head,
            record,
            pulled: pulled.clone(),
            fails_at: u64::MAX,
        };
        let mut reader = open_text(form, "f".into(), Box::new(input), &wanted).unwrap();
        let mut read = 0;
        for _ in 0..50_000 {
            reader.next_record(&wanted).unwrap().unwrap();
            read += record.len() as u64;
            let ahead = pulled.load(Ordering::Relaxed).saturating_sub(read);
            assert!(ahead <= 1 << 20, "{form:?} read {ahead} bytes ahead");
        }
    }
}

#[test]
fn a_read_error_midway_names_the_file_and_the_line_reached() {
    for (form, head, record) in ENDLESS {
        let wanted = Wanted::new(&ReadOptions::default()).unwrap();
        let pulled = Arc::new(AtomicU64::new(0));
        let input = Endless {
            head,
            record,
            pulled,
            fails_at: 600_000,
        };
        let mut reader = open_text(form, "f".into(), Box::new(input), &wanted).unwrap();
        let error = loop {
            if let Err(error) = reader.next_record(&wanted).unwrap() {
                break error;
            }
        };
        let Error::Io {
            line: Some(line), ..
        } = &error
        else {
            panic!("{form:?}: {error}");
        };
        assert!(*line > 10_000, "{form:?}: {error}");
        assert_says(
            &error.to_string(),
            &["f: cannot read on from line", "the disk is gone"],
        );
    }
}

#[test]
fn the_share_read_grows_with_the_bytes_of_all_files_and_ends_at_one() {
    let lines = "a line of text, a line of text\n".repeat(100_000);
    let folder = Folder::with("a.txt", &lines);
    folder.write("b.txt", &lines);
    let mut dataset = folder
        .open(&["a.txt", "b.txt"], ReadOptions::default())
        .unwrap();
    assert_eq!(dataset.fraction_read(), Some(0.0));
    // A reader buffers up to 256 KiB, of 6.2 MB.
    for (records, expected) in [(50_000, 0.25), (100_000, 0.75)] {
        assert_eq!(dataset.by_ref().take(records).count(), records);
        let read = dataset.fraction_read().unwrap();
        assert!((expected..expected + 0.05).contains(&read), "{read}");
    }
    assert_eq!(dataset.by_ref().count(), 50_000);
    assert_eq!(dataset.fraction_read(), Some(1.0));
}

#[test]
fn the_share_read_of_a_limited_dataset_counts_records() {
    let folder = Folder::with("a.txt", "a line of text\n".repeat(100_000));
    let options = ReadOptions {
        limit: Some(80_000),
        ..ReadOptions::default()
    };
    let mut dataset = folder.open(&["a.txt"], options).unwrap();
    assert_eq!(dataset.by_ref().take(60_000).count(), 60_000);
    assert_eq!(dataset.fraction_read(), Some(0.75));
}
