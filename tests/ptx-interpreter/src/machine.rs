//! One launch: its blocks one after another, the warps of a block taking turns as the schedule says.

use crate::barrier::BarrierState;
use crate::copies::Copies;
use crate::device::{Launch, Schedule, Stats};
use crate::finding::{Fault, Finding, FindingKind, Outcome, Place, fault};
use crate::mbarrier::Mbarrier;
use crate::memory::{Bits, Global, SHARED_START, Shared};
use crate::module::{Kernel, Module};
use crate::program::{Preset, Program, Special};
use crate::race::{Order, Spill};
use crate::registers::{ALL, LANES, Registers};
use crate::warp::{Fragment, Wait, Warp};
use crate::wgmma::Products;

/// Steps of one warp before another gets its turn, so that waiting in a loop for another warp comes to an end.
const TURN: u64 = 1 << 16;

pub(crate) struct Machine<'a> {
    pub module: &'a Module,
    pub kernel: &'a Kernel,
    pub program: &'a Program,
    pub launch: Launch,
    pub params: &'a [u8],
    /// The addresses of the module's variables.
    pub variables: &'a [u64],
    pub global: &'a mut Global,
    pub shared: Shared,
    pub warps: Vec<Warp>,
    pub barriers: Vec<BarrierState>,
    /// The block's, and how many it has made.
    pub mbarriers: Vec<Mbarrier>,
    pub mbarriers_made: u32,
    pub spill: Spill,
    pub stats: Stats,
    pub step_limit: u64,
    pub first_tag: u32,
    /// The block that runs: its tag (first tag + linear index) and its position in the grid.
    pub tag: u32,
    /// Another for its shared memory, counted in the order of running.
    pub shared_tag: u32,
    pub block: [u32; 3],
    /// Ticks at the block's barriers.
    pub clock: u32,
    pub threads: u32,
    /// Per instruction, the allocation that it last touched.
    pub hints: Vec<u32>,
    pub arch: pulp::Arch,
    steps: u64,
}

impl<'a> Machine<'a> {
    pub fn new(
        module: &'a Module,
        kernel: &'a Kernel,
        launch: &Launch,
        params: &'a [u8],
        global: &'a mut Global,
        variables: &'a [u64],
        (first_tag, step_limit): (u32, u64),
    ) -> Self {
        let program = &kernel.program;
        let threads = launch.block.iter().product::<u32>();
        let (shared_bytes, ranges, dynamic_start) = shared_layout(program, launch.dynamic_shared);
        let presets = Presets {
            launch,
            variables,
            dynamic_start,
            threads,
        };
        let warps = (0..threads.div_ceil(32))
            .map(|index| Warp::new(program, index, &presets))
            .collect();
        Machine {
            module,
            kernel,
            program,
            launch: *launch,
            params,
            variables,
            global,
            shared: Shared::new(
                shared_bytes,
                ranges,
                program.shared_granule,
                program.is_asynchronous(),
            ),
            warps,
            barriers: vec![BarrierState::default(); 16],
            mbarriers: Vec::new(),
            mbarriers_made: 0,
            spill: Spill::new(),
            stats: Stats::default(),
            step_limit,
            first_tag,
            tag: first_tag,
            shared_tag: 0,
            block: [0; 3],
            clock: 1,
            threads,
            hints: vec![0; program.code.len()],
            arch: pulp::Arch::new(),
            steps: 0,
        }
    }

    /// Another machine for the same launch, with memory of its own.
    pub fn on<'g>(&'g self, global: &'g mut Global) -> Machine<'g> {
        let limits = (self.first_tag, self.step_limit);
        Machine::new(
            self.module,
            self.kernel,
            &self.launch,
            self.params,
            global,
            self.variables,
            limits,
        )
    }

    pub fn run(&mut self) -> Result<Stats, Finding> {
        let blocks = self.launch.grid.iter().map(|&n| u64::from(n)).product();
        // The first block tells how long the others will take.
        self.run_positions(0..1, blocks)?;
        match self.run_in_parallel(1, blocks) {
            Some(stats) => Ok(stats),
            None => self.run_positions(1..blocks, blocks),
        }
    }

