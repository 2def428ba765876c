//! Moves, comparisons, selections and conversions.

use super::arithmetic::{float_ty, require_int};
use super::modifiers::Modifiers;
use super::{DecodeError, Decoded, Decoder, bank_of, exactly, malformed};
use crate::program::{BoolOp, Cmp, Cvt, CvtTy, FloatTy, MmaTy, Op, Rounding, Slot, Space};
use crate::registers::{BANK_PRED, BANK64};
use crate::syntax::{Operand, Ty};

fn cvt_ty(ty: Ty) -> Option<CvtTy> {
    Some(match ty {
        Ty::U8 | Ty::B8 => CvtTy::U8,
        Ty::S8 => CvtTy::S8,
        Ty::U16 | Ty::B16 => CvtTy::U16,
        Ty::S16 => CvtTy::S16,
        Ty::U32 | Ty::B32 => CvtTy::U32,
        Ty::S32 => CvtTy::S32,
        Ty::U64 | Ty::B64 => CvtTy::U64,
        Ty::S64 => CvtTy::S64,
        Ty::F16 => CvtTy::F16,
        Ty::Bf16 => CvtTy::Bf16,
        Ty::F32 => CvtTy::F32,
        Ty::Tf32 => CvtTy::Tf32,
        Ty::F64 => CvtTy::F64,
        _ => return None,
    })
}

fn comparison(modifiers: &mut Modifiers) -> Decoded<Cmp> {
    let names = [
        ("eq", Cmp::Eq),
        ("ne", Cmp::Ne),
        ("lt", Cmp::Lt),
        ("le", Cmp::Le),
        ("gt", Cmp::Gt),
        ("ge", Cmp::Ge),
        // The unsigned comparisons' own names.
        ("lo", Cmp::Lt),
        ("ls", Cmp::Le),
        ("hi", Cmp::Gt),
        ("hs", Cmp::Ge),
        ("equ", Cmp::Equ),
        ("neu", Cmp::Neu),
        ("ltu", Cmp::Ltu),
        ("leu", Cmp::Leu),
        ("gtu", Cmp::Gtu),
        ("geu", Cmp::Geu),
        ("num", Cmp::Num),
        ("nan", Cmp::Nan),
    ];
    modifiers.one_of(&names).ok_or_else(|| modifiers.unknown())
}

fn bool_op(modifiers: &mut Modifiers) -> Option<BoolOp> {
    modifiers.one_of(&[
        ("and", BoolOp::And),
        ("or", BoolOp::Or),
        ("xor", BoolOp::Xor),
    ])
}

