use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::head::{Kl, KlArgs, LogSoftmax, LogSoftmaxArgs};

use crate::harness::{Element, Random, cases, normal, on_every_schedule, wide};
use crate::layout::{Layout, assert_near, assert_same_bits};

fn log_sum_exp(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let log_sum = log_sum_exp(row);
    row.iter().map(|x| x - log_sum).collect()
}

/// Σ p·x, a term of probability 0 being 0.
fn expectation(log_p: &[f64], x: impl Iterator<Item = f64>) -> f64 {
    (log_p.iter().zip(x))
        .map(|(p, x)| {
            if *p == f64::NEG_INFINITY {
                0.0
            } else {
                p.exp() * x
            }
        })
        .sum()
}

struct Stats {
    largest: Vec<f32>,
    log_sum_exp: Vec<f32>,
    entropy: Vec<f32>,
    argmax: Vec<u32>,
    token_log_probs: Vec<f32>,
}

fn run<T: Element>(at: Layout, x: &[T], rows: &[u32], tokens: &[u32]) -> Stats {
    let n = rows.len();
    on_every_schedule(|gpu| {
        let logits = gpu.input(&at.lay(x));
        let (rows, tokens_in) = (gpu.input(rows), gpu.input(tokens));
        let [largest, log_sum_exp, entropy] = [(); 3].map(|()| gpu.output::<f32>(n));
        let argmax = gpu.output::<u32>(n);
        let token_log_probs = gpu.output::<f32>(tokens.len());
        gpu.launch(
            &LogSoftmax { dtype: T::DTYPE },
            &LogSoftmaxArgs {
                logits: logits.at(at.offset),
                rows: rows.ptr(),
                tokens: tokens_in.ptr(),
                largest: largest.ptr(),
                log_sum_exp: log_sum_exp.ptr(),
                entropy: entropy.ptr(),
                argmax: argmax.ptr(),
                token_log_probs: token_log_probs.ptr(),
                stride: at.stride as u64,
                selected: n as u32,
                vocab: at.width as u32,
                tokens_per_row: (tokens.len() / n) as u32,
                _pad: 0,
            },
        );
        Stats {
            largest: gpu.read(&largest),
            log_sum_exp: gpu.read(&log_sum_exp),
            entropy: gpu.read(&entropy),
            argmax: gpu.read(&argmax),
            token_log_probs: gpu.read(&token_log_probs),
        }
    })
}

fn check<T: Element>(at: Layout, x: &[T], rows: &[u32], tokens: &[u32]) {
    let got = run(at, x, rows, tokens);
    let (mut largest, mut log_sums, mut entropies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut argmax, mut log_probs) = (Vec::new(), Vec::new());
    for (&r, tokens) in rows
        .iter()
        .zip(tokens.chunks_exact(tokens.len() / rows.len()))
    {
        let row = wide(&x[r as usize * at.width..][..at.width]);
        let log_p = log_softmax(&row);
        // max_by takes the last of equals.
        let best = (0..row.len())
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]));
        argmax.push(best.unwrap_or(0) as u32);
        largest.push(row[best.unwrap_or(0)] as f32);
        log_sums.push(log_sum_exp(&row));
        entropies.push(expectation(&log_p, log_p.iter().map(|p| -p)));
        log_probs.extend(tokens.iter().map(|&t| log_p[t as usize]));
    }
    assert_eq!(got.argmax, argmax, "argmax");
    assert_same_bits("largest", &got.largest, &largest);
    assert_near("log-sum-exp", &got.log_sum_exp, &log_sums, 5e-7, 1.0);
    assert_near("entropy", &got.entropy, &entropies, 1e-6, 1.0);
    assert_near(
        "log-probabilities",
        &got.token_log_probs,
        &log_probs,
        1e-6,
        1.0,
    );
}

