//! RMSNorm, RoPE, SwiGLU and the residual add, over some rows; rounded to bf16 where Hugging Face rounds, if at all.

use super::math::{silu, squares};
use super::precision::{Round, rounded};

rounded! {
    /// scale = sqrt(mean(x²) + eps) `[rows]`, normalized = x / scale and out = normalized · gain `[rows, d]`.
    /// (Zhang & Sennrich 2019, as `MistralRMSNorm` computes it.)
    pub(super) fn norm_rows(x: &[f32], gain: &[f32], eps: f32, scale: &mut [f32], normalized: Option<&mut [f32]>, out: &mut [f32]) = norm_loop;
}

#[inline(always)]
fn norm_loop<R: Round>(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    scale: &mut [f32],
    mut normalized: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let d = gain.len();
    for (r, scale) in scale.iter_mut().enumerate() {
        let x = &x[r * d..(r + 1) * d];
        // In f64 until the values are rounded: whatever the scale is off by, the whole row is.
        let exact = (squares(x) / d as f64 + eps as f64).sqrt();
        *scale = exact as f32;
        let inverse = 1.0 / exact;
        if let Some(normalized) = normalized.as_deref_mut() {
            for (n, &v) in normalized[r * d..(r + 1) * d].iter_mut().zip(x) {
                *n = R::round((v as f64 * inverse) as f32);
            }
        }
        for ((o, &v), &g) in out[r * d..(r + 1) * d].iter_mut().zip(x).zip(gain) {
            *o = R::round(R::round((v as f64 * inverse) as f32) * g);
        }
    }
}

rounded! {
    /// Rotate-half RoPE (Su et al. 2021, in Hugging Face's layout: element i pairs with i + h/2):
    /// out = x·cos + rotate_half(x)·sin, per head. `x`, `out` are `[rows, heads, h]`; `cos`, `sin` `[positions, h/2]`.
    pub(super) fn rope_rows(x: &[f32], positions: &[u32], cos: &[f32], sin: &[f32], head_dim: usize, out: &mut [f32]) = rope_loop;
}

#[inline(always)]
fn rope_loop<R: Round>(
    x: &[f32],
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    head_dim: usize,
    out: &mut [f32],
) {
    let half = head_dim / 2;
    let width = x.len() / positions.len();
    for (r, &position) in positions.iter().enumerate() {
        let at = position as usize * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        let heads = x[r * width..(r + 1) * width].chunks_exact(head_dim);
        let outs = out[r * width..(r + 1) * width].chunks_exact_mut(head_dim);
        for (x, out) in heads.zip(outs) {
            let (x1, x2) = x.split_at(half);
            let (out1, out2) = out.split_at_mut(half);
            for i in 0..half {
                out1[i] = R::round(R::round(x1[i] * cos[i]) - R::round(x2[i] * sin[i]));
                out2[i] = R::round(R::round(x2[i] * cos[i]) + R::round(x1[i] * sin[i]));
            }
        }
    }
}

rounded! {
    /// out = silu(gate) · up (Shazeer 2020).
    pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_loop;
}

#[inline(always)]
fn swiglu_loop<R: Round>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *o = R::round(R::round(silu(g)) * u);
    }
}

rounded! {
    /// out = a + b
    pub(super) fn add(a: &[f32], b: &[f32], out: &mut [f32]) = add_loop;
}

#[inline(always)]
fn add_loop<R: Round>(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *o = R::round(a + b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::precision::Rounding;
    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    #[test]
    fn rms_norm_agrees_with_its_formula_in_f64() {
        let (rows, d) = (37, 20);
        let (x, gain) = (wave(rows * d, 0.37), wave(d, 1.1));
        let (mut scale, mut normalized, mut out) =
            (vec![0.0; rows], vec![0.0; rows * d], vec![0.0; rows * d]);
        norm_rows(
            Rounding::Exact,
            &x,
            &gain,
            1e-5,
            &mut scale,
            Some(&mut normalized),
            &mut out,
        );
        for r in 0..rows {
            let row = &x[r * d..(r + 1) * d];
            let truth =
                (row.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / d as f64 + 1e-5).sqrt();
            assert!((scale[r] as f64 - truth).abs() < 1e-6 * truth);
            for i in 0..d {
                assert!((normalized[r * d + i] as f64 - row[i] as f64 / truth).abs() < 1e-6);
                assert!(
                    (out[r * d + i] as f64 - row[i] as f64 / truth * gain[i] as f64).abs() < 2e-6
                );
            }
        }
    }

    #[test]
    fn rope_rotates_each_pair_by_its_angle() {
        let (head_dim, heads, positions) = (8, 3, [0_u32, 5, 2]);
        let width = head_dim * heads;
        let angles: Vec<f32> = (0..6)
            .flat_map(|p| (0..4).map(move |i| p as f32 * 0.3_f32.powi(i)))
            .collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let x = wave(3 * width, 0.9);
        let mut out = vec![0.0; x.len()];
        rope_rows(
            Rounding::Exact,
            &x,
            &positions,
            &cos,
            &sin,
            head_dim,
            &mut out,
        );
        assert_eq!(out[..width], x[..width], "position 0 is not rotated");
        for (r, &p) in positions.iter().enumerate() {
            for i in 0..4 {
                let (a, b) = (x[r * width + i] as f64, x[r * width + i + 4] as f64);
                let t = (p as f32 * 0.3_f32.powi(i as i32)) as f64;
                assert!((out[r * width + i] as f64 - (a * t.cos() - b * t.sin())).abs() < 1e-6);
                assert!((out[r * width + i + 4] as f64 - (b * t.cos() + a * t.sin())).abs() < 1e-6);
            }
        }
    }
}
