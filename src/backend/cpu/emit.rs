//! The tap: rows of an activation, reduced and converted on their way into a sink's memory.

use half::f16;
use rayon::prelude::*;

use super::simd::vectorised;
use crate::backend::{Reduce, Sink, SinkDtype, SinkSpec};
use crate::compact::Compact;

/// Writes the sink's next `src_rows.len()` rows; `src_rows` says where each is in `src` `[.., width]`.
pub(super) fn emit(sink: &mut Sink<'_>, src: &[f32], width: usize, src_rows: &[u32]) {
    let first = sink.seen;
    sink.seen += src_rows.len();
    let row = |r: u32| &src[r as usize * width..(r as usize + 1) * width];
    if matches!(sink.spec.reduce, Reduce::Mean) {
        return emit_means(sink, first, src_rows.iter().map(|&r| row(r)));
    }
    let spec = &*sink.spec;
    let stored = spec.stored_width(width);
    let stride = stored * spec.dtype.size();
    let out = &mut sink.bytes[first * stride..(first + src_rows.len()) * stride];
    match (&spec.reduce, sink.index.as_deref_mut()) {
        (Reduce::TopK(k) | Reduce::LogProbTopK(k), Some(index)) => {
            let log_prob = matches!(spec.reduce, Reduce::LogProbTopK(_));
            let index = &mut index[first * k * 4..(first + src_rows.len()) * k * 4];
            out.par_chunks_mut(stride)
                .zip(index.par_chunks_mut(k * 4))
                .zip(src_rows)
                .for_each(|((out, index), &r)| {
                    top_k(&columns(spec, row(r)), *k, log_prob, spec.dtype, out, index);
                });
        }
        (_, Some(side)) if let Some(compact) = spec.compact(width) => {
            let side_row = compact.side_bytes();
            let side = &mut side[first * side_row..(first + src_rows.len()) * side_row];
            out.par_chunks_mut(stride)
                .zip(side.par_chunks_mut(side_row))
                .zip(src_rows)
                .with_min_len((4096 / stored).max(1))
                .for_each(|((codes, side), &r)| {
                    quantise(compact, &columns(spec, row(r)), codes, side);
                });
        }
        _ => {
            // Handing a task over costs more than a short row.
            let task = (4096 / stored).max(1);
            out.par_chunks_mut(task * stride)
                .zip(src_rows.par_chunks(task))
                .for_each(|(out, rows)| {
                    for (out, &r) in out.chunks_exact_mut(stride).zip(rows) {
                        reduce_row(spec, row(r), out);
                    }
                });
        }
    }
}

/// The row's chosen columns.
fn columns<'a>(spec: &SinkSpec, row: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
    match &spec.columns[..] {
        [] => row.into(),
        [one] => row[one.clone()].into(),
        many => many
            .iter()
            .flat_map(|c| row[c.clone()].iter().copied())
            .collect::<Vec<f32>>()
            .into(),
    }
}

fn reduce_row(spec: &SinkSpec, row: &[f32], out: &mut [u8]) {
    let row = columns(spec, row);
    match &spec.reduce {
        Reduce::Dot(directions) => {
            let dots: Vec<f32> = directions
                .chunks_exact(row.len())
                .map(|d| {
                    d.iter()
                        .zip(&*row)
                        .map(|(&a, &b)| a as f64 * b as f64)
                        .sum::<f64>() as f32
                })
                .collect();
            store_row(&dots, spec.dtype, out);
        }
        Reduce::Norm => {
            let sum: f64 = row.iter().map(|&v| v as f64 * v as f64).sum();
            store_row(&[sum.sqrt() as f32], spec.dtype, out);
        }
        _ => store_row(&row, spec.dtype, out),
    }
}

