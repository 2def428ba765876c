//! The flags that say which texts are run, for commands that take them from the command line or from files.

use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Failure;
use super::job_args::at_least_one;
use crate::data::{Dataset, Input, Record};
use crate::engine::{InputKind, Job, OnLong, Prepared, Sample};

/// Which texts.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("texts").required(true)))]
pub struct PromptArgs {
    /// A text. May be given several times.
    #[arg(long, value_name = "T", group = "texts", num_args = 1..)]
    pub prompt: Vec<String>,
    /// Texts from files: as extract's --data.
    #[arg(long, value_name = "F", group = "texts", num_args = 1..)]
    pub data: Vec<String>,
    /// Field that holds the text.
    #[arg(long, value_name = "FIELD", group = "input", conflicts_with = "prompt")]
    text_field: Option<String>,
    /// Field that holds token ids.
    #[arg(long, value_name = "FIELD", group = "input", conflicts_with = "prompt")]
    tokens_field: Option<String>,
    /// Field that holds chat messages.
    #[arg(long, value_name = "FIELD", group = "input", conflicts_with = "prompt")]
    messages_field: Option<String>,
    /// Wrap each text as one turn of this role, by the model's chat template.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "user")]
    pub chat: Option<String>,
    /// Don't let the tokenizer add BOS to plain text.
    #[arg(long)]
    no_special_tokens: bool,
    /// Read the first N texts only.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Most tokens of a text [default: the model's positions].
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    max_length: Option<usize>,
    /// What to do with a longer one.
    #[arg(long, value_enum, default_value = "error")]
    on_long: OnLongText,
    /// Pass over bad records, and tell each.
    #[arg(long)]
    skip_bad: bool,
}

/// A text that is too long is one text still: it is not cut into chunks here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnLongText {
    Error,
    Truncate,
}

/// A text, before and after tokenising.
pub struct Prompt {
    pub text: Option<String>,
    pub sample: Sample,
}

impl PromptArgs {
    /// How many texts the command line itself gives.
    pub fn count(&self) -> u64 {
        let given = self.prompt.len() as u64;
        self.limit.map_or(given, |most| given.min(most))
    }

    /// A job that reads these texts with this model.
    pub fn job(&self, model: &str, taps: Vec<String>) -> Job {
        let field = |kind, name: &Option<String>| name.clone().map(|name| (kind, name));
        Job {
            input_field: field(InputKind::Text, &self.text_field)
                .or_else(|| field(InputKind::Tokens, &self.tokens_field))
                .or_else(|| field(InputKind::Messages, &self.messages_field)),
            chat: self.chat.clone(),
            special_tokens: !self.no_special_tokens,
            limit: self.limit,
            max_length: self.max_length,
            on_long: match self.on_long {
                OnLongText::Error => OnLong::Error,
                OnLongText::Truncate => OnLong::Truncate,
            },
            skip_bad: self.skip_bad,
            ..Job::new(model.to_owned(), self.data.clone(), taps)
        }
    }

    /// The texts, of the command line or of the files, one at a time.
    pub fn prompts<'a>(
        &'a self,
        prepared: &'a Prepared,
    ) -> Result<Box<dyn Iterator<Item = Result<Prompt, Failure>> + 'a>, Failure> {
        let records: Box<dyn Iterator<Item = crate::Result<Record>> + 'a> =
            match self.data.is_empty() {
                true => {
                    let limit = self.limit.map_or(usize::MAX, |n| n as usize);
                    Box::new(self.prompt.iter().enumerate().map(given).take(limit))
                }
                false => Box::new(Records {
                    dataset: prepared.job.dataset(prepared.needs_spans())?,
                    told: 0,
                }),
            };
        Ok(Box::new(records.filter_map(move |record| {
            let prompt = record.map_err(Failure::from);
            match prompt.and_then(|record| prompt_of(prepared, record)) {
                Err(Failure::Failed(error)) if self.skip_bad && is_of_one_record(&error) => {
                    eprintln!("skipped: {error}");
                    None
                }
                prompt => Some(prompt),
            }
        })))
    }
}

fn is_of_one_record(error: &crate::Error) -> bool {
    matches!(error, crate::Error::Engine(error) if error.is_of_one_record())
}

/// The records of a dataset, which tells what it passed over.
struct Records {
    dataset: Dataset,
    told: usize,
}

impl Iterator for Records {
    type Item = crate::Result<Record>;

    fn next(&mut self) -> Option<crate::Result<Record>> {
        let record = self.dataset.next();
        for reason in &self.dataset.skip_reasons()[self.told..] {
            eprintln!("skipped: {reason}");
        }
        self.told = self.dataset.skip_reasons().len();
        if record.is_none() && self.dataset.skipped() > self.told as u64 {
            eprintln!("skipped {} bad records in all", self.dataset.skipped());
        }
        record.map(|record| record.map_err(Into::into))
    }
}

/// The i-th `--prompt`.
fn given((i, text): (usize, &String)) -> crate::Result<Record> {
    Ok(Record {
        index: i as u64,
        file: Arc::from("--prompt"),
        line: i as u64 + 1,
        input: Input::Text(text.clone()),
        spans: Vec::new(),
        kept: Vec::new(),
    })
}

fn prompt_of(prepared: &Prepared, record: Record) -> Result<Prompt, Failure> {
    let place = record.place();
    let text = match &record.input {
        Input::Text(text) => Some(text.clone()),
        Input::Tokens(_) | Input::Messages(_) => None,
    };
    let mut samples = prepared.tokenising.samples(record)?;
    match samples.pop() {
        Some(sample) if samples.is_empty() => Ok(Prompt { text, sample }),
        _ => Err(Failure::Refused(format!("{place}: the prompt was cut up"))),
    }
}
