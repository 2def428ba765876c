//! A warp: its lanes run together as far as they are at the same instruction. Lanes that part become fragments; the one
//! that is furthest behind runs first, and fragments that meet become one again.

use crate::alu;
use crate::barrier::Arrival;
use crate::copies::Copies;
use crate::finding::{Finding, FindingKind, InLane, Outcome, fault};
use crate::machine::Machine;
use crate::memory::{Bits, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::program::{Inst, Op, Pred, Program, Slot, Space};
use crate::race::Order;
use crate::registers::{LANES, Registers, register_id, write};
use crate::wgmma::Products;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Ready,
    /// For other lanes of the warp to come to the same instruction.
    Lanes,
    /// At a barrier of the block.
    Barrier(u32),
    /// For the phase of an mbarrier to end.
    Mbarrier,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

#[derive(Clone, Debug)]
pub(crate) struct Warp {
    pub index: u16,
    pub registers: Registers,
    /// Which registers hold a value before the first instruction: the constants.
    pub initially_defined: [Vec<u32>; 3],
    pub fragments: Vec<Fragment>,
    /// The lanes that there are, and those that have not ended.
    pub all: u32,
    pub live: u32,
    pub order: Order,
    pub copies: Copies,
    pub products: Products,
    /// Whether the last try at this place to see an mbarrier's phase end was in vain.
    pub tried_in_vain: Option<u32>,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub local_init: Bits,
    pub local_stride: usize,
}

/// How a step ends.
pub(crate) enum Next {
    Advance,
    Jump(u32),
    /// Lanes of the mask go to the target, the rest on.
    Part(u32, u32),
    /// Each lane where its own target is.
    Scatter(Vec<(u32, u32)>),
    Exit(u32),
    /// Lanes of the mask stay, waiting; the rest go on.
    Stay(u32, Wait),
}

impl Warp {
    pub fn ready(&self) -> bool {
        self.fragments
            .iter()
            .any(|fragment| fragment.wait == Wait::Ready)
    }

    pub fn done(&self) -> bool {
        self.fragments.is_empty()
    }

    /// Joins fragments at the same place, and picks the ready one that is furthest behind.
    fn pick(&mut self) -> Option<usize> {
        if self.fragments.len() > 1 {
            self.fragments
                .sort_by_key(|fragment| (fragment.pc, fragment.mask));
            let mut at = 0;
            while at + 1 < self.fragments.len() {
                let (a, b) = (self.fragments[at], self.fragments[at + 1]);
                let at_barrier = |wait| matches!(wait, Wait::Barrier(_));
                if a.pc == b.pc && !at_barrier(a.wait) && !at_barrier(b.wait) {
                    // New company: whoever waited looks again.
                    self.fragments[at] = Fragment {
                        pc: a.pc,
                        mask: a.mask | b.mask,
                        wait: Wait::Ready,
                    };
                    self.fragments.remove(at + 1);
                } else {
                    at += 1;
                }
            }
        }
        self.fragments
            .iter()
            .position(|fragment| fragment.wait == Wait::Ready)
    }

    /// Where the next fragment ahead stands: reaching it, a fragment must look whether to join.
    fn limit(&self, picked: usize) -> u32 {
        let pc = self.fragments[picked].pc;
        self.fragments
            .iter()
            .map(|fragment| fragment.pc)
            .filter(|&other| other > pc)
            .min()
            .unwrap_or(u32::MAX)
    }

    fn apply(&mut self, picked: usize, pc: u32, next: Next) {
        let mask = self.fragments[picked].mask;
        self.fragments.swap_remove(picked);
        let mut push = |pc, mask, wait| {
            if mask != 0 {
                self.fragments.push(Fragment { pc, mask, wait });
            }
        };
        match next {
            Next::Advance => push(pc + 1, mask, Wait::Ready),
            Next::Jump(target) => push(target, mask, Wait::Ready),
            Next::Part(target, taken) => {
                push(target, taken, Wait::Ready);
                push(pc + 1, mask & !taken, Wait::Ready);
            }
            Next::Scatter(targets) => {
                for (target, lanes) in targets {
                    push(target, lanes, Wait::Ready);
                }
            }
            Next::Exit(lanes) => {
                push(pc + 1, mask & !lanes, Wait::Ready);
                self.live &= !lanes;
                // Lanes that have ended are waited for no longer.
                for fragment in &mut self.fragments {
                    if fragment.wait == Wait::Lanes {
                        fragment.wait = Wait::Ready;
                    }
                }
            }
            Next::Stay(lanes, wait) => {
                push(pc, lanes, wait);
                push(pc + 1, mask & !lanes, Wait::Ready);
            }
        }
    }
}

impl Machine<'_> {
    /// Runs warp `w` until it waits, ends, or has made `budget` steps; says how many it made.
    pub fn run_warp(&mut self, w: usize, budget: u64) -> Result<u64, Finding> {
        let mut used = 0;
        while used < budget {
            let Some(picked) = self.warps[w].pick() else {
                break;
            };
            used += self.run_fragment(w, picked, budget - used)?;
        }
        Ok(used)
    }

    fn run_fragment(&mut self, w: usize, picked: usize, budget: u64) -> Result<u64, Finding> {
        let limit = self.warps[w].limit(picked);
        let alone = self.warps[w].fragments.len() == 1;
        let Fragment { mut pc, mask, .. } = self.warps[w].fragments[picked];
        let mut used = 0;
        let program = self.program;
        loop {
            let inst = &program.code[pc as usize];
            used += 1;
            let next = match self.step(w, pc, mask, inst) {
                Ok(next) => next,
                Err(fault) => return Err(self.locate(w, pc, mask.trailing_zeros(), *fault)),
            };
            match next {
                Next::Advance => pc += 1,
                Next::Jump(target) if alone => pc = target,
                next => {
                    self.warps[w].apply(picked, pc, next);
                    break;
                }
            }
            if pc >= limit || used >= budget {
                self.warps[w].fragments[picked].pc = pc;
                break;
            }
        }
        self.stats.warp_instructions += used;
        Ok(used)
    }

    #[inline(always)]
    fn step(&mut self, w: usize, pc: u32, mask: u32, inst: &Inst) -> Outcome<Next> {
        let registers = &mut self.warps[w].registers;
        let mut m = mask;
        if let Some(guard) = inst.guard {
            check_pred(self.program, registers, guard, mask)?;
            m &= registers.pred(guard);
            if m == 0 {
                return Ok(Next::Advance);
            }
        }
        if self.warps[w].products.under_way() {
            self.check_sums(w, inst)?;
        }
        let registers = &mut self.warps[w].registers;
        self.stats.thread_instructions += u64::from(m.count_ones());
        let defined = reads_defined(self.program, registers, inst, m)?;
        let op = &inst.op;
        if !self.arch.dispatch(Arithmetic { registers, m, op }) {
            let next = self.execute(w, pc, mask, m, op)?;
            if !matches!(next, Next::Advance) {
                return Ok(next);
            }
        }
        set_defined(self.program, &mut self.warps[w].registers, inst, m, defined);
        Ok(Next::Advance)
    }

    /// Everything but arithmetic.
    fn execute(&mut self, w: usize, pc: u32, mask: u32, m: u32, op: &Op) -> Outcome<Next> {
        match op {
            Op::Load(access) => self.load(w, pc, m, access)?,
            Op::Store(access) => self.store(w, pc, m, access)?,
            Op::Bra { target } if m == mask => return Ok(Next::Jump(*target)),
            Op::Bra { target } => {
                self.stats.divergent_branches += 1;
                return Ok(Next::Part(*target, m));
            }
            Op::Mma(mma) => {
                if let Some(stay) = self.whole_warp(w, m)? {
                    return Ok(stay);
                }
                let registers = &mut self.warps[w].registers;
                self.arch
                    .dispatch(crate::matrix::Product { registers, mma });
                self.stats.mma += 1;
            }
            Op::Ldmatrix(access) => {
                if let Some(stay) = self.whole_warp(w, m)? {
                    return Ok(stay);
                }
                self.ldmatrix(w, pc, access)?;
            }
            Op::Stmatrix(access) => {
                if let Some(stay) = self.whole_warp(w, m)? {
                    return Ok(stay);
                }
                self.stmatrix(w, pc, access)?;
            }
            Op::Movmatrix { d, a } => {
                if let Some(stay) = self.whole_warp(w, m)? {
                    return Ok(stay);
                }
                crate::matrix::movmatrix(&mut self.warps[w].registers, *d, *a);
            }
            Op::Collective {
                what,
                mask: member_mask,
            } => {
                let stay = self.collective(w, m, what, *member_mask)?;
                if stay != 0 {
                    // Those that went through hold a result; the others come back.
                    self.define_results(w, pc, m & !stay);
                    return Ok(Next::Stay(stay, Wait::Lanes));
                }
            }
            Op::Barrier(barrier) => match self.arrive(w, pc, m, barrier)? {
                Arrival::Through => {}
                Arrival::Waits(wait) => return Ok(Next::Stay(m, wait)),
            },
            Op::CpAsync(copy) => self.cp_async(w, pc, m, copy)?,
            Op::CpCommit => lanes(m).for_each(|lane| self.warps[w].copies.commit(lane)),
            Op::CpWait { groups } => self.cp_wait(w, pc, m, Some(*groups)),
            Op::CpWaitAll => self.cp_wait(w, pc, m, None),
            Op::Mbarrier(op) => return self.mbarrier(w, pc, m, op),
            Op::FenceMbarrierInit => self.fence_mbarriers(w),
            Op::FenceProxyAsync => {
                self.fence_mbarriers(w);
                self.shared.fence_proxy(w as u16);
            }
            Op::TensorCopy(copy) => self.tensor_copy(w, pc, m, copy)?,
            Op::Wgmma(wgmma) => return self.wgmma(w, pc, m, wgmma),
            Op::WgmmaFence => return self.wgmma_fence(w, m),
            Op::WgmmaCommit => return self.wgmma_commit(w, m),
            Op::WgmmaWait { groups } => return self.wgmma_wait(w, pc, m, *groups),
            Op::Atom(atom) => self.atom(w, pc, m, atom)?,
            Op::Cvta { to, space, d, a } => {
                cvta(&mut self.warps[w].registers, m, *to, *space, *d, *a)
            }
            Op::IsSpace { space, d, a } => {
                let registers = &mut self.warps[w].registers;
                let row = registers.row64(*a);
                let bits = (0..LANES)
                    .filter(|&lane| space_of(row[lane]) == *space)
                    .map(|lane| 1 << lane)
                    .sum();
                registers.set_pred(*d, m, bits);
            }
            Op::ActiveMask { d } => write(&mut self.warps[w].registers, m, *d, &[m; LANES]),
            Op::Clock { d, wide: false } => {
                let now = self.stats.thread_instructions as u32;
                write(&mut self.warps[w].registers, m, *d, &[now; LANES]);
            }
            Op::Clock { d, wide: true } => {
                let now = self.stats.thread_instructions;
                write(&mut self.warps[w].registers, m, *d, &[now; LANES]);
            }
            Op::Brx { index, targets } => {
                return self.branch_indexed(w, pc, mask, m, *index, targets);
            }
            Op::Exit => return Ok(Next::Exit(m)),
            Op::Trap => return Err(fault(FindingKind::Trap, "`trap` was executed")),
            Op::Fail {
                assertion: true,
                message,
            } => return Err(fault(FindingKind::Assertion, message.as_ref())),
            Op::Fail { message, .. } => {
                return Err(fault(FindingKind::Unsupported, message.as_ref()));
            }
            Op::Unknown { message } => {
                return Err(fault(FindingKind::UnknownInstruction, message.as_ref()));
            }
            // Prefetches and fences change no value; anything else was run before.
            _ => {}
        }
        Ok(Next::Advance)
    }

    pub fn define_results(&mut self, w: usize, pc: u32, lanes: u32) {
        let inst = &self.program.code[pc as usize];
        set_defined(
            self.program,
            &mut self.warps[w].registers,
            inst,
            lanes,
            lanes,
        );
    }

    fn branch_indexed(
        &self,
        w: usize,
        pc: u32,
        mask: u32,
        m: u32,
        index: Slot,
        targets: &[u32],
    ) -> Outcome<Next> {
        let row = self.warps[w].registers.row32(index);
        let mut parts: Vec<(u32, u32)> = vec![(pc + 1, mask & !m)];
        for lane in lanes(m) {
            let target = targets.get(row[lane] as usize).copied().ok_or_else(|| {
                fault(
                    FindingKind::OutOfBounds,
                    format!("branch index {} of {} targets", row[lane], targets.len()),
                )
            });
            let target = target.in_lane(lane)?;
            match parts.iter_mut().find(|part| part.0 == target) {
                Some(part) => part.1 |= 1 << lane,
                None => parts.push((target, 1 << lane)),
            }
        }
        Ok(Next::Scatter(parts))
    }

    /// For instructions that need all 32 lanes: waits for those that are elsewhere.
    pub fn whole_warp(&self, w: usize, m: u32) -> Outcome<Option<Next>> {
        let warp = &self.warps[w];
        if m == u32::MAX {
            return Ok(None);
        }
        if warp.live != u32::MAX {
            let missing = !warp.live;
            let why = if warp.all == u32::MAX {
                "have ended"
            } else {
                "are not there"
            };
            let what = format!("needs all 32 lanes of the warp, but lanes 0x{missing:08x} {why}");
            return Err(fault(FindingKind::InactiveLane, what));
        }
        Ok(Some(Next::Stay(m, Wait::Lanes)))
    }
}

