//! `--devices`: several processes at one dataset, one of them killed, all of them stopped, and the store that comes of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::resume::{FLAGS, TAP, rows, signal};
use super::{Bench, done_json, model, refused};

fn slices(store: &Path) -> PathBuf {
    store.with_extension("slices")
}

/// The job on devices, to its end.
fn job(bench: &Bench, store: &Path, devices: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command = bench.job("extract", &[TAP]);
    command.arg("--out").arg(store).args(FLAGS);
    command.args(["--devices", devices]).args(more);
    command
}

/// The job on two processes, under way.
fn started(bench: &Bench, store: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
        .args(["extract", "--tap", TAP, "--devices", "2xcpu", "--model"])
        .arg(model())
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(store)
        .args(FLAGS)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The process at slice 1, once it has a journal; another one than `than`.
fn worker_at_slice_1(supervisor: &mut Child, store: &Path, than: Option<i32>) -> i32 {
    let partial = slices(store).join("1-of-2/.partial");
    let is_journal = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".journal");
    loop {
        assert_eq!(supervisor.try_wait().unwrap(), None, "it ended too soon");
        let mut entries = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        let pid = std::fs::read_to_string(partial.join("lock")).unwrap_or_default();
        if entries.any(|e| is_journal(e.file_name()))
            && let Ok(pid) = pid.trim().parse()
            && Some(pid) != than
        {
            return pid;
        }
        std::thread::yield_now();
    }
}

fn kill(pid: i32) {
    let status = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(status.unwrap().success(), "{pid} was gone");
}

fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What nobody has waited for yet is a zombie.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(Some('Z' | 'X')))
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn last_line(output: &Output) -> String {
    said(output).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn several_processes_make_the_store_that_one_makes() {
    let bench = Bench::new(101);
    let whole = bench.extract(&[TAP], &FLAGS);
    let store = bench.path("several");
    let summary = done_json(&mut job(&bench, &store, "3xcpu", &["--json"]));
    assert_eq!(
        (
            &summary["samples"],
            &summary["slices"],
            &summary["restarts"]
        ),
        (&101.into(), &3.into(), &0.into())
    );
    let alone = streamgauge::store::Store::open(&whole).unwrap();
    assert_eq!(summary["tokens"], alone.manifest().timing["tokens"]);
    assert_eq!(rows(&store), rows(&whole));
    assert!(!slices(&store).exists());
    // Once it is whole, it is rechecked like any other.
    let again = done_json(&mut job(&bench, &store, "3xcpu", &["--resume", "--json"]));
    assert_eq!(again["already_complete"], true);
    let message = refused(&mut job(&bench, &store, "3xcpu", &[]), 1);
    assert!(message.contains("is not empty"), "{message}");
}

#[test]
fn a_worker_that_is_killed_is_started_once_more() {
    let bench = Bench::new(600);
    let whole = bench.extract(&[TAP], &FLAGS);
    let store = bench.path("killed");
    let mut supervisor = started(&bench, &store);
    kill(worker_at_slice_1(&mut supervisor, &store, None));
    let output = supervisor.wait_with_output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("slice 1/2 on cpu is started once more") && said.contains("SIGKILL"),
        "{said}"
    );
    assert_eq!(rows(&store), rows(&whole));
}

