//! Scores read off the LM head on the device, and passes that start at a layer.

use std::sync::Arc;

use streamgauge::backend::cuda::{CudaOptions, Dtype};
use streamgauge::backend::{Batch, Sink, SinkDtype, SinkSpec};
use streamgauge::data::{Input, Record};
use streamgauge::engine::{
    Job, Machine, Plan, Prepared, Sample, SavedResidual, Scorer, dims, lens,
};
use streamgauge::hooks::HookPoint;

use crate::{BF16, common, gpu, model, noise, open, options, run};

fn prepared(edits: &[&str]) -> Prepared {
    let model = common::fixtures().join("models").join(BF16);
    let edits = edits.iter().map(|e| e.to_string()).collect();
    let job = Job::new(model.display().to_string(), vec![], vec![]);
    Prepared::for_generation(Job { edits, ..job }).unwrap()
}

fn samples(prepared: &Prepared, lengths: &[usize]) -> Vec<Sample> {
    let sample = |(i, &n): (usize, &usize)| {
        let record = Record {
            index: i as u64,
            file: Arc::from("texts"),
            line: i as u64 + 1,
            input: Input::Tokens(noise(n, i as u32)),
            spans: vec![],
            kept: vec![],
        };
        prepared.tokenising.samples(record).unwrap().remove(0)
    };
    lengths.iter().enumerate().map(sample).collect()
}

#[test]
fn scores_and_divergences_are_the_cpu_backends() {
    let plain = prepared(&[]);
    let edited = prepared(&[
        "scale at=blocks.1.hook_mlp_out c=2",
        "scale at=logits c=0.5 select=every:2",
    ]);
    // More rows than logits exist at a time.
    let texts = samples(&plain, &[9, 150, 1]);
    let positions = vec![vec![0, 8], (0..150).collect(), vec![0]];
    // Batches, but not logits, may have no more rows than these.
    let rows = CudaOptions {
        rows: 160,
        ..options(Dtype::F32)
    };
    let mut cuda = open(&plain.model, gpu(), rows);
    let ours = {
        let p = Scorer::on(Box::new(&mut cuda), &plain)
            .run(&texts, &positions)
            .unwrap();
        let mut scorer = Scorer::on(Box::new(&mut cuda), &edited);
        let q = scorer.run(&texts, &positions).unwrap();
        (
            scorer.score(&q, 5).unwrap(),
            scorer.kl_divergence(&p, &q).unwrap(),
        )
    };
    let theirs = {
        let p = Scorer::new(&plain).run(&texts, &positions).unwrap();
        let mut scorer = Scorer::new(&edited);
        let q = scorer.run(&texts, &positions).unwrap();
        (
            scorer.score(&q, 5).unwrap(),
            scorer.kl_divergence(&p, &q).unwrap(),
        )
    };
    assert_eq!(ours.0.len(), 153);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    for (ours, theirs) in ours.0.iter().zip(&theirs.0) {
        assert_eq!(ours.argmax, theirs.argmax);
        assert!(near(ours.entropy, theirs.entropy), "{ours:?} {theirs:?}");
        assert_eq!(ours.logprob.is_some(), theirs.logprob.is_some());
        let both = ours.logprob.zip(theirs.logprob);
        assert!(both.is_none_or(|(a, b)| near(a, b)), "{ours:?} {theirs:?}");
        assert_eq!(ours.top.len(), 5);
        for (a, b) in ours.top.iter().zip(&theirs.top) {
            assert!(near(a.1, b.1), "{ours:?} {theirs:?}");
        }
    }
    assert!(theirs.1.iter().any(|kl| *kl > 1e-3));
    for (a, b) in ours.1.iter().zip(&theirs.1) {
        assert!(near(*a, *b), "{a} {b}");
    }
}

#[test]
fn a_pass_from_a_saved_residual_gives_the_whole_passs_bits() {
    let model = model(BF16);
    let tokens = noise(40, 3);
    let point = |p: &str| HookPoint::parse(p, &dims(&model.config)).unwrap();
    let (start, end) = (point("blocks.1.hook_resid_pre"), point("logits"));
    for dtype in [Dtype::F32, Dtype::BF16] {
        let mut cuda = open(&model, gpu(), options(dtype));
        let whole = run(&mut cuda, &model, &[&tokens], &[start, end], SinkDtype::F32);
        let batch = Batch::pack([&tokens[..]]);
        let plan = Plan::new(&[common::tap("logits", &model)]);
        let mut logits = vec![0.0_f32; whole[1][0].len()];
        let sink = Sink::new(
            Arc::new(SinkSpec::plain()),
            (0..40).collect(),
            vec![40],
            bytemuck::cast_slice_mut(&mut logits),
            None,
        );
        let from = SavedResidual {
            layer: 1,
            rows: &whole[0][0],
        };
        cuda.run_from(from, &batch, vec![sink], vec![], 2, &plan)
            .unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&logits), bits(&whole[1][0]), "{dtype}");
    }
}

#[test]
fn the_lens_is_the_cpu_backends() {
    let edited = prepared(&["scale at=blocks.0.hook_resid_post c=1.5 select=every:2"]);
    let text = samples(&edited, &[70]).remove(0);
    // More positions than logits are wide at a time.
    let positions: Vec<u32> = (2..70).collect();
    let mut cuda = open(&edited.model, gpu(), options(Dtype::F32));
    let ours = lens(&mut cuda, &edited, &text, &positions, 3).unwrap();
    let theirs = lens(&mut edited.cpu(), &edited, &text, &positions, 3).unwrap();
    assert_eq!(ours.len(), 68 * (edited.dims.n_layers + 1));
    assert_eq!(ours.len(), theirs.len());
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(
            (ours.blocks, ours.position),
            (theirs.blocks, theirs.position)
        );
        assert!(
            near(ours.kl, theirs.kl) && near(ours.entropy, theirs.entropy),
            "{ours:?} {theirs:?}"
        );
        for (a, b) in ours.top.iter().zip(&theirs.top) {
            assert!(near(a.1, b.1), "{ours:?} {theirs:?}");
        }
    }
}