    /// Runs the blocks at these positions of the schedule, one after another.
    pub fn run_positions(
        &mut self,
        positions: impl Iterator<Item = u64>,
        blocks: u64,
    ) -> Result<Stats, Finding> {
        let [gx, gy, _] = self.launch.grid.map(u64::from);
        for position in positions {
            let (linear, seed) = match self.launch.schedule {
                Schedule::Forward => (position, 0),
                Schedule::Reverse => (blocks - 1 - position, 0),
                Schedule::Seeded(seed) => (permuted(position, blocks, seed), seed),
            };
            let (x, rest) = (linear % gx, linear / gx);
            self.block = [x as u32, (rest % gy) as u32, (rest / gy) as u32];
            self.tag = self.first_tag + linear as u32;
            self.run_block(&mut Random::new(
                seed ^ linear.wrapping_mul(0x2545_f491_4f6c_dd1d),
            ))?;
            self.stats.blocks += 1;
        }
        Ok(self.stats)
    }

    fn begin_block(&mut self) {
        self.shared.reset();
        self.shared_tag += 1;
        self.clock = 1;
        self.steps = 0;
        for barrier in &mut self.barriers {
            *barrier = BarrierState::default();
        }
        self.mbarriers.clear();
        self.mbarriers_made = 0;
        self.spill.retain(|&(region, _), _| region != 0);
        let block = self.block;
        for warp in &mut self.warps {
            warp.begin(self.program, block);
        }
    }

    fn run_block(&mut self, random: &mut Random) -> Result<(), Finding> {
        self.begin_block();
        let count = self.warps.len();
        loop {
            let mut ran = false;
            for turn in 0..count {
                let (w, budget) = match self.launch.schedule {
                    Schedule::Forward => (turn, TURN),
                    Schedule::Reverse => (count - 1 - turn, TURN),
                    Schedule::Seeded(_) => {
                        (random.below(count as u64) as usize, 1 + random.below(96))
                    }
                };
                if !self.warps[w].ready() {
                    continue;
                }
                ran = true;
                let used = self.run_warp(w, budget)?;
                self.steps += used;
                if self.steps > self.step_limit {
                    return Err(self.too_many_steps(w));
                }
            }
            if !ran && !self.warps.iter().any(Warp::ready) {
                break;
            }
        }
        match self.warps.iter().all(Warp::done) {
            true => self.check_warpgroups(),
            false => Err(self.stuck()),
        }
    }

    fn too_many_steps(&self, w: usize) -> Finding {
        let fragment = self.warps[w].fragments.first().copied();
        let (pc, lane) = fragment.map_or((0, 0), |fragment| {
            (fragment.pc, fragment.mask.trailing_zeros())
        });
        let what = format!(
            "the block ran for more than {} warp instructions; does it wait for something?",
            self.step_limit
        );
        self.locate(w, pc, lane, *fault(FindingKind::StepLimit, what))
    }

    /// Turns a fault into a finding.
    #[cold]
    pub fn locate(&self, w: usize, pc: u32, lane: u32, fault: Fault) -> Finding {
        let thread = w as u32 * 32 + fault.lane.unwrap_or(lane).min(31);
        let [nx, ny, _] = self.launch.block;
        let place = Place {
            thread: [thread % nx, thread / nx % ny, thread / (nx * ny)],
            ..self.place_of(pc, self.block)
        };
        Finding {
            kind: fault.kind,
            kernel: self.kernel.info.name.clone(),
            what: fault.what,
            place: Some(Box::new(place)),
        }
    }

    fn place_of(&self, pc: u32, block: [u32; 3]) -> Place {
        let origin = self
            .program
            .origins
            .get(pc as usize)
            .copied()
            .unwrap_or_default();
        let source = self.module.source_line(origin.file, origin.line);
        let outer = self
            .module
            .source_line(origin.outer_file, origin.outer_line);
        // Of a toolkit header only the line that called into it is of use.
        let (source, inlined_at) = match (source, outer) {
            (Some((file, _)), Some(outer)) if is_toolkit(&file) => (Some(outer), None),
            (Some(source), Some(outer)) if source != outer => (Some(source), Some(outer)),
            (source, outer) => (source.or(outer), None),
        };
        Place {
            instruction: self.module.instruction_text(origin),
            ptx_line: origin.ptx_line,
            source,
            inlined_at,
            block,
            thread: [0; 3],
        }
    }

