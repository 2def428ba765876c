//! Arithmetic and bit operations, and the list of everything that works on registers alone.

use super::modifiers::Modifiers;
use super::{DecodeError, Decoded, Decoder, exactly, malformed};
use crate::program::{
    BoolOp, Float1, Float2, FloatMode, FloatTy, Int1, Int2, Int3, IntTy, Op, Rounding, TestClass,
};
use crate::syntax::{Operand, Ty};

fn int_ty(ty: Ty) -> Option<IntTy> {
    Some(match ty {
        Ty::B16 | Ty::U16 => IntTy::U16,
        Ty::S16 => IntTy::S16,
        Ty::B32 | Ty::U32 => IntTy::U32,
        Ty::S32 => IntTy::S32,
        Ty::B64 | Ty::U64 => IntTy::U64,
        Ty::S64 => IntTy::S64,
        _ => return None,
    })
}

pub(super) fn float_ty(ty: Ty) -> Option<FloatTy> {
    Some(match ty {
        Ty::F16 => FloatTy::F16,
        Ty::Bf16 => FloatTy::Bf16,
        Ty::F16x2 => FloatTy::F16x2,
        Ty::Bf16x2 => FloatTy::Bf16x2,
        Ty::F32 => FloatTy::F32,
        Ty::F64 => FloatTy::F64,
        _ => return None,
    })
}

pub(super) fn require_int(ty: Ty, modifiers: &Modifiers) -> Decoded<IntTy> {
    int_ty(ty).ok_or_else(|| modifiers.unknown())
}