#[test]
fn a_worker_that_is_killed_twice_ends_the_run_by_name_and_it_goes_on_on_other_devices() {
    let bench = Bench::new(600);
    let whole = bench.extract(&[TAP], &FLAGS);
    let store = bench.path("twice");
    let mut supervisor = started(&bench, &store);
    let first = worker_at_slice_1(&mut supervisor, &store, None);
    kill(first);
    kill(worker_at_slice_1(&mut supervisor, &store, Some(first)));
    let output = supervisor.wait_with_output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = last_line(&output);
    for word in [
        "error: slice 1/2 on cpu failed twice: killed",
        "1 of 2 slices are done",
        "--resume",
    ] {
        assert!(last.contains(word), "'{word}' in {said}");
    }
    assert!(!store.exists());
    let message = refused(&mut job(&bench, &store, "2xcpu", &[]), 1);
    assert!(message.contains("pass --resume"), "{message}");
    let other = ["--resume", "--select", "last"];
    let output = job(&bench, &store, "2xcpu", &other).assert().code(1);
    let message = last_line(output.get_output());
    assert!(message.contains("--select"), "{message}");
    let summary = done_json(&mut job(&bench, &store, "cpu", &["--resume", "--json"]));
    assert_eq!(
        (&summary["slices"], &summary["workers"]),
        (&2.into(), &1.into())
    );
    // The whole of slice 0, and of slice 1 what its workers had committed when they were killed: maybe nothing.
    assert!(summary["resumed_samples"].as_u64().unwrap() >= 300);
    assert_eq!(rows(&store), rows(&whole));
}

#[test]
fn a_signal_has_all_workers_commit_and_leave() {
    let bench = Bench::new(600);
    let whole = bench.extract(&[TAP], &FLAGS);
    for (name, status) in [("INT", 130), ("TERM", 143)] {
        let store = bench.path(name);
        let mut supervisor = started(&bench, &store);
        let worker = worker_at_slice_1(&mut supervisor, &store, None);
        signal(&supervisor, name);
        let output = supervisor.wait_with_output().unwrap();
        let last = last_line(&output);
        assert_eq!(output.status.code(), Some(status), "{last}");
        assert!(
            last.starts_with("error: stopped with") && last.contains("--resume"),
            "{last}"
        );
        assert!(!is_running(worker) && !store.exists());
        let summary = done_json(&mut job(&bench, &store, "2xcpu", &["--resume", "--json"]));
        assert!(summary["resumed_samples"].as_u64().unwrap() > 0);
        assert_eq!(rows(&store), rows(&whole));
    }
}

#[test]
fn workers_end_with_their_supervisor() {
    let bench = Bench::new(600);
    let whole = bench.extract(&[TAP], &FLAGS);
    let store = bench.path("orphans");
    let mut supervisor = started(&bench, &store);
    let worker = worker_at_slice_1(&mut supervisor, &store, None);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    while is_running(worker) {
        std::thread::yield_now();
    }
    done_json(&mut job(&bench, &store, "2xcpu", &["--resume", "--json"]));
    assert_eq!(rows(&store), rows(&whole));
}

#[test]
fn a_slice_that_cannot_be_done_is_told_with_its_reason() {
    use std::io::Write as _;
    let bench = Bench::new(40);
    let mut data = std::fs::OpenOptions::new();
    let mut data = data.append(true).open(bench.path("data.jsonl")).unwrap();
    writeln!(data, "{{\"tokens\": [9999]}}").unwrap();
    let store = bench.path("bad");
    let output = job(&bench, &store, "2xcpu", &[]).assert().code(1);
    let last = last_line(output.get_output());
    for word in [
        "slice 1/2 on cpu failed twice",
        "9999",
        "data.jsonl",
        "--resume",
    ] {
        assert!(last.contains(word), "'{word}' in {last}");
    }
}

#[test]
fn what_does_not_go_together_with_devices_is_refused_before_anything_is_made() {
    let bench = Bench::new(4);
    let store = bench.path("refused");
    for (more, status, says) in [
        (&["--shard", "0/2"][..], 2, "--shard"),
        (&["--device", "cpu"], 2, "--device"),
        (&["--trace", "t.json"], 2, "--trace"),
        (&["--data", "-"], 2, "--data -"),
        (&["--tap", "blocks.77.hook_z"], 1, "blocks.77.hook_z"),
        (&["--dtype", "f16"], 1, "--dtype f16"),
    ] {
        let message = refused(&mut job(&bench, &store, "2xcpu", more), status);
        assert!(message.contains(says), "{more:?}: {message}");
    }
    let message = refused(&mut job(&bench, &store, "cpu,0", &[]), 2);
    assert!(message.contains("one kind"), "{message}");
    assert!(!store.exists() && !slices(&store).exists());
}