fn emit_means<'a>(sink: &mut Sink<'_>, first: usize, rows: impl Iterator<Item = &'a [f32]>) {
    let spec = sink.spec.clone();
    // Which sample the next row is of, how many of its rows came before, and how many means stand before it.
    let (mut sample, mut in_sample, mut means) = (0, first, 0);
    while sample < sink.per_sample.len() && in_sample >= sink.per_sample[sample] as usize {
        in_sample -= sink.per_sample[sample] as usize;
        means += usize::from(sink.per_sample[sample] > 0);
        sample += 1;
    }
    for row in rows {
        let row = columns(&spec, row);
        while sink.per_sample[sample] == 0 {
            sample += 1;
        }
        if in_sample == 0 {
            sink.sum.clear();
            sink.sum.resize(row.len(), 0.0);
        }
        for (sum, &v) in sink.sum.iter_mut().zip(&*row) {
            *sum += v as f64;
        }
        in_sample += 1;
        if in_sample == sink.per_sample[sample] as usize {
            let mean: Vec<f32> = sink
                .sum
                .iter()
                .map(|s| (s / in_sample as f64) as f32)
                .collect();
            let stride = mean.len() * spec.dtype.size();
            let out = &mut sink.bytes[means * stride..(means + 1) * stride];
            match (spec.compact(row.len()), sink.index.as_deref_mut()) {
                (Some(compact), Some(side)) => {
                    let side_row = compact.side_bytes();
                    let side = &mut side[means * side_row..(means + 1) * side_row];
                    quantise(compact, &mean, out, side);
                }
                _ => store_row(&mean, spec.dtype, out),
            }
            (sample, in_sample, means) = (sample + 1, 0, means + 1);
        }
    }
}

fn top_k(
    row: &[f32],
    k: usize,
    log_prob: bool,
    dtype: SinkDtype,
    out: &mut [u8],
    index: &mut [u8],
) {
    let shift = if log_prob { log_sum_exp(row) } else { 0.0 };
    let larger = |&a: &u32, &b: &u32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, larger);
        order.truncate(k);
    }
    order.sort_unstable_by(larger);
    let values: Vec<f32> = order
        .iter()
        .map(|&i| (row[i as usize] as f64 - shift) as f32)
        .collect();
    store_row(&values, dtype, out);
    for (out, i) in index.chunks_exact_mut(4).zip(order) {
        out.copy_from_slice(&(i as i32).to_le_bytes());
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = super::math::max(row) as f64;
    largest
        + row
            .iter()
            .map(|&v| (v as f64 - largest).exp())
            .sum::<f64>()
            .ln()
}

/// Stores a row, rounding to nearest, ties to even.
pub(super) fn store_row(row: &[f32], dtype: SinkDtype, out: &mut [u8]) {
    match dtype {
        SinkDtype::F32 => match bytemuck::try_cast_slice_mut::<u8, f32>(out) {
            Ok(out) => out.copy_from_slice(row),
            Err(_) => store_by(row, out, f32::to_le_bytes),
        },
        SinkDtype::F16 => store_by(row, out, |v| f16::from_f32(v).to_le_bytes()),
        SinkDtype::BF16 => store_bf16(row, out),
        // These have side rows, and go by `quantise`.
        SinkDtype::F8E4M3 | SinkDtype::Int8 => out.fill(0),
    }
}

vectorised! {
    fn quantise(compact: Compact, row: &[f32], codes: &mut [u8], side: &mut [u8]) = Compact::quantise;
}

vectorised! {
    fn store_bf16(row: &[f32], out: &mut [u8]) = store_bf16_loop;
}

#[inline(always)]
fn store_bf16_loop(row: &[f32], out: &mut [u8]) {
    for (out, &v) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
        *out = bf16_bits(v).to_le_bytes();
    }
}

/// bf16 by rounding to nearest even; NaN stays NaN. Branch-free, so that it becomes vector code.
#[inline(always)]
fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    ((if v.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }) >> 16) as u16
}

