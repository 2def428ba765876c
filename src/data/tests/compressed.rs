//! Compressed text files.

use super::*;
use std::io::Write;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

/// With a checksum, as the `zstd` command writes.
fn zst(text: &[u8]) -> Vec<u8> {
    let mut to = zstd::Encoder::new(Vec::new(), 0).unwrap();
    to.include_checksum(true).unwrap();
    to.write_all(text).unwrap();
    to.finish().unwrap()
}

/// How a text is compressed, and the extension that says so.
type Packing = (&'static str, fn(&[u8]) -> Vec<u8>);
const PACKINGS: [Packing; 2] = [("gz", gzip), ("zst", zst)];

/// Some thousand lines that do not compress away.
fn lines() -> String {
    let line = |i: u64| {
        format!(
            "{{\"text\": \"{:x}\"}}\n",
            (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        )
    };
    (0..5000).map(line).collect()
}

#[test]
fn every_form_of_text_is_read_through_its_compression() {
    for (extension, pack) in PACKINGS {
        for (name, text) in [
            ("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"é\"}\n"),
            ("a.json", "[{\"text\": \"a\"}, {\"text\": \"é\"}]"),
            ("a.csv", "text\na\né\n"),
            ("a.tsv", "text\tn\na\t1\né\t2\n"),
            ("a.txt", "a\né\n"),
        ] {
            let packed = format!("{name}.{extension}");
            assert_eq!(
                texts(&packed, pack(text.as_bytes())),
                ["a", "é"],
                "{packed}"
            );
        }
    }
}

#[test]
fn members_and_frames_that_follow_one_another_are_one_text() {
    for (extension, pack) in PACKINGS {
        let parts = [pack(b"a\nb"), pack(b""), pack(b"c\nd\n")].concat();
        assert_eq!(
            texts(&format!("a.txt.{extension}"), parts),
            ["a", "bc", "d"]
        );
    }
}

#[test]
fn a_file_cut_short_is_an_error_wherever_it_is_cut_and_names_the_file() {
    for (extension, pack) in PACKINGS {
        let whole = pack(lines().as_bytes());
        let name = format!("a.jsonl.{extension}");
        assert_eq!(
            read(&name, &whole, ReadOptions::default()).unwrap().len(),
            5000
        );
        for cut in (1..40)
            .chain((1..20).map(|i| i * whole.len() / 20))
            .chain(whole.len() - 9..whole.len())
        {
            let said = message(&name, &whole[..cut], skipping());
            assert_says(&said, &[&name, "again"]);
        }
    }
}

#[test]
fn damaged_data_is_told_from_what_the_system_has_to_say() {
    for (extension, pack) in PACKINGS {
        let mut bytes = pack(lines().as_bytes());
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0xA5);
        let name = format!("a.jsonl.{extension}");
        let said = message(&name, &bytes, skipping());
        assert_says(&said, &[&name, "fetch or write it again"]);
        let said = message(&name, b"plain text", ReadOptions::default());
        assert_says(&said, &[&name, "damaged"]);
    }
}

#[test]
fn an_extension_of_compression_alone_names_no_form_and_parquet_packs_itself() {
    for name in ["a.gz", "a.zst", "a.parquet.gz", "a.bin.zst"] {
        let error = read(name, b"", ReadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::UnknownForm(_)), "{name}: {error}");
    }
}

#[test]
fn fingerprints_tell_how_a_compressed_file_is_read() {
    let packed = gzip(b"text\na\n");
    let of = |name: &str| {
        let folder = Folder::with(name, &packed);
        folder
            .open(&[name], ReadOptions::default())
            .unwrap()
            .fingerprint()
            .unwrap()
    };
    assert_eq!(of("a.csv.gz"), of("b.csv.gz"));
    assert_ne!(of("a.csv.gz"), of("a.tsv.gz"));
}

#[test]
fn directories_and_globs_find_compressed_files() {
    let folder = Folder::with("a.txt.gz", gzip(b"a\n"));
    folder.write("b.jsonl.zst", zst(b"{\"text\": \"b\"}\n"));
    folder.write("c.tar.gz", b"not data");
    let open =
        |pattern: &str| Dataset::open(&[pattern.to_owned()], ReadOptions::default()).unwrap();
    let all: Vec<_> = open(&folder.arg(""))
        .map(|r| text_of(&r.unwrap()))
        .collect();
    assert_eq!(all, ["a", "b"]);
    let some: Vec<_> = open(&folder.arg("*.zst"))
        .map(|r| text_of(&r.unwrap()))
        .collect();
    assert_eq!(some, ["b"]);
}
