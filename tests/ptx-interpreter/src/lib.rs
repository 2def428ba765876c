//! Runs the PTX that nvcc emits, on the CPU, and looks over its shoulder: races, stray accesses, undefined values, missing
//! waits and barriers that not all threads reach are findings that name the instruction and the line of CUDA.
//!
//! [`Module`] and [`Device`] are the way in. Inside: text goes through `lexer`, `parser` (to `syntax`) and `decode` (to
//! `program`); `machine` runs a launch, `warp` its instructions; `memory` and `race` keep the shadow.
#![forbid(unsafe_code)]

mod access;
mod alu;
mod asynchronous;
mod atomic;
mod barrier;
mod collective;
mod convert;
mod copies;
mod decode;
mod device;
mod finding;
mod lexer;
mod machine;
mod matrix;
mod mbarrier;
mod memory;
mod module;
mod parallel;
mod parser;
mod program;
mod race;
mod registers;
mod round;
mod shadow;
mod syntax;
mod tensor_copy;
mod tensor_map;
mod warp;
mod wgmma;

pub use device::{Device, DeviceError, Dims, Launch, Schedule, Stats};
pub use finding::{Finding, FindingKind, Place};
pub use module::{KernelInfo, Module};
pub use tensor_map::{Swizzle, TensorMap};

/// The text is no PTX that we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}:{line}: {message}")]
pub struct ParseError {
    /// What the caller called the text.
    pub name: String,
    pub line: u32,
    pub message: String,
}

impl ParseError {
    pub(crate) fn at(line: u32, message: impl Into<String>) -> Self {
        ParseError {
            name: String::new(),
            line,
            message: message.into(),
        }
    }
}

/// The README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
