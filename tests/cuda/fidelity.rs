//! Every hook point within the gates: 16 bits against float64 Hugging Face, f32 against the CPU backend.

use streamgauge::backend::SinkDtype;
use streamgauge::backend::cuda::Dtype;
use streamgauge::engine::dims;
use streamgauge::hooks::HookPoint;

use crate::{BF16, F16, common, gpu, model, noise, open, options, run};

fn check_16_bits(name: &str, dtype: Dtype, sink: SinkDtype, ulp: f64) {
    let model = model(name);
    let mut cuda = open(&model, gpu(), options(dtype));
    common::half::check_16_bits(name, &model, ulp, |tokens, points| {
        run(&mut cuda, &model, tokens, points, sink)
    });
}

#[test]
fn bf16_is_as_near_to_float64_as_hugging_face_at_every_hook_point() {
    check_16_bits(BF16, Dtype::BF16, SinkDtype::BF16, 2f64.powi(-8));
}

#[test]
fn f16_is_as_near_to_float64_as_hugging_face_at_every_hook_point() {
    check_16_bits(F16, Dtype::F16, SinkDtype::F16, 2f64.powi(-11));
}

#[test]
fn f32_agrees_with_the_cpu_backend_at_every_hook_point() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let (a, b) = (noise(40, 1), noise(9, 2));
    let samples = [&a[..], &b[..]];
    let ours = run(
        &mut open(&model, gpu(), options(Dtype::F32)),
        &model,
        &samples,
        &points,
        SinkDtype::F32,
    );
    let theirs = common::run(&mut common::cpu(&model), &model, &samples, &points);
    for ((point, ours), theirs) in points.iter().zip(&ours).zip(&theirs) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (&x, &y) in ours.iter().zip(theirs) {
                if y == f32::NEG_INFINITY {
                    assert_eq!(x, y, "{point}");
                } else {
                    difference += f64::from(x - y).powi(2);
                    norm += f64::from(y).powi(2);
                }
            }
            let error = (difference / norm).sqrt();
            assert!(error < 3e-6, "{point}: {error:.1e}");
        }
    }
}