impl<'a> Decoder<'_, 'a> {
    pub(super) fn decode_arithmetic(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        let op = match mnemonic {
            "mov" => self.mov(modifiers, operands)?,
            "add" => self.add_or_sub(modifiers, operands, false)?,
            "sub" => self.add_or_sub(modifiers, operands, true)?,
            "addc" | "subc" => {
                let set = modifiers.take("cc");
                self.carry(modifiers, operands, mnemonic == "subc", true, set)?
            }
            "mul" | "mul24" => self.mul(mnemonic, modifiers, operands)?,
            "mad" => self.mad(modifiers, operands)?,
            "fma" => self.fma(modifiers, operands)?,
            "div" => self.div(modifiers, operands)?,
            "rem" => self.int2(Int2::Rem, modifiers, operands)?,
            "min" => self.min_max(modifiers, operands, true)?,
            "max" => self.min_max(modifiers, operands, false)?,
            "and" => self.logic(Int2::And, BoolOp::And, modifiers, operands)?,
            "or" => self.logic(Int2::Or, BoolOp::Or, modifiers, operands)?,
            "xor" => self.logic(Int2::Xor, BoolOp::Xor, modifiers, operands)?,
            "not" => self.not(modifiers, operands)?,
            "cnot" => self.int1(Int1::Cnot, modifiers, operands)?,
            "neg" => self.neg_abs(Int1::Neg, Float1::Neg, modifiers, operands)?,
            "abs" => self.neg_abs(Int1::Abs, Float1::Abs, modifiers, operands)?,
            "shl" => self.int2(Int2::Shl, modifiers, operands)?,
            "shr" => self.int2(Int2::Shr, modifiers, operands)?,
            "popc" => self.int1(Int1::Popc, modifiers, operands)?,
            "clz" => self.int1(Int1::Clz, modifiers, operands)?,
            "brev" => self.int1(Int1::Brev, modifiers, operands)?,
            "bfind" => {
                let shift = modifiers.take("shiftamt");
                self.int1(
                    if shift { Int1::BfindShift } else { Int1::Bfind },
                    modifiers,
                    operands,
                )?
            }
            "bfe" => self.bfe(modifiers, operands)?,
            "bfi" => self.bfi(modifiers, operands)?,
            "sad" => self.int3(Int3::Sad, modifiers, operands)?,
            "lop3" => self.lop3(modifiers, operands)?,
            "prmt" => self.prmt(modifiers, operands)?,
            "shf" => self.shf(modifiers, operands)?,
            "dp4a" => self.dp4a(modifiers, operands)?,
            "sqrt" => self.float1(Float1::Sqrt, modifiers, operands)?,
            "rcp" => self.float1(Float1::Rcp, modifiers, operands)?,
            "rsqrt" => self.float1(Float1::Rsqrt, modifiers, operands)?,
            "ex2" => self.float1(Float1::Ex2, modifiers, operands)?,
            "lg2" => self.float1(Float1::Lg2, modifiers, operands)?,
            "sin" => self.float1(Float1::Sin, modifiers, operands)?,
            "cos" => self.float1(Float1::Cos, modifiers, operands)?,
            "tanh" => self.float1(Float1::Tanh, modifiers, operands)?,
            "copysign" => self.copysign(modifiers, operands)?,
            "testp" => self.testp(modifiers, operands)?,
            "setp" => self.setp(modifiers, operands)?,
            "set" => return self.set(modifiers, operands).map(|()| true),
            "selp" => self.selp(modifiers, operands)?,
            "slct" => self.slct(modifiers, operands)?,
            "cvt" => self.cvt(modifiers, operands)?,
            "cvta" => self.cvta(modifiers, operands)?,
            "isspacep" => self.isspacep(modifiers, operands)?,
            "createpolicy" => return self.createpolicy(modifiers, operands).map(|()| true),
            _ => return Ok(false),
        };
        modifiers.finish()?;
        self.emit(op);
        Ok(true)
    }

    fn add_or_sub(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
        sub: bool,
    ) -> Decoded<Op> {
        if modifiers.take("cc") {
            return self.carry(modifiers, operands, sub, false, true);
        }
        let ty = modifiers.ty()?;
        if float_ty(ty).is_some() {
            return self.float2_of(
                ty,
                if sub { Float2::Sub } else { Float2::Add },
                modifiers,
                operands,
            );
        }
        let op = match (sub, modifiers.take("sat")) {
            (false, false) => Int2::Add,
            (false, true) => Int2::AddSat,
            (true, false) => Int2::Sub,
            (true, true) => Int2::SubSat,
        };
        self.int2_of(ty, op, modifiers, operands)
    }

    fn carry(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
        sub: bool,
        read: bool,
        set: bool,
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a, b] = exactly(operands)?;
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        Ok(Op::Carry {
            sub,
            ty: int,
            read,
            set,
            a,
            b,
            d: self.write(d, ty)?,
        })
    }

    fn int1(
        &mut self,
        op: Int1,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a] = exactly(operands)?;
        let a = self.read(a, ty)?;
        // Counts and positions are 32 bits wide whatever was counted.
        let counts = matches!(op, Int1::Popc | Int1::Clz | Int1::Bfind | Int1::BfindShift);
        Ok(Op::Int1 {
            op,
            ty: int,
            a,
            d: self.write(d, if counts { Ty::U32 } else { ty })?,
        })
    }

    fn int2(
        &mut self,
        op: Int2,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        self.int2_of(ty, op, modifiers, operands)
    }

    fn int2_of(
        &mut self,
        ty: Ty,
        op: Int2,
        modifiers: &Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let int = require_int(ty, modifiers)?;
        let [d, a, b] = exactly(operands)?;
        let shift = matches!(op, Int2::Shl | Int2::Shr);
        let (a, b) = (
            self.read(a, ty)?,
            self.read(b, if shift { Ty::U32 } else { ty })?,
        );
        Ok(Op::Int2 {
            op,
            ty: int,
            a,
            b,
            d: self.write(d, ty)?,
        })
    }

    fn int3(
        &mut self,
        op: Int3,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (self.read(a, ty)?, self.read(b, ty)?, self.read(c, ty)?);
        Ok(Op::Int3 {
            op,
            ty: int,
            a,
            b,
            c,
            d: self.write(d, ty)?,
        })
    }

    fn mul(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        if float_ty(ty).is_some() {
            return self.float2_of(ty, Float2::Mul, modifiers, operands);
        }
        if mnemonic == "mul24" {
            return Err(modifiers.unknown());
        }
        if modifiers.take("wide") {
            let (int, wide) = (require_int(ty, modifiers)?, widened(ty, modifiers)?);
            let [d, a, b] = exactly(operands)?;
            let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
            return Ok(Op::MulWide {
                ty: int,
                a,
                b,
                d: self.write(d, wide)?,
            });
        }
        let op = modifiers
            .one_of(&[("lo", Int2::MulLo), ("hi", Int2::MulHi)])
            .ok_or_else(|| modifiers.unknown())?;
        self.int2_of(ty, op, modifiers, operands)
    }

    fn mad(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        if float_ty(ty).is_some() {
            return self.fma_of(ty, modifiers, operands);
        }
        let int = require_int(ty, modifiers)?;
        let [d, a, b, c] = exactly(operands)?;
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        if modifiers.take("wide") {
            let wide = widened(ty, modifiers)?;
            return Ok(Op::MadWide {
                ty: int,
                a,
                b,
                c: self.read(c, wide)?,
                d: self.write(d, wide)?,
            });
        }
        let op = modifiers
            .one_of(&[("lo", Int3::MadLo), ("hi", Int3::MadHi)])
            .ok_or_else(|| modifiers.unknown())?;
        Ok(Op::Int3 {
            op,
            ty: int,
            a,
            b,
            c: self.read(c, ty)?,
            d: self.write(d, ty)?,
        })
    }

    fn fma(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        self.fma_of(ty, modifiers, operands)
    }

    fn fma_of(
        &mut self,
        ty: Ty,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let float = float_ty(ty).ok_or_else(|| modifiers.unknown())?;
        let mode = self.float_mode(float, modifiers)?;
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (self.read(a, ty)?, self.read(b, ty)?, self.read(c, ty)?);
        Ok(Op::Fma {
            ty: float,
            mode,
            a,
            b,
            c,
            d: self.write(d, ty)?,
        })
    }

    /// f64 and the narrow formats round to nearest only.
    fn float_mode(&mut self, ty: FloatTy, modifiers: &mut Modifiers<'a>) -> Decoded<FloatMode> {
        let mode = modifiers.float_mode();
        if ty != FloatTy::F32 && mode.rounding != Rounding::Nearest {
            return Err(DecodeError::Unknown(
                "only f32 arithmetic has directed rounding here".into(),
            ));
        }
        Ok(mode)
    }

    fn float1(
        &mut self,
        op: Float1,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let float = float_ty(ty).ok_or_else(|| modifiers.unknown())?;
        modifiers.take("approx");
        let mode = self.float_mode(float, modifiers)?;
        let [d, a] = exactly(operands)?;
        let a = self.read(a, ty)?;
        Ok(Op::Float1 {
            op,
            ty: float,
            mode,
            a,
            d: self.write(d, ty)?,
        })
    }

    fn float2_of(
        &mut self,
        ty: Ty,
        op: Float2,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let float = float_ty(ty).ok_or_else(|| modifiers.unknown())?;
        let mode = self.float_mode(float, modifiers)?;
        let [d, a, b] = exactly(operands)?;
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        Ok(Op::Float2 {
            op,
            ty: float,
            mode,
            a,
            b,
            d: self.write(d, ty)?,
        })
    }

    fn div(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        if float_ty(ty).is_none() {
            return self.int2_of(ty, Int2::Div, modifiers, operands);
        }
        let approx = modifiers.take("approx");
        modifiers.take("full");
        self.float2_of(
            ty,
            if approx {
                Float2::DivApprox
            } else {
                Float2::Div
            },
            modifiers,
            operands,
        )
    }

    fn min_max(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
        min: bool,
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        if float_ty(ty).is_none() {
            return self.int2_of(
                ty,
                if min { Int2::Min } else { Int2::Max },
                modifiers,
                operands,
            );
        }
        let op = match (min, modifiers.take("NaN")) {
            (true, false) => Float2::Min,
            (true, true) => Float2::MinNan,
            (false, false) => Float2::Max,
            (false, true) => Float2::MaxNan,
        };
        self.float2_of(ty, op, modifiers, operands)
    }

    fn logic(
        &mut self,
        op: Int2,
        pred: BoolOp,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        if ty != Ty::Pred {
            return self.int2_of(ty, op, modifiers, operands);
        }
        let [d, a, b] = exactly(operands)?;
        let (a, b) = (self.read_pred(a)?, self.read_pred(b)?);
        Ok(Op::PredLogic {
            op: pred,
            a,
            b,
            d: self.write(d, ty)?,
        })
    }

    fn not(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        if modifiers.take("pred") {
            let [d, a] = exactly(operands)?;
            let a = self.read_pred(a)?;
            return Ok(Op::MovPred {
                a: crate::program::Pred {
                    negated: !a.negated,
                    ..a
                },
                d: self.write(d, Ty::Pred)?,
            });
        }
        self.int1(Int1::Not, modifiers, operands)
    }

    fn neg_abs(
        &mut self,
        int: Int1,
        float: Float1,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let ftz = modifiers.take("ftz");
        let ty = modifiers.ty()?;
        let [d, a] = exactly(operands)?;
        let a = self.read(a, ty)?;
        let d = self.write(d, ty)?;
        Ok(match float_ty(ty) {
            Some(ty) => {
                let mode = FloatMode {
                    rounding: Rounding::Nearest,
                    ftz,
                    sat: false,
                    relu: false,
                };
                Op::Float1 {
                    op: float,
                    ty,
                    mode,
                    d,
                    a,
                }
            }
            None => Op::Int1 {
                op: int,
                ty: require_int(ty, modifiers)?,
                d,
                a,
            },
        })
    }

    fn bfe(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (
            self.read(a, ty)?,
            self.read(b, Ty::U32)?,
            self.read(c, Ty::U32)?,
        );
        Ok(Op::Int3 {
            op: Int3::Bfe,
            ty: int,
            a,
            b,
            c,
            d: self.write(d, ty)?,
        })
    }

    fn bfi(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        let int = require_int(ty, modifiers)?;
        let [d, a, b, c, len] = exactly(operands)?;
        let (a, b) = (self.read(a, ty)?, self.read(b, ty)?);
        let (c, len) = (self.read(c, Ty::U32)?, self.read(len, Ty::U32)?);
        Ok(Op::Bfi {
            ty: int,
            a,
            b,
            c,
            len,
            d: self.write(d, ty)?,
        })
    }

    fn lop3(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        modifiers.ty()?;
        let [d, a, b, c, Operand::Int(table)] = exactly(operands)? else {
            return malformed("the table is a number");
        };
        let (a, b, c) = (
            self.read(a, Ty::B32)?,
            self.read(b, Ty::B32)?,
            self.read(c, Ty::B32)?,
        );
        Ok(Op::Lop3 {
            table: *table as u8,
            a,
            b,
            c,
            d: self.write(d, Ty::B32)?,
        })
    }

    fn prmt(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        modifiers.ty()?;
        let modes = [
            ("f4e", 1),
            ("b4e", 2),
            ("rc8", 3),
            ("ecl", 4),
            ("ecr", 5),
            ("rc16", 6),
        ];
        let mode = modifiers.one_of(&modes).unwrap_or(0);
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (
            self.read(a, Ty::B32)?,
            self.read(b, Ty::B32)?,
            self.read(c, Ty::B32)?,
        );
        Ok(Op::Prmt {
            mode,
            a,
            b,
            c,
            d: self.write(d, Ty::B32)?,
        })
    }

    fn shf(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let left = modifiers
            .one_of(&[("l", true), ("r", false)])
            .ok_or_else(|| modifiers.unknown())?;
        let wrap = modifiers
            .one_of(&[("wrap", true), ("clamp", false)])
            .ok_or_else(|| modifiers.unknown())?;
        modifiers.ty()?;
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (
            self.read(a, Ty::B32)?,
            self.read(b, Ty::B32)?,
            self.read(c, Ty::U32)?,
        );
        Ok(Op::Shf {
            left,
            wrap,
            a,
            b,
            c,
            d: self.write(d, Ty::B32)?,
        })
    }

    fn dp4a(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let (ty_a, ty_b) = (modifiers.ty()?, modifiers.ty()?);
        let [d, a, b, c] = exactly(operands)?;
        let (a, b, c) = (
            self.read(a, Ty::B32)?,
            self.read(b, Ty::B32)?,
            self.read(c, Ty::B32)?,
        );
        let (signed_a, signed_b) = (ty_a.is_signed(), ty_b.is_signed());
        Ok(Op::Dp4a {
            signed_a,
            signed_b,
            a,
            b,
            c,
            d: self.write(d, Ty::B32)?,
        })
    }

    fn copysign(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ty = modifiers.ty()?;
        self.float2_of(ty, Float2::Copysign, modifiers, operands)
    }

    fn testp(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let classes = [
            ("finite", TestClass::Finite),
            ("infinite", TestClass::Infinite),
            ("number", TestClass::Number),
            ("notanumber", TestClass::NotANumber),
            ("normal", TestClass::Normal),
            ("subnormal", TestClass::Subnormal),
        ];
        let class = modifiers
            .one_of(&classes)
            .ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let float = float_ty(ty).filter(|ty| matches!(ty, FloatTy::F32 | FloatTy::F64));
        let [d, a] = exactly(operands)?;
        let a = self.read(a, ty)?;
        Ok(Op::Testp {
            class,
            ty: float.ok_or_else(|| modifiers.unknown())?,
            a,
            d: self.write(d, Ty::Pred)?,
        })
    }
}

/// The type of twice the width.
fn widened(ty: Ty, modifiers: &Modifiers) -> Decoded<Ty> {
    match ty {
        Ty::U16 => Ok(Ty::U32),
        Ty::S16 => Ok(Ty::S32),
        Ty::U32 => Ok(Ty::U64),
        Ty::S32 => Ok(Ty::S64),
        _ => Err(modifiers.unknown()),
    }
}
