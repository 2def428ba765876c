//! Patterns over hook points: a name with a set of layers, and perhaps a choice of heads.
//!
//! ```text
//! pattern = name [ "[" items "]" ]     name: canonical, Hugging Face or Bridge, with layers in the layer's place
//! layers  = "*" | item | "{" items "}"
//! items   = item { "," item }
//! item    = int | int "-" int          inclusive; negative counts from the end
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::alias::{lookup, nearest_names};
use super::number::{from_end, range, surely_backwards};
use super::{Dims, Error, HookPoint, Result, Site};

/// A set of hook points that share a site. Parsing checks name and syntax; [`HookPattern::resolve`] checks
/// layers and heads against a model. Displayed with the canonical name, whatever alias it was read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HookPattern {
    site: Site,
    layers: Layers,
    /// Empty for all heads (or none to choose from).
    heads: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Layers {
    /// The point is not in a block.
    Outside,
    All,
    Some(Vec<Item>),
}

/// First and last index, inclusive, negative from the end.
type Item = (i32, i32);

/// A resolved pattern: each point with the heads chosen there, ascending; `None` for all of the row.
pub type Resolved = Vec<(HookPoint, Option<Vec<usize>>)>;

impl HookPattern {
    /// The points of one model, in forward order, each once.
    ///
    /// # Errors
    /// A layer or head that the model does not have, a range that runs backwards, heads at a point without heads.
    pub fn resolve(&self, dims: &Dims) -> Result<Resolved> {
        let heads = self.resolve_heads(dims)?;
        let layers: Vec<usize> = match &self.layers {
            Layers::Outside => vec![0],
            Layers::All => (0..dims.n_layers).collect(),
            Layers::Some(items) => {
                self.expand(items, dims.n_layers, |layer, nearest| Error::Layer {
                    pattern: self.to_string(),
                    layer,
                    n_layers: dims.n_layers,
                    nearest,
                })?
            }
        };
        let site = self.site;
        Ok(layers
            .into_iter()
            .map(|layer| (HookPoint { site, layer }, heads.clone()))
            .collect())
    }

    /// The site that every point of the pattern shares.
    pub fn site(&self) -> Site {
        self.site
    }

    /// Whether the pattern can only mean one point, in any model.
    pub(super) fn names_one_layer(&self) -> bool {
        match &self.layers {
            Layers::Outside => true,
            Layers::All => false,
            Layers::Some(items) => matches!(items[..], [(first, last)] if first == last),
        }
    }

    fn resolve_heads(&self, dims: &Dims) -> Result<Option<Vec<usize>>> {
        if self.heads.is_empty() {
            return Ok(None);
        }
        let Some(n_heads) = self.site.heads(dims) else {
            let with_heads = [Site::Q, Site::K, Site::Z, Site::Result];
            return Err(Error::NoHeads {
                pattern: self.to_string(),
                point: self.site.template().to_owned(),
                with_heads: with_heads.map(|s| s.template().to_owned()).to_vec(),
            });
        };
        let kind = if self.site.has_kv_heads() {
            "key/value"
        } else {
            "query"
        };
        let heads = self.expand(&self.heads, n_heads, |head, nearest| Error::Head {
            pattern: self.to_string(),
            kind,
            head,
            n_heads,
            nearest,
        })?;
        Ok(Some(heads))
    }

    /// The indices that `items` mean among `len` things: ascending, each once. `outside` makes the error for an
    /// index that is not there, from it and the nearest that is.
    fn expand(
        &self,
        items: &[Item],
        len: usize,
        outside: impl Fn(i32, usize) -> Error,
    ) -> Result<Vec<usize>> {
        let place = |index: i32| {
            let at = from_end(index, len);
            match usize::try_from(at) {
                Ok(at) if at < len => Ok(at),
                _ => Err(outside(
                    index,
                    if at < 0 { 0 } else { len.saturating_sub(1) },
                )),
            }
        };
        let mut indices = BTreeSet::new();
        for &(first, last) in items {
            let (from, to) = (place(first)?, place(last)?);
            if from > to {
                return Err(Error::pattern(
                    &self.to_string(),
                    format!("range {first}-{last} runs backwards among {len}; swap its ends"),
                ));
            }
            indices.extend(from..=to);
        }
        Ok(indices.into_iter().collect())
    }
}

impl FromStr for HookPattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<HookPattern> {
        let text = text.trim();
        let (name, heads) = match text.split_once('[') {
            None => (text, Vec::new()),
            Some((name, heads)) => {
                let inside = heads.strip_suffix(']').ok_or_else(|| {
                    Error::pattern(text, "the choice of heads has no closing `]` at the end")
                })?;
                (name, items(inside, "head", text)?)
            }
        };
        let (site, layers) = lookup(name).ok_or_else(|| Error::UnknownHook {
            name: name.to_owned(),
            nearest: nearest_names(name),
        })?;
        let layers = match layers {
            None => Layers::Outside,
            Some("*") => Layers::All,
            Some(word) => Layers::Some(match word.strip_prefix('{') {
                None => one_layer(word, text)?,
                Some(inside) => {
                    let inside = inside
                        .strip_suffix('}')
                        .ok_or_else(|| Error::pattern(text, "`{` without `}`"))?;
                    items(inside, "layer", text)?
                }
            }),
        };
        Ok(HookPattern {
            site,
            layers,
            heads,
        })
    }
}

