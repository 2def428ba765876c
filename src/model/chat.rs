//! Chat templates: messages to text, and where each message's content lies in it.

use std::path::Path;
use std::time::SystemTime;

use std::ops::Range;

use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result, json_object, read_if_present};
use super::tokenizer::SpecialTokens;
use super::{jinja, turns};

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A chat as its template writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedChat {
    pub text: String,
    /// One per message, in the messages' order (a template may write a system message later than it comes).
    pub turns: Vec<TurnChars>,
}

/// Byte ranges of one turn in the rendered text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnChars {
    pub role: String,
    /// What the message says, as it is really there: without whitespace that the template strips.
    pub content: Range<usize>,
    /// With its header and its end-of-turn text. BOS, a default system prompt that the template adds and a generation
    /// prompt are in no turn. Where a template writes two messages as one turn (a system prompt inside the first user
    /// turn), the text between them belongs to the later one.
    pub whole: Range<usize>,
}

/// The variables that `transformers` passes for special tokens, where they are set.
const TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    /// The file it is from.
    name: String,
    source: String,
    env: Environment<'static>,
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else the `chat_template` of
    /// `tokenizer_config.json` (a string, or a list of named ones with `default` among them). `None`: it has none.
    ///
    /// # Errors
    /// Unreadable files, and a template that can't be compiled.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let tokens = SpecialTokens::read(dir)?;
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = read_if_present(&path)? {
            let name = path.display().to_string();
            let source = String::from_utf8(bytes).map_err(|e| Error::Template {
                template: name.clone(),
                why: format!("not UTF-8: {e}"),
            })?;
            return Self::compile(&name, &source, &tokens).map(Some);
        }
        let path = dir.join("tokenizer_config.json");
        let Some(bytes) = read_if_present(&path)? else {
            return Ok(None);
        };
        let config = json_object(&bytes, &path)?;
        let source = match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::String(source)) => Some(source.as_str()),
            Some(serde_json::Value::Array(named)) => named
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| t["template"].as_str()),
            Some(_) => None,
        };
        let source = source.ok_or_else(|| Error::Json {
            path: path.clone(),
            why: "`chat_template` is neither a string nor a list with a `default`".into(),
        })?;
        Self::compile(&path.display().to_string(), source, &tokens).map(Some)
    }

    /// Compiles a template given as text; `tokens` are its variables, as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// A template that can't be compiled.
    pub fn from_source(name: &str, source: &str, tokens: &[(&'static str, &str)]) -> Result<Self> {
        let tokens = tokens.iter().map(|&(k, v)| (k, v.to_string())).collect();
        Self::build(name, source, tokens, SystemTime::now())
    }

    fn compile(name: &str, source: &str, tokens: &SpecialTokens) -> Result<Self> {
        let tokens = TOKENS
            .into_iter()
            .filter_map(|token| Some((token, tokens.get(token)?)))
            .collect();
        Self::build(name, source, tokens, SystemTime::now())
    }

    /// `now` is fixed here, so that one run sees one date however long it takes.
    fn build(
        name: &str,
        source: &str,
        tokens: Vec<(&'static str, String)>,
        now: SystemTime,
    ) -> Result<Self> {
        let compiled = jinja::environment(now).and_then(|mut env| {
            env.add_template_owned("chat", jinja::without_generation_tags(source))?;
            Ok(env)
        });
        let env = compiled.map_err(|e| Error::Template {
            template: name.to_string(),
            why: one_line(&e),
        })?;
        Ok(Self {
            name: name.to_string(),
            source: source.to_string(),
            env,
            tokens,
        })
    }

    /// The template as the model's files give it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat and finds its turns in the text.
    ///
    /// The text is what `apply_chat_template` gives, except that `strftime_now` tells UTC. Turns are found by rendering
    /// again with markers in the contents; a place counts only if the marked text without its markers is the text.
    ///
    /// # Errors
    /// A template that refuses the messages (roles that don't alternate, …), and one in whose text a message can't be
    /// located exactly, because it leaves it out or changes it.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<RenderedChat> {
        let render = |messages: &[Message], prompt| self.text(messages, prompt);
        let text = render(messages, add_generation_prompt).map_err(|why| Error::Template {
            template: self.name.clone(),
            why,
        })?;
        let bos = self.tokens.iter().find(|(name, _)| *name == "bos_token");
        let turns = turns::locate(
            &render,
            messages,
            add_generation_prompt,
            &text,
            bos.map_or("", |(_, t)| t),
        )
        .map_err(|(message, why)| Error::Turns {
            template: self.name.clone(),
            message,
            role: messages
                .get(message)
                .map_or_else(String::new, |m| m.role.clone()),
            why,
        })?;
        Ok(RenderedChat { text, turns })
    }

    fn text(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let messages = messages.iter().map(|m| {
            Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])
        });
        let mut variables = vec![
            ("messages", messages.collect::<Value>()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let tokens = self.tokens.iter();
        variables.extend(tokens.map(|(name, token)| (*name, Value::from(token.as_str()))));
        let template = self.env.get_template("chat").map_err(|e| one_line(&e))?;
        template
            .render(Value::from_pairs(variables))
            .map_err(|e| one_line(&e))
    }
}

fn one_line(error: &minijinja::Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), String::from);
    let place = error
        .line()
        .map_or_else(String::new, |line| format!(" (line {line})"));
    format!("{what}{place}").replace('\n', " ")
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
