use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::reduce::{
    Dot, DotArgs, Mean, MeanArgs, Norm, NormArgs, TopK, TopKArgs,
};

use crate::harness::{
    Element, Gpu, Random, assert_op_by_op, cases, normal, on_every_schedule, wide,
};
use crate::layout::{Layout, assert_near, assert_same_bits};

/// An activation and the rows of it that are reduced.
#[derive(Debug, Clone)]
struct Selection<T> {
    at: Layout,
    x: Vec<T>,
    rows: Option<Vec<u32>>,
}

impl<T: Element> Selection<T> {
    fn of(at: Layout, rows: Option<Vec<u32>>, seed: u64) -> Self {
        let x = normal(at.rows * at.width, seed, 3.0);
        Selection { at, x, rows }
    }

    /// The selected rows, widened.
    fn selected(&self) -> Vec<Vec<f64>> {
        let all: Vec<Vec<f64>> = self.x.chunks_exact(self.at.width).map(wide).collect();
        match &self.rows {
            None => all,
            Some(rows) => rows.iter().map(|&r| all[r as usize].clone()).collect(),
        }
    }

    fn count(&self) -> u32 {
        self.rows.as_ref().map_or(self.at.rows, Vec::len) as u32
    }

    /// Where the source and the row list are on the device.
    fn upload(&self, gpu: &mut Gpu) -> (DevicePtr, DevicePtr) {
        let source = gpu.input(&self.at.lay(&self.x)).at(self.at.offset);
        let rows = match &self.rows {
            Some(rows) => gpu.input(rows).ptr(),
            None => DevicePtr::NULL,
        };
        (source, rows)
    }
}

/// Runs `check` on the same selection in each element type.
macro_rules! for_each_dtype {
    ($at:expr, $rows:expr, $seed:expr, $check:expr) => {{
        let (at, rows, seed) = ($at, $rows, $seed);
        $check(&Selection::<bf16>::of(at, rows.clone(), seed));
        $check(&Selection::<f16>::of(at, rows.clone(), seed));
        $check(&Selection::<f32>::of(at, rows, seed));
    }};
}

fn picks(rows: usize, n: usize, random: &mut Random) -> Option<Vec<u32>> {
    (n > 0).then(|| (0..n).map(|_| random.below(rows) as u32).collect())
}

// ---- mean ----

/// Means of samples of `lens` rows, the selection coming in launches of `pieces` rows.
fn means<T: Element>(selection: &Selection<T>, lens: &[u32], pieces: &[u32]) -> Vec<f32> {
    let width = selection.at.width;
    let mut cu = vec![0];
    cu.extend(lens.iter().scan(0, |end, &n| {
        *end += n;
        Some(*end)
    }));
    on_every_schedule(|gpu| {
        let (source, rows) = selection.upload(gpu);
        let out = gpu.output::<f32>(lens.len() * width);
        let carries = [(); 2].map(|()| gpu.canvas::<f64>(8 * width));
        let mut begin = 0;
        for (launch, &piece) in pieces.iter().enumerate() {
            let end = begin + piece;
            let first = cu.partition_point(|&c| c <= begin) - 1;
            let last = cu.partition_point(|&c| c < end);
            let local: Vec<u32> = (cu[first..=last].iter())
                .map(|&c| c.clamp(begin, end) - begin)
                .collect();
            let (cu_rows, counts) = (gpu.input(&local), gpu.input(&lens[first..last]));
            let skipped = |base: DevicePtr, elements: usize, bytes: usize| {
                if base.is_null() {
                    base
                } else {
                    base.offset(elements * bytes)
                }
            };
            let (moved_source, moved_rows) = if rows.is_null() {
                (
                    skipped(source, begin as usize * selection.at.stride, size_of::<T>()),
                    rows,
                )
            } else {
                (source, skipped(rows, begin as usize, 4))
            };
            gpu.launch(
                &Mean { dtype: T::DTYPE },
                &MeanArgs {
                    source: moved_source,
                    rows: moved_rows,
                    cu_rows: cu_rows.ptr(),
                    counts: counts.ptr(),
                    carry_in: carries[launch % 2].ptr(),
                    carry_out: carries[1 - launch % 2].ptr(),
                    out: out.at(first * width),
                    source_stride: selection.at.stride as u64,
                    samples: (last - first) as u32,
                    width: width as u32,
                    earlier: begin - cu[first],
                    _pad: 0,
                },
            );
            begin = end;
        }
        gpu.read(&out)
    })
}