/// A layer without braces: an integer. A range there is refused with the spelling that works.
fn one_layer(word: &str, pattern: &str) -> Result<Vec<Item>> {
    match range(word, "-") {
        Some((first, last)) if first == last => Ok(vec![(first, last)]),
        Some(_) => Err(Error::pattern(
            pattern,
            format!("write a range of layers in braces: {{{word}}}"),
        )),
        None => Err(Error::pattern(
            pattern,
            "a layer is a number (negative from the end), `*`, or a list such as {0,5,14-31}",
        )),
    }
}

/// Comma-separated indices and ranges; `what` they count (`layer`, `head`) goes into the error.
fn items(text: &str, what: &str, pattern: &str) -> Result<Vec<Item>> {
    text.split(',')
        .map(|item| {
            let (first, last) = range(item.trim(), "-").ok_or_else(|| {
                Error::pattern(
                    pattern,
                    format!("a {what} in a list is a number or a range, such as 8, -1 or 0-3"),
                )
            })?;
            if surely_backwards(first, last) {
                let reason = format!("range {first}-{last} runs backwards; swap its ends");
                return Err(Error::pattern(pattern, reason));
            }
            Ok((first, last))
        })
        .collect()
}

impl fmt::Display for HookPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = match &self.layers {
            Layers::Outside => String::new(),
            Layers::All => "*".to_owned(),
            Layers::Some(items) if self.names_one_layer() => list(items),
            Layers::Some(items) => format!("{{{}}}", list(items)),
        };
        match self.site.template().strip_prefix("blocks.L.") {
            Some(rest) => write!(f, "blocks.{layers}.{rest}")?,
            None => f.write_str(self.site.template())?,
        }
        if self.heads.is_empty() {
            return Ok(());
        }
        write!(f, "[{}]", list(&self.heads))
    }
}

