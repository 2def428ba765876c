//! A job's taps compiled against one model: which sinks each hook point feeds, and where the forward pass may end.

use std::collections::BTreeMap;

use crate::backend::SinkId;
use crate::hooks::{HookPoint, Tap};

/// What is read where; tap `i` of the job writes to sink `i` of every batch.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    sinks: BTreeMap<HookPoint, Vec<SinkId>>,
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

    /// Sinks fed by that hook point.
    pub fn at(&self, point: HookPoint) -> &[SinkId] {
        self.sinks.get(&point).map_or(&[], Vec::as_slice)
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
                site: crate::hooks::Site::Embed,
                ..
            }) => 0,
            Some(_) => n_layers,
        }
    }
}
