//! `wgmma.mma_async`: products of a warpgroup out of shared memory, under way until `wgmma.wait_group` says otherwise.
//!
//! Each warp of the group computes its own 16 rows when it executes the instruction. Until its wait the sums must not be touched by any
//! other instruction, nor what was read be written; the reads count as made at the wait, since that is what frees a stage.
//! Sums are rounded as in `mma.sync`: the exact products in f64 in ascending k, the accumulator last, one rounding.

use std::collections::VecDeque;

use crate::access::{Failure, parts};
use crate::finding::{Fault, FindingKind, Outcome, fault};
use crate::machine::Machine;
use crate::matrix::element;
use crate::memory::SHARED_START;
use crate::program::{Inst, MmaTy, Op, Pred, Slot};
use crate::race::{Actor, MANY_LANES};
use crate::registers::{BANK32, LANES, Registers, register_id};
use crate::round::canonical;
use crate::shadow::CHUNK;
use crate::tensor_map::Swizzle;
use crate::warp::Next;

/// Columns of A and of B that one instruction multiplies.
const K: usize = 16;
/// Rows of A that are a warp's.
const WARP_ROWS: usize = 16;
const MOST_COLUMNS: usize = 256;

/// D (64 × n) = A (64 × 16) · Bᵀ (n × 16) + D, both out of shared memory, with K along their rows.
#[derive(Clone, Debug)]
pub(crate) struct Wgmma {
    pub n: usize,
    pub ty: MmaTy,
    /// n / 2 registers of sums.
    pub d: Vec<Slot>,
    pub a: Slot,
    pub b: Slot,
    /// Whether D is added.
    pub add: Pred,
}

/// A warp's products under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Products {
    /// Whether wgmma.fence was executed since the sums were last free to be touched.
    fenced: bool,
    /// Products executed, which the warps of a group must agree about.
    pub executed: u64,
    /// Groups not yet waited for, oldest first; the last is still open.
    groups: VecDeque<Group>,
    /// Whether the last group has been left open.
    open: bool,
}

#[derive(Clone, Debug, Default)]
struct Group {
    /// Registers that hold its sums.
    sums: Vec<Slot>,
    /// Chunks of shared memory that it reads.
    chunks: Vec<u32>,
}

impl Products {
    pub fn clear(&mut self) {
        *self = Products::default();
    }

    #[inline(always)]
    pub fn under_way(&self) -> bool {
        !self.groups.is_empty()
    }

    fn group(&mut self) -> &mut Group {
        if !self.open {
            self.groups.push_back(Group::default());
            self.open = true;
        }
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    fn holds(&self, slot: Slot) -> bool {
        self.groups.iter().any(|group| group.sums.contains(&slot))
    }
}

/// A matrix in shared memory, as its descriptor says.
#[derive(Clone, Copy)]
struct Operand {
    start: u64,
    /// From 8 rows to the next 8, and (without a swizzle) from 8 columns to the next.
    rows_apart: u64,
    columns_apart: u64,
    swizzle: Swizzle,
}

impl Operand {
    /// PTX ISA, "Matrix descriptor format".
    fn of(descriptor: u64) -> Outcome<Operand> {
        let field = |at: u32| (descriptor >> at & 0x3fff) << 4;
        let swizzle = match descriptor >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let operand = Operand {
            start: field(0),
            rows_apart: field(32),
            columns_apart: field(16),
            swizzle,
        };
        let bad = |what: &str| {
            let what = format!("the matrix descriptor 0x{descriptor:016x} {what}");
            Err(fault(FindingKind::Misaligned, what))
        };
        if descriptor >> 49 & 7 != 0 {
            return bad("has a base offset, which is not supported");
        }
        // Eight rows of the swizzle's width make its pattern.
        let pattern = u64::from(swizzle.span().unwrap_or(16)) * 8;
        if swizzle != Swizzle::None && operand.start % pattern >= pattern / 8 {
            return bad(&format!(
                "starts at 0x{:x}, outside the first row of a pattern of {pattern} bytes",
                operand.start
            ));
        }
        if swizzle != Swizzle::None && !operand.rows_apart.is_multiple_of(pattern) {
            return bad("has groups of rows that are not whole patterns apart");
        }
        Ok(operand)
    }

    /// The address of a row's 16 bytes, its columns 0 to 7 or 8 to 15.
    fn chunk(&self, row: usize, half: usize) -> u64 {
        let (group, row, half) = (row as u64 / 8, row as u64 % 8, half as u64);
        let address = self.start + group * self.rows_apart;
        match self.swizzle.span() {
            None => address + half * self.columns_apart + row * CHUNK as u64,
            Some(span) => {
                let address = address + row * u64::from(span) + half * CHUNK as u64;
                self.swizzle.apply(address)
            }
        }
    }
}

impl Machine<'_> {
    pub fn wgmma_fence(&mut self, w: usize, m: u32) -> Outcome<Next> {
        if let Some(stay) = self.whole_warp(w, m)? {
            return Ok(stay);
        }
        self.warps[w].products.fenced = true;
        Ok(Next::Advance)
    }

