//! `streamgauge score`

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::edit_args::EditArgs;
use super::extract::receipts;
use super::model_args::{ModelArgs, tell_of_upload};
use super::prompt_args::{Prompt, PromptArgs};
use super::results::{Results, TextMeter};
use super::{CliResult, Failure, Usage, format, out};
use crate::engine::{EditReceipt, Job, Prepared, Room, Sample, Scorer, Scores};
use crate::report::table;

/// Score texts that are given: how likely each token is after those before it, and what the model would have said instead.
///
/// A position's scores are those of the token that follows it: its log-probability, the likeliest token, the entropy, all in nats. With
/// --edit --beside-plain also what the model without the edits says there, and KL(edited ‖ plain).
#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    /// End chats with the header of the assistant's turn.
    #[arg(long)]
    add_generation_prompt: bool,
    /// Which positions to read, in the forms of extract's --select.
    #[arg(
        long,
        value_name = "SELECTION",
        default_value = "all",
        allow_hyphen_values = true
    )]
    select: String,
    /// Likeliest tokens to tell of each position.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top: usize,
    #[command(flatten)]
    edits: EditArgs,
    /// Run the texts without the edits too.
    #[arg(long)]
    beside_plain: bool,
    /// Most tokens of a batch; a longer text makes one of its own. Changes speed and memory, never a bit of the result.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Write scores.csv there, a line per position, and score.json, what it was made from; files of these names are replaced.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print an object a line, one per text.
    #[arg(long)]
    json: bool,
    /// No progress, no receipts of edits on stderr.
    #[arg(long)]
    quiet: bool,
}

/// A line of scores.csv.
#[derive(Debug, serde::Serialize)]
struct Line {
    sample: u64,
    position: u32,
    token: u32,
    next: Option<u32>,
    logprob: Option<f64>,
    argmax: u32,
    entropy: f64,
    plain_logprob: Option<f64>,
    kl: Option<f64>,
    top: String,
    top_logprobs: String,
}

/// What one text's positions score.
struct Scored {
    prompt: Prompt,
    positions: Vec<u32>,
    scores: Vec<Scores>,
    plain: Option<Plain>,
}

/// The same positions without the edits.
struct Plain {
    scores: Vec<Scores>,
    /// KL(edited ‖ plain).
    kl: Vec<f64>,
}

impl ScoreArgs {
    fn job(&self) -> Result<Job, Failure> {
        let usage = |why: &str| Err(Usage(why.into()).into());
        if self.edits.tap_before_edits {
            return usage(
                "--tap-before-edits: there are no taps here to choose a side of an edit for",
            );
        }
        let edits = self.edits.read()?;
        if self.beside_plain && edits.is_empty() {
            return usage("--beside-plain needs --edit: without one there is but the plain run");
        }
        if self.batch_tokens == 0 {
            return usage("--batch-tokens must be at least 1");
        }
        Ok(Job {
            select: self.select.clone(),
            edits,
            add_generation_prompt: self.add_generation_prompt,
            batch_tokens: self.batch_tokens,
            ..self.prompts.job(&self.model.model, vec!["logits".into()])
        })
    }
}

