//! What a study studies, as data: a TOML file with the pair of instructions that the direction is read from, the words of an
//! answer, and the values that were published. Dishonesty is the one that ships.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Error, Result};
use crate::model::Model;
use crate::report::finding::Published;

const DISHONESTY: &str = include_str!("../../data/behaviours/dishonesty.toml");
const OWN_NAME: &str = "data/behaviours/dishonesty.toml";
/// What stands for a statement in a question.
const STATEMENT: &str = "{statement}";
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
    /// The study's edit, as far as it is not to be chosen.
    #[serde(default)]
    pub edit: GivenEdit,
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

/// Where the direction is added, and how much of it. What is not given is chosen; where the model is a published one, what was published
/// holds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenEdit {
    /// The block whose `hook_resid_post` it is added to.
    #[serde(default)]
    pub layer: Option<usize>,
    /// Instead of it: 0 is the first block, 1 the last.
    #[serde(default)]
    pub depth: Option<f64>,
    /// Of the unit direction; below 0, towards the negative persona.
    #[serde(default)]
    pub strength: Option<f64>,
    /// Instead of it: its size over the mean norm of what it is added to.
    #[serde(default)]
    pub share: Option<f64>,
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

/// A value that will not do.
struct Fault {
    key: &'static [&'static str],
    what: String,
    remedy: String,
}

impl Template {
    /// Positive, negative, and the control's two.
    pub(super) fn personas(&self) -> [&str; 4] {
        [
            &self.positive,
            &self.negative,
            &self.control_positive,
            &self.control_negative,
        ]
    }
}

impl GivenEdit {
    fn fault(&self) -> Option<Fault> {
        let fault = |key, what: String, remedy: &str| {
            Some(Fault {
                key,
                what,
                remedy: remedy.into(),
            })
        };
        let number = |number: f64| format!("is {number}");
        if self.layer.is_some() && self.depth.is_some() {
            let what = "says again where the edit is".into();
            return fault(&["edit", "depth"], what, "give `layer` or `depth`");
        }
        if self.strength.is_some() && self.share.is_some() {
            let what = "says again how strong the edit is".into();
            return fault(&["edit", "share"], what, "give `strength` or `share`");
        }
        if let Some(depth) = self.depth.filter(|depth| !(0.0..=1.0).contains(depth)) {
            let remedy = "give a number from 0, the first block, to 1, the last";
            return fault(&["edit", "depth"], number(depth), remedy);
        }
        if let Some(c) = self.strength.filter(|&c| !(c.is_finite() && c < 0.0)) {
            let remedy = "give a number below 0: the direction points to the positive persona, and the edit pushes away from it";
            return fault(&["edit", "strength"], number(c), remedy);
        }
        if let Some(share) = self.share.filter(|&s| !(s.is_finite() && s > 0.0)) {
            let remedy = "give a number above 0, such as 0.3";
            return fault(&["edit", "share"], number(share), remedy);
        }
        None
    }

    /// The block of a model of so many.
    pub(super) fn layer_of(&self, n_layers: usize) -> Option<usize> {
        let deep = |depth: f64| (depth * (n_layers - 1) as f64).round() as usize;
        self.layer.or(self.depth.map(deep))
    }

    /// The strength, beside streams of this mean norm.
    pub(super) fn strength_beside(&self, mean_norm: f64) -> Option<f64> {
        self.strength.or(self.share.map(|share| -share * mean_norm))
    }
}

