//! From the syntax tree to the compact form that is run: names become slots, device functions are inlined, labels become
//! indices. An instruction that is not known becomes one that says so when it is reached.

mod arithmetic;
mod function;
mod hopper;
mod memory;
mod modifiers;
mod moves;
mod warp;

use std::collections::HashMap;

use crate::ParseError;
use crate::program::{Address, Base, Flow, Inst, Op, Origin, Pred, Preset, Program, Slot, Special};
use crate::registers::{BANK_PRED, BANK32, BANK64, register_id};
use crate::syntax::{Instruction, Operand, Space, Tree, Ty};
pub(crate) use function::decode_kernel;

#[derive(Debug)]
pub(crate) enum DecodeError {
    /// Well-formed, but not something we can run.
    Unknown(String),
    /// Not PTX.
    Malformed(String),
}

pub(super) type Decoded<T> = Result<T, DecodeError>;

fn malformed<T>(message: impl Into<String>) -> Decoded<T> {
    Err(DecodeError::Malformed(message.into()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    bank: u32,
    slot: Slot,
    ty: Ty,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Symbol {
    /// An address in the shared space.
    Shared(u32),
    Dynamic,
    /// An offset in a thread's local memory: a `.local` variable, or a `.param` one of a call.
    Local(u32),
    /// An offset in the kernel's parameters.
    Param(u32),
    /// The module's n-th variable.
    Variable(u32),
}

#[derive(Default)]
struct Scope<'a> {
    parent: Option<usize>,
    registers: HashMap<&'a str, Register>,
    /// Stem, type and number of `%r<5>`.
    ranges: Vec<(&'a str, Ty, u32)>,
    symbols: HashMap<&'a str, Symbol>,
    /// Label to its number.
    labels: HashMap<&'a str, usize>,
    branch_targets: HashMap<&'a str, Vec<&'a str>>,
}

pub(super) struct Decoder<'t, 'a> {
    tree: &'t Tree<'a>,
    scopes: Vec<Scope<'a>>,
    scope: usize,
    program: Program,
    presets: HashMap<(u32, Preset), Slot>,
    preset_preds: HashMap<bool, Slot>,
    /// Where each label stands, once known.
    label_at: Vec<Option<u32>>,
    /// Branches to patch: instruction, index among its targets, label.
    patches: Vec<(usize, usize, usize)>,
    /// Functions being inlined, innermost last.
    calls: Vec<&'a str>,
    /// The label behind the call being inlined.
    return_label: Option<usize>,
    origin: Origin,
    /// Where the code of a place was last inlined.
    inlined_at: HashMap<(u32, u32, u32), (u32, u32, u32)>,
    guard: Option<Pred>,
    reads: Vec<u32>,
    writes: Vec<u32>,
    strict: bool,
}

pub(super) fn bank_of(ty: Ty) -> u32 {
    match ty.bytes() {
        0 => BANK_PRED,
        8 => BANK64,
        _ => BANK32,
    }
}

impl<'a> Decoder<'_, 'a> {
    fn new_slot(&mut self, bank: u32) -> Decoded<Slot> {
        let slots = match bank {
            BANK32 => &mut self.program.slots32,
            BANK64 => &mut self.program.slots64,
            _ => &mut self.program.slots_pred,
        };
        let slot = Slot::try_from(*slots)
            .map_err(|_| DecodeError::Malformed("more than 65,536 registers".into()))?;
        *slots += 1;
        Ok(slot)
    }

    fn preset(&mut self, bank: u32, value: Preset) -> Decoded<Slot> {
        if let Some(&slot) = self.presets.get(&(bank, value)) {
            return Ok(slot);
        }
        let slot = self.new_slot(bank)?;
        self.presets.insert((bank, value), slot);
        let list = if bank == BANK64 {
            &mut self.program.presets64
        } else {
            &mut self.program.presets32
        };
        list.push((slot, value));
        Ok(slot)
    }

    fn constant_pred(&mut self, value: bool) -> Decoded<Slot> {
        if let Some(&slot) = self.preset_preds.get(&value) {
            return Ok(slot);
        }
        let slot = self.new_slot(BANK_PRED)?;
        self.preset_preds.insert(value, slot);
        self.program.presets_pred.push((slot, value));
        Ok(slot)
    }

    /// Finds something by walking the scopes outwards.
    fn in_scopes<T>(&self, find: impl Fn(&Scope<'a>) -> Option<T>) -> Option<(usize, T)> {
        let mut at = Some(self.scope);
        while let Some(index) = at {
            if let Some(found) = find(&self.scopes[index]) {
                return Some((index, found));
            }
            at = self.scopes[index].parent;
        }
        None
    }

    fn register(&mut self, name: &'a str) -> Decoded<Option<Register>> {
        enum Found {
            Known(Register),
            Declared(Ty),
        }
        let found = self.in_scopes(|scope| {
            if let Some(&register) = scope.registers.get(name) {
                return Some(Found::Known(register));
            }
            let declared = scope.ranges.iter().find(|(stem, _, count)| {
                let number = name
                    .strip_prefix(stem)
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
                number
                    .and_then(|digits| digits.parse::<u32>().ok())
                    .is_some_and(|number| number < *count)
            });
            declared.map(|&(_, ty, _)| Found::Declared(ty))
        });
        match found {
            None => Ok(None),
            Some((_, Found::Known(register))) => Ok(Some(register)),
            Some((scope, Found::Declared(ty))) => {
                let register = self.declare(name, ty)?;
                self.scopes[scope].registers.insert(name, register);
                Ok(Some(register))
            }
        }
    }

    /// A new register; the caller puts it into a scope.
    fn declare(&mut self, name: &str, ty: Ty) -> Decoded<Register> {
        if ty == Ty::B128 {
            return Err(DecodeError::Unknown(
                "registers of 128 bits are not supported".into(),
            ));
        }
        let bank = bank_of(ty);
        let slot = self.new_slot(bank)?;
        self.program.names.push((bank as u8, slot, name.to_owned()));
        Ok(Register { bank, slot, ty })
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        if let Some((_, symbol)) = self.in_scopes(|scope| scope.symbols.get(name).copied()) {
            return Some(symbol);
        }
        let index = self.tree.variables.iter().position(|variable| {
            variable.name == name && matches!(variable.space, Space::Global | Space::Const)
        })?;
        Some(Symbol::Variable(index as u32))
    }

    fn symbol_preset(&self, symbol: Symbol, offset: i64) -> Preset {
        match symbol {
            Symbol::Shared(address) => Preset::Bits(i64::from(address).wrapping_add(offset) as u64),
            Symbol::Dynamic => Preset::Dynamic(offset),
            Symbol::Local(at) => Preset::Bits(i64::from(at).wrapping_add(offset) as u64),
            Symbol::Param(at) => Preset::Bits(
                (crate::memory::PARAM_WINDOW + u64::from(at)).wrapping_add(offset as u64),
            ),
            Symbol::Variable(index) => Preset::Variable(index, offset),
        }
    }

    /// Reads `operand` as a value of type `ty`.
    fn read(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Slot> {
        let bank = bank_of(ty);
        if bank == BANK_PRED {
            return malformed("a predicate where a value is expected");
        }
        let value = match *operand {
            Operand::Name(name) => {
                if let Some(register) = self.register(name)? {
                    if register.bank != bank {
                        return malformed(format!("`{name}` does not fit the type of its place"));
                    }
                    self.reads.push(register_id(bank, register.slot));
                    return Ok(register.slot);
                }
                return self.read_named(name, bank);
            }
            Operand::Offset(name, offset) => match self.symbol(name) {
                Some(symbol) => self.symbol_preset(symbol, offset),
                None => return malformed(format!("`{name}` is not declared")),
            },
            Operand::Int(value) => Preset::Bits(match (ty, ty.bytes()) {
                (_, 2) => value & 0xffff,
                (_, 8) => value,
                _ => value & 0xffff_ffff,
            }),
            Operand::F32(bits) if ty == Ty::F64 => {
                Preset::Bits(f64::from(f32::from_bits(bits)).to_bits())
            }
            Operand::F32(bits) => Preset::Bits(bits.into()),
            Operand::F64(bits) if ty.bytes() == 8 => Preset::Bits(bits),
            Operand::F64(bits) => Preset::Bits((f64::from_bits(bits) as f32).to_bits().into()),
            _ => return malformed("an operand of another form is expected"),
        };
        self.preset(bank, value)
    }

    /// A special register, a symbol's address, or a name for a constant.
    fn read_named(&mut self, name: &str, bank: u32) -> Decoded<Slot> {
        if let Some(special) = special(name) {
            return self.preset(bank, special);
        }
        match self.symbol(name) {
            Some(symbol) => {
                let preset = self.symbol_preset(symbol, 0);
                self.preset(bank, preset)
            }
            None if name == "WARP_SZ" => self.preset(bank, Preset::Bits(32)),
            None if name.starts_with('%') && self.looks_special(name) => Err(DecodeError::Unknown(
                format!("the special register `{name}` is not known"),
            )),
            None => malformed(format!("`{name}` is not declared")),
        }
    }

    fn looks_special(&self, name: &str) -> bool {
        !name.ends_with(|c: char| c.is_ascii_digit()) || name.contains('.')
    }

    fn read_pred(&mut self, operand: &Operand<'a>) -> Decoded<Pred> {
        match operand {
            Operand::Name(name) => {
                let Some(register) = self.register(name)? else {
                    return malformed(format!("predicate `{name}` is not declared"));
                };
                if register.bank != BANK_PRED {
                    return malformed(format!("`{name}` is no predicate"));
                }
                self.reads.push(register_id(BANK_PRED, register.slot));
                Ok(Pred {
                    slot: register.slot,
                    negated: false,
                })
            }
            Operand::Not(inner) => {
                let pred = self.read_pred(inner)?;
                Ok(Pred {
                    negated: !pred.negated,
                    ..pred
                })
            }
            Operand::Int(value) => Ok(Pred {
                slot: self.constant_pred(*value != 0)?,
                negated: false,
            }),
            _ => malformed("a predicate is expected"),
        }
    }

    /// Writes `operand`, whose register must lie in `bank`; `_` is a register that no one reads.
    fn write_bank(&mut self, operand: &Operand<'a>, bank: u32) -> Decoded<Slot> {
        let Operand::Name(name) = *operand else {
            return malformed("a register is expected as the destination");
        };
        if name == "_" {
            return self.new_slot(bank);
        }
        let Some(register) = self.register(name)? else {
            return malformed(format!("`{name}` is not declared"));
        };
        if register.bank != bank {
            return malformed(format!("`{name}` does not fit the type of its place"));
        }
        self.writes.push(register_id(bank, register.slot));
        Ok(register.slot)
    }

    fn write(&mut self, operand: &Operand<'a>, ty: Ty) -> Decoded<Slot> {
        self.write_bank(operand, bank_of(ty))
    }

    /// The register that an operand names, whatever its bank.
    fn any_register(&mut self, operand: &Operand<'a>) -> Decoded<Option<Register>> {
        match *operand {
            Operand::Name(name) => self.register(name),
            _ => Ok(None),
        }
    }

    fn address(&mut self, operand: &Operand<'a>) -> Decoded<Address> {
        let Operand::Address(base, offset) = *operand else {
            return malformed("an address in brackets is expected");
        };
        let Some(name) = base else {
            return Ok(Address {
                base: Base::None,
                offset,
            });
        };
        if let Some(register) = self.register(name)? {
            self.reads.push(register_id(register.bank, register.slot));
            let base = match register.bank {
                BANK32 => Base::R32(register.slot),
                BANK64 => Base::R64(register.slot),
                _ => return malformed("a predicate is no address"),
            };
            return Ok(Address { base, offset });
        }
        let slot = self.read_named(name, BANK64)?;
        Ok(Address {
            base: Base::R64(slot),
            offset,
        })
    }

    /// Ends the instruction being decoded.
    fn emit(&mut self, op: Op) {
        let flow = Flow {
            start: self.program.flow.len() as u32,
            reads: self.reads.len() as u8,
            writes: self.writes.len() as u8,
            strict: self.strict,
        };
        self.program.flow.append(&mut self.reads);
        self.program.flow.append(&mut self.writes);
        self.program.code.push(Inst {
            guard: self.guard,
            op,
            flow,
        });
        self.program.origins.push(self.origin);
    }

    fn instruction(&mut self, instruction: &Instruction<'a>) -> Result<(), ParseError> {
        self.reads.clear();
        self.writes.clear();
        self.strict = false;
        self.guard = None;
        let decoded = self.decode_instruction(instruction);
        match decoded {
            Ok(()) => Ok(()),
            Err(DecodeError::Unknown(message)) => {
                self.reads.clear();
                self.writes.clear();
                self.emit(Op::Unknown {
                    message: message.into(),
                });
                Ok(())
            }
            Err(DecodeError::Malformed(message)) => Err(ParseError::at(
                instruction.line,
                format!("`{}`: {message}", instruction.opcode),
            )),
        }
    }

    fn decode_instruction(&mut self, instruction: &Instruction<'a>) -> Decoded<()> {
        if let Some((name, negated)) = instruction.guard {
            let pred = self.read_pred(&Operand::Name(name))?;
            // The guard is looked at apart from what the instruction itself reads.
            self.reads.clear();
            self.guard = Some(Pred { negated, ..pred });
        }
        let (mnemonic, mut modifiers) = modifiers::Modifiers::split(instruction.opcode);
        let operands = &instruction.operands;
        if self.decode_arithmetic(mnemonic, &mut modifiers, operands)?
            || self.decode_memory(mnemonic, &mut modifiers, operands)?
            || self.decode_warp(mnemonic, &mut modifiers, operands)?
            || self.decode_hopper(mnemonic, &mut modifiers, operands)?
            || self.decode_flow(mnemonic, &mut modifiers, operands)?
        {
            return Ok(());
        }
        Err(modifiers.unknown())
    }
}

/// Exactly N operands.
fn exactly<'s, 'a, const N: usize>(operands: &'s [Operand<'a>]) -> Decoded<&'s [Operand<'a>; N]> {
    operands.try_into().map_err(|_| {
        DecodeError::Malformed(format!("{N} operands expected, {} found", operands.len()))
    })
}

fn special(name: &str) -> Option<Preset> {
    let axis = |suffix: &str| {
        ["x", "y", "z"]
            .iter()
            .position(|axis| *axis == suffix)
            .map(|axis| axis as u8)
    };
    if let Some((stem, suffix)) = name.split_once('.') {
        let axis = axis(suffix)?;
        return Some(Preset::Special(match stem {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            // A launch without clusters has clusters of one block.
            "%cluster_ctaid" => Special::Zero,
            "%cluster_nctaid" => Special::One,
            "%clusterid" => Special::Ctaid(axis),
            "%nclusterid" => Special::Nctaid(axis),
            _ => return None,
        }));
    }
    Some(Preset::Special(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%smid" | "%cluster_ctarank" => Special::Zero,
        "%nsmid" | "%cluster_nctarank" => Special::One,
        "%lanemask_eq" => Special::LanemaskEq,
        "%lanemask_le" => Special::LanemaskLe,
        "%lanemask_lt" => Special::LanemaskLt,
        "%lanemask_ge" => Special::LanemaskGe,
        "%lanemask_gt" => Special::LanemaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    }))
}
