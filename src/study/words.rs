//! The words by which a study speaks of its answers: the report's sentences are the study's, what is honest in them is the behaviour's.

use super::behaviour::Behaviour;
use super::prompts::Answer;

/// What the report calls things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The behaviour: `dishonesty`.
    pub name: String,
    /// What an answer is that the positive persona gives: `honest`.
    pub positive: String,
    /// And one of the negative persona: `dishonest`.
    pub negative: String,
    yes: String,
    no: String,
}

impl Words {
    /// Of a behaviour: its `[words]`, or the personas' without their article.
    pub(super) fn of(behaviour: &Behaviour) -> Self {
        let (given, template) = (&behaviour.words, &behaviour.template);
        let or = |given: &Option<String>, persona: &str| {
            let word = given.as_deref().unwrap_or(without_article(persona));
            word.trim().to_owned()
        };
        Words {
            name: behaviour.name.clone(),
            positive: or(&given.positive, &template.positive),
            negative: or(&given.negative, &template.negative),
            yes: behaviour.answers.yes.trim().to_owned(),
            no: behaviour.answers.no.trim().to_owned(),
        }
    }

    /// As the behaviour writes it: `no`.
    pub fn answer(&self, answer: Answer) -> &str {
        match answer {
            Answer::Yes => &self.yes,
            Answer::No => &self.no,
        }
    }

    /// As an answer begins with it: `No`.
    pub fn capital(&self, answer: Answer) -> String {
        let mut letters = self.answer(answer).chars();
        let first = letters.next().map(|c| c.to_uppercase().to_string());
        first.unwrap_or_default() + letters.as_str()
    }

    /// `P(No) − P(Yes)`
    pub fn no_less_yes(&self) -> String {
        let [yes, no] = [Answer::Yes, Answer::No].map(|answer| self.capital(answer));
        format!("P({no}) − P({yes})")
    }

    /// A column's name with a word in it: `towards_dishonest`.
    pub(super) fn column(&self, before: &str, word: &str) -> String {
        format!("{before}{}", word.replace(char::is_whitespace, "_"))
    }
}

/// `an honest` → `honest`.
fn without_article(words: &str) -> &str {
    let words = words.trim();
    let article = words.split_once(char::is_whitespace);
    match article {
        Some((first, rest)) if ["a", "an", "the"].contains(&&*first.to_lowercase()) => rest.trim(),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_behaviours_own_or_its_personas() {
        let shipped = Behaviour::dishonesty().unwrap();
        let words = Words::of(&shipped);
        assert_eq!(
            (&*words.positive, &*words.negative),
            ("honest", "dishonest")
        );
        assert_eq!(words.no_less_yes(), "P(No) − P(Yes)");
        let mut other = shipped;
        other.words = Default::default();
        other.template.positive = "a frank".into();
        other.template.negative = "servile".into();
        other.answers.yes = " ja".into();
        other.answers.no = "èh".into();
        let words = Words::of(&other);
        assert_eq!((&*words.positive, &*words.negative), ("frank", "servile"));
        assert_eq!(words.no_less_yes(), "P(Èh) − P(Ja)");
        assert_eq!(words.answer(Answer::Yes), "ja");
        assert_eq!(
            words.column("towards_", "quite servile"),
            "towards_quite_servile"
        );
    }
}
