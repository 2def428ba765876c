//! Area under the receiver operating characteristic.

/// The probability that a true item scores above a false one, ties counted half (Mann–Whitney U by mid-ranks).
///
/// `None` when one label does not occur: the area is not defined then.
pub fn auc(scores: &[f64], labels: &[bool]) -> Option<f64> {
    assert_eq!(scores.len(), labels.len(), "one label per score");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));

    let n_true = labels.iter().filter(|&&label| label).count();
    let n_false = labels.len() - n_true;
    if n_true == 0 || n_false == 0 {
        return None;
    }
    let mut rank_sum = 0.0; // of the true items, ranks counted from 1
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let mid_rank = first as f64 + (tied.len() as f64 + 1.0) / 2.0;
        rank_sum += mid_rank * tied.iter().filter(|&&i| labels[i]).count() as f64;
        first += tied.len();
    }
    let (n_true, n_false) = (n_true as f64, n_false as f64);
    Some((rank_sum - n_true * (n_true + 1.0) / 2.0) / (n_true * n_false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half_as_in_scikit_learn() {
        // sklearn 1.9.1: roc_auc_score([0,0,1,1,1,0,1,0,0,0], [.1,.4,.4,.35,.8,.4,.7,.1,.9,.35])
        let scores = [0.1, 0.4, 0.4, 0.35, 0.8, 0.4, 0.7, 0.1, 0.9, 0.35];
        let labels = [0, 0, 1, 1, 1, 0, 1, 0, 0, 0].map(|label| label == 1);
        let area = auc(&scores, &labels).unwrap();
        assert!((area - 0.6875).abs() < 1e-12, "{area}");
    }

    #[test]
    fn equal_scores_give_one_half_and_zero_has_one_sign() {
        assert_eq!(auc(&[0.0, -0.0, 0.0], &[true, false, false]), Some(0.5));
    }

    #[test]
    fn one_label_alone_has_no_area() {
        assert_eq!(auc(&[1.0, 2.0], &[true, true]), None);
    }
}
