//! The oracle is the CPU's own rounding: bytes are equal or wrong.

use half::{bf16, f16};
use proptest::prelude::*;
use streamgauge::backend::cuda::DevicePtr;
use streamgauge::backend::cuda::kernels::quantise::{Quantise, QuantiseArgs};
use streamgauge::compact::Code;

use crate::harness::{Element, Random, cases, normal, on_every_schedule};
use crate::layout::Layout;

#[derive(Debug, Clone)]
struct Case {
    source: Layout,
    rows: Option<Vec<u32>>,
}

impl Case {
    fn whole(rows: usize, width: usize) -> Case {
        Case {
            source: Layout::packed(rows, width),
            rows: None,
        }
    }
}

/// Exactly, the payloads of NaNs too (which the machine's own widening of f16 keeps, and an f64 between would not be sure to).
fn widened<T: Element>(x: T) -> f32 {
    let bytes = bytemuck::bytes_of(&x);
    match *bytes {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [a, b] if T::DTYPE == bf16::DTYPE => bf16::from_le_bytes([a, b]).to_f32(),
        [a, b] => f16::from_le_bytes([a, b]).to_f32(),
        _ => unreachable!("{bytes:?}"),
    }
}

fn check<T: Element>(case: &Case, code: Code, source: &[T]) {
    let width = case.source.width;
    let kernel = Quantise {
        dtype: T::DTYPE,
        code,
    };
    let compact = kernel.compact(width);
    let all: Vec<u32> = (0..case.source.rows as u32).collect();
    let rows = case.rows.as_ref().unwrap_or(&all);
    let (got_codes, got_side) = on_every_schedule(|gpu| {
        let source = gpu.input(&case.source.lay(source));
        let list = match &case.rows {
            Some(rows) => gpu.input(rows).ptr(),
            None => DevicePtr::NULL,
        };
        // Any byte may be a code, that of memory never written too.
        let codes = gpu.canvas::<u8>(rows.len() * width);
        let side = gpu.canvas::<u8>(rows.len() * compact.side_bytes());
        gpu.launch(
            &kernel,
            &QuantiseArgs {
                source: source.at(case.source.offset),
                rows: list,
                codes: codes.ptr(),
                side: side.ptr(),
                source_stride: case.source.stride as u64,
                selected: rows.len() as u32,
                width: width as u32,
            },
        );
        (gpu.read(&codes), gpu.read(&side))
    });
    for (i, &r) in rows.iter().enumerate() {
        let row: Vec<f32> = source[r as usize * width..][..width]
            .iter()
            .map(|&x| widened(x))
            .collect();
        let (mut codes, mut side) = (vec![0; width], vec![0; compact.side_bytes()]);
        compact.quantise(&row, &mut codes, &mut side);
        let at = format!("row {r} of {}, {case:?}", kernel_name(&kernel));
        let got = &got_side[i * side.len()..][..side.len()];
        let off = got.iter().zip(&side).position(|(a, b)| a != b);
        assert!(
            off.is_none(),
            "{at}: byte {off:?} of the side row: {got:?} and not {side:?}"
        );
        let got = &got_codes[i * width..][..width];
        let off = (0..width).find(|&j| got[j] != codes[j]);
        assert!(
            off.is_none(),
            "{at}: {:?} became {:?} and not {:?}",
            off.map(|j| row[j]),
            off.map(|j| got[j]),
            off.map(|j| codes[j]),
        );
    }
}

fn kernel_name(kernel: &Quantise) -> String {
    use streamgauge::backend::cuda::Kernel;
    kernel.name()
}

fn check_both<T: Element>(case: &Case, source: &[T]) {
    check(case, Code::F8E4M3, source);
    check(case, Code::I8, source);
}

fn check_all(case: &Case, seed: u64) {
    let n = case.source.rows * case.source.width;
    check_both::<f32>(case, &massive(normal(n, seed, 2.0)));
    check_both::<f16>(case, &massive(normal(n, seed, 2.0)));
    check_both::<bf16>(case, &massive(normal(n, seed, 2.0)));
}

/// Numbers among which a few are a thousand times the others.
fn massive<T: Element>(mut numbers: Vec<T>) -> Vec<T> {
    for x in numbers.iter_mut().step_by(97) {
        *x = T::round(1000.0 * x.wide());
    }
    numbers
}

