//! Where a batch's rows go while the next one is computed: the order of launches and copies on a device that interleaves them as badly as
//! it may.

mod common;

use std::path::Path;
use std::sync::Arc;

use ptx_interpreter::Schedule;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{
    Mistake, StreamOrder, VirtualGpu, VirtualGpuOptions,
};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Landed, Sink, SinkDtype, SinkSpec};
use streamgauge::engine::{
    Ending, Error, LiveBatch, Machine, Options, Plan, Prepared, Trace, dims, extract_live,
    extract_on, extract_with, shape,
};
use streamgauge::hooks::HookPoint;
use streamgauge::model::Model;
use streamgauge::store::{Manifest, Store, StoreDtype, verify};
use streamgauge::sys::disk::file_system;
use streamgauge::sys::slab::{Lender, Slab};

const BF16: &str = "mistral-bf16-h64";

fn gpu() -> VirtualGpuOptions {
    VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_80",
            schedule: Schedule::Forward,
        },
        memory: 256 << 20,
        fail_at: None,
        fickle_gemm: None,
        order: StreamOrder::LaunchesFirst,
        mistake: None,
        registers: true,
    }
}

fn model() -> Model {
    Model::open(&common::fixtures().join("models").join(BF16)).unwrap()
}

fn open(model: &Model, gpu: VirtualGpuOptions, ring: usize) -> Cuda<VirtualGpu> {
    let options = CudaOptions {
        dtype: Dtype::BF16,
        f32_resid: false,
        rows: 64,
        positions: 64,
        means: 2,
        sequences: 0,
        ring_bytes: Some(ring),
        gemm_chunk: 128,
        gemm: None,
        fused_swiglu: false,
    };
    Cuda::open(VirtualGpu::new(gpu), shape(&model.config), model, options).unwrap()
}

/// The residual stream after each block, of batches of a few samples each.
struct Job {
    model: Model,
    plan: Plan,
    taps: usize,
    batches: Vec<Batch>,
}

impl Job {
    fn new() -> Job {
        let model = model();
        let points: Vec<_> = HookPoint::all(&dims(&model.config))
            .into_iter()
            .map(|p| p.to_string())
            .filter(|p| p.ends_with("hook_resid_post") || p.ends_with("hook_mlp_out"))
            .collect();
        let taps: Vec<_> = points.iter().map(|p| common::tap(p, &model)).collect();
        let tokens = |seed: u32, n: u32| -> Vec<u32> {
            (0..n).map(|t| (t * 31 + seed * 17 + 3) % 160).collect()
        };
        let batches = (0..5)
            .map(|i| Batch::pack([&tokens(i, 9 + i)[..], &tokens(i + 9, 3)]))
            .collect();
        Job {
            plan: Plan::new(&taps),
            taps: taps.len(),
            batches,
            model,
        }
    }

    fn sinks(&self, batch: &Batch, slab: impl Fn(usize) -> Slab) -> Vec<Sink<'static>> {
        let width = dims(&self.model.config).d_model;
        let spec = Arc::new(SinkSpec {
            dtype: SinkDtype::BF16,
            ..SinkSpec::plain()
        });
        let rows: Vec<u32> = (0..batch.rows() as u32).collect();
        let per_sample: Vec<u32> = batch.samples().map(|s| s.len() as u32).collect();
        (0..self.taps)
            .map(|_| {
                let slab = slab(batch.rows() * width * 2);
                let (spec, rows, per_sample) = (spec.clone(), rows.clone(), per_sample.clone());
                Sink::owning(spec, rows, per_sample, slab, None)
            })
            .collect()
    }

    /// Every batch's rows of every tap, with so many batches under way at a time.
    fn run(&self, cuda: &mut Cuda<VirtualGpu>, depth: usize) -> Result<Vec<Vec<u8>>, String> {
        cuda.set_depth(depth);
        let mut found = Vec::new();
        let mut landed = |landed: Option<Landed>| {
            for (rows, _) in landed.into_iter().flat_map(|l| l.slabs) {
                found.push(rows.to_vec());
            }
        };
        let fresh = |bytes| {
            let mut slab = Slab::anonymous(bytes).unwrap();
            slab.fill(0xEE);
            slab
        };
        let n_layers = self.model.config.n_layers;
        for batch in &self.batches {
            let sinks = self.sinks(batch, fresh);
            let done = cuda.submit(batch, sinks, Vec::new(), n_layers, &self.plan);
            landed(done.map_err(|e| e.to_string())?);
            assert!(cuda.in_flight() < depth, "{} under way", cuda.in_flight());
        }
        while cuda.in_flight() > 0 {
            landed(Machine::land(cuda).map_err(|e| e.to_string())?);
        }
        Ok(found)
    }
}