    /// ``"`st.shared.f32 …` at gemm.cu:12"``
    pub fn describe_pc(&self, pc: u16) -> String {
        let place = self.place_of(pc.into(), self.block);
        match place.source {
            Some((file, line)) => format!("`{}` at {file}:{line}", place.instruction),
            None => format!("`{}`", place.instruction),
        }
    }

    pub fn check_launch(program: &Program, launch: &Launch) -> Outcome<()> {
        let bad = |what: String| Err(fault(FindingKind::BadLaunch, what));
        let [x, y, z] = launch.block.map(u64::from);
        let threads = x.saturating_mul(y).saturating_mul(z);
        if threads == 0 || threads > 1024 || z > 64 {
            return bad(format!(
                "a block of {x} × {y} × {z} threads; there are 1 to 1024, at most 64 deep"
            ));
        }
        let [gx, gy, gz] = launch.grid;
        if launch.grid.contains(&0) || gx > i32::MAX as u32 || gy > 65_535 || gz > 65_535 {
            return bad(format!("a grid of {gx} × {gy} × {gz} blocks"));
        }
        if u64::from(gx) * u64::from(gy) * u64::from(gz) > 1 << 28 {
            return bad(format!(
                "{gx} × {gy} × {gz} blocks are more than an interpreter can run"
            ));
        }
        if program.max_threads.is_some_and(|max| threads > max.into()) {
            return bad(format!(
                "{threads} threads per block, but the kernel is bounded to {}",
                program.max_threads.unwrap_or(0)
            ));
        }
        if program
            .required_block
            .is_some_and(|required| required != launch.block)
        {
            return bad(format!(
                "the kernel requires blocks of {:?}",
                program.required_block.unwrap_or_default()
            ));
        }
        let (bytes, _, _) = shared_layout(program, launch.dynamic_shared);
        if bytes > MAX_SHARED {
            return bad(format!(
                "{bytes} bytes of shared memory; a block has at most {MAX_SHARED}"
            ));
        }
        Ok(())
    }
}

/// What an H100 gives a block at most.
const MAX_SHARED: usize = 227 * 1024;

fn is_toolkit(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    ["cuda_", "sm_", "device_", "math_", "crt/"]
        .iter()
        .any(|stem| name.starts_with(stem))
        && (name.ends_with(".hpp") || name.ends_with(".h"))
}

/// Bytes of shared memory, the ranges of its variables, and where the dynamic part starts.
fn shared_layout(program: &Program, dynamic: u32) -> (usize, Vec<(u32, u32, String)>, u32) {
    let mut ranges: Vec<_> = program
        .shared
        .iter()
        .map(|variable| {
            let start = variable.start - SHARED_START;
            (start, start + variable.bytes, variable.name.clone())
        })
        .collect();
    let dynamic_start = program
        .static_shared_end
        .next_multiple_of(program.dynamic_align.max(16));
    let start = dynamic_start - SHARED_START;
    let end = start.saturating_add(dynamic);
    if dynamic > 0 {
        ranges.push((start, end, "dynamic shared memory".into()));
    }
    (
        ranges.iter().map(|range| range.1).max().unwrap_or(0) as usize,
        ranges,
        dynamic_start,
    )
}

/// What the constant registers of a launch hold.
pub(crate) struct Presets<'a> {
    launch: &'a Launch,
    variables: &'a [u64],
    dynamic_start: u32,
    threads: u32,
}

