//! Ranges of NVTX, which nsys shows over what a device does: batches, and ops by hook point. Without the feature `nvtx` there are none.

use crate::backend::Act;
use crate::hooks::{HookPoint, Site};

/// A range that ends when it is dropped.
#[must_use]
pub(super) struct Range(());

/// Begins a range.
pub(super) fn range(name: &'static str) -> Range {
    Range::named(|| name.to_owned())
}

/// Begins the range of an op that writes a hook point, and of the point's taps and edits: `linear blocks.3.attn.hook_q`.
pub(super) fn at(site: Site, layer: usize, act: Act) -> Range {
    Range::named(|| format!("{} {}", op(act), HookPoint { site, layer }))
}

/// The op that writes an activation.
fn op(act: Act) -> &'static str {
    match act {
        Act::ResidPre => "embed",
        Act::Q
        | Act::K
        | Act::V
        | Act::AttnOut
        | Act::Gate
        | Act::Up
        | Act::MlpOut
        | Act::Logits => "linear",
        Act::RotQ | Act::RotK => "RoPE",
        Act::NormScale | Act::Normalized | Act::Normed => "RMSNorm",
        Act::Z => "attention",
        Act::HeadOut => "linear by head",
        Act::Post => "SwiGLU",
        Act::ResidMid | Act::ResidPost => "add",
    }
}

impl Range {
    fn named(name: impl FnOnce() -> String) -> Range {
        if cfg!(feature = "nvtx") {
            let _name = name();
            #[cfg(feature = "nvtx")]
            nvtx::range_push!("{_name}");
        }
        Range(())
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
    }
}
