//! `kernels/pattern.cu` against sums in float64, and the pattern of the newest query against that of the whole sample.

use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::kernels::pattern::{
    PatternOfLast, PatternOfLastArgs, PatternRow, PatternValues, PatternValuesArgs,
};

use super::attention::{Problem, Shape};
use crate::harness::{Element, Random, cases, is_poison, normal, on_every_schedule, ulp};

/// Slots of a cache of `capacity`, of which only those that the newest query sees are not NaN.
fn cached<T: Element>(
    rows: &[T],
    width: usize,
    seen: std::ops::Range<usize>,
    capacity: usize,
) -> Vec<T> {
    let mut cache = vec![T::round(f64::NAN); capacity * width];
    for position in seen {
        let to = position % capacity * width;
        cache[to..to + width].copy_from_slice(&rows[position * width..][..width]);
    }
    cache
}

fn check_values<T: Element>(h: usize, group: usize, n: usize, window: usize, seed: u64) {
    let (kv_heads, heads) = (2, 2 * group);
    let mut random = Random(seed);
    let selected: Vec<u32> = (0..n as u32).filter(|_| random.unit() < 0.4).collect();
    let selected = if selected.is_empty() {
        vec![n as u32 - 1]
    } else {
        selected
    };
    let kept: Vec<u32> = (0..heads as u32).filter(|head| head % 3 != 1).collect();
    let seen = |i: usize| match window {
        0 => 0..i + 1,
        w => (i + 1).saturating_sub(w)..i + 1,
    };
    // Weights of keys that are not seen are not to be read as such: they are NaN.
    let mut pattern: Vec<f32> = Vec::new();
    for _ in &kept {
        for &i in &selected {
            let range = seen(i as usize);
            pattern.extend((0..n).map(|j| match range.contains(&j) {
                true => random.normal() as f32,
                false => f32::NAN,
            }));
        }
    }
    let v: Vec<T> = normal(n * kv_heads * h, seed + 1, 1.0);
    // In z the rows are the other way round.
    let z_row = |i: u32| n as u32 - 1 - i;
    let rows: Vec<PatternRow> = selected
        .iter()
        .map(|&position| PatternRow {
            position,
            z_row: z_row(position),
        })
        .collect();
    let kernel = PatternValues {
        dtype: T::DTYPE,
        head_dim: h as u32,
    };
    let z = on_every_schedule(|gpu| {
        let (p, v) = (gpu.input(&pattern), gpu.input(&v));
        let (rows, heads_at) = (gpu.input(&rows), gpu.input(&kept));
        let z = gpu.canvas::<T>(n * heads * h);
        let args = PatternValuesArgs {
            pattern: p.ptr(),
            v: v.ptr(),
            z: z.ptr(),
            rows: rows.ptr(),
            heads: heads_at.ptr(),
            v_stride: (kv_heads * h) as u32,
            z_stride: (heads * h) as u32,
            n_heads: heads as u32,
            n_kv_heads: kv_heads as u32,
            selected: selected.len() as u32,
            heads_kept: kept.len() as u32,
            n: n as u32,
            capacity: n as u32,
            window: window as u32,
            _pad: 0,
        };
        gpu.launch(&kernel, &args);
        gpu.read(&z)
    });
    for i in 0..n as u32 {
        for head in 0..heads as u32 {
            let at = (z_row(i) as usize * heads + head as usize) * h;
            let got = &z[at..at + h];
            let (Ok(row), Ok(place)) = (selected.binary_search(&i), kept.binary_search(&head))
            else {
                assert!(
                    got.iter().all(is_poison),
                    "row {i} of head {head} was written"
                );
                continue;
            };
            let weights = &pattern[(place * selected.len() + row) * n..][..n];
            for (d, got) in got.iter().enumerate() {
                let (mut want, mut size) = (0.0, 0.0);
                for j in seen(i as usize) {
                    let value = v[(j * kv_heads + head as usize / group) * h + d].wide();
                    let term = T::round(weights[j].into()).wide() * value;
                    (want, size) = (want + term, size + term.abs());
                }
                let allowed = ulp::<T>(want) / 2.0 + size * n as f64 * 2f64.powi(-24) + 1e-30;
                let off = (got.wide() - want).abs();
                assert!(
                    off <= allowed,
                    "{h} {n} {window}: {got:?}, should be {want}"
                );
            }
        }
    }
}

fn check_last<T: Element>(h: usize, group: usize, n: usize, window: usize, seed: u64) {
    let shape = Shape::new(&[n], group, 2, (window > 0).then_some(window));
    let problem = Problem::<T>::random(&shape, h, seed);
    let (heads, width) = (2 * group, 2 * h);
    let [q_at, k_at, _] = problem.columns();
    let row =
        |i: usize, at: usize, len: usize| problem.qkv[i * problem.stride + at..][..len].to_vec();
    let q = row(n - 1, q_at, heads * h);
    let k: Vec<T> = (0..n).flat_map(|i| row(i, k_at, width)).collect();
    let seen = shape.visible(n - 1);
    // As many slots as are seen, and one more.
    for capacity in [seen.len(), seen.len() + 1] {
        let cache = cached(&k, width, seen.clone(), capacity);
        let kept: Vec<u32> = (0..heads as u32).rev().step_by(2).collect();
        let kernel = PatternOfLast {
            dtype: T::DTYPE,
            head_dim: h as u32,
        };
        let got = on_every_schedule(|gpu| {
            let (q, k, heads_at) = (gpu.input(&q), gpu.input(&cache), gpu.input(&kept));
            let pattern = gpu.output::<f32>(kept.len() * n);
            let args = PatternOfLastArgs {
                q: q.ptr(),
                k: k.ptr(),
                pattern: pattern.ptr(),
                heads: heads_at.ptr(),
                k_stride: width as u32,
                n_heads: heads as u32,
                n_kv_heads: 2,
                heads_kept: kept.len() as u32,
                n: n as u32,
                capacity: capacity as u32,
                window: window as u32,
                scale: problem.scale(),
            };
            gpu.launch(&kernel, &args);
            gpu.read(&pattern)
        });
        for (place, &head) in kept.iter().enumerate() {
            let truth = problem.query(&(0..n), head as usize, n - 1);
            for (j, got) in got[place * n..][..n].iter().enumerate() {
                let want = match truth.keys.contains(&j) {
                    true => truth.weights[j - truth.keys.start],
                    false => 0.0,
                };
                let allowed = want * (4.0 * truth.score_error + 1e-5);
                let off = (f64::from(*got) - want).abs();
                assert!(
                    off <= allowed,
                    "{h} {n} {window}: key {j} has {got}, should have {want}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn chosen_rows_and_heads_are_the_weighted_sums_of_what_they_see(
        h in prop::sample::select(vec![64_usize, 80, 96, 128]), group in 1_usize..3, n in 1_usize..150,
        window in prop_oneof![Just(0_usize), 1_usize..90], seed in 0_u64..1000,
    ) {
        check_values::<bf16>(h, group, n, window, seed);
        check_values::<f16>(h, group, n, window, seed);
        check_values::<f32>(h, group, n, window, seed);
    }

    #[test]
    fn the_newest_querys_pattern_is_the_samples_last_row(
        h in prop::sample::select(vec![64_usize, 80, 96, 128]), group in 1_usize..3, n in 1_usize..600,
        window in prop_oneof![Just(0_usize), 1_usize..400], seed in 0_u64..1000,
    ) {
        check_last::<bf16>(h, group, n, window, seed);
        check_last::<f16>(h, group, n, window, seed);
        check_last::<f32>(h, group, n, window, seed);
    }
}