fn kl<T: Element>(at: Layout, x: &[T], pairs: &[(u32, u32)]) -> Vec<f32> {
    let p: Vec<u32> = pairs.iter().map(|pair| pair.0).collect();
    let q: Vec<u32> = pairs.iter().map(|pair| pair.1).collect();
    on_every_schedule(|gpu| {
        let logits = gpu.input(&at.lay(x));
        let (p, q) = (gpu.input(&p), gpu.input(&q));
        let out = gpu.output::<f32>(pairs.len());
        gpu.launch(
            &Kl { dtype: T::DTYPE },
            &KlArgs {
                p: logits.at(at.offset),
                q: logits.at(at.offset),
                p_rows: p.ptr(),
                q_rows: q.ptr(),
                out: out.ptr(),
                p_stride: at.stride as u64,
                q_stride: at.stride as u64,
                selected: pairs.len() as u32,
                vocab: at.width as u32,
            },
        );
        gpu.read(&out)
    })
}

fn check_kl<T: Element>(at: Layout, x: &[T], pairs: &[(u32, u32)]) {
    let row = |r: u32| log_softmax(&wide(&x[r as usize * at.width..][..at.width]));
    let want: Vec<f64> = (pairs.iter())
        .map(|&(p, q)| {
            let (log_p, log_q) = (row(p), row(q));
            expectation(&log_p, log_p.iter().zip(&log_q).map(|(p, q)| p - q))
        })
        .collect();
    assert_near("kl", &kl(at, x, pairs), &want, 1e-6, 1e-6);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn statistics_of_a_row_are_those_of_its_softmax(
        rows in 1usize..4, vocab in 1usize..5000, gap in 0usize..9, spread in 0.1..20.0, seed: u64,
    ) {
        fn of<T: Element>(at: Layout, spread: f64, seed: u64) {
            let mut random = Random(seed);
            let x: Vec<T> = normal(at.rows * at.width, seed, spread);
            let rows: Vec<u32> = (0..2).map(|_| random.below(at.rows) as u32).collect();
            let tokens: Vec<u32> = (0..6).map(|_| random.below(at.width) as u32).collect();
            check(at, &x, &rows, &tokens);
            let last = at.rows as u32 - 1;
            check_kl(at, &x, &[(0, last), (last, 0), (0, 0)]);
        }
        let at = Layout::with_gaps(rows, vocab, gap);
        of::<bf16>(at, spread, seed);
        of::<f16>(at, spread, seed);
        of::<f32>(at, spread, seed);
    }
}

#[test]
fn the_first_of_equal_logits_is_the_argmax_and_equal_logits_are_uniform() {
    let at = Layout::packed(1, 4099);
    check(at, &vec![7.25f32; 4099], &[0], &[4098]);
}

#[test]
fn a_masked_token_has_no_part_in_entropy_and_divergence() {
    let at = Layout::packed(2, 16);
    let mut x: Vec<f32> = normal(32, 9, 2.0);
    x[3] = f32::NEG_INFINITY;
    check(at, &x, &[0, 1], &[1, 2]);
    check_kl(at, &x, &[(0, 1)]);
    assert_eq!(kl(at, &x, &[(1, 0)]), [f32::INFINITY]);
}

#[test]
fn near_distributions_have_a_small_divergence_that_is_not_lost() {
    let at = Layout::packed(2, 3000);
    let first: Vec<f32> = normal(3000, 4, 3.0);
    let mut noise = Random(5);
    let second = first.iter().map(|x| x + 1e-3 * noise.normal() as f32);
    let x: Vec<f32> = first.iter().copied().chain(second).collect();
    let want = {
        let (p, q) = (
            log_softmax(&wide(&x[..3000])),
            log_softmax(&wide(&x[3000..])),
        );
        expectation(&p, p.iter().zip(&q).map(|(p, q)| p - q))
    };
    assert!(want < 1e-5, "{want}");
    let got = kl(at, &x, &[(0, 1), (0, 0)]);
    assert_near("kl", &got, &[want, 0.0], 1e-6, 1e-12);
}

#[test]
fn nothing_is_written_that_was_not_asked_for() {
    let got = on_every_schedule(|gpu| {
        let logits = gpu.input(&[1.0f32, 3.0, 2.0]);
        let argmax = gpu.output::<u32>(1);
        gpu.launch(
            &LogSoftmax { dtype: f32::DTYPE },
            &LogSoftmaxArgs {
                logits: logits.ptr(),
                argmax: argmax.ptr(),
                stride: 3,
                selected: 1,
                vocab: 3,
                rows: DevicePtr::NULL,
                ..bytemuck::Zeroable::zeroed()
            },
        );
        gpu.read(&argmax)
    });
    assert_eq!(got, [1]);
}