/// One arithmetic instruction, compiled for the vector instructions that this machine has.
struct Arithmetic<'a> {
    registers: &'a mut Registers,
    m: u32,
    op: &'a Op,
}

impl pulp::NullaryFnOnce for Arithmetic<'_> {
    type Output = bool;

    // A closure would not be inlined into the function that has the vector instructions switched on.
    #[inline(always)]
    fn call(self) -> bool {
        alu::run(self.registers, self.m, self.op)
    }
}

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

#[inline(always)]
fn check_pred(program: &Program, registers: &Registers, pred: Pred, mask: u32) -> Outcome<()> {
    let id = register_id(crate::registers::BANK_PRED, pred.slot);
    let undefined = mask & !registers.defined(id);
    if undefined != 0 {
        Err(undefined_register(program, id, undefined))
    } else {
        Ok(())
    }
}

#[cold]
fn undefined_register(program: &Program, id: u32, lanes: u32) -> Box<crate::finding::Fault> {
    let named = program
        .names
        .iter()
        .find(|(bank, slot, _)| register_id(u32::from(*bank), *slot) == id);
    let name = named.map_or("a register", |(_, _, name)| name);
    let mut fault = fault(
        FindingKind::UninitialisedRegister,
        format!("`{name}` holds no defined value"),
    );
    fault.lane = Some(lanes.trailing_zeros());
    fault
}

