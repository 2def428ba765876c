use half::{bf16, f16};
use proptest::prelude::*;
use std::ops::Range;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::edit::{Edit, EditArgs, EditKind};
use streamgauge::backend::cuda::kernels::segments;

use crate::harness::{Element, Random, assert_op_by_op, cases, normal, on_every_schedule, wide};
use crate::layout::{Layout, assert_near, assert_same_bits};

#[derive(Debug, Clone)]
struct Case {
    x: Layout,
    /// Each at most once.
    rows: Option<Vec<u32>>,
    columns: Vec<Range<usize>>,
    edit: EditKind,
    /// One v per row, one for all, or none (zeros).
    v: Option<Vec<f32>>,
    c: f32,
    bounds: (f32, f32),
}

impl Case {
    fn width(&self) -> usize {
        self.columns.iter().map(|c| c.len()).sum()
    }

    fn selected(&self) -> Vec<usize> {
        match &self.rows {
            Some(rows) => rows.iter().map(|&r| r as usize).collect(),
            None => (0..self.x.rows).collect(),
        }
    }

    /// The columns of row `r`, in order.
    fn places(&self, r: usize) -> impl Iterator<Item = usize> + '_ {
        (self.columns.iter().cloned().flatten()).map(move |column| r * self.x.width + column)
    }

    fn v_of(&self, i: usize) -> Vec<f32> {
        let width = self.width();
        match &self.v {
            None => vec![0.0; width],
            Some(v) if v.len() == width => v.clone(),
            Some(v) => v[i * width..][..width].to_vec(),
        }
    }

    /// The edited part of a row, edited.
    fn edited<T: Element>(&self, x: &[T], v: &[f32]) -> Vec<T> {
        let each = |f: &dyn Fn(f32, f32) -> f32| -> Vec<T> {
            (x.iter().zip(v))
                .map(|(x, &v)| T::round(f(x.wide() as f32, v).into()))
                .collect()
        };
        match self.edit {
            EditKind::Add => each(&|x, v| self.c.mul_add(v, x)),
            EditKind::Scale => each(&|x, _| self.c * x),
            EditKind::Replace => each(&|_, v| v),
            EditKind::Clamp => {
                // The kernel is given an f64 vector that f32 does not hold.
                let v: Vec<f64> = v.iter().map(|&v| of_f64(v)).collect();
                let p: f64 = (x.iter().zip(&v)).map(|(x, v)| x.wide() * v).sum();
                let limited = p.clamp(self.bounds.0.into(), self.bounds.1.into());
                if limited == p {
                    return x.to_vec();
                }
                (x.iter().zip(&v))
                    .map(|(x, v)| T::round(x.wide() + (limited - p) * v))
                    .collect()
            }
        }
    }
}

/// A number near to `v` that only f64 holds.
fn of_f64(v: f32) -> f64 {
    f64::from(v) * (1.0 + 2f64.powi(-30))
}

fn squares<T: Element>(x: &[T]) -> f64 {
    wide(x).iter().map(|x| x * x).sum()
}

struct Got<T> {
    x: Vec<T>,
    before: Vec<f64>,
    after: Vec<f64>,
}

fn run<T: Element>(case: &Case, x: &[T]) -> Got<T> {
    let table = segments(&case.columns);
    let selected = case.selected().len();
    on_every_schedule(|gpu| {
        let x = gpu.in_place(&case.x.lay(x));
        let rows = match &case.rows {
            Some(rows) => gpu.input(rows).ptr(),
            None => DevicePtr::NULL,
        };
        let v = match &case.v {
            Some(v) if case.edit == EditKind::Clamp => {
                let v: Vec<f64> = v.iter().map(|&v| of_f64(v)).collect();
                gpu.input(&v).ptr()
            }
            Some(v) => gpu.input(v).ptr(),
            None => DevicePtr::NULL,
        };
        let segments = gpu.input(&table);
        let (before, after) = (gpu.output::<f64>(selected), gpu.output::<f64>(selected));
        let one_for_all = case.v.as_ref().is_none_or(|v| v.len() == case.width());
        let edit = Edit {
            kind: case.edit,
            dtype: T::DTYPE,
        };
        gpu.launch(
            &edit,
            &EditArgs {
                x: x.at(case.x.offset),
                rows,
                segments: segments.ptr(),
                v,
                before: before.ptr(),
                after: after.ptr(),
                x_stride: case.x.stride as u64,
                v_stride: if one_for_all { 0 } else { case.width() as u64 },
                selected: selected as u32,
                segment_count: table.len() as u32,
                c: case.c,
                lo: case.bounds.0,
                hi: case.bounds.1,
                _pad: 0,
            },
        );
        Got {
            x: case.x.take(&gpu.read(&x)),
            before: gpu.read(&before),
            after: gpu.read(&after),
        }
    })
}