    pub fn wgmma_commit(&mut self, w: usize, m: u32) -> Outcome<Next> {
        if let Some(stay) = self.whole_warp(w, m)? {
            return Ok(stay);
        }
        let products = &mut self.warps[w].products;
        products.group();
        products.open = false;
        Ok(Next::Advance)
    }

    /// Waits until at most `allowed` of the committed groups are left.
    pub fn wgmma_wait(&mut self, w: usize, pc: u32, m: u32, allowed: u32) -> Outcome<Next> {
        if let Some(stay) = self.whole_warp(w, m)? {
            return Ok(stay);
        }
        let products = &self.warps[w].products;
        let committed = products.groups.len() - usize::from(products.open);
        for _ in allowed as usize..committed {
            self.end_group(w, pc)?;
        }
        let products = &mut self.warps[w].products;
        if products.groups.is_empty() {
            products.fenced = false;
        }
        Ok(Next::Advance)
    }

    /// What the oldest group read counts as read now, and its sums are free.
    fn end_group(&mut self, w: usize, pc: u32) -> Outcome<()> {
        let Some(group) = self.warps[w].products.groups.pop_front() else {
            return Ok(());
        };
        self.shared.shadow.set_reading(&group.chunks, false);
        for &chunk in &group.chunks {
            let read = {
                parts!(self, w, pc, false => _warp, view, actor);
                let actor = Actor {
                    lane: MANY_LANES,
                    ..actor
                };
                view.load_at(chunk as usize * CHUNK, CHUNK, &actor)
            };
            read.map_err(|failure| self.explain(failure, 0, CHUNK, false))?;
        }
        Ok(())
    }

    pub fn wgmma(&mut self, w: usize, pc: u32, m: u32, wgmma: &Wgmma) -> Outcome<Next> {
        if let Some(stay) = self.whole_warp(w, m)? {
            return Ok(stay);
        }
        let first = w / 4 * 4;
        if self
            .warps
            .get(first + 3)
            .is_none_or(|last| last.all != u32::MAX)
        {
            let what = "needs a warpgroup of four whole warps";
            return Err(fault(FindingKind::InactiveLane, what));
        }
        if !self.warps[w].products.fenced {
            let what = "multiplies where no wgmma.fence has followed the last use of its registers";
            return Err(fault(FindingKind::MissingFence, what));
        }
        let (a, b, add) = self.wgmma_operands(w, wgmma)?;
        let mut chunks = Vec::with_capacity(2 * (WARP_ROWS + wgmma.n));
        let rows = w % 4 * WARP_ROWS..(w % 4 + 1) * WARP_ROWS;
        let a = self.operand_rows(w, pc, &a, rows, &mut chunks)?;
        let b = self.operand_rows(w, pc, &b, 0..wgmma.n, &mut chunks)?;
        self.shared.shadow.set_reading(&chunks, true);
        let warp = &mut self.warps[w];
        let product = Product {
            registers: &mut warp.registers,
            wgmma,
            a: &a,
            b: &b,
            add,
        };
        self.arch.dispatch(product);
        for &slot in &wgmma.d {
            let id = register_id(BANK32, slot);
            warp.registers.set_defined(id, u32::MAX, u32::MAX);
        }
        let group = warp.products.group();
        group.chunks.append(&mut chunks);
        if group.sums.first() != wgmma.d.first() {
            group.sums.extend(&wgmma.d);
        }
        warp.products.executed += 1;
        self.stats.mma += 1;
        Ok(Next::Advance)
    }

    /// Both matrices, and whether D is added, which all lanes must agree about.
    fn wgmma_operands(&self, w: usize, wgmma: &Wgmma) -> Outcome<(Operand, Operand, bool)> {
        let registers = &self.warps[w].registers;
        let uniform = |slot: Slot| {
            let row = registers.row64(slot);
            match row.iter().all(|value| *value == row[0]) {
                true => Operand::of(row[0]),
                false => {
                    let what = "lanes of a warp name different matrices";
                    Err(fault(FindingKind::InactiveLane, what))
                }
            }
        };
        let add = registers.pred(wgmma.add);
        if add != 0 && add != u32::MAX {
            let what = "lanes of a warp differ in whether sums are added to";
            return Err(fault(FindingKind::InactiveLane, what));
        }
        let undefined = |slot: &Slot| registers.defined(register_id(BANK32, *slot)) != u32::MAX;
        if add != 0 && wgmma.d.iter().any(undefined) {
            let what = "adds to sums that hold no defined value";
            return Err(fault(FindingKind::UninitialisedRegister, what));
        }
        Ok((uniform(wgmma.a)?, uniform(wgmma.b)?, add != 0))
    }