/// The lanes of `m` in which all that the instruction reads is defined.
#[inline(always)]
fn reads_defined(program: &Program, registers: &Registers, inst: &Inst, m: u32) -> Outcome<u32> {
    let start = inst.flow.start as usize;
    let mut defined = m;
    for &id in &program.flow[start..start + usize::from(inst.flow.reads)] {
        defined &= registers.defined(id);
    }
    if defined != m {
        return partly_defined(program, registers, inst, m, defined);
    }
    Ok(defined)
}

#[cold]
fn partly_defined(
    program: &Program,
    registers: &Registers,
    inst: &Inst,
    m: u32,
    defined: u32,
) -> Outcome<u32> {
    let start = inst.flow.start as usize;
    let reads = &program.flow[start..start + usize::from(inst.flow.reads)];
    if inst.flow.strict {
        let culprit = reads
            .iter()
            .find(|&&id| m & !registers.defined(id) != 0)
            .copied()
            .unwrap_or_default();
        return Err(undefined_register(
            program,
            culprit,
            m & !registers.defined(culprit),
        ));
    }
    // Of a selection only what is selected counts.
    let (Op::Selp32 { a, b, p, .. } | Op::Selp64 { a, b, p, .. }) = inst.op else {
        return Ok(defined);
    };
    let bank = if matches!(inst.op, Op::Selp64 { .. }) {
        1
    } else {
        0
    };
    let taken = registers.pred(p);
    let known = |slot: Slot| registers.defined(register_id(bank, slot));
    let decided = registers.defined(register_id(crate::registers::BANK_PRED, p.slot));
    Ok(m & decided & (known(a) & taken | known(b) & !taken))
}

#[inline(always)]
fn set_defined(program: &Program, registers: &mut Registers, inst: &Inst, m: u32, defined: u32) {
    let start = inst.flow.start as usize + usize::from(inst.flow.reads);
    for &id in &program.flow[start..start + usize::from(inst.flow.writes)] {
        registers.set_defined(id, m, defined);
    }
}

pub(crate) fn space_of(address: u64) -> Space {
    match address {
        SHARED_WINDOW.. if address - SHARED_WINDOW < WINDOW_BYTES => Space::Shared,
        LOCAL_WINDOW.. if address - LOCAL_WINDOW < WINDOW_BYTES => Space::Local,
        PARAM_WINDOW.. if address - PARAM_WINDOW < WINDOW_BYTES => Space::Param,
        _ => Space::Global,
    }
}

/// Global, constant and parameter addresses are the same in both spaces.
fn cvta(registers: &mut Registers, m: u32, to: bool, space: Space, d: Slot, a: Slot) {
    let window = match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        _ => 0,
    };
    let row = registers.row64(a).map(|address| {
        if to {
            address.wrapping_sub(window)
        } else {
            address.wrapping_add(window)
        }
    });
    write(registers, m, d, &row);
}
