//! The dotted parts of an opcode. Each must be taken by someone: one that is left over is one that we do not know.

use super::{DecodeError, Decoded};
use crate::program::{FloatMode, Rounding};
use crate::syntax::Ty;

pub(super) struct Modifiers<'a> {
    opcode: &'a str,
    parts: Vec<Option<&'a str>>,
}

impl<'a> Modifiers<'a> {
    /// Splits an opcode into its mnemonic and the rest.
    pub fn split(opcode: &'a str) -> (&'a str, Modifiers<'a>) {
        let mut parts = opcode.split('.');
        let mnemonic = parts.next().unwrap_or(opcode);
        (
            mnemonic,
            Modifiers {
                opcode,
                parts: parts.map(Some).collect(),
            },
        )
    }

    pub fn take(&mut self, name: &str) -> bool {
        match self.parts.iter_mut().find(|part| **part == Some(name)) {
            Some(part) => {
                *part = None;
                true
            }
            None => false,
        }
    }

    /// The first of `names` that is there.
    pub fn one_of<T: Copy>(&mut self, names: &[(&str, T)]) -> Option<T> {
        names
            .iter()
            .find(|(name, _)| self.take(name))
            .map(|&(_, value)| value)
    }

    pub fn take_where(&mut self, mut wanted: impl FnMut(&str) -> bool) -> Option<&'a str> {
        self.parts
            .iter_mut()
            .find(|part| part.is_some_and(&mut wanted))
            .and_then(Option::take)
    }

    /// The first part that is left, whatever it is.
    pub fn next(&mut self) -> Option<&'a str> {
        self.parts
            .iter_mut()
            .find(|part| part.is_some())
            .and_then(Option::take)
    }

    pub fn ty(&mut self) -> Decoded<Ty> {
        self.take_where(|part| Ty::named(part).is_some())
            .and_then(Ty::named)
            .ok_or_else(|| {
                DecodeError::Unknown(format!("`{}` has no type that is known", self.opcode))
            })
    }

    pub fn rounding(&mut self) -> Option<Rounding> {
        self.one_of(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
            ("rna", Rounding::NearestAway),
        ])
    }

    pub fn float_mode(&mut self) -> FloatMode {
        FloatMode {
            rounding: self.rounding().unwrap_or(Rounding::Nearest),
            ftz: self.take("ftz"),
            sat: self.take("sat"),
            relu: self.take("relu"),
        }
    }

    /// Hints about caches change no result.
    pub fn skip_hints(&mut self) {
        while self
            .take_where(|part| part.starts_with("L1::") || part.starts_with("L2::"))
            .is_some()
        {}
        for operator in ["ca", "cg", "cs", "lu", "cv", "wb", "wt"] {
            self.take(operator);
        }
    }

    pub fn unknown(&self) -> DecodeError {
        DecodeError::Unknown(format!("`{}` is not known", self.opcode))
    }

    pub fn finish(&mut self) -> Decoded<()> {
        match self.next() {
            None => Ok(()),
            Some(part) => Err(DecodeError::Unknown(format!(
                "modifier `.{part}` of `{}` is not known",
                self.opcode
            ))),
        }
    }
}
