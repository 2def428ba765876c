//! The input is the journal of the shard that is being written, line by line without checksums: they are put before each line here. A line that
//! begins with `!` stands as it is, without one.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use streamgauge::store::Xxh3;
use streamgauge_fuzz::{Template, plant_seeds};

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);
const JOURNAL: &str = ".partial/00001.journal";

/// The input as a journal: each line's checksum made to agree.
fn sealed(input: &[u8]) -> Vec<u8> {
    let mut journal = Vec::new();
    for line in input.split_inclusive(|&b| b == b'\n') {
        if let Some(torn) = line.strip_prefix(b"!") {
            journal.extend_from_slice(torn);
            continue;
        }
        let json = line.strip_suffix(b"\n").unwrap_or(line);
        journal.extend_from_slice(format!("{} ", Xxh3::of(json)).as_bytes());
        journal.extend_from_slice(line);
    }
    journal
}

fn seeds() {
    let journal = TEMPLATE.file(JOURNAL).to_vec();
    let lines: Vec<&[u8]> = journal
        .split_inclusive(|&b| b == b'\n')
        .map(|line| &line[17..])
        .collect();
    assert_eq!(
        sealed(&lines.concat()),
        journal,
        "seals are put as the store puts them"
    );
    let torn = [&lines[..2].concat()[..], b"!", &lines[2][..9]].concat();
    let again = [&lines.concat()[..], lines[2]].concat();
    let both = String::from_utf8_lossy(lines[1]).replacen("\"samples\":1", "\"samples\":2", 1);
    plant_seeds(&[
        ("two-batches", lines.concat()),
        ("head", lines[0].to_vec()),
        ("torn", torn),
        ("again", again),
        ("wide-batch", [lines[0], both.as_bytes()].concat()),
    ]);
}

fuzz_target!(init: seeds(), |input: &[u8]| {
    TEMPLATE.plant(&[(JOURNAL, &sealed(input))]);
    let ended = TEMPLATE.use_store();
    assert!(ended.sound && ended.finished && ended.sound_in_the_end, "a journal may cost work and nothing else: {ended:?}");
    TEMPLATE.assert_tap_files_are_whole();
});
