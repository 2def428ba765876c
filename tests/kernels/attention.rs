//! z and the log-sum-exp against softmax(scale · q·kᵀ)·v written out in float64.

use std::ops::Range;

use bytemuck::Zeroable;
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use streamgauge::backend::cuda::kernels::attention::{Attention, AttentionArgs};
use streamgauge::backend::cuda::{DevicePtr, Kernel};

use crate::harness::{
    Buffer, Element, Gpu, Random, assert_relative_l2, cases, is_poison, on_every_schedule,
};

/// Samples packed end to end, and their heads.
#[derive(Clone, Debug)]
pub struct Shape {
    pub lens: Vec<usize>,
    /// Query heads of each key/value head.
    pub group: usize,
    pub n_kv_heads: usize,
    pub window: Option<usize>,
}

impl Shape {
    pub fn new(lens: &[usize], group: usize, n_kv_heads: usize, window: Option<usize>) -> Shape {
        Shape {
            lens: lens.to_vec(),
            group,
            n_kv_heads,
            window,
        }
    }

    pub fn n_heads(&self) -> usize {
        self.group * self.n_kv_heads
    }

    pub fn rows(&self) -> usize {
        self.lens.iter().sum()
    }

    pub fn cu_seqlens(&self) -> Vec<u32> {
        let mut at = 0;
        let ends = self.lens.iter().map(|&n| {
            at += n as u32;
            at
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The rows of each sample.
    pub fn samples(&self) -> Vec<Range<usize>> {
        let bounds = self.cu_seqlens();
        let sample = |w: &[u32]| w[0] as usize..w[1] as usize;
        bounds.windows(2).map(sample).collect()
    }

    pub fn window_arg(&self) -> u32 {
        self.window.unwrap_or(0) as u32
    }

    /// The keys that query `i` of a sample sees.
    pub fn visible(&self, i: usize) -> Range<usize> {
        (i + 1).saturating_sub(self.window.unwrap_or(usize::MAX))..i + 1
    }
}

/// A shape with its packed q, k, v: `[rows, stride]`, the last columns of each row NaN.
pub struct Problem<T> {
    pub shape: Shape,
    pub head_dim: usize,
    pub stride: usize,
    pub qkv: Vec<T>,
}

/// Columns after q, k and v, and after z, that no kernel may touch.
pub const PADDING: usize = 8;

impl<T: Element> Problem<T> {
    /// Normally distributed; what a sample holds depends on its length and `seed` alone.
    pub fn random(shape: &Shape, head_dim: usize, seed: u64) -> Problem<T> {
        let width = (shape.group + 2) * shape.n_kv_heads * head_dim;
        let mut qkv = Vec::new();
        for &n in &shape.lens {
            let mut random = Random(seed ^ n as u64);
            for _ in 0..n {
                qkv.extend((0..width).map(|_| T::round(random.normal())));
                qkv.extend([T::round(f64::NAN); PADDING]);
            }
        }
        Problem {
            shape: shape.clone(),
            head_dim,
            stride: width + PADDING,
            qkv,
        }
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Columns where q, k and v begin.
    pub fn columns(&self) -> [usize; 3] {
        let (q, kv) = (self.shape.n_heads(), self.shape.n_kv_heads);
        [0, q * self.head_dim, (q + kv) * self.head_dim]
    }

    fn head(&self, row: usize, column: usize, head: usize) -> Vec<f64> {
        let at = row * self.stride + column + head * self.head_dim;
        let elements = &self.qkv[at..at + self.head_dim];
        elements.iter().map(|x| x.wide()).collect()
    }

    /// What query `i` of a sample sees through one head.
    pub fn query(&self, sample: &Range<usize>, head: usize, i: usize) -> Query {
        let kv_head = head / self.shape.group;
        let [q_at, k_at, v_at] = self.columns();
        let q = self.head(sample.start + i, q_at, head);
        let keys = self.shape.visible(i);
        let scale = f64::from(self.scale());
        let products: Vec<Vec<f64>> = keys
            .clone()
            .map(|j| self.head(sample.start + j, k_at, kv_head))
            .map(|k| q.iter().zip(&k).map(|(q, k)| q * k * scale).collect())
            .collect();
        let scores: Vec<f64> = products.iter().map(|p| p.iter().sum()).collect();
        let magnitude = products
            .iter()
            .map(|p| p.iter().map(|x| x.abs()).sum())
            .fold(0.0, f64::max);
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let lse = largest + total.ln();
        let weights = scores.iter().map(|s| (s - lse).exp()).collect();
        let values = keys
            .clone()
            .map(|j| self.head(sample.start + j, v_at, kv_head))
            .collect();
        Query {
            keys,
            scores,
            weights,
            values,
            lse,
            // A chain of h f32 additions, each off by a unit in the last place of the largest partial sum at worst.
            score_error: self.head_dim as f64 * 2f64.powi(-23) * magnitude,
        }
    }
}

pub struct Query {
    pub keys: Range<usize>,
    pub scores: Vec<f64>,
    /// They sum to 1.
    pub weights: Vec<f64>,
    values: Vec<Vec<f64>>,
    pub lse: f64,
    /// How far an f32 score may be from the exact one.
    pub score_error: f64,
}

impl Query {
    /// Element `d` of z, and how far it may be off in T: a rounding of each weight, one of the result, and f32 between.
    fn z<T: Element>(&self, d: usize) -> (f64, f64) {
        let terms = || self.weights.iter().zip(&self.values);
        let z: f64 = terms().map(|(w, v)| w * v[d]).sum();
        let magnitude: f64 = terms().map(|(w, v)| w * v[d].abs()).sum();
        let f32_error = 2.0 * self.score_error + (self.keys.len() + 64) as f64 * 2f64.powi(-23);
        let unit = unit::<T>();
        // Below f16's normal numbers the error of a weight is absolute.
        let subnormal: f64 =
            self.values.iter().map(|v| v[d].abs() + 1.0).sum::<f64>() * tiny::<T>();
        (
            z,
            unit * (z.abs() + magnitude) + f32_error * magnitude + subnormal,
        )
    }
}

/// Half a unit in the last place of 1.
pub fn unit<T: Element>() -> f64 {
    2f64.powi(match size_of::<T>() {
        4 => -24,
        _ if T::round(65536.0).wide().is_finite() => -8,
        _ => -11,
    })
}

/// Half of the least subnormal.
pub fn tiny<T: Element>() -> f64 {
    match size_of::<T>() {
        2 if T::round(65536.0).wide().is_infinite() => 2f64.powi(-25),
        _ => 2f64.powi(-126), // flushed
    }
}

/// Launches the kernel: z `[rows, H · h + PADDING]` and, if asked for, lse `[H, rows]`.
#[track_caller]
pub fn launch<T: Element>(
    gpu: &mut Gpu,
    problem: &Problem<T>,
    qkv: &Buffer<T>,
    lse: Option<&Buffer<f32>>,
) -> Buffer<T> {
    let shape = &problem.shape;
    let z_stride = shape.n_heads() * problem.head_dim + PADDING;
    let kernel = Attention {
        dtype: T::DTYPE,
        head_dim: problem.head_dim as u32,
    };
    let bounds = shape.cu_seqlens();
    let tiles = kernel.tiles(&bounds, shape.window_arg());
    let cu_seqlens = gpu.input(&bounds);
    let list = gpu.input(&tiles);
    let z = gpu.canvas::<T>(shape.rows() * z_stride);
    let [q, k, v] = problem.columns().map(|column| qkv.at(column));
    let args = AttentionArgs {
        q,
        k,
        v,
        z: z.ptr(),
        lse: lse.map_or(DevicePtr::NULL, |lse| lse.ptr()),
        cu_seqlens: cu_seqlens.ptr(),
        tiles: list.ptr(),
        q_stride: problem.stride as u32,
        k_stride: problem.stride as u32,
        v_stride: problem.stride as u32,
        z_stride: z_stride as u32,
        n_heads: shape.n_heads() as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        rows: shape.rows() as u32,
        n_tiles: tiles.len() as u32,
        window: shape.window_arg(),
        scale: problem.scale(),
    };
    gpu.launch(&kernel, &args);
    z
}

/// z `[rows, H · h]` and, if asked for, lse `[H, rows]`.
#[track_caller]
pub fn attend<T: Element>(problem: &Problem<T>, with_lse: bool) -> (Vec<T>, Vec<f32>) {
    let shape = &problem.shape;
    let (rows, width) = (shape.rows(), shape.n_heads() * problem.head_dim);
    let (z, lse) = on_every_schedule(|gpu| {
        let qkv = gpu.input(&problem.qkv);
        let lse = with_lse.then(|| gpu.output::<f32>(shape.n_heads() * rows));
        let z = launch(gpu, problem, &qkv, lse.as_ref());
        (gpu.read(&z), lse.map_or(Vec::new(), |lse| gpu.read(&lse)))
    });
    let mut dense = Vec::with_capacity(rows * width);
    for row in z.chunks_exact(width + PADDING) {
        let (row, padding) = row.split_at(width);
        assert!(
            padding.iter().all(is_poison),
            "z was written beyond its rows"
        );
        dense.extend_from_slice(row);
    }
    (dense, lse)
}

#[track_caller]
fn check<T: Element>(problem: &Problem<T>) {
    check_within(problem, if size_of::<T>() == 4 { 1e-6 } else { 5e-3 });
}

/// z and lse against the oracle, element by element and in the norm.
#[track_caller]
fn check_within<T: Element>(problem: &Problem<T>, gate: f64) {
    let (z, lse) = attend(problem, true);
    let (rows, heads, h) = (
        problem.shape.rows(),
        problem.shape.n_heads(),
        problem.head_dim,
    );
    let mut want = vec![0.0; z.len()];
    for sample in problem.shape.samples() {
        for (i, row) in sample.clone().enumerate() {
            for head in 0..heads {
                let query = problem.query(&sample, head, i);
                let place = format!("{:?}: row {row}, query {i}, head {head}", problem.shape);
                let off = (f64::from(lse[head * rows + row]) - query.lse).abs();
                let bound = query.score_error + 2f64.powi(-20) * (1.0 + query.lse.abs());
                assert!(
                    off <= bound,
                    "{place}: lse is off by {off:e}, {bound:e} allowed"
                );
                for d in 0..h {
                    let at = row * heads * h + head * h + d;
                    let (exact, bound) = query.z::<T>(d);
                    want[at] = exact;
                    let off = (z[at].wide() - exact).abs();
                    assert!(
                        off <= bound,
                        "{place}: z[{d}] is {}, should be {exact}: {bound:e} allowed",
                        z[at].wide()
                    );
                }
            }
        }
    }
    assert_relative_l2("z", &z, &want, gate);
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

/// A few shapes that hold all the edges, then random ones.
fn z_is_attention<T: Element>(head_dim: usize) {
    for shape in [
        Shape::new(&[1, 131, 37], 2, 1, None),
        Shape::new(&[200], 1, 1, Some(50)),
    ] {
        check(&Problem::<T>::random(&shape, head_dim, 1));
    }
    // Without tensor cores the interpreter has ten times the instructions to run.
    TestRunner::new(cases(if size_of::<T>() == 4 { 1 } else { 4 }))
        .run(&(shapes(), any::<u64>()), |(shape, seed)| {
            check(&Problem::<T>::random(&shape, head_dim, seed));
            Ok(())
        })
        .unwrap();
}

macro_rules! z_is_attention {
    ($($test:ident: $T:ty, $head_dim:literal;)*) => {
        $(#[test] fn $test() { z_is_attention::<$T>($head_dim); })*
    };
}

z_is_attention! {
    z_is_attention_bf16_h64: bf16, 64;
    z_is_attention_bf16_h80: bf16, 80;
    z_is_attention_bf16_h96: bf16, 96;
    z_is_attention_bf16_h128: bf16, 128;
    z_is_attention_f16_h64: f16, 64;
    z_is_attention_f16_h80: f16, 80;
    z_is_attention_f16_h96: f16, 96;
    z_is_attention_f16_h128: f16, 128;
    z_is_attention_f32_h64: f32, 64;
    z_is_attention_f32_h80: f32, 80;
    z_is_attention_f32_h96: f32, 96;
    z_is_attention_f32_h128: f32, 128;
}

#[test]
fn queries_share_the_key_and_value_head_of_their_group() {
    for (group, n_kv_heads) in [(1, 4), (2, 2), (4, 2), (8, 1)] {
        let shape = Shape::new(&[19], group, n_kv_heads, None);
        check(&Problem::<bf16>::random(&shape, 64, 2));
        check(&Problem::<f32>::random(&shape, 64, 2));
    }
}

#[test]
fn windows_of_all_sizes_keep_as_many_keys_as_they_say() {
    for window in [
        2, 3, 4, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 149, 150, 151,
    ] {
        let shape = Shape::new(&[150], 1, 1, Some(window));
        check(&Problem::<f16>::random(&shape, 64, 3));
    }
    for window in [2, 4, 31, 32, 33, 64] {
        let shape = Shape::new(&[70], 1, 1, Some(window));
        check(&Problem::<f32>::random(&shape, 64, 3));
    }
}

#[test]
fn a_window_of_one_key_returns_the_values_themselves() {
    fn check<T: Element>() {
        let problem = Problem::<T>::random(&Shape::new(&[1, 140, 66], 2, 2, Some(1)), 80, 4);
        let (z, _) = attend(&problem, false);
        let [_, _, v_at] = problem.columns();
        for (row, z) in z.chunks_exact(4 * 80).enumerate() {
            for (head, z) in z.chunks_exact(80).enumerate() {
                let at = row * problem.stride + v_at + head / 2 * 80;
                assert_eq!(z, &problem.qkv[at..at + 80], "row {row}, head {head}");
            }
        }
    }
    check::<bf16>();
    check::<f16>();
    check::<f32>();
}

/// Scores that rise along the sample move the running maximum at every step; those that fall leave it where it began.
#[test]
fn weights_far_apart_are_summed_as_near_ones_are() {
    fn check_slope<T: Element>(slope: f64) {
        let mut problem = Problem::<T>::random(&Shape::new(&[150], 1, 1, None), 64, 5);
        let [q_at, k_at, _] = problem.columns();
        for (i, row) in problem.qkv.chunks_exact_mut(problem.stride).enumerate() {
            row[q_at] = T::round(8.0);
            row[k_at] = T::round(slope * i as f64);
        }
        // A score of 40 holds 2e-6 less of its fraction than one of 1.
        check_within(&problem, if size_of::<T>() == 4 { 1e-5 } else { 5e-3 });
    }
    for slope in [0.25, -0.25] {
        check_slope::<bf16>(slope);
        check_slope::<f32>(slope);
    }
}

#[test]
fn a_sample_has_the_same_bits_wherever_it_is_packed() {
    fn check<T: Element>(window: Option<usize>) {
        let packed = |lens: &[usize]| {
            let shape = Shape::new(lens, 2, 1, window);
            attend(&Problem::<T>::random(&shape, 96, 6), true)
        };
        let n = 141;
        let (z, lse) = packed(&[n]);
        let width = 2 * 96;
        for (lens, before) in [(vec![n, 30], 0), (vec![130, 0, n], 130), (vec![1, n, 7], 1)] {
            let rows: usize = lens.iter().sum();
            let (all_z, all_lse) = packed(&lens);
            let here = &all_z[before * width..(before + n) * width];
            assert!(here == z, "{lens:?}: z differs");
            for head in 0..2 {
                let at = head * rows + before;
                assert_eq!(
                    all_lse[at..at + n],
                    lse[head * n..(head + 1) * n],
                    "{lens:?}"
                );
            }
        }
    }
    check::<bf16>(None);
    check::<f16>(Some(70));
    check::<f32>(Some(70));
}

#[test]
fn values_of_other_samples_and_of_tiles_outside_the_window_are_not_read() {
    fn check<T: Element>() {
        let shape = Shape::new(&[40, 200, 40], 1, 1, Some(10));
        let mut problem = Problem::<T>::random(&shape, 64, 7);
        let clean = attend(&problem, false).0;
        // Not a number: the neighbours, and what the queries of the second tile cannot see.
        for row in (0..40).chain(40..104).chain(240..280) {
            let at = row * problem.stride;
            problem.qkv[at..at + 3 * 64].fill(T::round(f64::NAN));
        }
        let dirty = attend(&problem, false).0;
        let seen = (40 + 128) * 64..240 * 64;
        assert!(dirty[seen.clone()] == clean[seen]);
    }
    check::<bf16>();
    check::<f32>();
}

#[test]
fn the_log_sum_exp_is_optional() {
    let problem = Problem::<bf16>::random(&Shape::new(&[70], 1, 1, None), 64, 8);
    assert!(attend(&problem, true).0 == attend(&problem, false).0);
}

#[test]
fn arguments_that_the_kernel_cannot_take_are_refused() {
    let kernel = Attention {
        dtype: bf16::DTYPE,
        head_dim: 64,
    };
    let good = AttentionArgs {
        q: DevicePtr(256),
        k: DevicePtr(512),
        v: DevicePtr(768),
        z: DevicePtr(1024),
        cu_seqlens: DevicePtr(2048),
        tiles: DevicePtr(4096),
        q_stride: 256,
        k_stride: 256,
        v_stride: 256,
        z_stride: 128,
        n_heads: 2,
        n_kv_heads: 1,
        rows: 1,
        n_tiles: 1,
        scale: 0.125,
        ..AttentionArgs::zeroed()
    };
    assert_eq!(kernel.check(&good), Ok(()));
    type Spoil = fn(&mut AttentionArgs);
    let refused: [(&str, Spoil); 7] = [
        ("n_heads is 3, not a multiple of 2", |a| {
            (a.n_heads, a.n_kv_heads) = (3, 2);
        }),
        ("q's row stride is 252", |a| a.q_stride = 252),
        ("z's row stride is 64", |a| a.z_stride = 64),
        ("k is at 0x8", |a| a.k = DevicePtr(8)),
        ("lse is at 0x2", |a| a.lse = DevicePtr(2)),
        ("window is 2147483648", |a| a.window = 1 << 31),
        ("n_tiles is 0", |a| a.n_tiles = 0),
    ];
    for (why, spoil) in refused {
        let mut args = good;
        spoil(&mut args);
        let error = kernel.check(&args).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let odd = Attention {
        dtype: bf16::DTYPE,
        head_dim: 72,
    };
    assert!(odd.check(&good).unwrap_err().contains("head dim is 72"));
}
