//! Operations of a whole warp or block: barriers, shuffles, votes, matrices.

use super::arithmetic::require_int;
use super::modifiers::Modifiers;
use super::{Decoded, Decoder, exactly, malformed};
use crate::program::{
    Barrier, BarrierKind, Collective, Int2, MatrixAccess, Mma, MmaTy, Op, ShflMode, Slot, Space,
    VoteMode,
};
use crate::syntax::{Operand, Ty};

impl<'a> Decoder<'_, 'a> {
    pub(super) fn decode_warp(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        let op = match mnemonic {
            "bar" | "barrier" => self.barrier(mnemonic, modifiers, operands)?,
            "shfl" => self.shfl(modifiers, operands)?,
            "vote" => self.vote(modifiers, operands)?,
            "match" => self.matching(modifiers, operands)?,
            "redux" => self.redux(modifiers, operands)?,
            "activemask" => {
                modifiers.ty()?;
                let [d] = exactly(operands)?;
                Op::ActiveMask {
                    d: self.write(d, Ty::B32)?,
                }
            }
            "ldmatrix" => self.matrix_access(modifiers, operands, true)?,
            "stmatrix" => self.matrix_access(modifiers, operands, false)?,
            "movmatrix" => self.movmatrix(modifiers, operands)?,
            "mma" => self.mma(modifiers, operands)?,
            _ => return Ok(false),
        };
        modifiers.finish()?;
        self.emit(op);
        Ok(true)
    }

    fn sync(&mut self, modifiers: &mut Modifiers<'a>) -> Decoded<()> {
        if modifiers.take("sync") {
            Ok(())
        } else {
            Err(modifiers.unknown())
        }
    }

    fn collective(&mut self, what: Collective, mask: &Operand<'a>) -> Decoded<Op> {
        self.strict = true;
        let mask = self.read(mask, Ty::B32)?;
        Ok(Op::Collective {
            what: Box::new(what),
            mask,
        })
    }

    fn barrier(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        modifiers.take("cta");
        if modifiers.take("warp") {
            self.sync(modifiers)?;
            let [mask] = exactly(operands)?;
            return self.collective(Collective::Barrier, mask);
        }
        let aligned = mnemonic == "bar" || modifiers.take("aligned");
        if modifiers.take("red") {
            return self.barrier_reduction(aligned, modifiers, operands);
        }
        let kind = modifiers
            .one_of(&[("sync", BarrierKind::Sync), ("arrive", BarrierKind::Arrive)])
            .ok_or_else(|| modifiers.unknown())?;
        let (id, count) = match operands {
            [id] if kind == BarrierKind::Sync => (id, None),
            [id, count] => (id, Some(count)),
            _ => return malformed("a barrier and a number of threads expected"),
        };
        let id = self.read(id, Ty::U32)?;
        let count = count.map(|count| self.read(count, Ty::U32)).transpose()?;
        self.strict = true;
        Ok(Op::Barrier(Box::new(Barrier {
            kind,
            aligned,
            id,
            count,
        })))
    }

    fn barrier_reduction(
        &mut self,
        aligned: bool,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let which = modifiers
            .one_of(&[("popc", 0), ("and", 1), ("or", 2)])
            .ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let (d, id, count, a) = match operands {
            [d, id, a] => (d, id, None, a),
            [d, id, count, a] => (d, id, Some(count), a),
            _ => return malformed("three or four operands expected"),
        };
        let id = self.read(id, Ty::U32)?;
        let count = count.map(|count| self.read(count, Ty::U32)).transpose()?;
        let a = self.read_pred(a)?;
        self.strict = true;
        let d = self.write(d, ty)?;
        let kind = match (which, ty) {
            (0, Ty::U32) => BarrierKind::Popc { d, a },
            (1, Ty::Pred) => BarrierKind::All { d, a },
            (2, Ty::Pred) => BarrierKind::Any { d, a },
            _ => return Err(modifiers.unknown()),
        };
        Ok(Op::Barrier(Box::new(Barrier {
            kind,
            aligned,
            id,
            count,
        })))
    }

    fn shfl(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        self.sync(modifiers)?;
        let modes = [
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ];
        let mode = modifiers
            .one_of(&modes)
            .ok_or_else(|| modifiers.unknown())?;
        modifiers.ty()?;
        let [d, a, b, c, mask] = exactly(operands)?;
        let (a, b, c) = (
            self.read(a, Ty::B32)?,
            self.read(b, Ty::B32)?,
            self.read(c, Ty::B32)?,
        );
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.write(d, Ty::B32)?, Some(self.write(p, Ty::Pred)?)),
            d => (self.write(d, Ty::B32)?, None),
        };
        self.collective(
            Collective::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
            },
            mask,
        )
    }

    fn vote(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        self.sync(modifiers)?;
        let modes = [
            ("all", VoteMode::All),
            ("any", VoteMode::Any),
            ("uni", VoteMode::Uni),
            ("ballot", VoteMode::Ballot),
        ];
        let mode = modifiers
            .one_of(&modes)
            .ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let [d, a, mask] = exactly(operands)?;
        let a = self.read_pred(a)?;
        if (mode == VoteMode::Ballot) != (ty == Ty::B32) {
            return Err(modifiers.unknown());
        }
        let d = self.write(d, ty)?;
        self.collective(Collective::Vote { mode, d, a }, mask)
    }

    fn matching(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        self.sync(modifiers)?;
        let any = modifiers
            .one_of(&[("any", true), ("all", false)])
            .ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let [d, a, mask] = exactly(operands)?;
        let (a, wide) = (self.read(a, ty)?, ty.bytes() == 8);
        let what = match d {
            Operand::Pair(d, p) if !any => Collective::MatchAll {
                d: self.write(d, Ty::B32)?,
                p: Some(self.write(p, Ty::Pred)?),
                a,
                wide,
            },
            d if any => Collective::MatchAny {
                d: self.write(d, Ty::B32)?,
                a,
                wide,
            },
            d => Collective::MatchAll {
                d: self.write(d, Ty::B32)?,
                p: None,
                a,
                wide,
            },
        };
        self.collective(what, mask)
    }

    fn redux(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        self.sync(modifiers)?;
        let ops = [
            ("add", Int2::Add),
            ("min", Int2::Min),
            ("max", Int2::Max),
            ("and", Int2::And),
            ("or", Int2::Or),
            ("xor", Int2::Xor),
        ];
        let op = modifiers.one_of(&ops).ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a, mask] = exactly(operands)?;
        let a = self.read(a, ty)?;
        let d = self.write(d, ty)?;
        self.collective(Collective::Redux { op, ty: int, d, a }, mask)
    }

    fn matrix_access(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
        load: bool,
    ) -> Decoded<Op> {
        self.sync(modifiers)?;
        if !modifiers.take("aligned") || !modifiers.take("m8n8") {
            return Err(modifiers.unknown());
        }
        let count = modifiers
            .one_of(&[("x1", 1u8), ("x2", 2), ("x4", 4)])
            .ok_or_else(|| modifiers.unknown())?;
        let trans = modifiers.take("trans");
        let shared = modifiers.take("shared") || modifiers.take("shared::cta");
        if modifiers.ty()? != Ty::B16 {
            return Err(modifiers.unknown());
        }
        let [first, second] = exactly(operands)?;
        let (registers, address) = if load {
            (first, second)
        } else {
            (second, first)
        };
        let address = self.address(address)?;
        let parts = match registers {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        if parts.len() != usize::from(count) {
            return malformed(format!("{count} registers expected"));
        }
        self.strict = true;
        let mut regs: [Slot; 4] = [0; 4];
        for (slot, part) in regs.iter_mut().zip(parts) {
            *slot = if load {
                self.write(part, Ty::B32)?
            } else {
                self.read(part, Ty::B32)?
            };
        }
        let space = if shared {
            Space::Shared
        } else {
            Space::Generic
        };
        let access = Box::new(MatrixAccess {
            count,
            trans,
            space,
            address,
            regs,
        });
        Ok(if load {
            Op::Ldmatrix(access)
        } else {
            Op::Stmatrix(access)
        })
    }

    fn movmatrix(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        self.sync(modifiers)?;
        let known = modifiers.take("aligned") && modifiers.take("m8n8") && modifiers.take("trans");
        if !known || modifiers.ty()? != Ty::B16 {
            return Err(modifiers.unknown());
        }
        let [d, a] = exactly(operands)?;
        let a = self.read(a, Ty::B32)?;
        Ok(Op::Movmatrix {
            a,
            d: self.write(d, Ty::B32)?,
        })
    }

    fn mma(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        self.sync(modifiers)?;
        let shapes = [("m16n8k16", 16u8), ("m16n8k8", 8), ("m16n8k4", 4)];
        let aligned = modifiers.take("aligned");
        let k = modifiers
            .one_of(&shapes)
            .ok_or_else(|| modifiers.unknown())?;
        if !aligned || !modifiers.take("row") || !modifiers.take("col") {
            return Err(modifiers.unknown());
        }
        let types = (
            modifiers.ty()?,
            modifiers.ty()?,
            modifiers.ty()?,
            modifiers.ty()?,
        );
        let (half, ty) = match (types, k) {
            ((Ty::F32, Ty::Bf16, Ty::Bf16, Ty::F32), 8 | 16) => (false, MmaTy::Bf16),
            ((Ty::F32, Ty::F16, Ty::F16, Ty::F32), 8 | 16) => (false, MmaTy::F16),
            ((Ty::F16, Ty::F16, Ty::F16, Ty::F16), 8 | 16) => (true, MmaTy::F16),
            ((Ty::F32, Ty::Tf32, Ty::Tf32, Ty::F32), 4 | 8) => (false, MmaTy::Tf32),
            _ => return Err(modifiers.unknown()),
        };
        let [
            Operand::Vector(d),
            Operand::Vector(a),
            Operand::Vector(b),
            Operand::Vector(c),
        ] = exactly(operands)?
        else {
            return malformed("four lists of registers expected");
        };
        let elements = if ty == MmaTy::Tf32 { 1 } else { 2 };
        let (count_a, count_b) = (
            usize::from(k) * 16 / 32 / elements,
            usize::from(k) * 8 / 32 / elements,
        );
        let count_c = if half { 2 } else { 4 };
        if (a.len(), b.len(), c.len(), d.len()) != (count_a, count_b, count_c, count_c) {
            return malformed(format!(
                "{count_a}, {count_b} and {count_c} registers expected"
            ));
        }
        self.strict = true;
        let accumulator = if half { Ty::B32 } else { Ty::F32 };
        let mut mma = Mma {
            k,
            ty,
            half,
            d: [0; 4],
            a: [0; 4],
            b: [0; 2],
            c: [0; 4],
        };
        self.read_list(a, Ty::B32, &mut mma.a)?;
        self.read_list(b, Ty::B32, &mut mma.b)?;
        self.read_list(c, accumulator, &mut mma.c)?;
        for (slot, operand) in mma.d.iter_mut().zip(d) {
            *slot = self.write(operand, accumulator)?;
        }
        Ok(Op::Mma(Box::new(mma)))
    }

    fn read_list(&mut self, operands: &[Operand<'a>], ty: Ty, slots: &mut [Slot]) -> Decoded<()> {
        for (slot, operand) in slots.iter_mut().zip(operands) {
            *slot = self.read(operand, ty)?;
        }
        Ok(())
    }
}
