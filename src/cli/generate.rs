//! `streamgauge generate`

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::device_args::{DeviceArgs, told};
use super::edit_args::EditArgs;
use super::extract::receipts;
use super::job_args::{StoreDtypeArg, with_absolute_path};
use super::{CliResult, Failure, Usage, out};
use crate::data::{Input, Record};
use crate::engine::{
    Choosing, Decoder, Device, Generated, GenerationStore, Generator, InputKind, Job, Place,
    Prepared, Room, Sample, Stops,
};

/// Continue prompts: greedily or by sampling, with taps and edits at every step.
///
/// The new text goes to stdout, as it comes where there is one prompt; with --json an object a line. Prompts of any lengths run
/// together, without padding: each gives what it gives alone, bit for bit. On a GPU, prompts from files are read twice: once to
/// plan its memory by the longest.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Model: a directory in Hugging Face layout, or a hub id (ORG/NAME, ORG/NAME@REVISION).
    #[arg(long, value_name = "M")]
    model: String,
    /// A prompt. May be given several times.
    #[arg(long, value_name = "T", required_unless_present = "data", conflicts_with = "data", num_args = 1..)]
    prompt: Vec<String>,
    /// Prompts from files: as extract's --data.
    #[arg(long, value_name = "F", num_args = 1..)]
    data: Vec<String>,
    /// Field that holds the text.
    #[arg(long, value_name = "FIELD", group = "input")]
    text_field: Option<String>,
    /// Field that holds token ids.
    #[arg(long, value_name = "FIELD", group = "input")]
    tokens_field: Option<String>,
    /// Field that holds chat messages; the assistant's next turn is generated.
    #[arg(long, value_name = "FIELD", group = "input")]
    messages_field: Option<String>,
    /// Fields that the store's samples table carries along.
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',')]
    keep: Vec<String>,
    /// Wrap each prompt as one turn of this role, by the model's chat template, and generate the assistant's.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "user")]
    chat: Option<String>,
    /// Don't let the tokenizer add BOS to plain text.
    #[arg(long)]
    no_special_tokens: bool,
    /// Read the first N prompts only.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    edits: EditArgs,
    /// What to read while generating, into --out: PATTERN[@SELECTION][|REDUCTION].
    #[arg(long, value_name = "P", requires = "out", num_args = 1..)]
    tap: Vec<String>,
    /// Where the taps' store goes: a directory that is empty or not there.
    #[arg(long, value_name = "DIR", requires = "tap")]
    out: Option<PathBuf>,
    /// Not available yet.
    #[arg(long, hide = true)]
    resume: bool,
    /// Rows of taps that name no selection. While generating, a selection is asked anew at each step of the tokens there are by
    /// then: prompt, generated, step:0..3, all, no-bos, positions; `last` is the newest token of each step.
    #[arg(
        long,
        value_name = "SELECTION",
        default_value = "all",
        allow_hyphen_values = true
    )]
    select: String,
    /// Dtype of stored rows; `same` is the compute dtype.
    #[arg(long, value_enum, default_value = "same")]
    store_dtype: StoreDtypeArg,
    /// Most new tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token; above, tokens are drawn from the softmax of the logits divided by it.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw among the fewest likeliest tokens that have this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Divide the logits of tokens that are there already, prompt included, by this (multiply, where they are below 0).
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// What is drawn depends on the seed and on the prompt's place among the prompts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Prompts that run together. Changes speed and memory, never a bit of the result.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one object a line: prompt, text (without special tokens), tokens (the new ids), logprobs (the model's, at temperature 1
    /// and without penalty), stop (eos or length).
    #[arg(long)]
    json: bool,
    /// No receipts of edits on stderr.
    #[arg(long)]
    quiet: bool,
}

