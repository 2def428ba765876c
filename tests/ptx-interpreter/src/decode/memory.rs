//! Loads, stores, atomics, asynchronous copies.

use super::arithmetic::{float_ty, require_int};
use super::modifiers::Modifiers;
use super::{Decoded, Decoder, exactly, malformed};
use crate::program::{Access, AsyncCopy, Atom, AtomOp, AtomTy, Op, Slot, Space};
use crate::registers::{BANK_PRED, BANK32, BANK64};
use crate::syntax::{Operand, Ty};

/// `.volatile`, or a memory order and its scope: whether the access is strong.
fn strength(modifiers: &mut Modifiers) -> bool {
    let strong = [
        "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio",
    ]
    .map(|order| modifiers.take(order));
    modifiers.take("weak");
    for scope in ["cta", "gpu", "sys", "cluster"] {
        modifiers.take(scope);
    }
    strong.contains(&true)
}

pub(super) fn space(modifiers: &mut Modifiers) -> Space {
    let spaces = [
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param", Space::Param),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
    ];
    modifiers.one_of(&spaces).unwrap_or(Space::Generic)
}

impl<'a> Decoder<'_, 'a> {
    pub(super) fn decode_memory(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        let op = match mnemonic {
            "ld" | "ldu" => self.load(modifiers, operands)?,
            "st" => self.store(modifiers, operands)?,
            "prefetch" | "prefetchu" | "applypriority" => {
                space(modifiers);
                modifiers.take("L1");
                modifiers.take("L2");
                modifiers.take("tensormap");
                modifiers.skip_hints();
                Op::Prefetch
            }
            "atom" => self.atom(modifiers, operands, true)?,
            "red" => self.atom(modifiers, operands, false)?,
            "membar" | "fence" => self.fence(modifiers)?,
            "cp" => return self.cp(modifiers, operands),
            _ => return Ok(false),
        };
        modifiers.finish()?;
        self.emit(op);
        Ok(true)
    }

    /// Parameters of a call live in local memory, those of the kernel apart.
    fn settle_space(&mut self, space: Space, operand: &Operand<'a>) -> Space {
        if space == Space::Param
            && let Operand::Address(Some(name), _) = operand
            && matches!(self.symbol(name), Some(super::Symbol::Local(_)))
        {
            return Space::Local;
        }
        space
    }

    pub(super) fn note_granule(&mut self, space: Space, bytes: u8) {
        let bytes = bytes.min(4);
        if matches!(space, Space::Shared | Space::Generic) {
            self.program.shared_granule = self.program.shared_granule.min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic | Space::Const) {
            self.program.global_granule = self.program.global_granule.min(bytes);
        }
    }

    fn load(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let (strong, ss) = (strength(modifiers), space(modifiers));
        modifiers.take("nc");
        modifiers.take("unified");
        modifiers.skip_hints();
        let count = modifiers.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = modifiers.ty()?;
        let (d, address) = match operands {
            [d, address] => (d, address),
            [d, address, policy] => {
                self.read(policy, Ty::B64)?;
                (d, address)
            }
            _ => return malformed("a destination and an address expected"),
        };
        let ss = self.settle_space(ss, address);
        let address = self.address(address)?;
        self.strict = true;
        let parts = match d {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        let (regs, wide) = self.element_registers(parts, count, ty, false)?;
        let width = self.element_bytes(ty, count, modifiers)?;
        self.note_granule(ss, width * count);
        let signed = ty.is_signed();
        Ok(Op::Load(Box::new(Access {
            space: ss,
            address,
            width,
            count,
            signed,
            strong,
            regs,
            wide,
        })))
    }

    fn store(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let (strong, ss) = (strength(modifiers), space(modifiers));
        modifiers.skip_hints();
        let count = modifiers.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = modifiers.ty()?;
        let (address, a) = match operands {
            [address, a] => (address, a),
            [address, a, policy] => {
                self.read(policy, Ty::B64)?;
                (address, a)
            }
            _ => return malformed("an address and a value expected"),
        };
        let ss = self.settle_space(ss, address);
        let address = self.address(address)?;
        self.strict = true;
        let parts = match a {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        let (regs, wide) = self.element_registers(parts, count, ty, true)?;
        let width = self.element_bytes(ty, count, modifiers)?;
        self.note_granule(ss, width * count);
        Ok(Op::Store(Box::new(Access {
            space: ss,
            address,
            width,
            count,
            signed: false,
            strong,
            regs,
            wide,
        })))
    }

    fn element_bytes(&self, ty: Ty, count: u8, modifiers: &Modifiers<'a>) -> Decoded<u8> {
        let width = ty.bytes() as u8;
        if width == 0 || width * count > 16 {
            Err(modifiers.unknown())
        } else {
            Ok(width)
        }
    }

    /// The registers of a vector; they may be wider than the elements, but all of one bank.
    fn element_registers(
        &mut self,
        parts: &[Operand<'a>],
        count: u8,
        ty: Ty,
        read: bool,
    ) -> Decoded<([Slot; 4], bool)> {
        if parts.len() != usize::from(count) {
            return malformed(format!("{count} values expected, {} found", parts.len()));
        }
        let mut bank = if ty.bytes() == 8 { BANK64 } else { BANK32 };
        for part in parts {
            if let Some(register) = self.any_register(part)? {
                bank = register.bank;
            }
        }
        if bank == BANK_PRED {
            return malformed("a predicate cannot be loaded or stored");
        }
        let mut regs = [0; 4];
        for (slot, part) in regs.iter_mut().zip(parts) {
            *slot = match (read, self.any_register(part)?) {
                (true, Some(register)) if register.bank == bank => self.read(part, register.ty)?,
                (true, None) => self.read(part, if bank == BANK64 { Ty::B64 } else { ty })?,
                (true, Some(_)) => return malformed("the registers differ in width"),
                (false, _) => self.write_bank(part, bank)?,
            };
        }
        Ok((regs, bank == BANK64))
    }

    fn atom(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
        returns: bool,
    ) -> Decoded<Op> {
        strength(modifiers);
        let ss = space(modifiers);
        modifiers.skip_hints();
        modifiers.take("noftz");
        let names = [
            ("add", AtomOp::Add),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
        ];
        let op = modifiers
            .one_of(&names)
            .ok_or_else(|| modifiers.unknown())?;
        let ty = modifiers.ty()?;
        let atom_ty = match float_ty(ty) {
            Some(float) if matches!(op, AtomOp::Add | AtomOp::Min | AtomOp::Max) => {
                AtomTy::Float(float)
            }
            Some(_) => return Err(modifiers.unknown()),
            None => AtomTy::Int(require_int(ty, modifiers)?),
        };
        let (d, rest) = match operands {
            [d, rest @ ..] if returns => (Some(d), rest),
            _ => (None, operands),
        };
        let wanted = if op == AtomOp::Cas { 3 } else { 2 };
        if rest.len() != wanted {
            return malformed(format!("{wanted} operands beside the destination expected"));
        }
        let address = self.address(&rest[0])?;
        self.strict = true;
        let b = self.read(&rest[1], ty)?;
        let c = if op == AtomOp::Cas {
            self.read(&rest[2], ty)?
        } else {
            b
        };
        let d = d.map(|d| self.write(d, ty)).transpose()?;
        self.note_granule(ss, ty.bytes() as u8);
        Ok(Op::Atom(Box::new(Atom {
            space: ss,
            op,
            ty: atom_ty,
            address,
            d,
            b,
            c,
        })))
    }

    fn fence(&mut self, modifiers: &mut Modifiers<'a>) -> Decoded<Op> {
        if modifiers.take("mbarrier_init") {
            strength(modifiers);
            return Ok(Op::FenceMbarrierInit);
        }
        if modifiers.take("proxy") {
            let shared = ["shared::cta", "shared::cluster"].map(|space| modifiers.take(space));
            if !modifiers.take("async") {
                return Err(modifiers.unknown());
            }
            // Without a space it is for all; for global memory it changes nothing here.
            let global = modifiers.take("global") && !shared.contains(&true);
            return Ok(if global {
                Op::Fence
            } else {
                Op::FenceProxyAsync
            });
        }
        strength(modifiers);
        for level in ["sc", "gl"] {
            modifiers.take(level);
        }
        Ok(Op::Fence)
    }

    fn cp(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
        if !modifiers.take("async") {
            return Err(modifiers.unknown());
        }
        let op = if modifiers.take("bulk") {
            self.tensor_copy(modifiers, operands)?
        } else if modifiers.take("commit_group") {
            Op::CpCommit
        } else if modifiers.take("wait_all") {
            Op::CpWaitAll
        } else if modifiers.take("wait_group") {
            let [Operand::Int(groups)] = exactly(operands)? else {
                return malformed("a number of groups is expected");
            };
            Op::CpWait {
                groups: u32::try_from(*groups).unwrap_or(u32::MAX),
            }
        } else {
            self.cp_async(modifiers, operands)?
        };
        modifiers.finish()?;
        self.emit(op);
        Ok(true)
    }

    fn cp_async(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        let ca = modifiers.take("ca");
        let cg = !ca && modifiers.take("cg");
        let shared = modifiers.take("shared") || modifiers.take("shared::cta");
        if !(ca || cg) || !shared || !modifiers.take("global") {
            return Err(modifiers.unknown());
        }
        modifiers.skip_hints();
        let [to, from, Operand::Int(bytes), rest @ ..] = operands else {
            return malformed("two addresses and a size expected");
        };
        let bytes = *bytes as u8;
        if !(cg && bytes == 16 || ca && matches!(bytes, 4 | 8 | 16)) {
            return malformed("cp.async copies 4, 8 or 16 bytes, and .cg only 16");
        }
        let (to, from) = (self.address(to)?, self.address(from)?);
        self.strict = true;
        let (mut from_bytes, mut ignore) = (None, None);
        for operand in rest {
            let is_pred = match operand {
                Operand::Not(_) => true,
                _ => self
                    .any_register(operand)?
                    .is_some_and(|register| register.bank == BANK_PRED),
            };
            let is_policy = self
                .any_register(operand)?
                .is_some_and(|register| register.bank == BANK64);
            if is_pred {
                ignore = Some(self.read_pred(operand)?);
            } else if is_policy {
                self.read(operand, Ty::B64)?;
            } else {
                from_bytes = Some(self.read(operand, Ty::U32)?);
            }
        }
        self.note_granule(Space::Shared, bytes);
        self.note_granule(Space::Global, bytes);
        Ok(Op::CpAsync(Box::new(AsyncCopy {
            bytes,
            to,
            from,
            from_space: Space::Global,
            from_bytes,
            ignore,
        })))
    }
}
