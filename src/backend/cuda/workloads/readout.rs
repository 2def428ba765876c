//! What is read off activations and logits, and edits of them.

use super::{Build, Cost, Memory, Shapes, Units, Workload, by, product};
use crate::backend::cuda::kernels::edit::{Edit, EditArgs, EditKind};
use crate::backend::cuda::kernels::gather::{Gather, GatherArgs};
use crate::backend::cuda::kernels::head::{Kl, KlArgs, LogSoftmax, LogSoftmaxArgs};
use crate::backend::cuda::kernels::quantise::{Quantise, QuantiseArgs};
use crate::backend::cuda::kernels::reduce::{
    Dot, DotArgs, Mean, MeanArgs, Norm, NormArgs, TopK, TopKArgs,
};
use crate::backend::cuda::kernels::segments;
use crate::backend::cuda::launch::{DevicePtr, Dtype, LaunchError};
use crate::compact::Code;

const DIRECTIONS: u32 = 64;
const TOP: u32 = 32;

pub(super) fn add(builds: &mut Vec<Build>) {
    for from in Dtype::ALL {
        for to in Dtype::ALL {
            builds.push(Box::new(move |s, m| gather(Gather { from, to }, s, m)));
        }
    }
    for dtype in Dtype::ALL {
        for kind in [
            EditKind::Add,
            EditKind::Scale,
            EditKind::Replace,
            EditKind::Clamp,
        ] {
            builds.push(Box::new(move |s, m| edit(Edit { kind, dtype }, s, m)));
        }
        for code in [Code::F8E4M3, Code::I8] {
            builds.push(Box::new(move |s, m| {
                quantise(Quantise { dtype, code }, s, m)
            }));
        }
        builds.push(Box::new(move |s, m| mean(Mean { dtype }, s, m)));
        builds.push(Box::new(move |s, m| dot(Dot { dtype }, s, m)));
        builds.push(Box::new(move |s, m| norm(Norm { dtype }, s, m)));
        for log_prob in [false, true] {
            builds.push(Box::new(move |s, m| top_k(TopK { dtype, log_prob }, s, m)));
        }
        builds.push(Box::new(move |s, m| {
            log_softmax(LogSoftmax { dtype }, s, m)
        }));
        builds.push(Box::new(move |s, m| kl(Kl { dtype }, s, m)));
    }
}

fn gather(kernel: Gather, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let table = segments(&[0..s.d as usize]);
    let elements = product(s.tokens, s.d);
    let (from, to) = (kernel.from.bytes() as u64, kernel.to.bytes() as u64);
    let args = GatherArgs {
        source: memory.noise(kernel.from, elements)?,
        rows: DevicePtr::NULL,
        segments: memory.table(&table)?,
        out: memory.output(elements * to)?,
        source_stride: s.d.into(),
        out_stride: s.d.into(),
        selected: s.tokens,
        segment_count: table.len() as u32,
    };
    Workload::new(
        by(s.tokens, s.d),
        &kernel,
        &args,
        Cost::bytes(elements * (from + to)),
    )
}

fn quantise(kernel: Quantise, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let elements = product(s.tokens, s.d);
    let side = u64::from(s.tokens) * kernel.compact(s.d as usize).side_bytes() as u64;
    let args = QuantiseArgs {
        source: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        codes: memory.output(elements)?,
        side: memory.output(side)?,
        source_stride: s.d.into(),
        selected: s.tokens,
        width: s.d,
    };
    let cost = Cost::bytes(elements * (kernel.dtype.bytes() as u64 + 1) + side);
    Workload::new(by(s.tokens, s.d), &kernel, &args, cost)
}

fn edit(kernel: Edit, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let table = segments(&[0..s.d as usize]);
    let elements = product(s.tokens, s.d);
    let args = EditArgs {
        x: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        segments: memory.table(&table)?,
        v: match kernel.kind {
            EditKind::Clamp => memory.table(&vec![f64::from(s.d).sqrt().recip(); s.d as usize])?,
            _ => memory.noise(Dtype::F32, s.d.into())?,
        },
        before: memory.output(8 * u64::from(s.tokens))?,
        after: memory.output(8 * u64::from(s.tokens))?,
        x_stride: s.d.into(),
        v_stride: 0,
        selected: s.tokens,
        segment_count: table.len() as u32,
        // Over and over in place, and still finite.
        c: 1.0,
        lo: 0.0,
        hi: 0.0,
        _pad: 0,
    };
    let cost = Cost::bytes(2 * elements * kernel.dtype.bytes() as u64 + 16 * u64::from(s.tokens));
    Workload::new(by(s.tokens, s.d), &kernel, &args, cost)
}

