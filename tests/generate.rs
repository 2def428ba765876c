//! Generation: decoding over cached keys and values against the whole pass, prompts together against each alone, what taps and
//! edits see at each step, scoring, and the command.

#[path = "generate/command.rs"]
mod command;
mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assert_cmd::Command;
use proptest::prelude::*;
use serde_json::Value;
use streamgauge::backend::cuda::Dtype;
use streamgauge::data::{Input, Record};
use streamgauge::engine::{
    Choosing, Generated, GenerationBeginning, GenerationStore, Generator, Job, Prepared,
    PromptSource, Sample, Scorer, Stop, Stops, extract,
};
use streamgauge::store::{Store, StoreDtype};

fn tiny(name: &str) -> PathBuf {
    common::fixtures().join("models").join(name)
}

fn job(model: &Path, taps: &[&str], edits: &[&str]) -> Job {
    let taps = taps.iter().map(|t| t.to_string()).collect();
    Job {
        edits: edits.iter().map(|e| e.to_string()).collect(),
        ..Job::new(model.display().to_string(), vec![], taps)
    }
}

fn samples(prepared: &Prepared, prompts: &[Vec<u32>]) -> Vec<Sample> {
    let sample = |(i, ids): (usize, &Vec<u32>)| {
        let record = Record {
            index: i as u64,
            file: Arc::from("prompts"),
            line: i as u64 + 1,
            input: Input::Tokens(ids.clone()),
            spans: vec![],
            kept: vec![],
        };
        prepared.tokenising.samples(record).unwrap().remove(0)
    };
    prompts.iter().enumerate().map(sample).collect()
}

fn ids(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|t| (t * 37 + seed * 61 + t * t * seed) % 160)
        .collect()
}

fn without_end(max_new_tokens: usize) -> Stops {
    Stops {
        max_new_tokens,
        tokens: vec![],
        end_of_turn: None,
    }
}