#[test]
fn rows_are_the_same_however_many_batches_are_under_way_and_in_whatever_order_copies_run() {
    let job = Job::new();
    let expected = job.run(&mut open(&job.model, gpu(), 2 << 20), 1).unwrap();
    assert_eq!(expected.len(), 5 * job.taps);
    for (depth, order, ring) in [
        (3, StreamOrder::LaunchesFirst, 2 << 20),
        (2, StreamOrder::CopiesFirst, 2 << 20),
        (3, StreamOrder::Seeded(1), 2 << 20),
        // A ring that holds about one batch: its pieces are waited for in the middle of the next.
        (3, StreamOrder::LaunchesFirst, 4 << 10),
        (2, StreamOrder::Seeded(2), 4 << 10),
    ] {
        let gpu = VirtualGpuOptions { order, ..gpu() };
        let mut cuda = open(&job.model, gpu, ring);
        let found = job.run(&mut cuda, depth).unwrap();
        assert!(found == expected, "{depth} {order:?} {ring}");
        assert_eq!(cuda.driver().open_events(), 0, "events are used again");
    }
}

#[test]
fn a_copy_that_does_not_wait_for_its_launches_is_seen() {
    let job = Job::new();
    let expected = job.run(&mut open(&job.model, gpu(), 2 << 20), 1).unwrap();
    let gpu = VirtualGpuOptions {
        order: StreamOrder::CopiesFirst,
        mistake: Some(Mistake::CopiesDoNotFollow),
        ..gpu()
    };
    let found = job.run(&mut open(&job.model, gpu, 2 << 20), 3);
    assert!(found.is_err() || found != Ok(expected));
}

#[test]
fn memory_that_is_used_again_before_it_was_copied_is_seen() {
    let job = Job::new();
    let expected = job.run(&mut open(&job.model, gpu(), 2 << 20), 1).unwrap();
    // One batch at a time, which is waited for; the small ring goes round several times in each.
    let gpu = VirtualGpuOptions {
        mistake: Some(Mistake::PiecesAreNotWaitedFor),
        ..gpu()
    };
    let found = job.run(&mut open(&job.model, gpu, 4 << 10), 1);
    assert!(found.is_err() || found != Ok(expected.clone()));
    let gpu = VirtualGpuOptions {
        mistake: Some(Mistake::FencesAreNotWaitedFor),
        ..gpu
    };
    let found = job.run(&mut open(&job.model, gpu, 2 << 20), 3);
    assert!(found.is_err() || found != Ok(expected));
}

#[test]
fn a_batch_given_up_leaves_the_device_to_the_next() {
    let job = Job::new();
    let mut cuda = open(&job.model, gpu(), 2 << 20);
    let expected = job.run(&mut cuda, 3).unwrap();
    let sinks = job.sinks(&job.batches[0], |n| Slab::anonymous(n).unwrap());
    let n_layers = job.model.config.n_layers;
    let none = cuda.submit(&job.batches[0], sinks, Vec::new(), n_layers, &job.plan);
    assert!(none.unwrap().is_none());
    cuda.give_up();
    assert_eq!(job.run(&mut cuda, 2).unwrap(), expected);
}

#[test]
fn registered_memory_is_let_go_when_its_last_slab_is() {
    let job = Job::new();
    let mut cuda = open(&job.model, gpu(), 2 << 20);
    let pinner = cuda.pinner().unwrap();
    let mut lender = Lender::anonymous(1 << 20).unwrap();
    pinner.pin(lender.memory()).unwrap();
    pinner.pin(lender.memory()).unwrap();
    assert_eq!(cuda.driver().registrations(), 1);
    let slab = lender.lend(0..100);
    drop(lender);
    assert_eq!(cuda.driver().registrations(), 1);
    drop(slab);
    assert_eq!(cuda.driver().registrations(), 0);
}

