//! What is made of the selected rows before they are kept.
//!
//! A reduction sees a row as one vector: where a row has heads, the chosen heads end to end.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::nearest::{edit_distance, nearest};
use super::number::int;
use super::{Error, Result, Site};

/// A reduction of the selected rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Rows as they are.
    None,
    /// `mean`: one row per sample, the mean over its selected rows; shape as the row.
    Mean,
    /// `dot:FILE#KEY`: dot products with the directions in tensor KEY of a safetensors file, `[n_dirs]` per row.
    Dot { file: PathBuf, key: String },
    /// `norm`: the L2 norm, one number per row.
    Norm,
    /// `top:K`: the K largest components (by value, not magnitude) and their indices, `[K]` per row; K is at least 1.
    TopK(usize),
    /// `logprob:K`: at logits, the K largest log-probabilities (natural log) and their token ids, `[K]` per row.
    LogProbTopK(usize),
}

/// The reductions, as errors list them.
const FORMS: [&str; 5] = ["mean", "dot:FILE#KEY", "norm", "top:K", "logprob:K"];

impl Reduction {
    /// Whether the reduction can be had at `site`, for rows of `row_len` numbers.
    ///
    /// # Errors
    /// Any reduction at a ragged point, `logprob` away from the logits, more components than a row has; each by name.
    pub fn check(&self, site: Site, row_len: usize) -> Result<()> {
        let point = site.template();
        let refuse = |reason: String| Err(Error::reduction(&self.to_string(), reason));
        match self {
            Reduction::None => Ok(()),
            _ if site.is_ragged() => refuse(format!(
                "not available at {point}: a row there is as long as its sample, and reductions need rows of one length; tap it without a reduction"
            )),
            Reduction::LogProbTopK(_) if site != Site::Logits => refuse(format!(
                "log-probabilities exist only at `logits`, not at {point}; use top there, or tap logits"
            )),
            Reduction::TopK(k) | Reduction::LogProbTopK(k) if *k > row_len => refuse(format!(
                "a row of {point} has only {row_len} components; ask for at most that many"
            )),
            _ => Ok(()),
        }
    }
}

impl FromStr for Reduction {
    type Err = Error;

    /// The empty string is [`Reduction::None`].
    fn from_str(text: &str) -> Result<Reduction> {
        let text = text.trim();
        let (word, value) = match text.split_once(':') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        let components = || match value.and_then(int).and_then(|k| usize::try_from(k).ok()) {
            Some(k) if k > 0 => Ok(k),
            _ => Err(Error::reduction(
                text,
                format!("write how many components, at least 1: {word}:10"),
            )),
        };
        match (word, value) {
            ("", None) => Ok(Reduction::None),
            ("mean", None) => Ok(Reduction::Mean),
            ("norm", None) => Ok(Reduction::Norm),
            ("mean" | "norm", Some(_)) => Err(Error::reduction(
                text,
                format!("it takes no value; write `{word}`"),
            )),
            ("top", _) => components().map(Reduction::TopK),
            ("logprob", _) => components().map(Reduction::LogProbTopK),
            // The last `#`: a file's name may have one.
            ("dot", _) => match value.and_then(|value| value.rsplit_once('#')) {
                Some((file, key)) if !file.is_empty() && !key.is_empty() => Ok(Reduction::Dot {
                    file: PathBuf::from(file),
                    key: key.to_owned(),
                }),
                _ => Err(Error::reduction(
                    text,
                    "write a safetensors file and the name of a tensor in it: dot:directions.safetensors#truth",
                )),
            },
            _ => Err(Error::UnknownReduction {
                reduction: text.to_owned(),
                nearest: nearest(FORMS, 3, |form| {
                    edit_distance(word, form.split(':').next().unwrap_or(form))
                })
                .into_iter()
                .map(str::to_owned)
                .collect(),
            }),
        }
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reduction::None => Ok(()),
            Reduction::Mean => f.write_str("mean"),
            Reduction::Norm => f.write_str("norm"),
            Reduction::Dot { file, key } => write!(f, "dot:{}#{key}", file.display()),
            Reduction::TopK(k) => write!(f, "top:{k}"),
            Reduction::LogProbTopK(k) => write!(f, "logprob:{k}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Reduction>().unwrap_err().to_string()
    }

    #[test]
    fn every_documented_form_reads_and_writes_the_same() {
        for text in [
            "",
            "mean",
            "dot:a/b.safetensors#truth",
            "norm",
            "top:8",
            "logprob:10",
        ] {
            assert_eq!(text.parse::<Reduction>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_direction_file_may_have_a_hash_in_its_name() {
        let dot: Reduction = "dot:run#2.safetensors#d".parse().unwrap();
        let file = PathBuf::from("run#2.safetensors");
        assert_eq!(
            dot,
            Reduction::Dot {
                file,
                key: "d".to_owned()
            }
        );
    }

    #[test]
    fn a_badly_written_reduction_says_how_it_is_written() {
        assert!(error("maen").starts_with("unknown reduction `maen`; nearest: `mean`, "));
        assert!(error("top").contains("top:10"));
        assert!(error("top:0").contains("at least 1"));
        assert!(error("logprob:x").contains("logprob:10"));
        assert!(error("dot:file").contains("dot:directions.safetensors#truth"));
        assert!(error("dot:#key").contains("dot:directions.safetensors#truth"));
        assert!(error("mean:3").contains("takes no value"));
    }

    pub(in crate::hooks) fn any_reduction() -> impl Strategy<Value = Reduction> {
        prop_oneof![
            Just(Reduction::None),
            Just(Reduction::Mean),
            Just(Reduction::Norm),
            ("[a-z#@|./:]{1,8}", "[a-z.0-9@|]{1,6}").prop_map(|(file, key)| Reduction::Dot {
                file: file.into(),
                key
            }),
            (1..i32::MAX as usize).prop_map(Reduction::TopK),
            (1..i32::MAX as usize).prop_map(Reduction::LogProbTopK),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_reduction_reads_back_what_it_writes(reduction in any_reduction()) {
            prop_assert_eq!(reduction.to_string().parse::<Reduction>(), Ok(reduction));
        }

        #[test]
        fn no_string_makes_the_reduction_parser_panic(text in any::<String>()) {
            let _ = text.parse::<Reduction>();
        }
    }
}
