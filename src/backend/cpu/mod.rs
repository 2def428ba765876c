//! The CPU backend: f32 ops on all cores, from weights as the checkpoint stores them.
//! `gemm` multiplies matrices; the rest is here, one op family per file, each row's arithmetic in an order that
//! depends on nothing but the row's own sample, so that packing never changes a bit.
//! `Cpu` owns the scratch that lives from batch to batch, `Pass` is one batch under way.

mod attention;
mod decode;
mod edit;
mod elementwise;
mod emit;
mod math;
mod matmul;
mod pass;
mod simd;
mod weights;

pub use attention::TILE as ATTENTION_TILE;
pub use decode::KvCache;
pub use matmul::{GEMM, gemm_gflops, instruction_set};
pub use pass::{Cpu, Pass, Shape};
pub use weights::{StoredDtype, StoredTensor, StoredWeights};