#[inline(always)]
fn store_by<const SIZE: usize>(row: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; SIZE]) {
    for (out, &v) in out.as_chunks_mut::<SIZE>().0.iter_mut().zip(row) {
        *out = f(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use std::sync::Arc;

    fn written(
        spec: SinkSpec,
        act: &[f32],
        width: usize,
        rows: &[u32],
        per_sample: &[u32],
        pieces: usize,
    ) -> (Vec<u8>, Vec<u8>) {
        let outputs = match spec.reduce {
            Reduce::Mean => per_sample.iter().filter(|&&n| n > 0).count(),
            _ => rows.len(),
        };
        let mut bytes = vec![0xAA; outputs * spec.stored_width(width) * spec.dtype.size()];
        let k = if let Reduce::TopK(k) | Reduce::LogProbTopK(k) = spec.reduce {
            k
        } else {
            0
        };
        let mut index = vec![0xAA; outputs * k * 4];
        let mut sink = Sink::new(
            Arc::new(spec),
            rows.to_vec(),
            per_sample.to_vec(),
            &mut bytes,
            (k > 0).then_some(&mut index[..]),
        );
        for chunk in rows.chunks(rows.len().div_ceil(pieces)) {
            emit(&mut sink, act, width, chunk);
        }
        (bytes, index)
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    const ACT: [f32; 12] = [
        1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 7.0, -8.0, 9.0, 0.5, 0.25, 0.125,
    ];

    #[test]
    fn selected_rows_and_columns_arrive_in_order() {
        let spec = SinkSpec {
            columns: vec![2..3, 0..1],
            ..SinkSpec::plain()
        };
        let (bytes, _) = written(spec, &ACT, 3, &[0, 2, 3], &[1, 2], 1);
        assert_eq!(floats(&bytes), [3.0, 1.0, 9.0, 7.0, 0.125, 0.5]);
    }

    #[test]
    fn means_are_per_sample_however_the_rows_arrive() {
        for pieces in [1, 2, 3] {
            let spec = SinkSpec {
                reduce: Reduce::Mean,
                ..SinkSpec::plain()
            };
            let (bytes, _) = written(spec, &ACT, 3, &[0, 1, 3], &[2, 0, 1], pieces);
            assert_eq!(floats(&bytes), [-1.5, 3.5, 4.5, 0.5, 0.25, 0.125]);
        }
    }

    #[test]
    fn norm_dot_and_top_k_do_as_they_say() {
        let norm = SinkSpec {
            reduce: Reduce::Norm,
            ..SinkSpec::plain()
        };
        assert_eq!(
            floats(&written(norm, &[3.0, 4.0], 2, &[0], &[1], 1).0),
            [5.0]
        );
        let dot = SinkSpec {
            reduce: Reduce::Dot([1.0, 0.0, 0.5, 0.5].into()),
            ..SinkSpec::plain()
        };
        assert_eq!(
            floats(&written(dot, &[3.0, 4.0], 2, &[0], &[1], 1).0),
            [3.0, 3.5]
        );
        let top = SinkSpec {
            reduce: Reduce::TopK(3),
            ..SinkSpec::plain()
        };
        let (values, index) = written(top, &[1.0, 7.0, -3.0, 7.0, 2.0], 5, &[0], &[1], 1);
        assert_eq!(floats(&values), [7.0, 7.0, 2.0]);
        assert_eq!(index, [1_i32, 3, 4].map(i32::to_le_bytes).concat());
    }

    #[test]
    fn log_probabilities_sum_to_one_over_the_whole_row() {
        let spec = SinkSpec {
            reduce: Reduce::LogProbTopK(4),
            ..SinkSpec::plain()
        };
        let (values, _) = written(spec, &[1.0, 700.0, 699.0, 698.5], 4, &[0], &[1], 1);
        let total: f64 = floats(&values).iter().map(|&v| (v as f64).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
    }

    #[test]
    fn sixteen_bit_rows_round_to_nearest_even_as_the_half_crate_does() {
        let row: Vec<f32> = (0..70_000)
            .map(|i| f32::from_bits(i * 61_357 + 13))
            .chain([f32::NAN, f32::INFINITY, -0.0])
            .collect();
        let mut out = vec![0; row.len() * 2];
        store_row(&row, SinkDtype::BF16, &mut out);
        for (b, &v) in out.chunks_exact(2).zip(&row) {
            let (ours, half) = (bf16::from_le_bytes([b[0], b[1]]), bf16::from_f32(v));
            assert!(
                ours.to_bits() == half.to_bits() || (ours.is_nan() && half.is_nan()),
                "{v}"
            );
        }
    }
}
