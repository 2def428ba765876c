//! Attention, with what is read inside it.

use super::{Launched, Pass};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::attention::AttentionArgs;
use crate::backend::cuda::launch::{DevicePtr, LaunchError, launch};
use crate::backend::{Act, AttentionHooks};

impl<D: Driver> Pass<'_, '_, D> {
    pub(super) fn attend(&mut self, z: Act, hooks: AttentionHooks<'_>) -> Launched {
        if !hooks.edits.is_empty() {
            return Err(LaunchError::Device {
                what: "editing attn.hook_pattern".into(),
                reason: "the CUDA backend cannot do that yet: use --device cpu".into(),
            });
        }
        if !(hooks.scores.is_empty() && hooks.patterns.is_empty()) {
            // Scores and patterns are computed from them piece by piece, while the ring goes round.
            self.move_home(Act::RotQ)?;
            self.move_home(Act::RotK)?;
        }
        let [q, k, v, to] = [Act::RotQ, Act::RotK, Act::V, z].map(|act| self.view(act));
        let (shape, places) = (&self.cuda.shape, &self.cuda.places);
        let args = AttentionArgs {
            q: q.at,
            k: k.at,
            v: v.at,
            z: to.at,
            lse: if hooks.patterns.is_empty() {
                DevicePtr::NULL
            } else {
                places.log_sum_exp
            },
            cu_seqlens: places.cu_seqlens,
            tiles: places.tiles,
            q_stride: q.stride as u32,
            k_stride: k.stride as u32,
            v_stride: v.stride as u32,
            z_stride: to.stride as u32,
            n_heads: shape.n_heads as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            rows: self.rows(),
            n_tiles: self.n_tiles,
            window: self.cuda.window(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let kernel = self.cuda.attention();
        launch(&mut self.cuda.driver, &kernel, &args)?;
        for &sink in hooks.scores {
            self.emit_ragged(sink, DevicePtr::NULL, &args)?;
        }
        for &sink in hooks.patterns {
            self.emit_ragged(sink, args.lse, &args)?;
        }
        Ok(())
    }
}
