//! The norms of stored rows, added up while they are in memory: what activations are scaled by before training on them.

use rayon::prelude::*;

use crate::store::{StoreDtype, TapInfo, side_row_bytes, to_f32};

/// Fewer rows than these are not worth sharing out.
const ROWS_TOGETHER: usize = 32;

/// Adds the Euclidean norm of each of the `rows` of a tap in `bytes` to `sum`, in f64 and in the order of the rows, so that the sum over a
/// run does not depend on how its rows were cut into batches. A ragged tap has no rows of one length: nothing is added. `side` holds the
/// side rows of rows in 8 bits.
pub fn add_norms(sum: &mut f64, info: &TapInfo, rows: usize, bytes: &[u8], side: Option<&[u8]>) {
    let width = info.row_shape.iter().product::<usize>() * info.dtype.size();
    if info.ragged || width == 0 {
        return;
    }
    let row = |i: usize| &bytes[i * width..(i + 1) * width];
    let side_row = side_row_bytes(info);
    let norm = |i: usize| match info.dtype {
        StoreDtype::F32 => norm(row(i), |b| f32::from_le_bytes(b).into()),
        StoreDtype::F16 => norm(row(i), |b| half::f16::from_le_bytes(b).to_f64()),
        StoreDtype::BF16 => norm(row(i), |b| half::bf16::from_le_bytes(b).to_f64()),
        StoreDtype::F8E4M3 | StoreDtype::Int8 => {
            let side = side.map(|side| &side[i * side_row..(i + 1) * side_row]);
            let numbers = to_f32(info, row(i), side);
            norm(bytemuck::cast_slice(&numbers), |b| {
                f32::from_ne_bytes(b).into()
            })
        }
    };
    let rows = (0..rows.min(bytes.len() / width)).into_par_iter();
    let norms: Vec<f64> = rows.with_min_len(ROWS_TOGETHER).map(norm).collect();
    for norm in norms {
        *sum += norm;
    }
}

/// Norm of a row of numbers of N bytes each. Squares of these are exact enough in f64, and none overflows.
fn norm<const N: usize>(row: &[u8], widen: impl Fn([u8; N]) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (eights, rest) = row.as_chunks::<N>().0.as_chunks::<8>();
    for numbers in eights {
        for (lane, &number) in lanes.iter_mut().zip(numbers) {
            let x = widen(number);
            *lane += x * x;
        }
    }
    for (lane, &number) in lanes.iter_mut().zip(rest) {
        let x = widen(number);
        *lane += x * x;
    }
    lanes.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(dtype: StoreDtype, width: usize, ragged: bool) -> TapInfo {
        TapInfo {
            hook: "hook_embed".into(),
            folder: "hook_embed".into(),
            selection: "all".into(),
            reduction: String::new(),
            heads: None,
            dtype,
            row_shape: vec![width],
            ragged,
            top_k: None,
            order_seed: None,
        }
    }

    #[test]
    fn norms_of_every_dtype_are_added_and_batches_do_not_matter() {
        let values: Vec<f32> = (0..100 * 13)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0)
            .collect();
        let expected: f64 = values
            .chunks(13)
            .map(|row| {
                row.iter()
                    .map(|&x| f64::from(x) * f64::from(x))
                    .sum::<f64>()
                    .sqrt()
            })
            .sum();
        let bytes: [(StoreDtype, Vec<u8>); 3] = [
            (
                StoreDtype::F32,
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
            (
                StoreDtype::F16,
                values
                    .iter()
                    .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                    .collect(),
            ),
            (
                StoreDtype::BF16,
                values
                    .iter()
                    .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                    .collect(),
            ),
        ];
        for (dtype, bytes) in bytes {
            let info = tap(dtype, 13, false);
            let mut whole = 0.0;
            add_norms(&mut whole, &info, 100, &bytes, None);
            assert!((whole / expected - 1.0).abs() < 1e-12, "{dtype}: {whole}");
            let mut parts = 0.0;
            let (a, b) = bytes.split_at(37 * 13 * dtype.size());
            add_norms(&mut parts, &info, 37, a, None);
            add_norms(&mut parts, &info, 63, b, None);
            assert_eq!(parts.to_bits(), whole.to_bits());
        }
    }

    #[test]
    fn large_numbers_do_not_overflow_and_ragged_taps_have_no_norm() {
        let bytes: Vec<u8> = [f32::MAX; 8].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut sum = 0.0;
        add_norms(&mut sum, &tap(StoreDtype::F32, 8, false), 1, &bytes, None);
        assert!((sum / (f64::from(f32::MAX) * 8f64.sqrt()) - 1.0).abs() < 1e-15);
        let before = sum;
        add_norms(&mut sum, &tap(StoreDtype::F32, 8, true), 1, &bytes, None);
        assert_eq!(sum, before);
    }
}
