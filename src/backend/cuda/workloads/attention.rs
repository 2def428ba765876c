//! Prefill attention, its patterns, and decoding against a cache.

use bytemuck::Zeroable;

use super::{Build, Cost, Memory, Shapes, Units, Workload, product};
use crate::backend::cuda::kernels::attention::{Attention, AttentionArgs, HEAD_DIMS};
use crate::backend::cuda::kernels::attention_scores::{
    Asked, AttentionScores, AttentionScoresArgs,
};
use crate::backend::cuda::kernels::cache::{CacheRows, CacheRowsArgs};
use crate::backend::cuda::kernels::decode_attention::{
    DecodeAttention, DecodeAttentionArgs, DecodeAttentionCombine, scratch_bytes, splits,
};
use crate::backend::cuda::kernels::pattern::{
    PatternOfLast, PatternOfLastArgs, PatternRow, PatternValues, PatternValuesArgs,
};
use crate::backend::cuda::launch::{DevicePtr, Dtype, LaunchError};

/// The `window` that hides no key.
const ALL_KEYS: u32 = 0;

pub(super) fn add(builds: &mut Vec<Build>) {
    for dtype in Dtype::ALL {
        for head_dim in HEAD_DIMS {
            builds.push(Box::new(move |s, m| attention(dtype, head_dim, s, m)));
        }
    }
    for dtype in Dtype::ALL {
        for head_dim in HEAD_DIMS {
            builds.push(Box::new(move |s, m| patterns(dtype, head_dim, s, m)));
        }
    }
    for dtype in Dtype::ALL {
        for head_dim in HEAD_DIMS {
            for combine in [false, true] {
                builds.push(Box::new(move |s, m| decode(dtype, head_dim, combine, s, m)));
            }
        }
    }
    builds.push(Box::new(cache_rows));
    for dtype in Dtype::ALL {
        for head_dim in HEAD_DIMS {
            let values = PatternValues { dtype, head_dim };
            builds.push(Box::new(move |s, m| pattern_values(values, s, m)));
            let last = PatternOfLast { dtype, head_dim };
            builds.push(Box::new(move |s, m| pattern_of_last(last, s, m)));
        }
    }
}

fn units(dtype: Dtype) -> Units {
    match dtype {
        Dtype::F32 => Units::Fp32,
        _ => Units::TensorCores,
    }
}

fn cu_seqlens(s: &Shapes) -> Vec<u32> {
    (0..=s.tokens / s.sample).map(|i| i * s.sample).collect()
}

fn attention(
    dtype: Dtype,
    head_dim: u32,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let kernel = Attention { dtype, head_dim };
    let (q_width, kv_width) = (s.heads * head_dim, s.kv_heads * head_dim);
    // q, k and v as the projections leave them, side by side.
    let stride = q_width + 2 * kv_width;
    let element = dtype.bytes();
    let qkv = memory.noise(dtype, product(s.tokens, stride))?;
    let cu_seqlens = cu_seqlens(s);
    let tiles = kernel.tiles(&cu_seqlens, ALL_KEYS);
    let args = AttentionArgs {
        q: qkv,
        k: qkv.offset(q_width as usize * element),
        v: qkv.offset((q_width + kv_width) as usize * element),
        z: memory.output(product(s.tokens, q_width) * element as u64)?,
        lse: memory.output(4 * product(s.tokens, s.heads))?,
        cu_seqlens: memory.table(&cu_seqlens)?,
        tiles: memory.table(&tiles)?,
        q_stride: stride,
        k_stride: stride,
        v_stride: stride,
        z_stride: q_width,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        rows: s.tokens,
        n_tiles: tiles.len() as u32,
        window: ALL_KEYS,
        scale: (head_dim as f32).sqrt().recip(),
    };
    // Pairs of query and visible key, of one head.
    let pairs = product(s.tokens, s.sample + 1) / 2;
    let cost = Cost {
        bytes: product(s.tokens, stride + q_width) * element as u64
            + 4 * product(s.tokens, s.heads),
        flops: 4 * pairs * product(s.heads, head_dim),
        units: units(dtype),
    };
    let what = format!("{} tokens in samples of {}", s.tokens, s.sample);
    Workload::new(what, &kernel, &args, cost)
}