#[test]
fn a_call_that_fails_while_batches_are_under_way_is_told_and_the_next_run_goes_well() {
    let job = Job::new();
    let whole = {
        let mut cuda = open(&job.model, gpu(), 2 << 20);
        let opened = cuda.driver().calls();
        job.run(&mut cuda, 3).unwrap();
        opened..cuda.driver().calls()
    };
    // Each kind of call is among these.
    for call in whole.step_by(37) {
        let gpu = VirtualGpuOptions {
            fail_at: Some(call),
            ..gpu()
        };
        let mut cuda = open(&job.model, gpu, 2 << 20);
        let error = job.run(&mut cuda, 3).unwrap_err();
        let told = format!("call {call} was made to fail");
        assert!(error.contains(&told), "{error}");
        cuda.give_up();
        assert_eq!(cuda.in_flight(), 0);
        job.run(&mut cuda, 3).unwrap();
    }
}

/// A dataset, and jobs over it whose shards and batches are small: several of each.
struct Extraction {
    memory: tempfile::TempDir,
    disk: tempfile::TempDir,
}

const TAPS: [&str; 6] = [
    "blocks.*.hook_resid_post",
    "blocks.0.hook_mlp_out@last",
    "blocks.1.mlp.hook_post|norm",
    "blocks.1.hook_attn_out|top:3",
    "blocks.0.attn.hook_pattern[1]@every:5",
    "blocks.1.hook_resid_pre|mean",
];

