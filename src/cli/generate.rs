//! `streamgauge generate`

use std::path::PathBuf;

use clap::Args;

use super::edit_args::EditArgs;
use super::extract::{receipts, recheck};
use super::job_args::{StoreDtypeArg, with_absolute_path};
use super::model_args::{ModelArgs, tell_of_upload};
use super::prompt_args::{Prompt, PromptArgs};
use super::results::{Results, TextMeter};
use super::{CliResult, Failure, Usage, format};
use crate::engine::{
    Choosing, Decoder, Device, Generated, GenerationBeginning, GenerationStore, Generator, Job,
    Place, Prepared, PromptSource, Room, Sample, Stops, stopped,
};
use crate::sys::stop;

/// Continue prompts: greedily or by sampling, with taps and edits at every step.
///
/// The new text goes to stdout, as it comes where there is one prompt; with --json an object a line. Prompts of any lengths run
/// together, without padding: each gives what it gives alone, bit for bit. On a GPU, prompts from files are read twice: once to
/// plan its memory by the longest.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Fields that the store's samples table carries along.
    #[arg(
        long,
        value_name = "FIELD,…",
        value_delimiter = ',',
        requires = "out",
        conflicts_with = "prompt"
    )]
    keep: Vec<String>,
    #[command(flatten)]
    edits: EditArgs,
    /// What to read while generating, into --out: PATTERN[@SELECTION][|REDUCTION].
    #[arg(long, value_name = "P", requires = "out", num_args = 1..)]
    tap: Vec<String>,
    /// Where the taps' store goes: a directory that is empty or not there.
    #[arg(long, value_name = "DIR", requires = "tap")]
    out: Option<PathBuf>,
    /// Go on with a run that was stopped, in the same --out, by the same command: after the prompts that its store holds. Begins one where
    /// there is none.
    #[arg(long, requires = "out")]
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
    /// Dtype of stored rows; `same` is the compute dtype. fp8-e4m3 and int8: see extract.
    #[arg(long, value_enum, default_value = "same")]
    store_dtype: StoreDtypeArg,
    /// Most new tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token; above, tokens are drawn from the softmax of the logits divided by it.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
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
    /// Print one object a line: prompt, text (without special tokens), tokens (the new ids), logprobs (the model's, at temperature 1
    /// and without penalty), stop (eos or length).
    #[arg(long)]
    json: bool,
    /// No progress, no receipts of edits on stderr.
    #[arg(long)]
    quiet: bool,
}

impl GenerateArgs {
    fn job(&self) -> Result<Job, Failure> {
        if self.batch == 0 {
            return Err(Usage("--batch must be at least 1".into()).into());
        }
        let taps = self.tap.iter().map(|tap| with_absolute_path(tap));
        Ok(Job {
            select: self.select.clone(),
            edits: self.edits.read()?,
            tap_before_edits: self.edits.tap_before_edits,
            store_dtype: self.store_dtype.into(),
            keep: self.keep.clone(),
            add_generation_prompt: true,
            ..self.prompts.job(&self.model.model, taps.collect())
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
            let files = !self.prompts.data.is_empty();
            Ok(files && prepared.job.dataset(false)?.stream().is_some())
        };
        let tokens = if place.device == Device::Cpu || is_stream()? {
            most
        } else {
            let mut longest = 0;
            for prompt in self.prompts.prompts(prepared)? {
                longest = longest.max(prompt?.sample.row.tokens.len());
            }
            longest.saturating_add(self.max_new_tokens).min(most)
        };
        Ok(Room {
            sequences: self.batch,
            tokens,
        })
    }
}

pub fn run(args: &GenerateArgs) -> CliResult {
    let (prepared, place) = args.model.open_for_generation(args.job()?)?;
    let (choosing, stops) = (args.choosing(), Stops::of(&prepared, args.max_new_tokens));
    let opened = place.open_for_generation(&prepared, args.room(&prepared, &place)?)?;
    tell_of_upload(&place, &opened, args.quiet);
    let machine: Box<dyn Decoder + '_> = opened.machine;
    let mut generator = Generator::on(machine, &prepared, choosing, stops)?;
    if args.temperature == 0.0 && args.top_p < 1.0 && !args.quiet {
        eprintln!("--top-p has no effect at --temperature 0, where the likeliest token is taken");
    }
    match &args.out {
        None => all(args, &prepared, &mut generator, None)?,
        Some(out) => {
            let source = PromptSource {
                given: &args.prompts.prompt,
                together: args.batch,
            };
            match GenerationStore::begin(&mut generator, source, out, args.resume)? {
                GenerationBeginning::Already(manifest) => {
                    return recheck(out, &manifest, args.json, args.quiet);
                }
                GenerationBeginning::Store(store) => {
                    into_store(args, &prepared, &mut generator, *store)?;
                }
            }
        }
    }
    if !args.quiet {
        eprint!("{}", receipts(&generator.receipts()));
    }
    Ok(())
}

/// Generates into a store, until the end of the prompts or until a signal asks for it.
fn into_store<'p>(
    args: &GenerateArgs,
    prepared: &Prepared,
    generator: &mut Generator<'p>,
    mut store: GenerationStore<'p>,
) -> CliResult {
    stop::on_signals().map_err(|e| Failure::Refused(format!("cannot take signals: {e}")))?;
    if store.prompts() > 0 && !args.quiet {
        let there = format::counted(store.prompts(), "prompt");
        eprintln!("going on after {there}");
    }
    let ending = all(args, prepared, generator, Some(&mut store));
    let done = store.prompts();
    let Err(failure) = ending else {
        return Ok(store.finish(generator)?);
    };
    let kept = store.abandon();
    Err(match failure {
        Failure::Stopped(_, status) => {
            let why = stopped(done, kept, &prepared.job);
            Failure::Stopped(why.to_string(), status)
        }
        failure => failure,
    })
}

