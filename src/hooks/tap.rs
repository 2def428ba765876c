//! Taps: `PATTERN[@SELECTION][|REDUCTION]`, and what one becomes in a model.

use std::fmt;
use std::str::FromStr;

use super::{Dims, Error, HookPattern, HookPoint, Reduction, Result, Selection};

/// A tap as the user writes it; it may name many hook points.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TapSpec {
    pub pattern: HookPattern,
    /// `None` for the command's `--select`.
    pub selection: Option<Selection>,
    pub reduction: Reduction,
}

/// A read at one hook point of one model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tap {
    pub point: HookPoint,
    /// The heads kept, ascending; `None` for all of the row.
    pub heads: Option<Vec<usize>>,
    pub selection: Selection,
    pub reduction: Reduction,
}

impl TapSpec {
    /// Reads `PATTERN[@SELECTION][|REDUCTION]`; spaces around the parts do not matter.
    ///
    /// # Errors
    /// An unknown name or bad syntax in any of the three parts.
    pub fn parse(text: &str) -> Result<TapSpec> {
        // A direction's file may contain any character, also `@`: what comes after the first `|` is the reduction's.
        let (read, reduction) = match text.split_once('|') {
            None => (text, Reduction::None),
            Some((read, reduction)) => match reduction.parse()? {
                Reduction::None => {
                    return Err(Error::reduction(
                        text,
                        "nothing follows the `|`; leave it out, or write mean, norm, …",
                    ));
                }
                reduction => (read, reduction),
            },
        };
        let (pattern, selection) = match read.split_once('@') {
            None => (read, None),
            Some((pattern, selection)) => (pattern, Some(selection.parse()?)),
        };
        Ok(TapSpec {
            pattern: pattern.parse()?,
            selection,
            reduction,
        })
    }

    /// The taps it means in one model, in forward order; `default` is the selection where none was written.
    ///
    /// # Errors
    /// A layer or head that is not there, and a reduction that cannot be had at the point.
    pub fn resolve(&self, dims: &Dims, default: &Selection) -> Result<Vec<Tap>> {
        let selection = self.selection.as_ref().unwrap_or(default);
        let points = self.pattern.resolve(dims)?;
        let taps = points.into_iter().map(|(point, heads)| {
            let tap = Tap {
                point,
                heads,
                selection: selection.clone(),
                reduction: self.reduction.clone(),
            };
            let row_len = tap.row_shape(dims).iter().product();
            tap.reduction.check(point.site, row_len)?;
            Ok(tap)
        });
        taps.collect()
    }
}

impl FromStr for TapSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<TapSpec> {
        TapSpec::parse(text)
    }
}

impl Tap {
    /// The shape of one row after the choice of heads, before the reduction. At ragged points only the head axis
    /// is fixed: `[heads]`, for `[heads, rows, n]` per sample of `n` tokens.
    pub fn row_shape(&self, dims: &Dims) -> Vec<usize> {
        let mut shape = self.point.site.row_shape(dims);
        if let Some(heads) = &self.heads {
            shape[0] = heads.len();
        }
        shape
    }
}

impl fmt::Display for TapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pattern)?;
        if let Some(selection) = &self.selection {
            write!(f, "@{selection}")?;
        }
        bar(&self.reduction, f)
    }
}

/// In full: `blocks.16.attn.hook_z[8,24]@last|norm`; parses back as a [`TapSpec`] for this one tap.
impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.point)?;
        if let Some(heads) = &self.heads {
            let heads: Vec<String> = heads.iter().map(usize::to_string).collect();
            write!(f, "[{}]", heads.join(","))?;
        }
        write!(f, "@{}", self.selection)?;
        bar(&self.reduction, f)
    }
}

