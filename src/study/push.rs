//! What pushing along a direction does to the first token of answers: the measures that directions are compared by.

use super::prompts::{Answer, Half, Kind};
use super::statistics::mean;
use super::{AnswerTokens, Asked, Result, Study};
use crate::engine::{Injection, Said, Steering};

/// Prompts nearer to each other than this, plain and edited, have no recovery: in nats.
const TOO_NEAR: f64 = 0.01;

/// One push: a unit direction and a strength.
pub(super) type Push<'a> = Injection<'a>;

/// The prompts that pushes are tried on, and what the plain and the edited run say there.
pub(super) struct Pushed<'s, 'p> {
    study: &'s Study<'p>,
    steering: Steering<'p>,
    firsts: Firsts,
}

/// What pushes are measured against.
struct Firsts {
    /// 1 where "no" is the answer that is not honest, −1 where it is the honest one.
    sides: Vec<f64>,
    plain: Vec<First>,
    edited: Vec<First>,
    answers: AnswerTokens,
}

/// A first token's distribution.
struct First {
    /// Log-probabilities, `[vocabulary]`.
    logp: Vec<f64>,
    likeliest: usize,
    /// ln P(no) − ln P(yes).
    odds: f64,
}

/// What a push does at one prompt.
#[derive(Debug, Clone, Copy)]
struct Effect {
    kl: f64,
    from_edited: f64,
    flipped: bool,
    odds: f64,
}

/// What a push does, prompt by prompt.
#[derive(Debug, Clone)]
pub(super) struct Effects {
    /// KL(p_pushed ‖ p_plain), in nats.
    pub kl: Vec<f64>,
    /// Whether the likeliest token is another: 1 or 0.
    pub flipped: Vec<f64>,
    /// By how much ln P(no) − ln P(yes) rises.
    pub no: Vec<f64>,
    /// By how much the log-odds of the answer that is not honest rise against the honest one's.
    pub negative: Vec<f64>,
    /// 1 − KL(p_edited ‖ p_pushed) / KL(p_edited ‖ p_plain), where the edited run differs from the plain one.
    pub recovery: Vec<f64>,
}

/// The means over prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub c: f64,
    pub kl: f64,
    pub flipped: f64,
    pub no: f64,
    pub negative: f64,
    pub recovery: f64,
}

impl Effects {
    pub fn summary(&self, c: f64) -> Summary {
        Summary {
            c,
            kl: mean(&self.kl),
            flipped: mean(&self.flipped),
            no: mean(&self.no),
            negative: mean(&self.negative),
            recovery: mean(&self.recovery),
        }
    }
}

/// The report half's dilemmas, as many with either honest answer, at most so many; all of that half where it has none of these.
fn balanced<'s>(study: &'s Study<'_>, most: usize) -> Vec<Asked<'s>> {
    let report = study.prompts(Some(Half::Report));
    let of = |answer: Answer| -> Vec<Asked<'s>> {
        let is = |a: &&Asked<'_>| a.prompt.kind == Kind::Dilemma && a.prompt.honest == answer;
        report.iter().filter(is).copied().collect()
    };
    let (yes, no) = (of(Answer::Yes), of(Answer::No));
    let each = yes.len().min(no.len()).min(most / 2);
    if each == 0 {
        return report;
    }
    yes[..each].iter().chain(&no[..each]).copied().collect()
}

impl<'s, 'p> Pushed<'s, 'p> {
    /// Runs at most `most` prompts plain and edited.
    ///
    /// # Errors
    /// What a backend can fail at; a tokenizer without the two answers.
    pub fn new(study: &'s Study<'p>, most: usize) -> Result<Self> {
        let asked = balanced(study, most);
        let tokens: Vec<&[u32]> = asked.iter().map(Asked::tokens).collect();
        let steer = study.steer()?;
        let side = |asked: &Asked<'_>| match asked.prompt.honest {
            Answer::Yes => 1.0,
            Answer::No => -1.0,
        };
        let sides = asked.iter().map(side).collect();
        let answers = study.answers().clone();
        let steering = {
            let mut machine = study.machine();
            Steering::at_the_end(study.prepared(), &mut **machine, steer.layer, &tokens)?
        };
        let mut firsts = Firsts {
            sides,
            plain: Vec::new(),
            edited: Vec::new(),
            answers,
        };
        let both = [0.0, steer.c].map(|c| Push {
            v: steer.direction,
            c,
        });
        let mut first = steering.run(&mut **study.machine(), &both, |said| firsts.first(said))?;
        firsts.edited = first.split_off(asked.len());
        firsts.plain = first;
        Ok(Pushed {
            study,
            steering,
            firsts,
        })
    }

    /// Prompts.
    pub fn len(&self) -> usize {
        self.firsts.sides.len()
    }

    /// The rows of the residual stream that pushes are added to, `[tokens, d]`, first tokens left out: these are alike in all prompts, and a few massive
    /// components are most of their length.
    pub fn stream(&self) -> Vec<f32> {
        let d = self.study.dims().d_model;
        let of = |i: usize| self.steering.stream(i)[d..].iter().copied();
        (0..self.len()).flat_map(of).collect()
    }

    /// What each push does.
    ///
    /// # Errors
    /// What a backend can fail at.
    pub fn effects(&self, pushes: &[Push<'_>]) -> Result<Vec<Effects>> {
        let firsts = &self.firsts;
        let mut machine = self.study.machine();
        let found = self
            .steering
            .run(&mut **machine, pushes, |said| firsts.effect(said))?;
        Ok(found
            .chunks(self.len())
            .map(|of| firsts.together(of))
            .collect())
    }
}

