//! Which of a store's taps a command line means.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Failure, Usage};
use crate::hooks::{Dims, HookPattern};
use crate::model::Config;
use crate::store::{Error, ModelInfo, Store, TapInfo};

/// The taps that `wanted` names, in the store's order, each once. A name is a tap's folder, a hook point (all taps there),
/// or a pattern over hook points; aliases count as in `extract --tap`.
///
/// # Errors
/// A name that no tap has, with the taps there are.
pub fn named(store: &Store, wanted: &[String]) -> Result<Vec<usize>, Failure> {
    named_among(store.taps(), &store.manifest().provenance.model, wanted)
}

/// As [`named`], among taps of a model.
///
/// # Errors
/// As there.
pub fn named_among(
    taps: &[TapInfo],
    model: &ModelInfo,
    wanted: &[String],
) -> Result<Vec<usize>, Failure> {
    let mut found = BTreeSet::new();
    for name in wanted {
        let of =
            |at: &dyn Fn(usize) -> bool| (0..taps.len()).filter(|&tap| at(tap)).collect::<Vec<_>>();
        let folder = of(&|tap| taps[tap].folder == *name);
        let hook = of(&|tap| taps[tap].hook == *name);
        // A hook point's first tap has the hook point's name as its folder: the name alone then means that tap.
        let here = match (folder.is_empty(), hook.is_empty()) {
            (false, _) => folder,
            (true, false) => hook,
            (true, true) => matching(taps, model, name)?,
        };
        if here.is_empty() {
            let known = taps.iter().map(|t| t.folder.clone()).collect();
            return Err(Error::NoTap {
                name: name.clone(),
                known,
            }
            .into());
        }
        found.extend(here);
    }
    Ok(found.into_iter().collect())
}

/// The taps at the hook points of a pattern.
fn matching(taps: &[TapInfo], model: &ModelInfo, name: &str) -> Result<Vec<usize>, Failure> {
    if name.contains(['@', '|', '[']) {
        let message = format!(
            "--tap {name}: a store's taps are named by hook point or folder, without selection, heads or reduction"
        );
        return Err(Usage(message).into());
    }
    let pattern: HookPattern = name.parse()?;
    let points: BTreeSet<String> = pattern
        .resolve(&dims(taps, model))?
        .into_iter()
        .map(|(point, _)| point.to_string())
        .collect();
    Ok((0..taps.len())
        .filter(|&tap| points.contains(&taps[tap].hook))
        .collect())
}

/// How many layers patterns range over: the model's where it is still there, else those of the store.
fn dims(taps: &[TapInfo], model: &ModelInfo) -> Dims {
    let layers = taps
        .iter()
        .filter_map(|tap| layer(&tap.hook))
        .max()
        .map_or(1, |last| last + 1);
    let config = Config::open(Path::new(&model.path)).ok();
    let n_layers = config.map_or(layers, |config| config.n_layers.max(layers));
    Dims {
        n_layers,
        d_model: 1,
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 1,
        d_mlp: 1,
        vocab: 1,
    }
}

/// The layer in a hook point's canonical name; `None` for the points outside the blocks.
pub fn layer(hook: &str) -> Option<usize> {
    hook.strip_prefix("blocks.")?
        .split_once('.')?
        .0
        .parse()
        .ok()
}

/// The name without its layer, `blocks.L.hook_resid_post`; the name itself for the points outside the blocks.
pub fn site(hook: &str) -> String {
    match (layer(hook), hook.splitn(3, '.').nth(2)) {
        (Some(_), Some(rest)) => format!("blocks.L.{rest}"),
        _ => hook.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_apart_into_layer_and_site() {
        assert_eq!(
            (
                layer("blocks.15.attn.hook_z"),
                site("blocks.15.attn.hook_z").as_str()
            ),
            (Some(15), "blocks.L.attn.hook_z")
        );
        assert_eq!((layer("logits"), site("logits").as_str()), (None, "logits"));
        assert_eq!(
            (layer("blocks.x.hook_z"), site("ln_final.hook_out").as_str()),
            (None, "ln_final.hook_out")
        );
    }
}
