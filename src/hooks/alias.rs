//! Names that other tools give to our hook points, and the search for the nearest name.
//!
//! An alias is listed only where the value is truly the same tensor (up to its shape: Hugging Face projections
//! are flat where ours have a head axis). A Hugging Face module path stands for the module's *output*; what is only some
//! module's input, like z (`o_proj`'s) or mlp post (`down_proj`'s), has no path of its own, and `mlp.act_fn`,
//! silu(gate) alone, is no hook point of ours. The Bridge names were read off TransformerLens 4.3's Llama and Mistral adapters.

use super::Site;
use super::nearest::{edit_distance, nearest};

/// Hugging Face module paths, `L` for the layer. `self_attn` returns a tuple: its first element is meant.
const HUGGING_FACE: [(&str, Site); 15] = [
    ("model.embed_tokens", Site::Embed),
    ("model.layers.L.input_layernorm", Site::Ln1Out),
    ("model.layers.L.self_attn.q_proj", Site::Q),
    ("model.layers.L.self_attn.k_proj", Site::K),
    ("model.layers.L.self_attn.v_proj", Site::V),
    ("model.layers.L.self_attn.o_proj", Site::AttnOut),
    ("model.layers.L.self_attn", Site::AttnOut),
    ("model.layers.L.post_attention_layernorm", Site::Ln2Out),
    ("model.layers.L.mlp.gate_proj", Site::MlpPre),
    ("model.layers.L.mlp.up_proj", Site::MlpPreLinear),
    ("model.layers.L.mlp.down_proj", Site::MlpOut),
    ("model.layers.L.mlp", Site::MlpOut),
    ("model.layers.L", Site::ResidPost),
    ("model.norm", Site::LnFinalOut),
    ("lm_head", Site::Logits),
];

/// TransformerLens-Bridge names, but for those that are the canonical ones anyway.
const BRIDGE: [(&str, Site); 26] = [
    ("embed.hook_out", Site::Embed),
    ("blocks.L.hook_in", Site::ResidPre),
    ("blocks.L.ln1.hook_in", Site::ResidPre),
    ("blocks.L.attn.hook_in", Site::Ln1Out),
    ("blocks.L.attn.q.hook_in", Site::Ln1Out),
    ("blocks.L.attn.k.hook_in", Site::Ln1Out),
    ("blocks.L.attn.v.hook_in", Site::Ln1Out),
    ("blocks.L.attn.q.hook_out", Site::Q),
    ("blocks.L.attn.k.hook_out", Site::K),
    ("blocks.L.attn.v.hook_out", Site::V),
    ("blocks.L.attn.o.hook_in", Site::Z),
    ("blocks.L.attn.o.hook_out", Site::AttnOut),
    ("blocks.L.attn.hook_out", Site::AttnOut),
    ("blocks.L.ln2.hook_in", Site::ResidMid),
    ("blocks.L.mlp.hook_in", Site::Ln2Out),
    ("blocks.L.mlp.gate.hook_in", Site::Ln2Out),
    ("blocks.L.mlp.in.hook_in", Site::Ln2Out),
    ("blocks.L.mlp.gate.hook_out", Site::MlpPre),
    ("blocks.L.mlp.in.hook_out", Site::MlpPreLinear),
    ("blocks.L.mlp.out.hook_in", Site::MlpPost),
    ("blocks.L.mlp.out.hook_out", Site::MlpOut),
    ("blocks.L.mlp.hook_out", Site::MlpOut),
    ("blocks.L.hook_out", Site::ResidPost),
    ("unembed.hook_in", Site::LnFinalOut),
    ("unembed.hook_out", Site::Logits),
    ("hook_unembed", Site::Logits),
];

/// Every name we know with its site, canonical ones first.
fn names() -> impl Iterator<Item = (&'static str, Site)> {
    let canonical = Site::ALL.iter().map(|&site| (site.template(), site));
    canonical.chain(HUGGING_FACE).chain(BRIDGE)
}

/// The site that `name` means (without a choice of heads), and what it has in the layer's place.
pub(super) fn lookup(name: &str) -> Option<(Site, Option<&str>)> {
    names().find_map(|(template, site)| layer_in(name, template).map(|layer| (site, layer)))
}