/// Any bits at all, and what is at the edge of something: zeros, subnormals, the largest, infinities, NaNs; and equals.
fn hostile<T: Element>(n: usize, random: &mut Random) -> Vec<T> {
    let edges = [
        0.0,
        -0.0,
        1e-45,
        -1e-40,
        6e-8,
        1.0,
        -1.0,
        448.0,
        127.0,
        65_504.0,
        f64::from(f32::MAX),
        f64::NEG_INFINITY,
    ];
    let any = |random: &mut Random| {
        let bits = random.next().to_le_bytes();
        bytemuck::pod_read_unaligned::<T>(&bits[..size_of::<T>()])
    };
    let kind = random.below(4);
    (0..n)
        .map(|_| match (kind, random.below(8)) {
            (0, _) | (1, 0) => any(random),
            (1 | 2, 1) => T::round(edges[random.below(edges.len())]),
            (3, _) => T::round(f64::from(random.below(5) as u32) - 2.0),
            _ => T::round(random.normal()),
        })
        .collect()
}

proptest! {
    #![proptest_config(cases(6))]
    #[test]
    fn any_selected_rows_have_the_cpus_bytes_whatever_their_width_and_place(
        rows in 1usize..12, width in 1usize..200, gap in 0usize..9, picks in 0usize..12, seed: u64,
    ) {
        let mut random = Random(seed);
        let picked = (picks > 0).then(|| (0..picks).map(|_| random.below(rows) as u32).collect());
        check_all(&Case { source: Layout::with_gaps(rows, width, gap), rows: picked }, seed);
    }

    #[test]
    fn hostile_numbers_have_the_cpus_bytes_too(rows in 1usize..10, width in 1usize..200, seed: u64) {
        let case = Case::whole(rows, width);
        let mut random = Random(seed);
        check_both::<f32>(&case, &hostile(rows * width, &mut random));
        check_both::<f16>(&case, &hostile(rows * width, &mut random));
        check_both::<bf16>(&case, &hostile(rows * width, &mut random));
    }
}

#[test]
fn widths_about_a_group_and_past_the_most_numbers_kept_apart() {
    for width in [1, 2, 31, 32, 33, 63, 64, 65, 128, 129, 576, 1025] {
        check_all(&Case::whole(3, width), width as u64);
    }
}

#[test]
fn numbers_that_are_not_finite_are_kept_apart_while_there_is_room_and_else_spoil_their_scale() {
    for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for count in [1, 3, 4, 9] {
            // 200 numbers, 4 of them kept apart.
            let mut row: Vec<f32> = normal(200, 3, 1.0);
            for x in row.iter_mut().skip(5).step_by(20).take(count) {
                *x = odd;
            }
            check_both::<f32>(&Case::whole(1, 200), &row);
            let half: Vec<f16> = row.iter().map(|&x| f16::from_f32(x)).collect();
            check_both::<f16>(&Case::whole(1, 200), &half);
            let brain: Vec<bf16> = row.iter().map(|&x| bf16::from_f32(x)).collect();
            check_both::<bf16>(&Case::whole(1, 200), &brain);
        }
    }
}

#[test]
fn rows_of_nothing_and_of_equal_numbers() {
    for x in [
        0.0,
        -0.0,
        f32::from_bits(1),
        1.0,
        -448.0,
        f32::MAX,
        f32::MIN_POSITIVE,
    ] {
        check_both::<f32>(&Case::whole(2, 130), &[x; 260]);
    }
}

#[test]
fn arguments_that_cannot_be_launched_are_refused() {
    use streamgauge::backend::cuda::Kernel;
    let kernel = Quantise {
        dtype: bf16::DTYPE,
        code: Code::I8,
    };
    let args = QuantiseArgs {
        source: DevicePtr(256),
        rows: DevicePtr::NULL,
        codes: DevicePtr(513),
        side: DevicePtr(1024),
        source_stride: 64,
        selected: 1,
        width: 64,
    };
    assert_eq!(kernel.check(&args), Ok(()));
    for (wrong, what) in [
        (
            QuantiseArgs {
                selected: 0,
                ..args
            },
            "selected",
        ),
        (QuantiseArgs { width: 0, ..args }, "width"),
        (
            QuantiseArgs {
                width: 65_537,
                ..args
            },
            "width",
        ),
        (
            QuantiseArgs {
                source: DevicePtr(257),
                ..args
            },
            "source",
        ),
        (
            QuantiseArgs {
                side: DevicePtr(1025),
                ..args
            },
            "side",
        ),
        (
            QuantiseArgs {
                codes: DevicePtr::NULL,
                ..args
            },
            "codes",
        ),
        (
            QuantiseArgs {
                rows: DevicePtr(258),
                ..args
            },
            "rows",
        ),
    ] {
        let error = kernel.check(&wrong).unwrap_err();
        assert!(error.starts_with(what), "{error}");
    }
}
