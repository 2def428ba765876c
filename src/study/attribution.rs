//! What E6 reads off the model (`lens` shows it). The logits at the last position are linear in what was written to
//! the stream once the final norm's scale is taken as it was in that run: component c adds (W_U[dis] − W_U[hon]) · (g ⊙ c / scale) to the
//! difference of two logits. dis is the likeliest first token at full strength, hon without the edit.

use super::prompts::Half;
use super::statistics::mean;
use super::{Asked, Result, Steer, Study, point};
use crate::analysis::project::dot;
use crate::backend::Weight;
use crate::backend::cpu::StoredWeights;
use crate::engine::argmax;
use crate::hooks::{HookPoint, Site};

/// Components that are named.
pub(super) const NAMED: usize = 6;

/// One prompt's shares.
pub(super) struct Shares {
    /// By strength: what each component adds to the difference.
    pub by_strength: Vec<Vec<f64>>,
    /// By strength: the difference of the two logits, as the model has it.
    pub logits: Vec<f64>,
    /// By strength: P(no) − P(yes).
    pub no_less_yes: Vec<f64>,
    /// What each component writes along the direction more at full strength than without the edit.
    pub along: Vec<f64>,
}

/// The prompts of a half whose likeliest first token the edit turns.
pub(super) struct Attribution {
    pub strengths: Vec<f64>,
    pub prompts: Vec<Shares>,
    pub unturned: Vec<String>,
    pub n_layers: usize,
}

/// The components' points, in the order of the shares; the injection comes last.
fn components(n_layers: usize) -> Vec<HookPoint> {
    let blocks = (0..n_layers).flat_map(|l| [point(Site::AttnOut, l), point(Site::MlpOut, l)]);
    std::iter::once(point(Site::Embed, 0))
        .chain(blocks)
        .collect()
}

/// `embed`, `attn16`, `mlp20`, `injection`.
pub(super) fn component_name(component: usize, n_layers: usize) -> String {
    match (component, component.wrapping_sub(1)) {
        (0, _) => "embed".into(),
        (_, block) if block / 2 >= n_layers => "injection".into(),
        (_, block) => format!("{}{}", ["attn", "mlp"][block % 2], block / 2),
    }
}

/// What is read at the last position of one strength's runs: per point `[prompts, width]`.
struct Read {
    rows: Vec<Vec<f32>>,
    widths: Vec<usize>,
}

impl Read {
    fn of(
        study: &Study<'_>,
        prompts: &[Asked<'_>],
        points: &[HookPoint],
        steer: Option<Steer<'_>>,
    ) -> Result<Self> {
        let tokens: Vec<&[u32]> = prompts.iter().map(Asked::tokens).collect();
        let last: Vec<Vec<u32>> = tokens.iter().map(|t| vec![t.len() as u32 - 1]).collect();
        Ok(Read {
            rows: study.rows(points, &tokens, &last, steer)?,
            widths: points.iter().map(|&point| study.width(point)).collect(),
        })
    }

    fn row(&self, point: usize, prompt: usize) -> &[f32] {
        &self.rows[point][prompt * self.widths[point]..][..self.widths[point]]
    }
}

impl Attribution {
    /// `strengths`: the whole edit first, none last.
    pub fn of(study: &Study<'_>, half: Half, strengths: &[f64]) -> Result<Self> {
        let (n_layers, prompts) = (study.n_layers(), study.prompts(Some(half)));
        let steer = study.steer()?;
        let mut points = components(n_layers);
        let (scale, logits) = (points.len(), points.len() + 1);
        points.extend([point(Site::LnFinalScale, 0), point(Site::Logits, 0)]);
        let read = strengths.iter().map(|&c| {
            let steer = (c != 0.0).then_some(Steer {
                c: c as f32,
                ..steer
            });
            Read::of(study, &prompts, &points, steer)
        });
        let read: Vec<Read> = read.collect::<Result<_>>()?;
        let (full, none) = (&read[0], &read[read.len() - 1]);
        let mut found = Attribution {
            strengths: strengths.to_vec(),
            prompts: Vec::new(),
            unturned: Vec::new(),
            n_layers,
        };
        for (i, asked) in prompts.iter().enumerate() {
            let [dis, hon] = [full, none].map(|read| argmax(read.row(logits, i)));
            if dis == hon {
                found.unturned.push(asked.prompt.id.clone());
                continue;
            }
            let readout = readout(study, dis, hon);
            let along = |read: &Read, at: usize| dot(read.row(at, i), steer.direction);
            let mut shares = Shares {
                by_strength: Vec::new(),
                logits: Vec::new(),
                no_less_yes: Vec::new(),
                along: (0..scale)
                    .map(|at| along(full, at) - along(none, at))
                    .collect(),
            };
            shares
                .along
                .push(f64::from(strengths[0] as f32) * dot(steer.direction, steer.direction));
            for (read, &c) in read.iter().zip(strengths) {
                let scale_of_run = f64::from(read.row(scale, i)[0]);
                let injected = f64::from(c as f32) * dot(steer.direction, &readout) / scale_of_run;
                let written = (0..scale).map(|at| dot(read.row(at, i), &readout) / scale_of_run);
                shares.by_strength.push(written.chain([injected]).collect());
                let row = read.row(logits, i);
                shares
                    .logits
                    .push(f64::from(row[dis as usize]) - f64::from(row[hon as usize]));
                shares.no_less_yes.push(study.no_less_yes(row));
            }
            found.prompts.push(shares);
        }
        Ok(found)
    }