impl Behaviour {
    /// Dishonesty, as it comes with the program.
    ///
    /// # Errors
    /// None, unless the program was built from a bad file.
    pub fn dishonesty() -> Result<Self> {
        Self::parse(DISHONESTY, OWN_NAME)
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
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut behaviour: Behaviour = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = line_after(&text.as_bytes()[..at]);
            let remedy = format!("see {OWN_NAME} for the form");
            Error::line(name, line, error.message().replace('\n', " "), remedy)
        })?;
        behaviour.text = text.to_owned();
        match behaviour.fault() {
            None => Ok(behaviour),
            Some(fault) => {
                let line = behaviour.line_of(fault.key);
                let what = format!("`{}` {}", fault.key.join("."), fault.what);
                Err(Error::line(name, line, what, fault.remedy).into())
            }
        }
    }

    /// What is well written and makes no study.
    fn fault(&self) -> Option<Fault> {
        let template = &self.template;
        let fault = |key, what: &str, remedy: &str| {
            Some(Fault {
                key,
                what: what.into(),
                remedy: remedy.into(),
            })
        };
        let [positive, negative, control, other] = template.personas();
        let (yes, no) = (&self.answers.yes, &self.answers.no);
        let given = |word: &'_ Option<String>| word.clone().unwrap_or_else(|| "given".into());
        let written: [(&'static [&'static str], &str); 10] = [
            (&["name"], &self.name),
            (&["title"], &self.title),
            (&["template", "positive"], positive),
            (&["template", "negative"], negative),
            (&["template", "control_positive"], control),
            (&["template", "control_negative"], other),
            (&["answers", "yes"], yes),
            (&["answers", "no"], no),
            (&["words", "positive"], &given(&self.words.positive)),
            (&["words", "negative"], &given(&self.words.negative)),
        ];
        if let Some(&(key, _)) = written.iter().find(|(_, words)| words.trim().is_empty()) {
            return fault(key, "is empty", "write what it is called");
        }
        for (key, sentence, word) in [
            (&["template", "user"], &template.user, PERSONA),
            (
                &["side_effects", "question"],
                &self.side_effects.question,
                STATEMENT,
            ),
        ] {
            if !sentence.contains(word) {
                let remedy = format!("write {word} there");
                return fault(key, "does not say where its words go", &remedy);
            }
        }
        let same = |a: &str, b: &str| a.trim().to_lowercase() == b.trim().to_lowercase();
        for (key, first, second, remedy) in [
            (
                &["template", "negative"],
                positive,
                negative,
                "give the two personas different words: the direction is what differs between them",
            ),
            (
                &["template", "control_negative"],
                control,
                other,
                "give the control's two personas different words",
            ),
            (
                &["answers", "no"],
                yes,
                no,
                "give two answers: their probabilities are compared",
            ),
        ] {
            if same(first, second) {
                return fault(key, "is the other one again", remedy);
            }
        }
        for (key, word) in [(&["answers", "yes"], yes), (&["answers", "no"], no)] {
            if !word.trim().chars().all(char::is_alphanumeric) {
                let remedy = "give the first word of such an answer, without a sign";
                return fault(key, "is not one word", remedy);
            }
        }
        self.edit.fault()
    }

    /// Where it was read.
    pub(super) fn file_name(&self) -> String {
        let own = || OWN_NAME.to_owned();
        self.file
            .as_ref()
            .map_or_else(own, |f| f.display().to_string())
    }

    /// The line, from 1, of a key's value; 1 where there is none.
    pub(super) fn line_of(&self, key: &[&str]) -> u64 {
        let parsed = toml::de::DeTable::parse(&self.text).ok();
        let at = parsed.and_then(|table| {
            let (last, tables) = key.split_last()?;
            let mut table = table.get_ref();
            for name in tables {
                table = match table.get(*name)?.get_ref() {
                    toml::de::DeValue::Table(inner) => inner,
                    _ => return None,
                };
            }
            Some(table.get(*last)?.span().start)
        });
        line_after(&self.text.as_bytes()[..at.unwrap_or(0).min(self.text.len())])
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
    fn what_makes_no_study_is_refused_with_its_line_before_anything_runs() {
        for (from, to, key, says) in [
            (
                "no = \"no\"",
                "no = \" \"",
                "no = ",
                "`answers.no` is empty",
            ),
            (
                "no = \"no\"",
                "no = \"Yes \"",
                "no = ",
                "`answers.no` is the other one again; give two answers",
            ),
            (
                "no = \"no\"",
                "no = \"no, sir\"",
                "no = ",
                "`answers.no` is not one word",
            ),
            (
                "negative = \"an untruthful\"",
                "negative = \"an honest\"",
                "negative = ",
                "`template.negative` is the other one again",
            ),
            (
                "control_negative = \"a left-handed\"",
                "control_negative = \"a tall\"",
                "control_negative = ",
                "`template.control_negative` is the other one again",
            ),
            (
                "title = \"Dishonesty\"",
                "title = \"\"",
                "title = ",
                "`title` is empty",
            ),
            (
                "positive = \"honest\"",
                "positive = \"\"",
                "positive = \"\"",
                "`words.positive` is empty",
            ),
        ] {
            let text = DISHONESTY.replacen(from, to, 1);
            assert_ne!(text, DISHONESTY, "{from}");
            let line = 1 + text.lines().position(|l| l.starts_with(key)).unwrap();
            let message = Behaviour::parse(&text, "b.toml").unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("b.toml:{line}: {says}")),
                "{message}"
            );
        }
    }

    #[test]
    fn a_given_edit_is_checked_and_found_in_the_model() {
        let with =
            |edit: &str| Behaviour::parse(&format!("{DISHONESTY}\n[edit]\n{edit}"), "b.toml");
        let line = DISHONESTY.lines().count() + 3;
        for (edit, says) in [
            ("depth = 1.5", "`edit.depth` is 1.5; give a number from 0"),
            (
                "strength = 8.0",
                "`edit.strength` is 8; give a number below 0",
            ),
            ("strength = nan", "`edit.strength` is NaN"),
            ("share = 0.0", "`edit.share` is 0; give a number above 0"),
            ("share = inf", "`edit.share` is inf"),
            ("site = \"mlp_out\"", "unknown field `site`"),
        ] {
            let message = with(edit).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("b.toml:{line}: {says}")),
                "{message}"
            );
        }
        let message = with("layer = 3\ndepth = 0.5").unwrap_err().to_string();
        assert!(
            message.contains("`edit.depth` says again where the edit is; give `layer` or `depth`"),
            "{message}"
        );
        let message = with("strength = -3.0\nshare = 0.5")
            .unwrap_err()
            .to_string();
        assert!(message.contains("`edit.share` says again"), "{message}");
        let edit = with("depth = 0.5\nshare = 0.25").unwrap().edit;
        assert_eq!(
            (edit.layer_of(31), edit.strength_beside(8.0)),
            (Some(15), Some(-2.0))
        );
        let edit = with("layer = 3\nstrength = -1.5").unwrap().edit;
        assert_eq!(
            (edit.layer_of(31), edit.strength_beside(8.0)),
            (Some(3), Some(-1.5))
        );
        let none = Behaviour::dishonesty().unwrap().edit;
        assert_eq!((none.layer_of(31), none.strength_beside(8.0)), (None, None));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_behaviour() {
        let behaviour = Behaviour::parse(&format!("\u{feff}{DISHONESTY}"), "b.toml").unwrap();
        assert_eq!(behaviour.text, DISHONESTY);
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
        let line = |of: &str| 1 + DISHONESTY.lines().position(|l| l.starts_with(of)).unwrap();
        let nowhere = DISHONESTY.replace("{persona} person", "a person");
        assert!(
            message(&nowhere).starts_with(&format!("b.toml:{}: ", line("user =")))
                && message(&nowhere).contains("write {persona} there"),
            "{}",
            message(&nowhere)
        );
    }
}
