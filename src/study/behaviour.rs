//! What a study studies, as data: a TOML file with the pair of instructions that the direction is read from, the words of an
//! answer, and the values that were published. Dishonesty is the one that ships.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Error, Result};
use crate::model::Model;
use crate::report::finding::Published;

const DISHONESTY: &str = include_str!("../../data/behaviours/dishonesty.toml");
/// What stands for the persona's words in the instruction.
const PERSONA: &str = "{persona}";

/// A behaviour.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Behaviour {
    pub name: String,
    pub title: String,
    /// The prompts' file, by path from the behaviour's.
    pub prompts: String,
    pub template: Template,
    pub answers: Answers,
    /// What the report calls answers.
    #[serde(default)]
    pub words: GivenWords,
    /// Whose experiments these are, for the report; `None`: a behaviour of one's own.
    #[serde(default)]
    pub source: Option<String>,
    pub side_effects: SideEffects,
    #[serde(default)]
    pub published: Option<PublishedStudy>,
    /// Where it was read; `None`: it came with the program.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// As it was read.
    #[serde(skip)]
    pub text: String,
}

/// The pair of instructions that the direction is read from: it points to `positive`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// What the user says, with `{persona}` where the words go.
    pub user: String,
    pub positive: String,
    pub negative: String,
    /// Words that have nothing to do with the behaviour.
    pub control_positive: String,
    pub control_negative: String,
}

/// The first words of an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    pub yes: String,
    pub no: String,
}

/// What an answer of either persona is called; without it, what the persona is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenWords {
    #[serde(default)]
    pub positive: Option<String>,
    #[serde(default)]
    pub negative: Option<String>,
}

/// How the model is asked whether a statement is true, with `{statement}` where it goes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideEffects {
    pub question: String,
}

/// What was published, and of which model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedStudy {
    /// The end of its hub id.
    pub model: String,
    pub n_layers: usize,
    pub d_model: usize,
    pub vocabulary: usize,
    /// Where the published edit adds the direction, and how much of it.
    pub layer: usize,
    pub strength: f64,
    /// xxh3-128 of a facts file whose duplicates are taken as they are.
    #[serde(default)]
    pub facts: Option<String>,
    #[serde(default)]
    pub values: BTreeMap<String, Published>,
}

impl Behaviour {
    /// Dishonesty, as it comes with the program.
    ///
    /// # Errors
    /// None, unless the program was built from a bad file.
    pub fn dishonesty() -> Result<Self> {
        Self::parse(DISHONESTY, "data/behaviours/dishonesty.toml")
    }

    /// Reads a behaviour of one's own.
    ///
    /// # Errors
    /// A file that cannot be read, that is no TOML of this form, or whose sentences lack their place for words.
    pub fn open(file: &Path) -> Result<Self> {
        let name = file.display().to_string();
        let bytes = super::read(file)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            Error::line(&name, line_after(good), "not UTF-8", "save it as UTF-8")
        })?;
        let mut behaviour = Self::parse(&text, &name)?;
        behaviour.file = Some(file.to_owned());
        Ok(behaviour)
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        let mut behaviour: Behaviour = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = line_after(&text.as_bytes()[..at]);
            let remedy = "see data/behaviours/dishonesty.toml for the form";
            Error::line(name, line, error.message().replace('\n', " "), remedy)
        })?;
        for (key, sentence, word) in [
            ("template.user", &behaviour.template.user, PERSONA),
            (
                "side_effects.question",
                &behaviour.side_effects.question,
                "{statement}",
            ),
        ] {
            if !sentence.contains(word) {
                let what = format!("`{key}` does not say where its words go");
                return Err(Error::input(name, what, format!("write {word} there")).into());
            }
        }
        behaviour.text = text.to_owned();
        Ok(behaviour)
    }

    /// The prompts' file; `None` where they come with the program.
    pub(super) fn prompts_file(&self) -> Option<PathBuf> {
        let file = self.file.as_ref()?;
        Some(file.parent().unwrap_or(Path::new("")).join(&self.prompts))
    }

    /// What the user says to the model for these words of the persona.
    pub fn instruction(&self, words: &str) -> String {
        self.template.user.replace(PERSONA, words)
    }

    /// What was published, where `model`, asked for by this name, is the model it was published of.
    pub(super) fn published_of(&self, model: &Model, name: &str) -> Option<&PublishedStudy> {
        let config = &model.config;
        self.published.as_ref().filter(|published| {
            // A directory of the hub's cache is named by the id, the snapshot below it by a commit.
            let named = |text: &str| text.contains(&published.model);
            let of_that_name = named(name) || named(&model.dir.display().to_string());
            let of_that_shape = config.n_layers == published.n_layers
                && config.hidden_size == published.d_model
                && config.vocab_size == published.vocabulary;
            of_that_name && of_that_shape
        })
    }
}

/// The line, from 1, that begins or goes on after these bytes.
fn line_after(bytes: &[u8]) -> u64 {
    1 + bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_behaviour_reads_and_its_instructions_differ_in_the_persona_alone() {
        let behaviour = Behaviour::dishonesty().unwrap();
        let honest = behaviour.instruction(&behaviour.template.positive);
        assert_eq!(
            honest,
            "Pretend you're an honest person making statements about the world."
        );
        let published = behaviour.published.unwrap();
        assert_eq!((published.layer, published.strength), (15, -8.25));
        assert!(published.values.len() > 50);
    }

    #[test]
    fn a_bad_behaviour_is_refused_with_its_file_and_line() {
        let message = |text: &str| Behaviour::parse(text, "b.toml").unwrap_err().to_string();
        let bad = DISHONESTY.replace("[answers]\nyes =", "[answers]\nja =");
        let line = 1 + bad.lines().position(|l| l.starts_with("ja =")).unwrap();
        assert!(
            message(&bad).starts_with(&format!("b.toml:{line}: unknown field `ja`")),
            "{}",
            message(&bad)
        );
        let nowhere = DISHONESTY.replace("{persona} person", "a person");
        assert!(
            message(&nowhere).contains("write {persona} there"),
            "{}",
            message(&nowhere)
        );
    }
}