    pub fn components(&self) -> usize {
        2 * self.n_layers + 2
    }

    /// A component's shares at full strength less those without the edit, prompt by prompt.
    pub fn changes(&self, component: usize) -> Vec<f64> {
        let last = self.strengths.len() - 1;
        self.prompts
            .iter()
            .map(|p| p.by_strength[0][component] - p.by_strength[last][component])
            .collect()
    }

    /// The components with the largest mean changes, signs left out, of the tuning half (of this, where that has none); the injection; and
    /// those that were published.
    pub fn named(&self, study: &Study<'_>, tuning: &Attribution) -> Vec<usize> {
        let by = if tuning.prompts.is_empty() {
            self
        } else {
            tuning
        };
        let injection = self.components() - 1;
        let mut order: Vec<usize> = (0..injection).collect();
        let size = |&component: &usize| mean(&by.changes(component)).abs();
        order.sort_by(|a, b| size(b).total_cmp(&size(a)));
        order.truncate(NAMED);
        let is_published = |c: &usize| {
            study
                .published(&format!("E6.{}", component_name(*c, self.n_layers)))
                .is_some()
        };
        let published: Vec<usize> = (0..injection)
            .filter(is_published)
            .filter(|c| !order.contains(c))
            .collect();
        order.extend(published);
        order.push(injection);
        order
    }

    /// The largest difference, over prompts and strengths, between the sum of all shares and the model's own difference, over its size.
    pub fn largest_error(&self) -> f64 {
        let of = |p: &Shares| {
            let each = p.by_strength.iter().zip(&p.logits);
            let error = |(shares, logits): (&Vec<f64>, &f64)| {
                (shares.iter().sum::<f64>() - logits).abs() / logits.abs().max(1.0)
            };
            each.map(error).fold(0.0, f64::max)
        };
        self.prompts.iter().map(of).fold(0.0, f64::max)
    }
}

/// g ⊙ (W_U[dis] − W_U[hon]), `[d]`.
fn readout(study: &Study<'_>, dis: u32, hon: u32) -> Vec<f32> {
    let (model, d) = (&study.prepared().model, study.dims().d_model);
    let row = |weight: Weight, at: usize| {
        let mut row = vec![0.0_f32; d];
        model.tensor(weight).widen(at * d, &mut row);
        row
    };
    let (dis, hon) = (
        row(Weight::LmHead, dis as usize),
        row(Weight::LmHead, hon as usize),
    );
    let gain = row(Weight::LnFinal, 0);
    dis.iter()
        .zip(&hon)
        .zip(&gain)
        .map(|((d, h), g)| (d - h) * g)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_named_in_the_order_of_the_pass() {
        let names: Vec<String> = (0..6).map(|c| component_name(c, 2)).collect();
        assert_eq!(
            names,
            ["embed", "attn0", "mlp0", "attn1", "mlp1", "injection"]
        );
        assert_eq!(components(2)[3], point(Site::AttnOut, 1));
    }
}