fn patterns(
    dtype: Dtype,
    head_dim: u32,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let kernel = AttentionScores { dtype, head_dim };
    let samples = s.tokens / s.sample;
    let (q_width, kv_width) = (s.heads * head_dim, s.kv_heads * head_dim);
    // The last rows of every sample.
    let selected: Vec<u32> = (0..samples)
        .flat_map(|_| s.sample - s.pattern_rows..s.sample)
        .collect();
    let per_sample = product(s.heads, s.pattern_rows) * u64::from(s.sample);
    let asked: Vec<Asked> = (0..samples)
        .map(|i| Asked {
            rows: i * s.sample..(i + 1) * s.sample,
            selected: i * s.pattern_rows..(i + 1) * s.pattern_rows,
            out: u64::from(i) * per_sample,
        })
        .collect();
    let tiles = kernel.tiles(&asked);
    let heads: Vec<u32> = (0..s.heads).collect();
    let out = per_sample * u64::from(samples) * 4;
    let args = AttentionScoresArgs {
        q: memory.noise(dtype, product(s.tokens, q_width))?,
        k: memory.noise(dtype, product(s.tokens, kv_width))?,
        lse: memory.noise(Dtype::F32, product(s.tokens, s.heads))?,
        out: memory.output(out)?,
        tiles: memory.table(&tiles)?,
        selected: memory.table(&selected)?,
        heads: memory.table(&heads)?,
        q_stride: q_width,
        k_stride: kv_width,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        rows: s.tokens,
        n_tiles: tiles.len() as u32,
        heads_kept: s.heads,
        window: ALL_KEYS,
        out_dtype: AttentionScores::out_dtype(Dtype::F32),
        scale: (head_dim as f32).sqrt().recip(),
    };
    let rows = selected.len() as u32;
    let cost = Cost {
        bytes: (product(rows, q_width) + product(s.tokens, kv_width)) * dtype.bytes() as u64 + out,
        flops: 2 * product(rows, s.sample) * u64::from(q_width),
        units: units(dtype),
    };
    let what = format!(
        "patterns of {} rows per sample of {}",
        s.pattern_rows, s.sample
    );
    Workload::new(what, &kernel, &args, cost)
}

fn decode(
    dtype: Dtype,
    head_dim: u32,
    combine: bool,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let kernel = DecodeAttention { dtype, head_dim };
    let (q_width, kv_width) = (s.heads * head_dim, s.kv_heads * head_dim);
    let splits = splits(s.cached, 0);
    let (partial, softmax) = scratch_bytes(s.sequences, s.heads, splits, head_dim);
    let cache = product(s.sequences, s.cached) * u64::from(kv_width);
    let lengths = vec![s.cached; s.sequences as usize];
    let scratch = |bytes: usize, memory: &mut Memory| -> Result<DevicePtr, LaunchError> {
        // The second launch reads what the first wrote.
        memory.noise(Dtype::F32, bytes as u64 / 4)
    };
    let args = DecodeAttentionArgs {
        q: memory.noise(dtype, product(s.sequences, q_width))?,
        k_cache: memory.noise(dtype, cache)?,
        v_cache: memory.noise(dtype, cache)?,
        lengths: memory.table(&lengths)?,
        partial_out: scratch(partial, memory)?,
        partial_softmax: scratch(softmax, memory)?,
        out: memory.output(product(s.sequences, q_width) * dtype.bytes() as u64)?,
        k_sequence_stride: product(s.cached, kv_width),
        v_sequence_stride: product(s.cached, kv_width),
        k_slot_stride: kv_width,
        v_slot_stride: kv_width,
        q_stride: q_width,
        out_stride: q_width,
        sequences: s.sequences,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        capacity: s.cached,
        splits,
        scale: (head_dim as f32).sqrt().recip(),
        ..DecodeAttentionArgs::zeroed()
    };
    let what = format!("{} sequences of {} tokens", s.sequences, s.cached);
    let partials = (partial + softmax) as u64;
    let rows = product(s.sequences, q_width) * dtype.bytes() as u64;
    if combine {
        let cost = Cost::bytes(partials + rows);
        return Workload::new(what, &DecodeAttentionCombine(kernel), &args, cost);
    }
    let cost = Cost {
        bytes: 2 * cache * dtype.bytes() as u64 + rows + partials,
        flops: 4 * product(s.sequences, s.cached) * u64::from(q_width),
        units: Units::Fp32,
    };
    Workload::new(what, &kernel, &args, cost)
}