/// Matches `name` against a template; `Some(None)` where the template has no layer.
fn layer_in<'a>(name: &'a str, template: &str) -> Option<Option<&'a str>> {
    let mut layer = None;
    let mut words = name.split('.');
    for wanted in template.split('.') {
        let word = words.next()?;
        if wanted == "L" {
            layer = Some(word);
        } else if word != wanted {
            return None;
        }
    }
    words.next().is_none().then_some(layer)
}

/// The three names nearest to an unknown one, with its own layer put back in.
pub(super) fn nearest_names(name: &str) -> Vec<String> {
    let layer = name.split('.').find(|word| looks_like_layers(word));
    let shape: Vec<&str> = name
        .split('.')
        .map(|word| if Some(word) == layer { "L" } else { word })
        .collect();
    let shape = shape.join(".");
    // People leave out the front of a name ("resid_post"): compare the last word too, at a small charge.
    let tail = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        last.strip_prefix("hook_").unwrap_or(last).to_owned()
    };
    let distance = |template: &str| {
        let whole = edit_distance(&shape, template);
        whole.min(edit_distance(&tail(&shape), &tail(template)) + 2)
    };
    nearest(names().map(|(template, _)| template), 3, distance)
        .into_iter()
        .map(|template| template.replace(".L", &format!(".{}", layer.unwrap_or("*"))))
        .collect()
}

fn looks_like_layers(word: &str) -> bool {
    word == "*" || word.starts_with('{') || word.trim_start_matches('-').parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_two_things() {
        let mut all: Vec<&str> = names().map(|(template, _)| template).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn an_alias_has_a_layer_exactly_where_its_site_does() {
        for (template, site) in names() {
            assert_eq!(
                template.split('.').any(|w| w == "L"),
                site.is_per_layer(),
                "{template}"
            );
        }
    }

    #[test]
    fn hugging_face_and_bridge_names_are_found() {
        assert_eq!(lookup("model.layers.3"), Some((Site::ResidPost, Some("3"))));
        assert_eq!(
            lookup("model.layers.*.mlp"),
            Some((Site::MlpOut, Some("*")))
        );
        assert_eq!(
            lookup("blocks.3.attn.q.hook_out"),
            Some((Site::Q, Some("3")))
        );
        assert_eq!(lookup("unembed.hook_out"), Some((Site::Logits, None)));
        assert_eq!(lookup("model.norm"), Some((Site::LnFinalOut, None)));
    }

    #[test]
    fn the_documentation_lists_every_point_in_order_and_every_alias() {
        let page = include_str!("../../docs/hooks.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: Vec<&str> = rows
            .filter_map(|row| row.split_once("` | ["))
            .map(|(name, _)| name)
            .collect();
        let points: Vec<&str> = Site::ALL.iter().map(|site| site.template()).collect();
        assert_eq!(documented, points);
        for (alias, _) in HUGGING_FACE.iter().chain(&BRIDGE) {
            assert!(page.contains(&format!("`{alias}`")), "{alias}");
        }
    }

    #[test]
    fn what_is_not_truly_equal_is_no_alias() {
        for name in [
            "model.layers.3.mlp.act_fn",
            "model",
            "model.layers",
            "blocks.3.hook_mlp_in",
        ] {
            assert_eq!(lookup(name), None, "{name}");
        }
    }

    #[test]
    fn the_nearest_names_keep_the_layer_that_was_typed() {
        assert_eq!(
            nearest_names("blocks.15.hook_resid_pots")[0],
            "blocks.15.hook_resid_post"
        );
        assert_eq!(
            nearest_names("blocks.{1,2}.atn.hook_z")[0],
            "blocks.{1,2}.attn.hook_z"
        );
        assert_eq!(nearest_names("resid_post")[0], "blocks.*.hook_resid_post");
        assert_eq!(
            nearest_names("model.layers.3.self_attn.q_prj")[0],
            "model.layers.3.self_attn.q_proj"
        );
        assert_eq!(nearest_names("logit")[0], "logits");
    }
}