fn mean(kernel: Mean, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let samples = s.tokens / s.sample;
    let cu_rows: Vec<u32> = (0..=samples).map(|i| i * s.sample).collect();
    let elements = product(s.tokens, s.d);
    let args = MeanArgs {
        source: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        cu_rows: memory.table(&cu_rows)?,
        counts: memory.table(&vec![s.sample; samples as usize])?,
        carry_in: DevicePtr::NULL,
        carry_out: DevicePtr::NULL,
        out: memory.output(4 * product(samples, s.d))?,
        source_stride: s.d.into(),
        samples,
        width: s.d,
        earlier: 0,
        _pad: 0,
    };
    let cost = Cost::bytes(elements * kernel.dtype.bytes() as u64 + 4 * product(samples, s.d));
    let what = format!("{samples} samples of {}", by(s.sample, s.d));
    Workload::new(what, &kernel, &args, cost)
}

fn dot(kernel: Dot, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let elements = product(s.tokens, s.d);
    let args = DotArgs {
        source: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        directions: memory.noise(Dtype::F32, product(DIRECTIONS, s.d))?,
        out: memory.output(4 * product(s.tokens, DIRECTIONS))?,
        source_stride: s.d.into(),
        selected: s.tokens,
        width: s.d,
        direction_count: DIRECTIONS,
        _pad: 0,
    };
    let cost = Cost {
        bytes: elements * kernel.dtype.bytes() as u64
            + 4 * (product(DIRECTIONS, s.d) + product(s.tokens, DIRECTIONS)),
        flops: 2 * elements * u64::from(DIRECTIONS),
        units: Units::Fp32,
    };
    let what = format!("{} on {DIRECTIONS} directions", by(s.tokens, s.d));
    Workload::new(what, &kernel, &args, cost)
}

fn norm(kernel: Norm, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let elements = product(s.tokens, s.d);
    let args = NormArgs {
        source: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        out: memory.output(4 * u64::from(s.tokens))?,
        source_stride: s.d.into(),
        selected: s.tokens,
        width: s.d,
    };
    let cost = Cost::bytes(elements * kernel.dtype.bytes() as u64 + 4 * u64::from(s.tokens));
    Workload::new(by(s.tokens, s.d), &kernel, &args, cost)
}

fn top_k(kernel: TopK, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let elements = product(s.logit_rows, s.vocab);
    let top = product(s.logit_rows, TOP);
    let args = TopKArgs {
        source: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        values: memory.output(4 * top)?,
        indices: memory.output(4 * top)?,
        source_stride: s.vocab.into(),
        selected: s.logit_rows,
        width: s.vocab,
        k: TOP,
        _pad: 0,
    };
    let cost = Cost::bytes(elements * kernel.dtype.bytes() as u64 + 8 * top);
    let what = format!("{TOP} of {}", by(s.logit_rows, s.vocab));
    Workload::new(what, &kernel, &args, cost)
}

fn log_softmax(
    kernel: LogSoftmax,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let elements = product(s.logit_rows, s.vocab);
    let per_row = 4 * u64::from(s.logit_rows);
    let tokens: Vec<u32> = (0..s.logit_rows).map(|i| i * 7919 % s.vocab).collect();
    let args = LogSoftmaxArgs {
        logits: memory.noise(kernel.dtype, elements)?,
        rows: DevicePtr::NULL,
        tokens: memory.table(&tokens)?,
        largest: memory.output(per_row)?,
        log_sum_exp: memory.output(per_row)?,
        entropy: memory.output(per_row)?,
        argmax: memory.output(per_row)?,
        token_log_probs: memory.output(per_row)?,
        stride: s.vocab.into(),
        selected: s.logit_rows,
        vocab: s.vocab,
        tokens_per_row: 1,
        _pad: 0,
    };
    let cost = Cost::bytes(elements * kernel.dtype.bytes() as u64 + 6 * per_row);
    Workload::new(by(s.logit_rows, s.vocab), &kernel, &args, cost)
}

fn kl(kernel: Kl, s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    let elements = product(s.logit_rows, s.vocab);
    let args = KlArgs {
        p: memory.noise(kernel.dtype, elements)?,
        q: memory.noise(kernel.dtype, elements)?,
        p_rows: DevicePtr::NULL,
        q_rows: DevicePtr::NULL,
        out: memory.output(4 * u64::from(s.logit_rows))?,
        p_stride: s.vocab.into(),
        q_stride: s.vocab.into(),
        selected: s.logit_rows,
        vocab: s.vocab,
    };
    let cost = Cost::bytes(2 * elements * kernel.dtype.bytes() as u64);
    let what = format!("pairs of {}", by(s.logit_rows, s.vocab));
    Workload::new(what, &kernel, &args, cost)
}