fn cache_rows(s: &Shapes, memory: &mut Memory) -> Result<Workload, LaunchError> {
    // bf16, as the projections leave them.
    let width = s.kv_heads * (s.d / s.heads) * 2;
    let vectors = width / 16;
    let slots: Vec<u32> = (0..s.sequences).rev().collect();
    let mut rows = || memory.noise(Dtype::BF16, product(s.sequences, width / 2));
    let (k, v) = (rows()?, rows()?);
    let args = CacheRowsArgs {
        k,
        v,
        k_cache: memory.output(product(s.sequences, width))?,
        v_cache: memory.output(product(s.sequences, width))?,
        slots: memory.table(&slots)?,
        k_stride: vectors.into(),
        v_stride: vectors.into(),
        rows: s.sequences,
        vectors,
    };
    let what = format!("keys and values of {} new tokens, bf16", s.sequences);
    let cost = Cost::bytes(4 * product(s.sequences, width));
    Workload::new(what, &CacheRows, &args, cost)
}

fn pattern_values(
    kernel: PatternValues,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let (element, h) = (kernel.dtype.bytes() as u64, kernel.head_dim);
    let (q_width, kv_width) = (s.heads * h, s.kv_heads * h);
    let rows: Vec<PatternRow> = (s.sample - s.pattern_rows..s.sample)
        .map(|position| PatternRow {
            position,
            z_row: position,
        })
        .collect();
    let heads: Vec<u32> = (0..s.heads).collect();
    let weights = product(s.heads * s.pattern_rows, s.sample);
    let args = PatternValuesArgs {
        pattern: memory.noise(Dtype::F32, weights)?,
        v: memory.noise(kernel.dtype, product(s.sample, kv_width))?,
        z: memory.output(product(s.sample, q_width) * element)?,
        rows: memory.table(&rows)?,
        heads: memory.table(&heads)?,
        v_stride: kv_width,
        z_stride: q_width,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        selected: s.pattern_rows,
        heads_kept: s.heads,
        n: s.sample,
        capacity: s.sample,
        window: ALL_KEYS,
        _pad: 0,
    };
    let cost = Cost {
        bytes: 4 * weights
            + (product(s.sample, kv_width) + product(s.pattern_rows, q_width)) * element,
        flops: 2 * weights * u64::from(h),
        units: Units::Fp32,
    };
    let what = format!(
        "edited patterns of {} rows of a sample of {}",
        s.pattern_rows, s.sample
    );
    Workload::new(what, &kernel, &args, cost)
}

fn pattern_of_last(
    kernel: PatternOfLast,
    s: &Shapes,
    memory: &mut Memory,
) -> Result<Workload, LaunchError> {
    let (element, h) = (kernel.dtype.bytes() as u64, kernel.head_dim);
    let (q_width, kv_width) = (s.heads * h, s.kv_heads * h);
    let heads: Vec<u32> = (0..s.heads).collect();
    let args = PatternOfLastArgs {
        q: memory.noise(kernel.dtype, q_width.into())?,
        k: memory.noise(kernel.dtype, product(s.cached, kv_width))?,
        pattern: memory.output(4 * product(s.heads, s.cached))?,
        heads: memory.table(&heads)?,
        k_stride: kv_width,
        n_heads: s.heads,
        n_kv_heads: s.kv_heads,
        heads_kept: s.heads,
        n: s.cached,
        capacity: s.cached,
        window: ALL_KEYS,
        scale: (h as f32).sqrt().recip(),
    };
    let cost = Cost {
        bytes: (product(s.cached, kv_width) + u64::from(q_width)) * element
            + 4 * product(s.heads, s.cached),
        flops: 2 * product(s.cached, q_width),
        units: Units::Fp32,
    };
    let what = format!("the newest row of a sequence of {}", s.cached);
    Workload::new(what, &kernel, &args, cost)
}
