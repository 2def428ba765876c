//! Scores and patterns of chosen rows and heads against the oracle of attention's tests, and against what attention itself made.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::attention_scores::{
    Asked, AttentionScores, AttentionScoresArgs,
};

use super::attention::{Problem, Shape, launch, tiny, unit};
use crate::harness::{Element, Random, cases, is_poison, on_every_schedule, ulps};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Scores,
    Patterns,
}

/// Which rows of each sample, and which heads.
#[derive(Clone, Debug)]
struct Selection {
    rows: Vec<Vec<u32>>,
    heads: Vec<u32>,
}

impl Selection {
    fn all(shape: &Shape) -> Selection {
        Selection {
            rows: shape
                .lens
                .iter()
                .map(|&n| (0..n as u32).collect())
                .collect(),
            heads: (0..shape.n_heads() as u32).collect(),
        }
    }

    /// Each row and head with probability one half; some samples ask for nothing.
    fn random(shape: &Shape, random: &mut Random) -> Selection {
        let mut some = |n: usize, chance: f64| -> Vec<u32> {
            (0..n as u32).filter(|_| random.unit() < chance).collect()
        };
        let mut heads = some(shape.n_heads(), 0.5);
        if heads.is_empty() {
            heads.push(shape.n_heads() as u32 - 1);
        }
        let mut rows: Vec<Vec<u32>> = shape
            .lens
            .iter()
            .enumerate()
            .map(|(sample, &n)| some(n, [0.5, 0.0, 0.05][sample % 3]))
            .collect();
        if rows.iter().all(Vec::is_empty) {
            rows[0].push(shape.lens[0] as u32 - 1);
        }
        Selection { rows, heads }
    }
}

/// Elements between the tensors of two samples, that the kernel must leave alone.
const GAP: usize = 3;

/// `[heads, selected rows, n]` of each sample.
#[track_caller]
fn read_out<T: Element, S: Element>(
    problem: &Problem<T>,
    selection: &Selection,
    wanted: Wanted,
) -> Vec<Vec<S>> {
    let shape = &problem.shape;
    let kernel = AttentionScores {
        dtype: T::DTYPE,
        head_dim: problem.head_dim as u32,
    };
    let mut asked = Vec::new();
    let (mut selected, mut len) = (Vec::<u32>::new(), GAP);
    for (sample, rows) in shape.samples().iter().zip(&selection.rows) {
        let begins = selected.len() as u32;
        selected.extend(rows);
        asked.push(Asked {
            rows: sample.start as u32..sample.end as u32,
            selected: begins..selected.len() as u32,
            out: len as u64,
        });
        len += selection.heads.len() * rows.len() * sample.len() + GAP;
    }
    let list = kernel.tiles(&asked);
    let out = on_every_schedule(|gpu| {
        let qkv = gpu.input(&problem.qkv);
        let lse = (wanted == Wanted::Patterns).then(|| {
            let lse = gpu.output::<f32>(shape.n_heads() * shape.rows());
            launch(gpu, problem, &qkv, Some(&lse));
            lse
        });
        let tiles = gpu.input(&list);
        let selected = gpu.input(&selected);
        let heads = gpu.input(&selection.heads);
        let out = gpu.canvas::<S>(len);
        let [q, k, _] = problem.columns().map(|column| qkv.at(column));
        let args = AttentionScoresArgs {
            q,
            k,
            lse: lse.map_or(DevicePtr::NULL, |lse| lse.ptr()),
            out: out.ptr(),
            tiles: tiles.ptr(),
            selected: selected.ptr(),
            heads: heads.ptr(),
            q_stride: problem.stride as u32,
            k_stride: problem.stride as u32,
            n_heads: shape.n_heads() as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            rows: shape.rows() as u32,
            n_tiles: list.len() as u32,
            heads_kept: selection.heads.len() as u32,
            window: shape.window_arg(),
            out_dtype: AttentionScores::out_dtype(S::DTYPE),
            scale: problem.scale(),
        };
        gpu.launch(&kernel, &args);
        gpu.read(&out)
    });
    let mut tensors = Vec::new();
    let mut at = GAP;
    assert!(
        out[..GAP].iter().all(is_poison),
        "written before the first tensor"
    );
    for (asked, rows) in asked.iter().zip(&selection.rows) {
        let end = at + selection.heads.len() * rows.len() * asked.rows.len();
        assert!(
            out[end..end + GAP].iter().all(is_poison),
            "written after {asked:?}"
        );
        tensors.push(out[at..end].to_vec());
        at = end + GAP;
    }
    tensors
}

