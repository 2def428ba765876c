use half::{bf16, f16};
use proptest::prelude::*;
use std::ops::Range;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::gather::{Gather, GatherArgs};
use streamgauge::backend::cuda::kernels::segments;

use crate::harness::{Element, Random, cases, normal, on_every_schedule};
use crate::layout::{Layout, assert_same_bits};

#[derive(Debug, Clone)]
struct Case {
    source: Layout,
    rows: Option<Vec<u32>>,
    columns: Vec<Range<usize>>,
    /// Elements before and between the destination's rows.
    out_gap: usize,
}

impl Case {
    fn selected(&self) -> Vec<u32> {
        self.rows
            .clone()
            .unwrap_or_else(|| (0..self.source.rows as u32).collect())
    }
}

fn check<From: Element, To: Element>(case: &Case) {
    let source: Vec<From> = normal(case.source.rows * case.source.width, 7, 100.0);
    let rows = case.selected();
    let want: Vec<To> = rows
        .iter()
        .map(|&r| &source[r as usize * case.source.width..])
        .flat_map(|row| case.columns.iter().flat_map(|c| &row[c.clone()]))
        .map(|x| To::round(x.wide()))
        .collect();
    let width = case.columns.iter().map(|c| c.len()).sum();
    let out_at = Layout::with_gaps(rows.len(), width, case.out_gap);
    let table = segments(&case.columns);
    let got = on_every_schedule(|gpu| {
        let source = gpu.input(&case.source.lay(&source));
        let rows_ptr = match &case.rows {
            Some(rows) => gpu.input(rows).ptr(),
            None => DevicePtr::NULL,
        };
        let segments = gpu.input(&table);
        let out = gpu.canvas::<To>(out_at.len());
        let gather = Gather {
            from: From::DTYPE,
            to: To::DTYPE,
        };
        gpu.launch(
            &gather,
            &GatherArgs {
                source: source.at(case.source.offset),
                rows: rows_ptr,
                segments: segments.ptr(),
                out: out.at(out_at.offset),
                source_stride: case.source.stride as u64,
                out_stride: out_at.stride as u64,
                selected: rows.len() as u32,
                segment_count: table.len() as u32,
            },
        );
        gpu.read(&out)
    });
    assert_same_bits(&format!("{case:?}"), &out_at.take(&got), &want);
}

fn check_all(case: &Case) {
    fn to_each<From: Element>(case: &Case) {
        check::<From, f32>(case);
        check::<From, f16>(case);
        check::<From, bf16>(case);
    }
    to_each::<f32>(case);
    to_each::<f16>(case);
    to_each::<bf16>(case);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn selected_rows_and_columns_arrive_in_order_whatever_their_alignment(
        rows in 1usize..6, width in 1usize..300, gaps in (0usize..9, 0usize..9), picks in 0usize..7, seed: u64,
    ) {
        let mut random = Random(seed);
        let picked = (picks > 0).then(|| (0..picks).map(|_| random.below(rows) as u32).collect());
        let columns = (0..1 + random.below(3))
            .map(|_| {
                let first = random.below(width);
                first..first + 1 + random.below(width - first)
            })
            .collect();
        check_all(&Case { source: Layout::with_gaps(rows, width, gaps.0), rows: picked, columns, out_gap: gaps.1 });
    }
}

#[test]
fn whole_rows_of_more_than_one_segment_are_copied() {
    check_all(&Case {
        source: Layout::with_gaps(3, 2056, 8),
        rows: None,
        columns: std::iter::once(0..2056).collect(),
        out_gap: 0,
    });
}

#[test]
fn heads_are_ranges_of_columns() {
    check_all(&Case {
        source: Layout::packed(4, 8 * 64),
        rows: Some(vec![3, 1]),
        columns: vec![6 * 64..7 * 64, 2 * 64..3 * 64],
        out_gap: 0,
    });
}

#[test]
fn values_beyond_the_destinations_range_become_infinite_and_nan_stays_nan() {
    let source = [
        f32::MAX,
        -70_000.0,
        65_519.0,
        1e-8,
        f32::NAN,
        -0.0,
        1e-46,
        3.0,
    ];
    let got = on_every_schedule(|gpu| {
        let (source, segments) = (gpu.input(&source), gpu.input(&segments(&[0..8])));
        let out = gpu.output::<f16>(8);
        let gather = Gather {
            from: f32::DTYPE,
            to: f16::DTYPE,
        };
        gpu.launch(
            &gather,
            &GatherArgs {
                source: source.ptr(),
                rows: DevicePtr::NULL,
                segments: segments.ptr(),
                out: out.ptr(),
                source_stride: 8,
                out_stride: 8,
                selected: 1,
                segment_count: 1,
            },
        );
        gpu.read(&out)
    });
    assert!(got[4].is_nan());
    for (i, (got, x)) in got.iter().zip(source).enumerate() {
        assert!(
            i == 4 || got.same_bits(f16::from_f32(x)),
            "{x} became {got}"
        );
    }
}
