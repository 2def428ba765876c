use proptest::prelude::*;

use super::*;

/// A row's codes and side row, and what is read back.
fn round_trip(code: Code, row: &[f32]) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let compact = Compact {
        code,
        width: row.len(),
    };
    let (mut codes, mut side) = (vec![0xAA; row.len()], vec![0xAA; compact.side_bytes()]);
    compact.quantise(row, &mut codes, &mut side);
    let mut read = vec![f32::NAN; row.len()];
    compact.dequantise(&codes, &side, &mut read);
    (codes, side, read)
}

/// Numbers like a residual stream's: most within a few units.
fn ordinary(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0)
        .collect()
}

fn loss_of(side: &[u8]) -> (f32, f32) {
    let at = side.len() - 8;
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    (four(&side[at..]), four(&side[at + 4..]))
}

#[test]
fn every_e4m3_code_stands_for_itself() {
    for code in 0..=255u8 {
        let number = e4m3_to_f32(code);
        assert!(number.is_nan() == (code & 0x7f == 0x7f), "{code:#x}");
        assert_eq!(e4m3_of(number), code, "{code:#x}: {number}");
    }
    assert_eq!(
        [0x7e, 0x08, 0x01, 0x38, 0xb8].map(e4m3_to_f32),
        [448.0, 1.0 / 64.0, 1.0 / 512.0, 1.0, -1.0]
    );
}

#[test]
fn halfway_between_codes_goes_to_the_even_one_and_what_is_larger_than_all_to_the_largest() {
    for code in 0..0x7e_u8 {
        let (a, b) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
        let middle = (a + b) / 2.0;
        let even = code + code % 2;
        assert_eq!(e4m3_of(middle), even, "{middle}");
        assert_eq!(e4m3_of(middle.next_down()), code, "below {middle}");
        assert_eq!(e4m3_of(middle.next_up()), code + 1, "above {middle}");
        assert_eq!(e4m3_of(-middle), even | 0x80, "-{middle}");
    }
    for large in [448.5, 1e30, f32::INFINITY] {
        assert_eq!((e4m3_of(large), e4m3_of(-large)), (0x7e, 0xfe), "{large}");
    }
    assert_eq!((e4m3_of(0.0), e4m3_of(-0.0)), (0, 0x80));
}

#[test]
fn a_massive_activation_leaves_the_precision_of_the_other_channels_alone() {
    for (code, limit) in [(Code::F8E4M3, 0.04), (Code::I8, 0.012)] {
        let plain = ordinary(576);
        let mut massive = plain.clone();
        massive[507] = 25_000.0;
        massive[12] = -900.0;
        let others = |read: &[f32]| -> f64 {
            let (mut error, mut norm) = (0.0, 0.0);
            for i in (0..576).filter(|i| ![12, 507].contains(i)) {
                error += f64::from(read[i] - plain[i]).powi(2);
                norm += f64::from(plain[i]).powi(2);
            }
            (error / norm).sqrt()
        };
        let (_, _, read) = round_trip(code, &massive);
        let without = others(&round_trip(code, &plain).2);
        let with = others(&read);
        assert!(with < limit && with < 1.1 * without, "{with} {without}");
        assert!((read[507] / 25_000.0 - 1.0).abs() < 1.0 / 256.0);
        assert!((read[12] / -900.0 - 1.0).abs() < 1.0 / 256.0);
    }
}

#[test]
fn the_loss_in_a_side_row_is_what_reading_it_back_shows() {
    for code in [Code::F8E4M3, Code::I8] {
        for n in [1, 31, 64, 65, 576, 1000] {
            let row = ordinary(n);
            let (_, side, read) = round_trip(code, &row);
            let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                let pairs = row.iter().zip(&read);
                pairs.map(|(&x, &y)| f(x.into(), y.into())).sum()
            };
            let norm = sum(&|x, _| x * x).sqrt();
            let error = sum(&|x, y| (x - y).powi(2)).sqrt() / norm;
            let cosine = sum(&|x, y| x * y) / (norm * sum(&|_, y| y * y).sqrt());
            let (told_error, told_cosine) = loss_of(&side);
            assert!((f64::from(told_error) - error).abs() <= 1e-6 * error, "{n}");
            assert!((f64::from(told_cosine) - cosine).abs() <= 1e-7, "{n}");
        }
    }
}

