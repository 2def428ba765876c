//! LAT, linear artificial tomography (Zou et al. 2023, "Representation Engineering"): the first principal component of the differences
//! between rows of pairs that differ in one thing. Taken about zero, not about the mean difference: the published code shuffles which of a
//! pair comes first, and the second moment about zero is what that tends to.

use std::ops::Range;

use faer::Mat;

use super::bootstrap::{Bootstrap, IntervalMethod};
use super::principal::principal_in_pieces;
use super::roc::auc;
use super::rows::LayerRows;
use super::scored::share_right;
use super::split::{Split, Statements};
use super::{Error, Result};

/// Rows that belong together: of the statement labelled true, and of the one labelled false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub yes: usize,
    pub no: usize,
}

/// One layer's direction and how well it tells a pair apart that it was not fitted on.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LatResult {
    pub layer: usize,
    pub hook: String,
    /// Pairs.
    pub n_train: usize,
    pub n_test: usize,
    /// Share of held-out pairs whose true member lies further along the direction. A word that leaks into every later token is enough for 1.
    pub matched_accuracy: f64,
    pub matched_low: f64,
    pub matched_high: f64,
    pub matched_method: IntervalMethod,
    /// Share of held-out rows, each by itself, on the right side of the midpoint of the training means.
    pub accuracy: f64,
    pub ci_low: f64,
    pub ci_high: f64,
    pub ci_method: IntervalMethod,
    /// Area under the ROC of the held-out rows' projections.
    pub auc: f64,
    pub threshold: f64,
    /// Share of training pairs that agree with the sign given to the direction.
    pub sign_votes: f64,
    /// Second eigenvalue over the first: near 1, the direction is one of a plane's many.
    pub eigenvalue_ratio: f64,
    /// |cosine| with the mean difference of the training pairs.
    pub cos_mean_difference: f64,
    /// Mean projection of the training differences.
    pub norm: f64,
    /// Unit norm, `[width]`.
    #[serde(skip)]
    pub direction: Vec<f32>,
}

/// Pairs the statements by `names`: two with one name and opposite labels.
///
/// # Errors
/// A name with another number of statements, or with two of one label; the first such is named.
pub fn pairs(names: &[String], labels: &[bool]) -> Result<Vec<Pair>> {
    let mut found: Vec<(&str, [Vec<usize>; 2])> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (i, (name, &label)) in names.iter().zip(labels).enumerate() {
        let place = *places.entry(name.as_str()).or_insert_with(|| {
            found.push((name, Default::default()));
            found.len() - 1
        });
        found[place].1[usize::from(label)].push(i);
    }
    found
        .into_iter()
        .map(|(name, [no, yes])| match (&yes[..], &no[..]) {
            (&[yes], &[no]) => Ok(Pair { yes, no }),
            _ => Err(Error::NotAPair {
                name: name.into(),
                yes: yes.len(),
                no: no.len(),
            }),
        })
        .collect()
}

