//! A sample's rows are bit-identical whatever shares its batch: random packings, at every hook point.

mod common;

use proptest::prelude::*;
use streamgauge::backend::cpu::{Cpu, Precision};
use streamgauge::engine::dims;
use streamgauge::hooks::HookPoint;
use streamgauge::model::Model;

/// Samples of a tiny model's ids, one-token samples and ones longer than an attention tile, and than a run of `long` keys, among them.
fn samples(vocab: u32, long: usize) -> impl Strategy<Value = Vec<Vec<u32>>> {
    let length = prop_oneof![Just(1_usize), Just(2), Just(5), 3_usize..40, 60..long + 40];
    prop::collection::vec(
        length.prop_flat_map(move |n| prop::collection::vec(0..vocab, n)),
        2..7,
    )
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn check(name: &str, precision: Precision, samples: &[Vec<u32>], cuts: &[usize]) {
    let model = Model::open(&common::fixtures().join("models").join(name)).unwrap();
    let mut cpu = common::cpu_in(&model, precision);
    let points = HookPoint::all(&dims(&model.config));
    let all: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
    let together = common::run(&mut cpu, &model, &all, &points);
    // The samples again, in reverse order and in other batches.
    let mut reversed: Vec<(usize, &[u32])> = all.iter().copied().enumerate().collect();
    reversed.reverse();
    for batch in reversed.chunk_by(|a, b| !cuts.contains(&(a.0 % 8)) && a.0 != b.0) {
        let packed: Vec<&[u32]> = batch.iter().map(|(_, s)| *s).collect();
        let apart = common::run(&mut cpu, &model, &packed, &points);
        for (p, point) in points.iter().enumerate() {
            for (i, (sample, tokens)) in batch.iter().enumerate() {
                assert_eq!(
                    bits(&apart[p][i]),
                    bits(&together[p][*sample]),
                    "{name} {point}, sample of {} tokens",
                    tokens.len()
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn packing_never_changes_a_bit_with_a_window(samples in samples(160, 112), cuts in prop::collection::vec(0_usize..8, 0..4)) {
        check("mistral-window4", Precision::F32, &samples, &cuts);
    }

    #[test]
    fn packing_never_changes_a_bit_in_bf16(samples in samples(160, 224), cuts in prop::collection::vec(0_usize..8, 0..4), f32_resid in any::<bool>()) {
        check("mistral-window4", Precision::Bf16 { f32_resid }, &samples, &cuts);
    }

    #[test]
    fn packing_never_changes_a_bit_with_full_attention(samples in samples(160, 112), cuts in prop::collection::vec(0_usize..8, 0..4)) {
        check("llama3-rope", Precision::F32, &samples, &cuts);
    }
}

#[test]
fn a_pass_from_a_later_block_on_gives_the_whole_passs_bits() {
    use std::sync::Arc;
    use streamgauge::backend::{Act, Batch, Sink, SinkSpec};
    use streamgauge::engine::{Plan, replay};

    let model = Model::open(&common::fixtures().join("models/mistral-window4")).unwrap();
    let mut cpu = common::cpu(&model);
    let points = HookPoint::all(&dims(&model.config));
    let samples: [Vec<u32>; 3] = [1, 70, 9].map(|n| (0..n).map(|t| t * 41 % 160).collect());
    let samples: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
    let whole = common::run(&mut cpu, &model, &samples, &points);
    let at = |name: &str| points.iter().position(|p| p.to_string() == name).unwrap();
    for from in 0..3 {
        let resid_pre = whole[at(&format!("blocks.{from}.hook_resid_pre"))].concat();
        let batch = Batch::pack(samples.iter().copied());
        let mut logits = vec![f32::NAN; batch.rows() * 160];
        let sink = Sink::new(
            Arc::new(SinkSpec::plain()),
            (0..batch.rows() as u32).collect(),
            samples.iter().map(|s| s.len() as u32).collect(),
            bytemuck::cast_slice_mut(&mut logits),
            None,
        );
        let mut pass = cpu.begin(&batch, vec![sink]).unwrap();
        pass.fill(Act::ResidPre, &resid_pre);
        replay(
            &mut pass,
            from,
            3,
            &Plan::new(&[common::tap("logits", &model)]),
        );
        drop(pass);
        assert_eq!(bits(&logits), bits(&whole[at("logits")].concat()), "{from}");
    }
}

#[test]
fn packing_never_changes_a_bit_of_a_real_model() {
    let model = Model::open(&common::smollm2()).unwrap();
    for precision in [Precision::F32, Precision::Bf16 { f32_resid: false }] {
        check_real_model(&model, common::cpu_in(&model, precision));
    }
}

fn check_real_model(model: &Model, mut cpu: Cpu<'_>) {
    let points: Vec<HookPoint> = [
        "blocks.2.hook_resid_post",
        "blocks.2.attn.hook_pattern",
        "blocks.1.mlp.hook_post",
    ]
    .map(|p| HookPoint::parse(p, &dims(&model.config)).unwrap())
    .to_vec();
    let samples: Vec<Vec<u32>> = [1_u32, 3, 70, 17, 2, 131]
        .iter()
        .map(|&n| (0..n).map(|i| (i * 7919 + n) % 49_152).collect())
        .collect();
    let all: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
    let together = common::run(&mut cpu, model, &all, &points);
    for (i, sample) in samples.iter().enumerate() {
        let alone = common::run(&mut cpu, model, &[sample], &points);
        for p in 0..points.len() {
            assert_eq!(
                bits(&alone[p][0]),
                bits(&together[p][i]),
                "{} of {} tokens",
                points[p],
                sample.len()
            );
        }
    }
}
