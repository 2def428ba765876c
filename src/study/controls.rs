//! C1: whether what the direction does to answers is more than any push does: random directions, some with the rows' own covariance, LAT on shuffled
//! pairs, and a persona's irrelevant adjectives; at equal length and at equal KL.

mod measure;
mod outcome;

use self::measure::Measure;
use self::outcome::{Ours, Outcome};
use super::cuts::Cuts;
use super::passes::point;
use super::push::{Push, Pushed, Summary};
use super::statistics::mean;
use super::{Result, Study, direction};
use crate::analysis::project::dot;
use crate::analysis::{LatResult, Matching, null};
use crate::hooks::Site;
use crate::report::finding::Finding;

/// Prompts that the pushes are tried on.
const PROMPTS: usize = 12;
/// Random directions, covariance-matched ones, and ones of shuffled pairs.
const DRAWS: [usize; 3] = [99, 49, 29];
const QUICK_DRAWS: [usize; 3] = [20, 10, 5];
/// No push is longer than so many times the study's.
const LONGEST: f64 = 8.0;

/// Directions that should not matter, of one kind.
struct Kind {
    name: &'static str,
    directions: Vec<Vec<f32>>,
    /// At the study's own length.
    equal_norm: Vec<Summary>,
    /// At the length that moves the first token's distribution as far.
    equal_kl: Vec<Summary>,
    /// How many of them came within 5 % of that.
    met: usize,
}

/// The direction of the other adjectives.
struct Adjectives {
    lat: LatResult,
    cosine: f64,
    words: [String; 2],
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let steer = study.steer()?;
    let pushed = Pushed::new(study, PROMPTS)?;
    let ours = pushed
        .effects(&[Push {
            v: steer.direction,
            c: steer.c,
        }])?
        .remove(0);
    let summary = ours.summary(f64::from(steer.c));
    let adjectives = Adjectives::fit(study, steer.layer)?;
    let mut kinds = kinds(study, &pushed, &adjectives)?;
    for kind in &mut kinds {
        kind.try_all(&pushed, &summary)?;
    }
    let outcome = Outcome {
        words: study.words().clone(),
        ours: Ours::new(study, &ours, summary),
        n: pushed.len(),
        kinds,
        adjectives,
        shifts: ours.negative,
    };
    Ok(Finding {
        answer: outcome.answer(study)?,
        numbers: outcome.numbers(),
        exhibits: outcome.exhibits(),
        ..super::finding(
            "Does the direction do to the answers what a push of that size along any direction would do?",
        )
    })
}

fn kinds(study: &Study<'_>, pushed: &Pushed<'_, '_>, adjectives: &Adjectives) -> Result<Vec<Kind>> {
    let (d, seed, steer) = (study.dims().d_model, study.options().seed, study.steer()?);
    let [random, matched, shuffled] = if study.options().quick {
        QUICK_DRAWS
    } else {
        DRAWS
    };
    let words = &study.behaviour().template;
    let cuts = Cuts::new(study, &words.positive, &words.negative)?;
    let trained = &cuts.sequences()[2 * cuts.train.start..2 * cuts.train.end];
    let rows = study.last_rows(&[point(Site::ResidPost, steer.layer)], trained)?;
    let rows = rows.gather(0, 0..trained.len());
    let opposite = adjectives.lat.direction.iter().map(|x| -x).collect();
    let kind = |name, directions| Kind {
        name,
        directions,
        equal_norm: Vec::new(),
        equal_kl: Vec::new(),
        met: 0,
    };
    Ok(vec![
        kind("random", null::random(random, d, seed)),
        kind(
            "covariance-matched",
            null::covariance_matched(&pushed.stream(), d, matched, seed)?,
        ),
        kind(
            "LAT on shuffled pairs",
            null::shuffled_lat(&rows, d, shuffled, seed)?,
        ),
        kind(
            "irrelevant adjectives, ±",
            vec![adjectives.lat.direction.clone(), opposite],
        ),
    ])
}

impl Adjectives {
    fn fit(study: &Study<'_>, layer: usize) -> Result<Self> {
        let words = &study.behaviour().template;
        let words = [
            words.control_positive.clone(),
            words.control_negative.clone(),
        ];
        let cuts = Cuts::new(study, &words[0], &words[1])?;
        let lat = direction::fit(study, &cuts, &[point(Site::ResidPost, layer)])?
            .remove(0)
            .lat;
        Ok(Adjectives {
            cosine: dot(&lat.direction, study.directions()?.layer(layer)),
            lat,
            words,
        })
    }
}

impl Kind {
    /// Tries all at the study's length, then looks for the length of equal KL, all together.
    fn try_all(&mut self, pushed: &Pushed<'_, '_>, ours: &Summary) -> Result<()> {
        let length = ours.c.abs();
        let mut searches =
            vec![Matching::new(ours.kl, length, LONGEST * length); self.directions.len()];
        let mut tried: Vec<Vec<Summary>> = vec![Vec::new(); self.directions.len()];
        loop {
            let next = |(i, search): (usize, &Matching)| search.strength().map(|c| (i, c));
            let now: Vec<(usize, f64)> = searches.iter().enumerate().filter_map(next).collect();
            if now.is_empty() {
                break;
            }
            let pushes = now.iter().map(|&(i, c)| Push {
                v: &self.directions[i],
                c: c as f32,
            });
            let found = pushed.effects(&pushes.collect::<Vec<_>>())?;
            for (&(i, c), effects) in now.iter().zip(&found) {
                let summary = effects.summary(c);
                searches[i].found(summary.kl);
                tried[i].push(summary);
            }
        }
        self.met = searches.iter().filter(|search| search.is_met()).count();
        for (search, tried) in searches.iter().zip(tried) {
            let best = search
                .best()
                .and_then(|(c, _)| tried.iter().find(|t| t.c == c).copied());
            self.equal_norm.extend(tried.first());
            self.equal_kl.extend(best);
        }
        Ok(())
    }

    /// The mean |cosine| of any two.
    fn alike(&self) -> f64 {
        let of = |(i, a): (usize, &Vec<f32>)| {
            let others = self.directions[i + 1..].iter();
            others.map(|b| dot(a, b).abs()).collect::<Vec<_>>()
        };
        let cosines: Vec<f64> = self.directions.iter().enumerate().flat_map(of).collect();
        mean(&cosines)
    }

    fn values(&self, at: Equal, of: Measure) -> Vec<f64> {
        let summaries = match at {
            Equal::Norm => &self.equal_norm,
            Equal::Kl => &self.equal_kl,
        };
        summaries.iter().map(of.of).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Equal {
    Norm,
    Kl,
}

impl Equal {
    fn name(self) -> &'static str {
        match self {
            Equal::Norm => "at equal norm",
            Equal::Kl => "at equal KL",
        }
    }
}