fn bar(reduction: &Reduction, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match reduction {
        Reduction::None => Ok(()),
        reduction => write!(f, "|{reduction}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hooks::dims::tests::MISTRAL;
    use crate::hooks::pattern::tests::any_pattern;
    use crate::hooks::reduction::tests::any_reduction;
    use crate::hooks::selection::tests::any_selection;

    fn resolve(spec: &str) -> Result<Vec<Tap>> {
        TapSpec::parse(spec)?.resolve(&MISTRAL, &Selection::All)
    }

    fn error(spec: &str) -> String {
        resolve(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_tap_is_a_pattern_a_selection_and_a_reduction() {
        let taps =
            resolve("blocks.{0,-1}.attn.hook_z[8,24] @ role:assistant & last | norm").unwrap();
        let written: Vec<String> = taps.iter().map(Tap::to_string).collect();
        assert_eq!(
            written,
            [
                "blocks.0.attn.hook_z[8,24]@role:assistant & last|norm",
                "blocks.31.attn.hook_z[8,24]@role:assistant & last|norm"
            ]
        );
    }

    #[test]
    fn without_a_selection_a_tap_takes_the_default() {
        let spec = TapSpec::parse("logits|logprob:10").unwrap();
        let taps = spec.resolve(&MISTRAL, &Selection::Last).unwrap();
        assert_eq!(taps[0].selection, Selection::Last);
        assert_eq!(taps[0].reduction, Reduction::LogProbTopK(10));
    }

    #[test]
    fn a_direction_file_may_contain_an_at_sign() {
        let spec = TapSpec::parse("blocks.15.hook_resid_post|dot:me@home.safetensors#d").unwrap();
        assert_eq!(spec.selection, None);
        assert!(matches!(spec.reduction, Reduction::Dot { .. }));
    }

    #[test]
    fn the_row_shape_has_as_many_heads_as_were_chosen() {
        let shape = |spec: &str| resolve(spec).unwrap()[0].row_shape(&MISTRAL);
        assert_eq!(shape("blocks.0.attn.hook_z"), [32, 128]);
        assert_eq!(shape("blocks.0.attn.hook_z[8,24]"), [2, 128]);
        assert_eq!(shape("blocks.0.attn.hook_pattern[8]"), [1]);
        assert_eq!(shape("blocks.0.ln1.hook_scale"), [1]);
    }

    #[test]
    fn reductions_are_refused_by_name_at_ragged_points() {
        for reduction in ["mean", "norm", "top:1", "dot:f#k", "logprob:1"] {
            let message = error(&format!("blocks.*.attn.hook_pattern|{reduction}"));
            assert!(
                message.starts_with(&format!("reduction `{reduction}`: not available at blocks.L.attn.hook_pattern: a row there is as long as its sample")),
                "{message}"
            );
        }
    }

    #[test]
    fn log_probabilities_exist_only_at_the_logits() {
        assert!(resolve("lm_head@last|logprob:5").is_ok());
        let message = error("blocks.3.hook_resid_post|logprob:5");
        assert!(
            message.contains("`logprob:5`: log-probabilities exist only at `logits`"),
            "{message}"
        );
    }

    #[test]
    fn no_more_components_are_given_than_a_row_has() {
        assert!(resolve("blocks.3.attn.hook_z[0]|top:128").is_ok());
        assert!(error("blocks.3.attn.hook_z[0]|top:129").contains("has only 128 components"));
        assert!(error("logits|logprob:32001").contains("has only 32000 components"));
    }

    #[test]
    fn each_part_is_checked() {
        assert!(error("blocks.3.hook_resid|mean").contains("unknown hook point"));
        assert!(error("logits@lats").contains("unknown selection"));
        assert!(error("logits@").contains("a selection is missing"));
        assert!(error("logits|").contains("nothing follows the `|`"));
        assert!(error("logits|medain").contains("unknown reduction"));
        assert!(error("blocks.40.hook_resid_post").contains("no layer 40"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_tap_reads_back_what_it_writes(
            pattern in any_pattern(),
            selection in proptest::option::of(any_selection()),
            reduction in any_reduction(),
        ) {
            let spec = TapSpec { pattern, selection, reduction };
            prop_assert_eq!(TapSpec::parse(&spec.to_string()), Ok(spec));
        }

        #[test]
        fn no_string_makes_the_tap_parser_panic(text in any::<String>()) {
            let _ = resolve(&text);
        }

        #[test]
        fn no_near_miss_makes_the_tap_parser_panic(text in r"(logits|lm_head|blocks\.[-*0-9]{1,3}\.hook_mlp_out)@?[-a-z0-9.:#+& ]{0,9}\|?[a-z:#0-9|@]{0,9}") {
            let _ = resolve(&text);
        }
    }
}
