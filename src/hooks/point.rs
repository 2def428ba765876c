//! The hook points: where they are in the forward pass, what they are called, how wide a row is.

use std::cmp::Ordering;
use std::fmt;

use super::{Dims, Error, HookPattern, Result};

/// A kind of place in the forward pass, without the layer.
///
/// The order of the variants is the order of the forward pass (inside a block, for those that every block has).
/// Shapes are per row: `d` hidden size, `H` query heads, `K` key/value heads, `h` head dim, `f` MLP width, `V` vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Embedding row, `[d]`.
    Embed,
    /// Input of the block, `[d]`.
    ResidPre,
    /// sqrt(mean(x²) + eps) of resid_pre, `[1]`, always f32.
    Ln1Scale,
    /// resid_pre / scale, before the gain, `[d]`.
    Ln1Normalized,
    /// After the gain: what attention reads, `[d]`.
    Ln1Out,
    /// Query before RoPE, `[H, h]`.
    Q,
    /// Key before RoPE, `[K, h]`.
    K,
    /// Value, `[K, h]`.
    V,
    /// Query after RoPE, `[H, h]`.
    RotQ,
    /// Key after RoPE, `[K, h]`.
    RotK,
    /// Scaled and masked scores, `[H, n, n]` per sample: ragged.
    AttnScores,
    /// Softmax of the scores, `[H, n, n]` per sample: ragged.
    Pattern,
    /// Attention-weighted values before W_O, `[H, h]`.
    Z,
    /// Each head's z·W_O, `[H, d]`; the heads sum to `AttnOut`.
    Result,
    /// Output of W_O, `[d]`.
    AttnOut,
    /// resid_pre + attn_out, `[d]`.
    ResidMid,
    /// sqrt(mean(x²) + eps) of resid_mid, `[1]`, always f32.
    Ln2Scale,
    /// resid_mid / scale, before the gain, `[d]`.
    Ln2Normalized,
    /// After the gain: what the MLP reads, `[d]`.
    Ln2Out,
    /// Gate projection, `[f]`.
    MlpPre,
    /// Up projection, `[f]`.
    MlpPreLinear,
    /// silu(gate)·up, `[f]`.
    MlpPost,
    /// Output of W_down, `[d]`.
    MlpOut,
    /// resid_mid + mlp_out, `[d]`.
    ResidPost,
    /// sqrt(mean(x²) + eps) of the last resid_post, `[1]`, always f32.
    LnFinalScale,
    /// Last resid_post / scale, before the gain, `[d]`.
    LnFinalNormalized,
    /// After the gain: what the LM head reads, `[d]`.
    LnFinalOut,
    /// Output of the LM head, `[V]`.
    Logits,
}

impl Site {
    /// Every site, in forward order.
    pub const ALL: [Site; 28] = [
        Site::Embed,
        Site::ResidPre,
        Site::Ln1Scale,
        Site::Ln1Normalized,
        Site::Ln1Out,
        Site::Q,
        Site::K,
        Site::V,
        Site::RotQ,
        Site::RotK,
        Site::AttnScores,
        Site::Pattern,
        Site::Z,
        Site::Result,
        Site::AttnOut,
        Site::ResidMid,
        Site::Ln2Scale,
        Site::Ln2Normalized,
        Site::Ln2Out,
        Site::MlpPre,
        Site::MlpPreLinear,
        Site::MlpPost,
        Site::MlpOut,
        Site::ResidPost,
        Site::LnFinalScale,
        Site::LnFinalNormalized,
        Site::LnFinalOut,
        Site::Logits,
    ];