impl Presets<'_> {
    /// The value in one lane; the block's position is filled in per block.
    pub fn value(&self, preset: Preset, warp: u32, lane: u32) -> u64 {
        let thread = warp * 32 + lane;
        let [nx, ny, nz] = self.launch.block;
        let axis = |values: [u32; 3], axis: u8| values.get(usize::from(axis)).copied().unwrap_or(0);
        let special = match preset {
            Preset::Bits(bits) => return bits,
            Preset::Variable(index, offset) => {
                let start = self.variables.get(index as usize).copied().unwrap_or(0);
                return start.wrapping_add(offset as u64);
            }
            Preset::Dynamic(offset) => {
                return u64::from(self.dynamic_start).wrapping_add(offset as u64);
            }
            Preset::Special(special) => special,
        };
        let value = match special {
            Special::Tid(a) => axis([thread % nx, thread / nx % ny, thread / (nx * ny)], a),
            Special::Ntid(a) => axis([nx, ny, nz], a),
            Special::Ctaid(_) | Special::Zero => 0,
            Special::Nctaid(a) => axis(self.launch.grid, a),
            Special::Lane => lane,
            Special::Warp => warp,
            Special::Warps => self.threads.div_ceil(32),
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLe => ALL >> (31 - lane),
            Special::LanemaskLt => !(ALL << lane),
            Special::LanemaskGe => ALL << lane,
            Special::LanemaskGt => !(ALL >> (31 - lane)),
            Special::DynamicShared => self.launch.dynamic_shared,
            Special::TotalShared => self.dynamic_start - SHARED_START + self.launch.dynamic_shared,
            Special::One => 1,
        };
        value.into()
    }
}

impl Warp {
    fn new(program: &Program, index: u32, presets: &Presets) -> Warp {
        let mut registers = Registers::new(program.slots32, program.slots64, program.slots_pred);
        for &(slot, preset) in &program.presets32 {
            registers.r32[usize::from(slot)] =
                std::array::from_fn(|lane| presets.value(preset, index, lane as u32) as u32);
            registers.defined[0][usize::from(slot)] = ALL;
        }
        for &(slot, preset) in &program.presets64 {
            registers.r64[usize::from(slot)] =
                std::array::from_fn(|lane| presets.value(preset, index, lane as u32));
            registers.defined[1][usize::from(slot)] = ALL;
        }
        for &(slot, value) in &program.presets_pred {
            registers.p[usize::from(slot)] = if value { ALL } else { 0 };
            registers.defined[2][usize::from(slot)] = ALL;
        }
        let lanes = (presets.threads - index * 32).min(32);
        let local_stride = program.local_bytes.next_multiple_of(16);
        Warp {
            index: index as u16,
            initially_defined: registers.defined.clone(),
            registers,
            fragments: Vec::new(),
            all: ALL >> (32 - lanes),
            live: 0,
            order: Order::new(),
            copies: Copies::default(),
            products: Products::default(),
            tried_in_vain: None,
            local: vec![0; local_stride * LANES],
            local_init: Bits::new(local_stride * LANES),
            local_stride,
        }
    }

    fn begin(&mut self, program: &Program, block: [u32; 3]) {
        for (defined, initially) in self
            .registers
            .defined
            .iter_mut()
            .zip(&self.initially_defined)
        {
            defined.copy_from_slice(initially);
        }
        let ctaid = |preset: Preset| match preset {
            Preset::Special(Special::Ctaid(axis)) => block.get(usize::from(axis)).copied(),
            _ => None,
        };
        for &(slot, preset) in &program.presets32 {
            if let Some(value) = ctaid(preset) {
                self.registers.r32[usize::from(slot)] = [value; LANES];
            }
        }
        for &(slot, preset) in &program.presets64 {
            if let Some(value) = ctaid(preset) {
                self.registers.r64[usize::from(slot)] = [value.into(); LANES];
            }
        }
        self.fragments.clear();
        self.fragments.push(Fragment {
            pc: 0,
            mask: self.all,
            wait: Wait::Ready,
        });
        self.live = self.all;
        self.order.reset();
        self.copies.clear();
        self.products.clear();
        self.tried_in_vain = None;
        self.local_init.clear();
    }
}

/// SplitMix64: a seed's whole sequence is fixed for good.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// A permutation of `0..n` that needs no table: a Feistel network over the next power of four, walked until in range.
fn permuted(position: u64, n: u64, seed: u64) -> u64 {
    let half_bits = (64 - n.leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut value = position;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..4 {
            let mixed = Random::new(seed ^ right << 8 ^ round).next() & mask;
            (left, right) = (right, left ^ mixed);
        }
        value = left << half_bits | right;
        if value < n {
            return value;
        }
    }
}