impl<'a> Decoder<'_, 'a> {
    pub(super) fn mov(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let [d, a] = exactly(operands)?;
        match (d, a) {
            (Operand::Vector(parts), a) => self.unpack(parts, a, ty),
            (d, Operand::Vector(parts)) => self.pack(d, parts, ty),
            _ if ty == Ty::Pred => Ok(Op::MovPred {
                a: self.read_pred(a)?,
                d: self.write(d, ty)?,
            }),
            (
                d,
                Operand::Name(
                    name @ ("%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo"
                    | "%clock_hi"),
                ),
            ) => {
                let wide = ty.bytes() == 8;
                let _ = name;
                Ok(Op::Clock {
                    d: self.write(d, ty)?,
                    wide,
                })
            }
            _ if bank_of(ty) == BANK64 => Ok(Op::Mov64 {
                a: self.read(a, ty)?,
                d: self.write(d, ty)?,
            }),
            _ if ty == Ty::B128 => Err(modifiers.unknown()),
            _ => Ok(Op::Mov32 {
                a: self.read(a, ty)?,
                d: self.write(d, ty)?,
            }),
        }
    }

    fn pack(&mut self, d: &Operand<'a>, parts: &[Operand<'a>], ty: Ty) -> Decoded<Op> {
        match (ty.bytes(), parts) {
            (4, [lo, hi]) => {
                let (lo, hi) = (self.read(lo, Ty::B16)?, self.read(hi, Ty::B16)?);
                Ok(Op::Pack16 {
                    lo,
                    hi,
                    d: self.write(d, ty)?,
                })
            }
            (8, [lo, hi]) => {
                let (lo, hi) = (self.read(lo, Ty::B32)?, self.read(hi, Ty::B32)?);
                Ok(Op::Pack32 {
                    lo,
                    hi,
                    d: self.write(d, ty)?,
                })
            }
            (8, [a, b, c, e]) => {
                let mut slots = [0; 4];
                for (slot, part) in slots.iter_mut().zip([a, b, c, e]) {
                    *slot = self.read(part, Ty::B16)?;
                }
                Ok(Op::Pack64 {
                    parts: slots,
                    d: self.write(d, ty)?,
                })
            }
            _ => Err(DecodeError::Unknown(format!(
                "packing {} values into {} bytes is not supported",
                parts.len(),
                ty.bytes()
            ))),
        }
    }

    fn unpack(&mut self, parts: &[Operand<'a>], a: &Operand<'a>, ty: Ty) -> Decoded<Op> {
        match (ty.bytes(), parts) {
            (4, [lo, hi]) => {
                let a = self.read(a, ty)?;
                Ok(Op::Unpack16 {
                    a,
                    lo: self.write(lo, Ty::B16)?,
                    hi: self.write(hi, Ty::B16)?,
                })
            }
            (8, [lo, hi]) => {
                let a = self.read(a, ty)?;
                Ok(Op::Unpack32 {
                    a,
                    lo: self.write(lo, Ty::B32)?,
                    hi: self.write(hi, Ty::B32)?,
                })
            }
            (8, [b, c, d, e]) => {
                let a = self.read(a, ty)?;
                let mut slots = [0; 4];
                for (slot, part) in slots.iter_mut().zip([b, c, d, e]) {
                    *slot = self.write(part, Ty::B16)?;
                }
                Ok(Op::Unpack64 { a, parts: slots })
            }
            _ => Err(DecodeError::Unknown(format!(
                "unpacking {} bytes to {} values is not supported",
                ty.bytes(),
                parts.len()
            ))),
        }
    }

    pub(super) fn setp(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let cmp = comparison(modifiers)?;
        let combined = bool_op(modifiers);
        let ftz = modifiers.take("ftz");
        let ty = modifiers.ty()?;
        let (d, a, b, c) = match operands {
            [d, a, b] => (d, a, b, None),
            [d, a, b, c] => (d, a, b, Some(c)),
            _ => return malformed("three or four operands expected"),
        };
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        let with = match (combined, c) {
            (Some(op), Some(c)) => Some((op, self.read_pred(c)?)),
            (None, None) => None,
            _ => return malformed("a predicate to combine with goes with .and, .or or .xor"),
        };
        let (p, q) = match d {
            Operand::Pair(p, q) => (self.write(p, Ty::Pred)?, Some(self.write(q, Ty::Pred)?)),
            d => (self.write(d, Ty::Pred)?, None),
        };
        match float_ty(ty) {
            // The packed types set one predicate per half.
            Some(FloatTy::F16x2 | FloatTy::Bf16x2) => Err(modifiers.unknown()),
            Some(ty) => Ok(Op::SetpFloat {
                cmp,
                ty,
                ftz,
                p,
                q,
                a,
                b,
                with,
            }),
            None => Ok(Op::SetpInt {
                cmp,
                ty: require_int(ty, modifiers)?,
                p,
                q,
                a,
                b,
                with,
            }),
        }
    }

    pub(super) fn set(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<()> {
        let cmp = comparison(modifiers)?;
        let ftz = modifiers.take("ftz");
        let (to, ty) = (modifiers.ty()?, modifiers.ty()?);
        modifiers.finish()?;
        let [d, a, b] = exactly(operands)?;
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        let p: Slot = self.new_slot(BANK_PRED)?;
        let id = crate::registers::register_id(BANK_PRED, p);
        self.writes.push(id);
        let (q, with) = (None, None);
        let first = match float_ty(ty) {
            Some(FloatTy::F16x2 | FloatTy::Bf16x2) => return Err(modifiers.unknown()),
            Some(ty) => Op::SetpFloat {
                cmp,
                ty,
                ftz,
                p,
                q,
                a,
                b,
                with,
            },
            None => Op::SetpInt {
                cmp,
                ty: require_int(ty, modifiers)?,
                p,
                q,
                a,
                b,
                with,
            },
        };
        if to.bytes() != 4 && !matches!(to, Ty::F16 | Ty::Bf16) {
            return Err(modifiers.unknown());
        }
        self.emit(first);
        self.reads.push(id);
        let d = self.write(d, to)?;
        self.emit(Op::SetValue {
            float: float_ty(to),
            d,
            p,
        });
        Ok(())
    }

    pub(super) fn selp(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let [d, a, b, p] = exactly(operands)?;
        let (a, b, p) = (self.read(a, ty)?, self.read(b, ty)?, self.read_pred(p)?);
        let d = self.write(d, ty)?;
        Ok(if bank_of(ty) == BANK64 {
            Op::Selp64 { d, a, b, p }
        } else {
            Op::Selp32 { d, a, b, p }
        })
    }

    pub(super) fn slct(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        modifiers.take("ftz");
        let (ty, by) = (modifiers.ty()?, modifiers.ty()?);
        if by.bytes() != 4 || ty.bytes() < 4 {
            return Err(modifiers.unknown());
        }
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (self.read(a, ty)?, self.read(b, ty)?, self.read(c, by)?);
        Ok(Op::Slct {
            wide: ty.bytes() == 8,
            float: by == Ty::F32,
            a,
            b,
            c,
            d: self.write(d, ty)?,
        })
    }

    pub(super) fn cvt(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let whole = modifiers.one_of(&[
            ("rni", Rounding::Nearest),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ]);
        let satfinite = modifiers.take("satfinite");
        let mut mode = modifiers.float_mode();
        mode.rounding = whole.unwrap_or(mode.rounding);
        let (to, from) = (modifiers.ty()?, modifiers.ty()?);
        if let [d, a, b] = operands {
            let to = match to {
                Ty::F16x2 => MmaTy::F16,
                Ty::Bf16x2 => MmaTy::Bf16,
                _ => return Err(modifiers.unknown()),
            };
            let (a, b) = (self.read(a, from)?, self.read(b, from)?);
            return Ok(Op::CvtPack {
                to,
                mode,
                satfinite,
                a,
                b,
                d: self.write(d, Ty::B32)?,
            });
        }
        let [d, a] = exactly(operands)?;
        let (Some(to), Some(from)) = (cvt_ty(to), cvt_ty(from)) else {
            return Err(modifiers.unknown());
        };
        if to == CvtTy::Tf32 && from != CvtTy::F32 {
            return Err(modifiers.unknown());
        }
        // Registers may be wider than what is converted.
        let (a, wide_a) = match self.any_register(a)? {
            Some(register) => (self.read(a, register.ty)?, register.bank == BANK64),
            None => (self.read(a, Ty::B64)?, true),
        };
        let Some(register) = self.any_register(d)? else {
            return malformed("a register is expected as the destination");
        };
        let d = self.write_bank(d, register.bank)?;
        Ok(Op::Cvt(Box::new(Cvt {
            to,
            from,
            mode,
            integral: whole.is_some(),
            satfinite,
            d,
            wide_d: register.bank == BANK64,
            narrow_d: register.ty.bytes() == 2,
            a,
            wide_a,
        })))
    }

    fn space(&mut self, modifiers: &mut Modifiers<'a>) -> Decoded<Space> {
        let spaces = [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("local", Space::Local),
            ("const", Space::Const),
            ("param", Space::Param),
        ];
        modifiers.one_of(&spaces).ok_or_else(|| modifiers.unknown())
    }

    pub(super) fn cvta(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let to = modifiers.take("to");
        let space = self.space(modifiers)?;
        let ty = modifiers.ty()?;
        if ty.bytes() != 8 {
            return Err(modifiers.unknown());
        }
        let [d, a] = exactly(operands)?;
        let a = self.read(a, ty)?;
        Ok(Op::Cvta {
            to,
            space,
            a,
            d: self.write(d, ty)?,
        })
    }

    pub(super) fn isspacep(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let space = self.space(modifiers)?;
        let [d, a] = exactly(operands)?;
        let a = self.read(a, Ty::U64)?;
        Ok(Op::IsSpace {
            space,
            a,
            d: self.write(d, Ty::Pred)?,
        })
    }

    /// A cache policy is an opaque number that changes no result.
    pub(super) fn createpolicy(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<()> {
        if !modifiers.take("fractional") {
            return Err(modifiers.unknown());
        }
        modifiers.skip_hints();
        modifiers.ty()?;
        modifiers.finish()?;
        let Some(d) = operands.first() else {
            return malformed("a destination is expected");
        };
        let a = self.read(&Operand::Int(0), Ty::B64)?;
        let d = self.write(d, Ty::B64)?;
        self.emit(Op::Mov64 { d, a });
        Ok(())
    }
}
