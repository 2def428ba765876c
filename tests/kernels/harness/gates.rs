//! How near a result must be, for each kind of op.

use super::element::{Element, ulps};

/// For ops with fixed rounding points: at least 999 of 1000 elements have the wanted bits, and none is further than one unit in the
/// last place. That is a rate: in a sample of n, chance puts up to three standard deviations more than n / 1000 beside it.
#[track_caller]
pub fn assert_op_by_op<T: Element>(what: &str, got: &[T], want: &[T]) {
    assert_op_by_op_within(what, got, want, 1);
}

/// As [`assert_op_by_op`], for an op that rounds, multiplies and rounds again: one unit off at first may be `units` in the end.
#[track_caller]
pub fn assert_op_by_op_within<T: Element>(what: &str, got: &[T], want: &[T], units: u64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let mut differing = 0;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        differing += usize::from(!got.same_bits(want));
        let far = ulps(got, want);
        assert!(
            far <= units,
            "{what}: element {i} is {got:?}, should be {want:?}: {far} ulps apart"
        );
    }
    let expected = got.len() as f64 / 1000.0;
    let allowed = (expected + 3.0 * expected.sqrt()).ceil() as usize;
    assert!(
        differing <= allowed,
        "{what}: {differing} of {} elements are off; {allowed} may be",
        got.len()
    );
}

/// For a value computed in f32, within a relative `error`, and then rounded once: the nearest of the type to some number that near to
/// `want`. A rate would not do where a whole row shares one factor: with a scale near 4/3 every fourth element is all but a tie.
#[track_caller]
pub fn assert_rounded<T: Element>(what: &str, got: &[T], want: &[f64], error: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let [one, other] = [1.0 - error, 1.0 + error].map(|near| T::round(want * near).wide());
        assert!(
            (one.min(other)..=one.max(other)).contains(&got.wide()),
            "{what}: element {i} is {got:?}, should be {want} rounded"
        );
    }
}

/// |got − want| / |want|, in the Euclidean norm; 0 if both are zero.
pub fn relative_l2<T: Element>(got: &[T], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "number of elements");
    let sum = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let off = sum(&mut got.iter().zip(want).map(|(got, want)| got.wide() - want));
    if off == 0.0 {
        return 0.0;
    }
    off / sum(&mut want.iter().copied())
}

/// `relative_l2` at most `limit`; NaN is not.
#[track_caller]
pub fn assert_relative_l2<T: Element>(what: &str, got: &[T], want: &[f64], limit: f64) {
    let off = relative_l2(got, want);
    assert!(
        off <= limit,
        "{what}: relative L2 distance {off:.2e}, at most {limit:.0e} allowed; worst: {}",
        worst(got, want)
    );
}

fn worst<T: Element>(got: &[T], want: &[f64]) -> String {
    let distance = |&(_, (got, want)): &(usize, (&T, &f64))| {
        let off = (got.wide() - want).abs();
        if off.is_nan() { f64::INFINITY } else { off }
    };
    got.iter()
        .zip(want)
        .enumerate()
        .max_by(|a, b| distance(a).total_cmp(&distance(b)))
        .map_or("nothing".into(), |(i, (got, want))| {
            format!("element {i} is {got:?}, should be {want}")
        })
}

#[test]
fn a_gate_lets_one_in_a_thousand_be_one_ulp_off_give_or_take_chance() {
    use half::bf16;
    let want = vec![bf16::ONE; 2000];
    let off = bf16::from_bits(bf16::ONE.to_bits() + 1);
    let with = |n: usize| {
        let mut got = want.clone();
        got[..n].fill(off);
        std::panic::catch_unwind(|| assert_op_by_op("x", &got, &vec![bf16::ONE; 2000])).is_ok()
    };
    assert!(with(7));
    assert!(!with(8));
}

#[test]
fn only_a_near_tie_may_round_either_way() {
    use half::bf16;
    let ulp = 2f64.powi(-7);
    let up = [bf16::from_f64(1.0 + ulp)];
    let passes =
        |want: f64| std::panic::catch_unwind(|| assert_rounded("x", &up, &[want], 6e-7)).is_ok();
    assert!(passes(1.0 + ulp / 2.0 - 5e-7) && passes(1.0 + ulp / 2.0 + 5e-7));
    assert!(!passes(1.0 + ulp / 2.0 - 7e-7) && !passes(f64::NAN));
}