pub fn run(args: &ScoreArgs) -> CliResult {
    let job = args.job()?;
    let plain_job = args.beside_plain.then(|| Job {
        edits: Vec::new(),
        ..job.clone()
    });
    let (prepared, place) = args.model.open(job)?;
    let plain = match plain_job {
        Some(job) => Some(args.model.open(job)?.0),
        None => None,
    };
    let room = Room {
        sequences: 0,
        tokens: args.batch_tokens.max(prepared.tokenising.max_length),
    };
    let opened = place.open_for_generation(&prepared, room)?;
    tell_of_upload(&place, &opened, args.quiet);
    let mut scorer = Scorer::on(opened.machine, &prepared);
    let given = args.prompts.data.is_empty().then(|| args.prompts.count());
    let meter = TextMeter::new(("text", "token"), given, args.quiet);
    let mut results = Results::new(meter);
    let mut lines = Vec::new();
    let mut total = Total::default();
    let mut prompts = args.prompts.prompts(&prepared)?.peekable();
    while prompts.peek().is_some() {
        let mut tokens = 0;
        let mut batch: Vec<Prompt> = Vec::new();
        while let Some(next) = prompts.peek() {
            // An error is taken out and told; a text that no longer fits waits.
            let n = next.as_ref().map_or(0, |p| p.sample.row.tokens.len());
            if !batch.is_empty() && tokens + n > args.batch_tokens {
                break;
            }
            tokens += n;
            batch.extend(prompts.next().transpose()?);
        }
        for scored in score(args, &prepared, batch, &mut scorer, plain.as_ref())? {
            total.add(&scored);
            if args.out.is_some() {
                lines.extend(scored.lines());
            }
            if args.json {
                results.print(format_args!("{}\n", scored.object()));
            } else {
                results.print(scored.summary());
            }
            results.count(1, scored.tokens().len() as u64);
        }
        if total.positions > 0 && scorer.check_edits(total.texts).is_ok() {
            results.release();
        }
    }
    if total.texts == 0 {
        return Err(Failure::Refused("the dataset has no texts".into()));
    }
    if total.positions == 0 {
        let (select, texts) = (&args.select, format::counted(total.texts, "text"));
        return Err(Failure::Refused(format!(
            "--select {select}: picks no position of {texts}"
        )));
    }
    scorer.check_edits(total.texts)?;
    drop(results);
    if let Some(dir) = &args.out {
        super::analyze::make_out(dir)?;
        table::write_csv(&dir.join("scores.csv"), &lines)?;
        write_record(dir, &prepared, &scorer.receipts())?;
    }
    if !args.json {
        out(total);
    }
    if !args.quiet {
        eprint!("{}", receipts(&scorer.receipts()));
    }
    Ok(())
}

/// What scores.csv was made from.
fn write_record(dir: &Path, prepared: &Prepared, receipts: &[EditReceipt]) -> CliResult {
    let path = dir.join("score.json");
    let record = json!({
        "command": "score",
        "engine_version": env!("CARGO_PKG_VERSION"),
        "model": prepared.job.model,
        "model_fingerprint": prepared.model.fingerprint,
        "job": prepared.job,
        "edits": receipts,
    });
    std::fs::write(&path, format!("{record:#}\n"))
        .map_err(|e| Failure::Refused(format!("cannot write {}: {e}", path.display())))
}

/// Scores the texts of a batch.
fn score(
    args: &ScoreArgs,
    prepared: &Prepared,
    batch: Vec<Prompt>,
    scorer: &mut Scorer<'_>,
    plain: Option<&Prepared>,
) -> Result<Vec<Scored>, Failure> {
    let samples: Vec<Sample> = batch.iter().map(|p| p.sample.clone()).collect();
    let mut positions = Vec::with_capacity(samples.len());
    for sample in &samples {
        let selected = prepared.select(sample)?;
        positions.push(prepared.positions(&selected, 0).to_vec());
    }
    let hidden = scorer.run(&samples, &positions)?;
    let mut scores = scorer.score(&hidden, args.top)?.into_iter();
    let mut beside = None;
    if let Some(plain) = plain {
        let without = scorer.lend(plain).run(&samples, &positions)?;
        let kl = scorer.kl_divergence(&hidden, &without)?;
        let scores = scorer.lend(plain).score(&without, 0)?;
        beside = Some((scores.into_iter(), kl.into_iter()));
    }
    let texts = batch.into_iter().zip(positions);
    Ok(texts
        .map(|(prompt, positions)| {
            let n = positions.len();
            Scored {
                prompt,
                scores: scores.by_ref().take(n).collect(),
                plain: beside.as_mut().map(|(scores, kl)| Plain {
                    scores: scores.by_ref().take(n).collect(),
                    kl: kl.by_ref().take(n).collect(),
                }),
                positions,
            }
        })
        .collect())
}

impl Scored {
    fn tokens(&self) -> &[u32] {
        &self.prompt.sample.row.tokens
    }

    fn next(&self, position: u32) -> Option<u32> {
        self.tokens().get(position as usize + 1).copied()
    }

