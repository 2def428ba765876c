//! The CPU backend: ops in f32 or bf16 on all cores, from weights as the checkpoint stores them.
//!
//! Each row's arithmetic is in an order that depends on nothing but the row's own sample, so packing samples into batches
//! never changes a bit. `precision` says what is rounded; `tile` is the innermost loop of the products (`pairs` that of bf16), `packing` the memory it reads, `matmul` what stands
//! between them and a whole product; `blocks` runs the ops of many rows block by block. The rest is one op family per
//! file. `Cpu` owns the scratch that lives from batch to batch, `Pass` is one batch under way.

mod attention;
mod blocks;
mod decode;
mod edit;
mod elementwise;
mod emit;
mod gemm_rate;
mod math;
mod matmul;
mod moments;
mod packing;
mod pairs;
mod pass;
mod precision;
mod ragged;
mod simd;
#[cfg(test)]
mod testing;
mod tile;
mod weights;

pub use attention::TILE as ATTENTION_TILE;
pub use decode::KvCache;
pub use gemm_rate::{gemm_crate_gflops, product_gflops};
pub use matmul::GEMM;
pub use moments::{MOMENT_ROWS, add_moments};
pub use pass::{Cpu, Pass, Shape};
pub use precision::Precision;
pub use simd::instruction_set;
pub use weights::{StoredDtype, StoredTensor, StoredWeights};
