//! A job's taps and edits compiled against one model: what is read and written at each hook point, and where the forward
//! pass may end.

use std::collections::BTreeMap;

use crate::backend::{EditId, SinkId};
use crate::hooks::{HookPoint, Site, Tap};

/// What is read and written where; tap `i` of the job writes to sink `i` of every batch, edit `i` is edit `i` of every batch.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    sinks: BTreeMap<HookPoint, Vec<SinkId>>,
    edits: BTreeMap<HookPoint, Vec<EditId>>,
    taps_before_edits: bool,
    /// A sink that takes its point after its edits whatever the taps do: tokens are chosen from it.
    chosen_from: Option<SinkId>,
}

impl Plan {
    /// The plan of these taps.
    pub fn new(taps: &[Tap]) -> Self {
        let mut plan = Plan::default();
        for (sink, tap) in taps.iter().enumerate() {
            plan.sinks.entry(tap.point).or_default().push(sink);
        }
        plan
    }

    /// With edits at these points, those of one point in this order; `taps_before_edits`: a tap of an edited point takes the
    /// value that is edited, and not what the edits make of it.
    pub fn with_edits(
        mut self,
        edits: impl IntoIterator<Item = HookPoint>,
        taps_before_edits: bool,
    ) -> Self {
        for (edit, point) in edits.into_iter().enumerate() {
            self.edits.entry(point).or_default().push(edit);
        }
        self.taps_before_edits = taps_before_edits;
        self
    }

    /// With a sink at the logits that next tokens are chosen from: all edits bear on it.
    pub fn choosing_from(mut self, sink: SinkId) -> Self {
        let logits = HookPoint {
            site: Site::Logits,
            layer: 0,
        };
        self.sinks.entry(logits).or_default().push(sink);
        self.chosen_from = Some(sink);
        self
    }

    /// Sinks fed by that hook point.
    pub fn at(&self, point: HookPoint) -> &[SinkId] {
        self.sinks.get(&point).map_or(&[], Vec::as_slice)
    }

    /// Edits at that hook point, in order.
    pub fn edits_at(&self, point: HookPoint) -> &[EditId] {
        self.edits.get(&point).map_or(&[], Vec::as_slice)
    }

    /// Whether taps take the value before the edits of their point.
    pub fn taps_before_edits(&self) -> bool {
        self.taps_before_edits
    }

    /// Whether the sink takes the value before the edits of its point.
    pub fn takes_before_edits(&self, sink: SinkId) -> bool {
        self.taps_before_edits && self.chosen_from != Some(sink)
    }

    /// Whether an edit at that point can change what any tap takes.
    pub fn is_seen(&self, edit: HookPoint) -> bool {
        self.last()
            .is_some_and(|last| edit < last || (edit == last && !self.taps_before_edits))
            || self.chosen_from.is_some()
    }

    /// The last hook point that must be reached: nothing after it is computed. `None` without taps.
    pub fn last(&self) -> Option<HookPoint> {
        self.sinks.last_key_value().map(|(&point, _)| point)
    }

    /// Blocks that run, the last one perhaps in part.
    pub fn layers_run(&self, n_layers: usize) -> usize {
        match self.last() {
            None => 0,
            Some(point) if point.site.is_per_layer() => point.layer + 1,
            Some(HookPoint {
                site: Site::Embed, ..
            }) => 0,
            Some(_) => n_layers,
        }
    }
}