fn check<T: Element>(case: &Case, seed: u64) {
    let x: Vec<T> = normal(case.x.rows * case.x.width, seed, 3.0);
    let got = run(case, &x);
    let mut want = x.clone();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (i, r) in case.selected().into_iter().enumerate() {
        let part: Vec<T> = case.places(r).map(|at| x[at]).collect();
        before.push(squares(&part));
        for (at, edited) in case.places(r).zip(case.edited(&part, &case.v_of(i))) {
            want[at] = edited;
        }
        let got: Vec<T> = case.places(r).map(|at| got.x[at]).collect();
        after.push(squares(&got));
    }
    let what = format!("{case:?}");
    // The component of a clamp is a sum, whose last place depends on its order.
    match case.edit {
        EditKind::Clamp => assert_op_by_op(&what, &got.x, &want),
        _ => assert_same_bits(&what, &got.x, &want),
    }
    for (name, got, want) in [
        ("before", &got.before, before),
        ("after", &got.after, after),
    ] {
        for (got, want) in got.iter().zip(want) {
            assert!(
                (got - want).abs() <= 1e-13 * want,
                "{what}: norm² {name} is {got}, should be {want}"
            );
        }
    }
}

fn check_all(case: &Case, seed: u64) {
    check::<bf16>(case, seed);
    check::<f16>(case, seed);
    check::<f32>(case, seed);
}

fn unit(v: &[f32]) -> Vec<f32> {
    let norm = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    v.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
}

/// Disjoint column ranges in rising order.
fn columns(width: usize, random: &mut Random) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = random.below(width);
    while at < width && ranges.len() < 3 {
        let end = at + 1 + random.below(width - at);
        ranges.push(at..end);
        at = end + 1 + random.below(9);
    }
    ranges
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn edits_do_what_they_say_on_selected_rows_and_columns_and_nowhere_else(
        rows in 1usize..5, width in 1usize..260, gap in 0usize..9, every_row: bool, v_per_row: bool, seed: u64,
    ) {
        let mut random = Random(seed);
        let mut case = Case {
            x: Layout::with_gaps(rows, width, gap),
            rows: (!every_row).then(|| (0..rows as u32).rev().step_by(2).collect()),
            columns: columns(width, &mut random),
            edit: EditKind::Scale,
            v: None,
            c: -1.7,
            bounds: (0.0, 0.0),
        };
        check_all(&case, seed);
        case.edit = EditKind::Replace;
        check_all(&case, seed);
        let count = if v_per_row { case.selected().len() } else { 1 };
        case.v = Some(normal(count * case.width(), seed, 1.0));
        check_all(&case, seed);
        case.edit = EditKind::Add;
        check_all(&case, seed);
        case.edit = EditKind::Clamp;
        case.v = Some(unit(&normal(case.width(), seed, 1.0)));
        check_all(&case, seed);
        case.bounds = (-1.0, 1.5);
        check_all(&case, seed);
    }
}

#[test]
fn a_whole_row_wider_than_the_block_reaches_at_once_is_edited() {
    let width = 4096 + 1024 + 8;
    for edit in [EditKind::Add, EditKind::Clamp] {
        let case = Case {
            x: Layout::packed(2, width),
            rows: None,
            columns: std::iter::once(0..width).collect(),
            edit,
            v: Some(unit(&normal(width, 11, 1.0))),
            c: 4.0,
            bounds: (0.0, 0.0),
        };
        check_all(&case, 12);
    }
}

#[test]
fn a_direction_projected_out_leaves_no_component() {
    let width = 512;
    let v = unit(&normal(width, 1, 1.0));
    let case = Case {
        x: Layout::packed(3, width),
        rows: None,
        columns: std::iter::once(0..width).collect(),
        edit: EditKind::Clamp,
        v: Some(v.clone()),
        c: 0.0,
        bounds: (0.0, 0.0),
    };
    let got = run::<f32>(&case, &normal(3 * width, 2, 5.0));
    let components: Vec<f32> = (got.x.chunks_exact(width))
        .map(|row| row.iter().zip(&v).map(|(x, v)| x * v).sum())
        .collect();
    // Each element of x (about 5) is rounded to 2^-22: what is left of the component is noise of that size.
    assert_near("component", &components, &[0.0; 3], 1e-5, 1.0);
}

#[test]
fn a_component_within_its_bounds_leaves_the_rows_bits_alone() {
    let width = 24;
    let mut x: Vec<bf16> = normal(width, 3, 1.0);
    x[5] = bf16::from_f32(-0.0);
    let case = Case {
        x: Layout::packed(1, width),
        rows: None,
        columns: std::iter::once(0..width).collect(),
        edit: EditKind::Clamp,
        v: Some(unit(&vec![1.0; width])),
        c: 0.0,
        bounds: (-100.0, 100.0),
    };
    let got = run(&case, &x);
    assert_same_bits("row", &got.x, &x);
    assert_eq!(got.before, got.after);
}
