//! A device that is too small, and calls that fail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use streamgauge::backend::cuda::virtual_gpu::{VirtualGpu, VirtualGpuOptions};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Sink, SinkSpec};
use streamgauge::engine::{
    Ending, Job, Machine, Options, Plan, Prepared, dims, extract_with, shape,
};
use streamgauge::hooks::HookPoint;
use streamgauge::store::{Manifest, Store, verify};

use crate::{BF16, common, gpu, model, noise, open, options};

/// Opens the model on a device of `memory` bytes for batches, and samples, of so many rows.
fn opened(memory: usize, rows: usize) -> Result<Cuda<VirtualGpu>, String> {
    let model = model(BF16);
    let options = CudaOptions {
        rows,
        positions: rows,
        ring_bytes: None,
        ..options(Dtype::BF16)
    };
    let gpu = VirtualGpu::new(VirtualGpuOptions { memory, ..gpu() });
    Cuda::open(gpu, shape(&model.config), &model, options).map_err(|e| e.to_string())
}

#[test]
fn a_device_that_is_too_small_says_what_would_fit_and_that_fits() {
    let memory = 32 << 20;
    let error = opened(memory, 1 << 16).err().unwrap();
    let number = |after: &str| -> usize {
        let rest = error
            .split(after)
            .nth(1)
            .unwrap_or_else(|| panic!("{after} in {error}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let fits = number("--batch-tokens ");
    assert_eq!(number("--max-length "), fits);
    assert!(error.contains(&format!("{memory} bytes free")), "{error}");
    let mut cuda = opened(memory, fits).unwrap();
    assert!(cuda.driver().allocated() <= memory);
    // It is the largest of those that were tried, 128 rows apart.
    assert!(fits > 1000 && opened(memory, fits + 128).is_err());
}

#[test]
fn a_device_that_has_no_room_for_the_weights_says_so() {
    let error = opened(300 << 10, 64).err().unwrap();
    for word in ["307200 bytes free", "no batch fits", "smaller model"] {
        assert!(error.contains(word), "'{word}' in {error}");
    }
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

/// A few shards and batches, with a tap that is a pointer, one that is gathered and one with indices.
fn job(dir: &Path) -> Prepared {
    let data = dir.join("data.jsonl");
    let line = |(i, n): (u32, usize)| format!("{{\"tokens\": {:?}}}\n", noise(n, i));
    let lines: String = (0..).zip([3, 2, 4]).map(line).collect();
    std::fs::write(&data, lines).unwrap();
    let model = common::fixtures().join("models").join(BF16);
    let taps = [
        "blocks.0.hook_resid_post",
        "blocks.0.attn.hook_z@last",
        "blocks.0.hook_attn_out|top:2",
    ];
    Prepared::open(Job {
        batch_tokens: 4,
        shard_bytes: 2500,
        ..Job::new(
            model.display().to_string(),
            vec![data.display().to_string()],
            taps.map(String::from).to_vec(),
        )
    })
    .unwrap()
}

fn run_job(
    prepared: &Prepared,
    fail_at: Option<u64>,
    out: &Path,
) -> (Result<Ending, String>, Cuda<VirtualGpu>) {
    let device = VirtualGpuOptions { fail_at, ..gpu() };
    let mut cuda = open(&prepared.model, device, options(Dtype::BF16));
    let each_batch = Options {
        resume: true,
        commit_every: Some(Duration::ZERO),
        stop: &|| false,
    };
    let ending = extract_with(prepared, &mut cuda, out, &each_batch, &mut |_| ());
    (ending.map_err(|e| e.to_string()), cuda)
}

fn files(store: &Path) -> Vec<(String, Vec<u8>)> {
    assert!(verify(store, &|_| ()).unwrap().ok(), "{}", store.display());
    let manifest = Manifest::read(store).unwrap();
    let files = manifest.shards.iter().flat_map(|shard| &shard.taps);
    files
        .map(|f| (f.file.clone(), std::fs::read(store.join(&f.file)).unwrap()))
        .collect()
}

#[test]
fn a_job_that_fails_at_any_call_of_the_driver_goes_on_to_the_bytes_of_one_that_did_not() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Files that are registered with the device, and a disk that is written from a registered ring.
    for dir in [&memory, &disk] {
        let prepared = job(dir.path());
        let opened = open(&prepared.model, gpu(), options(Dtype::BF16))
            .driver()
            .calls();
        let whole = dir.path().join("whole");
        let (done, mut cuda) = run_job(&prepared, None, &whole);
        assert!(matches!(done.unwrap(), Ending::Done(done) if done.shards > 1));
        let (all, expected) = (cuda.driver().calls(), files(&whole));
        assert!(all - opened > 100, "{} calls", all - opened);
        let mut failed = 0;
        for call in opened..all {
            let out = dir.path().join(call.to_string());
            let (ended, mut cuda) = run_job(&prepared, Some(call), &out);
            assert_eq!((cuda.in_flight(), cuda.driver().registrations()), (0, 0));
            if let Err(error) = ended {
                failed += 1;
                assert!(
                    error.contains(&format!("call {call} was made to fail")),
                    "{error}"
                );
                assert!(Store::open(&out).is_err(), "call {call}: it looks finished");
                let (again, _) = run_job(&prepared, None, &out);
                assert!(again.is_ok(), "call {call}: {again:?}", again = again.err());
            }
            assert!(files(&out) == expected, "call {call}");
            std::fs::remove_dir_all(&out).unwrap();
        }
        // Memory that cannot be registered makes copies slower, and fails nothing.
        assert!(failed + 10 > all - opened, "{failed} of {}", all - opened);
    }
}