impl GenerateArgs {
    fn job(&self) -> Result<Job, Failure> {
        if self.resume {
            return Err(Usage(
                "--resume is not available yet for generate: run it again into another directory"
                    .into(),
            )
            .into());
        }
        if self.batch == 0 {
            return Err(Usage("--batch must be at least 1".into()).into());
        }
        let field = |kind, name: &Option<String>| name.clone().map(|name| (kind, name));
        Ok(Job {
            select: self.select.clone(),
            edits: self.edits.read()?,
            tap_before_edits: self.edits.tap_before_edits,
            store_dtype: self.store_dtype.into(),
            input_field: field(InputKind::Text, &self.text_field)
                .or_else(|| field(InputKind::Tokens, &self.tokens_field))
                .or_else(|| field(InputKind::Messages, &self.messages_field)),
            keep: self.keep.clone(),
            chat: self.chat.clone(),
            add_generation_prompt: true,
            special_tokens: !self.no_special_tokens,
            limit: self.limit,
            ..Job::new(
                self.model.clone(),
                self.data.clone(),
                self.tap.iter().map(|tap| with_absolute_path(tap)).collect(),
            )
        })
    }

    fn choosing(&self) -> Choosing {
        Choosing {
            temperature: self.temperature,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    /// What a device is to have room for: the longest prompt and what follows it; where prompts can be read only once, any prompt that
    /// the model has positions for.
    fn room(&self, prepared: &Prepared, place: &Place) -> Result<Room, Failure> {
        let most = prepared.tokenising.max_length;
        let is_stream = || -> crate::Result<bool> {
            let files = !self.data.is_empty();
            Ok(files && prepared.job.dataset(false)?.stream().is_some())
        };
        let tokens = if place.device == Device::Cpu || is_stream()? {
            most
        } else {
            let mut longest = 0;
            for record in self.records(prepared)? {
                let tokens = prompt(prepared, record?)?.sample.row.tokens.len();
                longest = longest.max(tokens);
            }
            longest.saturating_add(self.max_new_tokens).min(most)
        };
        Ok(Room {
            sequences: self.batch,
            tokens,
        })
    }

    /// The prompts: of the command line, or of the files, a record at a time.
    fn records<'a>(
        &'a self,
        prepared: &Prepared,
    ) -> Result<Box<dyn Iterator<Item = crate::Result<Record>> + 'a>, Failure> {
        if !self.prompt.is_empty() {
            let record = |(i, text): (usize, &String)| Record {
                index: i as u64,
                file: Arc::from("--prompt"),
                line: i as u64 + 1,
                input: Input::Text(text.clone()),
                spans: Vec::new(),
                kept: Vec::new(),
            };
            let limit = self.limit.map_or(usize::MAX, |n| n as usize);
            let given = self.prompt.iter().enumerate().take(limit);
            return Ok(Box::new(given.map(record).map(Ok)));
        }
        let records = prepared.job.dataset(prepared.needs_spans())?;
        Ok(Box::new(records.map(|r| r.map_err(Into::into))))
    }
}

/// A prompt, before and after tokenising.
struct Prompt {
    text: Option<String>,
    sample: Sample,
}

pub fn run(args: &GenerateArgs) -> CliResult {
    let (prepared, place) = args.device.open_for_generation(args.job()?)?;
    let (choosing, stops) = (args.choosing(), Stops::of(&prepared, args.max_new_tokens));
    let opened = place.open_for_generation(&prepared, args.room(&prepared, &place)?)?;
    if let Some(line) = told(&place, &opened).filter(|_| !args.quiet && opened.upload.is_some()) {
        eprintln!("{line}");
    }
    let machine: Box<dyn Decoder + '_> = opened.machine;
    let mut generator = Generator::on(machine, &prepared, choosing, stops)?;
    let mut store = match &args.out {
        Some(dir) => Some(GenerationStore::create(&generator, dir)?),
        None => None,
    };
    let done = match all(args, &prepared, &mut generator, store.as_mut()) {
        Ok(done) => done,
        Err(failure) => {
            if let Some(store) = store {
                store.abandon();
            }
            return Err(failure);
        }
    };
    let done_by_edits = generator.receipts();
    if let Some(store) = store {
        store.finish(done, &done_by_edits)?;
    }
    if !args.quiet {
        eprint!("{}", receipts(&done_by_edits));
    }
    Ok(())
}

