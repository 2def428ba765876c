use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::rms_norm::{RmsNorm, RmsNormArgs};

use crate::harness::{Buffer, Element, Gpu, assert_rounded, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_near, assert_same_bits};

const EPS: f32 = 1e-5;

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    width: usize,
    /// Elements between rows.
    gap: usize,
    add: bool,
    seed: u64,
}

struct Inputs<R, C> {
    x: Vec<R>,
    y: Option<Vec<C>>,
    gain: Vec<C>,
}

impl<R: Element, C: Element> Inputs<R, C> {
    /// With an even seed one element is as large as those that real models carry in a few dimensions.
    fn of(case: Case) -> Self {
        let len = case.rows * case.width;
        let mut x: Vec<R> = normal(len, case.seed, 1.5);
        if case.seed.is_multiple_of(2) {
            x[case.seed as usize % len] = R::round(25_000.0);
        }
        Inputs {
            x,
            y: case.add.then(|| normal(len, case.seed + 1, 1.0)),
            gain: normal(case.width, case.seed + 2, 1.0),
        }
    }

    fn resid(&self) -> Vec<R> {
        match &self.y {
            None => self.x.clone(),
            Some(y) => (self.x.iter().zip(y))
                .map(|(x, y)| R::round(x.wide() + y.wide()))
                .collect(),
        }
    }
}

/// What one launch wrote, rows packed.
struct Outputs<R, C> {
    resid: Vec<R>,
    scale: Vec<f32>,
    normalized: Vec<C>,
    out: Vec<C>,
    /// `out` of a launch that was asked for nothing else.
    alone: Vec<C>,
    /// `out` of a launch of the last row only.
    last: Vec<C>,
}

fn run<R: Element, C: Element>(case: Case, inputs: &Inputs<R, C>) -> Outputs<R, C> {
    let at = Layout::with_gaps(case.rows, case.width, case.gap);
    let stride = at.stride as u64;
    let norm = RmsNorm {
        dtype: C::DTYPE,
        f32_resid: R::DTYPE != C::DTYPE,
    };
    let launch = |gpu: &mut Gpu| {
        let x = gpu.input(&at.lay(&inputs.x));
        let y = inputs.y.as_ref().map(|y| gpu.input(&at.lay(y)));
        let gain = gpu.input(&inputs.gain);
        let y_at = |i: usize| y.as_ref().map_or(DevicePtr::NULL, |y| y.at(i));
        let args = |first_row: usize, rows: usize, out: &Buffer<C>| RmsNormArgs {
            x: x.at(at.offset + first_row * at.stride),
            y: y_at(at.offset + first_row * at.stride),
            gain: gain.ptr(),
            resid_out: DevicePtr::NULL,
            scale: DevicePtr::NULL,
            normalized: DevicePtr::NULL,
            out: out.at(at.offset),
            x_stride: stride,
            y_stride: stride,
            resid_stride: stride,
            normalized_stride: stride,
            out_stride: stride,
            rows: rows as u32,
            width: case.width as u32,
            eps: EPS,
            _pad: 0,
        };
        let (resid, normalized) = (gpu.canvas::<R>(at.len()), gpu.canvas::<C>(at.len()));
        let scale = gpu.output::<f32>(case.rows);
        let [out, alone] = [(); 2].map(|()| gpu.canvas::<C>(at.len()));
        let one = Layout { rows: 1, ..at };
        let last = gpu.canvas::<C>(one.len());
        gpu.launch(
            &norm,
            &RmsNormArgs {
                resid_out: resid.at(at.offset),
                scale: scale.ptr(),
                normalized: normalized.at(at.offset),
                ..args(0, case.rows, &out)
            },
        );
        gpu.launch(&norm, &args(0, case.rows, &alone));
        gpu.launch(&norm, &args(case.rows - 1, 1, &last));
        Outputs {
            resid: at.take(&gpu.read(&resid)),
            scale: gpu.read(&scale),
            normalized: at.take(&gpu.read(&normalized)),
            out: at.take(&gpu.read(&out)),
            alone: at.take(&gpu.read(&alone)),
            last: one.take(&gpu.read(&last)),
        }
    };
    on_every_schedule(launch)
}

