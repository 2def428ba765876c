//! Where a store is begun: full disks, read-only ones, directories already taken.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// A tmpfs of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, with the reason on stderr, where we have no right to mount.
    fn mount(at: &Path, options: &str) -> Option<Self> {
        let result = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .output();
        match result {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            Ok(output) => {
                eprintln!(
                    "no right to mount a tmpfs ({}); tested by other means",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(e) => {
                eprintln!("no `mount` to run ({e}); tested by other means");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// One sample of a row of `kib` KiB in each of two taps.
fn wide_run(kib: usize) -> Run {
    let taps = vec![
        tap("a", StoreDtype::F32, &[kib * 256]),
        tap("b", StoreDtype::F32, &[kib * 256]),
    ];
    let samples = vec![sample(0, vec![1])];
    let rows = vec![taps.iter().map(|_| rows_of(&samples[0], [0])).collect()];
    Run {
        taps,
        keep: Vec::new(),
        samples,
        rows,
        shards: vec![vec![1]],
    }
}

/// Begins a shard that cannot fit in `dir`, checks what is said and left, and says it.
fn assert_no_room(dir: &Path, kib: usize) -> String {
    let run = wide_run(kib);
    let mut writer = StoreWriter::create(dir, provenance(), run.taps.clone(), &[]).unwrap();
    let error = writer.begin_shard(&run.samples, &run.rows).unwrap_err();
    let needed = 2 * (4096 + kib as u64 * 1024 + 16);
    assert!(
        matches!(error, Error::NoSpace { needed: n, .. } if n == needed),
        "{error}"
    );
    let left: Vec<_> = fs::read_dir(dir.join(".partial"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"], "the shard's files are removed again");
    drop(writer);
    assert!(matches!(Store::open(dir), Err(Error::Partial { .. })));
    let message = error.to_string();
    assert!(
        message.contains(&needed.to_string())
            && message.contains(dir.to_str().unwrap())
            && !message.contains('\n'),
        "{message}"
    );
    message
}

/// As a full disk, in a child process whose files may not grow beyond 512 KiB.
fn assert_no_room_under_a_file_size_limit() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 512 && exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "store::tests::disk::child_under_a_file_size_limit",
            "--nocapture",
        ])
        .env("STREAMGAUGE_TEST_DIR", dir.path().join("run"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("no room for") && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "a child process of the file size limit's test"]
fn child_under_a_file_size_limit() {
    if let Some(dir) = std::env::var_os("STREAMGAUGE_TEST_DIR") {
        println!("{}", assert_no_room(Path::new(&dir), 1024));
    }
}

#[test]
fn a_file_size_limit_is_found_before_any_row_is_computed() {
    assert_no_room_under_a_file_size_limit();
}

#[test]
fn a_full_disk_is_found_before_any_row_is_computed_and_leaves_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Tmpfs::mount(dir.path(), "size=1m") else {
        return assert_no_room_under_a_file_size_limit();
    };
    // The first tap's file fits, the second's does not.
    let message = assert_no_room(&dir.path().join("run"), 600);
    assert!(
        message.contains("free there: ") && message.contains("free some space"),
        "{message}"
    );
    write(&dir.path().join("smaller"), &wide_run(100)).unwrap();
    assert!(check(&dir.path().join("smaller")).ok());
}

#[test]
fn a_full_disk_without_room_for_a_manifest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Tmpfs::mount(dir.path(), "size=64k") else {
        return assert_no_room_under_a_file_size_limit();
    };
    fs::write(dir.path().join("ballast"), vec![1; 56 << 10]).unwrap();
    let run = small_run();
    let huge = Provenance {
        chat_template: Some("x".repeat(20_000)),
        ..provenance()
    };
    let error = StoreWriter::create(&dir.path().join("run"), huge, run.taps, &[]).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_read_only_directory_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Tmpfs::mount(dir.path(), "ro");
    if mounted.is_none() {
        // Without the right to mount we are not root, and permission bits hold.
        let mut permissions = fs::metadata(dir.path()).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(dir.path(), permissions).unwrap();
    }
    for path in [dir.path().to_owned(), dir.path().join("new")] {
        let error = StoreWriter::create(&path, provenance(), Vec::new(), &[]).unwrap_err();
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
        assert!(
            error
                .to_string()
                .ends_with("give a directory that you can write to"),
            "{error}"
        );
    }
}

#[test]
fn a_directory_with_anything_in_it_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "draft").unwrap();
    let error = StoreWriter::create(dir.path(), provenance(), Vec::new(), &[])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!(
            "{} is not empty; give another directory, or remove this one",
            dir.path().display()
        )
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let (_dir, path) = small_store();
    let error = StoreWriter::create(&path, provenance(), Vec::new(), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("already holds a store (complete)"),
        "{error}"
    );
    assert!(check(&path).ok());
}

#[test]
fn an_existing_empty_directory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &small_run()).unwrap();
    assert!(check(dir.path()).ok());
}

#[test]
fn a_second_writer_is_refused_while_the_first_or_its_shard_lives() {
    let run = small_run();
    let dir = tempfile::tempdir().unwrap();
    let second =
        || StoreWriter::create(dir.path(), provenance(), run.taps.clone(), &[]).unwrap_err();
    let mut writer = StoreWriter::create(dir.path(), provenance(), run.taps.clone(), &[]).unwrap();
    assert!(matches!(second(), Error::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    let shard = writer.begin_shard(&run.samples, &run.rows).unwrap();
    drop(writer);
    assert!(matches!(second(), Error::Locked { .. }));
    drop(shard);
    assert!(matches!(
        second(),
        Error::AlreadyAStore {
            state: "partial",
            ..
        }
    ));
}

#[test]
fn a_run_that_ends_early_leaves_a_partial_store_of_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let run = small_run();
    let mut writer = write_shards(dir.path(), &run, 1).unwrap();
    let mut unfinished = writer
        .begin_shard(&run.samples[2..], &run.rows[2..])
        .unwrap();
    unfinished.finish_batch(0..1).unwrap();
    drop((writer, unfinished));
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("is partial"), "{error}");
    let store = Store::open_any(dir.path()).unwrap();
    assert_eq!(
        (store.manifest().state, store.tap("logits").unwrap().rows()),
        (State::Partial, 4)
    );
    let report = check(dir.path());
    assert!(report.ok() && report.warnings.len() == 1, "{report:?}");
}
