//! The transformer, once for every backend: each hook point is one line, in the order of the pass.

use std::ops::ControlFlow::{self, Break, Continue};
use std::ops::Range;

use super::{Plan, ranges};
use crate::backend::{Act, AttentionHooks, EditId, Ops, SinkId, Weight};
use crate::hooks::{HookPoint, Site};

/// Runs the batch that `ops` holds, feeding every tap of the plan and making every edit, and ends after the last hook point
/// that has a tap.
pub fn forward(ops: &mut impl Ops, n_layers: usize, plan: &Plan) {
    if plan.last().is_some() {
        let _ = embedding(&mut Flow { ops, plan }, n_layers);
        ops.finish();
    }
}

/// As [`forward`], from block `from` on: `ops` holds the residual stream that enters it (`Act::ResidPre`) for every row of the
/// batch. What is behind `from` comes out as in the whole pass, bit for bit; taps and edits before it are passed over.
pub fn replay(ops: &mut impl Ops, from: usize, n_layers: usize, plan: &Plan) {
    if plan.last().is_some() {
        let _ = blocks(&mut Flow { ops, plan }, from..n_layers);
        ops.finish();
    }
}

fn embedding(f: &mut Flow<impl Ops>, n_layers: usize) -> ControlFlow<()> {
    f.write(Site::Embed, 0, Act::ResidPre, |o, x| o.embed(x))?;
    blocks(f, 0..n_layers)
}

fn blocks(f: &mut Flow<impl Ops>, layers: Range<usize>) -> ControlFlow<()> {
    use Act::*;
    for l in layers {
        f.read(Site::ResidPre, l, ResidPre)?;
        f.norm(
            [Site::Ln1Scale, Site::Ln1Normalized, Site::Ln1Out],
            l,
            ResidPre,
            Weight::Ln1(l),
        )?;
        f.write(Site::Q, l, Q, |o, q| o.linear(Normed, Weight::Q(l), q))?;
        f.write(Site::K, l, K, |o, k| o.linear(Normed, Weight::K(l), k))?;
        f.write(Site::V, l, V, |o, v| o.linear(Normed, Weight::V(l), v))?;
        f.write(Site::RotQ, l, RotQ, |o, q| o.rope(Q, q))?;
        f.write(Site::RotK, l, RotK, |o, k| o.rope(K, k))?;
        f.attention(l, |o, z, hooks| o.attention(l, z, hooks))?;
        f.on_rows(Site::Result, l, HeadOut, |o, rows, r| {
            o.head_results(rows, l, r)
        })?;
        f.write(Site::AttnOut, l, AttnOut, |o, a| {
            o.linear(Z, Weight::O(l), a)
        })?;
        f.write(Site::ResidMid, l, ResidMid, |o, x| {
            o.add(ResidPre, AttnOut, x)
        })?;
        f.norm(
            [Site::Ln2Scale, Site::Ln2Normalized, Site::Ln2Out],
            l,
            ResidMid,
            Weight::Ln2(l),
        )?;
        f.write(Site::MlpPre, l, Gate, |o, g| {
            o.linear(Normed, Weight::Gate(l), g)
        })?;
        f.write(Site::MlpPreLinear, l, Up, |o, u| {
            o.linear(Normed, Weight::Up(l), u)
        })?;
        f.write(Site::MlpPost, l, Post, |o, p| o.swiglu(p))?;
        f.write(Site::MlpOut, l, MlpOut, |o, m| {
            o.linear(Post, Weight::Down(l), m)
        })?;
        f.write(Site::ResidPost, l, ResidPost, |o, x| {
            o.add(ResidMid, MlpOut, x)
        })?;
        f.ops.swap(ResidPre, ResidPost); // the block's output is the next one's input
    }
    f.norm(
        [
            Site::LnFinalScale,
            Site::LnFinalNormalized,
            Site::LnFinalOut,
        ],
        0,
        ResidPre,
        Weight::LnFinal,
    )?;
    f.on_rows(Site::Logits, 0, Logits, |o, rows, y| {
        o.linear_rows(Normed, rows, Weight::LmHead, y)
    })
}

/// The pass under way; `Break` once the last tap is served.
struct Flow<'a, O> {
    ops: &'a mut O,
    plan: &'a Plan,
}

/// Rows of logits or per-head results that exist at a time: they are wide (V or H·d).
const WIDE_ROWS: usize = 128;

impl<'a, O: Ops> Flow<'a, O> {
    /// Runs `op`, which writes `act`, into the hook point's first willing sink or the backend's own memory; then edits and taps it.
    fn write(
        &mut self,
        site: Site,
        layer: usize,
        act: Act,
        op: impl FnOnce(&mut O, Act),
    ) -> ControlFlow<()> {
        let _range = ranges::at(site, layer, act);
        self.ops.label(&HookPoint { site, layer });
        self.destine(site, layer, act);
        op(self.ops, act);
        self.here(site, layer, act)
    }

