//! Generation on the device: what it decodes, beside the CPU backend and beside the whole text.

use std::path::Path;
use std::sync::Arc;

use streamgauge::backend::cuda::virtual_gpu::{VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::data::{Input, Record};
use streamgauge::engine::{
    Choosing, EditReceipt, Generated, GenerationBeginning, GenerationStore, Generator, Job,
    Prepared, PromptSource, Sample, Stops, extract_on,
};
use streamgauge::store::Store;

use crate::{BF16, F16, common, gpu, noise, open, options};

fn job(model: &str, taps: &[&str], edits: &[&str]) -> Job {
    let model = common::fixtures().join("models").join(model);
    Job {
        edits: edits.iter().map(|e| e.to_string()).collect(),
        ..Job::new(
            model.display().to_string(),
            vec![],
            taps.iter().map(|t| t.to_string()).collect(),
        )
    }
}

fn prompts(prepared: &Prepared, lengths: &[usize]) -> Vec<Sample> {
    let sample = |(i, &n): (usize, &usize)| {
        let record = Record {
            index: i as u64,
            file: Arc::from("prompts"),
            line: i as u64 + 1,
            input: Input::Tokens(noise(n, i as u32)),
            spans: vec![],
            kept: vec![],
        };
        prepared.tokenising.samples(record).unwrap().remove(0)
    };
    lengths.iter().enumerate().map(sample).collect()
}

fn stops(max_new_tokens: usize) -> Stops {
    Stops {
        max_new_tokens,
        tokens: vec![],
        end_of_turn: None,
    }
}

fn device(prepared: &Prepared, dtype: Dtype) -> Cuda<VirtualGpu> {
    open(&prepared.model, gpu(), options(dtype))
}

fn on_device(
    prepared: &Prepared,
    cuda: &mut Cuda<VirtualGpu>,
    prompts: &[Sample],
    new: usize,
) -> (Vec<Generated>, Vec<EditReceipt>) {
    let mut generator =
        Generator::on(Box::new(cuda), prepared, Choosing::default(), stops(new)).unwrap();
    let done = generator.generate(prompts, &mut |_| ()).unwrap();
    (done, generator.receipts())
}

const EDITS: [&str; 4] = [
    "scale at=blocks.0.attn.hook_pattern[1] c=1.5",
    "zero at=blocks.1.attn.hook_pattern select=step:1..2",
    "scale at=blocks.0.hook_resid_post c=1.25 select=generated",
    "scale at=logits c=2",
];

#[test]
fn greedy_tokens_are_the_cpu_backends_past_the_window_and_edited() {
    for (model, edits) in [(BF16, &[][..]), (BF16, &EDITS[..]), (F16, &[][..])] {
        let prepared = Prepared::for_generation(job(model, &[], edits)).unwrap();
        // The window is 20: one prompt is longer, the others pass it.
        let prompts = prompts(&prepared, &[3, 31, 1]);
        let (ours, receipts) =
            on_device(&prepared, &mut device(&prepared, Dtype::F32), &prompts, 24);
        let mut cpu = Generator::new(&prepared, Choosing::default(), stops(24)).unwrap();
        let theirs = cpu.generate(&prompts, &mut |_| ()).unwrap();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.tokens, theirs.tokens, "{model} {edits:?}");
            for (a, b) in ours.logprobs.iter().zip(&theirs.logprobs) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
        for (a, b) in receipts.iter().zip(cpu.receipts()) {
            assert_eq!(a.rows, b.rows);
            assert!((a.mean_norm_before - b.mean_norm_before).abs() < 1e-4 * b.mean_norm_before);
            assert!((a.mean_norm_after - b.mean_norm_after).abs() <= 1e-4 * b.mean_norm_after);
        }
    }
}

#[test]
fn a_device_that_is_short_of_memory_takes_fewer_sequences_at_a_time() {
    let prepared = Prepared::for_generation(job(BF16, &[], &[])).unwrap();
    let prompts = prompts(&prepared, &[3, 9, 1]);
    let asked = CudaOptions {
        sequences: 100_000,
        ..options(Dtype::F32)
    };
    let mut cuda = open(&prepared.model, gpu(), asked);
    let kept = cuda.sequences();
    assert!(kept > 1 && kept < 100_000, "{kept}");
    let (ours, _) = on_device(&prepared, &mut cuda, &prompts, 4);
    let few = &mut device(&prepared, Dtype::F32);
    let (theirs, _) = on_device(&prepared, few, &prompts, 4);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(
            (&ours.tokens, &ours.logprobs),
            (&theirs.tokens, &theirs.logprobs)
        );
    }
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