/// Generates from every prompt, a group at a time; returns how many there were.
fn all(
    args: &GenerateArgs,
    prepared: &Prepared,
    generator: &mut Generator<'_>,
    mut store: Option<&mut GenerationStore<'_>>,
) -> Result<u64, Failure> {
    let mut records = args.records(prepared)?.peekable();
    let mut done = 0;
    while records.peek().is_some() {
        let group = records
            .by_ref()
            .take(args.batch)
            .map(|record| prompt(prepared, record?))
            .collect::<Result<Vec<_>, Failure>>()?;
        let alone = done == 0 && group.len() == 1 && records.peek().is_none();
        let samples: Vec<Sample> = group.iter().map(|p| p.sample.clone()).collect();
        let mut stream = Stream::new(prepared, alone && !args.json);
        let generated = generator.generate(&samples, &mut |_, token| stream.heard(token))?;
        for (prompt, generated) in group.iter().zip(&generated) {
            show(args, prepared, prompt, generated, stream.is_on)?;
        }
        if let Some(store) = &mut store {
            store.write(&samples, &generated)?;
        }
        done += group.len() as u64;
    }
    if done == 0 {
        return Err(Failure::Refused("the dataset has no prompts".into()));
    }
    generator.check_edits(done)?;
    Ok(done)
}

fn prompt(prepared: &Prepared, record: Record) -> Result<Prompt, Failure> {
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

/// Prints one result, or what is left of it to print.
fn show(
    args: &GenerateArgs,
    prepared: &Prepared,
    prompt: &Prompt,
    generated: &Generated,
    is_shown: bool,
) -> CliResult {
    let decode = |ids: &[u32], skip| match &prepared.tokenising.tokenizer {
        Some(tokenizer) => tokenizer.decode(ids, skip).map(Some),
        None => Ok(None),
    };
    if args.json {
        let prompt = match &prompt.text {
            Some(text) => Some(text.clone()),
            None => decode(&prompt.sample.row.tokens, false)?,
        };
        let value = serde_json::json!({
            "prompt": prompt,
            "text": decode(generated.new_tokens(), true)?,
            "tokens": generated.new_tokens(),
            "logprobs": generated.logprobs,
            "stop": generated.stop,
        });
        out(format_args!("{value}\n"));
        return Ok(());
    }
    if is_shown {
        out("\n");
        return Ok(());
    }
    let row = &prompt.sample.row;
    let text = decode(generated.new_tokens(), true)?;
    let text = text.unwrap_or_else(|| format!("{:?}", generated.new_tokens()));
    out(format_args!("--- {}:{}\n{text}\n", row.file, row.line));
    Ok(())
}

/// Prints text as its tokens come. A token may hold a part of a character: what is not yet one waits.
struct Stream<'p> {
    prepared: &'p Prepared,
    is_on: bool,
    tokens: Vec<u32>,
    printed: usize,
}

impl<'p> Stream<'p> {
    fn new(prepared: &'p Prepared, is_on: bool) -> Self {
        Stream {
            is_on: is_on && prepared.tokenising.tokenizer.is_some(),
            prepared,
            tokens: Vec::new(),
            printed: 0,
        }
    }

    fn heard(&mut self, token: u32) {
        let Some(tokenizer) = self
            .prepared
            .tokenising
            .tokenizer
            .as_ref()
            .filter(|_| self.is_on)
        else {
            return;
        };
        self.tokens.push(token);
        let Ok(text) = tokenizer.decode(&self.tokens, true) else {
            return;
        };
        if text.ends_with('\u{fffd}') {
            return;
        }
        if let Some(new) = text.get(self.printed..) {
            out(new);
            let _ = std::io::stdout().flush();
            self.printed = text.len();
        }
    }
}