/// Fit on the pairs of the training side, score on the others. A pair is on the side that its members are on.
///
/// # Errors
/// Rows and labels that do not go together, values that are not finite, a side without a pair, a pair that the split parts.
pub fn lat(
    layer: &LayerRows<'_>,
    statements: &Statements,
    pairs: &[Pair],
    split: &Split,
    bootstrap: &Bootstrap,
) -> Result<LatResult> {
    statements.check()?;
    layer.check(statements.labels.len())?;
    let [train, test] = sides(pairs, split, statements.labels.len())?;
    let difference = |pair: &Pair| -> Vec<f64> {
        let (yes, no) = (layer.row(pair.yes), layer.row(pair.no));
        let both = yes.iter().zip(no.iter());
        both.map(|(&yes, &no)| f64::from(yes) - f64::from(no))
            .collect()
    };
    let differences = |of: Range<usize>| {
        let rows: Vec<Vec<f64>> = train[of].iter().map(difference).collect();
        Mat::from_fn(rows.len(), layer.width, |i, j| rows[i][j])
    };
    let found = principal_in_pieces([train.len(), layer.width], differences, 2, &layer.hook)?;
    let mut direction = found.directions[0].clone();

    let (mut agreeing, mut against) = (0, 0);
    let mut mean = vec![0.0; layer.width];
    for pair in &train {
        let difference = difference(pair);
        let along: f64 = difference.iter().zip(&direction).map(|(x, d)| x * d).sum();
        agreeing += usize::from(along > 0.0);
        against += usize::from(along < 0.0);
        mean.iter_mut().zip(&difference).for_each(|(m, x)| *m += x);
    }
    mean.iter_mut().for_each(|m| *m /= train.len() as f64);
    if against > agreeing {
        direction.iter_mut().for_each(|x| *x = -*x);
    }
    let mean_norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    let norm: f64 = mean.iter().zip(&direction).map(|(a, b)| a * b).sum();

    // What is scored is the f32 direction that is saved.
    let direction: Vec<f32> = direction.into_iter().map(|x| x as f32).collect();
    let project = |row: usize| super::project::dot(&layer.row(row), &direction);
    let middle = |pair: &Pair| (project(pair.yes) + project(pair.no)) / 2.0;
    let threshold = train.iter().map(middle).sum::<f64>() / train.len() as f64;

    let rows: Vec<usize> = test.iter().flat_map(|pair| [pair.yes, pair.no]).collect();
    let projections: Vec<f64> = rows.iter().map(|&row| project(row)).collect();
    let labels: Vec<bool> = rows.iter().map(|&row| statements.labels[row]).collect();
    let right: Vec<bool> = projections
        .iter()
        .zip(&labels)
        .map(|(&p, &label)| (p > threshold) == label)
        .collect();
    let unpaired = share_right(&statements.group_numbers(&rows), &right, bootstrap);
    let firsts: Vec<usize> = test.iter().map(|pair| pair.yes).collect();
    let apart: Vec<bool> = projections.chunks_exact(2).map(|p| p[0] > p[1]).collect();
    let matched = share_right(&statements.group_numbers(&firsts), &apart, bootstrap);
    Ok(LatResult {
        layer: layer.layer,
        hook: layer.hook.clone(),
        n_train: train.len(),
        n_test: test.len(),
        matched_accuracy: matched.share,
        matched_low: matched.low,
        matched_high: matched.high,
        matched_method: matched.method,
        accuracy: unpaired.share,
        ci_low: unpaired.low,
        ci_high: unpaired.high,
        ci_method: unpaired.method,
        auc: auc(&projections, &labels).unwrap_or(f64::NAN),
        threshold,
        sign_votes: agreeing.max(against) as f64 / train.len() as f64,
        eigenvalue_ratio: ratio(&found.values),
        cos_mean_difference: if mean_norm > 0.0 {
            norm.abs() / mean_norm
        } else {
            0.0
        },
        norm,
        direction,
    })
}

fn ratio(values: &[f64]) -> f64 {
    match values {
        [first, second, ..] if *first > 0.0 => second / first,
        _ => 0.0,
    }
}