#[test]
fn decoding_gives_what_the_whole_text_gives_at_every_step() {
    let taps = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "logits"];
    let edits = [EDITS[0], EDITS[3]];
    // bf16: rounding differs wherever the order of a sum does, and one unit in the last place is 2^-8.
    for (dtype, limit) in [(Dtype::F32, 1e-5), (Dtype::BF16, 0.03)] {
        let dir = tempfile::tempdir().unwrap();
        let prepared = Prepared::for_generation(job(BF16, &taps, &edits)).unwrap();
        let prompts = prompts(&prepared, &[2, 33]);
        let mut cuda = device(&prepared, dtype);
        let out = dir.path().join("generated");
        let (choosing, stops) = (Choosing::default(), stops(20));
        let mut generator = Generator::on(Box::new(&mut cuda), &prepared, choosing, stops).unwrap();
        let begun = GenerationStore::begin(&mut generator, PromptSource::default(), &out, false);
        let Ok(GenerationBeginning::Store(mut store)) = begun else {
            panic!("a new store begins")
        };
        let done = generator.generate(&prompts, &mut |_| ()).unwrap();
        store.write(&generator, &prompts, &done).unwrap();
        store.finish(&generator).unwrap();
        drop(generator);
        let data = dir.path().join("texts.jsonl");
        let line = |g: &Generated| format!("{{\"tokens\": {:?}}}\n", g.tokens);
        std::fs::write(&data, done.iter().map(line).collect::<String>()).unwrap();
        let whole = dir.path().join("whole");
        let whole_job = Job {
            data: vec![data.display().to_string()],
            batch_tokens: 128,
            ..job(BF16, &taps, &edits)
        };
        let whole_job = Prepared::open(whole_job).unwrap();
        extract_on(&whole_job, &mut cuda, &whole, &mut |_| ()).unwrap();
        for tap in taps {
            let all = rows(&whole, tap);
            let steps = rows(&out, tap);
            assert_eq!(steps.len() + 2, all.len(), "all but each last token");
            for (sample, position, row) in steps {
                let here = |r: &&(i64, i32, Vec<f32>)| (r.0, r.1) == (sample, position);
                let other = &all.iter().find(here).unwrap().2;
                let square = |x: f64| x * x;
                let off: f64 = row
                    .iter()
                    .zip(other)
                    .map(|(&a, &b)| square(f64::from(a - b)))
                    .sum();
                let norm: f64 = other.iter().map(|&b| square(b.into())).sum();
                let error = (off / norm).sqrt();
                assert!(
                    error <= limit,
                    "{dtype} {tap} {sample} {position}: {error:.1e}"
                );
            }
        }
    }
}

#[test]
fn prompts_together_give_what_each_gives_alone_bit_for_bit() {
    let prepared = Prepared::for_generation(job(BF16, &[], &EDITS)).unwrap();
    let prompts = prompts(&prepared, &[5, 28, 1, 9]);
    let bits = |g: &Generated| g.logprobs.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
    let (together, _) = on_device(&prepared, &mut device(&prepared, Dtype::BF16), &prompts, 12);
    // A device that keeps two sequences takes the prompts in groups.
    let few = CudaOptions {
        sequences: 2,
        ..options(Dtype::BF16)
    };
    let mut two = open(&prepared.model, gpu(), few);
    let (in_twos, _) = on_device(&prepared, &mut two, &prompts, 12);
    for (i, (together, in_twos)) in together.iter().zip(&in_twos).enumerate() {
        let (alone, _) = on_device(&prepared, &mut two, &prompts[i..=i], 12);
        for other in [in_twos, &alone[0]] {
            assert_eq!(together.tokens, other.tokens);
            assert_eq!(bits(together), bits(other));
        }
    }
}

#[test]
fn a_librarys_products_are_made_in_chunks_that_change_no_bits() {
    let prepared = Prepared::for_generation(job(BF16, &[], &[])).unwrap();
    let prompts = prompts(&prepared, &[4, 7]);
    let fickle = VirtualGpuOptions {
        fickle_gemm: Some(5),
        ..gpu()
    };
    let mut cuda = open(&prepared.model, fickle, options(Dtype::F32));
    let (together, _) = on_device(&prepared, &mut cuda, &prompts, 4);
    for (i, together) in together.iter().enumerate() {
        let (alone, _) = on_device(&prepared, &mut cuda, &prompts[i..=i], 4);
        let bits = |g: &Generated| g.logprobs.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(together), bits(&alone[0]));
    }
}

#[test]
fn a_device_without_room_for_sequences_is_refused() {
    let prepared = Prepared::for_generation(job(BF16, &[], &[])).unwrap();
    let none = CudaOptions {
        sequences: 0,
        ..options(Dtype::F32)
    };
    let cuda = open(&prepared.model, gpu(), none);
    let refused = Generator::on(Box::new(cuda), &prepared, Choosing::default(), stops(1));
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("room for sequences"), "{message}");
}