impl Extraction {
    fn new() -> Extraction {
        let at = |dir: &str| tempfile::tempdir_in(dir);
        let disk = at(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let memory = at("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
        let lines: String = (0..14u32)
            .map(|i| {
                let n = 5 + i * 5 % 23;
                let tokens: Vec<u32> = (0..n).map(|t| (t * 31 + i * 17 + 3) % 160).collect();
                format!("{{\"tokens\": {tokens:?}}}\n")
            })
            .collect();
        std::fs::write(disk.path().join("data.jsonl"), lines).unwrap();
        Extraction { memory, disk }
    }

    fn prepared(&self) -> Prepared {
        let data = self.disk.path().join("data.jsonl").display().to_string();
        let model = common::fixtures().join("models").join(BF16);
        Prepared::open(streamgauge::engine::Job {
            batch_tokens: 40,
            shard_bytes: 25_000,
            store_dtype: Some(StoreDtype::BF16),
            ..streamgauge::engine::Job::new(
                model.display().to_string(),
                vec![data],
                TAPS.map(String::from).to_vec(),
            )
        })
        .unwrap()
    }

    fn cuda(&self, prepared: &Prepared, gpu: VirtualGpuOptions) -> Cuda<VirtualGpu> {
        let mut cuda = open(&prepared.model, gpu, 256 << 10);
        cuda.set_depth(3);
        cuda
    }
}

/// The activations' bytes of every file, and how the store says it was written.
fn content(dir: &Path) -> (Vec<(String, Vec<u8>)>, String) {
    assert!(verify(dir, &|_| ()).unwrap().ok(), "{}", dir.display());
    let manifest = Manifest::read(dir).unwrap();
    let files = manifest.shards.iter().flat_map(|shard| &shard.taps);
    let files = files
        .map(|f| (f.file.clone(), std::fs::read(dir.join(&f.file)).unwrap()))
        .collect();
    let path = &manifest.provenance.write_path["path"];
    for counter in ["gpu", "pcie", "disk", "tokeniser"] {
        let waited = &manifest.stalls[format!("waited_for_{counter}_s")];
        assert!(waited.as_f64().is_some_and(|s| s >= 0.0), "{counter}");
    }
    (files, path.as_str().unwrap().to_owned())
}

#[test]
fn a_run_stopped_with_batches_under_way_goes_on_to_the_same_bytes() {
    let bench = Extraction::new();
    let prepared = bench.prepared();
    for (name, dir, batches) in [("memory", &bench.memory, 2), ("disk", &bench.disk, 2)] {
        let whole = dir.path().join(format!("{name}-whole"));
        let mut cuda = bench.cuda(&prepared, gpu());
        let expected = extract_on(&prepared, &mut cuda, &whole, &mut |_| ()).unwrap();
        let out = dir.path().join(format!("{name}-stopped"));
        let mut attempts = 0;
        let done = loop {
            attempts += 1;
            assert!(attempts < 30, "{name}: no progress");
            let seen = std::cell::Cell::new(0);
            let options = Options {
                resume: true,
                commit_every: Some(std::time::Duration::ZERO),
                stop: &|| seen.get() >= batches,
            };
            let mut cuda = bench.cuda(&prepared, gpu());
            let mut count = |_: &_| seen.set(seen.get() + 1);
            match extract_with(&prepared, &mut cuda, &out, &options, &mut count) {
                Ok(Ending::Done(done)) => break done,
                Ok(Ending::Already(_)) => panic!("{name}: it was never finished"),
                Err(streamgauge::Error::Engine(Error::Stopped { .. })) => {
                    assert_eq!(cuda.in_flight(), 0);
                    assert_eq!(cuda.driver().registrations(), 0);
                    assert!(Store::open(&out).is_err(), "it does not look finished");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        };
        assert!(attempts > 1, "{name}: it was stopped");
        assert!(content(&out) == content(&whole), "{name}");
        assert_eq!((&done.rows, done.shards), (&expected.rows, expected.shards));
        assert_eq!(done.progress.tokens, expected.progress.tokens);
        assert_eq!(done.progress.bytes, expected.progress.bytes);
    }
}

#[test]
fn every_way_to_a_store_writes_the_same_bytes() {
    let bench = Extraction::new();
    let prepared = bench.prepared();
    let plain = VirtualGpuOptions {
        registers: false,
        ..gpu()
    };
    let mut stores = Vec::new();
    for (name, dir, gpu) in [
        ("unregistered", &bench.memory, plain),
        ("registered", &bench.memory, gpu()),
        ("disk", &bench.disk, gpu()),
        ("disk, unregistered", &bench.disk, plain),
    ] {
        let mut cuda = bench.cuda(&prepared, gpu);
        let out = dir.path().join(name);
        let done = extract_on(&prepared, &mut cuda, &out, &mut |_| ()).unwrap();
        let (files, path) = content(&out);
        assert!(done.shards > 2, "{} shards", done.shards);
        assert_eq!(path, done.write_path);
        let (registrations, copies) = {
            let driver = cuda.driver();
            (driver.registrations(), driver.unregistered_copies())
        };
        assert_eq!(registrations, 0, "{name}");
        assert_eq!(copies > 0, !gpu.registers, "{name}: {copies} copies");
        stores.push((name, files, path));
    }
    let tmpfs = file_system(bench.memory.path()).is_memory();
    if tmpfs {
        assert_eq!(
            (&stores[0].2[..], &stores[1].2[..]),
            ("mapped", "registered")
        );
    }
    assert!(["io_uring", "pwrite"].contains(&&stores[2].2[..]));
    for (name, files, _) in &stores[1..] {
        for (a, b) in files.iter().zip(&stores[0].1) {
            assert!(a == b, "{name}: {}", a.0);
        }
        assert_eq!(files.len(), stores[0].1.len());
    }
    // Nothing was left beside the stores by what was tried.
    let names = |dir: &tempfile::TempDir| std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!((names(&bench.memory), names(&bench.disk)), (2, 3));
}

#[test]
fn a_live_consumer_is_lent_what_a_store_would_hold() {
    let bench = Extraction::new();
    let prepared = bench.prepared();
    let out = bench.disk.path().join("store");
    let mut live: Vec<Vec<u8>> = vec![Vec::new(); prepared.taps.len()];
    let mut positions: Vec<Vec<i32>> = vec![Vec::new(); prepared.taps.len()];
    let mut samples = 0;
    let mut cuda = bench.cuda(&prepared, gpu());
    let mut take = |batch: &LiveBatch<'_>| {
        samples += batch.samples.len();
        for (t, tap) in batch.taps.iter().enumerate() {
            let rows = tap.as_bf16().unwrap();
            assert!(tap.as_f32().is_none() && !batch.samples[0].tokens.is_empty());
            live[t].extend_from_slice(bytemuck::cast_slice(rows));
            for (s, of) in tap.rows.iter().enumerate() {
                assert_eq!(tap.rows_of(s).len(), of.positions.len());
                positions[t].extend_from_slice(&of.positions);
            }
            assert_eq!(tap.index().is_some(), tap.info.top_k.is_some());
        }
        Ok(())
    };
    let done = extract_live(&prepared, &mut cuda, &mut take, &mut |_| ()).unwrap();
    assert_eq!((done.write_path, samples), ("live", 14));
    assert_eq!(cuda.driver().unregistered_copies(), 0);
    assert_eq!(cuda.driver().registrations(), 0);
    extract_on(&prepared, &mut cuda, &out, &mut |_| ()).unwrap();
    let store = Store::open(&out).unwrap();
    for (t, info) in store.taps().iter().enumerate() {
        let tap = store.tap_at(t);
        let mut stored = Vec::new();
        if info.ragged {
            for sample in store.samples() {
                if let Some(tensor) = tap.ragged(sample.unwrap().sample, 0).unwrap() {
                    stored.extend_from_slice(tensor.bytes());
                }
            }
        } else {
            assert_eq!(positions[t].len(), tap.rows());
            for (i, position) in positions[t].iter().enumerate() {
                stored.extend_from_slice(tap.row(i).unwrap().bytes());
                assert_eq!(tap.row(i).unwrap().position(), *position);
            }
        }
        assert!(stored == live[t], "{}", info.folder);
    }
}

#[test]
fn a_consumer_that_has_seen_enough_ends_the_run_with_its_error_on_the_cpu_too() {
    let bench = Extraction::new();
    let prepared = bench.prepared();
    let mut batches = 0;
    let mut take = |batch: &LiveBatch<'_>| {
        batches += 1;
        assert!(batch.taps[0].as_bf16().is_some());
        match batches {
            1 => Ok(()),
            _ => Err(streamgauge::store::Error::Plan("seen enough".into()).into()),
        }
    };
    let done = extract_live(&prepared, &mut prepared.cpu(), &mut take, &mut |_| ());
    assert_eq!(done.unwrap_err().to_string(), "seen enough");
    assert_eq!(batches, 2);
}

#[test]
fn a_driver_that_fails_anywhere_leaves_no_store_that_looks_finished_and_no_registration() {
    let bench = Extraction::new();
    let prepared = bench.prepared();
    let (first, all) = {
        let mut cuda = bench.cuda(&prepared, gpu());
        let opened = cuda.driver().calls();
        let out = bench.memory.path().join("whole");
        extract_on(&prepared, &mut cuda, &out, &mut |_| ()).unwrap();
        (opened, cuda.driver().calls())
    };
    let mut failed = 0;
    // The first calls register; what comes after repeats itself from batch to batch.
    let later = (first + 8..all).step_by((all - first) as usize / 9);
    let dirs = [&bench.memory, &bench.disk];
    for (call, dir) in (first..first + 8)
        .chain(later)
        .zip(dirs.into_iter().cycle())
    {
        let gpu = VirtualGpuOptions {
            fail_at: Some(call),
            ..gpu()
        };
        let mut cuda = bench.cuda(&prepared, gpu);
        let out = dir.path().join(format!("failed at {call}"));
        let done = extract_on(&prepared, &mut cuda, &out, &mut |_| ());
        let whole = Store::open(&out).is_ok();
        // Memory that cannot be registered only makes copies slower.
        assert_eq!(done.is_ok(), whole, "call {call}");
        failed += u32::from(!whole);
        assert_eq!(cuda.driver().registrations(), 0, "call {call}");
        assert_eq!(cuda.in_flight(), 0);
    }
    assert!(failed > 8, "{failed} runs failed");
}

#[test]
fn a_timeline_is_a_chrome_trace_with_every_stage_each_op_and_its_copies() {
    let bench = Extraction::new();
    let mut prepared = bench.prepared();
    prepared.trace = Some(Trace::default());
    let mut cuda = bench.cuda(&prepared, gpu());
    let out = bench.disk.path().join("traced");
    extract_on(&prepared, &mut cuda, &out, &mut |_| ()).unwrap();
    assert_eq!(cuda.driver().open_events(), 0, "stamps are used again");
    let file = bench.disk.path().join("trace.json");
    prepared.trace.as_ref().unwrap().write(&file).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let thread = |event: &serde_json::Value| event["tid"].as_u64().unwrap();
    let mut stages: Vec<u64> = Vec::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0);
        assert!(event["name"].is_string() && event["pid"] == 1);
        stages.push(thread(event));
    }
    let named = events.iter().filter(|e| e["ph"] == "M").count();
    stages.sort_unstable();
    stages.dedup();
    assert_eq!(stages.len(), named, "each stage has spans");
    let on = |tid: u64, name: &str| {
        let here = |e: &&serde_json::Value| e["tid"] == tid && e["name"] == name;
        events.iter().filter(here).count()
    };
    for tid in [4, 5] {
        assert!(on(tid, "blocks.1.hook_resid_post") > 1, "on {tid}");
    }
    // Device spans follow one another, and lie within the run.
    let mut ends = 0.0;
    for event in events.iter().filter(|e| e["tid"] == 4 && e["ph"] == "X") {
        let (ts, dur) = (
            event["ts"].as_f64().unwrap(),
            event["dur"].as_f64().unwrap(),
        );
        assert!(ts >= ends - 0.01, "{event}");
        ends = ts + dur;
    }
}