/// The pairs on either side.
fn sides(pairs: &[Pair], split: &Split, n: usize) -> Result<[Vec<Pair>; 2]> {
    let mut held_out = vec![false; n];
    split.test.iter().for_each(|&i| held_out[i] = true);
    let (test, train): (Vec<Pair>, Vec<Pair>) = pairs.iter().partition(|pair| held_out[pair.yes]);
    if let Some(parted) = pairs
        .iter()
        .position(|pair| held_out[pair.yes] != held_out[pair.no])
    {
        return Err(Error::PartedPair { pair: parted });
    }
    for (side, pairs) in [("training", &train), ("held-out", &test)] {
        if pairs.is_empty() {
            return Err(Error::TooFew {
                what: format!("pairs on the {side} side"),
                found: 0,
                needed: 1,
            });
        }
    }
    Ok([train, test])
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::Counted;
    use super::super::split::split;
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("p{}", i / 2)).collect()
    }

    fn statements(n: usize) -> Statements {
        Statements {
            labels: (0..n).map(|i| i % 2 == 1).collect(),
            groups: Some(names(n)),
            topics: None,
        }
    }

    /// Pairs that share an offset of their own and differ by ±(0, 0, 2, 0) and a little noise.
    fn rows(n: usize, sign: f32) -> LayerRows<'static> {
        let rows: Vec<f32> = (0..n)
            .flat_map(|i| {
                let offset = (i / 2 * 37 % 17) as f32;
                let noise = ((i * 29 % 23) as f32 - 11.0) / 40.0;
                let raised = if i % 2 == 1 { sign * 2.0 } else { 0.0 };
                [offset, noise, 3.0 + raised + offset, -offset]
            })
            .collect();
        LayerRows {
            hook: "blocks.3.hook_resid_post".into(),
            layer: 3,
            width: 4,
            rows: rows.into(),
        }
    }

    fn found(layer: &LayerRows<'_>, n: usize) -> LatResult {
        let statements = statements(n);
        let pairs = pairs(statements.groups.as_ref().unwrap(), &statements.labels).unwrap();
        let split = split(&statements, 0.5, 0).unwrap();
        let bootstrap = Bootstrap {
            resamples: 500,
            ..Default::default()
        };
        lat(layer, &statements, &pairs, &split, &bootstrap).unwrap()
    }

    #[test]
    fn what_pairs_differ_in_is_found_with_its_sign() {
        for sign in [1.0, -1.0] {
            let result = found(&rows(200, sign), 200);
            assert!(sign * result.direction[2] > 0.98, "{:?}", result.direction);
            assert_eq!((result.matched_accuracy, result.sign_votes), (1.0, 1.0));
            assert!((result.norm - 2.0).abs() < 0.1 && result.cos_mean_difference > 0.99);
            assert!(result.eigenvalue_ratio < 0.1);
        }
    }

    #[test]
    fn rows_that_are_read_one_by_one_give_the_same_as_rows_in_memory() {
        // Fewer pairs than features, as many as one piece holds, and more.
        for n in [4, 200, 6000] {
            let held = rows(n, 1.0);
            let elsewhere = Counted::of(&held, n);
            assert_eq!(found(&elsewhere.layer(&held), n), found(&held, n), "{n}");
            let read = elsewhere.read.into_inner();
            assert!(read <= 6 * n, "{n}: {read} rows were read");
        }
    }

    #[test]
    fn unpaired_rows_are_harder_than_pairs_where_an_offset_is_shared() {
        // The offset of a pair, 0 to 16 along the direction, drowns the 2 that its members differ by.
        let result = found(&rows(200, 1.0), 200);
        assert!(result.accuracy < 0.75 && result.auc < 0.75, "{result:?}");
        assert!(result.ci_low <= result.accuracy && result.accuracy <= result.ci_high);
    }

    #[test]
    fn the_second_moment_is_about_zero() {
        // All differences equal: nothing varies, so a centred analysis would have no direction at all.
        let rows: Vec<f32> = (0..40)
            .flat_map(|i| if i % 2 == 1 { [1.0, 1.0] } else { [0.0, 0.0] })
            .collect();
        let layer = LayerRows {
            hook: "blocks.0.hook_z".into(),
            layer: 0,
            width: 2,
            rows: rows.into(),
        };
        let result = found(&layer, 40);
        let half = 0.5_f32.sqrt();
        assert!(
            result.direction.iter().all(|d| (d - half).abs() < 1e-6),
            "{:?}",
            result.direction
        );
        assert!((result.threshold - f64::from(half)).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_a_pair_is_named() {
        let message = |names: &[&str], labels: &[bool]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            pairs(&names, labels).unwrap_err().to_string()
        };
        let found = message(&["a", "a", "b"], &[true, false, true]);
        assert!(found.starts_with("'b' has 1 true and 0 false"), "{found}");
        let found = message(&["a", "a", "a"], &[true, false, true]);
        assert!(found.starts_with("'a' has 2 true and 1 false"), "{found}");
    }
}