    /// The canonical name, with `L` standing for the layer: `blocks.L.hook_resid_post`.
    pub fn template(self) -> &'static str {
        match self {
            Site::Embed => "hook_embed",
            Site::ResidPre => "blocks.L.hook_resid_pre",
            Site::Ln1Scale => "blocks.L.ln1.hook_scale",
            Site::Ln1Normalized => "blocks.L.ln1.hook_normalized",
            Site::Ln1Out => "blocks.L.ln1.hook_out",
            Site::Q => "blocks.L.attn.hook_q",
            Site::K => "blocks.L.attn.hook_k",
            Site::V => "blocks.L.attn.hook_v",
            Site::RotQ => "blocks.L.attn.hook_rot_q",
            Site::RotK => "blocks.L.attn.hook_rot_k",
            Site::AttnScores => "blocks.L.attn.hook_attn_scores",
            Site::Pattern => "blocks.L.attn.hook_pattern",
            Site::Z => "blocks.L.attn.hook_z",
            Site::Result => "blocks.L.attn.hook_result",
            Site::AttnOut => "blocks.L.hook_attn_out",
            Site::ResidMid => "blocks.L.hook_resid_mid",
            Site::Ln2Scale => "blocks.L.ln2.hook_scale",
            Site::Ln2Normalized => "blocks.L.ln2.hook_normalized",
            Site::Ln2Out => "blocks.L.ln2.hook_out",
            Site::MlpPre => "blocks.L.mlp.hook_pre",
            Site::MlpPreLinear => "blocks.L.mlp.hook_pre_linear",
            Site::MlpPost => "blocks.L.mlp.hook_post",
            Site::MlpOut => "blocks.L.hook_mlp_out",
            Site::ResidPost => "blocks.L.hook_resid_post",
            Site::LnFinalScale => "ln_final.hook_scale",
            Site::LnFinalNormalized => "ln_final.hook_normalized",
            Site::LnFinalOut => "ln_final.hook_out",
            Site::Logits => "logits",
        }
    }

    /// Whether every block has this point; the others are at the ends of the model.
    pub fn is_per_layer(self) -> bool {
        self > Site::Embed && self < Site::LnFinalScale
    }

    /// Whether a row is as long as its sample, so that samples cannot be stacked into one tensor.
    pub fn is_ragged(self) -> bool {
        matches!(self, Site::AttnScores | Site::Pattern)
    }

    /// Whether the value is f32 whatever the compute dtype: a norm's scale is never rounded.
    pub fn is_always_f32(self) -> bool {
        matches!(self, Site::Ln1Scale | Site::Ln2Scale | Site::LnFinalScale)
    }

    /// Whether the heads here are key/value heads, each shared by a group of query heads.
    pub fn has_kv_heads(self) -> bool {
        matches!(self, Site::K | Site::V | Site::RotK)
    }

    /// How many heads a row has here; `None` where rows have no head axis.
    pub fn heads(self, dims: &Dims) -> Option<usize> {
        match self {
            Site::Q | Site::RotQ | Site::AttnScores | Site::Pattern | Site::Z | Site::Result => {
                Some(dims.n_heads)
            }
            Site::K | Site::V | Site::RotK => Some(dims.n_kv_heads),
            _ => None,
        }
    }

    /// The shape of one row. At ragged points only the head axis is fixed: `[H]`, for `[H, rows, n]` per sample.
    pub fn row_shape(self, dims: &Dims) -> Vec<usize> {
        match self {
            Site::Ln1Scale | Site::Ln2Scale | Site::LnFinalScale => vec![1],
            Site::Q | Site::RotQ | Site::Z => vec![dims.n_heads, dims.d_head],
            Site::K | Site::V | Site::RotK => vec![dims.n_kv_heads, dims.d_head],
            Site::AttnScores | Site::Pattern => vec![dims.n_heads],
            Site::Result => vec![dims.n_heads, dims.d_model],
            Site::MlpPre | Site::MlpPreLinear | Site::MlpPost => vec![dims.d_mlp],
            Site::Logits => vec![dims.vocab],
            _ => vec![dims.d_model],
        }
    }
}

/// One place in the forward pass: a site, and the layer it is in.
///
/// Ordered as the forward pass meets them: embedding, block 0 from its input to its output, block 1, …, final norm, logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookPoint {
    pub site: Site,
    /// 0 for the points outside the blocks.
    pub layer: usize,
}

impl HookPoint {
    /// Reads a canonical name or one of its Hugging Face or TransformerLens-Bridge aliases;
    /// negative layers count from the end.
    ///
    /// # Errors
    /// An unknown name or layer (the error lists the nearest), and a pattern that names heads or several layers.
    pub fn parse(name: &str, dims: &Dims) -> Result<HookPoint> {
        let pattern: HookPattern = name.parse()?;
        match pattern.resolve(dims)?.as_slice() {
            [(point, None)] if pattern.names_one_layer() => Ok(*point),
            _ => Err(Error::pattern(
                name,
                "one hook point is wanted here: name one layer and no heads",
            )),
        }
    }

