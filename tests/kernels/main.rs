//! Every kernel against a plain float64 oracle: one module per `.cu`, same stem. Runs the PTX that nvcc made in the interpreter,
//! or with `STREAMGAUGE_TEST_DEVICE=cuda:0` on a GPU.

mod attention;
mod attention_scores;
mod cache;
mod decode_attention;
mod gemm;
mod harness;
mod layout;
mod op_by_op;
mod report;

mod add;
mod edit;
mod embed;
mod gate_up;
mod gather;
mod head;
mod moments;
mod pattern;
mod quantise;
mod reduce;
mod rms_norm;
mod rope;
mod swiglu;