    /// Edits and taps a hook point whose value `act` holds because another point has it too: that one's sinks stay as they are.
    fn read(&mut self, site: Site, layer: usize, act: Act) -> ControlFlow<()> {
        if !self.edits(site, layer).is_empty() {
            self.ops.own(act);
        }
        self.here(site, layer, act)
    }

    /// Makes the edits and feeds the taps of a hook point, in the plan's order.
    fn here(&mut self, site: Site, layer: usize, act: Act) -> ControlFlow<()> {
        let (before, after) = self.sinks_before_and_after_edits(site, layer);
        before.for_each(|s| self.ops.emit(act, s));
        for &edit in self.edits(site, layer) {
            self.ops.edit(act, edit);
        }
        after.for_each(|s| self.ops.emit(act, s));
        self.after(site, layer)
    }

    /// RMSNorm and its three hook points.
    fn norm(&mut self, sites: [Site; 3], layer: usize, x: Act, gain: Weight) -> ControlFlow<()> {
        let site = sites[2];
        let _range = ranges::at(site, layer, Act::Normed);
        self.ops.label(&HookPoint { site, layer });
        let acts = [Act::NormScale, Act::Normalized, Act::Normed];
        for (&site, act) in sites.iter().zip(acts) {
            self.destine(site, layer, act);
        }
        let normalized = !self.sinks(sites[1], layer).is_empty();
        self.ops.rms_norm(x, gain, normalized, Act::Normed);
        for (site, act) in sites.into_iter().zip(acts) {
            self.here(site, layer, act)?;
        }
        Continue(())
    }

    /// Attention and its three hook points; scores and patterns go from the op to their sinks, and edits reach the pattern there.
    fn attention(
        &mut self,
        layer: usize,
        op: impl FnOnce(&mut O, Act, AttentionHooks<'_>),
    ) -> ControlFlow<()> {
        let site = Site::Z;
        let _range = ranges::at(site, layer, Act::Z);
        self.ops.label(&HookPoint { site, layer });
        self.destine(Site::Z, layer, Act::Z);
        let hooks = AttentionHooks {
            scores: self.sinks(Site::AttnScores, layer),
            patterns: self.sinks(Site::Pattern, layer),
            edits: self.edits(Site::Pattern, layer),
            taps_before_edits: self.plan.taps_before_edits(),
        };
        op(self.ops, Act::Z, hooks);
        self.after(Site::AttnScores, layer)?;
        self.after(Site::Pattern, layer)?;
        self.here(Site::Z, layer, Act::Z)
    }

    /// A hook point that is computed only when tapped and only on the rows tapped, a few at a time.
    fn on_rows(
        &mut self,
        site: Site,
        layer: usize,
        act: Act,
        op: impl Fn(&mut O, &[u32], Act),
    ) -> ControlFlow<()> {
        let mut rows: Vec<u32> = self
            .sinks(site, layer)
            .iter()
            .flat_map(|&s| self.ops.sink_rows(s))
            .copied()
            .collect();
        rows.sort_unstable();
        rows.dedup();
        self.ops.unbind(act);
        let _range = ranges::at(site, layer, act);
        if !rows.is_empty() {
            self.ops.label(&HookPoint { site, layer });
        }
        for rows in rows.chunks(WIDE_ROWS) {
            op(self.ops, rows, act);
            let (before, after) = self.sinks_before_and_after_edits(site, layer);
            before.for_each(|s| self.ops.emit_rows(act, rows, s));
            for &edit in self.edits(site, layer) {
                self.ops.edit_rows(act, rows, edit);
            }
            after.for_each(|s| self.ops.emit_rows(act, rows, s));
        }
        self.after(site, layer)
    }

    fn sinks(&self, site: Site, layer: usize) -> &'a [SinkId] {
        self.plan.at(HookPoint { site, layer })
    }

    fn sinks_before_and_after_edits(
        &self,
        site: Site,
        layer: usize,
    ) -> (
        impl Iterator<Item = SinkId> + use<'a, O>,
        impl Iterator<Item = SinkId> + use<'a, O>,
    ) {
        let (plan, sinks) = (self.plan, self.sinks(site, layer).iter().copied());
        let before = sinks.clone().filter(|&s| plan.takes_before_edits(s));
        let after = sinks.filter(|&s| !plan.takes_before_edits(s));
        (before, after)
    }

    fn edits(&self, site: Site, layer: usize) -> &'a [EditId] {
        self.plan.edits_at(HookPoint { site, layer })
    }

    /// Binds what is about to be written to a sink of its hook point, unless that sink is to keep a value that goes on edited.
    fn destine(&mut self, site: Site, layer: usize, act: Act) {
        self.ops.unbind(act);
        if self.plan.taps_before_edits() && !self.edits(site, layer).is_empty() {
            return;
        }
        for &sink in self.sinks(site, layer) {
            if self.ops.bind(act, sink) {
                break;
            }
        }
    }

    fn after(&self, site: Site, layer: usize) -> ControlFlow<()> {
        if self.plan.last() == Some(HookPoint { site, layer }) {
            Break(())
        } else {
            Continue(())
        }
    }
}