fn generate(
    prepared: &Prepared,
    choosing: Choosing,
    stops: Stops,
    prompts: &[Sample],
) -> Vec<Generated> {
    let mut generator = Generator::new(prepared, choosing, stops).unwrap();
    generator.generate(prompts, &mut |_| ()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every row of a tap by (sample, position).
fn rows(store: &Path, tap: &str) -> Vec<(i64, i32, Vec<f32>)> {
    let store = Store::open(store).unwrap();
    let tap = store.tap(tap).unwrap();
    let row = |i| tap.row(i).unwrap();
    (0..tap.rows())
        .map(|i| (row(i).sample(), row(i).position(), row(i).to_f32()))
        .collect()
}

/// Generates with taps; returns the store and what was generated.
fn tapped(
    dir: &Path,
    model: &Path,
    taps: &[&str],
    edits: &[&str],
    prompts: &[Vec<u32>],
    new: usize,
) -> (PathBuf, Vec<Generated>) {
    tapped_by(dir, job(model, taps, edits), prompts, new)
}

fn tapped_by(dir: &Path, job: Job, prompts: &[Vec<u32>], new: usize) -> (PathBuf, Vec<Generated>) {
    let prepared = Prepared::for_generation(job).unwrap();
    let prompts = samples(&prepared, prompts);
    let (choosing, stops) = (Choosing::default(), without_end(new));
    let out = dir.join("generated");
    let mut generator = Generator::new(&prepared, choosing, stops).unwrap();
    let begun = GenerationStore::begin(&mut generator, PromptSource::default(), &out, false);
    let Ok(GenerationBeginning::Store(mut store)) = begun else {
        panic!("a new store begins")
    };
    let done = generator.generate(&prompts, &mut |_| ()).unwrap();
    store.write(&generator, &prompts, &done).unwrap();
    store.finish(&generator).unwrap();
    (out, done)
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    (error / b.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

#[test]
fn decoding_gives_what_the_whole_text_gives_at_every_step() {
    let prompts = [ids(1, 3), ids(2, 70), ids(3, 1), ids(4, 11)];
    let taps = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "logits"];
    let edits = [
        "scale at=blocks.0.attn.hook_pattern[1] c=1.5",
        "zero at=blocks.1.attn.hook_v[0] select=every:3",
        "scale at=logits c=2",
    ];
    // In bf16 a sum in another order is now and then rounded to the neighbour, 2^-8 away, and these differences grow with depth.
    for (model, edits, dtype, limit) in [
        ("mistral-window4", &edits[..], Dtype::F32, 1e-5),
        ("mistral-window4", &[], Dtype::F32, 1e-5),
        ("llama3-rope", &[], Dtype::F32, 1e-5),
        ("mistral-gqa41", &[], Dtype::F32, 1e-5),
        ("linear-rope", &edits[..1], Dtype::F32, 1e-5),
        ("mistral-window4", &edits[..], Dtype::BF16, 1e-2),
        ("mistral-gqa41", &[], Dtype::BF16, 1e-2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let job = Job {
            dtype,
            store_dtype: Some(StoreDtype::F32),
            ..job(&tiny(model), &taps, edits)
        };
        let (store, done) = tapped_by(dir.path(), job.clone(), &prompts, 40);
        let lines: String = done
            .iter()
            .map(|g| format!("{{\"tokens\": {:?}}}\n", g.tokens))
            .collect();
        let data = dir.path().join("texts.jsonl");
        std::fs::write(&data, lines).unwrap();
        let whole = dir.path().join("whole");
        let job = Job {
            data: vec![data.display().to_string()],
            ..job
        };
        extract(&Prepared::open(job).unwrap(), &whole, &mut |_| ()).unwrap();
        for tap in taps {
            let (step, all) = (rows(&store, tap), rows(&whole, tap));
            assert_eq!(
                step.len(),
                all.len() - prompts.len(),
                "all but each last token"
            );
            for (sample, position, row) in step {
                let other = &all
                    .iter()
                    .find(|r| (r.0, r.1) == (sample, position))
                    .unwrap()
                    .2;
                let error = relative(&row, other);
                assert!(
                    error <= limit,
                    "{model} {dtype} {tap} {sample} {position}: {error:e}"
                );
            }
        }
        // Greedy: each new token is the largest of the logits before it, and its log-probability theirs.
        for (sample, position, logits) in rows(&store, "logits") {
            let generated = &done[sample as usize];
            let Some(step) = (position as usize + 1).checked_sub(generated.prompt_len) else {
                continue;
            };
            let token = generated.new_tokens()[step] as usize;
            assert!(logits.iter().all(|l| *l <= logits[token]));
            let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let logprob = f64::from(logits[token]) - total.ln();
            assert!((logprob - f64::from(generated.logprobs[step])).abs() < 1e-5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn prompts_together_give_what_each_gives_alone_bit_for_bit(
        lengths in prop::collection::vec(prop_oneof![Just(1_usize), 2_usize..12, 60_usize..90], 1..6),
        temperature in prop_oneof![Just(0.0_f32), Just(0.8)],
        penalty in prop_oneof![Just(1.0_f32), Just(1.3)],
        batch_tokens in prop_oneof![Just(10_usize), Just(4096)],
        model in prop::sample::select(vec!["mistral-window4", "llama3-rope"]),
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::BF16]),
        seed in any::<u64>(),
    ) {
        let edits = ["scale at=blocks.0.hook_resid_post c=1.25 select=generated", "zero at=blocks.1.attn.hook_z[0] select=step:2..5"];
        let job = Job { batch_tokens, dtype, ..job(&tiny(model), &[], &edits) };
        let prepared = Prepared::for_generation(job).unwrap();
        let prompts: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(i, &n)| ids(i as u32 + seed as u32 % 50, n)).collect();
        let prompts = samples(&prepared, &prompts);
        let choosing = Choosing { temperature, top_p: 0.9, repetition_penalty: penalty, seed };
        // Some stop early, so that those left share ever smaller batches.
        let stops = Stops { tokens: (0..8).collect(), ..without_end(24) };
        let together = generate(&prepared, choosing, stops.clone(), &prompts);
        for (prompt, together) in prompts.iter().zip(together) {
            let alone = generate(&prepared, choosing, stops.clone(), std::slice::from_ref(prompt)).remove(0);
            prop_assert_eq!(&alone.tokens, &together.tokens);
            prop_assert_eq!(bits(&alone.logprobs), bits(&together.logprobs));
            prop_assert_eq!(alone.stop, together.stop);
        }
    }
}

#[test]
fn selections_are_of_the_tokens_that_are_there_at_each_step() {
    let dir = tempfile::tempdir().unwrap();
    let taps = [
        "hook_embed@prompt",
        "hook_embed@generated",
        "hook_embed@step:0..2",
        "hook_embed@last",
        "hook_embed@all",
        "hook_embed@first|norm",
        "logits@generated|logprob:3",
    ];
    let (store, done) = tapped(
        dir.path(),
        &tiny("mistral-window4"),
        &taps,
        &[],
        &[ids(1, 7), ids(2, 2)],
        6,
    );
    assert!(
        done.iter()
            .all(|g| g.new_tokens().len() == 6 && g.stop == Stop::Length)
    );
    let positions = |tap: &str, sample: i64| -> Vec<i32> {
        rows(&store, tap)
            .iter()
            .filter(|r| r.0 == sample)
            .map(|r| r.1)
            .collect()
    };
    assert_eq!(positions("hook_embed", 0), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(positions("hook_embed~2", 0), [7, 8, 9, 10, 11]);
    assert_eq!(positions("hook_embed~3", 0), [7, 8, 9]);
    assert_eq!(positions("hook_embed~4", 0), [6, 7, 8, 9, 10, 11]);
    assert_eq!(positions("hook_embed~5", 1), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(positions("hook_embed~6", 1), [0]);
    let opened = Store::open(&store).unwrap();
    let tap = opened.tap("logits").unwrap();
    let best: Vec<u32> = (0..5)
        .map(|i| tap.row(i).unwrap().index().unwrap()[0] as u32)
        .collect();
    assert_eq!(
        best,
        done[0].new_tokens()[1..],
        "each step's likeliest token comes next"
    );
    assert_eq!(
        opened.samples().next().unwrap().unwrap().tokens,
        done[0].tokens
    );
    assert!(streamgauge::store::verify(&store, &|_| ()).unwrap().ok());
    let message = streamgauge::engine::recompute(&store, 1, 0, None, None).unwrap_err();
    assert!(message.to_string().contains("tapped while generating"));
}

#[test]
fn an_edit_of_a_step_changes_nothing_before_it_and_its_receipt_counts_steps() {
    let model = tiny("llama3-rope");
    let run = |edits: &[&str]| {
        let prepared = Prepared::for_generation(job(&model, &[], edits)).unwrap();
        let prompts = samples(&prepared, &[ids(1, 9), ids(5, 4)]);
        let mut generator =
            Generator::new(&prepared, Choosing::default(), without_end(12)).unwrap();
        let done = generator.generate(&prompts, &mut |_| ()).unwrap();
        (done, generator.receipts())
    };
    let (plain, _) = run(&[]);
    let (edited, receipts) = run(&["scale at=blocks.0.hook_resid_post c=-2 select=step:3..4"]);
    assert_eq!(receipts[0].rows, 4, "two steps of two sequences");
    for (plain, edited) in plain.iter().zip(&edited) {
        // Token 4 is the first chosen after step 3's row.
        assert_eq!(bits(&plain.logprobs[..4]), bits(&edited.logprobs[..4]));
        assert_ne!(bits(&plain.logprobs[4..]), bits(&edited.logprobs[4..]));
    }
    let (_, receipts) = run(&["zero at=blocks.0.attn.hook_k[1] select=all"]);
    assert_eq!(receipts[0].rows, 9 + 4 + 2 * 11);
    assert!(receipts[0].note.as_ref().unwrap().contains("query heads"));
}

#[test]
fn scores_are_those_of_the_logits() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny("mistral-window4");
    let edits = [
        "scale at=blocks.1.hook_mlp_out c=2",
        "scale at=logits c=0.5 select=every:2",
    ];
    let texts = [ids(1, 30), ids(2, 200), ids(3, 1)];
    let lines: String = texts
        .iter()
        .map(|t| format!("{{\"tokens\": {t:?}}}\n"))
        .collect();
    let data = dir.path().join("texts.jsonl");
    std::fs::write(&data, lines).unwrap();
    let logits = |edits: &[&str], out: &str| {
        let job = Job {
            data: vec![data.display().to_string()],
            ..job(&model, &["logits"], edits)
        };
        let out = dir.path().join(out);
        extract(&Prepared::open(job).unwrap(), &out, &mut |_| ()).unwrap();
        rows(&out, "logits")
    };
    let softmax = |row: &[f32]| -> Vec<f64> {
        let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        row.iter().map(|&l| f64::from(l).exp() / total).collect()
    };
    let (plain_logits, edited_logits) = (logits(&[], "plain"), logits(&edits, "edited"));
    let (plain, edited) = (
        Prepared::for_generation(job(&model, &[], &[])).unwrap(),
        Prepared::for_generation(job(&model, &[], &edits)).unwrap(),
    );
    let (mut p, mut q) = (Scorer::new(&plain), Scorer::new(&edited));
    let samples = samples(&plain, &texts);
    let positions: Vec<Vec<u32>> = vec![vec![0, 5, 29], (0..200).collect(), vec![0]];
    let (p_run, q_run) = (
        p.run(&samples, &positions).unwrap(),
        q.run(&samples, &positions).unwrap(),
    );
    let scores = q.score(&q_run, 5).unwrap();
    let kl = p.kl_divergence(&p_run, &q_run).unwrap();
    assert_eq!(scores.len(), 204);
    for (i, (&(sample, position), scores)) in q_run.at.iter().zip(&scores).enumerate() {
        let row = |rows: &[(i64, i32, Vec<f32>)]| {
            softmax(
                &rows
                    .iter()
                    .find(|r| (r.0, r.1) == (sample as i64, position as i32))
                    .unwrap()
                    .2,
            )
        };
        let (p, q) = (row(&plain_logits), row(&edited_logits));
        match texts[sample].get(position as usize + 1) {
            Some(&next) => assert!((scores.logprob.unwrap() - q[next as usize].ln()).abs() < 1e-9),
            None => assert_eq!(scores.logprob, None),
        }
        let best = (0..160).max_by(|&a, &b| q[a].total_cmp(&q[b])).unwrap();
        assert_eq!(
            (scores.argmax as usize, scores.top[0].0 as usize),
            (best, best)
        );
        assert!(scores.top.is_sorted_by(|a, b| a.1 >= b.1) && scores.top.len() == 5);
        assert!((scores.entropy + q.iter().map(|q| q * q.ln()).sum::<f64>()).abs() < 1e-9);
        let truth: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((kl[i] - truth).abs() < 1e-9, "{} {truth}", kl[i]);
    }
    assert!(
        p.kl_divergence(&p_run, &p_run)
            .unwrap()
            .iter()
            .all(|kl| kl.abs() < 1e-12)
    );
}

/// SmolLM2's weights as a Mistral model with a sliding window.
fn with_window(dir: &Path, window: usize) -> PathBuf {
    let (from, to) = (common::smollm2(), dir.join("window"));
    std::fs::create_dir(&to).unwrap();
    for file in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        std::os::unix::fs::symlink(from.join(file), to.join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["model_type"] = "mistral".into();
    config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
    config["sliding_window"] = window.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    to
}

#[test]
fn greedy_text_and_log_probabilities_are_hugging_faces_plain_edited_and_past_a_window() {
    let fixture: Value =
        serde_json::from_slice(&std::fs::read(common::fixtures().join("generation.json")).unwrap())
            .unwrap();
    let vectors = common::fixtures()
        .join("generation.safetensors")
        .display()
        .to_string();
    let dir = tempfile::tempdir().unwrap();
    let windowed = with_window(dir.path(), 64);
    let u32s = |v: &Value| -> Vec<u32> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|i| i.as_u64().unwrap() as u32)
            .collect()
    };
    let f64s = |v: &Value| -> Vec<f64> {
        v.as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    let prompts: Vec<Vec<u32>> = fixture["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| u32s(&p["ids"]))
        .collect();
    assert!(prompts.len() >= 20);
    for run in fixture["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let edits: Vec<String> = run["edits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e.as_str().unwrap().replace("VECTORS", &vectors))
            .collect();
        let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
        let model = if run["window"].is_null() {
            common::smollm2()
        } else {
            windowed.clone()
        };
        let prepared = Prepared::for_generation(job(&model, &[], &edits)).unwrap();
        let outputs = run["outputs"].as_array().unwrap();
        let chosen: Vec<Vec<u32>> = outputs
            .iter()
            .map(|o| prompts[o["prompt"].as_u64().unwrap() as usize].clone())
            .collect();
        // Whole texts where all prompts are there; the other edits are seen in a few tokens.
        let new = if outputs.len() == prompts.len() {
            64
        } else {
            24
        };
        let choosing = Choosing {
            repetition_penalty: run["repetition_penalty"].as_f64().unwrap() as f32,
            ..Choosing::default()
        };
        let done = generate(
            &prepared,
            choosing,
            Stops::of(&prepared, new),
            &samples(&prepared, &chosen),
        );
        let (mut compared, mut all) = (0, 0);
        for (output, done) in outputs.iter().zip(&done) {
            let (theirs, logprobs, gaps) = (
                u32s(&output["ids"]),
                f64s(&output["logprobs"]),
                f64s(&output["gaps"]),
            );
            let ours = done.new_tokens();
            all += theirs.len().min(new);
            for i in 0..theirs.len().min(new) {
                if ours.get(i) != Some(&theirs[i]) {
                    assert!(
                        gaps[i] < 1e-3,
                        "{name}, prompt {}, token {i}: {:?}, not {}",
                        output["prompt"],
                        ours.get(i),
                        theirs[i]
                    );
                    break; // Hugging Face's own two best are as good as equal, and the texts part
                }
                let difference = (f64::from(done.logprobs[i]) - logprobs[i]).abs();
                assert!(
                    difference < 1e-4,
                    "{name}, prompt {}, token {i}: log-probability off by {difference:e}",
                    output["prompt"]
                );
                compared += 1;
            }
            assert!(
                ours.len() <= theirs.len(),
                "{name}: it goes on where Hugging Face stops"
            );
        }
        assert!(
            compared * 10 >= all * 9,
            "{name}: {compared} of {all} tokens compared"
        );
    }
}
