//! The MLP's gate, up and activation as one kernel, in whole passes.

use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Sink, SinkDtype, SinkSpec};
use streamgauge::engine::{Compute, Device, Place, Plan, Prepared, dims, forward, shape};
use streamgauge::hooks::HookPoint;

use crate::jobs::Bench;
use crate::{BF16, F16, bits, common, gpu, model, noise, open, options, run};

fn fused(dtype: Dtype) -> CudaOptions {
    CudaOptions {
        fused_swiglu: true,
        ..options(dtype)
    }
}

#[test]
fn a_pass_has_the_bits_of_one_with_two_kernels() {
    for (name, dtype, sink) in [
        (BF16, Dtype::BF16, SinkDtype::BF16),
        (F16, Dtype::F16, SinkDtype::F16),
    ] {
        let model = model(name);
        let points: Vec<HookPoint> = HookPoint::all(&dims(&model.config))
            .into_iter()
            .filter(|point| {
                let name = point.to_string();
                ["mlp.hook_post", "hook_mlp_out", "hook_resid_post"]
                    .iter()
                    .any(|wanted| name.ends_with(wanted))
            })
            .collect();
        assert!(points.len() >= 6, "{points:?}");
        let (a, b) = (noise(40, 1), noise(7, 2));
        let plain = run(
            &mut open(&model, gpu(), options(dtype)),
            &model,
            &[&a, &b],
            &points,
            sink,
        );
        let mut machine = open(&model, gpu(), fused(dtype));
        let together = run(&mut machine, &model, &[&a, &b], &points, sink);
        assert_eq!(bits(&together), bits(&plain), "{name}");
        // And a sample's bits do not hang on its batch.
        let alone = run(&mut machine, &model, &[&b], &points, sink);
        for (alone, together) in bits(&alone).iter().zip(bits(&together)) {
            assert_eq!(alone[0], together[1], "{name}");
        }
    }
}

#[test]
fn gate_and_up_cannot_be_looked_at() {
    let model = model(BF16);
    let mut cuda = open(&model, gpu(), fused(Dtype::BF16));
    let tokens = noise(5, 1);
    let batch = Batch::pack([&tokens[..]]);
    let tap = common::tap("blocks.0.mlp.hook_pre", &model);
    let mut memory = vec![0; 5 * 4 * dims(&model.config).d_mlp];
    let spec = std::sync::Arc::new(SinkSpec::plain());
    let sink = Sink::new(spec, (0..5).collect(), vec![5], &mut memory, None);
    let mut pass = cuda.begin(&batch, vec![sink], Vec::new()).unwrap();
    forward(&mut pass, model.config.n_layers, &Plan::new(&[tap]));
    let error = pass.complete().unwrap_err().to_string();
    assert!(
        error.contains("the fused SwiGLU does not write them"),
        "{error}"
    );
}

#[test]
fn another_gpu_refuses_it_when_it_is_opened() {
    let model = model(BF16);
    let other = VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_80",
            ..gpu().how
        },
        ..gpu()
    };
    let opened = Cuda::open(
        VirtualGpu::new(other),
        shape(&model.config),
        &model,
        fused(Dtype::BF16),
    );
    let error = opened.err().expect("no tensor copies").to_string();
    assert!(error.contains("compute capability 9.0"), "{error}");
}

#[test]
fn a_job_tells_it_in_its_numeric_record_and_refuses_what_it_cannot_do() {
    let bench = Bench {
        dir: tempfile::tempdir().unwrap(),
    };
    let open = |fused_swiglu, dtype, taps: &[&str], edits: &[&str]| {
        let prepared: Prepared = bench.job(taps, edits);
        let asked = Compute {
            device: Device::Interpreter,
            dtype: Some(dtype),
            fused_swiglu,
            ..Compute::default()
        };
        let place = Place::of(&asked, &prepared.model).unwrap();
        let opened = place.open(&prepared, None).map_err(|e| e.to_string())?;
        Ok::<_, String>(opened.machine.identity().numeric_record)
    };
    let (post, pre) = ("blocks.0.mlp.hook_post", "blocks.0.mlp.hook_pre_linear");
    let record = open(true, Dtype::BF16, &[post], &[]).unwrap();
    assert_eq!(record["fused_swiglu"], true);
    let record = open(false, Dtype::BF16, &[post], &[]).unwrap();
    assert!(record.get("fused_swiglu").is_none(), "{record}");
    let edit = format!("zero at={pre}");
    for (taps, edits) in [(vec![pre], vec![]), (vec![post], vec![edit.as_str()])] {
        assert_eq!(
            open(true, Dtype::BF16, &taps, &edits).unwrap_err(),
            "--fused-swiglu with a tap or an edit of hook_pre or hook_pre_linear is not available yet: leave the flag out"
        );
    }
    assert_eq!(
        open(true, Dtype::F32, &[post], &[]).unwrap_err(),
        "--fused-swiglu in f32 is not available yet: take bf16 or f16, or leave the flag out"
    );
}