fn check_means<T: Element>(selection: &Selection<T>, lens: &[u32], pieces: &[u32]) {
    let rows = selection.selected();
    let mut want = Vec::new();
    let mut begin = 0;
    for &len in lens {
        let sample = &rows[begin..begin + len as usize];
        for column in 0..selection.at.width {
            let sum: f64 = sample.iter().map(|row| row[column]).sum();
            want.push((sum / f64::from(len)) as f32);
        }
        begin += len as usize;
    }
    let whole = means(selection, lens, &[selection.count()]);
    assert_op_by_op("mean", &whole, &want);
    assert_same_bits("mean in pieces", &means(selection, lens, pieces), &whole);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn a_mean_is_its_samples_however_its_rows_arrive(
        lens in prop::collection::vec(1u32..30, 1..4), width in 1usize..300, gap in 0usize..9, listed: bool, seed: u64,
    ) {
        let mut random = Random(seed);
        let total = lens.iter().sum::<u32>();
        let rows = listed.then(|| (0..total).map(|_| random.below(17) as u32).collect());
        let mut pieces = Vec::new();
        while pieces.iter().sum::<u32>() < total {
            let left = total - pieces.iter().sum::<u32>();
            pieces.push(1 + random.below(left as usize) as u32);
        }
        let at = Layout::with_gaps(if listed { 17 } else { total as usize }, width, gap);
        for_each_dtype!(at, rows, seed, |s| check_means(s, &lens, &pieces));
    }
}

#[test]
fn a_mean_adds_in_the_same_order_however_its_rows_arrive() {
    // Values of all sizes that cancel only in the end: the f64 sum's own rounding, which depends on the order, is what remains.
    let (rows, width) = (29, 40);
    let mut selection = Selection::<f32>::of(Layout::packed(rows, width), None, 21);
    let mut random = Random(22);
    for r in 0..rows / 2 {
        for column in 0..width {
            let large = (10f64.powf(25.0 * random.unit()) * random.normal()) as f32;
            selection.x[r * width + column] = large;
            selection.x[(rows - 1 - r) * width + column] = -large;
        }
    }
    let whole = means(&selection, &[29], &[29]);
    assert!(whole.iter().any(|m| m.abs() > 10.0), "f64 holds these sums");
    for pieces in [[3, 11, 15], [8, 20, 1], [1, 1, 27]] {
        assert_same_bits("mean", &means(&selection, &[29], &pieces), &whole);
    }
}

// ---- dot and norm ----

fn check_dots<T: Element>(selection: &Selection<T>, directions: &[f32]) {
    let width = selection.at.width;
    let count = directions.len() / width;
    let rows = selection.selected();
    let want: Vec<f32> = (rows.iter())
        .flat_map(|row| {
            directions.chunks_exact(width).map(|d| {
                let products = row.iter().zip(d).map(|(x, &d)| x * f64::from(d));
                products.sum::<f64>() as f32
            })
        })
        .collect();
    let got = on_every_schedule(|gpu| {
        let (source, rows) = selection.upload(gpu);
        let directions = gpu.input(directions);
        let out = gpu.output::<f32>(want.len());
        gpu.launch(
            &Dot { dtype: T::DTYPE },
            &DotArgs {
                source,
                rows,
                directions: directions.ptr(),
                out: out.ptr(),
                source_stride: selection.at.stride as u64,
                selected: selection.count(),
                width: width as u32,
                direction_count: count as u32,
                _pad: 0,
            },
        );
        gpu.read(&out)
    });
    assert_op_by_op("dot", &got, &want);
}

