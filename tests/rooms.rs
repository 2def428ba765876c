//! Dependencies between the rooms of the house point one way: the list here is the one in docs/architecture.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every room, with the rooms that it may use.
const USES: [(&str, &[&str]); 12] = [
    ("sys", &[]),
    ("compact", &[]),
    ("hooks", &[]),
    ("data", &[]),
    ("analysis", &[]),
    ("report", &[]),
    ("backend", &["compact", "sys"]),
    ("model", &["sys"]),
    ("store", &["compact", "sys"]),
    (
        "engine",
        &[
            "backend", "compact", "data", "hooks", "model", "store", "sys",
        ],
    ),
    (
        "study",
        &[
            "analysis", "backend", "data", "engine", "hooks", "model", "report", "store", "sys",
        ],
    ),
    (
        "cli",
        &[
            "analysis", "backend", "compact", "data", "engine", "hooks", "model", "report",
            "store", "study", "sys",
        ],
    ),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a line of code names: `crate::ROOM`, and those of `use crate::{ROOM, …}`.
fn named(line: &str) -> BTreeSet<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let grouped = after.strip_prefix('{').map(|group| group.split(','));
        let names = grouped.into_iter().flatten().chain([after]);
        found.extend(names.map(|name| {
            let name = name.trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            &name[..end.unwrap_or(name.len())]
        }));
    }
    found
}

#[test]
fn no_room_uses_one_that_it_may_not() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms: BTreeSet<&str> = USES.iter().map(|(room, _)| *room).collect();
    let mut found = Vec::new();
    sources(&src, &mut found);
    assert!(found.len() > 100, "the sources are not where they were");
    let mut wrong = Vec::new();
    for path in found {
        let inside = path.strip_prefix(&src).unwrap();
        let room = inside.components().next().unwrap().as_os_str();
        let room = room.to_str().unwrap().trim_end_matches(".rs");
        if ["main", "lib", "error"].contains(&room) {
            continue;
        }
        let Some((_, may)) = USES.iter().find(|(name, _)| *name == room) else {
            panic!(
                "{room} is a room that nobody has heard of: say here and in docs/architecture.md what it may use"
            );
        };
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for name in named(line) {
                if rooms.contains(name) && name != room && !may.contains(&name) {
                    wrong.push(format!(
                        "{}:{}: {room} uses {name}",
                        inside.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rooms_are_found_however_they_are_written() {
    let found = |line| named(line).into_iter().collect::<Vec<_>>();
    assert_eq!(found("use crate::store::{Kept, Store};"), ["store"]);
    assert!(found("use crate::{data, engine::Job};").contains(&"engine"));
    assert!(found("    crate::sys::stop::asked() // crate::cli").contains(&"sys"));
    assert!(!found("    crate::sys::stop::asked() // crate::cli").contains(&"cli"));
}