    /// Every hook point of a model, in forward order.
    pub fn all(dims: &Dims) -> Vec<HookPoint> {
        let mut points: Vec<HookPoint> = Site::ALL
            .iter()
            .flat_map(|&site| {
                let layers = if site.is_per_layer() {
                    dims.n_layers
                } else {
                    1
                };
                (0..layers).map(move |layer| HookPoint { site, layer })
            })
            .collect();
        points.sort();
        points
    }

    /// Where the forward pass meets this point: before, in or after the blocks, then layer, then site.
    fn place(&self) -> (u8, usize, Site) {
        let part = match self.site {
            Site::Embed => 0,
            site if site.is_per_layer() => 1,
            _ => 2,
        };
        (part, if part == 1 { self.layer } else { 0 }, self.site)
    }
}

impl Ord for HookPoint {
    fn cmp(&self, other: &Self) -> Ordering {
        // The layer last, so that the order agrees with `==` even for a stray layer outside the blocks.
        (self.place(), self.layer).cmp(&(other.place(), other.layer))
    }
}

impl PartialOrd for HookPoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The canonical name: `blocks.15.attn.hook_z`, `ln_final.hook_out`.
impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.site.template().strip_prefix("blocks.L.") {
            Some(rest) => write!(f, "blocks.{}.{rest}", self.layer),
            None => f.write_str(self.site.template()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::dims::tests::MISTRAL;

    #[test]
    fn sites_are_listed_once_and_in_forward_order() {
        assert!(Site::ALL.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn every_point_of_a_model_parses_back_from_its_name() {
        let points = HookPoint::all(&MISTRAL);
        assert_eq!(points.len(), 1 + 32 * 23 + 4);
        for point in points {
            assert_eq!(
                HookPoint::parse(&point.to_string(), &MISTRAL).unwrap(),
                point
            );
        }
    }

    #[test]
    fn points_are_ordered_as_the_forward_pass_meets_them() {
        let names: Vec<String> = HookPoint::all(&MISTRAL)
            .iter()
            .map(|p| p.to_string())
            .collect();
        assert_eq!(names[..2], ["hook_embed", "blocks.0.hook_resid_pre"]);
        assert_eq!(
            names[23..25],
            ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
        );
        assert_eq!(
            names[names.len() - 5..],
            [
                "blocks.31.hook_resid_post",
                "ln_final.hook_scale",
                "ln_final.hook_normalized",
                "ln_final.hook_out",
                "logits"
            ]
        );
    }

    #[test]
    fn keys_and_values_have_their_own_head_count() {
        assert_eq!(Site::Z.row_shape(&MISTRAL), [32, 128]);
        assert_eq!(Site::K.row_shape(&MISTRAL), [8, 128]);
        assert_eq!(Site::RotK.heads(&MISTRAL), Some(8));
        assert_eq!(Site::Result.row_shape(&MISTRAL), [32, 4096]);
        assert_eq!(Site::ResidPost.heads(&MISTRAL), None);
    }

    #[test]
    fn a_site_has_a_head_axis_exactly_where_it_has_heads() {
        for site in Site::ALL {
            let shape = site.row_shape(&MISTRAL);
            match site.heads(&MISTRAL) {
                Some(heads) => assert_eq!(shape[0], heads, "{site:?}"),
                None => assert_eq!(shape.len(), 1, "{site:?}"),
            }
        }
    }

    #[test]
    fn only_the_scales_of_norms_are_always_f32() {
        let scales = Site::ALL
            .iter()
            .filter(|s| s.template().ends_with("hook_scale"));
        assert!(scales.clone().all(|s| s.is_always_f32()));
        assert_eq!(
            scales.count(),
            Site::ALL.iter().filter(|s| s.is_always_f32()).count()
        );
    }

    #[test]
    fn a_point_is_one_layer_without_heads() {
        for many in [
            "blocks.*.hook_resid_post",
            "blocks.{3}.attn.hook_z[1]",
            "blocks.{1,2}.hook_mlp_out",
        ] {
            let error = HookPoint::parse(many, &MISTRAL).unwrap_err().to_string();
            assert!(error.contains("one hook point is wanted"), "{error}");
        }
        assert_eq!(
            HookPoint::parse("blocks.-1.hook_mlp_out", &MISTRAL)
                .unwrap()
                .layer,
            31
        );
    }
}
