//! The interpreter against values that are known otherwise, and against kernels with planted faults.

mod convert;
mod cuda;
mod faults;
mod float;
mod int;
mod matrix;
mod memory;
mod parser;
mod snippet;
mod tensor_copies;
mod warp;
mod wgmma;