fn list(items: &[Item]) -> String {
    let words: Vec<String> = items
        .iter()
        .map(|&(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    words.join(",")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hooks::dims::tests::MISTRAL;

    fn layers(pattern: &str) -> Vec<usize> {
        let pattern: HookPattern = pattern.parse().unwrap();
        let points = pattern.resolve(&MISTRAL).unwrap();
        points.iter().map(|(point, _)| point.layer).collect()
    }

    fn heads(pattern: &str) -> Option<Vec<usize>> {
        let pattern: HookPattern = pattern.parse().unwrap();
        pattern.resolve(&MISTRAL).unwrap()[0].1.clone()
    }

    fn error(pattern: &str) -> String {
        let resolved = pattern
            .parse::<HookPattern>()
            .and_then(|p| p.resolve(&MISTRAL));
        resolved.unwrap_err().to_string()
    }

    #[test]
    fn a_star_is_every_layer() {
        assert_eq!(
            layers("blocks.*.hook_resid_post"),
            (0..32).collect::<Vec<_>>()
        );
    }

    #[test]
    fn braces_list_layers_and_inclusive_ranges() {
        assert_eq!(
            layers("blocks.{0,5,28-31}.attn.hook_z"),
            [0, 5, 28, 29, 30, 31]
        );
        assert_eq!(layers("blocks.{-2--1}.attn.hook_z"), [30, 31]);
        assert_eq!(layers("blocks.{30--1}.attn.hook_z"), [30, 31]);
    }

    #[test]
    fn layers_come_in_forward_order_and_once() {
        assert_eq!(layers("blocks.{31,5,-1,4-6,5}.hook_mlp_out"), [4, 5, 6, 31]);
    }

    #[test]
    fn a_negative_layer_counts_from_the_end() {
        assert_eq!(layers("blocks.-1.hook_mlp_out"), [31]);
        assert_eq!(layers("blocks.-32.hook_mlp_out"), [0]);
    }

    #[test]
    fn heads_are_chosen_in_brackets() {
        assert_eq!(heads("blocks.16.attn.hook_z"), None);
        assert_eq!(heads("blocks.16.attn.hook_z[24,8]"), Some(vec![8, 24]));
        assert_eq!(heads("blocks.16.attn.hook_z[0-3]"), Some(vec![0, 1, 2, 3]));
        assert_eq!(heads("blocks.16.attn.hook_z[-1]"), Some(vec![31]));
        assert_eq!(heads("blocks.16.attn.hook_k[-1]"), Some(vec![7]));
        assert_eq!(heads("blocks.16.attn.hook_pattern[5]"), Some(vec![5]));
    }

    #[test]
    fn aliases_take_patterns_and_heads_too() {
        assert_eq!(layers("model.layers.*.mlp").len(), 32);
        assert_eq!(heads("model.layers.{3}.self_attn.k_proj[1]"), Some(vec![1]));
        let pattern: HookPattern = "model.layers.{0,-1}".parse().unwrap();
        assert_eq!(pattern.to_string(), "blocks.{0,-1}.hook_resid_post");
    }

    #[test]
    fn an_unknown_name_lists_the_nearest() {
        let message = error("blocks.15.hook_resid_pots");
        assert!(
            message.starts_with("unknown hook point `blocks.15.hook_resid_pots`; nearest: `blocks.15.hook_resid_post`, "),
            "{message}"
        );
    }

    #[test]
    fn a_layer_that_is_not_there_says_which_are() {
        assert_eq!(
            error("blocks.{0,32}.hook_mlp_out"),
            "hook point `blocks.{0,32}.hook_mlp_out`: there is no layer 32; this model has layers 0 to 31 (or -32 to -1), nearest: 31"
        );
        assert!(error("blocks.-33.hook_mlp_out").ends_with("nearest: 0"));
        // Bounds are checked before a range is spelled out, so a huge one costs nothing.
        assert!(error("blocks.{0-2000000000}.hook_mlp_out").contains("no layer 2000000000"));
    }

    #[test]
    fn a_head_that_is_not_there_says_which_are() {
        assert_eq!(
            error("blocks.3.attn.hook_v[8]"),
            "hook point `blocks.3.attn.hook_v[8]`: there is no key/value head 8; there are key/value heads 0 to 7 (or -8 to -1), nearest: 7"
        );
    }

    #[test]
    fn heads_where_there_are_none_are_refused() {
        let message = error("blocks.3.hook_resid_post[8]");
        assert!(
            message.contains("there are no heads at blocks.L.hook_resid_post"),
            "{message}"
        );
        assert!(message.contains("`blocks.L.attn.hook_z`"), "{message}");
    }

    #[test]
    fn bad_lists_say_how_they_are_written() {
        assert!(error("blocks.3-5.hook_mlp_out").contains("in braces: {3-5}"));
        assert!(error("blocks.x.hook_mlp_out").contains("a layer is a number"));
        assert!(error("blocks..hook_mlp_out").contains("a layer is a number"));
        assert!(error("blocks.{3.hook_mlp_out").contains("`{` without `}`"));
        assert!(error("blocks.{}.hook_mlp_out").contains("a layer in a list"));
        assert!(error("blocks.{1,}.hook_mlp_out").contains("a layer in a list"));
        assert!(error("blocks.{5-3}.hook_mlp_out").contains("runs backwards"));
        assert!(error("blocks.{-1-3}.hook_mlp_out").contains("runs backwards"));
        assert!(error("blocks.3.attn.hook_z[]").contains("a head in a list"));
        assert!(error("blocks.3.attn.hook_z[1").contains("no closing `]`"));
        assert!(error("blocks.3.attn.hook_z[1]x").contains("no closing `]`"));
    }

    /// Patterns as the parser can return them: ends of one sign in order.
    pub(in crate::hooks) fn any_pattern() -> impl Strategy<Value = HookPattern> {
        let item = || {
            (-40..40i32, -40..40i32).prop_map(|(a, b)| match surely_backwards(a, b) {
                true => (b, a),
                false => (a, b),
            })
        };
        let some = move || proptest::collection::vec(item(), 1..4);
        let layers = prop_oneof![Just(Layers::All), some().prop_map(Layers::Some)];
        let heads = prop_oneof![Just(vec![]), some()];
        (proptest::sample::select(&Site::ALL[..]), layers, heads).prop_map(
            |(site, layers, heads)| HookPattern {
                site,
                layers: if site.is_per_layer() {
                    layers
                } else {
                    Layers::Outside
                },
                heads,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_pattern_reads_back_what_it_writes(pattern in any_pattern()) {
            prop_assert_eq!(pattern.to_string().parse::<HookPattern>(), Ok(pattern));
        }

        #[test]
        fn a_resolved_pattern_is_sorted_and_within_the_model(pattern in any_pattern()) {
            if let Ok(points) = pattern.resolve(&MISTRAL) {
                prop_assert!(points.is_sorted_by(|a, b| a.0 < b.0));
                for (point, heads) in points {
                    prop_assert!(point.layer < 32);
                    let heads = heads.unwrap_or_default();
                    prop_assert!(heads.is_sorted_by(|a, b| a < b));
                    prop_assert!(heads.iter().all(|&h| h < point.site.heads(&MISTRAL).unwrap()));
                }
            }
        }

        #[test]
        fn no_string_makes_the_pattern_parser_panic(text in any::<String>()) {
            let _ = text.parse::<HookPattern>().and_then(|p| p.resolve(&MISTRAL));
        }

        #[test]
        fn no_near_miss_makes_the_pattern_parser_panic(text in r"(blocks|model\.layers)\.[-0-9*{},\.]{0,12}\.(attn\.hook_z|hook_mlp_out|mlp)\[?[-0-9,]{0,6}\]?") {
            let _ = text.parse::<HookPattern>().and_then(|p| p.resolve(&MISTRAL));
        }
    }
}