impl Firsts {
    fn first(&self, said: &Said<'_>) -> First {
        let logp = said.log_probabilities();
        First {
            likeliest: likeliest(&logp),
            odds: no_against_yes(&logp, &self.answers),
            logp,
        }
    }

    fn effect(&self, said: &Said<'_>) -> Effect {
        let here = self.first(said);
        let (plain, edited) = (&self.plain[said.sample], &self.edited[said.sample]);
        Effect {
            kl: kl(&here.logp, &plain.logp),
            from_edited: kl(&edited.logp, &here.logp),
            flipped: here.likeliest != plain.likeliest,
            odds: here.odds - plain.odds,
        }
    }

    fn together(&self, effects: &[Effect]) -> Effects {
        let recovery = |(i, effect): (usize, &Effect)| {
            let whole = kl(&self.edited[i].logp, &self.plain[i].logp);
            (whole >= TOO_NEAR).then(|| 1.0 - effect.from_edited / whole)
        };
        Effects {
            kl: effects.iter().map(|e| e.kl).collect(),
            flipped: effects
                .iter()
                .map(|e| f64::from(u8::from(e.flipped)))
                .collect(),
            no: effects.iter().map(|e| e.odds).collect(),
            negative: effects
                .iter()
                .zip(&self.sides)
                .map(|(e, side)| side * e.odds)
                .collect(),
            recovery: effects.iter().enumerate().filter_map(recovery).collect(),
        }
    }
}

/// ln P(no) − ln P(yes), from log-probabilities.
pub(super) fn no_against_yes(logp: &[f64], answers: &AnswerTokens) -> f64 {
    let ln = |ids: &[u32]| {
        let of = ids.iter().map(|&id| logp[id as usize]);
        let largest = of.clone().fold(f64::NEG_INFINITY, f64::max);
        largest + of.map(|p| (p - largest).exp()).sum::<f64>().ln()
    };
    ln(&answers.no) - ln(&answers.yes)
}

/// Of equal ones the first.
fn likeliest(logp: &[f64]) -> usize {
    (0..logp.len()).fold(0, |best, i| if logp[i] > logp[best] { i } else { best })
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odds_of_an_answer_are_of_all_its_tokens_together_however_unlikely() {
        let answers = AnswerTokens {
            yes: vec![0],
            no: vec![1, 2],
        };
        let found = no_against_yes(&[0.4_f64.ln(), 0.1_f64.ln(), 0.1_f64.ln()], &answers);
        assert!((found - 0.5_f64.ln()).abs() < 1e-12, "{found}");
        let found = no_against_yes(&[-2000.0, -2001.0, -2001.0], &answers);
        assert!((found - (2.0_f64.ln() - 1.0)).abs() < 1e-9, "{found}");
    }

    #[test]
    fn what_moves_towards_no_is_dishonest_only_where_yes_is_honest() {
        let first = |logp: [f64; 3]| First {
            odds: logp[1] - logp[0],
            likeliest: likeliest(&logp),
            logp: logp.to_vec(),
        };
        let plain = [0.5_f64.ln(), 0.25_f64.ln(), 0.25_f64.ln()];
        let turned = [0.25_f64.ln(), 0.5_f64.ln(), 0.25_f64.ln()];
        let firsts = Firsts {
            sides: vec![1.0, -1.0],
            plain: vec![first(plain), first(plain)],
            edited: vec![first(turned), first(plain)],
            answers: AnswerTokens {
                yes: vec![0],
                no: vec![1],
            },
        };
        let effect = Effect {
            kl: kl(&turned, &plain),
            from_edited: 0.0,
            flipped: true,
            odds: 4.0_f64.ln(),
        };
        let effects = firsts.together(&[effect, effect]);
        // Half of ln 2 less a quarter of ln 2.
        assert!((effects.kl[0] - 0.25 * 2.0_f64.ln()).abs() < 1e-12);
        assert_eq!(effects.no, [4.0_f64.ln(); 2]);
        assert_eq!(effects.negative, [4.0_f64.ln(), -(4.0_f64.ln())]);
        assert_eq!(
            effects.recovery,
            [1.0],
            "where both runs are equal there is none"
        );
        assert_eq!(effects.summary(3.0).negative, 0.0);
    }
}
