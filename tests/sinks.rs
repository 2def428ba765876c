//! Where a batch's rows go while the next one is computed: the order of launches and copies on a device that interleaves them as badly as
//! it may.

mod common;

use std::sync::Arc;

use ptx_interpreter::Schedule;
use streamgauge::backend::cuda::interpreted::Interpretation;
use streamgauge::backend::cuda::virtual_gpu::{
    Mistake, StreamOrder, VirtualGpu, VirtualGpuOptions,
};
use streamgauge::backend::cuda::{Cuda, CudaOptions, Dtype};
use streamgauge::backend::{Batch, Landed, Sink, SinkDtype, SinkSpec};
use streamgauge::engine::{Machine, Plan, dims, shape};
use streamgauge::hooks::HookPoint;
use streamgauge::model::Model;
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
        means: 1,
        ring_bytes: Some(ring),
        gemm_chunk: 128,
        gemm: None,
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
        (3, StreamOrder::LaunchesFirst, 40 << 10),
        (2, StreamOrder::Seeded(2), 40 << 10),
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
    let found = job.run(&mut open(&job.model, gpu, 40 << 10), 1);
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
    // Every seventh call: each kind of them is among these.
    for call in whole.step_by(7) {
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
