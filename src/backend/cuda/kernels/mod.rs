//! Typed handles of the kernels in `kernels/*.cu`, one module per file: argument struct, grid rule, and what the arguments must satisfy.

pub mod add;
pub mod attention;
pub mod attention_scores;
pub mod cache;
pub mod decode_attention;
pub mod edit;
pub mod embed;
pub mod gate_up;
pub mod gather;
pub mod gemm;
pub mod head;
pub mod moments;
pub mod pattern;
pub mod quantise;
pub mod reduce;
mod require;
pub mod rms_norm;
pub mod rope;
mod segment;
pub mod swiglu;

pub use segment::{SEGMENT_MAX, Segment, segments};
