//! How strongly to push along a direction so that it does as much as another one: a search for the strength at which a measure that
//! grows from 0, a KL divergence for instance, comes to a given value. Many searches take their steps together, so that what they
//! measure can share its batches.

/// One search.
#[derive(Clone, Debug)]
pub struct Matching {
    target: f64,
    limit: f64,
    next: f64,
    /// (strength, measure), as they came.
    tried: Vec<(f64, f64)>,
}

/// Within this factor of the target is met: e^0.05.
const TOLERANCE: f64 = 0.05;

/// Steps after which the nearest is taken.
const MOST: usize = 8;

/// Most that a step multiplies or divides the strength by.
const STRIDE: f64 = 4.0;

impl Matching {
    /// For `target` > 0, beginning with strength `start` > 0, at strengths of at most `limit`.
    pub fn new(target: f64, start: f64, limit: f64) -> Self {
        Matching {
            target,
            limit,
            next: start.min(limit),
            tried: Vec::new(),
        }
    }

    /// The strength to measure next; `None` when the search is over.
    pub fn strength(&self) -> Option<f64> {
        // A target that is not a number is none either.
        let sought = self.target > 0.0;
        let over = self.is_met() || self.tried.len() >= MOST;
        let again = self.tried.iter().any(|&(c, _)| c == self.next);
        (sought && !over && !again).then_some(self.next)
    }

    /// What was measured at the strength that [`strength`](Self::strength) gave.
    pub fn found(&mut self, measure: f64) {
        self.tried.push((self.next, measure));
        self.next = self.guess().min(self.limit);
    }

    /// The strength that came nearest to the target, by the logarithm of the measure, and the measure there.
    pub fn best(&self) -> Option<(f64, f64)> {
        let distance = |m: f64| {
            if m > 0.0 {
                (m / self.target).ln().abs()
            } else {
                f64::INFINITY
            }
        };
        let nearest = |a: &&(f64, f64), b: &&(f64, f64)| distance(a.1).total_cmp(&distance(b.1));
        self.tried.iter().min_by(nearest).copied()
    }

    /// Whether the nearest is near enough.
    pub fn is_met(&self) -> bool {
        self.best()
            .is_some_and(|(_, m)| m > 0.0 && (m / self.target).ln().abs() <= TOLERANCE)
    }

    /// Between the nearest strengths on either side, a line through the logarithms; one side alone is left by the line through its two
    /// last, or, of a single one, by the square law that a KL divergence follows near 0.
    fn guess(&self) -> f64 {
        let ln = |&(c, m): &(f64, f64)| (c.ln(), m.max(1e-300).ln());
        let below = self
            .tried
            .iter()
            .filter(|t| t.1 < self.target)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let above = self
            .tried
            .iter()
            .filter(|t| t.1 >= self.target)
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = self.target.ln();
        let bound = STRIDE.ln();
        let (from, step) = match (below, above) {
            (Some(low), Some(high)) if low.0 < high.0 => {
                let ((a, fa), (b, fb)) = (ln(low), ln(high));
                // Kept off the ends, so that a measure that hardly grows on one side cannot stall the search.
                let share = ((wanted - fa) / (fb - fa)).clamp(0.1, 0.9);
                (a, share * (b - a))
            }
            // A measure that falls somewhere as the strength grows: halve what is above.
            (Some(_), Some(high)) => (high.0.ln(), -(2.0_f64.ln())),
            (side, other) => {
                let Some(end) = side.or(other) else {
                    return self.next;
                };
                let (a, fa) = ln(end);
                let slope = self.slope(a, fa).unwrap_or(2.0).clamp(0.5, 4.0);
                (a, ((wanted - fa) / slope).clamp(-bound, bound))
            }
        };
        (from + step).exp()
    }

    /// Of the logarithms, between the end and another strength that was tried.
    fn slope(&self, a: f64, fa: f64) -> Option<f64> {
        let other = self
            .tried
            .iter()
            .rev()
            .map(|&(c, m)| (c.ln(), m.max(1e-300).ln()));
        let other = other.into_iter().find(|&(c, _)| c != a)?;
        Some((fa - other.1) / (a - other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(
        target: f64,
        start: f64,
        limit: f64,
        measure: impl Fn(f64) -> f64,
    ) -> (Matching, usize) {
        let mut matching = Matching::new(target, start, limit);
        let mut steps = 0;
        while let Some(c) = matching.strength() {
            matching.found(measure(c));
            steps += 1;
        }
        (matching, steps)
    }

    #[test]
    fn a_square_law_is_met_in_two_steps() {
        for (target, start) in [(1.0, 0.1), (0.02, 3.0)] {
            let (found, steps) = search(target, start, 1e9, |c| 0.7 * c * c);
            let (c, measure) = found.best().unwrap();
            assert!(found.is_met() && (measure - 0.7 * c * c).abs() < 1e-12);
            assert!(steps <= 4, "{steps}");
        }
        assert_eq!(search(0.7, 0.5, 1e9, |c| 0.7 * c * c).1, 2);
    }

    #[test]
    fn a_measure_that_levels_off_is_met_where_it_can_be() {
        let measure = |c: f64| 3.0 * (1.0 - (-c * c).exp());
        let (found, steps) = search(2.9, 0.05, 1e9, measure);
        assert!(found.is_met() && steps <= 8, "{found:?}");
        let (found, _) = search(4.0, 0.05, 1e9, measure);
        assert!(!found.is_met());
        assert!(found.best().unwrap().1 > 2.99, "{found:?}");
    }

    #[test]
    fn no_strength_goes_beyond_the_limit() {
        let (found, _) = search(100.0, 1.0, 2.5, |c| c * c);
        assert!(!found.is_met());
        assert_eq!(found.best(), Some((2.5, 6.25)));
    }

    #[test]
    fn a_measure_without_effect_ends_the_search() {
        let (found, steps) = search(1.0, 1.0, 1e6, |_| 0.0);
        assert!(!found.is_met() && steps <= 8);
        let (found, steps) = search(0.0, 1.0, 1e6, |c| c);
        assert_eq!((found.best(), steps), (None, 0));
    }
}