#[test]
fn rows_of_zeros_and_of_the_smallest_numbers_are_no_trouble() {
    for code in [Code::F8E4M3, Code::I8] {
        let (_, side, read) = round_trip(code, &[0.0; 200]);
        assert_eq!(read, [0.0; 200]);
        assert_eq!(loss_of(&side), (0.0, 1.0));
        let (_, side, read) = round_trip(code, &[f32::from_bits(1); 200]);
        assert!(read.iter().all(|v| v.is_finite()), "{code:?}");
        assert!(loss_of(&side).0.is_finite(), "{code:?}");
        let (_, _, read) = round_trip(code, &[f32::MAX; 200]);
        assert!(
            read[10..].iter().all(|v| v.is_finite() && *v > 3e38),
            "{code:?}"
        );
    }
}

#[test]
fn a_few_numbers_that_are_not_finite_are_kept_and_more_make_their_group_nan() {
    for code in [Code::F8E4M3, Code::I8] {
        let mut row = ordinary(576);
        row[3] = f32::NAN;
        row[570] = f32::NEG_INFINITY;
        let (_, side, read) = round_trip(code, &row);
        assert!(read[3].is_nan() && read[570] == f32::NEG_INFINITY);
        assert_eq!(read.iter().filter(|v| !v.is_finite()).count(), 2);
        assert!(loss_of(&side).0.is_nan());
        // With the NaN, one more than can be kept apart: the last is left among the rest.
        row[570] = 1.0;
        row[100..100 + MOST_OUTLIERS].fill(f32::INFINITY);
        let (_, _, read) = round_trip(code, &row);
        let group = match code {
            Code::F8E4M3 => 0..576,
            Code::I8 => 64..128,
        };
        let kept = 100..99 + MOST_OUTLIERS;
        for (at, v) in read.iter().enumerate() {
            let is_nan = at == 3 || group.contains(&at) && !kept.contains(&at);
            assert_eq!(v.is_nan(), is_nan, "{code:?} at {at}: {v}");
        }
    }
}

#[test]
fn ties_among_the_largest_go_to_the_lower_place() {
    let row = [2.0, -3.0, 3.0, 1.0, -2.0];
    assert_eq!(largest(&row, 4)[..4], [1, 2, 0, 4]);
    assert_eq!(largest(&[0.0; 9], 3)[..3], [0, 1, 2]);
}

#[test]
fn losses_come_to_the_same_however_rows_are_grouped() {
    let errors: Vec<f32> = (1..200u32).map(|i| 1.0 / (i as f32).powi(2)).collect();
    let cosines: Vec<f32> = errors.iter().map(|e| 1.0 - e * e).collect();
    let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let whole = LossSums::of(&bytes(&errors), &bytes(&cosines));
    let mut parts = LossSums::default();
    for cut in [77..199, 0..5, 5..77] {
        let part = LossSums::of(&bytes(&errors[cut.clone()]), &bytes(&cosines[cut]));
        parts.join(&part);
    }
    assert_eq!(parts, whole);
    let loss = whole.loss().unwrap();
    let squares: f64 = errors.iter().map(|&e| f64::from(e).powi(2)).sum();
    assert!((loss.relative_error.rms - (squares / 199.0).sqrt()).abs() < 1e-12);
    assert_eq!((loss.relative_error.worst, loss.rows), (1.0, 199));
    let json = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<LossSums>(&json).unwrap(), whole);
    for bad in ["\"+5\"", "\"-1\"", "\"\"", "5"] {
        assert!(serde_json::from_str::<Exact>(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_number_is_further_off_than_half_a_step(row in prop::collection::vec(-1e4f32..1e4, 1..300)) {
        let (_, side, read) = round_trip(Code::I8, &row);
        let compact = Compact { code: Code::I8, width: row.len() };
        let apart = largest(&row, compact.outliers());
        let apart = &apart[..compact.outliers()];
        for (i, (&x, &y)) in row.iter().zip(&read).enumerate() {
            let scale = Code::I8.read_scale(&side[i / GROUP * 2..][..2]);
            let most = if apart.contains(&i) { x.abs() / 256.0 } else { scale * 0.5001 };
            prop_assert!((x - y).abs() <= most, "{i}: {x} {y}");
        }
    }

    #[test]
    fn e4m3_is_the_nearest_code_of_all(y in prop_oneof![-500f32..500.0, -0.05f32..0.05]) {
        let distance = |code: u8| (f64::from(e4m3_to_f32(code)) - f64::from(y)).abs();
        let codes = (0..=255u8).filter(|c| c & 0x7f != 0x7f);
        let nearest = codes.map(distance).fold(f64::INFINITY, f64::min);
        prop_assert_eq!(distance(e4m3_of(y)), nearest);
    }
}