/// Generates from every prompt that the store does not hold yet, a group at a time.
fn all<'p>(
    args: &GenerateArgs,
    prepared: &Prepared,
    generator: &mut Generator<'p>,
    store: Option<&mut GenerationStore<'p>>,
) -> CliResult {
    let given = args.prompts.data.is_empty().then(|| args.prompts.count());
    let is_own_progress = given == Some(1) && !args.json;
    let meter = TextMeter::new(
        ("prompt", "new token"),
        given,
        args.quiet || is_own_progress,
    );
    let mut results = Results::new(meter);
    let done = groups(args, prepared, generator, store, &mut results);
    if let Ok(done) = done {
        generator.check_edits(done)?;
    }
    results.release();
    done.map(drop)
}

/// Generates and prints group by group; returns how many prompts are done in all.
fn groups<'p>(
    args: &GenerateArgs,
    prepared: &Prepared,
    generator: &mut Generator<'p>,
    mut store: Option<&mut GenerationStore<'p>>,
    results: &mut Results,
) -> Result<u64, Failure> {
    let before = store.as_ref().map_or(0, |store| store.prompts());
    let prompts = args.prompts.prompts(prepared)?;
    let mut prompts = prompts.skip(before as usize).peekable();
    let mut done = before;
    while prompts.peek().is_some() {
        if let Some(status) = stop::asked() {
            return Err(Failure::Stopped(String::new(), status));
        }
        let group = prompts.by_ref().take(args.batch);
        let group = group.collect::<Result<Vec<_>, Failure>>()?;
        let alone = done == 0 && group.len() == 1 && prompts.peek().is_none();
        let samples: Vec<Sample> = group.iter().map(|p| p.sample.clone()).collect();
        let mut stream = Stream::new(prepared, alone && !args.json);
        let generated = generator.generate(&samples, &mut |new| {
            if new.all_edits_touched {
                results.release();
            }
            results.count(0, 1);
            stream.heard(new.token, results);
        })?;
        stream.end(results);
        for (prompt, generated) in group.iter().zip(&generated) {
            show(args, prepared, prompt, generated, stream.is_on, results)?;
        }
        if let Some(store) = &mut store {
            store.write(generator, &samples, &generated)?;
        }
        done += group.len() as u64;
        results.count(group.len() as u64, 0);
    }
    match done {
        0 => Err(Failure::Refused("the dataset has no prompts".into())),
        done => Ok(done),
    }
}

/// Prints one result, or what is left of it to print.
fn show(
    args: &GenerateArgs,
    prepared: &Prepared,
    prompt: &Prompt,
    generated: &Generated,
    is_shown: bool,
    results: &mut Results,
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
        results.print(format_args!("{value}\n"));
        return Ok(());
    }
    if is_shown {
        results.print("\n");
        return Ok(());
    }
    let row = &prompt.sample.row;
    let text = decode(generated.new_tokens(), true)?;
    let text = text.unwrap_or_else(|| format!("{:?}", generated.new_tokens()));
    results.print(format_args!("--- {}:{}\n{text}\n", row.file, row.line));
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

    fn heard(&mut self, token: u32, results: &mut Results) {
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
        if !text.ends_with('\u{fffd}') {
            self.print(&text, results);
        }
    }

    /// What waited for more, and gets none.
    fn end(&mut self, results: &mut Results) {
        let tokenizer = self.prepared.tokenising.tokenizer.as_ref();
        let Some(tokenizer) = tokenizer.filter(|_| self.is_on) else {
            return;
        };
        if let Ok(text) = tokenizer.decode(&self.tokens, true) {
            self.print(&text, results);
        }
    }

    fn print(&mut self, text: &str, results: &mut Results) {
        if let Some(new) = text.get(self.printed..).filter(|new| !new.is_empty()) {
            results.print(new);
            self.printed = text.len();
        }
    }
}