fn check_norms<T: Element>(selection: &Selection<T>) {
    let want: Vec<f32> = (selection.selected().iter())
        .map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt() as f32)
        .collect();
    let got = on_every_schedule(|gpu| {
        let (source, rows) = selection.upload(gpu);
        let out = gpu.output::<f32>(want.len());
        gpu.launch(
            &Norm { dtype: T::DTYPE },
            &NormArgs {
                source,
                rows,
                out: out.ptr(),
                source_stride: selection.at.stride as u64,
                selected: selection.count(),
                width: selection.at.width as u32,
            },
        );
        gpu.read(&out)
    });
    assert_op_by_op("norm", &got, &want);
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn projections_and_norms_are_those_of_the_selected_rows(
        rows in 1usize..20, listed in 0usize..19, width in 1usize..700, gap in 0usize..9, directions in 1usize..4, seed: u64,
    ) {
        let rows_picked = picks(rows, listed, &mut Random(seed));
        let directions: Vec<f32> = normal(directions * width, seed ^ 2, 1.0);
        let at = Layout::with_gaps(rows, width, gap);
        for_each_dtype!(at, rows_picked, seed, |s| { check_dots(s, &directions); check_norms(s) });
    }
}

// ---- top k ----

fn top_k<T: Element>(selection: &Selection<T>, k: usize, log_prob: bool) -> (Vec<f32>, Vec<u32>) {
    let outputs = selection.count() as usize * k;
    on_every_schedule(|gpu| {
        let (source, rows) = selection.upload(gpu);
        let (values, indices) = (gpu.output::<f32>(outputs), gpu.output::<u32>(outputs));
        let top = TopK {
            dtype: T::DTYPE,
            log_prob,
        };
        gpu.launch(
            &top,
            &TopKArgs {
                source,
                rows,
                values: values.ptr(),
                indices: indices.ptr(),
                source_stride: selection.at.stride as u64,
                selected: selection.count(),
                width: selection.at.width as u32,
                k: k as u32,
                _pad: 0,
            },
        );
        (gpu.read(&values), gpu.read(&indices))
    })
}

fn check_top_k<T: Element>(selection: &Selection<T>, k: usize) {
    let (mut values, mut indices, mut log_probs) = (Vec::new(), Vec::new(), Vec::new());
    for row in selection.selected() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        for &i in &order[..k] {
            values.push(row[i] as f32);
            indices.push(i as u32);
            log_probs.push(row[i] - log_sum);
        }
    }
    let got = top_k(selection, k, false);
    assert_same_bits("values", &got.0, &values);
    assert_eq!(got.1, indices, "indices");
    let got = top_k(selection, k, true);
    assert_near("log-probabilities", &got.0, &log_probs, 1e-6, 1.0);
    assert_eq!(got.1, indices, "indices by log-probability");
}

proptest! {
    #![proptest_config(cases(4))]
    #[test]
    fn the_largest_come_first_and_ties_by_the_lower_index(
        rows in 1usize..4, listed in 0usize..3, width in 1usize..2000, gap in 0usize..9, k_share in 0.0..1.0, levels in 1usize..40, seed: u64,
    ) {
        let mut random = Random(seed);
        let rows_picked = picks(rows, listed, &mut random);
        let k = 1 + (k_share * (width.min(1024) - 1) as f64) as usize;
        let at = Layout::with_gaps(rows, width, gap);
        // bf16 of 3 bits' range ties often; so does a row of few levels.
        for_each_dtype!(at, rows_picked.clone(), seed, |s| check_top_k(s, k));
        let mut tied = Selection::<f32>::of(at, rows_picked, seed);
        tied.x.fill_with(|| random.below(levels) as f32 - 3.0);
        check_top_k(&tied, k);
    }
}

#[test]
fn a_row_of_equals_gives_the_first_k_of_a_whole_vocabulary() {
    let mut row = Selection::<bf16>::of(Layout::packed(1, 32_000), None, 1);
    row.x.fill(bf16::from_f32(-2.5));
    check_top_k(&row, 1000);
}

#[test]
fn zeros_infinities_and_nan_have_their_place_in_the_order() {
    let x = vec![-0.0, 0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -1.0];
    let row = Selection {
        at: Layout::packed(1, 6),
        x,
        rows: None,
    };
    let (values, indices) = top_k(&row, 6, false);
    assert_eq!(indices, [2, 4, 1, 0, 5, 3]);
    assert!(values[0].is_nan());
    assert!(values[3].is_sign_negative() && !values[2].is_sign_negative());
}
