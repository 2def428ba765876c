//! A device that is too small, and calls that fail.

use std::sync::Arc;

use streamgauge::backend::cuda::virtual_gpu::{VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Sink, SinkSpec};
use streamgauge::engine::{Machine, Plan, dims, shape};
use streamgauge::hooks::HookPoint;

use crate::{BF16, common, gpu, model, noise, options};

#[test]
fn a_device_that_is_too_small_says_what_would_fit() {
    let model = model(BF16);
    let small = VirtualGpuOptions {
        memory: 4 << 20,
        ..gpu()
    };
    let options = CudaOptions {
        rows: 1 << 16,
        positions: 1 << 16,
        ..options(Dtype::BF16)
    };
    let error = Cuda::open(
        VirtualGpu::new(small),
        shape(&model.config),
        &model,
        options,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(error.contains("--batch-tokens"), "{error}");
}
#[test]
fn a_call_that_fails_ends_the_pass_with_its_error_and_the_next_batch_goes_well() {
    let model = model(BF16);
    let point = HookPoint::parse("blocks.1.hook_resid_post", &dims(&model.config)).unwrap();
    let tokens = noise(3, 1);
    let batch = Batch::pack([&tokens[..]]);
    let plan = Plan::new(&[common::tap(&point.to_string(), &model)]);
    let n_layers = model.config.n_layers;
    let run = |cuda: &mut Cuda<VirtualGpu>| {
        let mut memory = vec![0u8; 3 * 64 * 4];
        let spec = Arc::new(SinkSpec::plain());
        let sink = Sink::new(spec, vec![0, 1, 2], vec![3], &mut memory, None);
        let done = cuda.run(&batch, vec![sink], Vec::new(), n_layers, &plan);
        done.map(|_| memory).map_err(|e| e.to_string())
    };
    // Calls made until the first batch is done.
    let attempt = |fail_at| -> Result<u64, String> {
        let gpu = VirtualGpuOptions { fail_at, ..gpu() };
        let options = options(Dtype::BF16);
        let mut cuda = Cuda::open(VirtualGpu::new(gpu), shape(&model.config), &model, options)
            .map_err(|e| e.to_string())?;
        let first = run(&mut cuda);
        let calls = cuda.driver().calls();
        let again = run(&mut cuda).expect("only one call fails");
        assert_eq!(first?, again);
        Ok(calls)
    };
    let calls = attempt(None).unwrap();
    assert!(calls > 30);
    for call in 0..calls {
        let error = attempt(Some(call)).unwrap_err();
        assert!(
            error.contains(&format!("call {call} was made to fail")),
            "{error}"
        );
    }
}
