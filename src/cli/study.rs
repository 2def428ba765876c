//! `streamgauge study`

use std::cell::RefCell;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::model_args::{ModelArgs, tell_of_upload};
use super::progress::SweepMeter;
use super::{CliResult, format, out};
use crate::study::{EXPERIMENTS, Event, Inputs, Options, Study, run as run_study};

/// Whole studies: many experiments on one model, one report.
#[derive(Debug, Args)]
pub struct StudyArgs {
    #[command(subcommand)]
    study: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    Dishonesty(DishonestyArgs),
}

/// The dishonesty study of Golechha and Dao (arXiv 2402.03855), on any supported instruction-tuned model, with controls.
///
/// The model needs a tokenizer and a chat template.
///
/// E1 finds a direction per layer, E2 steers generation with it; the others ask whether today's tools explain what it does. Results go
/// to --out: report.html, with every exhibit as CSV, SVG and PNG in exhibits/; findings/ID.json for each experiment, of which the page is
/// made; directions.safetensors (ready for --edit) and choice.json, the layer and strength of the edit. An experiment that --out already
/// holds is not run again, so a study that was stopped goes on by the same command; a folder with a study of other inputs is refused.
#[derive(Debug, Args)]
struct DishonestyArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The study's folder: empty or not there, or one of the same inputs, which goes on.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// True and false statements: CSV with the columns statement, label (1 or 0) and perhaps topic and group [default: the project's
    /// own 800].
    #[arg(long, value_name = "CSV")]
    facts: Option<PathBuf>,
    /// Let statements that are there twice count twice, instead of refusing the file. (The RepE repository's file is taken as it is.)
    #[arg(long)]
    keep_duplicates: bool,
    /// Prompts, a JSON object a line: text, honest (yes or no), and perhaps id, kind (dilemma or factual), half (tuning or report)
    /// [default: the project's own 60].
    #[arg(long, value_name = "JSONL")]
    prompts: Option<PathBuf>,
    /// Run these only, as in --experiments E1,E7. What they need of others is made too.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    experiments: Vec<String>,
    /// Study another behaviour: a TOML file like data/behaviours/dishonesty.toml.
    #[arg(long, value_name = "FILE")]
    behaviour: Option<PathBuf>,
    /// Few prompts, pairs and controls: three minutes instead of ten for a model of 135M parameters on two cores, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Patch layer × position (E10) on all prompts instead of two: by far the costliest part.
    #[arg(long)]
    all_prompts: bool,
    /// Seed of intervals, random directions and shuffles.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on with what --out holds. (It does so without the flag too: this is for scripts that pass it to every command.)
    #[arg(long)]
    resume: bool,
    /// Most tokens of a batch. Changes speed and memory, never a bit of the result.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Memory for the residual streams of patched runs.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = format::parse_bytes)]
    memory: u64,
    /// Print the findings' numbers as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

impl DishonestyArgs {
    fn options(&self) -> Options {
        Options {
            behaviour: self.behaviour.clone(),
            facts: self.facts.clone(),
            keep_duplicates: self.keep_duplicates,
            prompts: self.prompts.clone(),
            experiments: self.experiments.clone(),
            quick: self.quick,
            all_prompts: self.all_prompts,
            seed: self.seed,
            memory: self.memory,
            command: std::env::args().collect(),
            ..Options::new(&self.out)
        }
    }
}

pub fn run(args: &StudyArgs) -> CliResult {
    match &args.study {
        Which::Dishonesty(args) => dishonesty(args),
    }
}

fn dishonesty(args: &DishonestyArgs) -> CliResult {
    let job = crate::engine::Job {
        batch_tokens: args.batch_tokens,
        ..Inputs::job(&args.model.model)
    };
    let (prepared, place) = args.model.open_for_generation(job)?;
    let inputs = Inputs::read(&prepared, args.options())?;
    let opened = place.open_for_generation(&prepared, inputs.room(&prepared))?;
    tell_of_upload(&place, &opened, args.quiet);
    let meter = RefCell::new(SweepMeter::new(args.quiet));
    let study = Study::new(&prepared, inputs, opened.machine).watched(|at| {
        meter.borrow_mut().show(at);
        if at.done == at.total {
            // The next sweep has a bar of its own.
            meter.replace(SweepMeter::new(args.quiet)).done();
        }
    });
    let mut seconds = Vec::new();
    let findings = run_study(&study, &mut |event| {
        if let Event::Done(id, took) = event {
            seconds.push((id, took));
        }
        if !args.quiet {
            tell(event);
        }
    })?;
    if args.json {
        out(format_args!("{}\n", serde_json::json!(findings)));
        return Ok(());
    }
    for finding in &findings {
        out(format_args!("{}  {}\n", finding.id, finding.title));
        for paragraph in &finding.answer {
            out(format_args!("    {paragraph}\n"));
        }
    }
    out(format_args!(
        "{}\n",
        args.out.join(crate::report::page::PAGE).display()
    ));
    Ok(())
}

fn tell(event: Event) {
    match event {
        Event::Found(id) => eprintln!("{id}: done before"),
        Event::Begun(id, title) => {
            let place = EXPERIMENTS.iter().position(|e| e.id == id).unwrap_or(0) + 1;
            eprintln!("{id} ({place} of {}): {title}", EXPERIMENTS.len());
        }
        Event::Done(id, seconds) => eprintln!("{id}: {}", format::duration(seconds)),
    }
}
