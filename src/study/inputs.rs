//! What a study reads, checked against the model before anything runs: a file that will not do is refused before the model is loaded and the
//! study's folder begun.

use std::sync::Arc;

use super::answers::AnswerTokens;
use super::cuts::{self, Places};
use super::{Behaviour, Duplicates, Error, Facts, Options, Prompt, Prompts, Result, Words};
use super::{side_effects, statements};
use crate::data::{Input, Record};
use crate::engine::{self, Job, Prepared, Room, Sample};

/// What a study reads, checked, with its prompts as the model sees them.
pub struct Inputs {
    pub(super) options: Options,
    pub(super) behaviour: Behaviour,
    pub(super) words: Arc<Words>,
    pub(super) facts: Facts,
    pub(super) prompts: Prompts,
    /// One per prompt.
    pub(super) samples: Vec<Sample>,
    pub(super) answers: AnswerTokens,
}

impl Inputs {
    /// The job of plain runs: one user turn, by the model's template, with the generation prompt.
    pub fn job(model: &str) -> Job {
        Job {
            chat: Some("user".into()),
            add_generation_prompt: true,
            ..Job::new(model, Vec::new(), Vec::new())
        }
    }

    /// Reads everything; `prepared` is [`Inputs::job`]'s, opened for generation.
    ///
    /// # Errors
    /// An input that is not as it should be, with its file and line; a prompt that does not fit the template or the model.
    pub fn read(prepared: &Prepared, options: Options) -> Result<Self> {
        options.experiments()?;
        let behaviour = match &options.behaviour {
            Some(file) => Behaviour::open(file)?,
            None => Behaviour::dishonesty()?,
        };
        let known = behaviour.published.as_ref().and_then(|p| p.facts.as_ref());
        let duplicates = match known {
            _ if options.keep_duplicates => Duplicates::Keep,
            Some(hash) => Duplicates::KeepIn(hash),
            None => Duplicates::Refuse,
        };
        let facts = match &options.facts {
            Some(file) => Facts::open(file, duplicates)?,
            None => Facts::own()?,
        };
        let of_behaviour = behaviour.prompts_file();
        let mut prompts = match options.prompts.as_ref().or(of_behaviour.as_ref()) {
            Some(file) => Prompts::open(file)?,
            None => Prompts::own()?,
        };
        if options.quick {
            prompts.keep_few(4);
        }
        let samples = prompts
            .prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| sample(prepared, &prompts.file, i, prompt))
            .collect::<Result<_>>()?;
        let tokenizer = prepared.tokenising.tokenizer.as_ref();
        let tokenizer = tokenizer.ok_or_else(|| lacks(prepared, "tokenizer"))?;
        check_layer(prepared, &behaviour)?;
        check_facts(prepared, &behaviour, &facts, options.quick)?;
        Ok(Inputs {
            answers: AnswerTokens::find(tokenizer, prepared.dims.vocab, &behaviour)?,
            words: Arc::new(Words::of(&behaviour)),
            options,
            behaviour,
            facts,
            prompts,
            samples,
        })
    }

    /// What a device is to have room for.
    pub fn room(&self, prepared: &Prepared) -> Room {
        /// New tokens, and what is said around a statement.
        const BESIDES: usize = 256;
        let prompts = self.samples.iter().map(|s| s.row.tokens.len());
        // A token has at least a byte.
        let facts = self.facts.facts.iter().map(|fact| fact.statement.len());
        let longest = prompts.chain(facts).max().unwrap_or(0) + BESIDES;
        Room {
            sequences: 16,
            tokens: longest.min(prepared.tokenising.max_length),
        }
    }
}

/// What a model lacks that a study speaks to it by.
pub(super) fn lacks(prepared: &Prepared, what: &'static str) -> crate::Error {
    let model = prepared.job.model.clone();
    Error::Lacks { model, what }.into()
}

