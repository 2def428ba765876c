//! Injections by replay: that they have the bits of a whole pass with the edit, and what is read where.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use streamgauge::data::{Input, Record};
use streamgauge::engine::{Injection, Job, Prepared, Sample, Scorer, Steering};

/// 3 layers, d 64, vocabulary 160, window 4.
fn model() -> PathBuf {
    common::fixtures().join("models/mistral-window4")
}

fn prepared(edits: Vec<String>) -> Prepared {
    let job = Job::new(model().display().to_string(), Vec::new(), Vec::new());
    Prepared::for_generation(Job {
        edits,
        batch_tokens: 24,
        ..job
    })
    .unwrap()
}

fn samples(prepared: &Prepared, lengths: &[usize]) -> Vec<Sample> {
    let sample = |(i, &n): (usize, &usize)| {
        let tokens = (0..n).map(|t| ((t * 31 + i * 17 + 3) % 160) as u32);
        let record = Record {
            index: i as u64,
            file: Arc::from("made up"),
            line: i as u64 + 1,
            input: Input::Tokens(tokens.collect()),
            spans: Vec::new(),
            kept: Vec::new(),
        };
        prepared.tokenising.samples(record).unwrap().remove(0)
    };
    lengths.iter().enumerate().map(sample).collect()
}

fn vector(seed: usize) -> Vec<f32> {
    (0..64)
        .map(|i| ((i * 13 + seed * 7) % 11) as f32 / 11.0 - 0.4)
        .collect()
}

fn save(vectors: &[Vec<f32>]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.safetensors");
    let tensors: Vec<_> = vectors
        .iter()
        .enumerate()
        .map(|(i, v)| (format!("v{i}"), vec![64], v.clone()))
        .collect();
    streamgauge::analysis::directions::save_tensors(&path, &tensors, &serde_json::json!({}))
        .unwrap();
    (dir, path)
}

/// Log-probability of each next token, in one pass with the edit.
fn edited(layer: usize, path: &std::path::Path, v: usize, c: f32, lengths: &[usize]) -> Vec<f64> {
    let edit = format!(
        "add at=blocks.{layer}.hook_resid_post v={}#v{v} c={c}",
        path.display()
    );
    let prepared = prepared(vec![edit]);
    let samples = samples(&prepared, lengths);
    let mut scorer = Scorer::new(&prepared);
    let mut found = Vec::new();
    for sample in &samples {
        let positions = (0..sample.row.tokens.len() as u32 - 1).collect();
        let hidden = scorer
            .run(std::slice::from_ref(sample), &[positions])
            .unwrap();
        let scores = scorer.score(&hidden, 0).unwrap();
        found.extend(scores.iter().map(|s| s.logprob.unwrap()));
    }
    found
}

#[test]
fn an_injection_has_the_bits_of_a_whole_pass_with_the_edit_at_any_layer() {
    let lengths = [9, 3, 14, 6];
    let vectors = [vector(1), vector(2)];
    let (_dir, path) = save(&vectors);
    let plain = prepared(Vec::new());
    let samples = samples(&plain, &lengths);
    let positions: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&n| (0..n as u32 - 1).collect())
        .collect();
    let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.row.tokens[..]).collect();
    let mut machine = plain.cpu();
    for layer in 0..3 {
        let steering =
            Steering::open(&plain, &mut machine, layer, &tokens, positions.clone()).unwrap();
        let pushes = [(0, 0.5_f32), (1, -2.0)];
        let injections = pushes.map(|(v, c)| Injection { v: &vectors[v], c });
        let found = steering
            .run(&mut machine, &injections, |said| {
                said.log_probabilities()[said.next.unwrap() as usize]
            })
            .unwrap();
        let expected: Vec<f64> = pushes
            .iter()
            .flat_map(|&(v, c)| edited(layer, &path, v, c, &lengths))
            .collect();
        assert_eq!(found, expected, "layer {layer}");
    }
}

#[test]
fn what_is_read_comes_injection_by_injection_and_sample_by_sample() {
    let plain = prepared(Vec::new());
    let samples = samples(&plain, &[9, 3, 14, 6]);
    let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.row.tokens[..]).collect();
    let mut machine = plain.cpu();
    let steering = Steering::at_the_end(&plain, &mut machine, 1, &tokens).unwrap();
    let v = vector(3);
    let injections = [0.0, 1.0, 2.0].map(|c| Injection { v: &v, c });
    let found = steering
        .run(&mut machine, &injections, |said| {
            (said.injection, said.sample, said.position, said.next)
        })
        .unwrap();
    let expected: Vec<_> = (0..3)
        .flat_map(|i| {
            [
                (i, 0, 8, None),
                (i, 1, 2, None),
                (i, 2, 13, None),
                (i, 3, 5, None),
            ]
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(steering.stream(1).len(), 3 * 64);
    assert!(steering.mean_norm() > 0.0);
}
