//! What sm_90 brought: mbarriers, tensor copies, asynchronous products, register reallocation.

use super::memory::space;
use super::modifiers::Modifiers;
use super::{Decoded, Decoder, exactly, malformed};
use crate::mbarrier::{MbarrierKind, MbarrierOp, Waited};
use crate::program::{Address, Base, MmaTy, Op, Slot, Space};
use crate::registers::{BANK64, register_id};
use crate::syntax::{Operand, Ty};
use crate::tensor_copy::TensorCopy;
use crate::wgmma::Wgmma;

impl<'a> Decoder<'_, 'a> {
    pub(super) fn decode_hopper(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        let op = match mnemonic {
            "mbarrier" => self.mbarrier(modifiers, operands)?,
            "wgmma" => self.wgmma(modifiers, operands)?,
            "setmaxnreg" => set_registers(modifiers, operands)?,
            _ => return Ok(false),
        };
        modifiers.finish()?;
        self.emit(op);
        Ok(true)
    }

    fn mbarrier(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        // Arrivals release and waits acquire without being told to.
        for word in ["release", "acquire", "cta", "b64"] {
            modifiers.take(word);
        }
        let ss = space(modifiers);
        self.strict = true;
        let (address, kind) = if modifiers.take("init") {
            let [address, count] = exactly(operands)?;
            let count = self.read(count, Ty::U32)?;
            (address, MbarrierKind::Init { count })
        } else if modifiers.take("inval") {
            let [address] = exactly(operands)?;
            (address, MbarrierKind::Inval)
        } else if modifiers.take("arrive") {
            self.mbarrier_arrive(modifiers, operands)?
        } else if modifiers.take("expect_tx") {
            modifiers.take("relaxed");
            let [address, bytes] = exactly(operands)?;
            let bytes = self.read(bytes, Ty::U32)?;
            (address, MbarrierKind::Expect { bytes })
        } else {
            self.mbarrier_wait(modifiers, operands)?
        };
        let address = self.address(address)?;
        self.note_granule(Space::Shared, 8);
        Ok(Op::Mbarrier(Box::new(MbarrierOp {
            kind,
            space: ss,
            address,
        })))
    }

    fn mbarrier_arrive<'o>(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &'o [Operand<'a>],
    ) -> Decoded<(&'o Operand<'a>, MbarrierKind)> {
        let expects = modifiers.take("expect_tx");
        let [d, address, rest @ ..] = operands else {
            return malformed("a destination and an address expected");
        };
        let (count, bytes) = match (rest, expects) {
            ([], false) => (None, None),
            ([count], false) => (Some(self.read(count, Ty::U32)?), None),
            ([bytes], true) => (None, Some(self.read(bytes, Ty::U32)?)),
            _ => return malformed("a count, or a number of bytes, expected"),
        };
        let d = self.write(d, Ty::B64)?;
        Ok((address, MbarrierKind::Arrive { d, count, bytes }))
    }

    fn mbarrier_wait<'o>(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &'o [Operand<'a>],
    ) -> Decoded<(&'o Operand<'a>, MbarrierKind)> {
        let suspends = modifiers
            .one_of(&[("try_wait", true), ("test_wait", false)])
            .ok_or_else(|| modifiers.unknown())?;
        let (p, address, which) = match operands {
            [p, address, which] => (p, address, which),
            // How long to wait at most.
            [p, address, which, hint] if suspends => {
                self.read(hint, Ty::U32)?;
                (p, address, which)
            }
            _ => return malformed("a predicate, an address and a phase expected"),
        };
        let which = if modifiers.take("parity") {
            Waited::Parity(self.read(which, Ty::U32)?)
        } else {
            Waited::Phase(self.read(which, Ty::B64)?)
        };
        let p = self.write(p, Ty::Pred)?;
        Ok((address, MbarrierKind::Wait { p, which, suspends }))
    }

    /// `cp.async.bulk…`, of which a box of a matrix to the block's own shared memory is known.
    pub(super) fn tensor_copy(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let words = ["tensor", "2d", "global", "mbarrier::complete_tx::bytes"];
        let known = words.iter().all(|word| modifiers.take(word));
        modifiers.take("tile");
        let shared = modifiers.take("shared::cluster") || modifiers.take("shared::cta");
        if !known || !shared {
            return Err(modifiers.unknown());
        }
        let [to, Operand::Element(map, at), barrier] = exactly(operands)? else {
            return malformed("a place, a map with coordinates, and an mbarrier expected");
        };
        let [column, row] = exactly(at)?;
        self.strict = true;
        let at = [self.read(column, Ty::B32)?, self.read(row, Ty::B32)?];
        let map = self.map_address(map)?;
        let (to, barrier) = (self.address(to)?, self.address(barrier)?);
        self.note_granule(Space::Shared, 16);
        self.note_granule(Space::Global, 16);
        Ok(Op::TensorCopy(Box::new(TensorCopy {
            to,
            map,
            at,
            barrier,
        })))
    }

    fn wgmma(&mut self, modifiers: &mut Modifiers<'a>, operands: &[Operand<'a>]) -> Decoded<Op> {
        if modifiers.take("fence") {
            self.warpgroup_wide(modifiers)?;
            return Ok(Op::WgmmaFence);
        }
        if modifiers.take("commit_group") {
            self.warpgroup_wide(modifiers)?;
            return Ok(Op::WgmmaCommit);
        }
        if modifiers.take("wait_group") {
            self.warpgroup_wide(modifiers)?;
            let [Operand::Int(groups @ 0..=7)] = exactly(operands)? else {
                return malformed("a number of groups, 0 to 7, is expected");
            };
            return Ok(Op::WgmmaWait {
                groups: *groups as u32,
            });
        }
        if !modifiers.take("mma_async") {
            return Err(modifiers.unknown());
        }
        self.warpgroup_wide(modifiers)?;
        self.mma_async(modifiers, operands)
    }

    fn warpgroup_wide(&mut self, modifiers: &mut Modifiers<'a>) -> Decoded<()> {
        match modifiers.take("sync") && modifiers.take("aligned") {
            true => Ok(()),
            false => Err(modifiers.unknown()),
        }
    }

    /// Both matrices out of shared memory, K along their rows, neither negated; f32 sums.
    fn mma_async(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<Op> {
        let shape = modifiers
            .take_where(|part| part.starts_with("m64n") && part.ends_with("k16"))
            .ok_or_else(|| modifiers.unknown())?;
        let n: usize = shape["m64n".len()..shape.len() - "k16".len()]
            .parse()
            .map_err(|_| modifiers.unknown())?;
        let ty = match (modifiers.ty()?, modifiers.ty()?, modifiers.ty()?) {
            (Ty::F32, Ty::Bf16, Ty::Bf16) => MmaTy::Bf16,
            (Ty::F32, Ty::F16, Ty::F16) => MmaTy::F16,
            _ => return Err(modifiers.unknown()),
        };
        if !(8..=256).contains(&n) || !n.is_multiple_of(8) {
            return malformed("n is a multiple of 8, at most 256");
        }
        let [Operand::Vector(d), a, b, add, rest @ ..] = operands else {
            return Err(modifiers.unknown());
        };
        if d.len() != n / 2 {
            return malformed(format!("{} registers of sums expected", n / 2));
        }
        let plain = [1, 1, 0, 0].map(Operand::Int);
        let same = |(operand, plain): (&Operand, &Operand)| matches!((operand, plain), (Operand::Int(a), Operand::Int(b)) if a == b);
        if rest.len() != plain.len() || !rest.iter().zip(&plain).all(same) {
            return Err(modifiers.unknown());
        }
        self.strict = true;
        let (a, b) = (self.read(a, Ty::B64)?, self.read(b, Ty::B64)?);
        let add = self.read_pred(add)?;
        let sums = d.iter().map(|sum| self.write(sum, Ty::F32));
        let d = sums.collect::<Decoded<Vec<Slot>>>()?;
        // They are defined by the product itself, and looked at by it alone while it is under way.
        self.writes.clear();
        self.note_granule(Space::Shared, 16);
        Ok(Op::Wgmma(Box::new(Wgmma {
            n,
            ty,
            d,
            a,
            b,
            add,
        })))
    }

    fn map_address(&mut self, name: &'a str) -> Decoded<Address> {
        let Some(register) = self.register(name)? else {
            return self.address(&Operand::Address(Some(name), 0));
        };
        if register.bank != BANK64 {
            return malformed(format!("`{name}` is no generic address"));
        }
        self.reads.push(register_id(BANK64, register.slot));
        Ok(Address {
            base: Base::R64(register.slot),
            offset: 0,
        })
    }
}

/// `setmaxnreg` changes how many registers a warpgroup has, not what is in those it uses.
fn set_registers(modifiers: &mut Modifiers, operands: &[Operand]) -> Decoded<Op> {
    let which = modifiers.one_of(&[("inc", ()), ("dec", ())]);
    let known = which.is_some() && modifiers.take("sync") && modifiers.take("aligned");
    if !known || modifiers.ty()? != Ty::U32 {
        return Err(modifiers.unknown());
    }
    match exactly(operands)? {
        [Operand::Int(24..=256)] => Ok(Op::Nop),
        _ => malformed("a number of registers, 24 to 256, is expected"),
    }
}
