//! The tokens that an answer begins with: every "say one word" explanation is measured by their probabilities.

use super::{Behaviour, Error, Result};
use crate::model::Tokenizer;

/// The tokens that are one of the two answers, whatever their case and spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTokens {
    pub yes: Vec<u32>,
    pub no: Vec<u32>,
}

impl AnswerTokens {
    /// Looks through a model's vocabulary, of which `vocab` ids have logits.
    ///
    /// # Errors
    /// An answer that is no one token of the model's.
    pub(super) fn find(tokenizer: &Tokenizer, vocab: usize, behaviour: &Behaviour) -> Result<Self> {
        let words = &behaviour.answers;
        let [yes, no] = [&words.yes, &words.no].map(|word| word.trim().to_lowercase());
        let mut answers = AnswerTokens {
            yes: Vec::new(),
            no: Vec::new(),
        };
        for id in 0..tokenizer.vocab_size().min(vocab) as u32 {
            let text = tokenizer.decode(&[id], false)?;
            let text = text.trim().to_lowercase();
            if text == yes {
                answers.yes.push(id);
            } else if text == no {
                answers.no.push(id);
            }
        }
        for (key, word, found) in [("yes", &yes, &answers.yes), ("no", &no, &answers.no)] {
            if found.is_empty() {
                return Err(Error::line(
                    &behaviour.file_name(),
                    behaviour.line_of(&["answers", key]),
                    format!("no token of the model is the answer `{word}`"),
                    "give the behaviour answers that are one token each",
                )
                .into());
            }
        }
        Ok(answers)
    }
}