#[track_caller]
fn check<T: Element, S: Element>(problem: &Problem<T>, selection: &Selection, wanted: Wanted) {
    let tensors = read_out::<T, S>(problem, selection, wanted);
    for (sample, (range, tensor)) in problem.shape.samples().iter().zip(&tensors).enumerate() {
        let mut rows = tensor.chunks_exact(range.len());
        for &head in &selection.heads {
            for &i in &selection.rows[sample] {
                let row = rows.next().expect("a row per head and selected query");
                let place = format!(
                    "{:?}: sample {sample}, head {head}, query {i}",
                    problem.shape
                );
                check_row(
                    problem,
                    range,
                    head as usize,
                    i as usize,
                    row,
                    wanted,
                    &place,
                );
            }
        }
    }
}

fn check_row<T: Element, S: Element>(
    problem: &Problem<T>,
    sample: &std::ops::Range<usize>,
    head: usize,
    i: usize,
    row: &[S],
    wanted: Wanted,
    place: &str,
) {
    let query = problem.query(sample, head, i);
    let hidden = match wanted {
        Wanted::Scores => f64::NEG_INFINITY,
        Wanted::Patterns => 0.0,
    };
    // The log-sum-exp is off by as much as a score, and by its own rounding.
    let relative = 2.0 * query.score_error + 2f64.powi(-20) * (1.0 + query.lse.abs());
    for (j, &got) in row.iter().enumerate() {
        if !query.keys.contains(&j) {
            assert_eq!(got.wide(), hidden, "{place}, hidden key {j}");
            continue;
        }
        let (want, off) = match wanted {
            Wanted::Scores => {
                let score = query.scores[j - query.keys.start];
                (score, query.score_error + score.abs() * 2f64.powi(-23))
            }
            Wanted::Patterns => {
                let weight = query.weights[j - query.keys.start];
                (weight, relative * weight)
            }
        };
        let bound = off + unit::<S>() * want.abs() * (1.0 + 1e-6) + tiny::<S>();
        let off = (got.wide() - want).abs();
        assert!(
            off <= bound,
            "{place}, key {j}: {got:?}, should be {want}: {bound:e} allowed"
        );
    }
    if wanted == Wanted::Patterns {
        let off = (row.iter().map(|p| p.wide()).sum::<f64>() - 1.0).abs();
        let bound = relative + unit::<S>() + query.keys.len() as f64 * tiny::<S>();
        assert!(
            off <= bound,
            "{place}: the pattern sums to 1 + {off:e}, {bound:e} allowed"
        );
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let n = prop_oneof![Just(1usize), 2..20usize, 60..70usize, 120..200usize];
    let heads = proptest::sample::select(vec![(1, 1), (1, 3), (2, 2), (4, 1), (8, 1)]);
    let window = prop_oneof![
        Just(None),
        (1..64usize).prop_map(Some),
        (64..140usize).prop_map(Some)
    ];
    (prop::collection::vec(n, 1..4), heads, window).prop_map(
        |(lens, (group, n_kv_heads), window)| Shape::new(&lens, group, n_kv_heads, window),
    )
}

fn scores_and_patterns<T: Element>(head_dim: usize) {
    let shape = Shape::new(&[1, 131], 2, 1, Some(70));
    let problem = Problem::<T>::random(&shape, head_dim, 1);
    check::<T, f32>(&problem, &Selection::all(&shape), Wanted::Scores);
    check::<T, T>(&problem, &Selection::all(&shape), Wanted::Patterns);
    TestRunner::new(cases(if size_of::<T>() == 4 { 1 } else { 3 }))
        .run(&(shapes(), any::<u64>()), |(shape, seed)| {
            let problem = Problem::<T>::random(&shape, head_dim, seed);
            let selection = Selection::random(&shape, &mut Random(seed));
            check::<T, bf16>(&problem, &selection, Wanted::Scores);
            check::<T, f16>(&problem, &selection, Wanted::Scores);
            check::<T, f32>(&problem, &selection, Wanted::Patterns);
            Ok(())
        })
        .unwrap();
}

macro_rules! scores_and_patterns {
    ($($test:ident: $T:ty, $head_dim:literal;)*) => {
        $(#[test] fn $test() { scores_and_patterns::<$T>($head_dim); })*
    };
}

scores_and_patterns! {
    scores_and_patterns_bf16_h64: bf16, 64;
    scores_and_patterns_bf16_h80: bf16, 80;
    scores_and_patterns_bf16_h96: bf16, 96;
    scores_and_patterns_bf16_h128: bf16, 128;
    scores_and_patterns_f16_h64: f16, 64;
    scores_and_patterns_f16_h80: f16, 80;
    scores_and_patterns_f16_h96: f16, 96;
    scores_and_patterns_f16_h128: f16, 128;
    scores_and_patterns_f32_h64: f32, 64;
    scores_and_patterns_f32_h80: f32, 80;
    scores_and_patterns_f32_h96: f32, 96;
    scores_and_patterns_f32_h128: f32, 128;
}

#[test]
fn a_long_sample_is_read_out_span_by_span() {
    let shape = Shape::new(&[5, 1100], 1, 1, Some(600));
    let problem = Problem::<bf16>::random(&shape, 64, 2);
    let selection = Selection {
        rows: vec![vec![], vec![0, 511, 512, 1099]],
        heads: vec![0],
    };
    check::<bf16, f32>(&problem, &selection, Wanted::Scores);
}

#[test]
fn the_mask_is_exact_for_windows_around_a_tile() {
    for window in [1, 2, 63, 64, 65, 100, 149, 150] {
        let shape = Shape::new(&[150], 1, 1, Some(window));
        let selection = Selection::all(&shape);
        let problem = Problem::<f16>::random(&shape, 64, 3);
        check::<f16, f32>(&problem, &selection, Wanted::Scores);
    }
}

#[test]
fn kept_heads_come_in_the_order_given() {
    let shape = Shape::new(&[20], 2, 3, None);
    let selection = Selection {
        rows: vec![vec![3, 19]],
        heads: vec![5, 0, 2],
    };
    check::<bf16, f32>(&Problem::random(&shape, 64, 4), &selection, Wanted::Scores);
    check::<f32, f32>(
        &Problem::random(&shape, 64, 4),
        &selection,
        Wanted::Patterns,
    );
}

#[test]
fn a_row_has_the_same_bits_whatever_else_is_asked_for() {
    fn check<T: Element>() {
        let read = |lens: &[usize], rows: Vec<Vec<u32>>| {
            let problem = Problem::<T>::random(&Shape::new(lens, 1, 1, Some(90)), 80, 5);
            let heads = vec![0];
            read_out::<T, f32>(&problem, &Selection { rows, heads }, Wanted::Patterns)
        };
        let all = &read(&[130], vec![(0..130).collect()])[0];
        let few = &read(&[7, 130], vec![vec![2, 3], vec![5, 77, 129]])[1];
        for (few, i) in few.chunks_exact(130).zip([5, 77, 129]) {
            assert_eq!(few, &all[i * 130..][..130], "query {i}");
        }
    }
    check::<bf16>();
    check::<f32>();
}

/// With the unit vectors as values, z is the pattern that attention weighed them by.
#[test]
fn patterns_are_what_attention_weighed_the_values_by() {
    fn check<T: Element>(n: usize, head_dim: usize) {
        let shape = Shape::new(&[n], 1, 1, Some(90));
        let mut problem = Problem::<T>::random(&shape, head_dim, 6);
        let [_, _, v_at] = problem.columns();
        for (j, row) in problem.qkv.chunks_exact_mut(problem.stride).enumerate() {
            for (d, v) in row[v_at..v_at + head_dim].iter_mut().enumerate() {
                *v = T::round(f64::from(u8::from(d == j)));
            }
        }
        let (z, _) = super::attention::attend(&problem, false);
        let patterns = read_out::<T, T>(&problem, &Selection::all(&shape), Wanted::Patterns);
        for (at, &p) in patterns[0].iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let weight = z[i * head_dim + j];
            // P and z are each rounded once on the one way, the pattern on the other.
            assert!(
                ulps(p, weight) <= 2,
                "query {i}, key {j}: {p:?}, and attention had {weight:?}"
            );
        }
    }
    check::<bf16>(64, 64);
    check::<bf16>(120, 128);
    check::<f16>(90, 96);
}
