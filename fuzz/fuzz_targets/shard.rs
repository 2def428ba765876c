//! The input is a tap's file, of the committed shard or of the one that is being written. Its first byte tells which, and what the rest is: the
//! whole file, as long as it is; the file, cut or filled to its right length; or the JSON of its header alone, before the file's own data.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use streamgauge_fuzz::{Template, plant_seeds};

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);

const AS_LONG_AS_IT_IS: u8 = 0;
const RIGHT_LENGTH: u8 = 1;
const HEADER: u8 = 2;

/// Which file, of how many.
fn file_of(choice: u8) -> usize {
    usize::from(choice & 0x0f) % TEMPLATE.tap_files().len()
}

/// What is planted in place of `own`.
fn content(choice: u8, rest: &[u8], own: &[u8]) -> Vec<u8> {
    match (choice >> 4) % 3 {
        AS_LONG_AS_IT_IS => rest.to_vec(),
        RIGHT_LENGTH => {
            let mut bytes = rest.to_vec();
            bytes.resize(own.len(), 0);
            bytes
        }
        _ => {
            let data = 8 + u64::from_le_bytes(own[..8].try_into().expect("8 bytes")) as usize;
            let mut bytes = (rest.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(rest);
            let at = (data - 8).max(rest.len());
            bytes.resize(8 + at, b' ');
            bytes[..8].copy_from_slice(&(at as u64).to_le_bytes());
            bytes.extend_from_slice(&own[data..]);
            bytes.resize(own.len(), 0);
            bytes
        }
    }
}

fn seeds() {
    for (i, path) in TEMPLATE.tap_files().iter().enumerate() {
        let file = TEMPLATE.file(path);
        let header = 8 + u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        let json = file[8..header].trim_ascii_end();
        let seed = |way: u8, bytes: &[u8]| [&[way << 4 | i as u8], bytes].concat();
        plant_seeds(&[
            (&format!("file-{i}"), seed(AS_LONG_AS_IT_IS, file)),
            (
                &format!("length-{i}"),
                seed(RIGHT_LENGTH, &file[..header + 8]),
            ),
            (&format!("header-{i}"), seed(HEADER, json)),
        ]);
    }
}

fuzz_target!(init: seeds(), |input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else { return };
    let path = &TEMPLATE.tap_files()[file_of(choice)];
    let own = TEMPLATE.file(path);
    let planted = content(choice, rest, own);
    TEMPLATE.plant(&[(path, &planted)]);
    let ended = TEMPLATE.use_store();
    if path.starts_with(".partial/") {
        assert!(ended.sound && ended.finished && ended.sound_in_the_end, "an unfinished file may cost work and nothing else: {ended:?}");
        TEMPLATE.assert_tap_files_are_whole();
    } else {
        assert_eq!(ended.sound, planted == own, "verify tells every change of a committed file: {ended:?}");
    }
});
