//! Runs one test case on every schedule of the interpreter, or on a GPU, and holds each run to the same bits.
//!
//! A case is a closure over a [`Gpu`]: it uploads, launches and reads back.
//! ```ignore
//! let got = on_every_schedule(|gpu| {
//!     let x = gpu.input(&x);
//!     let out = gpu.output::<bf16>(rows * width);
//!     gpu.launch(&RmsNorm { dtype: bf16::DTYPE }, &RmsNormArgs { x: x.ptr(), out: out.ptr(), … });
//!     gpu.read(&out)
//! });
//! assert_op_by_op("norm", &got, &want);
//! ```
//! Found by itself, whatever the case asserts: results that depend on the order of blocks and warps; an element of an output that
//! was not written, or was read before it was; an input that was changed; a store (in the interpreter a load too) outside the buffers.

#![allow(dead_code, unused_imports)] // Each op's tests use a part of this.

mod element;
mod gates;
mod machine;
mod noise;

pub use element::{Element, ulp, ulps, wide};
pub use gates::{
    assert_op_by_op, assert_op_by_op_within, assert_relative_l2, assert_rounded, relative_l2,
};
pub use noise::{Random, normal};

use bytemuck::Pod;
use machine::Machine;
use std::marker::PhantomData;
use streamgauge::backend::cuda::{DevicePtr, Kernel, LaunchError, Launcher, launch};

/// `n` random cases of a property. Each runs several times in an interpreter, so they are few.
pub fn cases(n: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases: n,
        max_shrink_iters: 24,
        failure_persistence: None,
        ..Default::default()
    }
}

/// Runs `case` on every machine there is and returns what it returned.
#[track_caller]
pub fn on_every_schedule<R>(case: impl FnMut(&mut Gpu) -> R) -> R {
    on_each(machine::all(), case)
}

/// As [`on_every_schedule`], of code that only sm_90a has.
#[track_caller]
pub fn on_every_schedule_of_sm_90a<R>(case: impl FnMut(&mut Gpu) -> R) -> R {
    on_each(machine::of_sm_90a(), case)
}

#[track_caller]
fn on_each<R>(machines: impl Iterator<Item = Machine>, mut case: impl FnMut(&mut Gpu) -> R) -> R {
    let mut first: Option<(R, Gpu)> = None;
    for machine in machines {
        let mut gpu = Gpu::on(machine);
        let result = case(&mut gpu);
        gpu.check_buffers();
        match &first {
            None => first = Some((result, gpu)),
            Some((_, first)) => gpu.check_same_bits(first),
        }
    }
    first.expect("there is a machine").0
}

/// Bytes on either side of a buffer, on machines that do not watch accesses themselves.
const GUARD: u8 = 0xa5;
/// All bits set: NaN in every floating-point type.
const POISON: u8 = 0xff;

/// Device memory of `len` elements.
#[derive(Debug)]
pub struct Buffer<T> {
    at: DevicePtr,
    len: usize,
    /// Whether an element that is still poison was forgotten by the kernel.
    wholly_written: bool,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub fn ptr(&self) -> DevicePtr {
        self.at
    }

