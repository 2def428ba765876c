//! `streamgauge patch`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::edit_args::EditArgs;
use super::extract::receipts;
use super::model_args::{ModelArgs, tell_of_upload};
use super::progress::SweepMeter;
use super::{CliResult, Failure, Usage, format, out};
use crate::engine::sweep::{Metric, Sweep, SweepSpec, Swept, Way, means, read_pairs, write};
use crate::engine::{Error, Job};
use crate::sys::stop;

/// Patching sweeps: put parts of one run into another, one at a time, and measure how far each goes.
///
/// A prompt has two runs: `clean` and `corrupt` texts of a pairs file, or one text with and without --edit. Recovery is 1 where the
/// patched run behaves as the clean (edited) one at the last position, 0 where as the corrupt (plain) one; of a noising patch
/// less 1. --out gets sweep.parquet and sweep.csv (a row for each prompt and patch), means.csv and manifest.json.
#[derive(Debug, Args)]
pub struct PatchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Pairs file, a JSON object a line: clean, corrupt (a text, a list of token ids or chat messages), answer, wrong (one token
    /// each, as text or id), positions ({NAME: index} or {NAME: [in clean, in corrupt]}). With --edit: clean alone.
    #[arg(long, value_name = "PAIRS.jsonl")]
    data: PathBuf,
    /// What to patch, one place at a time: PATTERN[@POSITIONS], as in 'blocks.{14-29}.hook_mlp_out', 'blocks.*.attn.hook_z[0--1]'
    /// (each head by itself), 'blocks.*.hook_resid_post@each'. POSITIONS: all (the default), -1, -5..-1 (together), each, each:-5..-1
    /// (one by one), or a name of the pairs file. May be given several times.
    #[arg(long, value_name = "P", num_args = 1.., required_unless_present_any = ["pairs", "set"])]
    sites: Vec<String>,
    /// Patch every two of these places together: the same form.
    #[arg(long, value_name = "P", num_args = 1..)]
    pairs: Vec<String>,
    /// Patch these places all together: the same form, in one quoted text, parted by spaces. May be given several times.
    #[arg(long, value_name = "P P …")]
    set: Vec<String>,
    /// Which run is patched: the corrupt one with the clean one's part (denoising), the other way (noising), or both.
    #[arg(long, value_enum, default_value = "denoising")]
    way: WayArg,
    /// kl-recovery: KL from the clean run's distribution; logit-diff: logit of `answer` less that of `wrong`; prob-diff: probability
    /// of `answer` less that of `wrong`; direction: projection on --direction. All at the last position.
    #[arg(long, value_enum, default_value = "kl-recovery")]
    metric: MetricArg,
    /// For --metric direction: FILE.safetensors#TENSOR.
    #[arg(long, value_name = "FILE#KEY")]
    direction: Option<String>,
    /// For --metric direction: the hook point that is projected [default: the last hook_resid_post].
    #[arg(long, value_name = "POINT", requires = "direction")]
    direction_at: Option<String>,
    /// `end`: match prompts of unequal lengths from their ends where all positions are patched; `error`: refuse them.
    #[arg(long, value_enum, default_value = "error")]
    align: AlignArg,
    /// Leave out prompts whose two runs are nearer than this, in nats (kl-recovery).
    #[arg(long, value_name = "NATS", default_value_t = 0.01, value_parser = nats, allow_negative_numbers = true)]
    min_kl: f64,
    #[command(flatten)]
    edits: EditArgs,
    /// Wrap plain text as one turn of this role, by the model's chat template, and add the assistant's header.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "user")]
    chat: Option<String>,
    /// Don't let the tokenizer add BOS to plain text.
    #[arg(long)]
    no_special_tokens: bool,
    /// Read the first N prompts only.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Where the results go: a directory that is empty or not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with a sweep that was stopped, in the same --out, by the same command.
    #[arg(long)]
    resume: bool,
    /// Most tokens of a batch. Changes speed and memory, never a bit of the result.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Memory for the residual streams of patched runs.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = format::parse_bytes)]
    memory: u64,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// No progress, no summary.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WayArg {
    Denoising,
    Noising,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MetricArg {
    KlRecovery,
    LogitDiff,
    ProbDiff,
    Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AlignArg {
    Error,
    End,
}

impl PatchArgs {
    fn job(&self) -> Result<Job, Failure> {
        if self.edits.tap_before_edits {
            let why = "--tap-before-edits has no effect in a sweep: it has no taps";
            return Err(Usage(why.into()).into());
        }
        Ok(Job {
            edits: self.edits.read()?,
            chat: self.chat.clone(),
            add_generation_prompt: true,
            special_tokens: !self.no_special_tokens,
            limit: self.limit,
            batch_tokens: self.batch_tokens,
            ..Job::new(self.model.model.clone(), Vec::new(), Vec::new())
        })
    }

    fn spec(&self, n_layers: usize) -> Result<SweepSpec, Failure> {
        Ok(SweepSpec {
            sites: self.sites.clone(),
            pairs: self.pairs.clone(),
            sets: self.set.iter().map(|set| places(set)).collect(),
            ways: match self.way {
                WayArg::Denoising => vec![Way::Denoising],
                WayArg::Noising => vec![Way::Noising],
                WayArg::Both => vec![Way::Denoising, Way::Noising],
            },
            metrics: vec![self.metric(n_layers)?],
            align_from_end: self.align == AlignArg::End,
            min_kl: self.min_kl,
            memory: self.memory,
        })
    }

    fn metric(&self, n_layers: usize) -> Result<Metric, Usage> {
        let usage = |why: &str| Err(Usage(why.into()));
        match (self.metric, &self.direction) {
            (MetricArg::Direction, None) => {
                usage("--metric direction needs --direction FILE.safetensors#TENSOR")
            }
            (MetricArg::Direction, Some(direction)) => {
                let Some((file, key)) = direction.rsplit_once('#') else {
                    return usage("--direction is FILE.safetensors#TENSOR");
                };
                let last = format!("blocks.{}.hook_resid_post", n_layers - 1);
                Ok(Metric::Direction {
                    file: std::path::absolute(file).unwrap_or_else(|_| file.into()),
                    key: key.into(),
                    at: self.direction_at.clone().unwrap_or(last),
                })
            }
            (_, Some(_)) => usage("--direction has an effect with --metric direction alone"),
            (MetricArg::KlRecovery, None) => Ok(Metric::KlRecovery),
            (MetricArg::LogitDiff, None) => Ok(Metric::LogitDiff),
            (MetricArg::ProbDiff, None) => Ok(Metric::ProbDiff { of: None }),
        }
    }
}

fn nats(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n >= 0.0 => Ok(n),
        _ => Err("write a number of nats, at least 0".into()),
    }
}

fn places(set: &str) -> Vec<String> {
    set.split_whitespace().map(String::from).collect()
}

pub fn run(args: &PatchArgs) -> CliResult {
    let (prepared, place) = args.model.open_for_generation(args.job()?)?;
    let spec = args.spec(prepared.dims.n_layers)?;
    let prompts = read_pairs(&args.data, &prepared)?;
    let sweep = Sweep::new(&prepared, spec, prompts)?;
    let mut opened = place.open(&prepared, None)?;
    tell_of_upload(&place, &opened, args.quiet);
    let machine = &mut *opened.machine;
    if args.resume && sweep.is_done(machine, &args.out)? {
        out(format_args!(
            "{} was complete already: nothing was run\n",
            args.out.display()
        ));
        return Ok(());
    }
    stop::on_signals().map_err(|e| Failure::Refused(format!("cannot take signals: {e}")))?;
    let record = sweep.record(machine);
    let mut meter = SweepMeter::new(args.quiet);
    let asked = || stop::asked().is_some();
    let swept = sweep.run_in(machine, &args.out, args.resume, &asked, &mut |p| {
        meter.show(p)
    });
    meter.done();
    let swept = swept.map_err(|error| match (error, stop::asked()) {
        (crate::Error::Engine(error @ Error::SweepStopped { .. }), Some(status)) => {
            Failure::Stopped(error.to_string(), status)
        }
        (error, _) => error.into(),
    })?;
    let command: Vec<String> = std::env::args().collect();
    write(&args.out, &swept, &record, &command)?;
    for (prompt, kl) in &swept.left_out {
        let place = &sweep.prompts()[*prompt as usize].place;
        eprintln!("left out {place}: its two runs differ by {kl:.4} nats alone");
    }
    if swept.rows.is_empty() && !swept.left_out.is_empty() {
        return Err(Failure::Refused(format!(
            "every prompt was left out, and the tables in {} are empty: give an edit, or a corrupt run, that changes what is said, or a lower --min-kl",
            args.out.display()
        )));
    }
    if args.json {
        out(format_args!("{}\n", summary_json(&swept, args)));
    } else if !args.quiet {
        out(summary(&swept, args));
    }
    Ok(())
}

fn summary(swept: &Swept, args: &PatchArgs) -> String {
    let mut text = receipts(&swept.edits);
    text += &format!(
        "{} in {}; {} of {} layer-runs ({:.1} times fewer than a full pass for each)\n",
        format::counted(swept.rows.len() as u64, "patched run"),
        format::duration(swept.elapsed.as_secs_f64()),
        format::count(swept.layer_runs),
        format::count(swept.naive_layer_runs),
        swept.naive_layer_runs as f64 / swept.layer_runs.max(1) as f64,
    );
    let mut means = means(&swept.rows);
    means.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    for (row, mean, prompts) in means.iter().filter(|m| m.2 > 0).take(10) {
        let sites: Vec<String> = row.sites.iter().map(ToString::to_string).collect();
        text += &format!(
            "{mean:8.4}  {} {} ({})\n",
            row.way.name(),
            sites.join(" + "),
            format::counted(*prompts as u64, "prompt")
        );
    }
    text + &format!("{}\n", args.out.display())
}

fn summary_json(swept: &Swept, args: &PatchArgs) -> serde_json::Value {
    serde_json::json!({
        "out": args.out,
        "rows": swept.rows.len(),
        "left_out": swept.left_out.iter().map(|(prompt, _)| prompt).collect::<Vec<_>>(),
        "layer_runs": swept.layer_runs,
        "naive_layer_runs": swept.naive_layer_runs,
        "resumed_parts": swept.resumed,
        "wall_s": swept.elapsed.as_secs_f64(),
    })
}
