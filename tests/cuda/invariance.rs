//! What must change no bits: how a tap is written, the ring, a sample's company, the library of matrix products.

use half::bf16;
use proptest::prelude::*;
use ptx_interpreter::Schedule;
use streamgauge::backend::SinkDtype;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype, GemmRecord};
use streamgauge::engine::{dims, shape};
use streamgauge::hooks::HookPoint;

use crate::{BF16, bits, gpu, model, noise, open, options, run};

#[test]
fn taps_that_are_pointers_and_taps_that_are_gathered_hold_the_same_bits() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let a = noise(33, 5);
    let mut cuda = open(&model, gpu(), options(Dtype::BF16));
    let pointers = run(&mut cuda, &model, &[&a], &points, SinkDtype::BF16);
    let gathered = run(&mut cuda, &model, &[&a], &points, SinkDtype::F32);
    for ((point, pointers), gathered) in points.iter().zip(&pointers).zip(&gathered) {
        // Scores and patterns are computed anew in f32, and rounded on their way to a 16-bit sink.
        let ragged = point.site.is_ragged();
        let stored = |v: &f32| {
            if ragged {
                bf16::from_f32(*v).to_f32()
            } else {
                *v
            }
        };
        for (a, b) in pointers[0].iter().zip(&gathered[0]) {
            assert_eq!(a.to_bits(), stored(b).to_bits(), "{point}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// A ring that holds next to nothing makes copies wait for each other, and moves activations out of it, anywhere in the pass.
    #[test]
    fn the_size_of_the_ring_changes_no_bits(
        kib in 40_usize..400, length in 1_usize..140, first in 0_usize..50, every in 1_usize..4,
    ) {
        let model = model(BF16);
        let all = HookPoint::all(&dims(&model.config));
        // Every point twice: the second sink of a point finds it bound to the first.
        let points: Vec<HookPoint> =
            all.iter().skip(first).step_by(every).flat_map(|&p| [p, p]).collect();
        prop_assume!(!points.is_empty());
        let tokens = noise(length, kib as u32);
        let found: Vec<_> = [2 << 20, kib << 10]
            .into_iter()
            .map(|ring| {
                let options = CudaOptions { ring_bytes: Some(ring), ..options(Dtype::BF16) };
                let mut cuda = open(&model, gpu(), options);
                bits(&run(&mut cuda, &model, &[&tokens], &points, SinkDtype::BF16))
            })
            .collect();
        for ((point, a), b) in points.iter().zip(&found[0]).zip(&found[1]) {
            prop_assert!(a == b, "{point}");
        }
    }
}

#[test]
fn a_samples_bits_depend_on_neither_its_batch_nor_the_order_of_blocks() {
    let model = model(BF16);
    let points = HookPoint::all(&dims(&model.config));
    let (a, b, c) = (noise(37, 1), noise(1, 2), noise(70, 3));
    let mut cuda = open(&model, gpu(), options(Dtype::BF16));
    let together = run(&mut cuda, &model, &[&c, &a, &b], &points, SinkDtype::BF16);
    let backwards = VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_80",
            schedule: Schedule::Reverse,
        },
        ..gpu()
    };
    let alone = run(
        &mut open(&model, backwards, options(Dtype::BF16)),
        &model,
        &[&a],
        &points,
        SinkDtype::BF16,
    );
    for (together, alone) in bits(&together).iter().zip(bits(&alone)) {
        assert_eq!(together[1], alone[0]);
    }
}

#[test]
fn a_library_that_changes_its_algorithms_changes_no_bits_of_a_job() {
    // In f32, where the order of a sum shows in its last bits; bf16 would round most of it away.
    let model = model(BF16);
    let point = HookPoint::parse("blocks.1.hook_resid_post", &dims(&model.config)).unwrap();
    let a = noise(20, 1);
    let fickle = |seed, gemm: Option<GemmRecord>| {
        let gpu = VirtualGpuOptions {
            fickle_gemm: Some(seed),
            ..gpu()
        };
        let options = CudaOptions {
            gemm,
            ..options(Dtype::F32)
        };
        open(&model, gpu, options)
    };
    let mut job = fickle(1, None);
    // The second batch fills a chunk of 128 rows, and the sample lies in the full one and in the rest.
    let b = noise(120, 2);
    let first = run(&mut job, &model, &[&a], &[point], SinkDtype::F32);
    let packed = run(&mut job, &model, &[&b, &a], &[point], SinkDtype::F32);
    assert_eq!(bits(&first)[0][0], bits(&packed)[0][1]);
    let mut resumed = fickle(2, Some(job.gemm_record()));
    let again = run(&mut resumed, &model, &[&a], &[point], SinkDtype::F32);
    assert_eq!(bits(&first), bits(&again));
    // The library is fickle indeed: without the record other bits come out.
    let others = (3..9).map(|seed| {
        run(
            &mut fickle(seed, None),
            &model,
            &[&a],
            &[point],
            SinkDtype::F32,
        )
    });
    assert!(others.into_iter().any(|other| bits(&other) != bits(&first)));
}

#[test]
fn a_job_of_another_library_is_not_gone_on_with() {
    let model = model(BF16);
    let record = open(&model, gpu(), options(Dtype::BF16)).gemm_record();
    let other = VirtualGpuOptions {
        fickle_gemm: Some(1),
        ..gpu()
    };
    let options = CudaOptions {
        gemm: Some(record),
        ..options(Dtype::BF16)
    };
    let error = Cuda::open(
        VirtualGpu::new(other),
        shape(&model.config),
        &model,
        options,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(
        error.contains("own") && error.contains("fickle 1.0"),
        "{error}"
    );
}
