//! Each example, run on a tiny model.

mod common;

#[path = "../examples/06_live_consumer.rs"]
mod consume;
#[path = "../examples/07_custom_analysis.rs"]
mod custom;
#[path = "../examples/01_extract.rs"]
mod extract;
#[path = "../examples/04_patch_head.rs"]
mod patch_head;
#[path = "../examples/02_read_store.rs"]
mod read_store;
#[path = "../examples/03_steer.rs"]
mod steer;
#[path = "../examples/05_sweep.rs"]
mod sweep;

use streamgauge::data::Input;

/// 3 layers, d 64, vocabulary 160.
fn model() -> String {
    common::fixtures()
        .join("models/mistral-window4")
        .display()
        .to_string()
}

fn lines(path: &std::path::Path, line: impl Fn(usize) -> String) -> String {
    let lines: String = (0..6).map(|i| line(i) + "\n").collect();
    std::fs::write(path, lines).unwrap();
    path.display().to_string()
}

fn ids(seed: usize) -> Vec<usize> {
    (0..9).map(|t| (t * 31 + seed * 17 + 3) % 160).collect()
}

#[test]
fn extract_read_and_analyse() {
    let dir = tempfile::tempdir().unwrap();
    let data = lines(&dir.path().join("data.jsonl"), |i| {
        format!("{{\"tokens\": {:?}}}", ids(i))
    });
    let store = dir.path().join("store");
    extract::run(&model(), &data, &store).unwrap();
    let norms = read_store::run(&store).unwrap();
    assert_eq!(norms.len(), 3);
    assert!(norms.iter().all(|(_, norm)| *norm > 0.0));
    let ratio = custom::run(&store, "blocks.1.hook_resid_post").unwrap();
    assert!((1.0..=6.0).contains(&ratio), "6 rows: {ratio}");
    let means = consume::run(&model(), &data).unwrap();
    assert_eq!((means.len(), means[0].len()), (3, 64));
}

#[test]
fn steer_patch_and_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let edit = "scale at=blocks.0.hook_resid_post c=-2";
    let prompt = || Input::Tokens(vec![3, 4, 5]);
    let plain = steer::run(&model(), Vec::new(), prompt(), 5).unwrap();
    let steered = steer::run(&model(), vec![edit.into()], prompt(), 5).unwrap();
    assert_ne!(plain, steered);
    let pairs = dir.path().join("pairs.jsonl");
    lines(&pairs, |i| {
        format!(
            "{{\"clean\": {:?}, \"corrupt\": {:?}, \"answer\": 5, \"wrong\": 9}}",
            ids(i),
            ids(i + 7)
        )
    });
    assert_eq!(patch_head::run(&model(), &pairs, 1, 2).unwrap().len(), 6);
    let prompts = dir.path().join("prompts.jsonl");
    lines(&prompts, |i| format!("{{\"clean\": {:?}}}", ids(i)));
    assert!(sweep::run(&model(), &prompts, edit).unwrap() > 1.5);
}