fn check<R: Element, C: Element>(case: Case) {
    let inputs = Inputs::<R, C>::of(case);
    let got = run(case, &inputs);
    let resid = inputs.resid();
    let what = format!("{case:?}");
    assert_same_bits(&format!("{what}: resid"), &got.resid, &resid);

    let mut scales = Vec::new();
    let mut normalized = Vec::new();
    for row in resid.chunks_exact(case.width) {
        let mean = row.iter().map(|x| x.wide().powi(2)).sum::<f64>() / case.width as f64;
        let scale = (mean + f64::from(EPS)).sqrt();
        normalized.extend(row.iter().map(|x| x.wide() / scale));
        scales.push(scale);
    }
    assert_near(&format!("{what}: scale"), &got.scale, &scales, 4e-7, 0.0);
    let name = format!("{what}: normalized");
    if size_of::<C>() == 4 {
        assert_near(&name, &got.normalized, &normalized, 6e-7, 0.0);
    } else {
        assert_rounded(&name, &got.normalized, &normalized, 6e-7);
    }
    // From the kernel's own rounded value on, the last product has one right answer.
    let want: Vec<C> = (got.normalized.iter().enumerate())
        .map(|(i, n)| C::round(n.wide() * inputs.gain[i % case.width].wide()))
        .collect();
    assert_same_bits(&format!("{what}: out"), &got.out, &want);
    assert_same_bits("out alone", &got.alone, &want);
    let last = &want[(case.rows - 1) * case.width..];
    assert_same_bits("the last row alone", &got.last, last);
}

fn check_all(case: Case) {
    check::<bf16, bf16>(case);
    check::<f16, f16>(case);
    check::<f32, f32>(case);
    check::<f32, bf16>(case);
    check::<f32, f16>(case);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn rows_of_any_width_are_normalised(
        rows in 1usize..4, eighths in 1usize..150, gap in (0usize..3).prop_map(|g| g * 8), add: bool, seed in 0u64..1 << 32,
    ) {
        check_all(Case { rows, width: eighths * 8, gap, add, seed });
    }
}

#[test]
fn rows_wider_than_a_block_reaches_at_once_are_normalised() {
    for width in [2048, 2056, 16384] {
        check_all(Case {
            rows: 2,
            width,
            gap: 0,
            add: true,
            seed: width as u64,
        });
    }
}

#[test]
fn a_row_of_zeros_stays_zero() {
    let got = on_every_schedule(|gpu| {
        let x = gpu.input(&[0f32; 24]);
        let gain = gpu.input(&[3f32; 24]);
        let (scale, out) = (gpu.output::<f32>(1), gpu.output::<f32>(24));
        let args = RmsNormArgs {
            x: x.ptr(),
            gain: gain.ptr(),
            scale: scale.ptr(),
            out: out.ptr(),
            x_stride: 24,
            out_stride: 24,
            rows: 1,
            width: 24,
            eps: EPS,
            ..bytemuck::Zeroable::zeroed()
        };
        let norm = RmsNorm {
            dtype: f32::DTYPE,
            f32_resid: false,
        };
        gpu.launch(&norm, &args);
        (gpu.read(&scale), gpu.read(&out))
    });
    assert_near("scale", &got.0, &[f64::from(EPS).sqrt()], 2e-7, 0.0);
    assert_eq!(got.1, [0.0; 24]);
}

#[test]
fn the_sum_may_replace_the_residual_it_was_made_from() {
    let (width, x, y) = (40, normal::<bf16>(80, 5, 2.0), normal::<bf16>(80, 6, 2.0));
    let got = on_every_schedule(|gpu| {
        let (x, y) = (gpu.in_place(&x), gpu.input(&y));
        let gain = gpu.input(&vec![bf16::ONE; width]);
        let out = gpu.output::<bf16>(2 * width);
        let args = RmsNormArgs {
            x: x.ptr(),
            y: y.ptr(),
            gain: gain.ptr(),
            resid_out: x.ptr(),
            out: out.ptr(),
            x_stride: 40,
            y_stride: 40,
            resid_stride: 40,
            out_stride: 40,
            rows: 2,
            width: 40,
            eps: EPS,
            ..bytemuck::Zeroable::zeroed()
        };
        let norm = RmsNorm {
            dtype: bf16::DTYPE,
            f32_resid: false,
        };
        gpu.launch(&norm, &args);
        gpu.read(&x)
    });
    let want: Vec<bf16> = (x.iter().zip(&y))
        .map(|(x, y)| bf16::round(x.wide() + y.wide()))
        .collect();
    assert_same_bits("resid", &got, &want);
}