    /// Two chunks of each row.
    fn operand_rows(
        &mut self,
        w: usize,
        pc: u32,
        operand: &Operand,
        rows: std::ops::Range<usize>,
        chunks: &mut Vec<u32>,
    ) -> Outcome<Vec<[u128; 2]>> {
        let mut values = Vec::with_capacity(rows.len());
        for row in rows {
            let mut both = [0; 2];
            for (half, value) in both.iter_mut().enumerate() {
                let address = operand.chunk(row, half);
                let peeked = {
                    parts!(self, w, pc, false => _warp, view, actor);
                    view.shared
                        .locate(address, CHUNK as u64)
                        .map_err(Failure::from)
                        .and_then(|offset| view.peek_for_product(offset, &actor))
                };
                *value = peeked.map_err(|failure| self.explain(failure, 0, CHUNK, false))?;
                chunks.push((address - u64::from(SHARED_START)) as u32 / CHUNK as u32);
            }
            values.push(both);
        }
        Ok(values)
    }

    /// Sums under way may be touched by products alone.
    #[cold]
    pub fn check_sums(&self, w: usize, inst: &Inst) -> Outcome<()> {
        if matches!(inst.op, Op::Wgmma(_)) {
            return Ok(());
        }
        let start = inst.flow.start as usize;
        let count = usize::from(inst.flow.reads) + usize::from(inst.flow.writes);
        let products = &self.warps[w].products;
        let touched = self.program.flow[start..start + count].iter();
        let culprit = touched
            .copied()
            .find(|&id| id >> 16 == BANK32 && products.holds(id as Slot));
        match culprit {
            None => Ok(()),
            Some(id) => Err(self.sums_under_way(id)),
        }
    }

    fn sums_under_way(&self, id: u32) -> Box<Fault> {
        let named = self
            .program
            .names
            .iter()
            .find(|(bank, slot, _)| register_id(u32::from(*bank), *slot) == id);
        let name = named.map_or("a register", |(_, _, name)| name);
        let what =
            format!("`{name}` is a sum of a wgmma under way: no wgmma.wait_group has ended it");
        fault(FindingKind::MissingAsyncWait, what)
    }

    /// At a block's end: the four warps of a group have executed the same products.
    pub fn check_warpgroups(&self) -> Result<(), crate::finding::Finding> {
        for (group, warps) in self.warps.chunks(4).enumerate() {
            let executed = warps[0].products.executed;
            let Some(other) = warps.iter().position(|w| w.products.executed != executed) else {
                continue;
            };
            let what = format!(
                "warp {} of a warpgroup executed {} wgmma and warp {} {executed}",
                group * 4 + other,
                warps[other].products.executed,
                group * 4
            );
            let wgmma = self.program.code.iter();
            let pc = wgmma
                .take_while(|inst| !matches!(inst.op, Op::Wgmma(_)))
                .count();
            let fault = fault(FindingKind::InactiveLane, what);
            return Err(self.locate(group * 4 + other, pc as u32, 0, *fault));
        }
        Ok(())
    }
}

/// One warp's part, compiled for the vector instructions that this machine has.
struct Product<'a> {
    registers: &'a mut Registers,
    wgmma: &'a Wgmma,
    a: &'a [[u128; 2]],
    b: &'a [[u128; 2]],
    add: bool,
}

impl pulp::NullaryFnOnce for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.wgmma.ty {
            MmaTy::Bf16 => self.multiply(MmaTy::Bf16),
            _ => self.multiply(MmaTy::F16),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn multiply(self, ty: MmaTy) {
        let value = |row: &[u128; 2], k: usize| {
            let word = (row[k / 8] >> (k % 8 / 2 * 32)) as u32;
            element(ty, word, k % 2)
        };
        let mut b = vec![[0f64; MOST_COLUMNS]; K];
        for (n, row) in self.b.iter().enumerate() {
            for (k, b) in b.iter_mut().enumerate() {
                b[n] = value(row, k);
            }
        }
        let columns = self.wgmma.n;
        for (r, row) in self.a.iter().enumerate() {
            let mut sums = [0f64; MOST_COLUMNS];
            for (k, b) in b.iter().enumerate() {
                let x = value(row, k);
                for (sum, b) in sums[..columns].iter_mut().zip(&b[..columns]) {
                    *sum += x * b;
                }
            }
            // Lane 4·(r mod 8) + t has columns 8·j + 2·t and the next, in registers 4·j + 2·(r / 8) and the next.
            for (n, sum) in sums[..columns].iter().enumerate() {
                let lane = r % 8 * 4 + n % 8 / 2;
                let slot = self.wgmma.d[n / 8 * 4 + r / 8 * 2 + n % 2];
                let d = &mut self.registers.r32[usize::from(slot)][lane];
                let before = if self.add { f32::from_bits(*d) } else { 0.0 };
                *d = canonical((sum + f64::from(before)) as f32).to_bits();
            }
        }
        debug_assert_eq!(self.a.len() * 2, LANES);
    }
}
