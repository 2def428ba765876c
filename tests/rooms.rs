//! Dependencies between the rooms of the house point one way: what each may use is the table in docs/architecture.md, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Rooms = BTreeMap<String, BTreeSet<String>>;

/// The table of docs/architecture.md: every room, with the rooms that it may use.
fn allowed() -> Rooms {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = std::fs::read_to_string(page).unwrap();
    let (_, table) = text.split_once("| room | uses |").unwrap();
    let ticked = |cell: &str| -> Vec<String> {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let uses: BTreeSet<String> = ticked(cells[2]).into_iter().collect();
            let rooms = ticked(cells[1]).into_iter();
            rooms.map(move |room| (room, uses.clone()))
        })
        .collect()
}

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

/// How many modules a file of src/ lies below the crate's root: 2 for `store/writer.rs`, 1 for `store/mod.rs` and `store.rs`.
fn depth(inside: &Path) -> usize {
    let names = inside.components().count();
    names - usize::from(names > 1 && inside.file_name().is_some_and(|name| name == "mod.rs"))
}

/// What a source names at the crate's root, with the lines: `crate::ROOM`, those of `crate::{ROOM, …}` over any number of lines, and
/// `super::…::ROOM` of a file that lies `depth` modules below the root.
fn named(source: &str, depth: usize) -> Vec<(usize, String)> {
    let code: Vec<&str> = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", &up] {
        for (at, _) in code.match_indices(root) {
            // Part of a longer word or chain: `my_crate::`, or more steps up than there are.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let after = &code[at + root.len()..];
            found.extend(first_names(after).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// The first name of a path, or of each path of a group.
fn first_names(after: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start().chars();
        text.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = after.strip_prefix('{') else {
        return vec![name(after)];
    };
    let mut names = vec![name(group)];
    let mut inside = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => inside += 1,
            '}' if inside == 0 => break,
            '}' => inside -= 1,
            ',' if inside == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty()); // behind a last comma
    names
}

#[test]
fn every_room_uses_what_its_line_of_the_table_says_and_no_more() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed = allowed();
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 100, "the sources are not where they were");
    let mut used: Rooms = allowed
        .keys()
        .map(|r| (r.clone(), BTreeSet::new()))
        .collect();
    let mut wrong = Vec::new();
    for path in files {
        let inside = path.strip_prefix(&src).unwrap();
        let room = inside.components().next().unwrap().as_os_str();
        let room = room.to_str().unwrap().trim_end_matches(".rs");
        if ["main", "lib", "error"].contains(&room) {
            continue;
        }
        let Some(may) = allowed.get(room) else {
            panic!("src/{room} has no line in docs/architecture.md: say there what it may use");
        };
        let text = std::fs::read_to_string(&path).unwrap();
        for (line, name) in named(&text, depth(inside)) {
            if name == room || !allowed.contains_key(&name) {
                continue;
            }
            if !may.contains(&name) {
                wrong.push(format!("{}:{line}: {room} uses {name}", inside.display()));
            }
            used.get_mut(room).unwrap().insert(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        used, allowed,
        "left: what is used; right: what docs/architecture.md allows"
    );
}

#[test]
fn rooms_are_found_however_they_are_written() {
    let found = |source: &str, depth| -> Vec<String> {
        let names = named(source, depth).into_iter();
        names.map(|(_, name)| name).collect()
    };
    assert_eq!(found("use crate::store::{Kept, Store};", 2), ["store"]);
    assert_eq!(
        found(
            "use crate::{\n    data,\n    engine::{Job, Plan},\n    sys,\n};",
            1
        ),
        ["data", "engine", "sys"]
    );
    let called = "    crate::sys::stop::asked() // crate::cli";
    assert_eq!(found(called, 1), ["sys"]);
    assert_eq!(found("use super::super::model::Config;", 2), ["model"]);
    assert!(found("use super::super::model::Config;", 3).is_empty());
    assert!(found("use super::plan::Plan;", 2).is_empty());
    assert_eq!(named("\n\ncrate::hooks::Site", 2)[0].0, 3);
    assert_eq!(depth(Path::new("store/writer.rs")), 2);
    assert_eq!(depth(Path::new("store/mod.rs")), 1);
    assert_eq!(depth(Path::new("store.rs")), 1);
}