    fn logprobs(&self) -> impl Iterator<Item = f64> + '_ {
        self.scores.iter().filter_map(|s| s.logprob)
    }

    fn lines(&self) -> impl Iterator<Item = Line> + '_ {
        let positions = self.positions.iter().zip(&self.scores).enumerate();
        positions.map(|(i, (&position, scores))| Line {
            sample: self.prompt.sample.row.sample,
            position,
            token: self.tokens()[position as usize],
            next: self.next(position),
            logprob: scores.logprob,
            argmax: scores.argmax,
            entropy: scores.entropy,
            plain_logprob: self.plain.as_ref().and_then(|p| p.scores[i].logprob),
            kl: self.plain.as_ref().map(|p| p.kl[i]),
            top: joined(scores.top.iter().map(|t| t.0)),
            top_logprobs: joined(scores.top.iter().map(|t| t.1)),
        })
    }

    fn object(&self) -> Value {
        let row = &self.prompt.sample.row;
        let of = |value: fn(&Scores) -> Value| self.scores.iter().map(value).collect::<Vec<_>>();
        let next = self.positions.iter().map(|&p| self.next(p));
        let mut object = json!({
            "sample": row.sample,
            "file": row.file,
            "line": row.line,
            "text": self.prompt.text,
            "positions": self.positions,
            "next": next.collect::<Vec<_>>(),
            "logprobs": of(|s| json!(s.logprob)),
            "argmax": of(|s| json!(s.argmax)),
            "entropy": of(|s| json!(s.entropy)),
            "top": of(|s| json!(s.top)),
        });
        if let Some(plain) = &self.plain {
            let logprobs = plain.scores.iter().map(|s| s.logprob);
            object["plain_logprobs"] = json!(logprobs.collect::<Vec<_>>());
            object["kl"] = json!(plain.kl);
        }
        object
    }

    fn summary(&self) -> String {
        let row = &self.prompt.sample.row;
        let mut mean = Mean::default();
        self.logprobs().for_each(|l| mean.add(l));
        let kl = self.plain.as_ref().map_or(String::new(), |plain| {
            let mut mean = Mean::default();
            plain.kl.iter().for_each(|&kl| mean.add(kl));
            format!(", mean KL from plain {mean}")
        });
        let tokens = format::counted(mean.n, "token");
        let place = (&row.file, row.line);
        format!(
            "{}:{}  {tokens}, mean log-probability {mean}{kl}\n",
            place.0, place.1
        )
    }
}

/// Joined as a cell of a CSV holds them.
fn joined<T: ToString>(values: impl Iterator<Item = T>) -> String {
    values.map(|v| v.to_string()).collect::<Vec<_>>().join(" ")
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    n: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.n += 1;
    }

    fn value(&self) -> f64 {
        self.sum / self.n as f64
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.n {
            0 => f.write_str("of nothing"),
            _ => write!(f, "{:.4}", self.value()),
        }
    }
}

/// Over all texts.
#[derive(Debug, Default)]
struct Total {
    texts: u64,
    positions: u64,
    logprob: Mean,
    plain: Mean,
    kl: Mean,
}

impl Total {
    fn add(&mut self, scored: &Scored) {
        self.texts += 1;
        self.positions += scored.positions.len() as u64;
        scored.logprobs().for_each(|l| self.logprob.add(l));
        if let Some(plain) = &scored.plain {
            let logprobs = plain.scores.iter().filter_map(|s| s.logprob);
            logprobs.for_each(|l| self.plain.add(l));
            plain.kl.iter().for_each(|&kl| self.kl.add(kl));
        }
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (texts, tokens) = (
            format::counted(self.texts, "text"),
            format::counted(self.logprob.n, "scored token"),
        );
        match self.logprob.n {
            0 => writeln!(f, "{texts}, {tokens}")?,
            _ => writeln!(
                f,
                "{texts}, {tokens}: mean log-probability {} nat, perplexity {:.4}",
                self.logprob,
                (-self.logprob.value()).exp()
            )?,
        }
        match self.kl.n {
            0 => Ok(()),
            _ => writeln!(
                f,
                "without the edits {} nat; mean KL(edited ‖ plain) {} nat",
                self.plain, self.kl
            ),
        }
    }
}
