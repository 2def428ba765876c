//! Patching sweeps on the CUDA backend, on the interpreter's device: as on the CPU, and exact where the CPU is.

mod common;

use ptx_interpreter::Schedule;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{StreamOrder, VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::engine::sweep::{Metric, Row, Sweep, SweepSpec, Way, read_pairs};
use streamgauge::engine::{Job, Machine, Prepared, shape};

fn device(prepared: &Prepared, dtype: Dtype) -> Cuda<VirtualGpu> {
    let gpu = VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_90a",
            schedule: Schedule::Seeded(7),
        },
        memory: 256 << 20,
        fail_at: None,
        fickle_gemm: None,
        order: StreamOrder::LaunchesFirst,
        mistake: None,
        registers: true,
    };
    let options = CudaOptions {
        dtype,
        f32_resid: false,
        rows: 64,
        positions: 16,
        means: 1,
        sequences: 0,
        ring_bytes: Some(2 << 20),
        gemm_chunk: 64,
        gemm: None,
        fused_swiglu: false,
    };
    let model = &prepared.model;
    Cuda::open(VirtualGpu::new(gpu), shape(&model.config), model, options).unwrap()
}

fn rows(prepared: &Prepared, machine: &mut dyn Machine, edited: bool) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let pairs = dir.path().join("pairs.jsonl");
    let corrupt = if edited {
        ""
    } else {
        ", \"corrupt\": [5, 90, 33, 41, 17]"
    };
    std::fs::write(
        &pairs,
        format!("{{\"clean\": [5, 61, 12, 77, 17]{corrupt}}}\n"),
    )
    .unwrap();
    let ones = [1.0_f32; 64].map(f32::to_le_bytes).concat();
    let ones = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64], &ones);
    let direction = dir.path().join("d.safetensors");
    safetensors::serialize_to_file([("d", ones.unwrap())], None, &direction).unwrap();
    let direction = Metric::Direction {
        file: direction,
        key: "d".into(),
        at: "ln_final.hook_out".into(),
    };
    let of = Some([vec![5, 9], vec![33]]);
    let spec = SweepSpec {
        metrics: vec![Metric::KlRecovery, Metric::ProbDiff { of }, direction],
        sets: vec![vec![
            "blocks.0.attn.hook_z[0]".into(),
            "blocks.1.hook_mlp_out@-1".into(),
        ]],
        pairs: vec!["blocks.*.hook_mlp_out".into()],
        ways: vec![Way::Denoising, Way::Noising],
        min_kl: 0.0,
        ..SweepSpec::new(
            [
                "blocks.*.hook_resid_pre",
                "blocks.1.attn.hook_z[1]",
                "blocks.1.hook_attn_out@-2..-1",
            ]
            .map(String::from)
            .to_vec(),
        )
    };
    let sweep = Sweep::new(prepared, spec, read_pairs(&pairs, prepared).unwrap()).unwrap();
    sweep.run(machine, &mut |_| ()).unwrap().rows
}

fn prepared(edits: &[&str]) -> Prepared {
    let model = common::fixtures().join("models/mistral-bf16-h64");
    Prepared::for_generation(Job {
        edits: edits.iter().map(|e| e.to_string()).collect(),
        batch_tokens: 48,
        ..Job::new(model.display().to_string(), Vec::new(), Vec::new())
    })
    .unwrap()
}

#[test]
fn a_sweep_in_f32_is_as_on_the_cpu() {
    for edits in [&[][..], &["scale at=blocks.0.hook_mlp_out c=-2"]] {
        let prepared = prepared(edits);
        let on_cpu = rows(&prepared, &mut prepared.cpu(), !edits.is_empty());
        let mut device = device(&prepared, Dtype::F32);
        let on_device = rows(&prepared, &mut device, !edits.is_empty());
        assert_eq!(on_cpu.len(), on_device.len());
        for (a, b) in on_cpu.iter().zip(&on_device) {
            assert_eq!((&a.sites, a.way, a.metric), (&b.sites, b.way, b.metric));
            assert!((a.recovery - b.recovery).abs() < 1e-3, "{a:?} {b:?}");
        }
    }
}

#[test]
fn in_bf16_the_whole_stream_of_the_clean_run_gives_exactly_the_clean_run() {
    let prepared = prepared(&[]);
    let mut device = device(&prepared, Dtype::BF16);
    let rows = rows(&prepared, &mut device, false);
    let is_stream = |row: &&Row| row.sites.len() == 1 && row.sites[0].kind() == "hook_resid_pre";
    let whole: Vec<&Row> = rows.iter().filter(is_stream).collect();
    assert!(whole.len() >= 4);
    for row in whole {
        let exact = if row.way == Way::Denoising { 1.0 } else { -1.0 };
        assert_eq!(row.recovery, exact, "{row:?}");
    }
}
