//! What is read off logits on the device: the logits of a few rows exist there, and some numbers of each come back.

use super::arena::PieceId;
use super::backend::{Cuda, WIDE_ROWS};
use super::driver::Driver;
use super::kernels::head::{Kl, KlArgs, LogSoftmax, LogSoftmaxArgs};
use super::kernels::reduce::{K_MAX, TopK, TopKArgs};
use super::launch::{DevicePtr, LaunchError, launch};
use super::pass::{Launched, Pass};
use crate::backend::{Act, Batch, Edit, HeadRows, Ops, Result, Scores};

/// What comes back of some rows.
#[derive(Debug, Default)]
struct Read {
    next_log_probs: Vec<f32>,
    entropy: Vec<f32>,
    argmax: Vec<u32>,
    /// `[rows, top]`
    top: Vec<u32>,
    top_log_probs: Vec<f32>,
}

impl<D: Driver> Cuda<D> {
    /// Scores rows: the log-probability of the token that comes `next`, and the `top` likeliest.
    ///
    /// # Errors
    /// More likeliest tokens than the kernels find, and the driver's.
    pub fn scores(
        &mut self,
        rows: HeadRows<'_>,
        next: &[Option<u32>],
        top: usize,
    ) -> Result<Vec<Scores>> {
        let n = next.len();
        let batch = Batch::pack([&[0][..]]); // the LM head needs no tokens
        let mut read = Read::default();
        let mut pass = self.begin(&batch, Vec::new(), rows.edits)?;
        pass.make_logits(rows.normed, n);
        pass.attempt(|p| p.read_scores(next, top, &mut read));
        pass.complete()?;
        let of = |row: usize| Scores {
            logprob: next[row].map(|_| f64::from(read.next_log_probs[row])),
            argmax: read.argmax[row],
            entropy: f64::from(read.entropy[row]),
            top: (row * top..(row + 1) * top)
                .map(|i| (read.top[i], f64::from(read.top_log_probs[i])))
                .collect(),
        };
        Ok((0..n).map(of).collect())
    }

    /// KL(p‖q) in nats, row by row. Together they are at most as many rows as one of them may be elsewhere.
    ///
    /// # Errors
    /// The driver's.
    pub fn divergences(&mut self, p: HeadRows<'_>, q: HeadRows<'_>) -> Result<Vec<f64>> {
        let n = p.normed.len() / self.shape().d_model;
        let batch = Batch::pack([&[0][..]]);
        let behind_p = q.edits.into_iter().map(|edit| Edit {
            rows: edit.rows.iter().map(|row| row + n as u32).collect(),
            ..edit
        });
        let edits = p.edits.into_iter().chain(behind_p).collect();
        let both = [p.normed, q.normed].concat();
        let mut found = vec![0.0_f32; n];
        let mut pass = self.begin(&batch, Vec::new(), edits)?;
        pass.make_logits(&both, 2 * n);
        pass.attempt(|p| p.read_divergences(n, &mut found));
        pass.complete()?;
        Ok(found.into_iter().map(f64::from).collect())
    }
}

impl<D: Driver> Pass<'_, '_, D> {
    /// The logits of rows `[n, d]` that the LM head reads, edited.
    fn make_logits(&mut self, normed: &[f32], n: usize) {
        assert!(n <= WIDE_ROWS, "{n} rows of logits");
        self.attempt(|p| p.logits_of(normed, n));
        let rows: Vec<u32> = (0..n as u32).collect();
        for edit in 0..self.edits.len() {
            self.edit_rows(Act::Logits, &rows, edit);
        }
    }

    fn read_scores(&mut self, next: &[Option<u32>], top: usize, read: &mut Read) -> Launched {
        if top > K_MAX as usize {
            return Err(LaunchError::Device {
                what: format!("the {top} likeliest tokens"),
                reason: format!(
                    "the CUDA backend finds at most {K_MAX}: ask for fewer, or use --device cpu"
                ),
            });
        }
        let (n, logits) = (next.len(), self.view(Act::Logits));
        let tokens: Vec<u32> = next.iter().map(|t| t.unwrap_or(0)).collect();
        let (tokens, tokens_at) = self.upload(bytemuck::cast_slice(&tokens))?;
        let (entropy, entropy_at) = self.take(n * 4)?;
        let (argmax, argmax_at) = self.take(n * 4)?;
        let (log_probs, log_probs_at) = self.take(n * 4)?;
        let args = LogSoftmaxArgs {
            logits: logits.at,
            rows: DevicePtr::NULL,
            tokens: tokens_at,
            largest: DevicePtr::NULL,
            log_sum_exp: DevicePtr::NULL,
            entropy: entropy_at,
            argmax: argmax_at,
            token_log_probs: log_probs_at,
            stride: logits.stride as u64,
            selected: n as u32,
            vocab: logits.width as u32,
            tokens_per_row: 1,
            _pad: 0,
        };
        let kernel = LogSoftmax {
            dtype: logits.dtype,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        self.release(tokens);
        self.bring((entropy, entropy_at), n, &mut read.entropy)?;
        self.bring((argmax, argmax_at), n, &mut read.argmax)?;
        self.bring((log_probs, log_probs_at), n, &mut read.next_log_probs)?;
        if top == 0 {
            return Ok(());
        }
        let (values, values_at) = self.take(n * top * 4)?;
        let (indices, indices_at) = self.take(n * top * 4)?;
        let args = TopKArgs {
            source: logits.at,
            rows: DevicePtr::NULL,
            values: values_at,
            indices: indices_at,
            source_stride: logits.stride as u64,
            selected: n as u32,
            width: logits.width as u32,
            k: top as u32,
            _pad: 0,
        };
        let kernel = TopK {
            dtype: logits.dtype,
            log_prob: true,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        self.bring((values, values_at), n * top, &mut read.top_log_probs)?;
        self.bring((indices, indices_at), n * top, &mut read.top)
    }

    fn read_divergences(&mut self, n: usize, found: &mut [f32]) -> Launched {
        let logits = self.view(Act::Logits);
        let (out, out_at) = self.take(n * 4)?;
        let args = KlArgs {
            p: logits.at,
            q: logits.at.offset(n * logits.stride * logits.dtype.bytes()),
            p_rows: DevicePtr::NULL,
            q_rows: DevicePtr::NULL,
            out: out_at,
            p_stride: logits.stride as u64,
            q_stride: logits.stride as u64,
            selected: n as u32,
            vocab: logits.width as u32,
        };
        let kernel = Kl {
            dtype: logits.dtype,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        let to: &mut [u8] = bytemuck::cast_slice_mut(found);
        // SAFETY: the caller's memory, which it does not touch before the pass is complete.
        unsafe { self.send(out, out_at, to.as_mut_ptr(), to.len()) }
    }

    /// Copies `n` numbers to the host, where they are once the pass is complete.
    fn bring<T: bytemuck::Pod>(
        &mut self,
        (piece, at): (PieceId, DevicePtr),
        n: usize,
        to: &mut Vec<T>,
    ) -> Launched {
        to.resize(n, T::zeroed());
        let to: &mut [u8] = bytemuck::cast_slice_mut(to);
        // SAFETY: the vector is the caller's, which neither touches nor drops it before the pass is complete.
        unsafe { self.send(piece, at, to.as_mut_ptr(), to.len()) }
    }
}