    /// The address of element `i`.
    pub fn at(&self, i: usize) -> DevicePtr {
        self.at.offset(i * size_of::<T>())
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

/// One run of a case.
pub struct Gpu {
    machine: Machine,
    guarded: Vec<(DevicePtr, usize)>,
    inputs: Vec<(DevicePtr, Vec<u8>)>,
    reads: Vec<Vec<u8>>,
}

impl Gpu {
    fn on(machine: Machine) -> Gpu {
        Gpu {
            machine,
            guarded: Vec::new(),
            inputs: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// Memory that kernels only read.
    #[track_caller]
    pub fn input<T: Pod>(&mut self, data: &[T]) -> Buffer<T> {
        let buffer = self.in_place(data);
        let bytes = bytemuck::cast_slice(data).to_vec();
        self.inputs.push((buffer.at, bytes));
        buffer
    }

    /// Memory that kernels read and may overwrite.
    #[track_caller]
    pub fn in_place<T: Pod>(&mut self, data: &[T]) -> Buffer<T> {
        let buffer = self.alloc(data.len(), false);
        let uploaded = self
            .machine
            .launcher()
            .upload(buffer.at, bytemuck::cast_slice(data));
        self.must(uploaded);
        buffer
    }

    /// Memory that kernels write, all of it.
    #[track_caller]
    pub fn output<T: Pod>(&mut self, len: usize) -> Buffer<T> {
        let buffer = self.alloc(len, true);
        // The interpreter knows itself what was never written.
        if !self.machine.watches() {
            self.poison(&buffer);
        }
        buffer
    }

    /// Memory that kernels write a part of; [`is_poison`] tells the rest.
    #[track_caller]
    pub fn canvas<T: Pod>(&mut self, len: usize) -> Buffer<T> {
        let buffer = self.alloc(len, false);
        self.poison(&buffer);
        buffer
    }

    /// What makes tensor maps.
    pub fn launcher(&mut self) -> &mut dyn Launcher {
        self.machine.launcher()
    }

    /// Whether it watches accesses itself: the interpreter, rather than a GPU.
    pub fn watches(&self) -> bool {
        self.machine.watches()
    }

    /// Launches; the case fails if that does.
    #[track_caller]
    pub fn launch<K: Kernel>(&mut self, kernel: &K, args: &K::Args) {
        let launched = self.try_launch(kernel, args);
        self.must(launched);
    }

    pub fn try_launch<K: Kernel>(&mut self, kernel: &K, args: &K::Args) -> Result<(), LaunchError> {
        let launcher = self.machine.launcher();
        launch(launcher, kernel, args)?;
        launcher.synchronize()
    }

    #[track_caller]
    pub fn read<T: Pod>(&mut self, buffer: &Buffer<T>) -> Vec<T> {
        let mut data = vec![T::zeroed(); buffer.len];
        let bytes = bytemuck::cast_slice_mut(&mut data);
        let read = self.machine.launcher().download(buffer.at, bytes);
        self.must(read);
        if buffer.wholly_written && !self.machine.watches() {
            let forgotten = data.iter().position(is_poison);
            self.require(forgotten.is_none(), || {
                format!(
                    "element {} of {} was not written",
                    forgotten.unwrap_or(0),
                    buffer.len
                )
            });
        }
        self.reads.push(bytemuck::cast_slice(&data).to_vec());
        data
    }

    #[track_caller]
    fn alloc<T: Pod>(&mut self, len: usize, wholly_written: bool) -> Buffer<T> {
        let guard = self.machine.guard();
        let bytes = len * size_of::<T>();
        let allocated = self.machine.launcher().alloc(bytes + 2 * guard);
        let base = self.must(allocated);
        if guard > 0 {
            let launcher = self.machine.launcher();
            let filled = launcher.fill(base, GUARD, bytes + 2 * guard);
            self.must(filled);
            self.guarded.push((base, bytes));
        }
        Buffer {
            at: base.offset(guard),
            len,
            wholly_written,
            element: PhantomData,
        }
    }

    #[track_caller]
    fn poison<T: Pod>(&mut self, buffer: &Buffer<T>) {
        let bytes = buffer.len * size_of::<T>();
        let filled = self.machine.launcher().fill(buffer.at, POISON, bytes);
        self.must(filled);
    }

    /// Guard zones and inputs are as they were.
    #[track_caller]
    fn check_buffers(&mut self) {
        let guard = self.machine.guard();
        for (base, bytes) in std::mem::take(&mut self.guarded) {
            for (side, at) in [("before", base), ("after", base.offset(guard + bytes))] {
                let mut zone = vec![0; guard];
                let read = self.machine.launcher().download(at, &mut zone);
                self.must(read);
                self.require(zone.iter().all(|&byte| byte == GUARD), || {
                    format!("a kernel wrote {side} a buffer of {bytes} bytes")
                });
            }
        }
        for (at, before) in std::mem::take(&mut self.inputs) {
            let mut after = vec![0; before.len()];
            let read = self.machine.launcher().download(at, &mut after);
            self.must(read);
            let changed = before.iter().zip(&after).position(|(a, b)| a != b);
            self.require(changed.is_none(), || {
                let (at, of) = (changed.unwrap_or(0), before.len());
                format!("a kernel changed byte {at} of an input of {of} bytes")
            });
        }
    }

    #[track_caller]
    fn check_same_bits(&self, first: &Gpu) {
        let (here, there) = (&self.reads, &first.reads);
        self.require(here.len() == there.len(), || {
            "another number of reads".into()
        });
        for (n, (here, there)) in here.iter().zip(there).enumerate() {
            let differs = here.iter().zip(there).position(|(a, b)| a != b);
            self.require(differs.is_none() && here.len() == there.len(), || {
                format!(
                    "read {n} differs from byte {} on from what {} computed",
                    differs.unwrap_or(0),
                    first.machine.name
                )
            });
        }
    }

    #[track_caller]
    fn must<R>(&self, result: Result<R, LaunchError>) -> R {
        result.unwrap_or_else(|e| panic!("{}: {e}", self.machine.name))
    }

    #[track_caller]
    fn require(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        assert!(holds, "{}: {}", self.machine.name, otherwise());
    }
}

/// Whether an element of a canvas was left as it was.
pub fn is_poison<T: Pod>(element: &T) -> bool {
    bytemuck::bytes_of(element)
        .iter()
        .all(|&byte| byte == POISON)
}