/// A prompt as the model sees it.
fn sample(prepared: &Prepared, file: &str, number: usize, prompt: &Prompt) -> Result<Sample> {
    if let Some(tokenizer) = &prepared.tokenising.tokenizer {
        for id in tokenizer.encode(&prompt.text, false)?.ids {
            let text = tokenizer.decode(&[id], false)?;
            if !text.is_empty() && tokenizer.decode(&[id], true)?.is_empty() {
                let what = format!("the prompt does not fit the template: it holds `{text}`");
                let remedy = "take out what is a special token of the model";
                return Err(Error::line(file, prompt.line, what, remedy).into());
            }
        }
    }
    turn(prepared, (file, prompt.line), number, &prompt.text)
}

/// What the user says, as the model sees it; `place`: the file and line that it is made of.
///
/// # Errors
/// More tokens than the model has positions.
pub(super) fn turn(
    prepared: &Prepared,
    place: (&str, u64),
    number: usize,
    text: &str,
) -> Result<Sample> {
    let (file, line) = place;
    let record = Record {
        index: number as u64,
        file: file.into(),
        line,
        input: Input::Text(text.to_owned()),
        spans: Vec::new(),
        kept: Vec::new(),
    };
    let bad = |what: String| Error::line(file, line, what, "make it shorter");
    let mut samples = match prepared.tokenising.samples(record) {
        Err(crate::Error::Engine(engine::Error::TooLong { tokens, limit, .. })) => {
            let what =
                format!("as a chat's turn it makes {tokens} tokens, more than the model's {limit}");
            return Err(bad(what).into());
        }
        samples => samples?,
    };
    match samples.pop() {
        Some(sample) if samples.is_empty() => Ok(sample),
        _ => Err(bad("it makes several samples".into()).into()),
    }
}

/// Refuses an edit behind the model's last block.
fn check_layer(prepared: &Prepared, behaviour: &Behaviour) -> Result<()> {
    let n_layers = prepared.dims.n_layers;
    match behaviour.edit.layer.filter(|&layer| layer >= n_layers) {
        None => Ok(()),
        Some(layer) => {
            let what = format!("there is no layer {layer}: the model has {n_layers}");
            let remedy = format!("give one of 0 to {}, or `depth` from 0 to 1", n_layers - 1);
            let line = behaviour.line_of(&["edit", "layer"]);
            Err(Error::line(&behaviour.file_name(), line, what, remedy).into())
        }
    }
}

/// Refuses statements that cannot be cut for the direction, read by themselves, or put as a question.
fn check_facts(
    prepared: &Prepared,
    behaviour: &Behaviour,
    facts: &Facts,
    quick: bool,
) -> Result<()> {
    let tokenising = &prepared.tokenising;
    let tokenizer = tokenising.tokenizer.as_ref();
    let tokenizer = tokenizer.ok_or_else(|| lacks(prepared, "tokenizer"))?;
    let template = tokenising.template.as_ref();
    let template = template.ok_or_else(|| lacks(prepared, "chat template"))?;
    Places::find(tokenizer, facts, quick)?;
    let words = &behaviour.template;
    let mut before = 0;
    for persona in words.personas() {
        let opening = cuts::opening(template, behaviour, persona)?;
        before = before.max(tokenizer.encode(&opening, false)?.ids.len());
    }
    let most = prepared.model.config.max_position_embeddings;
    for (number, fact) in facts.facts.iter().enumerate() {
        let tokens = statements::tokens(prepared, &fact.statement)?.len();
        let bad = |what: String, remedy: String| Error::line(&facts.file, fact.line, what, remedy);
        if tokens < 2 || tokens > most {
            let what = format!("the statement makes {tokens} tokens");
            return Err(bad(what, format!("give statements of 2 to {most}")).into());
        }
        if fact.label && before + tokens > most {
            let what = format!(
                "with the instruction before it the statement makes {} tokens, more than the model's {most}",
                before + tokens
            );
            return Err(bad(what, "make it shorter".into()).into());
        }
        // A question is longer than its statement, and by far most are far from the model's positions: a token has at least a byte.
        let text = side_effects::question(behaviour, fact);
        if text.len() + before > most {
            turn(prepared, (&facts.file, fact.line), number, &text)?;
        }
    }
    Ok(())
}
