use proptest::prelude::*;
use streamgauge::backend::cpu::{MOMENT_ROWS, add_moments};
use streamgauge::backend::cuda::kernels::moments::{Outer, OuterArgs, Spread, SpreadArgs};

use crate::harness::{cases, normal, on_every_schedule};

/// Rows about means that are not zero.
fn rows(n: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rows: Vec<f32> = normal(n * width, seed, 2.0);
    for row in rows.chunks_exact_mut(width) {
        for (j, x) in row.iter_mut().enumerate() {
            *x += (j % 3) as f32 * 50.0;
        }
    }
    rows
}

/// Sum and outer product of chunks on the device, from what `sum` and `outer` hold before.
fn on_device(chunks: &[Vec<f32>], sum: &[f64], outer: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let width = sum.len();
    on_every_schedule(|gpu| {
        let (sum, outer) = (gpu.in_place(sum), gpu.in_place(outer));
        for rows in chunks {
            let n = rows.len() / width;
            let rows = gpu.input(rows);
            let spread = gpu.output::<f32>(n * width);
            let mean = gpu.output::<f32>(width);
            let rest = gpu.output::<f64>(width);
            gpu.launch(
                &Spread,
                &SpreadArgs {
                    rows: rows.ptr(),
                    spread: spread.ptr(),
                    mean: mean.ptr(),
                    sum: sum.ptr(),
                    rest: rest.ptr(),
                    share: 1.0 / n as f64,
                    n: n as u32,
                    width: width as u32,
                },
            );
            gpu.launch(
                &Outer,
                &OuterArgs {
                    spread: spread.ptr(),
                    mean: mean.ptr(),
                    rest: rest.ptr(),
                    outer: outer.ptr(),
                    n: n as u32,
                    width: width as u32,
                },
            );
        }
        (gpu.read(&sum), gpu.read(&outer))
    })
}

fn check(chunks: &[usize], width: usize) {
    let chunks: Vec<Vec<f32>> = (chunks.iter().zip(1..))
        .map(|(&n, seed)| rows(n, width, seed))
        .collect();
    let mut sum: Vec<f64> = (0..width).map(|j| j as f64 / 7.0).collect();
    let mut outer: Vec<f64> = (0..width * width).map(|i| (i % 11) as f64 / 3.0).collect();
    let (got_sum, got_outer) = on_device(&chunks, &sum, &outer);
    let (sum_before, outer_before) = (sum.clone(), outer.clone());
    for rows in &chunks {
        add_moments(rows, &mut sum, Some(&mut outer));
    }
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&got_sum) == bits(&sum), "sums of {width} columns");
    for i in 0..width {
        for j in 0..width {
            let at = i * width + j;
            let want = if j <= i { outer[at] } else { outer_before[at] };
            assert!(
                got_outer[at].to_bits() == want.to_bits(),
                "({i}, {j}) of {width}: {} and not {want}",
                got_outer[at]
            );
        }
    }
    // By the definition, so that CPU and device are not wrong together.
    let of = |j: usize| {
        chunks
            .iter()
            .flat_map(move |rows| rows.iter().skip(j).step_by(width))
    };
    let (i, j) = (width - 1, width / 2);
    let want = outer_before[i * width + j]
        + (of(i).zip(of(j)))
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>();
    let got = got_outer[i * width + j];
    assert!(
        (got - want).abs() <= 1e-5 * (1.0 + want.abs()),
        "{got}, not {want}"
    );
    let want = sum_before[j] + of(j).map(|&x| f64::from(x)).sum::<f64>();
    assert!((got_sum[j] - want).abs() <= 1e-9 * (1.0 + want.abs()));
}

#[test]
fn a_whole_chunk_and_the_next_have_the_bits_of_the_cpu() {
    check(&[MOMENT_ROWS, 113], 70);
}

proptest! {
    #![proptest_config(cases(3))]
    #[test]
    fn any_sizes_have_the_bits_of_the_cpu(first in 1usize..130, second in 1usize..20, width in 1usize..140) {
        check(&[first, second], width);
    }
}
