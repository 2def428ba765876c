//! `kernels/head.cu`: what is read off logits.

use bytemuck::{Pod, Zeroable};

use super::super::launch::{DevicePtr, Dims, Dtype, Kernel};
use super::require;

const THREADS: u32 = 512;

/// Any output may be null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct LogSoftmaxArgs {
    /// `[.., stride]`
    pub logits: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub rows: DevicePtr,
    /// `[selected, tokens_per_row]` u32, each below vocab (the kernel does not check).
    pub tokens: DevicePtr,
    /// The largest logit, `[selected]` f32.
    pub largest: DevicePtr,
    /// log Σ e^logit, `[selected]` f32.
    pub log_sum_exp: DevicePtr,
    /// Of the softmax, in nats, `[selected]` f32.
    pub entropy: DevicePtr,
    /// The lowest index of the largest logit, `[selected]` u32.
    pub argmax: DevicePtr,
    /// `[selected, tokens_per_row]` f32
    pub token_log_probs: DevicePtr,
    /// Elements.
    pub stride: u64,
    pub selected: u32,
    pub vocab: u32,
    pub tokens_per_row: u32,
    pub _pad: u32,
}

/// Statistics of each row's softmax, and the log-probabilities of chosen tokens.
#[derive(Debug, Clone, Copy)]
pub struct LogSoftmax {
    pub dtype: Dtype,
}

impl Kernel for LogSoftmax {
    type Args = LogSoftmaxArgs;

    fn name(&self) -> String {
        format!("log_softmax_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "head"
    }

    fn dims(&self, args: &LogSoftmaxArgs) -> Dims {
        Dims::linear(args.selected, THREADS)
    }

    fn check(&self, args: &LogSoftmaxArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("vocab", args.vocab)?;
        require::aligned("logits", args.logits, self.dtype.bytes() as u64)?;
        if args.tokens_per_row > 0 {
            require::aligned("tokens", args.tokens, 4)?;
            require::aligned("token_log_probs", args.token_log_probs, 4)?;
        }
        for (name, ptr) in [
            ("rows", args.rows),
            ("largest", args.largest),
            ("log_sum_exp", args.log_sum_exp),
            ("entropy", args.entropy),
            ("argmax", args.argmax),
        ] {
            if !ptr.is_null() {
                require::aligned(name, ptr, 4)?;
            }
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct KlArgs {
    /// Logits `[.., p_stride]`
    pub p: DevicePtr,
    /// Logits `[.., q_stride]`
    pub q: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub p_rows: DevicePtr,
    /// `[selected]` u32. Null: row i is row i.
    pub q_rows: DevicePtr,
    /// In nats, `[selected]` f32.
    pub out: DevicePtr,
    /// Elements.
    pub p_stride: u64,
    pub q_stride: u64,
    pub selected: u32,
    pub vocab: u32,
}

/// KL(softmax p ‖ softmax q) of pairs of rows.
#[derive(Debug, Clone, Copy)]
pub struct Kl {
    pub dtype: Dtype,
}

impl Kernel for Kl {
    type Args = KlArgs;

    fn name(&self) -> String {
        format!("kl_{}", self.dtype)
    }

    fn source(&self) -> &'static str {
        "head"
    }

    fn dims(&self, args: &KlArgs) -> Dims {
        Dims::linear(args.selected, THREADS)
    }

    fn check(&self, args: &KlArgs) -> Result<(), String> {
        require::positive("selected", args.selected)?;
        require::positive("vocab", args.vocab)?;
        require::aligned("p", args.p, self.dtype.bytes() as u64)?;
        require::aligned("q", args.q, self.dtype.bytes() as u64)?;
        require::aligned("out", args.out, 4)?;
        for (name, ptr) in [("p_rows", args.p_rows), ("q_rows", args.q_rows)] {
            if !ptr.is_null() {
                require::aligned(name, ptr, 4)?;
            }
        }
        Ok(())
    }
}
